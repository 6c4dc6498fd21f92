"""The modes of the program: train, evaluate, sample."""

import time

import jax
import jax.numpy as jnp
import numpy as np

from genfield import configuration, figures, logbook, rng
from genfield import evaluate as evaluation
from genfield.errors import UserError, choose
from genfield.experiment import Experiment
from genfield.logbook import say
from genfield.loop import Loop, open_checkpoints, restore
from genfield.objectives import KIND, has_clock
from genfield.train import TrainState

GRID = 64  # images in a grid
TRACED = 2_000  # points of a scatter plot and its trajectories


def check(exp: Experiment) -> None:
    """Raises UserError for what the modes need and the config does not have."""
    evaluation.check_metrics(exp)
    config, data = exp.config, exp.data
    if config.sample.guidance_scale != 1 and not data.num_classes:
        raise UserError("config.sample.guidance_scale needs labels: set config.data.labels=True")
    batch = {"x1": jax.ShapeDtypeStruct((config.batch_size, *data.shape), jnp.float32)}
    key = rng.stream(config.seed, "check")
    try:
        drawn = jax.eval_shape(exp.objective.draw, key, batch)
    except ValueError as error:
        raise UserError(f"config.coupling, rematching or time: {error}") from error
    metric = config.checkpoint.best_metric
    if metric != "loss":
        _, terms = jax.eval_shape(exp.objective.loss, exp.abstract.params, drawn, key)
        choose("config.checkpoint.best_metric", metric, {"loss": None, **terms})


def write_config(exp: Experiment) -> None:
    """config.json: the resolved configuration; one that a continued run changed is kept beside."""
    path = exp.workdir / "config.json"
    new = configuration.to_dict(exp.config)
    if jax.process_index() == 0 and path.exists():
        old = configuration.to_dict(configuration.from_file(path))
        if old != new:
            count = len(list(exp.workdir.glob("config.before_*.json")))
            path.rename(exp.workdir / f"config.before_{count + 1}.json")
    logbook.write_json(path, new)


def train(exp: Experiment, **_) -> None:
    """Trains (or goes on), evaluates, draws the pictures, prints the table."""
    try:
        exp.workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot make --workdir {exp.workdir}: {error.strerror}; choose another folder"
        ) from error
    loop = Loop(exp)
    write_config(exp)
    loop.run()
    rate = loop.progress.rate(loop.step)
    results, pictures = finish(exp, loop.state, loop.step, loop.metrics, loop.last_eval[1])
    summary = {
        "metrics": results,
        "steps": loop.step,
        "wall_time_s": round(loop.wall_time(), 2),
        "examples_per_second": round(rate, 1),
        "device_kind": jax.devices()[0].device_kind,
        "device_count": jax.device_count(),
        "process_count": jax.process_count(),
        "versions": logbook.versions(),
        "seed": exp.config.seed,
    }
    logbook.write_json(exp.workdir / "summary.json", summary)
    loop.close()
    report(exp, results, pictures)
    say(f"{loop.step} steps in {logbook.duration(loop.wall_time())}")


def load_state(exp: Experiment, step: int | None, best: bool) -> tuple[TrainState, int]:
    """The state of a checkpoint: of `step`, the best, or the newest whole one."""
    checkpoints = open_checkpoints(exp)
    if best:
        step = checkpoints.best_step()
        if step is None:
            raise UserError(f"no checkpoint in {exp.workdir} has a held-out loss to be best in")
    found = restore(exp, checkpoints, step)
    if found is None:
        raise UserError(f"{exp.workdir} holds no finished checkpoint: train first")
    checkpoints.close()
    state, meta = found
    say(f"checkpoint of step {meta['step']}")
    return state, meta["step"]


def evaluate(exp: Experiment, *, step: int | None, best: bool) -> None:
    """The metrics, pictures and table of a checkpoint; rewrites nothing of the training."""
    state, step = load_state(exp, step, best)
    newest = max((row["step"] for row in logbook.read_metrics(exp.workdir)), default=step)
    metrics = logbook.Metrics(exp.workdir, newest)
    results, pictures = finish(exp, state, step, metrics)
    metrics.close()
    report(exp, results, pictures)


