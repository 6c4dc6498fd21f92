"""Numbers for images: what a feature network says of one set of images beside another.

A figure is named after what made it: `fid` is the Fréchet distance in the pool features of the
trained Inception-v3 and of nothing else; with EfficientNet-Lite0 it is `fd_efficientnet_lite0`.
"""

import hashlib
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from genfield import features, registry
from genfield.data.pixels import on_white
from genfield.data.sets import ImageSet
from genfield.errors import UserError
from genfield.features.resize import CONVENTIONS, resize
from genfield.machine import processes, sharding
from genfield.metrics import frechet
from genfield.registry import choose

PARTS = ("gaussians", "features")  # what a metric reads of an output
AGREED = 16  # blocks from which to which several processes ask each other for errors
BUFFER = 2048  # rows of features whose outer products are summed at a time


class Judge(NamedTuple):
    """A feature network on a mesh, and the metrics asked of it."""

    network: features.FeatureNetwork
    resize: str
    metrics: tuple[registry.Metric, ...]
    mesh: Mesh
    batch_size: int  # images a device takes at a time
    dims: dict[str, int]  # of the outputs that the metrics read
    extract: Callable  # images uint8 [n, H, W, C] split over the mesh -> {output: [n, D]}, split


class Statistics(NamedTuple):
    """What is known of a set of images, by output of the network."""

    count: int | None  # None: statistics from elsewhere do not say
    gaussians: dict[str, tuple[np.ndarray, np.ndarray]]  # mean [D], covariance [D, D]; float64
    features: dict[str, np.ndarray]  # [N, D] float32, in the order of the images


def label(network: features.FeatureNetwork) -> str:
    """What is added to a figure's name; nothing for the trained Inception-v3."""
    if network.name == "inception_v3" and network.trained:
        return ""
    return f"_{network.name}" + ("" if network.trained else "_random")


def named(figure: str, network: features.FeatureNetwork) -> str:
    """ "fid" of EfficientNet-Lite0 -> "fd_efficientnet_lite0"."""
    tail = label(network)
    if tail:
        distances = {"fid": "fd", "sfid": "sfd", "kid": "kd", "kid_subset_std": "kd_subset_std"}
        figure = distances.get(figure, figure)
    return figure + tail


def create_judge(section, mesh: Mesh, metrics: Iterable[registry.Metric]) -> Judge:
    """The judge of a config's section `evaluate`, of metrics that read features.

    Raises:
      UserError: unknown network or resize, weights that are not there, a metric that the network
        cannot serve.
    """
    choose("config.evaluate.resize", section.resize, CONVENTIONS)
    name = section.features
    if name == "auto":  # a file or a hash is somebody's Inception: EfficientNet's comes by itself
        given = section.features_path or section.features_sha256
        name = "inception_v3" if given else features.default()
    choose("config.evaluate.features", name, dict.fromkeys([*features.NETWORKS, "auto"]))
    with processes.together():
        network = features.create(
            name,
            path=section.features_path,
            sha256=section.features_sha256,
            seed=section.features_seed,
        )
    images = jax.ShapeDtypeStruct((1, network.size, network.size, 3), np.float32)
    outputs = jax.eval_shape(network.apply, network.params, images)
    metrics = tuple(metrics)
    for metric in metrics:
        lacking = {*metric.gaussians, *metric.features} - set(outputs)
        if lacking:
            raise UserError(
                f"metric {metric.name!r} needs {min(lacking)!r} of a network, and {name} has none: "
                "set config.evaluate.features='inception_v3', or leave the metric out"
            )
    used = {*outputs_of(metrics, "gaussians"), *outputs_of(metrics, "features")}
    dims = {name: outputs[name].shape[1] for name in sorted(used)}
    extract = make_extract(network, section.resize, mesh, section.batch_size, dims)
    return Judge(network, section.resize, metrics, mesh, section.batch_size, dims, extract)


