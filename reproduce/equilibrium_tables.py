"""Equilibrium Matching's ablations on digits (arXiv:2510.02300, Tables 3 to 5, Fig. 4, 8 and 9).

    python reproduce/equilibrium_tables.py --workdir=runs/equilibrium [--part=table3 …] [--seeds=3]

  table3  decays c(t) and where they begin to fall      fig8  steps until the gradient is small
  table4  with and without t, by sampler                fig4  samples on their way, beside FM's
  table5  energies: none, dot product, squared norm     fig9  the multiplier λ

As in the paper each row has the step size that is best for it, out of TRAVELS. It is chosen by
training seed 0 on noise that is not judged, and holds for all seeds. "fd" is the Fréchet distance
of the 64 pixels of 1,000 samples to the training images (held-out images have 0.416), "right" the
share whose nearest training image has the class that was asked for. Median (smallest to largest)
over training seeds. What the workdir has is not computed again.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import equilibrium_runs as runs
import jax
import matplotlib.pyplot as plt
import numpy as np
from common import markdown, shown
from equilibrium_runs import Kept, Row

from genfield import sampling
from genfield.distances import nearest
from genfield.figures import style
from genfield.figures.study import image_rows

STEPS = 100  # of a sampler
TRAVELS = (0.7, 1.0, 1.4, 2.0, 2.8, 4.0)  # step size times steps times λ; FM's is 1
FARTHEST = 11.0  # while the last one tried is the best, longer ones are tried, up to here
FOR_CHOICE = 500  # samples by which one is chosen
OTHER_NOISE = 7


def truncated(a: float = 0.8, multiplier: float = 1.0, **more) -> Row:
    return Row("truncated", {"a": a, "multiplier": multiplier}, **more)


PLAIN = Row("constant", {})
TIMED = Row("constant", {}, clock=True)  # flow matching, but for its sign
DEFAULT = truncated(multiplier=4.0)  # the paper's
ROWS = {
    "constant": PLAIN,
    "linear": Row("linear", {}),
    "truncated, a = 0.5": truncated(0.5),
    "truncated, a = 0.8": truncated(0.8),
    "truncated, a = 0.9": truncated(0.9),
    "piecewise, a = 0.8, b = 0.8": Row("piecewise", {"a": 0.8, "b": 0.8}),
    "piecewise, a = 0.8, b = 1.4": Row("piecewise", {"a": 0.8, "b": 1.4}),
    "λ = 2": truncated(multiplier=2.0),
    "λ = 4": DEFAULT,
    "λ = 8": truncated(multiplier=8.0),
    "λ = 4, 4 times the network": truncated(multiplier=4.0, scale=4.0),
    "constant, t": TIMED,
    "truncated, t": truncated(multiplier=4.0, clock=True),
    "truncated, λ = 1, t": truncated(clock=True),
    "dot": truncated(multiplier=4.0, energy="dot"),
    "dot, λ = 1": truncated(energy="dot"),
    # The paper trains the field for 10 epochs of 80.
    "squared norm": truncated(multiplier=4.0, energy="squared_norm", first=runs.STEPS // 8),
}
MULTIPLIERS = {"1": "truncated, a = 0.8"} | {n: f"λ = {n}" for n in ("2", "4", "8")}
MULTIPLIERS["4, of 4 times the network"] = "λ = 4, 4 times the network"
CONDITIONED = ("constant, t", "truncated, λ = 1, t", "truncated, t")
CONDITIONED += ("constant", "truncated, a = 0.8", "λ = 4")
PAPER = {  # FID
    "constant": 40.81, "linear": 50.47, "truncated, a = 0.5": 38.98, "truncated, a = 0.8": 38.34,
    "truncated, a = 0.9": 41.22, "piecewise, a = 0.8, b = 0.8": 38.84,
    "piecewise, a = 0.8, b = 1.4": 38.75, "constant, t": 26.60, "truncated, t": 44.00,
    "none": 57.54, "dot": 73.40, "squared norm": 75.53, "1": 38.34, "4": 32.85, "λ = 4": 22.05,
}  # fmt: skip
HEAD = ("travel", "fd", "right", "loss / λ²", "paper's FID")
THRESHOLDS = (1.25, 2.5, 5.0, 10.0)  # the paper's 10 of 4,096 numbers is 1.25 of 64
LONG, STEP = 250, 0.003  # the paper's steps, with λ = 4
STOPS = 11  # positions of a strip
STRIP_STEP = 0.004  # of both models (Fig. 4)


class Way(NamedTuple):
    """A row, and how its field is followed; divided: over c(t), of fields that see t."""

    name: str
    sampler: str = "GD"
    divided: bool = False

    @property
    def title(self) -> str:
        return f"{self.name}, {self.sampler}" + (", over c(t)" if self.divided else "")


class Study:
    """Fields, and what was found of them, in a workdir."""

    def __init__(self, workdir: Path, seeds: int):
        self.workdir, self.seeds = workdir, list(range(seeds))
        self.kept = Kept(workdir / "figures.json")

    def params(self, name: str) -> dict:
        """The parameters of a row, [seeds, …]."""
        return runs.kept(self.workdir, name, ROWS[name], self.seeds)[0]

    def loss(self, name: str) -> np.ndarray:
        """The last training losses over λ², [seeds]."""
        return runs.kept(self.workdir, name, ROWS[name], self.seeds)[1] / ROWS[name].size ** 2

    def each(self, what: str, of_seed: Callable) -> list:
        """[of_seed(seed)], each kept."""
        return [self.kept(f"{what}, seed {s}", lambda s=s: of_seed(s)) for s in self.seeds]

    def judged(self, way: Way, seed: int, travel: float, **more) -> dict:
        """What samples of a seed's field are worth."""
        step = travel / STEPS / (1.0 if way.divided else ROWS[way.name].size)
        params = runs.of_seed(self.params(way.name), seed)
        more |= {"divided": way.divided}
        return runs.judged(runs.drawn(ROWS[way.name], params, way.sampler, step, STEPS, **more).x)

    def at(self, way: Way, travel: float) -> list[dict]:
        """What each seed's samples are worth."""
        return self.each(f"{way.title}, {travel:g}", lambda seed: self.judged(way, seed, travel))

    def best(self, way: Way) -> tuple[float, list]:
        """The travel that is best for seed 0, and what each seed's samples are worth with it."""
        if way.sampler == "Euler, 1/N":
            travel = ROWS[way.name].size
            return travel, self.at(way, travel)
        other, travels = {"noise": OTHER_NOISE, "num": FOR_CHOICE}, list(TRAVELS)
        fd = lambda travel: self.judged(way, 0, travel, **other)["fd"]
        tried = self.kept(f"{way.title}, travels", lambda: [fd(travel) for travel in TRAVELS])
        while np.argmin(tried) == len(tried) - 1 and travels[-1] < FARTHEST:
            further = round(1.4 * travels[-1], 1)
            name = f"{way.title}, {further:g}, tried"
            tried = [*tried, self.kept(name, lambda further=further: fd(further))]
            travels.append(further)
        travel = travels[int(np.argmin(tried))]
        return travel, self.at(way, travel)


