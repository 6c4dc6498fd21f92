"""--weights and initial_parameters: files of weights sampled, evaluated, studied and trained on."""

import json
import re
import shlex

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_latents
import tiny_network
from programs import ROOT

from genfield import features, guidance, nets, pretrained, sampling
from genfield.errors import UserError
from genfield.machine import checkpoint
from genfield.main import main
from genfield.pretrained import exporting
from genfield.pretrained.family import Description
from genfield.program import command, config_io, experiment
from genfield.study.__main__ import main as study

DOCS = (ROOT / "docs" / "published.md").read_text()
COMMANDS = [text for text in DOCS.splitlines() if text.startswith("python -m genfield.main")]
SIT = dict(name="sit", depth=1, width=16, num_heads=2, patch_size=2)
UNET = dict(name="ddpmpp", channels=8, channel_multipliers=(1,), num_res_blocks=1)
UNET |= dict(attention_resolutions=(), augmentation_size=9)
ADM = dict(name="adm", channels=16, channel_multipliers=(1,), num_res_blocks=1)
ADM |= dict(attention_levels=(), middle_attention=False, smallest_group=4)
GRADIENT = dict(teaches="gradient", clock=False, loss={"name": "equilibrium_matching"})
VELOCITY = dict(teaches="velocity", clock=True, loss={"name": "flow_matching"})
DENOISER = dict(teaches="denoiser", clock=True, loss={"name": "denoising"}, preconditioning="edm")
TOYS = {  # name: network, shape, classes, field, family
    "eqm": (SIT, tiny_latents.SHAPE, 10, GRADIENT, "eqm"),
    "sit": (SIT, tiny_latents.SHAPE, 10, VELOCITY, "sit"),
    "edm": (UNET, (8, 8, 3), 0, DENOISER, "edm"),
    "edm_cond": (UNET, (8, 8, 3), 10, DENOISER, "edm"),
    "edm_adm": (ADM, (8, 8, 3), 10, DENOISER, "edm"),
}
OF_PAGE = {"equilibrium": "eqm", "flow": "sit", "edm_imagenet64": "edm_adm"}
OF_PAGE |= {"edm_cifar10.py:published": "edm", "edm_cifar10.py:cond": "edm_cond"}
SMALL = ["num_samples=24", "batch_size=8", "figures=False"]


@pytest.fixture(autouse=True)
def tiny(monkeypatch, tmp_path):
    """The tiny feature network in place of the real ones, and a cache of the test's own."""
    monkeypatch.setattr(features, "create", tiny_network.create)
    monkeypatch.setattr(features, "default", lambda: "inception_v3")
    monkeypatch.setenv("GENFIELD_CACHE", str(tmp_path / "cache"))


def parameters(net: dict, shape: tuple, classes: int) -> dict:
    """Random ones, also where they would start at zero."""
    _, abstract = nets.create(net, None, shape=shape, num_classes=classes)
    draw = np.random.default_rng(0).normal
    return jax.tree.map(lambda a: np.float32(0.2 * draw(size=a.shape)), abstract)


def toy(folder, name: str):
    """A small file of a published family, its JSON beside it; and its parameters."""
    net, shape, classes, field, kind = TOYS[name]
    params = parameters(net, shape, classes)
    made = Description("a toy", net, shape, classes, {}, program={}, **field)
    return exporting.write(params, made, folder / f"{name}.safetensors", kind)[0], params


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("home")
    for name in TOYS:
        toy(folder, name)
    tiny_latents.autoencoder(folder / "vae")
    levels = np.random.default_rng(1).integers(0, 256, (40, 8, 8, 3), np.uint8)
    np.savez(folder / "reference.npz", arr_0=levels)
    return folder


def fields(section: str, *settings: str) -> list[str]:
    return [f"--config.{section}{'.' if section else ''}{setting}" for setting in settings]


# The commands of the docs


def asked(line: str, home, workdir, *extra: str) -> list[str]:
    """A command of the docs, on the toy of its family."""
    words = {w.split("=")[0]: w.split("=", 1)[1] for w in shlex.split(line)[3:]}
    name = next(toy for start, toy in OF_PAGE.items() if f"/{start}" in words["--config"])
    words["--weights"] = home / f"{name}.safetensors"
    words["--config"] = ROOT / words["--config"]
    words |= {"--config.evaluate.reference": home / "reference.npz", "--workdir": workdir}
    if TOYS[name][0] == SIT:
        words["--config.autoencoder"] = home / "vae"
    return ["genfield", *(f"{flag}={value}" for flag, value in words.items()), *extra]


