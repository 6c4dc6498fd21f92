"""Autoencoders from files under each of the names they have, and what is wrong with others."""

import hashlib
import io
import json
import urllib.error
from typing import ClassVar

import numpy as np
import pytest
from tiny_autoencoders import facts, made, params, sizes, state, stored, write

from genfield import pretrained
from genfield.errors import UserError
from genfield.features import autoencoder_kl, weights
from genfield.pretrained import autoencoders

OWNED = "stabilityai/sd-vae-ft-mse"
OLDER = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch, tmp_path):
    """No weights but those that a test puts there, and no network."""
    monkeypatch.setenv("GENFIELD_CACHE", str(tmp_path / "cache"))
    for name in autoencoders.PUBLISHED:
        monkeypatch.delenv(weights.SOURCES[name].variable, raising=False)

    def unreachable(*_, **__):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(weights.urllib.request, "urlopen", unreachable)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder as diffusers writes it."""
    place = tmp_path_factory.mktemp("published")
    write(place / autoencoders.FILE, state("published"), facts("published"))
    return place


@pytest.fixture(scope="module")
def thirty_two():
    """A state dict whose widths 32 groups divide."""
    config = autoencoder_kl.Config(block_out_channels=(32, 32), layers_per_block=1)
    return weights.state_dict(autoencoder_kl.random(config, 0))


def convolutions(tensors: dict) -> dict:
    """Attention as the older files have it: 1x1 convolutions."""
    attention = lambda n, a: ".attn_1." in n or (".attentions.0." in n and a.ndim == 2)
    expand = lambda a: a[:, :, None, None] if a.ndim == 2 else a
    return {n: expand(a) if attention(n, a) else a for n, a in tensors.items()}


def compvis() -> dict:
    """The case "published" under the names of latent diffusion."""
    renamed = zip(stored()[0]["published"]["compvis"], state("published").values(), strict=True)
    return convolutions(dict(renamed))


def older() -> dict:
    """The same under diffusers' earlier names."""
    tensors = {}
    for name, array in state("published").items():
        for new, old in OLDER.items():
            name = name.replace(f".attentions.0.{new}.", f".attentions.0.{old}.")
        tensors[name] = array
    return tensors


def inside() -> dict:
    """The same in a checkpoint of a whole latent diffusion model."""
    others = {"model.diffusion_model.out.2.weight": np.zeros((4, 4)), "alphas": np.zeros(3)}
    loss = {"first_stage_model.loss.logvar": np.zeros(())}
    return {f"first_stage_model.{n}": a for n, a in compvis().items()} | others | loss


NAMES = {
    "diffusers": (lambda: state("published"), "diffusers"),
    "diffusers, half": (lambda: {n: a.astype("f2") for n, a in state("published").items()},
                        "diffusers"),
    "older": (older, "diffusers, older attention"),
    "older, convolutions": (lambda: convolutions(older()), "diffusers, older attention"),
    "CompVis": (compvis, "CompVis"),
    "CompVis, with its loss": (lambda: compvis() | {"loss.logvar": np.zeros(())}, "CompVis"),
    "inside": (inside, "CompVis"),
}  # fmt: skip


@pytest.mark.parametrize("names", NAMES)
def test_each_naming_is_the_same_autoencoder(tmp_path, names):
    tensors, called = NAMES[names]
    file = write(tmp_path / "model.bin", tensors(), {"norm_num_groups": 2})
    found = pretrained.autoencoder(file)
    assert found.info.names == called
    assert found.info.hash == weights.digest(params("published"))
    assert found.info.config == sizes("published")
    assert found.info.parameters == 4733


def test_what_is_known_of_it(folder):
    info = pretrained.autoencoder(folder).info
    assert (info.factor, info.latent_channels, info.image_channels) == (4, 4, 3)
    assert info.scaling_factor is None and info.shift_factor == 0
    assert info.path == str(folder / autoencoders.FILE)


def test_encodes_and_decodes_any_number(folder):
    few, wanted = pretrained.autoencoder(folder, batch=3), made("published")
    five = np.concatenate([wanted["x"]] * 3)[:5]
    mean, std = few.encode(five)
    for found, name in ((mean, "mean"), (std, "std")):
        expected = np.concatenate([wanted[name]] * 3)[:5]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    decoded = few.decode(np.concatenate([wanted["mean"]] * 3)[:4])
    expected = np.concatenate([wanted["decoded"]] * 2)
    np.testing.assert_allclose(decoded, expected, rtol=1e-4, atol=1e-5)
    assert few.encode(five[:0])[0].shape == (0, 2, 3, 4)
    alone = few.pure.decode(few.params, wanted["mean"])
    np.testing.assert_allclose(alone, wanted["decoded"], rtol=1e-4, atol=1e-5)


