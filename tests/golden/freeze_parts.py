"""The sections of freeze.py that look at configs, networks, draws, training steps and samples."""

import hashlib
import json
import time
from pathlib import Path
from zlib import crc32

import freeze_inputs as inputs
import numpy as np
from freeze import ROOT, draw, of, prepare, samples, train_steps
from ml_collections import ConfigDict

ABSENT = "(absent)"


# ---- Digests ------------------------------------------------------------------------------------


def sha(*parts: bytes) -> str:
    """The start of a hash of these bytes."""
    total = hashlib.sha256()
    for part in parts:
        total.update(part)
    return total.hexdigest()[:16]


def host(value) -> np.ndarray:
    """An array on the host; of a random key, its data."""
    import jax

    if isinstance(value, jax.Array) and jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key):
        value = jax.random.key_data(value)
    return np.ascontiguousarray(jax.device_get(value))


def digest(value) -> str:
    """Hash, type, shape, mean and standard deviation of an array, in a line."""
    array = host(value)
    shape = ",".join(map(str, array.shape))
    out = f"{sha(array.tobytes())} {array.dtype}[{shape}]"
    if not array.size or array.dtype == np.uint32:
        return out
    numbers = array.astype(np.float64)
    return f"{out} mean {numbers.mean():.6g} std {numbers.std():.6g}"


def named(tree, prefix: str = "") -> dict:
    """The leaves of dicts, named tuples and tuples, by their path; None is left out."""
    if tree is None:
        return {}
    if hasattr(tree, "_asdict"):
        tree = tree._asdict()
    if isinstance(tree, (list, tuple)):
        tree = dict(enumerate(tree))
    if not isinstance(tree, dict):
        return {prefix: tree}
    out = {}
    for key, part in tree.items():
        out |= named(part, f"{prefix}/{key}" if prefix else str(key))
    return out


def digests(tree) -> dict:
    """A digest of each leaf."""
    return {name: digest(leaf) for name, leaf in named(tree).items()}


def whole(tree) -> str:
    """One hash of all leaves with their names, and the sum of their squares."""
    leaves = {name: host(leaf) for name, leaf in sorted(named(tree).items())}
    total = sha(*(name.encode() + leaf.tobytes() for name, leaf in leaves.items()))
    squares = sum(float(np.square(leaf.astype(np.float64)).sum()) for leaf in leaves.values())
    return f"{total} {len(leaves)} leaves, squares {squares:.6g}"


# ---- Configs ------------------------------------------------------------------------------------


def split(name: str) -> tuple[Path, str]:
    """`file.py:variant` as a path and what load_config takes."""
    file, _, variant = name.partition(":")
    folder = ROOT / ("tests/golden" if file.startswith("freeze_") else "configs")
    return folder / file, str(folder / file) + (f":{variant}" if variant else "")


def load(name: str):
    """The config of `file.py:variant`."""
    return of("load_config")(split(name)[1])


def small(label: str):
    """The config of a row of the tables, small: base() with what freeze_rows.json has of it."""
    rows = json.loads((ROOT / "tests/golden/freeze_rows.json").read_text())
    config, tuples = of("base")(), lambda v: tuple(map(tuples, v)) if isinstance(v, list) else v
    for name, value in rows[label].items():
        *path, last = name.split(".")
        section = config
        for part in path:
            if section.get(part) is None:
                section[part] = ConfigDict()
            section = section[part]
        if value == ABSENT:
            del section[last]
            continue
        with section.ignore_type():
            section[last] = tuples(value)
    return config


def write_data(config, folder: Path) -> None:
    """Files of noise that the config's data section can read, and their paths in it."""
    folder.mkdir(parents=True, exist_ok=True)
    random, section = np.random.default_rng(7), config.data
    if section.name == "images":
        section.path = str(_images(folder / "images.npz", random, 40))
    elif section.name == "latents":
        count = 3 * config.batch_size
        np.save(folder / "latents.npy", _normal(random, (count, *section.shape)).astype(np.float16))
        section.num_classes = min(section.num_classes, 4)  # each with examples of its own
        np.save(folder / "labels.npy", np.arange(count) % max(1, section.num_classes))
        section.path = str(folder)
    elif section.name == "pairs":
        pixels = config.net.name != "mlp"
        real = section.get("real") or ConfigDict()
        side = real.get("size") or 32
        classes = 10 if real.get("labels") else 0
        shape = (60, side, side, 3) if pixels else (60, 2)
        for part in ("x0", "x1"):
            np.save(folder / f"{part}.npy", _normal(random, shape))
        np.save(folder / "labels.npy", (np.arange(60) % 10).astype(np.int32))
        names = [str(number) for number in range(classes)]
        about = {"num_classes": classes, "class_names": names, "pixels": pixels}
        (folder / "manifest.json").write_text(json.dumps({"num": 60, "settings": about}))
        section.path = str(folder)
        if pixels:
            real.path = str(_images(folder / "real.npz", random, 60, side))


def _normal(random, shape) -> np.ndarray:
    return random.standard_normal(shape).astype(np.float32)


def _images(path: Path, random, count: int, side: int = 32) -> Path:
    """An .npz of noise in ten classes."""
    arrays = {}
    for part, size in (("train", count), ("test", 20)):
        arrays[f"{part}_images"] = random.integers(0, 256, (size, side, side, 3), np.uint8)
        arrays[f"{part}_labels"] = np.arange(size) % 10
    np.savez(path, **arrays)
    return path


