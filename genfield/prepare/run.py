"""From images to shards: what is missing is read, encoded and written, batch by batch."""

import contextlib
import json
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from genfield.data import identity, shards
from genfield.errors import UserError, tell
from genfield.machine import lock, logbook, preemption, sums
from genfield.machine.tables import differences
from genfield.prepare import crop, encoder
from genfield.prepare.encoder import Encoder
from genfield.prepare.options import SHARD, Options
from genfield.prepare.source import Source, open_source
from genfield.prepare.writer import Shard, read_journal
from genfield.reading import json_file

FORMAT = 1
WRITTEN = (shards.ASKED, shards.LABELS, shards.FINISHED)
AHEAD = 3  # batches that are read while one is encoded
# Of an autoencoder, what decides no number that is stored: it may be told in another way.
TOLD = ("names", "scaling_factor", "shift_factor")
FLAGS = {
    "size": "--size",
    "copies": "--flip",
    "split": "--split",
    "autoencoder.hash": "--autoencoder",
    "autoencoder.dtype": "--dtype",
    "autoencoder.tile": "--tile",
}


def prepare(options: Options) -> None:
    """Prepares the images, or goes on; the process that finds all shards whole writes the manifest.

    Raises:
      UserError: anything that cannot work, before images are encoded; a damaged image, unless such
        are to be left out; a folder that holds something else.
    """
    source = open_source(options.images, options.asked, options.size, options.memory_limit_gb)
    for line in source.told:
        _say(options, line)
    made = encoder.create(options)
    settings = begin(options, source, made)
    parts = open_parts(options.out, settings, made)
    check_unchanged(parts, source)
    manifest = options.out / shards.FINISHED
    mine = parts[options.process_id :: options.num_processes]
    if manifest.exists() and all(part.done for part in parts) and not _damaged(options, mine):
        for name in WRITTEN:  # of a kill between its writing and another process' end
            _unfinished(options.out / name, options.process_id).unlink(missing_ok=True)
        if not (options.out / sums.FILE).exists() and os.access(options.out, os.W_OK):
            _write_sums(options)  # the disk was full, say, or the folder is of an earlier version
        lock.sweep(options.out / shards.SHARDS)  # of one that was killed at its very end
        _say(options, f"finished before: {_summary(options.out)}")
        return
    fill(options, source, made, mine)
    for line in source.notes.lines():
        tell(line)
    parts = open_parts(options.out, settings, made)
    if all(part.done for part in parts):
        finish(options, settings, source, parts, made)
        tell(f"done: {_summary(options.out)}")
    else:
        missing = sum(not part.done for part in parts)
        tell(f"{missing} of {len(parts)} shards are still to come, by other processes")


def _damaged(options: Options, parts: list[Shard]) -> bool:
    """Whether a finished folder is not as it was written; says what, and removes what is made anew.

    parts: those of this process, which are read whole.
    """
    out, manifest = options.out, options.out / shards.FINISHED
    changed = sums.changed(out) if options.process_id == 0 else []
    told = [out / name for name in changed]
    if manifest.name not in changed:
        hashes = {shard["file"]: shard["hash"] for shard in shards.read_manifest(out)["shards"]}
        for part in parts:
            if part.count and identity.file_hash(part.whole) != hashes.get(part.whole.name):
                told.append(part.whole)
                part.whole.unlink()
    for path in told:
        tell(f"{path} is damaged, or was changed since it was written: it is made anew")
    if told:
        manifest.unlink()
    return bool(told)


def _say(options: Options, line: str) -> None:
    if options.process_id == 0:
        tell(line)


def _summary(out: Path) -> str:
    found = shards.read_manifest(out)
    left = f", {len(found['left_out'])} left out" if found["left_out"] else ""
    classes = f", {len(found['class_names']):,} classes" if found["class_names"] else ""
    what = "latents" if found["kind"] == shards.LATENTS else "images"
    twice = ", mirrored too" if found["copies"] > 1 else ""
    return (
        f"{found['count']:,} {what} of shape {tuple(found['shape'])}{twice}{classes}{left}; {out}"
    )


# ---- What was asked for


