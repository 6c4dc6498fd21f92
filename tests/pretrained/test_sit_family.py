"""EqM's, SiT's and DiT's weights, against what SiT's published code gives for a tiny network."""

import json
import mmap
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from genfield import guidance, nets, preconditionings, pretrained, sampling
from genfield.errors import UserError
from genfield.features import torch_files
from genfield.pretrained import mapping
from genfield.pretrained.family import families
from genfield.program import published

GOLDEN = Path(__file__).parent.parent / "golden" / "published"
CHECKPOINT = GOLDEN / "sit.pt"
OUT = dict(np.load(GOLDEN / "sit.npz"))
X, Y, T = OUT["x"].transpose(0, 2, 3, 1), OUT["y"].astype(np.int32), OUT["t"]
SIZES = json.loads((GOLDEN / "names_eqm.json").read_text())


def weights() -> dict[str, np.ndarray]:
    return {n: np.array(a) for n, a in torch_files.read_tree(CHECKPOINT)["ema"].items()}


def close(ours, theirs: str, sign: float = 1.0, tolerance: float = 2e-5):
    """Relative to the largest number."""
    wanted = sign * OUT[theirs].transpose(0, 2, 3, 1)
    assert np.abs(np.asarray(ours) - wanted).max() < tolerance * np.abs(wanted).max()


def test_a_training_checkpoint_is_eqm_by_its_arguments_and_its_field_points_away_from_the_data():
    model = pretrained.load(CHECKPOINT)
    close(model.field(X, T, Y), "still", -1)  # no time, whichever is passed
    close(model.field(X, None, Y), "still", -1)
    info = model.info
    assert (info.family, info.part, info.shape, info.num_classes) == ("eqm", "ema", (8, 8, 4), 3)
    assert (info.null_label, info.guidance.channels, info.teaches) == (3, 3, "gradient")
    assert not info.clock and info.scale == 0.18215
    for words in ("EqM of 2 blocks", "away from the data", "3 means none", "first 3 channels"):
        assert words in str(info)
    null = jnp.full(3, 3, jnp.int32)
    assert np.array_equal(model.field(X), model.field(X, None, null))  # no label is the null one
    close(model.apply(model.params, X, None, Y), "still", -1)


def test_the_parameters_themselves_are_taken_where_the_average_is_not_wanted():
    model = pretrained.load(CHECKPOINT, ema=False)
    assert model.info.part == "model"
    close(model.field(X, None, Y), "of_model", -1)


def test_as_sit_it_is_a_velocity_of_time():
    model = pretrained.load(CHECKPOINT, kind="sit", config={"uncond": False})
    close(model.field(X, T, Y), "velocity")
    with pytest.raises(ValueError, match="pass t"):
        model.field(X, None, Y)


def test_as_dit_it_is_the_denoiser_of_its_noise_prediction():
    model = pretrained.load(CHECKPOINT, kind="dit", config={"uncond": False})
    alpha = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))[OUT["times"]]
    sigma = np.sqrt((1 - alpha) / alpha).astype(np.float32)
    noisy = X * np.sqrt(1 + sigma**2)[:, None, None, None]  # what the network sees is X
    denoised = model.field(noisy, sigma, Y)
    close((noisy - denoised) / sigma[:, None, None, None], "noise", tolerance=2e-3)
    # Between two levels the time lies between theirs; beyond them it stays.
    levels = preconditionings.ddpm_levels()
    ask = np.array([np.sqrt(levels[4] * levels[5]), 1e-4, 1e4], np.float32)
    times = []
    field = preconditionings.ddpm(lambda x, t, cond: times.append(t) or x)
    field(X, ask, None)
    np.testing.assert_allclose(times[0], [4.5, 0, 999], rtol=1e-3)


@pytest.mark.parametrize("ebm, energy", [("dot", "dot"), ("mean", "dot"), ("l2", "l2")])
def test_explicit_energies_have_the_gradient_that_their_code_follows(ebm, energy):
    model = pretrained.load(CHECKPOINT, config={"ebm": ebm})
    prediction = model.field(X, None, Y)
    close(prediction.direction, energy, -1)
    f = OUT["still"].transpose(0, 2, 3, 1)
    energies = (f**2).sum((1, 2, 3)) / 2 if ebm == "l2" else -(f * X).sum((1, 2, 3))
    np.testing.assert_allclose(prediction.distance, energies, rtol=1e-4)


SAMPLERS = {
    "gd": sampling.gradient_descent(0.05),
    "nag": sampling.nesterov(0.05, 0.3),
}


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("scale", [1, 4])
def test_guided_samples_of_30_steps_are_theirs(name, scale):
    model = pretrained.load(CHECKPOINT)
    field = guidance.classifier_free(
        model.field, scale, model.info.null_label, channels=model.info.guidance.channels
    )
    run = jax.jit(
        lambda x, y: sampling.sample(
            jax.random.key(0), field, x, SAMPLERS[name], num_steps=30, cond=y
        )
    )
    close(run(X, jnp.asarray(Y % 3)).x, f"{name}_{scale}", tolerance=1e-4)


