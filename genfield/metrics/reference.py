"""Reference statistics: computed from images once and cached, or read as others publish them.

A file of ours is an .npz with `mu` and `sigma` (and `mu_s`, `sigma_s` for sFID), float64, as the
ADM evaluator and pytorch-fid have them, with `features` where they were asked for, and a
`manifest`: JSON that says which images, how many, which network and how they were resized.
"""

import hashlib
import json
import uuid
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from genfield.data.decoding import Reading
from genfield.data.identity import file_hash
from genfield.data.npz import IMAGE_KEYS, read_npz
from genfield.data.pipeline import SPLIT_SEED
from genfield.data.sets import ImageSet, open_images
from genfield.errors import UserError
from genfield.features import weights
from genfield.machine.sharding import agreed
from genfield.metrics.images import Content, Judge, Statistics, blocks, outputs_of, statistics
from genfield.reading import json_of

KEPT = 50_000  # features kept of a reference, for KID and precision/recall
NAMES = {"pool": ("mu", "sigma"), "spatial": ("mu_s", "sigma_s")}


class Reference(NamedTuple):
    """What samples are compared with.

    Attributes:
      images: to be measured; None where only statistics were published.
      stored: what a file of statistics holds, by name; {} without one.
      manifest: says what it is, for the card; "pixels", a hash of the images themselves, is added
        when they are measured.
    """

    images: ImageSet | None
    stored: dict[str, np.ndarray]
    manifest: dict


def describe(images: ImageSet, judge: Judge) -> dict:
    """The manifest of statistics that are computed here."""
    return {
        "source": images.name,
        "identity": images.identity,
        "count": images.size,
        "dtype": "uint8",
        "shape": list(images.shape),
        "network": judge.network.name,
        "feature_hash": judge.network.hash,
        "resize": judge.resize,
    }


def of_images(images: ImageSet, judge: Judge) -> Reference:
    """A set of images as a reference."""
    return Reference(images, {}, describe(images, judge))


def open_reference(
    path: str,
    judge: Judge,
    log: Callable[[str], None] = lambda line: None,
    reading: Reading = Reading(),
) -> Reference:
    """Images at a path, as `open_images` takes them, or an .npz of statistics.

    Args:
      log: told what of the images is not read. reading: how they are.

    Raises:
      UserError: nothing there or nothing readable, statistics of another network or resize, or
        statistics alone where a metric needs the images.
    """
    place = Path(path).expanduser()
    stored = _read(place) if place.is_file() and place.suffix == ".npz" else {}
    there = any(name in IMAGE_KEYS or name.endswith("_images") for name in stored)
    foreign = "manifest" not in stored and not _of_inception(judge)
    if "mu" in stored and there and foreign:
        log(f"reference: the statistics in {path} are Inception's; its images are measured instead")
    if "mu" not in stored or (there and foreign):
        return of_images(open_images(path, log, reading), judge)
    needs = outputs_of(judge.metrics, "features", reference=True)
    lacking = [output for output in _gaussians(judge) if not _holds(stored, output)]
    images = open_images(path, log, reading) if there and (needs or lacking) else None
    manifest = _check(place, stored, judge, lacking if there else [])
    taken = [n for output in _gaussians(judge) if output not in lacking for n in NAMES[output]]
    if images is not None and taken:
        log(f"reference: {', '.join(taken)} as stored, the rest by its images")
    if needs and images is None and "features" not in stored:
        asked = ", ".join(m.name for m in judge.metrics if m.of_reference and m.features)
        raise UserError(
            f"{path} holds statistics without images or features, which {asked} need: take the "
            "images as config.evaluate.reference, or leave these out of config.evaluate.metrics"
        )
    return Reference(images, stored, manifest)


def _read(place: Path) -> dict[str, np.ndarray]:
    """What a file holds; None stands for its images."""
    wanted = {*sum(NAMES.values(), ()), "features", "manifest"}
    return read_npz(place, f"{place} is not a readable .npz file", wanted.__contains__)


