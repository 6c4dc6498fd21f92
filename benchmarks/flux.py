"""The cost of a Flux Matching step over that of stable-target denoising, time and memory.

    python benchmarks/flux.py [--size full] [--batch 32] [--rounds 6] [--json out.json] [--only …]

Same network, batch, optimiser and precision for all, in one run; the paper's figures (Table 1) are
2.9 to 4.1 times the time and 2.0 to 2.9 times the memory. "passes" counts one pass through the
network, forward or back, as one: 3 of a regression step, 7 of Flux Matching.
"""

import argparse
import functools
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import rounds
import steps
from steps import ROOT

from genfield.errors import UserError
from genfield.losses.flux import estimator as flux
from genfield.program import config_io


def gradient_of_jvp(g, x, s, probes):
    """`flux._second_order` by reverse over forward mode: what most would write first."""

    def r(z, e):
        y, along = jax.jvp(g, (z,), (e,))
        return jnp.sum(e * along) + jnp.sum(y * s), y

    out, y = jax.grad(r, has_aux=True)(x, probes[0])
    return y, out


class Variant(NamedTuple):
    """A way to take the step."""

    passes: float
    loss: dict  # fields of config.loss
    net: dict = {}  # noqa: RUF012
    second_order: object = None  # in place of flux._second_order


def variants(batch: int) -> dict[str, Variant]:
    """By name; the first is what the others are compared with."""
    name = {"name": "flux_matching", "group_size": batch}
    half = {**name, "probed": 0.5}
    return {
        "DSM": Variant(3, {"name": "denoising", "stable_target": True, "group_size": batch}),
        "Flux": Variant(7, name),
        "Flux, gradient of jvp": Variant(7, name, second_order=gradient_of_jvp),
        "Flux, in four chunks": Variant(7, {**name, "chunk": batch // 4}),
        "Flux, half probed": Variant(5, half),
        "Flux, half probed, in four chunks": Variant(5, {**half, "chunk": batch // 8}),
        "Flux, quarter probed": Variant(4, {**name, "probed": 0.25}),
        "DSM, remat": Variant(4, {"name": "denoising", "stable_target": True}, {"remat": True}),
        "Flux, half probed, remat": Variant(6.5, half, {"remat": True}),
    }


def start(variant: Variant, args, data: Path, workdir: Path) -> steps.Step:
    """The compiled step of a variant."""
    config = config_io.load(str(ROOT / "configs" / f"flux_matching_cifar10.py:{args.size}"))
    config = config_io.override(config, args.flags)
    config.batch_size, config.data.path = args.batch, str(data)
    config.loss = dict(variant.loss)
    config.net.update(dtype=args.dtype, **variant.net)
    kept = flux._second_order
    flux._second_order = variant.second_order or kept
    try:
        return steps.prepare(config, workdir)
    finally:
        flux._second_order = kept


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=("full", "medium", "small"), default="full")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--rounds", type=int, default=6, help="of all variants in turn")
    parser.add_argument("--seconds", type=float, default=3.0, help="of the first in a round, about")
    parser.add_argument("--only", nargs="+", help="variants, the first to compare with")
    parser.add_argument("--json", type=Path)
    parser.add_argument("flags", nargs="*", help="further --config.…=… for all, after --")
    args = parser.parse_args()
    known = variants(args.batch)
    names = args.only or list(known)
    if unknown := [name for name in names if name not in known]:
        parser.error(f"unknown variant {unknown[0]!r}; known: {'; '.join(known)}")
    if args.batch % 8:
        parser.error("--batch must be a multiple of 8")
    print(rounds.describe(rounds.machine()), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        data = rounds.write_images(Path(folder) / "images.npz", 2 * args.batch)
        make = {
            name: functools.partial(start, known[name], args, data, Path(folder) / "run")
            for name in names
        }
        result = steps.compare(make, args.batch, args.rounds, args.seconds)
    print(steps.table(result, {name: known[name].passes for name in names}))
    steps.write(args.json, args, result)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(str(error))
