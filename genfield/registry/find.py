"""Where records are found: at the end of the files of a package, or of the user's own."""

import importlib
import pkgutil
from collections.abc import Iterable, Iterator, Mapping
from types import ModuleType
from typing import Any

from genfield.errors import UserError
from genfield.registry.records import Record


def declared(module: ModuleType) -> tuple[Record, ...]:
    """The records that a module declares, in its order."""
    found = (*getattr(module, "METHODS", ()), *filter(None, [getattr(module, "METHOD", None)]))
    for record in found:
        if not isinstance(record, Record):
            raise UserError(
                f"{module.__name__} declares {record!r}: METHOD is a record of genfield.registry, "
                "METHODS a tuple of them"
            )
    return found


def find(package: str) -> Iterator[Record]:
    """The records of a package's or a module's own files, in the order of the files' names."""
    module = importlib.import_module(package)
    yield from declared(module)
    paths = getattr(module, "__path__", ())
    for name in sorted(info.name for info in pkgutil.iter_modules(paths)):
        yield from find(f"{package}.{name}")


class Methods:
    """The known methods of each kind, by name: `methods[Loss]["flow_matching"]`.

    files: name -> path, of the files of one's own that some were declared in.
    """

    def __init__(self, records: Iterable[Record], files: Mapping[str, Any] = {}):
        self.records, self.files = tuple(records), dict(files)
        self._tables: dict[type, dict[str, Record]] = {}
        for record in self.records:
            table = self._tables.setdefault(type(record), {})
            if record.name in table:
                raise UserError(
                    f"there are two of the name {record.name!r} ({type(record).__name__}): "
                    "choose another name for one's own"
                )
            table[record.name] = record

    def __getitem__(self, kind: type) -> Mapping[str, Any]:
        return self._tables.get(kind, {})

    def with_own(self, records: Iterable[Record], files: Mapping[str, Any] = {}) -> "Methods":
        """These and one's own, declared in `files`: name -> path."""
        return Methods([*self.records, *records], {**self.files, **files})
