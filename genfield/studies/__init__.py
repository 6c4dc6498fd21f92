"""The studies of `python -m genfield.study`, by name.

A study takes a `Subject` and its options, as keyword-only arguments, and returns `Findings`. What
studies compute is in `genfield.abilities`; claims and figures are in docs/abilities.md.
"""

from collections.abc import Callable

from genfield.studies import (
    compose,
    denoise,
    diagnose,
    neighbours,
    noises,
    ood,
    straightness,
    sweep,
)
from genfield.studies.common import Findings, Subject

__all__ = ["STUDIES", "Findings", "Subject"]

STUDIES: dict[str, Callable[..., Findings]] = {
    "compose": compose.compose,
    "denoise": denoise.denoise,
    "diagnose": diagnose.diagnose,
    "neighbours": neighbours.neighbours,
    "noises": noises.noises,
    "ood": ood.ood,
    "straightness": straightness.straightness,
    "sweep": sweep.sweep,
}