def _cells(found: list[dict]) -> list[str]:
    return [shown([run[name] for run in found]) for name in ("fd", "right")]


def _rows_of(study: Study, rows: dict[str, str]) -> list[list[str]]:
    lines = []
    for title, name in rows.items():
        travel, found = study.best(Way(name))
        lines.append([title, f"{travel:g}", *_cells(found), shown(study.loss(name))])
        lines[-1].append(f"{PAPER.get(title, '-')}")
    return lines


def _table_of(study: Study, rows: dict[str, str], head: str) -> str:
    return markdown([head, *HEAD], _rows_of(study, rows))


def table3(study: Study) -> str:
    names = list(ROWS)[:7]
    return _table_of(study, dict(zip(names, names, strict=True)), "c(t)")


def fig9(study: Study) -> str:
    """Beside the best step of each λ one and the same step for all, the paper's."""
    lines = _rows_of(study, MULTIPLIERS)
    for line, name in zip(lines, MULTIPLIERS.values(), strict=True):
        found = study.at(Way(name), LONG * STEP * ROWS[name].size)
        line.append(_cells(found)[0])
    return markdown(["λ", *HEAD, f"fd at a travel of {LONG * STEP:g} λ"], lines)


def table5(study: Study) -> str:
    names = {"none": "λ = 4", "dot": "dot", "squared norm": "squared norm"}
    names |= {"none, λ = 1": "truncated, a = 0.8", "dot, λ = 1": "dot, λ = 1"}
    return _table_of(study, names, "energy")


def table4(study: Study) -> str:
    """Gradient samplers have no clock, so that fields with one refuse them."""
    lines = []
    for name in CONDITIONED:
        row = ROWS[name]
        cells = ["yes" if row.clock else "no", f"{row.decay}, λ = {row.size:g}"]
        for sampler in runs.SAMPLERS:
            if row.clock and sampler in ("GD", "NAG"):
                cells.append("refused")
            else:
                travel, found = study.best(Way(name, sampler))
                cells.append(f"{_cells(found)[0]}; {travel:g}")
        lines.append([*cells, f"{PAPER.get(name, '-')}"])
    travel, found = study.best(Way("truncated, t", "Euler", divided=True))
    none = ["-"] * (len(runs.SAMPLERS) - 3)
    lines.append(
        ["yes", "truncated, followed over c(t)", *none[:2], f"{_cells(found)[0]}; {travel:g}"]
    )
    lines[-1] += ["-"] * (len(lines[0]) - len(lines[-1]))
    return markdown(["t", "c(t)", *(f"{s}: fd; travel" for s in runs.SAMPLERS), "paper"], lines)


