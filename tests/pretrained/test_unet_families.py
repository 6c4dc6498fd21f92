"""EDM's networks and flow_matching's U-Net: outputs of PyTorch, names, round trips, mistakes."""

import functools
import hashlib
import json
import pickle
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from programs import ROOT

from genfield import nets, pretrained
from genfield.configuration import base
from genfield.errors import UserError
from genfield.preconditionings import PRECONDITIONINGS
from genfield.pretrained import mapping
from genfield.pretrained.family import Description, config_of, families
from genfield.program import experiment

GOLDEN = ROOT / "tests" / "golden"
sys.path.insert(0, str(GOLDEN))
import published_weights  # noqa: E402

FAST_COMPILE = {"xla_backend_optimization_level": 0}


@functools.cache
def cases() -> dict[str, dict]:
    """family/case -> facts and arrays, of tests/golden/make_published.py."""
    found: dict[str, dict] = {}
    with np.load(GOLDEN / "published.npz") as file:
        for name, value in file.items():
            family, case, part = name.split("/")
            found.setdefault(f"{family}/{case}", {})[part] = value
    for case in found.values():
        case |= json.loads(str(case.pop("facts")))
    return found


NAMES = sorted(cases())
slow = functools.partial(pytest.param, marks=pytest.mark.slow)
HEADS = ("num_heads", "num_head_channels", "use_new_attention_order")
QUICK = ("edm/adm", "edm/adm_narrow", "edm/ddpmpp_iddpm", "edm/ncsnpp_labels", "flow_matching/conv")


@functools.cache
def weights(name: str) -> dict[str, np.ndarray]:
    """The weights that a case was computed with."""
    return published_weights.weights_of(cases()[name]["shapes"])


def saved(name: str, folder, change=lambda arrays, config: None, **facts):
    """The file of a case, with NAME.json beside it, and facts that are passed."""
    arrays, config = dict(weights(name)), dict(cases()[name]["config"])
    change(arrays, config)
    file = folder / "weights.safetensors"
    safetensors.numpy.save_file(arrays, file)
    file.with_suffix(".json").write_text(json.dumps({"config": config}))
    return file


def fresh(folder):
    folder.mkdir(exist_ok=True)
    return folder


def last(array):
    return array.transpose(0, 2, 3, 1)


@pytest.mark.parametrize("name", [name if name in QUICK else slow(name) for name in NAMES])
def test_outputs_are_those_of_pytorch_and_the_round_trip_is_exact(name, tmp_path):
    case = cases()[name]
    model = pretrained.load(saved(name, tmp_path))
    cond = case["label"].astype(np.int32) if model.info.num_classes else None
    if case.get("augmentation", np.zeros((0, 0))).size:
        cond = {"label": cond, "augmentation": case["augmentation"]}
    field = jax.jit(model.field, compiler_options=FAST_COMPILE)
    found = field(jnp.asarray(last(case["x"])), jnp.asarray(case["t"]), cond)
    np.testing.assert_allclose(found, last(case["out"]), atol=1e-5 * np.abs(case["out"]).max())
    out = pretrained.export(model, tmp_path / "out" / "again.safetensors")
    again, want = safetensors.numpy.load_file(out), weights(name)
    assert set(again) == set(want)
    for key, array in want.items():
        np.testing.assert_array_equal(again[key], array, key)
    opened = pretrained.load(out)
    assert opened.description._replace(notes=()) == model.description._replace(
        notes=(), facts=opened.description.facts
    )


# The networks of EDM's published files, and a digest of all their names and shapes.
CIFAR = dict(channels=128, channel_multipliers=(2, 2, 2), num_res_blocks=4)
CIFAR |= dict(attention_resolutions=(16,), augmentation_size=9)
PUBLISHED = [
    ("ncsnpp", CIFAR, 32, 10, "c85bfdb14464c246"),  # edm-cifar10-32x32-cond-ve
    slow("ncsnpp", CIFAR, 32, 0, "258fa0c4861acae7"),  # -uncond-ve
    slow("ddpmpp", CIFAR, 32, 0, "1528b612ee4a161b"),  # -uncond-vp
    slow("ddpmpp", CIFAR, 32, 10, "5fed43abae0975d2"),  # -cond-vp
    slow("adm", {}, 64, 1000, "23066e62531cc187"),  # edm-imagenet-64x64-cond-adm
]


