"""Trajectories of two masses on springs: Flux Matching and denoising, causal or not (B.5, Fig. 7).

    python reproduce/flux_springs.py --workdir=runs/flux_springs --seeds=3 --steps 400 1000
        [--only "Flux, full" …] [-- --config.…=…]

The small configs flux_matching_springs.py and denoising_springs.py (four blocks of width 64), each
with a causal mask and without, on 16 time points 0.2 apart, trained for each number of steps anew,
since the rate falls to zero at the end. The training step is the program's; its batches are drawn
with replacement, so that one compiled program serves all seeds. Of each run, 250 trajectories by 64
steps of the sampler against as many held-out ones: W2, and how far each state is from where the
simulator takes the one before it; beside them real trajectories, and white noise of the data's
standard deviation, which is what the field before training generates.

Writes springs.json, springs.md and springs.png, of all runs that are there. A run that is there is
neither trained nor sampled again, and one that was stopped goes on from its last 50 steps. Further
--config.…=… for every run of a workdir go behind --.
"""

import argparse
import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from common import ROOT, folder, markdown, shown

from genfield import rng
from genfield.data import springs
from genfield.figures import style
from genfield.metrics import point_cloud
from genfield.program import config_io, experiment, generate
from genfield.program.train_step import TrainState, make_train_step

CONFIGS = ROOT / "configs"

MODELS = {  # title: config
    "Flux, full": "flux_matching_springs.py:full,small",
    "Flux, causal": "flux_matching_springs.py:causal,small",
    "DSM, full": "denoising_springs.py:full,small",
    "DSM, causal": "denoising_springs.py:causal,small",
}
REAL = "the data"  # held-out trajectories against those of the training set
NOISE = "white noise"
SMALLER = [
    *("--config.data.length=16", "--config.data.step_size=0.2", "--config.sampler.num_steps=64"),
    *("--config.evaluate.num_samples=250", "--config.sample.batch_size=250"),
]
CHUNK = 50  # steps between two savings
SHOWN = 6  # trajectories of a panel


def departure(x: np.ndarray, step_size: float) -> float:
    """RMS over x [N, T, 4] of each state's distance from where eq. 46 takes the one before."""
    before = jnp.asarray(x[:, :-1].reshape(-1, 4))
    after = springs.simulate(before, 2, step_size)[:, 1]
    return float(np.sqrt(np.square(np.asarray(after) - x[:, 1:].reshape(-1, 4)).sum(-1).mean()))


def measure(x: np.ndarray, train: np.ndarray, heldout: np.ndarray, step_size: float) -> dict:
    """The figures of trajectories x [N, T, 4] beside as many real ones."""
    flat = lambda a: a[: len(x)].reshape(len(x), -1)
    return {
        "W2": point_cloud.wasserstein2(flat(x), flat(heldout)),
        "W2 to training": point_cloud.wasserstein2(flat(x), flat(train)),
        "samples": len(x),
        "departure": departure(x, step_size),
        "standard deviation": float(x.std()),
    }