def outputs_of(
    metrics: Iterable[registry.Metric], part: str, *, reference: bool = False
) -> list[str]:
    """The outputs that metrics read: `part` is "gaussians" or "features"."""
    chosen = [metric for metric in metrics if metric.of_reference or not reference]
    return sorted({output for metric in chosen for output in getattr(metric, part)})


def make_extract(
    network: features.FeatureNetwork, convention: str, mesh: Mesh, batch_size: int, outputs
) -> Callable:
    """The jitted `Judge.extract`: each device runs the same program on its images.

    An image's features are then the same to the bit on any number of devices.
    """
    params = jax.device_put(network.params, sharding.replicated(mesh))

    def local(params, images):  # [b, H, W, C], of one device
        b = len(images)
        size = min(batch_size, b)
        pad = -b % size
        filled = jax.numpy.pad(images, ((0, pad), (0, 0), (0, 0), (0, 0)))
        parts = filled.reshape(-1, size, *images.shape[1:])

        def one(part):
            part = on_white(part) if part.shape[-1] == 4 else part
            out = network.apply(params, resize(part, network.size, convention))
            return {name: out[name] for name in outputs}

        if len(parts) == 1:
            return one(parts[0])
        out = jax.lax.map(one, parts)
        return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:])[:b], out)

    spec = jax.sharding.PartitionSpec
    split = jax.shard_map(
        local, mesh=mesh, in_specs=(spec(), sharding.BATCH), out_specs=sharding.BATCH
    )
    run = jax.jit(split)
    return lambda images: run(params, images)


class Content:
    """A hash of images in their order, whichever process reads which, from whichever files."""

    def __init__(self):
        self.total = 0

    def add(self, levels: np.ndarray, rows: np.ndarray, size: int) -> None:
        """Counts images [n, H, W, C] of these rows, those below `size`."""
        for image, row in zip(levels, rows, strict=True):
            if row < size:
                head = f"{row} {image.shape}".encode()
                one = hashlib.sha256(head + np.ascontiguousarray(image).tobytes()).digest()
                self.total += int.from_bytes(one[:8], "big")

    def hash(self) -> str:
        """Sixteen hex digits, the same on every process."""
        mine = np.array([self.total % 2**64], np.uint64).view(np.uint8)
        total = sum(int(part) for part in sharding.from_all(mine[None]).view(np.uint64).ravel())
        return f"{total % 2**64:016x}"


def blocks(
    images: ImageSet, mesh: Mesh, batch_size: int, content: Content | None = None
) -> Iterator[tuple[jax.Array, np.ndarray]]:
    """The images, split over the mesh, and their rows [n]; -1 where a block is filled up.

    Each process reads the images of its own devices; `content` is told of each.

    Raises:
      UserError: an image that cannot be read; of several processes on all, some blocks later.
    """
    n, place = mesh.size * batch_size, sharding.batch_sharding(mesh)
    errors = processes.Errors()

    def read(rows: np.ndarray) -> np.ndarray:
        levels = np.zeros((len(rows), *images.shape), np.uint8)
        with errors.kept():
            levels = images.read(np.minimum(rows, images.size - 1))
            if content is not None:
                content.add(levels, rows, images.size)
        return levels

    for number, first in enumerate(range(0, images.size, n)):
        rows = np.arange(first, first + n)
        block = jax.make_array_from_callback(
            (n, *images.shape), place, lambda index, rows=rows: read(rows[index[0]])
        )
        if number % AGREED == 0 or first + n >= images.size:
            errors.tell()
        yield block, np.where(rows < images.size, rows, -1)


