"""EDM's networks: DDPM++ and NCSN++ (its SongUNet) and ADM (its DhariwalUNet), preconditioned.

Source: Karras et al. (arXiv:2206.00364) and its PyTorch code, whose files are pickles of {"ema":
module}. Names stand on resolutions: "model.enc.32x32_block0.conv0.weight".
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from genfield import nets, registry
from genfield.errors import UserError
from genfield.nets.unet import GROUPS, plan_stages
from genfield.preconditionings import IDDPM_STEPS, PRECONDITIONINGS, iddpm_levels
from genfield.pretrained.family import Description, Family
from genfield.pretrained.mapping import (
    Buffer,
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
from genfield.registry import choose

CLASSES = {"edm": "EDMPrecond", "vp": "VPPrecond", "ve": "VEPrecond", "iddpm": "iDDPMPrecond"}
# Constants of the classes that genfield has built in.
CONSTANTS = {"beta_d": 19.9, "beta_min": 0.1, "C_1": 0.001, "C_2": 0.008, "M": IDDPM_STEPS}
SONG, ADM = "SongUNet", "DhariwalUNet"
NETS = {"ddpmpp": "DDPM++", "ncsnpp": "NCSN++", "adm": "ADM"}
FOURIER = {"embedding_type": "fourier", "encoder_type": "residual", "channel_mult_noise": 2}
FOURIER |= {"resample_filter": [1, 3, 3, 1]}
SIZES = ("img_resolution", "img_channels", "label_dim", "model_type", "model_channels")
SIZES += ("channel_mult", "num_blocks", "attn_resolutions", "augment_dim")
KNOWN = (*SIZES, *FOURIER, *CONSTANTS, "decoder_type", "dropout", "sigma_data", "class_name")
KNOWN += ("precond",)
HEAD_CHANNELS = 64  # of ADM: a width of w has w // 64 heads
SMALLEST_GROUP = 4  # channels of a group of the norms
DROPOUT = 0.1  # the constructors' default
MODEL = "model."
TURN = np.float32(2 * np.pi)
frequencies = Layout(lambda a: np.stack([TURN * a, a]), lambda a: a[1])


def recognises(shapes: Shapes) -> bool:
    return "model.map_layer0.weight" in shapes and any(n.startswith("model.enc.") for n in shapes)


def _read(shapes: Shapes, origin: str) -> dict[str, Any]:
    """The constructor's arguments that names and shapes tell."""
    shape = lambda name, rank: shape_of(shapes, MODEL + name, rank, origin)
    blocks = [re.match(r"model\.enc\.(\d+)x\1_block(\d+)\.conv0\.weight$", name) for name in shapes]
    blocks = [(int(found[1]), int(found[2])) for found in blocks if found]
    if not blocks:
        raise UserError(
            f"{origin} has no 'model.enc.…_block0.conv0.weight': it is no network of EDM"
        )
    sides = sorted({side for side, _ in blocks}, reverse=True)
    first = shape(f"enc.{sides[0]}x{sides[0]}_conv.weight", 4)
    song = "model.out_conv.weight" not in shapes
    channels = first[0] if song else shape("map_layer0.weight", 2)[1]
    widths = [shape(f"enc.{side}x{side}_block0.conv0.weight", 4)[0] for side in sides]
    if any(width % channels for width in widths):
        raise UserError(f"{origin}: widths {widths} are no multiples of the base of {channels}")
    last = f"dec.{sides[0]}x{sides[0]}_aux_conv.weight" if song else "out_conv.weight"
    found = {
        "img_resolution": sides[0],
        "img_channels": first[1],
        "label_dim": shape("map_label.weight", 2)[1] if "model.map_label.weight" in shapes else 0,
        "model_type": SONG if song else ADM,
        "model_channels": channels,
        "channel_mult": [width // channels for width in widths],
        "num_blocks": 1 + max(index for _, index in blocks),
        "attn_resolutions": [s for s in sides if f"model.enc.{s}x{s}_block0.qkv.weight" in shapes],
        "augment_dim": (
            shape("map_augment.weight", 2)[1] if "model.map_augment.weight" in shapes else 0
        ),
        "outputs": shape(last, 4)[0],
    }
    if song and "model.map_noise.freqs" in shapes:
        found |= FOURIER
    return found


def _agree(read: Mapping[str, Any], facts: Mapping[str, Any], origin: str) -> None:
    """Raises UserError where facts contradict the shapes, or ask for what is not here."""
    plain = {"embedding_type": "positional", "encoder_type": "standard", "channel_mult_noise": 1}
    plain |= {"resample_filter": [1, 1], "decoder_type": "standard"}
    if read["model_type"] == ADM:
        plain = {}
    sides = {
        read["img_resolution"] >> level: _heads(read, multiplier * read["model_channels"])
        for level, multiplier in enumerate(read["channel_mult"])
    }
    for name, value in {**plain, **read}.items():
        told = facts.get(name, value)
        told = list(told) if isinstance(told, list | tuple) else told
        if name == "attn_resolutions":
            told = [side for side, heads in sides.items() if side in told and heads]
        if told != value:
            raise UserError(f"{origin}: {name} is {value} by its names and shapes, not {told}")
    for name, value in CONSTANTS.items():
        if facts.get(name, value) != value:
            raise UserError(f"{origin}: genfield has {name} = {value} built in, not {facts[name]}")


def _preconditioning(
    shapes: Shapes, facts: Mapping[str, Any], origin: str
) -> tuple[str, tuple[str, ...]]:
    """Which one, and what is to be said of it."""
    by_class = {name: key for key, name in CLASSES.items()}
    if "precond" in facts:
        told = by_class.get(facts["precond"], facts["precond"])  # "vp", or "VPPrecond"
        choose("fact precond", told, CLASSES)
        return told, ()
    if facts.get("class_name") is not None:
        told = str(facts["class_name"]).rpartition(".")[2]  # without its module
        return choose("class of EDM's networks", told, by_class), ()
    if "u" in shapes:
        return "iddpm", ()
    return "edm", (
        f"{origin} does not say its preconditioning: taken to be EDM's own; pass config="
        "{'precond': 'vp', 've' or 'iddpm'} for another",
    )


def describe(shapes: Shapes, facts: Mapping[str, Any], origin: str) -> Description:
    """What a file is, by its names and shapes, and by what is told beyond them."""
    read = _read(shapes, origin)
    outputs = read.pop("outputs")
    _agree(read, facts, origin)
    name, notes = _preconditioning(shapes, facts, origin)
    wanted = read["img_channels"] * (2 if name == "iddpm" else 1)
    if outputs != wanted:
        raise UserError(
            f"{origin}: its last layer has {outputs} channels, and {CLASSES[name]} of "
            f"{read['model_type']} has {wanted} for images of {read['img_channels']}"
        )
    told = {key: facts[key] for key in ("dropout", "sigma_data") if key in facts}
    return described(read | told | {"precond": name}, notes)


def described(facts: dict[str, Any], notes: tuple[str, ...] = ()) -> Description:
    """The description of a network by all of its constructor's facts."""
    side, channels = facts["img_resolution"], facts["img_channels"]
    song, name = facts["model_type"] == SONG, facts["precond"]
    kind = ("ncsnpp" if "embedding_type" in facts else "ddpmpp") if song else "adm"
    levels = sorted(facts["attn_resolutions"], reverse=True)
    net = {
        "name": kind,
        "channels": facts["model_channels"],
        "channel_multipliers": tuple(facts["channel_mult"]),
        "num_res_blocks": facts["num_blocks"],
        "dropout": facts.get("dropout", DROPOUT),
        "augmentation_size": facts["augment_dim"],
    }
    if song:
        net["attention_resolutions"] = tuple(levels)
    else:
        net |= {"attention_levels": tuple(side // level for level in levels)}
        net |= {"head_channels": HEAD_CHANNELS, "smallest_group": SMALLEST_GROUP}
        middle = _heads(facts, facts["model_channels"] * facts["channel_mult"][-1])
        net |= {} if middle else {"middle_attention": False}
    net |= {"learned_variance": True} if name == "iddpm" else {}
    known = PRECONDITIONINGS[name]
    sampler = {"name": "edm_heun", "num_steps": 18 if side <= 32 else 40}  # EDM, Table 2 and 3
    sampler |= {"sigma_min": max(0.002, known.lowest), "sigma_max": min(80.0, known.highest)}
    program = {"sampler": sampler, "time": dict(known.time), "label_dropout": 0.0}
    if facts["augment_dim"]:
        program |= {"augmentation": 0.12, "augmentation_center": "edm"}
    return Description(
        title=f"{NETS[kind]} of {CLASSES[name].removesuffix('Precond')} for {side}x{side}",
        net=net,
        shape=(side, side, channels),
        num_classes=facts["label_dim"],
        facts=facts,
        teaches="denoiser",
        clock=True,
        loss={"name": "denoising", "weighting": known.weighting, "reduction": "sum"},
        program=program,
        preconditioning=name,
        sigma_data=facts.get("sigma_data", 0.5),
        notes=notes,
    )


def _heads(facts: Mapping[str, Any], width: int) -> int:
    """How many heads an attending block of a width has; 0: then it has no attention at all."""
    return 1 if facts["model_type"] == SONG else width // HEAD_CHANNELS


def _mixed(width: int) -> tuple[Layout, Layout]:
    """Layouts of a weight and a bias of queries, keys, values: three by three in the file."""
    order = np.arange(3 * width).reshape(width, 3).T.reshape(-1)
    return reordered(conv, order, 0), reordered(same, order, 0)


def _resampling(facts: Mapping[str, Any]) -> np.ndarray:
    taps = np.array(facts.get("resample_filter", [1, 1]), np.float32)
    return (np.outer(taps, taps) / taps.sum() ** 2)[None, None]


def _stage(
    theirs: str, ours: str, song: bool, sizes: tuple[int, int], attends: bool, taps
) -> Rules:
    """A block, with the attention that follows it; taps: of one that resamples, else None."""
    theirs, ours = MODEL + theirs, f"{ours}/"
    inputs, width = sizes
    found = [
        *norm(f"{theirs}.norm0", f"{ours}block/norm1"),
        *affine(f"{theirs}.conv0", f"{ours}block/conv1", conv),
        *affine(f"{theirs}.affine", ours + ("block/shift" if song else "block/modulation")),
        *norm(f"{theirs}.norm1", f"{ours}block/norm2"),
        *affine(f"{theirs}.conv1", f"{ours}block/conv2", conv),
    ]
    if inputs != width or (song and taps is not None):
        found += affine(f"{theirs}.skip", f"{ours}block/skip", conv)
    if taps is not None:
        found += [Buffer(f"{theirs}.{part}.resample_filter", taps) for part in ("conv0", "skip")]
    if attends:
        weight, bias = _mixed(width)
        found += [
            *norm(f"{theirs}.norm2", f"{ours}attention/norm"),
            *affine(f"{theirs}.qkv", f"{ours}attention/qkv", weight, bias=bias),
            *affine(f"{theirs}.proj", f"{ours}attention/out", conv),
        ]
    return found


def rules(description: Description) -> Rules:
    facts, song = description.facts, description.facts["model_type"] == SONG
    channels = facts["model_channels"]
    widths = [channels * multiplier for multiplier in facts["channel_mult"]]
    at = lambda level: "{0}x{0}".format(facts["img_resolution"] >> level)
    taps, fourier = _resampling(facts), "embedding_type" in facts
    attends = lambda level: facts["img_resolution"] >> level in facts["attn_resolutions"]
    blocks = facts["num_blocks"]
    down, up = plan_stages(widths, blocks, channels if song else None)
    found = [*_embedding(facts, song), *affine(f"model.enc.{at(0)}_conv", "first", conv)]
    for s in down:
        names = f"enc.{at(s.level)}_block{s.index}", f"down/{s.level}_{s.index}"
        found += _stage(*names, song, (s.inputs, s.outputs), attends(s.level), None)
    for level, width in enumerate(widths[:-1]):
        sizes = width, width
        found += _stage(f"enc.{at(level + 1)}_down", f"shrink/{level}", song, sizes, False, taps)
        sizes = widths[level + 1], widths[level + 1]
        found += _stage(f"dec.{at(level)}_up", f"grow/{level + 1}", song, sizes, False, taps)
        if fourier:
            name = f"model.enc.{at(level + 1)}_aux_residual"
            found += affine(name, f"pyramid/{level}/conv", conv)
            found += [Buffer(f"{name}.resample_filter", taps)]
    last, side = (widths[-1], widths[-1]), at(len(widths) - 1)
    found += _stage(f"dec.{side}_in0", "middle1", song, last, _heads(facts, last[0]) > 0, None)
    found += _stage(f"dec.{side}_in1", "middle2", song, last, False, None)
    for s in up:
        names = f"dec.{at(s.level)}_block{s.index}", f"up/{s.level}_{s.index}"
        attending = attends(s.level) and (not song or s.index == blocks)
        found += _stage(*names, song, (s.inputs, s.outputs), attending, None)
    ends = (f"dec.{at(0)}_aux_norm", f"dec.{at(0)}_aux_conv") if song else ("out_norm", "out_conv")
    found += [*norm(MODEL + ends[0], "norm"), *affine(MODEL + ends[1], "last", conv)]
    if facts["precond"] == "iddpm":
        found += [Buffer("u", iddpm_levels().astype(np.float32), relative=1e-3)]
    return found


def _embedding(facts: Mapping[str, Any], song: bool) -> list[Rule]:
    """Of the time, labels and augmentation."""
    first, second = ("embedding/first", "embedding/second") if song else ("time1", "time2")
    inner = "embedding/" if song else ""
    found = [*affine("model.map_layer0", first), *affine("model.map_layer1", second)]
    if "embedding_type" in facts:
        found += [Rule("model.map_noise.freqs", "embedding/frequencies", frequencies)]
    if facts["label_dim"]:
        labels = affine("model.map_label", f"{inner}labels")
        found += labels if song else labels[:1]  # ADM's has no bias
    if facts["augment_dim"]:
        found += affine("model.map_augment", f"{inner}augmentation")[:1]
    return found


def writes(ours: Description) -> Description | None:
    """Networks of these names that are denoisers of square images."""
    net, shape = ours.net, ours.shape
    fits = net["name"] in NETS and ours.teaches == "denoiser" and ours.preconditioning in CLASSES
    if not fits or len(shape) != 3 or shape[0] != shape[1]:
        return None
    theirs = described(_facts(ours))
    doubled = net.get("learned_variance", False) == (ours.preconditioning == "iddpm")
    return theirs if doubled and (net["name"] != "adm" or _as_adm(net, theirs.facts)) else None


def _as_adm(net: Mapping[str, Any], facts: Mapping[str, Any]) -> bool:
    """Whether an ADM has norms and heads as EDM's."""
    widths = [facts["model_channels"] * multiplier for multiplier in facts["channel_mult"]]
    fewest = net.get("smallest_group", 2)
    alike = fewest == SMALLEST_GROUP or min(widths) >= SMALLEST_GROUP * GROUPS
    channels, middle = net.get("head_channels", HEAD_CHANNELS), net.get("middle_attention", True)
    sides = [facts["img_resolution"] >> level for level in range(len(widths))]
    attending = [w for w, s in zip(widths, sides, strict=True) if s in facts["attn_resolutions"]]
    attending += [widths[-1]] * middle
    ours = lambda width: width // channels if channels else 1
    heads = all(0 < _heads(facts, width) == ours(width) for width in attending)
    return alike and heads and middle == (_heads(facts, widths[-1]) > 0)


def _facts(ours: Description) -> dict[str, Any]:
    """The constructor's arguments of a network in genfield's terms, defaults filled in."""
    net = registry.bound(nets.known()[ours.net["name"]], ours.net)
    side, name = ours.shape[0], ours.net["name"]
    adm = name == "adm"
    sides = [side // f for f in net["attention_levels"]] if adm else net["attention_resolutions"]
    facts = {
        "img_resolution": side,
        "img_channels": ours.shape[-1],
        "label_dim": ours.num_classes,
        "model_type": ADM if adm else SONG,
        "model_channels": net["channels"],
        "channel_mult": list(net["channel_multipliers"]),
        "num_blocks": net["num_res_blocks"],
        "attn_resolutions": sorted(sides, reverse=True),
        "augment_dim": net["augmentation_size"],
        "dropout": net["dropout"],
        "sigma_data": ours.sigma_data,
        "precond": ours.preconditioning,
    }
    return facts | (FOURIER if name == "ncsnpp" else {})


METHOD = Family(
    name="edm",
    title="EDM's DDPM++, NCSN++ and ADM",
    recognises=recognises,
    told=lambda facts: facts.get("class_name") in CLASSES.values(),
    known=KNOWN,
    describe=describe,
    rules=rules,
    writes=writes,
)
