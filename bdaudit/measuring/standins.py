"""Innocent models as a step of an audit: measured, left out if unfit, and made where they lack."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bdaudit.cases.subjects import Inputs, Subject
from bdaudit.data import Sample
from bdaudit.detection import is_detector
from bdaudit.errors import ModelError, NumericsError
from bdaudit.foundation.progress import Steps
from bdaudit.measuring.answers import Examined, examine_answers
from bdaudit.measuring.baselines import check_baselines, demand_matching_labels, measure_baselines
from bdaudit.measuring.compute import Compute, derive_generator
from bdaudit.measuring.innocents import assess_innocents, trigger_moves_innocents
from bdaudit.models import LoadedModel
from bdaudit.records import Baseline, Diagnostic
from bdaudit.relatives.standins import StandInConfig, make_stand_ins, n_kept
from bdaudit.verdict import Policy

__all__ = [
    "N_INNOCENT",
    "Assessed",
    "MadeStandIns",
    "PreparedModels",
    "doubts_about_models",
    "examine_new",
    "make_models",
    "measure_and_assess",
    "n_missing",
    "prepare_models",
    "stand_in_cost",
    "stand_in_steps",
    "stand_ins_kept",
    "teacher_of",
]

N_INNOCENT = 3
"""Innocent models an audit wants: stand-ins are made where fewer are given."""


@dataclass(frozen=True)
class MadeStandIns:
    """What became of the wish for stand-ins.

    Attributes:
        models: Those that were made, good enough or not.
        failure: Why there are none.
    """

    models: tuple[LoadedModel, ...] = ()
    failure: Diagnostic | None = None


def n_missing(subjects: Sequence[Subject], wanted: int | None, *, enough: int = N_INNOCENT) -> int:
    """Return how many stand-ins to make: `wanted`, or what the references lack to `enough`.

    Unasked none is made for detectors, since none can be.

    Args:
        subjects: The models that serve: a reference that was left out counts for nothing.
        wanted: As the user said; `None` where nothing was said.
        enough: Innocent models that are wanted.
    """
    if wanted is not None:
        return wanted
    if any(s.model is not None and is_detector(s.model.network) for s in subjects):
        return 0  # answers about boxes do not teach a detector where boxes are
    given = [s for s in subjects if s.role == "reference" and not s.stand_in]
    return max(enough - len(given), 0)


def make_models(
    teacher: LoadedModel,
    craft: Sample,
    compute: Compute,
    *,
    count: int,
    config: StandInConfig,
    cache_dir: Path | None = None,
) -> Steps[MadeStandIns]:
    """Make stand-ins of the teacher's architecture from clean craft images."""
    config = replace(config, autocast=compute.autocast or config.autocast)
    try:
        models = yield from make_stand_ins(
            teacher,
            craft,
            count=count,
            config=config,
            generator=derive_generator(compute.seed, "stand-ins"),
            cache_dir=cache_dir,
        )
    except (ModelError, NumericsError) as error:
        return MadeStandIns(
            failure=Diagnostic(
                code="no_stand_ins",
                severity="warning",
                subject="stand-ins",
                message=f"no stand-in could be made: {error}; pass --reference",
            )
        )
    return MadeStandIns(models)


def stand_ins_kept(
    teacher: LoadedModel,
    craft: Sample,
    compute: Compute,
    *,
    count: int,
    config: StandInConfig,
    cache_dir: Path | None,
) -> int:
    """Return how many of the stand-ins that `make_models` would give are in the cache."""
    return n_kept(
        teacher,
        craft,
        count=count,
        config=replace(config, autocast=compute.autocast or config.autocast),
        generator=derive_generator(compute.seed, "stand-ins"),
        cache_dir=cache_dir,
    )


def stand_in_steps(
    inputs: Inputs,
    compute: Compute,
    *,
    count: int,
    config: StandInConfig,
    cache_dir: Path | None = None,
) -> Steps[tuple[Inputs, Diagnostic | None]]:
    """Make stand-ins and put them among the references.

    The defended model teaches them. Where it can only be queried the original does, which costs no
    query: neither sees anything but clean craft images.

    Returns:
        The inputs with the stand-ins, and, where none could be made, why.
    """
    made = yield from make_models(
        teacher_of(inputs), inputs.craft, compute, count=count, config=config, cache_dir=cache_dir
    )
    return inputs.with_stand_ins(made.models), made.failure


@dataclass(frozen=True)
class PreparedModels:
    """Models with their stand-ins, scored without any perturbation.

    Attributes:
        inputs: With the stand-ins; innocent models that are unfit play no part.
        baselines: One a model.
        diagnostics: What inputs, innocent models and baselines give reason to doubt.
        n_stand_ins: How many stand-ins were asked for.
    """

    inputs: Inputs
    baselines: tuple[Baseline, ...]
    diagnostics: tuple[Diagnostic, ...]
    n_stand_ins: int


