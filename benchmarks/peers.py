"""The peers' side of `side_by_side.py`, in their own Python: python peers.py ROW FOLDER.

FOLDER has the repositories that are on no package index. Each row is the step or the call that the
peer's own script makes, in float32 on the CPU, without its logging; Flux Matching's authors have
published none, so that its step is written here in PyTorch, on flow_matching's U-Net.
"""

import copy
import math
import sys
import time
import types
from pathlib import Path

from served import Row, serve

UNET = dict(in_channels=3, out_channels=3, attention_resolutions=[2], channel_mult=[2, 2, 2])
UNET |= dict(num_classes=None, num_heads=1, use_scale_shift_norm=True, conv_resample=False)
UNET |= dict(use_new_attention_order=True, with_fourier_features=False)  # their CIFAR-10


def use(*parts: str) -> None:
    """Makes a folder of an exported repository importable."""
    folder = Path(sys.argv[2], *parts)
    if not folder.is_dir():
        raise ImportError(f"{folder} is not there")
    sys.path.insert(0, str(folder))


def size(net) -> int:
    return sum(p.numel() for p in net.parameters() if p.requires_grad)


def stepping(net, optimizer, loss, average) -> Row:
    """Gradient, update and moving average."""

    def run(n):
        for _ in range(n):
            optimizer.zero_grad(set_to_none=True)
            loss().backward()
            optimizer.step()
            average()

    return Row(run, size(net))


def averaging(net, decay=0.9999):
    """A copy of the network and what moves it, as EqM's and EDM's training scripts do."""
    import torch

    ema = copy.deepcopy(net).requires_grad_(False)

    @torch.no_grad()
    def average():
        for kept, new in zip(ema.parameters(), net.parameters(), strict=True):
            kept.mul_(decay).add_(new, alpha=1 - decay)

    return ema, average


def equilibrium():
    """EqM's SiT-S/2, its AdamW and its loss of (latents, labels)."""
    import torch

    use("EqM")
    from models import EqM_models
    from transport import create_transport

    net = EqM_models["EqM-S/2"](input_size=32, num_classes=1000, uncond=True, ebm="none").train()
    transport = create_transport("Linear", "velocity", None, None, None)

    def loss(of, x, y):
        kwargs = dict(y=y, return_act=False, train=True)
        return transport.training_losses(of, x, kwargs)["loss"].mean()

    return net, torch.optim.AdamW(net.parameters(), lr=1e-4, weight_decay=0), loss


def sit(compiled=False) -> Row:
    import torch

    net, optimizer, loss = equilibrium()
    x, y = torch.randn(8, 4, 32, 32), torch.randint(1000, (8,))
    called = torch.compile(net) if compiled else net
    _, average = averaging(net)
    return stepping(net, optimizer, lambda: loss(called, x, y), average)


def sit_loop() -> Row:
    """EqM's train.py from latents: feeding by workers, the loss read each step, a checkpoint."""
    import tempfile

    import torch
    from torch.utils.data import DataLoader, TensorDataset

    net, optimizer, loss = equilibrium()
    ema, average = averaging(net)
    data = TensorDataset(torch.randn(256, 4, 32, 32), torch.randint(1000, (256,)))
    loader = DataLoader(data, 8, shuffle=True, num_workers=1, drop_last=True)
    kept = tempfile.TemporaryFile()

    def run(n):
        begun, done = time.perf_counter(), 0
        while done < n:
            for x, y in loader:
                value = loss(net, x, y)
                optimizer.zero_grad()
                value.backward()
                optimizer.step()
                average()
                value.item()
                done += 1
                if done == n:
                    break
        kept.seek(0)
        torch.save([part.state_dict() for part in (net, ema, optimizer)], kept)
        return time.perf_counter() - begun

    return Row(run, size(net))


def sample() -> Row:
    """EqM's sample_gd.py: 25 of its steps of descent, of two latents."""
    import torch

    net = equilibrium()[0].eval()
    y = torch.tensor([1, 2])

    def run(n):
        for _ in range(n):
            x, t = torch.randn(2, 4, 32, 32), torch.ones(2)
            with torch.no_grad():
                for _ in range(25):
                    x = x + 0.003 * net(x, t, y)

    return Row(run, size(net))


