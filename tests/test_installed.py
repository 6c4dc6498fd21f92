"""What is published: the files of the wheel, the package's own words, and a clean installation."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from programs import ROOT

import genfield

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
HOME = PROJECT["urls"]["Homepage"]
SOURCES = ("genfield", "configs", "examples")
FILES = ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE")
FILES += ("CHANGELOG.md", "CITATION.cff")
BACKEND = int(metadata.version("setuptools").partition(".")[0])
RUN = ("--config.train.steps=4", "--config.checkpoint.every=2", "--config.net.width=8")
RUN += ("--config.evaluate.repeats=1", "--config.evaluate.num_samples=64", "--config.sample.num=16")


def files(folder: Path) -> set[str]:
    """The files of a folder of the checkout, relative to it."""
    found = (file for file in folder.rglob("*") if file.is_file())
    return {file.relative_to(ROOT).as_posix() for file in found if "__pycache__" not in file.parts}


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A copy of the sources, for builds to leave their traces in."""
    folder = tmp_path_factory.mktemp("source")
    for name in SOURCES:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    for name in FILES:
        shutil.copyfile(ROOT / name, folder / name)
    return folder


def build(source: Path, out: Path, python: str = sys.executable) -> Path:
    """The wheel, by the build's own backend, in this environment."""
    code = f"from setuptools import build_meta; print(build_meta.build_wheel({str(out)!r}))"
    done = subprocess.run([python, "-c", code], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return next(out.glob("*.whl"))


@pytest.mark.skipif(BACKEND < 77, reason="setuptools 77 or newer builds the wheel")
def test_the_wheel_holds_recipes_examples_and_models_and_works_from_there(source, tmp_path):
    with zipfile.ZipFile(build(source, tmp_path)) as wheel:
        held = {name for name in wheel.namelist() if ".dist-info/" not in name}
        wheel.extractall(tmp_path / "there")
        scripts = wheel.read(next(n for n in wheel.namelist() if n.endswith("entry_points.txt")))
        said = wheel.read(next(n for n in wheel.namelist() if n.endswith("METADATA"))).decode()
    links = re.findall(r"\]\(([^)\s]+)\)", said)
    assert f"{HOME}/raw/main/docs/images/gallery/opening.png" in links  # PyPI has no files beside
    assert len(links) > 20 and all(re.match(r"https://|#", link) for link in links), links
    moved = files(ROOT / "configs") | files(ROOT / "examples")
    assert held == files(ROOT / "genfield") | {f"genfield/shipped/{name}" for name in moved}
    assert len([name for name in held if "/models/" in name]) > 30
    assert b"genfield = genfield.__main__:main" in scripts
    (tmp_path / "empty").mkdir()
    code = (
        "import genfield; print(genfield.__file__); "
        "from genfield.program import config_io; print(config_io.load('images:small').data.size); "
        "print(*config_io.read('examples/own_network').methods.files); "
        "from genfield.pretrained import zoo; print(len(zoo.names())); "
        "from genfield.shipped.__main__ import main; main(['digits'])"
    )
    env = os.environ | {"PYTHONPATH": str(tmp_path / "there")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path / "empty",
        env=env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    place, side, own, models, *table = done.stdout.splitlines()
    assert place == str(tmp_path / "there/genfield/__init__.py")
    assert (side, own, int(models) > 10) == ("32", "own_network.py", True)
    assert any(line.startswith("distance_marching_digits") for line in table)
    assert not list((tmp_path / "empty").iterdir())


def test_the_package_says_everywhere_the_same():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0" and citation["message"] and citation["authors"]
    assert citation["version"] == genfield.__version__ and citation["title"] == PROJECT["name"]
    assert citation["repository-code"] == HOME and citation["license"] == PROJECT["license"]
    assert citation["url"] == PROJECT["urls"]["Documentation"]
    assert citation["authors"] == PROJECT["authors"]
    headings = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] == "Unreleased" and headings[1] == genfield.__version__
    for method in ("Distance Marching", "Equilibrium Matching", "Flux Matching", "Lines Matching"):
        assert method in PROJECT["description"]
    assert "noise-sample matching" in PROJECT["description"]
    assert all(
        url.startswith((HOME, PROJECT["urls"]["Documentation"])) for url in PROJECT["urls"].values()
    )


def test_workflows_name_what_is_there():
    found = sorted((ROOT / ".github/workflows").glob("*.yml"))
    assert {"ci.yml", "release.yml"} <= {file.name for file in found}
    for file in found:
        workflow = yaml.safe_load(file.read_text())
        assert (
            workflow["name"] and workflow[True] and workflow["permissions"]
        )  # `on` is YAML's true
        for job in workflow["jobs"].values():
            assert job["timeout-minutes"] and all("uses" in s or "run" in s for s in job["steps"])
        for name in re.findall(r"(?<![\w/.])(\.ci/\w+|pyproject\.toml|\w+\.yml)", file.read_text()):
            assert (ROOT / name).exists(), (file.name, name)
    steps = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]["ci"]["steps"]
    assert steps[-1]["run"] == ".ci/run" and os.access(ROOT / ".ci/run", os.X_OK)


