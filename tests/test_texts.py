"""Text that looks the same to a person is read alike; what cannot be read is an `InputError`."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bdaudit.errors import InputError, ProjectError
from bdaudit.foundation.texts import (
    decode_text,
    parse_json,
    parse_toml,
    read_json,
    read_text,
    read_toml,
    visible_form,
)

SETTINGS = 'kind = "patch"\nname = "Größe"\n'
PARSED = {"kind": "patch", "name": "Größe"}


@pytest.mark.parametrize(
    "content",
    [
        SETTINGS.encode(),
        SETTINGS.encode("utf-8-sig"),
        SETTINGS.encode("utf-16"),
        b"\xfe\xff" + SETTINGS.encode("utf-16-be"),
        SETTINGS.encode("utf-32"),
        SETTINGS.replace("\n", "\r\n").encode(),
        SETTINGS.replace("\n", "\r").encode(),
    ],
    ids=["plain", "bom", "utf-16", "utf-16-be", "utf-32", "crlf", "cr"],
)
def test_one_text_in_many_bytes(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.toml"
    path.write_bytes(content)
    assert read_text(path, what="settings") == SETTINGS
    assert read_toml(path, what="settings") == PARSED


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"a = 1\nb = 'caf\xe9'\n", r"0xe9 in line 2, at byte 9 .*Latin-1"),
        (SETTINGS.encode("utf-16-le"), "without a byte-order mark"),
        (b"\xff\xfea", "byte-order mark of UTF-16"),
        (b"a = 1\nb = \0\n", "NUL character in line 2"),
        (b"\x80\0\0\x93PK", "no text"),
        ("a = 1\nb\u00a0= 2\n".encode(), r"line 2.*U\+00A0 \(no-break space\)"),
        ("a = \u201cb\u201d\n".encode(), r"U\+201C"),
        (b"a = 1\na = 2\n", "overwrite"),
        (b"a = " + b"[" * 100_000, "nested deeper"),
        (b"a = " + b"[" * 100 + b"]" * 100, "nested deeper"),
        (b"[" + b".".join([b"a"] * 200) + b"]", "nested deeper"),
        (b"a = " + b"9" * 5000, "TOML"),
        (b"a = " + b"9" * 30, "whole number of 100 bits"),
        (b"<!DOCTYPE html><p>Sign in", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    ],
)
def test_what_is_wrong_with_the_bytes(tmp_path: Path, content: bytes, complaint: str) -> None:
    path = tmp_path / "a.toml"
    path.write_bytes(content)
    with pytest.raises(ProjectError, match=complaint) as caught:
        read_toml(path, what="a project file", error=ProjectError)
    assert "a.toml" in str(caught.value)
    assert "expected a project file" in str(caught.value)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('{"a": 1, "a": 2}', "'a' stands twice"),
        ('{"a": NaN}', "NaN is no number"),
        ('{"a": -Infinity}', "no number"),
        ('{"a": 1e99999}', "too large"),
        ('{"a": ' + "9" * 10_000 + "}", "10000 digits"),
        ('{"a": ' + "9" * 40 + "}", "bits"),
        ("[" * 100_000, "nested deeper"),
        ('{"a":' * 200 + "1" + "}" * 200, "nested deeper"),
        ('{"a": "\\ud800"}', "surrogate"),
        ('{"\\udfff": 1}', "surrogate"),
        ("", "an empty file"),
        ("{", "JSON"),
    ],
)
def test_json_that_a_later_step_would_stumble_over(text: str, complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        parse_json(text, where="r.json", what="a record", error=InputError)


def test_json_with_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_bytes('{"a": [1, 2.5, "é"]}'.encode("utf-8-sig"))
    assert read_json(path, what="a record") == {"a": [1, 2.5, "é"]}


@given(st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(content: bytes) -> None:
    with suppress(InputError):
        text = decode_text(content, where="f", what="settings", error=InputError)
        assert "\0" not in text
        assert isinstance(parse_toml(text, where="f", what="settings", error=InputError), dict)


@given(st.text(max_size=40))
def test_the_visible_form_is_its_own_visible_form(name: str) -> None:
    assert visible_form(visible_form(name)) == visible_form(name)


def test_names_that_look_the_same_have_one_visible_form() -> None:
    assert visible_form("cafe\u0301\u200b") == visible_form("caf\u00e9") == "caf\u00e9"
    assert visible_form("a\u00a0b") == visible_form(" a  b ") == "a b"
    assert visible_form("\ufeffcat") == "cat"
    assert visible_form("cat") != visible_form("Cat")