@pytest.mark.parametrize(("net", "fields", "side", "classes", "digest"), PUBLISHED)
def test_published_names_and_shapes(net, fields, side, classes, digest):
    """Of genfield's networks at their published sizes, and from the names back to the networks."""
    family = families()["edm"]
    shape, section = (side, side, 3), {"name": net, **fields}
    ours = Description("ours", section, shape, classes, {}, "denoiser", True, {}, {})
    theirs = family.writes(ours._replace(preconditioning="edm"))
    _, abstract = nets.create(section, None, shape=shape, num_classes=classes)
    names = mapping.published_shapes(family.rules(theirs), abstract)
    text = json.dumps({name: list(shape) for name, shape in names.items()}, sort_keys=True)
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == digest
    found = family.describe(names, {"class_name": "EDMPrecond"}, "a file")
    assert found.net | {"dropout": 0.0} == theirs.net | {"dropout": 0.0}


def test_a_table_that_others_rounded_otherwise_is_written_as_it_was(tmp_path):
    """iDDPM's, which float32 puts off, also in half precision; a wrong one is still refused."""
    rounded = lambda a: (a * np.float32(1 + 2e-5)).astype(np.float32)
    for name, change in (("as_float32", rounded), ("half", lambda a: a.astype(np.float16))):
        table = change(weights("edm/ddpmpp_iddpm")["u"])
        file = saved("edm/ddpmpp_iddpm", fresh(tmp_path / name), put_array("u", table))
        out = pretrained.export(pretrained.load(file), tmp_path / name / "again.safetensors")
        np.testing.assert_array_equal(safetensors.numpy.load_file(out)["u"], table)
        opened = pretrained.load(out)
        assert opened.description.buffers and opened.info.num_classes == 2
    wrong = 1.02 * weights("edm/ddpmpp_iddpm")["u"]
    with pytest.raises(UserError, match="'u' is not what the network computes"):
        pretrained.load(saved("edm/ddpmpp_iddpm", fresh(tmp_path / "wrong"), put_array("u", wrong)))


def averaged(name, order=lambda names: names) -> dict:
    """What flow_matching's EMA module of a case holds: its parameters are twice their averages."""
    averages = weights(name)
    numbered = {f"shadow_params.{i}": averages[n] for i, n in enumerate(order(list(averages)))}
    own = {f"model.{n}": 2 * array for n, array in averages.items()}
    return {"num_updates": np.array(7), **own, **numbered}


def pickled(folder, **content):
    """A checkpoint as their training writes it."""
    file = fresh(folder) / "checkpoint.pth"
    file.write_bytes(pickle.dumps(content))
    return file


def test_the_averages_of_a_training_of_flow_matching(tmp_path):
    """They stand by number beside the parameters, in one state dict."""
    facts = {name: cases()["flow_matching/conv"]["config"][name] for name in HEADS}
    file = pickled(tmp_path / "it", model=averaged("flow_matching/conv"), epoch=3, args={})
    model = pretrained.load(file, config=facts)
    want = mapping.to_theirs(families()["flow_matching"].rules(model.description), model.params)
    assert model.info.part == "ema" and set(want) == set(weights("flow_matching/conv"))
    for name, array in weights("flow_matching/conv").items():
        np.testing.assert_array_equal(want[name], array, name)
    own = pretrained.load(file, ema=False, config=facts)
    assert own.info.part == "model"
    np.testing.assert_array_equal(
        own.params["time1"]["kernel"], 2 * model.params["time1"]["kernel"]
    )
    mixed = averaged("flow_matching/conv", lambda names: names[::-1])
    with pytest.raises(UserError, match="do not follow the order of the parameters"):
        pretrained.load(pickled(tmp_path / "mixed", model=mixed, args={}), config=facts)


