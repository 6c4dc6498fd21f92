"""Statistics of a few images by the tiny feature network, on any devices, for tests of meshes."""

import jax
import numpy as np
import tiny_network

from genfield import configuration, features
from genfield.data.sets import ImageSet
from genfield.machine import sharding
from genfield.metrics import images, known


def save(path, devices: list) -> None:
    """Writes mean, covariance and features of 45 images, computed on these devices.

    Called by every process; the first one writes.
    """
    section = configuration.base().evaluate
    section.features = "inception_v3"
    metrics = [known()[name] for name in ("frechet", "kid", "sfid")]
    mesh = sharding.make_mesh(configuration.base().mesh, devices)
    create, features.create = features.create, tiny_network.create
    try:
        judge = images.create_judge(section, mesh, metrics)
    finally:
        features.create = create
    levels = np.random.default_rng(0).integers(0, 256, (45, 8, 8, 3), dtype=np.uint8)
    of = ImageSet("test", "0", 45, (8, 8, 3), lambda rows: levels[rows])
    out = images.statistics(judge, images.blocks(of, mesh, 2))
    assert out.count == 45
    if jax.process_index() == 0:
        mean, covariance = out.gaussians["pool"]
        np.savez(path, mean=mean, covariance=covariance, features=out.features["pool"])
