"""Makes features.npz and the tiny_*.pth beside it, with PyTorch; run once, not by the tests.

    pip install genfield[features] torch torchvision pytorch-fid efficientnet-lite-pytorch
    python tests/golden/make_features.py cifar10_jpeg.tar.xz

The networks are other people's: pytorch-fid's `fid_inception_v3` and torchvision's `vgg16`, with
genfield's random weights of seed 0, and efficientnet-lite-pytorch's network with its real weights.
Each output is stored as 256 evenly spaced elements an image, and its norm.
"""

import io
import sys
import tarfile
from pathlib import Path

import numpy as np
import torch
import torchvision
from efficientnet_lite_pytorch import EfficientNet
from PIL import Image
from pytorch_fid import inception as pytorch_fid

from genfield import features
from genfield.features import inception, vgg, weights
from genfield.features.resize import resize

FOLDER = Path(__file__).parent
IMAGES = tuple(f"test/{name}/0001.jpg" for name in ("cat", "ship", "automobile", "frog"))
SAMPLES = 256


def images(archive: str) -> np.ndarray:
    """Four test images of CIFAR-10, [4, 32, 32, 3] uint8."""
    found = {}
    with tarfile.open(archive) as tar:
        for member in tar:
            name = next((n for n in IMAGES if member.name.endswith(n)), None)
            if name:
                found[name] = np.asarray(Image.open(io.BytesIO(tar.extractfile(member).read())))
    return np.stack([found[name] for name in IMAGES])


def levels(pictures: np.ndarray, size: int) -> torch.Tensor:
    """[4, 3, size, size] levels in 0..255, by genfield's own resizing."""
    resized = np.array(resize(pictures, size, "antialiased"))
    return torch.from_numpy(resized).permute(0, 3, 1, 2).contiguous()


def random_state(network) -> dict[str, torch.Tensor]:
    return {n: torch.from_numpy(a) for n, a in weights.random(network.shapes(), 0).items()}


def run_inception(pictures: np.ndarray) -> dict[str, torch.Tensor]:
    # pytorch-fid would download its weights here.
    pytorch_fid.load_state_dict_from_url = lambda *_, **__: random_state(inception)
    model = pytorch_fid.fid_inception_v3().eval()
    seen = {}
    for name, layer in (("pool", model.avgpool), ("spatial", model.Mixed_6d.branch1x1)):
        layer.register_forward_hook(lambda _, __, output, name=name: seen.update({name: output}))
    logits = model((levels(pictures, 299) - 128) / 128)
    return {
        "pool": seen["pool"].flatten(1),
        "logits": logits,
        "logits_unbiased": logits - model.fc.bias,
        "spatial": seen["spatial"][:, :7],
    }


def run_vgg(pictures: np.ndarray) -> dict[str, torch.Tensor]:
    model = torchvision.models.vgg16().eval()
    model.load_state_dict(random_state(vgg), strict=False)
    normalise = torchvision.transforms.Normalize(vgg.MEAN, vgg.DEVIATION)
    x, outputs = normalise(levels(pictures, 224) / 255), {}
    ends = {3: "relu1_2", 8: "relu2_2", 15: "relu3_3", 22: "relu4_3", 29: "relu5_3"}
    for number, layer in enumerate(model.features):
        x = layer(x)
        if number in ends:
            outputs[ends[number]] = x.clone()
    return outputs


def run_efficientnet(pictures: np.ndarray) -> dict[str, torch.Tensor]:
    path = weights.find("efficientnet_lite0")
    model = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=str(path)).eval()
    outputs, ends = {}, (0, 2, 4, 7, 10, 14, 15)
    for stage, block in enumerate(ends):
        model._blocks[block].register_forward_hook(
            lambda _, __, output, stage=stage: outputs.update({f"stage_{stage}": output})
        )
    x = (levels(pictures, 224) / 255 - 0.498) / 0.502
    pool = model.extract_features(x).mean((2, 3))
    return {"pool": pool, "logits": model(x)} | outputs


def summary(output: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """256 evenly spaced elements of each image's features (channels last), and their norms."""
    values = output.movedim(1, -1).reshape(len(output), -1).numpy()
    places = np.linspace(0, values.shape[1] - 1, SAMPLES).astype(int)
    return values[:, places], np.linalg.norm(values.astype(np.float64), axis=1)


def tiny_files() -> None:
    """A small state dict in PyTorch's two formats: dtypes, views, a shared storage, a parameter."""
    base = torch.arange(12, dtype=torch.float32).reshape(3, 4)
    state = {
        "whole": base,
        "transposed": base.T,
        "corner": base[1:, 2:],
        "parameter": torch.nn.Parameter(torch.full((2,), 0.5)),
        "half": torch.tensor([1.5, -2.0], dtype=torch.float16),
        "bfloat16": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
        "double": torch.tensor([[1 / 3]], dtype=torch.float64),
        "scalar": torch.tensor(7),
        "flags": torch.tensor([True, False]),
        "empty": torch.zeros(0, 3),
    }
    torch.save(state, FOLDER / "tiny_zip.pth")
    torch.save(
        {"state_dict": state, "epoch": 3},
        FOLDER / "tiny_legacy.pth",
        _use_new_zipfile_serialization=False,
    )


@torch.no_grad()
def main(archive: str) -> None:
    tiny_files()
    pictures = images(archive)
    stored = {"images": pictures}
    runs = {
        "inception_v3": run_inception,
        "vgg16": run_vgg,
        "efficientnet_lite0": run_efficientnet,
    }
    for network, run in runs.items():
        made = features.create(network, seed=None if network == "efficientnet_lite0" else 0)
        stored[f"{network}/hash"] = made.hash
        for name, output in run(pictures).items():
            values, norms = summary(output)
            stored[f"{network}/{name}"] = values
            stored[f"{network}/{name}/norm"] = norms
    np.savez_compressed(FOLDER / "features.npz", **stored)


if __name__ == "__main__":
    main(*sys.argv[1:])
