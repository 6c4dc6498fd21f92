"""What differs between two runs: python -m genfield.compare A/card.json B/card.json.

Lists the leaves of their repro cards that differ: figures first, then what may explain them.
"""

import argparse
import json
import math
import os
import re
import sys
from pathlib import Path
from typing import Any, NamedTuple

from genfield.errors import UserError

# Sections as they are listed; those of no other name come between.
FIRST = ("metrics", "training", "sampling", "samples", "features", "reference", "seeds", "config")
LAST = ("versions", "device")
WIDTH = 64  # characters of a value shown: a SHA-256 in whole


class Missing(NamedTuple):
    """Stands for a leaf that one card lacks."""


MISSING = Missing()


def differences(a: dict, b: dict) -> list[tuple[str, Any, Any]]:
    """The leaves in which two cards differ: dotted name, value in a, value in b.

    Sections compare field by field, lists of one length item by item (`name.0`), other lists as a
    whole. `MISSING` stands for a leaf that one card lacks; NaN equals NaN, and true is not 1.
    Metrics come first and versions and device last, else the cards' own order holds.
    """
    between = len(FIRST)
    rank = {name: i for i, name in enumerate(FIRST)}
    rank |= {name: between + 1 + i for i, name in enumerate(LAST)}
    return sorted(_differences(a, b), key=lambda leaf: rank.get(leaf[0].split(".")[0], between))


def _differences(a, b, name: str = "") -> list[tuple[str, Any, Any]]:
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        a, b = ({str(i): item for i, item in enumerate(items)} for items in (a, b))
    if a is MISSING and isinstance(b, dict) and b:
        a = {}
    if b is MISSING and isinstance(a, dict) and a:
        b = {}
    if isinstance(a, dict) and isinstance(b, dict):
        return [
            leaf
            for key in [*a, *(k for k in b if k not in a)]
            for leaf in _differences(
                a.get(key, MISSING), b.get(key, MISSING), f"{name}.{key}" if name else key
            )
        ]
    return [] if _equal(a, b) else [(name, a, b)]


def _equal(a, b) -> bool:
    nan = [isinstance(x, float) and math.isnan(x) for x in (a, b)]
    return all(nan) or (a == b and isinstance(a, bool) == isinstance(b, bool))


def load(place: str) -> dict:
    """The card in a file, or in a workdir.

    Raises:
      UserError: no such file, or it holds no card.
    """
    path = Path(place)
    try:
        if path.is_dir():
            path = path / "card.json"
        card = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}): pass the card.json of an evaluated run, "
            "or its workdir"
        ) from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is no card: not JSON ({error}); pass a run's card.json") from error
    if not isinstance(card, dict) or not isinstance(card.get("metrics"), dict):
        raise UserError(f"{path} is no card: it has no section 'metrics'; pass a run's card.json")
    return card


def table(leaves: list[tuple[str, Any, Any]]) -> str:
    """`differences` in aligned columns: name, A, B, and the relative difference of metrics."""
    rows = [("", "A", "B", "")]
    for name, a, b in leaves:
        relative = _relative(a, b) if name.startswith("metrics.") else ""
        rows.append((name, *_texts(a, b), relative))
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    return "\n".join(
        "  ".join([*(text.ljust(w) for text, w in zip(row, widths, strict=False)), row[3]]).rstrip()
        for row in rows
    )


def _relative(a, b) -> str:
    """(b - a) / |a| in percent; nothing where that has no meaning."""
    numbers = all(isinstance(x, int | float) and not isinstance(x, bool) for x in (a, b))
    if not numbers or a == 0 or not (math.isfinite(a) and math.isfinite(b)):
        return ""
    return f"{100 * (b - a) / abs(a):+.3g}%"


def _texts(a, b) -> tuple[str, str]:
    """Both values in one line each; long ones are cut to where they begin to differ."""
    texts = ["-" if x is MISSING else _text(x) for x in (a, b)]
    same = next((i for i, (x, y) in enumerate(zip(*texts, strict=False)) if x != y), None)
    return tuple(_cut(text, len(min(texts, key=len)) if same is None else same) for text in texts)


def _text(value) -> str:
    """Strings bare, all else as JSON; in quotes a string that would read as something else."""
    if not isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    plain = re.fullmatch(r"\S(.*\S)?", value) and value != "-" and value.isprintable()
    try:
        json.loads(value)
    except ValueError:
        return value if plain else json.dumps(value)
    return json.dumps(value)


def _cut(text: str, where: int) -> str:
    if len(text) <= WIDTH:
        return text
    text = f"…{text[where - 20 :]}" if where > WIDTH // 2 else text
    return text if len(text) <= WIDTH else f"{text[: WIDTH - 1]}…"


class Parser(argparse.ArgumentParser):
    """Mistakes of a command line are UserErrors."""

    def error(self, message):
        raise UserError(f"{message}: pass two cards, as A/card.json B/card.json, or two workdirs")


def main(argv: list[str] | None = None) -> int:
    """Prints what differs; 0 whether or not anything does, 2 with one line where it cannot."""
    parser = Parser("python -m genfield.compare", description="What differs between two runs.")
    parser.add_argument("a", metavar="A", help="card.json of a run, or its workdir")
    parser.add_argument("b", metavar="B", help="card.json of another run, or its workdir")
    try:
        places = parser.parse_args(argv)
        leaves = differences(load(places.a), load(places.b))
    except UserError as error:
        message = re.sub(r"\s*\n\s*", " ", str(error))
        print(f"genfield: error: {message}", file=sys.stderr)
        return 2
    try:
        print(table(leaves) if leaves else "no differences", flush=True)
    except BrokenPipeError:  # a pager that was closed
        sys.stdout = open(os.devnull, "w")
    return 0


if __name__ == "__main__":
    sys.exit(main())
