"""What a run's files were when it ended: damage at rest, or a change by hand, is told and not used.

Arrays have digests of their own, and .npz and .png files their checksums; text has none.
"""

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path

from genfield.machine import logbook
from genfield.reading import json_file

FILE = "sums.json"
OF = ("config.json", "data.json", "metrics.jsonl", "card.json", "card.md", "summary.json")
PICTURES = "figures"
# What nothing makes anew; the pictures are of a training's evaluations.
RECORDS = re.compile(r"config\.json|data\.json|metrics\.jsonl|sums\.json|samples/step_\d+\.png")


def write(folder: Path, *names: str) -> None:
    """Writes the SHA-256 of these files (or all) of a run at its end, and of its pictures.

    Of others it keeps what it knows; by process 0.
    """
    if logbook.first_process():
        there = [*(folder / name for name in names or OF), *(folder / PICTURES).glob("*.*")]
        there += [
            p for p in (folder / "samples").glob("*.png") if RECORDS.fullmatch(f"samples/{p.name}")
        ]
        logbook.write_json(folder / FILE, _known(folder) | of(folder, there))


def of(folder: Path, files: Iterable[Path]) -> dict[str, str]:
    """The SHA-256 of those that are there, by their names in a folder."""
    return {p.relative_to(folder).as_posix(): _sum(p) for p in sorted(files) if p.is_file()}


def _known(folder: Path) -> dict[str, str]:
    """What stands in the file; nothing where there is none, or a damaged one."""
    try:
        return dict(json_file(folder / FILE))
    except (OSError, ValueError, TypeError):
        return {}


def changed(folder: Path) -> list[str]:
    """The files that are there and not as they were; none of a run that has not ended."""
    path = folder / FILE
    if not path.exists():
        return []
    try:
        known = json_file(path)
        return [
            name
            for name, value in known.items()
            if (folder / name).is_file() and _sum(folder / name) != value
        ]
    except (OSError, ValueError, AttributeError):
        return [FILE]


def tell(folder: Path) -> None:
    """Says which of a run's files that nothing makes anew are not as they were."""
    for name in changed(folder):
        if RECORDS.fullmatch(name):
            logbook.say(f"{folder / name} is damaged, or was changed since the run ended")


def forget(folder: Path) -> None:
    """The run goes on: its files change."""
    if logbook.first_process():
        (folder / FILE).unlink(missing_ok=True)


def _sum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
