"""What is asked of a set of images, without training; each study gives figures and a table."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from genfield import data, rng
from genfield.analyze import lengths, matching, neighbours, posterior
from genfield.errors import UserError
from genfield.figures import analyze as figures
from genfield.machine import logbook
from genfield.metrics import path_geometry

EPSILON = C0 = 4.0  # DM Table 6, CIFAR-10
FREQUENT = 8  # images, as in DM Fig. 4
CHECKED = 32  # points and noises that are done again: in float64, with twice the nodes
READ = 1000  # images at a time
TITLES = {"zero": "t = 0", "uniform": "t ~ U(0, 1)", "skewed": "skewed t"}  # p_T of the angles
MATCH_SIZES = (10, 100, 1000, 10_000)
SHOWN, LINES = 300, 150  # pairs in the plane, and how many of them are joined
# DANSM Table 2, 50,000 CIFAR-10 images: match size -> length, d_avg, d_min; 1 is random pairs.
DANSM_TABLE_2 = {
    1: ("62.04", "33.97", "17.99"),
    10: ("61.73", "34.01", "18.02"),
    100: ("61.36", "34.09", "18.06"),
    1000: ("61.06", "34.24", "18.10"),
    10_000: ("60.83", "34.36", "18.13"),
    100_000: ("60.64", "34.45", "18.17"),
}


class Images(NamedTuple):
    """The images of the training split: flat is float32 [N, D] in [-1, 1], of shape (H, W, C)."""

    flat: jax.Array
    shape: tuple[int, ...]
    fingerprint: str


def load(path: str, cache: str | None) -> Images:
    """The training images of a folder, an archive or an .npz file.

    Raises:
      UserError: they cannot be read; fewer than two.
    """
    section = {"name": "images", "path": path, "cache": cache}
    dataset = data.create(section, batch_size=1, seed=0, log=logbook.say)
    examples = dataset.examples["train"]
    if examples.size < 2:
        raise UserError(f"{path} has {examples.size} training image: pass two or more")
    flat = np.empty((examples.size, int(np.prod(dataset.shape))), np.float32)
    for start in range(0, examples.size, READ):
        rows = np.arange(start, min(start + READ, examples.size))
        flat[rows] = data.to_unit(examples.gather(rows)["x1"]).reshape(len(rows), -1)
    return Images(jnp.asarray(flat), dataset.shape, dataset.fingerprint)


def study_coverage(images: Images, options, out: Path) -> tuple[dict, list]:
    """Coverage rate at t = 0 and in each bin of t, and the most frequent images of the noise end.

    Returns:
      What goes into analysis.json, and rows (what, measured, paper) of the table.
    """
    flat, key = images.flat, rng.stream(options.seed, "coverage")
    bins = [(0.0, 0.0), *neighbours.uniform_bins(options.bins)]
    on_block = logbook.Progress("nearest images", options.num, unit="points").update
    found = neighbours.nearest_along_path(key, flat, bins, options.num, on_block=on_block)
    checked = min(CHECKED, options.num)
    excess = neighbours.excess_distance(key, flat, bins, found, checked)
    rates = [neighbours.coverage(row, len(flat)) for row in found]
    frequent = [neighbours.most_frequent(row, FREQUENT) for row in found]
    rows, shares = frequent[0]
    pictures = np.asarray(flat[rows]).reshape(-1, *images.shape)
    figures.coverage(out / f"coverage.{options.format}", bins[1:], rates[1:], pictures, shares)
    result = {
        "points": options.num,
        "images": len(flat),
        "bins": bins,
        "coverage": rates,
        "top_8_share": [float(s.sum()) for _, s in frequent],
        "top_1_share": [float(s[0]) for _, s in frequent],
        "noise_end_images": [
            {"row": int(r), "share": float(s), "norm": float(jnp.linalg.norm(flat[r]))}
            for r, s in zip(rows, shares, strict=True)
        ],
        "checked_in_float64": int(excess.size),
        "not_nearest_in_float64": int(np.sum(excess > 0)),
        "largest_excess_distance": float(excess.max()),
    }
    percent = lambda share: f"{100 * share:.2f}%"
    table = []
    for row, name in enumerate(("t = 0", f"t in [0, {bins[1][1]:.3g}]")):
        top_8, top_1 = result["top_8_share"][row], result["top_1_share"][row]
        table += [
            (f"coverage, {name}", percent(rates[row]), "0.17%"),
            (f"share of the {FREQUENT} most frequent images, {name}", percent(top_8), "92.8%"),
            (f"share of the most frequent image, {name}", percent(top_1), "62.2%"),
        ]
    table.append((f"coverage, t in [{bins[-1][0]:.3g}, 1]", percent(rates[-1]), "near 1"))
    if options.num != len(flat):
        table.append(("points a bin, of as many images", f"{options.num} of {len(flat)}", "equal"))
    return result, table


def study_lengths(images: Images, options, out: Path) -> tuple[dict, list]:
    """The lengths of random pairs, and those from one noise to all images; see `study_coverage`."""
    key = rng.stream(options.seed, "lengths")
    pairs = lengths.pair_lengths(key, images.flat, options.num)
    alone, dimension = rng.stream(options.seed, "one noise"), images.flat.shape[1]
    x = neighbours.draw_noise(alone, np.arange(1), dimension=dimension)[0]
    one = lengths.lengths_from(x, images.flat)
    figures.lengths(out / f"lengths.{options.format}", pairs, one)
    result = {"pairs": lengths.summary(pairs), "from_one_noise": lengths.summary(one)}
    result["pairs"]["within_50_to_80"] = float(np.mean((pairs >= 50) & (pairs <= 80)))
    table = []
    for title, name in (("random pairs", "pairs"), ("from one noise", "from_one_noise")):
        row = result[name]
        span = f"{row['quantiles']['0.0']:.1f} to {row['quantiles']['1.0']:.1f}"
        mean = f"{row['mean']:.2f} ± {row['std']:.2f}"
        table += [
            (f"length, {title}: smallest to largest", span, "50 to 80" if name == "pairs" else "-"),
            (f"length, {title}: mean ± deviation", mean, "-"),
            (f"length, {title}: skewness", f"{row['skewness']:+.2f}", "right-skewed"),
        ]
    return result, table


def study_angles(images: Images, options, out: Path) -> tuple[dict, list]:
    """Angles between the minimisers at noises x ~ N(0, I), for each p_T; see `study_coverage`."""
    key, dimension = rng.stream(options.seed, "angles"), images.flat.shape[1]
    x = np.asarray(neighbours.draw_noise(key, np.arange(options.points), dimension=dimension))
    result, table, exact, single = {}, [], {}, {}
    settings = {"epsilon": EPSILON, "c0": C0}
    for name in options.times:
        title = TITLES[name]
        on_block = logbook.Progress(f"minimisers, {title},", len(x), unit="points").update
        found = posterior.minimisers(x, images.flat, time=name, on_block=on_block, **settings)
        few = posterior.Minimisers(*(v[:CHECKED] for v in found))
        twice = posterior.minimisers(
            x[:CHECKED], images.flat, time=name, num_nodes=2 * posterior.NUM_NODES, **settings
        )
        angles = posterior.angles(found)
        if not np.all(np.isfinite(angles.ratio)):
            raise UserError("the minimisers have one direction: pass images that differ")
        rough = posterior.single_precision_ratio(found)
        rough = rough[np.isfinite(rough)]
        exact[title], single[title] = angles.ratio, rough
        result[name] = {
            "ratio": lengths.summary(angles.ratio),
            "degrees": {
                field: lengths.summary(np.degrees(values))
                for field, values in zip(angles._fields[:3], angles[:3], strict=True)
            },
            "single_precision_ratio": lengths.summary(rough) if len(rough) else None,
            "twice_the_nodes": {
                field: float(np.max(np.abs(b - a)) / np.max(np.abs(a)))
                for field, a, b in zip(found._fields, few, twice, strict=True)
            },
        }
        row = result[name]["ratio"]
        table += [
            (f"ratio of angles, {title}: mean", f"{row['mean']:.5f}", "1.0003"),
            (f"ratio of angles, {title}: largest", f"{row['quantiles']['1.0']:.4f}", "-"),
        ]
        if len(rough):
            span = f"{rough.mean():.4f}, {rough.min():.2f} to {rough.max():.2f}"
            what = f"ratio of angles, {title}: by float32 cosines"
            table.append((what, span, "1.0003, about 0.8 to 1.2"))
    figures.ratios(out / f"angles.{options.format}", exact, single)
    return {"epsilon": EPSILON, "c0": C0, "nodes": posterior.NUM_NODES, **result}, table


def study_couplings(images: Images, options, out: Path) -> tuple[dict, list]:
    """Path lengths and inter-path distances by match size (DANSM Table 2); see `study_coverage`."""
    size, paths, sizes = len(images.flat), options.paths, options.match_sizes
    for match_size in sizes:
        if size % match_size:
            left = size % match_size
            logbook.say(f"match size {match_size}: the last {left} images are a set of their own")
    random = np.random.default_rng(options.seed)
    kept = np.sort(random.choice(size, paths, replace=False))
    shown = np.sort(random.choice(paths, min(SHOWN, paths), replace=False))
    rows, ends = [], {}
    for match_size in (1, *sizes):
        pairs, row = _measure_pairs(images, options, match_size, kept)
        rows.append(row)
        ends[match_size] = pairs.x0[shown], pairs.x1[shown]
    figures.couplings(out / f"couplings.{options.format}", rows)
    result = {
        "rows": rows,
        "paths": paths,
        "t_star": "0 at the data, 1 at the noise (DANSM eq. 4); t = 1 - t_star",
    }
    if sizes:
        path = out / f"crossings.{options.format}"
        result["crossings"] = _show_crossings(path, ends, options.seed)
    return result, _couplings_table(result, size)


def check_paths(options, size: int) -> None:
    """Sets --match_sizes and --paths to what `size` images allow.

    Raises:
      UserError: a match size larger than the data, or a single path.
    """
    if options.match_sizes is None:
        options.match_sizes = tuple(s for s in MATCH_SIZES if s <= size)
    if max(options.match_sizes, default=0) > size:
        raise UserError(
            f"--match_sizes has {max(options.match_sizes)}, but there are {size} training images: "
            "match no more"
        )
    if options.paths < 2:
        raise UserError("--paths=1 leaves no distance between paths: take two or more")
    options.match_sizes = tuple(dict.fromkeys(s for s in options.match_sizes if s > 1))
    options.paths = min(options.paths, size)


def _measure_pairs(images: Images, options, match_size: int, kept: np.ndarray):
    """The pairs of a match size, those of `kept` with their noises, and what is found of them."""
    title = f"match size {match_size}," if match_size > 1 else "random pairs,"
    begun = time.monotonic()
    on_chunk = logbook.Progress(title, len(images.flat), unit="images").update
    key = rng.stream(options.seed, "couplings")
    pairs = matching.match_images(key, images.flat, match_size, kept, on_chunk=on_chunk)
    matched = time.monotonic()
    total = len(kept) * (len(kept) - 1) // 2
    on_block = logbook.Progress(f"distances, {title}", total, unit="pairs of paths").update
    found = path_geometry.distances(pairs.x0, pairs.x1, on_block=on_block)
    row = {"match_size": match_size, "length": float(pairs.lengths.mean())}
    row |= {"lengths": lengths.summary(pairs.lengths), **path_geometry.summary(found)}
    row |= {"seconds_matching": matched - begun, "seconds_distances": time.monotonic() - matched}
    return pairs, row


def _show_crossings(path: Path, ends: dict[int, tuple], seed: int) -> dict | None:
    """Random pairs beside those of the largest match size in the plane (DANSM Fig. 2).

    Returns:
      The share of pairs of lines that cross, by match size; None without scikit-learn.
    """
    largest = max(ends)
    clouds = {"samples": ends[1][1], "random": ends[1][0], "matched": ends[largest][0]}
    try:
        plane = matching.embed(clouds, seed)
    except ImportError:
        logbook.say("no crossings: t-SNE needs scikit-learn, pip install 'genfield[digits]'")
        return None
    panels = {
        "random pairs": (plane["random"], plane["samples"]),
        f"match size {largest:,}": (plane["matched"], plane["samples"]),
    }
    figures.crossings(path, panels, LINES)
    shares = [matching.crossing_share(*panel) for panel in panels.values()]
    share = dict(zip(("1", str(largest)), shares, strict=True))
    return {"share": share, "pairs": len(clouds["samples"]), "perplexity": matching.PERPLEXITY}


def _couplings_table(result: dict, size: int) -> list[tuple[str, str, str]]:
    table = []
    for row in result["rows"]:
        known = DANSM_TABLE_2.get(row["match_size"], ("-",) * 3)
        title = f"match size {row['match_size']:,}" if row["match_size"] > 1 else "random pairs"
        for name, what, paper in zip(
            ("length", "d_avg", "d_min"),
            ("mean length", "average distance", "minimal distance"),
            known,
            strict=True,
        ):
            table.append((f"{what}, {title}", f"{row[name]:.3f}", paper))
        paper = "0.1916" if row["match_size"] == 1 else "-"
        table.append((f"t* (0 at the data), {title}: mean", f"{row['t_star_avg']:.4f}", paper))
    first = result["rows"][0]["t_star_quantiles"]
    span = ", ".join(f"{first[q]:.3f}" for q in ("0.05", "0.5", "0.95"))
    table.append(("t*, random pairs: 5%, 50%, 95%", span, "-"))
    if result["paths"] != size:
        table.append(("paths that distances are between", f"{result['paths']} of {size}", "all"))
    if result.get("crossings"):
        shares = result["crossings"]["share"].values()
        told = ", ".join(f"{100 * share:.1f}%" for share in shares)
        table.append(("lines that cross in the plane, random and matched", told, "-"))
    return table


STUDIES: dict[str, Callable] = {
    "coverage": study_coverage,
    "lengths": study_lengths,
    "angles": study_angles,
    "couplings": study_couplings,
}
