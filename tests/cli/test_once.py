"""What is given twice counts twice or is refused; nothing is dropped without a word."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.core import TyperCommand, TyperGroup, TyperOption
from typer.main import get_command
from typer.testing import CliRunner

from bdaudit.cli import app
from bdaudit.cli.once import OnceCommand


def commands(group: Any = None, names: tuple[str, ...] = ()) -> Iterator[tuple[str, TyperCommand]]:
    group = get_command(app) if group is None else group
    for name, command in group.commands.items():
        if isinstance(command, TyperGroup):
            yield from commands(command, (*names, name))
        else:
            yield " ".join((*names, name)), command


COMMANDS = dict(commands())


def two_values(option: TyperOption) -> tuple[list[str], list[str]]:
    """Write an option twice, differently; that comes to light before a value is looked at."""
    if option.secondary_opts:
        return [option.opts[0]], [option.secondary_opts[0]]
    return [option.opts[-1], "a"], [option.opts[-1], "b"]


@pytest.mark.parametrize("name", COMMANDS)
def test_no_option_of_any_command_is_dropped(name: str) -> None:
    command = COMMANDS[name]
    assert isinstance(command, OnceCommand)
    for option in command.params:
        if not isinstance(option, TyperOption) or option.multiple or option.count:
            continue
        if option.is_flag and not option.secondary_opts:
            continue
        first, second = two_values(option)
        with pytest.raises(Exception, match=f"{option.opts[-1]}: expected one value"):
            command.make_context(name, [*first, *second])
        assert not option.multiple


@pytest.mark.parametrize(
    "arguments",
    [
        ["gate", "a.json", "--policy", "a", "--policy", "b"],
        ["zoo", "build", "a.toml", "--out", "c", "--data", "a", "--data=b"],
    ],
)
def test_two_values_are_a_usage_error(arguments: list[str]) -> None:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert "expected one value, got 'a' and 'b'" in result.output


def test_the_same_value_twice_is_one_value(tmp_path: Any) -> None:
    missing = tmp_path / "no.json"
    arguments = ["gate", str(missing), "--policy", "a.toml", "--policy=a.toml"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 4
    assert "expected one value, got" not in result.output


def test_a_method_beside_auto(tmp_path: Path) -> None:
    model, data = tmp_path / "m.pt", tmp_path / "d"
    model.touch()
    data.touch()
    methods = ["--method", "auto", "--method", "warp"]
    result = CliRunner().invoke(app, ["invert", str(model), "--data", str(data), *methods])
    assert result.exit_code == 2
    assert "auto already runs the standard methods" in result.output
