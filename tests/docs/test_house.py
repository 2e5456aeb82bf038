"""The pages about the package itself say what is there: its modules, its rooms, its files."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bdaudit.cli import exits
from tests.docs.modules import ROOT, first_sentence, modules_page


def test_the_page_of_modules_is_what_the_docstrings_say() -> None:
    written = (ROOT / "docs" / "modules.md").read_text(encoding="utf-8")
    assert written == modules_page(), (
        "a first sentence changed; run: python -m tests.docs.modules > docs/modules.md"
    )


def test_every_module_is_on_the_page() -> None:
    sections = modules_page().split("\n## ")[1:]
    listed = {
        section.partition("\n")[0] + row.split("`")[1]
        for section in sections
        for row in section.splitlines()
        if row.startswith("| `")
    }
    there = {file.relative_to(ROOT).as_posix() for file in (ROOT / "bdaudit").rglob("*.py")}
    assert listed == there


def test_a_first_sentence_ends_where_the_next_begins(tmp_path: Path) -> None:
    file = tmp_path / "module.py"
    file.write_text(
        '"""Reads `a.b` of version 1.2\nand nothing else. More of it.\n\nAnd more."""\n'
    )
    assert first_sentence(file) == "Reads `a.b` of version 1.2 and nothing else."
    file.write_text('"""No sentence"""\n')
    with pytest.raises(ValueError, match="begins with a sentence"):
        first_sentence(file)
    file.write_text("x = 1\n")
    with pytest.raises(ValueError, match="begins with a sentence"):
        first_sentence(file)


def test_the_architecture_has_a_row_for_every_room() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rooms = page.partition("## Rooms")[2].partition("\n## ")[0]
    named = {
        name
        for row in rooms.splitlines()
        if row.startswith("| `")
        for name in row.split("|")[1].replace("`", "").replace(" ", "").split(",")
    }
    there = {
        f"{entry.name}/" if entry.is_dir() else entry.name
        for entry in (ROOT / "bdaudit").iterdir()
        if (entry / "__init__.py").is_file() or entry.suffix == ".py"
    } - {"__init__.py", "__main__.py"}
    assert named == there


@pytest.mark.parametrize("page", ["README.md", "docs/stability.md"])
def test_the_table_of_exit_codes_is_complete(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    table = text.partition("| exit code |" if page == "README.md" else "| code |")[2]
    table = table.partition("\n\n")[0]
    listed = [int(code) for code in re.findall(r"^\| (\d+) \|", table, re.MULTILINE)]
    assert listed == sorted(
        {
            v
            for name, v in vars(exits).items()
            if re.match(r"EXIT_[A-Z_]+", name) and isinstance(v, int)
        }
    )
