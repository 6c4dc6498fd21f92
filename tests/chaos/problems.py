"""The program's modes on tiny problems: what is disturbed, and what it must come to all the same.

A home is a folder that is kept: it holds the compiled programs and the references: runs that
nothing disturbed, made once for the sources as they are.
"""

import functools
import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

TESTS = Path(__file__).resolve().parents[1]
ROOT = TESTS.parent
CONFIG = TESTS / "chaos" / "tiny.py"
RUN = "train"  # the mode whose reference others begin as


class Problem(NamedTuple):
    """A command on a tiny problem.

    Attributes:
      mode: what a table calls it.
      arguments: workdir -> the command line behind `genfield`.
      prepare: (workdir, home) -> makes the workdir as the command finds it at its first start.
      needs: the mode whose reference the workdir begins as, or None.
    """

    mode: str
    arguments: Callable[[Path], list[str]]
    prepare: Callable[[Path, Path], None]
    needs: str | None = None


@functools.cache
def sources() -> str:
    """A hash of all that a reference depends on: the package's code and the problems."""
    told = hashlib.sha256()
    for file in sorted([*(ROOT / "genfield").rglob("*.py"), CONFIG, Path(__file__)]):
        told.update(file.relative_to(ROOT).as_posix().encode() + file.read_bytes())
    return told.hexdigest()[:16]


def reference(mode: str, home: Path) -> Path:
    """Where a home keeps the undisturbed workdir of a problem."""
    return home / f"reference_{sources()}" / mode


def on_a_run(*command: str) -> Callable[[Path], list[str]]:
    """The arguments of a command on a run of digits."""
    return lambda workdir: [command[0], *command[1:], f"--workdir={workdir}"]


def nothing(workdir: Path, home: Path) -> None:
    """The command makes its workdir."""


def trained(workdir: Path, home: Path) -> None:
    """The workdir is a run that is trained."""
    shutil.copytree(reference(RUN, home), workdir)


IMAGES = "images.npz"


def images(workdir: Path, home: Path) -> None:
    """Images lie beside the folder that is made of them."""
    workdir.parent.mkdir(parents=True, exist_ok=True)
    file = workdir.parent / IMAGES
    if not file.exists():
        levels = np.random.default_rng(0).integers(0, 256, (90, 8, 8, 3), np.uint8)
        unfinished = file.with_name(f".{workdir.name}.npz")
        np.savez(unfinished, train_images=levels, train_labels=np.arange(90) % 7)
        os.utime(unfinished, (0, 0))  # of which a journal tells
        unfinished.replace(file)


def preparing(workdir: Path) -> list[str]:
    """Small pixels of these images, in three shards of ten batches."""
    sizes = ["--size=8", "--batch_size=3", "--shard_size=30"]
    places = [f"--images={workdir.parent / IMAGES}", f"--out={workdir}"]
    return ["prepare", "--pixels", *sizes, *places]


STUDY = ("study", "edit_vary", "--num=6", "--strength=0,0.5")
_PROBLEMS = (
    Problem("train", on_a_run("train", f"--config={CONFIG}"), nothing),
    Problem("sample", on_a_run("sample", "--config.sample.formats=('npz','png')"), trained, RUN),
    Problem("pairs", on_a_run("pairs"), trained, RUN),
    Problem("prepare", preparing, images),
    Problem("evaluate", on_a_run("evaluate", "--config.evaluate.figures=True"), trained, RUN),
    Problem("edit", on_a_run(*STUDY), trained, RUN),
)
PROBLEMS = {problem.mode: problem for problem in _PROBLEMS}
MODES = tuple(PROBLEMS)  # behind which more are added, here and in other files


# ---- Data in a file, by memory map, or in many; and a config page that may change


def data_of(workdir: Path) -> Path:
    """The data file of a problem that has one."""
    return workdir.with_name(f"{workdir.name}.npy")


def examples(seed: int = 0) -> np.ndarray:
    """Points [512, 6]."""
    return np.random.default_rng(seed).standard_normal((512, 6)).astype(np.float32)


def write_data(workdir: Path, home: Path | None = None) -> None:
    """The data file of a problem."""
    np.save(data_of(workdir), examples())


def pictures_of(workdir: Path) -> Path:
    """The images of a problem that reads them one by one."""
    return workdir.with_name(f"{workdir.name}_pictures")


def write_pictures(workdir: Path, home: Path | None = None) -> None:
    """Images of 8x8 pixels, a file each."""
    levels = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), np.uint8)
    pictures_of(workdir).mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(levels):
        Image.fromarray(image).save(pictures_of(workdir) / f"{number:02d}.png")


def page_of(workdir: Path) -> Path:
    """The config page of a problem."""
    return workdir.with_name(f"{workdir.name}.py")


def write_page(workdir: Path, home: Path | None = None) -> None:
    """The config page of a problem."""
    page_of(workdir).write_text(CONFIG.read_text())


def from_arrays(workdir: Path) -> list[str]:
    """What makes a run of digits one of the data file."""
    data = f"data.path={data_of(workdir)}"
    more = ("data.name=arrays", "data.labels=False", "label_dropout=0.0")
    return [f"--config.{one}" for one in (data, *more)]


def on_arrays(workdir: Path) -> list[str]:
    """Training on a file by memory map."""
    return on_a_run("train", f"--config={CONFIG}", *from_arrays(workdir))(workdir)


def on_pictures(workdir: Path) -> list[str]:
    """Training on images that are read when they are needed."""
    data = f"--config.data.path={pictures_of(workdir)}"
    more = ("data.name=images", "data.labels=False", "data.in_memory=False", "data.size=8")
    given = [data, *(f"--config.{one}" for one in (*more, "label_dropout=0.0"))]
    return on_a_run("train", f"--config={CONFIG}", *given)(workdir)


def on_a_page(workdir: Path) -> list[str]:
    """Training by a page of its own."""
    return on_a_run("train", f"--config={page_of(workdir)}")(workdir)


def images_of(problem: Problem, workdir: Path) -> Path:
    """The file or folder of images that a problem reads."""
    return workdir.parent / IMAGES if problem.mode == "prepare" else pictures_of(workdir)


PROBLEMS |= {
    "train_arrays": Problem("train_arrays", on_arrays, write_data),
    "train_pictures": Problem("train_pictures", on_pictures, write_pictures),
    "train_page": Problem("train_page", on_a_page, write_page),
}
