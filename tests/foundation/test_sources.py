from __future__ import annotations

from pathlib import Path

import pytest

from bdaudit.foundation.sources import (
    FileSource,
    InMemory,
    OnnxFile,
    PythonFunction,
    RemoteFile,
    ServedModel,
    is_url,
    parse_file,
    parse_model,
)


@pytest.mark.parametrize(
    ("said", "is_what"),
    [
        ("a/defended.pt", FileSource(Path("a/defended.pt"))),
        (Path("defended"), FileSource(Path("defended"))),
        ("net.ONNX", OnnxFile(Path("net.ONNX"))),
        (Path("a/net.onnx"), OnnxFile(Path("a/net.onnx"))),
        ("my/served.py:predict", PythonFunction(Path("my/served.py"), "predict")),
        ("served.py", FileSource(Path("served.py"))),
        ("C:/odd.py:not a name", FileSource(Path("C:/odd.py:not a name"))),
        ("https://h/v2/models/net", ServedModel("https://h/v2/models/net")),
        (
            "HTTP://h:8080/v2/models/net/versions/1",
            ServedModel("HTTP://h:8080/v2/models/net/versions/1"),
        ),
        ("s3://bucket/v2/models/net.pt", RemoteFile("s3://bucket/v2/models/net.pt")),
        ("https://h/net.pt?sig=1", RemoteFile("https://h/net.pt?sig=1")),
        (
            "https://h/net.onnx?sig=1#sha256=00",
            RemoteFile("https://h/net.onnx?sig=1#sha256=00", True),
        ),
        ("hf://org/repo/net.onnx@main", RemoteFile("hf://org/repo/net.onnx@main", True)),
        ("http://[half/net.pt", RemoteFile("http://[half/net.pt")),
    ],
)
def test_a_model_is_what_its_name_says(said: object, is_what: object) -> None:
    found = parse_model(said)
    assert found == is_what
    assert parse_model(found) is found
    assert str(found) == str(said)


def test_data_and_triggers_are_files_addresses_or_objects() -> None:
    # No server answers for images, and a folder may be called anything.
    assert parse_file("http://h/v2/models/net") == RemoteFile("http://h/v2/models/net")
    assert parse_file("clean.py:images") == FileSource(Path("clean.py:images"))
    pair = ([1], [2])
    found = parse_file(pair)
    assert isinstance(found, InMemory)
    assert found.value is pair
    assert parse_file(found) is found


def test_what_was_fetched_keeps_its_kind() -> None:
    cached = Path("cache/0a1b")
    assert RemoteFile("https://h/net.onnx", is_onnx=True).at(cached) == OnnxFile(cached)
    assert RemoteFile("https://h/net.pt").at(cached) == FileSource(cached)
    assert RemoteFile("https://h/n#sha256=" + "0" * 64).is_pinned
    assert not RemoteFile("https://h/n").is_pinned


def test_a_path_is_no_url() -> None:
    assert not is_url(Path("https://h/net.pt"))
    assert not is_url("C:\\net.pt")
    assert not is_url("net.pt")
