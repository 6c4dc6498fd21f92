"""Stable Diffusion's autoencoder from a file, and back into one.

Files: diffusers' names, of both generations of its attention; CompVis's names, also inside a
checkpoint of a whole latent diffusion model. What shapes do not tell is read from diffusers'
config.json.
"""

import functools
import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from genfield import registry
from genfield.errors import UserError, local
from genfield.features import autoencoder_kl, weights
from genfield.features.autoencoder_kl import Config
from genfield.pretrained import contents
from genfield.reading import json_file

DEFAULT = "sd-vae-ft-ema"  # of SiT and Equilibrium Matching
# Both: https://huggingface.co/stabilityai. The encoder and the latents are those of Stable
# Diffusion 1; the decoders were trained further.
PUBLISHED = {name: {"scaling_factor": 0.18215} for name in ("sd-vae-ft-ema", "sd-vae-ft-mse")}
OWNER = "stabilityai/"
FILE = "diffusion_pytorch_model.safetensors"
PIXELS = 2**19  # that are encoded or decoded at once: 8 images of 256x256

INSIDE = "first_stage_model."  # where a checkpoint of latent diffusion has the autoencoder
# Of CompVis's checkpoints: the discriminator's loss, and averages of the weights.
IGNORED = r"(loss|model_ema)\."
ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
ATTENTION |= {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}

BLOCKS = {"down_block_types": "DownEncoderBlock2D", "up_block_types": "UpDecoderBlock2D"}
# Of diffusers' configs: what changes nothing here.
UNUSED = ("sample_size", "force_upcast")
SCALES = ("scaling_factor", "shift_factor")
CHANNELWISE = ("latents_mean", "latents_std")


class Info(NamedTuple):
    """What an autoencoder is.

    Attributes:
      path: of its file. names: "diffusers", "diffusers, older attention" or "CompVis".
      hash: SHA-256 of the parameters, whatever file they came in.
      parameters: how many there are.
      factor: pixels of a side per latent. image_channels, latent_channels: of both ends.
      scaling_factor, shift_factor: a diffusion model sees (latents - shift) * scale; None where
        nothing says, 0 for no shift.
      latents_mean, latents_std: of each channel, where the config has them.
      config: all sizes. dtype, tile: as asked for.
    """

    path: str
    names: str
    hash: str
    parameters: int
    factor: int
    image_channels: int
    latent_channels: int
    scaling_factor: float | None
    shift_factor: float
    latents_mean: tuple[float, ...] | None
    latents_std: tuple[float, ...] | None
    config: Config
    dtype: str
    tile: int | None


class Pure(NamedTuple):
    """The functions with the parameters as an argument, to be jitted with shardings."""

    encode: Callable  # (params, images [B, H, W, C]) -> mean, std [B, h, w, c]
    decode: Callable  # (params, latents [B, h, w, c]) -> images [B, H, W, C]


class Autoencoder(NamedTuple):
    """An autoencoder with its parameters.

    Attributes:
      encode: `encode(images)` -> mean, standard deviation of the latents. Images are [B, H, W, C]
        in [-1, 1], latents [B, H/f, W/f, c] before the scaling factor. Any number of images: they
        are taken some at a time, by one compiled function.
      decode: `decode(latents)` -> images, not clipped.
      params: nested dict of float32 NumPy arrays, under diffusers' names.
      info: what it is.
      pure: `encode(params, images)`, `decode(params, latents)`: all examples at once, not jitted.
    """

    encode: Callable
    decode: Callable
    params: dict
    info: Info
    pure: Pure


