"""What `--help` prints of a config: its fields with their values, and what may be chosen in it.

Nothing is listed here. Values are the config's; comments are those beside the fields in `defaults`
and the arguments in methods' docstrings; ranges and defaults are those that are checked.
"""

import ast
import functools
import inspect
import io
import re
import sys
import tokenize
import types
import typing
from collections.abc import Iterator
from typing import Annotated, Any

from ml_collections import ConfigDict

from genfield import registry
from genfield.fields import ENERGIES
from genfield.preconditionings import PRECONDITIONINGS
from genfield.program import config_io, defaults
from genfield.program.checks import METHODS_OF
from genfield.registry import Methods

SECTIONS_OF = METHODS_OF | {"sampler": registry.Sampler}
CHOICES = SECTIONS_OF | {
    "path": registry.Path,
    "sampler.stop": registry.StopRule,
    "evaluate.metrics": registry.Metric,
    "train.loggers": registry.Logger,
}
NAMES = {"energy": ENERGIES, "preconditioning": PRECONDITIONINGS}  # fields that are a name alone
OF_THE_PROGRAM = {  # fields of a section that its method does not take
    "sampler.num_steps": "of samplers that do not choose their own",
    "sampler.then": "a section as this one: the sampler that goes on where this one ends",
    "sampler.stop": "a section with a name and fields: when a sample is finished",
}


def text(name: str, config: ConfigDict, methods: Methods) -> str:
    """All of it: the page's own words, its fields, what may be chosen."""
    parts = [_words(name), "Fields of this config, set by --config.SECTION.FIELD=VALUE:"]
    top = [field for field, value in config.items() if not isinstance(value, ConfigDict)]
    parts.append(f"config\n{_fields(config, '', top)}")
    for section in (field for field in config if field not in top):
        parts.append(f"config.{section}\n{_section(section, config, methods)}")
    parts.append("What may be chosen, and with which fields:")
    for where, kind in CHOICES.items():
        parts.append(_choices(where, methods[kind]))
    for where, table in NAMES.items():
        parts.append(f"config.{where}: {', '.join(['none', *(n for n in table if n != 'none')])}")
    return "\n\n".join(parts)


def _words(name: str) -> str:
    """The docstring of a config file; its name where it has none."""
    path = config_io.place(name.partition(":")[0])
    if path.suffix == ".json":
        return str(path)
    return ast.get_docstring(ast.parse(path.read_bytes())) or str(path)


def _section(section: str, config: ConfigDict, methods: Methods) -> str:
    """The fields of a section: the program's own, or of the method that it names."""
    if section not in SECTIONS_OF:
        return _fields(config[section], section, list(config[section]))
    record = registry.entry(section, methods[SECTIONS_OF[section]], config[section])
    rows = [("  name", repr(record.name), "")]
    given, known = dict(config[section]), _arguments(record)
    nested = getattr(record, "tables", {})
    for field, (_, default, words) in known.items():
        value = given.get(field, default)
        shown = _value(value)
        if field in nested and field not in given:
            shown, value = _nested(nested[field]), default
        rows.append((f"  {field}", shown, _joined(words, _was(value, default))))
    for field in given:
        if field not in known and field != "name":
            words = OF_THE_PROGRAM.get(
                f"{section}.{field}", f"no field of {record.name}: leave it out"
            )
            rows.append((f"  {field}", _value(given[field]), words))
    return _columns(rows)


def _fields(section: ConfigDict, name: str, fields: list[str]) -> str:
    """The program's own fields: value, what may be said of it, the default where it differs."""
    known = defaults.base()
    known = known[name] if name else known
    rows = []
    for field in fields:
        dotted = f"{name}.{field}" if name else field
        words = [comments().get(dotted, "")]
        if dotted in defaults.LIMITS:
            words.append(_limit(defaults.LIMITS[dotted]))
        words.append(_was(section[field], known[field]))
        rows.append((f"  {field}", _value(section[field]), _joined(*words)))
    return _columns(rows)


def _choices(where: str, table: dict[str, registry.Record]) -> str:
    """The methods of a kind, and a line for each of their fields."""
    lines = [f"config.{where if '.' in where or where == 'path' else where + '.name'}:"]
    for name, record in table.items():
        lines.append(f"  {name}: {summary(record)}".rstrip(": "))
        if isinstance(record, registry.Path | registry.Metric | registry.Logger):
            continue  # without fields, or with the program's alone
        nested, rows = getattr(record, "tables", {}), []
        for field, (kind, default, words) in _arguments(record).items():
            section = field in nested
            shown = f"= {_nested(nested[field])}" if section else _default(default)
            rows.append((f"      {field}", "section" if section else kind, shown, words))
        lines += [_columns(rows)] if rows else []
        for field, section in nested.items():
            lines.append(f"      {field}.name: {', '.join(map(_call, section.table.items()))}")
    return "\n".join(lines)


def _nested(section: registry.Nested) -> str:
    """What a nested section is where a config leaves it out."""
    return section.default or "the method's own"


