"""The trained run behind the page: its field at points and on a grid, and its samples.

One computation at a time, each within bounds of numbers and of time.
"""

import contextlib
import functools
import math
import threading
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from contourpy import contour_generator
from matplotlib.ticker import MaxNLocator

from genfield import rng
from genfield.data import to_unit
from genfield.errors import UserError
from genfield.fields import Prediction
from genfield.look import asked, choices
from genfield.look.asked import number
from genfield.look.programs import Program, sized
from genfield.program import evaluate, generate, pictures
from genfield.program.open_run import Run
from genfield.program.parts import one_level
from genfield.sampling.diffusion import SIGMA_MAX, SIGMA_MIN

SECONDS = 30.0  # that one computation may take
WAITING = 20.0  # seconds that one waits for another
POINTS, IMAGES = 512, 16  # samples at a time
STEPS = 2_000  # of a sampler's stage
SIZES = 1e-7, 1e4  # of a step
SCALES = 0.0, 20.0  # of guidance
SEEDS = 2**31 - 1
GRID, ARROWS, LEVELS = 81, 4, 12  # points a side; every so many has an arrow; level sets
TARGET = 800  # points of the data that are shown
PROGRAMS = 24  # compiled samplers that are kept
BATCHES = 1, 16, 64, 256, 512  # in the plane a sampler is compiled for so many samples


class Busy(UserError):
    """Another computation is running."""