@pytest.mark.parametrize(("dataset", "width"), [("cifar10", 128), ("imagenet", 192)])
def test_a_training_of_a_published_recipe_says_its_heads(dataset, width):
    """By the data that its arguments name, where the width is the recipe's."""
    net = {"name": "unet", "channels": width, "max_period": 10_000, "null_row": "zero"}
    net |= {"channel_multipliers": (1,), "num_res_blocks": 1, "attention_levels": ()}
    net |= {"smallest_group": 1, "num_heads": 1}
    _, abstract = nets.create(net, None, shape=(8, 8, 3), num_classes=0)
    ours = Description("ours", net, (8, 8, 3), 0, {}, "velocity", True, {}, {})
    family = families()["flow_matching"]
    shapes = mapping.published_shapes(family.rules(family.writes(ours)), abstract)
    found = family.describe(shapes, {"dataset": dataset}, "a file")
    heads = {"num_heads": 1} if dataset == "cifar10" else {"head_channels": 64}
    assert heads.items() <= found.net.items()
    with pytest.raises(UserError, match="do not tell the number of attention heads"):
        family.describe(shapes, {"dataset": "cifar10" if width == 192 else "imagenet"}, "a file")


def test_the_preconditioning_goes_by_its_short_name_or_its_class(tmp_path):
    for facts in ({"precond": "VPPrecond"}, {"class_name": "training.networks.VPPrecond"}):
        file = saved(
            "edm/ddpmpp_vp", tmp_path, lambda arrays, config, facts=facts: _as(config, facts)
        )
        assert pretrained.load(file).info.preconditioning == "vp"


def _as(config, facts):
    config.pop("precond")
    config.update(facts)


@pytest.mark.parametrize("how", ["conv_resample", "resblock_updown"])
def test_how_a_single_level_resamples_does_not_matter(how):
    shapes = {name: tuple(shape) for name, shape in cases()[UNET]["shapes"].items()}
    facts = {"num_heads": 1, how: True}
    kept = r"(input_blocks\.[01]|output_blocks\.0|middle_block|time_embed|out)\."
    one = {n: s for n, s in shapes.items() if re.match(kept, n)} | {"out.2.weight": (3, 32, 3, 3)}
    found = families()["flow_matching"].describe(one, facts, "a file")
    assert found.net["channel_multipliers"] == (1,)


def test_heads_upwards_are_not_looked_at_where_their_channels_are_told():
    shapes = {name: tuple(shape) for name, shape in cases()[UNET]["shapes"].items()}
    facts = {"num_heads": 4, "num_heads_upsample": 8, "use_new_attention_order": True}
    describe = families()["flow_matching"].describe
    found = describe(shapes, facts | {"num_head_channels": 16}, "a file")
    assert found.net["head_channels"] == 16
    with pytest.raises(UserError, match="num_heads_upsample must be num_heads"):
        describe(shapes, facts, "a file")


def test_the_network_of_a_training_state_of_edm(tmp_path):
    facts = cases()["edm/ddpmpp_vp"]["config"] | {"precond": "vp"}
    known = {name: value for name, value in facts.items() if name in families()["edm"].known}
    file = pickled(tmp_path, net=weights("edm/ddpmpp_vp"), optimizer_state={})
    assert pretrained.load(file, config=known).info.part == "net"


def without(name):
    return lambda arrays, config: arrays.pop(name)


def put(name, *shape):
    return lambda arrays, config: arrays.update({name: np.zeros(shape, np.float32)})


def put_array(name, array):
    return lambda arrays, config: arrays.update({name: array})


def told(**facts):
    return lambda arrays, config: config.update(facts)


def untold(*names):
    return lambda arrays, config: [config.pop(name) for name in names]


def learned_sigma(arrays, config):
    """ADM's own networks tell a variance too."""
    put("out.2.weight", 6, 32, 3, 3)(arrays, config)
    config["out_channels"] = 6


