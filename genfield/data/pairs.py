"""Pairs of noise and the sample that a deterministic sampler made of it, by `--mode=pairs`.

A folder with x0.npy and x1.npy, float32 [N, *shape], perhaps labels.npy, and manifest.json, which
says what drew them. The arrays stay on disk and are read by memory map.
"""

from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np

from genfield import registry
from genfield.data import toys
from genfield.data.identity import files_hash, watch
from genfield.data.own import open_source
from genfield.data.pipeline import (
    SPLIT_SEED,
    Dataset,
    Examples,
    Feed,
    Latents,
    assemble,
    finite,
    from_arrays,
    iterator_state,
    short_hash,
    subset,
)
from genfield.data.pixels import to_uint8
from genfield.errors import UserError
from genfield.reading import json_file, npy
from genfield.registry import Place, choose

HELDOUT = 1_000  # at most, and at most a tenth
REAL_POINTS = 50_000  # that stand for a distribution of points
FINISHED = "manifest.json"  # written last
SETTINGS = ("num_classes", "class_names", "pixels")


def pairs(
    *, path: Place | None = None, labels: bool = True, real: Mapping | None = None, feed: Feed
) -> Dataset:
    """Pairs (x0, x1), with labels where the sampler had them.

    Args:
      path: the folder. labels: off: they are left out, and the network knows no classes.
      real: a section such as `data`, of what the pairs' samples are made to be like: the metrics
        compare with it, and batches carry its images beside the pairs, in an order of their own,
        for a discriminator. Without it, the metrics compare with the pairs' own samples.
    Raises:
      UserError: no such files, or files or images that do not belong together.
    """
    if path is None:
        raise UserError("data.path is not set: pass --config.data.path=…, a folder of --mode=pairs")
    if real is not None and real.get("path", "") is None:
        raise UserError(
            "data.real.path is not set: pass --config.data.real.path=…, the images that the "
            "teacher learned from, or --config.data=\"{'name': 'pairs', 'path': …}\", without them"
        )
    folder = Path(path)
    manifest = _manifest(folder / FINISHED)
    x0, x1 = (npy(folder / f"{name}.npy") for name in ("x0", "x1"))
    settings, count = manifest["settings"], manifest["num"]
    classes = settings["num_classes"] if labels else 0
    names = tuple(settings["class_names"]) if classes else ()
    label = npy(folder / "labels.npy") if classes else np.zeros(count, np.int32)
    _check_arrays(folder, x0, x1, label, count, classes)

    def gather(rows):
        order = np.argsort(rows)  # of the file, for the disk's sake, and back
        out = {"x0": np.empty((len(rows), *x0.shape[1:]), np.float32)}
        out["x1"] = np.empty_like(out["x0"])
        out["x0"][order], out["x1"][order] = x0[rows[order]], x1[rows[order]]
        return out | {"label": np.asarray(label[rows], np.int32)}

    arrays = {n: folder / f"{n}.npy" for n in ("x0", "x1", *["labels"] * bool(classes))}
    watch(arrays.values())
    everything = finite(Examples(count, gather, labels=np.asarray(label, np.int32)), str(folder))
    rows = np.random.default_rng(SPLIT_SEED).permutation(count)
    held = max(1, min(HELDOUT, count // 10))
    dataset = assemble(
        subset(everything, rows[held:]),
        subset(everything, rows[:held]),
        class_names=names,
        labels=classes > 0,
        flip=False,
        fingerprint=short_hash("pairs", settings, files_hash(arrays)),
        older=(short_hash("pairs", settings),),
        feed=feed,
    )
    source = settings.get("source", "normal")
    known = {**toys.DISTRIBUTIONS, "normal": None}
    draw_source = choose(f"source in {folder / FINISHED}", source, known)
    of = settings.get("latents")
    latents = None if of is None else Latents(**of)
    dataset = dataset._replace(source=source, draw_source=draw_source, latents=latents)
    if settings["pixels"]:
        shown = {split: _shown(examples) for split, examples in dataset.examples.items()}
        dataset = dataset._replace(pixels=True, examples=shown)
    if real is None:
        return dataset
    known = {name: source for name, source in feed.sources.items() if source.beside_pairs}
    return _beside(dataset, open_source("data.real", known, real, feed))


def _check_arrays(
    folder: Path, x0: np.ndarray, x1: np.ndarray, label: np.ndarray, count: int, classes: int
) -> None:
    """Raises UserError unless noises, samples and labels are `count` pairs of `classes` classes."""
    floats, whole = x0.dtype.kind == x1.dtype.kind == "f", label.dtype.kind in "iu"
    known = not classes or (whole and count and 0 <= label.min() <= label.max() < classes)
    if not (floats and known):
        raise UserError(
            f"{folder} holds noises, samples and labels of {x0.dtype}, {x1.dtype} and "
            f"{label.dtype}, or labels beyond {classes} classes: draw the pairs again"
        )
    if x0.shape != x1.shape or len(x0) != count or label.shape != (count,):
        raise UserError(
            f"{folder} holds {len(x0)} noises, {len(x1)} samples and {len(label)} labels, and its "
            f"manifest says {count}: draw the pairs again"
        )


def _shown(examples: Examples) -> Examples:
    """The samples of pairs as images, uint8."""
    gather = lambda rows: (batch := examples.gather(rows)) | {"x1": to_uint8(batch["x1"])}
    return Examples(examples.size, gather, labels=examples.labels)


def _beside(pairs: Dataset, real: Dataset) -> Dataset:
    """The pairs, whose batches carry as many real examples, as "real" and "real_label"."""
    if real.shape != pairs.shape:
        raise UserError(f"data.real has examples of {real.shape}, and the pairs {pairs.shape}")
    if real.class_names != pairs.class_names:
        shown = [", ".join(part.class_names[:5]) or "no classes" for part in (real, pairs)]
        raise UserError(
            f"data.real has {real.num_classes} classes ({shown[0]}) and the pairs "
            f"{pairs.num_classes} ({shown[1]}): set data.real.labels and data.real.classes as the "
            "teacher had them"
        )
    both = [
        (a, b) for a in (pairs.fingerprint, *pairs.older) for b in (real.fingerprint, *real.older)
    ]
    fingerprint, *older = (short_hash(*pair) for pair in both)
    state = iterator_state(pairs.state(0)["seed"], fingerprint)
    marks = {"fingerprint": fingerprint, "older": tuple(older), "state": state}
    if real.draw is not None:  # points: nothing but metrics reads them
        points = np.asarray(real.draw(jax.random.key(toys.HELDOUT_SEED), REAL_POINTS))
        examples = {"train": from_arrays({"x1": points})}
        return pairs._replace(examples=examples, **marks)
    names = {"x1": "real", "label": "real_label"}
    named = lambda batch: {names[key]: values for key, values in batch.items()}

    def train(start_step: int):
        parts = pairs.train(start_step), real.train(start_step)
        try:
            for own, other in zip(*parts, strict=True):
                yield own | named(other)
        finally:
            for part in parts:
                part.close()

    heldout = lambda *arguments: pairs.heldout(*arguments) | named(real.heldout(*arguments))
    return pairs._replace(train=train, heldout=heldout, examples=real.examples, **marks)


def _manifest(path: Path) -> dict:
    try:
        manifest = json_file(path)
        num, settings = manifest["num"], manifest["settings"]
        classes, names, pixels = (settings[name] for name in SETTINGS)
        named = isinstance(names, list) and all(isinstance(name, str) for name in names)
        counted = type(num) is type(classes) is int and num > 1 and classes >= 0
        source = isinstance(settings.get("source", "normal"), str)
        if not (named and counted and source and isinstance(pixels, bool)):
            raise ValueError("its settings are of other types")
        if settings.get("latents") is not None:
            Latents(**settings["latents"])
        return {"num": num, "settings": settings}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} cannot be read ({error}): name a folder that --mode=pairs has finished"
        ) from error


METHOD = registry.DataSource(
    name="pairs",
    make=pairs,
    holds="pairs",
    drawn=False,
    beside_pairs=False,
    fed=True,
)
