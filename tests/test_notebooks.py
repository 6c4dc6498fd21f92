"""The notebooks: made of what the package has, with outputs of their code, run without the tree."""

import ast
import importlib
import importlib.metadata
import itertools
import json
import os
import re
import runpy
import subprocess
import sys
import types
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ADDRESS = "https://github.com/genfield/genfield"
COLAB = "https://colab.research.google.com/github/genfield/genfield/blob/main/notebooks"
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
MOST_BYTES, MOST_SECONDS = 1.2e6, 180  # of a file; of two cores together
PLACES = re.compile(r"(?<![\w.])/(?:tmp|home|root|work|Users|usr|opt|private|var)/|site-packages")

execute = types.SimpleNamespace(**runpy.run_path(str(ROOT / "notebooks" / "execute.py")))
each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def source(cell: dict) -> str:
    return "".join(cell["source"])


def read(path: Path) -> dict:
    return json.loads(path.read_text())


def code_cells(path: Path) -> list[dict]:
    return [c for c in read(path)["cells"] if c["cell_type"] == "code"]


def code(cell: dict) -> str:
    """A cell's Python, with `pass` in the place of IPython's magics and shell commands."""
    if source(cell).startswith("%%writefile"):
        return source(cell).partition("\n")[2]
    return re.sub(r"^(\s*)[%!].*$", r"\1pass", source(cell), flags=re.MULTILINE)


def pictures(cell: dict) -> int:
    return sum("image/png" in output.get("data", {}) for output in cell["outputs"])


def draws(cell: dict) -> bool:
    return bool(re.search(r"^(plt\.show|show_rows|show)\(", source(cell), re.MULTILINE))


@each
def test_valid_format(path):
    nbformat = pytest.importorskip("nbformat", reason="needs genfield[notebooks]")
    nbformat.validate(nbformat.reads(path.read_text(), as_version=4))


@each
def test_form(path):
    """A form that storing outputs does not change, and a size that a page loads."""
    text = path.read_text()
    notebook = read(path)
    assert text.endswith("}\n") and path.stat().st_size < MOST_BYTES
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    ids = [cell["id"] for cell in notebook["cells"]]
    assert len(set(ids)) == len(ids)
    assert all(source(cell).strip() for cell in notebook["cells"])


@each
def test_outputs_are_of_this_code(path):
    """Stored by `python notebooks/execute.py NAME`, in one run from top to bottom; no errors."""
    kept, cells = read(path)["metadata"].get("genfield"), code_cells(path)
    renew = f"run: python notebooks/execute.py {path.stem}"
    assert kept, f"no outputs; {renew}"
    assert kept["sources"] == execute.sources(read(path)), f"outputs of other code; {renew}"
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1)), renew
    assert 0 < kept["processor_seconds"] < MOST_SECONDS
    for cell in cells:
        assert pictures(cell) or not draws(cell), f"{cell['id']} shows no picture; {renew}"
        for output in cell["outputs"]:
            assert output["output_type"] in ("stream", "display_data", "execute_result"), output
            assert output.get("name") != "stderr", output["text"]
            text = "".join(output.get("text", output.get("data", {}).get("text/plain", "")))
            assert not PLACES.search(text), text
    assert sum(map(pictures, cells)) >= 5


def test_what_outputs_hang_on():
    """Text may be mended without another run, code may not, nor the order of cells."""
    cell = lambda kind, text: {"cell_type": kind, "source": [text]}
    found = lambda *cells: execute.sources({"cells": list(cells)})
    text, first, second = cell("markdown", "a"), cell("code", "b"), cell("code", "c")
    assert found(text, first, second) == found(cell("markdown", "other"), first, second)
    assert found(first, second) != found(second, first)
    assert found(first, second) != found(first, cell("code", "c "))
    assert found(first, second) != found(cell("code", "bc"))


@each
def test_opens_in_colab(path):
    """A badge at the top, and links to what exists."""
    first, *_ = read(path)["cells"]
    assert first["cell_type"] == "markdown"
    assert source(first).startswith("[![Open in Colab](")
    assert f"]({COLAB}/{path.name})\n\n# " in source(first)
    texts = [source(cell) for cell in read(path)["cells"] if cell["cell_type"] == "markdown"]
    links = re.findall(r"\]\((\S+?)\)", "\n".join(texts))
    assert all(link.startswith("https://") for link in links), links
    for link in links:
        here = re.fullmatch(re.escape(ADDRESS) + r"/(?:blob|tree)/main/([\w/.]+)", link)
        here = here or re.fullmatch(re.escape(COLAB.removesuffix("notebooks")) + r"(\S+)", link)
        assert here is None or (ROOT / here[1]).exists(), link
    for name in re.findall(r"--config=(\w+)", "\n".join(texts)):
        assert (ROOT / "configs" / f"{name}.py").exists(), name


