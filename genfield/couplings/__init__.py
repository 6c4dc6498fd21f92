"""Which source goes with which sample: couplings reorder x0, rematching replaces targets.

A coupling is (x0, x1) -> x0 reordered; x1 and its labels never move. Conditional models are biased
by matching across classes, since x0 then depends on the label: couplings that take `label` give
each noise the label of the sample it was drawn with, and match within classes, or pay a penalty for
a pair of two (`within_classes`, `class_penalty`).
"""

from genfield.couplings.assignment import exact_assignment, optimal_columns
from genfield.couplings.greedy import greedy
from genfield.couplings.independent import independent, nearest_source
from genfield.couplings.rematching import nearest_target
from genfield.couplings.sinkhorn import sinkhorn

__all__ = [
    "exact_assignment",
    "greedy",
    "independent",
    "nearest_source",
    "nearest_target",
    "optimal_columns",
    "sinkhorn",
]
