"""Forty plausible bugs, put into the package one at a time: which of them do the tests notice?

    python tests/mutants.py --write=mutants.json

A mutant is found by its text, wherever in the package it stands, and its tests by the names of
their files, without `test_`: so the table serves before and after files move. Files are changed in
place and restored; nothing else may use the checkout meanwhile.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
TIMEOUT = 300  # seconds a mutant
PYTEST = (sys.executable, "-m", "pytest", "-x", "-q", "-n", "0", "-p", "no:cacheprovider")


class Mutant(NamedTuple):
    """A change of one place: `old` stands once in the package."""

    name: str
    old: str
    new: str
    tests: str  # names of test files, without `test_`


MUTANTS = [
    # Losses
    Mutant(
        "equilibrium_shows_time",
        "gradient = direction(field(sample.x, sample.t if time_input else None, cond))",
        "gradient = direction(field(sample.x, sample.t, cond))",
        "losses",
    ),
    Mutant(
        "distance_offset", "jnp.sqrt(r2 + c0), residual", "jnp.sqrt(r2) + c0, residual", "losses"
    ),
    Mutant(
        "denoising_weight",
        "jnp.square(sigma * data),",
        "(sigma * data),",
        "flux_levels",
    ),
    Mutant(
        "lines_l2_on_the_data",
        "jnp.sqrt(jnp.where(squared > 0, squared, 1.0)), 0.0)",
        "jnp.sqrt(squared), 0.0)",
        "losses",
    ),
    Mutant("action_kinetic", "kinetic = 0.5 * squared_norm(", "kinetic = squared_norm(", "losses"),
    Mutant(
        "flux_target_moves",
        "pulled = jax.lax.stop_gradient(second_order())",
        "pulled = second_order()",
        "flux",
    ),
    Mutant("flux_subsample", "weights * (n / kept)", "weights * (kept / n)", "flux"),
    Mutant("flux_stein", "pullback(out - of_target)[0]", "pullback(out)[0]", "flux"),
    Mutant(
        "annealed_rate_leaks",
        "jax.lax.stop_gradient(flux if scale is None else flux * jnp.exp(-scale))",
        "(flux if scale is None else flux * jnp.exp(-scale))",
        "flux_levels",
    ),
    Mutant(
        "adversary_real_label",
        "judged(roles, 1, real, real_label)",
        "judged(roles, 1, real, label)",
        "adversarial",
    ),
    Mutant(
        "mixing_kick",
        "kick = expand(jnp.sqrt(2 * step), start)",
        "kick = expand(jnp.sqrt(step), start)",
        "flux_levels",
    ),
    # Samplers
    Mutant(
        "churn_steps",
        "num_steps = len(state.memory[1]) - 1",
        "num_steps = len(state.memory[1])",
        "diffusion_samplers",
    ),
    Mutant(
        "corrector_size",
        "expand(2 * corrector_ratio**2 * ratio, predicted)",
        "expand(2 * corrector_ratio * ratio, predicted)",
        "diffusion_samplers",
    ),
    Mutant(
        "multistep_line",
        "(state.x - end) / sigma",
        "(state.x - end) / following",
        "sampling lines_toy",
    ),
    Mutant("hamiltonian_mass", "squared_norm(q) / (2 * mass)", "squared_norm(q) / 2", "sampling"),
    Mutant("stopping_forgets", "done=state.done | stop", "done=stop", "sampling"),
    Mutant("refill_late", "(at.k + 1 >= num_steps)", "(at.k >= num_steps)", "sampling"),
    # Couplings, paths, fields
    Mutant(
        "greedy_takes_twice",
        "holder = jnp.where(taken, -1, num_rows).astype(jnp.int32)",
        "holder = jnp.full(num_columns, num_rows, jnp.int32)",
        "couplings",
    ),
    Mutant(
        "sinkhorn_axis",
        "optimal_columns(-jax.nn.softmax(log_plan, axis=1))",
        "optimal_columns(-jax.nn.softmax(log_plan, axis=0))",
        "couplings",
    ),
    Mutant("skewed_ends", "jnp.clip(1 / (1 + noise_level),", "jnp.clip(1 / noise_level,", "fields"),
    Mutant("bridge_end", "jnp.sqrt(t * (1 - t) + BRIDGE_END)", "jnp.sqrt(t * (1 - t))", "fields"),
    Mutant(
        "precondition_out", "t * sigma_data / jnp.sqrt(total)", "t / jnp.sqrt(total)", "fields flux"
    ),
    Mutant(
        "density_null_class",
        "belongs | (asked == null_class)[:, None]",
        "belongs | (asked < 0)[:, None]",
        "flux_levels",
    ),
    Mutant(
        "guided_distance",
        "Prediction(guide(c.direction, u.direction), c.distance)",
        "Prediction(guide(c.direction, u.direction), u.distance)",
        "fields",
    ),
    # Networks
    Mutant(
        "sit_other_half",
        "reshape(b, height, width, self.outputs)[..., :c]",
        "reshape(b, height, width, self.outputs)[..., -c:]",
        "nets",
    ),
    Mutant(
        "null_label", "jnp.full(batch, num_classes, ", "jnp.full(batch, num_classes - 1, ", "nets"
    ),
    Mutant("initial_one_key", "jax.random.fold_in(key, i), (count,", "key, (count,", "nets"),
    # Metrics
    Mutant(
        "merge_weight",
        "(a.count * (b.count / count))",
        "(b.count * (b.count / count))",
        "image_metrics",
    ),
    Mutant(
        "kernel_diagonal",
        "np.fill_diagonal(rows[:, start:], 0.0)",
        "np.fill_diagonal(rows, 0.0)",
        "image_metrics",
    ),
    Mutant(
        "ball_boundary",
        "(squared <= reference_radii[None, :])",
        "(squared < reference_radii[None, :])",
        "image_metrics",
    ),
    Mutant("likelihood_scale", "math.log(last / first)", "math.log(first / last)", "likelihood"),
    # Data, randomness, files
    Mutant(
        "process_slice",
        "self.process_index * share + np.arange(share)",
        "np.arange(share)",
        "data",
    ),
    Mutant("pairs_order", "x0[rows[order]], x1[rows[order]]", "x0[rows[order]], x1[rows]", "pairs"),
    Mutant(
        "augment_axis",
        "[stretch * jnp.cos(axis), stretch * jnp.sin(axis)]",
        "[stretch * jnp.sin(axis), stretch * jnp.cos(axis)]",
        "augment",
    ),
    Mutant(
        "one_stream",
        "jax.random.fold_in(jax.random.key(seed), zlib.crc32(purpose.encode()))",
        "jax.random.key(seed)",
        "pairs",
    ),
    Mutant("digest_even", "* np.uint32(2) + np.uint32(1)", "+ np.uint32(1)", "checkpoint"),
    # The program
    Mutant(
        "gradient_unchecked",
        "finite = jnp.isfinite(tried.loss) & jnp.isfinite(tried.norm)",
        "finite = jnp.isfinite(tried.loss)",
        "train",
    ),
    Mutant(
        "generate_label",
        "cond = (index % data.num_classes)",
        "cond = (np.arange(len(index)) % data.num_classes)",
        "generate",
    ),
    Mutant(
        "points_median",
        "middle = np.median if self.of_samples and not self.exp.pictures else np.mean",
        "middle = np.mean",
        "evaluate",
    ),
    Mutant(
        "stack_is_split",
        "free = range(1 if stacked else 0, len(shape))",
        "free = range(len(shape))",
        "sharding",
    ),
]


def place_of(mutant: Mutant) -> Path:
    """The file that holds a mutant's text; SystemExit unless it stands there once."""
    found = [(p, p.read_text().count(mutant.old)) for p in sorted(ROOT.glob("genfield/**/*.py"))]
    found = [(path, count) for path, count in found if count]
    if [count for _, count in found] != [1]:
        where = (
            ", ".join(f"{path.relative_to(ROOT)} x{count}" for path, count in found) or "nowhere"
        )
        raise SystemExit(f"{mutant.name}: its text must stand once in the package: {where}")
    return found[0][0]


