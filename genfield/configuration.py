"""The configuration: its sections and defaults, its file in the workdir, and their checks.

A config file starts from `base()` and sets what differs; sections with a `name` take the fields
of the function that the name stands for, so `base()` leaves them open.
"""

import inspect
import json
import math
import re
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_dict, config_flags

from genfield.errors import UserError, check_type, choose

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
    config.path_noise = 0.0  # of a Brownian bridge around the path
    config.time = ConfigDict({"name": "uniform"})
    config.coupling = ConfigDict({"name": "independent"})
    config.match_size = 0  # examples that are coupled among themselves; 0: a batch
    config.rematching = ConfigDict({"name": "none"})
    config.loss = ConfigDict({"name": "flow_matching"})
    config.energy = "none"  # of a vector network, whose gradient is trained: dot, squared_norm
    config.preconditioning = "none"  # edm: the network is F of a denoiser of noise levels
    config.sigma_data = 0.5  # standard deviation of the data, for preconditioning and weighting
    config.rotation = 0.0  # γ of the field (I + γJ)∇φ of a scalar network
    config.initial_parameters = config_dict.placeholder(str)  # a workdir whose average to start at
    config.augmentation = 0.0  # probability of each of EDM's, of which the network is told
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
            level_learning_rate=1e-2,  # of functions of the noise level, by adam
            discriminator_learning_rate=2e-3,  # by radam
            discriminator_b1=0.5,
            discriminator_b2=0.9,
            accumulate=1,  # microbatches a step
        )
    )
    config.ema = ConfigDict(dict(rate=0.0, half_life=0.0))  # one of them; half-life in images
    config.ema.ramp_up = 0.0  # > 0: the half-life is at most this share of the images so far
    config.train = ConfigDict(
        dict(
            steps=1000,
            log_every=100,
            eval_every=0,  # 0: at the end
            eval_batches=4,  # of held-out examples
            eval_samples=0,  # drawn and measured at each evaluation, with a picture; 0: none
        )
    )
    config.checkpoint = ConfigDict(dict(every=1000, keep=2, keep_best=1, best_metric="loss"))
    config.sampler = ConfigDict({"name": "euler", "num_steps": 100})
    config.sample = ConfigDict(
        dict(
            num=64,
            batch_size=256,  # samples a device draws at a time
            slots=0,  # of a device, which finished samples leave to others; 0: all end together
            seed=1,  # added to config.seed; another one draws other samples
            guidance_scale=1.0,
            guidance_on="direction",
            use_ema=True,
            rounding="nearest",  # of pixels to uint8: nearest, truncate or shift
            shard_size=1000,  # samples of --mode=sample that a kill can cost
            formats=("npz",),  # npz, png or both
            name=config_dict.placeholder(str),  # of the files; step_N where left out
        )
    )
    config.evaluate = ConfigDict(
        dict(
            metrics=("heldout_loss",),
            num_samples=10_000,  # generated; for points, as many target points
            transport_points=2_000,  # of them for W2, whose cost grows with the cube
            likelihood_images=1_000,  # of the test split, for bits_per_dim
            repeats=1,  # sampling seeds; medians are reported of points, means of images
            figures=True,
            features="auto",  # network of image metrics: inception_v3 where its weights are there
            features_path=config_dict.placeholder(str),  # of its weights
            features_sha256=config_dict.placeholder(str),
            features_seed=config_dict.placeholder(int),  # random weights, to try things out
            resize="tf1_bilinear",  # as the original FID graph, or antialiased
            batch_size=64,  # images a device puts through the network at a time
            reference=config_dict.placeholder(str),  # images or statistics; left out: the data's
            reference_split="train",
            paper=ConfigDict(),  # the paper's values, by metric, for the closing table
        )
    )
    config.mesh = ConfigDict(dict(data=-1, fsdp=1))  # -1: all devices that are left
    return config


def load(name: str) -> ConfigDict:
    """What `get_config` of a config file returns; an argument for it may follow a colon.

    Raises:
      UserError: no such file, anything that it raises, or not a ConfigDict.
    """
    name, colon, argument = name.partition(":")
    path = Path(name)
    if not path.is_file():
        folder = path if path.is_dir() else path.parent
        known = sorted(p.name for p in folder.glob("*.py"))
        choose(f"config file in {folder}", path.name, dict.fromkeys(known))
    module = {"__name__": path.stem, "__file__": str(path)}
    _blame(path, lambda: exec(compile(path.read_bytes(), path, "exec"), module))
    if "get_config" not in module:
        raise UserError(f"{path} has no function get_config() that returns the configuration")
    arguments = [argument] if colon else []
    try:
        inspect.signature(module["get_config"]).bind(*arguments)
    except TypeError as error:
        wanted = "takes no argument" if colon else "needs an argument"
        raise UserError(f"{path} {wanted} after a colon: {error}") from error
    config = _blame(path, lambda: module["get_config"](*arguments))
    if not isinstance(config, ConfigDict):
        raise UserError(
            f"get_config() of {path} returns {type(config).__name__}, not a ConfigDict: "
            "start it from genfield.configuration.base()"
        )
    return config


