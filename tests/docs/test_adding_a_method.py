"""docs/adding_a_method.md, followed: its files fit each other and the package."""

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from genfield import registry
from genfield.program.methods import package

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "adding_a_method.md").read_text("utf-8")
FILE = re.compile(
    r"^<!-- skip: the file (\S+) -->\n```python\n(.*?)^```$", re.DOTALL | re.MULTILINE
)
FILES = dict(FILE.findall(PAGE))


@pytest.fixture
def method(monkeypatch):
    """The page's loss, as the module that it would be."""
    module = ModuleType("genfield.losses.relative")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(FILES["genfield/losses/relative.py"], "relative.py", "exec"), module.__dict__)
    return module


def test_the_test_of_the_page_passes(method):
    space = {}
    exec(compile(FILES["tests/losses/test_relative.py"], "test_relative.py", "exec"), space)
    tests = [value for name, value in space.items() if name.startswith("test_")]
    assert len(tests) == 2
    for test in tests:
        test()


def test_the_config_asks_for_the_method(method, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "configs"))
    space = {}
    exec(compile(FILES["configs/relative_flow_two_moons.py"], "config.py", "exec"), space)
    section = space["get_config"]().loss
    known = {**package()[registry.Loss], "relative_flow": method.METHOD}
    assert registry.bind("loss", known, section, ("field", "sample", "cond")).func is not None
    assert known[section.name] is method.METHOD
