"""The recipes that come with the package: found by name from any folder, listed with true facts."""

import functools
import inspect
import json
import re

import pytest
from ml_collections import ConfigDict
from programs import MOONS, ROOT, run

from genfield import nets, shipped
from genfield.errors import UserError
from genfield.program import config_io
from genfield.shipped import __main__ as listing

PAGES = {page.name: page for page in listing.pages()}
VARIANTS = [(page.name, variant) for page in PAGES.values() for variant in page.recipes]
TIME = re.compile(r"(about )?\d+( to \d+)? min|minutes|a GPU|GPUs")
NAME = "distance_marching_two_moons"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """A folder without configs."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")


def test_files_of_a_checkout_are_those_at_its_top():
    assert (shipped.CONFIGS, shipped.EXAMPLES) == (ROOT / "configs", ROOT / "examples")
    assert any(shipped.MODELS.rglob("*.safetensors"))


@pytest.mark.parametrize("name", [NAME, f"{NAME}.py", f"configs/{NAME}.py", f"configs/{NAME}"])
def test_a_recipe_is_found_by_name(name):
    assert config_io.place(name) == MOONS
    assert config_io.load(name).to_dict() == config_io.load(str(MOONS)).to_dict()


def test_a_variant_follows_the_name():
    assert config_io.load("images:small").data.size == 32
    with pytest.raises(UserError, match=r"unknown variant .* Known: medium, small$"):
        config_io.load("images:smal")


def test_a_file_at_the_path_comes_first(tmp_path):
    page = "from genfield import configuration\ndef get_config():\n"
    page += "    config = configuration.base()\n    config.seed = 7\n    return config\n"
    (tmp_path / "elsewhere" / "configs").mkdir()
    for name in (f"{NAME}.py", f"configs/{NAME}.py"):
        (tmp_path / "elsewhere" / name).write_text(page)
        assert config_io.load(name).seed == 7
    assert config_io.load(NAME).seed == 0  # no file is called so
    (tmp_path / "elsewhere" / "images").mkdir()  # nor is a folder a config
    assert config_io.load("images").data.name == "images"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("distance_marching_two_moon", f"did you mean {NAME},"),
        ("configs/imagse.py", "did you mean images"),
        ("shared", "unknown config 'shared'"),
        ("own_loss", "unknown config 'own_loss'"),
        ("own_network", "did you mean examples/own_network.py"),
        ("zzzz", "no name is like it. genfield configs lists"),
        (f"runs/{NAME}.py", "unknown config file in runs"),
        ("mien", "did you mean mine.py"),
    ],
)
def test_an_unknown_name_is_one_line_with_near_ones(name, says, tmp_path):
    (tmp_path / "elsewhere" / "mine.py").write_text("def get_config(): ...")
    with pytest.raises(UserError) as caught:
        config_io.load(name)
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_recipes_are_the_packages_and_examples_ones_own():
    assert config_io.read(NAME).methods is None
    config, methods = config_io.read("examples/own_loss")
    assert config.loss.name == "absolute_flow" and list(methods.files) == ["own_loss.py"]


def test_a_run_goes_on_by_name_by_path_and_by_its_resolved_config(tmp_path):
    workdir = tmp_path / "run"
    assert run(workdir, NAME, train__steps=2, checkpoint__every=2) == 0
    assert run(workdir, MOONS, train__steps=4, checkpoint__every=2) == 0
    assert run(workdir, workdir / "config.json", train__steps=6, checkpoint__every=2) == 0
    assert json.loads((workdir / "summary.json").read_text())["steps"] == 6
    assert not (workdir / "own").exists()
    other = config_io.load(str(workdir / "config.json"))
    assert other.train.steps == 6 and other.loss.epsilon == 0.01
    with pytest.raises(UserError, match="leave out :small"):
        config_io.load(f"{workdir / 'config.json'}:small")


@pytest.mark.parametrize("name", PAGES)
def test_a_page_says_what_is_known_of_each_variant(name):
    page = PAGES[name]
    default = inspect.signature(page.get_config).parameters.get("variant")
    default = default or inspect.signature(page.get_config).parameters.get("size")
    assert next(iter(page.recipes)) == (default.default if default else "")
    for recipe in page.recipes.values():
        assert isinstance(recipe, shipped.Recipe) and TIME.fullmatch(recipe.time)
    with pytest.raises(UserError) as caught:  # which lists the variants that the page knows
        config_io.load(f"{name}:no_such_variant")
    if default is None:
        assert "takes no argument" in str(caught.value) or "after a colon" in str(caught.value)
        return
    known = str(caught.value).partition("Known: ")[2].split(", ")
    spoken = {word for variant in page.recipes for word in re.split(r"[,]|_(?=published)", variant)}
    assert set(known) - {"sot", "plain"} <= spoken | set(page.recipes), known


@functools.cache
def counted(net: str, shape: tuple[int, ...], num_classes: int) -> int:
    """The parameters of a network in its full size; pages share networks."""
    config = ConfigDict(json.loads(net))
    return nets.count_parameters(nets.create(config, None, shape=shape, num_classes=num_classes)[1])


def data_of(config) -> tuple[tuple[int, ...], int]:
    """Shape and number of classes of what a config trains on, as its paper has them."""
    data = config.data.real if config.data.name == "pairs" else config.data
    if data.name in ("two_moons", "digits", "springs"):
        return {"two_moons": ((2,), 0), "digits": ((8, 8, 1), 10), "springs": ((50, 4), 0)}[
            data.name
        ]
    if data.name == "latents":
        return tuple(data.shape), data.num_classes
    side = data.get("size") or 32
    return (side, side, 3), (1000 if side == 64 else 10) if data.get("labels") else 0


LARGE = ("unet", "ddpmpp", "adm")  # which take seconds each


@pytest.mark.parametrize("large", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_numbers_of_parameters_are_right(large):
    checked = 0
    for name, variant in VARIANTS:
        config = config_io.load(f"{name}:{variant}" if variant else name)
        stated = PAGES[name].recipes[variant].parameters
        assert (stated is None) == (config.data.name == "cells")
        slow = config.net.name in LARGE and config.data.name != "digits"
        if stated is None or slow != large:
            continue
        assert stated == counted(config.net.to_json(sort_keys=True), *data_of(config)), name
        checked += 1
    assert checked > 40


def told(capsys, *words: str) -> list[str]:
    """The lines of the table: head, rule, recipes."""
    assert listing.main(list(words)) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out.split("\n\n")[0].splitlines()


def test_the_listing_has_a_line_for_each_recipe(capsys):
    lines = told(capsys)[2:]
    assert [line.split()[0] for line in lines] == shipped.recipes() == list(PAGES)
    line = next(line for line in lines if line.startswith(NAME))
    for cell in ("Distance Marching, 8 Gaussians to two moons", "8.6k", "about 1 min", "w2 1.435"):
        assert cell in line
    line = next(line for line in lines if line.startswith("images "))
    assert line.endswith("medium small")


def test_a_word_chooses_and_shows_variants(capsys):
    lines = told(capsys, "CIFAR")[2:]
    names = {line.split()[0].partition(":")[0] for line in lines}
    assert names == {name for name in PAGES if "cifar" in name}
    assert any(
        re.match(r"edm_cifar10:cond +EDM's denoiser, CIFAR-10 +55.7M .*fid 1.79", x) for x in lines
    )
    assert told(capsys, "flow_matching_two_moons.py:ot") == told(capsys, "flow_matching_two_moons")


@pytest.mark.parametrize("words", [["imagnt"], ["two", "moons"], ["--all"]], ids=" ".join)
def test_a_mistake_in_a_word_is_one_line(words, capsys):
    assert listing.main(words) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("genfield: error: ") and err.count("\n") == 1