class Subject:
    """A run, opened; what it computes may be asked from several threads.

    Args:
      lock: a threading.Lock that is held while it computes; None: its own.
    """

    def __init__(self, run: Run, lock: Any = None):
        self.run, self.exp = run, run.experiment
        self._lock, self._programs = lock or threading.Lock(), OrderedDict()
        self.plane = self.exp.data.shape == (2,)
        exp = self.exp
        self._at = jax.jit(lambda params, *at: exp.objective.field(params)(*at))

    @contextlib.contextmanager
    def computing(self) -> Iterator[None]:
        """One computation at a time; raises Busy after a while."""
        if not self._lock.acquire(timeout=WAITING):
            raise Busy("another computation is running: try again in a moment")
        try:
            yield
        finally:
            self._lock.release()

    # What the page is told once

    @functools.cached_property
    def facts(self) -> dict:
        """What the page must know of the run, as JSON has it; a few evaluations of the field."""
        exp, method = self.exp, self.exp.objective.method
        drawable = self.plane or exp.pictures
        return asked.plain(
            {
                "method": method.name,
                "teaches": method.teaches,
                "scalar": self._scalar,
                "data": exp.config.data.name,
                "shape": exp.data.shape,
                "plane": self.plane,
                "images": exp.pictures and not self.plane,
                "classes": self._classes(),
                "clock": self._clock() if self.plane and exp.objective.clock else None,
                "guidance": exp.config.sample.guidance_scale if self._guided else None,
                "samplers": self._samplers() if drawable else [],
                "bounds": {"steps": STEPS, "points": POINTS, "images": IMAGES},
                "seed": exp.config.seed + exp.config.sample.seed,
                "extent": self._extent if self.plane else None,
                "target": self._target.astype(float).round(4) if self.plane else None,
            }
        )

    @property
    def _scalar(self) -> str | None:
        """What the field's scalar is; None where it has none."""
        exp = self.exp
        return None if exp.objective.output == "vector" else exp.objective.method.scalar

    @property
    def _guided(self) -> bool:
        """Whether the network learned to go without a label, as guidance needs."""
        return bool(self.exp.data.num_classes) and self.exp.config.label_dropout > 0

    def _classes(self) -> list[str]:
        names = list(self.exp.data.class_names)
        return names if len(names) == self.exp.data.num_classes else []

    def _clock(self) -> dict:
        """The times, or noise levels, of the field, and the one that is shown first."""
        exp, method = self.exp, self.exp.objective.method
        if not method.at_levels:
            return {"name": "time", "low": 0.0, "high": 1.0, "start": 0.5}
        level = one_level(exp.config, exp.methods)
        if level is not None:
            return {"name": "noise level", "low": level, "high": level, "start": level}
        first = exp.sampler.stages[0]
        levels = np.array((SIGMA_MIN, SIGMA_MAX))
        if first.method.levels is not None:
            levels = np.asarray(first.method.levels(first.arguments, first.num_steps), float)
        low, high = levels[levels > 0].min(), levels.max()
        return {"name": "noise level", "low": low, "high": high, "start": math.sqrt(low * high)}

    @functools.cached_property
    def _choices(self) -> dict[str, choices.Choice]:
        return choices.suitable(self.exp, self._step_size)

    def _samplers(self) -> list[dict]:
        found = self._choices.values()
        return [{"name": c.name, "stages": choices.sliders(self.exp, c)} for c in found]

    def _step_size(self) -> float:
        """Steps with which `choices.STEPS` of them go about as far as the noise is long."""
        x = self._noise(0, np.arange(256))
        output = self._evaluate(
            x, self._clock()["start"] if self.exp.objective.clock else None, None
        )
        norm = lambda a: np.linalg.norm(np.asarray(a).reshape(len(a), -1), axis=1).mean()
        vector = output.direction if isinstance(output, Prediction) else output
        size = norm(x) / max(norm(vector), 1e-6) / choices.STEPS
        return float(f"{np.clip(size, *SIZES):.1g}")

    @functools.cached_property
    def _target(self) -> np.ndarray:
        """Points of the data; none where the data are not there."""
        try:
            return evaluate.target_points(self.exp, self.exp.config.seed + 1, TARGET)
        except UserError:
            return np.zeros((0, 2), np.float32)

    @functools.cached_property
    def _extent(self) -> list[float]:
        """A square that holds the source and the data: x from, to, y from, to."""
        points = np.concatenate([pictures.source_points(self.exp), self._target])
        low, high = points.min(0), points.max(0)
        middle, half = (low + high) / 2, 0.54 * (high - low).max()
        return [middle[0] - half, middle[0] + half, middle[1] - half, middle[1] + half]

    # The field

    def _label(self, label: int | None) -> int | None:
        """The label of the field where none is asked for: that of no class, or the first."""
        if not self.exp.data.num_classes:
            return None
        if label is not None:
            return label
        return self.exp.data.num_classes if self._guided else 0

    def _evaluate(self, x: np.ndarray, t: float | None, label: int | None):
        """The run's field at points [N, *D], on the host."""
        n, label = len(x), self._label(label)
        time = None if t is None else np.full(n, t, np.float32)
        cond = None if label is None else np.full(n, label, np.int32)
        count = -(-n // self.exp.mesh.size) * self.exp.mesh.size
        fill = lambda a: None if a is None else np.resize(a, (count, *a.shape[1:]))
        out = self._at(self.run.params, fill(x), fill(time), fill(cond))
        return jax.tree.map(lambda a: np.asarray(a)[:n], out)

    def _moves(self, x, output):
        """Where samples move along a field: against a gradient, along others."""
        vector = output.direction if isinstance(output, Prediction) else output
        teaches = self.exp.objective.method.teaches
        if teaches == "denoiser":
            return vector - x
        return -vector if teaches == "gradient" else vector

    def _time(self, t: Any) -> float | None:
        if not self.exp.objective.clock:
            return None
        clock = self._clock()
        return number(clock["start"] if t is None else t, "t", clock["low"], clock["high"])

    def field(self, request: dict) -> dict:
        """The field at points: {"points", "t", "label"} -> its output, and where samples move."""
        request = asked.fields(request, "points", "t", "label")
        self.check_plane()
        points = asked.points(request.get("points"), "points", POINTS)
        x, t = np.asarray(points, np.float32), self._time(request.get("t"))
        label = self._asked_label(request.get("label"))
        with self.computing():
            output = self._evaluate(x, t, label)
        scalar = output.distance if isinstance(output, Prediction) else None
        vector = output.direction if isinstance(output, Prediction) else output
        return asked.plain({"field": vector, "moves": self._moves(x, output), "scalar": scalar})

    def levels(self, request: dict) -> dict:
        """The field on a grid: {"t", "label"} -> values, level sets and arrows."""
        request = asked.fields(request, "t", "label")
        self.check_plane()
        t, label = self._time(request.get("t")), self._asked_label(request.get("label"))
        left, right, below, above = self._extent
        xs, ys = np.linspace(left, right, GRID), np.linspace(below, above, GRID)
        x = np.stack(np.meshgrid(xs, ys), -1).reshape(-1, 2).astype(np.float32)
        with self.computing():
            output = self._evaluate(x, t, label)
        moves = np.asarray(self._moves(x, output))
        whole = isinstance(output, Prediction)
        value = (output.distance if whole else np.linalg.norm(moves, axis=1)).reshape(GRID, GRID)
        arrows = np.concatenate([x, moves], 1).reshape(GRID, GRID, 4)[::ARROWS, ::ARROWS]
        return asked.plain(
            {
                "value": np.asarray(value, float).round(4),
                "what": (self._scalar or "scalar") if whole else "speed",
                "levels": _level_sets(xs, ys, value),
                "arrows": arrows.reshape(-1, 4).astype(float).round(4),
            }
        )

    def check_plane(self) -> None:
        """Raises UserError unless the run is one in the plane."""
        if not self.plane:
            raise UserError("the field is shown of runs in the plane alone")

    def _asked_label(self, label: Any) -> int | None:
        classes = self.exp.data.num_classes
        if label is None or not classes:
            return None
        return number(label, "label", 0, classes - (not self._guided), whole=True)

    # Samples

    def _noise(self, seed: int, index: np.ndarray) -> np.ndarray:
        """Where samples of these indices start, as `--mode=sample` has it."""
        starts = self.exp.data.starts
        if starts is not None:
            return to_unit(starts.gather(index % starts.size)["x0"])
        draw, shape = self.exp.data.draw_source, self.exp.data.shape
        one = (lambda k: jax.random.normal(k, shape)) if draw is None else lambda k: draw(k, 1)[0]
        return np.asarray(rng.per_index(rng.stream(seed, "start"), index, one))

    def _program(self, name: str, section: dict, guidance: float) -> Program:
        """The compiled sampler of a section; most step sizes do not matter, they are arguments."""
        made = choices.course(self.exp, section, guidance)
        size = lambda stage: None if sized(stage) else stage.arguments.get("step_size")
        key = name, guidance, *((stage.num_steps, size(stage)) for stage in made.stages)
        if key not in self._programs:
            sections = choices.Choice(name, section).stages
            self._programs[key] = Program(self.exp, made, sections)
        self._programs.move_to_end(key)
        while len(self._programs) > PROGRAMS:
            self._programs.popitem(last=False)
        return self._programs[key]

    def _asked_sampler(self, request: dict) -> tuple[str, dict, list[float], float]:
        """The sampler of a request: its name, section, step sizes, and the scale of guidance."""
        name = request.get("sampler", choices.OWN)
        if not isinstance(name, str) or name not in self._choices:
            raise UserError(f"no such sampler. Known: {', '.join(self._choices)}")
        choice = self._choices[name]
        known = choices.sliders(self.exp, choice)
        stages = asked.listed(request.get("stages", [{}] * len(known)), "stages", len(known))
        section, sizes = None, []
        if len(stages) != len(known):
            raise UserError(f"stages must be {len(known)}")
        for part, given, at in list(zip(choice.stages, stages, known, strict=True))[::-1]:
            given = asked.fields(given, "step_size", "num_steps")
            part = {k: v for k, v in part.items() if k != "then"}
            if at["num_steps"] is not None:
                steps = given.get("num_steps", at["num_steps"])
                part["num_steps"] = number(steps, "num_steps", 1, STEPS, whole=True)
            size = 0.0
            if at["step_size"] is not None:
                size = number(given.get("step_size", at["step_size"]), "step_size", *SIZES)
                part["step_size"] = size
            sizes.append(size)
            section = part if section is None else part | {"then": section}
        scale = 1.0
        if self._guided:
            scale = request.get("guidance", self.exp.config.sample.guidance_scale)
            scale = number(scale, "guidance", *SCALES)
        return name, section, sizes[::-1], scale

    def samples(self, request: dict) -> dict:
        """Samples from points of the plane, or from noise.

        Args:
          request: {"sampler", "stages": [{"step_size", "num_steps"}], "guidance", "seed", "label"}
            and either "starts", points of the plane, or "num".
        Returns:
          of the plane "trace" [K][N][2], "nfe" [N]; else "x" [N, *D] as numpy and "nfe".
        """
        known = ("sampler", "stages", "guidance", "seed", "label", "starts", "num")
        request = asked.fields(request, *known)
        name, section, sizes, guidance = self._asked_sampler(request)
        seed = self.exp.config.seed + self.exp.config.sample.seed
        seed = number(request.get("seed", seed), "seed", 0, SEEDS, whole=True)
        label = self._asked_label(request.get("label"))
        starts, most = None, POINTS if self.plane else IMAGES
        if request.get("starts") is not None:
            self.check_plane()
            starts = np.asarray(asked.points(request["starts"], "starts", most), np.float32)
        elif not (self.plane or self.exp.pictures):
            raise UserError("samples are drawn here of images and in the plane alone")
        num = number(request.get("num", 1), "num", 1, most, whole=True)
        with self.computing():
            program = self._program(name, section, guidance)
            return self._drawn(program, sizes, seed, label, starts, num)

    def _drawn(self, program, sizes, seed, label, starts, num) -> dict:
        n = num if starts is None else len(starts)
        size = next(size for size in BATCHES if size >= n) if self.plane else n
        index = np.arange(-(-size // self.exp.mesh.size) * self.exp.mesh.size, dtype=np.int32)
        scale = _first_level(program)
        if starts is None:
            x = self._noise(seed, index)
        else:
            x = np.resize(starts, (len(index), 2)) / scale
        labels = () if label is None else (label,)
        cond = generate.labels_of(self.exp, index % n, n, labels)
        keys = rng.per_index(rng.stream(seed, "sampler"), index, lambda key: key)
        out = program(self.run.params, keys, x, cond, sizes, SECONDS)
        if not self.plane:
            return {"x": out.x[:n], "nfe": out.nfe[:n].tolist(), "labels": cond}
        trace = np.array(out.trace[:, :n], float)
        trace[0] *= scale  # samplers from a noise level begin at that times x
        return asked.plain({"trace": trace.round(5), "nfe": out.nfe[:n]})


def _first_level(program: Program) -> float:
    """The noise level at which a sampler starts; 1 of those that have none."""
    first = program.made.stages[0]
    if first.method.levels is None:
        return 1.0
    return float(np.asarray(first.method.levels(first.arguments, first.num_steps))[0])


def _level_sets(xs, ys, value) -> list[dict]:
    """Lines along which values [Y, X] are the same, at round numbers: [{"level", "lines"}]."""
    if not np.isfinite(value).all():
        return []
    heights = MaxNLocator(LEVELS).tick_values(value.min(), value.max())
    lines = contour_generator(xs, ys, value).lines
    return [
        {"level": h, "lines": [np.round(line, 3) for line in lines(h)]} for h in heights.tolist()
    ]
