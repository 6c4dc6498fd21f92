"""What becomes of images: the posterior of their latents in float16, or the pixels themselves."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from genfield.data import shards, to_unit
from genfield.errors import UserError
from genfield.machine import sharding
from genfield.prepare.options import Options


class Encoder(NamedTuple):
    """What is stored of images.

    Attributes:
      kind: "latents" or "pixels". shape: of a latent or an image. inner: of what is stored of one.
      dtype: of the files.
      facts: all that decides the numbers, as JSON types.
      encode: uint8 [B, size, size, 3] -> what is stored, [B, *inner], perhaps not computed yet.
      batch: how many images it takes at once.
    """

    kind: str
    shape: tuple[int, ...]
    inner: tuple[int, ...]
    dtype: type
    facts: dict
    encode: Callable
    batch: int


def create(options: Options) -> Encoder:
    """The encoder that the options ask for, on all devices of this process.

    Raises:
      UserError: weights that cannot be had, or that do not fit the size.
    """
    if options.pixels:
        shape = (options.size, options.size, 3)
        return Encoder(shards.PIXELS, shape, shape, np.uint8, {}, np.asarray, options.batch_size)
    from genfield import pretrained

    made = pretrained.autoencoder(
        options.autoencoder, sha256=options.sha256, dtype=options.dtype, tile=options.tile
    )
    info, size = made.info, options.size
    if size % info.factor:
        raise UserError(
            f"--size={size} is not a multiple of {info.factor}, the autoencoder's pixels a latent"
        )
    if info.image_channels != 3:
        raise UserError(
            f"{info.path} encodes images of {info.image_channels} channels: pass one of RGB"
        )
    mesh = sharding.make_mesh(_Mesh(), jax.local_devices())
    batch = -(-options.batch_size // mesh.size) * mesh.size
    place, every = sharding.batch_sharding(mesh), sharding.replicated(mesh)
    dtype = jnp.bfloat16 if info.dtype == "bfloat16" else jnp.float32
    params = jax.device_put(jax.tree.map(lambda a: jnp.asarray(a, dtype), made.params), every)

    def both(params, levels):
        images = to_unit(levels)
        copies = [images, images[:, :, ::-1]] if options.flip else [images]
        moments = [jnp.stack(made.pure.encode(params, copy), 1) for copy in copies]
        return jnp.stack(moments, 1).astype(jnp.float16)

    compiled = jax.jit(both, in_shardings=(every, place), out_shardings=place)
    shape = (size // info.factor, size // info.factor, info.latent_channels)
    facts = {name: getattr(info, name) for name in ("hash", "names", "factor", "dtype", "tile")}
    facts |= {name: getattr(info, name) for name in ("scaling_factor", "shift_factor")}
    return Encoder(
        shards.LATENTS,
        shape,
        (1 + options.flip, 2, *shape),
        np.float16,
        facts,
        lambda levels: compiled(params, jax.device_put(levels, place)),
        batch,
    )


class _Mesh(NamedTuple):
    """All devices split the batch."""

    data: int = -1
    fsdp: int = 1


def check_finite(values: np.ndarray, name: Callable[[int], str]) -> None:
    """Raises UserError, naming the image, where latents hold what float16 does not."""
    if values.dtype != np.float16:
        return
    bad = np.flatnonzero(~np.isfinite(values).reshape(len(values), -1).all(1))
    if len(bad):
        raise UserError(
            f"the autoencoder gives numbers beyond float16 for {name(int(bad[0]))}: pass "
            "--dtype=float32, or other weights"
        )


def sums(values: np.ndarray) -> dict:
    """Sums over a batch, by channel, from which `statistics` makes those of all samples."""
    mean, std = np.moveaxis(np.asarray(values, np.float64), 2, 0)
    over = tuple(range(mean.ndim - 1))
    return {"sum": mean.sum(over).tolist(), "square": (mean**2 + std**2).sum(over).tolist()}


def statistics(lines: list[dict], per_example: int) -> dict:
    """Mean and standard deviation of samples of the posteriors, by channel.

    Args:
      lines: of journals, with what `sums` gave. per_example: values of a channel.
    """
    count = per_example * sum(line["count"] for line in lines)
    first, second = (
        np.sum([line[name] for line in lines], 0) / count for name in ("sum", "square")
    )
    return {"mean": first.tolist(), "std": np.sqrt(np.maximum(second - first**2, 0)).tolist()}
