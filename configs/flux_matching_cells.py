"""RNA kinetics by Flux Matching (Pao-Huang et al., "Generative Modeling with Flux Matching", B.2):
the field of a known mechanism, its rates fitted to one snapshot of cells.

The paper's settings; `:long` trains to the end, with a wider kernel: the paper's 100 steps of 1e-3
hardly move the rates (docs/flux_matching.md). Needs `pip install 'genfield[cells]'` and
--config.data.path=…, an .h5ad file with layers spliced and unspliced. The study with scVelo beside
is reproduce/rna_velocity.py.
"""

from ml_collections import ConfigDict, config_dict

from genfield import configuration
from genfield.errors import choose


def get_config(variant: str = "paper"):
    long = choose("variant of this config", variant, {"paper": False, "long": True})
    config = configuration.base()
    config.data = ConfigDict({"name": "cells", "path": config_dict.placeholder(str)})
    config.net = ConfigDict({"name": "rna_kinetics"})
    config.path = "variance_exploding"
    config.time = ConfigDict({"name": "fixed", "level": 1.0 if long else 1e-3**0.5})
    config.loss = ConfigDict(
        {"name": "flux_matching", "learned_normalizer": False, "learned_horizon": False}
    )
    config.batch_size = 64
    config.optimizer.learning_rate = 1e-2 if long else 1e-3
    config.train.steps = config.checkpoint.every = 2_000 if long else 100
    config.train.log_every = 100 if long else 10
    config.sampler = ConfigDict({"name": "langevin", "num_steps": 100, "step_size": 1e-4})
    config.evaluate.metrics = ("heldout_loss",)
    config.train.eval_batches = 1
    return config


def smoke(config):
    """Shrinks the config to two steps, for tests."""
    config.batch_size, config.train.steps, config.sampler.num_steps = 8, 2, 2
    config.data.top_genes = 10
    return config
