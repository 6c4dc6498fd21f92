"""What the documentation repeats is still there: lines of the source, tests, figures of a table.

A block of code under `<!-- skip: quote of FILE -->` holds lines of that file, in their order; a
line `…` stands for what is left out between them.
"""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").glob("*.md"))
QUOTE = re.compile(
    r"^<!-- skip: quote of (\S+) -->\n```python\n(.*?)^```$", re.DOTALL | re.MULTILINE
)
QUOTES = [
    (page, name, block) for page in PAGES for name, block in QUOTE.findall(page.read_text("utf-8"))
]
TEST = re.compile(r"tests/[\w/]+\.py(?:::\w+)?")
FIGURE = re.compile(r"\[([^\[\]]*\d[^\[\]]*)\]\(([\w./]+\.md)#([\w-]+)\)")
NUMBER = re.compile(r"(?<![\w.])\d+(?:,\d{3})*(?:\.\d+)?(?![\w.]*\d)")


def lines_of(text: str) -> list[str]:
    """Lines without their indentation, and without empty ones."""
    return [line.strip() for line in text.splitlines() if line.strip()]


def place(piece: list[str], source: list[str], start: int) -> int:
    """Where the lines stand in the source, one below the other, from `start` on; -1: nowhere."""
    last = len(source) - len(piece)
    return next((i for i in range(start, last + 1) if source[i : i + len(piece)] == piece), -1)


def section(page: Path, slug: str) -> str:
    """A page's text below the heading of that anchor, up to the next heading as high."""
    parts = re.split(r"^(#+) (.+)$", page.read_text("utf-8"), flags=re.MULTILINE)
    headings = list(zip(parts[1::3], parts[2::3], parts[3::3], strict=True))
    for i, (level, title, text) in enumerate(headings):
        if re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") == slug:
            for deeper, _, more in headings[i + 1 :]:
                if len(deeper) <= len(level):
                    break
                text += more
            return text
    raise AssertionError(f"{page.name} has no heading #{slug}")


def test_there_are_quotes():
    assert {page.stem for page, _, _ in QUOTES} >= {"distance_marching", "flow_matching"}


@pytest.mark.parametrize(
    ("page", "name", "block"), QUOTES, ids=[f"{p.stem}-{i}" for i, (p, _, _) in enumerate(QUOTES)]
)
def test_quoted_lines_are_in_the_source(page, name, block):
    source, at = lines_of((ROOT / name).read_text("utf-8")), 0
    for piece in re.split(r"^\s*…\s*$", block, flags=re.MULTILINE):
        piece = lines_of(piece)
        at = place(piece, source, at)
        assert at >= 0, f"{page.name}: not in {name}, or not in this order:\n" + "\n".join(piece)
        at += len(piece)


def test_named_tests_are_there():
    missing = []
    for page in PAGES:
        text = page.read_text("utf-8")
        of_the_page = set(re.findall(r"<!-- skip: the file (\S+) -->", text))
        for name in sorted(set(TEST.findall(text)) - of_the_page):
            path, _, function = name.partition("::")
            file = ROOT / path
            there = file.exists() and (
                not function or f"def {function}(" in file.read_text("utf-8")
            )
            missing += [] if there else [f"{page.name}: {name}"]
    assert not missing


def test_figures_of_the_decision_table_are_where_their_links_lead():
    """Each number in the text of a link stands in the section that the link leads to."""
    page = ROOT / "docs" / "which_method.md"
    links = FIGURE.findall(page.read_text("utf-8"))
    assert len(links) > 20
    wrong = []
    for text, name, slug in links:
        known = set(NUMBER.findall(section(page.parent / name, slug)))
        wrong += [f"{n} in {name}#{slug}" for n in NUMBER.findall(text) if n not in known]
    assert not wrong


METHODS = ("distance_marching", "equilibrium_matching", "flow_matching", "edm", "dansm")
MEASURED = ("reproduction", "couplings", "zoo", "abilities", "lines_matching", "flux_matching")


@pytest.mark.parametrize("name", (*METHODS, "flux_matching", "lines_matching"))
def test_our_figures_of_a_method_are_those_measured(name):
    """Each number of the column "here" of a page's figures stands where it was measured."""
    docs = ROOT / "docs"
    rows = [row for row in section(docs / f"{name}.md", "figures").splitlines() if row[:1] == "|"]
    assert rows[0].split("|")[2].strip() == "here"
    cells = [re.split(r"(?<!\\)\|", row)[2] for row in rows[2:]]
    texts = [(docs / f"{page}.md").read_text("utf-8") for page in MEASURED]
    # The long pages begin with the figures in short, and have them where they were measured below.
    known = "\n".join(text.partition("From here on: reference.")[2] or text for text in texts)
    known = set(NUMBER.findall(known))
    ours = [NUMBER.findall(re.sub(r"\(\S+\.md\S*\)", "", cell)) for cell in cells]
    assert sum(map(len, ours)) > 3
    assert not [n for numbers in ours for n in numbers if n not in known]
