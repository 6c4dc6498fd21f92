"""--help of a config: every field, comment, method, argument and range is there."""

import ast
import inspect
import re

import pytest
from programs import ROOT

from genfield import registry, shipped
from genfield.main import main
from genfield.program import config_io, defaults, explain
from genfield.program.methods import package


@pytest.fixture(scope="module")
def moons() -> str:
    """The help of a config, in one string."""
    name = "distance_marching_two_moons"
    return explain.text(name, config_io.load(name), package())


def part(text: str, head: str) -> str:
    """A paragraph by its first line."""
    return next(p for p in text.split("\n\n") if p.splitlines()[0] == head)


def test_every_field_is_there_with_its_value(moons):
    config = config_io.load("distance_marching_two_moons")
    for section, value in config.items():
        if not hasattr(value, "items"):
            assert re.search(
                rf"^  {section} +{re.escape(repr(value))}", part(moons, "config"), re.M
            )
            continue
        text = part(moons, f"config.{section}")
        for field, held in value.items():
            shown = held.to_dict() if hasattr(held, "to_dict") else held
            assert re.search(rf"^  {field} +{re.escape(repr(shown))}", text, re.M), (section, field)
    for field in ("normalize", "epsilon"):  # what a section leaves out has its default
        assert f"  {field} " in part(moons, "config.loss")


def test_every_comment_of_the_defaults_is_there(moons):
    source = inspect.getsource(defaults)
    begin, end = source.index("TOP = "), source.index("LIMITS:")
    said = re.findall(r"(?<=  # ).*", source[begin:end])
    assert len(said) > 50 and set(said) == set(explain.comments().values())
    flat = " ".join(moons.split())
    for comment in said:
        assert " ".join(comment.split()) in flat


def test_ranges_and_changed_defaults_are_told(moons):
    assert re.search(r"^  steps +6000 +positive; default 1000$", part(moons, "config.train"), re.M)
    assert re.search(r"^  keep_best +1 +not negative$", part(moons, "config.checkpoint"), re.M)
    assert "one of compute, float32" in part(moons, "config.mesh")
    text = part(moons, "config.loss")
    assert "ε of the one-step loss, in squared units of x; not negative" in text


def test_every_method_that_may_be_chosen_is_there_with_its_arguments(moons):
    for where, kind in explain.CHOICES.items():
        head = f"config.{where}:" if where == "path" or "." in where else f"config.{where}.name:"
        text = part(moons, head)
        for name, record in package()[kind].items():
            found = re.search(rf"^  {name}\b.*\n?((?:      .*\n?)*)", text, re.M)
            assert found, (where, name)
            if kind in (registry.Path, registry.Metric, registry.Logger):
                continue
            function, supplied = registry.parts(record)
            for field, parameter in registry.parameters(function).items():
                if field in supplied:
                    continue
                row = re.search(rf"^      {field} .*$", found[1], re.M)
                assert row, (where, name, field)
                plain = isinstance(parameter.default, int | float | str | tuple)
                if plain and field not in getattr(record, "tables", {}):
                    assert f"= {parameter.default!r}" in row[0]
                for mark in registry.marks(parameter.annotation):
                    if mark == registry.POSITIVE:
                        assert "positive" in row[0]
    assert "<function" not in moons and "<class" not in moons and "Annotated" not in moons


def test_fields_named_together_share_what_is_said_of_them():
    doc = 'Title.\n\nArgs:\n  a, b: both of\n    them. c ("x", "y"): a third.\nReturns:\n  d: no.'
    assert explain._said(doc, ["a", "b", "c", "d"]) == {
        "a": "both of them",
        "b": "both of them",
        "c": 'a third; "x", "y"',
    }


def test_no_description_breaks_off(moons):
    """As where a word before a colon is taken for the next argument."""
    assert not re.findall(r"^ {2,}.* (?:the|or|and|a)(?:;.*)?$", moons, re.M)


def test_what_a_command_line_changes_is_shown(capsys):
    argv = ["genfield", "--config=images:small", "--help"]
    assert main([*argv, "--config.net={'name': 'mlp'}", "--config.sampler.name=euler"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(ast.get_docstring(ast.parse((ROOT / "configs/images.py").read_bytes())))
    assert "  activation" in part(out, "config.net") and "resampling" not in part(out, "config.net")


def test_ones_own_methods_are_among_the_choices(capsys):
    assert main(["genfield", "--config=examples/own_loss", "--help"]) == 0
    text = part(capsys.readouterr().out, "config.loss.name:")
    assert "absolute_flow: Mean over features of √(" in text
    assert re.search(r"^      softness +float += 0.01 +not negative$", text, re.M)


@pytest.mark.parametrize("name", shipped.recipes())
def test_there_is_help_for_each_recipe(name):
    config = config_io.load(name)
    text = explain.text(name, config, package())
    for section in explain.SECTIONS_OF:
        said = part(text, f"config.{section}")
        assert re.search(rf"^  name +'{config[section].name}'$", said, re.M)
        assert all(re.search(rf"^  {field} ", said, re.M) for field in config[section])
        assert "leave it out" not in said


def test_a_method_of_ones_own_needs_no_docstring(tmp_path, capsys):
    page = (ROOT / "examples/own_loss.py").read_text()
    page, changed = re.subn(r'    """Mean over features.*?"""\n', "", page)
    assert changed == 1
    (tmp_path / "mine.py").write_text(page)
    assert main(["genfield", f"--config={tmp_path / 'mine.py'}", "--help"]) == 0
    assert re.search(r"^  absolute_flow$", capsys.readouterr().out, re.M)


@pytest.mark.parametrize("wrong", ["--config.train.stepz=3", "--config.net.name=mlq"])
def test_help_of_a_mistake_is_the_mistake(wrong, capsys):
    assert main(["genfield", "--config=images:small", "--help", wrong]) == 2
    out, err = capsys.readouterr()
    assert not out and err.count("\n") == 1 and "did you mean" in err


def test_help_without_a_config_says_how_to_use_it(capsys):
    assert main(["genfield", "--help"]) == 0
    out = capsys.readouterr().out
    assert "genfield configs" in out and "--config=… --help lists all fields" in out
