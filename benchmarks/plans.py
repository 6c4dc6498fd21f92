"""What every full-size training asks of five machines: the tables of docs/scale.md.

    python benchmarks/plans.py --out=runs/plans [--only=eqm_xl,dm_xl] [--machines=v5e-16,h100x8]
        [--limit=1800] [--tables]

Runs `python -m genfield.plan` once for each pair that has no plan.json in its folder yet, so it can
be stopped and started again; what does not compile within --limit seconds is noted as that, and so
is what the program refuses. Minutes for a transformer; a large U-Net for TPUs takes much longer.
`--tables` writes the tables alone. Needs the extras plan-tpu and plan-gpu.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from rounds import table

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from genfield.plan.report import duration, size  # noqa: E402

MARK = "<!-- by benchmarks/plans.py: {} -->\n"
DAY = 24 * 3600.0


class Case(NamedTuple):
    """A training at full size. split: parameters that do not fit on one chip of 16 GB."""

    title: str
    config: str
    flags: tuple[str, ...] = ()
    split: bool = False


class Machine(NamedTuple):
    """A machine, and the flags that split parameters over it where that is needed."""

    topology: str
    fsdp: int
    slices: int = 1


PIXELS = ("--shape=32,32,3", "--classes=10")
PIXELS_64 = ("--shape=64,64,3", "--classes=1000")
PLAIN_64 = ("--shape=64,64,3", "--classes=0")
CASES = {
    "fm_xl": Case("FM, SiT-XL/2", "flow_matching_imagenet256.py:XL/2", split=True),
    "eqm_b": Case("EqM, SiT-B/2", "equilibrium_matching_imagenet256.py:B/2"),
    "eqm_xl": Case("EqM, SiT-XL/2", "equilibrium_matching_imagenet256.py:XL/2", split=True),
    "dm_xl": Case("DM, SiT-XL/2", "distance_marching_imagenet256.py:XL/2", split=True),
    "dm_cifar10": Case("DM, CIFAR-10", "distance_marching_cifar10.py", PIXELS),
    "eqm_cifar10": Case("EqM, CIFAR-10", "equilibrium_matching_cifar10.py", PIXELS),
    "flux_cifar10": Case("Flux, CIFAR-10", "flux_matching_cifar10.py", PIXELS),
    "flux_celeba64": Case("Flux, CelebA 64", "flux_matching_celeba64.py", PLAIN_64),
    "edm_imagenet64": Case("EDM, ImageNet 64", "edm_imagenet64.py", PIXELS_64),
    "lines_imagenet64": Case("LMM, ImageNet 64", "lines_imagenet64.py", PIXELS_64),
    "adversarial_cifar10": Case("LMM, adversarial", "lines_cifar10.py:adversarial", PIXELS),
    "dansm_cifar10": Case("DANSM, CIFAR-10", "dansm_cifar10.py", PIXELS),
    "dansm_imagenet64": Case("DANSM, ImageNet 64", "dansm_imagenet64.py", PIXELS_64),
    "dansm_ffhq256": Case("DANSM, FFHQ 256", "dansm_ffhq256.py", ("--shape=256,256,3",)),
}
MACHINES = {
    "v5e-16": Machine("v5e:4x4", 16),
    "v5p-8": Machine("v5p:2x2x1", 1),
    "v5e-256": Machine("v5e:16x16", 16),
    "h100x8": Machine("h100:8", 1),
    "h100x64": Machine("h100:8x8", 1),
    "v5e-1024": Machine("v5e:16x16", 16, slices=4),
}
FIVE = [name for name in MACHINES if name != "v5e-1024"]


def planned(out: Path, name: str, machine: str, limit: float) -> dict:
    """The plan of a case on a machine, made now if it is not there; or why there is none."""
    folder = out / f"{name}--{machine}"
    for file in ("plan.json", "none.json"):
        if (folder / file).exists():
            return json.loads((folder / file).read_text())
    folder.mkdir(parents=True, exist_ok=True)
    case, place = CASES[name], MACHINES[machine]
    command = [sys.executable, "-m", "genfield.plan", f"--config={ROOT / 'configs' / case.config}"]
    command += [f"--topology={place.topology}", f"--slices={place.slices}", f"--out={folder}"]
    fsdp = place.fsdp if case.split else 1
    command += [*case.flags, "--config.mesh.data=-1", f"--config.mesh.fsdp={fsdp}"]
    begun = time.monotonic()
    with open(folder / "log.txt", "w") as log:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            process.wait(limit)
        except BaseException as error:  # a stop of this script too ends what it started
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
    spent = time.monotonic() - begun
    print(f"{name} on {machine}: exit code {process.returncode} after {spent:.0f} s", flush=True)
    if not (folder / "plan.json").exists():
        lines = (folder / "log.txt").read_text().strip().splitlines() or [""]
        why = f"not compiled within {limit:.0f} s" if process.returncode < 0 else lines[-1]
        (folder / "none.json").write_text(json.dumps({"none": why}) + "\n")
    return planned(out, name, machine, limit)


def found(out: Path, name: str, machine: str) -> dict | None:
    """The plan of a case on a machine, if it was made."""
    for file in ("plan.json", "none.json"):
        path = out / f"{name}--{machine}" / file
        if path.exists():
            return json.loads(path.read_text())
    return None


def cell(plan: dict | None) -> str:
    """Memory, seconds of a step, and what the chips send each other."""
    if plan is None:
        return ""
    if "none" in plan:
        return plan["none"]
    train = plan["train"]
    peak, spent = train["memory_bytes"]["peak"], train["seconds"]
    sent = sum(kind["bytes"] for kind in (train["collectives"] or {}).values())
    bound = max(("compute", "memory", "links"), key=lambda part: spent.get(part) or 0.0)
    fits = "" if train["fits"] else ", **does not fit**"
    shown = f"{size(peak)}{fits}; {duration(spent['predicted'])} ({bound}); {size(sent)} sent"
    return f"{shown}; {train['utilisation']:.0%}" if "utilisation" in train else shown


def days(plan: dict | None, steps: int) -> str:
    """Of the paper's training, at the predicted time of a step."""
    if plan is None or "none" in plan:
        return ""
    return f"{plan['train']['seconds']['predicted'] * steps / DAY:.3g}"