def autoencoder(
    path: str | Path | None = None,
    *,
    config: Mapping[str, Any] | None = None,
    sha256: str | None = None,
    dtype: str = "float32",
    tile: int | None = None,
    batch: int | None = None,
) -> Autoencoder:
    """An AutoencoderKL from its weights.

    Args:
      path: a .safetensors, .bin, .pt or .ckpt file; a folder that diffusers or
        `genfield.autoencoder` wrote, also that of a whole pipeline; "sd-vae-ft-ema" or
        "sd-vae-ft-mse", with or without "stabilityai/", for the published ones, from
        $GENFIELD_SD_VAE_FT_EMA or _MSE, the cache folder, or a download; None: sd-vae-ft-ema.
      config: what shapes do not tell, under diffusers' names (norm_num_groups, scaling_factor,
        shift_factor); over what NAME.json or config.json beside the file say. Where nothing says,
        norms have 32 groups.
      sha256: of the file, or its first eight or more hex digits.
      dtype: "float32", or "bfloat16" for speed.
      tile: the side in pixels of overlapping tiles; None: whole images.
      batch: images at once in `encode` and `decode`; None: eight of 256x256, or as many pixels.
    Raises:
      UserError: no such file, another SHA-256, not an AutoencoderKL's file (the first names that
        differ), a config that contradicts it, a tile that is not a multiple of the factor.
    """
    registry.choose("dtype", dtype, autoencoder_kl.DTYPES)
    if batch is not None and batch < 1:
        raise UserError(f"batch={batch} of an autoencoder must be positive, or None")
    file, published = _find(path, sha256)
    state, names = _renamed(contents.read(file, ema=True).arrays, str(file))
    told = (PUBLISHED.get(published) or _facts(file)) | _checked("config", config or {})
    sizes = _sizes(state, told, str(file))
    if sizes.layers_per_block > len(state):  # before as many names are made
        raise UserError(
            f"{file} holds {len(state)} arrays, too few for layers_per_block="
            f"{sizes.layers_per_block}"
        )
    wanted = autoencoder_kl.shapes(sizes)
    params = weights.convert("AutoencoderKL", file, state, wanted, IGNORED)
    autoencoder_kl.check_tile(tile, sizes)
    info = Info(
        path=str(file),
        names=names,
        hash=weights.digest(params),
        parameters=sum(int(np.prod(shape)) for shape in wanted.values()),
        factor=sizes.factor,
        image_channels=sizes.in_channels,
        latent_channels=sizes.latent_channels,
        scaling_factor=told.get("scaling_factor"),
        shift_factor=told.get("shift_factor") or 0.0,
        latents_mean=told.get("latents_mean"),
        latents_std=told.get("latents_std"),
        config=sizes,
        dtype=dtype,
        tile=tile,
    )
    return _bound(params, info, batch)


def _bound(params: dict, info: Info, batch: int | None) -> Autoencoder:
    options = {"config": info.config, "dtype": info.dtype, "tile": info.tile}
    encode = lambda params, images: autoencoder_kl.encode(params, images, **options)
    decode = lambda params, latents: autoencoder_kl.decode(params, latents, **options)
    cast = lambda a: jnp.asarray(a, autoencoder_kl.DTYPES[info.dtype])
    placed = functools.cache(lambda: jax.tree.map(cast, params))
    run = lambda function, scale: (
        lambda x: _in_parts(
            lambda part: function(placed(), part), _floats(x), batch or _fitting(x, scale, info)
        )
    )
    return Autoencoder(
        run(jax.jit(encode), 1),
        run(jax.jit(decode), info.factor),
        params,
        info,
        Pure(encode, decode),
    )


def _floats(x) -> jax.Array:
    """Images or latents as an array; raises UserError for levels from 0 to 255."""
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise UserError(
            f"the autoencoder takes floats, images in [-1, 1], not {x.dtype}: "
            "genfield.data.to_unit turns levels from 0 to 255 into them"
        )
    return x


