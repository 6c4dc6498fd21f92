"""The parts that a configuration names: loss, coupling, rematching, law of times, path."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from genfield import paths, registry
from genfield.data import Dataset
from genfield.data.augment import NUM_LABELS
from genfield.errors import UserError
from genfield.preconditionings import PRECONDITIONINGS
from genfield.program.methods import loss_of, package
from genfield.registry import Methods, bind, bound, build, choose


class Parts(NamedTuple):
    """A configuration's parts, their sections filled in.

    Attributes:
      method: the loss's record. arguments: what its section says, defaults filled in.
      loss: (field, sample, cond, **extras) -> (loss [B], terms).
      couple: (x0, x1, key, label) -> x0 reordered. rematch: (path, sample) -> sample.
      times: (key, n) -> [n]. path: paths.Path.
    """

    method: registry.Loss
    arguments: Mapping[str, Any]
    loss: Callable
    couple: Callable
    rematch: Callable
    times: Callable
    path: paths.Path


def create(config, methods: Methods | None = None) -> Parts:
    """The parts of a configuration, checked against each other; no data are needed.

    Raises:
      UserError: unknown names or fields, parts that do not fit each other.
    """
    methods = methods or package()
    path = choose("path", config.path, methods[registry.Path])
    method = loss_of(config, methods)
    _check_path(config, method, path, methods)
    _check_levels(config, method)
    check_derivatives(config, method, methods)
    _check_augmentation(config, method, methods)
    law = path.path
    if config.path_noise:
        if _moves(config, methods):
            raise UserError("config.rematching moves targets, which path_noise=0 alone allows")
        law = paths.brownian_bridge(law, config.path_noise)
    if method.time_law is not None and config.time.get("name") != method.time_law:
        raise UserError(
            f"{method.name} integrates over time: set config.time.name={method.time_law}"
        )
    laws = methods[registry.TimeLaw].items()
    times = {name: record for name, record in laws if record.noise_levels == path.noise_levels}
    loss, arguments = create_loss(config, methods)
    return Parts(
        method=method,
        arguments=arguments,
        loss=loss,
        couple=create_coupling(config, methods),
        rematch=bind("rematching", methods[registry.Rematching], config.rematching),
        times=build("time", times, config.time),
        path=law,
    )


def create_loss(
    config, methods: Methods | None = None, data: Dataset | None = None
) -> tuple[Callable, dict]:
    """The loss with its section filled in, and its bound arguments.

    Args:
      data: what nested sections are built for that hang on the data; None leaves these out.
    """
    methods = methods or package()
    method, fields = loss_of(config, methods), dict(config.loss)
    if data is not None and "real" in method.extras and config.data.get("real") is None:
        raise UserError(
            f"{method.name} needs real examples beside the pairs: set config.data.name='pairs' and "
            "config.data.real, such as \"{'name': 'images', 'path': …}\""
        )
    later = []
    for name, nested in method.tables.items():
        section = fields.get(name)
        if section is None and nested.default is not None:
            section = {"name": nested.default}
        if nested.of_data and data is None:
            fields.pop(name, None)
            later.append(name)
            continue
        if isinstance(section, str) and nested.bare:
            section = {"name": section}
        given = {"shape": data.shape, "num_classes": data.num_classes} if nested.of_data else {}
        if section is not None:
            fields[name] = build(f"loss.{name}", nested.table, section, **given)
    function = bind("loss", methods[registry.Loss], fields, later)
    return function, bound(method, fields)


def create_coupling(config, methods: Methods | None = None) -> Callable:
    """(x0, x1, key, label) -> x0 reordered, of the sections `coupling` and `match_size`.

    Match sets larger than a batch are the business of `program.match_sets`.
    """
    table = (methods or package())[registry.Coupling]
    couple, record = bind("coupling", table, config.coupling), table[config.coupling.name]
    if config.match_size and not record.groups:
        able = ", ".join(sorted(name for name, known in table.items() if known.groups))
        raise UserError(
            f"config.match_size needs a coupling: set config.coupling.name to one of {able}"
        )
    if 0 < config.match_size < config.batch_size:
        couple = functools.partial(couple, group_size=config.match_size)

    def call(x0, x1, key, label):
        offers = {"key": key, "label": label}
        return couple(x0, x1, **{name: offers[name] for name in record.extras})

    return call


def coupled(config, parts: Parts) -> int:
    """Examples that the loss couples; UserError where microbatches would cut through them."""
    if not parts.method.couples(parts.arguments):
        return 1
    group, count = config.loss.get("group_size") or config.batch_size, config.optimizer.accumulate
    if config.batch_size % (group * count):
        raise UserError(
            f"config.loss couples {group} examples: set config.loss.group_size so that it divides "
            f"the {config.batch_size // count} of a microbatch"
        )
    return group


def one_level(config, methods: Methods) -> float | None:
    """The only noise level that a config's law of times draws; None where there are many."""
    law = methods[registry.TimeLaw].get(config.time.get("name"))
    return law.one(bound(law, config.time)) if law is not None and law.one else None


