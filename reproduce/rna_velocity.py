"""Flux Matching's interpretable fields (section 4.2, B.2): RNA velocity, scVelo beside.

    python reproduce/rna_velocity.py --data=/path/to/cells --workdir=runs/rna_velocity --seeds=3

`--data` is an .h5ad file or a folder of them; beside them stand simulated cells whose velocities
are known (`scvelo.datasets.simulation`, one a seed). Preprocessing is B.2's; what enters the model
are the moments Mu and Ms. Needs `pip install genfield[cells]`.

  fields       Flux Matching as in the paper, the field before training, Flux Matching with longer
               training and a wider kernel, and scVelo's dynamical model, on the same genes:
               consistency, CBC, agreement with the truth, stream plots
  sensitivity  what the paper leaves open, and its neighbourhood: batch, noise level, start of the
               rates, length, where CBC or the truth is known

Writes NAME.json and NAME.md for each; stream_*.png and kinetics_*.csv, each gene's, for fields.
"""

import argparse
import collections
import csv
import functools
import itertools
import json
import sys
import time
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import optax
from common import markdown, shown

from genfield import nets, rng
from genfield.data import cells
from genfield.errors import UserError
from genfield.figures import style
from genfield.losses.flux.estimator import flux_estimator
from genfield.metrics import velocity as measures
from genfield.nets import kinetics
from genfield.scores import kde_field

# Known transitions by the names of clusters in scVelo's data sets; others: --transitions.
TRANSITIONS = (
    # dentate gyrus
    ("Radial Glia-like", "Astrocytes"),
    ("Radial Glia-like", "nIPC"),
    ("nIPC", "Neuroblast"),
    ("Neuroblast", "Granule immature"),
    ("Granule immature", "Granule mature"),
    ("OPC", "OL"),
    # pancreas
    ("Ductal", "Ngn3 low EP"),
    ("Ngn3 low EP", "Ngn3 high EP"),
    ("Ngn3 high EP", "Pre-endocrine"),
    ("Pre-endocrine", "Alpha"),
    ("Pre-endocrine", "Beta"),
    ("Pre-endocrine", "Delta"),
    ("Pre-endocrine", "Epsilon"),
    # simulation: quarters of the true time
    ("first", "second"),
    ("second", "third"),
    ("third", "fourth"),
)
FEWEST = 5  # cells of a cluster, for its transitions to count
QUARTERS = np.array(["first", "second", "third", "fourth"])


class Problem(NamedTuple):
    """Preprocessed cells; what is not known of them is None."""

    name: str
    adata: object
    states: np.ndarray  # [N, 2G]
    labels: np.ndarray | None  # [N]
    transitions: list
    truth: np.ndarray | None = None  # [N, G], ds/dτ
    ratio: np.ndarray | None = None  # [G], γ/β, which fixes the direction of ds/dτ


def problem(name: str, adata, labels, transitions, **known) -> Problem:
    """With a UMAP where the file brings none, and the transitions that its clusters allow."""
    if "X_umap" not in adata.obsm:
        with cells.quiet():  # of a copy: umap-learn writes into the connectivities
            adata.obsm["X_umap"] = cells.packages()[1].tl.umap(adata, copy=True).obsm["X_umap"]
    # Matplotlib refuses scVelo's grid of stream lines in float32.
    adata.obsm["X_umap"] = np.asarray(adata.obsm["X_umap"], np.float64)
    counts = collections.Counter([] if labels is None else labels)
    here = [pair for pair in transitions if min(counts[c] for c in pair) >= FEWEST]
    return Problem(name, adata, cells.states(adata), labels, here, **known)


def real(path: Path, clusters: str, transitions) -> Problem:
    """Cells of a file."""
    adata = cells.preprocess(cells.read(path))
    labels = np.asarray(adata.obs[clusters].astype(str)) if clusters in adata.obs else None
    return problem(path.stem, adata, labels, transitions)


