"""What would make a training fit, and the figures of each."""

from collections.abc import Callable, Iterator

from genfield import registry
from genfield.machine.chips import Machine
from genfield.program import config_io
from genfield.registry import Methods, bound

FACTORS = (2, 4)  # of the microbatches


def options(config, machine: Machine, methods: Methods) -> Iterator[tuple[str, ...]]:
    """Overrides that cost memory less, each as the flags of a command line; last all of them."""
    network = methods[registry.Network].get(config.net.get("name"))
    fields = bound(network, config.net)
    cheaper, chips = [], machine.count
    if fields.get("dtype") == "float32":
        cheaper.append(("--config.net.dtype=bfloat16",))
    if "remat" in fields and fields["remat"] in (False, "none"):
        cheaper.append(("--config.net.remat=full",))
    most = chips // machine.slices  # data goes across slices
    if 0 < config.mesh.fsdp < most:
        data = () if config.mesh.data == -1 else ("--config.mesh.data=-1",)
        cheaper.append((*data, f"--config.mesh.fsdp={most}"))
    yield from cheaper
    now = config.optimizer.accumulate
    for factor in FACTORS:
        if config.batch_size % (chips * now * factor) == 0:
            yield (f"--config.optimizer.accumulate={now * factor}",)
    if len(cheaper) > 1:
        yield tuple(flag for flags in cheaper for flag in flags)


def mend(config, machine: Machine, methods: Methods) -> str:
    """The options in a line, for a training that does not fit."""
    found = [" ".join(flags) for flags in options(config, machine, methods)]
    more = f"more chips, a smaller config.batch_size ({config.batch_size}) or a smaller config.net"
    return f"try {' or '.join(found)}, or {more}" if found else f"take {more}"


def tried(config, machine: Machine, methods: Methods, plan: Callable) -> Iterator[dict]:
    """Each option's train step; `plan(config) -> figures` compiles it."""
    for flags in options(config, machine, methods):
        changed = config_io.override(config.copy_and_resolve_references(), list(flags))
        yield {"change": " ".join(flags)} | plan(changed)
