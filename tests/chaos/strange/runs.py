"""Files of runs, of data that runs make, and of what they are compared with: rows for readers."""

import contextlib
import functools
import json
import shutil
import types
from pathlib import Path

import numpy as np

from genfield import compare, configuration, data
from genfield.data import identity, recorded
from genfield.data.npz import cached
from genfield.data.pipeline import short_hash
from genfield.features import weights
from genfield.look.folder import Folder
from genfield.machine import checkpoint, logbook, sharding
from genfield.machine.loggers import wandb
from genfield.metrics import reference
from genfield.prepare import writer
from genfield.program import card, config_io, experiment, fault, open_run, own_files
from genfield.program.sample_files import Shards
from genfield.study import editing

from . import data as of

GOLDEN = Path(__file__).parents[2] / "golden"
RUN = GOLDEN / "runs" / "moons"
SETTINGS = {"num": 4, "shard_size": 2, "seed": 0, "class_names": ["a", "b"]}


# ---- Runs


def run_copy(folder: Path) -> None:
    shutil.copytree(RUN, folder, dirs_exist_ok=True)


def read_run(folder: Path) -> None:
    open_run.open_run(folder)


def dump(folder: Path) -> None:
    """What a training leaves of a step whose data are not finite, at the run's last checkpoint."""
    loaded = config_io.read(str(RUN / "config.json"))
    exp = experiment.prepare(loaded.config, folder, loaded.methods)
    with contextlib.closing(checkpoint.Checkpoints(RUN, judged=False)) as checkpoints:
        state, meta = open_run.restore(exp, checkpoints)
    x1 = np.full((exp.config.batch_size, *exp.data.shape), np.nan, np.float32)
    batch = {"step": np.int32(meta["step"])} | sharding.put_whole({"x1": x1}, exp.mesh)
    fault.dump(exp, state, batch, meta, {"loss": np.nan})


def read_dump(folder: Path) -> None:
    """As a replay does, before it compiles the step."""
    place = fault.find(folder)
    loaded = config_io.read(str(place / "config.json"))
    exp = experiment.prepare(loaded.config, place, loaded.methods, reads_data=False, decodes=False)
    fault.same(fault.read(place, exp), None, {})


def load(folder: Path) -> None:
    for item in ("params", "ema", "optimizer"):
        checkpoint.load(folder, item=item)


def config(folder: Path) -> None:
    shutil.copy(RUN / "config.json", folder)


def read_config(folder: Path) -> None:
    config_io.read(str(folder / "config.json"))


def prepare(folder: Path) -> None:
    """All that --config=config.json checks, before anything is compiled."""
    loaded = config_io.read(str(folder / "config.json"))
    experiment.prepare(loaded.config, folder / "run", loaded.methods)


def records(folder: Path) -> None:
    """The JSON files that a run writes."""
    for name in ("card.json", "summary.json", "metrics.jsonl", "config.json"):
        shutil.copy(RUN / name, folder)
    known = {"shape": [2], "num_classes": 0, "class_names": [], "pixels": False, "older": []}
    known |= {"fingerprint": "0", "source": "normal", "sizes": [["train", 9]], "starts": False}
    (folder / "data.json").write_text(json.dumps(known | {"examples": ["train"], "latents": None}))
    (folder / "wandb.json").write_text(json.dumps({"id": "abc", "written": {"train": 4}}))
    (folder / "own").mkdir()
    (folder / "own" / "files.json").write_text("{}")


def read_records(folder: Path) -> None:
    """As the commands compare, look, plan, train and study read them."""
    other = json.loads((RUN / "card.json").read_text())
    of.read_any(
        lambda: compare.table(compare.differences(compare.load(str(folder)), other)),
        lambda: card.write(folder, other),
        lambda: recorded.read(folder),
        lambda: look(folder),
        lambda: logbook.Metrics(folder, 3),
        lambda: own_files.methods_of(folder),
        lambda: read_wandb(folder),
        lambda: read_config(folder),
    )


def read_wandb(folder: Path) -> None:
    with contextlib.suppress(OSError):  # which the loggers tell, and go on
        wandb.WandB._read(types.SimpleNamespace(path=folder / "wandb.json"))


def look(folder: Path) -> None:
    found = Folder(folder)
    json.dumps([found.records(), found.curves(), found.newest(), found.pictures()], allow_nan=False)


# ---- Samples, pairs, prepared data, caches


