"""From a configuration to what the program trains and samples: coupling . time . path . loss."""

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from genfield import couplings, losses, nets, paths, sampling
from genfield.data import Dataset, to_unit
from genfield.data.augment import NUM_LABELS, augment
from genfield.errors import UserError, bind, build, choose
from genfield.features.perceptual import perceptual
from genfield.fields import (
    ENERGIES,
    Field,
    Prediction,
    denoiser_field,
    negate,
    potential_field,
    precondition,
    rotated_gradient,
    score_field,
)
from genfield.guidance import classifier_free
from genfield.losses import adversarial
from genfield.nets.discriminator import projected

# What a loss teaches its field to be; samplers that need the other kind take the negative.
KIND = {
    "action_matching": "velocity",
    "flow_matching": "velocity",
    "velocity_flux_matching": "velocity",
    "equilibrium_matching": "gradient",
    "distance_marching": "gradient",
    "denoising": "denoiser",
    "lines_matching": "denoiser",
    "adversarial_lines_matching": "denoiser",
    "flux_matching": "score",
}
FOLLOWS = {
    **dict.fromkeys(("euler", "heun", *sampling.SOLVERS), "velocity"),
    **dict.fromkeys(("edm_heun", "edm_euler", "multistep"), "denoiser"),
    **dict.fromkeys(("reverse_ve", "predictor_corrector", "probability_flow"), "score"),
}  # the others follow a gradient
ADAPTIVE = {
    **dict.fromkeys(sampling.SOLVERS, sampling.solve_ode),
    "probability_flow": sampling.probability_flow,
}
POSITIONS = 64  # intervals at whose ends the trace of an adaptive sampler has positions
NOISY = ("langevin", "hamiltonian", "reverse_ve", "predictor_corrector")
NOISE_LEVELS = {**paths.NOISE_LEVELS, "schedule": sampling.schedule}
AT_LEVELS = ("denoiser", "score")  # fields of the noise level, on the variance-exploding path
SHARE_TIME = ("flux_matching", "velocity_flux_matching")  # one time a group
# What samplers need beyond a vector; HMC accepts by an energy whose gradient it follows.
NEEDS = {"sphere_tracing": ("predicted", "potential"), "hamiltonian": ("potential", "energy")}
SUPPLIED = ("field", "sample", "cond", *losses.OFFERED)
DISTANCES = {
    "squared_l2": lambda: losses.squared_l2,
    "l2": lambda: losses.l2,
    "perceptual": perceptual,
}
ADVERSARIES = {"projected": projected}
ADVERSARIAL = "adversarial_lines_matching"


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
    """

    draw: Callable
    source: Callable
    couple: Callable
    loss: Callable
    field: Callable
    output: str
    roles: Callable = lambda key: {}
    group_size: int = 1

    def __call__(self, key, params, batch, train=True):
        """Draws and evaluates: (loss [B], terms)."""
        drawn = self.draw(draw_key(key), batch, train)
        return self.loss(params, drawn, dropout_key(key), train)


def draw_key(key):
    """The part of a step's key that draws noise, times and label dropout."""
    return jax.random.fold_in(key, 0)


def dropout_key(key):
    """The part of a step's key that drives dropout inside the network."""
    return jax.random.fold_in(key, 1)


def coupling_key(key):
    """The part of a draw key that a coupling draws from; apart from what else it draws."""
    return jax.random.fold_in(key, 3)


def unit(x1):
    """Data as the network sees them: bytes become numbers in [-1, 1]."""
    return to_unit(x1) if x1.dtype == jnp.uint8 else x1


