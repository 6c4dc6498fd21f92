"""What turns links into the repository, and docstrings, into pages of the site."""

import importlib.util
import logging
from types import SimpleNamespace

import pytest
from blocks import ROOT

CONFIG = SimpleNamespace(repo_url="https://example.org/x", site_dir="out", use_directory_urls=True)


def loaded(name):
    path = ROOT / "docs" / "overrides" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def hooks():
    pytest.importorskip("mkdocs", reason="needs genfield[docs]")
    return loaded("hooks")


def turned(hooks, text, page="scale.md"):
    files = SimpleNamespace(get_file_from_path=lambda path: True)
    place = SimpleNamespace(file=SimpleNamespace(src_uri=page))
    return hooks.on_page_markdown(text, place, CONFIG, files)


LINKS = (
    ("[a](../genfield/fields.py)", "[a](https://example.org/x/blob/main/genfield/fields.py)", None),
    ("[a](../configs)", "[a](https://example.org/x/tree/main/configs)", None),
    ("[a](../README.md#tests)", "[a](https://example.org/x/blob/main/README.md#tests)", None),
    ("[a](../CHANGELOG.md)", "[a](changelog.md)", None),
    ("[a](metrics.md#weights)", "[a](metrics.md#weights)", None),
    ("[metrics.md](metrics.md)", "[Numbers for images](metrics.md)", None),
    ("![a](../docs/images/x.png)", "![a](images/x.png)", None),
    ("[a](https://arxiv.org)", "[a](https://arxiv.org)", None),
    ("```\n[a](../no_such.py)\n```", "```\n[a](../no_such.py)\n```", None),
    ("[a](../no_such.py)", "[a](../no_such.py)", "no_such.py"),
    ("[a](../../outside.py)", "[a](../../outside.py)", "outside.py"),
    ("[a](https://example.org/x/blob/main/no.py)", None, "no.py"),
)


@pytest.mark.parametrize("text, becomes, warns", LINKS, ids=[link[0] for link in LINKS])
def test_links_lead_somewhere_or_warn(hooks, text, becomes, warns, caplog):
    """A warning ends a strict build."""
    with caplog.at_level(logging.WARNING):
        assert turned(hooks, text) == (becomes or text)
    assert (warns is None) == (not caplog.records)
    assert warns is None or warns in caplog.text


def test_a_picture_of_the_repository_comes_along(hooks):
    picture = "genfield/pretrained/models/two_moons/edm.png"
    said = turned(hooks, f"![a](../{picture})", page="library/index.md")
    assert said == f"![a](../{picture})"  # from library/ that is docs/genfield, which is not there
    assert turned(hooks, f"![a](../{picture})") == f"![a](repository/{picture})"


def test_docstrings_become_lists():
    pytest.importorskip("griffe", reason="needs genfield[docs]")
    said = loaded("docstrings").markdown(
        "Sum of x [B, *D].\n\nArgs:\n  x, y: points [B, 2], and\n    so on.\nRaises:\n"
        "  ValueError: never.\nAfter."
    )
    assert said.split("\n") == [
        "Sum of x `[B, *D]`.",
        "",
        "",
        "**Args**",
        "",
        "- `x, y`: points `[B, 2]`, and",
        "    so on.",
        "",
        "**Raises**",
        "",
        "- `ValueError`: never.",
        "",
        "After.",
    ]
