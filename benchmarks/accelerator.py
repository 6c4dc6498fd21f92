"""What is open of this project until it runs on an accelerator, by one command on one device.

    python benchmarks/accelerator.py [--half=1|2] [--only=sit_b,…] [--out=accelerator.json]

Twelve minutes in two halves of six. Each part is a process of its own with its own limit, so one
that fails or hangs takes nothing with it; what there was no time for is named. The figures are
written as they come: SiT-B/2 and XL/2 train steps beside what `genfield.plan` predicts, 250 steps
of sampling, decoding, attention kernels; then steps of all methods on one U-Net at the papers'
batch of a GPU, and greedy matching against the Hungarian algorithm. --shrink is the same on toys.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

HALF = 360.0  # seconds
START = 15.0  # seconds that a part takes to start and end
PATIENCE = 5  # times as long for toys, which are tried on busy CPUs


class Part(NamedTuple):
    """rows(shrink) yields figures as it has them; limit: seconds, all in all."""

    title: str
    half: int
    limit: float
    rows: Callable[[bool], Iterator[dict]]


def parts() -> dict[str, Part]:
    """All of them, in their order."""
    import accelerator_parts as of

    return {
        "sit_b": Part("train step, SiT-B/2", 1, 90, of.sit_b),
        "sit_xl": Part("train step, SiT-XL/2", 1, 100, of.sit_xl),
        "sampling": Part("250 steps of sampling", 1, 70, of.sampling),
        "decoding": Part("decoding 256x256 images", 1, 60, of.decoding),
        "attention": Part("attention kernels", 1, 80, of.attention),
        "methods": Part("steps of the methods, one U-Net", 2, 280, of.methods),
        "matching": Part("matching", 2, 120, of.matching),
    }


def run(name: str, limit: float, shrink: bool, told: Callable[[dict], None]) -> str:
    """Runs a part in its own process; "" or what went wrong. told: each row as it comes."""
    command = [sys.executable, __file__, f"--part={name}", *(["--shrink"] if shrink else [])]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, start_new_session=True, bufsize=1
    )
    kill = lambda *_: os.killpg(process.pid, signal.SIGKILL)
    before = signal.signal(signal.SIGALRM, kill)
    signal.setitimer(signal.ITIMER_REAL, limit)
    try:
        for line in process.stdout:
            told(json.loads(line)) if line.startswith("{") else print(line, end="", flush=True)
        process.wait()
    except BaseException:
        kill()
        raise
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    if process.returncode == -signal.SIGKILL:
        return f"stopped after its {limit:.0f} s"
    return f"exit code {process.returncode}" if process.returncode else ""


def shown(rows: list[dict]) -> str:
    """A table of rows that need not have the same figures."""
    import rounds

    names = list(dict.fromkeys(name for row in rows for name in row))
    show = lambda v: rounds.number(v) if isinstance(v, float) else str(v)
    cells = [[show(row[name]) if name in row else "" for name in names] for row in rows]
    return rounds.table(names, cells)


def half(number: int, chosen: dict[str, Part], args, report: dict) -> None:
    """Runs the parts of a half within its time; writes the report after each row."""
    patience = PATIENCE if args.shrink else 1
    end = time.monotonic() + HALF * patience
    for name, part in chosen.items():
        if part.half != number:
            continue
        left = end - time.monotonic()
        found: dict = {"title": part.title, "rows": [], "wrong": ""}
        report["parts"][name] = found
        if left < 2 * START:
            found["wrong"] = "not started: the time of its half was over"
        else:

            def told(row: dict, found=found) -> None:
                found["rows"].append(row)
                write(args.out, report)
                print(row, flush=True)

            print(f"{part.title} …", flush=True)
            found["wrong"] = run(name, min(part.limit * patience, left), args.shrink, told)
        write(args.out, report)
        print(f"\n{shown(found['rows'])}" if found["rows"] else "", flush=True)
        if found["wrong"]:
            print(f"{name}: {found['wrong']}\n", flush=True)


def write(path: Path, report: dict) -> None:
    """The report, whole at any time."""
    new = path.with_name(path.name + ".new")
    new.write_text(json.dumps(report, indent=1) + "\n")
    new.replace(path)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--half", type=int, choices=(1, 2), help="one of them; both by default")
    parser.add_argument("--only", help="parts, separated by commas")
    parser.add_argument("--shrink", action="store_true", help="toys, to try it out")
    parser.add_argument("--out", type=Path, default=Path("accelerator.json"))
    parser.add_argument("--part", help=argparse.SUPPRESS)
    args = parser.parse_args()
    found = parts()
    if args.part:
        for row in found[args.part].rows(args.shrink):
            print(json.dumps(row), flush=True)
        return 0
    asked = list(found) if args.only is None else args.only.split(",")
    if wrong := [name for name in asked if name not in found]:
        parser.error(f"--only names {wrong[0]!r}: known are {', '.join(found)}")
    report: dict = json.loads(args.out.read_text()) if args.out.exists() else {"parts": {}}
    for number in (1, 2) if args.half is None else (args.half,):
        half(number, {name: found[name] for name in asked}, args, report)
    return int(any(part["wrong"] for part in report["parts"].values()))


if __name__ == "__main__":
    sys.exit(main())
