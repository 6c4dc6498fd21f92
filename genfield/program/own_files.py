"""Files of one's own: a config file, those beside it that it imports, and their copies in a run.

A config file may declare methods (`registry.Loss(...)` and so on), or import them from a file
beside it. The run folder keeps a copy of these files in `own/`, with a hash and where each came
from, so that the run opens later and elsewhere.
"""

import contextlib
import hashlib
import importlib
import shutil
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from importlib.machinery import BuiltinImporter, FrozenImporter
from pathlib import Path
from types import ModuleType
from typing import Any

from genfield import registry
from genfield.errors import UserError
from genfield.machine import logbook
from genfield.program.methods import package
from genfield.reading import json_file
from genfield.registry import Methods

FOLDER, MANIFEST = "own", "files.json"


@contextlib.contextmanager
def beside(folder: Path) -> Iterator[dict[str, ModuleType]]:
    """Lets a config file import the files beside it: `import shared`, `from shared import …`.

    Meanwhile the folder stands first on `sys.path`, and its files hide modules of their names. At
    the end these come back and what was imported from the folder is forgotten, so that no file is
    ever taken for one of the same name elsewhere, or for what it was before it was edited.

    Yields:
      By name, the modules imported from the folder, filled in at the end; the path of each is its
      `__file__`.
    """
    folder, found = folder.absolute(), {}
    names = {file.stem for file in folder.glob("*.py")} - {"__main__"}
    for finder in (BuiltinImporter, FrozenImporter):  # asked before any folder, as for sys and os
        names = {name for name in names if finder.find_spec(name) is None}
    hidden = {name: sys.modules.pop(name) for name in [*sys.modules] if _top(name) in names}
    before = set(sys.modules)
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    # A .pyc would still be read for a file edited within the same second.
    bytecode, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        yield found
    finally:
        sys.dont_write_bytecode = bytecode
        with contextlib.suppress(ValueError):
            sys.path.remove(str(folder))
        new = {name: module for name, module in sys.modules.items() if name not in before}
        mine = {name for name, module in new.items() if _lies_in(folder, module)}
        found.update((name, module) for name, module in new.items() if _top(name) in mine)
        for name in found:
            del sys.modules[name]
        sys.modules.update(hidden)


def _top(name: str) -> str:
    """The first part of a module's dotted name."""
    return name.partition(".")[0]


def _lies_in(folder: Path, module: ModuleType) -> bool:
    """Whether a module is a file of the folder, or a package in it."""
    places = getattr(module, "__path__", None) or [getattr(module, "__file__", None)]
    return any(Path(place).parent == folder for place in places if place)


def blame(path: Path, function: Callable) -> Any:
    """function(); what it raises becomes a UserError with the line that it comes from.

    That is the innermost line of the config file `path` or of a file beside it.
    """
    try:
        return function()
    except UserError:
        raise
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        places = [(frame.filename, frame.lineno) for frame in frames]
        text = str(error).splitlines()[0] if str(error) else ""
        if isinstance(error, SyntaxError):
            places.append((error.filename, error.lineno))
            text = error.msg
        folder, where = path.parent.absolute(), str(path)
        for file, line in places:
            if file and line and (file == str(path) or Path(file).parent == folder):
                where = f"{path.with_name(Path(file).name)}, line {line}"
        raise UserError(f"config file {where}: {type(error).__name__}: {text}") from error


def methods_in(
    config_file: Path, namespace: dict, modules: Mapping[str, ModuleType]
) -> Methods | None:
    """The package's methods and those declared in a config file or a module beside it.

    None where nothing is declared there: the package's alone.
    """
    own = ModuleType(config_file.stem)
    own.__dict__.update(namespace)
    sources = {config_file: own}
    for name, module in modules.items():
        sources[Path(module.__file__ or name)] = module
    records = dict.fromkeys(r for m in sources.values() for r in registry.declared(m))
    if not records:
        return None
    place = lambda file: file.absolute().relative_to(config_file.parent.absolute()).as_posix()
    files = {place(file): file.absolute() for file in sources if file.is_file()}
    return package().with_own(records, files)


def keep(workdir: Path, methods: Methods) -> None:
    """Copies one's own files into the run folder; others that were there are kept beside."""
    if not methods.files or not logbook.first_process():
        return
    folder, facts = workdir / FOLDER, described(methods)
    old = _manifest(folder) if (folder / MANIFEST).exists() else None
    if old is not None and _hashes(old) == _hashes(facts):
        return
    if old is not None:
        number = 1 + len(list(workdir.glob(f"{FOLDER}.before_*")))
        changed = [name for name in facts if _hashes(facts)[name] != _hashes(old).get(name)]
        aside = folder.with_name(f"{FOLDER}.before_{number}")
        folder.rename(aside)
        told = ", ".join(changed)
        logbook.say(f"{told} changed since this run began: the old copy is in {aside}")
    for name, file in methods.files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, folder / name)
    logbook.write_json(folder / MANIFEST, facts)


def tell_changes(workdir: Path, methods: Methods | None) -> None:
    """Says which of one's own files differ from the copies that a run was made with."""
    folder = workdir / FOLDER
    if methods is None or not (folder / MANIFEST).exists():
        return
    old, new = _hashes(_manifest(folder)), _hashes(described(methods))
    for name in [name for name, digest in new.items() if old.get(name) not in (None, digest)]:
        logbook.say(f"{methods.files[name]} differs from this run's own copy, {folder / name}")


def described(methods: Methods) -> dict[str, dict[str, str]]:
    """Name -> hash and origin of one's own files."""
    return {
        name: {"sha256": _hash(file), "origin": str(file)} for name, file in methods.files.items()
    }


def methods_of(workdir: Path) -> Methods | None:
    """The methods of a run, from the copies of one's own files that it keeps; None without any.

    Raises:
      UserError: a copy is damaged or fails to run.
    """
    folder = workdir / FOLDER
    if not (folder / MANIFEST).exists():
        return None
    facts, modules = _manifest(folder), []
    for name, fact in facts.items():
        file, origin = folder / name, Path(fact["origin"])
        if not file.exists() or _hash(file) != fact["sha256"]:
            raise UserError(f"{file} is not what the run was made with: put the right one back")
        if origin.exists() and origin != file and _hash(origin) != fact["sha256"]:
            logbook.say(f"{origin} has changed since this run: its own copy {file} is used")
    with beside(folder):
        for name in facts:
            dotted = name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
            load = lambda dotted=dotted: importlib.import_module(dotted)
            modules.append(blame(folder / name, load))
    records = dict.fromkeys(r for module in modules for r in registry.declared(module))
    return package().with_own(records, {name: folder / name for name in facts})


def _manifest(folder: Path) -> dict[str, dict[str, str]]:
    try:
        facts = json_file(folder / MANIFEST)
        for name, fact in facts.items():
            parts = Path(name).parts
            texts = all(isinstance(fact[key], str) for key in ("origin", "sha256"))
            if not texts or Path(name).is_absolute() or ".." in parts or "\0" in name:
                raise ValueError(f"{name!r} is none of its files")
        return facts
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{folder / MANIFEST} cannot be read ({error}): put back a whole one"
        ) from error


def _hashes(facts: dict) -> dict[str, str]:
    return {name: fact["sha256"] for name, fact in facts.items()}


def _hash(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
