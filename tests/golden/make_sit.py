"""Makes tests/golden/published/sit.*: a tiny network of SiT's published code, and what it gives.

    python tests/golden/make_sit.py PATH/models.py

needs PyTorch, timm and models.py of SiT's code (github.com/willisma/SiT); genfield is not read.
Written: a checkpoint as Equilibrium Matching's training saves it, and arrays, channels first.
"""

import argparse
import importlib.util
import sys
from pathlib import Path

import numpy as np
import torch

FOLDER = Path(__file__).parent / "published"
SIZES = dict(input_size=8, in_channels=4, hidden_size=16, depth=2, num_heads=2, num_classes=3)
STEPS, STEP_SIZE, LOOK_AHEAD = 30, 0.05, 0.3


def network(code, seed: int):
    torch.manual_seed(seed)
    made = code.SiT(patch_size=2, **SIZES).eval()
    for parameter in made.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.2)
    return made


def energy_field(made, x, t, y, kind: str):
    """The gradient of EqM-E's energies, as its code follows them: x + step * this."""
    with torch.enable_grad():
        x = x.detach().requires_grad_(True)
        out = made(x, t, y)
        energy = -(out**2).sum() / 2 if kind == "l2" else (out * x).sum()
        return torch.autograd.grad(energy, x)[0]


def descend(made, x, y, scale: float, look: float):
    """EqM's sampler; the guided field is the code's own, of a doubled batch."""
    zeros, step = torch.zeros(2 * len(x)), torch.zeros_like(x)
    labels = torch.cat([y, torch.full_like(y, SIZES["num_classes"])])
    for _ in range(STEPS):
        at = x + look * step
        step = (
            STEP_SIZE * made.forward_with_cfg(torch.cat([at, at]), zeros, labels, scale)[: len(x)]
        )
        x = x + step
    return x


def main(place: str) -> None:
    spec = importlib.util.spec_from_file_location("models", place)
    code = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(code)
    ema, model = network(code, 0), network(code, 1)
    arguments = argparse.Namespace(model="EqM-T/2", uncond=True, ebm="none", num_heads=2)
    arguments.num_classes, arguments.global_batch_size = SIZES["num_classes"], 256
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    state = {"model": model.state_dict(), "ema": ema.state_dict(), "args": arguments}
    torch.save({**state, "opt": optimizer.state_dict()}, FOLDER / "sit.pt")
    torch.manual_seed(2)
    x, y = torch.randn(3, 4, 8, 8), torch.tensor([2, 0, 3])
    t, noisy = torch.tensor([0.1, 0.5, 0.9]), torch.tensor([0, 400, 999])
    zeros = torch.zeros(3)
    with torch.no_grad():
        arrays = {"x": x, "t": t, "y": y, "times": noisy, "velocity": ema(x, t, y)}
        arrays |= {"still": ema(x, zeros, y), "of_model": model(x, zeros, y)}
        arrays |= {"noise": ema(x, noisy, y)}
        arrays |= {kind: energy_field(ema, x, zeros, y, kind) for kind in ("dot", "l2")}
        for name, look in (("gd", 0.0), ("nag", LOOK_AHEAD)):
            for scale in (1, 4):
                arrays[f"{name}_{scale}"] = descend(ema, x, y % 3, scale, look)
    np.savez_compressed(FOLDER / "sit.npz", **{n: a.numpy() for n, a in arrays.items()})


if __name__ == "__main__":
    main(sys.argv[1])
