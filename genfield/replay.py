"""Makes a step again that was not finite: python -m genfield.replay --workdir=runs/x [--step=N]

A training that stops at such a step leaves its dump in nonfinite/; --workdir may be a dump too.
Fields of the config that change no number may be set: --config.mesh.data=1.
"""

import sys
from pathlib import Path

from genfield.machine import allocator, preemption, xla

if __name__ == "__main__":
    preemption.install()  # before the slow imports: a signal never goes unheard
    xla.apply()  # before JAX starts: the same programs as those of the training
    allocator.keep(xla.platform())

from genfield import errors
from genfield.errors import UserError, local, tell
from genfield.program import command


def run(argv: list[str]) -> None:
    """Runs a command line to its end.

    Raises:
      UserError: no dump, or the step comes out in another way.
    """
    parser = errors.Parser("genfield replay", "pass --workdir=RUN", description=__doc__)
    parser.add_argument("--workdir", required=True, help="a run, or one of its dumps")
    parser.add_argument("--step", type=int, help="of the dump; left out: the newest")
    options, overrides = parser.parse_known_args(argv[1:])
    # Slow to import, which no simple mistake waits for.
    from genfield.program import config_io, experiment, fault, own_files

    folder = fault.find(local(Path(options.workdir), "--workdir").resolve(), options.step)
    config = config_io.override(config_io.from_file(folder / "config.json"), overrides)
    command.check_devices()
    methods = own_files.methods_of(folder)
    exp = experiment.prepare(config, folder, methods, reads_data=False, decodes=False)
    preemption.begin()
    preemption.nothing_to_save("stopped; the same command starts again")
    dumped = fault.read(folder, exp)
    found, figures = fault.again(dumped)
    step, told = dumped.facts["step"], dumped.facts["fault"]
    now = "every number of it is finite" if found is None else str(found)
    figures_told = "  ".join(f"{name} {value}" for name, value in figures.items())
    tell(f"step {step} of {folder}: {now}")
    if figures_told:
        tell(f"its figures: {figures_told}")
    if not fault.same(dumped, found, figures):
        before = "of no number" if told is None else f"{told['cause']}, {told['place']['leaf']}"
        raise UserError(
            f"this is not what the training stopped at ({before}; figures "
            f"{dumped.facts['figures']}): on the same versions and device, what made the step so "
            "came from outside its numbers, as a fault of memory does"
        )
    tell("the same fault, to the bit")


def main(argv: list[str] | None = None) -> int:
    """Runs a command line, by default this process's; returns the exit code."""
    return command.main(sys.argv if argv is None else argv, run)


if __name__ == "__main__":
    command.leave(sys.argv, run)
