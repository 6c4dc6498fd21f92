"""The configuration's sections and their defaults, each number with the range it may have.

A config file starts from `base()` and sets what differs; sections with a `name` take the fields
of the method that the name stands for, so `base()` leaves them open.
"""

from typing import Any, NamedTuple

from ml_collections import ConfigDict, config_dict

from genfield.registry import FRACTION, NOT_NEGATIVE, POSITIVE, OneOf, Range

# Sections that are checked by the method they name.
OPEN = ("data", "net", "time", "coupling", "rematching", "loss", "sampler")
# Fields that may differ when a run is continued: how long, how often, where; never what is learned.
MAY_CHANGE = ("train", "checkpoint", "sampler", "sample", "evaluate", "mesh")
MAY_CHANGE += ("profile", "compilation_cache", "figures")
MAY_CHANGE += ("autoencoder", "autoencoder_sha256", "autoencoder_dtype")
GUIDANCE = ("auto", "direction", "displacement")
ROUNDINGS = ("nearest", "truncate", "shift")
CENTERS = ("middle", "edm")
FORMATS = ("npz", "png")
FIGURES = ("png", "svg", "pdf")  # `figures.style.FORMATS`, which needs matplotlib
RESIZES = ("tf1_bilinear", "antialiased")  # `features.resize.CONVENTIONS`, which needs JAX


class Limited(NamedTuple):
    """A default, and what the field takes."""

    default: Any
    limit: Range | OneOf


def positive(default) -> Limited:
    return Limited(default, POSITIVE)


def not_negative(default) -> Limited:
    return Limited(default, NOT_NEGATIVE)


def fraction(default) -> Limited:
    return Limited(default, FRACTION)


def one_of(default, names) -> Limited:
    return Limited(default, OneOf(names))


class Unset(NamedTuple):
    """A field of a type that nothing is set for."""

    kind: type


