"""The notebooks: clean, made of what the package has, and run from top to bottom."""

import ast
import importlib
import json
import os
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))

pytestmark = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(path: Path) -> list[dict]:
    return [c for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code"]


def program(path: Path) -> ast.Module:
    """All code cells as one module, with `pass` in the place of IPython's magics."""
    lines = [line for cell in code_cells(path) for line in ("".join(cell["source"]) + "\n", "\n")]
    return ast.parse(re.sub(r"^(\s*)%.*$", r"\1pass", "".join(lines), flags=re.MULTILINE))


def test_valid_format(path):
    nbformat = pytest.importorskip("nbformat", reason="needs genfield[notebooks]")
    nbformat.validate(nbformat.reads(path.read_text(), as_version=4))


def test_clean(path):
    """Committed without outputs, in a form that a run does not change."""
    text = path.read_text()
    notebook = json.loads(text)
    assert text.endswith("}\n")
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    ids = [cell["id"] for cell in notebook["cells"]]
    assert len(set(ids)) == len(ids)
    for cell in code_cells(path):
        assert cell["outputs"] == [] and cell["execution_count"] is None, cell["id"]
        assert "".join(cell["source"]).strip(), cell["id"]


def test_installs_only_where_it_must(path):
    """Colab gets the package from the first code cell; elsewhere that cell does nothing."""
    first = "".join(code_cells(path)[0]["source"])
    guard, install = first.index('find_spec("genfield") is None:'), first.index("%pip install")
    assert guard < install and "genfield[notebooks]" in first
    # genfield.figures turns the screen off when it is imported.
    everything = "".join("".join(cell["source"]) + "\n" for cell in code_cells(path))
    last_import = max(m.start() for m in re.finditer(r"^from genfield", everything, re.MULTILINE))
    assert everything.index("%matplotlib inline") > last_import


def test_uses_what_exists(path):
    """Every import works, and every `module.name` of a genfield module is there."""
    tree, modules = program(path), {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                importlib.import_module(alias.name)
        elif isinstance(node, ast.ImportFrom):
            parent = importlib.import_module(node.module)
            for alias in node.names:
                if not hasattr(parent, alias.name):
                    importlib.import_module(f"{node.module}.{alias.name}")
                if node.module.startswith("genfield"):
                    modules[alias.asname or alias.name] = getattr(parent, alias.name)
    assert modules
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            module = modules.get(node.value.id)
            assert module is None or hasattr(module, node.attr), f"{node.value.id}.{node.attr}"


@pytest.mark.slow
def test_runs(path, tmp_path, monkeypatch):
    """A real kernel runs all cells, and every cell that draws shows a picture."""
    reason = "needs a Jupyter kernel: pip install 'genfield[notebooks]'"
    nbformat = pytest.importorskip("nbformat", reason=reason)
    nbclient = pytest.importorskip("nbclient", reason=reason)
    pytest.importorskip("ipykernel", reason=reason)
    pytest.importorskip("sklearn", reason="the digits need genfield[digits]")
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "runtime"))
    # As a user has it: one device and optimised code, unlike the other tests.
    env = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "MPLBACKEND")}
    env |= {"PYTHONPATH": str(ROOT), "IPYTHONDIR": str(tmp_path / "ipython")}
    folder = tmp_path / "work"
    folder.mkdir()
    notebook = nbformat.reads(path.read_text(), as_version=4)
    client = nbclient.NotebookClient(
        notebook,
        timeout=600,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
    )
    client.execute(env=env)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    drawn = 0
    for cell in cells:
        assert not [o for o in cell.outputs if o.output_type == "error"], cell.id
        pictures = [o for o in cell.outputs if "image/png" in o.get("data", {})]
        if re.search(r"^(plt\.show|show_rows)\(", cell.source, re.MULTILINE):
            assert pictures, f"{cell.id} shows no picture"
        drawn += len(pictures)
    assert drawn >= 5
    if any("modes.train(" in cell.source for cell in cells):
        assert list(folder.glob("runs/*/summary.json"))  # the program trained what it should
