"""A screening without images as a few lines of Markdown."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from bdaudit.records import ScreenRecord
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
    if record.diagnostics:
        yield "**Diagnostics**"
        yield ""
        for d in record.diagnostics:
            code, subject, message = map(markdown, (d.code, d.subject, d.message))
            yield f"- **{d.severity}** {code} ({subject}): {message}"
        yield ""
    notes = record.input_notes()
    if notes:
        yield "**How the model was read**"
        yield ""
        yield from (f"- {markdown(note)}" for note in notes)
        yield ""
    yield "**What this does not prove**"
    yield ""
    yield from (f"- {markdown(line)}" for line in LEFT_OPEN)
    yield ""
    yield "**Reproduce**"
    yield ""
    if record.command is not None:
        yield f"<pre>{markdown(shlex.join(record.command))}</pre>"
        yield ""
    yield "| what | sha256 |"
    yield "|---|---|"
    for model in record.models:
        yield f"| {markdown(model.name)} | <code>{markdown(model.weights_sha256 or '')}</code> |"
    yield ""
    yield (
        f"bdaudit {markdown(record.environment.bdaudit)}, seed {record.seed}, "
        f"{markdown(record.environment.device)}, {record.elapsed_s:.0f} s"
    )
    yield ""
    yield "</details>"
