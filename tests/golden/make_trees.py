"""Writes the small files of tests/features/test_torch_trees.py. Needs torch 2 and numpy.

    python tests/golden/make_trees.py

Run once with torch 2.13; the files are kept. `persistence` stands for the module of EDM's code that
wraps classes so that a pickle holds their source.
"""

import argparse
import collections
import pickle
import sys
import types
from pathlib import Path

import numpy as np
import torch

FOLDER = Path(__file__).parent / "trees"


def reconstruct(meta):
    raise RuntimeError("nothing of a file is to be called")


def persistence():
    """A module `torch_utils.persistence` with the function that EDM's pickles name."""
    module, name = types.ModuleType("torch_utils.persistence"), "_reconstruct_persistent_obj"
    reconstruct.__module__, reconstruct.__qualname__ = module.__name__, name
    setattr(module, name, reconstruct)
    sys.modules["torch_utils"] = types.ModuleType("torch_utils")
    sys.modules["torch_utils.persistence"] = module


def persistent(base: type) -> type:
    """The class as EDM's decorator makes it: pickled as source and state."""

    class Decorator(base):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self._init_args, self._init_kwargs = args, kwargs

        def __reduce__(self):
            meta = dict(type="class", version=6, module_src="raise RuntimeError('run')")
            return reconstruct, (dict(meta, class_name=base.__name__, state=self.__dict__),), None

    return Decorator


class Block(torch.nn.Module):
    def __init__(self, width):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.arange(width * 2.0).reshape(width, 2))
        self.register_parameter("bias", None)
        self.register_buffer("filter", torch.full((1, 1, 2, 2), 0.25))
        self.register_buffer("passing", torch.zeros(3), persistent=False)


class Net(torch.nn.Module):
    def __init__(self, width, sigma_data):
        super().__init__()
        self.sigma_data = sigma_data
        self.enc = torch.nn.ModuleDict({"4x4": persistent(Block)(width)})
        self.enc["aux"] = self.enc["4x4"]  # shared
        self.last = torch.nn.Linear(2, 1, bias=False)
        torch.nn.init.constant_(self.last.weight, 0.5)


def checkpoint() -> dict:
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    with torch.no_grad():
        for i, value in enumerate(model.parameters()):
            value.fill_(i + 0.5)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model(torch.ones(4, 2)).sum().backward()
    optimizer.step()
    loaded = torch.nn.Parameter(torch.ones(2))
    loaded.no_decay = True
    base = torch.arange(6.0)
    return {
        "model": model.state_dict(),
        "ema": collections.OrderedDict((k, v * 2) for k, v in model.state_dict().items()),
        "opt": optimizer.state_dict(),
        "args": argparse.Namespace(model="EqM-B/2", lr=1e-4, path=Path("runs/a"), classes=(1, 2)),
        "epoch": 3,
        "numbers": [np.float64(0.25), np.int32(7), 1.5, None, True, 2**70, 1 + 2j],
        "arrays": {
            "f4": np.arange(6, dtype="f4").reshape(2, 3),
            "columns": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
            "big": np.arange(3, dtype=">i4"),
            "flags": np.array([True, False]),
            "none": np.zeros((0, 2)),
            "texts": np.array(["a", "bc"]),
            "objects": np.array([1, "x"], dtype=object),
        },
        "sets": [{"a", "b"}, frozenset({"c"}), set()],
        "raw": [b"\x00\xff", b""],
        "torch": [torch.float16, torch.Size([2, 3]), torch.device("cpu")],
        "tensors": {
            "bf16": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
            "complex": torch.tensor([1 + 2j]),
            "u16": torch.tensor([1, 65535], dtype=torch.uint16),
            "attributes": loaded,
            "transposed": base.reshape(2, 3).T,
            "view": base[2:4],
            "scalar": torch.tensor(3),
        },
        "counter": collections.Counter({"a": 2}),
        "default": collections.defaultdict(list, {"a": [1]}),
    }


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    content = checkpoint()
    torch.save(content, FOLDER / "checkpoint_zip.pt")
    torch.save(content, FOLDER / "checkpoint_legacy.pt", _use_new_zipfile_serialization=False)
    torch.save(torch.nn.Linear(2, 1), FOLDER / "module.pt")
    persistence()
    edm = {"ema": persistent(Net)(3, sigma_data=0.5), "loss_fn": None, "augment_pipe": None}
    edm["dataset_kwargs"] = {"path": "a.zip", "use_labels": True, "std": np.float32(0.5)}
    edm["arrays"], edm["sets"] = content["arrays"], content["sets"]
    edm["raw"] = content["raw"]
    for protocol in (2, 4, 5):
        with open(FOLDER / f"edm_{protocol}.pkl", "wb") as file:
            pickle.dump(edm, file, protocol=protocol)


if __name__ == "__main__":
    main()