def _moves(config, methods: Methods) -> bool:
    return choose("rematching", config.rematching.get("name"), methods[registry.Rematching]).moves


def _check_path(config, method: registry.Loss, path: registry.Path, methods: Methods) -> None:
    levels = path.noise_levels
    if levels != method.at_levels:
        fitting = [p.name for p in methods[registry.Path].values() if p.noise_levels != levels]
        raise UserError(f"{method.name} needs config.path={fitting[0]!r}, not {config.path!r}")
    if levels and (config.path_noise or _moves(config, methods)):
        raise UserError(f"config.path={config.path!r} has no bridge and no rematching")


def _check_levels(config, method: registry.Loss) -> None:
    """Raises UserError where sections that only fields of noise levels have are misused."""
    known = {"none": None, **PRECONDITIONINGS}
    choose("config.preconditioning", config.preconditioning, known)
    if not method.at_levels and (config.preconditioning != "none" or config.rotation):
        raise UserError(
            f"config.preconditioning and config.rotation are for losses of noise levels, not "
            f"{method.name}: set them to 'none' and 0"
        )
    if config.rotation and config.preconditioning != "none":
        raise UserError("config.rotation needs config.preconditioning='none'")


def against_derivatives(config, methods: Methods) -> str | None:
    """What in the config's network cannot be differentiated twice, in words; None: nothing."""
    network = methods[registry.Network].get(config.net.get("name"))
    return network and network.second_order(registry.bound(network, config.net))


def check_derivatives(config, method: registry.Loss, methods: Methods) -> None:
    """Raises UserError where a loss differentiates a network that cannot be twice."""
    reason = method.second_order and against_derivatives(config, methods)
    if reason:
        raise UserError(
            f"{method.name} takes derivatives of the network inside the loss, which {reason} "
            "cannot have differentiated: change config.net"
        )


def _check_augmentation(config, method: registry.Loss, methods: Methods) -> None:
    """Raises UserError where images would be augmented and the network not be told."""
    if not config.augmentation:
        return
    if config.net.get("augmentation_size", 0) != NUM_LABELS:
        able = [repr(n.name) for n in methods[registry.Network].values() if n.augmented]
        raise UserError(
            f"config.augmentation would leak into the samples: set config.net.name="
            f"{' or '.join(able)} and config.net.augmentation_size={NUM_LABELS}, or "
            "config.augmentation=0"
        )
    if method.couples(registry.bound(method, config.loss)):
        raise UserError(
            "config.augmentation changes each image in its own way, and the targets of "
            "config.loss mix images: set config.augmentation=0"
        )
    if config.match_size > config.batch_size:
        raise UserError("config.augmentation changes images after they were matched: set it to 0")
