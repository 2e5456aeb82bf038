"""A screening without images as a few lines of Markdown."""

from __future__ import annotations

from collections.abc import Iterator

from bdaudit.records import ScreenRecord
from bdaudit.report.markdown_parts import diagnostics, notes, origin
from bdaudit.report.screening import (
    GISTS_OF_SCREENING,
    LEFT_OPEN,
    class_namer,
    file_of,
    p_value,
)
from bdaudit.report.untrusted import markdown

__all__ = ["render"]

_SIGNS = {"suspicious": ":x:", "nothing found": ":grey_question:", "unknown": ":warning:"}


def render(record: ScreenRecord) -> str:
    """Write `record` as GitHub- and GitLab-flavoured Markdown."""
    return "\n".join(_lines(record)) + "\n"


def _lines(record: ScreenRecord) -> Iterator[str]:
    screening = record.screening
    file = f"<code>{markdown(file_of(record))}</code>"
    yield f"### {_SIGNS[screening.outcome]} bdaudit screen: {screening.outcome} - {file}"
    yield ""
    gist = GISTS_OF_SCREENING[screening.outcome]
    yield f"**{gist[:1].upper()}{gist[1:]}.** {markdown(screening.why)}"
    yield ""
    yield f"p of the largest margin: {p_value(screening)}, suspicious at {screening.limit:g}."
    yield ""
    yield "<details>"
    yield "<summary>Details</summary>"
    yield ""
    yield "| class | maximum margin, logits | at the start | steps |"
    yield "|---|---:|---:|---:|"
    name = class_namer(screening)
    for row in screening.margins:
        yield f"| {markdown(name(row.label))} | {row.margin:.2f} | {row.start:.2f} | {row.steps} |"
    yield ""
    yield from diagnostics(record)
    yield from notes(record, "How the model was read")
    yield "**What this does not prove**"
    yield ""
    yield from (f"- {markdown(line)}" for line in LEFT_OPEN)
    yield ""
    yield from origin(record)
    yield ""
    yield "</details>"