def _fitting(x, scale: int, info: Info) -> int:
    """How many images are encoded or decoded at once, so that the memory is bounded."""
    sides = (side * scale for side in x.shape[1:3])
    height, width = (min(side, info.tile or side) for side in sides)
    return max(1, PIXELS // max(1, height * width))


def _in_parts(function: Callable, x: jax.Array, size: int):
    """A function of a batch, in parts of one size; the last is filled up, so that all are alike."""
    if len(x) <= size:
        return function(x)
    parts = []
    for start in range(0, len(x), size):
        part = x[start : start + size]
        short = size - len(part)
        made = function(jnp.pad(part, ((0, short), (0, 0), (0, 0), (0, 0))))
        parts.append(jax.tree.map(lambda a, n=size - short: a[:n], made))
    return jax.tree.map(lambda *arrays: jnp.concatenate(arrays), *parts)


# ---- finding the file, and what is said beside it


def _find(path: str | Path | None, sha256: str | None) -> tuple[Path, str | None]:
    """The file with the weights, and the published name that it was asked for by."""
    name = DEFAULT if path is None else str(path).removeprefix(OWNER)
    if name in PUBLISHED and (path is None or not Path(path).exists()):
        return weights.find(name, None, sha256), name
    place = local(path, "the autoencoder's path")
    if not place.exists():
        known = ", ".join(sorted(PUBLISHED))
        raise UserError(f"no autoencoder at {place}: pass a file, a folder, or one of {known}")
    file = _in_folder(place) if place.is_dir() else place
    return weights.verified(file, sha256), None


def _in_folder(folder: Path) -> Path:
    if (folder / "model_index.json").is_file() and (folder / "vae").is_dir():  # a pipeline's
        folder = folder / "vae"
    return folder / FILE if (folder / FILE).is_file() else contents.weights_file(folder)


def _facts(file: Path) -> dict:
    """What NAME.json beside a file, or else config.json, says of it."""
    for beside in (file.with_suffix(".json"), file.with_name("config.json")):
        if beside.is_file():
            try:
                found = json_file(beside)
            except (OSError, ValueError) as error:
                raise UserError(f"{beside} is not JSON: {error}") from error
            if isinstance(found, dict) and isinstance(found.get("config"), dict):
                found = found["config"]
            if not isinstance(found, dict):
                raise UserError(f"{beside} must hold the fields of an AutoencoderKL's config")
            return _checked(str(beside), found)
    return {}


def _checked(where: str, facts: Mapping[str, Any]) -> dict:
    """The fields that are of use; UserError for one that says another network, or nothing known."""
    kind = facts.get("_class_name", "AutoencoderKL")
    if kind != "AutoencoderKL":
        raise UserError(f"{where} is of {kind}: only AutoencoderKL can be opened as an autoencoder")
    known = {}
    for name, value in facts.items():
        if name in UNUSED or name.startswith("_") or value is None:
            continue
        if name in BLOCKS:
            blocks = value if isinstance(value, (list, tuple)) else [value]
            if any(block != BLOCKS[name] for block in blocks):
                raise UserError(f"{where}: {name} must all be {BLOCKS[name]}, not {value}")
        elif name == "act_fn":
            if value not in ("silu", "swish"):
                raise UserError(f"{where}: act_fn must be silu, not {value!r}")
        elif name in Config._fields or name in SCALES + CHANNELWISE:
            known[name] = _value(where, name, value)
        elif value is not False:
            registry.choose(f"field of an autoencoder in {where}:", name, _known_fields())
    return known


def _known_fields() -> list[str]:
    return [*Config._fields, *SCALES, *CHANNELWISE, *UNUSED, *BLOCKS, "act_fn"]


def _value(where: str, name: str, value: Any) -> Any:
    """A field in its type; UserError where it is of another."""
    whole = lambda v: type(v) is int and v > 0
    real = lambda v: isinstance(v, int | float) and not isinstance(v, bool)
    all_are = lambda kind: lambda v: isinstance(v, list | tuple) and bool(v) and all(map(kind, v))
    kinds = {name: (real, "a number") for name in SCALES}
    kinds |= {name: (all_are(real), "a list of numbers") for name in CHANNELWISE}
    kinds |= {"block_out_channels": (all_are(whole), "a list of whole positive numbers")}
    default = Config._field_defaults.get(name)
    flag = (lambda v: isinstance(v, bool), "true or false")
    holds, says = kinds.get(name) or (flag if isinstance(default, bool) else (whole, "positive"))
    if not holds(value):
        raise UserError(f"{where}: {name} must be {says}, not {value!r}")
    return tuple(value) if isinstance(value, list) else value


# ---- names and sizes


def _renamed(state: Mapping[str, np.ndarray], origin: str) -> tuple[dict[str, np.ndarray], str]:
    """The tensors under diffusers' present names, and whose names they had."""
    if any(name.startswith(INSIDE) for name in state):
        state = {n.removeprefix(INSIDE): a for n, a in state.items() if n.startswith(INSIDE)}
    ups = [int(found[1]) for name in state if (found := re.match(r"decoder\.up\.(\d+)\.", name))]
    compvis = bool(ups) or any(name.startswith("encoder.down.") for name in state)
    if not compvis and "encoder.conv_in.weight" not in state:
        raise UserError(f"{origin} is not an AutoencoderKL's file: it lacks encoder.conv_in.weight")
    last, renamed, older = max(ups, default=0), {}, False
    for name, array in state.items():
        made = _from_compvis(name, last) if compvis else name
        if found := re.fullmatch(r"(.+\.attentions\.0\.)(\w+)\.(weight|bias)", made):
            part = ATTENTION.get(found[2], found[2])
            older |= part != found[2]
            made = f"{found[1]}{part}.{found[3]}"
            if part != "group_norm" and array.ndim == 4 and array.shape[2:] == (1, 1):
                array = array[:, :, 0, 0]  # a 1x1 convolution is a linear layer
        if made in renamed:
            raise UserError(f"{origin} holds {made} twice, under different names")
        renamed[made] = array
    names = "CompVis" if compvis else "diffusers, older attention" if older else "diffusers"
    return renamed, names


def _from_compvis(name: str, last: int) -> str:
    """CompVis counts the decoder's levels from the pixels, diffusers from the latents."""
    level = lambda m: f"decoder.up_blocks.{last - int(m[1])}."
    name = re.sub(r"^encoder\.down\.(\d+)\.", r"encoder.down_blocks.\1.", name)
    name = re.sub(r"^decoder\.up\.(\d+)\.", level, name)
    name = re.sub(r"\.mid\.block_([12])\.", lambda m: f".mid_block.resnets.{int(m[1]) - 1}.", name)
    name = name.replace(".mid.attn_1.", ".mid_block.attentions.0.")
    name = name.replace(".block.", ".resnets.").replace(".nin_shortcut.", ".conv_shortcut.")
    name = name.replace(".downsample.", ".downsamplers.0.").replace(".upsample.", ".upsamplers.0.")
    return name.replace(".norm_out.", ".conv_norm_out.")


def _sizes(state: Mapping[str, np.ndarray], told: Mapping[str, Any], origin: str) -> Config:
    """The sizes that the config tells; of the others, those of the shapes."""

    def axis(name: str, number: int) -> int:
        shape = state[name].shape if name in state else ()
        if number >= len(shape):
            raise UserError(f"{origin} is not a state dict of AutoencoderKL: it lacks {name}")
        return shape[number]

    levels = _count(state, r"encoder\.down_blocks\.(\d+)\.")
    first = [f"encoder.down_blocks.{i}.resnets.0.conv1.weight" for i in range(levels)]
    seen = {
        "in_channels": axis("encoder.conv_in.weight", 1),
        "out_channels": axis("decoder.conv_out.weight", 0),
        "latent_channels": axis("decoder.conv_in.weight", 1),
        "block_out_channels": tuple(axis(name, 0) for name in first),
        "layers_per_block": _count(state, r"encoder\.down_blocks\.0\.resnets\.(\d+)\."),
        "use_quant_conv": "quant_conv.weight" in state,
        "use_post_quant_conv": "post_quant_conv.weight" in state,
        "mid_block_add_attention": any(".mid_block.attentions." in name for name in state),
    }
    sizes = Config(**(seen | {k: v for k, v in told.items() if k in Config._fields}))
    widths, groups = sizes.block_out_channels, sizes.norm_num_groups
    if "norm_num_groups" not in told and any(width % groups for width in widths):
        raise UserError(
            f"{origin} does not tell how many groups its norms have, and {groups} do not divide "
            f"{widths}: pass config={{'norm_num_groups': …}}, or put a config.json beside it"
        )
    return sizes


def _count(names: Iterable[str], pattern: str) -> int:
    """How many numbers stand in a place of names."""
    return len({found[1] for name in names if (found := re.match(pattern, name))})


# ---- back into a file


def save(folder: str | Path, params: dict, config: Config, *, scaling_factor: float) -> Path:
    """Writes an autoencoder as diffusers does: a folder with its file and config.json.

    Args:
      params: nested dict as of `Autoencoder`.
      scaling_factor: 1 / the standard deviation of its latents.
    Returns:
      The file of weights, which is whole or not there.
    """
    file = Path(folder) / FILE
    file.parent.mkdir(parents=True, exist_ok=True)
    levels = len(config.block_out_channels)
    fields = {
        "_class_name": "AutoencoderKL",
        "act_fn": "silu",
        **{name: [block] * levels for name, block in BLOCKS.items()},
        **config._asdict(),
        "scaling_factor": scaling_factor,
    }
    unfinished = file.with_name(f".{file.name}.part")
    weights.save(weights.state_dict(params), unfinished, {"format": "pt"})
    file.with_name("config.json").write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
    return unfinished.replace(file)
