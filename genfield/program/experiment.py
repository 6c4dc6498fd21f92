"""A configuration made ready to run: mesh, data, network, objective, sampler, all checked."""

import contextlib
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from genfield import data, placement, registry, rng
from genfield.data import Dataset, recorded
from genfield.data.pipeline import Latents
from genfield.errors import UserError, local
from genfield.machine import checkpoint, logbook, loggers, processes, sharding, sums
from genfield.machine import fixed as fixed_arrays
from genfield.pretrained.loading import Pretrained
from genfield.program import (
    checks,
    config_io,
    objective,
    optimizer,
    own_files,
    parts,
    sampler,
    train_step,
)
from genfield.program import weights as of_weights
from genfield.program.decoder import Decoder, create_decoder, open_weights
from genfield.program.methods import package
from genfield.program.objective import Objective
from genfield.program.train_step import TrainState
from genfield.registry import Methods, choose


class Experiment(NamedTuple):
    """Everything that training, evaluation and sampling share; nothing here is compiled yet."""

    config: Any
    workdir: Path
    mesh: Mesh
    data: Dataset
    objective: Objective
    sampler: Callable
    tx: optax.GradientTransformation
    ema_rate: float
    abstract: TrainState  # shapes and shardings
    init: Callable[[], TrainState]  # jitted, sharded: no host holds a whole model
    methods: Methods  # the package's and the config's own
    fixed: dict[tuple[str, ...], np.ndarray]  # parameters that stay as they start, by their paths
    decoder: Decoder | None = None  # of latents, where the config names an autoencoder
    weights: Pretrained | None = None  # in the place of a checkpoint

    @property
    def pictures(self) -> bool:
        """Whether samples are images, or are decoded where images are wanted."""
        return bool(self.data.pixels) or self.decoder is not None


def prepare(
    config,
    workdir: Path,
    methods: Methods | None = None,
    *,
    reads_data: bool = True,
    decodes: bool = True,
    weights: Pretrained | None = None,
    dataset: Dataset | None = None,
    devices: list | None = None,
) -> Experiment:
    """Checks the whole configuration and builds what it names.

    Args:
      reads_data: whether the data are opened now; otherwise, where the workdir knows what they are,
        only when something reads them.
      decodes: whether the autoencoder is, where there is one; otherwise when something decodes.
      weights: in the place of a checkpoint; then data that the config does not place are known by
        what the weights say.
      dataset: stands for the config's own. devices: of the mesh; None: all that there are.
    Raises:
      UserError: anything in it that cannot work; before anything is compiled.
    """
    methods = methods or package()
    checks.check(config)
    checks.check_same_run(config, workdir, methods)
    check_names(config, methods)
    mesh = sharding.make_mesh(config.mesh, devices)
    sharding.check_batch("config.batch_size", config.batch_size, mesh, config.optimizer.accumulate)
    optimizer.make_optimizer(config.optimizer, config.train.steps)  # its errors, before data
    ema_rate = optimizer.ema_rate(config.ema, config.batch_size)
    decoding = open_weights(config) if decodes and config.autoencoder else None
    known = None if weights is None else of_weights.known_of(weights, config, methods)
    if dataset is None:
        now = reads_data or weights is not None
        dataset = open_data(config, workdir, mesh, methods, now, known)
    decoder = create_decoder(config, dataset, mesh, decoding)
    net = functools.partial(objective.create_net, config, dataset, methods=methods)
    apply, abstract_params = net()
    summed = None if config.mesh.reduce_dtype == "compute" else jnp.dtype(config.mesh.reduce_dtype)
    apply = placement.on(mesh, apply, summed)
    made = objective.create(config, dataset, apply, abstract_params, methods)
    if weights is not None:
        of_weights.check_data(weights, dataset)
        of_weights.check(weights, config, made, {"field": abstract_params})
    run = sampler.create_sampler(config, dataset.num_classes, made.output, methods)
    sampler.check_source(run.stages, dataset, methods)
    key = rng.stream(config.seed, "init")
    abstract, init, tx, given = _training(config, mesh, key, net, made, methods)
    return Experiment(
        config=config,
        workdir=workdir,
        mesh=mesh,
        data=dataset,
        objective=made,
        sampler=run,
        tx=tx,
        ema_rate=ema_rate,
        abstract=abstract,
        init=_starter(
            config,
            workdir,
            init,
            key,
            functools.partial(initial_parameters, config, abstract.params, dataset, methods),
        ),
        methods=methods,
        fixed=given,
        decoder=decoder,
        weights=weights,
    )


