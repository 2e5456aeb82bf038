"""What the models answered: without any perturbation, and under attack."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from bdaudit.records.base import Condition, Diagnostic, Fraction, Mode, Rate, Record, Role

__all__ = ["AttackRun", "Baseline", "ClassAnswers", "CurvePoint", "DetectionQuality"]


class ClassAnswers(Record):
    """How the clean images of one class are classified.

    Attributes:
        right: As labelled.
        total: Images of the class.
        mistaken_for: The other class they are most often taken for, `None` where they never are.
        n_mistaken: How many are taken for that one.
    """

    right: int = Field(ge=0)
    total: int = Field(ge=0)
    mistaken_for: int | None = Field(default=None, ge=0)
    n_mistaken: int = Field(default=0, ge=0)


class DetectionQuality(Record):
    """How good a detector is on the held-out pictures as they are.

    Attributes:
        ap: Mean average precision over the overlaps .50 to .95, as COCO has it.
        ap50: The same at an overlap of .50.
        n_pictures: Pictures.
        n_objects: Objects annotated in them.
    """

    ap: Fraction
    ap50: Fraction
    n_pictures: int = Field(ge=1)
    n_objects: int = Field(ge=1)


class Baseline(Record):
    """A model with no perturbation at all, on the held-out images.

    Attributes:
        clean_acc: Share of clean images classified as labelled.
        asr: Attack success rate of the trigger alone, over images whose true label is not the
            target; higher means the backdoor is more active.
        clean_target_rate: The same images without the trigger, share classified as the target.
        true_label_acc: Share of the triggered images classified as their true label.
        stand_in: Whether the model was made here, as an innocent one.
        left_out: Why nothing is held against an innocent model; `None` where it serves.
        by_class: How the clean images of each class are classified, in order of index; empty in
            records written before this was measured.
        detection: Of a detector at hand, where pycocotools is installed.
    """

    model: str
    role: Role
    clean_acc: Rate
    asr: Rate
    clean_target_rate: Rate
    true_label_acc: Rate
    stand_in: bool = False
    left_out: str | None = None
    by_class: tuple[ClassAnswers, ...] = ()
    detection: DetectionQuality | None = None

    @model_validator(mode="after")
    def _classes_add_up(self) -> Baseline:
        if any(row.right + row.n_mistaken > row.total for row in self.by_class):
            raise ValueError("by_class holds more answers than images")
        if self.by_class and (
            sum(row.right for row in self.by_class) != self.clean_acc.successes
            or sum(row.total for row in self.by_class) != self.clean_acc.total
        ):
            raise ValueError("by_class does not add up to clean_acc")
        return self


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
            with the trigger but toward a `wrong_target`, a random `noise` delta, or with a
            `placebo` in the trigger's place.
        placebo: Which placebo, an index into `Placebos.kept`.
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
    placebo: int | None = Field(default=None, ge=0)
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
