"""Latents of an autoencoder, computed once: a folder with latents.npy and perhaps labels.npy.

The arrays stay on disk and are read by memory map, so a data set may be larger than the memory.
"""

from pathlib import Path

import numpy as np

from genfield import registry
from genfield.data.identity import files_hash
from genfield.data.pipeline import (
    SPLIT_SEED,
    Dataset,
    Examples,
    Feed,
    assemble,
    finite,
    short_hash,
    subset,
)
from genfield.errors import UserError
from genfield.registry import Place

HELDOUT = 10_000  # at most, and at most a tenth


def latents(
    *,
    path: Place | None = None,
    shape: tuple[int, ...] = (32, 32, 4),
    num_classes: int = 1000,
    scale: float = 0.18215,
    feed: Feed,
) -> Dataset:
    """Latents, with labels or without.

    Args:
      path: folder with latents.npy, float16 or float32 [N, *shape], and labels.npy, ints [N].
      shape: of a latent, channels last. num_classes: labels lie below it; 0: none are read.
      scale: multiplies the stored latents; 0.18215 makes those of Stable Diffusion's autoencoder
        about unit variance (Rombach et al., 2022).
    Raises:
      UserError: no such files, or arrays of another shape or dtype.
    """
    if path is None:
        raise UserError("data.path is not set: pass --config.data.path=…, a folder of latents")
    folder, shape = Path(path), tuple(shape)
    files = {n: folder / f"{n}.npy" for n in ("latents", *["labels"] * bool(num_classes))}
    values = _open(folder / "latents.npy")
    labels = _open(folder / "labels.npy") if num_classes else np.zeros(len(values), np.int32)
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
    if num_classes and (labels.min() < 0 or labels.max() >= num_classes):
        raise UserError(f"{folder / 'labels.npy'} has labels outside 0..{num_classes - 1}")

    def gather(rows):
        # In the order of the file, for the disk's sake, and back.
        order = np.argsort(rows)
        x1 = np.empty((len(rows), *shape), np.float32)
        x1[order] = values[rows[order]]
        return {"x1": x1 * np.float32(scale), "label": labels[rows].astype(np.int32)}

    everything = Examples(len(values), gather, labels=np.asarray(labels, np.int32))
    everything = finite(everything, str(folder / "latents.npy"))
    rows = np.random.default_rng(SPLIT_SEED).permutation(len(values))
    count = max(1, min(HELDOUT, len(values) // 10))
    return assemble(
        subset(everything, rows[count:]),
        subset(everything, rows[:count]),
        class_names=tuple(map(str, range(num_classes))),
        labels=num_classes > 0,
        flip=False,
        fingerprint=short_hash("latents", shape, float(scale), files_hash(files)),
        older=(short_hash("latents", values.shape, str(values.dtype)),),
        feed=feed,
    )


def _open(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"cannot read {path}: {str(error).splitlines()[0]}") from error


METHOD = registry.DataSource(
    name="latents",
    make=latents,
    holds="latents",
    drawn=False,
    beside_pairs=False,
    fed=True,
)