def override(config: ConfigDict, arguments: list[str]) -> ConfigDict:
    """`config` with --config.section.field=value of a command line applied.

    Sections nested in the open ones are made as they are named: --config.loss.weight.name=…

    Raises:
      UserError: unknown sections, values of the wrong type.
    """
    for argument in arguments:
        names = argument.split("=")[0].split(".")[1:-1]
        section = config
        for depth, name in enumerate(names):
            if name not in section:
                if names[0] not in OPEN or depth == 0:
                    choose(f"section in {argument}:", name, section)
                section[name] = ConfigDict()
            section = section[name]
            if not isinstance(section, ConfigDict):
                raise UserError(f"{argument}: {name} is {section!r}, not a section")
    values, argv = flags.FlagValues(), ["", *arguments]
    try:
        config_flags.DEFINE_config_dict(
            "config",
            config,
            lock_config=False,
            flag_values=values,
            accept_new_attributes=True,
            sys_argv=argv,
        )
        rest = values(argv)
    except (flags.Error, ValueError, TypeError, AttributeError) as error:
        raise UserError(problem(str(error))) from error
    if len(rest) > 1:
        raise UserError(f"unexpected argument {rest[1]!r}: flags are written --name=value")
    return config


def problem(text: str) -> str:
    """What absl and ml_collections say of a flag's value, in the words of `errors.TYPES`."""
    text = text.splitlines()[0]
    flag, _, reason = text.removeprefix("flag ").partition(": ")
    for sign, mend in (
        ("for int()", "must be a whole number"),
        ("to float", "must be a number"),
        ("Non-boolean", "must be True or False"),
        ("as a ConfigDict", "is a section: set its fields, as --config.net.name=mlp"),
    ):
        if sign in reason:
            return f"{flag} {mend}"
    return text


def _blame(path: Path, function: Callable) -> Any:
    """function(); what it raises becomes a UserError with the line of `path` that it comes from."""
    try:
        return function()
    except UserError:
        raise
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == str(path)]
        text = str(error).splitlines()[0] if str(error) else ""
        if isinstance(error, SyntaxError):
            lines, text = [error.lineno], error.msg
        where = f", line {lines[-1]}" if lines else ""
        raise UserError(f"config file {path}{where}: {type(error).__name__}: {text}") from error


def to_dict(config: ConfigDict) -> dict:
    """Plain JSON types: what `config.json` holds."""
    try:
        return json.loads(json.dumps(config.to_dict()))
    except TypeError as error:
        raise UserError(f"a config holds numbers, strings, tuples and sections: {error}") from error


def from_file(path: Path) -> ConfigDict:
    """The configuration that a run left in its workdir."""

    def restored(value):  # JSON has lists where a config has tuples
        if isinstance(value, list):
            return tuple(map(restored, value))
        return {k: restored(v) for k, v in value.items()} if isinstance(value, dict) else value

    try:
        stored = json.loads(path.read_text())
        if not isinstance(stored, dict):
            raise ValueError(f"a {type(stored).__name__}, not a section")
        config = ConfigDict(restored(stored))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read as a configuration ({error}): put back a whole one, or delete "
            "it and pass --config"
        ) from error
    _fill(config, base())  # a run of an older version lacks what is new
    return config


def _fill(config: ConfigDict, default: ConfigDict) -> None:
    """Adds fields, no sections, that are missing or None, with their types."""
    for field, value in default.items():
        if isinstance(value, ConfigDict):
            if field not in OPEN and isinstance(config.get(field), ConfigDict):
                _fill(config[field], value)
        elif config.get(field) is None:
            config[field] = default.get_ref(field)


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
    moved = ("data.path", "data.real.path", "initial_parameters")  # files may have
    moved += ("data.cache", "data.real.cache", "loss.distance.path", "loss.adversary.paths")
    changed = [f for f in changed if f not in moved]
    if changed:
        shown = ", ".join(changed[:5]) + (", …" if len(changed) > 5 else "")
        raise UserError(
            f"{workdir} holds a different run: it differs in {shown}. "
            f"Choose another --workdir, or set these fields as {path} has them"
        )


OPEN = ("data", "net", "time", "coupling", "rematching", "loss", "sampler")  # checked by name


def check(config: ConfigDict) -> None:
    """Raises UserError for fields, types and numbers that cannot work; within milliseconds."""
    check_fields(config)
    check_numbers(config)


