"""From published names and layouts to genfield's and back, by one table of rules a family.

Both directions follow from the same rules, and no layout loses a bit, so a round trip is exact.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from genfield.errors import UserError

Shapes = Mapping[str, tuple[int, ...]]


class Layout(NamedTuple):
    """How an array stands in a file and here; both use methods of arrays alone.

    ours(array of the file) -> genfield's; theirs(genfield's) -> that of the file.
    """

    ours: Callable
    theirs: Callable


class Rule(NamedTuple):
    """One published array, or one a row of a stack, and the parameter that it is.

    Attributes:
      name: as published; of a stack with {} where the number of the row stands.
      path: of the parameter, its names joined with "/".
      layout: see `Layout`.
      rows: of a stack, whose leading axis is the row here; 0: no stack.
    """

    name: str
    path: str
    layout: Layout
    rows: int = 0

    def names(self) -> list[str]:
        """The published names."""
        return [self.name.format(i) for i in range(self.rows)] if self.rows else [self.name]


class Buffer(NamedTuple):
    """A published array that genfield computes: checked when read, and written in an export.

    relative: how far it may be off, beside 1e-4 and what a file in half precision loses, where
    others computed it in float32.
    """

    name: str
    value: np.ndarray
    relative: float = 0.0


Rules = Sequence[Rule | Buffer]

same = Layout(lambda a: a, lambda a: a)
linear = Layout(lambda a: a.transpose(1, 0), lambda a: a.transpose(1, 0))  # [out, in]
conv = Layout(lambda a: a.transpose(2, 3, 1, 0), lambda a: a.transpose(3, 2, 0, 1))  # OIHW


def negated(layout: Layout) -> Layout:
    """The layout, with the sign turned."""
    return Layout(lambda a: -layout.ours(a), lambda a: layout.theirs(-a))


def reordered(layout: Layout, order: np.ndarray, axis: int) -> Layout:
    """The layout, after the file's `axis` is put in another order: entry i is the order[i]-th."""
    back = np.argsort(order)
    return Layout(
        lambda a: layout.ours(a.take(order, axis=axis)),
        lambda a: layout.theirs(a).take(back, axis=axis),
    )


def affine(
    name: str, path: str, layout: Layout = linear, *, rows: int = 0, bias: Layout = same
) -> list[Rule]:
    """The rules of a layer's weight and bias: "kernel" and "bias" here."""
    return [
        Rule(f"{name}.weight", f"{path}/kernel", layout, rows),
        Rule(f"{name}.bias", f"{path}/bias", bias, rows),
    ]


def norm(name: str, path: str) -> list[Rule]:
    """The rules of a norm's weight and bias: "scale" and "bias" here."""
    return [
        Rule(f"{name}.weight", f"{path}/scale", same),
        Rule(f"{name}.bias", f"{path}/bias", same),
    ]


def shape_of(shapes: Shapes, name: str, rank: int, origin: str) -> tuple[int, ...]:
    """The shape of a published array; UserError where it is not there or has other axes."""
    if name not in shapes:
        raise UserError(f"{origin} lacks {name!r}: another network's file, or a part of one")
    if len(shapes[name]) != rank:
        have = list(shapes[name])
        raise UserError(f"{origin}: {name!r} is {have}, and {rank} axes were expected")
    return shapes[name]