def row(line: str) -> list[str]:
    """The row of the docs' table that a command is of."""
    page = re.search(r"configs/(\S+)", line)[1]
    [found] = [text for text in DOCS.splitlines() if f"| `{page}` |" in text]
    return [cell.strip() for cell in found.strip("|").split("|")]


BY_RUN = {re.search(r"runs/(\w+)", line)[1]: line for line in COMMANDS}
QUICK = ("sit_sde",)


@pytest.mark.parametrize("name", BY_RUN)
def test_a_command_of_the_docs_is_what_the_table_says(name, home, tmp_path):
    line = BY_RUN[name]
    values, overrides = command.parse(asked(line, home, tmp_path / "run"))
    config = command.load_config(values, overrides, tmp_path / "run").config
    _, fid, _, evaluations, _ = row(line)
    assert config.evaluate.num_samples == 50_000 and config.sample.rounding == "shift"
    assert config.evaluate.paper.fid == float(fid)
    labelled = config.data.name == "latents" or config.data.labels
    assert config.evaluate.labels == ("random" if labelled else "balanced")
    section, guided = config.sampler, config.sample.guidance_scale != 1
    assert config.sample.guidance_channels == (3 if guided else 0)
    if section.name == "dopri5":
        assert evaluations == "adaptive, twice" and guided
        return
    each = 2 * section.num_steps - 1 if section.name == "edm_heun" else section.num_steps
    assert each * (2 if guided else 1) == int(evaluations)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n not in QUICK)) for n in BY_RUN]
)
def test_a_command_of_the_docs_runs_from_end_to_end(name, home, tmp_path, capsys):
    argv = asked(BY_RUN[name], home, tmp_path)
    values, _ = command.parse(argv)
    short = ["rtol=0.1", "atol=0.1"] if name == "sit_ode" else ["num_steps=2"]
    extra = fields("evaluate", *SMALL) + fields("sampler", *short)
    assert main([*argv, *extra]) == 0, capsys.readouterr().err
    card = json.loads((tmp_path / "card.json").read_text())
    assert {"fid", "inception_score"} <= set(card["metrics"])
    assert card["weights"]["file"] == str(values.weights) and "training" not in card
    assert card["weights"]["sha256"] == pretrained.load(values.weights).info.sha256
    assert ("autoencoder" in card["sampling"]) == name.startswith(("sit", "eqm"))


def test_there_is_a_command_for_each_published_model():
    assert len(COMMANDS) == 7 and {row(line)[1] for line in COMMANDS} == {
        "32.85", "1.90", "2.15", "2.06", "1.97", "1.79", "1.36"
    }  # fmt: skip


# Sampling without a page


def test_a_file_alone_is_sampled_as_its_field_says(home, tmp_path, capsys):
    argv = ["genfield", f"--weights={home / 'eqm.safetensors'}", "--mode=sample"]
    argv += [f"--workdir={tmp_path}", *fields("sample", "num=6", "guidance_scale=3")]
    assert main([*argv, *fields("sampler", "num_steps=4")]) == 0
    assert "guided as by the authors: the first 3 of 4 channels" in capsys.readouterr().out
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["sampler"]["name"] == "gradient_descent" and not (tmp_path / "data.json").exists()
    drawn = np.load(tmp_path / "samples" / "eqm.npz")
    model = pretrained.load(home / "eqm.safetensors")
    field = guidance.classifier_free(model.field, 3.0, 10, channels=3)
    descent = sampling.gradient_descent(config["sampler"]["step_size"])
    start = jnp.asarray(_starts(config, 6))
    labels = jnp.asarray(drawn["arr_1"], jnp.int32)
    out = sampling.sample(jax.random.key(0), field, start, descent, num_steps=4, cond=labels)
    np.testing.assert_allclose(drawn["arr_0"], out.x, atol=1e-5)
    assert main([*argv, *fields("sampler", "num_steps=4")]) == 0
    assert "already drawn" in capsys.readouterr().out