def test_levels_from_0_to_255_are_refused(folder):
    coder, levels = pretrained.autoencoder(folder), np.zeros((1, 8, 8, 3), np.uint8)
    for function in (coder.encode, coder.decode):
        with pytest.raises(UserError, match=r"takes floats, images in \[-1, 1\], not uint8"):
            function(levels)


def test_how_many_at_once():
    info = autoencoders.Info(*[None] * len(autoencoders.Info._fields))._replace(tile=None)
    images = lambda side: np.broadcast_to(np.float32(0), (1, side, side, 3))
    fitting = autoencoders._fitting
    assert [fitting(images(side), 1, info) for side in (64, 256, 1024)] == [128, 8, 1]
    assert fitting(images(32), 8, info) == 8
    assert fitting(images(1024), 1, info._replace(tile=256)) == 8


# ---- what shapes do not tell


def test_where_the_config_is_read(tmp_path):
    file = write(tmp_path / "model.safetensors", state("sixteen"))
    with pytest.raises(UserError, match=r"how many groups its norms have, and 32 do not divide"):
        pretrained.autoencoder(file)
    told = {"norm_num_groups": 3, "scaling_factor": 0.25}
    assert pretrained.autoencoder(file, config=told).info.scaling_factor == 0.25
    (tmp_path / "config.json").write_text(json.dumps(facts("sixteen") | {"act_fn": "silu"}))
    info = pretrained.autoencoder(file).info
    assert info.shift_factor == 0.0609 and info.config == sizes("sixteen")
    named = {"config": {"norm_num_groups": 3, "scaling_factor": 0.5}, "parameters": 1}
    (tmp_path / "model.json").write_text(json.dumps(named))
    info = pretrained.autoencoder(file).info
    assert (info.scaling_factor, info.shift_factor) == (0.5, 0)
    assert pretrained.autoencoder(file, config={"scaling_factor": 2}).info.scaling_factor == 2


def test_shapes_alone_with_32_groups(tmp_path, thirty_two):
    info = pretrained.autoencoder(write(tmp_path / "model.safetensors", thirty_two)).info
    assert info.config.norm_num_groups == 32
    assert info.config.block_out_channels == (32, 32) and info.scaling_factor is None


@pytest.mark.parametrize(
    "config, words",
    [
        ({"norm_groups": 2}, "unknown field .*'norm_groups': did you mean 'norm_num_groups'"),
        ({"norm_num_groups": 2.5}, "norm_num_groups must be positive, not 2.5"),
        ({"scaling_factor": "a"}, "scaling_factor must be a number"),
        ({"block_out_channels": 4}, "block_out_channels must be a list of whole"),
        ({"use_quant_conv": 1}, "use_quant_conv must be true or false"),
        ({"act_fn": "relu"}, "act_fn must be silu"),
        ({"down_block_types": ["AttnDownEncoderBlock2D"]}, "down_block_types must all be Down"),
        ({"down_block_types": 0.5}, "down_block_types must all be Down"),
        ({"_class_name": "AutoencoderTiny"}, "only AutoencoderKL can be opened"),
        ({"layers_per_block": 3}, r"it lacks encoder.down_blocks.0.resnets.2.norm1.weight"),
        ({"layers_per_block": 2**63}, r"too few for layers_per_block=9223"),
        ({"use_quant_conv": False}, "it has the unexpected quant_conv.bias"),
        ({"latent_channels": 8}, "it has another shape for encoder.conv_out.weight"),
        ({"norm_num_groups": 3}, "norm_num_groups=3 does not divide the 2 channels"),
    ],
)
def test_a_config_that_is_wrong(folder, config, words):
    with pytest.raises(UserError, match=words) as caught:
        pretrained.autoencoder(folder, config=config)
    assert "\n" not in str(caught.value)


# ---- files


