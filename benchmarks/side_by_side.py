"""genfield beside its peers' own PyTorch code on a CPU: time over theirs, row by row.

    python benchmarks/side_by_side.py --peer-python=…/bin/python --peers=FOLDER [--rows sit unet]

The peers run in a Python of their own, which may have what genfield's may not:

    python -m venv peers && peers/bin/pip install torch torchvision timm torchdiffeq tqdm \\
        flow_matching pytorch-fid POT scipy

FOLDER has the repositories that no package index has, as EqM, edm, flow_matching and torchebm:

    git clone https://github.com/raywang4/EqM              https://github.com/NVlabs/edm
              https://github.com/facebookresearch/flow_matching
              https://github.com/soran-ghaderi/torchebm

Each side of a row is a process that keeps its network; both are asked in turns, every second round
in the opposite order, so that a load harms both alike. Beside the times stand each side's page
faults, seconds of the processor and largest memory. --with=NAME:VARIABLE=VALUE measures genfield
once more with another environment.
"""

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import rounds

HERE = Path(__file__).resolve().parent
OURS = "genfield"


class Case(NamedTuple):
    """A row: what it is, units of work in a round, and the names of what it compares."""

    title: str
    units: int
    peers: tuple[str, ...]
    ours: tuple[str, ...]


def case(name: str, title: str, units: int, peers=(), ours=()) -> dict[str, Case]:
    """By its name; peers and ours: further candidates of the row."""
    return {name: Case(title, units, (name, *peers), (name, *ours))}


CASES = {
    **case("sit", "SiT-S/2, EqM step, batch 8", 1, ("sit, torch.compile",)),
    **case("sit_loop", "the same, whole loop: feed, figures, a checkpoint", 6),
    **case("ddpmpp", "EDM's DDPM++, 64 channels, step, batch 4", 2),
    **case("unet", "flow_matching's U-Net, 64 channels, step, batch 8", 1),
    **case("flux", "Flux step, U-Net of 32 channels, batch 16", 1),
    **case("mlp", "points, MLP 3x64, EqM step, batch 256", 2000, ("mlp, TorchEBM's trainer",)),
    **case("sample", "SiT-S/2, descent, batch 2: 25 of its 250 steps", 1),
    **case("dopri5", "Dopri5, 1,024 points, MLP", 10, (), ("dopri5, per sample",)),
    **case("greedy", "1,000 pairs of 3,072: greedy beside SciPy's assignment", 5),
    **case(
        "exact",
        "2,000 pairs of 3,072: exact assignment beside POT's",
        2,
        (),
        ("exact, POT's solver",),
    ),
    **case("inception", "Inception-v3 features, 16 images", 1),
}


class Side:
    """One candidate of a row, in its process."""

    def __init__(self, name: str, command: list[str], changes: dict[str, str]):
        pipe = subprocess.PIPE
        environment = os.environ | changes
        self.name = name
        self.process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, text=True, env=environment
        )
        self.asked: list[dict] = []
        self.first = self._answer()

    def _answer(self) -> dict:
        line = self.process.stdout.readline()
        return json.loads(line) if line else {"missing": f"{self.name} ended, see above"}

    def run(self, units: int) -> tuple[float, int]:
        """Seconds that so many units take, and their number."""
        print(units, file=self.process.stdin, flush=True)
        self.asked.append(self._answer())
        return self.asked[-1]["seconds"], units

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()

    def used(self, units: int) -> dict:
        """Medians of a unit's faults and processor seconds; the largest memory, MiB."""
        median = lambda name: float(np.median([one[name] for one in self.asked]))
        each = {name: median(name) / units for name in ("faults", "cpu", "system")}
        return each | {"peak": max(one["peak"] for one in self.asked)}


def there(side: Side) -> bool:
    """Whether it is; where it is not, a line says how to get it."""
    if "missing" in side.first:
        print(f"{side.name} is not there: {side.first['missing']} (--help says how to get it)")
        side.close()
    return "missing" not in side.first


def sides(one: Case, args) -> list[Side]:
    """All candidates of a row that are there, a peer first; none without one."""
    python = [args.peer_python, str(HERE / "peers.py")]
    own = [sys.executable, str(HERE / "ours.py")]
    found = [Side(f"peer: {name}", [*python, name, str(args.peers)], {}) for name in one.peers]
    found = [side for side in found if there(side)]
    if not found:
        return []
    for name in one.ours:
        further = name.partition(", ")[2]
        label = f"{OURS}, {further}" if further else OURS
        found.append(Side(label, [*own, name], {}))
        for other, changes in args.also:
            found.append(Side(f"{label}, {other}", [*own, name], changes))
    return [side for side in found if there(side)]


def check_same(found: list[Side]) -> None:
    """Both sides have the same network and find the same, or the row compares nothing."""
    for name, tolerance in (("parameters", 0.005), ("value", 1e-3)):
        values = [side.first[name] for side in found if side.first[name]]
        if values and max(values) > (1 + tolerance) * min(values):
            raise SystemExit(f"the sides differ in {name}: {[(s.name, s.first) for s in found]}")


def measure(one: Case, args) -> dict | None:
    """The figures of a row, by candidate; the first is what the others are divided by."""
    found = sides(one, args)
    try:
        if not found:
            return None
        check_same(found)
        asked = {side.name: lambda side=side: side.run(one.units) for side in found}
        rates = rounds.interleave(asked, args.rounds)
    finally:
        for side in found:
            side.close()
    peer = rates[found[0].name]
    return {
        side.name: {
            "seconds": rounds.summary(1 / rates[side.name]),
            "over": rounds.summary(peer / rates[side.name]),
            **side.used(one.units),
        }
        for side in found
    }


def show(title: str, result: dict) -> str:
    """A row's table."""
    header = ["by", "seconds", "time / peer's", "page faults", "CPU s", "of it kernel", "peak MiB"]
    lines = [
        [
            name,
            rounds.spread(one["seconds"]["rounds"]),
            rounds.spread(one["over"]["rounds"], rounds.ratio),
            *(rounds.number(one[key]) for key in ("faults", "cpu", "system", "peak")),
        ]
        for name, one in result.items()
    ]
    return f"### {title}\n\n{rounds.table(header, lines)}"


def variant(text: str) -> tuple[str, dict[str, str]]:
    """NAME:VARIABLE=VALUE,VARIABLE=VALUE; values may have colons, = and commas."""
    name, _, changes = text.partition(":")
    return name, dict(change.split("=", 1) for change in re.split(r",(?=\w+=)", changes))


def main() -> None:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument("--peer-python", default=sys.executable, help="with the peers' packages")
    parser.add_argument("--peers", type=Path, default=Path("peers"), help="their repositories")
    parser.add_argument("--rows", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--rounds", type=int, default=5, help="of all candidates in turn")
    parser.add_argument("--with", dest="also", type=variant, action="append", default=[])
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    args = parser.parse_args()
    if args.rounds < 1:
        parser.error("--rounds must be at least 1")
    content = {"rows": {}}
    for name in args.rows:
        content["machine"] = rounds.machine()
        print(rounds.describe(content["machine"]), flush=True)
        result = measure(CASES[name], args)
        if result:
            content["rows"][name] = result | {"load": content["machine"]["load"]}
            print(show(CASES[name].title, result), flush=True)
        if args.json:
            args.json.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
