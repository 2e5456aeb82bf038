"""What is read from a user can fail in any way, and is never called a fault of bdaudit's."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner, Result

from bdaudit.blackbox import open_black_box
from bdaudit.cli import app
from bdaudit.errors import (
    ConfigError,
    InputError,
    ModelError,
    NumericsError,
    TriggerError,
    reading,
    reads,
)
from bdaudit.foundation.number_texts import read_numbers, read_size
from bdaudit.foundation.usercode import failing_as, load_function
from bdaudit.models import load_model
from bdaudit.records import read_record
from bdaudit.triggers import read_trigger
from bdaudit.triggers.function import load_function as load_trigger_function


class OutOfMemoryError(RuntimeError):
    """As torch raises for a GPU."""


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (RecursionError("x"), "f: nested too deeply to be read"),
        (MemoryError(), "f: needs more memory than is available"),
        (OSError(36, "File name too long"), "f: File name too long"),
        (UnicodeDecodeError("utf-8", b"a\xff", 1, 2, "bad"), "f: expected text in UTF-8, got byte "
         "0xff at offset 1"),
        (ValueError("embedded null byte\nmore"), "f: cannot be read (ValueError: embedded null "
         "byte)"),
        (OverflowError(), "f: cannot be read (OverflowError)"),
        (AttributeError("z" * 5000), "f: cannot be read (AttributeError: zzz"),
    ],
)  # fmt: skip
def test_whatever_a_parser_raises_names_the_file(raised: Exception, said: str) -> None:
    with pytest.raises(ModelError) as found, reading("f", ModelError):
        raise raised
    assert str(found.value).startswith(said)
    assert len(str(found.value)) < 500
    assert found.value.__cause__ is raised


@pytest.mark.parametrize(
    "raised", [NumericsError("n"), OutOfMemoryError("gpu"), KeyboardInterrupt(), SystemExit(0)]
)
def test_what_is_no_fault_of_the_file_passes(raised: BaseException) -> None:
    with pytest.raises(type(raised)), reading("f"):
        raise raised


def test_a_reader_is_named_by_its_first_argument() -> None:
    @reads(TriggerError)
    def read(path: object, *, deep: bool) -> int:
        if deep:
            raise RecursionError
        return 1

    assert read("x", deep=False) == 1
    with pytest.raises(TriggerError, match=r"^a/b\.toml: nested"):
        read(Path("a/b.toml"), deep=True)
    with pytest.raises(TriggerError, match=r"^dict: nested"):
        read({"secret": 1}, deep=True)


@pytest.mark.parametrize("raised", ["SystemExit(0)", "BaseException('x')", "GeneratorExit2()"])
def test_code_that_leaves_is_an_unusable_input(tmp_path: Path, raised: str) -> None:
    source = f"class GeneratorExit2(BaseException): pass\ndef f(images):\n    raise {raised}\n"
    (tmp_path / "t.py").write_text(source)
    (tmp_path / "top.py").write_text(source.replace("def f(images):\n    ", ""))
    for load in (load_function, load_trigger_function):
        with pytest.raises(InputError):
            load(tmp_path / "top.py", "f")
    images = torch.zeros(2, 1, 2, 2)
    with pytest.raises(TriggerError):
        load_trigger_function(tmp_path / "t.py", "f").apply(images, None)
    asked = open_black_box(
        f"{tmp_path / 't.py'}:f",
        name="m",
        fallback_image_shape=(1, 2, 2),
        fallback_num_classes=2,
    )
    with pytest.raises(ModelError):
        asked.ask(images)
    with pytest.raises(ModelError):
        load_model("m.pt", name="m", arch=f"{tmp_path / 'top.py'}:f")


def test_an_interrupt_of_code_is_one() -> None:
    with pytest.raises(KeyboardInterrupt), failing_as(ModelError, "f"):
        raise KeyboardInterrupt


DEEP = "a = " + "[" * 20_000


@pytest.mark.parametrize(
    "text",
    [
        DEEP, "a = " + "{b=" * 5000, "x = " + "9" * 5000, 'kind = ["patch"]', "kind = {a = 1}",
        "kind = 5", 'kind = "patch"\nimage = "a\\u0000b"',
        f'kind = "patch"\nimage = "{"a" * 5000}"',
        'version = 1\nkind = "blend"\nalpha = 1' + "0" * 500,
    ],
)  # fmt: skip
def test_a_trigger_file_of_any_content_is_read_or_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "t.toml"
    path.write_text(text)
    with pytest.raises(TriggerError):
        read_trigger(path)


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, '{"a":' * 100_000, '{"schema_version": 1, "kind": ["audit"]}',
     '{"schema_version": 1, "kind": {"a": 1}}', '{"schema_version": ' + "9" * 5000 + "}",
     '{"schema_version": 1, "kind": "audit", "content_sha256": "x", "why": "\\ud800"}',
     '"\\ud800"', "NaN", "1e999999"],
)  # fmt: skip
def test_a_record_of_any_content_is_an_unusable_input(tmp_path: Path, text: str) -> None:
    path = tmp_path / "r.json"
    path.write_text(text)
    with pytest.raises(InputError):
        read_record(path)
    for verb in ("report", "gate"):
        ran = run(verb, path)
        assert ran.exit_code == 4, ran.output
        assert ran.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "settings",
    [DEEP, "a = " + "9" * 5000, "\x00", "[tool]\nbdaudit = 5", "tool = 5", "tool = [1]"],
)
@pytest.mark.parametrize("name", ["bdaudit.toml", "pyproject.toml"])
def test_a_file_that_lies_in_the_folder_is_no_fault_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: str, name: str
) -> None:
    (tmp_path / name).write_text(settings)
    monkeypatch.chdir(tmp_path)
    for line in (["audit"], ["audit", "--config", name], ["gate", "r.json", "--policy", name]):
        assert run(*line).exit_code in (2, 4), line


def test_paths_that_are_none(tmp_path: Path) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    for path in ("a" * 5000, "a/" * 3000, str(loop), "\ud800"):
        for verb in ("inspect", "report", "gate"):
            assert run(verb, path).exit_code in (2, 4), (verb, path[:9])
    assert run("inspect", loop, "--json", "x\0y").exit_code in (2, 4)


@pytest.mark.parametrize(
    "text",
    ["1e99999", "nan", "inf", "-inf", "1/0", "0x10", "9" * 5000,
     "1/" + "9" * 5000, "", "0.1,,0.2", "1e999999999", "½"],
)  # fmt: skip
def test_no_number_takes_long_or_is_none(text: str) -> None:
    with pytest.raises(ConfigError) as found:
        read_numbers(text)
    assert len(str(found.value)) < 500
    with pytest.raises(ConfigError):
        read_size(text)


def test_numbers_are_read_as_before() -> None:
    assert read_numbers("8/255, 0.02,1e-3") == (8 / 255, 0.02, 1e-3)
    with pytest.raises(ConfigError, match="expected numbers"):  # it would be read as 0
        read_numbers("1e-999999999")
    assert read_size("32") == (32, 32)
    assert read_size("32x24") == (32, 24)


@pytest.mark.parametrize(
    "option",
    [["--eps", "1e99999"], ["--eps", "nan"], ["--eps", "9" * 5000], ["--timeout", "nan"],
     ["--timeout", "inf"], ["--seed", "1" + "0" * 30], ["--seed", "9" * 5000],
     ["--image-shape", "1," + "9" * 5000 + ",1"], ["--input-size", "9" * 5000]],
)  # fmt: skip
def test_numbers_beyond_reason_are_wrong_usage(option: list[str]) -> None:
    line = ["audit", "d.pt", "--original", "o.pt", "--data", "d.npz", *option]
    ran = run(*line)
    assert ran.exit_code == 2, ran.output


def test_a_draft_quotes_names_and_obeys_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [
        "defended\x1b[2J\n[inputs]\nallow-trigger-code = true\n#.safetensors",
        "defended-2\u202e\x7f\x9b🙂.safetensors",
        "original\u202e\x7f\x9b🙂.safetensors",
    ]
    for name in names:
        save_file({"w": torch.zeros(2, 2)}, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    ran = run("init")
    assert ran.exit_code == 0, ran.output
    text = (tmp_path / "bdaudit.toml").read_text(encoding="utf-8")
    assert all(sign not in text + ran.output for sign in "\x1b\x7f\x9b\u202e")
    inputs = tomllib.loads(text)["inputs"]
    assert "allow-trigger-code" not in inputs
    assert inputs["original"] == names[2]
