"""Lines Matching, CIFAR-10, on the pairs of a teacher (edm_cifar10.py), in the paper's stages
("Denoising Efficiency and Lines Matching Models", Tables 3 and 6, appendix E).

`:perceptual` (the default) trains by a VGG-16 distance at 64x64, from the teacher's weights or
anew; `:adversarial` goes on from it, at 224x224 and against a projected discriminator; `:l2` is the
ablation. `,sot` trains for the noise levels of the sampler alone. The teacher is class-conditional,
`edm_cifar10.py:cond`; `,uncond` is for the one without classes, `,medium` and `,small` for those of
these names, with the features of EfficientNet-Lite0.

    PAIRS=runs/teacher/pairs/step_390625
    REAL=--config.data.real.path=cifar10.tar.xz
    python -m genfield.main --config=configs/lines_cifar10.py --workdir=runs/lines $REAL \\
        --config.data.path=$PAIRS --config.initial_parameters=runs/teacher
    python -m genfield.main --config=configs/lines_cifar10.py:adversarial,sot $REAL \\
        --workdir=runs/sharp --config.data.path=$PAIRS --config.initial_parameters=runs/lines
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict, config_dict

from genfield import configuration
from genfield.errors import UserError, choose

TEACHER = runpy.run_path(str(Path(__file__).with_name("edm_cifar10.py")))
STAGES = ("l2", "perceptual", "adversarial")
TEACHERS = {"uncond": "full", "medium": "medium", "small": "small"}  # else "cond"
INDICES = (0, 1)  # of the 18 noise levels: two evaluations
FID = {"l2": 4.289, "perceptual": 2.796, "adversarial": 1.394, "adversarial,sot": 1.389}  # Table 3


def parse(variant: str, others: tuple[str, ...] = tuple(TEACHERS)) -> tuple[str, bool, list[str]]:
    """The stage of a variant, whether it is for the sampler's levels alone, and its other words."""
    words = variant.split(",")
    for word in words:
        choose("word in the variant of this config", word, dict.fromkeys([*STAGES, "sot", *others]))
    stages, rest = [w for w in words if w in STAGES], [w for w in words if w in others]
    if len(stages) > 1 or len(rest) > 1:
        raise UserError(f"variant {variant!r} names two of {', '.join(STAGES)} or of the teachers")
    return (stages or ["perceptual"])[0], "sot" in words, rest


def get_config(variant: str = "perceptual"):
    stage, sot, rest = parse(variant)
    size = TEACHERS[rest[0]] if rest else "cond"
    small, reduced = size == "small", size in ("medium", "small")
    teacher = TEACHER["get_config"](size)
    config = configuration.base()
    config.data = ConfigDict({"name": "pairs", "path": config_dict.placeholder(str)})
    config.data.real = teacher.data
    config.data.real.flip = True
    config.net = teacher.net
    config.net.dropout = 0.0
    config.path = "variance_exploding"
    config.preconditioning, config.sigma_data = "edm", 0.5
    config.time = ConfigDict({"name": "schedule", "schedule_steps": 18})
    if sot:
        config.time.indices = INDICES
    network, native = "efficientnet_lite0" if reduced else "vgg16", 32 if small else 64
    distance = {"name": "perceptual", "network": network, "size": native}
    if reduced:
        distance |= {"unit_vectors": True, "pixel_weight": 1.0}
    if stage == "l2":
        distance = {"name": "squared_l2"}
    config.loss = ConfigDict({"name": "lines_matching", "distance": distance})
    if stage == "adversarial":
        config.loss.name = "adversarial_lines_matching"
        config.loss.game = "non_saturating"  # eq. 8
        config.loss.distance.size = native if reduced else 224
        config.loss.adversary = {"name": "projected", "size": native if reduced else 224}
    config.sampler = ConfigDict({"name": "multistep", "indices": INDICES})
    config.batch_size = 512
    config.optimizer.name, config.optimizer.learning_rate = "radam", 4e-4
    config.ema.rate = 0.999
    config.train.steps = 20_000 if stage == "adversarial" else 80_000
    config.train.log_every = 100
    config.train.eval_every = config.checkpoint.every = 2_000
    config.train.eval_samples = 1_000  # each time; the best checkpoint is theirs
    config.checkpoint.best_metric = "frechet"
    config.sample.batch_size = 256
    config.evaluate.metrics = ("heldout_loss", "frechet", "kid", "precision_recall")
    config.evaluate.num_samples = config.sample.num = 50_000
    key = f"{stage},sot" if sot else stage
    config.evaluate.paper = ConfigDict({"fid": FID[key]} if size == "cond" and key in FID else {})
    if size == "medium":
        config.batch_size = 256
        config.train.steps = 1_000 if stage == "adversarial" else 4_000
        config.train.eval_every = config.checkpoint.every = 500
        config.evaluate.num_samples = config.sample.num = 10_000
    if small:
        config.batch_size = 64
        config.ema.rate = 0.99
        config.train.steps = 300 if stage == "adversarial" else 1_000
        config.train.log_every = 50
        config.train.eval_every = config.checkpoint.every = 250
        config.train.eval_samples = 0
        config.checkpoint.best_metric = "lines" if stage == "adversarial" else "loss"
        config.sample.batch_size = 64
        config.evaluate.metrics = ("heldout_loss",)  # features of 50,000 take long on a CPU
        config.evaluate.num_samples, config.sample.num = 2_000, 64
    return config


def at_64(teacher, variant: str, learning_rate: float, adversarial_steps: int, fid: dict):
    """The config for a 64x64 teacher; `fid`: the paper's, by variant."""
    parse(variant, ())
    config = get_config(variant)
    config.data.real = teacher.data
    config.data.real.flip = True
    config.net = teacher.net
    config.net.dropout = 0.0
    config.time.schedule_steps = config.sampler.schedule_steps = 40
    config.optimizer.learning_rate = learning_rate
    config.train.steps = adversarial_steps if "adversarial" in variant else 80_000
    config.evaluate.paper = ConfigDict({"fid": fid[variant]} if variant in fid else {})
    return config


def smoke(config):
    """Shrinks the config to two steps of a tiny network with random features, for tests."""
    if config.data.real.get("size"):
        config.data.real.size = 16
    config.net.update(channels=8, channel_multipliers=(1,), num_res_blocks=1)
    config.net.update(attention_resolutions=())
    if config.loss.distance.name == "perceptual":
        config.loss.distance.update(size=32, seed=0, layers=("relu1_2",))
    if config.loss.name == "adversarial_lines_matching":
        config.loss.adversary = {"name": "projected", "size": 32, "random_features": 0, "width": 8}
    config.batch_size = config.sample.batch_size = 8
    config.train.steps, config.train.eval_batches, config.train.eval_every = 2, 1, 0
    config.train.eval_samples, config.checkpoint.best_metric = 0, "loss"
    config.evaluate.metrics, config.sample.num = ("heldout_loss",), 8
    return config
