"""genfield's own files: any network of the package, and what it was trained to be, in one file.

A safetensors file whose header holds the description; arrays are named "field/" and the path of the
parameter, in genfield's layouts. `exporting` writes them where no published family has a place.
"""

import json
from collections.abc import Mapping
from typing import Any

from genfield import nets, registry
from genfield.errors import UserError
from genfield.fields import ENERGIES
from genfield.preconditionings import PRECONDITIONINGS
from genfield.pretrained.family import Description, Family, Guidance
from genfield.pretrained.mapping import Rule, Rules, Shapes, leaves, same

PREFIX = "field/"
LAYERS = ("depth", "num_res_blocks")  # how many times a network repeats a part


def recognises(shapes: Shapes) -> bool:
    return bool(shapes) and all(name.startswith(PREFIX) for name in shapes)


def describe(shapes: Shapes, facts: Mapping[str, Any], origin: str) -> Description:
    """The description that the file's header holds, checked as a config is."""
    if "description" not in facts:
        raise UserError(f"{origin} lacks the header of pretrained.export: export it anew")
    try:
        stored = _tuples(facts["description"])
        guidance = stored.get("guidance")
        stored["guidance"] = None if guidance is None else Guidance(*guidance)
        found = Description(facts={}, **stored)
    except (TypeError, ValueError, KeyError) as error:
        raise UserError(
            f"{origin}: its header is not one of this version of genfield ({error})"
        ) from error
    _check_size(found.net, shapes, origin)
    registry.choose("field", found.teaches, dict.fromkeys(registry.FIELDS))
    registry.choose("output", found.output, dict.fromkeys(registry.OUTPUTS))
    registry.choose("energy", found.energy, {"none": None, **ENERGIES})
    registry.choose("preconditioning", found.preconditioning, {"none": None, **PRECONDITIONINGS})
    return found


def _check_size(net: Mapping[str, Any], shapes: Shapes, origin: str) -> None:
    """That making the network takes no longer than its arrays are many, or long where stacked."""
    most = max(len(shapes), *(max(shape, default=0) for shape in shapes.values()))
    if not isinstance(net, Mapping):
        raise UserError(f"{origin} is damaged: its header describes no network")
    for name in LAYERS:
        number = net.get(name, 0)
        if not isinstance(number, int) or number > most:
            raise UserError(f"{origin} is damaged: its header says {name}={number!r} of a network")


def _tuples(value: Any) -> Any:
    """JSON has lists where a description has tuples."""
    if isinstance(value, list):
        return tuple(map(_tuples, value))
    return {k: _tuples(v) for k, v in value.items()} if isinstance(value, dict) else value


def rules(description: Description) -> Rules:
    """Each parameter under its own path."""
    sizes = {"shape": description.shape, "num_classes": description.num_classes}
    _, abstract = nets.create(description.net, None, **sizes)
    return [Rule(PREFIX + path, path, same) for path in leaves(abstract)]


def writes(ours: Description) -> Description:
    """Any network of the package; its facts are the description itself."""
    if ours.net["name"] not in nets.known():
        raise UserError(
            f"net {ours.net['name']!r} is one of your own, which a file of weights does not hold: "
            "pass on the run's folder, which keeps a copy of your files"
        )
    stored = {name: value for name, value in ours._asdict().items() if name != "facts"}
    try:
        return ours._replace(facts={"description": json.loads(json.dumps(stored))})
    except TypeError as error:
        raise UserError(f"a description holds numbers, strings and sections: {error}") from error


METHOD = Family(
    name="genfield",
    title="genfield's own export",
    recognises=recognises,
    told=lambda facts: "description" in facts,
    known=("description",),
    describe=describe,
    rules=rules,
    writes=writes,
)