class Recipe:
    """A model and a number of steps: the program's training step and samples, for all seeds."""

    def __init__(self, title: str, steps: int, flags: list[str], workdir: Path):
        flags = [*SMALLER, f"--config.train.steps={steps}", *flags]
        self.config = config_io.override(config_io.load(str(CONFIGS / MODELS[title])), flags)
        self.title, self.steps, self.workdir = title, steps, workdir
        exp = experiment.prepare(self.config, workdir)
        config, self.data, self.draw = exp.config, exp.data, generate.make_drawer(exp)
        known = self.data.examples["train"].gather(np.arange(config.data.num_trajectories))
        self.known = known["x1"]

        def some(key, known, state):
            rows = lambda key: jax.random.randint(key, (config.batch_size,), 0, len(known))
            batch = lambda key: {"x1": known[rows(key)]}
            step = make_train_step(
                exp.objective, exp.tx, key, ema_rate=exp.ema_rate, draw_batch=batch
            )
            return jax.lax.scan(lambda s, _: step(s, {}), state, length=math.gcd(CHUNK, steps))

        self.some = jax.jit(some)

    def start(self, seed: int) -> TrainState:
        """The program's state at step 0."""
        config = self.config.copy_and_resolve_references()
        config.seed = seed
        return experiment.prepare(config, self.workdir).init()

    def train(self, target: Path, seed: int) -> TrainState:
        """The state after all steps, on the way there kept in the folder `target`."""
        state, path = self.start(seed), target / "state.npz"
        if path.exists():
            with np.load(path) as file:
                leaves = [jnp.asarray(file[name]) for name in file.files]
            state = jax.tree.unflatten(jax.tree.structure(state), leaves)
        while int(state.step) < self.steps:
            state, metrics = self.some(rng.stream(seed, "train"), self.known, state)
            if not np.all(metrics["finite"]):
                raise SystemExit(f"{target}: not finite before step {int(state.step) + 1}")
            np.savez(target / "next.npz", *map(np.asarray, jax.tree.leaves(state)))
            (target / "next.npz").replace(path)
            loss, norm = (float(np.mean(metrics[name])) for name in ("loss", "grad_norm"))
            line = f"{self.title}, seed {seed}, step {int(state.step)}"
            print(f"{line}: loss {loss:.3g}, gradient {norm:.3g}", flush=True)
        return state

    def measure(self, state: TrainState, seed: int) -> dict[str, tuple[dict, np.ndarray]]:
        """(figures, trajectories) of a state, of real trajectories and of noise, by their names."""
        num = self.config.evaluate.num_samples
        step_size = self.config.data.get("step_size", springs.STEP_SIZE)
        heldout, known = self.data.heldout(0, num)["x1"], self.known[:num]
        noise = np.random.default_rng(seed).normal(0, known.std(), known.shape)
        of = lambda x, other: (measure(x.astype(np.float32), known, other, step_size), x)
        return {
            self.title: of(np.asarray(self.draw(state.ema, num, seed + 1).x), heldout),
            NOISE: of(noise, heldout),
            REAL: of(heldout, known),
        }

    def kept(self, seed: int) -> dict:
        """The figures of one run, made once, with what they are of beside them."""
        target = folder(self.workdir, self.title, seed)
        path = target / "measured.json"
        if not path.exists():
            target.mkdir(parents=True, exist_ok=True)
            measured = self.measure(self.train(target, seed), seed)
            np.savez(target / "shown.npz", **{name: x[:SHOWN] for name, (_, x) in measured.items()})
            figures = {name: of for name, (of, _) in measured.items()}
            path.write_text(json.dumps(figures, indent=2))
        return json.loads(path.read_text())[self.title]


def there(workdir: Path) -> dict[int, dict[str, dict[int, Path]]]:
    """{steps: {title: {seed: folder}}} of the runs that were measured."""
    found = {}
    for path in workdir.glob("*_steps/*/measured.json"):
        name, _, seed = path.parent.name.rpartition("_seed")
        title = next(title for title in MODELS if folder(workdir, title, 0).name[:-6] == name)
        steps = int(path.parent.parent.name.removesuffix("_steps"))
        found.setdefault(steps, {}).setdefault(title, {})[int(seed)] = path.parent
    order = {steps: {t: found[steps][t] for t in MODELS if t in found[steps]} for steps in found}
    return dict(sorted(order.items()))


def change(found: dict, loss: str) -> list[float]:
    """W2 with the causal mask over that without, less 1, of seeds with both (Fig. 7, right)."""
    causal, full = (found.get(f"{loss}, {mask}", {}) for mask in ("causal", "full"))
    return [causal[seed]["W2"] / full[seed]["W2"] - 1 for seed in sorted(causal.keys() & full)]


def beside(found: dict, mask: str) -> list[float]:
    """W2 of Flux Matching over that of denoising, less 1, of seeds that have both."""
    flux, dsm = (found.get(f"{loss}, {mask}", {}) for loss in ("Flux", "DSM"))
    return [flux[seed]["W2"] / dsm[seed]["W2"] - 1 for seed in sorted(flux.keys() & dsm)]


def table(found: dict) -> str:
    """{steps: {name: {seed: figures}}} as tables, and what the mask and the loss change."""
    columns = ("W2", "W2 to training", "departure", "standard deviation")
    rows, changes = [], []
    for steps, of_steps in found.items():
        for name, runs in of_steps.items():
            figures = [shown([run[c] for run in runs.values()]) for c in columns]
            rows.append([name, str(steps) if name in MODELS else "", *figures, str(len(runs))])
        pairs = [(f"the mask, {loss}", change(of_steps, loss)) for loss in ("Flux", "DSM")]
        pairs += [(f"Flux for DSM, {mask}", beside(of_steps, mask)) for mask in ("full", "causal")]
        lines = [(name, steps, values) for name, values in pairs if values]
        changes += [[name, str(steps), shown(of), str(len(of))] for name, steps, of in lines]
    text = markdown(["trajectories of", "steps", *columns, "seeds"], rows)
    return text + "\n" + markdown(["what changes W2", "steps", "by", "seeds"], changes)


