"""What differs between two runs: python -m genfield.compare A/card.json B/card.json.

Lists the leaves of their repro cards that differ: figures first, then what may explain them.
"""

import json
import math
import re
import sys
from typing import Any

from genfield import errors
from genfield.errors import UserError, local, tell
from genfield.machine import tables
from genfield.machine.tables import MISSING, columns
from genfield.reading import json_file

# Sections as they are listed; those of no other name come between.
FIRST = (
    "metrics",
    "training",
    "weights",
    "sampling",
    "samples",
    "features",
    "reference",
    "seeds",
    "config",
)
LAST = ("versions", "device")
WIDTH = 64  # characters of a value shown: a SHA-256 in whole


def differences(a: dict, b: dict) -> list[tuple[str, Any, Any]]:
    """The leaves in which two cards differ: dotted name, value in a, value in b.

    Metrics come first and versions and device last, else the cards' own order holds.
    """
    between = len(FIRST)
    rank = {name: i for i, name in enumerate(FIRST)}
    rank |= {name: between + 1 + i for i, name in enumerate(LAST)}
    order = lambda leaf: rank.get(leaf[0].split(".")[0], between)
    return sorted(tables.differences(a, b), key=order)


def load(place: str) -> dict:
    """The card in a file, or in a workdir.

    Raises:
      UserError: no such file, or it holds no card.
    """
    path = local(place, "the card")
    try:
        if path.is_dir():
            path = path / "card.json"
        card = json_file(path)
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
    return columns(rows, head=False)


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


def main(argv: list[str] | None = None) -> int:
    """Prints what differs; 0 whether or not anything does, 2 with one line where it cannot."""
    mend = "pass two cards, as A/card.json B/card.json, or two workdirs"
    what = "What differs between two runs."
    parser = errors.Parser("genfield compare", mend, description=what)
    parser.add_argument("a", metavar="A", help="card.json of a run, or its workdir")
    parser.add_argument("b", metavar="B", help="card.json of another run, or its workdir")

    def compared() -> None:
        places = parser.parse_args(argv)
        leaves = differences(load(places.a), load(places.b))
        tell(table(leaves) if leaves else "no differences")

    return errors.told(compared)


if __name__ == "__main__":
    sys.exit(main())