def _call(entry: tuple[str, Any]) -> str:
    """A name of a nested section with its fields: "truncated(a=0.8, multiplier=1.0)"."""
    name, function = entry
    known = _arguments(function, leave_out=("shape", "num_classes"))
    shown = [f"{field}{_default(default, '=')}" for field, (_, default, _) in known.items()]
    return f"{name}({', '.join(shown)})" if shown else name


def _target(record) -> Any:
    """What carries the docstring of a method: a function or class; a record of data has none."""
    targets = (getattr(record, field, None) for field in ("function", "make", "compute"))
    target = next(filter(None, targets), None) if isinstance(record, registry.Record) else record
    target = target[1] if isinstance(target, tuple) else target
    return target.func if isinstance(target, functools.partial) else target


def summary(record: registry.Record) -> str:
    """What a method is, in the first paragraph of its docstring, or of its file's."""
    target = _target(record)
    doc = inspect.getdoc(target) if target is not None else None
    if target is not None and doc is None:  # of one's own files no module is kept
        doc = getattr(sys.modules.get(target.__module__), "__doc__", None)
    return (doc or "").split("\n\n")[0].replace("\n", " ")


def _arguments(record, leave_out=()) -> dict[str, tuple[str, Any, str]]:
    """The fields of a method, or of a function of a nested section: type, default, what is said."""
    function, supplied = registry.parts(record)
    known = registry.parameters(function)
    said, out = _said(inspect.getdoc(_target(record)) or "", known), {}
    for field, parameter in known.items():
        if field in (*supplied, *leave_out):
            continue
        kind, default = parameter.annotation, parameter.default
        if kind is inspect.Parameter.empty:
            kind = type(default)
        limits = "; ".join(filter(None, map(_limit, registry.marks(kind))))
        out[field] = (_type(kind), default, _joined(said.get(field, ""), limits))
    return out


def _said(doc: str, names) -> dict[str, str]:
    """What the section Args or Fields of a docstring says of each argument."""
    found = re.search(r"^(?:Args|Fields):\n((?: +\S.*\n?)+)", doc, re.MULTILINE)
    if not found or not names:
        return {}
    one = rf"(?:{'|'.join(map(re.escape, names))})(?: \([^()]*\))?"  # perhaps with its values
    words = re.split(rf"(?<!\S)({one}(?:, {one})*): ", " ".join(found[1].split()))
    out = {}
    for heads, text in zip(words[1::2], words[2::2], strict=True):
        for name, values in re.findall(r"(\w+)(?: \(([^()]*)\))?(?:, |$)", heads):
            out[name] = _joined(text.strip(" .;"), values)
    return out


@functools.cache
def comments() -> dict[str, str]:
    """The comments beside the fields in `defaults`, by dotted name."""
    source = inspect.getsource(defaults)
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    beside = {t.start[0]: t.string.lstrip("# ") for t in tokens if t.type == tokenize.COMMENT}

    def fields(call: ast.Call, prefix: str) -> Iterator[tuple[str, str]]:
        for keyword in call.keywords:
            name, value = f"{prefix}{keyword.arg}", keyword.value
            if isinstance(value, ast.Call) and getattr(value.func, "id", "") == "dict":
                yield from fields(value, f"{name}.")
            elif value.end_lineno in beside:
                yield name, beside[value.end_lineno]

    out = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and node.targets[0].id in ("TOP", "SECTIONS"):
            out |= dict(fields(node.value, ""))
    return out


def _limit(mark) -> str:
    """A mark in words: "positive", "one of npz, png"; "" of those that limit nothing."""
    if isinstance(mark, registry.Range):
        return re.sub(r"^must (not )?be ", lambda found: found[1] or "", mark.says)
    return f"one of {', '.join(map(str, mark.table))}" if isinstance(mark, registry.OneOf) else ""


def _type(kind) -> str:
    """A type as it is written, without its marks."""
    if typing.get_origin(kind) is Annotated:
        return _type(typing.get_args(kind)[0])
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return " | ".join(map(_type, typing.get_args(kind)))
    if kind in (type(None), inspect.Parameter.empty, type):
        return "None" if kind is type(None) else ""
    kind = typing.get_origin(kind) or kind
    return getattr(kind, "__name__", str(kind))


def _columns(rows: list[tuple[str, ...]], most: int = 28) -> str:
    """Rows of cells as aligned text; a cell longer than `most` pushes its own row alone."""
    width = lambda cells: max((len(cell) for cell in cells if len(cell) <= most), default=most)
    widths = [width(cells) for cells in zip(*rows, strict=True)]
    line = lambda row: "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip()
    return "\n".join(map(line, rows))


def _value(value) -> str:
    if value is inspect.Parameter.empty:
        return "must be set"
    return str(value.to_dict()) if isinstance(value, ConfigDict) else repr(value)


def _default(default, sign: str = "= ") -> str:
    if default is inspect.Parameter.empty:
        return "must be set" if sign == "= " else ""
    return f"{sign}{default!r}"


def _was(value, default) -> str:
    """What the default is, where a config has another value."""
    unsaid = value == default or default in (None, inspect.Parameter.empty) or callable(default)
    return "" if unsaid else f"default {_value(default)}"


def _joined(*words: str) -> str:
    return "; ".join(filter(None, words))
