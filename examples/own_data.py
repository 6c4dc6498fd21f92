"""Data of one's own: an object with `shape`, a length and `gather(rows)`; and pairs of one's own.

    python -m genfield.main --config=examples/own_data.py --workdir=runs/own_data
    python -m genfield.main --config=examples/own_data.py:pairs --workdir=runs/own_pairs

`gather` gives x1, perhaps labels, and perhaps x0: then a sample starts at the x0 of a held-out
example, as in image to image. Arrays on disk need no code: data.name=arrays, data.path=x.npz.
"""

import numpy as np

from genfield import configuration, registry


class Petals:
    """Points on a flower of several petals, which are its classes."""

    def __init__(self, size: int = 4_000, petals: int = 5):
        generator = np.random.default_rng(0)
        self.label = generator.integers(0, petals, size)
        angle = 2 * np.pi * (self.label + generator.beta(5, 5, size)) / petals
        radius = 1 + 2 * np.abs(np.sin(petals * angle / 2))
        points = radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
        self.x1 = (points + 0.05 * generator.standard_normal((size, 2))).astype(np.float32)
        self.shape, self.num_classes = (2,), petals

    def __len__(self):
        return len(self.x1)

    def gather(self, rows):
        return {"x1": self.x1[rows], "label": self.label[rows]}


class Turned(Petals):
    """Pairs: each point, and the point it came from before a quarter turn."""

    def gather(self, rows):
        x1 = self.x1[rows]
        return {"x1": x1, "x0": np.stack([x1[:, 1], -x1[:, 0]], axis=1)}


METHODS = (
    registry.DataSource(
        name="petals", make=Petals, holds="points", drawn=False, beside_pairs=False, fed=False
    ),
    registry.DataSource(
        name="turned", make=Turned, holds="pairs", drawn=False, beside_pairs=False, fed=False
    ),
)


def get_config(which: str = "petals"):
    config = configuration.base()
    config.data = dict(name="petals") if which == "petals" else dict(name="turned")
    config.net = dict(name="mlp", width=128, time_input=True)
    config.label_dropout = 0.1 if which == "petals" else 0.0
    config.train.steps = 4_000
    config.evaluate.metrics = ("point_cloud", "heldout_loss")
    config.evaluate.num_samples = 2_000
    return config
