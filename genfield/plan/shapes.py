"""The data of a config by their shape alone: nothing is read."""

import jax
import jax.numpy as jnp

from genfield import data, registry
from genfield.data import Dataset
from genfield.data.pipeline import Latents, iterator_state
from genfield.errors import UserError
from genfield.machine import sharding
from genfield.program.experiment import Experiment
from genfield.registry import Methods, bound, choose


def dataset(config, methods: Methods, shape=None, classes: int | None = None) -> Dataset:
    """What a config says of its data: of drawn ones all, of others their shape and classes.

    Args:
      shape: of an example, channels last; None: as the config's `data` has it.
      classes: how many; None: as the config's `data` has it.
    Raises:
      UserError: a shape or a number of classes that the config does not say.
    """
    table = methods[registry.DataSource]
    source = choose("data", config.data.get("name"), table)
    if source.drawn:
        return data.create(config.data, batch_size=config.batch_size, seed=0, table=table)
    fields = bound(source, config.data)
    shape = _shape(config, source, fields) if shape is None else shape
    if classes is None:
        classes = _classes(config, fields)
    return Dataset(
        shape=tuple(shape),
        num_classes=classes,
        class_names=tuple(map(str, range(classes))),
        train=lambda start_step: iter(()),
        heldout=lambda index, batch_size, rows=None: {},
        draw=None,
        draw_source=None,
        sizes={"train": 0, "test": 0},
        examples={},
        pixels=source.holds == "images",
        fingerprint="",
        state=iterator_state(0, ""),
        latents=Latents(fields["scale"], fields["shift"]) if source.holds == "latents" else None,
    )


def _shape(config, source, fields: dict) -> tuple[int, ...]:
    if fields.get("shape"):
        return tuple(fields["shape"])
    if source.holds == "images" and fields.get("size"):
        return (fields["size"], fields["size"], fields.get("channels", 3))
    raise UserError(
        f"the config does not say of which shape its data ({config.data.name}) are, and a plan "
        "reads none: pass --shape=, as --shape=32,32,3"
    )


def _classes(config, fields: dict) -> int:
    if not fields.get("labels", True):
        return 0
    if isinstance(fields.get("num_classes"), int):
        return fields["num_classes"]
    if fields.get("classes") is not None:
        return len(fields["classes"])
    if "labels" not in fields:
        return 0
    raise UserError(
        f"the config does not say how many classes its data ({config.data.name}) have, and a plan "
        "reads none: pass --classes=, as --classes=10"
    )


def batch(exp: Experiment) -> dict:
    """The shapes of what a training step is fed, and where it lies."""
    config, data = exp.config, exp.data
    split, whole = sharding.batch_sharding(exp.mesh), sharding.replicated(exp.mesh)
    out = {"step": jax.ShapeDtypeStruct((), jnp.int32, sharding=whole)}
    examples = lambda dtype: jax.ShapeDtypeStruct(
        (config.batch_size, *data.shape), dtype, sharding=split
    )
    labels = jax.ShapeDtypeStruct((config.batch_size,), jnp.int32, sharding=split)
    paired = exp.methods[registry.DataSource][config.data.name].holds == "pairs"
    if paired or config.match_size > config.batch_size:
        out["x0"] = examples(jnp.float32)
    if data.draw is None or "x0" in out:
        out["x1"] = examples(jnp.uint8 if data.pixels and not paired else jnp.float32)
    if data.num_classes:
        out["label"] = labels
    if config.data.get("real") is not None:
        out["real"] = examples(jnp.uint8)
        out |= {"real_label": labels} if data.num_classes else {}
    return out