@pytest.mark.parametrize("kind", ["eqm", "sit", "dit"])
def test_a_round_trip_is_exact_and_opens_by_itself(kind, tmp_path):
    model = pretrained.load(CHECKPOINT, kind=kind, config={"uncond": kind == "eqm"})
    file = pretrained.export(model, tmp_path / "a.safetensors")
    written, wanted = load_file(file), weights()
    assert written.keys() == wanted.keys()
    assert all(written[n].tobytes() == wanted[n].tobytes() for n in wanted)
    beside = json.loads((tmp_path / "a.json").read_text())
    assert beside["kind"] == kind and beside["config"]["num_heads"] == 2
    assert ("uncond" in beside["config"]) == (kind == "eqm")  # SiT's and DiT's code has no such
    shutil.move(file, tmp_path / "alone.safetensors")
    again = pretrained.load(tmp_path / "alone.safetensors")
    assert again.description == model.description and again.info.family == kind
    same = jax.tree.map(lambda a, b: a.tobytes() == b.tobytes(), again.params, model.params)
    assert all(jax.tree.leaves(same))
    once_more = pretrained.export(tmp_path / "alone.safetensors", tmp_path / "b.safetensors")
    assert once_more.read_bytes() == (tmp_path / "alone.safetensors").read_bytes()


@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod.", "_orig_mod.module."])
def test_what_wrappers_put_before_names_is_taken_off(wrapper, tmp_path):
    save_file({wrapper + n: a for n, a in weights().items()}, tmp_path / "w.safetensors")
    config = {"num_heads": 2, "uncond": True}
    (tmp_path / "w.json").write_text(json.dumps({"config": config}))
    model = pretrained.load(tmp_path)  # a folder with one file; EqM by what NAME.json says
    assert model.info.family == "eqm" and model.info.part is None
    plain = pretrained.load(CHECKPOINT)
    assert np.array_equal(model.params["last"]["kernel"], plain.params["last"]["kernel"])


@pytest.mark.parametrize("title", SIZES)
def test_names_and_shapes_of_the_published_sizes_are_what_the_networks_want(title):
    known, shapes = SIZES[title], {}
    for name, shape in known["names"].items():
        rows = range(known["blocks"]) if "{}" in name else [0]
        shapes |= {name.format(i): tuple(shape) for i in rows}
    family = families()["eqm"]
    described = family.describe(shapes, {}, "the file")
    assert described.title == title and described.shape == (32, 32, 4)
    assert described.num_classes == 1000
    size, patch = title.removeprefix("EqM-").split("/")
    assert described.net == {"name": "sit", "size": size, "patch_size": int(patch)}
    sizes = {"shape": described.shape, "num_classes": described.num_classes}
    _, abstract = nets.create(described.net, None, **sizes)
    assert mapping.published_shapes(family.rules(described), abstract) == shapes


