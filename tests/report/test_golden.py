"""Reports of fixed records are those that are kept; `python -m tests.report.golden` writes them."""

from __future__ import annotations

import difflib

from tests.report.golden import FOLDER, reports


def test_reports_are_those_that_are_kept() -> None:
    made = reports()
    assert sorted(path.name for path in FOLDER.iterdir()) == sorted(made)
    changed = []
    for name, text in made.items():
        kept = (FOLDER / name).read_text(encoding="utf-8")
        changed += difflib.unified_diff(
            kept.splitlines(), text.splitlines(), f"kept {name}", f"made {name}", lineterm=""
        )
    assert not changed, "\n".join(
        ["", *changed, "", "if that is meant: python -m tests.report.golden"]
    )
