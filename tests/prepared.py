"""Folders as `python -m genfield.prepare` leaves them, from arrays; and the command itself."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from programs import ROOT

from genfield.data import identity, shards
from genfield.prepare.__main__ import main
from genfield.prepare.run import _write_json


def latents(folder: Path, mean, std, labels=None, mirrored=None, names=(), shard: int = 16) -> Path:
    """Latents [N, H, W, C] with their standard deviations; `mirrored`: (mean, std) of copies."""
    pairs = [(mean, std)] + ([] if mirrored is None else [mirrored])
    values = np.stack([np.stack(pair, 1) for pair in pairs], 1).astype(np.float16)
    stored = values.astype(np.float64)
    first, second = stored[:, :, 0].mean((0, 1, 2, 3)), stored[:, :, 1]
    square = (stored[:, :, 0] ** 2 + second**2).mean((0, 1, 2, 3))
    facts = {
        "kind": shards.LATENTS,
        "size": 8 * mean.shape[1],
        "shape": list(mean.shape[1:]),
        "copies": len(pairs),
        "autoencoder": {"scaling_factor": 0.25},
        "statistics": {"mean": first.tolist(), "std": np.sqrt(square - first**2).tolist()},
    }
    return write(folder, values, facts, labels, names, shard)


def pixels(folder: Path, levels: np.ndarray, labels=None, names=(), shard: int = 16) -> Path:
    """Images, uint8 [N, H, W, 3]."""
    facts = {"kind": shards.PIXELS, "size": levels.shape[1], "shape": list(levels.shape[1:])}
    return write(folder, levels, facts | {"copies": 1}, labels, names, shard)


def write(folder: Path, values: np.ndarray, facts: dict, labels, names, shard: int) -> Path:
    place = folder / shards.SHARDS
    place.mkdir(parents=True)
    files = []
    for number, start in enumerate(range(0, len(values), shard)):
        part = values[start : start + shard]
        np.save(place / f"{number:05}.npy", part)
        mark = identity.file_hash(place / f"{number:05}.npy")
        files.append({"file": f"{number:05}.npy", "count": len(part), "hash": mark})
    if labels is not None:
        np.save(folder / shards.LABELS, np.asarray(labels, np.int32))
        names = names or tuple(map(str, range(int(np.max(labels)) + 1)))
    facts |= {"count": len(values), "class_names": list(names), "shards": files, "left_out": []}
    _write_json(folder / shards.ASKED, {})
    _write_json(folder / shards.FINISHED, facts)
    return folder


def flags(images, out, **options) -> list[str]:
    """A command line; True stands for a flag without a value."""
    given = {"images": images, "out": out} | options
    return [f"--{k}" if v is True else f"--{k}={v}" for k, v in given.items()]


def prepare(images, out, **options) -> int:
    """Prepares in this process; the exit code."""
    return main(["prepare", *flags(images, out, **options)])


def start(images, out, **options) -> subprocess.Popen:
    """Prepares in a process of its own, its output as text."""
    extra = {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    extra |= options.pop("env", {})
    command = [sys.executable, "-m", "genfield.prepare", *flags(images, out, **options)]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return subprocess.Popen(command, env=os.environ | extra, cwd=ROOT, **pipes)


def contents(out: Path) -> dict[str, bytes]:
    """The files of a finished folder by their names, without journals."""
    files = [path for path in out.rglob("*") if path.is_file() and path.suffix != ".jsonl"]
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in files}
