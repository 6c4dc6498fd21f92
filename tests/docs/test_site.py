"""What the site, the README and pyproject.toml say of one another; what the site asks for."""

import functools
import re
import tomllib
from pathlib import Path

import pytest
from blocks import NAMES, PAGES, ROOT

from genfield import registry
from genfield.program.defaults import OPEN, base
from genfield.program.methods import package

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
SITE = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
LINK = re.compile(r"\]\(([^)\s]+)\)")
KINDS = (registry.Loss, registry.Network, registry.Sampler, registry.DataSource)
KINDS += (registry.Coupling, registry.Rematching, registry.TimeLaw)


def test_addresses_are_those_of_the_project():
    assert f"repo_url: {PROJECT['urls']['Homepage']}\n" in SITE
    assert f"site_url: {PROJECT['urls']['Documentation']}\n" in SITE
    readme = PAGES[0].read_text(encoding="utf-8")
    assert f"<{PROJECT['urls']['Documentation']}>" in readme
    assert f"git+{PROJECT['urls']['Homepage']}" in readme


def test_readme_leads_to_files_that_are_there():
    """mkdocs looks at the links of docs/, and at nobody else's."""
    for target in LINK.findall(PAGES[0].read_text(encoding="utf-8")):
        if not re.match(r"\w+:", target):
            path = ROOT / target.partition("#")[0]
            assert path.exists(), target


def test_readme_is_short_and_credits_every_paper():
    readme = PAGES[0].read_text(encoding="utf-8")
    assert len(readme.splitlines()) <= 140
    for paper in ("2602.02928", "2510.02300", "Flux Matching", "Lines Matching", "RaR3ETzyKp"):
        assert paper in readme[readme.index("```bibtex") :], paper


def test_the_formulas_are_set_by_what_lies_here():
    folder = ROOT / "docs" / "assets" / "katex"
    css = (folder / "katex.min.css").read_text(encoding="utf-8")
    fonts = set(re.findall(r"url\((fonts/[\w-]+\.woff2)\)", css))
    assert len(fonts) > 10 and all((folder / font).is_file() for font in fonts)
    assert "MIT" in (folder / "LICENSE").read_text(encoding="utf-8")
    ours = [folder.parent / "math.js", folder.parent / "site.css", ROOT / "mkdocs.yml"]
    for file in [*ours, *(ROOT / "docs" / "overrides").rglob("*.html")]:
        text = re.sub(r"(?m)^(repo|site)_url: .*$", "", file.read_text(encoding="utf-8"))
        assert not re.search(r"(?<!xmlns=\")https?://|//cdn", text), file


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_a_page_has_one_title(page):
    """The site takes it for links whose text is the name of the file."""
    lines = page.read_text(encoding="utf-8").splitlines()
    assert Path(page).suffix == ".md" and lines[0].startswith("# ")


@functools.cache
def fields() -> set[str]:
    """Every field that a config may have, as flags name it; what any method takes, alone."""
    known = {"a.b"}  # which stands for any

    def walk(section, prefix):
        for name, value in section.items():
            known.add(f"{prefix}{name}")
            if hasattr(value, "items"):
                walk(value, f"{prefix}{name}.")

    walk(base(), "")
    methods = package()
    for kind in KINDS:
        for record in methods[kind].values():
            known |= set(registry.parameters(record.target))
    return known


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_fields_in_the_text_are_known(page):
    """Flags within a sentence, which no program reads: --config.a.b=…"""
    known = fields()
    text = page.read_text(encoding="utf-8")
    for name in re.findall(r"`--config\.([a-z_0-9.]+)=", text):
        section, _, field = name.partition(".")
        assert name in known or (section in OPEN and field.rpartition(".")[2] in known), name
