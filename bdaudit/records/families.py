"""The record of a family of models whose truth is known: `family.json`.

A family is a folder: the models as safetensors, trigger files, the clean sample, and `family.json`,
which says how each model was made, what was measured on it and how its truth is known. The zoo
writes it; the benchmark, and anyone with models of their own, reads it. Paths in it are relative to
the folder and may not leave it.
"""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError, model_validator

from bdaudit.errors import RecordError, reads
from bdaudit.foundation.opening import RECORD_BYTES, read_bytes
from bdaudit.foundation.statistics import may_be_chance
from bdaudit.foundation.tasks import Task
from bdaudit.foundation.writing import write_atomically
from bdaudit.records import FileDigest, Rate, Record, RelearningEvidence

__all__ = [
    "FAMILY_FILE",
    "Family",
    "FamilyMember",
    "FamilyTrigger",
    "Lineage",
    "RelearningEvidence",
    "Truth",
    "TruthSource",
    "read_family",
    "why_not_learned",
    "write_family",
]

FAMILY_FILE = "family.json"

Truth = Literal["active", "dormant", "removed", "innocent", "unknown"]
"""What a model is: its trigger works; sleeps; was there and is gone; never was; not settled."""

TruthSource = Literal["construction", "asr", "relearning", "given"]
"""How that is known: it was trained so; the trigger alone works; relearning; whoever says so."""

Lineage = Literal["original", "defended", "clean"]
"""A backdoored original; an original put through a defence; a model never taught the backdoor."""


def _within(path: str) -> str:
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts or "\\" in path or not pure.parts:
        raise ValueError(f"expected a path inside the family's folder, got {path!r}")
    return path


InFolder = Annotated[str, AfterValidator(_within)]


class FamilyTrigger(Record):
    """A trigger of the family.

    Attributes:
        file: The trigger file.
        sha256: Digest of the trigger itself, wherever it is kept (`Trigger.sha256`).
        attack: Which attack uses it, by its name in the zoo ("badnets").
        target_label: The class it takes images to, or `None` where there is no single one.
    """

    file: InFolder
    sha256: str
    attack: str
    target_label: int | None = None


