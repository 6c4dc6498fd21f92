"""Wrong command lines, configs, data and workdirs: one line that names the mend, exit code 2.

Wrong configs end before anything is compiled or written; wrong workdirs stay as they were.
"""

import hashlib
import json
import os
import shutil
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from meshes import devices
from PIL import Image
from programs import DIGITS, MOONS, ROOT, SMALL, arguments, run

from genfield.main import main
from genfield.program import modes

EQM = ROOT / "configs" / "equilibrium_matching_two_moons.py"
FLOW = ROOT / "configs" / "flow_matching_two_moons.py"
IMAGENET = ROOT / "configs" / "flow_matching_imagenet256.py"
EDM, LINES = (ROOT / "configs" / f"{name}_cifar10.py" for name in ("edm", "lines"))
SHORT = SMALL | {"train.steps": 2, "checkpoint.every": 1}

# Two steps on small images, the data left to the test.
IMAGES = """
from ml_collections import ConfigDict, config_dict
from genfield import configuration

def get_config():
    config = configuration.base()
    config.data = ConfigDict({"name": "images", "path": config_dict.placeholder(str)})
    config.net = ConfigDict({"name": "mlp", "width": 8, "depth": 1, "time_input": True})
    config.batch_size = config.sample.batch_size = 8
    config.train.steps, config.train.eval_batches, config.checkpoint.every = 2, 1, 1
    config.sampler.num_steps, config.evaluate.figures = 2, False
    return config
"""


@pytest.fixture
def error(capsys):
    """error(argv) -> the one line that the program says, having checked that it is one."""

    def says(argv) -> str:
        capsys.readouterr()
        code = main([str(a) for a in argv])
        out, err = capsys.readouterr()
        lines = err.splitlines()
        assert code == 2, (code, out, err)
        assert len(lines) == 1 and lines[0].startswith("genfield: error: "), err
        assert "Traceback" not in out + err
        return lines[0].removeprefix("genfield: error: ")

    return says


@pytest.fixture
def nothing_runs(monkeypatch):
    """Fails the test where a mode is entered: there and nowhere else things are compiled."""

    def refuse(*args, **kwargs):
        pytest.fail("the mistake was not found before the run")

    for mode in ("train", "evaluate", "sample"):
        monkeypatch.setattr(modes, mode, refuse)


