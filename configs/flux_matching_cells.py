"""RNA kinetics by Flux Matching (Pao-Huang et al., "Generative Modeling with Flux Matching", B.2):
the field of a known mechanism, its rates fitted to one snapshot of cells.

Steps, learning rate and σ² are those of Table 2, the rest is ours. `:long` trains to the end, with
a wider kernel: the paper's 100 steps of 1e-3 hardly move the rates (docs/flux_matching.md). Needs
`pip install 'genfield[cells]'` and --config.data.path=…, an .h5ad file with layers spliced and
unspliced. The study with scVelo beside is reproduce/rna_velocity.py.
"""

import shared
from ml_collections import config_dict

from genfield import configuration
from genfield.shipped import Recipe

RECIPES = {"paper": Recipe(None, "minutes"), "long": Recipe(None, "minutes")}


def get_config(variant: str = "paper"):
    long = shared.variant(variant, {"paper": False, "long": True})
    config = configuration.base()
    config.data = dict(name="cells", path=config_dict.placeholder(str))
    config.net = dict(name="rna_kinetics")
    config.path = "variance_exploding"
    config.time = dict(name="fixed", level=1.0 if long else 1e-3**0.5)
    config.loss = dict(name="flux_matching", learned_normalizer=False, learned_horizon=False)
    config.batch_size = 64
    config.optimizer.learning_rate = 1e-2 if long else 1e-3
    config.train.steps = config.checkpoint.every = 2_000 if long else 100
    config.train.update(log_every=100 if long else 10, eval_batches=1)
    config.sampler = dict(name="langevin", num_steps=100, step_size=1e-4)
    return config