def _of_inception(judge: Judge) -> bool:
    """Whether published statistics, which name no network, are of this judge's."""
    return judge.network.name == "inception_v3" and judge.network.trained


def _gaussians(judge: Judge) -> list[str]:
    return outputs_of(judge.metrics, "gaussians", reference=True)


def _holds(stored: dict, output: str) -> bool:
    """Whether a file has the mean and the covariance of an output."""
    return all(name in stored for name in NAMES[output])


def _check(place: Path, stored: dict, judge: Judge, measured: list[str]) -> dict:
    """The manifest of stored statistics; raises UserError if they are not this judge's.

    measured: outputs whose statistics come of images in the file instead.
    """
    network, manifest = judge.network, {"source": str(place), "count": None}
    if "manifest" in stored:
        manifest = _manifest(place, stored)
        ours = {"network": network.name, "feature_hash": network.hash, "resize": judge.resize}
        for key, value in ours.items():
            if manifest[key] != value:
                raise UserError(
                    f"{place} was made with {key} {manifest[key][:16]!r}, not {value[:16]!r}: "
                    "set config.evaluate.features and resize as it has them, or make it anew"
                )
    elif not _of_inception(judge):
        what = network.name + ("" if network.trained else " with random weights")
        raise UserError(
            f"{place} has no manifest: such statistics are of the trained Inception graph, not "
            f"of {what}: set config.evaluate.features='inception_v3'"
        )
    else:  # the ADM evaluator's and pytorch-fid's are bilinear, clean-fid's are antialiased
        manifest |= {"network": network.name, "resize": f"not said; taken as {judge.resize}"}
    for output in _gaussians(judge):
        if output not in measured:
            _check_gaussian(place, stored, output, judge)
    if "features" in stored and outputs_of(judge.metrics, "features", reference=True):
        kept, dim = stored["features"], judge.dims["pool"]
        if kept.dtype.kind != "f" or kept.ndim != 2 or kept.shape[1] != dim:
            raise UserError(
                f"{place} holds features {kept.dtype} {list(kept.shape)}, but {network.name} has "
                f"{dim}: make the file anew"
            )
    return manifest | {"file_hash": file_hash(place)}


def _manifest(place: Path, stored: dict) -> dict:
    try:
        manifest = json_of(str(stored["manifest"]))
        texts = [manifest[key] for key in ("source", "network", "feature_hash", "resize")]
        whole = type(manifest["count"]) is int and all(isinstance(text, str) for text in texts)
    except (ValueError, KeyError, TypeError):
        whole = False
    if not whole:
        raise UserError(f"{place} has a damaged manifest: make the file anew")
    return manifest


def _check_gaussian(place: Path, stored: dict, output: str, judge: Judge) -> None:
    names, dim = NAMES[output], judge.dims[output]
    lacking = [name for name in names if name not in stored]
    if lacking:
        raise UserError(f"{place} has no {lacking[0]}: it cannot serve {output} statistics")
    mean, covariance = (stored[name] for name in names)
    if [mean.shape, covariance.shape] != [(dim,), (dim, dim)]:
        raise UserError(
            f"{place} holds {names[0]} {mean.shape} and {names[1]} {covariance.shape}, but "
            f"{judge.network.name} has {dim} features: take statistics of this network"
        )
    real = mean.dtype.kind == covariance.dtype.kind == "f"
    if not real or not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise UserError(
            f"{place} holds {names[0]} or {names[1]} with NaN or not of real numbers: make the "
            "file anew"
        )
    if not np.allclose(covariance, covariance.T, atol=1e-3 * np.abs(covariance).max()):
        raise UserError(f"{place} holds a {names[1]} that is not symmetric: make the file anew")