def samples(folder: Path) -> None:
    """A name half drawn: a whole shard, and a part of the other."""
    shards = Shards(folder, "s", SETTINGS, ("npz",), ("a", "b"))
    shards.begin()
    images = np.zeros((2, 4, 4, 3), np.uint8)
    shards.write(0, {"arr_0": images, "arr_1": np.zeros(2, int), "nfe": np.ones(2)})
    part = {"arr_0": images[:1], "arr_1": np.ones(1, int), "nfe": np.ones(1)}
    shards.write(1, part | {"index": np.array([3])})


def read_samples(folder: Path) -> None:
    """As a command that goes on does: what is missing is drawn, all is joined."""
    shards = Shards(folder, "s", SETTINGS, ("npz", "png"), ("a", "b"))
    if shards.finished():
        return
    shards.begin()
    for index in shards.missing():
        whole = {"arr_0": np.zeros((1, 4, 4, 3), np.uint8), "arr_1": np.ones(1, int)}
        index = np.array([index])
        shards.write(int(index[0]) // 2, whole | {"nfe": np.ones(1), "index": index})
    shards.finish()


def pairs(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("x0", "x1"):
        np.save(folder / f"{name}.npy", rng.normal(size=(12, 2)).astype("f4"))
    np.save(folder / "labels.npy", np.arange(12) % 2)
    settings = {"num_classes": 2, "class_names": ["a", "b"], "pixels": False, "source": "normal"}
    manifest = {"num": 12, "nfe": 3.0, "settings": settings}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def read_pairs(folder: Path) -> None:
    asked = {"name": "pairs", "path": str(folder)}
    of.everything(data.create(asked, batch_size=1, seed=0))


def prepared(kind: str):
    def write(folder: Path) -> None:
        import prepared

        rng = np.random.default_rng(0)
        labels = np.arange(6) % 2
        if kind == "pixels":
            levels = rng.integers(0, 256, (6, 4, 4, 3), np.uint8)
            prepared.pixels(folder / "p", levels, labels, shard=4)
        else:
            mean = rng.normal(size=(6, 2, 2, 4))
            prepared.latents(folder / "p", mean, np.ones_like(mean), labels, shard=4)

    return write


def read_prepared(folder: Path) -> None:
    asked = {"name": "latents", "path": str(folder / "p"), "shape": (2, 2, 4), "num_classes": 2}
    of.everything(data.create(asked, batch_size=1, seed=0))


def journal(folder: Path) -> None:
    shard = writer.Shard(folder, 0, 0, 8, (2, 2), "f2")
    shard.open()
    shard.append(np.zeros((3, 2, 2)), {"first": 0, "last": 3, "mark": "a", "left_out": []})
    shard.append(np.zeros((2, 2, 2)), {"first": 3, "last": 5, "mark": "b", "left_out": []})
    for file in shard._files:
        file.close()


def read_journal(folder: Path) -> None:
    shard = writer.Shard(folder, 0, 0, 8, (2, 2), "f2")
    if not shard.done:
        shard.open()
        shard.append(
            np.zeros((1, 2, 2)), {"first": shard.next, "last": 8, "mark": "c", "left_out": []}
        )
        shard.close()


def latents(folder: Path) -> None:
    rng = np.random.default_rng(0)
    np.save(folder / "latents.npy", rng.normal(size=(12, 2, 2, 4)).astype("f2"))
    np.save(folder / "labels.npy", np.arange(12) % 3)


def read_latents(folder: Path) -> None:
    asked = {"name": "latents", "path": str(folder), "shape": (2, 2, 4), "num_classes": 3}
    of.everything(data.create(asked, batch_size=1, seed=0))


def arrays(folder: Path) -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(9, 3)).astype("f4")
    np.savez(folder / "a.npz", x1=values, x0=values[::-1], labels=np.arange(9) % 2)
    np.save(folder / "b.npy", values)
    levels = rng.integers(0, 256, (6, 4, 4, 3), np.uint8)
    labels, names = np.arange(6) % 2, np.array(["cat", "dog"])
    splits = {"train_images": levels, "train_labels": labels, "test_images": levels[:2]}
    np.savez(folder / "i.npz", **splits, test_labels=labels[:2], class_names=names)
    np.savez_compressed(folder / "s.npz", arr_0=levels, arr_1=labels, nfe=np.ones(6))


def read_arrays(folder: Path) -> None:
    source = of.source
    reads = {
        "a.npz": lambda: source("arrays", "a.npz", labels=True)(folder),
        "b.npy": lambda: source("arrays", "b.npy", scale=2.0)(folder),
        "i.npz": lambda: source("images", "i.npz", labels=True, size=2)(folder),
        "s.npz": lambda: of.read_set(folder / "s.npz"),
    }
    of.read_any(*(read for name, read in reads.items() if (folder / name).exists()))


def edits(folder: Path) -> None:
    values = np.random.default_rng(0).normal(size=(3, 4, 4, 3)).astype("f4")
    np.save(folder / "x.npy", values)
    np.savez(folder / "x.npz", values)
    np.save(folder / "mask.npy", np.eye(4) > 0)
    mask = of.picture(3).convert("L").point(lambda level: 255 * (level > 99)).resize((4, 4))
    mask.save(folder / "mask.png")


def read_edits(folder: Path) -> None:
    shape = (4, 4, 3)
    of.read_any(
        *(lambda n=n: editing._arrays(str(folder / n), shape) for n in ("x.npy", "x.npz")),
        *(lambda n=n: editing.mask(str(folder / n), shape) for n in ("mask.npy", "mask.png")),
    )


@functools.cache
def _judge():
    import tiny_network

    from genfield import features
    from genfield.metrics import images, known

    section = configuration.base().evaluate
    section.features = "inception_v3"
    metrics = [known()[name] for name in ("frechet", "kid")]
    mesh = sharding.make_mesh(configuration.base().mesh)
    create, features.create = features.create, tiny_network.create
    try:
        return images.create_judge(section, mesh, metrics)
    finally:
        features.create = create


def statistics(folder: Path) -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(20, 12)).astype("f4")
    told = {"source": "x", "count": 20, "network": "inception_v3", "feature_hash": "tinyNone"}
    told |= {"resize": configuration.base().evaluate.resize, "identity": "0", "pixels": "1"}
    own = {"mu": features.mean(0).astype(float), "sigma": np.cov(features.T)}
    text = np.array(json.dumps(told))
    np.savez(folder / "own.npz", **own, features=features, manifest=text)
    np.savez(folder / "adm.npz", **own, mu_s=own["mu"], sigma_s=own["sigma"])


