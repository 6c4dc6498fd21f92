"""The transformers of DiT, SiT and Equilibrium Matching, which have one set of names and shapes.

Sources: Peebles & Xie (arXiv:2212.09748), Ma et al. (arXiv:2401.08740), Wang & Du
(arXiv:2510.02300) and the PyTorch code of each. Their checkpoints are dictionaries of "model",
"ema", "opt", "args", or bare state dicts.
"""

import functools
import math
import re
from collections.abc import Mapping
from typing import Any

from genfield import registry
from genfield.errors import UserError
from genfield.nets.sit import SIZES, position_table
from genfield.preconditionings import ddpm_levels
from genfield.pretrained.family import Description, Family, Guidance
from genfield.pretrained.mapping import (
    Buffer,
    Layout,
    Rule,
    Rules,
    Shapes,
    affine,
    linear,
    negated,
    same,
    shape_of,
)

KINDS = {"eqm": "EqM", "sit": "SiT", "dit": "DiT"}
ENERGIES = {"none": "none", "dot": "dot", "mean": "dot", "l2": "squared_norm"}  # EqM-E's
LATENT_SCALE = 0.18215  # of Stable Diffusion's autoencoder
GUIDED_CHANNELS = 3  # of four: how all three codes guide
KNOWN = ("model", "depth", "patch_size", "hidden_size", "num_heads", "num_classes", "input_size")
KNOWN += ("in_channels", "mlp_ratio", "learn_sigma", "class_dropout_prob", "uncond", "ebm")
TRAINED = {"path_type": "linear", "prediction": "velocity"}  # of SiT's and EqM's training
KNOWN += tuple(TRAINED)
TELLING = ("x_embedder.proj.weight", "blocks.0.attn.qkv.weight", "final_layer.linear.weight")


def recognises(shapes: Shapes) -> bool:
    return all(name in shapes for name in TELLING) and len(shapes[TELLING[0]]) == 4


def told(kind: str, facts: Mapping[str, Any]) -> bool:
    """Whether a model's name, as "EqM-XL/2", or the facts that EqM's constructor has, say so."""
    if isinstance(facts.get("model"), str):
        return facts["model"].lower().startswith(kind)
    if facts.get("ebm", "none") != "none" or facts.get("uncond") is True:
        return kind == "eqm"
    return kind == "sit" and facts.get("uncond") is False


def _ratio(width: int, hidden: int, told: Any) -> float:
    """The ratio of which a layer of a width has so many hidden ones: what is told, if it fits."""
    if isinstance(told, int | float) and math.isfinite(told) and int(width * told) == hidden:
        return told
    ratio = hidden / width
    while int(width * ratio) < hidden:  # a rounding short of it
        ratio = math.nextafter(ratio, math.inf)
    return int(ratio) if ratio == int(ratio) else ratio


def _read(shapes: Shapes, origin: str, told: Any) -> dict[str, Any]:
    """The constructor's arguments that shapes tell; `told`: the ratio of the MLPs, if anything."""
    shape = lambda name, rank: shape_of(shapes, name, rank, origin)
    width, channels, patch, _ = shape("x_embedder.proj.weight", 4)
    side = math.isqrt(shape("pos_embed", 3)[1])
    if side * side != shapes["pos_embed"][1]:
        raise UserError(f"{origin}: 'pos_embed' is of {shapes['pos_embed'][1]} patches, no square")
    blocks = [re.match(r"blocks\.(\d+)\.", name) for name in shapes]
    return {
        "depth": 1 + max(int(block[1]) for block in blocks if block),
        "patch_size": patch,
        "hidden_size": width,
        "input_size": side * patch,
        "in_channels": channels,
        "mlp_ratio": _ratio(width, shape("blocks.0.mlp.fc1.weight", 2)[0], told),
        "num_classes": shape("y_embedder.embedding_table.weight", 2)[0] - 1,
        "learn_sigma": shape("final_layer.linear.weight", 2)[0] == 2 * channels * patch**2,
    }


