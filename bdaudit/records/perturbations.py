"""What the perturbations are like that wake the models of a family: four tables of the paper."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from bdaudit.records import Environment, Fraction, Rate, Record, Role
from bdaudit.records.families import Truth
from bdaudit.records.reading import read_sealed

__all__ = [
    "TABLES",
    "LayerLikeness",
    "Likeness",
    "PerturbationCase",
    "PerturbationsRecord",
    "Shown",
    "TableName",
    "Transferred",
    "UnderNoise",
    "UnderQueries",
    "read_perturbations",
]

TableName = Literal["noise", "likeness", "transfer", "queries"]

TABLES: tuple[TableName, ...] = ("noise", "likeness", "transfer", "queries")
"""All tables, in the order in which they are measured and shown."""

Shown = Literal["trigger", "reactivated", "general", "clean"]
"""What a model is shown: images with the trigger; with the trigger and the perturbation that the
attack makes for it on the model itself; clean images with the perturbation that the same attack
makes there without the trigger; clean images."""


class UnderNoise(Record):
    """One model under random noise.

    Attributes:
        model, role: Whom it was shown to.
        shown: What noise was added to.
        radius: Noise is uniform between -radius and radius, new for every pixel and image.
        rate: Share taken to the target; for clean images the share given its true label.
    """

    model: str
    role: Role
    shown: Shown
    radius: Fraction
    rate: Rate


class LayerLikeness(Record):
    """Linear CKA of one layer."""

    layer: str
    cka: float


class Likeness(Record):
    """How alike activations are to those of the original on triggered images.

    Attributes:
        model, role: Whose activations.
        shown: What it was shown; the original is shown the triggered images.
        mean: Mean over layers; `None` where it was not measured.
        layers: Each layer, over the channels that react most to the trigger in the original.
        reason: Why it was not measured.
    """

    model: str
    role: Role
    shown: Shown
    mean: float | None
    layers: tuple[LayerLikeness, ...] = ()
    reason: str | None = None


class Transferred(Record):
    """A perturbation made on some models and shown to another one that it has not seen.

    Attributes:
        made_on: The models it was made on.
        archs: Their architectures.
        role: What they are to the model it is shown to: itself (`defended`, the white box), its
            original, other models with the trigger (`surrogate`), innocent ones (`reference`).
        asr: Trigger + perturbation, on the model it is shown to.
        delta_only: The same perturbation without the trigger.
    """

    made_on: tuple[str, ...]
    archs: tuple[str, ...]
    role: Role
    asr: Rate
    delta_only: Rate | None


class UnderQueries(Record):
    """What a search that only asks had reached after some number of image queries.

    Attributes:
        model, role: Who was asked.
        shown: `reactivated` with the trigger on the images, `general` without.
        queries: Images asked about by then, at most as many as were wanted.
        wanted: The number of image queries the figure stands for.
        asr: Of the best perturbation by then, on the first held-out images.
    """

    model: str
    role: Role
    shown: Shown
    queries: int
    wanted: int
    asr: Rate


class PerturbationCase(Record):
    """One defended model under one seed.

    Attributes:
        model: Its name in the family.
        original: The original it came from.
        truth: What it is.
        seed: Of the split, the attacks and the noise.
        reason: Why it could not be measured; `None` where it was.
        noise, likeness, transfer, queries: The tables; empty where one was not asked for.
    """

    model: str
    original: str
    truth: Truth
    seed: int
    reason: str | None = None
    noise: tuple[UnderNoise, ...] = ()
    likeness: tuple[Likeness, ...] = ()
    transfer: tuple[Transferred, ...] = ()
    queries: tuple[UnderQueries, ...] = ()
    elapsed_s: float = 0.0


class PerturbationsRecord(Record):
    """What `bdaudit perturbations` writes.

    Attributes:
        family, family_sha256, dataset: Whose models.
        tables: What was measured.
        eps, norm: Ball of every perturbation.
        settings: Of the attacks.
        cases: Each model under each seed.
        left_out: Models that are not measured, and why.
    """

    kind: Literal["perturbations"] = "perturbations"
    created: datetime
    command: tuple[str, ...] | None
    family: str
    family_sha256: str
    dataset: str
    tables: tuple[TableName, ...]
    eps: float
    norm: Literal["linf", "l2"]
    settings: dict[str, Any]
    environment: Environment
    cases: tuple[PerturbationCase, ...]
    left_out: dict[str, str]
    elapsed_s: float


def read_perturbations(path: Path) -> PerturbationsRecord:
    """Read the JSON that `bdaudit perturbations` wrote.

    Raises:
        RecordError: It cannot be read, or is something else.
    """
    return read_sealed(path, PerturbationsRecord, what="tables of perturbations")
