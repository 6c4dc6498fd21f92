"""The configuration: its sections and defaults, its file in the workdir, and their checks.

A config file starts from `base()` and sets what differs; sections with a `name` take the fields
of the function that the name stands for, so `base()` leaves them open.
"""

import json
from pathlib import Path

from ml_collections import ConfigDict

from genfield.errors import UserError, choose

# Fields that may differ when a run is continued: how long, how often, where; never what is learned.
MAY_CHANGE = ("train", "checkpoint", "sampler", "sample", "evaluate", "mesh")


def base() -> ConfigDict:
    """Every section of a config with its default; `None` means "not used"."""
    config = ConfigDict()
    config.seed = 0
    config.batch_size = 256  # examples a step, over all devices and processes
    config.data = ConfigDict({"name": "two_moons"})
    config.net = ConfigDict({"name": "mlp"})
    config.path = "linear"
    config.time = ConfigDict({"name": "uniform"})
    config.coupling = ConfigDict({"name": "independent"})
    config.rematching = ConfigDict({"name": "none"})
    config.loss = ConfigDict({"name": "flow_matching"})
    config.label_dropout = 0.0  # share of the labels replaced by the null class
    config.optimizer = ConfigDict(
        dict(
            name="adam",
            learning_rate=1e-3,
            b1=0.9,
            b2=0.999,
            weight_decay=0.0,  # adamw only
            warmup_steps=0,
            schedule="constant",  # constant, cosine or linear, to zero at train.steps
            clip_norm=0.0,  # of the global gradient norm; 0: no clipping
            accumulate=1,  # microbatches a step
        )
    )
    config.ema = ConfigDict(dict(rate=0.0, half_life=0.0))  # one of them; half-life in images
    config.train = ConfigDict(
        dict(steps=1000, log_every=100, eval_every=0, eval_batches=4)  # eval_every 0: at the end
    )
    config.checkpoint = ConfigDict(dict(every=1000, keep=2, keep_best=1, best_metric="loss"))
    config.sampler = ConfigDict({"name": "euler", "num_steps": 100})
    config.sample = ConfigDict(
        dict(num=64, batch_size=256, guidance_scale=1.0, guidance_on="direction", use_ema=True)
    )
    config.evaluate = ConfigDict(
        dict(
            metrics=("heldout_loss",),
            num_samples=10_000,  # generated points, and as many target points
            transport_points=2_000,  # of them for W2, whose cost grows with the cube
            repeats=1,  # sampling seeds; medians are reported
            figures=True,
            paper=ConfigDict(),  # the paper's values, by metric, for the closing table
        )
    )
    config.mesh = ConfigDict(dict(data=-1, fsdp=1))  # -1: all devices that are left
    return config


def to_dict(config: ConfigDict) -> dict:
    """Plain JSON types: what `config.json` holds."""
    return json.loads(json.dumps(config.to_dict()))


def from_file(path: Path) -> ConfigDict:
    """The configuration that a run left in its workdir."""
    try:
        return ConfigDict(json.loads(path.read_text()))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as a configuration: {error}") from error


def differences(a: dict, b: dict, prefix: str = "") -> list[str]:
    """Dotted names of the fields in which two configurations differ."""
    out = []
    for key in sorted(a.keys() | b.keys()):
        name, x, y = f"{prefix}{key}", a.get(key), b.get(key)
        if isinstance(x, dict) and isinstance(y, dict):
            out += differences(x, y, name + ".")
        elif x != y:
            out.append(name)
    return out


def check_same_run(config: ConfigDict, workdir: Path) -> None:
    """Raises UserError if `workdir` holds another run than `config` describes."""
    path = workdir / "config.json"
    if not path.exists():
        return
    old, new = to_dict(from_file(path)), to_dict(config)
    changed = [f for f in differences(old, new) if f.split(".")[0] not in MAY_CHANGE]
    changed = [f for f in changed if f != "data.path"]  # the data may have moved
    if changed:
        shown = ", ".join(changed[:5]) + (", …" if len(changed) > 5 else "")
        raise UserError(
            f"{workdir} holds a different run: it differs in {shown}. "
            f"Choose another --workdir, or set these fields as {path} has them"
        )


OPEN = ("data", "net", "time", "coupling", "rematching", "loss", "sampler")  # checked by name


def check_fields(config: ConfigDict) -> None:
    """Raises UserError for sections and fields that `base()` does not know."""
    known = base()
    for section, value in config.items():
        if section not in known:
            choose("config section", section, known)
        if section in OPEN or not isinstance(known[section], ConfigDict):
            continue
        if not isinstance(value, ConfigDict):
            raise UserError(f"config.{section} is a section, not a value")
        for field in value:
            choose(f"field of config.{section}", field, known[section])
    missing = [name for name in known if name not in config]
    if missing:
        raise UserError(f"config lacks the section {missing[0]!r}: start it from base()")


def check_numbers(config: ConfigDict) -> None:
    """Raises UserError for values that cannot work, before anything is compiled."""
    positive = (
        ("batch_size", config.batch_size),
        ("train.steps", config.train.steps),
        ("train.log_every", config.train.log_every),
        ("train.eval_batches", config.train.eval_batches),
        ("checkpoint.every", config.checkpoint.every),
        ("checkpoint.keep", config.checkpoint.keep),
        ("sample.num", config.sample.num),
        ("sample.batch_size", config.sample.batch_size),
        ("evaluate.num_samples", config.evaluate.num_samples),
        ("evaluate.transport_points", config.evaluate.transport_points),
        ("evaluate.repeats", config.evaluate.repeats),
        ("optimizer.learning_rate", config.optimizer.learning_rate),
        ("optimizer.accumulate", config.optimizer.accumulate),
    )
    for name, value in positive:
        if not value > 0:
            raise UserError(f"config.{name} must be positive, got {value}")
    if not 0 <= config.label_dropout < 1:
        raise UserError(f"config.label_dropout must be in [0, 1), got {config.label_dropout}")
    if config.batch_size % config.optimizer.accumulate:
        raise UserError(
            f"config.batch_size {config.batch_size} is not a multiple of "
            f"config.optimizer.accumulate {config.optimizer.accumulate}"
        )
