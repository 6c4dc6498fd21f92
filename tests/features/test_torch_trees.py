"""What checkpoints and pickles hold, as plain data; PyTorch wrote the files (make_trees.py)."""

from pathlib import Path

import numpy as np
import pytest

from genfield.features import torch_files
from genfield.features.free_pickles import Object
from genfield.features.pickles import Global

TREES = Path(__file__).parents[1] / "golden" / "trees"


def same(found, expected) -> None:
    """Equal, in type too."""
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected, strict=True)


@pytest.mark.parametrize("name", ["checkpoint_zip.pt", "checkpoint_legacy.pt"])
def test_a_checkpoint(name):
    tree = torch_files.read_tree(TREES / name)
    assert list(tree)[:5] == ["model", "ema", "opt", "args", "epoch"]
    assert list(tree["model"]) == list(tree["ema"])
    assert tree["model"]["0.weight"].shape == (3, 2)
    # The average is twice the parameters: of the tensors, the file holds each by itself.
    np.testing.assert_allclose(tree["ema"]["1.bias"], 2 * tree["model"]["1.bias"], rtol=1e-6)
    assert tree["opt"]["param_groups"][0]["betas"] == (0.9, 0.999)
    assert set(tree["opt"]["state"]) == {0, 1, 2, 3}
    args = tree["args"]
    assert (args.name, args.arguments) == ("argparse.Namespace", ())
    assert (args.state["model"], args.state["lr"]) == ("EqM-B/2", 1e-4)
    assert args.state["classes"] == (1, 2)
    assert args.state["path"].name == "pathlib.PosixPath"
    assert args.state["path"].arguments == ("runs", "a")
    assert tree["epoch"] == 3
    assert tree["numbers"] == [0.25, 7, 1.5, None, True, 2**70, 1 + 2j]
    assert tree["torch"][0] == Global("torch.float16") and tree["torch"][1] == (2, 3)
    assert tree["torch"][2].arguments == ("cpu",)
    assert tree["counter"].arguments == ({"a": 2},) and tree["default"].items == {"a": [1]}


def test_tensors_of_all_kinds():
    found = torch_files.read_tree(TREES / "checkpoint_zip.pt")["tensors"]
    base = np.arange(6, dtype="f4")
    same(found["bf16"], np.array([1.5, -2.0], "f4"))
    same(found["complex"], np.array([1 + 2j], "c8"))
    same(found["u16"], np.array([1, 65535], "u2"))
    same(found["attributes"], np.ones(2, "f4"))
    same(found["transposed"], base.reshape(2, 3).T)
    same(found["view"], base[2:4])
    same(found["scalar"], np.array(3))


@pytest.mark.parametrize("name", ["checkpoint_zip.pt", "edm_2.pkl", "edm_4.pkl", "edm_5.pkl"])
def test_arrays_of_numpy(name):
    tree = torch_files.read_tree(TREES / name)
    found = tree["arrays"]
    same(found["f4"], np.arange(6, dtype="f4").reshape(2, 3))
    same(found["columns"], np.arange(6.0).reshape(2, 3))
    same(found["big"], np.arange(3, dtype="i4"))  # in this machine's order
    same(found["flags"], np.array([True, False]))
    same(found["none"], np.zeros((0, 2)))
    # Texts and objects are no numbers: told, not made.
    assert isinstance(found["texts"], Object) and isinstance(found["objects"], Object)
    assert tree["sets"] == [{"a", "b"}, frozenset({"c"}), set()]
    assert tree["raw"] == [b"\x00\xff", b""]


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_a_pickle_as_edm_publishes_its_own(protocol):
    tree = torch_files.read_tree(TREES / f"edm_{protocol}.pkl")
    ema = tree["ema"]
    assert ema.name == "torch_utils.persistence._reconstruct_persistent_obj"
    meta = ema.arguments[0]
    assert (meta["type"], meta["version"], meta["class_name"]) == ("class", 6, "Net")
    assert meta["module_src"] == "raise RuntimeError('run')"
    state = torch_files.module_state(ema)
    assert state["_init_kwargs"] == {"sigma_data": 0.5} and state["_init_args"] == (3,)
    assert tree["dataset_kwargs"] == {"path": "a.zip", "use_labels": True, "std": 0.5}
    weight = np.arange(6, dtype="f4").reshape(3, 2)
    expected = {  # no buffer that state_dict() leaves out; what is shared has both its names
        "enc.4x4.weight": weight,
        "enc.4x4.filter": np.full((1, 1, 2, 2), 0.25, "f4"),
        "enc.aux.weight": weight,
        "enc.aux.filter": np.full((1, 1, 2, 2), 0.25, "f4"),
        "last.weight": np.full((1, 2), 0.5, "f4"),
    }
    found = torch_files.state_dict(ema)
    assert list(found) == list(expected)
    for name, array in expected.items():
        same(found[name], array)


def test_a_module_saved_whole():
    module = torch_files.read_tree(TREES / "module.pt")
    assert module.name == "torch.nn.modules.linear.Linear"
    found = torch_files.state_dict(module)
    assert {name: array.shape for name, array in found.items()} == {"weight": (1, 2), "bias": (1,)}


def test_what_is_no_module_has_no_arrays():
    assert torch_files.state_dict({"a": np.ones(2), "epoch": 3, 4: np.ones(1)}).keys() == {"a"}
    for value in (None, [1], Object("x"), Object("x", state={"_modules": {"a": 3}})):
        with pytest.raises(ValueError, match="no torch module"):
            torch_files.state_dict(value)


@pytest.mark.parametrize("name", ["tiny_zip.pth", "tiny_legacy.pth"])
def test_a_tree_holds_what_read_gives(name):
    path = TREES.parent / name
    tree, plain = torch_files.read_tree(path), torch_files.read(path)
    tree = tree.get("state_dict", tree)
    assert set(tree) == set(plain)
    for key, array in plain.items():
        same(tree[key], array)
