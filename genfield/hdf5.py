"""Whether an HDF5 file can be read, asked in a process of its own.

HDF5 is a library in C that some damaged files end together with its process, and that reads others
for ever (2.0.0 with h5py 3.16.0 does both on damaged attributes). What reads the file afterwards
reads only what was read before.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

from genfield.reading import most, reason, room_for

SECONDS, RATE = 10, 1e7  # of a processor, and bytes that a second of it should read at least


def check(path: Path) -> None:
    """Raises ValueError for a file that ends its reader, that leads to others, or that would take
    more memory than one of its size should."""
    command = [sys.executable, "-P", "-m", "genfield.hdf5", str(path)]
    places = os.pathsep.join(place or os.getcwd() for place in sys.path)
    told = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": places},
    )
    if told.returncode < 0:
        name = signal.Signals(-told.returncode).name
        does = "reads it for ever" if name == "SIGXCPU" else f"ends with {name} on it"
        raise ValueError(f"it is damaged: HDF5 {does}")
    if told.returncode:
        words = told.stdout.decode(errors="replace").strip()
        raise ValueError(words or f"its reader ended with code {told.returncode}")


def read_all(path: Path) -> None:
    """Reads every name, attribute and value of a file, and keeps none.

    HDF5 has links to other files, and arrays of any size whose numbers stand nowhere.

    Raises:
      ValueError: what `check` raises, but for a crash. Whatever else h5py raises.
    """
    import h5py

    with h5py.File(path, "r") as file:
        arrays = list(_arrays(file, most(path.stat().st_size)))
        for array in arrays:
            array[()]


def _arrays(file, room: int):
    """All arrays of a file, which take `room` bytes at most, in the order of a walk."""
    import h5py

    left, seen = ["/"], set()
    while left:
        group = file[left.pop()]
        dict(group.attrs)
        for name in group:
            link = group.get(name, getlink=True)
            if not isinstance(link, h5py.HardLink):
                raise ValueError(f"{group.name}/{name} is a link to elsewhere")
            inner = group[name]
            if isinstance(inner, h5py.Group):
                if inner.id in seen:
                    raise ValueError(f"{inner.name} holds itself")
                seen.add(inner.id)
                left.append(inner.name)
            elif isinstance(inner, h5py.Dataset):
                dict(inner.attrs)
                room -= _bytes_of(inner)
                yield inner
            if room < 0:
                raise ValueError("it would become too large for its size: a bomb")


def _bytes_of(array) -> int:
    """What an HDF5 array takes in memory; ValueError where it lies in other files."""
    if array.is_virtual or array.external:
        raise ValueError(f"{array.name} lies in another file")
    return (array.size or 0) * array.dtype.itemsize


def main(path: str) -> int:
    """Reads a file whole; 1 where it cannot be read, and a line that says why."""
    import resource

    place = Path(path)
    size = place.stat().st_size
    seconds = int(SECONDS + size / RATE)
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        import h5py  # noqa: F401  before memory is short

        with room_for(most(size)):  # a text may say that it has gigabytes
            read_all(place)
    except Exception as error:  # h5py raises all kinds on damaged files
        print(reason(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