FAULTS = {
    "lacks one": (
        lambda a: a.pop("t_embedder.mlp.2.bias"),
        r"'t_embedder.mlp.2.bias' is nothing there, and \[16\] was expected",
    ),
    "one more": (
        lambda a: a.update({"extra.weight": a["t_embedder.mlp.2.bias"]}),
        r"'extra.weight' is \[16\] there, and nothing was expected",
    ),
    "another shape": (
        lambda a: a.update({"blocks.1.mlp.fc2.weight": np.zeros((16, 63), np.float32)}),
        r"'blocks.1.mlp.fc2.weight' is \[16, 63\] there, and \[16, 64\] was expected",
    ),
    "other positions": (
        lambda a: a.update(pos_embed=a["pos_embed"][:, ::-1].copy()),
        "'pos_embed' is not what the network computes",
    ),
    "no square": (
        lambda a: a.update(pos_embed=a["pos_embed"][:, :15].copy()),
        "'pos_embed' is of 15 patches, no square",
    ),
    "no positions": (lambda a: a.pop("pos_embed"), "lacks 'pos_embed': another"),
    "not finite": (
        lambda a: a["blocks.0.mlp.fc1.bias"].fill(np.nan),
        "'blocks.0.mlp.fc1.bias' holds values that are not finite",
    ),
    "another thing": (lambda a: [a.pop(n) for n in list(a)[:30]], "of no known family"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_differs_is_one_line_with_the_first_name(fault, tmp_path):
    change, words = FAULTS[fault]
    arrays = weights()
    change(arrays)
    save_file(arrays, tmp_path / "w.safetensors")
    with pytest.raises(UserError, match=words) as caught:
        pretrained.load(tmp_path / "w.safetensors", config=FACTS)
    assert len(str(caught.value).splitlines()) == 1


FACTS = {"num_heads": 2, "uncond": True}
MISTAKES = [
    (dict(config={"uncond": True}), "do not tell the number of attention heads"),
    (dict(config={"num_heads": 2}), "may be EqM or SiT or DiT, which have the same names"),
    (dict(config=FACTS | {"depth": 3}), "depth is 2 by its shapes, not 3"),
    (dict(config=FACTS | {"num_classes": 4}), "no row for the null class"),
    (dict(config=FACTS | {"class_dropout_prob": 0}), "no row for the null class"),
    (dict(config=FACTS | {"head": 3}), "unknown fact of EqM 'head'"),
    (dict(config=FACTS | {"num_heads": 3}), r"divisible by num_heads \(3\)"),
    (dict(config=FACTS | {"num_heads": "2"}), "must be a whole number"),
    (dict(config=FACTS | {"ebm": "sum"}), "unknown ebm 'sum'"),
    (dict(config=FACTS | {"prediction": "noise"}), "was trained with prediction='noise'"),
    (dict(config=FACTS | {"path_type": "VP"}), "was trained with path_type='VP'"),
    (dict(config=FACTS, kind="eqn"), "unknown kind of weights 'eqn': did you mean 'eqm'"),
    (dict(config=FACTS, sha256="0123456789"), "its SHA-256 begins with"),
    (dict(config=FACTS, sha256="xyz"), "must be 8 to 64 hex digits"),
]


@pytest.mark.parametrize("given, words", MISTAKES, ids=lambda v: v if isinstance(v, str) else "")
def test_facts_that_are_missing_or_wrong_are_one_line(given, words, bare):
    with pytest.raises(UserError, match=words) as caught:
        pretrained.load(bare, **given)
    assert len(str(caught.value).splitlines()) == 1


@pytest.fixture(scope="module")
def bare(tmp_path_factory) -> Path:
    """The average alone, with nothing that says what it is."""
    file = tmp_path_factory.mktemp("bare") / "w.safetensors"
    save_file(weights(), file)
    return file


def test_an_export_says_what_it_cannot_do_and_replaces_nothing(bare, tmp_path):
    model = pretrained.load(bare, config=FACTS)
    with pytest.raises(UserError, match=r"SiT has no place for EqM.*kind='eqm' or 'genfield'"):
        pretrained.export(model, tmp_path / "a.safetensors", kind="sit")
    with pytest.raises(UserError, match=r"is a .safetensors file, not .*a.pt"):
        pretrained.export(model, tmp_path / "a.pt")
    with pytest.raises(UserError, match="choose among the checkpoints of a workdir"):
        pretrained.export(bare, tmp_path / "a.safetensors", step=3)
    with pytest.raises(UserError, match="pass like="):
        pretrained.export(model.params, tmp_path / "a.safetensors")
    assert not list(tmp_path.iterdir())
    file = pretrained.export(model.params, tmp_path / "a.safetensors", like=model.description)
    before = file.read_bytes()
    assert pretrained.export(model, file) == file  # the same again
    other = jax.tree.map(lambda a: a + 1, model.params)
    with pytest.raises(UserError, match="there already, and another one"):
        pretrained.export(other, file, like=model.description)
    with pytest.raises(UserError, match="no place for the parameter 'more'"):
        named = {**model.params, "more": np.zeros(1)}
        pretrained.export(named, tmp_path / "b.safetensors", like=model.description)
    assert file.read_bytes() == before
    assert sorted(f.name for f in tmp_path.iterdir()) == ["a.json", "a.safetensors"]


def test_an_export_whose_numbers_were_changed_is_told(bare, tmp_path):
    file = published.export(pretrained.load(bare, config=FACTS), tmp_path / "a.safetensors")
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(UserError, match="not those that were exported"):
        pretrained.load(file)


def test_files_that_hold_no_one_set_of_weights_are_told(tmp_path):
    (tmp_path / "notes.txt").write_text("none")
    with pytest.raises(UserError, match=r"one file of weights .* not 0 \(none\)"):
        pretrained.load(tmp_path)
    for name in "ab":
        save_file(weights(), tmp_path / f"{name}.safetensors")
    with pytest.raises(UserError, match=r"not 2 \(a.safetensors, b.safetensors\)"):
        pretrained.load(tmp_path)
    with pytest.raises(UserError, match="no weights file"):
        pretrained.load(tmp_path / "c.safetensors")
    (tmp_path / "a.json").write_text("[1")
    with pytest.raises(UserError, match="is not the description of weights"):
        pretrained.load(tmp_path / "a.safetensors")


def test_parts_of_a_checkpoint_that_nobody_reads_stay_in_the_file():
    held = torch_files.read_tree(CHECKPOINT)["model"]["pos_embed"]
    while hasattr(held, "base"):
        held = held.base
    assert isinstance(held, memoryview) and isinstance(held.obj, mmap.mmap)
