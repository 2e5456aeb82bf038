"""The keys of a project file against the options of the command, and the published schema."""

from __future__ import annotations

import json
import tomllib
from enum import Enum
from pathlib import Path
from typing import Any, get_args, get_type_hints

import jsonschema
import pytest
import typer

from bdaudit.cli import app
from bdaudit.cli.audit import audit as audit_command
from bdaudit.project import ProjectFile, json_schema, read_project
from bdaudit.project.schema import Table

PUBLISHED = Path(__file__).parents[2] / "docs" / "bdaudit.schema.json"

DELIBERATELY_NO_KEY = {
    "config": "it names the file itself",
    "trust_config": "a file cannot vouch for itself",
    "resume": "an act, not a setting",
    "quiet": "how this one run is watched",
    "debug": "how this one run is watched",
}


def tables() -> dict[str, type[Table]]:
    found = {}
    for name, field in ProjectFile.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Table):
            found[name] = field.annotation
    return found


def keys() -> dict[str, Any]:
    found: dict[str, Any] = {"policy": ProjectFile.model_fields["policy"]}
    for table in tables().values():
        for name, field in table.model_fields.items():
            key = field.alias or name
            assert key not in found, f"{key} is in two tables"
            found[key] = field
    return found


def options(name: str = "audit") -> dict[str, Any]:
    command = typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]
    return {p.name: p for p in command.params if p.name != "help"}


def test_every_option_of_audit_has_a_key_or_a_reason_to_have_none() -> None:
    without = options().keys() - keys().keys() - DELIBERATELY_NO_KEY.keys()
    assert not without, (
        f"{sorted(without)}: give each a field in bdaudit/project/schema.py (and rewrite "
        "docs/bdaudit.schema.json with `bdaudit init --schema`), or name it in "
        "DELIBERATELY_NO_KEY here with the reason"
    )
    of_defend = set(tables()["defend"].model_fields)
    assert not keys().keys() - options().keys() - of_defend, "keys that are no option any more"
    assert of_defend <= options("defend").keys(), "keys that are no option of defend any more"
    assert not DELIBERATELY_NO_KEY.keys() & keys().keys()


def test_a_key_allows_the_choices_of_its_option() -> None:
    compared = set()
    for name, annotation in get_type_hints(audit_command).items():
        choices = enum_in(annotation)
        if name in keys() and choices is not None:
            assert set(literals(keys()[name].annotation)) == {c.value for c in choices}, name
            compared.add(name)
    assert compared >= {"mode", "norm", "layout"}


def enum_in(annotation: Any) -> type[Enum] | None:
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return annotation
    return next((e for part in get_args(annotation) if (e := enum_in(part))), None)


def literals(annotation: Any) -> list[str]:
    if isinstance(annotation, str):
        return [annotation]
    return [text for part in get_args(annotation) for text in literals(part)]


def test_every_key_says_what_it_is_and_gives_an_example_that_holds(tmp_path: Path) -> None:
    for name, table in tables().items():
        for attribute, field in table.model_fields.items():
            assert field.description, attribute
            assert field.examples, attribute
            for example in field.examples:
                path = tmp_path / "bdaudit.toml"
                key = field.alias or attribute
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
