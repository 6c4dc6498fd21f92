"""The one error a user can mend, and the lookup that raises it for unknown names and fields."""

import difflib
import functools
import inspect
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

# What a config value can be, and how a message says it.
TYPES = {
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    str: "a string",
    tuple: "a tuple",
    type(None): "None",
}


class UserError(ValueError):
    """A mistake in a config, a path or a file: one line that says what and how to mend it."""


def _hint(name: str, known) -> str:
    close = difflib.get_close_matches(str(name), [str(k) for k in known], n=1)
    return f": did you mean {close[0]!r}?" if close else "."


def choose(kind: str, name: str, table: Mapping[str, Any]) -> Any:
    """`table[name]`, or a UserError that lists the known names of this kind."""
    if name not in table:
        known = ", ".join(sorted(map(str, table))) or "none"
        raise UserError(f"unknown {kind} {name!r}{_hint(name, table)} Known: {known}")
    return table[name]


def _alternatives(wanted) -> list:
    """`int | None` -> [int, NoneType]; `tuple[int, ...]` -> [tuple]."""
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


def check_arguments(
    kind: str, function: Callable, given, given_by_caller=(), mend: str = ""
) -> None:
    """Raises UserError unless every name in `given` is a parameter of `function`.

    `given_by_caller` names the parameters that the program itself supplies: a config may not.
    `mend` is added where a name is unknown.
    """
    parameters = inspect.signature(function).parameters.values()
    known = [
        p.name
        for p in parameters
        if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and p.name not in given_by_caller
    ]
    for name in given:
        if name not in known:
            raise UserError(
                f"unknown field {name!r} for {kind}{_hint(name, known)} "
                f"Known: {', '.join(known) or 'none'}{mend}"
            )
    missing = [
        p.name
        for p in parameters
        if p.name in known and p.default is p.empty and p.name not in given
    ]
    if missing:
        raise UserError(f"{kind} needs the field {missing[0]!r}")


def bind(kind: str, table: Mapping[str, Callable], section: Mapping[str, Any], supplied=()):
    """The function that `section["name"]` names, with the section's other fields filled in.

    Args:
      kind: what is named, for the messages: "net", "loss", "sampler", ...
      table: the known functions by name.
      section: a config section with a field `name`.
      supplied: parameters that the program passes itself: they are not fields of the section.
    Raises:
      UserError: no or unknown name, unknown or missing field.
    """
    if not hasattr(section, "items") or "name" not in section:
        raise UserError(
            f"config.{kind} is a section with a field 'name', not {section!r}: "
            f"set config.{kind}.name. Known: {', '.join(sorted(table))}"
        )
    function = choose(kind, section["name"], table)
    fields = {k: v for k, v in section.items() if k != "name"}
    anew = f"; to set the section anew: --config.{kind}=\"{{'name': {section['name']!r}, …}}\""
    check_arguments(f"{kind} {section['name']!r}", function, fields, supplied, anew)
    parameters = inspect.signature(function).parameters
    for name, value in fields.items():
        annotation, default = parameters[name].annotation, parameters[name].default
        if annotation is inspect.Parameter.empty and default is not None:
            annotation = type(default)
        check_type(f"{kind}.{name}", value, annotation)
    return functools.partial(function, **fields)


def build(kind: str, table: Mapping[str, Callable], section: Mapping[str, Any], **supplied) -> Any:
    """What the factory that `section["name"]` names makes of the section and `supplied`.

    A ValueError of the factory (a value out of range) becomes a UserError that names the section.
    """
    factory = bind(kind, table, section, supplied)
    try:
        return factory(**supplied)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"config.{kind}: {error}") from error
