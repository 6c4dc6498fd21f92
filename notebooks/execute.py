"""Runs notebooks from top to bottom and stores their outputs: python notebooks/execute.py [NAME …].

A notebook runs in an empty folder of its own, with a copy of the package alone on the path: what it
reads, the package brings. Its metadata keep a hash of its code, which tells outputs that no longer
belong to it, and the processor seconds that it took; docs/notebooks.md is told the minutes.
"""

import base64
import hashlib
import io
import json
import os
import re
import resource
import shutil
import sys
import tempfile
from pathlib import Path

FOLDER = Path(__file__).parent
ROOT = FOLDER.parent

# Started with the kernel: takes this checkout, which may be installed in place, off the path.
SITE = """import sys
sys.path = [p for p in sys.path if p != {root!r}]
named = lambda f: getattr(f, "__module__", "") + getattr(f, "__name__", "")
sys.meta_path = [f for f in sys.meta_path if "__editable__" not in named(f)]
"""


def paths(names: list[str]) -> list[Path]:
    """The notebooks of these names, with or without their ending; all where there are none."""
    found = {path.stem: path for path in sorted(FOLDER.glob("*.ipynb"))}
    stems = [Path(name).stem for name in names] or list(found)
    for stem in stems:
        if stem not in found:
            raise SystemExit(f"no notebook {stem}; there are {', '.join(found)}")
    return [found[stem] for stem in stems]


def sources(notebook: dict) -> str:
    """SHA-256 of the code cells, in order."""
    code = ["".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "code"]
    return hashlib.sha256(json.dumps(code).encode()).hexdigest()


def install(folder: Path) -> Path:
    """A folder for the path that holds a copy of the package, and nothing else of the checkout."""
    kept = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "genfield", folder / "genfield", ignore=kept)
    (folder / "sitecustomize.py").write_text(SITE.format(root=str(ROOT)))
    return folder


def execute(path: Path, packages: Path, folder: Path):
    """The notebook with its outputs and, in its metadata, what is kept of the run.

    Args:
      path: of the notebook. packages: what `install` made. folder: empty; cells run in it.

    Raises:
      nbclient.exceptions.CellExecutionError: a cell failed; it holds the traceback.
    """
    import nbclient
    import nbformat

    notebook = nbformat.reads(path.read_text(), as_version=4)
    metadata = dict(notebook.metadata)
    settings = folder / ".jupyter"
    # As a user has it: one device, optimised code, nothing compiled before.
    dropped = ("XLA_FLAGS", "MPLBACKEND", "JAX_COMPILATION_CACHE_DIR", "JAX_PLATFORMS")
    env = {k: v for k, v in os.environ.items() if k not in dropped}
    env |= {"PYTHONPATH": str(packages), "IPYTHONDIR": str(settings)}
    env |= {"XDG_CACHE_HOME": str(settings / "cache")}
    before = _processor_seconds()
    client = nbclient.NotebookClient(
        notebook,
        timeout=None,
        kernel_name="python3",
        record_timing=False,
        resources={"metadata": {"path": str(folder)}},
    )
    client.execute(env=env)
    seconds = round(_processor_seconds() - before)
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            _forget(output, packages, folder)
            _slim(output)
    kept = {"sources": sources(notebook), "processor_seconds": seconds}
    notebook.metadata = nbformat.from_dict({**metadata, "genfield": kept})
    return notebook


def _forget(output: dict, *folders: Path) -> None:
    """Names files relative to the folders, which are gone when the output is read."""
    held, name = (output, "text") if "text" in output else (output.get("data", {}), "text/plain")
    for folder in folders:
        if name in held:
            held[name] = held[name].replace(f"{folder}/", "").replace(str(folder), ".")


def _slim(output: dict) -> None:
    """Stores a picture in 256 colours, where that is smaller: about half of the bytes."""
    from PIL import Image

    stored = output.get("data", {}).get("image/png")
    if stored is None:
        return
    picture, small = Image.open(io.BytesIO(base64.b64decode(stored))), io.BytesIO()
    on_white = Image.new("RGB", picture.size, "white")
    on_white.paste(picture, mask=picture.getchannel("A") if picture.mode == "RGBA" else None)
    on_white.quantize(256, dither=Image.Dither.NONE).save(small, "PNG", optimize=True)
    encoded = base64.b64encode(small.getvalue()).decode()
    output["data"]["image/png"] = min(stored, encoded + "\n", key=len)


def _processor_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def tell(page: Path, name: str, seconds: float) -> None:
    """Writes the minutes of a notebook into its row of the page's table, the last cell."""
    row = rf"(^\|.*/{re.escape(name)}\.ipynb\).*\| )[\d.]+ min \|$"
    text, found = re.subn(row, rf"\g<1>{seconds / 60:.1f} min |", page.read_text(), flags=re.M)
    if found != 1:
        raise SystemExit(f"{page} has {found} rows of {name}, and should have one")
    page.write_text(text)


def main(names: list[str]) -> None:
    import nbformat

    for path in paths(names):
        with tempfile.TemporaryDirectory() as made:
            folder = Path(made).resolve() / "work"
            folder.mkdir()
            notebook = execute(path, install(folder.with_name("packages")), folder)
        path.write_text(nbformat.writes(notebook) + "\n")
        seconds = notebook.metadata["genfield"]["processor_seconds"]
        tell(ROOT / "docs" / "notebooks.md", path.stem, seconds)
        print(f"{path.name}: {path.stat().st_size / 1e6:.2f} MB, {seconds} processor seconds")


if __name__ == "__main__":
    main(sys.argv[1:])
