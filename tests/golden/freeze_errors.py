"""The sections of freeze.py about mistakes: the line that the program says, and its exit code.

On eight devices; no mode of the program is entered, but for workdirs that do not fit.
"""

import contextlib
import io
import json
import os
import re
import shutil
import tarfile
import time
from pathlib import Path

import freeze_mistakes as mistakes
import numpy as np
from freeze import ROOT, Entered, block_modes, of
from freeze_parts import load, write_data

IMAGES = """
from ml_collections import ConfigDict, config_dict
from genfield.configuration import base

def get_config():
    config = base()
    config.data = ConfigDict({"name": "images", "path": config_dict.placeholder(str)})
    config.net = ConfigDict({"name": "mlp", "width": 8, "depth": 1, "time_input": True})
    config.batch_size = config.sample.batch_size = 8
    config.train.steps, config.train.eval_batches, config.checkpoint.every = 2, 1, 1
    config.sampler.num_steps, config.evaluate.figures = 2, False
    return config
"""
GOOD = "distance_marching_two_moons.py"
ADDRESS = re.compile(r"0x[0-9a-f]+")
ELSEWHERE = re.compile(r"/tmp/[\w./-]+")


def path_of(name: str) -> str:
    """A config's path, with its variant."""
    return str(ROOT / "configs" / name)


def split(overrides: str) -> list[str]:
    """Flags of overrides with spaces between; values may hold spaces, and no `name=` behind one."""
    parts = re.split(r" (?=[\w.]+=|--)", overrides) if overrides else []
    return [part if part.startswith("--") else f"--config.{part}" for part in parts]


def said(argv: list[str], folder: Path) -> str:
    """What the program says on stderr, with the exit code, or that it would run."""
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = of("run_program")(["genfield", *argv])
    except Entered:
        return "would run"
    except Exception as error:
        return cleaned(f"raises {type(error).__name__}: {str(error).splitlines()[:1]}", folder)
    return cleaned(f"{code}: {err.getvalue().strip()}", folder)


def cleaned(text: str, folder: Path) -> str:
    """Without the paths of this run."""
    text = text.replace(str(folder), "<folder>").replace(str(ROOT), "<root>")
    text = ELSEWHERE.sub("<elsewhere>", ADDRESS.sub("<address>", text))
    return text.replace("genfield: error: ", "")


@contextlib.contextmanager
def at_root():
    """Within the repository, where relative paths of configs lead."""
    before = Path.cwd()
    os.chdir(ROOT)
    try:
        yield
    finally:
        os.chdir(before)


def told(seconds: float, label: str) -> None:
    """Says what took long."""
    if seconds > 5:
        print(f"    {label}: {seconds:.0f} s", flush=True)


def ranges(folder: Path, wanted) -> dict:
    """A mistake in each argument of each function that a config names, by config."""
    block_modes()
    out = {}
    images(folder / "images")
    table = json.loads((Path(__file__).parent / "freeze_ranges.json").read_text())
    for config, overrides in ((config, one) for config, row in table.items() for one in row):
        if not wanted(config):
            continue
        start = time.monotonic()
        argv = [f"--config={path_of(config)}", f"--workdir={folder / 'run'}"]
        if config.startswith("lines_") and overrides.startswith("loss"):
            argv += with_pairs(config, folder / "pairs")
        argv += split(overrides.replace("@images", str(folder / "images")))
        out.setdefault(config, {})[overrides] = said(argv, folder)
        told(time.monotonic() - start, f"{config} {overrides}")
    return out


def with_pairs(config: str, folder: Path) -> list[str]:
    """Flags of a config of lines that give it data, so that its losses are built."""
    made = load(config)
    write_data(made, folder)
    flags = ["--config.batch_size=8", f"--config.data.path={made.data.path}"]
    real = made.data.real.get("path")
    return flags + ([f"--config.data.real.path={real}"] if real else [])


# ---- What the tests of bad input have ------------------------------------------------------------


def errors(folder: Path, wanted) -> dict:
    """Mistakes in configs, command lines, files, data and workdirs."""
    workdir = folder / "trained"
    code = of("run_program")(["genfield", *short(GOOD, workdir)])
    out = {"trained": code} | refused(folder, workdir) | of_lines(folder)
    block_modes()
    for part in (of_configs, of_files, of_data):
        out |= part(folder)
    return {name: entry for name, entry in out.items() if wanted(name)}


def short(config: str, workdir: Path) -> list[str]:
    """A command line of a run of two steps."""
    flags = [f"--config.{name}={value}" for name, value in mistakes.SHORT.items()]
    return [f"--config={path_of(config)}", f"--workdir={workdir}", *flags]


