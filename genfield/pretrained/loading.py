"""Weights from a file: which family it is of, genfield's network and parameters, and the field."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import safetensors

from genfield import nets
from genfield.errors import UserError, local
from genfield.features import torch_files, weights
from genfield.fields import Field
from genfield.pretrained import mapping
from genfield.pretrained.family import Description, Family, families
from genfield.pretrained.info import Info
from genfield.registry import choose
from genfield.trained import trained_field

ENDINGS = (".safetensors", ".pt", ".pth", ".ckpt", ".bin", ".pkl")
WRAPPERS = ("module.", "_orig_mod.")  # of DistributedDataParallel and torch.compile
HEADER = "genfield"  # the key of a safetensors header under which an export has its facts
PARTS = ("ema", "model")  # of a checkpoint that keeps both


class Pretrained(NamedTuple):
    """Published weights, opened.

    Attributes:
      net: the config section of genfield's network.
      apply: (params, x [B, *shape], t [B] or None, label [B] or None) -> what the network gives.
      params: nested dicts of arrays, as `nets.create` makes them.
      field: (x, t, label), in genfield's sign and time, as `info` says; no label is the null one.
      info: what the file is.
      description: the same, as a family gives it.
    """

    net: dict[str, Any]
    apply: Callable
    params: dict
    field: Field
    info: Info
    description: Description


class Content(NamedTuple):
    """What a file holds.

    Attributes:
      arrays: by published name. facts: of the constructor. part: of several, which it is.
      digest: of genfield's parameters, where an export says it.
    """

    arrays: dict[str, np.ndarray]
    facts: dict[str, Any]
    part: str | None
    digest: str | None


def load(
    path: str | Path,
    *,
    ema: bool = True,
    kind: str | None = None,
    config: Mapping[str, Any] | None = None,
    sha256: str | None = None,
    teaches: str | None = None,
) -> Pretrained:
    """Opens a file of weights, published or exported, or a folder that holds one.

    Args:
      ema: of a file with an average and the parameters themselves, the average.
      kind: the family's name, where names and shapes fit several; see `family.families`.
      config: facts of the published constructor that shapes do not tell, such as num_heads; what
        is not passed is read from NAME.json beside NAME.safetensors, and from the file.
      sha256: of the file, or its first eight or more hex digits.
      teaches: where names and shapes fit several families and nothing names one, that whose field
        is this, of registry.FIELDS.
    Raises:
      UserError: no such file, damaged, of no known family, or of one whose network has other names
        or shapes (the first is told); facts that must be told, or that contradict the file.
    """
    file = weights_file(path)
    digest = weights.file_digest(file, sha256)
    content = read(file, ema)
    family, facts = choose_family(content, kind, config or {}, file, teaches)
    shapes = {name: array.shape for name, array in content.arrays.items()}
    description = family.describe(shapes, facts, str(file))
    sizes = {"shape": description.shape, "num_classes": description.num_classes}
    apply, abstract = nets.create(description.net, None, **sizes)
    rules = family.rules(description)
    params = mapping.to_ours(rules, content.arrays, abstract, str(file), description.title)
    if content.digest not in (None, weights.digest(params)):
        raise UserError(f"{file} is damaged: its numbers are not those that were exported")
    info = Info.of(family.name, description, str(file), digest, content.part, abstract)
    return bound(apply, jax.tree.map(jnp.asarray, params), description, info)


def bound(apply: Callable, params: dict, description: Description, info: Info) -> Pretrained:
    """The field of parameters, with all that a description says."""
    network = lambda x, t=None, cond=None: apply(params, x, t, cond)
    names = ("teaches", "clock", "output", "energy", "preconditioning", "sigma_data", "rotation")
    meaning = {name: getattr(description, name) for name in names}
    field = trained_field(network, name=description.title, **meaning)
    return Pretrained(dict(description.net), apply, params, field, info, description)


def weights_file(path: str | Path) -> Path:
    """The file that a path names: itself, or the one with weights in a folder."""
    place = local(path, "the weights")
    if not place.is_dir():
        if not place.is_file():
            raise UserError(f"no weights file {place}: mend the path")
        return place
    found = sorted(f for f in place.iterdir() if f.suffix in ENDINGS and f.is_file())
    if len(found) != 1:
        names = ", ".join(file.name for file in found[:5]) or "none"
        raise UserError(
            f"{place} must hold one file of weights ({', '.join(ENDINGS)}), not {len(found)} "
            f"({names}): name the file"
        )
    return found[0]


def read(file: Path, ema: bool) -> Content:
    """The arrays of a file, names without what wrappers put before them, and its facts."""
    arrays, part = torch_files.read(file), None
    for wrapper in WRAPPERS:
        if all(name.startswith(wrapper) for name in arrays):
            arrays = {name.removeprefix(wrapper): array for name, array in arrays.items()}
    facts = header(file)
    return Content(arrays, facts, part, facts.pop("digest", None))


def header(file: Path) -> dict[str, Any]:
    """The facts that an export holds in its header: "kind", the constructor's, "digest"."""
    if file.suffix != ".safetensors":
        return {}
    with safetensors.safe_open(file, framework="np") as opened:
        text = (opened.metadata() or {}).get(HEADER)
    try:
        return {} if text is None else _facts(json.loads(text))
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{file} has a damaged header: {error}") from error


def _facts(found: Mapping[str, Any]) -> dict[str, Any]:
    """Facts that stand plainly, or under "config" beside the kind of file."""
    plain = {name: found[name] for name in ("kind", "digest") if name in found}
    return {**found.get("config", found), **plain}


def beside(file: Path) -> dict[str, Any]:
    """The facts of NAME.json beside NAME.safetensors: plain, or under "config"."""
    place = file.with_suffix(".json")
    if not place.is_file():
        return {}
    try:
        return _facts(json.loads(place.read_text()))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{place} is not the description of weights: {error}") from error


def choose_family(
    content: Content,
    kind: str | None,
    config: Mapping[str, Any],
    file: Path,
    teaches: str | None = None,
) -> tuple[Family, dict[str, Any]]:
    """The family of a file, and the facts that it reads: of the file, beside it, passed."""
    facts = {**content.facts, **beside(file), **config}
    kind = kind or facts.get("kind")
    shapes = {name: array.shape for name, array in content.arrays.items()}
    if kind is not None:
        family = choose("kind of weights", kind, families())
    else:
        family = _recognised(shapes, facts, file, teaches)
    for name in config:
        choose(f"fact of {family.title}", name, dict.fromkeys((*family.known, "kind")))
    return family, _known(family, facts)


def _known(family: Family, facts: Mapping[str, Any]) -> dict[str, Any]:
    return {name: facts[name] for name in family.known if name in facts}


def _recognised(shapes, facts, file: Path, teaches: str | None) -> Family:
    able = [family for family in families().values() if family.recognises(shapes)]
    if not able:
        first = ", ".join(list(shapes)[:3])
        raise UserError(
            f"{file} is of no known family (it holds {first}, …). Known: "
            + ", ".join(family.title for family in families().values())
        )
    if len(able) > 1:
        able = [family for family in able if family.told(facts)] or able
    if len(able) > 1 and teaches is not None:
        field = lambda f: f.describe(shapes, _known(f, facts), str(file)).teaches
        able = [family for family in able if field(family) == teaches] or able
    if len(able) > 1:
        titles, names = ([getattr(f, part) for f in able] for part in ("title", "name"))
        raise UserError(
            f"{file} may be {' or '.join(titles)}, which have the same names and shapes: pass "
            f"kind={' or '.join(map(repr, names))}"
        )
    return able[0]