EDM, UNET = "edm/ddpmpp_vp", "flow_matching/conv"
MISTAKES = [
    (EDM, without("model.dec.4x4_in1.norm1.bias"), "4x4_in1.norm1.bias' is nothing there"),
    (EDM, put("model.map_layer1.weight", 32, 16), r"'model.map_layer1.weight' is \[32, 16\]"),
    (EDM, put("model.extra", 3), "'model.extra' is .3. there, and nothing was expected"),
    (EDM, put("model.map_augment.weight", 8), "map_augment.weight' is .8., and 2 axes"),
    (EDM, told(channel_mult=[2, 2]), r"channel_mult is \[1, 2\] by its names and shapes"),
    (EDM, told(decoder_type="skip"), "decoder_type is standard by its names and shapes"),
    (EDM, told(precond="vq"), "unknown fact precond 'vq'. Known: edm, iddpm, ve, vp"),
    (EDM, told(beta_d=20.0), "genfield has beta_d = 19.9 built in, not 20.0"),
    ("edm/adm", told(precond="edm"), "its last layer has 6 channels, and EDMPrecond .* has 3"),
    (
        "edm/ncsnpp",
        put("model.enc.4x4_down.skip.resample_filter", 1, 1, 4, 4),
        "'model.enc.4x4_down.skip.resample_filter' is not what the network computes",
    ),
    (UNET, untold("num_heads"), "do not tell the number of attention heads: pass"),
    (UNET, untold("use_new_attention_order"), "config=.'use_new_attention_order"),
    (UNET, told(with_fourier_features=True), "has with_fourier_features=False, not True"),
    (UNET, told(num_heads_upsample=2), "num_heads_upsample must be num_heads"),
    (UNET, told(channel_mult=[1, 4]), r"channel_mult is \[1, 2\] by its names"),
    (UNET, learned_sigma, "takes 3 channels and gives 6: a field gives as many"),
    (UNET, without("time_embed.2.bias"), "'time_embed.2.bias' is nothing there"),
]


@pytest.mark.parametrize(("name", "change", "words"), MISTAKES)
def test_what_differs_is_one_line(name, change, words, tmp_path):
    file = saved(name, tmp_path, change)
    with pytest.raises(UserError, match=words) as caught:
        pretrained.load(file)
    assert len(str(caught.value).splitlines()) == 1


def test_what_a_file_does_not_say_is_taken_and_told(tmp_path, capsys):
    """EDM's own preconditioning, and CIFAR-10's size; other sizes go through the same field."""
    file = saved("edm/ncsnpp_labels", tmp_path, untold("precond"))
    assert pretrained.load(file).info.preconditioning == "edm"
    assert "does not say its preconditioning: taken to be EDM's own" in capsys.readouterr().out
    assert pretrained.load(file, config={"precond": "ve"}).info.preconditioning == "ve"
    assert not capsys.readouterr().out
    model = pretrained.load(saved("flow_matching/pool", tmp_path))
    assert "does not say the size of its images" in capsys.readouterr().out
    assert model.info.shape == (32, 32, 3)
    x = jax.ShapeDtypeStruct((2, 4, 12, 3), jnp.float32)
    found = jax.eval_shape(model.field, x, jax.ShapeDtypeStruct((2,), jnp.float32))
    assert found.shape == x.shape


@pytest.mark.parametrize("name", NAMES)
def test_the_config_of_a_file_is_whole(name):
    """What samples and trains it on, checked as every config is."""
    shapes = {key: tuple(shape) for key, shape in cases()[name]["shapes"].items()}
    family = families()[name.split("/")[0]]
    description = family.describe(shapes, cases()[name]["config"], "a file")
    config = base()
    for field, value in config_of(description).items():
        with config.ignore_type():
            config[field] = value
    config.data.name = "images"
    experiment.check_names(config, experiment.package())
    known = PRECONDITIONINGS.get(config.preconditioning)
    if known is not None:
        assert config.loss.weighting == known.weighting and config.loss.reduction == "sum"
