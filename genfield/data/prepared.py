"""TFDS data sets that were prepared once as ArrayRecord: read at random, without TensorFlow."""

from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from genfield import registry
from genfield.data import identity
from genfield.data.decoding import WHITE, Reading, prepare
from genfield.data.pipeline import Dataset, Examples, Feed, assemble, short_hash
from genfield.data.pixels import on_demand
from genfield.data.splits import Splits
from genfield.errors import UserError
from genfield.reading import reason
from genfield.registry import Place, choose


def tfds(
    dataset: str | None = None,
    data_dir: Place | None = None,
    split: str = "train",
    heldout_split: str | None = "test",
    heldout_fraction: float = 0.1,
    image_key: str = "image",
    label_key: str = "label",
    labels: bool = False,
    size: int | None = None,
    channels: int = 3,
    background: int | tuple[int, ...] = WHITE,
    flip: bool = True,
    in_memory: bool | str = "auto",
    memory_limit_gb: float = 8.0,
    max_images: int | None = None,
    *,
    feed: Feed,
) -> Dataset:
    """A prepared TFDS data set of images.

    Args:
      dataset: "cifar10", "name/config:1.0.0", ...: as in `tfds.builder`.
      data_dir: where it was prepared; None is TFDS's own default.
      split, heldout_split: names, or slices such as "train[:90%]".
      image_key, label_key: the features that hold the image and its class.
      heldout_fraction, labels, size, channels, background, flip, in_memory, memory_limit_gb,
        max_images: as for `images`.
    Raises:
      UserError: TFDS is not installed; the data set is unknown, not prepared or prepared in
        another file format; a split or a feature is absent.
    """
    reading = Reading(size, channels, background)
    reading.check()
    splits = Splits(split, heldout_split, heldout_fraction, in_memory, memory_limit_gb, max_images)
    splits.check()
    builder = _prepared_builder(dataset, data_dir)
    features = builder.info.features
    for key in (image_key, *[label_key] * labels):
        choose(f"feature of TFDS {dataset}", key, features)
    class_names = tuple(getattr(features[label_key], "names", None) or ()) if labels else ()

    infos = builder.info.splits
    # A slice such as "train[:90%]" exists where its split does.
    wanted = [n for n in (split, heldout_split) if n and n.split("[")[0] in infos]
    open_split = partial(
        _examples, builder, dataset, image_key, label_key if labels else None, reading
    )
    known = {name: partial(open_split, name) for name in dict.fromkeys([*infos, *wanted])}
    train, heldout, line = splits.settle(known, f"TFDS {dataset}", feed)
    feed.log(f"TFDS {dataset}: {line}")
    shards = [(info.name, info.shard_lengths, info.num_bytes) for info in infos.values()]
    options = (split, heldout_split, heldout_fraction, image_key, label_key, labels, max_images)
    files = sorted(path for path in Path(builder.data_path).iterdir() if path.is_file())
    sets = [train] if heldout is train else [train, heldout]
    content = lambda: [identity.examples_hash(s, f"TFDS {dataset}", feed.log) for s in sets]
    in_memory = all(part.arrays is not None for part in sets)
    found = content() if in_memory else identity.remembered((options, reading), files, content)
    return assemble(
        train,
        heldout,
        class_names=class_names,
        labels=labels,
        flip=flip,
        fingerprint=short_hash(*found),
        older=(short_hash(builder.info.full_name, shards, split),),
        feed=feed,
    )


def _examples(
    builder, dataset: str, image_key: str, label_key: str | None, reading: Reading, name: str
) -> Examples:
    """The examples of a split; labels where there is a key for them."""
    source = builder.as_data_source(name)
    if not len(source):
        raise UserError(f"split {name!r} of TFDS {dataset} is empty")

    def read(row: int):
        where = f"{name}[{row}] of TFDS {dataset}"
        try:
            example = source[row]
            pixels = np.asarray(example[image_key])
            image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
            image = prepare(image, reading)
            label = int(example[label_key]) if label_key else None
        except Exception as error:  # TFDS's readers raise all kinds on damaged files
            raise UserError(f"cannot read the image {where}: {reason(error)}") from error
        return image, label, where

    return on_demand(len(source), read)


def _prepared_builder(dataset: str | None, data_dir: str | None):
    if dataset is None:
        raise UserError("data.dataset is None: pass --config.data.dataset=<a TFDS name>")
    try:
        import tensorflow_datasets
    except ImportError as error:
        raise UserError(
            "data 'tfds' needs tensorflow-datasets: pip install 'genfield[tfds]'"
        ) from error
    arguments = {"data_dir": data_dir} if data_dir else {}
    try:
        builder = tensorflow_datasets.builder(dataset, **arguments)
    except Exception as error:  # it raises all kinds on damaged files
        raise UserError(
            f"TFDS knows no {dataset!r} in {data_dir or 'its default folder'}, or its files are "
            f"damaged: {reason(error)}"
        ) from error
    ready = (builder.data_path / "dataset_info.json").exists()
    if ready and builder.info.file_format.value == "array_record":
        return builder
    found = f"is prepared as {builder.info.file_format.value}" if ready else "is not prepared"
    raise UserError(
        f"TFDS {dataset!r} {found} in {builder.data_path}: once, where TensorFlow is installed, "
        f"run tfds.builder({dataset!r}, data_dir=..., file_format='array_record')"
        ".download_and_prepare()"
    )


METHOD = registry.DataSource(
    name="tfds",
    make=tfds,
    holds="images",
    drawn=False,
    beside_pairs=True,
    fed=True,
)
