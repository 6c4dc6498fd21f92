"""What a file of weights holds: arrays by name, and the facts beside them.

Checkpoints are dictionaries of several state dicts and of what trained them, bare state dicts, or
pickled modules; exports and safetensors files say more in a header or in NAME.json beside.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors

from genfield.errors import UserError, local
from genfield.features import torch_files
from genfield.features.torch_files import Object, module_state, state_dict
from genfield.pretrained import zoo
from genfield.reading import json_file, json_of

ENDINGS = (".safetensors", ".pt", ".pth", ".ckpt", ".bin", ".pkl")
HEADER = "genfield"  # the key of a safetensors header under which an export has its facts
WRAPPERS = ("module.", "_orig_mod.")  # of DistributedDataParallel and torch.compile
AVERAGE, ITSELF = "ema", ("model", "state_dict", "net")  # of a checkpoint that keeps several
# Of flow_matching's EMA module, in one state dict: the averages by number, and the parameters.
AVERAGES, AVERAGED = "shadow_params.", "model."
ARGUMENTS = "args"  # where a checkpoint keeps the arguments of its training


class Content(NamedTuple):
    """What a file holds.

    Attributes:
      arrays: by published name. facts: of the constructor. part: of several, which it is.
      digest: of genfield's parameters, where an export says it.
    """

    arrays: dict[str, np.ndarray]
    facts: dict[str, Any]
    part: str | None
    digest: str | None


def weights_file(path: str | Path) -> Path:
    """The file that a path names: itself, the one with weights in a folder, or one of the zoo."""
    place = local(path, "the weights")
    if not place.is_dir():
        kept = None if place.exists() else zoo.place(path)
        if kept is None and not place.is_file():  # pipes and devices could be without end
            known = "" if place.suffix else f", or name one of the zoo: {', '.join(zoo.names())}"
            raise UserError(f"no weights file {place}: mend the path{known}")
        return kept or place
    found = sorted(f for f in place.iterdir() if f.suffix in ENDINGS and f.is_file())
    if len(found) != 1:
        names = ", ".join(file.name for file in found[:5]) or "none"
        raise UserError(
            f"{place} must hold one file of weights ({', '.join(ENDINGS)}), not {len(found)} "
            f"({names}): name the file"
        )
    return found[0]


def read(file: Path, ema: bool) -> Content:
    """The arrays of a file, names without what wrappers put before them, and its facts."""
    tree = torch_files.read_tree(file)
    chosen, part = _part(tree, ema, file)
    arrays, inner = _averages(_unwrapped(state_dict(chosen)), ema, file)
    if not arrays:
        raise UserError(f"{file} holds no tensors by name: save it with model.state_dict()")
    facts = {**_arguments(tree), **_constructor(chosen), **_header(file)}
    return Content(arrays, facts, inner or part, facts.pop("digest", None))


def _part(tree: Any, ema: bool, file: Path) -> tuple[Any, str | None]:
    """The state dict or module of a checkpoint, and under which name it stands there."""
    if _weights(tree):
        return tree, None
    names = (AVERAGE, *ITSELF) if ema else (*ITSELF, AVERAGE)
    for name in names if isinstance(tree, dict) else ():
        if _weights(tree.get(name)):
            return tree[name], name
    said = ", ".join(map(str, tree)) if isinstance(tree, dict) else type(tree).__name__
    raise UserError(
        f"{file} holds no weights that are known: a state dict, or one under "
        f"{', '.join(map(repr, names))}; it holds {said[:200]}"
    )


def _weights(value: Any) -> bool:
    """Whether something is a state dict or a pickled module."""
    if isinstance(value, dict):
        return any(isinstance(array, np.ndarray) for array in value.values())
    return module_state(value) is not None


def _unwrapped(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    for wrapper in (*WRAPPERS, *WRAPPERS):
        if all(name.startswith(wrapper) for name in arrays):
            arrays = {name.removeprefix(wrapper): array for name, array in arrays.items()}
    return arrays


def _averages(
    arrays: dict[str, np.ndarray], ema: bool, file: Path
) -> tuple[dict[str, np.ndarray], str | None]:
    """What a module that averages another holds: the averages, or the parameters; and which."""
    count = sum(name.startswith(AVERAGES) for name in arrays)
    if not count:
        return arrays, None
    found = {n.removeprefix(AVERAGED): a for n, a in arrays.items() if n.startswith(AVERAGED)}
    if ema:
        averages = [arrays.get(f"{AVERAGES}{number}") for number in range(count)]
        shapes = [None if array is None else array.shape for array in averages]
        if shapes != [array.shape for array in found.values()]:
            raise UserError(
                f"{file}: the averages '{AVERAGES}…' do not follow the order of the parameters "
                f"'{AVERAGED}…': keep the file as torch.save wrote it, or pass ema=False"
            )
        found = dict(zip(found, averages, strict=True))
    return _unwrapped(found), AVERAGE if ema else ITSELF[0]


def _arguments(tree: Any) -> dict[str, Any]:
    """The arguments of the training, of an argparse.Namespace or a dictionary."""
    found = tree.get(ARGUMENTS) if isinstance(tree, dict) else None
    found = found.state if isinstance(found, Object) else found
    return dict(found) if isinstance(found, dict) else {}


def _constructor(value: Any) -> dict[str, Any]:
    """The class of a pickled module, its plain attributes, and the arguments it was made with.

    EDM's modules keep these arguments; the class is under "class_name".
    """
    state = module_state(value)
    if state is None:
        return {}
    first = value.arguments[0] if value.arguments else None
    known = first.get("class_name") if isinstance(first, dict) else None
    plain = {k: v for k, v in state.items() if isinstance(v, str | int | float) and k[:1] != "_"}
    found = state.get("_init_kwargs")
    found = found.items if isinstance(found, Object) else found
    made = dict(found) if isinstance(found, dict) else {}
    return {"class_name": known or value.name.rpartition(".")[2], **plain, **made}


def _header(file: Path) -> dict[str, Any]:
    """The facts that an export holds in its header: "kind", the constructor's, "digest"."""
    if file.suffix != ".safetensors":
        return {}
    try:
        with safetensors.safe_open(file, framework="np") as opened:
            text = (opened.metadata() or {}).get(HEADER)
        return {} if text is None else _facts(json_of(text))
    except safetensors.SafetensorError:  # another format under this ending
        return {}
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{file} has a damaged header: {error}") from error


def _facts(found: Mapping[str, Any]) -> dict[str, Any]:
    """Facts that stand plainly, or under "config" beside the kind of file."""
    plain = {name: found[name] for name in ("kind", "digest") if name in found}
    return {**found.get("config", found), **plain}


def beside(file: Path) -> dict[str, Any]:
    """The facts of NAME.json beside NAME.safetensors: plain, or under "config"."""
    place = file.with_suffix(".json")
    if not place.is_file():
        return {}
    try:
        return _facts(json_file(place))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{place} is not the description of weights: {error}") from error
