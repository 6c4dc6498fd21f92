"""Every Python block of README and docs is run, page by page, in order, in one namespace."""

import ast

import pytest
from blocks import NAMES, PAGES, PYTHON, blocks
from standing_in import lay, names


def code(page):
    return [b for b in blocks(page) if b.language in PYTHON and b.skip is None]


SLOW = "couplings index losses metrics nets sampling".split()
SLOW = {f"docs/library/{name}.md" for name in SLOW}
WITH = [(page, name) for page, name in zip(PAGES, NAMES, strict=True) if code(page)]


def run(block, namespace: dict, standing: dict) -> None:
    """Runs a block statement by statement; a name that is missing is taken from the stand-ins."""
    for statement in ast.parse("\n" * block.line + block.text).body:
        program = compile(ast.Module([statement], []), block.page, "exec")
        while True:
            try:
                exec(program, namespace)
                break
            except NameError as error:
                if error.name not in standing or error.name in namespace:
                    raise
                namespace[error.name] = standing[error.name]()


CASES = [
    pytest.param(page, id=name, marks=[pytest.mark.slow] if name in SLOW else [])
    for page, name in WITH
]


@pytest.mark.parametrize("page", CASES)
def test_every_example_runs(page, tmp_path, tmp_path_factory, monkeypatch):
    found = code(page)
    lay("\n".join(block.text for block in found), tmp_path, tmp_path_factory)
    monkeypatch.chdir(tmp_path)
    namespace, standing = {"__name__": "docs"}, names(found[0].page)
    for block in found:
        run(block, namespace, standing)