def files_of(mutant: Mutant) -> list[str]:
    """The test files that a mutant names; SystemExit for a name that none has."""
    known = {path.stem.removeprefix("test_"): path for path in ROOT.glob("tests/**/test_*.py")}
    unknown = [name for name in mutant.tests.split() if name not in known]
    if unknown:
        raise SystemExit(f"{mutant.name}: there is no tests/**/test_{unknown[0]}.py")
    return sorted(os.path.relpath(known[name], ROOT) for name in mutant.tests.split())


def tested(files: list[str]) -> tuple[str, str]:
    """(outcome, first failing test) of pytest on these files; on all where there are none."""
    env = os.environ | {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(ROOT)}
    options = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    process = subprocess.Popen(
        [*PYTEST, *files], cwd=ROOT, env=env, start_new_session=True, **options
    )
    try:
        lines = process.communicate(timeout=TIMEOUT)[0].splitlines()
    except subprocess.TimeoutExpired:
        return "timeout", ""
    finally:
        if process.poll() is None:  # and what the tests have started
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    bad = [line.split(" - ")[0] for line in lines if line.startswith(("FAILED ", "ERROR "))]
    if process.returncode == 0:
        return "survived", ""
    caught = process.returncode == 1 and bad
    return "caught" if caught else f"exit code {process.returncode}", bad[0] if bad else ""


def judged(mutant: Mutant, files: list[str]) -> dict:
    """Puts the mutant in, runs the tests, restores the file with its time."""
    path, begun = place_of(mutant), time.monotonic()
    text, times = path.read_bytes(), path.stat()
    try:
        path.write_bytes(text.replace(mutant.old.encode(), mutant.new.encode()))
        outcome, test = tested(files)
    finally:
        path.write_bytes(text)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    seconds = round(time.monotonic() - begun, 1)
    where = str(path.relative_to(ROOT))
    return {"outcome": outcome, "test": test, "seconds": seconds, "file": where, "tests": files}


def main() -> None:
    """Checks the whole table, then runs the mutants that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", type=Path, help="file for the results, as JSON")
    parser.add_argument("--only", help="names, with commas between them")
    parser.add_argument("--all", action="store_true", help="the whole suite for each; slow")
    arguments = parser.parse_args()
    chosen = {m.name: m for m in MUTANTS}
    if arguments.only:
        try:
            chosen = {name: chosen[name] for name in arguments.only.split(",")}
        except KeyError as error:
            raise SystemExit(f"no mutant is called {error}; known: {', '.join(chosen)}") from None
    files = {name: files_of(m) for name, m in chosen.items()}
    for mutant in MUTANTS:
        place_of(mutant)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the file is restored
    results = {}
    for name, mutant in chosen.items():
        result = results[name] = judged(mutant, [] if arguments.all else files[name])
        print(
            f"{name:24} {result['outcome']:9} {result['seconds']:6} s  {result['test']}", flush=True
        )
        if arguments.write:
            arguments.write.write_text(json.dumps(results, indent=1) + "\n")
    caught = sum(r["outcome"] == "caught" for r in results.values())
    print(f"{caught} of {len(results)} caught, {sum(r['seconds'] for r in results.values()):.0f} s")


if __name__ == "__main__":
    main()
