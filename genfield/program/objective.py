"""From a configuration to what the program trains: coupling . time . path . loss."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from genfield import nets, paths, placement, registry, rng
from genfield.data import Dataset, to_unit
from genfield.data.augment import augment
from genfield.errors import UserError
from genfield.fields import ENERGIES, Field, Prediction
from genfield.nets.attention import first_order
from genfield.program import parts as config_parts
from genfield.program.methods import has_clock, package
from genfield.program.parts import Parts
from genfield.registry import Methods, choose
from genfield.trained import trained_field


class Drawn(NamedTuple):
    """A batch after coupling, time and path; what a loss sees."""

    sample: paths.PathSample
    cond: Any  # labels [B] or None, with dropout
    label: Any = None  # labels [B] or None, as the data have them
    key: Any = None  # [B], one an example, of losses that draw
    step: Any = None  # [B], the training step, of losses that ask for it
    real: Any = None  # [B, …] examples of the data beside pairs, and their labels
    real_label: Any = None


class Objective(NamedTuple):
    """`draw` holds all the randomness of the loss; `loss` is a function of what was drawn.

    draw(key, batch, train=True) -> Drawn; a batch with "x0" was matched before
    source(key, n) -> x0 [n, …], as `draw` draws it from its key
    couple(x0, x1, key, label) -> x0 reordered
    loss(params, drawn, key, train) -> (loss [B], terms {name: [B]}); key is for dropout
    field(params, key=None, train=False) -> Field
    output: "vector", "predicted" (a Prediction), "potential" (one with direction = ∇ distance) or
      "energy" (the same of a scalar that is no distance)
    roles(key) -> {role: parameters} that the loss trains beside the field
    group_size: examples that the loss couples, consecutive in what was drawn
    method: the loss's record. clock: whether the field is called with t, or the noise level
    """

    draw: Callable
    source: Callable
    couple: Callable
    loss: Callable
    field: Callable
    output: str
    roles: Callable
    group_size: int
    method: registry.Loss
    clock: bool

    def __call__(self, key, params, batch, train=True):
        """Draws and evaluates: (loss [B], terms)."""
        drawn = self.draw(rng.draw_key(key), batch, train)
        return self.loss(params, drawn, rng.dropout_key(key), train)


def create(
    config, data: Dataset, apply: Callable, abstract_params, methods: Methods | None = None
) -> Objective:
    """The objective of a configuration.

    Args:
      config: sections loss, coupling, rematching, time, path, label_dropout, net, and what fields
        of noise levels have.
      data: gives the shape of an example, the source and the number of classes.
      apply, abstract_params: what `nets.create(..., key=None)` returned.
    Raises:
      UserError: unknown names or fields, or a network that the loss cannot use.
    """
    methods = methods or package()
    parts = config_parts.create(config, methods)
    loss_fn, arguments = config_parts.create_loss(config, methods, data)
    parts = parts._replace(loss=loss_fn, arguments=arguments)
    method = parts.method
    _check_data(config, data, method)
    output = output_of(config, data, apply, abstract_params, methods)
    if _gathers_once(config, method, output, methods):
        apply = placement.once(apply)
    group = config_parts.coupled(config, parts)
    source = _make_source(data)
    if not (method.second_order or output in ("potential", "energy")):
        apply = first_order(apply)
    field = _make_field(config, apply, output, method, has_clock(config, methods))

    def roles(key):
        return {} if method.roles is None else method.roles.init(key, **parts.arguments)

    return Objective(
        draw=_make_draw(config, data, parts, source, group),
        source=source,
        couple=parts.couple,
        loss=_make_loss(config, data, parts, field, methods),
        field=field,
        output="vector" if method.at_levels else output,
        roles=roles,
        group_size=group,
        method=method,
        clock=has_clock(config, methods),
    )


def _gathers_once(config, method: registry.Loss, output: str, methods: Methods) -> bool:
    """Whether a network's weights are gathered before it runs, and kept until it was gone back.

    Where it is differentiated twice, and where its layers are in no loop: then all of its weights
    are few beside its activations, and to gather them anew is a third of what is sent.
    """
    if config.mesh.gather != "auto":
        return config.mesh.gather == "call"
    looped = methods[registry.Network][config.net.name].stack
    return not looped or method.second_order or output in ("potential", "energy")


def create_net(config, data: Dataset, key=None, methods: Methods | None = None):
    """`nets.create` for this data: (apply, params), params abstract where key is None."""
    table = (methods or package())[registry.Network]
    sizes = dict(shape=data.shape, num_classes=data.num_classes)
    return nets.create(config.net, key, table=table, **sizes)


# Checks against the data and the network


def _check_data(config, data: Dataset, method: registry.Loss) -> None:
    by_class = config.coupling.get("within_classes") or config.coupling.get("class_penalty")
    if by_class and not data.num_classes:
        raise UserError("config.coupling matches by class: set config.data.labels=True")
    if method.at_levels and (data.draw_source is not None or data.starts is not None):
        raise UserError(f"{method.name} adds normal noise: set config.data.source='normal'")


def output_of(config, data: Dataset, apply: Callable, abstract_params, methods: Methods) -> str:
    """What the network gives, of registry.OUTPUTS; UserError where the loss cannot use it."""
    x = jax.ShapeDtypeStruct((2, *data.shape), jnp.float32)
    t = jax.ShapeDtypeStruct((2,), jnp.float32)
    out = jax.eval_shape(apply, abstract_params, x, t)
    shapes = jax.tree.map(lambda a: a.shape, out)
    known = {"predicted": Prediction(x.shape, (2,)), "vector": x.shape, "potential": (2,)}
    kinds = [kind for kind, shape in known.items() if shapes == shape]
    if not kinds:
        raise UserError(
            f"net {config.net.name!r} gives {shapes} for 2 examples of shape {data.shape}: a field "
            "gives [B, *shape], an energy [B], or a fields.Prediction of both"
        )
    output, method = kinds[0], config_parts.loss_of(config, methods)
    _check_output(method, output)
    if config.rotation and (output != "potential" or math.prod(data.shape) % 2):
        raise UserError(
            "config.rotation turns a gradient in planes: set config.net.output='scalar'"
        )
    if config.energy == "none":
        return output
    choose("config.energy", config.energy, {"none": None, **ENERGIES})
    _check_energy(config, output, method, methods)
    return "energy"


def _check_output(method: registry.Loss, output: str) -> None:
    """Raises UserError if the loss cannot use what the network gives."""
    if output in method.outputs:
        return
    name, takes = method.name, {*method.outputs} - {"energy"}
    if takes == {"vector"}:
        raise UserError(
            f"{name} needs a network with a vector output: "
            "set config.net.output='vector' or leave out net.distance_head"
        )
    if takes == {"potential"}:
        raise UserError(f"{name} needs a scalar network: set config.net.output='scalar'")
    if output == "predicted":
        raise UserError(f"{name} trains no distance: leave out net.distance_head")
    raise UserError(
        f"{name} needs a distance: set config.net.output='scalar', or of networks that have one "
        "config.net.distance_head"
    )


def _check_energy(config, output: str, method: registry.Loss, methods: Methods) -> None:
    """Raises UserError unless the energy of a vector network can be trained."""
    if output != "vector":
        raise UserError(
            "config.energy makes an energy of a vector network: set config.net.output='vector' "
            "and leave out net.distance_head"
        )
    if "energy" not in method.outputs:
        able = [loss.name for loss in methods[registry.Loss].values() if "energy" in loss.outputs]
        raise UserError(f"config.energy is for {', '.join(able)}, not {method.name}")
    reason = config_parts.against_derivatives(config, methods)
    if reason:
        raise UserError(
            f"config.energy differentiates the network twice, which {reason} cannot have "
            "done: set config.energy='none', or change config.net"
        )


# Parts of an objective


def _make_source(data: Dataset) -> Callable:
    def source(key, n):
        key_source = jax.random.split(key, 3)[0]
        if data.draw_source is None:
            return jax.random.normal(key_source, (n, *data.shape), jnp.float32)
        return data.draw_source(key_source, n)

    return source


def _make_draw(config, data: Dataset, parts: Parts, source: Callable, group: int) -> Callable:
    extras, path = parts.method.extras, parts.path

    def draw(key, batch, train=True) -> Drawn:
        _, key_time, key_label = jax.random.split(key, 3)
        x1, x0 = to_unit(batch["x1"]), batch.get("x0")
        n, augmentation = x1.shape[0], None
        if config.augmentation and train:
            part = jax.random.fold_in(key, rng.AUGMENTATION)
            x1, augmentation = augment(
                part, x1, config.augmentation, center=config.augmentation_center
            )
        each = group if parts.method.shares_time else 1
        t = parts.times(key_time, n // each)
        t = t if each == 1 else jnp.repeat(t, each)
        if x0 is None:
            x0 = parts.couple(source(key, n), x1, rng.coupling_key(key), batch.get("label"))
        bridge = jax.random.fold_in(key, rng.BRIDGE)  # not split off: other noise stays as it was
        z = None if path.gamma is None else jax.random.normal(bridge, x1.shape, jnp.float32)
        sample = paths.interpolate(path, to_unit(x0), x1, t, z)
        cond = batch.get("label")
        if cond is not None and config.label_dropout > 0:
            drop = jax.random.bernoulli(key_label, config.label_dropout, (n,))
            cond = jnp.where(drop, data.num_classes, cond)
        keys = None
        if "key" in extras:
            keys = jax.random.split(jax.random.fold_in(key, rng.EXAMPLES), n)
        if augmentation is not None:
            cond = {"label": cond, "augmentation": augmentation}
        step = batch.get("step") if "step" in extras else None
        step = None if step is None else jnp.full((n,), step, jnp.int32)
        real = to_unit(batch["real"]) if "real" in extras else None
        given = batch.get("label"), keys, step, real, batch.get("real_label")
        return Drawn(parts.rematch(path, sample), cond, *given)

    return draw


def _make_field(
    config, apply: Callable, output: str, method: registry.Loss, clock: bool
) -> Callable:
    meaning = dict(teaches=method.teaches, clock=clock, name=method.name, output=output)
    meaning |= {name: config[name] for name in ("energy", "preconditioning")}
    meaning |= {name: config[name] for name in ("sigma_data", "rotation")}

    def field(params, key=None, train=False) -> Field:
        def network(x, t=None, cond=None):
            return apply(params["field"], x, t, cond, key=key, train=train)

        return trained_field(network, **meaning)

    return field


def _make_loss(config, data: Dataset, parts: Parts, field: Callable, methods: Methods) -> Callable:
    method = parts.method
    network = registry.choose("net", config.net.get("name"), methods[registry.Network])
    if "last_layer" in method.extras and network.last_layer is None:
        raise UserError(
            f"{method.name} weighs its players at the network's last layer, and net "
            f"{network.name!r} does not say where it lies: set config.net.name to another"
        )

    def loss(params, drawn: Drawn, key=None, train=False):
        last = None
        if "last_layer" in method.extras:
            last = _last_layer(params, network.last_layer, lambda p: field(p, key, train))
        extras = registry.Extras(
            key=drawn.key,
            roles={name: values for name, values in params.items() if name != "field"},
            label=drawn.label,
            null_class=data.num_classes,
            sigma_data=config.sigma_data,
            step=drawn.step,
            real=drawn.real,
            real_label=drawn.real_label,
            last_layer=last,
        )
        given = {name: getattr(extras, name) for name in method.extras}
        return parts.loss(field(params, key, train), drawn.sample, drawn.cond, **given)

    return loss


def _last_layer(params: dict, path: tuple[str, ...], field: Callable) -> tuple[Any, Callable]:
    """The last layer's weights, and the field as a function of them."""

    def changed(tree, path, value):
        head, *rest = path
        return tree | {head: changed(tree[head], rest, value) if rest else value}

    values = params["field"]
    for name in path:
        values = values[name]
    own = params["field"]
    return values, lambda w: field(params | {"field": changed(own, path, w)})
