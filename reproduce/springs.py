"""Trajectories of two masses on springs: Flux Matching and denoising, causal or not (B.5, Fig. 7).

    python reproduce/springs.py --workdir=runs/springs --seeds=3 [-- --config.train.steps=600]

The small configs flux_matching_springs.py and denoising_springs.py (four blocks of width 64), each
with a causal mask and without. Of each run, `evaluate.num_samples` trajectories by the config's
sampler against as many held-out ones: W2, and how far each state is from where the simulator takes
the one before it; beside them real trajectories, and white noise of the data's standard deviation,
which is what the field before training generates. Writes springs.json, springs.md and springs.png;
a run that is there is not trained again. Further --config.…=… for every run go behind --.
"""

import argparse
import json
from pathlib import Path

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from common import Run, folder, markdown, shown, train

from genfield.data import springs
from genfield.figures import style
from genfield.metrics import point_cloud

MODELS = {  # title: config
    "Flux, full": "flux_matching_springs.py:full,small",
    "Flux, causal": "flux_matching_springs.py:causal,small",
    "DSM, full": "denoising_springs.py:full,small",
    "DSM, causal": "denoising_springs.py:causal,small",
}
REAL = "the data"  # held-out trajectories against those of the training set
NOISE = "white noise"
NO_METRICS = ["--config.evaluate.metrics=('heldout_loss',)", "--config.evaluate.figures=False"]
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


def evaluate(target: Path, title: str) -> dict[str, tuple[dict, np.ndarray]]:
    """(figures, trajectories) of a run, of real trajectories and of noise, by their names."""
    run = Run(target)
    config, data = run.config, run.exp.data
    num, step_size = config.evaluate.num_samples, config.data.get("step_size", springs.STEP_SIZE)
    heldout = data.heldout(0, num)["x1"]
    known = data.examples["train"].gather(np.arange(num))["x1"]
    noise = np.random.default_rng(config.seed).normal(0, known.std(), known.shape)
    of = lambda x, other: (measure(x.astype(np.float32), known, other, step_size), x)
    return {
        title: of(np.asarray(run.draw(None, num).x), heldout),
        NOISE: of(noise, heldout),
        REAL: of(heldout, known),
    }


def change(found: dict, loss: str) -> list[float]:
    """W2 with the causal mask over that without, less 1, for each seed (Fig. 7, right)."""
    pairs = zip(found[f"{loss}, causal"], found[f"{loss}, full"], strict=True)
    return [causal["W2"] / full["W2"] - 1 for causal, full in pairs]


def table(found: dict) -> str:
    """The figures of every model, of noise and of the data, and what the mask changes."""
    columns = ("W2", "W2 to training", "departure", "standard deviation")
    rows = [[name, *(shown([r[c] for r in runs]) for c in columns)] for name, runs in found.items()]
    text = markdown(["trajectories of", *columns], rows)
    rows = [[loss, shown(change(found, loss))] for loss in ("Flux", "DSM")]
    return text + "\n" + markdown(["loss", "relative change of W2 by the mask"], rows)


@style.styled
def picture(found: dict, drawn: dict, path: Path) -> Path:
    """W2 of every seed; and the first mass of some trajectories of each model."""
    figure, axes = plt.subplots(1, 1 + len(drawn), figsize=(3 + 2.1 * len(drawn), 2.9))
    for i, name in enumerate(MODELS):
        values = [run["W2"] for run in found[name]]
        axes[0].plot([i] * len(values), values, "o", color=style.END, markersize=4)
    real = np.median([run["W2"] for run in found[REAL]])
    axes[0].axhline(real, color=style.TARGET, linestyle="--", label="two real sets")
    axes[0].set_xticks(range(len(MODELS)), [name.replace(", ", "\n") for name in MODELS])
    axes[0].tick_params(axis="x", labelsize=7)
    axes[0].set(title="W2 to held-out trajectories", xlim=(-0.5, len(MODELS) - 0.5))
    noise = np.median([run["W2"] for run in found[NOISE]])
    axes[0].axhline(noise, color="0.4", linestyle=":", label=NOISE)
    axes[0].legend()
    for ax, name in zip(axes[1:], drawn, strict=True):
        ax.plot(drawn[name][:SHOWN, :, 0].T, linewidth=0.9)
        ax.set(title=name, xlabel="time point", ylim=(-10, 10))
    for ax in axes:
        ax.title.set_fontsize(9)
        ax.grid()
    figure.tight_layout()
    return style.save(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, default=Path("runs/springs"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("flags", nargs="*", help="further --config.…=… for every run, after --")
    args = parser.parse_args()
    workdir = args.workdir.resolve()
    workdir.mkdir(parents=True, exist_ok=True)
    found, drawn = {name: [] for name in (*MODELS, NOISE, REAL)}, {}
    for seed in range(args.seeds):
        for title, config in MODELS.items():
            target = folder(workdir, title, seed)
            metrics = train(target, title, seed, config, [*NO_METRICS, *args.flags])
            measured = evaluate(target, title)
            found[title].append(measured[title][0] | {"loss": metrics["loss"]})
            drawn.setdefault(title, measured[title][1])
            print(title, seed, found[title][-1], flush=True)
        for name in (NOISE, REAL):
            found[name].append(measured[name][0])
            drawn.setdefault(name, measured[name][1])
        (workdir / "springs.json").write_text(json.dumps(found, indent=2))
    text = table(found)
    (workdir / "springs.md").write_text(text)
    print(text)
    print(picture(found, drawn, workdir / "springs.png"))


if __name__ == "__main__":
    main()