def ddpmpp() -> Row:
    """EDM's training loop at 64 channels, without its augmentation."""
    import torch

    use("edm")
    from training.loss import EDMLoss
    from training.networks import EDMPrecond

    kind = dict(model_type="SongUNet", model_channels=64, channel_mult=[2, 2, 2], dropout=0.1)
    net = EDMPrecond(32, 3, label_dim=0, augment_dim=9, **kind).train()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    images, told, of = torch.randn(4, 3, 32, 32), torch.zeros(4, 9), EDMLoss()
    _, average = averaging(net)
    loss = lambda: of(net, images, None, lambda images: (images, told)).sum().mul(1 / 4)
    return stepping(net, optimizer, loss, average)


def flow_matching_net(channels: int, blocks: int, dropout: float):
    use("flow_matching", "examples", "image")
    from models.unet import UNetModel

    sizes = dict(model_channels=channels, num_res_blocks=blocks, dropout=dropout)
    return UNetModel(**UNET, **sizes).train()


def unet() -> Row:
    """flow_matching's CIFAR-10 example at 64 channels, with its EMA."""
    import torch

    net = flow_matching_net(64, 4, 0.1)
    use("flow_matching")
    from flow_matching.path import CondOTProbPath
    from models.ema import EMA

    wrapped, path = EMA(model=net), CondOTProbPath()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4, betas=(0.9, 0.95))
    images = torch.rand(8, 3, 32, 32)

    def loss():
        x, noise = images * 2 - 1, torch.randn_like(images)
        sigma = (torch.randn(8) * 1.2 - 1.2).exp()
        point = path.sample(t=torch.clip(1 / (1 + sigma), 0.0001, 1.0), x_0=noise, x_1=x)
        return torch.pow(wrapped(point.x_t, point.t, extra={}) - point.dx_t, 2).mean()

    return stepping(net, optimizer, loss, wrapped.update_ema)


def flux() -> Row:
    """Flux Matching's cross-chain step (eq. 6 to 9), one probe, four Langevin steps."""
    import torch

    net, batch = flow_matching_net(32, 2, 0.0), 16
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4)
    images, wide = torch.randn(batch, 3, 32, 32) * 0.5, (-1, 1, 1, 1)
    average = averaging(net, 0.9993)[1]

    def field(x, sigma):  # the score of EDM's denoiser
        s, own = sigma.view(wide), 0.5
        scale = (s**2 + own**2).sqrt()
        out = net(x / scale, sigma.log() / 4, extra={})
        return (own**2 / scale**2 * x + s * own / scale * out - x) / s**2

    def score(x, sigma):  # of the batch smoothed by σ (eq. 7)
        flat, points = x.flatten(1), images.flatten(1)
        logits = flat @ points.T - 0.5 * (points**2).sum(1)
        mean = torch.softmax(logits / sigma[:, None] ** 2, dim=1) @ points
        return ((mean - flat) / sigma[:, None] ** 2).view_as(x)

    def loss():
        sigma = (torch.randn(1) * 1.2 - 1.2).exp().expand(batch)
        x = images + sigma.view(wide) * torch.randn_like(images)
        t = 4.0 * torch.rand(1).expand(batch)
        with torch.no_grad():
            end, h = x, (t / 4).view(wide)
            for _ in range(4):
                pull = -torch.expm1(-h) * sigma.view(wide) ** 2
                noise = sigma.view(wide) * torch.sqrt(-torch.expm1(-2 * h)) * torch.randn_like(x)
                end = end + pull * score(end, sigma) + noise
            at = x + sigma.view(wide) ** 2 * -torch.expm1(-t).view(wide) * score(x, sigma)
            width = 2 * sigma[0] ** 2 * -math.expm1(-2 * float(t[0]))
            apart = torch.cdist(at.flatten(1), end.flatten(1)) ** 2
            weights = torch.softmax(-apart / width, dim=1)
        end.requires_grad_(True)
        probe = torch.randn_like(end).sign()
        s = score(end, sigma)
        u = field(end, sigma) - s
        along = torch.autograd.grad(u, end, probe, create_graph=True)[0]
        r = (along * probe).sum() + (u * s).sum()
        slopes = torch.autograd.grad(r, end)[0].flatten(1)
        mixed = torch.exp(-t[:, None]) * (weights @ slopes)
        u = field(x, sigma) - score(x, sigma)
        return -(4.0 * sigma**2 * (u.flatten(1) * mixed.detach()).sum(1)).mean()

    return stepping(net, optimizer, loss, average)


def mlp_of(inputs: int):
    import torch

    layers, width = [], inputs
    for _ in range(3):
        layers += [torch.nn.Linear(width, 64), torch.nn.SELU()]
        width = 64
    return torch.nn.Sequential(*layers, torch.nn.Linear(64, 2))