def statistics(
    judge: Judge,
    images: Iterable[tuple[jax.Array, np.ndarray]],
    *,
    reference: bool = False,
    keep: np.ndarray | None = None,
    on_block: Callable[[int], None] = lambda done: None,
) -> Statistics:
    """What the judge's metrics need of images that come in blocks, as `blocks` gives them.

    Sums are in float64; each process adds up what its devices computed, and the sums are added.

    Args:
      reference: only what the metrics read of a reference.
      keep: the rows whose features are kept; None keeps all.
      on_block: told how many images are done after each block; may raise to stop.
    """
    wanted = {part: outputs_of(judge.metrics, part, reference=reference) for part in PARTS}
    moments = {name: _Sums() for name in wanted["gaussians"]}
    kept = {name: [] for name in wanted["features"]}
    rows_kept, count, running, errors = [], 0, [], processes.Errors()

    def settle(out: dict, rows: np.ndarray) -> None:
        local = {name: sharding.own_rows(values) for name, values in out.items()}
        index = rows[next(iter(local.values()))[0]]
        chosen = index >= 0 if keep is None else np.isin(index, keep)
        for name, (_, values) in local.items():
            if name in moments:
                moments[name].add(_finite(values[index >= 0], judge.network))
            if name in kept:
                kept[name].append(values[chosen])
        rows_kept.append(index[chosen])

    if not moments and not kept:
        return Statistics(None, {}, {})
    for block, rows in images:
        running.append((judge.extract(block), rows))
        if len(running) > 1:  # the next block is read while this one is computed
            with errors.kept():
                settle(*running.pop(0))
        count += int((rows >= 0).sum())
        on_block(count)
    for item in running:
        with errors.kept():
            settle(*item)
    errors.tell()
    gaussians = {}
    for name, sums in moments.items():
        total = _merged(sums.total())
        try:
            gaussians[name] = total.mean, frechet.covariance(total)
        except ValueError as error:
            raise UserError(f"{count} images: {error}") from error
    order = np.argsort(sharding.from_all(np.concatenate(rows_kept).astype(np.int32)))
    features = {
        name: sharding.from_all(np.concatenate(parts))[order] for name, parts in kept.items()
    }
    return Statistics(count, gaussians, features)


def _finite(values: np.ndarray, network: features.FeatureNetwork) -> np.ndarray:
    if not np.isfinite(values).all():
        raise UserError(
            f"{network.name} gives NaN or infinity for an image: its weights ({network.origin}) "
            "are not what they should be"
        )
    return values


class _Sums:
    """Moments of features that arrive in small parts."""

    def __init__(self):
        self.moments, self.parts = None, []

    def add(self, values: np.ndarray) -> None:
        self.parts.append(values)
        if sum(map(len, self.parts)) >= BUFFER:
            self._flush()

    def _flush(self) -> None:
        values = np.concatenate(self.parts)
        new = frechet.moments(values) if len(values) else frechet.zero(values.shape[1])
        self.moments = new if self.moments is None else frechet.merge(self.moments, new)
        self.parts = []

    def total(self) -> frechet.Moments:
        if self.parts:
            self._flush()
        return self.moments


def _merged(moments: frechet.Moments) -> frechet.Moments:
    """The moments of all processes: each gives its sums, and gets those of all."""
    if jax.process_count() == 1:
        return moments
    sums = sharding.added(np.append(moments.count * moments.mean, moments.count))
    count, mean = int(sums[-1]), sums[:-1] / max(sums[-1], 1)
    shift = moments.mean - mean
    between = moments.count * np.outer(shift, shift)
    return frechet.Moments(count, mean, sharding.added(moments.scatter + between))


def compare(judge: Judge, generated: Statistics, reference: Statistics) -> dict[str, float]:
    """Every figure of the judge's metrics, under the name that says what made it."""
    for who, one in (("samples", generated), ("reference images", reference)):
        for output in outputs_of(judge.metrics, "gaussians"):
            dim = len(one.gaussians[output][0])
            if one.count is not None and one.count <= dim and jax.process_index() == 0:
                warnings.warn(
                    f"{one.count:,} {who} for {dim:,} features ({output}): the covariance is "
                    "rank-deficient, and the Fréchet distance depends on the number of samples",
                    stacklevel=2,
                )
    out = {}
    for metric in judge.metrics:
        try:
            out |= metric.compute(generated, reference)
        except ValueError as error:  # too few images, mostly
            raise UserError(f"metric {metric.name!r}: {error}") from error
    return {named(figure, judge.network): float(value) for figure, value in out.items()}
