"""A setting that is declared in a table is an option, a key and a line of the page at once."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner, Result

from bdaudit.cli.bundles import (
    Argument,
    Default,
    InPanel,
    Only,
    Required,
    Reworded,
    Single,
    Without,
    taking_tables,
)
from bdaudit.cli.exits import reporting_errors
from bdaudit.cli.reference import describe_command
from bdaudit.errors import ConfigError
from bdaudit.project.schema import TABLES, json_schema, project_model
from bdaudit.settings import Attack, Compute, Query, declared, option


@dataclass(frozen=True, kw_only=True)
class MoreAttack(Attack):
    """The table of attacks with one setting more."""

    warm_up: int = option(7, help="Passes before the first one counts.", examples=(7,), ge=2, le=9)


def app_of(command: object) -> typer.Typer:
    app = typer.Typer()
    app.command()(command)  # type: ignore[type-var]
    return app


def run(command: object, *arguments: object) -> Result:
    return CliRunner().invoke(
        app_of(command), [str(a) for a in arguments], env={"COLUMNS": "200", "TERM": "dumb"}
    )


def test_a_setting_that_is_added_to_a_table_is_everywhere() -> None:
    @reporting_errors
    @taking_tables
    def command(attack: MoreAttack) -> None:
        """Attack."""
        typer.echo(f"warm_up {attack.warm_up}")

    helped = run(command, "--help").output
    assert "--warm-up" in helped
    assert "Passes before the first one counts." in helped
    assert "2<=x<=9" in helped
    assert "[default: 7]" in helped
    assert "warm_up 7" in run(command).output
    assert "warm_up 3" in run(command, "--warm-up", 3).output
    assert run(command, "--warm-up", 1).exit_code == 2
    tables = {**TABLES, "attack": MoreAttack}
    assert project_model(tables).model_validate({"attack": {"warm_up": 3}})
    with pytest.raises(ValueError, match="less than or equal to 9"):
        project_model(tables).model_validate({"attack": {"warm_up": 10}})
    schema = json.loads(json_schema(tables))["$defs"]["MoreAttack"]["properties"]["warm_up"]
    assert (schema["default"], schema["minimum"], schema["maximum"]) == (7, 2, 9)
    page = describe_command("attack", command)
    assert (
        "| `--warm-up` | whole number, 2 to 9 | 7 | Passes before the first one counts. |" in page
    )
    with pytest.raises(ConfigError, match="warm_up: expected 9 or less, got 10"):
        MoreAttack(warm_up=10)


def test_part_of_a_table_is_taken_and_the_rest_keeps_its_default() -> None:
    @taking_tables
    def command(
        attack: Annotated[Attack, Only("eps", "passes"), InPanel("Audits")],
        query: Annotated[Query, Without("max_queries", "state")],
    ) -> None:
        typer.echo(f"{attack.eps} {attack.passes} {attack.norm} {query.max_queries}")

    assert run(command, "--eps", "0.1,2/255", "--eps", "0.3", "--passes", 2).output.strip() == (
        f"({0.1}, {2 / 255}, {0.3}) 2 linf 20000"
    )
    helped = run(command, "--help").output
    assert "Audits" in helped
    for name in ("--norm", "--max-queries", "--state"):
        assert name not in helped


def test_a_command_may_demand_place_and_reword_a_setting() -> None:
    @reporting_errors
    @taking_tables
    def command(
        attack: Annotated[
            Attack,
            Only("eps", "mode", "objective"),
            Single("eps", "mode"),
            Required("eps"),
            Argument("objective"),
            Reworded(eps="The one radius."),
            Default(mode="whatever goes"),
        ],
    ) -> None:
        typer.echo(f"{attack.eps} {attack.mode} {attack.objective}")

    assert run(command).exit_code == 2
    assert run(command, "specific", "--eps", "1/4", "--mode", "query").output.strip() == (
        "(0.25,) ('query',) specific"
    )
    helped = run(command, "--help").output
    assert "The one radius." in helped
    assert "[default: whatever goes]" in helped


def test_a_value_that_cannot_be_read_is_a_usage_error_that_names_the_option() -> None:
    @reporting_errors
    @taking_tables
    def command(attack: Annotated[Attack, Only("eps")]) -> None:
        raise AssertionError

    result = run(command, "--eps", "small")
    assert result.exit_code == 2
    assert "--eps: expected numbers such as 0.02 or 8/255" in result.output


def test_a_mark_with_a_name_that_the_table_has_not_is_refused_at_once() -> None:
    with pytest.raises(AssertionError, match="passess"):

        @taking_tables
        def command(attack: Annotated[Attack, Only("passess")]) -> None: ...


@pytest.mark.parametrize(("flag", "precision"), [("--bf16", "bfloat16"), ("--no-bf16", "float32")])
def test_the_old_name_of_the_precision_works_warns_and_is_hidden(flag: str, precision: str) -> None:
    @taking_tables
    def command(compute: Compute) -> None:
        typer.echo(compute.precision)

    result = run(command, flag)
    assert result.stdout.strip() == precision
    assert (
        f'bf16 will be removed in the next release: use precision = "{precision}"' in result.stderr
    )
    assert "bf16" not in run(command, "--help").output
    assert run(command, "--precision", "bfloat16").stderr == ""


def test_every_default_is_within_its_own_range() -> None:
    for table in TABLES.values():
        for setting in declared(table):
            setting.check(setting.default)


def test_the_reference_page_is_current() -> None:
    from bdaudit.cli.reference import reference_page

    page = Path(__file__).parents[2] / "docs" / "command-line.md"
    assert page.read_text() == reference_page(), (
        "write it anew: python -m bdaudit.cli.reference > docs/command-line.md"
    )
