"""Features a second of the feature networks, beside PyTorch's implementations of the same ones.

    python benchmarks/features.py [--networks inception_v3] [--batch 16] [--rounds 8]

The candidates share weights (random, seed 0), images and processors; before any timing their
features are compared. PyTorch's need torch, torchvision and pytorch-fid, or
efficientnet-lite-pytorch; where they are missing, genfield is measured alone.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import rounds

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from genfield import features  # noqa: E402
from genfield.features import efficientnet, inception, weights  # noqa: E402

NETWORKS = {"inception_v3": inception, "efficientnet_lite0": efficientnet}
OURS, TORCH = "genfield", "PyTorch"
TOLERANCE = 1e-4  # of the largest feature
Features = Callable[[], np.ndarray]


def ours(name: str, images: np.ndarray) -> Features:
    """The pooled features of a batch that lies on the device."""
    network = features.create(name, seed=0)
    params, x = jax.device_put(network.params), jax.device_put(images)
    pool = jax.jit(lambda params, x: network.apply(params, x)["pool"])
    return lambda: np.asarray(pool(params, x))


def torch_network(name: str):
    """PyTorch's network with the same weights, and its normalised pooled features of levels."""
    import torch

    drawn = weights.random(NETWORKS[name].shapes(), 0)
    state = {key: torch.from_numpy(array) for key, array in drawn.items()}
    if name == "inception_v3":
        from pytorch_fid import inception as pytorch_fid

        pytorch_fid.load_state_dict_from_url = lambda *_, **__: state
        blocks = pytorch_fid.InceptionV3([3], resize_input=False, normalize_input=False).eval()
        return blocks, lambda x: blocks((x - 128) / 128)[0].flatten(1)
    from efficientnet_lite_pytorch import EfficientNet

    net = EfficientNet.from_name("efficientnet-lite0").eval()
    net.load_state_dict(state, strict=False)
    normalise = lambda x: (x / 255 - efficientnet.MEAN) / efficientnet.DEVIATION
    return net, lambda x: net.extract_features(normalise(x)).mean((2, 3))


def theirs(name: str, images: np.ndarray) -> dict[str, Features]:
    """PyTorch's pooled features in both memory layouts; none where a package is missing."""
    try:
        import torch

        made = {layout: torch_network(name) for layout in ("", " channels_last")}
    except (ImportError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:100]
        print(f"{name}: PyTorch's implementation is not there ({reason})")
        return {}
    device = "cuda" if jax.default_backend() == "gpu" else "cpu"
    candidates = {}
    for layout, (net, pool) in made.items():
        memory = torch.channels_last if layout else torch.contiguous_format
        x = torch.from_numpy(images).permute(0, 3, 1, 2).to(device, memory_format=memory)
        net.to(device, memory_format=memory)

        def run(pool=pool, x=x):
            with torch.inference_mode():
                return pool(x).cpu().numpy()

        candidates[TORCH + layout] = run
    return candidates


def measure(name: str, batch: int, turns: int) -> dict:
    """Rates by candidate, after a first run of each whose features must agree."""
    size = NETWORKS[name].SIZE
    images = np.random.default_rng(0).uniform(0, 255, (batch, size, size, 3)).astype(np.float32)
    candidates = {OURS: ours(name, images)} | theirs(name, images)
    expected = candidates[OURS]()
    for candidate, run in candidates.items():
        difference = np.abs(run() - expected).max() / np.abs(expected).max()
        assert difference < TOLERANCE, f"{candidate}'s features differ by {difference:.1e}"
    timed = {c: lambda run=run: rounds.timed(lambda: len(run())) for c, run in candidates.items()}
    return rounds.interleave(timed, turns)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--batch", type=int, default=16, help="images at once")
    parser.add_argument("--rounds", type=int, default=8, help="of all candidates in turn")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    args = parser.parse_args()
    if args.rounds < 1 or args.batch < 1:
        parser.error("--rounds and --batch must be at least 1")
    where = rounds.machine()
    print(rounds.describe(where) + "\n", flush=True)
    rows, results = [], {}
    for name in args.networks:
        rates = measure(name, args.batch, args.rounds)
        results[name] = {}
        for candidate, values in rates.items():
            over = rates[OURS] / values
            rows.append(
                [
                    name,
                    candidate,
                    rounds.spread(values),
                    rounds.spread(over, rounds.ratio),
                ]
            )
            results[name][candidate] = {
                "rates": rounds.summary(values),
                "genfield_over": rounds.summary(over),
            }
    header = ["network", "by", "features/s", "genfield / it"]
    print(rounds.table(header, rows))
    if args.json:
        content = {"machine": where, "batch": args.batch, "networks": results}
        args.json.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
