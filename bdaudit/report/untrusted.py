"""What a record says, made safe for each format: the one way from its strings into a report.

Every string of a record may be hostile: a file's name, a server's answer, a record somebody wrote
by hand. A report begins with `shown`, after which no string holds a character that is not seen as
itself, or a line break; each format then escapes what it would take for more than text.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any, TypeVar

from pydantic import BaseModel

from bdaudit.plain_text import on_one_line

__all__ = ["csv_cell", "markdown", "sarif_message", "shown"]

Shown = TypeVar("Shown")

# Everything that Markdown, HTML or GitHub's own additions could take for more than text.
_NOT_PLAIN = re.compile(r"[^A-Za-z0-9 ,;%/'().+=-]")
_START_OF_LINE = re.compile(r"^(\s*)([-+=]|\d+(?=[.)]))")
_AUTOLINK = re.compile(r"(?i)\bwww\.")
_FORMULA = ("=", "+", "-", "@")


def shown(record: Shown) -> Shown:
    """Return a copy of `record` in which every string is visible and stands on one line.

    Args:
        record: A record, or anything made of records, dataclasses, tuples, lists and dictionaries.
    """
    return _shown(record)  # type: ignore[no-any-return]


def _shown(value: Any) -> Any:
    if isinstance(value, str):
        text = on_one_line(value)
        return value if text == value else text
    if isinstance(value, BaseModel):
        fields = ((name, getattr(value, name)) for name in type(value).model_fields)
        changed = {name: new for name, old in fields if (new := _shown(old)) is not old}
        # Not validated again: a name may be longer now than a model would take it.
        return value.model_copy(update=changed) if changed else value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        known = ((field.name, getattr(value, field.name)) for field in dataclasses.fields(value))
        changed = {name: new for name, old in known if (new := _shown(old)) is not old}
        return dataclasses.replace(value, **changed) if changed else value
    if isinstance(value, dict):
        entries = {_shown(key): _shown(entry) for key, entry in value.items()}
        same = all(entries.get(key, entries) is entry for key, entry in value.items())
        return value if same else entries
    if isinstance(value, list | tuple):
        parts = [_shown(part) for part in value]
        if all(new is old for new, old in zip(parts, value, strict=True)):
            return value
        return parts if isinstance(value, list) else tuple(parts)
    return value


def markdown(text: str) -> str:
    """Write `text` so that Markdown shows it and reads nothing into it."""
    flat = " ".join(on_one_line(text).split())
    escaped = _NOT_PLAIN.sub(lambda match: f"&#{ord(match[0])};", flat)
    # Autolinks need no sign that is escaped above.
    escaped = _AUTOLINK.sub("www&#46;", escaped)
    return _START_OF_LINE.sub(
        lambda match: f"{match[1]}&#{ord(match[2][0])};{match[2][1:]}", escaped
    )


def csv_cell(text: str) -> str:
    """Keep a spreadsheet from taking a name for a formula."""
    line = on_one_line(text)
    return f"'{line}" if line.lstrip().startswith(_FORMULA) else line


def sarif_message(text: str) -> str:
    """Write plain text where SARIF would read links `[text](address)` and placeholders `{0}`."""
    line = on_one_line(text).replace("\\", "\\\\").replace("[", "\\[").replace("]", "\\]")
    return line.replace("{", "{{").replace("}", "}}")
