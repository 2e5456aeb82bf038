"""Text that somebody else wrote, made safe to show.

A file name, a tensor's name, a server's answer or a string of a record may hold what a terminal
obeys (escape sequences), what reorders the words around it (bidirectional controls) and what
nobody sees (zero-width characters). Each sink has its own further rules: the formats of reports
are in `bdaudit.report.untrusted`, the terminal in `bdaudit.cli.streams`.
"""

from __future__ import annotations

import re

__all__ = ["on_one_line", "shortened", "toml_escaped", "visible"]

# Printable by Unicode's general category, and yet nothing is seen of them.
_BLANK = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)
_SPACES = re.compile(r"[ \t\n]*[\t\n][ \t\n]*")


def visible(text: str) -> str:
    r"""Write every character that would not be seen as itself as `\u{HEX}`.

    Those are control and format characters (escape sequences begin with one), surrogates, private
    and unassigned code points, line separators and every space but the usual one. Line breaks
    and tabs stay.

    >>> visible("a\x1b[2Jb")
    'a\\u{1b}[2Jb'
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        c if (c.isprintable() and not _BLANK.match(c)) or c in "\n\t" else f"\\u{{{ord(c):x}}}"
        for c in text
    )


def on_one_line(text: str) -> str:
    r"""Write `text` visibly and without line breaks or tabs, so that it can begin no line.

    >>> on_one_line("name\nPASS: removed")
    'name PASS: removed'
    """
    return _SPACES.sub(" ", visible(text))


def toml_escaped(text: str) -> str:
    r"""Write what nobody sees of a quoted TOML string as the escapes that TOML reads back.

    >>> toml_escaped('"a\u202eb"')
    '"a\\u202eb"'
    """
    return "".join(
        c if c.isprintable() and not _BLANK.match(c) else _toml_escape(ord(c)) for c in text
    )


def _toml_escape(code: int) -> str:
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"


def shortened(text: str, limit: int = 300) -> str:
    """Leave out the middle of a text of more than `limit` characters."""
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]}…{text[-half:]}"
