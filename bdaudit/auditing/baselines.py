"""What every model does without any perturbation, and what that says about the inputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bdaudit.auditing.inputs import Inputs, Subject
from bdaudit.auditing.runs import Compute, ask
from bdaudit.blackbox import check_repeatability, describe_scale
from bdaudit.data import Sample
from bdaudit.errors import DataError
from bdaudit.label_checks import answers_by_class, doubt_labels
from bdaudit.progress import Progress, Steps
from bdaudit.results import AttackRun, Baseline, Diagnostic
from bdaudit.scoring import rate
from bdaudit.statistics import paired_difference

__all__ = [
    "ABOUT_THE_TRIGGER",
    "check_baselines",
    "check_inputs",
    "check_runs",
    "demand_matching_labels",
    "measure_baselines",
]

ABOUT_THE_TRIGGER = ("reference_looks_backdoored", "trigger_does_nothing_to_original")
"""Diagnostics that doubt a model by what the trigger does to it."""

_REFERENCE_LOOKS_BACKDOORED = 0.5
_REFERENCE_ACC_GAP = 0.15
_CONFIDENCE = 0.95
_NEAR_CHANCE = 1.5  # times chance
_N_LOOKED_AT = 2000  # images, about
_N_ASKED_TWICE = 8
_MAY_BEAT_WHITE = 0.05
_WITHOUT_GRADIENTS = {"query": "queries alone", "transfer": "a perturbation made elsewhere"}


def measure_baselines(inputs: Inputs, compute: Compute) -> Steps[tuple[Baseline, ...]]:
    """Score every model on held-out clean and triggered images, no perturbation."""
    baselines = []
    total = len(inputs.subjects)
    for done, subject in enumerate(inputs.subjects):
        yield Progress(f"clean accuracy and plain ASR of {subject.name}", done, total)
        baselines.append(_measure(subject, inputs, compute))
    yield Progress("clean accuracy and plain ASR", total, total)
    return tuple(baselines)


def _measure(subject: Subject, inputs: Inputs, compute: Compute) -> Baseline:
    poisoned = inputs.held_out_poisoned
    clean = ask(subject, inputs.held_out.images, compute)
    triggered = ask(subject, poisoned.triggered, compute)
    return Baseline(
        model=subject.name,
        role=subject.role,
        clean_acc=rate(clean == inputs.held_out.labels),
        asr=rate(triggered == poisoned.targets),
        # The poisonable images are among the clean ones, so they need not be asked about again.
        clean_target_rate=rate(clean[poisoned.indices] == poisoned.targets),
        true_label_acc=rate(triggered == poisoned.labels),
        stand_in=subject.stand_in,
        by_class=answers_by_class(clean, inputs.held_out.labels, inputs.num_classes),
    )


def check_inputs(inputs: Inputs) -> Iterator[Diagnostic]:
    """Are these really different models, and does one that is asked answer twice alike?"""
    for subject in inputs.subjects:
        if subject.model is None:
            few = inputs.craft.images[:_N_ASKED_TWICE]
            yield from check_repeatability(subject.black_box, few)
            yield from describe_scale(subject.black_box)
    subjects = inputs.subjects
    for position, one in enumerate(subjects):
        for other in subjects[:position]:
            if one.weights_sha256 is None or one.weights_sha256 != other.weights_sha256:
                continue
            yield Diagnostic(
                code="same_weights",
                severity="error",
                subject=f"{other.name}, {one.name}",
                message=f"these are the same weights: {other.name} and {one.name} hold equal "
                "tensors; is one of the paths wrong, or did the defence save the model it "
                "started from?",
            )


def demand_matching_labels(subject: Subject, sample: Sample, compute: Compute) -> None:
    """Refuse images whose labels are not the model's classes, before anything learns from them.

    Args:
        subject: A model that can be looked into; asking it costs nothing.
        sample: Labelled images.
        compute: Where, and how many at a time.

    Raises:
        DataError: Its answers are as good as chance, or some classes are never right, or exchanged.
    """
    # Every so many images: of samples that come class by class that keeps every class's share.
    some = slice(None, None, max(len(sample) // _N_LOOKED_AT, 1))
    labels = sample.labels[some]
    answers = ask(subject, sample.images[some], compute)
    num_classes = subject.black_box.num_classes
    by_class = answers_by_class(answers, labels, num_classes)
    doubt = doubt_labels(by_class)
    if doubt is not None:
        raise DataError(
            f"{sample.source}: by the answers of {subject.name}, "
            f"{doubt.explain(by_class, sample.class_names)}"
        )
    right = rate(answers == labels)
    if num_classes > 2 and right.value <= _NEAR_CHANCE / num_classes:
        raise DataError(
            f"{sample.source}: {subject.name} classifies {right.value:.1%} as labelled, chance is "
            f"{1 / num_classes:.1%}: labels or normalisation probably do not match; check "
            "--classes, --mean and --std"
        )


def check_baselines(
    baselines: Sequence[Baseline],
    num_classes: int,
    *,
    max_clean_acc_loss: float,
    class_names: Sequence[str] | None = None,
) -> Iterator[Diagnostic]:
    """Say what the plain figures give reason to doubt.

    Args:
        baselines: One a model.
        num_classes: K, from which chance follows.
        class_names: In order of index, where they are known.
        max_clean_acc_loss: Loss of clean accuracy against the original that is worth a warning.
    """
    by_role: dict[str, Baseline] = {}
    for baseline in baselines:
        by_role.setdefault(baseline.role, baseline)
        if baseline.clean_acc.low <= _NEAR_CHANCE / num_classes and not baseline.stand_in:
            yield Diagnostic(
                code="clean_accuracy_near_chance",
                severity="error",
                subject=baseline.model,
                message=f"clean accuracy is {baseline.clean_acc.value:.1%}, chance is "
                f"{1 / num_classes:.1%}: labels or normalisation probably do not match; check "
                "--classes, --mean and --std",
            )
    yield from _check_labels(baselines, class_names)
    defended, original = by_role.get("defended"), by_role.get("original")
    if defended is not None and original is not None:
        yield from _check_defended(defended, original, max_clean_acc_loss)
    if original is not None:
        yield from _check_original(original)
    for baseline in baselines:
        if baseline.role == "reference" and not baseline.stand_in:
            yield from _check_reference(baseline, defended)


def _check_labels(
    baselines: Sequence[Baseline], class_names: Sequence[str] | None
) -> Iterator[Diagnostic]:
    """Doubt the labels where classes are never right; not where another model finds them."""
    given = [baseline for baseline in baselines if not baseline.stand_in]
    doubts = [(baseline, doubt_labels(baseline.by_class)) for baseline in given]
    found_by = [
        (
            baseline.model,
            {k for k, row in enumerate(baseline.by_class) if 2 * row.right > row.total},
        )
        for baseline, doubt in doubts
        if doubt is None
    ]
    for baseline, doubt in doubts:
        if doubt is None:
            continue
        lost = set(doubt.never_right)
        finder = next((model for model, found in found_by if lost <= found), None)
        if doubt.exchanged or finder is None:
            yield Diagnostic(
                code="labels_do_not_match",
                severity="error",
                subject=baseline.model,
                message=doubt.explain(baseline.by_class, class_names),
            )
            continue
        named = ", ".join(str(index) for index in doubt.never_right)
        yield Diagnostic(
            code="class_lost",
            severity="warning",
            subject=baseline.model,
            message=f"never answers right for class {named}, whose images {finder} does classify "
            "as labelled: the class is lost to this model",
        )


def _check_defended(
    defended: Baseline, original: Baseline, max_clean_acc_loss: float
) -> Iterator[Diagnostic]:
    loss = paired_difference(
        original.clean_acc.outcomes(), defended.clean_acc.outcomes(), confidence=_CONFIDENCE
    )
    if loss.low > max_clean_acc_loss:
        yield Diagnostic(
            code="clean_accuracy_lost",
            severity="warning",
            subject=defended.model,
            message=f"clean accuracy is {loss.value:.1%} below the original's; references that "
            "lost as much make the fairest comparison",
        )


def _check_original(original: Baseline) -> Iterator[Diagnostic]:
    gain = paired_difference(
        original.asr.outcomes(), original.clean_target_rate.outcomes(), confidence=_CONFIDENCE
    )
    if gain.low <= 0.0:
        yield Diagnostic(
            code="trigger_does_nothing_to_original",
            severity="error",
            subject=original.model,
            message="the trigger takes no more images to the target than no trigger at all: "
            "wrong trigger, wrong target, or wrong original",
        )


def _check_reference(reference: Baseline, defended: Baseline | None) -> Iterator[Diagnostic]:
    if reference.asr.low > _REFERENCE_LOOKS_BACKDOORED:
        yield Diagnostic(
            code="reference_looks_backdoored",
            severity="error",
            subject=reference.model,
            message=f"the trigger alone takes {reference.asr.value:.1%} of images to the target "
            "on this reference: it is not innocent, or the trigger is no trigger but a feature "
            "of the class",
        )
    if defended is None:
        return
    gap = paired_difference(
        defended.clean_acc.outcomes(), reference.clean_acc.outcomes(), confidence=_CONFIDENCE
    )
    if gap.low > _REFERENCE_ACC_GAP:
        yield Diagnostic(
            code="reference_much_weaker",
            severity="warning",
            subject=reference.model,
            message=f"clean accuracy is {gap.value:.1%} below the defended model's, so it is a "
            "poor stand-in for an innocent version of it",
        )


def check_runs(runs: Sequence[AttackRun]) -> Iterator[Diagnostic]:
    """Doubt an attack with gradients that one without them beats."""
    white = {(r.model, r.condition, r.norm, r.eps): r for r in runs if r.mode == "white"}
    for run in runs:
        stronger = white.get((run.model, run.condition, run.norm, run.eps))
        if run.mode == "white" or run.condition == "noise" or stronger is None:
            continue
        gap = paired_difference(run.asr.outcomes(), stronger.asr.outcomes(), confidence=_CONFIDENCE)
        if gap.low > _MAY_BEAT_WHITE:
            yield Diagnostic(
                code=f"{run.mode}_beats_white",
                severity="warning",
                subject=run.model,
                message=f"{run.condition}, eps {run.eps:g}: {_WITHOUT_GRADIENTS[run.mode]} reached "
                f"{run.asr.value:.1%}, the white box {stronger.asr.value:.1%}; its gradients may "
                "be masked: give it more passes or restarts",
            )
