"""Config files that import the files beside them, and what is left of these afterwards."""

import importlib
import json
import sys
import types
from pathlib import Path

import pytest

from genfield import configuration
from genfield.errors import UserError
from genfield.program import checks, config_io, experiment, own_files
from genfield.program.methods import package

PAGE = "import shared\ndef get_config():\n    return shared.start()\n"
LAZY = "def get_config():\n    from shared import start\n    return start()\n"
SHARED = """from genfield import configuration

def start():
    config = configuration.base()
    config.seed = {}
    return config
"""


def write(folder: Path, **files: str) -> Path:
    """A folder of Python files; its path."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text)
    return folder


@pytest.fixture(autouse=True)
def nothing_is_left():
    """Of what a config file imports: neither modules, nor folders to import from, nor files."""
    modules, path, bytecode = dict(sys.modules), list(sys.path), sys.dont_write_bytecode
    yield
    assert sys.path == path and sys.dont_write_bytecode == bytecode
    assert {name: sys.modules.get(name) for name in modules} == modules
    assert not {"shared", "page", "helpers"} & (sys.modules.keys() - modules.keys())


@pytest.mark.parametrize("page", [PAGE, LAZY], ids=["at the top", "in get_config"])
def test_files_of_one_name_are_never_mixed_up(page, tmp_path, monkeypatch):
    folders = [write(tmp_path / str(n), page=page, shared=SHARED.format(n)) for n in (1, 2)]
    monkeypatch.chdir(folders[0])
    for _ in range(2):
        for number, folder in enumerate(folders, 1):
            assert config_io.load(str(folder / "page.py")).seed == number
    assert config_io.load("page.py").seed == 1
    write(folders[0], shared=SHARED.format(3))  # within the second, and of the same size
    assert config_io.load("page.py").seed == 3
    assert not list(tmp_path.rglob("*.pyc"))


def test_a_page_may_start_from_another_page(tmp_path):
    other = "import page\ndef get_config():\n    return page.get_config()\n"
    folder = write(tmp_path, page=PAGE, shared=SHARED.format(4), other=other)
    assert config_io.load(str(folder / "other.py")).seed == 4


@pytest.mark.parametrize("name", ["shared", "colorsys"])
def test_what_was_imported_under_the_same_name_comes_back(name, tmp_path, monkeypatch):
    """A module of a user's program, or of the standard library."""
    stands = importlib.import_module(name) if name == "colorsys" else types.ModuleType(name)
    below = types.ModuleType(f"{name}.below")
    monkeypatch.setitem(sys.modules, name, stands)
    monkeypatch.setitem(sys.modules, f"{name}.below", below)
    page = PAGE.replace("shared", name)
    folder = write(tmp_path, **{"page": page, name: SHARED.format(5)})
    assert config_io.load(str(folder / "page.py")).seed == 5
    assert sys.modules[name] is stands and sys.modules[f"{name}.below"] is below


def test_what_python_always_has_is_not_hidden(tmp_path):
    page = "import json, os, sys\n" + PAGE
    write(tmp_path, page=page, shared=SHARED.format(6), os="", sys="", __main__="")
    main, system = sys.modules["__main__"], sys.modules["os"]
    with own_files.beside(tmp_path):
        assert sys.modules["os"] is system and sys.modules["__main__"] is main
        import json as again
    assert again is json
    assert config_io.load(str(tmp_path / "page.py")).seed == 6


def test_what_comes_from_elsewhere_stays(tmp_path, monkeypatch):
    """A module that a config file is the first to import, though from no file beside it."""
    write(tmp_path / "elsewhere", a_library="")
    monkeypatch.syspath_prepend(tmp_path / "elsewhere")
    folder = write(tmp_path / "configs", page="import a_library\n" + PAGE, shared=SHARED.format(7))
    config_io.load(str(folder / "page.py"))
    assert sys.modules.pop("a_library")


def test_the_imported_files_are_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, shared="import helpers.more, json")
    write(tmp_path / "helpers", __init__="", more="")
    with own_files.beside(Path(".")) as found:
        import shared
    assert sorted(found) == ["helpers", "helpers.more", "shared"]
    assert found["shared"] is shared and Path(shared.__file__) == tmp_path / "shared.py"


@pytest.mark.parametrize(
    ("shared", "words"),
    [
        ("x = 1\nx = 1 / 0\n", "shared.py, line 2: ZeroDivisionError"),
        ("x = 1\n\ndef start(:\n", "shared.py, line 3: SyntaxError"),
        ("import no_such_module\n", "shared.py, line 1: ModuleNotFoundError"),
        ("def start():\n    return {}['seed']\n", "shared.py, line 2: KeyError: 'seed'"),
        ("import json\ndef start():\n    json.loads('?')\n", "shared.py, line 3: JSONDecodeError"),
        ("def begin():\n    pass\n", "page.py, line 3: AttributeError"),
    ],
)
@pytest.mark.parametrize("relative", [False, True], ids=["absolute", "relative"])
def test_an_error_is_one_line_that_names_the_file(shared, words, relative, tmp_path, monkeypatch):
    folder = write(tmp_path, page=PAGE, shared=shared)
    monkeypatch.chdir(folder.parent)
    folder = Path(folder.name) if relative else folder
    with pytest.raises(UserError) as caught:
        config_io.load(str(folder / "page.py"))
    message = str(caught.value)
    assert message.startswith(f"config file {folder}/{words}") and "\n" not in message


def test_a_file_without_get_config_is_no_config_file(tmp_path):
    folder = write(tmp_path, page=PAGE, shared=SHARED.format(0))
    with pytest.raises(UserError, match=r"has no function get_config\(\)"):
        config_io.load(str(folder / "shared.py"))
    with pytest.raises(UserError, match=r"unknown config file .* Known: page\.py$"):
        config_io.load(str(folder / "sharing.py"))


def test_a_section_that_is_set_as_a_whole_has_the_defaults_of_the_rest(tmp_path):
    """So a file that names all of today's fields goes on when a field is added."""
    start = "    config = configuration.base()\n    config.mesh = dict(data=2, fsdp=1)\n"
    page = f"from genfield import configuration\ndef get_config():\n{start}    return config\n"
    config = config_io.load(str(write(tmp_path, page=page) / "page.py"))
    base = configuration.base()
    assert config.mesh.data == 2 and config.mesh.gather == base.mesh.gather
    assert set(config.mesh) == set(base.mesh)


@pytest.mark.parametrize(
    ("section", "change", "match"),
    [
        ("sampler", {"then": [{"name": "euler"}]}, "sampler.then is a section"),
        ("sampler", {"step_size": 10**400}, "step_size must be at most .* 64 bits"),
        ("sampler", {"num_steps": "9"}, "num_steps"),
        ("optimizer", {"weight_decay": 10**400}, "weight_decay"),
        ("loss", {"name": None}, "config.loss lacks the field 'name'"),
    ],
)
def test_somebodys_json_is_refused_in_a_line(tmp_path, section, change, match):
    """What no page of Python would hold."""
    told = config_io.to_dict(config_io.load("distance_marching_two_moons"))
    told[section] |= change
    if told[section].get("name", 0) is None:
        del told[section]["name"]
    file = tmp_path / "config.json"
    file.write_text(json.dumps(told))
    with pytest.raises(UserError, match=match):
        config = config_io.from_file(file)
        checks.check(config)
        experiment.check_names(config, package())