def test_another_file(tmp_path):
    file = write(tmp_path / "other.safetensors", {"blocks.0.weight": np.zeros(3)})
    with pytest.raises(UserError, match=r"not an AutoencoderKL's file: it lacks encoder.conv_in"):
        pretrained.autoencoder(file)
    damaged = state("published")
    damaged["encoder.conv_in.bias"] = damaged["encoder.conv_in.bias"] + np.nan
    with pytest.raises(UserError, match=r"values are not finite.*encoder.conv_in.bias"):
        pretrained.autoencoder(write(file, damaged), config={"norm_num_groups": 2})
    twice = state("published")
    twice["encoder.mid_block.attentions.0.query.bias"] = np.zeros(4)
    with pytest.raises(UserError, match=r"holds encoder.*to_q.bias twice"):
        pretrained.autoencoder(write(file, twice))


def test_folders(tmp_path, folder, monkeypatch):
    pipeline = tmp_path / "pipeline"
    write(pipeline / "vae" / autoencoders.FILE, state("published"), facts("published"))
    (pipeline / "model_index.json").write_text("{}")
    assert pretrained.autoencoder(pipeline).info.hash == pretrained.autoencoder(folder).info.hash
    one = write(tmp_path / "one" / "a.pt", state("published"), facts("published")).parent
    assert pretrained.autoencoder(one).info.path.endswith("a.pt")
    write(one / "b.pt", state("published"))
    with pytest.raises(UserError, match=r"must hold one file of weights .*not 2 \(a.pt, b.pt\)"):
        pretrained.autoencoder(one)
    with pytest.raises(UserError, match=r"no autoencoder at .*: pass a file, a folder, or one of"):
        pretrained.autoencoder(tmp_path / "nowhere")
    monkeypatch.chdir(tmp_path)
    write(tmp_path / OWNED / autoencoders.FILE, state("published"), facts("published"))
    assert pretrained.autoencoder(OWNED).info.factor == 4  # the folder, not the published one
    with pytest.raises(UserError, match="not on this machine's disk"):
        pretrained.autoencoder("gs://bucket/vae")


def test_the_sha256(folder):
    digest = hashlib.sha256((folder / autoencoders.FILE).read_bytes()).hexdigest()
    assert pretrained.autoencoder(folder, sha256=digest[:8]).info.factor == 4
    with pytest.raises(UserError, match=f"SHA-256 begins with {digest[:8]}, not 00000000"):
        pretrained.autoencoder(folder, sha256="0" * 8)


class Stream(io.BytesIO):
    """An answer of a server."""

    headers: ClassVar[dict] = {}


@pytest.mark.parametrize("name", [None, "sd-vae-ft-mse", "stabilityai/sd-vae-ft-ema"])
def test_published_ones_from_the_cache_or_a_download(tmp_path, monkeypatch, thirty_two, name):
    plain = (name or "sd-vae-ft-ema").removeprefix("stabilityai/")
    with pytest.raises(UserError, match=f"put it there as {plain}.safetensors, or set GENFIELD_SD"):
        pretrained.autoencoder(name)
    body = write(tmp_path / "body.safetensors", thirty_two).read_bytes()
    digest, source = hashlib.sha256(body).hexdigest(), weights.SOURCES[plain]
    if source.sha256:
        with monkeypatch.context() as patch, pytest.raises(UserError, match="gave another file"):
            patch.setattr(weights.urllib.request, "urlopen", lambda *_, **__: Stream(body))
            pretrained.autoencoder(name)
        monkeypatch.setitem(weights.SOURCES, plain, source._replace(sha256=digest[:8]))
    with monkeypatch.context() as patch:
        patch.setattr(weights.urllib.request, "urlopen", lambda *_, **__: Stream(body))
        info = pretrained.autoencoder(name).info
    assert info.scaling_factor == 0.18215 and info.config.norm_num_groups == 32
    assert pretrained.autoencoder(name).info == info  # from the cache, without a network


def test_saved_and_opened_again(tmp_path):
    wanted, config = params("sixteen"), sizes("sixteen")
    file = autoencoders.save(tmp_path, wanted, config, scaling_factor=0.7)
    found = pretrained.autoencoder(tmp_path)
    assert found.info.hash == weights.digest(wanted) and found.info.config == config
    assert found.info.scaling_factor == 0.7
    assert [f.name for f in sorted(tmp_path.iterdir())] == ["config.json", file.name]
    told = json.loads((tmp_path / "config.json").read_text())
    assert told["_class_name"] == "AutoencoderKL" and told["down_block_types"][1:] == [
        "DownEncoderBlock2D"
    ]
