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

import edm_cifar10
import shared
from ml_collections import config_dict

from genfield.errors import UserError
from genfield.registry import choose
from genfield.shipped import Recipe

STAGES = ("l2", "perceptual", "adversarial")
TEACHERS = {"uncond": "full", "medium": "medium", "small": "small"}  # else "cond"
INDICES = (0, 1)  # of the noise levels of the teacher's sampler: two evaluations
FID = {"l2": 4.289, "perceptual": 2.796, "adversarial": 1.394, "adversarial,sot": 1.389}  # Table 3
# Steps, those of the adversarial stage, and steps between evaluations, where they are reduced.
LENGTHS = {"medium": (4_000, 1_000, 500), "small": (1_000, 300, 250)}
RECIPES = {
    **dict.fromkeys(("perceptual", *FID), Recipe(55_735_299, "GPUs")),
    "perceptual,uncond": Recipe(55_733_891, "GPUs"),
    "perceptual,medium": Recipe(13_956_931, "a GPU"),
    "adversarial,medium": Recipe(13_956_931, "a GPU"),
    "perceptual,small": Recipe(744_947, "minutes"),
    "adversarial,small": Recipe(744_947, "minutes"),
}


def get_config(variant: str = "perceptual", teacher=None):
    stage, sot, size = parse(variant, {} if teacher else TEACHERS)
    teacher, adversarial = teacher or edm_cifar10.get_config(size), stage == "adversarial"
    config = shared.images(every=2_000)
    config.data = dict(name="pairs", path=config_dict.placeholder(str))
    config.data.real, config.net = teacher.data, teacher.net
    config.data.real.flip, config.net.dropout = True, 0.0
    config.path = "variance_exploding"
    config.preconditioning, config.sigma_data = "edm", 0.5
    config.time = dict(name="schedule", schedule_steps=18)
    if sot:
        config.time.indices = INDICES
    config.loss = dict(name="lines_matching", distance=dict(name="squared_l2"))
    if stage != "l2" and size not in LENGTHS:
        config.loss.distance = dict(name="perceptual", network="vgg16")
        config.loss.distance.size = 224 if adversarial else 64
    elif stage != "l2":
        config.loss.distance = dict(name="perceptual", network="efficientnet_lite0")
        config.loss.distance.size = 32 if size == "small" else 64
        config.loss.distance.update(unit_vectors=True, pixel_weight=1.0)
    if adversarial:
        config.loss.update(name="adversarial_lines_matching", game="non_saturating")  # eq. 8
        config.loss.adversary = dict(name="projected", size=config.loss.distance.size)
    config.sampler = dict(name="multistep", indices=INDICES)
    config.batch_size = 512
    config.ema.rate = 0.999
    key = f"{stage},sot" if sot else stage
    config.evaluate.paper = dict(fid=FID[key]) if size == "cond" and key in FID else {}
    shared.reduced(config, size)
    config.optimizer.update(name="radam", learning_rate=4e-4, warmup_steps=0)
    long, short, every = LENGTHS.get(size, (80_000, 20_000, 2_000))  # Table 6
    config.train.steps = short if adversarial else long
    config.train.eval_every = config.checkpoint.every = every
    if size == "small" and adversarial:
        config.checkpoint.best_metric = "lines"
    return config


def at_64(teacher, variant: str, learning_rate: float, adversarial_steps: int, fid: dict):
    """The config for a 64x64 teacher; `fid`: the paper's, by variant."""
    config = get_config(variant, teacher)
    config.time.schedule_steps = config.sampler.schedule_steps = 40
    config.optimizer.learning_rate = learning_rate
    if config.loss.name == "adversarial_lines_matching":
        config.train.steps = adversarial_steps
    config.evaluate.paper = dict(fid=fid[variant]) if variant in fid else {}
    return config


def parse(variant: str, teachers: dict) -> tuple[str, bool, str]:
    """The stage of a variant, whether it is for the sampler's levels alone, the teacher's name."""
    words, known = variant.split(","), dict.fromkeys([*STAGES, "sot", *teachers])
    for word in words:
        choose("word in the variant of this config", word, known)
    stages, others = [w for w in words if w in STAGES], [w for w in words if w in teachers]
    if len(stages) > 1 or len(others) > 1:
        raise UserError(f"variant {variant!r} names two of {', '.join(STAGES)} or of the teachers")
    size = teachers[others[0]] if others else "cond"
    return stages[0] if stages else "perceptual", "sot" in words, size
