"""The keys of a project file against the options of the command, and the published schema."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import typer

import bdaudit.settings
from bdaudit.cli import app
from bdaudit.cli.bundles import Bundle, NotFromFile, bundles_of
from bdaudit.project import json_schema, read_project
from bdaudit.project.schema import TABLES, keys_of
from bdaudit.settings import Declared

PUBLISHED = Path(__file__).parents[2] / "docs" / "bdaudit.schema.json"

DELIBERATELY_NO_KEY = {
    "config": "it names the file itself",
    "trust_config": "a file cannot vouch for itself",
    "resume": "an act, not a setting",
    "quiet": "how this one run is watched",
    "debug": "how this one run is watched",
    "policy": "a table of its own, or a path at the top",
    "plan": "an act, not a setting",
    "budget": "a choice of settings for one run, which a file states one by one",
}


COMMANDS = ("audit", "score", "reactivate", "relearn", "invert", "defend")


def tables_of(command: str) -> dict[str, Bundle]:
    """Return the tables that a command has options for, by their names in a project file."""
    bundles = {b.table: b for b in bundles_of(commands()[command].callback)}
    return {name: bundles[table] for name, table in TABLES.items() if table in bundles}


def keys(command: str) -> dict[str, Declared]:
    found: dict[str, Declared] = {}
    for name in tables_of(command):
        for key, setting in keys_of(TABLES[name]).items():
            assert key not in found, f"{command}: {key} is in two tables"
            found[key] = setting
    return found


def commands() -> dict[str, Any]:
    found: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    return found


def options(name: str = "audit") -> dict[str, Any]:
    return {p.name: p for p in commands()[name].params if p.name != "help"}


def test_every_option_of_audit_has_a_key_or_a_reason_to_have_none() -> None:
    without = options().keys() - keys("audit").keys() - DELIBERATELY_NO_KEY.keys()
    assert not without, (
        f"{sorted(without)}: declare each in bdaudit/settings/tables.py, or name it in "
        "DELIBERATELY_NO_KEY here with the reason"
    )
    assert not keys("audit").keys() - options().keys(), "keys that are no option any more"
    assert not DELIBERATELY_NO_KEY.keys() & keys("audit").keys()


def test_every_key_is_an_option_of_a_command_that_reads_the_file() -> None:
    taken = {
        (name, setting.key)
        for command in COMMANDS
        for name, bundle in tables_of(command).items()
        for setting in bundle.taken
        if setting.key not in bundle.named(NotFromFile)
    }
    for name, table in TABLES.items():
        for key in keys_of(table):
            assert (name, key) in taken, f"{name}.{key}: no command takes it from the file"


def test_every_declared_table_is_one_of_the_project_file() -> None:
    tables = {each for each in vars(bdaudit.settings).values() if is_table(each)}
    # A policy is a table of the file by itself, with limits and not options in it.
    assert tables - {bdaudit.settings.Limits} == set(TABLES.values())


def is_table(thing: Any) -> bool:
    table = bdaudit.settings.Table
    return isinstance(thing, type) and issubclass(thing, table) and thing is not table


def test_every_key_says_what_it_is_and_gives_an_example_that_holds(tmp_path: Path) -> None:
    for name, table in TABLES.items():
        for key, setting in keys_of(table).items():
            assert setting.option.help, key
            assert setting.option.examples or setting.option.now, key
            for example in setting.option.examples:
                path = tmp_path / "bdaudit.toml"
                path.write_text(f"[{name}]\n{key} = {json.dumps(example)}\n")
                assert key in read_project(path).options([name])


def test_the_published_schema_is_current() -> None:
    assert json.loads(PUBLISHED.read_text()) == json.loads(json_schema()), (
        "write it anew: bdaudit init --schema > docs/bdaudit.schema.json"
    )


@pytest.mark.parametrize(
    ("text", "valid"),
    [
        ('[inputs]\ndata = "x"\n[attack]\neps = [0.01, "2/255"]\n[policy]\nlift = 0.2\n', True),
        ('policy = "limits.toml"\n', True),
        ("[inputz]\n", False),
        ("[attack]\npasses = 'many'\n", False),
        ("[policy]\nlift = 7\n", False),
    ],
)
def test_an_editor_sees_what_the_reader_sees(text: str, valid: bool) -> None:
    schema = json.loads(json_schema())
    jsonschema.Draft202012Validator.check_schema(schema)
    errors = list(jsonschema.Draft202012Validator(schema).iter_errors(tomllib.loads(text)))
    assert (not errors) is valid, errors
