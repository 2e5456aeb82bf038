"""No option's name, no type and no word of its help is cut, at the widths that terminals have."""

from __future__ import annotations

import re

import pytest
from typer.core import TyperGroup
from typer.main import get_command
from typer.testing import CliRunner

from bdaudit.cli import app
from tests.cli.test_commands import commands


@pytest.mark.parametrize("width", [60, 80, 100, 140])
def test_every_name_type_and_default_is_whole(width: int) -> None:
    group = get_command(app)
    assert isinstance(group, TyperGroup)
    defaults = 0
    for path, command in commands(group):
        shown = CliRunner().invoke(app, [*path, "--help"], env={"COLUMNS": str(width)}).stdout
        where = " ".join(path)
        assert max(map(len, shown.splitlines())) <= width, where
        tokens = set(shown.replace(",", " ").split())
        for parameter in command.params:
            if getattr(parameter, "hidden", False):
                continue
            for name in (*parameter.opts, *parameter.secondary_opts):
                if name.startswith("-"):
                    assert name in tokens, f"{where}: {name}"
            for word in (getattr(parameter, "help", None) or "").replace("\\[", "[").split():
                # A word wider than its column is folded; all others stand there whole.
                assert len(word) > width // 4 or word in shown, f"{where}: {word}"
            default = parameter.default
            if type(default) in (int, float) and getattr(parameter, "show_default", None) is True:
                assert re.search(rf"(?<!\S){re.escape(str(default))}\]", shown), f"{where}: {name}"
                defaults += 1
        assert "…" not in shown, where
    assert defaults > 10
