"""The code blocks of README.md and docs/: what language, what is before them, which commands.

A comment before a block says why it is not run: <!-- skip: reason -->.
"""

import re
import shlex
from pathlib import Path
from typing import NamedTuple

from markdown_it import MarkdownIt

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
SHELL, PYTHON, TEXT = ("bash", "sh"), ("python",), ("", "text", "json", "bibtex", "yaml", "toml")
STARTS = re.compile(r"(genfield |python |pip |launch/\S+ |taskset |mkdocs |[A-Z_]+=\S* )")
SKIP = re.compile(r"<!--\s*skip:\s*(.+?)\s*-->")


class Block(NamedTuple):
    """A block of code.

    Attributes:
      line: of its page, from 1. skip: why it is not run; None: it is.
    """

    page: str
    line: int
    language: str
    text: str
    skip: str | None

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(page: Path) -> list[Block]:
    """All code blocks of a page; indented ones that begin with a command are shell."""
    name, found, skip = str(page.relative_to(ROOT)), [], None
    for token in MarkdownIt().parse(page.read_text(encoding="utf-8")):
        if token.type in ("fence", "code_block"):
            language = (token.info.split() or [""])[0]
            if token.type == "code_block" and STARTS.match(token.content):
                language = "bash"
            found.append(Block(name, token.map[0] + 1, language, token.content, skip))
        said = SKIP.search(token.content) if token.type == "html_block" else None
        skip = said[1] if said else None
    return found


class Command(NamedTuple):
    """A command line, its environment and `taskset` left out; `place` is that of its block."""

    place: str
    words: tuple[str, ...]

    def __str__(self):
        return shlex.join(self.words)


def commands(block: Block) -> list[Command]:
    """The command lines of a shell block, with their continuation lines, without comments."""
    text = block.text.replace("\\\n", " ")
    found = []
    for line in text.splitlines():
        if line.startswith("…"):  # "the same command with these options"
            continue
        lexer = shlex.shlex(line, posix=True, punctuation_chars="&;|")
        lexer.whitespace_split, lexer.commenters = True, ""
        words = []
        for word in [*_uncommented(lexer), "&&"]:
            if word in ("&&", ";"):
                if words:
                    found.append(Command(block.place, _plain(words)))
                words = []
            else:
                words.append(word)
    return found


def _uncommented(words):
    for word in words:
        if word.startswith("#"):
            return
        yield word


def _plain(words: list[str]) -> tuple[str, ...]:
    """Without what only says where a command runs."""
    while re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
    if words[0] == "taskset":
        words = words[3:]
    return tuple(words)


def is_synopsis(block: Block) -> bool:
    """Whether the block shows the form of a command, with optional parts in brackets."""
    return re.search(r"(?<=\s)\[[^\]]*\](?=\s|$)", block.text) is not None
