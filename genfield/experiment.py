"""A configuration made ready to run: mesh, data, network, objective, sampler, all checked."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import optax
from jax.sharding import Mesh

from genfield import checkpoint, configuration, data, logbook, objectives, rng, sharding, train
from genfield.data import Dataset
from genfield.errors import UserError
from genfield.objectives import Objective


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
    abstract: train.TrainState  # shapes and shardings
    init: Callable[[], train.TrainState]  # jitted, sharded: no host holds a whole model


def prepare(config, workdir: Path) -> Experiment:
    """Checks the whole configuration and builds what it names.

    Raises:
      UserError: anything in it that cannot work; before anything is compiled.
    """
    configuration.check_fields(config)
    configuration.check_numbers(config)
    configuration.check_same_run(config, workdir)
    objectives.check_names(config)
    mesh = sharding.make_mesh(config.mesh)
    sharding.check_batch("config.batch_size", config.batch_size, mesh, config.optimizer.accumulate)
    train.make_optimizer(config.optimizer, config.train.steps)  # its errors, before data are read
    ema_rate = train.ema_rate(config.ema, config.batch_size)
    dataset = data.create(
        config.data,
        batch_size=config.batch_size,
        seed=config.seed,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        log=logbook.say,
    )
    apply, abstract_params = objectives.create_net(config, dataset)
    objective = objectives.create(config, dataset, apply, abstract_params)
    sampler = objectives.create_sampler(config, dataset.num_classes, objective.output)

    key = rng.stream(config.seed, "init")
    roles = jax.eval_shape(objective.roles, key)
    tx = train.make_optimizer(config.optimizer, config.train.steps, roles)

    def init(key):
        params = {"field": objectives.create_net(config, dataset, key)[1]}
        params |= objective.roles(jax.random.fold_in(key, 1))
        return train.create_state(params, tx, ema_rate > 0)

    abstract = jax.eval_shape(init, key)
    shardings = sharding.state_shardings(mesh, abstract)
    abstract = jax.tree.map(
        lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), abstract, shardings
    )
    jitted = jax.jit(init, out_shardings=shardings)
    start = lambda: jitted(key)
    if config.initial_parameters is not None:
        given = functools.cache(
            lambda: initial_parameters(config.initial_parameters, abstract.params)
        )
        start = lambda: train.with_parameters(jitted(key), given(), shardings)
        if not (workdir / "checkpoints").exists():  # else that run may be gone by now
            given()
    return Experiment(
        config=config,
        workdir=workdir,
        mesh=mesh,
        data=dataset,
        objective=objective,
        sampler=sampler,
        tx=tx,
        ema_rate=ema_rate,
        abstract=abstract,
        init=start,
    )


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


def draw_batch(experiment: Experiment) -> Callable | None:
    """key -> a global batch, for problems drawn on the device; None for data from files."""
    if experiment.data.draw is None:
        return None
    return lambda key: {"x1": experiment.data.draw(key, experiment.config.batch_size)}


def jit_train_step(experiment: Experiment) -> Callable:
    """The train step of an experiment, jitted on its mesh; the state is donated."""
    config, mesh = experiment.config, experiment.mesh
    step = train.make_train_step(
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