def contents(folder: Path) -> dict[str, str]:
    """A hash of every file below a folder."""
    files = (p for p in sorted(folder.rglob("*")) if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


# Overrides of a config, and what the message must hold: what is wrong, and what is known or mends.
MISTAKES = [
    # Names.
    (MOONS, "trian.steps=3", "'trian'", "did you mean 'train'", "optimizer"),
    (MOONS, "batchsize=8", "'batchsize'", "did you mean 'batch_size'"),
    (MOONS, "train.stepz=3", "'stepz'", "did you mean 'steps'", "log_every"),
    (MOONS, "loss.epsilom=0.1", "'epsilom'", "did you mean 'epsilon'", "eikonal_weight"),
    (MOONS, "net.widht=8", "'widht'", "did you mean 'width'", "activation"),
    (MOONS, "sampler.stepsize=0.1", "'stepsize'", "did you mean 'step_size'"),
    (MOONS, "sampler.then.steps=4", "'steps'", "hamiltonian", "num_leapfrog"),
    (MOONS, "data.sorce=rings", "'sorce'", "did you mean 'source'"),
    (MOONS, "data.source=eigth", "'eigth'", "eight_gaussians"),
    (MOONS, "data.name=tow_moons", "'tow_moons'", "did you mean 'two_moons'", "images"),
    (MOONS, "net.name=mpl", "'mpl'", "did you mean 'mlp'", "unet"),
    (MOONS, "net.activation=sulu", "'sulu'", "did you mean 'silu'"),
    (MOONS, "net.dtype=float33", "'float33'", "bfloat16"),
    (MOONS, "loss.name=distance_marchin", "did you mean 'distance_marching'", "flow_matching"),
    (MOONS, "sampler.name=eulr", "'eulr'", "did you mean 'euler'", "nesterov", "dopri5"),
    (MOONS, "sampler.then.name=eulr", "'eulr'", "did you mean 'euler'"),
    (
        MOONS,
        "sampler.name=predictor_corrector",
        "'step_size'",
        "set the section anew: --config.sampler=",
    ),
    (MOONS, "coupling.name=optimal", "'optimal'", "exact_assignment"),
    (MOONS, "rematching.name=nearst", "'nearst'", "did you mean 'nearest'"),
    (MOONS, "path=liner", "'liner'", "did you mean 'linear'"),
    (MOONS, "time.name=unifrom", "'unifrom'", "did you mean 'uniform'", "skewed"),
    (MOONS, "optimizer.name=adma", "'adma'", "adamw"),
    (MOONS, "optimizer.schedule=cosin", "'cosin'", "did you mean 'cosine'"),
    (MOONS, "evaluate.metrics=('fjd',)", "'fjd'", "point_cloud"),
    (MOONS, "checkpoint.best_metric=los", "'los'", "did you mean 'loss'", "eikonal"),
    (MOONS, "sample.guidance_on=distance", "'distance'", "displacement"),
    (EQM, "loss.decay.name=linaer", "'linaer'", "did you mean 'linear'", "truncated"),
    (FLOW, "loss.weight.name=square", "'square'", "inverse_square"),
    (f"{FLOW}:oot", "seed=1", "'oot'", "did you mean 'ot'", "independent"),
    (f"{IMAGENET}:Z/2", "seed=1", "'Z/2'", "XL/2"),
    (f"{MOONS}:ot", "seed=1", "takes no argument after a colon"),
    (f"{LINES}:sott", "seed=1", "'sott'", "did you mean 'sot'", "perceptual"),
    (f"{LINES}:l2,perceptual", "seed=1", "'l2,perceptual'", "names two of"),
    (EDM, "loss.stable_target=True", "mix images", "config.augmentation=0"),
    # Types.
    (MOONS, "train.steps=abc", "train.steps=abc", "whole number"),
    (MOONS, "train.steps=2.5", "train.steps=2.5", "whole number"),
    (MOONS, "batch_size=many", "batch_size=many", "whole number"),
    (MOONS, "loss.epsilon=tiny", "loss.epsilon=tiny", "a number"),
    (MOONS, "evaluate.figures=perhaps", "figures=perhaps", "True or False"),
    (MOONS, "time.low=abc", "time.low='abc'", "a number"),
    (MOONS, "rematching.group_size=all", "group_size='all'", "whole number or None"),
    (MOONS, "loss=flow_matching", "loss=flow_matching is a section", "set its fields"),
    (FLOW, "loss.weight=inverse_square", "config.loss.weight is a section", "loss.weight.name"),
    # Ranges.
    (MOONS, "train.steps=-3", "train.steps", "positive", "-3"),
    (MOONS, "optimizer.learning_rate=0.0", "learning_rate", "positive"),
    (MOONS, "optimizer.learning_rate=nan", "learning_rate", "finite"),
    (MOONS, "optimizer.b1=1.5", "optimizer.b1", "[0, 1)"),
    (MOONS, "optimizer.clip_norm=-1.0", "clip_norm", "not be negative"),
    (MOONS, "optimizer.warmup_steps=2", "warmup_steps 2", "below 2"),
    (MOONS, "optimizer.weight_decay=0.1", "weight_decay", "name='adamw'"),
    (MOONS, "label_dropout=1.5", "label_dropout", "[0, 1)"),
    (MOONS, "ema.rate=1.0", "ema.rate", "[0, 1)"),
    (MOONS, "ema.rate=0.9 ema.half_life=500.0", "rate or half_life, not both"),
    (MOONS, "seed=-1", "seed", "not be negative"),
    (MOONS, "seed=99999999999999999999", "seed", "at most"),
    (MOONS, "time.low=0.9 time.high=0.2", "config.time", "low < high"),
    (MOONS, "checkpoint.keep_best=-1", "keep_best", "not be negative"),
    (MOONS, "sampler.num_steps=0", "num_steps", "positive"),
    (MOONS, "sampler.then.step_size=-0.1", "sampler.then.step_size", "positive"),
    (FLOW, "path_noise=-0.5", "config.path_noise", "not be negative"),
    (f"{FLOW}:sb", "coupling.regularization=0.0", "coupling.regularization", "positive"),
    (MOONS, "net.depth=0", "depth", ">= 1"),
    (EQM, "loss.decay.a=1.0", "config.loss.decay", "a < 1"),
    (
        FLOW,
        "loss.weight.name=inverse_square loss.weight.cutoff=0.0",
        "config.loss.weight",
        "cutoff",
    ),
    # Batches and meshes; there are eight devices.
    (MOONS, "batch_size=12", "batch_size 12", "8 devices", "multiple of 8"),
    (MOONS, "optimizer.accumulate=3", "batch_size 16", "not a multiple", "accumulate 3"),
    (MOONS, "optimizer.accumulate=4", "8 devices x 4 microbatches", "multiple of 32"),
    (MOONS, "rematching.group_size=5", "batch_size 16", "rematching.group_size 5"),
    (MOONS, "mesh.data=3", "data=3, fsdp=1", "8 devices", "-1"),
    (MOONS, "mesh.fsdp=-1", "at most one may be -1"),
    # Parts that do not fit each other.
    (MOONS, "net.output=vector", "distance_marching needs a distance", "net.output='scalar'"),
    (FLOW, "net.output=scalar", "flow_matching needs", "net.output='vector'"),
    (EQM, "net.output=vector sampler.name=sphere_tracing", "needs a network with", "'scalar'"),
    (
        FLOW,
        "sampler.name=gradient_descent sampler.step_size=0.1",
        "has no clock",
        "one of dopri5, euler",
    ),
    (
        EQM,
        "net.time_input=True loss.time_input=True sampler.step_size=0.1",
        "has no clock",
        "one of dopri5, euler",
    ),
    (FLOW, "sampler.num_steps=None", "num_steps"),
    (FLOW, "sampler={'name':'euler'}", "needs num_steps >= 1"),
    (EQM, "sampler.name=nesterov", "needs the field 'momentum'"),
    (MOONS, "coupling.name=exact_assignment coupling.backend=tpu", "'tpu'", "'device'"),
    (MOONS, "sample.guidance_scale=2.0", "guidance_scale needs labels", "data.labels=True"),
    (MOONS, "evaluate.resize=nonsense", "'nonsense'", "antialiased"),
    (MOONS, "coupling.name=greedy coupling.block=0", "coupling.block must be positive"),
    (MOONS, "time.name=skewed time.low=-1.0", "time.low must be in [0, 1)"),
]


@pytest.mark.parametrize(
    "config, overrides, words", [(c, o, w) for c, o, *w in MISTAKES], ids=[m[1] for m in MISTAKES]
)
def test_a_wrong_config(config, overrides, words, error, nothing_runs, tmp_path):
    argv = arguments(tmp_path / "run", config, small=SHORT)
    with devices(8):
        message = error(argv + [f"--config.{override}" for override in overrides.split()])
    assert all(word in message for word in words), message
    assert not (tmp_path / "run").exists()


# Command lines; {new} is a workdir that is not there, {config} a good config.
LINES = [
    ("", "--workdir is missing", "--help"),
    ("--config={config}", "--workdir is missing"),
    ("--config={config} --workdir=", "--workdir is missing"),
    ("--config={config} --workdir", "--workdir"),
    ("--workdir={new}", "--config is missing", "--config=NAME", "genfield configs"),
    ("--workdir={new} --config.train.steps=3", "--config is missing"),
    (
        "--config=configs/two_moon.py --workdir={new}",
        "'configs/two_moon.py'",
        "distance_marching_two_moons",
    ),
    ("--config=configs --workdir={new}", "distance_marching_two_moons.py"),
    ("--config={config} --workdir={new} --stepz=3", "'stepz'", "did you mean 'step'"),
    ("--confg={config} --workdir={new}", "'confg'", "did you mean 'config'"),
    ("--config={config} --workdir={new} evaluate", "'evaluate'", "--name=value"),
    ("--config={config} --workdir={new} --mode=trian", "'trian'", "train, evaluate, sample"),
    ("--config={config} --workdir={new} --mode=sample --step=last", "--step=last", "whole number"),
    ("--config={config} --workdir={new} --step=3", "--step", "--mode=evaluate"),
    ("--config={config} --workdir={new} --mode=evaluate", "no checkpoints to evaluate", "train"),
    ("--config={config} --workdir={new} --mode=sample", "no checkpoints to sample", "train"),
    ("--config={config} --workdir={config}", "is a file, not a folder"),
    ("--config={config} --workdir={config}/x", "cannot write", "choose another folder"),
    ("--config={config} --workdir=/proc/genfield", "/proc/genfield", "choose another folder"),
    ("--config={config} --workdir={new} --coordinator=a:1", "--process_id", "go together"),
    (
        "--config={config} --workdir={new} --coordinator=a:1 --process_id=2 --num_processes=2",
        *("--process_id 2", "--num_processes"),
    ),
]


@pytest.mark.parametrize(
    "line, words", [(line, words) for line, *words in LINES], ids=[row[0] for row in LINES]
)
def test_a_wrong_command_line(line, words, error, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    message = error(["genfield", *line.format(config=MOONS, new=tmp_path / "run").split()])
    assert all(word in message for word in words), message
    assert not (tmp_path / "run").exists()


def test_help_lists_the_flags(capsys):
    assert main(["genfield", "--help"]) == 0
    out, err = capsys.readouterr()
    assert all(flag in out for flag in ("--config:", "--workdir:", "--mode:", "best:", "143"))
    assert not err


def test_a_workdir_that_cannot_be_written(error, nothing_runs, tmp_path, monkeypatch):
    tmp_path.chmod(0o500)
    if os.access(tmp_path, os.W_OK):  # root may write anywhere: it is told what others are
        allowed = os.access
        refused = lambda path, mode: Path(path) != tmp_path and allowed(path, mode)
        monkeypatch.setattr(os, "access", refused)
    assert "cannot write" in error(arguments(tmp_path / "run"))


FILES = {
    "def get_config(:\n    pass\n": ("line 1", "SyntaxError"),
    "def get_config():\n    raise RuntimeError('no\\nway')\n": ("line 2", "RuntimeError: no"),
    "import no_such_module\n": ("line 1", "no_such_module"),
    "config = 3\n": ("no function get_config()",),
    "def get_config(size):\n    return size\n": ("needs an argument after a colon", "size"),
    "def get_config():\n    return {'seed': 0}\n": ("returns dict", "configuration.base()"),
    "def get_config():\n    pass\n": ("returns NoneType", "configuration.base()"),
    "from ml_collections import ConfigDict\n"
    "def get_config():\n    return ConfigDict({'seed': 0})\n": ("lacks the section", "base()"),
    "from genfield.configuration import base\n"
    "def get_config():\n    c = base()\n    c.train.steps = 'many'\n    return c\n": ("line 4",),
    "from genfield.configuration import base\n"
    "def get_config():\n    c = base()\n    c.train.steps = None\n    return c\n": (
        *("train.steps=None", "whole number"),
    ),
    "from genfield.configuration import base\n"
    "def get_config():\n    c = base()\n    c.loss.weight = print\n    return c\n": (
        "loss.weight",
    ),
}


@pytest.mark.parametrize("text, words", FILES.items(), ids=range(len(FILES)))
def test_a_wrong_config_file(text, words, error, nothing_runs, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(text)
    message = error(["genfield", f"--config={file}", f"--workdir={tmp_path / 'run'}"])
    assert all(word in message for word in words), message
    assert not (tmp_path / "run").exists()


def make_images(folder: Path, per_class: int = 10, size: int = 8) -> Path:
    """Two classes of noise in train/ and test/."""
    for number in range(4 * per_class):
        split, label = ("train", "test")[number // (2 * per_class)], "ab"[number % 2]
        file = folder / split / label / f"{number:02}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (size, size, 3), np.uint8)
        Image.fromarray(pixels).save(file)
    return folder


def unset(folder):
    return None


def absent(folder):
    return folder / "absent"


def broken_image(folder):
    (make_images(folder) / "train/a/02.png").write_bytes(b"no image")
    return folder


def broken_image_in_tar(folder):
    broken_image(folder / "files")
    with tarfile.open(folder / "images.tar", "w") as tar:
        tar.add(folder / "files", ".")
    return folder / "images.tar"


def cut_tar(folder):
    path = broken_image_in_tar(folder)
    path.write_bytes(path.read_bytes()[:5000])
    return path


def text_file(folder):
    folder.mkdir()
    (folder / "images.tar.gz").write_text("no archive")
    return folder / "images.tar.gz"


def two_sizes(folder):
    Image.new("RGB", (9, 8)).save(make_images(folder) / "train/a/02.png")
    return folder


def without_classes(folder):
    for number in range(20):
        file = folder / "train" / f"{number:02}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), number).save(file)
    return folder


def npz(**arrays):
    def write(folder):
        folder.mkdir()
        np.savez(folder / "images.npz", **arrays)
        return folder / "images.npz"

    return write


FLOATS, BYTES = np.full((20, 8, 8, 3), -1, np.float32), np.zeros((20, 8, 8, 3), np.uint8)
DATA = [
    (unset, "", "data.path is None", "--config.data.path="),
    (absent, "", "absent", "does not exist"),
    (broken_image, "", "train/a/02.png", "not an image"),
    (broken_image_in_tar, "", "train/a/02.png", "images.tar", "not an image"),
    (cut_tar, "", "images.tar is damaged"),
    (text_file, "", "images.tar.gz is damaged", "tar or zip archive"),
    (two_sizes, "", "train/a/02.png", "8x9", "set data.size"),
    (make_images, "data.split=validation", "'validation'", "validation/<class>"),
    (make_images, "batch_size=64", "batch_size 64 exceeds the 20 training examples"),
    (make_images, "data.size=0", "data.size=0", "positive"),
    (make_images, "data.channels=2", "channels=2", "1 (grayscale), 3 (RGB) or 4"),
    (make_images, "data.flip=3", "data.flip=3", "True or False"),
    (make_images, "evaluate.metrics=('point_cloud',)", "needs a point problem", "images"),
    (without_classes, "data.labels=True", "no class folder", "data.labels=False"),
    (npz(images=FLOATS), "", "float32", "expected uint8"),
    (npz(pictures=BYTES), "", "pictures", "expected train_images"),
    (npz(images=BYTES), "data.labels=True", "no labels", "data.labels=False"),
]


@pytest.fixture
def images_config(tmp_path) -> Path:
    file = tmp_path / "images.py"
    file.write_text(IMAGES)
    return file


@pytest.mark.parametrize(
    "make, override, words",
    [(m, o, w) for m, o, *w in DATA],
    ids=[f"{m.__name__}-{o}" for m, o, *_ in DATA],
)
def test_wrong_data(make, override, words, error, nothing_runs, images_config, tmp_path):
    path = make(tmp_path / "data")
    argv = ["genfield", f"--config={images_config}", f"--workdir={tmp_path / 'run'}"]
    argv += [f"--config.data.path={path}"] if path else []
    message = error(argv + ([f"--config.{override}"] if override else []))
    assert all(word in message for word in words), message
    assert not (tmp_path / "run").exists()


def test_scikit_learn_is_missing(error, nothing_runs, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    message = error(["genfield", f"--config={DIGITS}", f"--workdir={tmp_path / 'run'}"])
    assert "pip install 'genfield[digits]'" in message


def test_tensorflow_datasets_is_missing(error, nothing_runs, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    data = "--config.data={'name':'tfds','dataset':'cifar10'}"
    message = error(["genfield", f"--config={DIGITS}", f"--workdir={tmp_path / 'run'}", data])
    assert "pip install 'genfield[tfds]'" in message


def test_no_device(error, nothing_runs, tmp_path, monkeypatch):
    def devices():
        raise RuntimeError("Unable to initialize backend 'cuda'")

    monkeypatch.setattr("jax.devices", devices)
    message = error(arguments(tmp_path / "run", small=SHORT))
    assert "'cuda'" in message and "genfield doctor" in message


def test_a_network_beyond_all_memory(error, tmp_path):
    message = error([*arguments(tmp_path / "run", small=SHORT), "--config.net.width=100000000"])
    assert "ut of memory" in message and "config.batch_size" in message


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """The workdir of two steps, with a checkpoint of each; to be copied, not changed."""
    workdir = tmp_path_factory.mktemp("trained")
    assert run(workdir, small=SHORT) == 0
    return workdir


@pytest.fixture
def workdir(trained, tmp_path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def command(workdir, *extra: str) -> list[str]:
    """The command that `trained` ran, with more at its end."""
    return [*arguments(workdir, small=SHORT), *extra]


def damage(folder: Path) -> None:
    for file in folder.rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


# A command on a workdir that it does not fit: what is added to `command`, and the message's words.
REFUSED = [
    ("--config.seed=1", "holds a different run", "seed", "another --workdir"),
    ("--config.net.width=8", "holds a different run", "net.width"),
    ("--config.batch_size=24 --mode=sample", "holds a different run", "batch_size"),
    ("--config.data.name=rings", "holds a different run", "data.name"),
    ("--config.train.steps=1", "is at step 2, beyond config.train.steps 1", "at least 2"),
    ("--mode=sample --step=7", "no checkpoint of step 7", "[1, 2]"),
    ("--mode=evaluate --step=-1", "no checkpoint of step -1", "[1, 2]"),
]


@pytest.mark.parametrize(
    "extra, words", [(e, w) for e, *w in REFUSED], ids=[row[0] for row in REFUSED]
)
def test_a_workdir_that_does_not_fit_stays_as_it_was(extra, words, error, workdir):
    before = contents(workdir)
    message = error(command(workdir, *extra.split()))
    assert all(word in message for word in words), message
    assert contents(workdir) == before


@pytest.mark.parametrize("text", ["{", "[1]", "", '{"seed": 0}', '{"sed": 0}'])
def test_a_damaged_config_in_the_workdir(text, error, nothing_runs, workdir):
    (workdir / "config.json").write_text(text)
    before = contents(workdir)
    message = error(["genfield", f"--workdir={workdir}", "--mode=sample"])
    assert "config" in message and ("delete it" in message or "section" in message), message
    assert contents(workdir) == before


def test_a_step_with_a_damaged_checkpoint_stays_as_it_was(error, workdir):
    damage(workdir / "checkpoints" / "2" / "params")
    before = contents(workdir)
    message = error(command(workdir, "--mode=sample", "--step=2"))
    assert "is whole (checkpoints/2: " in message and "another --step" in message
    assert contents(workdir) == before


@pytest.mark.parametrize("mode", ["train", "sample"])
def test_all_checkpoints_damaged(mode, error, workdir):
    damage(workdir / "checkpoints")
    before = sorted(contents(workdir / "checkpoints").values())
    message = error(command(workdir, f"--mode={mode}"))
    words = "is whole (checkpoints/2: ", "; checkpoints/1: ", "step 0"
    assert all(word in message for word in words), message
    assert sorted(contents(workdir / "checkpoints").values()) == before


def test_damaged_held_out_figures_cost_only_themselves(workdir):
    damage(workdir / "checkpoints" / "2" / "metrics")
    assert main(command(workdir, "--mode=sample")) == 0
    assert (workdir / "samples" / "step_2.npz").exists()


def test_the_best_where_none_was_measured(error, workdir):
    shutil.rmtree(workdir / "checkpoints" / "2")  # of step 1 there is no held-out loss
    assert "no checkpoint" in error(command(workdir, "--mode=sample", "--best"))


def test_other_data_under_a_run(error, images_config, tmp_path):
    make_images(tmp_path / "data")
    argv = ["genfield", f"--config={images_config}", f"--workdir={tmp_path / 'run'}"]
    assert main([*argv, f"--config.data.path={tmp_path / 'data'}"]) == 0
    before = contents(tmp_path / "run")
    moved = (tmp_path / "data").rename(tmp_path / "moved")
    (moved / "train/a/00.png").unlink()
    for mode in ("train", "evaluate"):  # sampling reads no data
        message = error([*argv, f"--config.data.path={moved}", f"--mode={mode}"])
        assert "data differ" in message and "config.data.path" in message
    assert contents(tmp_path / "run") == before


def test_an_unreadable_image_met_in_training_costs_nothing(error, images_config, tmp_path):
    data = make_images(tmp_path / "data")
    argv = ["genfield", f"--config={images_config}", f"--workdir={tmp_path / 'run'}"]
    argv += [f"--config.data.path={data}", "--config.data.in_memory=False"]
    assert main(argv) == 0
    file = data / "train/b/05.png"
    whole = file.read_bytes()
    file.write_bytes(bytes(len(whole)))  # the same size: by its looks it is the same data
    message = error([*argv, "--config.train.steps=20"])
    assert "train/b/05.png" in message and "not an image" in message
    file.write_bytes(whole)
    assert main([*argv, "--config.train.steps=20"]) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["steps"] == 20