def mlp() -> Row:
    """EqM of points in the plane, as TorchCFM's examples write their steps."""
    import torch

    net = mlp_of(2)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)

    def loss():
        x1, x0, t = torch.randn(256, 2), torch.randn(256, 2), torch.rand(256, 1)
        decay = 4 * torch.clamp((1 - t) / 0.2, max=1)
        return ((net((1 - t) * x0 + t * x1) - decay * (x1 - x0)) ** 2).sum(1).mean()

    return stepping(net, optimizer, loss, lambda: None)


def mlp_trainer() -> Row:
    """The same by TorchEBM's loss and trainer."""
    import torch

    use("torchebm")
    # Its build writes this file.
    sys.modules["torchebm._version"] = types.SimpleNamespace(__version__="source")
    from torchebm.core.base_trainer import BaseTrainer
    from torchebm.losses import EquilibriumMatchingLoss

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = mlp_of(2)

        def forward(self, x, t, **_):
            return self.net(x)

    net = Net()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    trainer = BaseTrainer(net, optimizer, EquilibriumMatchingLoss(model=net), device="cpu")

    run = lambda n: [trainer.train_step(torch.randn(256, 2)) for _ in range(n)] and None
    return Row(run, size(net))


def numbers(*shape: int, seed: int):
    import numpy as np

    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def dopri5() -> Row:
    """flow_matching's ODESolver (torchdiffeq) of a random MLP, 1,024 points of the plane."""
    import torch
    from flow_matching.solver import ODESolver
    from flow_matching.utils import ModelWrapper

    weights = [
        torch.tensor(numbers(*s, seed=i)) for i, s in enumerate(((3, 64), (64, 64), (64, 2)))
    ]

    class Field(ModelWrapper):
        def forward(self, x, t, **_):
            h = torch.cat([x, t.expand(len(x), 1)], dim=1)
            for w in weights[:-1]:
                h = torch.tanh(h @ w / math.sqrt(len(w)))
            return h @ weights[-1] / 8

    solver, x = ODESolver(velocity_model=Field(None)), torch.tensor(numbers(1024, 2, seed=9))
    solve = lambda: solver.sample(x, None, method="dopri5", rtol=1e-5, atol=1e-5)

    def run(n):
        for _ in range(n):
            solve()

    return Row(run, value=float(solve().square().mean()))


def points(n: int):
    return numbers(n, 3072, seed=0), numbers(n, 3072, seed=1)


def distances(a, b):
    """Squared ones, by one product."""
    return (a * a).sum(1)[:, None] + (b * b).sum(1)[None] - 2 * a @ b.T


def hungarian() -> Row:
    """SciPy's assignment of 1,000 noises to as many images, distances included."""
    from scipy.optimize import linear_sum_assignment

    x0, x1 = points(1000)

    def run(n):
        for _ in range(n):
            linear_sum_assignment(distances(x1, x0))

    return Row(run)


def transport() -> Row:
    """POT's, of 2,000."""
    import numpy as np
    import ot

    x0, x1 = points(2000)
    uniform = np.full(len(x0), 1 / len(x0))
    solve = lambda: ot.emd(uniform, uniform, ot.dist(x1, x0))

    def run(n):
        for _ in range(n):
            solve()

    cost = np.square(x1 - x0[solve().argmax(1)]).sum(1).mean()
    return Row(run, value=float(cost))


def inception() -> Row:
    """pytorch-fid's network with random weights, 16 images."""
    import torch
    from pytorch_fid import inception as fid

    make = fid._inception_v3

    def unread(**kwargs):
        net = make(**kwargs)
        net.load_state_dict = lambda state: None
        return net

    fid._inception_v3, fid.load_state_dict_from_url = unread, lambda *_, **__: {}
    net = fid.InceptionV3([3], resize_input=False, normalize_input=False).eval()
    x = torch.rand(16, 3, 299, 299) * 2 - 1

    @torch.inference_mode()
    def run(n):
        for _ in range(n):
            net(x)

    return Row(run, size(net))


ROWS = {
    "sit": sit,
    "sit, torch.compile": lambda: sit(compiled=True),
    "sit_loop": sit_loop,
    "sample": sample,
    "ddpmpp": ddpmpp,
    "unet": unet,
    "flux": flux,
    "mlp": mlp,
    "mlp, TorchEBM's trainer": mlp_trainer,
    "dopri5": dopri5,
    "greedy": hungarian,
    "exact": transport,
    "inception": inception,
}

if __name__ == "__main__":
    serve(ROWS[sys.argv[1]])