def test_samples_of_other_weights_are_not_taken_for_these(tmp_path, capsys):
    """Also of weights whose bits differ by what a sum of 32 bits loses: all of an array doubled."""
    file = lambda name: tmp_path / name / "eqm.safetensors"
    model = pretrained.load(toy(file("one").parent, "eqm")[0])
    double = jax.tree.map(lambda a: 2 * np.asarray(a), model.params)
    exporting.write(double, model.description, file("other"))
    argv = ["genfield", "--mode=sample", f"--workdir={tmp_path / 'run'}"]
    argv += [*fields("sample", "num=4"), *fields("sampler", "num_steps=2")]
    assert main([*argv, f"--weights={file('one')}"]) == 0
    assert main([*argv, f"--weights={file('other')}"]) == 2
    assert "tells of samples that differ in weights" in capsys.readouterr().err


def _starts(config: dict, num: int) -> np.ndarray:
    from genfield import rng

    key = rng.stream(config["seed"] + config["sample"]["seed"], "start")
    draw = lambda k: jax.random.normal(k, tiny_latents.SHAPE)
    return np.asarray(rng.per_index(key, jnp.arange(num), draw))


def test_pairs_are_of_weights_too_and_studies_ask_for_data(home, tmp_path, capsys):
    argv = [f"--weights={home / 'sit.safetensors'}", f"--workdir={tmp_path}"]
    short = ["--config.sampler={'name':'euler','num_steps':2}", "--config.sample.num=4"]
    assert main(["genfield", *argv, "--mode=pairs", *short]) == 0
    assert np.load(tmp_path / "pairs" / "sit" / "x1.npy").shape == (4, *tiny_latents.SHAPE)
    assert study(["study", "denoise", *argv]) == 2
    assert "Say where they are now by --config.data.path=" in capsys.readouterr().err


def test_a_model_of_the_zoo_is_measured_and_says_which_it_was(tmp_path):
    argv = ["genfield", "--weights=two_moons/equilibrium_matching", "--mode=evaluate"]
    argv += [f"--workdir={tmp_path}", *fields("sampler", "num_steps=2")]
    assert (
        main([*argv, *fields("evaluate", "num_samples=64", "transport_points=64", SMALL[2])]) == 0
    )
    card = json.loads((tmp_path / "card.json").read_text())
    assert card["weights"]["family"] == "genfield" and np.isfinite(card["metrics"]["w2"]["value"])


@pytest.mark.slow
def test_a_study_is_of_weights_too(home, tmp_path):
    argv = [f"--weights={home / 'edm.safetensors'}", f"--workdir={tmp_path}", "--num=8"]
    argv += [f"--config.evaluate.reference={home / 'reference.npz'}"]
    assert study(["study", "straightness", *argv, "--num_steps=1,2"]) == 0
    found = json.loads((tmp_path / "studies" / "straightness.json").read_text())
    assert found["weights"]["family"] == "edm" and len(found["figures"]["rows"]) == 2


@pytest.mark.parametrize(
    ("name", "words", "says"),
    [
        ("eqm", ["--mode=train"], "to train on from them"),
        ("eqm", ["--mode=sample", "--best"], "take the place of --samples, --step and --best"),
        ("eqm", ["--mode=export"], "genfield.pretrained.export"),
        ("eqm", ["--mode=sample", "--kind=sits"], "unknown kind of weights 'sits'"),
        ("eqm", ["--mode=sample", "--config.net.depth=2"], "config.net is not the network of"),
        ("sit", ["--mode=sample", "--config.loss.time_input=False"], "config.loss trains another"),
        (
            "eqm",
            ["--mode=sample", "--config.sampler={'name':'sde_euler','num_steps':2}"],
            "a score",
        ),
        ("edm", ["--mode=evaluate"], "weights bring none: set config.evaluate.reference"),
        ("sit", ["--mode=evaluate"], "nothing says what to measure"),
        ("none", ["--mode=sample"], "no weights file"),
    ],
)
def test_what_cannot_be_is_one_line(name, words, says, home, tmp_path, capsys):
    weights = home / f"{name}.safetensors"
    argv = ["genfield", f"--weights={weights}", f"--workdir={tmp_path / 'run'}", *words]
    assert main(argv) == 2
    err = capsys.readouterr().err
    assert says in err and err.count("\n") == 1 and not (tmp_path / "run").exists()