def leaves(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The leaves of nested dicts by their paths, joined with "/"."""
    found: dict[str, Any] = {}
    for name, value in tree.items():
        inner = isinstance(value, Mapping)
        found |= leaves(value, f"{prefix}{name}/") if inner else {prefix + name: value}
    return found


def nested(flat: Mapping[str, Any]) -> dict:
    """The inverse of `leaves`."""
    tree: dict = {}
    for path, value in flat.items():
        *folders, last = path.split("/")
        branch = tree
        for folder in folders:
            branch = branch.setdefault(folder, {})
        branch[last] = value
    return tree


def published_shapes(rules: Rules, params: Mapping) -> dict[str, tuple[int, ...]]:
    """The names and shapes that a file has, of parameters or their ShapeDtypeStructs."""
    ours, found = leaves(params), {}
    for rule in rules:
        if isinstance(rule, Buffer):
            found[rule.name] = rule.value.shape
            continue
        leaf = ours[rule.path]
        shape = leaf.shape[1:] if rule.rows else leaf.shape
        leaf = jax.ShapeDtypeStruct(shape, np.float32)
        found |= dict.fromkeys(rule.names(), jax.eval_shape(rule.layout.theirs, leaf).shape)
    return found


def check(rules: Rules, params: Mapping, found: Shapes, origin: str, title: str) -> None:
    """Raises UserError with the first name whose shape is not the one that the network wants."""
    wanted = published_shapes(rules, params)
    for name in (*wanted, *found):
        want, have = wanted.get(name), found.get(name)
        if want != have:
            said = lambda shape: "nothing" if shape is None else list(shape)
            raise UserError(
                f"{origin} is not {title}: {name!r} is {said(have)} there, and {said(want)} was "
                "expected"
            )


def to_ours(
    rules: Rules, arrays: Mapping[str, np.ndarray], params: Mapping, origin: str, title: str
) -> dict:
    """Published arrays as genfield's parameters, float32, nested dicts.

    Args:
      rules: of the family. arrays: by published name.
      params: the network's, or their ShapeDtypeStructs. origin, title: for messages.
    Raises:
      UserError: the first name that is missing, unexpected or of another shape; values that are
        not finite; a buffer that is not what the network computes.
    """
    check(rules, params, {name: array.shape for name, array in arrays.items()}, origin, title)
    made: dict[str, np.ndarray] = {}
    for rule in rules:
        parts = [_finite(name, arrays[name], origin) for name in _names(rule)]
        if isinstance(rule, Buffer):
            _check_buffer(rule, parts[0], origin)
        elif rule.rows:
            made[rule.path] = np.stack([rule.layout.ours(part) for part in parts])
        else:
            made[rule.path] = np.ascontiguousarray(rule.layout.ours(parts[0]))
    return nested(made)


def _names(rule: Rule | Buffer) -> Iterable[str]:
    return [rule.name] if isinstance(rule, Buffer) else rule.names()


def _finite(name: str, array: np.ndarray, origin: str) -> np.ndarray:
    if array.dtype.kind not in "fiub":
        raise UserError(f"{origin} is damaged: {name!r} holds no real numbers")
    array = np.asarray(array, np.float32)
    if not np.isfinite(array).all():
        raise UserError(f"{origin} is damaged: {name!r} holds values that are not finite")
    return array


def _check_buffer(buffer: Buffer, found: np.ndarray, origin: str) -> None:
    off = np.abs(found - buffer.value)
    distance = float(np.max(off, initial=0.0))
    relative = max(buffer.relative, _lost(found))
    if np.any(off > 1e-4 + relative * np.abs(buffer.value)):
        raise UserError(
            f"{origin}: {buffer.name!r} is not what the network computes (they differ by "
            f"{distance:.2g}), so the file was made for another one"
        )


def _lost(found: np.ndarray) -> float:
    """How much of a number float32 values may have lost in half precision; 0 if they were none."""
    with np.errstate(over="ignore"):
        kept = lambda dtype: np.array_equal(found.astype(dtype).astype(np.float32), found)
        halves = [dtype for dtype in (jnp.float16, jnp.bfloat16) if kept(dtype)]
    return max((float(jnp.finfo(dtype).eps) for dtype in halves), default=0.0)


def kept_buffers(rules: Rules, arrays: Mapping[str, np.ndarray]) -> tuple[tuple[str, bytes], ...]:
    """The buffers of a file that are not to the bit what genfield computes, as float32's bytes."""
    computed = {rule.name: rule.value for rule in rules if isinstance(rule, Buffer)}
    single = lambda array: np.asarray(array, "<f4").tobytes()
    found = ((name, single(arrays[name])) for name in computed)
    return tuple((name, kept) for name, kept in found if kept != single(computed[name]))


def to_theirs(
    rules: Rules, params: Mapping, buffers: Iterable[tuple[str, bytes]] = ()
) -> dict[str, np.ndarray]:
    """genfield's parameters by published names, in published layouts; the inverse of `to_ours`.

    Args:
      buffers: of `kept_buffers`, which are written in the place of those that genfield computes.
    Raises:
      UserError: a parameter that no rule names, which would be lost.
    """
    ours, made, kept = leaves(params), {}, dict(buffers)
    named = {rule.path for rule in rules if isinstance(rule, Rule)}
    lost = [path for path in ours if path not in named]
    if lost:
        raise UserError(f"the published network has no place for the parameter {lost[0]!r}")
    for rule in rules:
        if isinstance(rule, Buffer):
            own = np.asarray(rule.value, "<f4")
            theirs = kept.get(rule.name, b"")
            fits = len(theirs) == own.nbytes
            made[rule.name] = np.frombuffer(theirs, "<f4").reshape(own.shape) if fits else own
            continue
        value = np.asarray(ours[rule.path])
        for i, name in enumerate(rule.names()):
            part = rule.layout.theirs(value[i] if rule.rows else value)
            made[name] = np.ascontiguousarray(part)
    return made
