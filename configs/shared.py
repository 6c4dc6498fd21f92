"""What pages share: a data set's loader, network, training and evaluation, and one `smoke`.

A page starts from one of these functions and then sets what its paper says.
"""

from ml_collections import ConfigDict, config_dict

from genfield import configuration
from genfield.registry import choose
from genfield.shipped import Recipe

# Of networks for CIFAR-10: as published, half as wide for one GPU, narrow for a CPU.
SIZES = {
    "full": dict(channels=128, channel_multipliers=(2, 2, 2), num_res_blocks=4, dropout=0.3),
    "medium": dict(channels=64, channel_multipliers=(2, 2, 2), num_res_blocks=4, dropout=0.1),
    "small": dict(channels=16, channel_multipliers=(1, 2, 4), num_res_blocks=1, dropout=0.0),
}
CIFAR10_RECIPES = {
    "full": Recipe(55_676_419, "GPUs"),
    "medium": Recipe(13_944_579, "a GPU"),
    "small": Recipe(622_323, "10 to 20 min"),
}
SIT = {f"{size}/{patch}": (size, patch) for size in ("S", "B", "L", "XL") for patch in (2, 4, 8)}
SIT_PARAMETERS = {
    "B/2": 130_315_808, "B/4": 130_426_496, "B/8": 130_869_248,
    "S/2": 32_865_056, "S/4": 32_920_448, "S/8": 33_142_016,
    "L/2": 457_840_672, "L/4": 457_988_224, "L/8": 458_578_432,
    "XL/2": 674_834_720, "XL/4": 675_000_704, "XL/8": 675_664_640,
}  # fmt: skip


def variant(name: str, table: dict):
    """A page's entry for the word behind the colon, or an error that lists what is known."""
    return choose("variant of this config", name, table)


def images(every: int, size: int | None = None) -> ConfigDict:
    """Images that the user brings, in any layout of docs/images.md.

    `every` so many steps, 1,000 samples choose the best checkpoint by FID; at the end 50,000 count.
    """
    config = configuration.base()
    config.data = dict(name="images", path=config_dict.placeholder(str))
    if size:
        config.data.size = size
    config.train.eval_every = config.checkpoint.every = every
    config.train.eval_samples, config.checkpoint.best_metric = 1_000, "frechet"
    config.evaluate.metrics = ("heldout_loss", "frechet", "kid", "precision_recall")
    config.evaluate.num_samples = config.sample.num = 50_000
    return config


def network(name: str, size: str, **fields) -> dict:
    """A network for CIFAR-10 in one of SIZES."""
    return {"name": name, **choose("size of this config", size, SIZES), **fields}


def cifar10(size: str) -> ConfigDict:
    """CIFAR-10 with the U-Net and the training of flow matching's code (Lipman et al., 2024).

    Stated: the U-Net and AdamW, in Distance Marching's Table 6 (arXiv:2602.02928). Inferred: the
    average with its warm-up, and pixels that are cut to levels, which are that code's: EqM
    (arXiv:2510.02300, B.1) has "the same hyper-parameters as the original codebase".
    """
    config = images(every=5_000)
    config.net = network("unet", size, attention_levels=(2,))
    config.batch_size = 512
    config.optimizer.update(name="adamw", learning_rate=1e-4, b2=0.95, weight_decay=0.01)
    config.ema.update(rate=0.999, warmup=True)
    config.sample.rounding = "truncate"
    config.train.steps = 293_000  # 3,000 epochs of 50,000 images
    return reduced(config, size)


def reduced(config: ConfigDict, size: str) -> ConfigDict:
    """The training of a smaller network: `medium` for one GPU, `small` for a CPU, some minutes."""
    if size in ("medium", "small"):
        config.evaluate.paper_note = "of the full-size network and training"
    if size == "medium":
        config.net.dtype = "bfloat16"
        config.batch_size = 256
        config.optimizer.update(learning_rate=4e-4, warmup_steps=500)
        config.ema.update(rate=0.999, half_life=0.0, ramp_up=0.0, warmup=False)
        config.train.update(steps=20_000, eval_every=2_000, eval_samples=1_000)
        config.checkpoint.every = 2_000
        config.evaluate.num_samples = config.sample.num = 10_000
    if size == "small":
        config.batch_size = config.sample.batch_size = config.sample.num = 64
        config.optimizer.update(learning_rate=1e-3, warmup_steps=0)
        config.ema.update(rate=0.99, half_life=0.0, ramp_up=0.0, warmup=False)
        config.train.update(steps=600, log_every=50, eval_every=150, eval_samples=0)
        config.checkpoint.update(every=150, best_metric="loss")
        config.evaluate.metrics = ("heldout_loss",)  # features of 50,000 images take long on a CPU
        config.evaluate.num_samples = 2_000
    return config


def imagenet256(name: str) -> ConfigDict:
    """Latents of ImageNet 256x256 with classes, and SiT with its training (Ma et al., 2024).

    As EqM and DM list it (Table 7 of either), but for the average, which is ours, and bfloat16 and
    recomputing, with which XL/2 fits an H100 or sixteen v5e (docs/attention.md). The data are a
    folder that `python -m genfield.prepare` wrote. Other sizes: data.shape and data.num_classes, as
    the folder has them; net.depth, net.width and net.num_heads for a smaller network.
    """
    size, patch = variant(name, SIT)
    config = configuration.base()
    config.data = dict(name="latents", path=config_dict.placeholder(str))
    config.data.update(shape=(32, 32, 4), num_classes=1000)
    config.net = dict(name="sit", size=size, patch_size=patch, dtype="bfloat16", attention="auto")
    config.net.remat = "full"
    config.label_dropout = 0.1
    config.batch_size = 256
    config.optimizer.update(name="adamw", learning_rate=1e-4)
    config.ema.rate = 0.9999
    config.train.steps = 400_000  # 80 epochs of 1,281,167 images
    config.train.eval_every = config.checkpoint.every = 10_000
    config.evaluate.labels = "random"
    return config