def simulated(seed: int, num_cells: int = 300, num_genes: int = 40) -> Problem:
    """scVelo's simulation with rates drawn per gene; the truth is its states without noise.

    Rates are log-normal (σ = 0.5) around scVelo's defaults 5, 0.5 and 0.3; noise 0.8 of scVelo's.
    """
    draw = np.random.default_rng(seed)
    alpha, beta, gamma = (
        middle * np.exp(0.5 * draw.standard_normal(num_genes)) for middle in (5.0, 0.5, 0.3)
    )
    simulate = functools.partial(
        cells.packages()[2].datasets.simulation,
        n_obs=num_cells,
        n_vars=num_genes,
        alpha=alpha,
        beta=beta,
        gamma=gamma,
        switches=list(draw.uniform(0.1, 1.0, num_genes)),
        random_seed=seed,
    )
    adata, exact = simulate(noise_level=0.8), simulate(noise_level=0.0)
    u, s = exact.layers["unspliced"], exact.layers["spliced"]
    adata.layers["truth"] = beta * u - gamma * s  # eq. 12
    adata.var["ratio"] = gamma / beta
    adata = cells.preprocess(adata)
    age = np.asarray(adata.obs["true_t"])
    quarter = np.searchsorted(np.quantile(age, (0.25, 0.5, 0.75)), age)
    known = {"truth": np.asarray(adata.layers["truth"]), "ratio": np.asarray(adata.var["ratio"])}
    return problem("simulation", adata, QUARTERS[quarter], TRANSITIONS, **known)


class Setting(NamedTuple):
    """How Flux Matching is trained; the defaults are Table 2, and what the paper leaves open."""

    steps: int = 100
    learning_rate: float = 1e-3
    variance: float = 1e-3  # σ²
    batch: float = 1.0  # share of the cells a step; not in the paper
    spread: float = 0.0  # standard deviation of the rates' free parameters at the start; neither


