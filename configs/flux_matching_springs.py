"""Flux Matching on trajectories of two masses on nonlinear springs (Pao-Huang et al., "Generative
Modeling with Flux Matching", B.5).

`:causal` (the default) lets a time point see itself and earlier ones, which no score can; `:full`
lets it see all. `:causal,small` and `:full,small` are for a CPU. The baseline with the same network
is denoising_springs.py.
"""

from genfield import configuration
from genfield.registry import choose
from genfield.shipped import Recipe

SIZES = {"paper": (512, 12, 8), "small": (64, 4, 4)}  # width, blocks, heads
RECIPES = {
    "causal": Recipe(38_228_484, "a GPU"),
    "full": Recipe(38_228_484, "a GPU"),
    "causal,small": Recipe(221_252, "minutes"),
    "full,small": Recipe(221_252, "minutes"),
}


def get_config(variant: str = "causal"):
    mask, _, size = variant.partition(",")
    causal = choose("mask of this config", mask, {"causal": True, "full": False})
    width, depth, heads = choose("size of this config", size or "paper", SIZES)
    config = configuration.base()
    config.data = dict(name="springs", num_trajectories=2_000)
    config.net = dict(name="transformer", width=width, depth=depth, num_heads=heads, causal=causal)
    config.path = "variance_exploding"
    # The paper states no preconditioning; the data have a standard deviation of 2.84.
    config.preconditioning, config.sigma_data = "edm", 2.8
    config.time = dict(name="log_uniform", low=0.002, high=80.0)  # Table 6, as sampler and training
    config.loss = dict(name="flux_matching", group_size=256, sigma_data=2.8)
    config.sampler = dict(name="reverse_ve", num_steps=512)
    config.batch_size = 256
    config.optimizer.learning_rate = 3e-4
    config.ema.rate = 0.99
    config.train.steps, config.checkpoint.every = 10_000, 2_500
    config.sample.update(num=2_000, batch_size=500)
    config.evaluate.update(num_samples=2_000, transport_points=2_000)
    config.evaluate.metrics = ("point_cloud", "heldout_loss")
    if size == "small":
        # The levels of the study in docs/flux_matching.md.
        config.time.low = config.sampler.sigma_min = 0.1
        config.batch_size, config.loss.group_size = 64, 16  # a group has one σ
        config.optimizer.update(learning_rate=2e-3, schedule="cosine", clip_norm=1.0)
        config.train.steps, config.checkpoint.every = 2_000, 1_000
    return config
