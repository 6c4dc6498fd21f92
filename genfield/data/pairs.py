"""Pairs of noise and the sample that a deterministic sampler made of it, by `--mode=pairs`.

A folder with x0.npy and x1.npy, float32 [N, *shape], perhaps labels.npy, and manifest.json, which
says what drew them. The arrays stay on disk and are read by memory map.
"""

import json
from pathlib import Path

import numpy as np

from genfield.data.pipeline import SPLIT_SEED, Dataset, Examples, Feed, assemble, short_hash, subset
from genfield.errors import UserError
from genfield.shards import FINISHED

HELDOUT = 1_000  # at most, and at most a tenth


def pairs(*, path: str | None = None, labels: bool = True, feed: Feed) -> Dataset:
    """Pairs (x0, x1), with labels where the sampler had them.

    Args:
      path: the folder. labels: off: they are left out, and the network knows no classes.
    Raises:
      UserError: no such files, or files that do not belong together.
    """
    if path is None:
        raise UserError("data.path is not set: pass --config.data.path=…, a folder of --mode=pairs")
    folder = Path(path)
    manifest = _manifest(folder / FINISHED)
    x0, x1 = (_open(folder / f"{name}.npy") for name in ("x0", "x1"))
    settings, count = manifest["settings"], manifest["num"]
    classes = settings["num_classes"] if labels else 0
    names = tuple(settings["class_names"]) if classes else ()
    label = _open(folder / "labels.npy") if classes else np.zeros(count, np.int32)
    if x0.shape != x1.shape or len(x0) != count or label.shape != (count,):
        raise UserError(
            f"{folder} holds {len(x0)} noises, {len(x1)} samples and {len(label)} labels, and its "
            f"manifest says {count}: draw the pairs again"
        )

    def gather(rows):
        order = np.argsort(rows)  # of the file, for the disk's sake, and back
        out = {"x0": np.empty((len(rows), *x0.shape[1:]), np.float32)}
        out["x1"] = np.empty_like(out["x0"])
        out["x0"][order], out["x1"][order] = x0[rows[order]], x1[rows[order]]
        return out | {"label": np.asarray(label[rows], np.int32)}

    everything = Examples(count, gather)
    rows = np.random.default_rng(SPLIT_SEED).permutation(count)
    held = max(1, min(HELDOUT, count // 10))
    return assemble(
        subset(everything, rows[held:]),
        subset(everything, rows[:held]),
        class_names=names,
        labels=classes > 0,
        flip=False,
        fingerprint=short_hash("pairs", settings),
        feed=feed,
    )._replace(pixels=settings["pixels"])


def _manifest(path: Path) -> dict:
    try:
        manifest = json.loads(path.read_text())
        return {name: manifest[name] for name in ("num", "settings")}
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{path} cannot be read ({error}): name a folder that --mode=pairs has finished"
        ) from error


def _open(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"cannot read {path}: {str(error).splitlines()[0]}") from error
