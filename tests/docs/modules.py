"""The page that lists every module with its first sentence, docs/modules.md.

python -m tests.docs.modules > docs/modules.md
"""

from __future__ import annotations

import ast
import re
import sys
from itertools import groupby
from pathlib import Path

__all__ = ["first_sentence", "modules_page"]

ROOT = Path(__file__).parents[2]

_HEAD = """\
# Every module

The first sentence of each module's docstring, room by room. What the rooms are for and which may
import which is in [the architecture](architecture.md). Module paths may change in any release; what
may not is in [what is stable](stability.md).

Written by `python -m tests.docs.modules > docs/modules.md`; a test compares.
"""
_SENTENCE = re.compile(r".+?[.?!](?=\s+[A-Z`\"]|$)")


def modules_page(root: Path = ROOT) -> str:
    """Return the whole page as Markdown: a section a folder below `bdaudit/`, a row a file."""
    package = root / "bdaudit"
    sections = [_HEAD]
    files = sorted(package.rglob("*.py"), key=lambda file: (file.parent, file.name))
    for folder, inside in groupby(files, key=lambda file: file.parent):
        name = f"{folder.relative_to(root).as_posix()}/"
        rows = [f"| `{file.name}` | {_in_a_cell(first_sentence(file))} |" for file in inside]
        sections.append("\n".join([f"## {name}", "", "| file | |", "|---|---|", *rows, ""]))
    return "\n".join(sections)


def first_sentence(file: Path) -> str:
    """Return the first sentence of a module's docstring, on one line.

    Raises:
        ValueError: The module has no docstring, or its first paragraph does not end as a sentence.
    """
    docstring = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    paragraph = " ".join(docstring.split("\n\n")[0].split())
    sentence = _SENTENCE.match(paragraph)
    if sentence is None:
        raise ValueError(f"{file}: expected a docstring that begins with a sentence")
    return sentence.group()


def _in_a_cell(text: str) -> str:
    # Outside of code, `<`, `*` and `_` would be markup.
    parts = re.split(r"(`[^`]*`)", text.replace("|", "\\|"))
    return "".join(
        part if part.startswith("`") else re.sub(r"([*_<])", r"\\\1", part) for part in parts
    )


if __name__ == "__main__":
    sys.stdout.write(modules_page())
