"""The one way to read a text that a user wrote or was sent: its bytes, TOML and JSON.

Two files that look the same to a person are read alike here: with or without a byte-order mark, in
UTF-8 or UTF-16, with any kind of line end. What cannot be read is an `InputError` that says what
is wrong with the bytes. A parser's own failures (nesting without end, numbers of thousands of
digits, a key given twice, lone surrogates) are such errors too, never an internal one.
"""

from __future__ import annotations

import codecs
import json
import math
import re
import tomllib
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from bdaudit.errors import InputError
from bdaudit.foundation.opening import LIST_BYTES, RECORD_BYTES, SETTINGS_BYTES, read_bytes, shown

__all__ = [
    "MAX_DEPTH",
    "character_in_words",
    "content_in_words",
    "decode_text",
    "is_invisible",
    "parse_json",
    "parse_toml",
    "read_json",
    "read_text",
    "read_toml",
    "visible_form",
]

MAX_DEPTH = 48
"""How deep tables and arrays may be nested."""

_MOST_BITS = 63
_MOST_JSON_BITS = 128
_MOST_DIGITS = 40
_BYTE_ORDER_MARKS = (  # the longer ones first: UTF-32's begins with UTF-16's
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_LINE = re.compile(r"at line (\d+)")
_TYPOGRAPHIC = "\u2018\u2019\u201c\u201d\u201e\u00ab\u00bb\u2013\u2014\u2212\uff1d"


def read_text(
    path: str | Path,
    *,
    what: str,
    error: type[InputError] = InputError,
    limit: int = LIST_BYTES,
    within: Path | None = None,
) -> str:
    r"""Read a text file; line ends come back as "\n".

    Args:
        path: The file.
        what: What it should be, for the message: "class names".
        error: What to raise.
        limit: The most bytes it may have.
        within: The folder that it must lie in, as for `opening.open_file`.

    Raises:
        InputError: It cannot be opened or is no text in UTF-8, or in UTF-16 or UTF-32 with a
            byte-order mark; of the class `error`.
    """
    content = read_bytes(path, limit=limit, what=what, error=error, within=within)
    return decode_text(content, where=shown(path), what=what, error=error)


def read_toml(
    path: str | Path,
    *,
    what: str,
    error: type[InputError] = InputError,
    limit: int = SETTINGS_BYTES,
    within: Path | None = None,
) -> dict[str, Any]:
    """Read a TOML file; arguments and errors are those of `read_text` and `parse_toml`."""
    text = read_text(path, what=what, error=error, limit=limit, within=within)
    return parse_toml(text, where=shown(path), what=what, error=error)


def read_json(
    path: str | Path,
    *,
    what: str,
    error: type[InputError] = InputError,
    limit: int = RECORD_BYTES,
    within: Path | None = None,
) -> Any:
    """Read a JSON file; arguments and errors are those of `read_text` and `parse_json`."""
    text = read_text(path, what=what, error=error, limit=limit, within=within)
    return parse_json(text, where=shown(path), what=what, error=error)


def decode_text(content: bytes, *, where: str, what: str, error: type[InputError]) -> str:
    r"""Decode bytes as text; line ends come back as "\n".

    Args:
        content: UTF-8 with or without a byte-order mark, or UTF-16 or UTF-32 with one.
        where: The file, for the message.
        what: What it should be, for the message.
        error: What to raise.

    Raises:
        InputError: The bytes are something else; of the class `error`.
    """
    encoding = "utf-8"
    for mark, name in _BYTE_ORDER_MARKS:
        if content.startswith(mark):
            content, encoding = content[len(mark) :], name
            break
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as failure:
        raise error(
            f"{where}: expected {what}, {_bytes_in_words(content, encoding, failure)}"
        ) from failure
    if "\0" in text:
        raise error(f"{where}: expected {what}, {_nul_in_words(content, text)}")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def parse_toml(text: str, *, where: str, what: str, error: type[InputError]) -> dict[str, Any]:
    """Parse TOML.

    Args:
        text: As `decode_text` gives it.
        where: The file, for the message.
        what: What it should be, for the message.
        error: What to raise.

    Raises:
        InputError: It is not TOML, is nested deeper than `MAX_DEPTH`, or holds a number beyond 64
            bits; of the class `error`.
    """
    try:
        document = tomllib.loads(text)
    except RecursionError:
        raise error(f"{where}: expected {what}, {_TOO_DEEP}") from None
    # int() of thousands of digits and impossible dates raise a plain ValueError.
    except ValueError as failure:
        known = content_in_words(text.encode(errors="replace"))
        if known is not None:
            raise error(f"{where}: expected {what}, got {known}") from failure
        raise error(
            f"{where}: expected {what} in TOML: {failure}{_unseen_in_words(text, str(failure))}"
        ) from failure
    _demand_plain(document, _MOST_BITS, where, what, error)
    return document


def parse_json(text: str, *, where: str, what: str, error: type[InputError]) -> Any:
    """Parse JSON, strictly: no NaN, no infinity, no key twice.

    Arguments as for `parse_toml`.

    Raises:
        InputError: It is not such JSON, is nested deeper than `MAX_DEPTH`, or holds a number that
            no float or 128 bits can hold; of the class `error`.
    """
    try:
        document = json.loads(
            text,
            object_pairs_hook=_object_of,
            parse_int=_int_of,
            parse_float=_float_of,
            parse_constant=_no_constant,
        )
    except RecursionError:
        raise error(f"{where}: expected {what}, {_TOO_DEEP}") from None
    except ValueError as failure:
        known = content_in_words(text.encode(errors="replace"))
        raise error(
            f"{where}: expected {what}, got {known}"
            if known is not None
            else f"{where}: expected {what} in JSON: {failure}"
        ) from failure
    _demand_plain(document, _MOST_JSON_BITS, where, what, error)
    return document


def content_in_words(content: bytes) -> str | None:
    """Return what a file is that is often found in place of the wanted one, and what to do.

    Args:
        content: Its first bytes.

    Returns:
        The end of a sentence ("got ..."), `None` where it is nothing known.
    """
    head = content[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if head.startswith(b"version https://git-lfs.github.com/"):
        return "a Git LFS pointer, which stands for the file; run 'git lfs pull'"
    if head.startswith((b"<!doctype html", b"<html")):
        return "a web page, perhaps of a log-in or an error; download the file itself"
    if not head:
        return "an empty file"
    return None


def is_invisible(character: str) -> bool:
    """Return whether a character looks like nothing, or like a space without being one."""
    # Joiners (U+200C, U+200D) shape letters in several scripts and hold emoji together.
    if character in "\u200c\u200d":
        return False
    kind = unicodedata.category(character)
    return kind in {"Cc", "Cf", "Zl", "Zp"} or (kind == "Zs" and character != " ")


def visible_form(name: str) -> str:
    """Bring a name to the form in which names that look the same are the same.

    Composed and decomposed letters become one, other spaces a space, and characters that are not
    seen are dropped. macOS, for one, writes the names of folders decomposed.

    >>> visible_form("cafe\u0301\u200b") == "caf\u00e9"
    True
    """
    composed = unicodedata.normalize("NFC", name)
    spaced = "".join(" " if unicodedata.category(c) == "Zs" else c for c in composed)
    kept = (c for c in spaced if unicodedata.category(c) not in {"Cc", "Cf", "Zl", "Zp"})
    return " ".join("".join(kept).split())


def character_in_words(character: str) -> str:
    """Name a character that cannot be seen: "U+00A0 (no-break space)"."""
    name = unicodedata.name(character, "a control character").lower()
    return f"U+{ord(character):04X} ({name})"


_WIDE_TEXT = "got text in UTF-16 or UTF-32 without a byte-order mark; save it as UTF-8"
_TOO_DEEP = f"got tables or arrays nested deeper than {MAX_DEPTH}"


def _bytes_in_words(content: bytes, encoding: str, failure: UnicodeDecodeError) -> str:
    if encoding != "utf-8":
        return (
            f"got a byte-order mark of {encoding[:6].upper()} and then bytes that are not: "
            f"{failure.reason} at byte {failure.start}; save it as UTF-8"
        )
    before = content[: failure.start]
    line, column = before.count(b"\n") + 1, failure.start - before.rfind(b"\n")
    if _is_wide(content):
        return _WIDE_TEXT
    if b"\0" in content:
        return "got bytes that are no text; is it another file?"
    return (
        f"got byte 0x{content[failure.start]:02x} in line {line}, at byte {column} of it, which is "
        "not UTF-8 (perhaps Latin-1 or Windows-1252); save it as UTF-8"
    )


def _nul_in_words(content: bytes, text: str) -> str:
    if _is_wide(content):
        return _WIDE_TEXT
    line = text[: text.index("\0")].count("\n") + 1
    return f"got a NUL character in line {line}; is it another file?"


def _is_wide(content: bytes) -> bool:
    """Return whether bytes look like UTF-16 or UTF-32: of Latin letters half of them are zero."""
    return content.count(b"\0") * 3 > len(content)


def _unseen_in_words(text: str, failure: str) -> str:
    """Point out characters in the line a parser stumbled over that a person does not see."""
    found = _LINE.search(failure)
    lines = text.split("\n")
    if found is None or not 1 <= int(found[1]) <= len(lines):
        return ""
    for character in lines[int(found[1]) - 1]:
        if character != "\t" and (is_invisible(character) or character in _TYPOGRAPHIC):
            return f"; that line holds {character_in_words(character)}, retype it"
    return ""


def _demand_plain(
    document: object, most_bits: int, where: str, what: str, error: type[InputError]
) -> None:
    """Refuse what later steps could stumble over: depth, huge numbers, broken text."""
    left: list[tuple[object, int]] = [(document, 0)]
    while left:
        value, depth = left.pop()
        if depth > MAX_DEPTH:
            raise error(f"{where}: expected {what}, {_TOO_DEEP}")
        if isinstance(value, dict):
            left += [(part, depth + 1) for pair in value.items() for part in pair]
        elif isinstance(value, list):
            left += [(part, depth + 1) for part in value]
        elif isinstance(value, str):
            if not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value):
                raise error(f"{where}: expected {what}, got half a surrogate pair in a text")
        elif isinstance(value, int) and value.bit_length() > most_bits:
            raise error(
                f"{where}: expected {what}, got a whole number of {value.bit_length()} bits "
                f"(at most {most_bits + 1} with its sign)"
            )


def _object_of(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"the key {key[:80]!r} stands twice in one object")
            seen.add(key)
    return content


def _int_of(digits: str) -> int:
    if len(digits) > _MOST_DIGITS:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def _float_of(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"the number {digits[:40]} is too large")
    return value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")
