"""A file of weights in the place of a checkpoint: its config, what it says of its data, its state.

So --weights=FILE samples, evaluates and studies what was never trained here.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from genfield import registry
from genfield.data import Dataset
from genfield.errors import UserError, local
from genfield.machine import checkpoint
from genfield.machine.logbook import say
from genfield.pretrained import contents, loading, zoo
from genfield.pretrained.family import config_of
from genfield.pretrained.loading import Pretrained
from genfield.program import checks
from genfield.program.defaults import OPEN, base
from genfield.program.methods import loss_of, package
from genfield.program.train_step import TrainState
from genfield.registry import Methods

# What the file says whatever a page does; the rest of a page stands.
OF_FILE = ("data", "net", "energy", "preconditioning", "sigma_data", "rotation")
MEANING = ("teaches", "clock", "output")


def is_file(place: str, where: str) -> bool:
    """Whether a path is of a file of weights, a folder of one or of the zoo, and not of a run."""
    path = local(place, where)
    if not path.exists():
        return zoo.place(place) is not None
    if not path.is_dir() or (path / checkpoint.FOLDER).exists():
        return path.is_file()
    return any(file.suffix in contents.ENDINGS for file in path.iterdir())


def opened(load: Callable, path: str, where: str, mend: str, **options) -> Pretrained:
    """load(path, **options), its errors in the words of a command line.

    Args:
      where: what names the file. mend: what names its kind.
    """
    try:
        return load(path, **options)
    except UserError as error:
        beside = Path(path).with_suffix(".json").name
        text, _, told = str(error).replace("pass kind=", mend).partition("pass config=")
        if told:
            json = told.replace("'", '"')
            text += f'write {{"config": {json}}} into {beside} beside the file'
        raise UserError(f"{where}: {text}") from error


def parameters(config, methods: Methods) -> dict:
    """Those of the file that `config.initial_parameters` names, by role, on the host.

    Says what they are of, and where this run trains another kind of field.
    """
    where, teaches = "config.initial_parameters", loss_of(config, methods).teaches
    mend = 'say in NAME.json beside the file "kind": '
    model = opened(loading.load, config.initial_parameters, where, mend, teaches=teaches)
    d = model.description
    other = f", a {d.teaches}; this run goes on from it to a {teaches}"
    say(f"{where}: {d.title}" + (other if d.teaches != teaches else ""))
    return {"field": jax.tree.map(np.asarray, model.params)}


def taught(page: ConfigDict | None, methods: Methods | None) -> str | None:
    """What the field of a page learns to be, which tells families with the same names apart."""
    return None if page is None else loss_of(page, methods).teaches


def derived(model: Pretrained, page: ConfigDict | None, methods: Methods | None) -> ConfigDict:
    """The config under which weights are sampled and measured.

    Args:
      page: how; its network, data and preconditioning become the file's. None: as those sampled
        who trained the weights; see `settled`.
    """
    methods, told = methods or package(), config_of(model.description)
    config = base() if page is None else page
    for name, value in told.items():
        if page is not None and name not in OF_FILE:
            continue
        if name in OPEN:
            same = name in config and config[name].get("name") == value["name"]
            kept = config[name].to_dict() if same and page is not None else {}
            config[name] = ConfigDict(kept | value)
        elif isinstance(config[name], ConfigDict):
            config[name].update(value)
        else:
            config[name] = value
    source, shape = methods[registry.DataSource][config.data.name], model.description.shape
    if source.holds == "images" and "size" in registry.parameters(source.target):
        config.data.size = shape[0] if shape[0] == shape[1] else None
    if page is None and config.sample.guidance_scale == 1:
        config.sample.guidance_channels = 0  # see `settled`
    if page is None:
        config.evaluate.metrics = ()  # see `settled`
    if config.sample.name is None:
        config.sample.name = re.sub(r"[^\w.-]", "_", Path(model.info.file).stem).lstrip(".") or None
    return config


def settled(model: Pretrained, config: ConfigDict, overrides: list[str], methods) -> None:
    """What a file alone leaves open until the command line is read: metrics, and how to guide.

    Images, and latents that are decoded, are measured by the Fréchet distance, points of a law that
    is drawn as clouds; guidance is that of the authors, and a line says so.
    """
    chosen = lambda field: any(f"config.{field}" in override for override in overrides)
    source = (methods or package())[registry.DataSource][config.data.name]
    pictures = source.holds == "images" or (source.holds == "latents" and config.autoencoder)
    if not chosen("evaluate.metrics"):
        drawn = ("point_cloud",) if source.drawn else ()
        config.evaluate.metrics = ("frechet",) if pictures else drawn
    section, theirs = config.sample, model.description.guidance
    if theirs is None or theirs.channels is None or section.guidance_scale == 1:
        return
    if chosen("sample.guidance_channels"):
        return
    section.guidance_channels = theirs.channels
    say(
        f"guided as by the authors: the first {theirs.channels} of {model.description.shape[-1]} "
        "channels (--config.sample.guidance_channels=0 guides all)"
    )


def known_of(model: Pretrained, config, methods: Methods) -> dict | None:
    """What is known of the data without reading them (`recorded.facts`); None: they are at hand."""
    source = methods[registry.DataSource].get(config.data.get("name"))
    places = [n for n in checks.file_places(config, methods) if n.startswith("data.")]
    if source is None or all(config.data.get(place.split(".")[1]) for place in places):
        return None
    d = model.description
    return {
        "shape": list(d.shape),
        "num_classes": d.num_classes,
        "class_names": [str(number) for number in range(d.num_classes)],
        "pixels": source.holds == "images",
        "fingerprint": f"unknown, of weights {model.info.sha256[:16]}",
        "source": "normal",
        "sizes": [["train", 0], ["test", 0]],
        "examples": ["train", "test"],
        "starts": False,
    }


def check_data(model: Pretrained, data: Dataset) -> None:
    """Raises UserError where the data of a config are not such as the weights were trained on."""
    d = model.description
    if data.shape != d.shape or data.num_classes != d.num_classes:
        raise UserError(
            f"the weights {model.info.file} are of examples {list(d.shape)} with {d.num_classes} "
            f"classes, and config.data has {list(data.shape)} with {data.num_classes}"
        )


def check_reference(exp) -> None:
    """Raises UserError where nothing is measured, or against data that are not at hand."""
    if not exp.config.evaluate.metrics:
        raise UserError(
            "nothing says what to measure: set config.evaluate.metrics, as \"('frechet',)\"; of "
            "latents config.autoencoder too, which makes them pixels"
        )
    metrics = (exp.methods[registry.Metric][name] for name in exp.config.evaluate.metrics)
    wanting = [m.name for m in metrics if m.reads == "features" and m.of_reference]
    if wanting and exp.config.evaluate.reference is None and not any(exp.data.sizes.values()):
        raise UserError(
            f"metric {wanting[0]!r} compares with images, and weights bring none: set "
            "config.evaluate.reference to images or statistics, such as ADM's "
            "VIRTUAL_imagenet256_labeled.npz, or config.data.path to the data"
        )


def check(model: Pretrained, config, objective, abstract: dict) -> None:
    """Raises UserError where a config's field is not the one that the weights are."""
    d, file = model.description, model.info.file
    here = (objective.method.teaches, objective.clock, objective.output)
    there = (d.teaches, d.clock, "vector" if objective.method.at_levels else d.output)
    for name, ours, theirs in zip(MEANING, here, there, strict=True):
        if ours != theirs:
            raise UserError(
                f"the weights {file} are {model.info.points} ({name} {theirs!r}), and "
                f"config.loss trains another field ({name} {ours!r}): leave out --config.loss, or "
                "pass a --config of such a field"
            )
    wanted, found = checkpoint.named_leaves(abstract["field"]), leaves(model)
    shape = lambda tree, name: list(tree[name].shape) if name in tree else "nothing"
    for name in {**wanted, **found}:
        if shape(wanted, name) != shape(found, name):
            raise UserError(
                f"config.net is not the network of {file}: {name} is {shape(found, name)} there "
                f"and {shape(wanted, name)} here: leave out --config.net"
            )


def leaves(model: Pretrained) -> dict[str, np.ndarray]:
    """Its parameters on the host, by their paths."""
    return {k: np.asarray(v) for k, v in checkpoint.named_leaves(model.params).items()}


def state(exp) -> TrainState:
    """The weights as a state that nothing was trained of; they are their own average."""
    found = checkpoint.named_leaves(exp.weights.params)

    def placed(path, spec):
        value = np.asarray(found[checkpoint.named_path(path)])
        return jax.make_array_from_callback(value.shape, spec.sharding, value.__getitem__)

    field = jax.tree_util.tree_map_with_path(placed, exp.abstract.params["field"])
    params = {"field": field}
    step = jax.jit(lambda: jnp.int32(0), out_shardings=exp.abstract.step.sharding)()
    part = f", its {exp.weights.info.part!r}" if exp.weights.info.part else ""
    say(f"weights: {exp.weights.info.title}{part}, of {exp.weights.info.file}")
    return TrainState(step, params, params if exp.ema_rate else {}, ())


def facts(model: Pretrained) -> dict[str, Any]:
    """What was opened, for a card."""
    info = model.info
    named = ("family", "title", "file", "sha256", "part", "parameters")
    return {name: getattr(info, name) for name in named}