def _size(depth: int, width: int) -> str | None:
    return next((size for size, known in SIZES.items() if known[:2] == (depth, width)), None)


def describe(kind: str, shapes: Shapes, facts: Mapping[str, Any], origin: str) -> Description:
    """What a file is, by its shapes and by what is told beyond them: heads, `uncond`, `ebm`."""
    read = _read(shapes, origin, facts.get("mlp_ratio"))
    if facts.get("class_dropout_prob") == 0 or facts.get("num_classes") == read["num_classes"] + 1:
        raise UserError(
            f"{origin} has no row for the null class (it was trained without label dropout), which "
            "genfield's networks have: append one to 'y_embedder.embedding_table.weight'"
        )
    for name, value in read.items():
        if facts.get(name, value) != value:
            raise UserError(f"{origin}: {name} is {value} by its shapes, not {facts[name]}")
    for name, value in TRAINED.items() if kind != "dit" else ():
        if str(facts.get(name, value)).lower() != value:
            raise UserError(
                f"{origin} was trained with {name}={facts[name]!r}; genfield follows those of "
                f"{name}={value!r} alone"
            )
    size = _size(read["depth"], read["hidden_size"])
    heads = facts.get("num_heads") or (SIZES[size][2] if size else None)
    if heads is None:
        raise UserError(
            f"{origin}: shapes do not tell the number of attention heads, and {read['depth']} "
            f"blocks of width {read['hidden_size']} are no published size: pass "
            "config={'num_heads': …}"
        )
    return described(kind, read | {"num_heads": heads} | _beyond(kind, facts))


