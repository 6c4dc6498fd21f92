"""Lines Matching, CIFAR-10, on the pairs of a teacher (edm_cifar10.py), in the paper's stages
("Denoising Efficiency and Lines Matching Models", Tables 3 and 6, appendix E).

`:perceptual` (the default) trains by a VGG-16 distance at 64x64, from the teacher's weights or
anew; `:adversarial` goes on from it, at 224x224 and against a projected discriminator; `:l2` is the
ablation. `,sot` trains for the noise levels of the sampler alone. `:small,…` is for the teacher of
that name, with the features of EfficientNet-Lite0.

    PAIRS=runs/teacher/pairs/step_390625
    python -m genfield.main --config=configs/lines_cifar10.py --workdir=runs/lines \\
        --config.data.path=$PAIRS --config.initial_parameters=runs/teacher
    python -m genfield.main --config=configs/lines_cifar10.py:adversarial,sot \\
        --workdir=runs/sharp --config.data.path=$PAIRS --config.initial_parameters=runs/lines \\
        --config.data.real.path=cifar10.tar.xz
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict, config_dict

from genfield import configuration
from genfield.errors import choose

TEACHER = runpy.run_path(str(Path(__file__).with_name("edm_cifar10.py")))
STAGES = {"l2": None, "perceptual": None, "adversarial": None}
INDICES = (0, 1)  # of the 18 noise levels: two evaluations


def get_config(variant: str = "perceptual"):
    words = variant.split(",")
    small, sot = "small" in words, "sot" in words
    [stage] = [word for word in words if word not in ("small", "sot")] or ["perceptual"]
    choose("stage of this config", stage, STAGES)
    teacher = TEACHER["get_config"]("small" if small else "cond")
    config = configuration.base()
    config.data = ConfigDict({"name": "pairs", "path": config_dict.placeholder(str)})
    config.net = teacher.net
    config.net.dropout = 0.0
    config.path = "variance_exploding"
    config.preconditioning, config.sigma_data = "edm", 0.5
    config.time = ConfigDict({"name": "schedule", "schedule_steps": 18})
    if sot:
        config.time.indices = INDICES
    network, native = ("efficientnet_lite0", 64) if small else ("vgg16", 64)
    distance = {"name": "perceptual", "network": network, "size": native}
    if small:
        distance |= {"unit_vectors": True, "pixel_weight": 1.0}
    if stage == "l2":
        distance = {"name": "squared_l2"}
    config.loss = ConfigDict({"name": "lines_matching", "distance": distance})
    if stage == "adversarial":
        config.loss.name = "adversarial_lines_matching"
        config.loss.distance.size = native if small else 224
        config.loss.adversary = {"name": "projected", "size": native if small else 224}
        config.data.real = teacher.data
        config.data.real.flip = True
    config.sampler = ConfigDict({"name": "multistep", "indices": INDICES})
    config.batch_size = 512
    config.optimizer.name, config.optimizer.learning_rate = "radam", 4e-4
    config.ema.rate = 0.999
    config.train.steps = 20_000 if stage == "adversarial" else 80_000
    config.train.log_every = 100
    config.train.eval_every = config.checkpoint.every = 2_000
    config.sample.batch_size = 256
    config.evaluate.metrics = ("heldout_loss", "frechet", "kid", "precision_recall")
    config.evaluate.num_samples = config.sample.num = 50_000
    fid = {"l2": 4.289, "perceptual": 2.796, "adversarial": 1.389 if sot else 1.394}  # Table 3
    config.evaluate.paper = ConfigDict({} if small else {"fid": fid[stage]})
    if small:
        config.batch_size = 64
        config.ema.rate = 0.99
        config.train.steps = 300 if stage == "adversarial" else 1_500
        config.train.log_every = 50
        config.train.eval_every = config.checkpoint.every = 250
        config.sample.batch_size = 64
        config.evaluate.metrics = ("heldout_loss",)  # features of 50,000 take long on a CPU
        config.evaluate.num_samples, config.sample.num = 2_000, 64
    return config


def at_64(teacher, variant: str, learning_rate: float, adversarial_steps: int, fid: dict):
    """The config for a 64x64 teacher; `fid`: the paper's, by variant."""
    config = get_config(variant)
    config.net = teacher.net
    config.net.dropout = 0.0
    config.time.schedule_steps = config.sampler.schedule_steps = 40
    config.optimizer.learning_rate = learning_rate
    config.train.steps = adversarial_steps if "adversarial" in variant else 80_000
    if "real" in config.data:
        config.data.real = teacher.data
        config.data.real.flip = True
    config.evaluate.paper = ConfigDict({"fid": fid[variant]} if variant in fid else {})
    return config


def smoke(config):
    """Shrinks the config to two steps of a tiny network with random features, for tests."""
    config.net.update(channels=8, channel_multipliers=(1,), num_res_blocks=1)
    config.net.update(attention_resolutions=())
    if config.loss.distance.name == "perceptual":
        config.loss.distance.update(size=32, seed=0, layers=("relu1_2",))
    if config.loss.name == "adversarial_lines_matching":
        config.loss.adversary = {"name": "projected", "size": 32, "random_features": 0, "width": 8}
    config.batch_size = config.sample.batch_size = 8
    config.train.steps, config.train.eval_batches, config.train.eval_every = 2, 1, 0
    config.evaluate.metrics, config.sample.num = ("heldout_loss",), 8
    return config