def refused(folder: Path, trained: Path) -> dict:
    """Commands on a workdir that they do not fit, and a damaged config.json in it."""
    out = {}
    for extra in mistakes.REFUSED:
        workdir = Path(shutil.copytree(trained, folder / "run"))
        out[f"refused {extra}"] = said([*short(GOOD, workdir), *split(extra)], folder)
        shutil.rmtree(workdir)
    for text in mistakes.DAMAGED:
        workdir = Path(shutil.copytree(trained, folder / "run"))
        (workdir / "config.json").write_text(text)
        out[f"damaged {text}"] = said([f"--workdir={workdir}", "--mode=sample"], folder)
        shutil.rmtree(workdir)
    return out


def of_configs(folder: Path) -> dict:
    """Wrong overrides."""
    out = {}
    for config, overrides in mistakes.MISTAKES:
        argv = [*short(config, folder / "run"), *split(overrides)]
        out[f"config {config} {overrides}"] = said(argv, folder)
    return out


def of_this_tree(text: str) -> str:
    """A config file that imports base() from where it is."""
    return text.replace(
        "from genfield.configuration import", f"from {of('base').__module__} import"
    )


def of_lines(folder: Path) -> dict:
    """Wrong command lines."""
    with at_root():
        fill = dict(config=path_of(GOOD), new=folder / "run")
        return {
            f"line {line}": said(line.format(**fill).split(), folder) for line in mistakes.LINES
        }


def of_files(folder: Path) -> dict:
    """Wrong config files."""
    out, file = {}, folder / "mine.py"
    for number, text in enumerate(mistakes.FILES):
        file.write_text(of_this_tree(text))
        argv = [f"--config={file}", f"--workdir={folder / 'run'}"]
        out[f"file {number} {text.splitlines()[-1].strip()}"] = said(argv, folder)
    return out


def of_data(folder: Path) -> dict:
    """Wrong image data."""
    file, out = folder / "images.py", {}
    file.write_text(of_this_tree(IMAGES))
    for number, (kind, override) in enumerate(mistakes.DATA):
        place = folder / f"data{number}"
        path = KINDS[kind](place)
        argv = [f"--config={file}", f"--workdir={folder / 'run'}"]
        argv += [f"--config.data.path={path}"] if path else []
        text = said(argv + split(override), folder)
        out[f"data {kind} {override}".strip()] = text.replace(place.name, "data")
    return out


# ---- Data that are wrong, or right ---------------------------------------------------------------


def images(folder: Path) -> Path:
    """Two classes of noise, in train/ and test/."""
    from PIL import Image

    for number in range(40):
        split_name, label = ("train", "test")[number // 20], "ab"[number % 2]
        file = folder / split_name / label / f"{number:02}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(pixels).save(file)
    return folder


def broken(folder: Path) -> Path:
    (images(folder) / "train/a/02.png").write_bytes(b"no image")
    return folder


def broken_in_tar(folder: Path) -> Path:
    broken(folder / "files")
    with tarfile.open(folder / "images.tar", "w") as tar:
        tar.add(folder / "files", ".")
    return folder / "images.tar"


def cut_tar(folder: Path) -> Path:
    path = broken_in_tar(folder)
    path.write_bytes(path.read_bytes()[:5000])
    return path


def text_file(folder: Path) -> Path:
    folder.mkdir()
    (folder / "images.tar.gz").write_text("no archive")
    return folder / "images.tar.gz"


def two_sizes(folder: Path) -> Path:
    from PIL import Image

    Image.new("RGB", (9, 8)).save(images(folder) / "train/a/02.png")
    return folder


def without_classes(folder: Path) -> Path:
    from PIL import Image

    (folder / "train").mkdir(parents=True)
    for number in range(20):
        Image.new("L", (8, 8), number).save(folder / "train" / f"{number:02}.png")
    return folder


def saved(name: str, dtype):
    """A function that writes an .npz with one array."""

    def write(folder: Path) -> Path:
        folder.mkdir()
        np.savez(folder / "images.npz", **{name: np.zeros((20, 8, 8, 3), dtype)})
        return folder / "images.npz"

    return write


KINDS = {
    "unset": lambda folder: None,
    "absent": lambda folder: folder / "absent",
    "broken_image": broken,
    "broken_image_in_tar": broken_in_tar,
    "cut_tar": cut_tar,
    "text_file": text_file,
    "two_sizes": two_sizes,
    "make_images": images,
    "without_classes": without_classes,
    "floats": saved("images", np.float32),
    "other_names": saved("pictures", np.uint8),
    "bytes_without_labels": saved("images", np.uint8),
}