def _make_loss(config) -> Callable:
    """The named loss, with its nested sections built; all but `adversary`, which asks for data."""
    fields = dict(config.loss)
    fields.pop("adversary", None)
    if isinstance(fields.get("distance"), str):
        fields["distance"] = {"name": fields["distance"]}
    tables = {"decay": losses.DECAYS, "weight": losses.WEIGHTS, "distance": DISTANCES}
    for name, table in tables.items():
        if fields.get(name) is not None:
            fields[name] = build(f"loss.{name}", table, fields[name])
    if fields["name"] == "denoising":
        fields["sigma_data"] = config.sigma_data
    return bind("loss", losses.LOSSES, fields, SUPPLIED)


def _make_adversary(config, data: Dataset):
    """The discriminator of a section `loss.adversary`; None where the loss has none."""
    if config.loss.name != ADVERSARIAL:
        return None
    if config.data.get("real") is None:
        raise UserError(
            f"{ADVERSARIAL} needs real examples beside the pairs: set config.data.name='pairs' and "
            "config.data.real, such as \"{'name': 'images', 'path': …}\""
        )
    choose("loss.game", config.loss.get("game", "hinge"), adversarial.GAMES)
    for name in config.loss.get("policy", ()):
        choose("loss.policy", name, adversarial.AUGMENTATIONS)
    section = config.loss.get("adversary") or {"name": "projected"}
    classes = dict(shape=data.shape, num_classes=data.num_classes)
    return build("loss.adversary", ADVERSARIES, section, **classes)


def _check_augmentation(config) -> None:
    """Raises UserError where images would be augmented and the network not be told."""
    if not config.augmentation:
        return
    if config.net.get("augmentation_size", 0) != NUM_LABELS:
        raise UserError(
            "config.augmentation would leak into the samples: set config.net.name='ddpmpp' or "
            f"'ncsnpp' and config.net.augmentation_size={NUM_LABELS}, or config.augmentation=0"
        )
    if config.loss.name in SHARE_TIME or config.loss.get("stable_target"):
        raise UserError(
            "config.augmentation changes each image in its own way, and the targets of "
            "config.loss mix images: set config.augmentation=0"
        )
    if config.match_size > config.batch_size:
        raise UserError("config.augmentation changes images after they were matched: set it to 0")


def _check_output(loss: str, output) -> str:
    """What the network gives; raises UserError if the loss cannot use it."""
    if isinstance(output, Prediction):
        kind = "predicted"
    else:
        kind = "potential" if output.ndim == 1 else "vector"
    vectors = ("flow_matching", "velocity_flux_matching")
    if (loss in vectors or KIND[loss] == "denoiser") and kind != "vector":
        raise UserError(
            f"{loss} needs a network with a vector output: "
            "set config.net.output='vector' or leave out net.distance_head"
        )
    if loss == "flux_matching" and kind == "predicted":
        raise UserError("flux_matching trains no distance: leave out net.distance_head")
    if loss == "action_matching" and kind != "potential":
        raise UserError("action_matching needs a scalar network: set config.net.output='scalar'")
    if loss == "distance_marching" and kind == "vector":
        raise UserError(
            "distance_marching needs a distance: set config.net.output='scalar' (mlp) or "
            "config.net.distance_head='cifar' or 'imagenet' (unet, sit)"
        )
    if loss == "equilibrium_matching" and kind == "predicted":
        raise UserError("equilibrium_matching trains no distance: leave out net.distance_head")
    return kind


def _check_energy(config, output) -> None:
    """Raises UserError unless the energy of a vector network can be trained."""
    if isinstance(output, Prediction) or output.ndim == 1:
        raise UserError(
            "config.energy makes an energy of a vector network: set config.net.output='vector' "
            "and leave out net.distance_head"
        )
    if config.loss.name != "equilibrium_matching":
        raise UserError(f"config.energy is for equilibrium_matching, not {config.loss.name}")
    if config.net.get("attention", "xla") != "xla":
        raise UserError(
            "config.energy differentiates the network twice, which fused attention cannot do: "
            "set config.net.attention='xla'"
        )


