"""Weights from a file: which family it is of, genfield's network and parameters, and the field."""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from genfield import nets
from genfield.errors import UserError
from genfield.features import weights
from genfield.fields import Field
from genfield.machine.logbook import say
from genfield.pretrained import mapping
from genfield.pretrained.contents import Content, beside, read, weights_file
from genfield.pretrained.family import Description, Family, families, named
from genfield.pretrained.info import Info
from genfield.registry import choose
from genfield.trained import trained_field


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


def load(
    path: str | Path,
    *,
    ema: bool = True,
    kind: str | Family | None = None,
    config: Mapping[str, Any] | None = None,
    sha256: str | None = None,
    teaches: str | None = None,
) -> Pretrained:
    """Opens a file of weights, published or exported, or a folder that holds one.

    Args:
      ema: of a file with an average and the parameters themselves, the average.
      kind: the family's name, where names and shapes fit several (see `family.families`); or the
        record of a family of one's own.
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
    description = _told(file, lambda: family.describe(shapes, facts, str(file)))
    for note in description.notes:
        say(note)
    apply, abstract = _told(file, lambda: network(description))
    rules = family.rules(description)
    params = mapping.to_ours(rules, content.arrays, abstract, str(file), description.title)
    if content.digest not in (None, weights.digest(params)):
        raise UserError(f"{file} is damaged: its numbers are not those that were exported")
    description = description._replace(buffers=mapping.kept_buffers(rules, content.arrays))
    info = Info.of(family.name, description, str(file), digest, content.part, abstract)
    return bound(apply, jax.tree.map(jnp.asarray, params), description, info)


def _told(file: Path, make: Callable) -> Any:
    """What `make` gives; one line where a file's facts are not even of the right types."""
    try:
        return make()
    except UserError:
        raise
    except (TypeError, ValueError, LookupError, ArithmeticError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{file} describes no network of genfield's: {reason}") from error


def network(description: Description) -> tuple[Callable, dict]:
    """The network's apply, and the shapes of its parameters."""

    @functools.cache
    def create(shape):
        return nets.create(description.net, None, shape=shape, num_classes=description.num_classes)

    def of_any_size(params, x, t=None, cond=None, **options):
        return create(tuple(x.shape[1:]))[0](params, x, t, cond, **options)

    apply, abstract = create(description.shape)
    return of_any_size if description.any_size else apply, abstract


def bound(apply: Callable, params: dict, description: Description, info: Info) -> Pretrained:
    """The field of parameters, with all that a description says."""
    network = lambda x, t=None, cond=None: apply(params, x, t, cond)
    names = ("teaches", "clock", "output", "energy", "preconditioning", "sigma_data", "rotation")
    meaning = {name: getattr(description, name) for name in names}
    field = trained_field(network, name=description.title, **meaning)
    return Pretrained(dict(description.net), apply, params, field, info, description)


def choose_family(
    content: Content,
    kind: str | Family | None,
    config: Mapping[str, Any],
    file: Path,
    teaches: str | None = None,
) -> tuple[Family, dict[str, Any]]:
    """The family of a file, and the facts that it reads: of the file, beside it, passed."""
    facts = {**content.facts, **beside(file), **config}
    kind = kind or facts.get("kind")
    shapes = {name: array.shape for name, array in content.arrays.items()}
    if kind is not None:
        family = named(kind)
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