@style.styled
def picture(found: dict, drawn: dict, path: Path) -> Path:
    """W2 of every seed after each number of steps; and the first mass of some trajectories."""
    figure, axes = plt.subplots(1, 1 + len(drawn), figsize=(3.6 + 2.0 * len(drawn), 2.9))
    marks = dict(zip(found, "osD^v", strict=False))
    for steps, mark in marks.items():
        points = [
            (i, run["W2"])
            for i, name in enumerate(MODELS)
            for run in found[steps].get(name, {}).values()
        ]
        size = 3.5 if len(marks) > 1 else 4
        axes[0].plot(*zip(*points, strict=True), mark, markersize=size, label=f"{steps} steps")
    last = found[max(found)]
    for name, line in ((REAL, "--"), (NOISE, ":")):
        level = np.median([run["W2"] for run in last[name].values()])
        label = "two real sets" if name == REAL else NOISE
        axes[0].axhline(
            level, color=style.TARGET if name == REAL else "0.4", linestyle=line, label=label
        )
    axes[0].set_xticks(range(len(MODELS)), [name.replace(", ", "\n") for name in MODELS])
    axes[0].tick_params(axis="x", labelsize=7)
    axes[0].set(title="W2 to held-out trajectories", xlim=(-0.5, len(MODELS) - 0.5))
    axes[0].legend(fontsize=6)
    for ax, name in zip(axes[1:], drawn, strict=True):
        ax.plot(drawn[name][:, :, 0].T, linewidth=0.9)
        ax.set(title=name, xlabel="time point", ylim=(-10, 10))
    for ax in axes:
        ax.title.set_fontsize(9)
        ax.grid()
    figure.tight_layout()
    return style.save(figure, path)


def report(workdir: Path) -> str:
    """Tables and picture of all runs that are there."""
    folders, found, drawn = there(workdir), {}, {}
    for steps, titles in folders.items():
        of_steps = found.setdefault(steps, {})
        for targets in titles.values():
            for seed, target in sorted(targets.items()):
                for name, figures in json.loads((target / "measured.json").read_text()).items():
                    of_steps.setdefault(name, {})[seed] = figures
        found[steps] = {n: of_steps[n] for n in (*MODELS, NOISE, REAL) if n in of_steps}
    for targets in folders[max(folders)].values():
        with np.load(targets[min(targets)] / "shown.npz") as file:
            drawn |= {name: file[name] for name in file.files}
    drawn = {name: drawn[name] for name in (*MODELS, NOISE, REAL) if name in drawn}
    (workdir / "springs.json").write_text(json.dumps(found, indent=2))
    (workdir / "springs.md").write_text(text := table(found))
    picture(found, drawn, workdir / "springs.png")
    return text


def same_flags(workdir: Path, flags: list[str]) -> None:
    """Ends where the runs that are there had other flags."""
    path = workdir / "flags.json"
    known = json.loads(path.read_text()) if path.exists() else flags
    if known != flags:
        raise SystemExit(
            f"the runs in {workdir} have the flags {' '.join(known) or '(none)'}: name another "
            "--workdir for others"
        )
    workdir.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(flags))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, default=Path("runs/flux_springs"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, nargs="+", default=[400, 1_000])
    parser.add_argument("--only", nargs="+", choices=MODELS, default=list(MODELS), metavar="MODEL")
    parser.add_argument("flags", nargs="*", help="further --config.…=… for every run, after --")
    args = parser.parse_args()
    workdir = args.workdir.resolve()
    same_flags(workdir, args.flags)
    for steps in args.steps:
        for title in args.only:
            recipe = Recipe(title, steps, args.flags, workdir / f"{steps}_steps")
            for seed in range(args.seeds):
                print(title, steps, seed, recipe.kept(seed), flush=True)
    print(report(workdir))


if __name__ == "__main__":
    main()
