"""FLOPs of a jaxpr: of products of matrices and convolutions, times the trips of loops.

XLA's own count takes the body of a loop once; a jaxpr knows how long a scan is.
"""

import math
from collections import Counter

import jax
from jax.extend import core

UNKNOWN = "loops of unknown length"


def count(jaxpr: core.ClosedJaxpr) -> dict[str, float]:
    """FLOPs by the dtype of what is multiplied; a loop of unknown length counts as one trip.

    `UNKNOWN` is how many of those there are.
    """
    total: Counter = Counter()
    _add(jaxpr.jaxpr, 1, total)
    return dict(total)


def _add(jaxpr, times: float, total: Counter) -> None:
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name == "dot_general":
            total[_dtype(equation)] += times * _dot(equation)
        elif name == "conv_general_dilated":
            total[_dtype(equation)] += times * _convolution(equation)
        elif name == "cond":
            total.update(_dearest(equation, times))
        else:
            _inner(equation, name, times, total)


def _inner(equation, name: str, times: float, total: Counter) -> None:
    """What the jaxprs among an equation's parameters do."""
    params = equation.params
    if name == "scan":
        times *= params["length"]
    elif name == "while":
        total[UNKNOWN] += 1
    elif name == "shard_map":  # its body is what one device does
        times *= params["mesh"].size
    elif name in ("custom_jvp_call", "custom_vjp_call"):  # their rules are not called here
        _add(_open(params.get("call_jaxpr") or params["fun_jaxpr"]), times, total)
        return
    elif name == "linear_call":
        _add(_open(params["callee"]), times, total)
        return
    for value in params.values():
        for part in value if isinstance(value, tuple | list) else (value,):
            if isinstance(part, core.Jaxpr | core.ClosedJaxpr):
                _add(_open(part), times, total)


def _open(jaxpr):
    return jaxpr.jaxpr if isinstance(jaxpr, core.ClosedJaxpr) else jaxpr


def _dearest(equation, times: float) -> Counter:
    """The branch with the most FLOPs."""
    counts = []
    for branch in equation.params["branches"]:
        counts.append(Counter())
        _add(_open(branch), times, counts[-1])
    return max(counts, key=lambda found: sum(found.values()))


def _dtype(equation) -> str:
    widest = max(
        (v.aval.dtype for v in equation.invars[:2]), key=lambda d: jax.numpy.dtype(d).itemsize
    )
    return str(widest)


def _dot(equation) -> float:
    (contracted, _), _ = equation.params["dimension_numbers"]
    shape = equation.invars[0].aval.shape
    return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(shape[i] for i in contracted)


def _convolution(equation) -> float:
    """Without the zeros that dilation puts between inputs; `rhs` is [out, in / groups, window]."""
    params, kernel = equation.params, equation.invars[1].aval.shape
    numbers = params["dimension_numbers"]
    each = math.prod(kernel) / kernel[numbers.rhs_spec[0]]  # products for one output
    out = math.prod(equation.outvars[0].aval.shape)
    return 2 * out * each / math.prod(params["lhs_dilation"])