def sit_recipes(*others: str, head: int = 0) -> dict[str, Recipe]:
    """What is known of SIT's sizes, and of other variants of them; `head`: parameters beside."""
    names = [*SIT_PARAMETERS, *others]
    return {name: Recipe(SIT_PARAMETERS[name.partition("_")[0]] + head, "GPUs") for name in names}


def published(config: ConfigDict, **paper: float) -> ConfigDict:
    """As the authors of EqM, SiT and EDM sample and count: for --weights of theirs.

    50,000 images of labels drawn at random, floor(127.5 x + 128) of pixels; the reference is
    ADM's or EDM's file of statistics, by --config.evaluate.reference=…
    """
    config.evaluate.metrics = ("frechet", "inception_score")
    config.evaluate.num_samples = config.sample.num = 50_000
    config.evaluate.paper = paper
    config.sample.rounding = "shift"
    if config.data.name == "latents":
        config.autoencoder, config.net.dtype = "sd-vae-ft-ema", "float32"
    if config.data.get("labels") or config.data.name == "latents":
        config.evaluate.labels = "random"
    return config


def digits() -> ConfigDict:
    """scikit-learn's 8x8 digits with classes, and a small U-Net; all settings are ours."""
    config = configuration.base()
    config.data = dict(name="digits", labels=True)
    config.net = dict(name="unet", channels=32, channel_multipliers=(1, 2), num_res_blocks=1)
    config.net.update(attention_levels=(2,), dropout=0.1)
    config.label_dropout = 0.1
    config.batch_size = 128
    config.optimizer.learning_rate = 1e-3
    config.ema.rate = 0.995
    config.train.update(steps=1_500, log_every=50)
    config.train.eval_every = config.checkpoint.every = 500
    config.train.eval_samples = 64  # a picture at each evaluation
    return config


def eight_gaussians() -> ConfigDict:
    """8 Gaussians to two moons (DM, arXiv:2602.02928, C.1): TorchCFM's network, our training."""
    config = configuration.base()
    config.data = dict(name="two_moons", source="eight_gaussians")
    config.net = dict(name="mlp", width=64, depth=3, activation="selu")
    config.train.steps, config.checkpoint.every = 20_000, 5_000
    config.sampler = dict(name="euler", num_steps=100)
    config.sample.num = config.sample.batch_size = 10_000
    config.evaluate.metrics = ("point_cloud", "heldout_loss")
    config.evaluate.repeats = 5
    return config


def two_moons() -> ConfigDict:
    """Two moons, and an MLP that EDM's preconditioning makes a denoiser; all settings are ours."""
    config = configuration.base()
    config.data = dict(name="two_moons")
    config.net = dict(name="mlp", width=128, depth=3, activation="silu", time_input=True)
    config.path = "variance_exploding"
    config.preconditioning, config.sigma_data = "edm", 1.8
    config.optimizer.schedule = "cosine"
    config.evaluate.metrics = ("point_cloud", "heldout_loss")
    config.evaluate.repeats = 3
    return config


# For `smoke`: the largest that numbers may be, wherever they stand, and what becomes of sections.
AT_MOST = dict(batch_size=8, match_size=16, group_size=8, size=16, num_steps=2, steps=2)
AT_MOST |= dict(warmup_steps=0, log_every=1, eval_every=0, eval_batches=1, eval_samples=0)
AT_MOST |= dict(num=16, num_samples=16, transport_points=16, repeats=1)
ONE_LEVEL = dict(channel_multipliers=(1,), num_res_blocks=1)
TINY = {
    "unet": ONE_LEVEL | dict(channels=8, attention_levels=()),
    "ddpmpp": ONE_LEVEL | dict(channels=8, attention_resolutions=()),
    "adm": ONE_LEVEL | dict(channels=16, attention_levels=(1,), head_channels=8, dtype="float32"),
    "sit": dict(depth=2, width=32, num_heads=2, patch_size=4, dtype="float32"),
    "mlp": dict(width=16, depth=2),
    "transformer": dict(width=16, depth=2, num_heads=2),
    "springs": dict(num_trajectories=32, length=6),
    "cells": dict(top_genes=10),
    "perceptual": dict(size=32, seed=0),  # random weights
    "projected": dict(size=32, random_features=0, width=8),
    "probability_flow": dict(rtol=1e-2, atol=1e-2),
}


def smoke(config: ConfigDict) -> ConfigDict:
    """Shrinks any config to two steps of a tiny network on 8 examples, for tests."""
    sections = [config]
    for section in sections:  # and those below it, which are added as it goes
        sections += [value for value in section.values() if isinstance(value, ConfigDict)]
        for field, most in AT_MOST.items():
            if isinstance(section.get(field), int):
                section[field] = min(section[field], most)
        section.update(TINY.get(section.get("name"), {}))
    if config.loss.get("distance", {}).get("network") == "vgg16":
        config.loss.distance.layers = ("relu1_2",)
    config.checkpoint.best_metric = "loss"
    config.evaluate.metrics = ("heldout_loss",)
    return config
