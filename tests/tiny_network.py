"""A feature network for tests that compiles at once: one convolution, with every output."""

import jax
import numpy as np

from genfield.features import FeatureNetwork


def apply(params, x):
    h = jax.lax.conv_general_dilated(
        x / 127.5 - 1, params["kernel"], (4, 4), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    h = jax.nn.relu(h)
    pool = h.mean((1, 2))
    spatial = h[..., :2].reshape(len(x), -1)
    return {"pool": pool, "logits_unbiased": pool[:, :5] * 9, "spatial": spatial}


def create(name="inception_v3", *, path=None, sha256=None, seed=None) -> FeatureNetwork:
    kernel = np.random.default_rng(3 + (seed or 0)).normal(size=(4, 4, 3, 12)) * 0.3
    params = {"kernel": kernel.astype(np.float32)}
    return FeatureNetwork(name, params, apply, 16, f"tiny{seed}", "a test", seed is None, True)
