"""Flux Matching, two moons: one law, many dynamics (Pao-Huang et al., "Generative Modeling with
Flux Matching").

`:annealed` (the default) learns a field for every noise level (eq. 11) and samples by predictor and
corrector; `:smoothed` one field of the data smoothed by σ = 0.2, sampled by Langevin dynamics;
`:turning` the same, made to circulate; `:velocity` other particles with the marginals of a flow
(eq. 61); `:score` is the baseline, stable-target denoising.
"""

from ml_collections import ConfigDict

from genfield import configuration
from genfield.errors import choose

VARIANTS = ("annealed", "smoothed", "turning", "velocity", "score")


def get_config(variant: str = "annealed"):
    choose("variant of this config", variant, dict.fromkeys(VARIANTS))
    config = configuration.base()
    config.data = ConfigDict({"name": "two_moons"})
    config.net = ConfigDict({"name": "mlp", "width": 128, "depth": 3, "activation": "silu"})
    config.net.time_input = True
    config.path = "variance_exploding"
    config.preconditioning, config.sigma_data = "edm", 1.8
    config.time = ConfigDict({"name": "log_uniform", "low": 0.02, "high": 20.0})
    config.loss = ConfigDict({"name": "flux_matching", "group_size": 128})
    config.batch_size = 1024
    config.optimizer.learning_rate = 1e-3
    config.optimizer.schedule = "cosine"
    config.ema.rate = 0.99
    config.train.steps = 4_000
    config.train.log_every = 200
    config.checkpoint.every = 2_000
    levels = {"sigma_min": 0.02, "sigma_max": 20.0}
    config.sampler = ConfigDict({"name": "predictor_corrector", "num_steps": 100, **levels})
    if variant == "score":
        config.loss = ConfigDict({"name": "denoising", "stable_target": True, "group_size": 128})
    if variant in ("smoothed", "turning"):
        config.time = ConfigDict({"name": "fixed", "level": 0.2})
        config.sampler = ConfigDict({"name": "langevin", "num_steps": 2_000, "step_size": 0.002})
        config.loss.learned_normalizer = False
    if variant == "turning":
        config.loss.norm_weight, config.loss.circulation_weight = 0.05, 0.5
    if variant == "velocity":
        config.path, config.preconditioning = "linear", "none"
        config.time = ConfigDict({"name": "uniform", "low": 0.02, "high": 0.98})
        config.loss.name = "velocity_flux_matching"
        config.sampler = ConfigDict({"name": "euler", "num_steps": 100})
    config.sample.num = config.sample.batch_size = 2_000
    config.evaluate.metrics = ("point_cloud", "heldout_loss")
    config.evaluate.repeats = 3
    return config


def smoke(config):
    """Shrinks the config to two steps, for tests."""
    config.net.update(width=16, depth=2)
    config.batch_size, config.loss.group_size = 16, 8
    config.train.steps, config.sampler.num_steps = 2, 2
    config.sample.batch_size = config.evaluate.num_samples = config.evaluate.transport_points = 64
    config.evaluate.repeats, config.train.eval_batches = 1, 1
    return config
