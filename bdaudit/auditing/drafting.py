"""Draft a project file from what lies in a folder."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bdaudit.data import load_sample
from bdaudit.data.folder import CLASSES_FILE
from bdaudit.errors import BdauditError, InputError, reads
from bdaudit.foundation.opening import is_file, is_folder
from bdaudit.foundation.texts import read_toml
from bdaudit.plain_text import on_one_line, toml_escaped
from bdaudit.project.schema import TABLES, keys_of

__all__ = ["Draft", "Finding", "draft_project"]

_CHECKPOINTS = frozenset({".safetensors", ".pt", ".pth", ".onnx"})
_ARRAYS = frozenset({".npz", ".safetensors"})
_DEPTH = 3  # folders below the project's in which checkpoints are looked for
_N_PEEKED = 4

# Words in names of checkpoints, by the part that a checkpoint so called usually plays.
_WORDS = {
    "original": frozenset(
        {"original", "backdoored", "backdoor", "attack", "attacked", "poisoned", "infected"}
        | {"suspected", "undefended", "before"}
    ),
    "reference": frozenset({"innocent", "reference", "benign", "clean"}),
    "defended": frozenset(
        {"defended", "defense", "defence", "cleaned", "purified", "repaired", "mitigated"}
        | {"unlearned", "pruned", "finetuned", "candidate", "release", "after"}
    ),
}


@dataclass(frozen=True)
class Finding:
    """A guess: the key it fills, with what, and why."""

    key: str
    value: str | list[str]
    why: str


@dataclass(frozen=True)
class Draft:
    """A project file to be looked over.

    Attributes:
        text: The file, every key that was not guessed as a comment with an example.
        findings: What was guessed.
        open_questions: What is needed and was not found, in words.
    """

    text: str
    findings: tuple[Finding, ...]
    open_questions: tuple[str, ...]


@reads(InputError)
def draft_project(folder: Path) -> Draft:
    """Look through `folder` and write a project file for what is found there.

    Checkpoints are told by the words in their names and are not opened; data is told by whether
    it can be read as a labelled sample, a trigger by its keys.

    Raises:
        InputError: The folder is not there or cannot be read.
    """
    if not is_folder(folder):
        raise InputError(f"{folder}: no such folder")
    try:
        search = _Search(folder)
        search.run()
    except OSError as error:
        raise InputError(f"{folder}: {error.strerror or error}") from error
    return Draft(
        _write(search.findings, search.remarks),
        tuple(search.findings),
        tuple(search.open_questions()),
    )


@dataclass
class _Search:
    """What was found so far, and which files are spoken for."""

    folder: Path
    findings: list[Finding] = field(default_factory=list)
    remarks: dict[str, str] = field(default_factory=dict)
    taken: set[Path] = field(default_factory=set)

    def run(self) -> None:
        self._find_triggers()
        self._find_data()
        self._find_models()
        for key, name in (("inputs.classes", CLASSES_FILE), ("policy", "policy.toml")):
            if is_file(self.folder / name):
                self._add(key, [self.folder / name], "is called so")

    def open_questions(self) -> Iterator[str]:
        found = {finding.key for finding in self.findings}
        for key, what in (
            ("inputs.defended", "which checkpoint is the release candidate"),
            ("inputs.original", "which is the suspected model before the defence"),
            ("inputs.data", "where the clean labelled images are"),
            ("inputs.trigger", "what the trigger is"),
            ("inputs.reference", "which models are innocent (three or more for a firm verdict)"),
        ):
            if key not in found:
                remark = self.remarks.get(key)
                yield f"{key}: {what}" + (f"; {remark}" if remark else "")

    def _add(self, key: str, paths: Sequence[Path], why: str, *, several: bool = False) -> None:
        names = [path.relative_to(self.folder).as_posix() for path in paths]
        self.findings.append(Finding(key, names if several else names[0], why))
        self.taken.update(paths)

    def _choose(self, key: str, paths: Sequence[Path], why: str) -> None:
        """Take the only one; of several say which there are, since a guess would be a bad one."""
        if len(paths) == 1:
            self._add(key, paths, why)
        elif paths:
            names = ", ".join(path.relative_to(self.folder).as_posix() for path in paths[:8])
            self.remarks[key] = f"one of {names}"

    # -- triggers ------------------------------------------------------------------------------

    def _find_triggers(self) -> None:
        triggers = []
        for path in sorted(self.folder.glob("*.toml")):
            document = _read_toml(path)
            if "kind" in document and isinstance(document.get("target"), dict):
                triggers.append(path)
                self.taken.update(self._named_in(document))
        self._choose("inputs.trigger", triggers, "has the keys of a trigger file")

    def _named_in(self, document: dict[str, Any]) -> Iterator[Path]:
        """List what a trigger file names beside itself: neither data nor a model."""
        for value in document.values():
            if isinstance(value, dict):
                yield from self._named_in(value)
            elif isinstance(value, str):
                beside = self.folder / value
                if value and (is_file(beside) or is_folder(beside)) and beside != self.folder:
                    yield beside

    # -- data ----------------------------------------------------------------------------------

    def _find_data(self) -> None:
        candidates = [
            path
            for path in sorted(self.folder.iterdir())
            if not path.name.startswith(".")
            and path not in self.taken
            and (path.is_dir() or (path.suffix.lower() in _ARRAYS and is_file(path)))
        ]
        readable = [path for path in candidates if _is_sample(path)]
        # Sets for training are rarely what an audit should be measured on.
        held_out = [path for path in readable if "train" not in _words(path.name)]
        self._choose("inputs.data", held_out or readable, "opens as clean labelled images")
        self.taken.update(readable)

    # -- models --------------------------------------------------------------------------------

    def _find_models(self) -> None:
        by_part: dict[str, list[Path]] = {part: [] for part in (*_WORDS, "unknown")}
        for path in self._checkpoints():
            by_part[_part_of(path.relative_to(self.folder))].append(path)
        if not by_part["defended"] and len(by_part["unknown"]) == 1:
            self._add("inputs.defended", by_part["unknown"], "is the only checkpoint left over")
        else:
            self._choose(
                "inputs.defended", by_part["defended"] or by_part["unknown"], "by its name"
            )
        self._choose("inputs.original", by_part["original"], "by its name")
        if by_part["reference"]:
            self._add("inputs.reference", by_part["reference"], "by their names", several=True)

    def _checkpoints(self) -> list[Path]:
        return sorted(
            path
            for path in _walk(self.folder, _DEPTH)
            if path.suffix.lower() in _CHECKPOINTS
            and path not in self.taken
            and self.taken.isdisjoint(path.parents)
        )


def _walk(folder: Path, depth: int) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.is_symlink():
            continue
        if path.is_dir() and depth > 0:
            yield from _walk(path, depth - 1)
        elif is_file(path):
            yield path


def _part_of(name: Path) -> str:
    """Tell the part of a checkpoint by its own name, and else by the nearest folder's."""
    for piece in (name.stem, *reversed(name.parts[:-1])):
        words = _words(piece)
        for part, known in _WORDS.items():
            if not words.isdisjoint(known):
                return part
    return "unknown"


