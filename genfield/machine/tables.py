"""Tables as text, and what differs between two nested sets of values."""

import math
from typing import Any, NamedTuple


def columns(rows: list[tuple[str, ...]], head: bool = True) -> str:
    """Rows of cells as aligned text; with `head` the first row is ruled off."""
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    if head:
        rows = [rows[0], tuple("-" * width for width in widths), *rows[1:]]
    line = lambda row: "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip()
    return "\n".join(map(line, rows))


class Missing(NamedTuple):
    """Stands for a leaf that one side lacks."""


MISSING = Missing()


def differences(
    a: Any, b: Any, name: str = "", *, missing: Any = MISSING, items: bool = True
) -> list[tuple[str, Any, Any]]:
    """The leaves in which two nested values differ: dotted name, value in a, value in b.

    Sections compare field by field, in the order of a and then of b; NaN equals NaN, and true is
    not 1.

    Args:
      missing: stands for a leaf that one side lacks.
      items: lists of one length compare item by item (`name.0`), else as a whole.
    """
    if items and isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        a, b = ({str(i): item for i, item in enumerate(values)} for values in (a, b))
    if a is missing and missing is MISSING and isinstance(b, dict) and b:
        a = {}
    if b is missing and missing is MISSING and isinstance(a, dict) and a:
        b = {}
    if isinstance(a, dict) and isinstance(b, dict):
        return [
            leaf
            for key in [*a, *(k for k in b if k not in a)]
            for leaf in differences(
                a.get(key, missing),
                b.get(key, missing),
                f"{name}.{key}" if name else key,
                missing=missing,
                items=items,
            )
        ]
    return [] if _equal(a, b) else [(name, a, b)]


def _equal(a, b) -> bool:
    nan = [isinstance(x, float) and math.isnan(x) for x in (a, b)]
    return all(nan) or (a == b and isinstance(a, bool) == isinstance(b, bool))
