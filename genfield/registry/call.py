"""From a section of a config to a call: the method is chosen, its fields checked and filled in."""

import difflib
import functools
import inspect
import types
import typing
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Annotated, Any

from genfield.errors import UserError
from genfield.registry.marks import OneOf, Range, marks
from genfield.registry.records import Record

# What a config value can be, and how a message says it.
TYPES = {
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    str: "a string",
    tuple: "a tuple",
    type(None): "None",
}


def _hint(name: str, known) -> str:
    close = difflib.get_close_matches(str(name), [str(k) for k in known], n=1)
    return f": did you mean {close[0]!r}?" if close else "."


def choose(kind: str, name: str, table: Any) -> Any:
    """`table[name]`, or a UserError that lists the known names of this kind.

    A table that is no mapping is a collection of names, and the name itself is returned.
    """
    if not isinstance(name, Hashable) or name not in table:  # as a list in somebody's JSON
        known = ", ".join(sorted(map(str, table))) or "none"
        raise UserError(f"unknown {kind} {name!r}{_hint(name, table)} Known: {known}")
    return table[name] if isinstance(table, Mapping) else name


def _alternatives(wanted) -> list:
    """`int | None` -> [int, NoneType]; `tuple[int, ...]` -> [tuple]; Positive -> [float]."""
    if typing.get_origin(wanted) is Annotated:
        return _alternatives(typing.get_args(wanted)[0])
    if type(None) in typing.get_args(wanted) or isinstance(wanted, types.UnionType):
        return [a for part in typing.get_args(wanted) for a in _alternatives(part)]
    return [typing.get_origin(wanted) or wanted]


def _is(value, wanted) -> bool:
    if isinstance(value, bool) and wanted is not bool:
        return False
    accepted = {float: (int, float), tuple: (tuple, list)}
    return isinstance(value, accepted.get(wanted, wanted))


def check_type(name: str, value, wanted) -> None:
    """Raises UserError unless a config value is of a type, e.g. `int | None`.

    Types that a config cannot hold, such as functions, are not checked.
    """
    alternatives = _alternatives(wanted)
    if set(alternatives) <= set(TYPES) and not any(_is(value, a) for a in alternatives):
        known = " or ".join(TYPES[a] for a in alternatives)
        raise UserError(f"config.{name}={value!r} must be {known}")


def check_range(name: str, value, limit: Range) -> None:
    """Raises UserError where a number, or one of a tuple, lies outside its range."""
    for one in value if isinstance(value, tuple | list) else (value,):
        number = isinstance(one, int | float) and not isinstance(one, bool)
        if number and not limit.holds(one):
            raise UserError(f"config.{name} {limit.says}, got {value}")


def parameters(function: Callable) -> dict[str, inspect.Parameter]:
    """The arguments of a function by name, but those that a partial has filled in."""
    filled = function.keywords if isinstance(function, functools.partial) else {}
    found = inspect.signature(function).parameters
    named = lambda p: p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    return {n: p for n, p in found.items() if named(p) and n not in filled}


def parts(entry) -> tuple[Callable, tuple[str, ...]]:
    """The function of a table's entry, and the arguments that the program passes to it."""
    return (entry.target, entry.supplied) if isinstance(entry, Record) else (entry, ())


def check_arguments(
    kind: str, function: Callable, given, given_by_caller=(), mend: str = ""
) -> None:
    """Raises UserError unless every name in `given` is a parameter of `function`.

    `given_by_caller` names the parameters that the program itself supplies: a config may not.
    `mend` is added where a name is unknown.
    """
    known = {n: p for n, p in parameters(function).items() if n not in given_by_caller}
    for name in given:
        if name not in known:
            raise UserError(
                f"unknown field {name!r} for {kind}{_hint(name, known)} "
                f"Known: {', '.join(known) or 'none'}{mend}"
            )
    missing = [n for n, p in known.items() if p.default is p.empty and n not in given]
    if missing:
        raise UserError(f"{kind} needs the field {missing[0]!r}")


def entry(kind: str, table: Mapping[str, Any], section) -> Any:
    """What `section["name"]` names in a table.

    Raises:
      UserError: no section with a name, or an unknown one.
    """
    if not hasattr(section, "items") or "name" not in section:
        raise UserError(
            f"config.{kind} is a section with a field 'name', not {section!r}: "
            f"set config.{kind}.name. Known: {', '.join(sorted(table))}"
        )
    return choose(kind, section["name"], table)


def bind(
    kind: str,
    table: Mapping[str, Any],
    section: Mapping[str, Any],
    supplied: Iterable[str] = (),
    where: str | None = None,
) -> Callable:
    """The function that `section["name"]` names, with the section's other fields filled in.

    Args:
      kind: what is named, for the messages: "net", "loss", "sampler", ...
      table: the known functions or records by name.
      section: a config section with a field `name`.
      supplied: further parameters that the program passes itself: no fields of the section.
      where: the section's dotted name, where it is not `kind`.
    Raises:
      UserError: no or unknown name, unknown or missing field, a value of a wrong type or range.
    """
    function, own = parts(entry(kind, table, section))
    fields = {k: v for k, v in section.items() if k != "name"}
    anew = f"; to set the section anew: --config.{kind}=\"{{'name': {section['name']!r}, …}}\""
    check_arguments(f"{kind} {section['name']!r}", function, fields, (*own, *supplied), anew)
    known = parameters(function)
    for name, value in fields.items():
        annotation, default = known[name].annotation, known[name].default
        if annotation is inspect.Parameter.empty and default is not None:
            annotation = type(default)
        check_type(f"{kind}.{name}", value, annotation)
        for mark in marks(annotation):
            if isinstance(mark, Range):
                check_range(f"{where or kind}.{name}", value, mark)
            if isinstance(mark, OneOf) and value is not None:
                for one in value if isinstance(value, tuple | list) else (value,):
                    choose(f"{kind}.{name}", one, mark.table)
    return functools.partial(function, **fields)


def bound(entry: Any, section: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that a section gives a method, defaults filled in."""
    function, supplied = parts(entry)
    known = {n: p.default for n, p in parameters(function).items() if n not in supplied}
    known = {n: default for n, default in known.items() if default is not inspect.Parameter.empty}
    return known | {n: v for n, v in section.items() if n != "name"}


def build(
    kind: str, table: Mapping[str, Any], section: Mapping[str, Any], where=None, **supplied
) -> Any:
    """What the factory that `section["name"]` names makes of the section and `supplied`.

    A ValueError of the factory (a value out of range) becomes a UserError that names the section.
    """
    factory = bind(kind, table, section, supplied, where)
    try:
        return factory(**supplied)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"config.{kind}: {error}") from error