def read_statistics(folder: Path) -> None:
    judge = _judge()
    two = judge._replace(metrics=tuple(m for m in judge.metrics if m.name == "frechet"))
    of.read_any(
        lambda: reference.load(reference.open_reference(str(folder / "own.npz"), judge), judge),
        lambda: reference.load(reference.open_reference(str(folder / "adm.npz"), two), two),
        lambda: reference._cached(folder / "own.npz", {}),
    )


def caches(folder: Path) -> None:
    levels = np.zeros((3, 4, 4, 3), np.uint8)
    held = {f"{part}_x1": levels for part in ("train", "heldout")}
    names = {"class_names": np.array(["a"]), "told": np.array(["images: 3"])}
    np.savez(folder / "cache.npz", **held, **names)
    (folder / "identity.json").write_text(json.dumps({"value": ["0123", ["a"]]}))


def read_caches(folder: Path) -> None:
    def of_examples():
        train, heldout, *_ = cached(folder / "cache.npz", None)
        for part in (train, heldout):
            part.gather(np.arange(part.size))

    place = weights.cache() / "identities" / f"{short_hash(('x',), [])}.json"
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(folder / "identity.json", place)
    of.read_any(of_examples, lambda: identity.remembered(("x",), [], lambda: ["made"]))


def rows() -> list[tuple]:
    """(name, make, read, share) of each."""
    return [
        ("run", run_copy, read_run, 0.6),
        ("checkpoint", run_copy, load, 1, lambda name: name.startswith("checkpoints/")),
        ("dump", dump, read_dump, 1, lambda name: "/checkpoints/" not in name),
        ("config", config, read_config, 30),
        ("config_checked", config, prepare, 3),
        ("records", records, read_records, 20),
        ("samples", samples, read_samples, 20),
        ("pairs", pairs, read_pairs, 20),
        ("prepared_latents", prepared("latents"), read_prepared, 20),
        ("prepared_pixels", prepared("pixels"), of.source("images", "p", labels=True), 20),
        ("journal", journal, read_journal, 20),
        ("latents", latents, read_latents, 20),
        ("arrays", arrays, read_arrays, 30, lambda name: True, True),
        ("edits", edits, read_edits, 20),
        ("statistics", statistics, read_statistics, 20),
        ("caches", caches, read_caches, 20),
    ]
