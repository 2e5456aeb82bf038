"""What a project file may say: the tables of `bdaudit.settings`, and a policy.

Every key is an option of a command that reads the file, by the option's own name, in a table that
is a panel of the command's help.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, create_model

from bdaudit.settings import (
    Attack,
    Clip,
    Compute,
    Declared,
    Defend,
    Engine,
    Existence,
    Inputs,
    Inversion,
    Models,
    Output,
    Query,
    Relearning,
    Surrogates,
    Table,
    declared,
)
from bdaudit.verdict.policy import Policy

__all__ = ["TABLES", "ProjectFile", "in_list", "is_list", "json_schema", "keys_of", "project_model"]


@dataclass(frozen=True, kw_only=True)
class ProjectFile:
    """Everything `bdaudit audit` needs, so that it can be run without arguments.

    The commands score, reactivate, relearn, invert and defend take from it what they have options
    for. Keys are the options by name. Paths are relative to this file. What is left out keeps the
    command's default, and the command line wins over the file.
    """

    inputs: Inputs = field(default_factory=Inputs)
    models: Models = field(default_factory=Models)
    clip: Clip = field(default_factory=Clip)
    attack: Attack = field(default_factory=Attack)
    query: Query = field(default_factory=Query)
    surrogates: Surrogates = field(default_factory=Surrogates)
    compute: Compute = field(default_factory=Compute)
    output: Output = field(default_factory=Output)
    existence: Existence = field(default_factory=Existence)
    relearning: Relearning = field(default_factory=Relearning)
    inversion: Inversion = field(default_factory=Inversion)
    defend: Defend = field(default_factory=Defend)
    engine: Engine = field(default_factory=Engine)
    policy: str | Policy | None = None


def _tables() -> dict[str, type[Table]]:
    hints = get_type_hints(ProjectFile)
    named = {each.name: hints[each.name] for each in fields(ProjectFile)}
    return {k: v for k, v in named.items() if isinstance(v, type) and issubclass(v, Table)}


TABLES: Mapping[str, type[Table]] = _tables()
"""The tables of a project file by name."""


def keys_of(table: type[Table]) -> dict[str, Declared]:
    """Return what a project file may set in a table, by key."""
    return {each.key: each for each in declared(table) if each.option.in_file}


_STRICT = ConfigDict(frozen=True, extra="forbid", strict=True)


def _model_of(table: type[Table]) -> type[BaseModel]:
    """Make the model that a table in a file is checked by: TOML's own types and no guessing."""
    keys: dict[str, Any] = {
        each.attribute: (_type_in_file(each), _field(each)) for each in keys_of(table).values()
    }
    return create_model(table.__name__, __config__=_STRICT, __doc__=table.__doc__, **keys)


def _type_in_file(each: Declared) -> Any:
    form = each.option.form
    if form is not None:
        kind = form.in_file
    elif each.several:
        kind = list[each.item]  # type: ignore[name-defined]
    else:
        return each.type
    if not is_list(each):
        return kind
    (item,) = get_args(kind)
    # `mode = "white"` for `mode = ["white"]`: what nobody can misread is not refused.
    return Annotated[kind, BeforeValidator(in_list, json_schema_input_type=kind | item)]


def is_list(each: Declared) -> bool:
    """Whether a project file has a list for a key."""
    form = each.option.form
    return each.several if form is None else get_origin(form.in_file) is list


def in_list(value: Any) -> list[Any]:
    """Return the list that a value in a file stands for: itself, or the one it is alone in."""
    return value if isinstance(value, list) else [value]


def _field(each: Declared) -> Any:
    said = each.option
    default = None if said.form is not None or each.several else each.default

    def complete(schema: dict[str, Any]) -> None:
        _without_default(schema)
        if default is not None:
            schema["default"] = default
        if said.now is not None:
            schema["deprecated"] = True

    ranged: dict[str, Any] = {"ge": said.ge, "gt": said.gt, "le": said.le}
    return Field(
        # What is left out is told from what is given by `model_fields_set`; `None` is no TOML.
        default=None,
        alias=each.key,
        description=said.help,
        examples=list(said.examples) or None,
        json_schema_extra=complete,
        **{name: limit for name, limit in ranged.items() if limit is not None},
    )


@cache
def _own_model() -> type[BaseModel]:
    return project_model(TABLES)


def project_model(tables: Mapping[str, type[Table]] | None = None) -> type[BaseModel]:
    """Return the model that a project file is checked by.

    Args:
        tables: By name; `None` takes those of `ProjectFile`.
    """
    if tables is None:
        return _own_model()
    models: dict[str, Any] = {
        name: (_model_of(table), Field(default=None, json_schema_extra=_without_default))
        for name, table in tables.items()
    }
    models["policy"] = (
        str | Policy,
        Field(
            default=None,
            description="Limits of the verdict: a table, or the path of a policy file.",
            json_schema_extra=_without_default,
        ),
    )
    config = ConfigDict(**_STRICT, title="bdaudit project file")
    return create_model("ProjectFile", __config__=config, __doc__=ProjectFile.__doc__, **models)


def _without_default(schema: dict[str, Any]) -> None:
    schema.pop("default", None)


def json_schema(tables: Mapping[str, type[Table]] | None = None) -> str:
    """Return the JSON schema of a project file, for editors, as indented JSON.

    Args:
        tables: As for `project_model`.
    """
    schema: dict[str, Any] = project_model(tables).model_json_schema()
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"