def _training(
    config, mesh: Mesh, key, net: Callable, made: Objective, methods: Methods
) -> tuple[TrainState, Callable, optax.GradientTransformation, dict]:
    """The state's shapes and places, what makes it of a key, its optimiser, its fixed arrays.

    net: key, or none for shapes alone -> apply and parameters.
    """
    roles = _role_optimizers(made, jax.eval_shape(made.roles, key))
    record = methods[registry.Network][config.net.name]
    given = fixed_arrays.values(record.fixed, net()[1])
    given = {("field", *path): array for path, array in given.items()}
    tx = optimizer.make_optimizer(config.optimizer, config.train.steps, roles, given)
    averages = optimizer.ema_rate(config.ema, config.batch_size) > 0

    def init(key):
        params = {"field": net(key)[1]}
        params |= made.roles(jax.random.fold_in(key, 1))
        return train_step.create_state(params, tx, averages)

    abstract, shardings = _placed(mesh, jax.eval_shape(init, key), _stacked(config, methods))
    return abstract, jax.jit(init, out_shardings=shardings), tx, given


def open_data(
    config, workdir: Path, mesh: Mesh, methods: Methods, now: bool, known: dict | None = None
) -> Dataset:
    """The data of a config; unless `now`, by what the run recorded of them, where it did.

    known: facts that are recorded elsewhere.
    Raises:
      UserError: data that cannot be had; those that are opened later, when they are.
    """

    def create() -> Dataset:
        return data.create(
            config.data,
            batch_size=config.batch_size,
            seed=config.seed,
            rows=sharding.local_rows(mesh, config.batch_size),
            log=logbook.say,
            table=methods[registry.DataSource],
        )

    def create_later() -> Dataset:
        try:
            return create()
        except UserError as error:
            places = [n for n in checks.file_places(config, methods) if n.startswith("data.")]
            flags = " or ".join(f"--config.{name}=…" for name in places) or "--config.data.…"
            raise UserError(
                f"this reads the data of the run, which are not there: {error}. Say where they are "
                f"now by {flags}, or in {workdir / 'config.json'}"
            ) from error

    source = choose("data", config.data.get("name"), methods[registry.DataSource])
    if known is None and not (now or source.drawn):
        known = recorded.read(workdir)
    found = create() if known is None else recorded.dataset(known, create_later, config.seed)
    if source.holds != "latents" or found.latents is not None:
        return found
    fields = registry.bound(source, config.data)  # of an older record, or a source of one's own
    return found._replace(latents=Latents(fields.get("scale", 1.0), fields.get("shift", 0.0)))


def check_names(config, methods: Methods) -> None:
    """Raises UserError for unknown losses, samplers, couplings, …; before any data are read."""
    choose("net", config.net.get("name"), methods[registry.Network])
    loggers.named(config.train.loggers, methods[registry.Logger])
    parts.create(config, methods)
    sampler.create_sampler(config, methods=methods)


def _role_optimizers(made: Objective, roles: dict) -> dict:
    """role -> its optimiser, for the roles that are there."""
    known = {} if made.method.roles is None else made.method.roles.optimizers
    return {role: choose(f"optimizer of {made.method.name} for", role, known) for role in roles}


def _placed(mesh: Mesh, abstract: TrainState, stacks: tuple[str, ...]) -> tuple[TrainState, Any]:
    """Shapes with their shardings, and the shardings alone."""
    shardings = sharding.state_shardings(mesh, abstract, stacks)
    place = lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s)
    return jax.tree.map(place, abstract, shardings), shardings


def _stacked(config, methods: Methods) -> tuple[str, ...]:
    return methods[registry.Network][config.net.name].stack


def _starter(config, workdir: Path, init: Callable, key, given: Callable) -> Callable:
    """() -> the state at step 0, from another run's parameters where the config says so."""
    if config.initial_parameters is None:
        return lambda: init(key)
    given = functools.cache(given)
    if not (workdir / "checkpoints").exists():  # else that run may be gone by now
        given()
    return lambda: train_step.with_parameters(init(key), given())


