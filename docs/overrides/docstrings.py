"""The package's docstrings as Markdown: sections as lists, shapes such as [B, *D] as code.

An entry of `Args:` may name several arguments, which parsers of Google's style take for a mistake.
"""

import re

import griffe

SECTIONS = ("Args", "Attributes", "Raises", "Returns")
SHAPE = re.compile(r"\[[A-Z0-9*][^\[\]]*\](?!\()")
CODE = re.compile(r"(`[^`]*`)")
ENTRY = re.compile(r"([\w*]+(?:, [\w*]+)*)( \([^)]*\))?: ")


def markdown(text: str) -> str:
    """A docstring as a page shows it."""
    lines, inside, fresh = [], False, False
    for line in text.splitlines():
        section = re.fullmatch(rf"({'|'.join(SECTIONS)})(.*):", line)
        if section:
            lines += ["", f"**{section[1]}{section[2]}**", ""]
            inside, fresh = True, True
        elif not inside or not line.strip():
            lines.append(coded(line) if not line.startswith("    ") else line)
        elif not line.startswith(" "):
            inside = False
            lines += ["", coded(line)]
        else:
            entry = ENTRY.match(line.strip()) if line[:4].strip() else None
            body = coded(line.strip())
            if entry:
                body = f"`{entry[1]}`{body[len(coded(entry[1])) :]}"
            lines.append(f"- {body}" if entry or fresh else f"    {body}")
            fresh = False
    return "\n".join(lines)


def coded(line: str) -> str:
    """The line with its shapes as code, where it has them in words."""
    parts = CODE.split(line)
    return "".join(p if p.startswith("`") else SHAPE.sub(r"`\g<0>`", p) for p in parts)


class Docstrings(griffe.Extension):
    """Turns each docstring, once, where it is collected."""

    def on_instance(self, *, obj, **kwargs) -> None:
        if obj.docstring is not None and not obj.is_alias:
            obj.docstring.value = markdown(obj.docstring.value)
