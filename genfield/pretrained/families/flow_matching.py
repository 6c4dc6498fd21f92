"""The U-Net of flow_matching's image examples (Lipman et al. 2024, arXiv:2412.06264), after ADM's.

Its velocity points from noise at t = 0 to data at t = 1, as genfield's does. Names count blocks:
"input_blocks.3.0.in_layers.2.weight".
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from genfield import nets, registry
from genfield.errors import UserError
from genfield.nets.unet import GROUPS, plan_stages
from genfield.pretrained.family import Description, Family
from genfield.pretrained.mapping import (
    Layout,
    Rule,
    Rules,
    Shapes,
    affine,
    conv,
    norm,
    reordered,
    same,
    shape_of,
)

READ = ("in_channels", "model_channels", "out_channels", "num_res_blocks", "attention_resolutions")
READ += ("channel_mult", "conv_resample", "resblock_updown", "num_classes", "use_scale_shift_norm")
HEADS = ("num_heads", "num_head_channels", "num_heads_upsample", "use_new_attention_order")
# What genfield's U-Net has built in; dims and use_checkpoint change no number.
BUILT_IN = {"with_fourier_features": False, "dims": 2}
KNOWN = (*READ, *HEADS, *BUILT_IN, "dropout", "image_size", "dataset")
# By the "dataset" of a training's arguments: the base width, and what shapes do not tell.
RECIPES = {
    "cifar10": (128, {"num_heads": 1, "image_size": 32}),
    "imagenet": (192, {"num_head_channels": 64, "use_new_attention_order": True}),
}
MAX_PERIOD = 10_000  # of the time embedding
IMAGE_SIZE = 32  # CIFAR-10's; shapes do not tell
# [out, in, 1] <-> [1, 1, in, out]
line = Layout(lambda a: a.transpose(2, 1, 0)[None], lambda a: a[0].transpose(2, 1, 0))


def recognises(shapes: Shapes) -> bool:
    telling = ("time_embed.0.weight", "input_blocks.0.0.weight", "middle_block.1.qkv.weight")
    return all(name in shapes for name in telling)


def _counted(shapes: Shapes, pattern: str) -> set[int]:
    found = (re.match(pattern, name) for name in shapes)
    return {int(match[1]) for match in found if match}


def _resampling(shapes: Shapes, origin: str) -> tuple[str, int, int]:
    """How levels are resampled, how many there are, and how many blocks each has."""
    last = max(_counted(shapes, r"output_blocks\.(\d+)\.0\."), default=0)
    grown = {
        "block": _counted(shapes, r"output_blocks\.(\d+)\.[12]\.in_layers\.2\.weight$"),
        "conv": _counted(shapes, r"output_blocks\.(\d+)\.[12]\.conv\.weight$"),
        "pool": set(range(last + 1)) - _counted(shapes, r"input_blocks\.(\d+)\.0\."),
    }
    for how, places in grown.items():
        if places:  # the first is the last block of the last level on the way up; pools: down
            each = min(places) + (1 if how != "pool" else 0)
            if (last + 1) % each:
                raise UserError(f"{origin}: {last + 1} blocks up are not {each} a level")
            return how, (last + 1) // each, each - 1
    return "pool", 1, last


def _read(shapes: Shapes, origin: str) -> dict[str, Any]:
    """The constructor's arguments that names and shapes tell."""
    shape = lambda name, rank: shape_of(shapes, name, rank, origin)
    how, levels, blocks = _resampling(shapes, origin)
    channels = shape("time_embed.0.weight", 2)[1]
    firsts = [1 + level * (blocks + 1) for level in range(levels)]
    widths = [shape(f"input_blocks.{first}.0.out_layers.3.weight", 4)[0] for first in firsts]
    if any(width % channels for width in widths):
        raise UserError(f"{origin}: widths {widths} are no multiples of the base of {channels}")
    modulation = shape("input_blocks.1.0.emb_layers.1.weight", 2)[0]
    rows = shape("label_emb.weight", 2)[0] if "label_emb.weight" in shapes else None
    attends = lambda first: f"input_blocks.{first}.1.qkv.weight" in shapes
    return {
        "in_channels": shape("input_blocks.0.0.weight", 4)[1],
        "model_channels": channels,
        "out_channels": shape("out.2.weight", 4)[0],
        "num_res_blocks": blocks,
        "attention_resolutions": [2**level for level in range(levels) if attends(firsts[level])],
        "channel_mult": [width // channels for width in widths],
        "conv_resample": how == "conv",
        "resblock_updown": how == "block",
        "num_classes": None if rows is None else rows - 1,
        "use_scale_shift_norm": modulation == 2 * widths[0],
    }


def _check_built_in(facts: Mapping[str, Any], origin: str) -> None:
    for name, value in BUILT_IN.items():
        if facts.get(name, value) != value:
            raise UserError(f"{origin}: genfield's U-Net has {name}={value}, not {facts[name]}")


def _agree(read: Mapping[str, Any], facts: Mapping[str, Any], origin: str) -> None:
    """Raises UserError where facts contradict the shapes, or ask for what is not here."""
    levels = [2**level for level in range(len(read["channel_mult"]))]
    for name, value in read.items():
        told = facts.get(name, value)
        told = list(told) if isinstance(told, list | tuple) else told
        if name == "attention_resolutions":
            told = [level for level in levels if level in told]  # others are not looked at
        if name in ("conv_resample", "resblock_updown") and len(levels) == 1:
            continue  # nothing is resampled
        if name == "conv_resample" and read["resblock_updown"]:
            continue  # then it is not looked at
        if name == "num_classes" and not told and not value:
            continue
        if told != value:
            raise UserError(f"{origin}: {name} is {value} by its names and shapes, not {told}")
    if read["in_channels"] != read["out_channels"]:
        raise UserError(
            f"{origin} takes {read['in_channels']} channels and gives {read['out_channels']}: a "
            "field gives as many as it takes"
        )
    upwards = {facts.get("num_heads"), facts.get("num_heads_upsample", -1)} - {-1, None}
    if len(upwards) > 1 and facts.get("num_head_channels", -1) == -1:
        raise UserError(f"{origin}: num_heads_upsample must be num_heads, or -1")


def describe(shapes: Shapes, facts: Mapping[str, Any], origin: str) -> Description:
    """What a file is, by its names and shapes, and by what is told beyond them."""
    _check_built_in(facts, origin)
    read, notes = _read(shapes, origin), ()
    width, recipe = RECIPES.get(str(facts.get("dataset")), (None, {}))
    facts = {**(recipe if width == read["model_channels"] else {}), **facts}
    _agree(read, facts, origin)
    wide = facts.get("num_head_channels", -1) != -1
    if not wide and "num_heads" not in facts:
        raise UserError(
            f"{origin}: shapes do not tell the number of attention heads: pass config="
            "{'num_heads': …} or {'num_head_channels': …}; CIFAR-10's recipe has num_heads 1"
        )
    if (wide or facts["num_heads"] != 1) and "use_new_attention_order" not in facts:
        raise UserError(
            f"{origin} has several attention heads, whose order shapes do not tell: pass config="
            "{'use_new_attention_order': True} or False"
        )
    if "image_size" not in facts:
        notes = (
            f"{origin} does not say the size of its images, of which the network takes any: taken "
            f"to be {IMAGE_SIZE}, CIFAR-10's; pass config={{'image_size': …}} for another",
        )
    told = {name: facts[name] for name in (*HEADS, "dropout", "image_size") if name in facts}
    return described(read | told, notes)


def described(facts: dict[str, Any], notes: tuple[str, ...] = ()) -> Description:
    """The description of a network by all of its constructor's facts."""
    side, wide = facts.get("image_size", IMAGE_SIZE), facts.get("num_head_channels", -1)
    resampling = "conv" if facts["conv_resample"] else "pool"
    net = {
        "name": "unet",
        "channels": facts["model_channels"],
        "channel_multipliers": tuple(facts["channel_mult"]),
        "num_res_blocks": facts["num_res_blocks"],
        "attention_levels": tuple(sorted(facts["attention_resolutions"])),
        "resampling": "block" if facts["resblock_updown"] else resampling,
        "adaptive_scale": facts["use_scale_shift_norm"],
        "dropout": facts.get("dropout", 0.0),
        "max_period": MAX_PERIOD,
        "smallest_group": 1,
        "null_row": "zero",
    }
    net |= {"num_heads": facts["num_heads"]} if wide == -1 else {"head_channels": wide}
    return Description(
        title=f"U-Net of flow_matching, {facts['model_channels']} channels",
        net=net,
        shape=(side, side, facts["in_channels"]),
        num_classes=facts["num_classes"] or 0,
        facts=facts,
        teaches="velocity",
        clock=True,
        loss={"name": "flow_matching"},
        program={"sampler": {"name": "heun", "num_steps": 50, "times": "edm"}},
        notes=notes,
        any_size=True,
    )


def _qkv(width: int, facts: Mapping[str, Any]) -> tuple[Layout, Layout]:
    """Layouts of a weight and a bias of queries, keys and values; the old order is head by head."""
    wide = facts.get("num_head_channels", -1)
    heads = facts["num_heads"] if wide == -1 else width // wide
    order = np.arange(3 * width)
    if not facts.get("use_new_attention_order", heads == 1):
        order = order.reshape(heads, 3, width // heads).transpose(1, 0, 2).reshape(-1)
    return reordered(line, order, 0), reordered(same, order, 0)


def _block(theirs: str, ours: str, inputs: int, width: int) -> list[Rule]:
    found = [
        *norm(f"{theirs}.in_layers.0", f"{ours}/norm1"),
        *affine(f"{theirs}.in_layers.2", f"{ours}/conv1", conv),
        *affine(f"{theirs}.emb_layers.1", f"{ours}/modulation"),
        *norm(f"{theirs}.out_layers.0", f"{ours}/norm2"),
        *affine(f"{theirs}.out_layers.3", f"{ours}/conv2", conv),
    ]
    return found + (affine(f"{theirs}.skip_connection", f"{ours}/skip", conv) * (inputs != width))


def _attention(theirs: str, ours: str, width: int, facts: Mapping[str, Any]) -> list[Rule]:
    weight, bias = _qkv(width, facts)
    return [
        *norm(f"{theirs}.norm", f"{ours}/norm"),
        *affine(f"{theirs}.qkv", f"{ours}/qkv", weight, bias=bias),
        *affine(f"{theirs}.proj_out", f"{ours}/out", line),
    ]


def _resizing(block: str, conv_name: str, ours: str, width: int, facts) -> list[Rule]:
    """Between two levels: a block, a convolution, or nothing to learn."""
    if facts["resblock_updown"]:
        return _block(block, f"{ours}/block", width, width)
    return affine(conv_name, f"{ours}/conv", conv) if facts["conv_resample"] else []


def rules(description: Description) -> Rules:
    facts, blocks = description.facts, description.facts["num_res_blocks"]
    widths = [facts["model_channels"] * multiplier for multiplier in facts["channel_mult"]]
    attends = lambda level: 2**level in facts["attention_resolutions"]
    down, up = plan_stages(widths, blocks)
    found = [*affine("time_embed.0", "time1"), *affine("time_embed.2", "time2")]
    found += [Rule("label_emb.weight", "labels/embedding", same)] if facts["num_classes"] else []
    found += affine("input_blocks.0.0", "first", conv)
    for s in down:
        place, ours = f"input_blocks.{1 + s.level * (blocks + 1) + s.index}", f"{s.level}_{s.index}"
        found += _block(f"{place}.0", f"down/{ours}/block", s.inputs, s.outputs)
        if attends(s.level):
            found += _attention(f"{place}.1", f"down/{ours}/attention", s.outputs, facts)
    for level, width in enumerate(widths[:-1]):
        place = f"input_blocks.{(level + 1) * (blocks + 1)}.0"
        found += _resizing(place, f"{place}.op", f"shrink/{level}", width, facts)
    found += _block("middle_block.0", "middle1/block", widths[-1], widths[-1])
    found += _attention("middle_block.1", "middle1/attention", widths[-1], facts)
    found += _block("middle_block.2", "middle2/block", widths[-1], widths[-1])
    for number, s in enumerate(up):
        place, ours = f"output_blocks.{number}", f"{s.level}_{s.index}"
        found += _block(f"{place}.0", f"up/{ours}/block", s.inputs, s.outputs)
        if attends(s.level):
            found += _attention(f"{place}.1", f"up/{ours}/attention", s.outputs, facts)
        if s.level and s.index == blocks:
            place += ".2" if attends(s.level) else ".1"
            found += _resizing(place, f"{place}.conv", f"grow/{s.level}", s.outputs, facts)
    return found + norm("out.0", "norm") + affine("out.2", "last", conv)


def writes(ours: Description) -> Description | None:
    """Networks "unet" that are velocities with a clock, in the terms of the published code."""
    if ours.net["name"] != "unet" or ours.teaches != "velocity" or not ours.clock:
        return None
    net = registry.bound(nets.known()["unet"], ours.net)
    widths = [net["channels"] * multiplier for multiplier in net["channel_multipliers"]]
    alike = net["smallest_group"] == 1 or min(widths) >= GROUPS * net["smallest_group"]
    alike &= all(width % GROUPS == 0 for width in widths) and not net["distance_head"]
    alike &= net["max_period"] == MAX_PERIOD and ours.shape[0] == ours.shape[1]
    if not alike or (ours.num_classes and net["null_row"] != "zero"):
        return None
    wide = net["head_channels"]
    heads = {"num_heads": net["num_heads"]} if wide is None else {"num_head_channels": wide}
    facts = {
        "in_channels": ours.shape[-1],
        "model_channels": net["channels"],
        "out_channels": ours.shape[-1],
        "num_res_blocks": net["num_res_blocks"],
        "attention_resolutions": sorted(net["attention_levels"]),
        "channel_mult": list(net["channel_multipliers"]),
        "conv_resample": net["resampling"] == "conv",
        "resblock_updown": net["resampling"] == "block",
        "num_classes": ours.num_classes or None,
        "use_scale_shift_norm": net["adaptive_scale"],
        "use_new_attention_order": ours.facts.get("use_new_attention_order", True),
        "dropout": net["dropout"],
        "image_size": ours.shape[0],
    }
    return described(facts | heads)


METHOD = Family(
    name="flow_matching",
    title="flow_matching's U-Net",
    recognises=recognises,
    told=lambda facts: "use_new_attention_order" in facts,
    known=KNOWN,
    describe=describe,
    rules=rules,
    writes=writes,
)
