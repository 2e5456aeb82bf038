"""Parts that Markdown reports have in common, whatever they are about."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence

from bdaudit.records import Header, Heading
from bdaudit.report.untrusted import markdown

__all__ = ["diagnostics", "notes", "origin", "row"]


def diagnostics(record: Heading) -> Iterator[str]:
    """Say what makes a number doubtful."""
    if not record.diagnostics:
        return
    yield "**Diagnostics**"
    yield ""
    for d in record.diagnostics:
        code, subject, message = map(markdown, (d.code, d.subject, d.message))
        yield f"- **{d.severity}** {code} ({subject}): {message}"
    yield ""


def notes(record: Heading, title: str = "How the inputs were read") -> Iterator[str]:
    """Say what was left out, converted or guessed."""
    said = record.input_notes()
    if said:
        yield f"**{title}**"
        yield ""
        yield from (f"- {markdown(note)}" for note in said)
        yield ""


def origin(record: Heading) -> Iterator[str]:
    """Give the command, the digests, and what it was measured with."""
    yield "**Reproduce**"
    yield ""
    if record.command is not None:
        # In a block of its own, whose characters mean nothing to Markdown once they are escaped.
        yield f"<pre>{markdown(shlex.join(record.command))}</pre>"
        yield ""
    yield row(["what", "sha256"])
    yield row(["---", "---"])
    for model in record.models:
        yield row(
            [markdown(model.name), f"<code>{markdown(model.weights_sha256 or 'unknown')}</code>"]
        )
    if isinstance(record, Header):
        yield row(["images", f"<code>{markdown(record.data.sha256)}</code>"])
        yield row(["trigger", f"<code>{markdown(record.trigger.sha256)}</code>"])
    yield ""
    yield (
        f"bdaudit {markdown(record.environment.bdaudit)}, seed {record.seed}, "
        f"{markdown(record.environment.device)}, {record.elapsed_s:.0f} s"
    )


def row(cells: Sequence[str]) -> str:
    """Write a row of a table."""
    return f"| {' | '.join(cells)} |"
