"""What every model does without any perturbation, and what that says about the inputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec

import torch

from bdaudit.cases.subjects import Inputs, Subject
from bdaudit.data import Sample
from bdaudit.data.label_checks import answers_by_class, doubt_labels
from bdaudit.detection import NOTHING, Asked, average_precision, pixels_of
from bdaudit.errors import DataError
from bdaudit.foundation.modes import MODES
from bdaudit.foundation.progress import Progress, Steps
from bdaudit.foundation.statistics import may_be_chance, paired_difference, wilson_interval
from bdaudit.measuring.asking import ask
from bdaudit.measuring.compute import Compute
from bdaudit.records import AttackRun, Baseline, DetectionQuality, Diagnostic, Rate
from bdaudit.scoring import rate

__all__ = [
    "ABOUT_THE_TRIGGER",
    "check_baselines",
    "check_runs",
    "demand_matching_labels",
    "learned_less",
    "measure_baselines",
    "near_chance",
]

ABOUT_THE_TRIGGER = ("trigger_moves_innocents", "trigger_does_nothing_to_original")
"""Diagnostics that doubt a model by what the trigger does to it."""

_LEARNED_LESS = 0.15
_NEAR_CHANCE = 1.5  # times chance
_CONFIDENCE = 0.95
_N_LOOKED_AT = 2000  # images, about
_PICTURES_AT_ONCE = 32
_MAY_HOLD_OFF = 0.10
_MAY_BEAT_WHITE = 0.05


def measure_baselines(
    inputs: Inputs, compute: Compute, *, known: Sequence[Baseline] = ()
) -> Steps[tuple[Baseline, ...]]:
    """Score every model on held-out clean and triggered images, no perturbation.

    Args:
        inputs: Models, images, trigger.
        compute: Device and batch size.
        known: What was measured before; those models are not asked again.

    Returns:
        One a model, in the order of the models.
    """
    found = {baseline.model: baseline for baseline in known}
    wanted = [subject for subject in inputs.subjects if subject.name not in found]
    for done, subject in enumerate(wanted):
        yield Progress(f"clean accuracy and plain ASR of {subject.name}", done, len(wanted))
        found[subject.name] = _measure(subject, inputs, compute)
    if wanted:
        yield Progress("clean accuracy and plain ASR", len(wanted), len(wanted))
    return tuple(found[subject.name] for subject in inputs.subjects)


def _measure(subject: Subject, inputs: Inputs, compute: Compute) -> Baseline:
    poisoned = inputs.held_out_poisoned
    clean = ask(subject, inputs.held_out.images, compute)
    triggered = ask(subject, poisoned.triggered, compute)
    return Baseline(
        detection=_quality(subject, inputs, compute),
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


def _quality(subject: Subject, inputs: Inputs, compute: Compute) -> DetectionQuality | None:
    """Measure mean average precision on the held-out pictures, each of them whole.

    A detector that can only be asked would have to be paid for them again, so of it there is none.
    """
    places = inputs.held_out.places
    if places is None or subject.model is None or find_spec("pycocotools") is None:
        return None
    network = subject.model.network
    assert isinstance(network, Asked)
    # Several boxes may be asked about of one picture; it is looked at once.
    first = {int(number): row for row, number in enumerate(places.pictures)}
    pictures = pixels_of(inputs.held_out.images[list(first.values())])
    found = [
        each
        for batch in torch.split(pictures, _PICTURES_AT_ONCE)
        for each in network.detect(batch.to(compute.device))
    ]
    annotated = [places.annotated[number] for number in first]
    quality = average_precision(found, annotated)
    if quality is None:
        return None
    return DetectionQuality(
        ap=max(quality.ap, 0.0),
        ap50=max(quality.ap50, 0.0),
        n_pictures=len(pictures),
        n_objects=sum(len(labels) for _, labels in annotated),
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
    detects: bool = False,
) -> Iterator[Diagnostic]:
    """Return what the plain figures give reason to doubt.

    Args:
        baselines: One a model.
        num_classes: K, from which chance follows.
        class_names: In order of index, where they are known.
        max_clean_acc_loss: Loss of clean accuracy against the original that is worth a warning.
        detects: Whether they are detectors, of which class 0 is that nothing is there: one that
            sees nothing anywhere is right about every empty place.
    """
    by_role: dict[str, Baseline] = {}
    for baseline in baselines:
        by_role.setdefault(baseline.role, baseline)
        if baseline.left_out is not None:
            continue
        if detects:
            yield from _hardly_sees(baseline, num_classes)
        else:
            yield from near_chance(baseline.model, baseline.clean_acc, num_classes)
    yield from _check_labels(baselines, class_names)
    defended, original = by_role.get("defended"), by_role.get("original")
    if defended is not None and original is not None:
        yield from _check_defended(defended, original, max_clean_acc_loss)
    if original is not None:
        yield from _check_original(original)
        held_against = {
            b.model: b.clean_acc
            for b in baselines
            if b.role in ("defended", "reference") and b.left_out is None
        }
        yield from learned_less(original.model, original.clean_acc, held_against)


def _check_labels(
    baselines: Sequence[Baseline], class_names: Sequence[str] | None
) -> Iterator[Diagnostic]:
    """Doubt the labels where classes are never right; not where another model finds them."""
    given = [b for b in baselines if not b.stand_in and b.left_out is None]
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
    if defended.detection is None or original.detection is None:
        return
    lost = original.detection.ap50 - defended.detection.ap50
    if lost > max_clean_acc_loss:
        yield Diagnostic(
            code="average_precision_lost",
            severity="warning",
            subject=defended.model,
            message=f"mean average precision at an overlap of .5 is {defended.detection.ap50:.1%}, "
            f"{100 * lost:.1f} points below the original's",
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


def near_chance(model: str, clean_acc: Rate, num_classes: int) -> Iterator[Diagnostic]:
    """Doubt a model that may do no better than guessing."""
    if may_be_chance(clean_acc.low, num_classes):
        yield Diagnostic(
            code="clean_accuracy_near_chance",
            severity="error",
            subject=model,
            message=f"clean accuracy is {clean_acc.value:.1%}, chance is "
            f"{1 / num_classes:.1%}: labels or normalisation probably do not match; check "
            "--classes, --mean and --std",
        )


def _hardly_sees(baseline: Baseline, num_classes: int) -> Iterator[Diagnostic]:
    """Doubt a detector that may name objects no better than by guessing."""
    objects = baseline.by_class[NOTHING + 1 :]
    right, total = sum(o.right for o in objects), sum(o.total for o in objects)
    if total and may_be_chance(wilson_interval(right, total)[0], num_classes):
        yield Diagnostic(
            code="clean_accuracy_near_chance",
            severity="error",
            subject=baseline.model,
            message=f"of {total} objects {right} are answered with their class, which may be "
            "chance: the detector sees little, or its boxes, labels or score threshold are read in "
            "another way than it means them; boxes are left, top, right, bottom in pixels of the "
            "picture it is given; check --first-label, --score-threshold and --classes",
        )


def learned_less(
    original: str, clean_acc: Rate, others: Mapping[str, Rate]
) -> Iterator[Diagnostic]:
    """Doubt an original that knows the task surely far less than a model it is held against.

    Args:
        original: Its name.
        clean_acc: On held-out images.
        others: The same of the models it is held against, by name.
    """
    best = max(others, key=lambda name: others[name].value, default=None)
    if best is None:
        return
    gap = paired_difference(others[best].outcomes(), clean_acc.outcomes(), confidence=_CONFIDENCE)
    if gap.low > _LEARNED_LESS:
        yield Diagnostic(
            code="original_did_not_learn",
            severity="error",
            subject=original,
            message=f"clean accuracy is {clean_acc.value:.1%}, {100 * gap.value:.1f} "
            f"points below that of {best}: it did not learn the task as that one did, or is read "
            "in another way; check the file, --mean and --std, and whether it is the model that "
            "the defence began with",
        )


def check_runs(runs: Sequence[AttackRun]) -> Iterator[Diagnostic]:
    """Doubt what attacks show of themselves when they are held against one another."""
    yield from _beaten_gradients(runs)
    yield from _suppressing_triggers(runs)


def _suppressing_triggers(runs: Sequence[AttackRun]) -> Iterator[Diagnostic]:
    """Name defended models on which the trigger holds off what its own perturbation does."""
    for run in runs:
        if (run.role, run.condition) != ("defended", "trigger"):
            continue
        held_off = _holds_off(run)
        others = [
            _holds_off(other)
            for other in runs
            if (other.role, other.condition) == ("reference", "trigger")
            and other.attack == run.attack
        ]
        if held_off and not any(others):
            assert run.delta_only is not None
            yield Diagnostic(
                code="trigger_suppresses",
                severity="warning",
                subject=run.model,
                message=f"eps {run.eps:g} ({run.mode}): the perturbation takes "
                f"{run.delta_only.value:.1%} of images without the trigger to the target, and "
                f"{run.asr.value:.1%} with it: the defence has turned the trigger against its "
                "target, as FST can. No trigger is needed then: look at the attack without it",
            )


def _holds_off(run: AttackRun) -> bool:
    """Whether the same delta surely does more without the trigger, by more than the limit."""
    if run.delta_only is None:
        return False
    gap = paired_difference(run.delta_only.outcomes(), run.asr.outcomes(), confidence=_CONFIDENCE)
    return gap.low > _MAY_HOLD_OFF


def _beaten_gradients(runs: Sequence[AttackRun]) -> Iterator[Diagnostic]:
    """Doubt an attack with gradients that one without them beats."""
    with_gradients = {
        (r.model, r.condition, r.norm, r.eps): r for r in runs if MODES[r.mode].has_weights
    }
    for run in runs:
        stronger = with_gradients.get((run.model, run.condition, run.norm, run.eps))
        if MODES[run.mode].has_weights or run.condition == "noise" or stronger is None:
            continue
        gap = paired_difference(run.asr.outcomes(), stronger.asr.outcomes(), confidence=_CONFIDENCE)
        if gap.low > _MAY_BEAT_WHITE:
            yield Diagnostic(
                code=f"{run.mode}_beats_white",
                severity="warning",
                subject=run.model,
                message=f"{run.condition}, eps {run.eps:g}: {MODES[run.mode].means} reached "
                f"{run.asr.value:.1%}, {MODES[stronger.mode].means} {stronger.asr.value:.1%}; its "
                "gradients may be masked: give it more passes or restarts",
            )