@each
def test_knobs(path):
    """A cell that asks to be changed, under a heading that says so, and shows what changes."""
    cells = read(path)["cells"]
    found = 0
    for before, cell in itertools.pairwise(cells):
        if source(cell).startswith("# @title Change this"):
            found += 1
            assert before["cell_type"] == "markdown" and "### Change this" in source(before)
            assert len(re.findall(r"^\w+ = .+  # @param .+$", source(cell), re.MULTILINE)) >= 3
            assert pictures(cell)
    assert found and "**Change this**" in source(cells[0])


@each
def test_installs_only_where_it_must(path):
    """Colab gets the package from the first code cell; elsewhere that cell does nothing."""
    first = source(code_cells(path)[0])
    assert first == source(code_cells(NOTEBOOKS[0])[0])
    guard, install = first.index('find_spec("genfield") is None:'), first.index("%pip install")
    assert guard < install and f'"genfield[notebooks] @ git+{ADDRESS}"' in first
    # genfield.figures turns the screen off when it is imported.
    everything = "".join(source(cell) + "\n" for cell in code_cells(path)[:2])
    last_import = max(m.start() for m in re.finditer(r"^from genfield", everything, re.MULTILINE))
    assert everything.index("%matplotlib inline") > last_import


def test_asks_for_a_restart(monkeypatch):
    """Where pip replaced what a session has loaded; and only there."""
    first = code(code_cells(NOTEBOOKS[0])[0])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    exec(first, {})
    held = sys.modules["jax"] if "jax" in sys.modules else importlib.import_module("jax")
    installed = importlib.metadata.version
    newer = {"jax": f"{held.__version__}.1"}
    monkeypatch.setattr("importlib.metadata.version", lambda n: newer.get(n) or installed(n))
    with pytest.raises(RuntimeError, match="replaced jax: choose Runtime > Restart session"):
        exec(first, {})


@each
def test_uses_what_exists(path):
    """Every import works, and every `module.name` of a genfield module is there."""
    tree, modules = ast.parse("\n\n".join(map(code, code_cells(path)))), {}
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


def test_listed():
    """docs/notebooks.md shows every notebook once, with its badge and what it takes."""
    page = (ROOT / "docs" / "notebooks.md").read_text()
    listed = re.findall(rf"\({re.escape(COLAB)}/(\w+)\.ipynb\)", page)
    assert sorted(listed) == [path.stem for path in NOTEBOOKS]
    for path in NOTEBOOKS:
        [row] = [line for line in page.splitlines() if f"{COLAB}/{path.name}" in line]
        seconds = read(path)["metadata"]["genfield"]["processor_seconds"]
        assert row.endswith(f"| {seconds / 60:.1f} min |"), row


def test_minutes_go_into_the_page(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("".join(f"| [{n}](../notebooks/{n}.ipynb) | x | 1.0 min |\n" for n in "ab"))
    execute.tell(page, "b", 129)
    assert [line.split("| ")[-1] for line in page.read_text().splitlines()] == [
        "1.0 min |",
        "2.1 min |",
    ]
    with pytest.raises(SystemExit, match="0 rows of c"):
        execute.tell(page, "c", 60)


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    return execute.install(tmp_path_factory.mktemp("packages"))


def test_nothing_of_the_checkout(packages, tmp_path):
    """What notebooks are run with: the package copied, and neither checkout nor its folders."""
    script = (
        "import importlib.util, sys, genfield\n"
        "print(genfield.__file__)\n"
        "print([n for n in ('configs', 'examples', 'reproduce') if importlib.util.find_spec(n)])\n"
        "print([p for p in sys.path if p == sys.argv[1]])\n"
    )
    command = [sys.executable, "-c", script, str(ROOT)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (packages, ROOT)))}
    out = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=True)
    assert out.stdout.splitlines() == [str(packages / "genfield" / "__init__.py"), "[]", "[]"]


@pytest.mark.slow
@each
def test_runs(path, packages, tmp_path, monkeypatch):
    """A real kernel runs all cells without the checkout, and what draws shows a picture."""
    reason = "needs a Jupyter kernel: pip install 'genfield[notebooks]'"
    for name in ("nbformat", "nbclient", "ipykernel"):
        pytest.importorskip(name, reason=reason)
    pytest.importorskip("sklearn", reason="the digits need genfield[digits]")
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "runtime"))
    folder = tmp_path / "work"
    folder.mkdir()
    notebook = execute.execute(path, packages, folder)
    for cell in (cell for cell in notebook.cells if cell.cell_type == "code"):
        assert not [o for o in cell.outputs if o.output_type == "error"], cell.id
        assert pictures(cell) or not draws(cell), f"{cell.id} shows no picture"
    if path.stem == "own_network_and_loss":
        assert json.loads((folder / "runs/mine/summary.json").read_text())["steps"] == 2000
