"""From a BackdoorBench record folder to a project file for each defence in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bdaudit.errors import ConfigError, ProjectError, reads
from bdaudit.foundation.opening import is_file, is_folder
from bdaudit.project.reading import Project, check_project
from bdaudit.project.reported import read_reported
from bdaudit.records.sweeps import ReportedFigures

__all__ = ["RecordFolder", "is_trigger_missing", "read_record_folder"]

_ATTACK = "attack_result.pt"
_DEFENSE = "defense_result.pt"
_TRIGGER = "trigger.toml"
_POISONED = "bd_test_dataset"
_SETTINGS = "info.pickle"


@dataclass(frozen=True, kw_only=True)
class RecordFolder:
    """What is to be audited in a record folder.

    Attributes:
        projects: A project file a defence, by the defence's name, in order of name.
        reported: What BackdoorBench's own CSV say, by the same names and "original" for the attack;
            those that have none are left out.
        notes: Which CSV were not read, and why.
    """

    projects: dict[str, Project]
    reported: dict[str, ReportedFigures]
    notes: tuple[str, ...]


def is_trigger_missing(folder: Path) -> bool:
    """Return whether a record has all that its trigger file is made of, and no such file."""
    return (
        not is_file(folder / _TRIGGER)
        and is_folder(folder / _POISONED)
        and is_file(folder / _SETTINGS)
    )


@reads(ProjectError)
def read_record_folder(folder: Path, inputs: Mapping[str, Any]) -> RecordFolder:
    """Describe an audit of every defence in a record folder, against its attack.

    Args:
        folder: With `attack_result.pt`, `defense/<name>/defense_result.pt` and `trigger.toml`.
        inputs: What else is given, as the table `inputs` of a project file has it; paths as seen
            from the working folder.

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
    projects: dict[str, Project] = {}
    places = {"original": (folder, "attack")}
    for file in defenses:
        table = {
            "original": _ATTACK,
            "trigger": _TRIGGER,
            **shared,
            "defended": str(file.relative_to(folder)),
        }
        # Paths are relative to the file that a project is read from.
        name = file.parent.name
        projects[name] = check_project({"inputs": table}, folder / "record", where=str(file))
        places[name] = (file.parent, name)
    reported, notes = {}, []
    for name, (place, called) in places.items():
        figures, note = read_reported(place, called)
        if figures is not None:
            reported[name] = figures
        if note is not None:
            notes.append(f"{name}: {note}")
    return RecordFolder(projects=projects, reported=reported, notes=tuple(notes))