# Adaptive compute


def fig8(study: Study) -> str:
    """Steps until |f| is below a threshold, and the same number of steps for all."""
    params, lines, counts = study.params("λ = 4"), [], {}
    cond, start = runs.asked(), runs.noise(1)

    @jax.jit
    def stopped(params, threshold):
        rule = sampling.gradient_norm(threshold)
        made = sampling.stopping(sampling.gradient_descent(STEP), rule)
        field = runs.field_of(DEFAULT, params)
        out = sampling.sample(jax.random.key(0), field, start, made, num_steps=LONG, cond=cond)
        return out.x, out.nfe

    def measure(seed: int, threshold: float) -> dict:
        one = runs.of_seed(params, seed)
        x, nfe = map(np.asarray, stopped(one, threshold))
        fixed = runs.drawn(DEFAULT, one, "GD", STEP, max(1, round(nfe.mean())))
        found = runs.judged(x) | {"nfe": float(nfe.mean()), "steps": nfe.tolist()}
        return found | {"fixed": runs.judged(fixed.x)["fd"]}

    for threshold in (0.0, *THRESHOLDS):
        found = study.each(f"stopped below {threshold:g}", lambda s, t=threshold: measure(s, t))
        counts[threshold] = np.array(found[0]["steps"])
        cells = [shown([run[name] for run in found]) for name in ("nfe", "fd", "fixed", "right")]
        lines.append([f"{threshold:g}" if threshold else "never", *cells])
    print(draw_steps(study.workdir / "fig8.png", counts))
    head = ["stopped where |f| is below", "evaluations", "fd", "fd of as many steps for all"]
    return markdown([*head, "right"], lines)


@style.styled
def draw_steps(path: Path, counts: dict[float, np.ndarray]) -> Path:
    """How many samples of seed 0 took how many steps."""
    figure, axes = plt.subplots(figsize=(6.5, 3.6))
    for threshold in [c for c, steps in counts.items() if steps.mean() < 0.99 * LONG]:
        label = f"|f| < {threshold:g}"
        axes.hist(counts[threshold], np.arange(0, LONG + 6, 5), alpha=0.6, label=label)
    axes.set(xlabel="steps", ylabel="samples")
    axes.legend()
    return style.save(figure, path)


# On the way


def fig4(study: Study) -> str:
    """Samples of the same noise under steps of the same size."""
    every = LONG // (STOPS - 1)
    pairs = {"FM": ("constant, t", "Euler"), "EqM": ("λ = 4", "GD")}
    strips, lines, images = {}, [], runs.data()["train"][0]
    for title, (name, sampler) in pairs.items():
        trace = lambda s, name=name, sampler=sampler: np.asarray(
            runs.drawn(
                ROWS[name],
                runs.of_seed(study.params(name), s),
                sampler,
                STRIP_STEP,
                LONG,
                trace=every,
                num=200,
            ).trace
        )
        away = lambda s, trace=trace: [
            float(np.asarray(nearest(x, images).distance).mean()) for x in trace(s)
        ]
        found = np.array(study.each(f"on the way, {title}", away))
        lines.append([title, *(shown(found[:, i]) for i in range(STOPS))])
        for i, strip in enumerate(np.moveaxis(trace(0), 1, 0)[2:5]):
            strips[f"{title} {i + 1}"] = np.clip(strip, -1, 1)
    title = f"every {every} steps of {STRIP_STEP:g}"
    print(image_rows(study.workdir / "fig4.png", strips, STOPS, title=title))
    return markdown(["to the nearest image after", *(str(every * i) for i in range(STOPS))], lines)


PARTS = {f.__name__: f for f in (table3, fig9, table4, table5, fig8, fig4)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, default=Path("runs/equilibrium"))
    parser.add_argument("--part", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    if args.seeds < 1:
        raise SystemExit(f"--seeds must be positive, got {args.seeds}")
    study = Study(args.workdir, args.seeds)
    for name in args.part:
        text = f"{name}\n\n{PARTS[name](study)}"
        (args.workdir / f"{name}.md").write_text(text)
        print(f"\n{text}", flush=True)


if __name__ == "__main__":
    main()