def has_clock(section) -> bool:
    """Whether a loss section trains a field that depends on t, or on the noise level."""
    return section.get(
        "time_input", section.name not in ("equilibrium_matching", "distance_marching")
    )


def at_levels(config) -> bool:
    """Whether the field is one of noise levels, a denoiser or a score."""
    return choose("loss", config.loss.name, KIND) in AT_LEVELS


def check_names(config) -> None:
    """Raises UserError for unknown losses, samplers, couplings, …; before any data are read."""
    choose("net", config.net.get("name"), nets.NETS)
    _parts(config)
    create_sampler(config)


def create_coupling(config) -> Callable:
    """(x0, x1, key, label) -> x0 reordered, of the sections `coupling` and `match_size`.

    Match sets larger than a batch are the business of `genfield.matching`.
    """
    given = ("x0", "x1", "group_size", *couplings.OFFERED)
    couple = bind("coupling", couplings.COUPLINGS, config.coupling, given)
    known = inspect.signature(couple).parameters
    if config.match_size and "group_size" not in known:
        raise UserError("config.match_size needs a coupling: set config.coupling.name='greedy'")
    if 0 < config.match_size < config.batch_size:
        couple = functools.partial(couple, group_size=config.match_size)
    return couplings.with_offers(couple)


def _parts(config):
    """The loss, coupling, rematching, time distribution and path of a configuration."""
    path = choose("path", config.path, paths.PATHS)
    levels = config.path == "variance_exploding"
    if levels != at_levels(config):
        wanted = "linear" if levels else "variance_exploding"
        raise UserError(f"{config.loss.name} needs config.path={wanted!r}, not {config.path!r}")
    if levels and (config.path_noise or config.rematching.get("name") != "none"):
        raise UserError("config.path='variance_exploding' has no bridge and no rematching")
    _check_levels(config)
    _check_augmentation(config)
    if config.path_noise:
        if config.rematching.get("name") != "none":
            raise UserError("config.rematching moves targets, which path_noise=0 alone allows")
        path = paths.brownian_bridge(path, config.path_noise)
    if config.loss.name == "action_matching" and config.time.get("name") != "uniform":
        raise UserError("action_matching integrates over time: set config.time.name=uniform")
    return (
        _make_loss(config),
        create_coupling(config),
        bind("rematching", couplings.REMATCHINGS, config.rematching, ("path", "sample")),
        build("time", NOISE_LEVELS if levels else paths.TIMES, config.time),
        path,
    )


def _check_levels(config) -> None:
    """Raises UserError where sections that only fields of noise levels have are misused."""
    if config.preconditioning not in ("none", "edm"):
        choose("config.preconditioning", config.preconditioning, {"none": None, "edm": None})
    if not at_levels(config) and (config.preconditioning != "none" or config.rotation):
        raise UserError(
            f"config.preconditioning and config.rotation are for losses of noise levels, not "
            f"{config.loss.name}: set them to 'none' and 0"
        )
    if config.rotation and config.preconditioning != "none":
        raise UserError("config.rotation needs config.preconditioning='none'")
    twice = (*SHARE_TIME, ADVERSARIAL)
    if config.loss.name in twice and config.net.get("attention", "xla") != "xla":
        raise UserError(
            f"{config.loss.name} takes derivatives of the network inside the loss, which fused "
            "attention cannot have differentiated: set config.net.attention='xla'"
        )


def _coupled(config) -> int:
    """Examples that the loss couples; UserError where microbatches would cut through them."""
    if config.loss.name not in SHARE_TIME and not config.loss.get("stable_target"):
        return 1
    group, parts = config.loss.get("group_size") or config.batch_size, config.optimizer.accumulate
    if config.batch_size % (group * parts):
        raise UserError(
            f"config.loss couples {group} examples: set config.loss.group_size so that it divides "
            f"the {config.batch_size // parts} of a microbatch"
        )
    return group