@pytest.fixture(scope="module")
def installed(source, tmp_path_factory) -> Path:
    """The folder of programs of a clean environment with the wheel, built from the sdist."""
    home = tmp_path_factory.mktemp("installed")
    environment = os.environ | {"PYTHONPATH": "", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}

    def do(*words) -> None:
        done = subprocess.run(words, env=environment, cwd=home, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]

    do(sys.executable, "-m", "venv", "tools")
    do(home / "tools/bin/pip", "install", "-q", "build", "twine")
    do(home / "tools/bin/python", "-m", "build", "--outdir", home / "dist", source)
    do(home / "tools/bin/twine", "check", "--strict", *(home / "dist").iterdir())
    do(sys.executable, "-m", "venv", "venv")
    do(home / "venv/bin/pip", "install", "-q", next((home / "dist").glob("*.whl")))
    return home / "venv/bin"


@pytest.mark.slow
def test_a_clean_installation_works_from_an_empty_folder(installed, tmp_path):
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def do(*words: str, code: int = 0) -> str:
        done = subprocess.run(
            [installed / words[0], *words[1:]],
            cwd=tmp_path,
            env=env,
            capture_output=True,
            text=True,
        )
        assert done.returncode == code and "Traceback" not in done.stderr, done.stderr[-3000:]
        return done.stdout + done.stderr

    assert do("genfield", "--version") == f"genfield {genfield.__version__}\n"
    assert "distance_marching_two_moons" in do("genfield", "configs")
    assert "verdict: ready" in do("genfield", "doctor")
    assert "did you mean" in do("genfield", "trian", code=2)
    moons = "--config=distance_marching_two_moons"
    assert "config.loss" in do("genfield", "train", moons, "--help")
    do("genfield", "train", moons, "--workdir=run", *RUN)
    do("genfield", "train", "--workdir=run", *RUN, "--config.train.steps=6")
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["steps"] == 6 and not (tmp_path / "run/own").exists()
    do("genfield", "sample", "--workdir=run", "--config.sample.num=16")
    assert list((tmp_path / "run/samples").glob("*.npz"))
    assert "w2" in do("genfield", "evaluate", "--workdir=run")
    assert "no differences" in do("genfield", "compare", "run", "run")
    do("genfield", "train", "--config=examples/own_loss", "--workdir=own", *RUN)
    assert (tmp_path / "own/own/own_loss.py").exists()
    code = (
        "from genfield import pretrained; import numpy as np, genfield; "
        "model = pretrained.load('two_moons/flow_matching'); x = np.zeros((2, 2), 'float32'); "
        "print(model.field(x, np.zeros(2, 'float32')).shape, genfield.__file__)"
    )
    assert f"(2, 2) {installed.parent}" in do("python", "-c", code)
    stopped = tmp_path / "stopped"
    words = ["train", moons, f"--workdir={stopped}", *RUN, "--config.train.steps=1000000"]
    words += ["--config.train.log_every=1", "--config.checkpoint.every=1000000"]
    running = subprocess.Popen([installed / "genfield", *words], cwd=tmp_path, env=env)
    until = time.monotonic() + 600
    while not (stopped / "metrics.jsonl").exists() and time.monotonic() < until:
        time.sleep(0.2)
    running.terminate()
    assert running.wait(600) == 143 and any((stopped / "checkpoints").iterdir())
    several = ["train", moons, "--workdir=two", *RUN, "--coordinator=localhost:1"]
    assert "--process_id 5 must be" in do(
        "genfield", *several, "--process_id=5", "--num_processes=2", code=2
    )
