"""Arrays on disk: points, tables, series or images in an .npy or .npz file, used as they are."""

from pathlib import Path

import numpy as np

from genfield import registry
from genfield.data.identity import files_hash, watch
from genfield.data.npz import read_npz
from genfield.data.own import own
from genfield.data.pipeline import Dataset, Feed, short_hash
from genfield.errors import UserError
from genfield.reading import npy
from genfield.registry import Place


class Arrays:
    """Examples in memory, or on disk by memory map; floats times `scale`."""

    def __init__(self, arrays: dict[str, np.ndarray], where: Path, scale: float):
        self.arrays, self.where, self.scale = arrays, where, scale
        self.shape, self.labels = arrays["x1"].shape[1:], arrays.get("label")

    def __len__(self) -> int:
        return len(self.arrays["x1"])

    def gather(self, rows: np.ndarray) -> dict:
        """{"x1": [n, *shape], …}."""
        found = {key: values[rows] for key, values in self.arrays.items()}
        for key in ("x0", "x1"):
            if key not in found or self.scale == 1 or found[key].dtype == np.uint8:
                continue
            if found[key].dtype.kind in "biuf":  # others are told as they are
                found[key] = found[key] * np.float32(self.scale)
        return found


def arrays(
    path: Place | None = None, labels: bool = False, scale: float = 1.0, *, feed: Feed
) -> Dataset:
    """The examples of a file; a tenth is held out, by a fixed permutation.

    Args:
      path: an .npy file, [N, *shape], read by memory map; or an .npz file with `x1` (or its only
        array of examples), perhaps `x0` of the same shape (a source of one's own, paired with
        `x1`), perhaps `labels` or `label` [N]; of those beyond 1 GiB that are not compressed, read
        by memory map too. uint8 of shape [H, W, C] are images; floats are used as they are, times
        `scale`.
      labels: class conditioning.
    Raises:
      UserError: no such file, arrays that do not belong together, entries that are not finite.
    """
    if path is None:
        raise UserError("data.path is not set: pass --config.data.path=…, an .npy or .npz file")
    place = Path(path).expanduser()
    if not place.is_file():
        raise UserError(f"data.path {path} is no file: expected an .npy or .npz file")
    found = _read(place)
    if labels and "label" not in found:
        raise UserError(f"no labels in {place}: set data.labels=False")
    if not labels:
        found.pop("label", None)
    if any(isinstance(values, np.memmap) for values in found.values()):
        watch([place])
    mark = short_hash(scale, files_hash({"x1": place}))
    return own("arrays", Arrays(found, place, scale), feed, mark)


def _read(place: Path) -> dict[str, np.ndarray]:
    if place.suffix == ".npy":
        found = {"x1": npy(place)}
    else:
        stored = read_npz(place, f"{place} is not a readable .npz file", mapped=True)
        found = {key: stored[key] for key in ("x0", "x1") if key in stored}
        for key in ("label", "labels"):
            if key in stored:
                found["label"] = stored[key]
        rest = [key for key in stored if key not in ("x0", "x1", "label", "labels")]
        if "x1" not in found and len(rest) == 1:
            found["x1"] = stored[rest[0]]
    if "x1" not in found or found["x1"].ndim < 2:
        raise UserError(f"{place} holds no examples: expected x1 of shape [N, *shape]")
    flat = [key for key, values in found.items() if not values.ndim]
    if flat:
        raise UserError(f"{place} holds one number under {flat[0]}: expected rows [N, …]")
    lengths = {key: len(values) for key, values in found.items()}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{key} {length}" for key, length in lengths.items())
        raise UserError(f"{place} holds arrays of several lengths: {told}")
    return found


METHOD = registry.DataSource(
    name="arrays", make=arrays, holds="points", drawn=False, beside_pairs=True, fed=True
)