def load(
    reference: Reference, judge: Judge, on_block: Callable[[int], None] = lambda done: None
) -> tuple[Statistics, Path | None]:
    """The statistics of a reference: stored, cached or computed; and the cache's file."""
    gaussians = _gaussians(judge)
    wanted = outputs_of(judge.metrics, "features", reference=True)
    if not gaussians and not wanted:
        return Statistics(None, {}, {}), None
    if _serves(reference.stored, gaussians, wanted):
        return _unpacked(reference.stored, reference.manifest, gaussians, wanted), None
    if reference.stored:  # published statistics beside images, which give what is missing
        there = [output for output in gaussians if _holds(reference.stored, output)]
        known = _unpacked(reference.stored, reference.manifest, there, [])
        computed, file = load(of_images(reference.images, judge), judge, on_block)
        both = computed.gaussians | known.gaussians
        return known._replace(gaussians=both, features=computed.features), file
    reference.manifest.pop("pixels", None)
    key = hashlib.sha256(json.dumps(reference.manifest, sort_keys=True).encode()).hexdigest()[:16]
    file = weights.cache() / "statistics" / f"{judge.network.name}_{key}.npz"
    cached = _cached(file, reference.manifest)
    if agreed(_serves(cached, gaussians, wanted)):
        reference.manifest["pixels"] = json_of(str(cached["manifest"]))["pixels"]
        return _unpacked(cached, reference.manifest, gaussians, wanted), file
    content, keep = Content(), None
    images = blocks(reference.images, judge.mesh, judge.batch_size, content)
    if reference.images.size > KEPT:  # a fixed choice: the images may be sorted by class
        order = np.random.default_rng(SPLIT_SEED).permutation(reference.images.size)
        keep = order[:KEPT]
    out = statistics(judge, images, reference=True, keep=keep, on_block=on_block)
    reference.manifest["pixels"] = content.hash()
    if jax.process_index() != 0:
        return out, file
    try:
        write(file, out, reference.manifest, cached)
    except OSError as error:  # the figures do not need it
        warnings.warn(
            f"cannot keep the statistics in {file.parent} ({error.strerror}): they are computed "
            "anew each time; set GENFIELD_CACHE to a folder that can be written",
            stacklevel=2,
        )
        return out, None
    return out, file


def _serves(stored: dict, gaussians: list[str], features: list[str]) -> bool:
    whole = all(_holds(stored, output) for output in gaussians)
    return bool(stored) and whole and ("features" in stored or not features)


def _cached(file: Path, manifest: dict) -> dict:
    """What a cache file holds; {} without one, or with one that is damaged or another's."""
    if not file.exists():
        return {}
    try:
        stored = _read(file)
        theirs = json_of(str(stored["manifest"]))
        pixels = theirs.pop("pixels")
    except (UserError, ValueError, KeyError, AttributeError, TypeError):
        return {}
    return stored if theirs == manifest and isinstance(pixels, str) else {}


def _unpacked(stored: dict, manifest: dict, gaussians: list[str], wanted: list[str]) -> Statistics:
    of = {o: tuple(stored[n].astype(np.float64) for n in NAMES[o]) for o in gaussians}
    count = manifest.get("count")
    return Statistics(count, of, {o: stored["features"] for o in wanted})


def write(file: Path, out: Statistics, manifest: dict, older: dict | None = None) -> None:
    """Writes statistics with their manifest, whole or not at all.

    Args:
      older: what the file held before, of the same manifest: it stays where nothing replaces it.
    Raises:
      OSError: the folder cannot be made or written.
    """
    arrays = (older or {}) | {"manifest": np.array(json.dumps(manifest, sort_keys=True))}
    for output, values in out.gaussians.items():
        arrays |= dict(zip(NAMES[output], values, strict=True))
    if out.features:
        arrays["features"] = out.features["pool"]
    unfinished = file.with_name(f".{uuid.uuid4().hex}.npz")
    file.parent.mkdir(parents=True, exist_ok=True)
    np.savez(unfinished, **arrays)
    unfinished.replace(file)
