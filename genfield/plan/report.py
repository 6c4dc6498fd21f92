"""plan.json and plan.md, and the table that is printed."""

from pathlib import Path

from genfield.machine import logbook
from genfield.machine.chips import GIB
from genfield.machine.tables import columns

TITLES = {"train": "train step", "sample": "sampler step", "decode": "decoding"}

LOW_EFFORT = (
    "compiled with low effort: with --effort=full it may take less memory and much less traffic, "
    "as TPUs then keep arrays in the core's own memory"
)


def size(count: float | None) -> str:
    """Bytes, in words."""
    if count is None:
        return "?"
    for unit, factor in (("GiB", GIB), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= factor:
            return f"{count / factor:.2f} {unit}"
    return f"{count:.0f} B"


def duration(seconds: float | None) -> str:
    """Seconds, in words."""
    if seconds is None:
        return "?"
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"


def rows(plan: dict) -> list[tuple[str, ...]]:
    """A row a program: memory, work and time of a chip."""
    out = [("a chip", "arguments", "temporaries", "peak", "limit", "TFLOP", "memory traffic")]
    out[0] += ("collectives", "compute", "memory", "links", "predicted", "utilisation")
    for name, part in programs(plan):
        memory, seconds = part["memory_bytes"], part["seconds"] or {}
        sent = part["collectives"]
        total = None if sent is None else sum(kind["bytes"] for kind in sent.values())
        out.append(
            (
                TITLES[name],
                *(size(memory[key]) for key in ("arguments", "temporaries", "peak", "limit")),
                f"{part['flops'] / 1e12:.3g}",
                size(part["bytes"]),
                size(total),
                *(duration(seconds.get(key)) for key in ("compute", "memory", "links")),
                duration(seconds.get("predicted")),
                f"{part['utilisation']:.0%}" if "utilisation" in part else "?",
            )
        )
    return out


def programs(plan: dict) -> list[tuple[str, dict]]:
    """The programs of a plan that there are."""
    return [(name, plan[name]) for name in TITLES if plan.get(name)]


def table(plan: dict) -> str:
    """The figures as text, a program a column."""
    return columns([tuple(cells) for cells in zip(*rows(plan), strict=True)])


def notes(plan: dict) -> list[str]:
    """What is to be said beside the table, a line each."""
    out = []
    for name, part in programs(plan):
        title = TITLES[name]
        if part["effort"] == "low":
            out.append(f"{title}: {LOW_EFFORT}")
        for kind, found in (part["collectives"] or {}).items():
            out.append(f"{title}: {kind} {found['count']} x, {size(found['bytes'])} in all")
        if name == "train" and part["seconds"]:
            rate = part["batch"] / part["seconds"]["predicted"]
            out.append(f"{title}: at best {rate:,.0f} examples/s of all chips")
        if name == "sample" and part["seconds"] and part["calls"]:
            spent = part["calls"] * part["seconds"]["predicted"]
            rate = f"{part['batch'] / spent:,.1f} samples/s of all chips"
            out.append(f"{title}: {part['calls']} of them, at best {rate}")
        out += [f"{title}: {line}" for line in _chips(part)]
        out += [f"warning, {title}: {line}" for line in part["warnings"]]
    return out


def _chips(part: dict) -> list[str]:
    most = part.get("most_chips")
    if most is None:
        return []
    line = f"more than {most['by_batch']} chips are too many for a batch of {most['by_batch']}"
    if most["by_links"] and most["by_links"] < most["by_batch"]:
        line += f"; from about {most['by_links']} on the links take longer than the rest"
    return [line]


def options(plan: dict) -> list[tuple[str, ...]]:
    """A row an option that was tried: what it changes, and its figures."""
    out = [("option", "peak", "fits", "collectives", "predicted")]
    for option in plan["suggestions"]:
        sent = sum(kind["bytes"] for kind in (option["collectives"] or {}).values())
        seconds = (option["seconds"] or {}).get("predicted")
        out.append(
            (
                option["change"],
                size(option["memory_bytes"]["peak"]),
                "yes" if option["fits"] else "no",
                size(sent),
                duration(seconds),
            )
        )
    return out


def markdown(plan: dict) -> str:
    """plan.md."""
    parts = [f"# {plan['config']} on {plan['topology']}", plan["headline"]]
    parts += [_pipes([tuple(cells) for cells in zip(*rows(plan), strict=True)])]
    parts += ["\n".join(f"- {line}" for line in notes(plan))]
    if plan["suggestions"]:
        parts += ["## Options, of the train step", _pipes(options(plan))]
    for name, part in programs(plan):
        if part.get("buffers"):
            held = [(b["name"], b["array"], size(b["bytes"])) for b in part["buffers"]]
            head = f"## Largest buffers of the {TITLES[name]}"
            parts += [head, _pipes([("name", "array", "size"), *held])]
    return "\n\n".join(parts) + "\n"


def _pipes(cells: list[tuple[str, ...]]) -> str:
    line = lambda row: "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"
    return "\n".join([line(cells[0]), "|" + "---|" * len(cells[0]), *map(line, cells[1:])])


def write(plan: dict, out: Path) -> None:
    """Writes both files."""
    logbook.write_json(out / "plan.json", plan)
    (out / "plan.md").write_text(markdown(plan), encoding="utf-8")