def fields_of(config) -> dict:
    """The resolved config as dotted name -> value."""

    def flat(section, prefix=""):
        out = {}
        for key, value in section.items():
            name = f"{prefix}{key}"
            nested = isinstance(value, dict) and value
            out |= flat(value, f"{name}.") if nested else {name: value}
        return out

    return flat(of("to_dict")(config))


def changed(old: dict, new: dict) -> dict:
    """The fields of `new` that differ from `old`."""
    names = sorted(old.keys() | new.keys())
    return {n: new.get(n, ABSENT) for n in names if old.get(n, ABSENT) != new.get(n, ABSENT)}


def configs(folder: Path, wanted) -> dict:
    """base(), each config as it differs from it, and variants as from their config."""
    base = fields_of(of("base")())
    out = {"base": base}
    for file, variants in inputs.CONFIGS.items():
        default = fields_of(load(file))
        out[file] = changed(base, default)
        for variant in variants:
            name = f"{file}:{variant}"
            out[name] = changed(default, fields_of(load(name)))
    return {name: entry for name, entry in out.items() if wanted(name)}


# ---- Parameters ---------------------------------------------------------------------------------


def shapes(tree) -> str:
    """A hash of the names, shapes and types of a tree, and the number of scalars."""
    leaves = sorted((n, tuple(a.shape), str(a.dtype)) for n, a in named(tree).items())
    count = sum(int(np.prod(shape, dtype=np.int64)) for _, shape, _ in leaves)
    return f"{sha(json.dumps(leaves).encode())} {len(leaves)} arrays, {count} numbers"


def data_shape(config) -> tuple[tuple[int, ...], int]:
    """Shape of an example and number of classes, without any data being there."""
    section = config.data
    if section.name in inputs.SHAPES:
        return inputs.SHAPES[section.name]
    if section.name == "latents":
        return tuple(section.shape), section.num_classes
    real = section.get("real") or section
    if config.net.name == "mlp":
        return (2,), 0
    side = real.get("size") or 32
    classes = inputs.CLASSES.get(side, 0) if real.get("labels") else 0
    return (side, side, 3), classes


def parameters(folder: Path, wanted) -> dict:
    """The parameters of each network of the configs, and of small runs with all their roles."""
    out, seen = {}, {}
    for file, variants in inputs.CONFIGS.items():
        for name in [file, *(f"{file}:{variant}" for variant in variants)]:
            if not wanted(name):
                continue
            config = load(name)
            shape, classes = data_shape(config)
            which = (json.dumps(of("to_dict")(config.net), sort_keys=True), shape, classes)
            if which not in seen:
                params = of("create_net")(config.net, None, shape=shape, num_classes=classes)[1]
                seen[which] = f"{shapes(params)}, of {shape} and {classes} classes"
            out[name] = seen[which]
    of_roles = lambda exp: {role: shapes(tree) for role, tree in exp.abstract.params.items()}
    return out | each(of_roles, inputs.NETS, folder, wanted)


# ---- Draws, steps and samples -------------------------------------------------------------------


def each(function, table, folder: Path, wanted) -> dict:
    """function(experiment, *options of the row) of the rows that are wanted; errors are entries."""
    out = {}
    for number, (label, _, _, *options) in enumerate(table):
        if not wanted(label):
            continue
        start = time.monotonic()
        try:
            config = small(label)
            config.mesh.data = 1
            write_data(config, folder / str(number))
            exp = prepare(config, folder / str(number) / "run")
            out[label] = function(exp, *options)
        except Exception as error:
            out[label] = {"error": f"{type(error).__name__}: {error}"[:300]}
            print(f"{label}: {out[label]['error']}", flush=True)
        if (seconds := time.monotonic() - start) > 5:
            print(f"    {label}: {seconds:.0f} s", flush=True)
    return out


def draws(folder: Path, wanted) -> dict:
    """What the steps 0 and 7 of each run draw."""
    both = lambda exp: {f"step {step}": digests(draw(exp, step)) for step in (0, 7)}
    return each(both, inputs.DRAWS + inputs.LOSSES, folder, wanted)


def losses(folder: Path, wanted) -> dict:
    """The metrics of two steps of each run, and the state after them."""
    return each(two_steps, inputs.LOSSES, folder, wanted)


def two_steps(exp) -> dict:
    """Metrics with all their digits; parameters, average and optimiser as hashes."""
    state, metrics = train_steps(exp, 2)
    out = {f"step {number}": numbers(row) for number, row in enumerate(metrics)}
    out |= {part: whole(getattr(state, part)) for part in ("params", "ema", "optimizer")}
    return out | {"state step": int(state.step)}


def numbers(metrics: dict) -> dict:
    """Scalars with all their digits."""
    return {name: repr(host(value).item()) for name, value in metrics.items()}


def shaken(params: dict) -> dict:
    """Parameters with noise added, which their names decide, so that no layer is zero."""

    def walk(tree, name=""):
        if isinstance(tree, dict):
            return {key: walk(part, f"{name}/{key}") for key, part in tree.items()}
        random = np.random.default_rng(crc32(name.encode()))
        return host(tree) + np.float32(0.1) * _normal(random, tree.shape)

    return walk(params)


def sixteen(exp, options=None) -> dict:
    """Samples of the shaken start of a run: where they end, evaluations, traces."""
    import jax

    place = lambda value, like: jax.device_put(value, like.sharding)
    params = jax.tree.map(place, shaken(exp.init().params), exp.abstract.params)
    return digests(samples(exp, params, 16, **(options or {})))


def samples_of(folder: Path, wanted) -> dict:
    """Samples by each sampler."""
    return each(sixteen, inputs.SAMPLES, folder, wanted)
