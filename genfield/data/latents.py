"""Latents of an autoencoder, computed once: by `python -m genfield.prepare`, or a latents.npy.

The arrays stay on disk and are read by memory map, so a data set may be larger than the memory.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np

from genfield import registry
from genfield.data import shards
from genfield.data.identity import files_hash, watch
from genfield.data.pipeline import (
    SCANNED,
    SPLIT_SEED,
    Dataset,
    Examples,
    Feed,
    Latents,
    assemble,
    finite,
    short_hash,
    subset,
)
from genfield.errors import UserError
from genfield.reading import npy, reason
from genfield.registry import Fraction, OneOf, Place, Positive

HELDOUT = 10_000  # of a latents.npy, at most, and at most a tenth
FIXED = 1 << 63  # added to a seed: what an example is where nothing varies, apart from all seeds
FAR = 1.5  # a factor by which a standard deviation may be off before a line says so


def latents(
    *,
    path: Place | None = None,
    shape: tuple[int, ...] = (32, 32, 4),
    num_classes: int = 1000,
    scale: Positive = 0.18215,
    shift: float = 0.0,
    posterior: Annotated[str, OneOf(("sample", "mean"))] = "sample",
    flip: bool | None = None,
    heldout_fraction: Fraction | None = None,
    feed: Feed,
) -> Dataset:
    """Latents, with labels or without.

    Args:
      path: a folder that `python -m genfield.prepare` wrote; or one with latents.npy, float16 or
        float32 [N, *shape], and labels.npy, ints [N].
      shape: of a latent, channels last. num_classes: labels lie below it; 0: none are read.
      scale, shift: the stored latents z become (z - shift) scale; 0.18215 makes those of Stable
        Diffusion's autoencoder about unit variance (Rombach et al., 2022).
      posterior: "sample": mean + std ε, with an ε of its own each time that an example is trained
        on, and always the same where it is held out or compared with; "mean": the mean alone.
      flip: train on the mirrored image's latents with probability 1/2; None: where they are there.
      heldout_fraction: of a fixed permutation; 0: train on all, as the papers do. None: 0, and of
        a latents.npy a tenth, at most 10,000.
    Raises:
      UserError: no such files, or arrays of another shape or dtype; copies or a posterior asked
        for that are not there; a fraction that leaves nothing to train on.
    """
    if path is None:
        raise UserError("data.path is not set: pass --config.data.path=…, a folder of latents")
    folder, shape = Path(path).expanduser(), tuple(shape)
    unit = lambda values: _unit(values, scale, shift)
    if shards.is_prepared(folder):
        found = _of_shards(folder, shape, num_classes, unit, posterior, flip, feed)
        share = heldout_fraction or 0.0
    else:
        found = _of_one_file(folder, shape, num_classes, unit, posterior, flip)
        share = heldout_fraction
    everything = found.examples
    rows = np.random.default_rng(SPLIT_SEED).permutation(everything.size)
    count = _heldout_count(everything.size, share)
    dataset = assemble(
        subset(everything, rows[count:]),
        subset(everything, rows[:count]),
        class_names=found.class_names,
        labels=num_classes > 0,
        flip=False,
        fingerprint=short_hash("latents", shape, float(scale), *[shift] * bool(shift), found.mark),
        older=(short_hash("latents", *found.older),) if found.older else (),
        feed=feed,
    )
    _check_scale(*found.statistics(), scale, shift, found.own_scale, feed.log)
    return dataset._replace(latents=Latents(scale, shift, found.autoencoder, found.size))


class _Found(NamedTuple):
    """Latents at a place.

    Attributes:
      mark: of the contents. older: what earlier versions took for it.
      statistics: () -> mean and standard deviation of each channel as it is stored, [C].
      own_scale: what the autoencoder's own configuration says; None where nothing does.
      autoencoder: SHA-256 of its weights. size: of the images, in pixels. None: not known.
    """

    examples: Examples
    class_names: tuple[str, ...]
    mark: str
    older: tuple
    statistics: Callable[[], tuple[np.ndarray, np.ndarray]]
    own_scale: float | None
    autoencoder: str | None = None
    size: int | None = None


def _heldout_count(size: int, share: float | None) -> int:
    if share is None:
        return max(1, min(HELDOUT, size // 10))
    count = max(1, round(share * size)) if share else 0
    if count >= size:
        raise UserError(f"data.heldout_fraction={share} of {size} latents leaves none to train on")
    return count


def _unit(values: np.ndarray, scale: float, shift: float) -> np.ndarray:
    values = values - np.float32(shift) if shift else values
    return values * np.float32(scale)


# ---- Shards


def _of_shards(
    folder: Path,
    shape: tuple[int, ...],
    num_classes: int,
    unit: Callable,
    posterior: str,
    flip: bool | None,
    feed: Feed,
) -> _Found:
    found = shards.open_shards(folder)
    manifest = found.manifest
    _check_manifest(folder, manifest, shape, num_classes, flip)
    copies = manifest["copies"] > 1 and flip is not False
    labels = np.zeros(manifest["count"], np.int32) if found.labels is None else found.labels

    def values(rows: np.ndarray, seeds: list[tuple[int, int]], mirrored: bool) -> dict:
        """The examples at `rows`; each draws from its own seeds, whatever else is read with it."""
        draws = [
            np.random.Generator(np.random.Philox(key=np.array(seed, np.uint64))) for seed in seeds
        ]
        inner = [int(draw.random() < 0.5) if mirrored else 0 for draw in draws]
        mean, std = np.moveaxis(found.read(rows, np.array(inner, int)).astype(np.float32), 1, 0)
        if posterior == "sample":
            noise = [draw.standard_normal(shape, np.float32) for draw in draws]
            mean = mean + std * np.stack(noise)
        return {"x1": unit(mean), "label": labels[rows]}

    def gather(rows: np.ndarray) -> dict:
        return values(rows, [(FIXED + SPLIT_SEED, int(row)) for row in rows], False)

    def vary(rows: np.ndarray, numbers: np.ndarray) -> dict:
        return values(rows, [(feed.seed, int(number)) for number in numbers], copies)

    varies = copies or posterior == "sample"
    statistics = _statistics(folder, manifest, shape[-1])
    return _Found(
        Examples(manifest["count"], gather, labels=labels, vary=vary if varies else None),
        tuple(manifest["class_names"]) if num_classes else (),
        short_hash(posterior, shards.checked_hash(found)),
        (),
        lambda: statistics,
        manifest["autoencoder"].get("scaling_factor"),
        manifest["autoencoder"].get("hash"),
        manifest["size"],
    )


def _statistics(folder: Path, manifest: dict, channels: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation by channel, [C]; raises UserError where there are none."""
    try:
        found = tuple(np.array(manifest["statistics"][n], np.float64) for n in ("mean", "std"))
        scale = manifest["autoencoder"].get("scaling_factor")
        fits = all(part.shape == (channels,) and np.isfinite(part).all() for part in found)
        if not fits or not isinstance(scale, int | float | None):
            raise ValueError("they are not a number a channel")
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise UserError(
            f"{folder / shards.FINISHED} holds damaged statistics ({reason(error)}): delete it and "
            "run the same `python -m genfield.prepare` again, which writes it anew"
        ) from error
    return found