class FamilyMember(Record):
    """One model of the family.

    Attributes:
        name: Unique in the family.
        file: Its safetensors file.
        sha256: Of that file.
        weights_sha256: Of the tensors in it (`digests.digest_tensors`).
        lineage: Where it comes from.
        original: The original this one is held against when it is audited: of a defended model the
            one it was made from, of a clean model the one whose trigger it is asked about; `None`
            for an original, and for a clean model kept as a reference.
        trigger: Name of its trigger in `Family.triggers`; `None` for a reference.
        attack: Attack of the original ("badnets"), or `None`.
        poison_rate: Share of the training set that was poisoned, in (0, 1].
        defense: What a defended model, or a clean one after it, went through ("ft-sam"), or how a
            clean one came about ("retrained"); `None` where nothing was done.
        settings: All settings it was made with, flat, for people and for making it again.
        seed: Of its training.
        clean_acc: On the family's test images; of a detector the share of objects called by their
            class.
        asr: Of its trigger alone on those, of a detector on boxes that are not at the target
            untouched; `None` without a trigger.
        relearning: Evidence for its truth, where that was needed.
        truth: What it is.
        truth_source: How that is known.
        truth_note: A sentence of reasons.
        elapsed_s: Wall-clock seconds it took.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    file: InFolder
    sha256: str
    weights_sha256: str
    lineage: Lineage
    original: str | None = None
    trigger: str | None = None
    attack: str | None = None
    poison_rate: float | None = Field(default=None, gt=0, le=1)
    defense: str | None = None
    settings: dict[str, Any] = Field(default_factory=dict)
    seed: int = 0
    clean_acc: Rate | None = None
    asr: Rate | None = None
    relearning: RelearningEvidence | None = None
    truth: Truth = "unknown"
    truth_source: TruthSource = "construction"
    truth_note: str = ""
    elapsed_s: float | None = None


class Family(Record):
    """All of `family.json`.

    Attributes:
        schema_version: 1.
        name: Of the family.
        dataset: Name of the data set.
        arch: Architecture of the models, by name; `None` where they differ.
        num_classes: Classes of the task.
        image_shape: (C, H, W).
        task: What the models do.
        sample: The clean labelled sample an auditor gets; no model was trained or defended on it.
        references: Names of the members kept as innocent references. They are never audited.
        triggers: By name.
        members: The models.
        config: The family file it was built from, as data.
        versions: Packages it was built with.
    """

    schema_version: Literal[1] = 1
    name: str
    dataset: str
    arch: str | None = None
    num_classes: int = Field(ge=2)
    image_shape: tuple[int, int, int]
    task: Task = "classification"
    sample: InFolder
    sample_digests: tuple[FileDigest, ...] = ()
    references: tuple[str, ...] = ()
    triggers: dict[str, FamilyTrigger] = Field(default_factory=dict)
    members: tuple[FamilyMember, ...] = ()
    config: dict[str, Any] = Field(default_factory=dict)
    versions: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _names_resolve(self) -> Family:
        names = [member.name for member in self.members]
        if len(set(names)) != len(names):
            raise ValueError("two members of one name")
        wanted = {m.original for m in self.members if m.original} | set(self.references)
        if missing := wanted - set(names):
            raise ValueError(f"no member is called {', '.join(sorted(missing))}")
        if unknown := {m.trigger for m in self.members if m.trigger} - self.triggers.keys():
            raise ValueError(f"no trigger is called {', '.join(sorted(unknown))}")
        return self

    def member(self, name: str) -> FamilyMember:
        """Return the member of that name.

        Raises:
            RecordError: There is none.
        """
        found = next((member for member in self.members if member.name == name), None)
        if found is None:
            raise RecordError(f"family {self.name}: no member is called {name!r}")
        return found

    def did_not_learn(self) -> dict[str, str]:
        """Return members that may do no better than guessing, and so show nothing, with the reason.

        Returns:
            By name, why: the model itself did not learn the task, or its original did not.
        """
        own = {
            m.name: reason
            for m in self.members
            if (reason := why_not_learned(m.clean_acc, self.num_classes)) is not None
        }
        of_original = {
            m.name: f"its original {m.original} {own[m.original]}"
            for m in self.members
            if m.original in own
        }
        return of_original | own

    def to_audit(self) -> tuple[FamilyMember, ...]:
        """Return the members that can be audited.

        All that have an original and a trigger, and did learn the task, as their original did.
        """
        unfit = self.did_not_learn()
        return tuple(
            m
            for m in self.members
            if m.original is not None and m.trigger is not None and m.name not in unfit
        )


def why_not_learned(clean_acc: Rate | None, num_classes: int) -> str | None:
    """Return why a model may do no better than guessing; `None` where it does, or is not known to.

    Args:
        clean_acc: Its clean accuracy, `None` where it was not measured.
        num_classes: K.
    """
    if clean_acc is None or not may_be_chance(clean_acc.low, num_classes):
        return None
    chance = 1.0 / num_classes
    return f"did not learn the task: clean accuracy {clean_acc.value:.1%}, chance is {chance:.1%}"


@reads(RecordError)
def read_family(folder: Path | str) -> Family:
    """Read a family's folder.

    Raises:
        RecordError: There is no `family.json`, or it is not one.
    """
    path = Path(folder) / FAMILY_FILE
    content = read_bytes(path, limit=RECORD_BYTES, what="a family of models", error=RecordError)
    try:
        return Family.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the whole"
        raise RecordError(
            f"{path}: not a family of models: {place}: {first['msg']} "
            f"({error.error_count()} problems)"
        ) from error


def write_family(folder: Path | str, family: Family) -> None:
    """Write `family.json` into the family's folder, whole or not at all.

    Raises:
        RecordError: It cannot be written.
    """
    path = Path(folder) / FAMILY_FILE
    text = json.dumps(family.model_dump(mode="json"), indent=1, ensure_ascii=False)
    try:
        write_atomically(path, (text + "\n").encode())
    except OSError as error:
        raise RecordError(f"{path}: cannot be written: {error.strerror or error}") from error
