"""Samples on latents as images: an autoencoder's decoder, in a jitted call of its own.

Each device decodes the latents that it holds, a few at a time, so that memory does not grow with
the batch, and between two calls progress shows and a signal is obeyed.
"""

import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from genfield import pretrained
from genfield.data import Dataset, to_uint8
from genfield.errors import UserError
from genfield.features.autoencoder_kl import DTYPES
from genfield.machine import sharding
from genfield.machine.logbook import say

DECODER = ("decoder", "post_quant_conv")  # of an autoencoder's parameters
PIXELS = 8 * 256 * 256  # that a device decodes at a time: at 256x256 eight images
HOW = (
    "set config.autoencoder to the weights that made the latents: a file or a folder of an "
    "AutoencoderKL, or a published name such as sd-vae-ft-ema"
)
SAVED = f"latents are written and shown as they are; for pixels {HOW}"


class Weights(NamedTuple):
    """An autoencoder's decoder.

    Attributes:
      decode: (params, latents [B, h, w, latent_channels]) -> images [B, f h, f w, channels].
      params: nested dict of arrays, those of the decoder alone. hash: SHA-256 of all weights.
    """

    decode: Callable
    params: Any
    factor: int
    latent_channels: int
    channels: int
    hash: str
    source: str


class Spent(NamedTuple):
    """What decoding has taken: so many images and seconds; compiling is left out."""

    images: int = 0
    seconds: float = 0.0


def watch(decoder: "Decoder | None") -> Callable[[], dict[str, float] | None]:
    """taken() -> what decoding took since this call, and its share of the time; None: nothing."""
    begun, before = time.monotonic(), Spent() if decoder is None else decoder.spent

    def taken() -> dict[str, float] | None:
        if decoder is None or decoder.spent == before:
            return None
        seconds = decoder.spent.seconds - before.seconds
        return {
            "images": decoder.spent.images - before.images,
            "seconds": round(seconds, 3),
            "share": round(seconds / (time.monotonic() - begun), 4),
        }

    return taken


def told(decoding: dict[str, float]) -> str:
    """What `watch` gave, as a line."""
    rate = decoding["images"] / max(decoding["seconds"], 1e-9)
    return (
        f"decoding: {decoding['seconds']:,.1f} s, {decoding['share']:.0%} of the time "
        f"({rate:,.3g} images/s)"
    )