def _beyond(kind: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    """The facts that only some of the three constructors have, with what is left out filled in.

    A file of EqM takes no time, as all that its authors publish, unless something says it does.
    """
    if kind == "eqm":
        return {"uncond": facts.get("uncond", True), "ebm": facts.get("ebm", "none")}
    return {"uncond": True} if kind == "sit" and facts.get("uncond") else {}


def described(kind: str, facts: dict[str, Any]) -> Description:
    """The description of a network by all of its constructor's facts."""
    size = _size(facts["depth"], facts["hidden_size"])
    net = {"name": "sit", "patch_size": facts["patch_size"]}
    if size and SIZES[size][2] == facts["num_heads"]:
        net["size"], title = size, f"{KINDS[kind]}-{size}/{facts['patch_size']}"
    else:
        net |= {"depth": facts["depth"], "width": facts["hidden_size"]}
        net["num_heads"] = facts["num_heads"]
        title = f"{KINDS[kind]} of {facts['depth']} blocks, {facts['hidden_size']} wide"
    if facts["mlp_ratio"] != 4:
        net["mlp_ratio"] = facts["mlp_ratio"]
    if not facts["learn_sigma"]:
        net["double_output"] = False
    side, channels, field = facts["input_size"], facts["in_channels"], _field(kind, facts)
    guided = GUIDED_CHANNELS if channels > GUIDED_CHANNELS else None
    return Description(
        title=title,
        net=net,
        shape=(side, side, channels),
        num_classes=facts["num_classes"],
        facts=facts,
        guidance=Guidance(guided, None),
        scale=LATENT_SCALE if channels == 4 else None,
        program=_sampling(kind, field["clock"], guided),
        **field,
    )


def _field(kind: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    """What the three kinds of network were trained to be."""
    if kind == "sit":
        clock = "uncond" not in facts
        loss = {"name": "flow_matching", "time_input": clock}
        return {"teaches": "velocity", "clock": clock, "loss": loss}
    if kind == "dit":
        loss = {"name": "denoising"}
        made = {"teaches": "denoiser", "clock": True, "loss": loss, "sigma_data": 1.0}
        return made | {"preconditioning": "ddpm"}
    clock = not facts["uncond"]
    decay = {"name": "truncated", "a": 0.8, "multiplier": 4.0}
    loss = {"name": "equilibrium_matching", "time_input": clock, "decay": decay}
    energy = registry.choose("ebm", facts["ebm"], ENERGIES)
    made = {"teaches": "gradient", "clock": clock, "loss": loss, "energy": energy}
    return made if energy == "none" else made | {"output": "energy"}


def rules(kind: str, description: Description) -> Rules:
    """One table for all three; EqM's last layer with its sign turned, as its field is."""
    facts = description.facts
    patch, channels, depth = facts["patch_size"], facts["in_channels"], facts["depth"]
    width, grid = facts["hidden_size"], facts["input_size"] // patch
    patches = Layout(  # [width, channels, p, p] <-> [p * p * channels, width]
        lambda a: a.transpose(2, 3, 1, 0).reshape(-1, a.shape[0]),
        lambda a: a.reshape(patch, patch, channels, -1).transpose(3, 2, 0, 1),
    )
    turned = (negated(linear), negated(same)) if kind == "eqm" else (linear, same)
    block = {"attn.qkv": "qkv", "attn.proj": "out", "mlp.fc1": "mlp1", "mlp.fc2": "mlp2"}
    block |= {"adaLN_modulation.1": "modulation"}
    return [
        Buffer("pos_embed", position_table(grid, grid, width)[None]),
        *affine("x_embedder.proj", "patches", patches),
        *affine("t_embedder.mlp.0", "time1"),
        *affine("t_embedder.mlp.2", "time2"),
        Rule("y_embedder.embedding_table.weight", "labels/embedding", same),
        *(
            rule
            for theirs, ours in block.items()
            for rule in affine(f"blocks.{{}}.{theirs}", f"blocks/{ours}", rows=depth)
        ),
        *affine("final_layer.linear", "last", turned[0], bias=turned[1]),
        *affine("final_layer.adaLN_modulation.1", "modulation"),
    ]


def writes(kind: str, ours: Description) -> Description | None:
    """A network "sit" with classes and without a distance, of square images."""
    net, shape = ours.net, ours.shape
    if net["name"] != "sit" or net.get("distance_head") or not ours.num_classes:
        return None
    depth, width, heads = SIZES[net.get("size", "B")]
    facts = {
        "depth": net.get("depth") or depth,
        "patch_size": net.get("patch_size", 2),
        "hidden_size": net.get("width") or width,
        "input_size": shape[0],
        "in_channels": shape[-1],
        "mlp_ratio": net.get("mlp_ratio", 4),
        "num_classes": ours.num_classes,
        "learn_sigma": net.get("double_output", True),
        "num_heads": net.get("num_heads") or heads,
    }
    names = {energy: name for name, energy in reversed(ENERGIES.items())}
    told = {"uncond": not ours.clock, "ebm": names.get(ours.energy, "none")}
    theirs = described(kind, facts | _beyond(kind, told))
    means = lambda d: (d.teaches, d.clock, d.energy, d.preconditioning)
    return theirs if means(theirs) == means(ours) and shape[0] == shape[1] else None


def _sampling(kind: str, clock: bool, channels: int | None) -> dict[str, dict[str, Any]]:
    """The samplers of the papers: EqM's Table 7, SiT's adaptive solver; for DiT's noise EDM's."""
    sampler = {
        "eqm": {"name": "gradient_descent", "num_steps": 250, "step_size": 0.003},
        "sit": {"name": "dopri5"},
        "dit": {"name": "edm_heun", "num_steps": 50, **_levels()},
    }[kind]
    if kind == "eqm" and clock:
        sampler = {"name": "euler", "num_steps": 250}
    return {"sampler": sampler, "sample": {"guidance_channels": channels or 0}}


def _levels() -> dict[str, float]:
    lowest, *_, highest = ddpm_levels()
    return {"sigma_min": float(lowest), "sigma_max": float(highest)}


METHODS = tuple(
    Family(
        name=kind,
        title=title,
        recognises=recognises,
        told=functools.partial(told, kind),
        known=KNOWN,
        describe=functools.partial(describe, kind),
        rules=functools.partial(rules, kind),
        writes=functools.partial(writes, kind),
    )
    for kind, title in KINDS.items()
)
