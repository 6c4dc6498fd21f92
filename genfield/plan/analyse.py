"""What a compiled program says of itself: memory, FLOPs, bytes, collectives, seconds, warnings."""

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax

from genfield.machine import flops
from genfield.machine.chips import GIB, Chip, Machine, at_peak
from genfield.machine.digests import named_leaves
from genfield.placement import SMALLEST_SHARDED, sizes
from genfield.plan import collectives, hlo
from genfield.plan.programs import Traced
from genfield.program.experiment import Experiment

LARGEST = 10  # buffers that are named
NOTABLE = 2**20  # bytes of a buffer that a warning is worth
USED = re.compile(r"(?:Used |HLO temporaries \()([\d.]+)([KMGT])")  # as TPUs' compiler says it
LOW = {"exec_time_optimization_effort": -1.0, "memory_fitting_effort": -1.0}
EFFORTS: dict[str, dict[str, float]] = {"full": {}, "low": LOW}
UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class Target(NamedTuple):
    """What is compiled for: so many chips of a kind, with that effort of EFFORTS."""

    machine: Machine
    chip: Chip
    devices: list
    effort: str = "full"


def program(exp: Experiment, traced: Traced, target: Target, model_flops: float | None) -> dict:
    """The figures of a program, of a chip, as plan.json has them.

    model_flops: those that count for the utilisation, over all chips; None: all that are made.
    """
    counted = flops.count(traced.traced.jaxpr)
    loops = counted.pop(flops.UNKNOWN, 0)
    made = sum(counted.values())
    limit = target.chip.memory
    out: dict[str, Any] = {
        "what": traced.what,
        "calls": traced.calls,
        "batch": traced.batch,
        "flops": made / target.machine.count,
        "fits": True,
        "effort": target.effort,
        "warnings": [],
    }
    if loops:
        out["warnings"].append(f"{loops:.0f} loops of unknown length count as one trip each")
    lowered = traced.traced.lower()
    try:
        compiled = lowered.compile(compiler_options=EFFORTS[target.effort] or None)
    except Exception as error:  # the compiler for TPUs refuses what has no room
        out["memory_bytes"] = _refused(error, limit)
        return out | {"fits": False, "bytes": None, "collectives": None, "seconds": None}
    text = hlo.parse(compiled.as_text())
    out["memory_bytes"] = memory = _memory(compiled.memory_analysis(), limit)
    out["fits"] = memory["peak"] <= limit
    found = collectives.find(text, target.machine.count)
    out["bytes"] = hlo.traffic(text)
    out["collectives"] = collectives.totals(found)
    out["seconds"] = seconds = _seconds(counted, out["bytes"], found, target)
    useful = made if model_flops is None else model_flops
    peak = max(target.chip.flops.values()) * target.machine.count
    out["utilisation"] = useful / peak / seconds["predicted"] if useful else 0.0
    out["buffers"] = list(_buffers(text))
    out["warnings"] += _warnings(exp, text, found, traced.batch)
    out["most_chips"] = _most_chips(traced, seconds, target)
    return out


def _memory(stats, limit: float) -> dict:
    """Bytes of a chip; what is donated counts once."""
    arguments, temporaries = stats.argument_size_in_bytes, stats.temp_size_in_bytes
    results = stats.output_size_in_bytes - stats.alias_size_in_bytes
    peak = arguments + temporaries + results + stats.generated_code_size_in_bytes
    return {"arguments": arguments, "temporaries": temporaries, "peak": peak, "limit": int(limit)}


def _refused(error: Exception, limit: float) -> dict:
    """Bytes that a compiler says it would need; raises `error` where it says no such thing."""
    said = USED.search(str(error))
    if "RESOURCE_EXHAUSTED" not in str(error) or said is None:
        raise error
    used = float(said[1]) * UNITS[said[2]]
    return {"arguments": None, "temporaries": None, "peak": int(used), "limit": int(limit)}


