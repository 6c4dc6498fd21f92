"""What a training asks of a machine, before it is rented: memory, traffic, time, from shapes alone.

  python -m genfield.plan --config=configs/….py --topology=v5e:16x16 [--slices=2] [--suggest]
      [--out=FOLDER] [--shape=32,32,3] [--classes=10] [--config.a.b=…]

Compiles the train step and a step of the sampler for that machine: no data, no weights, no device.
Topologies: v4:2x2x1, v5e:4x4, v5p:2x2x1, v6e:4x4 (extra plan-tpu), a100:8, h100:8, h100:8x8 (nodes
x GPUs), h200:8, b200:8 (extra plan-gpu), cpu:8. Exit code 2 where it does not fit.
"""

import argparse
import os
import sys

from genfield import errors
from genfield.errors import UserError, local, tell
from genfield.machine import chips


def sides(text: str) -> tuple[int, ...]:
    """Positive whole numbers, with commas between them."""
    values = tuple(int(part) for part in text.split(","))
    if min(values) < 1:
        raise argparse.ArgumentTypeError(f"{text} has a side that is not positive")
    return values


def parse(argv: list[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """The options of a command line, and the overrides of the config.

    Raises:
      UserError: unknown, missing or wrong ones.
    """
    mend, what = "genfield plan --help lists the flags", __doc__.splitlines()[0]
    parser = errors.Parser("genfield plan", mend, description=what, allow_abbrev=False)
    parser.add_argument("--config", required=True, help="as main's, with overrides --config.a.b=…")
    parser.add_argument("--topology", required=True, help="v5e:4x4, v5p:2x2x1, h100:8x8, cpu:8, …")
    parser.add_argument("--slices", type=int, default=1, help="of TPUs, data across them")
    parser.add_argument("--out", help="folder of plan.json and plan.md")
    parser.add_argument("--suggest", action="store_true", help="also compile what would take less")
    parser.add_argument(
        "--effort",
        choices=("full", "low"),
        default="full",
        help="of the compiler; low takes half as long for TPUs, and says more memory traffic",
    )
    parser.add_argument("--shape", type=sides, help="of an example, where the config has none")
    parser.add_argument("--classes", type=int, help="of the data, where the config does not say")
    options, rest = parser.parse_known_args(argv)
    wrong = [argument for argument in rest if not argument.startswith("--config.")]
    if wrong:
        parser.error(f"unknown argument {wrong[0]!r}")
    return options, rest


def run(argv: list[str] | None) -> None:
    """Runs a command line to its end."""
    options, overrides = parse(argv)
    machine = chips.parse(options.topology, options.slices)
    out = None if options.out is None else local(options.out, "--out")
    if out is not None:
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot make the folder --out={out}: {error.strerror}") from error
    from genfield.program import config_io

    config, methods = config_io.read(str(local(options.config, "--config")))
    config = config_io.override(config, overrides)
    # Only now the slow imports.
    from genfield.machine.tables import columns
    from genfield.plan import plan, report

    target = plan.target(machine)._replace(effort=options.effort)
    made = plan.make(config, methods, target, options)
    tell(f"{made['headline']}\n\n{report.table(made)}\n")
    for line in report.notes(made):
        tell(line)
    if made["suggestions"]:
        tell("\n" + columns(report.options(made)))
    if out is not None:
        report.write(made, out)
        tell(f"plan: {out / 'plan.md'}")
    if not made["fits"]:
        raise UserError(made["mend"])


def main(argv: list[str] | None = None) -> int:
    """0 where it fits, 2 with one line where it does not or where the user can mend it."""
    return errors.told(lambda: run(argv))


def start(argv: list[str]) -> int:
    """As the whole of a process: JAX starts with what this machine needs."""
    try:
        options, _ = parse(argv)
        machine = chips.parse(options.topology, options.slices)
    except UserError:
        return main(argv)  # which tells it
    from genfield.plan import environment

    os.environ |= environment.of(machine)
    return main(argv)


if __name__ == "__main__":
    sys.exit(start(sys.argv[1:]))
