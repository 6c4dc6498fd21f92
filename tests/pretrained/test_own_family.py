"""The example of a family of one's own: TorchCFM's MLP, against what its layers do."""

import runpy
import sys

import numpy as np
import pytest
from programs import ROOT
from safetensors.numpy import load_file, save_file

from genfield import pretrained
from genfield.errors import UserError

EXAMPLE = ROOT / "examples" / "own_family.py"
RNG = np.random.default_rng(0)


def state(inputs=3, width=8, outputs=2, depth=3) -> dict[str, np.ndarray]:
    sizes = [inputs, *[width] * depth, outputs]
    draw = lambda *shape: RNG.normal(size=shape).astype(np.float32)
    weights = {f"net.{2 * i}.weight": draw(sizes[i + 1], sizes[i]) for i in range(depth + 1)}
    return weights | {f"net.{2 * i}.bias": draw(sizes[i + 1]) for i in range(depth + 1)}


def forward(arrays, x, t):
    h = np.concatenate([x, t[:, None]], axis=1).astype(np.float64)
    for i in range(0, 8, 2):
        h = h @ arrays[f"net.{i}.weight"].T + arrays[f"net.{i}.bias"]
        if i < 6:
            h = 1.0507009873554805 * np.where(h > 0, h, 1.6732632423543772 * (np.exp(h) - 1))
    return h


def test_it_opens_samples_and_writes_the_same_file(tmp_path, monkeypatch, capsys):
    file, out, arrays = tmp_path / "a.safetensors", tmp_path / "b.safetensors", state()
    save_file(arrays, file)
    monkeypatch.setattr(sys, "argv", ["own_family.py", str(file), str(out)])
    example = runpy.run_path(str(EXAMPLE), run_name="__main__")
    assert "TorchCFM's MLP, 194 parameters" in capsys.readouterr().out
    written = load_file(out)
    assert written.keys() == arrays.keys()
    assert all(written[name].tobytes() == arrays[name].tobytes() for name in arrays)
    model = pretrained.load(out, kind=example["METHOD"])
    x, t = RNG.normal(size=(5, 2)).astype(np.float32), RNG.random(5).astype(np.float32)
    np.testing.assert_allclose(model.field(x, t), forward(arrays, x, t), rtol=1e-4, atol=1e-4)


def test_what_it_cannot_hold_is_one_line(tmp_path):
    family = runpy.run_path(str(EXAMPLE))["METHOD"]
    save_file(state(inputs=5), tmp_path / "a.safetensors")
    with pytest.raises(UserError, match=r"5 inputs and 2 outputs are no field"):
        pretrained.load(tmp_path / "a.safetensors", kind=family)
    save_file(state(), tmp_path / "b.safetensors")
    model = pretrained.load(tmp_path / "b.safetensors", kind=family)
    scalar = model.description._replace(net=model.net | {"output": "scalar"})
    with pytest.raises(UserError, match=r"TorchCFM's MLP has no place for"):
        pretrained.export(model.params, tmp_path / "c.safetensors", like=scalar, kind=family)
