"""The workers, the schedule and the command line of `tests.chaos.fuzz`, which says what they do."""

import collections
import json
import multiprocessing
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import zlib
from multiprocessing import connection
from pathlib import Path
from typing import NamedTuple

os.environ.update(JAX_PLATFORMS="cpu", TF_CPP_MIN_LOG_LEVEL="3", HF_DATASETS_OFFLINE="1")
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")
sys.path.insert(0, str(Path(__file__).parents[2]))  # helpers of the tests, by their names

import numpy as np

from genfield.errors import UserError

from . import readers, watch
from .mutations import MARKER, mutate

MEMORY = 640 << 20  # bytes that reading a file of a few kB may take
SECONDS = 20  # of a processor, for a file
SPACE = 6 << 30  # bytes of addresses of a worker, beyond those at its start
JOB = 100  # files between two reports
LONGEST = 2200  # letters of a line


class Found(NamedTuple):
    """What is wrong with how a file was read: the kind, and the words for it."""

    kind: str
    text: str


# ---- One file


def drawn(reader: readers.Reader, seeds: dict[str, bytes], seed: int, number: int) -> dict:
    """The files of a folder, one of them changed, or that one alone; of number 0 none is."""
    rng = np.random.default_rng([seed, zlib.crc32(reader.name.encode()), number])
    names = [name for name in sorted(seeds) if reader.hostile(name)]
    chosen = names[rng.integers(len(names))]
    if not number:
        return seeds
    changed = {chosen: mutate(chosen, seeds[chosen], rng)}
    return changed if reader.alone else seeds | changed


def read(reader: readers.Reader, files: dict[str, bytes], room: Path) -> tuple[str, list[Found]]:
    """What a reader says of files ("" where it reads them), and what is wrong with that."""
    folder = room / "box" / reader.name
    shutil.rmtree(room / "box", ignore_errors=True)
    for name, raw in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(raw)
    found, words = [], ""
    with watch.watching(room, found, MEMORY):
        try:
            reader.read(folder)
        except UserError as error:
            words = str(error)
        except (Exception, SystemExit) as error:
            found.append(Found("traceback", watch.told(error)))
    if words and ("\n" in words or len(words) > LONGEST or not words.isprintable()):
        found.append(Found("line", f"{len(words)} letters: {words[:300]!r}"))
    if (room / MARKER).exists():
        (room / MARKER).unlink()
        found.append(Found("executed", f"{MARKER} was made"))
    strange = sorted({p.name for p in room.iterdir()} - {"box", "cache", "tmp"})
    if strange:
        found.append(Found("path", f"made {strange[0]} outside of the folder"))
    return words, [Found(*one) for one in found]


# ---- Workers


