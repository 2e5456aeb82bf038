"""Transfer mode as a user types it."""

from __future__ import annotations

from pathlib import Path

import pytest

from bdaudit.records import read_record
from tests.cli.test_commands import audit_arguments, files, run
from tests.cli.test_query_commands import ASKED

__all__ = ["files"]


def reactivate_arguments(files: Path, defended: str, *more: object) -> list[object]:
    arguments = audit_arguments(files, "dormant", "--mode", "transfer")
    arguments[0:2] = ["reactivate", defended]
    for option in ("--reference", "--original", "--stand-ins"):
        while option in arguments:
            at = arguments.index(option)
            del arguments[at : at + 2]
    arguments[arguments.index("0.02,0.05")] = "0.05"
    return [*arguments, *more]


def test_a_function_is_woken_by_what_was_made_on_another_model(files: Path, tmp_path: Path) -> None:
    arguments = reactivate_arguments(
        files, f"{ASKED}:scores", "--surrogate", files / "dormant.safetensors"
    )
    result = run(*arguments, "--json", tmp_path / "r.json", "--save", tmp_path / "d.safetensors")
    assert result.exit_code == 0, result.output
    assert "Re-activation (transfer)" in result.stdout
    record = read_record(tmp_path / "r.json")
    (woken,) = [r for r in record.runs if r.role == "defended" and r.condition == "trigger"]
    assert woken.made_on == ("surrogate 1",)
    assert woken.image_queries == 0
    assert woken.asr.value > 0.5
    assert (tmp_path / "d.safetensors").is_file()


def test_a_missing_surrogate_is_an_unusable_input(files: Path) -> None:
    result = run(
        *reactivate_arguments(
            files, f"{files / 'dormant.safetensors'}", "--surrogate", files / "absent.safetensors"
        )
    )
    assert result.exit_code == 4
    assert "absent.safetensors" in result.stderr


def test_transfer_needs_something_to_be_made_on(files: Path) -> None:
    result = run(*reactivate_arguments(files, f"{files / 'dormant.safetensors'}"))
    assert result.exit_code == 2
    assert "--surrogate" in result.stderr


@pytest.mark.parametrize("where", [("--cache", "kept"), ()])
def test_surrogates_are_kept_where_the_user_says(
    files: Path, tmp_path: Path, where: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BDAUDIT_CACHE", str(tmp_path / "own"))
    arguments = reactivate_arguments(
        files,
        f"{files / 'dormant.safetensors'}",
        "--original",
        files / "original.safetensors",
        "--quiet",
        *where,
    )
    first = run(*arguments)
    assert first.exit_code == 0, first.output
    folder = tmp_path / (where[1] if where else "own") / "models"
    assert len(list(folder.iterdir())) == 4
    assert run(*arguments, "--no-cache").exit_code == (2 if where else 0)
