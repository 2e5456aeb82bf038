from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bdaudit.errors import FetchError
from bdaudit.fetching import public_url
from bdaudit.fetching.urls import parse_url
from bdaudit.foundation.sources import is_url

SHA = "ab" * 32
WORD = st.text("abcdefghijklmnopqrstuvwxyz0123456789", min_size=6, max_size=12)


@given(secret=WORD.map(lambda word: f"SECRET{word}"), path=WORD, key=WORD)
def test_no_secret_is_ever_public(secret: str, path: str, key: str) -> None:
    for url in (
        f"https://{secret}@host/{path}.pt",
        f"https://u:{secret}@host/{path}.pt#sha256={SHA}",
        f"https://host/{path}.pt?{key}={secret}",
        f"s3://{secret}:{secret}@bucket/{path}.npz?x={secret}",
        f"https://host/{path}.pt#{secret}",
        f"https://u:{secret}@[broken/{path}",
    ):
        assert secret not in public_url(url)
        try:
            shown = parse_url(url).public
        except FetchError as error:
            shown = str(error)
        assert secret not in shown


def test_what_is_no_url_stays_as_it_is() -> None:
    for text in ("a/b.pt", "C:/models/a.pt", "net.py:build", "2/255", ""):
        assert not is_url(text)
        assert public_url(text) == text


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://host/a/model.safetensors", "model.safetensors"),
        ("https://host/a%20b.npz?x=1", "a b.npz"),
        ("https://host/..%2F..%2Fetc", "etc"),
        ("https://host/a/%2e%2e", ""),
        ("s3://bucket/dir/clean.npz", "clean.npz"),
        ("hf://org/repo/dir/model.pt@main", "model.pt"),
        ("hf://org/repo/model.pt@refs/pr/1", "model.pt"),
        ("hf://org/repo@v1/dir/model.pt", "model.pt"),
        ("hf://datasets/org/repo/clean.npz@main", "clean.npz"),
    ],
)
def test_a_file_keeps_its_name(url: str, name: str) -> None:
    if name:
        assert parse_url(url).name == name
    else:
        with pytest.raises(FetchError, match="names no file"):
            parse_url(url)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("ftp://host/a.pt", "expected one of the protocols"),
        ("file:///etc/passwd", "expected one of the protocols"),
        ("simplecache::s3://b/k.pt", "expected one of the protocols"),
        ("https://host/folder/", "names no file"),
        ("https://host", "names no file"),
        ("https://host/a.pt#md5=1", "sha256="),
        ("http://example.org/a.pt", "anyone on the way"),
    ],
)
def test_what_cannot_be_fetched_says_why(url: str, said: str) -> None:
    with pytest.raises(FetchError, match=said):
        parse_url(url)


def test_plain_http_is_for_pinned_files_and_this_machine() -> None:
    assert parse_url(f"http://example.org/a.pt#sha256={SHA}").sha256 == SHA
    assert parse_url("http://localhost:8000/a.pt").sha256 is None
    assert parse_url(f"https://u:p@h/a.pt?q=1#sha256={SHA}").shown == f"https://h/a.pt#sha256={SHA}"
