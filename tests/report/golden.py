"""Reports of fixed records as text, kept in `golden/`; what a person reads must not change unseen.

Written anew by `python -m tests.report.golden`; read what changed before it is committed. The
sentences of verdicts are made up here, so that a rule that is worded otherwise changes none of
these files.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from rich.console import Console

from bdaudit.records import AuditRecord
from bdaudit.records.difference import DifferenceRecord
from bdaudit.report import difference_markdown
from bdaudit.report.comparison_terminal import print_comparison
from bdaudit.report.defenses import print_defenses
from bdaudit.report.difference_terminal import print_difference
from bdaudit.report.formats import render_report
from bdaudit.report.sweep_terminal import print_sweep
from bdaudit.report.terminal import print_record
from tests.report.many import (
    QUIET,
    comparison_record,
    defense_record,
    difference_record,
    sweep_record,
    whole_record,
)

__all__ = ["FOLDER", "reports"]

FOLDER = Path(__file__).parent / "golden"

_BETWEEN = {0.005: 0.041, 0.01: 0.083, 0.02: 0.121, 0.03: 0.148, 0.05: 0.163}


def reports() -> dict[str, str]:
    """Make every report, by the name of its file."""
    with tempfile.TemporaryDirectory() as folder:
        difference = _fixed_difference(difference_record(Path(folder)))
    audits = {
        "dormant": _fixed(whole_record()),
        "removed": _fixed(whole_record(QUIET)),
        "inconclusive": _fixed(whole_record(_BETWEEN)),
    }
    made = {f"{name}.md": render_report("md", record) for name, record in audits.items()}
    made["diff.md"] = difference_markdown.render(difference)
    shown: dict[str, Callable[[Console], None]] = {
        **{name: partial(print_record, record) for name, record in audits.items()},
        "compare": partial(print_comparison, comparison_record()),
        "diff": partial(print_difference, difference),
        "sweep": partial(print_sweep, sweep_record()),
        "defend": partial(print_defenses, defense_record(), Path("out")),
    }
    for name, show in shown.items():
        for width in (80,) if name in ("sweep", "defend") else (60, 80, 140):
            made[f"{name}-{width}.txt"] = _printed(show, width)
    return made


def _printed(show: Callable[[Console], None], width: int) -> str:
    """Print as into a pipe: no colour, and blanks at the ends of lines mean nothing."""
    stream = io.StringIO()
    show(Console(file=stream, width=width, highlight=False))
    return "".join(f"{line.rstrip()}\n" for line in stream.getvalue().splitlines())


def _fixed(record: AuditRecord) -> AuditRecord:
    assert record.verdict is not None
    words = {"why": f"Made up to be {record.verdict.outcome}.", "advice": ("Do this", "Do that")}
    reasons = ("a first reason", "a second one") if record.verdict.reasons else ()
    told = {"reasons": reasons, "warnings": (), "release_reasons": ()}
    return record.model_copy(update={"verdict": record.verdict.model_copy(update=words | told)})


def _fixed_difference(made: DifferenceRecord) -> DifferenceRecord:
    old, new = (
        side.model_copy(
            update={"why": f"Made up to be {side.outcome}.", "record": "r.json", "warnings": ()}
        )
        for side in (made.old, made.new)
    )
    return made.model_copy(update={"old": old, "new": new})


def main() -> None:
    """Write the files anew."""
    FOLDER.mkdir(exist_ok=True)
    found = reports()
    for path in FOLDER.iterdir():
        if path.name not in found:
            path.unlink()
    for name, text in found.items():
        (FOLDER / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