def _words(name: str) -> set[str]:
    return set(re.split(r"[^a-z]+", name.lower()))


def _is_sample(path: Path) -> bool:
    try:
        load_sample(path, limit=_N_PEEKED)
    except BdauditError:
        return False
    return True


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return read_toml(path, what="settings")
    except InputError:  # whatever else lies in the folder is not ours to complain of
        return {}


# --- writing -----------------------------------------------------------------------------------

_HEAD = """\
# What `bdaudit audit` runs without arguments. Keys are the command's options by name; paths are
# relative to this file; what is commented out keeps its default or is not needed. Docs:
# docs/project-file.md; a schema for editors: bdaudit init --schema
"""

_POLICY = """\
# Limits of the verdict (docs/verdict.md); or one line at the top: policy = "policy.toml"
[policy]
# lift = 0.1              # above it: dormant; surely below it everywhere: removed
# active_asr = 0.1        # the trigger alone is active above this
# min_held_out = 200      # held-out images needed for "removed"
# max_clean_acc_loss = 0.1
# clean_acc_loss = "fail" # losing more forbids the release; "flag" only warns
# inconclusive = "fail"   # "warn": an audit that cannot tell passes, with a warning
"""


def _write(findings: Sequence[Finding], remarks: dict[str, str]) -> str:
    guessed = {finding.key: finding for finding in findings}
    lines = [_HEAD]
    if "policy" in guessed:
        lines += [_assign("policy", guessed["policy"].value), ""]
    for name, table in TABLES.items():
        lines += [f"# {table.__doc__}", f"[{name}]"]
        for key, setting in keys_of(table).items():
            if setting.option.now is not None:
                continue
            guess = guessed.get(f"{name}.{key}")
            # A line break in the name of a file that lies there must begin no line of settings.
            remark = on_one_line(remarks.get(f"{name}.{key}", ""))
            lines.append(f"# {setting.option.help}{f' Perhaps {remark}.' if remark else ''}")
            if guess is not None:
                lines.append(f"{_assign(key, guess.value)}  # a guess: {on_one_line(guess.why)}")
            else:
                lines.append(f"# {_assign(key, setting.option.examples[0])}")
        lines.append("")
    if "policy" not in guessed:
        lines.append(_POLICY)
    return "\n".join(lines).rstrip() + "\n"


def _assign(key: str, value: Any) -> str:
    """Write a TOML line; the JSON forms of text, numbers, booleans and lists are TOML too."""
    return f"{key} = {toml_escaped(json.dumps(value, ensure_ascii=False))}"
