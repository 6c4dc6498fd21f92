"""What an argument may be, written where the argument is: `step_size: Positive`."""

import typing
from collections.abc import Callable, Iterator
from typing import Annotated, Any, NamedTuple


class Range(NamedTuple):
    """Which numbers an argument takes, and how a message says it."""

    holds: Callable[[float], bool]
    says: str


class OneOf(NamedTuple):
    """Names that an argument takes, or each item of a tuple of them."""

    table: Any


class FilePlace(NamedTuple):
    """The argument is a path of files, which may move between the starts of one run."""


class Free(NamedTuple):
    """The argument changes what a run costs, never what it learns: it may be set anew."""


POSITIVE = Range(lambda value: value > 0, "must be positive")
NOT_NEGATIVE = Range(lambda value: value >= 0, "must not be negative")
FRACTION = Range(lambda value: 0 <= value < 1, "must be in [0, 1)")

Positive, PositiveInt = Annotated[float, POSITIVE], Annotated[int, POSITIVE]
NotNegative, NotNegativeInt = Annotated[float, NOT_NEGATIVE], Annotated[int, NOT_NEGATIVE]
Fraction = Annotated[float, FRACTION]
Place = Annotated[str, FilePlace()]


def marks(annotation) -> Iterator[Any]:
    """What is written of an argument beside its type: `Range`, `OneOf`, `FilePlace`, `Free`."""
    if typing.get_origin(annotation) is Annotated:
        yield from annotation.__metadata__
    for part in typing.get_args(annotation):
        yield from marks(part)
