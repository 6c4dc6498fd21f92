"""A configuration made ready to run: mesh, data, network, objective, sampler, all checked."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import optax
from jax.sharding import Mesh

from genfield import data, registry, rng
from genfield.data import Dataset
from genfield.errors import UserError
from genfield.machine import checkpoint, logbook, loggers, sharding
from genfield.program import checks, config_io, objective, optimizer, parts, sampler, train_step
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


def prepare(config, workdir: Path, methods: Methods | None = None) -> Experiment:
    """Checks the whole configuration and builds what it names.

    Raises:
      UserError: anything in it that cannot work; before anything is compiled.
    """
    methods = methods or package()
    checks.check(config)
    checks.check_same_run(config, workdir, methods)
    check_names(config, methods)
    mesh = sharding.make_mesh(config.mesh)
    sharding.check_batch("config.batch_size", config.batch_size, mesh, config.optimizer.accumulate)
    optimizer.make_optimizer(config.optimizer, config.train.steps)  # its errors, before data
    ema_rate = optimizer.ema_rate(config.ema, config.batch_size)
    dataset = data.create(
        config.data,
        batch_size=config.batch_size,
        seed=config.seed,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        log=logbook.say,
        table=methods[registry.DataSource],
    )
    apply, abstract_params = objective.create_net(config, dataset, methods=methods)
    made = objective.create(config, dataset, apply, abstract_params, methods)
    run = sampler.create_sampler(config, dataset.num_classes, made.output, methods)
    key = rng.stream(config.seed, "init")
    roles = _role_optimizers(made, jax.eval_shape(made.roles, key))
    tx = optimizer.make_optimizer(config.optimizer, config.train.steps, roles)

    def init(key):
        params = {"field": objective.create_net(config, dataset, key, methods)[1]}
        params |= made.roles(jax.random.fold_in(key, 1))
        return train_step.create_state(params, tx, ema_rate > 0)

    abstract = jax.eval_shape(init, key)
    shardings = sharding.state_shardings(mesh, abstract, _stacked(config, methods))
    abstract = jax.tree.map(
        lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), abstract, shardings
    )
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
        init=_starter(config, workdir, jax.jit(init, out_shardings=shardings), key, abstract),
        methods=methods,
    )


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


def _stacked(config, methods: Methods) -> tuple[str, ...]:
    return methods[registry.Network][config.net.name].stack


def _starter(config, workdir: Path, init: Callable, key, abstract: TrainState) -> Callable:
    """() -> the state at step 0, from another run's parameters where the config says so."""
    if config.initial_parameters is None:
        return lambda: init(key)
    given = functools.cache(lambda: initial_parameters(config.initial_parameters, abstract.params))
    if not (workdir / "checkpoints").exists():  # else that run may be gone by now
        given()
    shardings = jax.tree.map(lambda a: a.sharding, abstract)
    return lambda: train_step.with_parameters(init(key), given(), shardings)


def initial_parameters(workdir: str, abstract: dict) -> dict:
    """The newest parameters of another run, as numpy arrays that fit this one, by role.

    What is not alike in both runs but the field is left out: a discriminator may join later.

    Raises:
      UserError: no checkpoint there, or of another network.
    """
    found = checkpoint.load(workdir)
    shapes = lambda tree: {k: v.shape for k, v in checkpoint.named_leaves(tree).items()}

    def differences(role: str) -> list[str]:
        here, there = ({role: tree[role]} for tree in (abstract, found))
        here, there = shapes(here), shapes(there)
        return [name for name in {**here, **there} if here.get(name) != there.get(name)]

    if wrong := differences("field"):
        raise UserError(
            f"config.initial_parameters {workdir} is of another network: it differs in {wrong[0]}; "
            "set config.net as that run has it"
        )
    return {role: found[role] for role in found if role in abstract and not differences(role)}


def open_metrics(exp: Experiment, step: int) -> logbook.Metrics:
    """metrics.jsonl of a run that begins or goes on at `step`, and the loggers that it asks for."""
    records = loggers.named(exp.config.train.loggers, exp.methods[registry.Logger])
    opened = loggers.Loggers(records, exp.workdir, config_io.to_dict(exp.config), step)
    return logbook.Metrics(exp.workdir, step, opened)


def draw_batch(experiment: Experiment) -> Callable | None:
    """key -> a global batch, for problems drawn on the device; None for data from files."""
    if experiment.data.draw is None:
        return None
    return lambda key: {"x1": experiment.data.draw(key, experiment.config.batch_size)}


def jit_train_step(experiment: Experiment) -> Callable:
    """The train step of an experiment, jitted on its mesh; the state is donated."""
    config, mesh = experiment.config, experiment.mesh
    step = train_step.make_train_step(
        experiment.objective,
        experiment.tx,
        rng.stream(config.seed, "train"),
        ema_rate=experiment.ema_rate,
        ema_ramp_up=config.ema.ramp_up,
        accumulate=config.optimizer.accumulate,
        draw_batch=draw_batch(experiment),
    )
    shardings = jax.tree.map(lambda a: a.sharding, experiment.abstract)
    return jax.jit(step, out_shardings=(shardings, sharding.replicated(mesh)), donate_argnums=0)