def prepare_models(
    inputs: Inputs,
    compute: Compute,
    *,
    wanted: int | None,
    config: StandInConfig,
    cache_dir: Path | None,
    enough: int = N_INNOCENT,
) -> Steps[PreparedModels]:
    """Score every model, leave out innocent ones that are unfit, and make what is then missing.

    For verbs that judge nothing; the limits are the default policy's.

    Args:
        inputs: Models, images, trigger.
        compute: Device, seed, batch size.
        wanted: Stand-ins to make; `None` makes what the references that serve lack to `enough`.
        config: How stand-ins are made.
        cache_dir: Folder that keeps them for the next run; `None` keeps none.
        enough: Innocent models that are wanted.

    Raises:
        DataError: The labels are not the classes of the model that teaches the stand-ins.
    """
    policy = Policy()
    if _teacher_subject(inputs).model is not None:
        demand_matching_labels(_teacher_subject(inputs), inputs.craft, compute)
    first = yield from measure_and_assess(
        inputs, compute, policy, examined=examine_new(inputs), known=()
    )
    inputs, baselines, diagnostics = first.inputs, first.baselines, [*first.diagnostics]
    count = n_missing(inputs.taking_part, wanted, enough=enough)
    if count:
        inputs, failure = yield from stand_in_steps(
            inputs, compute, count=count, config=config, cache_dir=cache_dir
        )
        second = yield from measure_and_assess(
            inputs, compute, policy, examined=examine_new(inputs, baselines), known=baselines
        )
        inputs, baselines = second.inputs, second.baselines
        diagnostics += [*([failure] if failure else []), *second.diagnostics]
    diagnostics += doubts_about_models(inputs, baselines, policy)
    return PreparedModels(inputs, baselines, tuple(diagnostics), count)


@dataclass(frozen=True)
class Assessed:
    """Models that were scored, and which of the innocent ones serve.

    Attributes:
        inputs: Innocent models that are unfit play no part.
        baselines: One a model.
        diagnostics: About answers, and about who is left out.
    """

    inputs: Inputs
    baselines: tuple[Baseline, ...]
    diagnostics: tuple[Diagnostic, ...]


def examine_new(inputs: Inputs, known: Sequence[Baseline] = ()) -> Examined:
    """Examine the answers of the models that were not scored yet.

    Raises:
        ModelError: A model that can only be queried gave no usable answer.
        RemoteError: A served model could not be asked.
    """
    before = {baseline.model for baseline in known}
    new = [subject for subject in inputs.subjects if subject.name not in before]
    return examine_answers(new, inputs.craft, inputs.craft_poisoned)


def measure_and_assess(
    inputs: Inputs,
    compute: Compute,
    policy: Policy,
    *,
    examined: Examined,
    known: Sequence[Baseline],
) -> Steps[Assessed]:
    """Score the models that were not yet, and leave out innocent ones that are unfit.

    Args:
        inputs: Models, images, trigger.
        compute: Device and batch size.
        policy: Limits for innocent models.
        examined: What the answers of the models that were not scored yet have shown.
        known: Baselines of models that were scored before.
    """
    measured = yield from measure_baselines(inputs, compute, known=known)
    wide = inputs.trigger_info().wide
    baselines, left_out = assess_innocents(measured, policy, unfit=examined.unfit, wide=wide)
    inputs = replace(inputs, left_out=frozenset(b.model for b in baselines if b.left_out))
    return Assessed(inputs, baselines, (*examined.diagnostics, *left_out))


def doubts_about_models(
    inputs: Inputs, baselines: Sequence[Baseline], policy: Policy
) -> list[Diagnostic]:
    """Return what the plain figures of all models give reason to doubt."""
    doubts = check_baselines(
        baselines,
        inputs.num_classes,
        max_clean_acc_loss=policy.max_clean_acc_loss,
        class_names=inputs.held_out.class_names,
        detects=inputs.marked,
    )
    wide = inputs.trigger_info().wide
    return [*doubts, *trigger_moves_innocents(baselines, policy, wide=wide)]


def stand_in_cost(count: int, config: StandInConfig) -> float:
    """Return what making them costs, in images forwarded: teacher, student, and back."""
    return 4.0 * count * config.n_images


def teacher_of(inputs: Inputs) -> LoadedModel:
    """Return the model that teaches stand-ins: the defended one, or else the original."""
    return _teacher_subject(inputs).white


def _teacher_subject(inputs: Inputs) -> Subject:
    (defended,) = inputs.with_role("defended")
    if defended.model is not None:
        return defended
    return next(iter(inputs.with_role("original")), defended)