def _check_manifest(folder: Path, manifest: dict, shape, num_classes: int, flip) -> None:
    """Raises UserError where a config asks for other latents than a folder holds."""
    if manifest["kind"] != shards.LATENTS:
        raise UserError(
            f"{folder} holds pixels: set config.data=\"{{'name': 'images', 'path': …}}\""
        )
    if tuple(manifest["shape"]) != shape:
        raise UserError(
            f"{folder} holds latents of shape {tuple(manifest['shape'])}: set config.data.shape to "
            "it"
        )
    count = len(manifest["class_names"])
    if num_classes not in (0, count):
        instead = f"{count}, or 0 for no labels" if count else "0"
        raise UserError(f"{folder} holds {count} classes: set config.data.num_classes={instead}")
    if flip and manifest["copies"] == 1:
        raise UserError(
            f"{folder} holds no latents of mirrored images: prepare it with --flip, or set "
            "config.data.flip=False"
        )


# ---- One file


def _of_one_file(
    folder: Path,
    shape: tuple[int, ...],
    num_classes: int,
    unit: Callable,
    posterior: str,
    flip: bool | None,
) -> _Found:
    if not (folder / "latents.npy").exists():
        lack = "holds no latents" if folder.exists() else "is not there"
        raise UserError(
            f"config.data.path {folder} {lack}: name a folder that `python -m genfield.prepare` "
            "made of images, or one with latents.npy"
        )
    if posterior == "mean" or flip:
        field = "posterior" if posterior == "mean" else "flip"
        raise UserError(
            f"config.data.{field} is of what `python -m genfield.prepare` writes, and {folder} "
            "holds a latents.npy: leave it out"
        )
    files = {n: folder / f"{n}.npy" for n in ("latents", *["labels"] * bool(num_classes))}
    values = npy(folder / "latents.npy")
    labels = npy(folder / "labels.npy") if num_classes else np.zeros(len(values), np.int32)
    if values.shape[1:] != shape or not np.issubdtype(values.dtype, np.floating):
        raise UserError(
            f"{folder / 'latents.npy'} holds {values.dtype} {values.shape}, not floats of "
            f"shape (N, {', '.join(map(str, shape))})"
        )
    if labels.shape != values.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        raise UserError(
            f"{folder / 'labels.npy'} holds {labels.dtype} {labels.shape}, not "
            f"{len(values)} integers"
        )
    if not len(values):
        raise UserError(f"{folder / 'latents.npy'} holds no latents")
    if num_classes and (labels.min() < 0 or labels.max() >= num_classes):
        raise UserError(f"{folder / 'labels.npy'} has labels outside 0..{num_classes - 1}")

    def gather(rows):
        # In the order of the file, for the disk's sake, and back.
        order = np.argsort(rows)
        x1 = np.empty((len(rows), *shape), np.float32)
        x1[order] = values[rows[order]]
        return {"x1": unit(x1), "label": labels[rows].astype(np.int32)}

    def statistics():
        rows = np.unique(np.linspace(0, len(values) - 1, SCANNED).astype(int))
        some = np.asarray(values[rows], np.float64).reshape(-1, shape[-1])
        return some.mean(0), some.std(0)

    watch(files.values())
    examples = Examples(len(values), gather, labels=np.asarray(labels, np.int32))
    return _Found(
        finite(examples, str(folder / "latents.npy")),
        tuple(map(str, range(num_classes))),
        files_hash(files),
        (values.shape, str(values.dtype)),
        statistics,
        None,
    )


def _check_scale(mean, std, scale: float, shift: float, own: float | None, log: Callable) -> None:
    """Says so where scaled latents are far from zero mean or unit variance, as fields want them."""
    centre = float(np.mean(mean))
    total = float(np.sqrt(np.mean(std**2 + (mean - centre) ** 2)))
    if total == 0:
        return
    channels = lambda values: ", ".join(f"{value:.3g}" for value in values)
    shown = channels((mean - shift) * scale), channels(std * scale)
    lines = []
    if not 1 / FAR < total * scale < FAR:
        beside = "" if own is None else f" (the autoencoder's own is {own:g})"
        lines.append(f"data.scale={1 / total:.4g} would make it 1{beside}")
    if abs(centre - shift) > 0.5 * total:
        lines.append(f"data.shift={centre:.4g} would make the mean 0")
    if lines:
        log(
            f"latents: the standard deviation is {total * scale:.3g} after data.scale={scale:g} "
            f"(by channel {shown[1]}), the mean {shown[0]}: {'; '.join(lines)}"
        )


METHOD = registry.DataSource(
    name="latents",
    make=latents,
    holds="latents",
    drawn=False,
    beside_pairs=False,
    fed=True,
)
