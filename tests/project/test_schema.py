"""The keys of a project file against the options of the command, and the published schema."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import typer

from bdaudit.cli import app
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
}


def keys() -> dict[str, Declared]:
    found: dict[str, Declared] = {}
    for table in TABLES.values():
        for key, setting in keys_of(table).items():
            assert key not in found, f"{key} is in two tables"
            found[key] = setting
    return found


def options(name: str = "audit") -> dict[str, Any]:
    command = typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]
    return {p.name: p for p in command.params if p.name != "help"}


def test_every_option_of_audit_has_a_key_or_a_reason_to_have_none() -> None:
    without = options().keys() - keys().keys() - DELIBERATELY_NO_KEY.keys()
    assert not without, (
        f"{sorted(without)}: declare each in bdaudit/settings/tables.py, or name it in "
        "DELIBERATELY_NO_KEY here with the reason"
    )
    of_defend = keys_of(TABLES["defend"]).keys()
    assert not keys().keys() - options().keys() - of_defend, "keys that are no option any more"
    assert of_defend <= options("defend").keys(), "keys that are no option of defend any more"
    assert not DELIBERATELY_NO_KEY.keys() & keys().keys()


def test_every_key_says_what_it_is_and_gives_an_example_that_holds(tmp_path: Path) -> None:
    for name, table in TABLES.items():
        for key, setting in keys_of(table).items():
            assert setting.option.help, key
            assert setting.option.examples or setting.option.now, key
            for example in setting.option.examples:
                path = tmp_path / "bdaudit.toml"
                path.write_text(f"[{name}]\n{key} = {json.dumps(example)}\n")
                assert key in read_project(path).options()


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
