"""What a family of published networks is: a record, and what one of its files is found to be."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from genfield import registry
from genfield.pretrained.mapping import Rules, Shapes


class Guidance(NamedTuple):
    """How the authors guide: channels, the first so many; None: all. scale: theirs, None: none."""

    channels: int | None
    scale: float | None


class Description(NamedTuple):
    """What a file is: genfield's network, and the field that it was trained to be.

    Attributes:
      title: the published name, "EqM-XL/2", or what it is in words.
      net: the config section of genfield's network.
      shape: of an example, channels last. num_classes: 0 without; label num_classes is null.
      facts: the published constructor's, as they are written beside an export.
      teaches: what the field is, of registry.FIELDS. clock: whether it takes t, or a noise level.
      loss: the config's section, of what trains such a field.
      program: {section: fields} of a config that samples as those who trained it do; the rest of
        it is `config_of`.
      output, energy, preconditioning, sigma_data, rotation: as `trained.trained_field` takes them.
      guidance: of the authors' sampling; None: none.
      scale: of the data: what the autoencoder's latents were multiplied by; None: pixels, or said
        nowhere.
      null: whether there is a null class, where there are classes.
      any_size: whether the network takes images of other sizes than `shape` too.
      notes: lines about what was taken for granted, which are said when a file is opened.
      buffers: of a file, see `mapping.kept_buffers`.
    """

    title: str
    net: dict[str, Any]
    shape: tuple[int, ...]
    num_classes: int
    facts: dict[str, Any]
    teaches: str
    clock: bool
    loss: dict[str, Any]
    program: dict[str, Any]
    output: str = "vector"
    energy: str = "none"
    preconditioning: str = "none"
    sigma_data: float = 0.5
    rotation: float = 0.0
    guidance: Guidance | None = None
    scale: float | None = None
    null: bool = True
    any_size: bool = False
    notes: tuple[str, ...] = ()
    buffers: tuple[tuple[str, bytes], ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Family(registry.Record):
    """A family of published networks; files are recognised by names and shapes.

    Attributes:
      title: what it is called in messages.
      recognises: {name: shape} of a file -> whether it may be one, by a few telling names; what
        differs in others is told afterwards.
      told: facts -> whether they say that a file is of this family and not of another with the same
        names; where only one family recognises a file it is not asked.
      known: the facts that `describe` reads. Those beyond, in a file or beside it, are not read;
        passed as config=… they are a mistake.
      describe: (shapes, facts, origin) -> Description; raises UserError where neither shapes nor
        facts say what must be known, and where they contradict each other.
      rules: description -> the rules of `mapping`.
      writes: (description, of genfield's names) -> the description under which this family writes
        such a network; None: it has no place for it.
    """

    title: str
    recognises: Callable[[Shapes], bool]
    told: Callable[[Mapping[str, Any]], bool]
    known: tuple[str, ...]
    describe: Callable[[Shapes, Mapping[str, Any], str], Description]
    rules: Callable[[Description], Rules]
    writes: Callable[[Description], Description | None]


def named(kind: "str | Family") -> Family:
    """The family of a name, or the record itself, which may be of one's own."""
    return (
        kind if isinstance(kind, Family) else registry.choose("kind of weights", kind, families())
    )


@functools.cache
def families() -> Mapping[str, Family]:
    """All families by name."""
    return registry.Methods(registry.find("genfield.pretrained.families"))[Family]


def config_of(description: Description) -> dict[str, Any]:
    """What a config has of a file: {field or section: value}, for `configuration.base()`.

    All but the place of the data, which `data` lacks, and how long to train.
    """
    d, levels = description, description.teaches in registry.AT_LEVELS
    data = {"name": "images", "labels": d.num_classes > 0}
    if d.scale is not None:
        data = {"name": "latents", "shape": d.shape, "num_classes": d.num_classes, "scale": d.scale}
    fields = {
        "data": data,
        "net": dict(d.net),
        "loss": dict(d.loss),
        "path": "variance_exploding" if levels else "linear",
        "time": {"name": "log_normal"} if levels else {"name": "uniform"},
        "energy": d.energy,
        "preconditioning": d.preconditioning,
        "sigma_data": d.sigma_data,
        "rotation": d.rotation,
        "label_dropout": 0.1 if d.num_classes and d.null else 0.0,
    }
    return fields | d.program