def steps(case: Case) -> tuple[int, int]:
    """Steps of a config, and its batch."""
    from genfield.program import config_io

    config, _ = config_io.read(str(ROOT / "configs" / case.config))
    return config.train.steps, config.batch_size


def tables(out: Path) -> dict[str, str]:
    """By name, the tables of docs/scale.md."""
    plans = {name: {m: found(out, name, m) for m in MACHINES} for name in CASES}
    kept = [name for name in CASES if any(plans[name].values())]
    rows = [[CASES[name].title, *(cell(plans[name][m]) for m in FIVE)] for name in kept]
    out_tables = {"plans": table(["training", *FIVE], rows)}
    rows = []
    for name in kept:
        count, batch = steps(CASES[name])
        millions = f"{count * batch / 1e6:,.0f}"
        spent = [days(plans[name][m], count) for m in FIVE]
        rows.append([CASES[name].title, f"{batch:,}", millions, *spent])
    out_tables["days"] = table(["training", "batch", "million examples", *FIVE], rows)
    return out_tables


def write(page: Path, made: dict[str, str]) -> None:
    """Puts each table between its two marks on a page."""
    text = page.read_text()
    for name, shown in made.items():
        mark = MARK.format(name)
        before, _, after = text.split(mark)
        text = mark.join([before, shown, after])
    page.write_text(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/plans"))
    parser.add_argument("--only", default=",".join(CASES), help="cases, separated by commas")
    parser.add_argument("--machines", default=",".join(FIVE), help="separated by commas")
    parser.add_argument("--limit", type=float, default=1800.0, help="seconds for one plan")
    parser.add_argument("--tables", action="store_true", help="write the tables alone")
    args = parser.parse_args()
    out = args.out.resolve()
    for machine in () if args.tables else args.machines.split(","):
        for name in args.only.split(","):
            planned(out, name, machine, args.limit)
    made = tables(out)
    print("\n".join(made.values()))
    write(ROOT / "docs" / "scale.md", made)


if __name__ == "__main__":
    main()