def test_a_page_tells_families_with_the_same_names_apart(home, tmp_path, capsys):
    bare = tmp_path / "bare.safetensors"
    content = pretrained.contents.read(home / "sit.safetensors", True).arrays
    from safetensors.numpy import save_file

    save_file(content, bare)
    argv = ["genfield", f"--weights={bare}", "--mode=sample", f"--workdir={tmp_path / 'run'}"]
    assert main(argv) == 2
    assert "add --kind='eqm' or 'sit' or 'dit'" in capsys.readouterr().err
    assert main([*argv, "--kind=sit"]) == 2
    assert 'write {"config": {"num_heads": …}} into bare.json' in capsys.readouterr().err
    bare.with_suffix(".json").write_text('{"config": {"num_heads": 2}}')
    short = fields("sampler", "num_steps=1") + fields("sample", "num=2")
    page = f"--config={ROOT / 'configs' / 'flow_matching_imagenet256.py'}"
    assert main([*argv, page, *short]) == 0
    assert "weights: SiT of 1 blocks" in capsys.readouterr().out


# Training on


def begun(file, folder, **changes):
    """The parameters at which a run begins that starts from a file, by their paths."""
    config = config_io.load(str(ROOT / "tests" / "tiny_latents.py"))
    config.data.path, config.initial_parameters = str(folder / "latents"), str(file)
    for name, value in changes.items():
        section, _, field = name.rpartition("__")
        (config[section] if section else config)[field] = value
    state = experiment.prepare(config, folder / "run").init()
    assert jax.tree.all(jax.tree.map(np.array_equal, state.params, state.ema))
    return checkpoint.named_leaves(jax.device_get(state.params))


def test_a_run_starts_at_the_weights_of_a_file(tmp_path, capsys):
    file, params = toy(tmp_path, "sit")
    tiny_latents.latents(tmp_path / "latents")
    found = begun(file, tmp_path)
    for name, value in checkpoint.named_leaves({"field": params}).items():
        np.testing.assert_array_equal(found[name], value)
    assert "config.initial_parameters: SiT of 1 blocks, 16 wide\n" in capsys.readouterr().out


def test_other_classes_start_anew_and_another_field_is_named(home, tmp_path, capsys):
    tiny_latents.latents(tmp_path / "latents")
    file = home / "eqm.safetensors"
    given = pretrained.load(file).params
    found = begun(file, tmp_path, data__num_classes=0, label_dropout=0.0)
    assert "field/labels/embedding" not in found
    np.testing.assert_array_equal(found["field/last/kernel"], given["last"]["kernel"])
    out = capsys.readouterr().out
    assert "EqM of 1 blocks, 16 wide, a gradient; this run goes on from it to a velocity" in out
    assert "all but field/labels/embedding" in out
    with pytest.raises(UserError, match="is of another network or other data: field/"):
        begun(file, tmp_path, net__width=32)


# The authors' loops


def test_gradient_descent_and_nag_are_the_published_loops():
    rng = np.random.default_rng(0)
    matrix, shift = rng.normal(size=(5, 4, 4)) * 0.3, rng.normal(size=(5, 4))
    start, labels = rng.normal(size=(3, 2, 2, 4)), np.array([0, 3, 2])

    def points_to_data(x, y):  # theirs; channels last here
        return np.einsum("bij,bhwj->bhwi", matrix[y], x) + shift[y][:, None, None]

    def guided(x, y, scale):
        c, u = points_to_data(x, y), points_to_data(x, np.full(len(y), 4))
        return np.concatenate([(u + scale * (c - u))[..., :3], c[..., 3:]], axis=-1)

    def field(x, t=None, cond=None):
        linear = jnp.einsum("bij,bhwj->bhwi", jnp.float32(matrix)[cond], x)
        return -(linear + jnp.float32(shift)[cond][:, None, None])

    for momentum, scale in ((0.0, 1.0), (0.0, 1.5), (0.3, 1.0), (0.3, 1.5)):
        x, last = start, np.zeros_like(start)
        for _ in range(8 - 1):  # "8 steps"
            last = guided(x + 0.1 * momentum * last, labels, scale)
            x = x + 0.1 * last
        ours = sampling.nesterov(0.1, 0.3) if momentum else sampling.gradient_descent(0.1)
        made = guidance.classifier_free(field, scale, 4, channels=3)
        out = sampling.sample(
            jax.random.key(0), made, jnp.float32(start), ours, num_steps=7, cond=jnp.asarray(labels)
        )
        np.testing.assert_allclose(out.x, x, atol=1e-5)
