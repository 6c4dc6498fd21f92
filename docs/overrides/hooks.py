"""What the site does beside mkdocs: links into the repository, and the changelog as a page.

On GitHub a page links to ../genfield/x.py and shows ../genfield/y.png. Here the first becomes the
address of the file in the repository, the second a copy in the site. A file that is not there is a
warning, which the strict build ends with; so is one that a whole address of the repository names.
"""

import logging
import posixpath
import re
from pathlib import Path

from mkdocs.structure.files import File

LOG = logging.getLogger("mkdocs.hooks.repository")
ROOT = Path(__file__).resolve().parents[2]
LINK = re.compile(r"(!?)(\[(?:[^\[\]]|\[[^\]]*\])*\]\()([^)\s]+)(\))")
FENCE = re.compile(r"^(```+|~~~+).*?^\1[ \t]*$", re.MULTILINE | re.DOTALL)
PAGES = {"CHANGELOG.md": "changelog.md"}  # files of the repository that are pages of the site


def on_files(files, config):
    """Adds the pages that lie elsewhere in the repository."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Turns links that leave docs/ into ones that the site can follow."""
    generated = {to: source for source, to in PAGES.items()}
    place = generated.get(page.file.src_uri, f"docs/{page.file.src_uri}")

    def linked(match):
        picture, text, target, end = match.groups()
        to = _target(target, picture, place, page, config, files)
        return picture + _named(text, target, place) + to + end

    parts, last = [], 0
    for fence in FENCE.finditer(markdown):
        parts += [LINK.sub(linked, markdown[last : fence.start()]), fence[0]]
        last = fence.end()
    return "".join([*parts, LINK.sub(linked, markdown[last:])])


def _named(text: str, target: str, place: str) -> str:
    """The text of a link; the title of a page where it is the name of its file."""
    page = ROOT / posixpath.dirname(place) / target.partition("#")[0]
    if text != f"[{page.name}](" or page.suffix != ".md" or not page.is_file():
        return text
    first = page.read_text(encoding="utf-8").splitlines()[0]
    return f"[{first.removeprefix('# ')}](" if first.startswith("# ") else text


def _target(target: str, picture: str, place: str, page, config, files) -> str:
    """Where a link of the page at `place` leads on the site."""
    path, mark, anchor = target.partition("#")
    own = re.match(rf"{re.escape(config.repo_url)}/(?:blob|tree|raw)/main/(.+)", path)
    if own:
        _check(own[1], place)
        return target
    if not path or re.match(r"\w+:|/", path):
        return target
    inside = posixpath.normpath(posixpath.join(posixpath.dirname(place), path))
    if inside in PAGES or inside.startswith("docs/"):
        to = PAGES.get(inside, inside.removeprefix("docs/"))
        return posixpath.relpath(to, posixpath.dirname(page.file.src_uri) or ".") + mark + anchor
    if not _check(inside, place):
        return target
    if picture:
        to = f"repository/{inside}"
        if files.get_file_from_path(to) is None:
            files.append(File.generated(config, to, abs_src_path=str(ROOT / inside)))
        return posixpath.relpath(to, posixpath.dirname(page.file.src_uri) or ".")
    kind = "tree" if (ROOT / inside).is_dir() else "blob"
    return f"{config.repo_url}/{kind}/main/{inside}{mark}{anchor}"


def _check(path: str, place: str) -> bool:
    """Whether the repository has such a file; a warning where it has not."""
    there = not path.startswith("..") and (ROOT / path).exists()
    if not there:
        LOG.warning("%s links to %s, which the repository does not have", place, path)
    return there