class Decoder:
    """decoder(x) -> images of samples x [n, *shape] that are split over the mesh.

    Args:
      config: the run's. data: the latents. weights: of its `autoencoder`; None: they are opened
        when something is decoded.
    """

    def __init__(self, config, data: Dataset, mesh: Mesh, weights: Weights | None = None):
        self.config, self.data, self.mesh, self._opened = config, data, mesh, weights
        self.spent, self._compiled = Spent(), {}
        if weights is not None:
            check(weights, data)

    @property
    def weights(self) -> Weights:
        """What decodes, on the host.

        Raises:
          UserError: no such file, no autoencoder, another SHA-256, one of other latents.
        """
        if self._opened is None:
            self._opened = open_weights(self.config)
            check(self._opened, self.data)
        return self._opened

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of an image."""
        found, (height, width, _) = self.weights, self.data.shape
        return found.factor * height, found.factor * width, found.channels

    @functools.cached_property
    def facts(self) -> dict[str, Any]:
        """What decides the images of latents, as JSON types, wherever the file lies."""
        latents = self.data.latents
        return {
            "hash": self.weights.hash,
            "dtype": self.config.autoencoder_dtype,
            "scale": latents.scale,
            "shift": latents.shift,
        }

    @functools.cached_property
    def params(self):
        """The weights, a copy on every device."""
        return jax.device_put(self.weights.params, sharding.replicated(self.mesh))

    def at_a_time(self, held: int) -> int:
        """Images that a device decodes at a time, of those that it holds."""
        height, width, _ = self.shape
        return max(1, min(held, PIXELS // (height * width)))

    def decode(self, size: int, levels: bool) -> Callable:
        """(params, x, first) -> (images, finite) of rows first … first + size - 1 of each device.

        Jitted; the batch stays split over the mesh.
        """
        latents, rounding = self.data.latents, self.config.sample.rounding
        scale, shift = np.float32(latents.scale), np.float32(latents.shift)

        def local(params, x, first):
            part = jax.lax.dynamic_slice_in_dim(x, first, size)
            images = self.weights.decode(params, part / scale + shift)
            finite = jnp.isfinite(images).all((1, 2, 3))
            return to_uint8(images, rounding) if levels else images, finite

        whole = jax.sharding.PartitionSpec()
        places = dict(in_specs=(whole, sharding.BATCH, whole), out_specs=sharding.BATCH)
        return jax.jit(jax.shard_map(local, mesh=self.mesh, check_vma=False, **places))

    def __call__(
        self, x: jax.Array, *, levels: bool = True, on_part: Callable[[str], None] | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Images [n, H, W, C], split as x is, and whether each is finite [n].

        Args:
          x: [n, *shape], n a multiple of the devices. levels: uint8, rounded as `sample.rounding`
            says; otherwise floats, about [-1, 1]. on_part: told in words how far it is, after each
            part; may raise to stop.
        """
        x = jax.device_put(x, sharding.batch_sharding(self.mesh))
        held = len(x) // self.mesh.size
        size = self.at_a_time(held)
        run, join = self._programs(x, size, levels)
        begun, parts = time.monotonic(), []
        firsts = [min(first, held - size) for first in range(0, held, size)]
        for number, first in enumerate(firsts):
            parts.append(jax.block_until_ready(run(self.params, x, np.int32(first))))
            if on_part is not None and number + 1 < len(firsts):
                on_part(f"decoding {(number + 1) * size * self.mesh.size}/{len(x)}")
        seconds = self.spent.seconds + time.monotonic() - begun
        self.spent = Spent(self.spent.images + len(x), seconds)
        return join(*parts)

    def _programs(self, x: jax.Array, size: int, levels: bool) -> tuple[Callable, Callable]:
        """What decodes a part and what joins parts, compiled before the clock runs."""
        key = x.shape, x.dtype, size, levels
        if key not in self._compiled:
            run = self.decode(size, levels).lower(self.params, x, np.int32(0)).compile()
            self._compiled[key] = run, self._join(len(x) // self.mesh.size, size)
        return self._compiled[key]

    def _join(self, held: int, size: int) -> Callable:
        """(parts of each device …) -> its rows in order; the last part overlaps the one before."""
        twice = -held % size

        def local(*parts):
            return jax.tree.map(lambda *a: jnp.concatenate([*a[:-1], a[-1][twice:]]), *parts)

        split = jax.shard_map(
            local, mesh=self.mesh, in_specs=sharding.BATCH, out_specs=sharding.BATCH
        )
        return jax.jit(split)

    def on_host(
        self,
        x: np.ndarray,
        *,
        levels: bool = False,
        tick: Callable[[int], None] = lambda count: None,
    ) -> np.ndarray:
        """Images of samples that the host holds, [n, *shape] for any n, as NumPy.

        Args:
          tick: told how many more are done; may raise to stop.
        Raises:
          UserError: an image that is NaN or infinite.
        """
        size, parts = self.mesh.size * self.at_a_time(-(-len(x) // self.mesh.size)), []
        for first in range(0, len(x), size):
            rows = np.minimum(np.arange(first, first + size), len(x) - 1)
            part = sharding.put_whole(x[rows], self.mesh)
            images, finite = sharding.to_host(self(part, levels=levels))
            count = min(size, len(x) - first)
            check_decoded(~finite[:count])
            parts.append(images[:count])
            tick(count)
        return np.concatenate(parts)

    def encode(self, images: np.ndarray) -> np.ndarray:
        """A few images [n, H, W, C] in [-1, 1] -> examples [n, *shape], the posteriors' means."""
        mean, _ = open_autoencoder(self.config).encode(images)
        latents = self.data.latents
        return (np.asarray(mean) - np.float32(latents.shift)) * np.float32(latents.scale)


def open_autoencoder(config) -> pretrained.Autoencoder:
    """The autoencoder that a config names.

    Raises:
      UserError: no such file, no autoencoder, another SHA-256; says which field names it.
    """
    try:
        return pretrained.autoencoder(
            config.autoencoder, sha256=config.autoencoder_sha256, dtype=config.autoencoder_dtype
        )
    except UserError as error:
        raise UserError(f"config.autoencoder: {error}") from error


def open_weights(config) -> Weights:
    """The decoder of the autoencoder that a config names.

    Raises:
      UserError: as `open_autoencoder`.
    """
    found = open_autoencoder(config)
    needed = {name: found.params[name] for name in DECODER if name in found.params}
    cast = lambda a: np.asarray(a, DTYPES[config.autoencoder_dtype])
    return Weights(
        decode=found.pure.decode,
        params=jax.tree.map(cast, needed),
        factor=found.info.factor,
        latent_channels=found.info.latent_channels,
        channels=found.info.config.out_channels,
        hash=found.info.hash,
        source=found.info.path,
    )


def check(weights: Weights, data: Dataset) -> None:
    """Raises UserError where an autoencoder is not one of such latents; says what may be odd."""
    *sides, channels = data.shape
    if len(sides) != 2 or channels != weights.latent_channels:
        raise UserError(
            f"config.autoencoder {weights.source} decodes latents [H, W, {weights.latent_channels}]"
            f", and these data are {list(data.shape)}: name the one that made them"
        )
    size, made = data.latents.size, [weights.factor * side for side in sides]
    if size is not None and made != [size, size]:
        raise UserError(
            f"config.autoencoder {weights.source} makes images of {made[0]}x{made[1]} of these "
            f"latents, and they were made of {size}x{size}: name the one that made them"
        )
    if data.latents.autoencoder not in (None, weights.hash):
        say(
            f"config.autoencoder {weights.source} ({weights.hash[:12]}) is not the file that made "
            f"the latents ({data.latents.autoencoder[:12]}): right if only its decoder was tuned"
        )


def check_decoded(lost: np.ndarray) -> None:
    """Raises UserError where an image is NaN or infinite, and its latents are not; `lost` [n]."""
    if lost.any():
        raise UserError(
            f"{int(lost.sum())} of {len(lost)} decoded images are NaN or infinite, and their "
            "latents are not: set config.autoencoder_dtype='float32', or look at the weights"
        )


def create_decoder(
    config, data: Dataset, mesh: Mesh, weights: Weights | None = None
) -> Decoder | None:
    """The decoder of a run on latents whose config names an autoencoder; else None.

    weights: of the autoencoder; None: they are opened when something is decoded.
    Raises:
      UserError: weights of other latents.
    """
    if not config.autoencoder or data.latents is None:
        return None
    return Decoder(config, data, mesh, weights)