def check_fields(config: ConfigDict) -> None:
    """Raises UserError for sections, fields and types that `base()` does not know."""
    known = base()
    for section in config:
        choose("config section", section, known)
    missing = [name for name in known if name not in config]
    if missing:
        raise UserError(
            f"config lacks the section {missing[0]!r}: start it from genfield.configuration.base()"
        )
    for section, default in known.items():
        value = config[section]
        if not isinstance(default, ConfigDict):
            wanted = known.get_type(section)
            check_type(section, value, wanted | None if default is None else wanted)
            continue
        if not isinstance(value, ConfigDict):
            raise UserError(f"config.{section} is a section, not a value: {value!r}")
        for field in value if section not in OPEN else ():
            choose(f"field of config.{section}", field, default)
            wanted = default.get_type(field)
            optional = wanted | None if default[field] is None else wanted
            check_type(f"{section}.{field}", value[field], optional)
        lost = [field for field in default if field not in value] if section not in OPEN else []
        if lost:
            raise UserError(f"config.{section} lacks the field {lost[0]!r}")


# Fields of any section, named or not, that only make sense above zero, or not below it.
POSITIVE = (
    *("batch_size", "steps", "log_every", "eval_batches", "every", "keep", "num", "num_samples"),
    "likelihood_images",
    *("num_steps", "transport_points", "repeats", "learning_rate", "accumulate", "group_size"),
    *("regularization", "max_iterations", "sigma_data", "level", "horizon", "num_probes", "chunk"),
    *("sigma_min", "sigma_max", "rho", "level_learning_rate", "discriminator_learning_rate"),
    *("shard_size", "step_size", "num_leapfrog", "mass", "max_steps", "rtol", "atol", "std"),
)
NOT_NEGATIVE = (
    *(
        "seed",
        "slots",
        "match_size",
        "class_penalty",
        "features_seed",
        "eval_every",
        "eval_samples",
        "keep_best",
        "warmup_steps",
    ),
    *("weight_decay", "clip_norm", "half_life"),
    *("start", "lines_weight", "adversarial_weight", "pixel_weight"),
    *("path_noise", "epsilon", "c0", "one_step_weight", "eikonal_weight", "temperature"),
)
FRACTIONS = (  # in [0, 1)
    *("label_dropout", "augmentation", "dropout", "rate", "ramp_up"),
    *("b1", "b2", "discriminator_b1", "discriminator_b2"),
)
LARGEST_SEED = 2**31 - 2**20  # evaluation counts on from the seed
GUIDANCE = ("direction", "displacement")
ROUNDINGS = ("nearest", "truncate", "shift")
FORMATS = ("npz", "png")


def _numbers(section: ConfigDict, prefix: str = "") -> Iterator[tuple[str, str, float]]:
    """Every number of a section and those below it, as (dotted name, name, value)."""
    for field, value in section.items():
        if isinstance(value, ConfigDict):
            yield from _numbers(value, f"{prefix}{field}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{prefix}{field}", field, value


def check_numbers(config: ConfigDict) -> None:
    """Raises UserError for values that cannot work, before anything is compiled."""
    for name, field, value in _numbers(config):
        if not math.isfinite(value):
            raise UserError(f"config.{name} must be finite, got {value}")
        if field in POSITIVE and value <= 0:
            raise UserError(f"config.{name} must be positive, got {value}")
        if field in NOT_NEGATIVE and value < 0:
            raise UserError(f"config.{name} must not be negative, got {value}")
        if field in FRACTIONS and not 0 <= value < 1:
            raise UserError(f"config.{name} must be in [0, 1), got {value}")
    last = config.seed + config.sample.seed + config.evaluate.repeats
    if last > LARGEST_SEED:
        raise UserError(
            f"config.seed + config.sample.seed must be at most {LARGEST_SEED} less the repeats"
        )
    name = config.sample.name
    if name is not None and not re.fullmatch(r"[\w-][\w.-]*", name):
        raise UserError(
            f"config.sample.name {name!r} must be a file's name, of letters, digits, . - and _"
        )
    choose("config.sample.guidance_on", config.sample.guidance_on, dict.fromkeys(GUIDANCE))
    choose("config.sample.rounding", config.sample.rounding, dict.fromkeys(ROUNDINGS))
    for name in config.sample.formats:
        choose("config.sample.formats", name, dict.fromkeys(FORMATS))
    if not config.sample.formats:
        raise UserError(f"config.sample.formats is empty: name some of {', '.join(FORMATS)}")
    parts = {"config.optimizer.accumulate": config.optimizer.accumulate}
    for section in ("rematching", "loss"):
        parts[f"config.{section}.group_size"] = config[section].get("group_size") or 1
    if 0 < config.match_size < config.batch_size:
        parts["config.match_size"] = config.match_size
    elif config.match_size % config.batch_size:
        raise UserError(
            f"config.match_size {config.match_size} is not a multiple of config.batch_size "
            f"{config.batch_size}"
        )
    for name, size in parts.items():
        if isinstance(size, int) and config.batch_size % size:
            raise UserError(
                f"config.batch_size {config.batch_size} is not a multiple of {name} {size}"
            )
