"""Frozen records of everything an audit measured, and their JSON form.

A record holds what a report or a verdict needs and nothing else is asked for: a report can be
redrawn, and a verdict judged again, from the JSON alone. A quantity that was not measured is
`None` beside a reason, never 0. Fractions are in [0, 1]; durations are seconds.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Iterable, Mapping
from datetime import datetime
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from bdaudit.errors import RecordError

__all__ = [
    "SCHEMA_VERSION",
    "Answer",
    "AnyDocument",
    "AttackRun",
    "AuditRecord",
    "Baseline",
    "BecRecord",
    "Comparison",
    "Condition",
    "CurvePoint",
    "DataInfo",
    "Diagnostic",
    "Environment",
    "FileDigest",
    "Inversion",
    "InversionRecord",
    "InversionRun",
    "LayerBec",
    "Mode",
    "ModelInfo",
    "Outcome",
    "PictureColumn",
    "Pictures",
    "Rate",
    "ReactivationRecord",
    "Record",
    "RecoveredTrigger",
    "RelearnCurve",
    "RelearnRecord",
    "Relearning",
    "RelearningEvidence",
    "Release",
    "Role",
    "ScoreRecord",
    "StepStatus",
    "TargetScore",
    "Thumbnail",
    "TriggerInfo",
    "Verdict",
    "read_record",
    "to_json",
]

SCHEMA_VERSION: Literal[1] = 1
"""Raised whenever an older reader would misunderstand a newer record."""

_DIGEST_KEY = "content_sha256"

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Role = Literal["defended", "original", "reference", "surrogate"]
Condition = Literal["trigger", "no_trigger", "wrong_target", "noise"]
Mode = Literal["white", "query", "transfer"]
Outcome = Literal["removed", "dormant", "active", "inconclusive"]
Release = Literal["pass", "fail", "inconclusive"]


class Record(BaseModel):
    """Base of all records: frozen, no unknown fields, no NaN in the JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


# A policy is judged many times over when limits are calibrated, each time from all outcomes.
_BITS_OF = tuple(tuple(bool(byte >> (7 - k) & 1) for k in range(8)) for byte in range(256))


