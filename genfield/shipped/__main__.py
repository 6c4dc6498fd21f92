"""The recipes that come with the package: genfield configs [WORD].

One line each; with a WORD those whose name or title has it, each variant on a line of its own.
`genfield train --config=NAME:VARIANT` takes any of them, from any folder.
"""

import importlib
import re
import sys
from collections.abc import Callable
from typing import NamedTuple

from ml_collections import ConfigDict

from genfield import errors, shipped
from genfield.errors import UserError, tell
from genfield.machine.tables import columns
from genfield.program import own_files

HEAD = ("recipe", "what", "parameters", "time here", "the paper's", "variants")
HEADLINES = ("fid", "w2")  # of the paper's figures, those that a line a page has room for
FOOT = """\
time here: of training on two busy CPU cores, or the machine that it is meant for
genfield configs WORD                     a line for each variant of some
genfield train --config=NAME:VARIANT --help     every field of one"""


class Page(NamedTuple):
    """A recipe: its name, title, what is known of each variant, and what makes the config of one.

    recipes: variant -> shipped.Recipe, the default first.
    """

    name: str
    title: str
    recipes: dict[str, shipped.Recipe]
    get_config: Callable[..., ConfigDict]

    def row(self, variant: str, whole: bool) -> tuple[str, ...]:
        """Cells of HEAD, but for the ends; `whole`: all that the paper says."""
        recipe = self.recipes[variant]
        config = self.get_config(*([variant] if variant else []))
        paper, note = config.evaluate.paper, config.evaluate.paper_note
        shown = [name for name in paper if whole or name in HEADLINES]
        figures = ", ".join(f"{name} {paper[name]:g}" for name in shown)
        if figures and note and whole:
            figures += f" ({note})"
        size = "as data" if recipe.parameters is None else short(recipe.parameters)
        return self.title, size, recipe.time, figures or "-"


def short(number: int) -> str:
    """8577 -> "8.6k", 130315808 -> "130M"."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.{2 if number < 10 * size else 3}g}{letter}"
    return str(number)


def title(text: str) -> str:
    """Method and data, as the first words of a page have them."""
    plain = re.sub(r"\s*\([^()]*\)", "", " ".join(text.split()))
    return ", ".join(re.split(r"[:.;] |[.:]$", plain)[0].split(", ")[:2])


def pages() -> list[Page]:
    """All recipes, in the order of their names; what they read of their data is not looked at."""
    found = []
    with own_files.beside(shipped.CONFIGS):
        for name in shipped.recipes():
            page = importlib.import_module(name)
            found.append(Page(name, title(page.__doc__), page.RECIPES, page.get_config))
    return found


def table(chosen: list[Page], each: bool) -> str:
    """The recipes as text, a line a page, or with `each` a line a variant."""
    rows = []
    for page in chosen:
        default = next(iter(page.recipes))
        if not each:
            rows.append(
                (page.name, *page.row(default, whole=False), " ".join(v for v in page.recipes if v))
            )
            continue
        for variant in page.recipes:
            mark = "default" if variant == default and variant else ""
            rows.append(
                (f"{page.name}:{variant}".rstrip(":"), *page.row(variant, whole=True), mark)
            )
    head = (*HEAD[:-1], "") if each else HEAD
    return columns([head, *rows])


def run(argv: list[str]) -> None:
    """Runs a command line to its end.

    Raises:
      UserError: more than one word, or one that no recipe has.
    """
    if {"--help", "-help", "-h"} & set(argv):
        tell(__doc__.strip())
        return
    if len(argv) > 1 or (argv[:1] and argv[0].startswith("-")):
        raise UserError(f"{' '.join(argv)}: pass one word of a recipe's name or title, or none")
    known = pages()
    word = argv[0].lower() if argv else ""
    name = word.partition(":")[0].removesuffix(shipped.ENDING)
    chosen = [page for page in known if name in page.name or name in page.title.lower()]
    if not chosen:
        near = ", ".join(shipped.near(name)) or "genfield configs lists all"
        raise UserError(f"no recipe has {word!r} in its name or title: {near}")
    tell(table(chosen, each=bool(word)))
    tell(f"\n{FOOT}")


def main(argv: list[str] | None = None) -> int:
    """0, or 2 with one line where the user can mend it."""
    return errors.told(lambda: run(sys.argv[1:] if argv is None else argv))


if __name__ == "__main__":
    sys.exit(main())