def work(pipe, at, out: Path, seed: int) -> None:
    """Reads jobs (reader, first, last) until there are none; `at` says the file at hand."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    room = Path(
        tempfile.mkdtemp(prefix="fuzz_", dir="/dev/shm" if Path("/dev/shm").is_dir() else None)
    )
    try:
        watch.settle(room, SPACE)
        known = {}
        while job := pipe.recv():
            name, first, last = job
            reader = readers.READERS[name]
            if name not in known:
                known[name] = readers.stored(out / "seeds" / name)
                read(reader, known[name], room)  # imports and compiles, before anything is measured
            pipe.send(_job(reader, known[name], (first, last), (at, out, seed), room))
    except (EOFError, BrokenPipeError):
        pass
    finally:
        shutil.rmtree(room, ignore_errors=True)


def _job(reader, seeds, numbers: tuple[int, int], where, room: Path) -> dict:
    at, out, seed = where
    said, found, begun = collections.Counter(), [], time.process_time()
    for number in range(*numbers):
        at.value = number
        files = drawn(reader, seeds, seed, number)
        signal.setitimer(signal.ITIMER_PROF, SECONDS)  # ends the process, in C code too
        words, wrong = read(reader, files, room)
        signal.setitimer(signal.ITIMER_PROF, 0)
        said["refused" if words else "read"] += 1
        if words and not number:
            wrong.append(Found("seed", f"what is valid is refused: {words}"))
        for one in wrong:
            found.append({"number": number, "kind": one.kind, "text": one.text})
            keep(out, reader.name, number, files, one)
    seconds = time.process_time() - begun
    return {"said": said, "found": found, "seconds": seconds}


def keep(out: Path, name: str, number: int, files: dict[str, bytes], one: Found) -> None:
    """The files of a case, and what was wrong, below found/."""
    place = out / "found" / f"{name}-{number}"
    for file, raw in files.items():
        (place / "files" / file).parent.mkdir(parents=True, exist_ok=True)
        (place / "files" / file).write_bytes(raw)
    (place / "why.txt").write_text(f"{one.kind}\n{one.text}\n", errors="replace")


# ---- The schedule


def jobs(files: int, chosen: list[str]) -> list[tuple[str, int, int]]:
    """(reader, first, last): the files are shared out by what each reader is worth."""
    shares = {name: readers.READERS[name].share for name in chosen}
    total, out = sum(shares.values()), []
    for name, share in shares.items():
        count = max(2, round(files * share / total))
        out += [(name, first, min(first + JOB, count)) for first in range(0, count, JOB)]
    return out


class Pool:
    """Workers at work on a list of jobs; what they find goes into progress.jsonl."""

    def __init__(self, out: Path, seed: int, todo: list, workers: int):
        self.out, self.seed, self.todo = out, seed, todo
        self.context = multiprocessing.get_context("fork")
        self.busy = {}
        self.log = open(out / "progress.jsonl", "a")
        for _ in range(min(workers, len(todo))):
            self._start()

    def _start(self) -> None:
        ours, theirs = self.context.Pipe()
        at = self.context.Value("q", -1, lock=False)
        worker = self.context.Process(target=work, args=(theirs, at, self.out, self.seed))
        worker.start()
        theirs.close()
        self._next(ours, worker, at)

    def _next(self, pipe, worker, at) -> None:
        job = self.todo.pop(0) if self.todo else None
        pipe.send(job)
        if job is None:
            worker.join()
            pipe.close()
        else:
            self.busy[pipe] = (worker, at, job)

    def step(self) -> list[dict]:
        """Waits for a report; what was found in it."""
        rows = []
        for pipe in connection.wait(list(self.busy), timeout=5):
            worker, at, job = self.busy.pop(pipe)
            try:
                row = pipe.recv() | {"job": job}
                self._next(pipe, worker, at)
            except EOFError:
                row = self._ended(worker, at.value, job)
                self._start_again()
            self.log.write(json.dumps(row) + "\n")
            self.log.flush()
            rows.append(row)
        return rows

    def _start_again(self) -> None:
        if self.todo:
            self._start()

    def _ended(self, worker, number: int, job) -> dict:
        """A worker that a file ended: the file is kept, the others of the job come later."""
        worker.join()
        name, first, last = job
        number = max(number, first)
        reader, seeds = readers.READERS[name], readers.stored(self.out / "seeds" / name)
        code = worker.exitcode
        kind = "time" if code == -signal.SIGPROF else "crash"
        one = Found(
            kind, f"the process ended with {code} ({signal.strsignal(-code) if code < 0 else ''})"
        )
        keep(self.out, name, number, drawn(reader, seeds, self.seed, number), one)
        parts = [(name, first, number), (name, number + 1, last)]
        self.todo[:0] = [part for part in parts if part[1] < part[2]]
        found = [{"number": number, "kind": kind, "text": one.text}]
        return {"said": {}, "found": found, "seconds": 0.0, "job": [name, number, number + 1]}

    def close(self) -> None:
        for pipe, (worker, _, _) in self.busy.items():
            worker.terminate()
            worker.join()
            pipe.close()
        self.log.close()


# ---- The command


def table(rows: list[dict]) -> str:
    """reader, files, how many were read and refused, what was found, seconds a thousand."""
    lines = [f"{'reader':24}{'files':>8}{'read':>8}{'refused':>9}{'found':>7}{'s/1,000':>9}"]
    total = collections.Counter()
    by_name = collections.defaultdict(list)
    for row in rows:
        by_name[row["job"][0]].append(row)
    for name, parts in by_name.items():
        count = collections.Counter()
        for part in parts:
            count.update(part["said"])
            count["found"] += len(part["found"])
            count["files"] += part["job"][2] - part["job"][1]
            count["seconds"] += part["seconds"]
        total.update(count)
        lines.append(_line(name, count))
    return "\n".join([*lines, _line("all", total)])


def _line(name: str, count) -> str:
    each = 1000 * count["seconds"] / max(1, count["files"])
    cells = (count["files"], count["read"], count["refused"])
    return f"{name:24}{cells[0]:8,}{cells[1]:8,}{cells[2]:9,}{count['found']:7,}{each:9.1f}"


def again(place: Path) -> int:
    """Reads the kept files of one case once more, in a process of its own."""
    reader = readers.READERS[place.name.rpartition("-")[0]]
    files = readers.stored(place / "files")

    def child() -> None:
        room = Path(tempfile.mkdtemp(prefix="fuzz_"))
        watch.settle(room, SPACE)
        signal.setitimer(signal.ITIMER_PROF, 3 * SECONDS)
        words, found = read(reader, files, room)
        print(f"it says: {words}" if words else "it is read" * (not found))
        print("\n".join(f"{one.kind}: {one.text}" for one in found))
        shutil.rmtree(room, ignore_errors=True)
        os._exit(bool(found))

    sys.stdout.flush()
    worker = multiprocessing.get_context("fork").Process(target=child)
    worker.start()
    worker.join()
    print(f"exit code {worker.exitcode}")
    return worker.exitcode != 0


def _make_seeds(out: Path, chosen: list[str]) -> None:
    """In a process of its own: workers are forked from one where JAX has not begun."""

    def child() -> None:
        os.environ["GENFIELD_CACHE"] = str(out / "cache")
        for name in chosen:
            readers.make(out / "seeds" / name, readers.READERS[name])

    worker = multiprocessing.get_context("fork").Process(target=child)
    worker.start()
    worker.join()
    if worker.exitcode:
        raise SystemExit("the seeds could not be made")


def run(files: int, seed: int, out: Path, workers: int, chosen: list[str]) -> list[dict]:
    """All rows of a schedule, those of an earlier try too."""
    out.mkdir(parents=True, exist_ok=True)
    _make_seeds(out, chosen)
    stored = out / "progress.jsonl"
    rows = [json.loads(line) for line in stored.read_text().splitlines()] if stored.exists() else []
    todo = jobs(files, chosen)
    done = {(name, number) for row in rows for name, a, b in [row["job"]] for number in range(a, b)}
    todo = [j for j in todo if any((j[0], number) not in done for number in range(j[1], j[2]))]
    total, begun = sum(b - a for _, a, b in todo), time.monotonic()
    if len(done):
        print(f"{len(done):,} files were read before", flush=True)
    pool, told, count = Pool(out, seed, todo, workers), begun, 0
    try:
        while pool.busy:
            for row in pool.step():
                rows.append(row)
                count += row["job"][2] - row["job"][1]
                for one in row["found"][:3]:
                    case = out / "found" / f"{row['job'][0]}-{one['number']}"
                    print(f"{one['kind']}: {row['job'][0]} {one['number']}: {one['text'][:160]}")
                    print(f"  again: python -m tests.chaos.fuzz --again={case}", flush=True)
            if time.monotonic() - told > 10:
                told = time.monotonic()
                rate = count / (told - begun)
                print(f"{count:,} of {total:,} files, {rate:.0f} a second", flush=True)
    finally:
        pool.close()
    return rows


def start(options) -> int:
    """Does what a command line asks; 1 where anything was found, 130 after Ctrl-C."""
    if options.again:
        return again(options.again)
    begins = tuple(options.readers.split(","))
    chosen = [name for name in readers.READERS if name.startswith(begins)]
    try:
        rows = run(options.files, options.seed, options.out, options.workers, chosen)
    except KeyboardInterrupt:
        print("\nstopped: the same command goes on from here")
        return 130
    print(table(rows))
    used = sum(row["seconds"] for row in rows)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss >> 10
    print(f"{used:.0f} seconds of a processor; largest worker {peak:,} MB")
    return int(any(row["found"] for row in rows))