def _field_at_levels(config, call: Callable, kind: str) -> Field:
    """The denoiser, or the field in the place of a score, of a network; called with σ."""
    if config.preconditioning == "edm":
        denoiser = precondition(call, config.sigma_data)
        return denoiser if KIND[config.loss.name] == "denoiser" else score_field(denoiser)
    at_level = lambda x, t=None, cond=None: call(x, None if t is None else jnp.log(t) / 4, cond)
    return rotated_gradient(at_level, config.rotation) if kind == "potential" else at_level


def create(config, data: Dataset, apply: Callable, abstract_params) -> Objective:
    """The objective of a configuration.

    Args:
      config: sections loss, coupling, rematching, time, path, label_dropout, net, and what fields
        of noise levels have.
      data: gives the shape of an example, the source and the number of classes.
      apply, abstract_params: what `nets.create(..., rngs=None)` returned.
    Raises:
      UserError: unknown names or fields, or a network that the loss cannot use.
    """
    loss_fn, couple, rematch, times, path = _parts(config)
    adversary = _make_adversary(config, data)
    null_class = data.num_classes
    by_class = config.coupling.get("within_classes") or config.coupling.get("class_penalty")
    if by_class and not data.num_classes:
        raise UserError("config.coupling matches by class: set config.data.labels=True")

    x = jax.ShapeDtypeStruct((2, *data.shape), jnp.float32)
    t = jax.ShapeDtypeStruct((2,), jnp.float32)
    output = jax.eval_shape(apply, abstract_params, x, t)
    kind, clock = _check_output(config.loss.name, output), has_clock(config.loss)
    if config.rotation and (kind != "potential" or math.prod(data.shape) % 2):
        raise UserError(
            "config.rotation turns a gradient in planes: set config.net.output='scalar'"
        )
    levels, takes = at_levels(config), set(inspect.signature(loss_fn).parameters)
    coupled = _coupled(config)
    if levels and data.draw_source is not None:
        raise UserError(f"{config.loss.name} adds normal noise: set config.data.source='normal'")
    energy = None
    if config.energy != "none":
        kind, energy = "energy", choose("config.energy", config.energy, {"none": None, **ENERGIES})
        _check_energy(config, output)

    def source(key, n):
        key_source = jax.random.split(key, 3)[0]
        if data.draw_source is None:
            return jax.random.normal(key_source, (n, *data.shape), jnp.float32)
        return data.draw_source(key_source, n)

    def draw(key, batch, train=True) -> Drawn:
        _, key_time, key_label = jax.random.split(key, 3)
        x1, x0 = unit(batch["x1"]), batch.get("x0")
        n, augmentation = x1.shape[0], None
        if config.augmentation and train:
            x1, augmentation = augment(jax.random.fold_in(key, 6), x1, config.augmentation)
        own = config.loss.name not in SHARE_TIME
        t = times(key_time, n) if own else jnp.repeat(times(key_time, n // coupled), coupled)
        if x0 is None:
            x0 = couple(source(key, n), x1, coupling_key(key), batch.get("label"))
        key_bridge = jax.random.fold_in(key, 4)  # not split off: other noise stays as it was
        z = None if path.gamma is None else jax.random.normal(key_bridge, x1.shape, jnp.float32)
        sample = paths.interpolate(path, x0, x1, t, z)
        cond = batch.get("label")
        if cond is not None and config.label_dropout > 0:
            drop = jax.random.bernoulli(key_label, config.label_dropout, (n,))
            cond = jnp.where(drop, null_class, cond)
        keys = jax.random.split(jax.random.fold_in(key, 5), n) if "key" in takes else None
        if augmentation is not None:
            cond = {"label": cond, "augmentation": augmentation}
        step = batch.get("step") if "step" in takes else None
        step = None if step is None else jnp.full((n,), step, jnp.int32)
        real = unit(batch["real"]) if "real" in takes else None
        given = batch.get("label"), keys, step, real, batch.get("real_label")
        return Drawn(rematch(path, sample), cond, *given)

    def field(params, key=None, train=False) -> Field:
        # A field trained without t is never shown one, whichever sampler follows it.
        def call(x, t=None, cond=None):
            return apply(params["field"], x, t if clock else None, cond, rngs=key, train=train)

        if levels:
            return _field_at_levels(config, call, kind)
        if energy is not None:
            return potential_field(energy(call))
        return potential_field(call) if kind == "potential" else call

    def last_layer(params, key, train):
        """The last layer's weights, and the field as a function of them."""
        own, name = params["field"], "kernel"
        changed = lambda w: own | {"last": own["last"] | {name: w}}
        return own["last"][name], lambda w: field(params | {"field": changed(w)}, key, train)

    def loss(params, drawn: Drawn, key=None, train=False):
        others = {name: values for name, values in params.items() if name != "field"}
        offers = {"key": drawn.key, "roles": others, "label": drawn.label, "null_class": null_class}
        offers |= {"step": drawn.step, "real": drawn.real, "real_label": drawn.real_label}
        if adversary is not None:
            offers |= {"adversary": adversary, "last_layer": last_layer(params, key, train)}
        offers = {name: value for name, value in offers.items() if name in takes}
        return loss_fn(field(params, key, train), drawn.sample, drawn.cond, **offers)

    options = {name: value for name, value in config.loss.items() if name != "name"}
    make_roles = losses.ROLES.get(config.loss.name, lambda key, **options: {})
    roles = functools.partial(make_roles, **options) if adversary is None else adversary.init
    output = "vector" if levels else kind
    return Objective(draw, source, couple, loss, field, output, roles, coupled)


def _sections(section) -> list:
    """A sampler section and those nested in its `then`."""
    return [] if section is None else [section, *_sections(section.get("then"))]


def _stages(section) -> list[tuple[str, Any, int]]:
    """A sampler section and the one nested in its `then`, and so on."""
    stages = []
    while section is not None:
        fields = dict(section)
        then, num_steps = fields.pop("then", None), fields.pop("num_steps", None)
        if fields.get("name") == "multistep":
            num_steps = len(fields.get("indices", (0,)))
        stop = fields.pop("stop", None)
        if num_steps is None or num_steps < 1:
            raise UserError(
                f"config.sampler {fields.get('name')!r} needs num_steps >= 1, got {num_steps}"
            )
        sampler = build("sampler", sampling.SAMPLERS, fields)
        if stop is not None:
            sampler = sampling.stopping(sampler, build("sampler.stop", sampling.RULES, stop))
        stages.append((fields["name"], sampler, num_steps))
        section = then
    return stages


def create_sampler(config, num_classes: int = 0, output: str = "potential") -> Callable:
    """run(key, field, x, cond=None, trace=None) -> Samples, of the section `sampler`.

    trace: as `sampling.sample` takes it; of adaptive samplers, whatever it is, POSITIONS intervals.
    `sampler.then` nests a further stage. The field is negated where the sampler follows the other
    kind, and guided where `sample.guidance_scale` is not 1 and labels are given.
    Args:
      output: of the objective.
    Raises:
      UserError: unknown sampler or field, a clocked sampler chained, an energy that is not there.
    """
    section, kind = config.sampler, choose("loss", config.loss.name, KIND)
    name = section.get("name")
    adaptive = name in ADAPTIVE
    if adaptive:
        supplied = ("field", "x", "cond", "trace", *["method"] * (name in sampling.SOLVERS))
        solve = bind("sampler", ADAPTIVE, section, supplied)
        if name in sampling.SOLVERS:
            solve = functools.partial(solve, method=name)
        stages = [(name, None, 0)]
    else:
        if name not in sampling.SAMPLERS:
            choose("sampler", name, {**sampling.SAMPLERS, **ADAPTIVE})
        stages = _stages(section)
    names = [stage[0] for stage in stages]
    wants = {FOLLOWS.get(n, "gradient") for n in names}
    if len(wants) > 1:
        raise UserError(f"config.sampler chains {', '.join(names)}: they follow different fields")
    for n in names:
        if output not in NEEDS.get(n, (output,)):
            other = "a config.net.distance_head" if "predicted" in NEEDS[n] else "config.energy"
            raise UserError(
                f"sampler {n!r} needs a network with an energy: config.net.output='scalar' or "
                f"{other}"
            )
    rules = [s["stop"]["name"] for s in _sections(section) if s.get("stop") is not None]
    if "rising_distance" in rules and output == "vector":
        raise UserError(
            "config.sampler.stop 'rising_distance' needs a network with a distance: set "
            "config.net.distance_head, or stop by 'gradient_norm'"
        )
    slots = config.sample.slots
    if slots and (len(stages) > 1 or adaptive or not stages[0][1].stops):
        raise UserError(
            "config.sample.slots needs one sampler whose samples stop: set sampler.stop"
        )
    if slots and names[0] in FOLLOWS:
        raise UserError(
            f"config.sample.slots: {names[0]!r} has a clock, so its samples end together"
        )
    convert = _conversion(config, kind, names[0], *wants)
    scale, null = config.sample.guidance_scale, num_classes

    def run(key, field, x, cond=None, trace=None):
        if cond is not None and scale != 1.0:
            field = classifier_free(field, scale, null, on=config.sample.guidance_on)
        field = convert(field)
        if adaptive:
            return solve(field, x, cond=cond, trace=None if trace is None else POSITIONS)
        plan = [(sampler, steps) for _, sampler, steps in stages]
        if slots and trace is None:
            [(sampler, steps)] = plan
            return sampling.refill(key, field, x, sampler, num_steps=steps, slots=slots, cond=cond)
        return sampling.chain(key, field, x, plan, cond=cond, trace=trace)

    return run


def check_deterministic(section) -> None:
    """Raises UserError if a sampler's section, or one nested in it, draws noise of its own."""
    for part in _sections(section):
        name = part.get("name")
        fresh = name == "multistep" and part.get("noise", "fresh") == "fresh"
        several = len(part.get("indices", (0,))) > 1
        if name in NOISY or part.get("churn") or (fresh and several):
            raise UserError(
                f"pairs need a deterministic sampler, and {name!r} draws noise of its own: set "
                "config.sampler.name to edm_heun, without churn, or to another ODE solver"
            )


def _conversion(config, kind: str, sampler: str, wanted: str) -> Callable:
    """From the field that was trained to the one a sampler follows; UserError if there is none."""
    if kind == wanted:
        return lambda field: field
    if kind in AT_LEVELS and wanted in AT_LEVELS:
        return score_field if wanted == "score" else denoiser_field
    if kind in AT_LEVELS and wanted == "gradient" and config.time.name == "fixed":
        level = config.time.level
        of = (lambda field: field) if kind == "score" else score_field

        def at_its_level(field):
            score = of(field)
            return lambda x, t=None, cond=None: -score(x, jnp.full(x.shape[:1], level), cond)

        return at_its_level
    if kind in AT_LEVELS or wanted in AT_LEVELS:
        known = [
            name for name, follows in FOLLOWS.items() if (follows in AT_LEVELS) == at_levels(config)
        ]
        raise UserError(
            f"sampler {sampler!r} does not follow a field of {config.loss.name}: set "
            f"config.sampler.name to one of {', '.join(sorted(known))}"
        )
    if wanted == "gradient" and has_clock(config.loss):
        raise UserError(f"sampler {sampler!r} has no clock, but the field was trained with one")
    return negate


def create_net(config, data: Dataset, key=None):
    """`nets.create` for this data: (apply, params), params abstract where key is None."""
    return nets.create(config.net, key, shape=data.shape, num_classes=data.num_classes)
