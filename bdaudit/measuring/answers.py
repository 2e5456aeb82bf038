"""What the models of an audit answer before anything is measured on them.

A few images are asked about twice, alone, and among others. Answers that change or that depend on
the rest of the batch make every rate doubtful, and two models that answer alike are one model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from bdaudit.blackbox import (
    BlackBox,
    TorchBlackBox,
    ask_in_batches,
    check_repeatability,
    describe_scale,
    diagnose_batch,
)
from bdaudit.cases.subjects import Subject
from bdaudit.data import Sample
from bdaudit.errors import ModelError
from bdaudit.models import LoadedModel
from bdaudit.records import Diagnostic
from bdaudit.triggers import Poisoned

__all__ = ["Examined", "examine_answers"]

_N_ASKED = 8
_N_ASKED_FOR_LABELS = 16  # a label says less than scores
_SAME_ANSWERS = 1e-4  # of the spread of scores: what float32 rounds in another library
_SAME_WEIGHT = 2.0**-8  # of a weight: what bfloat16 rounds


@dataclass(frozen=True)
class Examined:
    """What the answers give reason to doubt.

    Attributes:
        diagnostics: About models whose answers everything rests on.
        unfit: Why some references are no innocent models to be held against, by name.
    """

    diagnostics: tuple[Diagnostic, ...] = ()
    unfit: dict[str, str] = field(default_factory=dict)


def examine_answers(
    subjects: Sequence[Subject],
    craft: Sample,
    poisoned: Poisoned | None = None,
) -> Examined:
    """Ask every model about a few craft images, and hold the answers against one another.

    For a model that can only be queried it costs nine queries per image, on 8 images where it
    gives scores and on 16 where it gives labels. Half of them carry the trigger, if there is one.

    Args:
        subjects: The models.
        craft: Clean images.
        poisoned: Their triggered versions, where a trigger is known.

    Raises:
        ModelError: A model that can only be queried gave no usable answer.
        RemoteError: A served model could not be asked.
    """
    diagnostics: list[Diagnostic] = []
    unfit: dict[str, str] = {}
    scores: dict[str, Tensor] = {}
    for subject in subjects:
        found, answers = _examine(subject, craft, poisoned)
        if answers is not None:
            scores[subject.name] = answers
        serious = [d for d in found if d.severity == "error"]
        if subject.role == "reference" and serious:
            unfit[subject.name] = serious[0].message
            found = [d for d in found if d.severity != "error"]
        elif subject.role == "surrogate":
            # It serves an attack and is no part of what is judged.
            found = [_milder(d) for d in found]
        diagnostics += found
    for position, one in enumerate(subjects):
        for other in subjects[:position]:
            said = _are_one(other, one, scores)
            if said is None:
                continue
            copy = _to_leave_out(other, one)
            if copy is None:
                diagnostics.append(
                    Diagnostic(
                        code="same_weights",
                        severity="error",
                        subject=f"{other.name}, {one.name}",
                        message=f"these are the same weights: {other.name} and {one.name} {said}; "
                        "is one of the paths wrong, or did the defence save the model it started "
                        "from?",
                    )
                )
            else:
                whose = other if copy is one else one
                unfit.setdefault(copy.name, f"it is the same model as {whose.name}: they {said}")
    return Examined(tuple(diagnostics), unfit)


def _examine(
    subject: Subject, craft: Sample, poisoned: Poisoned | None
) -> tuple[list[Diagnostic], Tensor | None]:
    """Return what is doubtful about one model's answers, and its scores where it gives any."""
    box = _box_of(subject)
    images, neighbours = _choose(box, craft, poisoned)
    try:
        found = check_repeatability(box, images)
        if any(d.severity == "error" for d in found):
            return found, None
        answers = ask_in_batches(box, images, neighbours)
    except ModelError as error:
        if subject.model is None:
            raise
        # Of a model at hand minus infinity is an answer, and what is wrong shows in the rates.
        doubt = Diagnostic(
            code="answers_not_examined",
            severity="warning",
            subject=subject.name,
            message=str(error),
        )
        return [doubt], None
    found += diagnose_batch(box, answers)
    if subject.model is None:
        found += describe_scale(box)
    return found, answers.first if answers.first.ndim == 2 else None


def _box_of(subject: Subject) -> BlackBox:
    """Return what is asked: of a model at hand the scores, whatever a search will be given."""
    if subject.model is None:
        return subject.black_box
    return TorchBlackBox(subject.model, grid=subject.black_box.grid)


def _choose(box: BlackBox, craft: Sample, poisoned: Poisoned | None) -> tuple[Tensor, Tensor]:
    """Pick images to ask about, half of them triggered, and as many others to put beside them."""
    wanted = _N_ASKED_FOR_LABELS if box.feedback == "labels" else _N_ASKED
    n = min(wanted, len(craft) // 2)
    images, neighbours = craft.images[:n], craft.images[n : 2 * n]
    if poisoned is not None:
        triggered = poisoned.triggered[: n // 2]
        images = torch.cat([images[: n - len(triggered)], triggered])
    return images, neighbours


def _milder(diagnostic: Diagnostic) -> Diagnostic:
    if diagnostic.severity != "error":
        return diagnostic
    return diagnostic.model_copy(update={"severity": "warning"})


def _are_one(one: Subject, other: Subject, scores: dict[str, Tensor]) -> str | None:
    """Return what two models have in common that makes them one; `None` where they differ."""
    if one.weights_sha256 is not None and one.weights_sha256 == other.weights_sha256:
        return "hold equal tensors"
    if one.model is not None and other.model is not None and _are_copies(one.model, other.model):
        return "hold the same weights but for their rounding"
    if one.name not in scores or other.name not in scores:
        return None
    first, second = (
        s - s.mean(dim=1, keepdim=True) for s in (scores[one.name], scores[other.name])
    )
    if first.shape != second.shape:
        return None
    spread = float(first.square().mean().sqrt())
    if spread == 0 or float((first - second).abs().max()) > _SAME_ANSWERS * spread:
        return None
    return f"give the same scores for {len(first)} images, clean and triggered"


def _are_copies(one: LoadedModel, other: LoadedModel) -> bool:
    """Whether all weights are alike, in order, whatever they are called and rounded to."""
    # Statistics of batch norms among them: a defence may change nothing else.
    first, second = (
        [t for t in m.classifier.state_dict().values() if t.is_floating_point()]
        for m in (one, other)
    )
    if not first or [p.shape for p in first] != [p.shape for p in second]:
        return False
    return all(
        bool(((a - b.to(a.device)).abs() <= _SAME_WEIGHT * a.abs() + 1e-6).all())
        for a, b in zip(first, second, strict=True)
    )


def _to_leave_out(one: Subject, other: Subject) -> Subject | None:
    """Return the one of two equal models that need not serve; `None` where both must.

    A reference gives way to whatever it is a copy of, a later one to an earlier one.
    """
    if other.role == "reference":
        return other
    return one if one.role == "reference" else None
