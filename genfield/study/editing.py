"""What the editing studies share: examples and their labels, masks, samplers with their places."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from genfield import paths, registry, rng, sampling
from genfield.data import to_uint8
from genfield.data.decoding import DECODE_ERRORS, opened
from genfield.data.npz import read_npz
from genfield.errors import UserError
from genfield.fields import evaluations, expand
from genfield.guidance import held
from genfield.program import sampler as samplers
from genfield.reading import DAMAGE, npy, reason
from genfield.registry import choose
from genfield.sampling import Samples
from genfield.study.subject import Subject, heldout, images_elsewhere, on_batches, source
from genfield.study.subject import labels as labels_of_samples

ARRAYS = (".npy", ".npz")  # of which examples that are no images are read
PACED = 16  # samples a device whose way tells a pace
MASKS = ("left", "right", "top", "bottom", "center")


class Inputs(NamedTuple):
    """Examples [N, *D] as the network sees them, labels [N] or None, and these in words."""

    x1: np.ndarray
    labels: np.ndarray | None
    told: str


def inputs(
    subject: Subject, num: int, images: str | None, labels: tuple[str, ...], *, noise: bool = True
) -> Inputs:
    """The examples to edit: held out, or of one's own; under their own labels, or those given.

    Args:
      labels: by number or name, one for all or one an example. noise: whether noise is put to them.
    Raises:
      UserError: no such images or labels; noise where a run starts at examples of another kind.
    """
    exp = subject.exp
    if noise and exp.data.starts is not None:
        raise UserError(
            "this run starts at examples, not at noise: there is nothing between to start from"
        )
    if images is None:
        x1, own = heldout(exp, num)
    elif exp.pictures and (exp.data.pixels or Path(images).suffix not in ARRAYS):
        x1, own = images_elsewhere(exp, images, num, "--images", shuffle=False), None
    else:
        x1, own = _arrays(images, exp.data.shape)[:num], None
    if labels:
        return Inputs(x1, labels_of(exp, labels, len(x1)), "given")
    if own is not None or not exp.data.num_classes:
        return Inputs(x1, own, "none" if own is None else "the examples' own")
    if exp.config.label_dropout > 0:
        return Inputs(x1, np.full(len(x1), exp.data.num_classes, np.int32), "the null class")
    raise UserError("this run needs labels, and --images has none: give --labels=3, or one each")


def labels_of(exp, names: tuple[str, ...], num: int) -> np.ndarray:
    """Labels by number or by name as int32 [num]; one for all, or one each."""
    if not exp.data.num_classes:
        raise UserError("--labels are for a run with classes: this one has none")
    if len(names) not in (1, num):
        raise UserError(f"--labels names {len(names)}: give one, or one for each of {num} examples")
    known = {name: i for i, name in enumerate(exp.data.class_names)}
    known = {str(i): i for i in range(exp.data.num_classes)} | known
    chosen = [choose("class in --labels:", name, known) for name in names]
    return np.array(np.broadcast_to(np.array(chosen, np.int32), (num,)))


def _arrays(path: str, shape: tuple[int, ...]) -> np.ndarray:
    """Examples of no images: the first array [N, *shape] of an .npz, or an .npy."""
    place, complaint = Path(path).expanduser(), f"--images={path} is no .npz or .npy of numbers"
    stored = {"": npy(place)} if place.suffix == ".npy" else read_npz(place, complaint)
    try:
        x = np.asarray(next(iter(stored.values())), np.float32)
    except (*DAMAGE, StopIteration) as error:
        raise UserError(f"{complaint}: {reason(error)}") from error
    if x.shape[1:] != shape or not len(x) or not np.isfinite(x).all():
        raise UserError(f"--images={path} is {list(x.shape)}: expected finite [N, *{list(shape)}]")
    return x


def mask(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """What is painted anew, bool [*shape]: a half, the centre, or a file's white or true part.

    Of points and sequences, left is the first half of the numbers or places, right the last.
    """
    if name in MASKS:
        return _half(name, shape)
    path = Path(name).expanduser()
    if path.suffix not in (".png", ".npy"):
        known = ", ".join(MASKS)
        raise UserError(f"--mask={name} is none of {known}, nor a .png or .npy file")
    try:
        if path.suffix == ".npy":
            hidden = np.asarray(npy(path) != 0)
        else:
            with opened(path.read_bytes()) as image:
                hidden = np.asarray(image.convert("L")) > 127
    except DECODE_ERRORS as error:
        raise UserError(f"--mask={name} cannot be read: {error}") from error
    if hidden.shape == shape[:-1] and len(shape) > 1:
        hidden = np.broadcast_to(hidden[..., None], shape)
    if hidden.shape != shape:
        raise UserError(f"--mask={name} is {list(hidden.shape)}: an example is {list(shape)}")
    if hidden.all() or not hidden.any():
        what = "all" if hidden.all() else "nothing"
        raise UserError(f"--mask={name} hides {what}: white (or true) is what is painted anew")
    return np.array(hidden)


def _half(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A named part of an example."""
    hidden = np.zeros(shape, bool)
    if len(shape) < 3:
        if name not in ("left", "right"):
            raise UserError(f"--mask={name} is of images: choose left or right")
        if shape[0] < 2:
            raise UserError("an example of one number has no part to paint anew")
        middle = shape[0] // 2
        hidden[slice(0, middle) if name == "left" else slice(middle, None)] = True
        return hidden
    height, width = shape[:2]
    part = {
        "left": np.s_[:, : width // 2],
        "right": np.s_[:, width // 2 :],
        "top": np.s_[: height // 2],
        "bottom": np.s_[height // 2 :],
        "center": np.s_[height // 4 : -(height // 4), width // 4 : -(width // 4)],
    }
    hidden[part[name]] = True
    return hidden


class Editor(NamedTuple):
    """A run's sampler, and where it stands on its path.

    Attributes:
      chain, follow: of `program.sampler.create_chain`.
      path: from noise to data. times: its times, or noise levels, before each step and at the end;
        None where the sampler has no clock; of adaptive ones the first and the last alone.
      normal: whether the source is standard normal.
    """

    chain: list[samplers.Stage]
    follow: Callable
    path: paths.Path
    times: np.ndarray | None
    normal: bool

    @property
    def first(self) -> samplers.Stage:
        return self.chain[0]


def editor(subject: Subject, num_steps: int | None = None) -> Editor:
    """The sampler of a run, made ready for editing; `num_steps` in place of the config's."""
    exp, config = subject.exp, subject.exp.config.copy_and_resolve_references()
    if num_steps is not None:
        config.sampler.num_steps = num_steps
    sizes = exp.data.num_classes, exp.objective.output
    chain, follow = samplers.create_chain(config, *sizes, exp.methods)
    first, path = chain[0], paths.linear
    if len(chain) > 1 and any(stage.method.clock for stage in chain):
        raise UserError("a chain of samplers with clocks is not for editing: set config.sampler")
    times = None
    if first.method.levels is not None:
        steps = 1 if first.method.adaptive else first.num_steps
        times = np.asarray(first.method.levels(first.arguments, steps), np.float64)
        path = paths.variance_exploding
    elif first.method.clock:
        steps = 1 if first.method.adaptive else first.num_steps
        at = first.method.times
        times = np.linspace(0, 1, steps + 1) if at is None else at(first.arguments, steps)
        times = np.asarray(times, np.float64)
        path = exp.methods[registry.Path][exp.config.path].path
    normal = exp.data.draw_source is None and exp.data.starts is None
    return Editor(chain, follow, path, times, normal)


def running(subject: Subject, made: Editor, run: Callable) -> Callable:
    """over(params, *arrays) -> {"x", "nfe"} of run(keys, followed field, *arrays, cond) -> Samples.

    The last of the arrays are the labels, or None.
    """
    key = rng.stream(subject.seed, "sampler")

    def call(field, index, *arrays):
        *arrays, cond = arrays
        keys = rng.per_index(key, index, lambda k: k)
        out = run(keys, made.follow(field, cond), *arrays, cond)
        return {"x": out.x, "nfe": out.nfe}

    return on_batches(subject.exp, call)


def paced(subject: Subject) -> np.ndarray:
    """The `sampling.pace` of a run's sampler without a clock, on a few samples of its own."""
    exp, num = subject.exp, PACED * subject.exp.mesh.size

    def call(field, index, x, cond):
        keys = rng.per_index(rng.stream(subject.seed, "sampler"), index, lambda k: k)
        return exp.sampler(keys, field, x, cond, 1).trace

    trace = jax.jit(lambda params, *given: call(exp.objective.field(params), *given))
    cond = labels_of_samples(exp, num)
    return np.asarray(
        sampling.pace(trace(subject.params, jnp.arange(num), source(subject, num), cond))
    )


def inpainted(made: Editor, hidden: np.ndarray, resample: int, pace=None) -> Callable:
    """run(keys, field, noise, x1, cond) -> Samples that are x1 outside `hidden`.

    pace: of a sampler without a clock; None: the known part stands as it is.
    """
    free = jnp.asarray(hidden)[None]

    def run(keys, field, noise, x1, cond) -> Samples:
        if made.first.method.adaptive:
            return _inpainted_adaptively(made, free, field, noise, x1, cond)
        times, begin, stages = made.times if pace is None else pace, 0, []
        for stage in made.chain:
            end = begin + stage.num_steps
            keep = dict(path=made.path, resample=resample, noise=noise)
            keep["times"] = None if times is None else times[begin : end + 1]
            stages.append((sampling.inpaint(stage.sampler, x1, free, **keep), stage.num_steps))
            begin = end
        return sampling.chain(keys, field, noise, stages, cond=cond)

    return run


def _inpainted_adaptively(made: Editor, free, field, noise, x1, cond) -> Samples:
    """The same of a sampler that chooses its own steps: its field alone is held.

    It may take the samples one by one, each with its own of what is passed as its condition.
    """

    def follow(x, t=None, given=None):
        x1, noise, own = given
        at = lambda t: expand(made.path.alpha(t), x) * x1 + expand(made.path.sigma(t), x) * noise
        return held(field, at, free)(x, t, own)

    out = made.first.sampler(follow, noise, cond=(x1, noise, cond))
    return out._replace(x=jnp.where(free, out.x, x1), nfe=out.nfe * evaluations(field))


def partly(made: Editor, strength: float) -> tuple[Callable, Callable, dict[str, Any]]:
    """From how far to how: image-to-image of a strength in (0, 1].

    Returns:
      noised(x0, x1) -> where samples start; run(keys, field, start, cond) -> Samples; and what is
      told: the time or noise level, the steps taken.
    """
    first = made.first
    if made.times is None:  # no clock: from (1-s) x1 + s x0, all steps
        plan = [(stage.sampler, stage.num_steps) for stage in made.chain]
        mixed = lambda x0, x1: (1 - strength) * x1 + strength * x0 if strength < 1 else x0
        run = lambda keys, field, x, cond: sampling.chain(keys, field, x, plan, cond=cond)
        return mixed, run, {"steps": sum(steps for _, steps in plan)}
    if first.method.adaptive:
        return _partly_adaptively(made, strength)
    if first.rule is not None:
        raise UserError("a start on the way needs a sampler without config.sampler.stop")
    total = first.num_steps
    skip = total - max(1, round(strength * total))
    place = jnp.float32(made.times[skip])
    at = lambda x0, x1: made.path.alpha(place) * x1 + made.path.sigma(place) * x0
    rest = sampling.midway(first.sampler, skip, total)

    def run(keys, field, x, cond):  # a chain of one, whose keys are those of plain sampling
        return sampling.chain(keys, field, x, [(rest, total - skip)], cond=cond)

    name = "noise_level" if first.method.levels is not None else "time"
    noised = at if skip else lambda x0, x1: x0
    return noised, run, {name: float(place), "steps": total - skip}


def _partly_adaptively(made: Editor, strength: float) -> tuple[Callable, Callable, dict]:
    """`partly` of a sampler that chooses its own steps, by the argument that says where it starts.

    Of noise levels, strength is a share of the way in ln σ.
    """
    first, levels = made.first, made.first.method.levels is not None
    argument = "sigma_max" if levels else "t0"
    if argument not in first.arguments:
        raise UserError(
            f"sampler {first.method.name!r} has no argument {argument!r} to start elsewhere by"
        )
    begin, end = (float(t) for t in made.times)
    place = begin**strength * end ** (1 - strength) if levels else 1 - strength
    at = lambda x0, x1: (
        made.path.alpha(jnp.float32(place)) * x1 + (made.path.sigma(jnp.float32(place)) * x0)
    )

    def run(keys, field, x, cond):
        unit = place if levels and strength < 1 else 1.0
        return first.sampler(field, x / unit, cond=cond, **{argument: place})

    noised = at if strength < 1 else lambda x0, x1: x0
    return noised, run, {"noise_level" if levels else "time": place}


def check_invertible(made: Editor) -> None:
    """Raises UserError, with the reason, where a sampler cannot go back from data to noise."""
    first = made.first
    name, other = first.method.name, "edm_heun" if first.method.levels is not None else "heun"
    mend = f"set config.sampler, as --config.sampler=\"{{'name':'{other}','num_steps':50}}\""
    if first.method.noisy(first.arguments):
        raise UserError(
            f"sampler {name!r} draws noise of its own, so that no noise leads to a given example: "
            + mend
        )
    if made.times is None:
        raise UserError(
            f"sampler {name!r} has no clock: its descent ends at one point from many starts, and "
            f"cannot tell which: {mend} to integrate the field as a flow"
        )
    if first.method.steps is not None:
        raise UserError(f"sampler {name!r} jumps to the data, which are not the way back: {mend}")
    if first.rule is not None:
        raise UserError("samples that stop have no common end: leave out config.sampler.stop")


def kept(exp, x: np.ndarray) -> np.ndarray:
    """What an .npz holds of examples: images as uint8, as `--mode=sample` has them; else as is."""
    return to_uint8(x, exp.config.sample.rounding) if exp.data.pixels else x


def check_finite(x: np.ndarray) -> None:
    """Raises UserError where an edited example is NaN or infinite."""
    bad = int((~np.isfinite(x).reshape(len(x), -1).all(1)).sum())
    if bad:
        raise UserError(f"{bad} of {len(x)} results are NaN or infinite: lower the sampler's steps")


def distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Root of the mean squared difference of each example, [N, *D] -> [N]."""
    return np.sqrt(np.mean((a - b).reshape(len(a), -1) ** 2, axis=1))
