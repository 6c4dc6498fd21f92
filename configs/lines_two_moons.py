"""Lines Matching, two moons: the pairs of a teacher (edm_two_moons.py) joined by straight lines.

    python -m genfield.main --config=configs/lines_two_moons.py --workdir=runs/lines \\
        --config.data.path=runs/teacher/pairs/step_20000

`:1`, `:2` (the default) and `:3` sample in so many steps; `:flow` is 2-rectified flow on the same
pairs (arXiv:2209.03003).
"""

import edm_two_moons
import shared
from ml_collections import config_dict

from genfield.shipped import Recipe

STEPS = {"1": (0,), "2": (0, 1), "3": (0, 3, 5), "flow": None}
RECIPES = dict.fromkeys(("2", "1", "3", "flow"), Recipe(33_794, "about 2 min"))


def get_config(variant: str = "2"):
    indices = shared.variant(variant, STEPS)
    config = edm_two_moons.get_config()
    config.data = dict(name="pairs", path=config_dict.placeholder(str))
    config.data.real = dict(name="two_moons")  # for the metrics
    config.time = dict(name="schedule", schedule_steps=18)
    config.loss = dict(name="lines_matching")
    config.sampler = dict(name="multistep", indices=indices, noise="line")
    if variant == "flow":
        config.path, config.preconditioning, config.sigma_data = "linear", "none", 0.5
        config.time = dict(name="uniform")
        config.loss = dict(name="flow_matching")
        config.sampler = dict(name="euler", num_steps=2)
    config.optimizer.name = "radam"
    config.evaluate.repeats = 1
    return config