def _seconds(counted: dict[str, float], traffic: float, found: list, target: Target) -> dict:
    """The roofline: what computing, memory and links each take alone, and the longest of them."""
    machine, chip = target.machine, target.chip
    compute = at_peak(counted, chip.flops) / machine.count
    links = 0.0
    for one in found:
        far = one.crosses(machine.domain)
        links += one.sent() / (chip.network if far else machine.link_rate(chip))
    memory = traffic / chip.bandwidth
    predicted = max(compute, memory, links)
    return {"compute": compute, "memory": memory, "links": links, "predicted": predicted}


def _most_chips(traced: Traced, seconds: dict, target: Target) -> dict:
    """Chips beyond which there is no example for each, or links take longer than the rest.

    The rest falls with each chip that joins; what the links carry does not.
    """
    n = target.machine.count
    rest = max(seconds["compute"], seconds["memory"])
    worth = int(n * rest / seconds["links"]) if seconds["links"] else None
    return {"by_batch": traced.batch, "by_links": worth}


def _outputs(text: hlo.Program) -> Iterator[hlo.Instruction]:
    """What instructions write to memory, by the program and its loops."""
    skipped = hlo.FREE | {"copy-done", "custom-call"}
    for region in hlo.regions(text):
        for one in text.computations[region.name].values():
            if one.opcode not in skipped:
                yield one


def _buffers(text: hlo.Program) -> Iterator[dict]:
    """The largest arrays: arguments and results of instructions, by their names."""
    entry = text.computations[text.entry].values()
    held = [one for one in entry if one.opcode == "parameter"]
    sizes = {(f"argument {one.label}", one.arrays[0]): one.bytes for one in held if one.arrays}
    for one in _outputs(text):
        for array in one.arrays:
            sizes[(one.label, array)] = array.bytes
    largest = sorted(sizes.items(), key=lambda item: -item[1])[:LARGEST]
    for (label, array), size in largest:
        shape = f"{array.dtype}[{','.join(map(str, array.dims))}]"
        yield {"name": label, "array": shape, "bytes": int(size)}


def _warnings(exp: Experiment, text: hlo.Program, found: list, batch: int) -> Iterator[str]:
    """What shards badly: global batches on a device, layers that do not divide."""
    if exp.mesh.size == 1:
        return
    batches = {batch, batch // exp.config.optimizer.accumulate}
    leaves = jax.tree.leaves(exp.abstract.params)
    own = [shape for a in leaves for shape in (a.shape, a.sharding.shard_shape(a.shape))]
    own = {tuple(sorted(part)) for shape in own for part in (shape, shape[1:])}
    whole = lambda array: array.dims[:1] and array.dims[0] in batches and not is_own(array)
    is_own = lambda array: tuple(sorted(n for n in array.dims if n > 1)) in own
    gathered = [c for c in found if any(whole(a) and a.bytes >= NOTABLE for a in c.arrays)]
    if gathered:
        size = sum(c.bytes * c.times for c in gathered)
        yield (
            f"{len(gathered)} collectives give each chip the global batch ({size / GIB:.2f} GiB a "
            f"step), as {gathered[0].label}"
        )
    full = {
        (one.label, a): a.bytes
        for one in _outputs(text)
        for a in one.arrays
        if whole(a) and a.bytes >= NOTABLE and one.opcode not in collectives.KINDS
    }
    if full:
        (label, array), size = max(full.items(), key=lambda item: item[1])
        yield (
            f"{len(full)} activations hold the global batch on each chip, the largest "
            f"{size / GIB:.2f} GiB ({array.dtype}{list(array.dims)}, {label})"
        )
    yield from _undivided(exp)


def _undivided(exp: Experiment) -> Iterator[str]:
    fsdp = sizes(exp.mesh)["fsdp"]
    leaves = named_leaves(exp.abstract.params).items()
    whole = [
        (name, leaf)
        for name, leaf in leaves
        if fsdp > 1 and leaf.size >= SMALLEST_SHARDED and leaf.sharding.is_fully_replicated
    ]
    if whole:
        size = sum(leaf.size * leaf.dtype.itemsize for _, leaf in whole)
        names = ", ".join(name for name, _ in whole[:3])
        yield (
            f"{len(whole)} arrays of parameters do not divide by fsdp={fsdp} and lie whole on each "
            f"chip ({size / GIB:.3f} GiB, and as much again for the average and each moment): "
            f"{names}{', …' * (len(whole) > 3)}"
        )