TOP = dict(
    seed=not_negative(0),
    batch_size=positive(256),  # examples a step, over all devices and processes
    path="linear",
    path_noise=not_negative(0.0),  # of a Brownian bridge around the path
    match_size=not_negative(0),  # examples that are coupled among themselves; 0: a batch
    energy="none",  # of a vector network, whose gradient is trained: dot, squared_norm, …
    preconditioning="none",  # edm, …: the network is F of a denoiser of noise levels
    sigma_data=positive(0.5),  # standard deviation of the data, for preconditioning and weighting
    rotation=0.0,  # γ of the field (I + γJ)∇φ of a scalar network
    initial_parameters=Unset(str),  # a workdir, whose average to start at, or a file of weights
    augmentation=fraction(0.0),  # probability of each of EDM's, of which the network is told
    augmentation_center=one_of("middle", CENTERS),  # of turning; edm: as its networks were told
    label_dropout=fraction(0.0),  # share of the labels replaced by the null class
    profile=(),  # (first, last) of the steps, from 1, that the profiler traces; (): none
    compilation_cache=Unset(str),  # folder of compiled programs; None: one in the user's cache
    autoencoder=Unset(str),  # weights that turn latents into pixels wherever these are needed
    autoencoder_sha256=Unset(str),  # of the file
    autoencoder_dtype=one_of("float32", ("float32", "bfloat16")),  # of its layers
)
NAMED = dict(
    data="two_moons",
    net="mlp",
    time="uniform",
    coupling="independent",
    rematching="none",
    loss="flow_matching",
)
SECTIONS = dict(
    optimizer=dict(
        name="adam",
        learning_rate=positive(1e-3),
        b1=fraction(0.9),
        b2=fraction(0.999),
        weight_decay=not_negative(0.0),  # adamw only
        warmup_steps=not_negative(0),
        schedule="constant",  # constant, cosine or linear, to zero at train.steps
        clip_norm=not_negative(0.0),  # of the global gradient norm; 0: no clipping
        level_learning_rate=positive(1e-2),  # of functions of the noise level, by adam
        discriminator_learning_rate=positive(2e-3),  # by radam
        discriminator_b1=fraction(0.5),
        discriminator_b2=fraction(0.9),
        accumulate=positive(1),  # microbatches a step
    ),
    ema=dict(
        rate=fraction(0.0),  # a step; 0: half_life, if that is not 0, else no average
        half_life=not_negative(0.0),  # in images
        ramp_up=fraction(0.0),  # > 0: the half-life is at most this share of the images so far
        warmup=False,  # whether the rate is at most (1 + n) / (10 + n) after n steps
    ),
    train=dict(
        steps=positive(1000),
        log_every=positive(100),
        eval_every=not_negative(0),  # 0: at the end
        eval_batches=positive(4),  # of held-out examples
        eval_samples=not_negative(0),  # drawn and measured at each evaluation, with a picture
        loggers=("auto",),  # beside metrics.jsonl; auto: tensorboard where it is installed
        peak_flops=not_negative(0.0),  # FLOP/s of a device, for the MFU; 0: the chip's, if known
        project=Unset(str),  # of loggers that have one; wandb: WANDB_PROJECT, else genfield
    ),
    checkpoint=dict(
        every=positive(1000), keep=positive(2), keep_best=not_negative(1), best_metric="loss"
    ),
    sample=dict(
        num=positive(64),
        batch_size=positive(256),  # samples a device draws at a time, at most
        slots=not_negative(0),  # of a device, which finished samples leave to others; 0: none do
        labels=(),  # of --mode=sample and pairs: classes by number or name, in turn; (): all
        seed=not_negative(1),  # added to config.seed; another one draws other samples
        guidance_scale=1.0,
        guidance_on="auto",  # direction, displacement; auto: what the sampler follows
        guidance_interval=(),  # (low, high) of t, or the noise level, where there is guidance
        guidance_channels=not_negative(0),  # the first so many are guided; 0: all
        use_ema=True,
        rounding="nearest",  # of pixels to uint8: nearest, truncate or shift
        shard_size=positive(1000),  # samples in a file while they are drawn, for a kill to spare
        formats=("npz",),  # npz, png or both
        name=Unset(str),  # of the files; step_N where left out
    ),
    evaluate=dict(
        metrics=("heldout_loss",),
        num_samples=positive(10_000),  # generated; for points, as many target points
        labels=one_of("balanced", ("balanced", "random")),  # of samples; --mode=sample's as well
        transport_points=positive(2_000),  # of them for W2, whose cost grows with the cube
        likelihood_images=positive(1_000),  # of the test split, for bits_per_dim
        repeats=positive(1),  # sampling seeds; medians are reported of points, means of images
        figures=True,
        features="auto",  # network of image metrics: inception_v3 where its weights are there
        features_path=Unset(str),  # of its weights
        features_sha256=Unset(str),
        features_seed=Limited(Unset(int), NOT_NEGATIVE),  # random weights, to try things out
        resize=one_of("tf1_bilinear", RESIZES),  # as the original FID graph, or antialiased
        batch_size=positive(64),  # images a device puts through the network at a time
        reference=Unset(str),  # images or statistics; left out: the data's
        reference_split="train",
        paper=ConfigDict(),  # the paper's values, by metric, for the closing table
        paper_note="",  # of what they are, where a run is known to be of something else
    ),
    figures=dict(
        format=one_of("png", FIGURES),  # of curves, fields and studies; images stay PNG
    ),
    mesh=dict(
        data=-1,  # -1: all devices that are left
        fsdp=1,
        reduce_dtype=one_of("compute", ("compute", "float32")),  # of sums of gradients
        gather=one_of("auto", ("auto", "layer", "call")),  # weights: as a layer runs, or at once
    ),
)
LIMITS: dict[str, Range | OneOf] = {
    f"{section}.{field}" if section else field: value.limit
    for section, fields in {"": TOP, **SECTIONS}.items()
    for field, value in fields.items()
    if isinstance(value, Limited)
}
FILE_PLACES = ("initial_parameters",)  # beside those that methods mark as `registry.Place`


def base() -> ConfigDict:
    """Every section of a config with its default; `None` means "not used"."""

    def fresh(value):  # references and sections must not be shared between configs
        value = value.default if isinstance(value, Limited) else value
        value = config_dict.placeholder(value.kind) if isinstance(value, Unset) else value
        return ConfigDict(value) if isinstance(value, ConfigDict) else value

    plain = lambda fields: {name: fresh(value) for name, value in fields.items()}

    config = ConfigDict(plain(TOP))
    for section, name in NAMED.items():
        config[section] = ConfigDict({"name": name})
    config.sampler = ConfigDict({"name": "euler", "num_steps": 100})
    for section, fields in SECTIONS.items():
        config[section] = ConfigDict(plain(fields))
    return config