def train(x1: np.ndarray, seed: int, setting: Setting) -> tuple[np.ndarray, dict]:
    """Fits the kinetics of cells [N, 2G]; their velocities ds/dτ [N, G] and the parameters."""
    apply, params = nets.create(
        {"name": "rna_kinetics"}, rng.stream(seed, "init"), shape=x1.shape[1:]
    )
    start = rng.stream(seed, "start")
    for i, name in enumerate(("splicing", "degradation")):
        noise = jax.random.normal(jax.random.fold_in(start, i), params[name].shape)
        params[name] = params[name] + setting.spread * noise
    tx, sigma = optax.adam(setting.learning_rate), setting.variance**0.5
    count, everything = round(setting.batch * len(x1)), jnp.asarray(x1)

    def risk(params, key):
        which, noise, chain = jax.random.split(key, 3)
        centres = everything[jax.random.permutation(which, len(x1))[:count]]
        x = centres + sigma * jax.random.normal(noise, centres.shape)
        field = functools.partial(apply, params)
        return flux_estimator(chain, field, x, kde_field(centres), sigma=sigma)[0].mean()

    @jax.jit
    def run(params):
        def one(carry, step):
            params, state = carry
            gradient = jax.grad(risk)(params, jax.random.fold_in(rng.stream(seed, "train"), step))
            updates, state = tx.update(gradient, state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(one, (params, tx.init(params)), jnp.arange(setting.steps))[0][0]

    params = run(params)
    return np.asarray(kinetics.spliced_velocity(apply(params, everything))), params


class Reference(NamedTuple):
    """scVelo's dynamical model, NaN where it fits no gene."""

    velocity: np.ndarray  # [N, G]
    rates: dict  # "splicing" and "degradation", [G]


def dynamical(adata) -> Reference:
    """By its defaults."""
    scvelo, adata = cells.packages()[2], adata.copy()
    with cells.quiet():
        scvelo.tl.recover_dynamics(adata, n_jobs=1, show_progress_bar=False)
        scvelo.tl.velocity(adata, mode="dynamical")
    kept = np.asarray(adata.var["velocity_genes"], bool)
    velocity = np.where(kept[None], adata.layers["velocity"], np.nan)
    columns = {"splicing": "fit_beta", "degradation": "fit_gamma"}
    rates = {k: np.where(kept, adata.var[v], np.nan) for k, v in columns.items()}
    return Reference(velocity, rates)


def embed(p: Problem, key: str, velocity: np.ndarray, genes: np.ndarray) -> np.ndarray:
    """Velocities projected onto the UMAP by scVelo, [N, 2]; kept in the AnnData under `key`."""
    scvelo, adata = cells.packages()[2], p.adata
    adata.layers[key], adata.var[f"{key}_genes"] = velocity, genes
    with cells.quiet():
        scvelo.tl.velocity_graph(adata, vkey=key, n_jobs=1, show_progress_bar=False)
        scvelo.tl.velocity_embedding(adata, basis="umap", vkey=key)
    return adata.obsm[f"{key}_umap"]


def measure(p: Problem, key: str, velocity: np.ndarray, genes: np.ndarray) -> dict:
    """All that can be measured of velocities [N, G] on some genes [G] (True where they count)."""
    near, kept = cells.neighbour_indices(p.adata), velocity[:, genes]
    flat = np.nan_to_num(embed(p, key, velocity, genes))
    found = {"consistency": float(measures.consistency(kept, near).mean())}
    score = functools.partial(measures.boundary_scores, labels=p.labels, transitions=p.transitions)
    if p.transitions:
        places = {"UMAP": (p.adata.obsm["X_umap"], flat)}
        places["genes"] = p.adata.layers["Ms"][:, genes], kept
        for place, (positions, arrows) in places.items():
            scores = score(positions, arrows, near)
            found[f"CBC, {place}"] = measures.cross_boundary_correctness(scores)
            found[f"boundary cells and score, {place}"] = {
                " > ".join(pair): [len(values), float(values.mean()) if len(values) else None]
                for pair, values in scores.items()
            }
    if p.truth is not None:
        found |= measures.agreement(kept, p.truth[:, genes])
    return found


def ratio_correlation(p: Problem, rates: dict, genes: np.ndarray) -> dict:
    """Correlation over genes of log γ/β with the truth, where it is known; 0 if all are equal."""
    if p.ratio is None:
        return {}
    found = np.log(np.asarray(rates["degradation"]) / np.asarray(rates["splicing"]))[genes]
    pair = measures.agreement(found[None], np.log(p.ratio[genes])[None])
    return {"log_ratio_pearson": pair["cell_pearson"]}


COLUMNS = {
    "consistency": "consistency",
    "CBC, UMAP": "CBC, UMAP",
    "CBC, genes": "CBC, genes",
    "gene_pearson": "Pearson by gene",
    "cell_pearson": "Pearson by cell",
    "cell_cosine": "cosine by cell",
    "log_ratio_pearson": "Pearson of log γ/β",
}


def table(title: str, found: dict[str, dict[str, list[dict]]]) -> str:
    """Problem -> method -> runs; a dash where a column cannot be computed."""
    have = lambda runs, c: [f[c] for f in runs if f.get(c) is not None and np.isfinite(f[c])]
    rows = [
        [p, method, *(shown(have(runs, c)) if have(runs, c) else "–" for c in COLUMNS)]
        for p, by in found.items()
        for method, runs in by.items()
    ]
    return markdown(["cells", title, *COLUMNS.values()], rows)


SPARSE = 200  # cells below which stream lines need a wider kernel than scVelo's


@style.styled
def picture(p: Problem, keys: dict[str, str], path: Path) -> None:
    """Stream plots side by side, key in the AnnData -> title."""
    scvelo = cells.packages()[2]
    figure, axes = plt.subplots(1, len(keys), figsize=(5.5 * len(keys), 5), squeeze=False)
    p.adata.obs["colour"] = "cells" if p.labels is None else p.labels
    p.adata.obs["colour"] = p.adata.obs["colour"].astype("category")
    for ax, (key, title) in zip(axes[0], keys.items(), strict=True):
        with cells.quiet():
            scvelo.pl.velocity_embedding_stream(
                p.adata, basis="umap", vkey=key, color="colour", title=title, ax=ax, show=False,
                size=60, alpha=0.6, legend_loc="on data" if p.transitions else "none",
                legend_fontsize=8, min_mass=0, n_neighbors=max(10, p.adata.n_obs // 50),
                smooth=0.5 if p.adata.n_obs >= SPARSE else 1.0,
            )  # fmt: skip
    style.save(figure, path)
    print(path, flush=True)


def write_kinetics(p: Problem, params: dict, reference: Reference, path: Path) -> None:
    """The parameters of each gene by both, and γ/β where it is known."""
    rates = kinetics.rates(params)
    columns = {k: params[k] for k in ("slope_unspliced", "slope_spliced", "offset")}
    columns |= rates | {f"scvelo_{k}": v for k, v in reference.rates.items()}
    columns |= {} if p.ratio is None else {"true_ratio": p.ratio}
    with path.open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["gene", *columns])
        out.writerows(zip(p.adata.var_names, *map(np.asarray, columns.values()), strict=True))


FLUX, START, SCVELO = "Flux Matching", "before training", "scVelo, dynamical"
LONGER = "Flux Matching, 2,000 steps of 1e-2, σ² = 1"


def compare(p: Problem, seed: int, reference: Reference) -> tuple[dict[str, dict], dict]:
    """Measures of every field, and Flux Matching's parameters as in the paper.

    On the genes that scVelo gives velocities for; Flux Matching on all genes as well.
    """
    genes, whole = np.isfinite(reference.velocity).all(0), np.ones(p.adata.n_vars, bool)
    begun = time.perf_counter()
    fitted, params = train(p.states, seed, Setting())
    seconds = time.perf_counter() - begun
    start, _ = train(p.states, seed, Setting(steps=0))
    longer, longer_params = train(p.states, seed, Setting(2_000, 1e-2, 1.0))
    found = {
        FLUX: measure(p, "flux", fitted, genes),
        START: measure(p, "start", start, genes),
        LONGER: measure(p, "longer", longer, genes),
        SCVELO: measure(p, "scvelo", reference.velocity, genes),
        f"{FLUX}, all genes": measure(p, "flux_all", fitted, whole),
        f"{START}, all genes": measure(p, "start_all", start, whole),
    }
    rates = kinetics.rates(params)
    found[FLUX] |= ratio_correlation(p, rates, genes)
    found[LONGER] |= ratio_correlation(p, kinetics.rates(longer_params), genes)
    found[SCVELO] |= ratio_correlation(p, reference.rates, genes)
    found[FLUX] |= {"seconds": seconds, "genes": [int(genes.sum()), len(genes)]}
    found[FLUX] |= {k: [float(v.mean()), float(v.std())] for k, v in rates.items()}
    if p.truth is not None:
        found["truth"] = measure(p, "truth", p.truth, genes)
    return found, params


def fields(problems: list, seeds: range, workdir: Path) -> str:
    """Consistency, CBC and agreement with the truth, side by side."""
    found = {}
    for p, seed, reference in problems:
        runs = found.setdefault(p.name, {})
        measured, params = compare(p, seed, reference)
        for name, values in measured.items():
            runs.setdefault(name, []).append(values)
        print(p.name, seed, {k: v["consistency"] for k, v in measured.items()}, flush=True)
        if seed == seeds[0]:
            keys = {"flux": FLUX, "longer": LONGER, "scvelo": SCVELO} | (
                {} if p.truth is None else {"truth": "truth"}
            )
            picture(p, keys, workdir / f"stream_{p.name}.png")
            write_kinetics(p, params, reference, workdir / f"kinetics_{p.name}.csv")
        (workdir / "fields.json").write_text(json.dumps(found, indent=2))
    return table("velocities by", found)


SETTINGS = {
    "as in the paper": Setting(),
    "before training": Setting(steps=0),
    "half of the cells a step": Setting(batch=0.5),
    "σ² = 1e-1": Setting(variance=1e-1),
    "rates start at N(0, 1)": Setting(spread=1.0),
    "rates start at N(0, 1), before training": Setting(spread=1.0, steps=0),
    "2,000 steps of 1e-2": Setting(2_000, 1e-2),
    "2,000 steps of 1e-2, σ² = 1e-1": Setting(2_000, 1e-2, 1e-1),
}


def sensitivity(problems: list, seeds: range, workdir: Path) -> str:
    """Flux Matching under other settings, on the genes that scVelo gives velocities for."""
    found = {}
    for (p, seed, reference), title in itertools.product(problems, SETTINGS):
        if not p.transitions and p.truth is None:
            continue
        genes = np.isfinite(reference.velocity).all(0)
        velocity, params = train(p.states, seed, SETTINGS[title])
        rates = kinetics.rates(params)
        values = measure(p, "velocity", velocity, genes) | ratio_correlation(p, rates, genes)
        values |= {k: [float(v.mean()), float(v.std())] for k, v in rates.items()}
        found.setdefault(p.name, {}).setdefault(title, []).append(values)
        print(p.name, seed, title, {c: values.get(c) for c in COLUMNS}, flush=True)
        (workdir / "sensitivity.json").write_text(json.dumps(found, indent=2))
    return table("trained", found)


STUDIES = {"fields": fields, "sensitivity": sensitivity}


def gather(data: Path, clusters: str, transitions, seeds: range) -> list:
    """(problem, seed, scVelo's fit) of every file and seed, and of the simulations."""
    files = sorted(data.glob("*.h5ad")) if data.is_dir() else [data]
    if not files:
        raise UserError(f"no .h5ad file in --data={data}")
    for file in files:
        cells.read(file)  # all mistakes before any work
    out = []
    for p in (real(file, clusters, transitions) for file in files):
        if p.labels is None:
            print(f"{p.name}: no clusters in obs[{clusters!r}], so no CBC", flush=True)
        elif not p.transitions:
            print(
                f"{p.name}: no known transition between its larger clusters, so no CBC", flush=True
            )
        reference = dynamical(p.adata)
        out += [(p, seed, reference) for seed in seeds]
    for seed in seeds:
        p = simulated(seed)
        out.append((p, seed, dynamical(p.adata)))
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help=".h5ad file, or folder of them")
    parser.add_argument("--workdir", type=Path, default=Path("runs/rna_velocity"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--clusters", default="clusters", help="column of obs with the clusters")
    parser.add_argument("--transitions", nargs="*", default=[], help="known ones, as 'A > B'")
    parser.add_argument("--only", nargs="*", choices=list(STUDIES), default=list(STUDIES))
    args = parser.parse_args()
    given = [tuple(part.strip() for part in pair.split(">")) for pair in args.transitions]
    workdir, seeds = args.workdir.resolve(), range(args.seeds)
    try:
        if args.seeds < 1:
            raise UserError(f"--seeds={args.seeds} must be at least 1")
        if any(len(pair) != 2 for pair in given):
            raise UserError("--transitions are written 'A > B'")
        problems = gather(args.data, args.clusters, given + list(TRANSITIONS), seeds)
    except UserError as error:
        print(f"rna_velocity: {error}", file=sys.stderr)
        sys.exit(2)
    workdir.mkdir(parents=True, exist_ok=True)
    for name in args.only:
        text = STUDIES[name](problems, seeds, workdir)
        (workdir / f"{name}.md").write_text(text)
        print(text, flush=True)


if __name__ == "__main__":
    main()