def report(exp: Experiment, results: dict, pictures: list) -> None:
    """The closing table and the paths of the pictures."""
    say("\n" + evaluation.table(results, exp.config.evaluate.paper))
    notes = [f"(W2 on {exp.config.evaluate.transport_points:,} points)"] if "w2" in results else []
    say("\n".join(notes + [f"picture: {path}" for path in pictures]))


def finish(
    exp: Experiment, state: TrainState, step: int, metrics: logbook.Metrics, known=None
) -> tuple[dict, list]:
    """Metrics and pictures of a state; `known` as `evaluate.evaluate` takes it."""
    poll = evaluation.poller(exp.config.train.steps + 1)
    started = time.monotonic()
    say("evaluating …")
    results = evaluation.evaluate(exp, state, poll, known)
    poll(0)
    metrics.write(step, "sample", results)
    pictures = draw(exp, state, step, poll) if exp.config.evaluate.figures else []
    say(f"evaluated in {logbook.duration(time.monotonic() - started)}")
    return results, pictures


def draw(exp: Experiment, state: TrainState, step: int, poll) -> list:
    """Pictures of a state: points get level sets and trajectories, images a grid."""
    params = evaluation.parameters(exp, state)
    folder = exp.workdir
    rows = logbook.read_metrics(folder)
    if len(exp.data.shape) != 1:
        out = evaluation.make_generator(exp)(params, GRID, exp.config.seed + 1, poll)
        if jax.process_index() != 0:
            return []
        scale = max(1, 64 // exp.data.shape[0])
        grid = figures.image_grid(folder / "samples" / f"step_{step}.png", out.x, scale=scale)
        return [grid, figures.curves(folder / "figures" / "loss.png", rows)]
    out = evaluation.make_generator(exp, trace=1)(params, TRACED, exp.config.seed + 1, poll)
    if jax.process_index() != 0:
        return []
    target = np.asarray(exp.data.draw(rng.stream(exp.config.seed + 1, "target"), 4000))
    kind, name = KIND[exp.config.loss.name], exp.config.loss.name.replace("_", " ")
    clock = has_clock(exp.config.loss)
    paths = [figures.curves(folder / "figures" / "loss.png", rows)]
    if exp.data.shape == (2,):
        field = jax.jit(exp.objective.field(params))
        paths.append(
            figures.level_sets(
                folder / "figures" / "level_sets.png",
                field,
                out.x,
                target,
                source_points(exp),
                descend=kind == "gradient",
                t=0.5 if clock else None,
                title=name,
            )
        )
        if out.trace is not None:
            path = folder / "figures" / "trajectories.png"
            paths.append(figures.trajectories(path, out.trace, title=name))
    return paths


def source_points(exp: Experiment, num: int = 2_000) -> np.ndarray:
    """Points of the source, for the extent of a picture."""
    key = rng.stream(exp.config.seed + 1, "source")
    if exp.data.draw_source is None:
        return np.asarray(jax.random.normal(key, (num, *exp.data.shape)))
    return np.asarray(exp.data.draw_source(key, num))


def sample(exp: Experiment, *, step: int | None, best: bool) -> None:
    """Draws `sample.num` samples of a checkpoint into samples/: an array, and a picture."""
    from genfield.data import to_uint8

    state, step = load_state(exp, step, best)
    config = exp.config
    num, params = config.sample.num, evaluation.parameters(exp, state)
    progress, poll = logbook.Progress("sample", num), evaluation.poller()

    def on_batch(done: int) -> None:
        progress.update(done)
        poll(done)

    say("compiling the sampler …")
    out = evaluation.make_generator(exp)(params, num, config.seed + 1, on_batch)
    if jax.process_index() != 0:
        return
    folder = exp.workdir / "samples"
    folder.mkdir(exist_ok=True)
    images = len(exp.data.shape) == 3
    arrays = {"samples": np.asarray(to_uint8(out.x)) if images else out.x, "nfe": out.nfe}
    if exp.data.num_classes:
        arrays["label"] = np.arange(num) % exp.data.num_classes
    path = folder / f"step_{step}.npz"
    np.savez(path, **arrays)
    say(f"samples: {path}  {num} of shape {exp.data.shape}, {out.nfe.mean():.1f} evaluations each")
    if images:
        scale = max(1, 64 // exp.data.shape[0])
        grid = figures.image_grid(folder / f"step_{step}.png", out.x[:GRID], scale=scale)
        say(f"picture: {grid}")