def initial_parameters(
    config, abstract: dict, dataset: Dataset, methods: Methods
) -> dict[str, np.ndarray]:
    """The newest parameters of another run, or those of a file, by their paths, as far as they fit.

    Left out, and named in a line: rows of labels, where there are another number of classes or
    none, and whole roles beside the field that are not alike: a discriminator may join later.

    Raises:
      UserError: no checkpoint there, or of another network.
    """
    place = config.initial_parameters
    is_file = of_weights.is_file(place, "config.initial_parameters")
    if not is_file and not local(place, "config.initial_parameters").exists():
        raise UserError(
            f"config.initial_parameters {place} is not there: name a workdir that has a "
            "checkpoint, a file of weights, or a model of the zoo (docs/zoo.md)"
        )
    given = of_weights.parameters(config, methods) if is_file else checkpoint.load(place)
    here, there = (checkpoint.named_leaves(tree) for tree in (abstract, given))
    shape = lambda tree, name: tree[name].shape if name in tree else "nothing"
    differ = [name for name in {**here, **there} if shape(here, name) != shape(there, name)]
    record = methods[registry.Network][config.net.name]
    older = {"/".join(("field", *path)) for path in record.fixed} - {*there}
    differ = [name for name in differ if name not in older]
    labels = _label_rows(config, dataset, methods) if differ else set()
    wrong = [name for name in differ if name.startswith("field/") and name not in labels]
    if wrong:
        name = wrong[0]
        raise UserError(
            f"config.initial_parameters {place} is of another network or other data: {name} is "
            f"{shape(there, name)} there and {shape(here, name)} here; set config.net as it is "
            "there, and data of the same shape"
        )
    roles = {name.split("/")[0] for name in differ} - {"field"}
    left = sorted({*(roles & {n.split("/")[0] for n in here}), *(n for n in differ if n in labels)})
    if left:
        logbook.say(f"initial_parameters {place}: all but {', '.join(left)}, which start anew")
    fits = lambda name: name in here and name not in differ and name.split("/")[0] not in roles
    fitting = {name: value for name, value in there.items() if fits(name)}
    bad = [name for name, value in fitting.items() if not np.isfinite(value).all()]
    if bad:
        raise UserError(
            f"config.initial_parameters {place}: {bad[0]} holds NaN or infinity; name another run "
            "or file"
        )
    return fitting


def _label_rows(config, dataset: Dataset, methods: Methods) -> set[str]:
    """The field's parameters, by their paths, whose shape hangs on the number of classes."""
    found = []
    for classes in (0, 2, 3):
        sized = dataset._replace(num_classes=classes)
        with contextlib.suppress(UserError):  # a network that takes no labels
            _, params = objective.create_net(config, sized, None, methods)
            leaves = checkpoint.named_leaves({"field": params}).items()
            found.append({name: leaf.shape for name, leaf in leaves})
    names = {name for shapes in found for name in shapes}
    return {name for name in names if len({shapes.get(name) for shapes in found}) > 1}


def write_config(exp: Experiment) -> None:
    """config.json: the resolved configuration; one that a continued run changed is kept beside.

    And what is known of the data, where they are read and not drawn.
    """
    path = exp.workdir / "config.json"
    sums.tell(exp.workdir)
    sums.forget(exp.workdir)
    new = config_io.to_dict(checks.absolute(exp.config, exp.methods))
    with processes.together():
        if jax.process_index() == 0 and path.exists():
            if config_io.to_dict(config_io.from_file(path)) != new:
                logbook.keep_older(path, "differs from this configuration")
        logbook.write_json(path, new)
        if exp.data.draw is None and exp.weights is None:
            logbook.write_json(exp.workdir / recorded.FILE, recorded.facts(exp.data))
        own_files.keep(exp.workdir, exp.methods)


def open_metrics(exp: Experiment, step: int, saved: dict | None = None) -> logbook.Metrics:
    """metrics.jsonl of a run that begins or goes on at `step`, and the loggers that it asks for.

    saved: as `logbook.Metrics` has it.
    """
    records = loggers.named(exp.config.train.loggers, exp.methods[registry.Logger])
    opened = loggers.Loggers(records, exp.workdir, config_io.to_dict(exp.config), step)
    return logbook.Metrics(exp.workdir, step, opened, saved)


def draw_batch(experiment: Experiment) -> Callable | None:
    """key -> a global batch, for problems drawn on the device; None for data from files."""
    if experiment.data.draw is None:
        return None
    return lambda key: {"x1": experiment.data.draw(key, experiment.config.batch_size)}


def jit_train_step(experiment: Experiment) -> Callable:
    """The train step of an experiment, jitted on its mesh; the state is donated."""
    step = train_step.make_train_step(
        *parts_of_step(experiment),
        steep=optimizer.steep(experiment.config.optimizer),
        **options_of_step(experiment),
    )
    shardings = jax.tree.map(lambda a: a.sharding, experiment.abstract)
    places = (shardings, sharding.replicated(experiment.mesh))
    return jax.jit(step, out_shardings=places, donate_argnums=0)


def parts_of_step(experiment: Experiment) -> tuple:
    """The objective, the optimiser and the key of the steps, as `train_step` takes them."""
    key = rng.stream(experiment.config.seed, "train")
    return experiment.objective, experiment.tx, key


def options_of_step(experiment: Experiment) -> dict:
    """What `train_step.make_attempt` takes beside them."""
    config = experiment.config
    return dict(
        ema_rate=experiment.ema_rate,
        ema_ramp_up=config.ema.ramp_up,
        ema_warmup=config.ema.warmup,
        accumulate=config.optimizer.accumulate,
        draw_batch=draw_batch(experiment),
        fixed=tuple(experiment.fixed),
    )