def begin(options: Options, source: Source, made: Encoder) -> dict:
    """prepare.json: all that decides what is stored. A folder that is begun must agree with it.

    Raises:
      UserError: the folder holds something else, or cannot be written.
    """
    path = options.out / shards.ASKED
    wanted = {
        "format": FORMAT,
        "kind": made.kind,
        "size": options.size,
        "crop": crop.NAME,
        "shape": list(made.shape),
        "dtype": np.dtype(made.dtype).name,
        "copies": 1 + options.flip,
        "split": options.asked.split,
        "images": source.count,
        "classes": len(source.class_names),
        "listing": source.listing,
        "autoencoder": made.facts,
    }
    if path.exists():
        return _agreed(path, wanted, options)
    if options.out.exists() and not _is_free(options.out):
        raise UserError(f"--out={options.out} holds something else: name a new folder")
    share = -(-source.count // options.num_processes)
    wanted["shard_size"] = options.shard_size or min(SHARD, share)
    try:
        (options.out / shards.SHARDS).mkdir(parents=True, exist_ok=True)
        _write_json(path, wanted, options.process_id)
    except OSError as error:
        raise UserError(f"cannot write in --out={options.out}: {error.strerror}") from error
    return _agreed(path, wanted, options)


def _is_free(out: Path) -> bool:
    """Whether a folder holds nothing but what another process may be beginning just now."""
    ours = lambda path: path.name == shards.SHARDS or path.name.startswith(".")
    return out.is_dir() and ((out / shards.ASKED).exists() or all(map(ours, out.iterdir())))


def _agreed(path: Path, wanted: dict, options: Options) -> dict:
    """What the folder was begun with, where it is what is wanted now."""
    try:
        stored = json_file(path)
        size = stored["shard_size"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({error}): name a new folder as --out") from error
    ignored = ("shard_size", *(f"autoencoder.{name}" for name in TOLD))
    found = differences(json.loads(json.dumps(wanted)), stored, missing=None)
    found = [leaf for leaf in found if leaf[0] not in ignored]
    if options.shard_size not in (None, size):
        found.append(("shard_size", options.shard_size, size))
    if found:
        name, new, old = found[0]
        if name == "listing":
            old, new = "of other images or labels", "what --images holds now"
        if name == "copies":
            old, new = old == 2, new == 2
        raise UserError(
            f"{path.parent} was begun with another {FLAGS.get(name, name)} ({old}, not {new}), as "
            f"{path.name} says: name a new folder as "
            "--out, or give the flags and images that it was begun with"
        )
    return stored


def open_parts(out: Path, settings: dict, made: Encoder) -> list[Shard]:
    """All shards of a folder, in their order."""
    count, size = settings["images"], settings["shard_size"]
    return [
        Shard(out / shards.SHARDS, number, first, min(first + size, count), made.inner, made.dtype)
        for number, first in enumerate(range(0, count, size))
    ]


def check_unchanged(parts: list[Shard], source: Source) -> None:
    """Raises UserError where images were changed since they were prepared."""
    for part in parts:
        for line in part.lines:
            if source.mark(range(line["first"], line["last"])) != line["mark"]:
                raise UserError(
                    f"images changed on the disk since they were prepared, among them "
                    f"{source.name(line['first'])} to {source.name(line['last'] - 1)}: put back "
                    "the old ones, or name a new folder as --out"
                )


# ---- The work


def fill(options: Options, source: Source, made: Encoder, parts: list[Shard]) -> None:
    """Prepares what is missing of these shards."""
    total = sum(part.last - part.first for part in parts)
    done = sum(part.next - part.first for part in parts)
    if done and done < total:
        tell(f"{done:,} of {total:,} images are there already")
    several = options.num_processes > 1
    what = f"process {options.process_id}/{options.num_processes}  image" if several else "image"
    on_batch = preemption.told(logbook.Progress(what, total, done, unit="images"))
    pool = ThreadPoolExecutor(min(16, os.cpu_count() or 1))
    try:
        for part in parts:
            if part.done:
                continue
            part.open()
            for line, values in _encoded(options, source, made, part, pool):
                part.append(values, line)
                done += line["last"] - line["first"]
                for told in source.notes.news():
                    tell(told)
                on_batch(done)
            part.close()
    finally:
        for part in parts:
            part.let_go()
        pool.shutdown(cancel_futures=True)


def _encoded(
    options: Options, source: Source, made: Encoder, part: Shard, pool: ThreadPoolExecutor
) -> Iterator[tuple[dict, np.ndarray]]:
    """Batches of what is missing of a shard; the device has the next one while one is written."""
    waiting = None
    for rows, read in _read_ahead(source, part.next, part.last, made.batch, pool):
        whole = [levels for levels in read if not isinstance(levels, UserError)]
        bad = [
            (row, error)
            for row, error in zip(rows, read, strict=True)
            if isinstance(error, UserError)
        ]
        if bad and options.damaged == "stop":
            if waiting is not None:
                yield _stored(*waiting, made, source)
            raise UserError(
                f"{bad[0][1]}. Replace it and run the same command again, which goes on; or leave "
                "such images out with --damaged=leave_out"
            ) from bad[0][1]
        line = {"first": rows[0], "last": rows[-1] + 1, "mark": source.mark(rows)}
        line["left_out"] = [[row, str(error)] for row, error in bad]
        made_of = None
        if whole:  # filled up, so that one program serves all batches
            filled = whole + [whole[-1]] * (made.batch - len(whole))
            made_of = made.encode(np.stack(filled))
        if waiting is not None:
            yield _stored(*waiting, made, source)
        waiting = line, len(whole), made_of
    if waiting is not None:
        yield _stored(*waiting, made, source)


def _stored(line: dict, count: int, made_of: Any, made: Encoder, source: Source):
    """The line of a batch and its arrays, computed."""
    if made_of is None:
        return line, np.empty((0, *made.inner), made.dtype)
    values = np.asarray(made_of)[:count]
    left = {row for row, _ in line["left_out"]}
    rows = [row for row in range(line["first"], line["last"]) if row not in left]
    encoder.check_finite(values, lambda i: source.name(rows[i]))
    return line | (encoder.sums(values) if made.kind == shards.LATENTS else {}), values


def _read_ahead(
    source: Source, first: int, last: int, size: int, pool: ThreadPoolExecutor
) -> Iterator[tuple[range, list]]:
    """(rows, images) of each batch; a UserError stands in the place of a damaged image."""

    def read(row: int):
        try:
            return source.read(row)
        except UserError as error:
            return error

    ahead = deque()
    for start in range(first, last, size):
        rows = range(start, min(start + size, last))
        ahead.append((rows, [pool.submit(read, row) for row in rows]))
        if len(ahead) > AHEAD:
            rows, images = ahead.popleft()
            yield rows, [image.result() for image in images]
    for rows, images in ahead:
        yield rows, [image.result() for image in images]


# ---- The end


def finish(
    options: Options, settings: dict, source: Source, parts: list[Shard], made: Encoder
) -> None:
    """Writes labels and manifest of a folder whose shards are whole.

    Raises:
      UserError: no image is left.
    """
    for part in parts:
        if part.sound() < len(part.lines):
            part.whole.unlink()
            raise UserError(
                f"{part.whole} is damaged, its numbers are not those that were written, and is "
                "deleted: run the same command again, which prepares it anew"
            )
    journals = [read_journal(part.journal, part.first, part.last) for part in parts]
    lines = [line for journal in journals for line in journal]
    left = [item for line in lines for item in line["left_out"]]
    kept = np.delete(np.arange(source.count), [row for row, _ in left])
    if not len(kept):
        raise UserError(f"no image of {len(left):,} could be read; the first: {left[0][1]}")
    manifest = settings | {
        "count": len(kept),
        "class_names": list(source.class_names),
        "shards": [
            {"file": p.whole.name, "count": p.count, "hash": identity.file_hash(p.whole)}
            for p in parts
            if p.count
        ],
        "left_out": [{"image": source.name(row), "why": why} for row, why in left],
        "versions": logbook.versions(),
    }
    if made.kind == shards.LATENTS:
        per_example = manifest["copies"] * int(np.prod(made.shape[:-1]))
        manifest["statistics"] = encoder.statistics([n for n in lines if n["count"]], per_example)
    if source.labels is not None:
        labels = options.out / shards.LABELS
        unfinished = _unfinished(labels, options.process_id)
        with unfinished.open("wb") as file:
            np.save(file, np.asarray(source.labels, np.int32)[kept])
        _put(unfinished, labels)
    _write_json(options.out / shards.FINISHED, manifest, options.process_id)
    _write_sums(options)
    lock.sweep(options.out / shards.SHARDS)


def _write_sums(options: Options) -> None:
    found = sums.of(options.out, [options.out / name for name in WRITTEN])
    _write_json(options.out / sums.FILE, found, options.process_id)


def _unfinished(path: Path, process_id: int) -> Path:
    """Where a process writes a file before it is whole: the same place at its next start."""
    return path.with_name(f".{path.name}.{process_id}")


def _put(unfinished: Path, path: Path) -> None:
    """Gives a whole file its name; one that is started twice at once may have done it."""
    with contextlib.suppress(FileNotFoundError):
        unfinished.replace(path)


def _write_json(path: Path, value: dict, process_id: int = 0) -> None:
    """Whole or not at all, also when several processes write it."""
    unfinished = _unfinished(path, process_id)
    unfinished.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")
    _put(unfinished, path)
