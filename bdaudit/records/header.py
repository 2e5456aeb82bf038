"""What the records of all verbs begin with: who was measured, on what, where and how."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import Field

from bdaudit.errors import RecordError
from bdaudit.records.base import Diagnostic, Fraction, Record, Role

__all__ = [
    "SCHEMA_VERSION",
    "DataInfo",
    "Environment",
    "FileDigest",
    "Header",
    "Heading",
    "ModelInfo",
    "StepStatus",
    "TriggerInfo",
]

SCHEMA_VERSION: Literal[1] = 1
"""Raised whenever an older reader would misunderstand a newer record."""


class FileDigest(Record):
    """A file an audit read."""

    role: str
    path: str
    sha256: str
    size_bytes: int


class Environment(Record):
    """Where the numbers were made."""

    bdaudit: str
    python: str
    platform: str
    device: str
    packages: dict[str, str]


class ModelInfo(Record):
    """A model that took part.

    Attributes:
        name: How the record refers to it ("defended", "reference 1").
        weights_sha256: Digest over names, types, shapes and bytes of all tensors; of an ONNX
            model over its files; `None` of a model that can only be queried.
        access: Whether it could be looked into, or only asked.
        stand_in: Whether it was made here, as an innocent model (docs/stand-ins.md).
        notes: What the loader did ("stripped 'module.'", "took logs of probabilities").
        weights: Which of its file's sets of weights was taken; `None` where the file holds one.
        unaudited: The file's other sets of weights, which differ and which nothing was measured on.
    """

    name: str
    role: Role
    arch: str
    num_classes: int
    image_shape: tuple[int, int, int]
    weights_sha256: str | None
    access: Literal["white", "black"] = "white"
    stand_in: bool = False
    path: str | None = None
    notes: tuple[str, ...] = ()
    weights: str | None = None
    unaudited: tuple[str, ...] = ()


class DataInfo(Record):
    """The clean sample and its split.

    Attributes:
        notes: What the reader left out, converted or guessed, in words.
    """

    source: str
    sha256: str
    image_shape: tuple[int, int, int]
    num_classes: int
    class_names: tuple[str, ...] | None = None
    n_images: int
    n_craft: int
    n_held_out: int
    n_craft_poisonable: int
    n_held_out_poisonable: int
    notes: tuple[str, ...] = ()


class TriggerInfo(Record):
    """The trigger and what it does to an image.

    Attributes:
        footprint: Mean share of pixels (over the held-out images) changed by more than 1/255.
        mean_linf: Mean over images of the largest change of a pixel value.
        mean_l2: Mean over images of the L2 norm of the change.
        wide: True when the footprint is above the policy-independent limit of 0.10, or the trigger
            changes more than a third of the boxes that a detector is asked about.
        recovered: True when the trigger was inverted rather than given.
    """

    kind: str
    target_rule: str
    target_label: int | None
    source: str
    sha256: str
    footprint: Fraction
    mean_linf: float
    mean_l2: float
    wide: bool
    recovered: bool = False


class StepStatus(Record):
    """A step of the audit and how it ended.

    Attributes:
        peak_memory_bytes: The most memory that was in use during it: of the process, or of the
            device where that is a GPU; `None` where the system does not tell.
    """

    name: str
    status: Literal["done", "failed", "skipped"]
    elapsed_s: float = 0.0
    peak_memory_bytes: int | None = None
    reason: str | None = None


class Heading(Record):
    """What the records of all verbs begin with, those that need no images included.

    Attributes:
        created: When the record was sealed.
        command: The command line, secrets left out; `None` from Python.
        settings: How it was run.
        sources: What it was run on, as it was named: paths, addresses, and what was said about
            them; enough to open everything again.
        inputs: The files that were read, by digest.
        models: Everyone who took part, the defended model first where there is one.
        steps: The steps and how each ended.
        elapsed_s: Wall-clock seconds of the whole.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    created: datetime
    command: tuple[str, ...] | None = None
    seed: int
    settings: dict[str, Any]
    sources: dict[str, Any] = Field(default_factory=dict)
    environment: Environment
    inputs: tuple[FileDigest, ...]
    models: tuple[ModelInfo, ...]
    diagnostics: tuple[Diagnostic, ...] = ()
    steps: tuple[StepStatus, ...] = ()
    elapsed_s: float

    def model_named(self, name: str) -> ModelInfo:
        """Return the model the record calls `name`.

        Raises:
            RecordError: There is none.
        """
        for model in self.models:
            if model.name == name:
                return model
        raise RecordError(f"the record has no model named {name!r}")

    def models_with(self, role: Role) -> tuple[ModelInfo, ...]:
        """Return the models of one role, in the order they were given."""
        return tuple(model for model in self.models if model.role == role)

    def files_of(self, role: str) -> tuple[FileDigest, ...]:
        """Return the files that were read for one role, `defended` for the release candidate."""
        return tuple(file for file in self.inputs if file.role == role)

    def input_notes(self) -> tuple[str, ...]:
        """Return what was left out, converted or guessed when the given inputs were read.

        Models that were made here (stand-ins and surrogates) are not among them.
        """
        models = [m for m in self.models if m.role != "surrogate" and not m.stand_in]
        return tuple(f"{model.name}: {note}" for model in models for note in model.notes)

    def about_weights(self) -> str | None:
        """Return which set of weights in a file was audited as the defended model, and which not.

        `None` where its file holds one set, or nothing is said about files at all.
        """
        model = next(iter(self.models_with("defended")), None)
        if model is None or not model.unaudited:
            return None
        others = ", ".join(repr(name) for name in model.unaudited)
        return (
            f"the weights under {model.weights!r} were audited; the same file also holds {others}, "
            "other weights which were not"
        )


class Header(Heading):
    """What the records of verbs on images begin with.

    Attributes:
        data: The clean sample and its split.
        trigger: The trigger, known or recovered.
    """

    data: DataInfo
    trigger: TriggerInfo

    def input_notes(self) -> tuple[str, ...]:
        """Return what was left out, converted or guessed when the given inputs were read.

        Models that were made here (stand-ins and surrogates) are not among them.
        """
        return (*super().input_notes(), *(f"images: {note}" for note in self.data.notes))
