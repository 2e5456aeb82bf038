"""From a BackdoorBench record folder to a project file for each defence in it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bdaudit.errors import ConfigError, ProjectError, reads
from bdaudit.foundation.opening import is_file
from bdaudit.project.reading import Project, check_project

__all__ = ["read_record_folder"]

_ATTACK = "attack_result.pt"
_DEFENSE = "defense_result.pt"
_TRIGGER = "trigger.toml"


@reads(ProjectError)
def read_record_folder(folder: Path, inputs: Mapping[str, Any]) -> list[tuple[str, Project]]:
    """Describe an audit of every defence in a record folder, against its attack.

    Args:
        folder: With `attack_result.pt`, `defense/<name>/defense_result.pt` and `trigger.toml`.
        inputs: What else is given, as the table `inputs` of a project file has it; paths as seen
            from the working folder.

    Returns:
        The defence's name and a project file each, in order of name.

    Raises:
        ProjectError: Something of the record is missing, or a value is out of range.
        ConfigError: No clean images were given.
    """
    defenses = sorted(folder.glob(f"defense/*/{_DEFENSE}"))
    if not is_file(folder / _ATTACK) or not defenses:
        raise ProjectError(
            f"{folder}: expected a manifest, or a BackdoorBench record folder with {_ATTACK} and "
            f"defense/<name>/{_DEFENSE}; got a folder without {'them' if not defenses else _ATTACK}"
        )
    if inputs.get("trigger") is None and not is_file(folder / _TRIGGER):
        raise ProjectError(
            f"{folder}: expected its trigger as {_TRIGGER}; write it from its poisoned test images "
            f"with `bdaudit trigger import {folder} --target N`, or name one with --trigger"
        )
    if inputs.get("data") is None:
        raise ConfigError(f"{folder}: a record holds no clean images; give them with --data")
    shared = {key: value for key, value in inputs.items() if value not in (None, ())}
    projects = []
    for file in defenses:
        table = {
            "original": _ATTACK,
            "trigger": _TRIGGER,
            **shared,
            "defended": str(file.relative_to(folder)),
        }
        # Paths are relative to the file that a project is read from.
        project = check_project({"inputs": table}, folder / "record", where=str(file))
        projects.append((file.parent.name, project))
    return projects