class Rate(Record):
    """A share of held-out (or craft) images, with its 95 % Wilson interval.

    Attributes:
        successes: Images for which the event happened.
        total: Images asked about; at least 1.
        low: Lower end of the interval.
        high: Upper end of the interval.
        bits: The event image by image, in the order of the sample, packed eight to a byte (first
            image in the highest bit) and base64-encoded; `None` where pairs are never needed.
            Two rates with bits over the same images can be compared image by image.
    """

    successes: int = Field(ge=0)
    total: int = Field(ge=1)
    low: Fraction
    high: Fraction
    bits: str | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Rate:
        if self.successes > self.total:
            raise ValueError(f"{self.successes} successes out of {self.total}")
        if self.bits is not None and sum(self.outcomes()) != self.successes:
            raise ValueError("the packed outcomes do not add up to the count of successes")
        return self

    @property
    def value(self) -> float:
        """The share itself."""
        return self.successes / self.total

    def outcomes(self) -> list[bool]:
        """Unpack `bits`, one boolean an image.

        Raises:
            RecordError: The rate was stored without its outcomes, or they are damaged.
        """
        if self.bits is None:
            raise RecordError("this rate was stored without its image-by-image outcomes")
        try:
            packed = base64.b64decode(self.bits, validate=True)
        except binascii.Error as error:
            raise RecordError("image-by-image outcomes are not base64") from error
        if len(packed) != (self.total + 7) // 8:
            raise RecordError(f"{len(packed)} bytes of outcomes for {self.total} images")
        flags = list(chain.from_iterable(_BITS_OF[byte] for byte in packed))
        return flags[: self.total]

    @staticmethod
    def pack(outcomes: Iterable[bool]) -> str:
        """Pack booleans as `bits` stores them."""
        flags = list(outcomes)
        packed = bytearray((len(flags) + 7) // 8)
        for index, flag in enumerate(flags):
            if flag:
                packed[index // 8] |= 1 << (7 - index % 8)
        return base64.b64encode(bytes(packed)).decode("ascii")


class Diagnostic(Record):
    """Something that makes a number doubtful; each code has a paragraph in docs/diagnostics.md.

    Attributes:
        code: A stable identifier such as `clean_accuracy_near_chance`.
        severity: `error` makes a would-be "removed" inconclusive; `warning` is reported.
        message: What was seen and what to do, for a person.
        subject: The model, file or step it is about.
    """

    code: str
    severity: Literal["error", "warning", "info"]
    message: str
    subject: str


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
            model over its files; `None` of a model that can only be asked.
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
        wide: True when the footprint is above the policy-independent limit of 0.10.
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


class Baseline(Record):
    """A model with no perturbation at all, on the held-out images.

    Attributes:
        clean_acc: Share of clean images classified as labelled.
        asr: Attack success rate of the trigger alone, over images whose true label is not the
            target; higher means the backdoor is more active.
        clean_target_rate: The same images without the trigger, share classified as the target.
        true_label_acc: Share of the triggered images classified as their true label.
        stand_in: Whether the model was made here, as an innocent one.
        left_out: Why nothing is held against a stand-in; `None` where it serves.
    """

    model: str
    role: Role
    clean_acc: Rate
    asr: Rate
    clean_target_rate: Rate
    true_label_acc: Rate
    stand_in: bool = False
    left_out: str | None = None


class LayerBec(Record):
    """One layer's part of the coefficient; see docs/bec.md."""

    layer: str
    channels: int
    channels_kept: int
    top_channels: tuple[int, ...]
    top_tac: tuple[float, ...]
    cka_defended: float | None
    cka_reference: float | None
    coefficient: float | None
    reason: str | None = None


class BecRecord(Record):
    """The backdoor existence coefficient against one reference.

    Attributes:
        value: Mean over layers of (S_DA - S_CA) / (1 - S_CA); 1: the whole circuit of the
            original is there; 0: no more alike than an innocent model. `None` when undefined.
        low, high: 95 % interval over images, `None` when not asked for (docs/bec.md).
        ratio_of_means: The variant that averages CKA over layers before normalising.
        elapsed_s: Of the whole measurement, all references together.
    """

    reference: str
    value: float | None
    low: float | None
    high: float | None
    ratio_of_means: float | None
    top_share: Fraction
    estimator: Literal["plain", "debiased"]
    n_samples: int
    n_bootstrap: int
    layers: tuple[LayerBec, ...]
    reason: str | None = None
    elapsed_s: float


class CurvePoint(Record):
    """Held-out success of the perturbation a query search would have given so far.

    Attributes:
        n_queries: Images asked about until then, scoring not counted.
        asr: Over the first held-out images, at most as many as the settings say.
    """

    n_queries: int = Field(ge=0)
    asr: Rate


class AttackRun(Record):
    """One universal perturbation, made on craft images and scored on held-out images.

    Attributes:
        model: Name of the model attacked.
        condition: Which images it was made and scored on: with the `trigger`, with `no_trigger`,
            with the trigger but toward a `wrong_target`, or a random `noise` delta.
        target_label: The class attacked toward, `None` when it differs by image.
        asr: Held-out success of images + delta.
        delta_only: Held-out success of the *clean* images + the same delta, `None` where the
            condition has no trigger in it.
        craft_asr: Success on the craft images; optimistic by construction.
        loss_trace: Mean craft loss, one value a pass (or a checkpoint of a query search).
        gradient_passes: Images differentiated / craft images.
        made_on: Names of the surrogates delta was made on, of a transfer attack.
        image_queries: Images the model was asked about while searching.
        scoring_queries: Images it was asked about for the held-out figures, counted apart.
        feedback: What a query search was given, `None` for other modes.
        query_curve: Held-out success against image queries, of a query search.
        delta_norm: Norm of delta in pixel units; never above eps.
    """

    mode: Mode
    model: str
    role: Role
    condition: Condition
    objective: Literal["standard", "specific"] = "standard"
    norm: Literal["linf", "l2"]
    eps: float = Field(ge=0.0)
    target_label: int | None
    seed: int
    asr: Rate
    delta_only: Rate | None = None
    true_label_acc: Rate | None = None
    craft_asr: Fraction | None = None
    loss_trace: tuple[float, ...] = ()
    gradient_passes: float = 0.0
    made_on: tuple[str, ...] = ()
    image_queries: int = 0
    scoring_queries: int = 0
    feedback: Literal["scores", "labels"] | None = None
    query_curve: tuple[CurvePoint, ...] = ()
    delta_norm: float
    delta_sha256: str
    diagnostics: tuple[Diagnostic, ...] = ()
    elapsed_s: float

    @property
    def attack(self) -> tuple[Mode, str, str, float]:
        """What runs of the same attack have in common, whatever they were made and scored on."""
        return (self.mode, self.objective, self.norm, self.eps)


_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def _check_png(png: str) -> str:
    try:
        content = base64.b64decode(png, validate=True)
    except binascii.Error as error:
        raise ValueError("a picture is not base64") from error
    if not content.startswith(_PNG_SIGNATURE):
        raise ValueError("a picture is not a PNG")
    return png


Png = Annotated[str, Field(max_length=100_000), AfterValidator(_check_png)]
"""A small PNG file, base64-encoded: nothing else can stand there, and nothing large."""

Answer = Literal["true_label", "target", "other"]


class Thumbnail(Record):
    """One image as the defended model was shown it, and what the model took it for.

    Attributes:
        png: The image, reduced to at most 96 pixels a side where it is larger.
        answer: Its true label, the attack's target, or another class.
    """

    png: Png
    answer: Answer


class PictureColumn(Record):
    """One held-out image in its three states."""

    true_label: int
    target_label: int
    clean: Thumbnail
    triggered: Thumbnail
    perturbed: Thumbnail


class Pictures(Record):
    """A few held-out images for a person to look at; no figure is made from them.

    Attributes:
        model: Who was asked.
        mode, norm, eps, delta_sha256: Of the attack whose perturbation is shown.
        perturbation: The perturbation alone, mid-grey where it is 0.
        gain: By how much it is enlarged for showing.
        columns: The images, the first of as many different classes as there are: not chosen by
            what the attack did to them.
    """

    model: str
    mode: Literal["white", "query", "transfer"]
    norm: Literal["linf", "l2"]
    eps: float = Field(ge=0.0)
    delta_sha256: str
    perturbation: Png
    gain: float = Field(gt=0.0)
    columns: tuple[PictureColumn, ...] = Field(max_length=8)


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


class Comparison(Record):
    """One number that a verdict leaned on.

    Attributes:
        name: What is compared, in words.
        kind: `active`, `lift`, `strength`, `samples`, ...: the rule it belongs to.
        value, low, high: The estimate and its one-sided bounds at the policy's confidence.
        limit: What it was held against.
        holds: Whether the rule's condition is met.
    """

    name: str
    kind: str
    eps: float | None = None
    against: str | None = None
    value: float
    low: float | None = None
    high: float | None = None
    limit: float
    holds: bool


class Verdict(Record):
    """The answer, why, and the figures that decided it.

    Attributes:
        why: One sentence.
        reasons: For `inconclusive`, everything that stood in the way.
        deciding: The comparisons that decided.
        lifts: Every lift over every null, by eps, deciding or not: of the re-activated ASR (kind
            `lift (MODE)`) and, over innocent models, of the trigger's part (`trigger's part
            (MODE)`); and both beyond the bound of what one more innocent model may reach
            (`one more innocent (MODE)`).
        telling_eps: Where, by mode, the attack rises above every null.
        policy: The limits that applied, by name.
        policy_source: Where they came from.
        policy_sha256: Digest over the limits themselves, however they were spelled.
        release: What the policy makes of the outcome; `None` in records that do not say.
        release_reasons: What forbids the release beside the outcome itself.
        warnings: What a person should read before a release that passes.
    """

    outcome: Outcome
    why: str
    reasons: tuple[str, ...] = ()
    deciding: tuple[Comparison, ...] = ()
    lifts: tuple[Comparison, ...] = ()
    telling_eps: dict[Mode, tuple[float, ...]] = Field(default_factory=dict)
    policy: dict[str, Any]
    policy_source: str
    policy_sha256: str | None = None
    release: Release | None = None
    release_reasons: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def over_controls(self, mode: Mode | str) -> tuple[Comparison, ...]:
        """Return one comparison for each eps and control of the attacks of one mode.

        Innocent models are beaten by the re-activated ASR or by the trigger's part; at each eps
        the way is taken that leaves the nearest of them further behind.
        """
        chosen: list[Comparison] = []
        for eps in dict.fromkeys(c.eps for c in self.lifts):
            here = [c for c in self.lifts if c.eps == eps]
            lifts = [c for c in here if c.kind == f"lift ({mode})"]
            parts = {c.against: c for c in here if c.kind == f"trigger's part ({mode})"}
            over = [c.value for c in lifts if c.against in parts]
            if over and min(part.value for part in parts.values()) > min(over):
                lifts = [parts.get(c.against, c) for c in lifts]
            chosen += lifts
        return tuple(chosen)


class TargetScore(Record):
    """One hypothesis about the target of an unknown trigger, tried by one method.

    Attributes:
        target_label: `None` for a rule without a single target.
        size: What the original needs, in the method's unit, at the race's budget (or when the
            class was dropped from it); smaller means more suspicious.
        innocent_sizes: What each innocent model needs for the same class.
        gain: log2 of how many times less the original needs than innocent models do, less what all
            its classes have in common.
        score: The gain in standard deviations; `None` with a reason in the method's record.
        p_value: Corrected for all classes and methods; 1 of a class that was dropped.
        dropped_after: Stage of the race after which it was dropped, `None` if it never was.
    """

    target_rule: str
    target_label: int | None
    size: float
    innocent_sizes: tuple[float, ...] = ()
    gain: float
    score: float | None = None
    p_value: Fraction | None = None
    dropped_after: int | None = None


class InversionRun(Record):
    """One method of trigger inversion, over all classes.

    Attributes:
        unit: Of the sizes.
        scores: Most suspicious first.
        spread: Standard deviation of a gain that is taken to be chance, in doublings.
        degrees: Degrees of freedom of the t distribution behind the p-values.
        reason: Why there are no p-values.
        gradient_passes: Images differentiated / craft images, all models together.
        naive_passes: The same had every class gone as far as the recovered ones did.
    """

    method: str
    unit: str
    scores: tuple[TargetScore, ...]
    spread: float | None = None
    degrees: int | None = None
    reason: str | None = None
    gradient_passes: float
    naive_passes: float
    elapsed_s: float


class RecoveredTrigger(Record):
    """A trigger recovered from the original, and what it does on held-out images.

    Attributes:
        class_map: For the rule `class-map`, the class each class is taken to; its own where its
            images do not count.
        size: In the unit of its method.
        p_value: As in the ranking.
        asr: Success on the original; the images are those whose label is not the target.
        clean_target_rate: The same images without the trigger.
        innocent_asr: The same trigger on each innocent model.
        own_asr: What the same search found on each innocent model at the same size, on that
            model; empty where the method compares sizes and not success.
        wakes_original: Whether its success is surely high, and surely above all of those.
        why_not: Where it is not.
    """

    method: str
    target_rule: str
    target_label: int | None
    size: float
    unit: str
    p_value: Fraction | None
    asr: Rate
    clean_target_rate: Rate
    innocent_asr: tuple[Rate, ...] = ()
    own_asr: tuple[Rate, ...] = ()
    wakes_original: bool
    why_not: str | None = None
    trigger: TriggerInfo
    class_map: tuple[int, ...] | None = None


class KeptTrigger(Record):
    """A recovered trigger as the files that `bdaudit invert --out` would write.

    Attributes:
        files: The content of each by its name, deflated (zlib) and in base64.
    """

    files: dict[str, str]


class Inversion(Record):
    """The search for a trigger that nobody knows, in the original.

    Attributes:
        outcome: `found`, `none` or `unsure`, by the limits in `settings`.
        why: One sentence.
        candidates: Recovered triggers, the one to go on with first.
        n_tests: Comparisons that the p-values are corrected for.
        references: Names of the innocent models, in the order of all lists here.
        made: Innocent models that were made for the search from the labels of clean images.
        left_out: Why some of those were not held against the original, by name.
        skipped: Targets that could not be tried, in words.
        settings: Of the searches and of the decision.
    """

    outcome: Literal["found", "none", "unsure"]
    why: str
    candidates: tuple[RecoveredTrigger, ...]
    runs: tuple[InversionRun, ...]
    n_tests: int
    references: tuple[str, ...] = ()
    made: tuple[ModelInfo, ...] = ()
    left_out: dict[str, str] = {}
    skipped: tuple[str, ...] = ()
    settings: dict[str, Any]
    elapsed_s: float


class RelearningEvidence(Record):
    """How fast the trigger comes back under a handful of poisoned images, against innocents.

    Attributes:
        steps: Training steps after which the ASR was measured, ascending.
        asr: ASR of the model after each, on held-out images, in [0, 1].
        clean_target_rate: Share of the same images that went to the target without the trigger,
            after each; where it rises with the ASR the model answers the target to anything.
        innocent_asr: The ASR of each innocent model, name by name.
        innocent_clean_target_rate: Likewise.
        gap: Mean over the steps of (ASR - clean target rate), less that of the innocent model with
            the largest, in [-2, 2].
        low: Lower end of its 95 % interval.
        high: Upper end of it.
        shots: Poisoned images that were relearned.
        settings: Everything else that determined it.
    """

    steps: tuple[int, ...]
    asr: tuple[float, ...]
    clean_target_rate: tuple[float, ...] = ()
    innocent_asr: dict[str, tuple[float, ...]] = Field(default_factory=dict)
    innocent_clean_target_rate: dict[str, tuple[float, ...]] = Field(default_factory=dict)
    gap: float
    low: float
    high: float
    shots: int = Field(ge=1)
    settings: dict[str, Any] = Field(default_factory=dict)


class RelearnCurve(Record):
    """One model's relearning at one learning rate.

    Attributes:
        asr: After each of the evidence's numbers of steps, mean over the draws.
        clean_target_rate: Share of the same images that went to the target untriggered, likewise.
    """

    model: str
    role: Role
    learning_rate: float = Field(gt=0.0)
    asr: tuple[Fraction, ...]
    clean_target_rate: tuple[Fraction, ...]


class Relearning(Record):
    """How the defended model relearns the trigger, held against innocent models.

    It stands beside the verdict and is no part of it.

    Attributes:
        outcome: `dormant`: it relearns surely faster than they do; `removed`: surely not by the
            limit; `unknown`: neither.
        why: One sentence.
        limit: Of the gap.
        evidence: At the learning rate that was chosen on the innocent models.
        curves: The defended model's at that rate, the innocent models' at every rate tried.
    """

    outcome: Literal["dormant", "removed", "unknown"]
    why: str
    limit: float
    evidence: RelearningEvidence
    curves: tuple[RelearnCurve, ...]
    elapsed_s: float


class _Document(Record):
    """What the records of all verbs have in common.

    Attributes:
        settings: How it was run.
        sources: What it was run on, as it was named: paths, addresses, and what was said about
            them; enough to open everything again.
        inputs: The files that were read, by digest.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    created: datetime
    command: tuple[str, ...] | None = None
    seed: int
    settings: dict[str, Any]
    sources: dict[str, Any] = {}
    environment: Environment
    inputs: tuple[FileDigest, ...]
    data: DataInfo
    trigger: TriggerInfo
    models: tuple[ModelInfo, ...]
    diagnostics: tuple[Diagnostic, ...] = ()
    steps: tuple[StepStatus, ...] = ()
    elapsed_s: float

    def model_named(self, name: str) -> ModelInfo:
        """Return the model the record calls `name`."""
        for model in self.models:
            if model.name == name:
                return model
        raise RecordError(f"the record has no model named {name!r}")

    def input_notes(self) -> tuple[str, ...]:
        """Say what was left out, converted or guessed when the given inputs were read.

        Models that were made here (stand-ins and surrogates) are not among them.
        """
        models = [m for m in self.models if m.role != "surrogate" and not m.stand_in]
        return (
            *(f"{model.name}: {note}" for model in models for note in model.notes),
            *(f"images: {note}" for note in self.data.notes),
        )

    def about_weights(self) -> str | None:
        """Say which set of a file's weights was audited as the defended model, and which was not.

        `None` where its file holds one set, or nothing is said about files at all.
        """
        model = next((m for m in self.models if m.role == "defended"), None)
        if model is None or not model.unaudited:
            return None
        others = ", ".join(repr(name) for name in model.unaudited)
        return (
            f"the weights under {model.weights!r} were audited; the same file also holds {others}, "
            "other weights which were not"
        )


class ScoreRecord(_Document):
    """What `bdaudit score` measured."""

    kind: Literal["score"] = "score"
    baselines: tuple[Baseline, ...]
    bec: tuple[BecRecord, ...]


class ReactivationRecord(_Document):
    """What `bdaudit reactivate` measured."""

    kind: Literal["reactivation"] = "reactivation"
    baselines: tuple[Baseline, ...]
    runs: tuple[AttackRun, ...]


class AuditRecord(_Document):
    """What `bdaudit audit` measured, and its verdict.

    `kept_trigger` is the trigger where it was recovered during the audit and lies in no file.
    """

    kind: Literal["audit"] = "audit"
    baselines: tuple[Baseline, ...]
    bec: tuple[BecRecord, ...]
    bec_missing: str | None = None
    runs: tuple[AttackRun, ...]
    inversion: Inversion | None = None
    kept_trigger: KeptTrigger | None = None
    relearning: Relearning | None = None
    relearning_missing: str | None = None
    verdict: Verdict | None = None
    pictures: Pictures | None = None

    def baseline_of(self, model: str) -> Baseline | None:
        """Return the unperturbed figures of `model`, or `None`."""
        return next((b for b in self.baselines if b.model == model), None)

    def runs_of(
        self, *, role: Role | None = None, condition: Condition | None = None
    ) -> tuple[AttackRun, ...]:
        """Return the attack runs on models of `role` under `condition`, in order of eps."""
        chosen = [
            run
            for run in self.runs
            if (role is None or run.role == role)
            and (condition is None or run.condition == condition)
        ]
        return tuple(sorted(chosen, key=lambda run: (run.eps, run.model)))


class InversionRecord(_Document):
    """What `bdaudit invert` found; `trigger` is the first candidate."""

    kind: Literal["inversion"] = "inversion"
    inversion: Inversion


class RelearnRecord(_Document):
    """What `bdaudit relearn` measured."""

    kind: Literal["relearning"] = "relearning"
    baselines: tuple[Baseline, ...]
    relearning: Relearning


AnyDocument = AuditRecord | ScoreRecord | ReactivationRecord | InversionRecord | RelearnRecord
_KINDS: dict[str, type[AnyDocument]] = {
    "audit": AuditRecord,
    "score": ScoreRecord,
    "reactivation": ReactivationRecord,
    "inversion": InversionRecord,
    "relearning": RelearnRecord,
}
Document = TypeVar(
    "Document", AuditRecord, ScoreRecord, ReactivationRecord, InversionRecord, RelearnRecord
)


def _content_digest(document: Mapping[str, Any]) -> str:
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def to_json(record: Record) -> str:
    """Write `record` as indented JSON, always the same text for the same record.

    The last key is a digest over all others, by which an edit is found.
    """
    document = record.model_dump(mode="json")
    document[_DIGEST_KEY] = _content_digest(document)
    return json.dumps(document, indent=2, allow_nan=False) + "\n"


def read_record(path: Path) -> AnyDocument:
    """Read a record that `to_json` wrote.

    Raises:
        RecordError: The file is missing, not JSON, of a newer schema, not a bdaudit record, or
            was edited since it was written.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecordError(f"{path}: {error.strerror or error}") from error
    except ValueError as error:
        raise RecordError(f"{path}: expected the JSON that --json writes, got {error}") from error
    if not isinstance(document, dict) or "kind" not in document:
        raise RecordError(f"{path}: not a bdaudit record (no known 'kind' in it)")
    version = document.get("schema_version")
    if version != SCHEMA_VERSION:
        raise RecordError(
            f"{path}: record of schema version {version!r}, this bdaudit reads {SCHEMA_VERSION}; "
            "use the version of bdaudit that wrote it, or a newer one"
        )
    if document["kind"] not in _KINDS:
        raise RecordError(f"{path}: not a bdaudit record (no known 'kind' in it)")
    stated = document.pop(_DIGEST_KEY, None)
    if stated is None:
        raise RecordError(f"{path}: has no digest of its own content: edited, or cut short")
    try:
        record = _KINDS[document["kind"]].model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise RecordError(
            f"{path}: damaged or edited record, at {where}: {first['msg']}"
        ) from error
    except RecordError as error:
        raise RecordError(f"{path}: {error}") from error
    if _content_digest(document) != stated:
        raise RecordError(
            f"{path}: was edited since it was written: its content does not match its own digest"
        )
    return record
