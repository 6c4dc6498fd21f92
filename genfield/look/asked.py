"""What a page asks for, checked: every number is finite and in bounds, and nothing is a path."""

import math
from collections.abc import Mapping
from typing import Any

from genfield.errors import UserError

PLACES = 1e4  # coordinates lie within plus and minus this


def fields(asked: Any, *known: str) -> Mapping[str, Any]:
    """The JSON object of a request, with known fields alone; raises UserError for another."""
    if not isinstance(asked, dict):
        raise UserError("a request is a JSON object")
    if strange := sorted(str(name)[:40] for name in asked if name not in known):
        raise UserError(f"unknown field {strange[0]!r}. Known: {', '.join(known)}")
    return asked


def number(value: Any, name: str, low: float, high: float, *, whole: bool = False):
    """A finite number in [low, high], as float or int; raises UserError for anything else."""
    kinds = (int,) if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds):
        raise UserError(f"{name} must be a {'whole ' if whole else ''}number")
    if not low <= value <= high:  # neither is NaN
        raise UserError(f"{name} must be in {low:g} to {high:g}")
    return value if whole else float(value)


def listed(value: Any, name: str, most: int) -> list:
    """A list of 1 to `most` items; raises UserError for anything else."""
    if not isinstance(value, list) or not 1 <= len(value) <= most:
        raise UserError(f"{name} must be a list of 1 to {most:,}")
    return value


def points(value: Any, name: str, most: int) -> list[list[float]]:
    """1 to `most` points of the plane; raises UserError for anything else."""
    out = []
    for point in listed(value, name, most):
        if not isinstance(point, list) or len(point) != 2:
            raise UserError(f"{name} must hold pairs of numbers")
        out.append([number(one, name, -PLACES, PLACES) for one in point])
    return out


def plain(value: Any) -> Any:
    """As JSON has it; numbers that are not finite become null."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
