"""The library's pages show every public name, and use it in an example."""

import ast
import importlib
import inspect
import re

import pytest
from blocks import PYTHON, ROOT, blocks

PAGES = ("couplings", "data", "fields", "guidance", "losses", "nets", "paths", "sampling", "scores")
OF_METRICS = {  # modules of figures of arrays; the others are parts of the program's evaluation
    "detection",
    "frechet",
    "inception_score",
    "kernel",
    "likelihood",
    "neighbours",
    "path_geometry",
    "point_cloud",
    "velocity",
}
RECORDS = {"METHOD", "METHODS", "LEVELS"}  # what a method tells the program


def public(module) -> set[str]:
    """What a module offers: its __all__, else what it defines, plain constants left out."""
    if hasattr(module, "__all__"):
        return set(module.__all__)
    tree = ast.parse(inspect.getsource(module))
    found = {n.name for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef)}
    for node in tree.body:
        if isinstance(node, ast.Assign):
            found |= {t.id for t in node.targets if isinstance(t, ast.Name)}
    plain = lambda value: type(value) in (int, float, str, tuple)
    return {n for n in found - RECORDS if n[0] != "_" and not plain(getattr(module, n))}


def shown(text: str, module: str) -> set[str]:
    """Names of a module that a page documents, also as members of it."""
    found = set(re.findall(rf"^::: genfield\.{re.escape(module)}\.(\w+)$", text, re.MULTILINE))
    members = rf"^::: genfield\.{re.escape(module)}\n    options:\n      members: \[([^\]]+)\]"
    for names in re.findall(members, text, re.MULTILINE):
        found |= set(re.split(r",\s*", names))
    return found


def used(page) -> set[str]:
    """Every name or attribute in the examples of a page."""
    code = "\n".join(b.text for b in blocks(page) if b.language in PYTHON)
    nodes = list(ast.walk(ast.parse(code)))
    return {n.attr for n in nodes if isinstance(n, ast.Attribute)}


@pytest.mark.parametrize("name", [*PAGES, *sorted(f"metrics.{m}" for m in OF_METRICS)])
def test_every_public_name_is_shown_and_used(name):
    page = ROOT / "docs" / "library" / f"{name.split('.')[0]}.md"
    module = importlib.import_module(f"genfield.{name}")
    names = public(module)
    assert len(names) > (0 if "." in name else 4)
    if name == "losses":  # a module of its own, in the same page
        names = names - {"decays"} | public(module.decays) - {"Decay", "DECAYS"}
    text = page.read_text(encoding="utf-8")
    documented = shown(text, name) | (shown(text, "losses.decays") if name == "losses" else set())
    assert names <= documented, "not shown"
    assert names <= used(page), "not used in an example"
    assert documented <= names | {"decays"}, "shown, but not public"


def test_the_modules_of_metrics_are_known():
    """A new module of metrics goes into the page, or is a part of the evaluation."""
    of_the_program = {"__init__", "images", "needs", "reference", "run"}
    there = {path.stem for path in (ROOT / "genfield" / "metrics").glob("*.py")}
    assert there == OF_METRICS | of_the_program
    assert "known" in used(ROOT / "docs" / "library" / "metrics.md")
