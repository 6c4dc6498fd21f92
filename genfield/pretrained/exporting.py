"""genfield's parameters into a file, under published names where a family has a place for them."""

import json
import os
import uuid
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from genfield.errors import UserError, local
from genfield.features import weights
from genfield.machine.fixed import without
from genfield.nets import count_parameters, known
from genfield.pretrained import mapping
from genfield.pretrained.contents import HEADER
from genfield.pretrained.family import Description, Family, families, named

OWN = "genfield"
ENDING = ".safetensors"


def place(out: str | Path) -> Path:
    """Where an export goes; UserError for another ending."""
    file = local(out, "the export")
    if file.suffix != ENDING:
        raise UserError(f"an export is a {ENDING} file, not {file}: name it {file.stem}{ENDING}")
    return file


def family_of(
    description: Description, kind: str | Family | None = None
) -> tuple[Family, Description]:
    """The family that writes a network, and its description there.

    Args:
      kind: a family's name or record; None: the first that has a place for it, else genfield's
        own names.
    Raises:
      UserError: unknown kind, or one that has no place for this network.
    """
    known = families()
    if kind is not None:
        family = named(kind)
        theirs = family.writes(description)
        if theirs is None:
            able = [n for n, f in known.items() if n != OWN and f.writes(description)] + [OWN]
            raise UserError(
                f"{family.title} has no place for {description.title}: pass "
                f"kind={' or '.join(map(repr, able))}, or none"
            )
        return family, theirs
    for name, family in known.items():
        theirs = None if name == OWN else family.writes(description)
        if theirs is not None:
            return family, theirs
    return known[OWN], known[OWN].writes(description)


def write(
    params: Mapping, description: Description, out: str | Path, kind: str | Family | None = None
) -> tuple[Path, Family]:
    """Writes parameters, and beside a published family's NAME.json with its constructor's facts.

    Args:
      params: of the field alone, nested dicts. description: of the network, in genfield's names.
      out: a .safetensors file. kind: see `family_of`.
    Returns:
      (the file, the family). A file that is there already is left alone where it is the same.
    Raises:
      UserError: another file is there; no place to write; see `family_of`.
    """
    file = place(out)
    family, theirs = family_of(description, kind)
    arrays = mapping.to_theirs(family.rules(theirs), params, description.buffers)
    facts = {"kind": family.name, "config": theirs.facts}
    digest = weights.digest(mapping.nested(mapping.leaves(params)))
    # One key: safetensors writes several in no order, and the same export is the same file.
    header = {HEADER: json.dumps(facts | {"digest": digest}, sort_keys=True)}
    beside = None
    if family.name != OWN:
        count = count_parameters(without(params, known()[theirs.net["name"]].fixed))
        beside = json.dumps({**facts, "title": theirs.title, "parameters": count}, indent=1)
    try:
        _save(file, arrays, header, beside)
    except OSError as error:
        raise UserError(f"cannot write {file}: {error.strerror}; choose another place") from error
    return file, family


def _save(file: Path, arrays: dict[str, np.ndarray], header: dict[str, str], beside) -> None:
    """Both files, each whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    texts = {} if beside is None else {file.with_suffix(".json"): beside + "\n"}
    for path, text in texts.items():
        if path.exists() and path.read_text() != text:
            raise UserError(f"{path} is there already, and another one: choose another name")
    part = file.with_name(f".{uuid.uuid4().hex}.part")
    try:
        weights.save(arrays, part, header)
        if file.exists() and weights.file_digest(file) != weights.file_digest(part):
            raise UserError(f"{file} is there already, and another one: choose another name")
        for path, text in texts.items():
            whole = path.with_name(f".{uuid.uuid4().hex}.part")
            whole.write_text(text)
            os.replace(whole, path)
        os.replace(part, file)
    finally:
        part.unlink(missing_ok=True)
