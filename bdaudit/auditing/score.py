"""The existence coefficient alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from bdaudit.auditing.planning import plan_models
from bdaudit.auditing.session import Session
from bdaudit.cases.settings import ComputeSettings, SplitSettings
from bdaudit.cases.sources import DataSource, ModelSource, Sources, TriggerSource
from bdaudit.existence import ExistenceConfig
from bdaudit.foundation.plan import Plan, PlannedStep
from bdaudit.foundation.progress import Listener, Progress, Steps, finish
from bdaudit.foundation.renamed import renamed
from bdaudit.foundation.tasks import Task
from bdaudit.measuring.existence import existence_steps
from bdaudit.measuring.speed import speed_on
from bdaudit.measuring.standins import prepare_models
from bdaudit.models import ModelSettings
from bdaudit.precision import settled
from bdaudit.records import Diagnostic, ScoreFindings, ScoreRecord
from bdaudit.relatives.standins import StandInConfig

__all__ = ["score", "score_steps"]


@renamed({"references": "reference", "target_label": "target"})
def score(
    defended: ModelSource,
    *,
    original: ModelSource,
    data: DataSource,
    trigger: TriggerSource,
    reference: Sequence[ModelSource] = (),
    existence: ExistenceConfig | None = None,
    stand_ins: int | None = None,
    stand_in: StandInConfig | None = None,
    cache_dir: Path | None = None,
    compute: ComputeSettings | None = None,
    split: SplitSettings | None = None,
    task: Task = "classification",
    classes: Sequence[str] | Path | None = None,
    model_options: ModelSettings | None = None,
    target: int | str | None = None,
    allow_trigger_code: bool = False,
    command: Sequence[str] | None = None,
    listener: Listener | None = None,
) -> ScoreRecord:
    """Measure how much of the original's backdoor circuit is left in the defended model.

    Args:
        defended: The release candidate.
        original: The suspected model before the defence.
        data: Clean labelled images.
        trigger: The trigger.
        reference: Innocent models of the same task. Without one that serves a stand-in is made,
            and where that is switched off or fails the coefficient is undefined and the record
            says so.
        existence: Layers, share of channels, estimator, bootstrap.
        stand_ins: Innocent models to make; `None` makes one where no reference serves.
        stand_in: How they are made; `None` takes the defaults.
        cache_dir: Folder that keeps models made here for the next run; `None` keeps none.
        compute: Device, seed, batch size.
        split: Sizes of the halves; the coefficient is measured on the held-out one.
        task: What the models do; for "detection" data are pictures with boxes (docs/detection.md).
        classes: Class names in order of index, or a file with one a line.
        model_options: Architecture, normalisation and so on where the files do not say.
        target: Replaces the target of the trigger's rule; an index, or a class name.
        allow_trigger_code: Run Python code that the trigger file names.
        command: What to record as the command that reproduces this.
        listener: Told of progress.

    Returns:
        The record, with one coefficient a reference.

    Raises:
        InputError: An input cannot be used.
        NumericsError: A model returned NaN.
    """
    sources = Sources.of(
        defended=defended,
        original=original,
        references=reference,
        data=data,
        trigger=trigger,
        task=task,
        classes=classes,
        model_options=model_options or ModelSettings(),
        target_label=target,
        allow_trigger_code=allow_trigger_code,
    )
    compute = compute or ComputeSettings()
    steps = score_steps(
        sources,
        existence=existence
        or ExistenceConfig(
            batch_size=compute.batch_size, precision=settled(compute.precision, compute.device)
        ),
        stand_ins=stand_ins,
        stand_in=stand_in or StandInConfig(),
        cache_dir=cache_dir,
        compute=compute,
        split=split or SplitSettings(),
        command=command,
    )
    return finish(steps, listener)


def score_steps(
    sources: Sources,
    *,
    existence: ExistenceConfig,
    stand_ins: int | None,
    stand_in: StandInConfig,
    cache_dir: Path | None,
    compute: ComputeSettings,
    split: SplitSettings,
    command: Sequence[str] | None = None,
    planned: bool = False,
) -> Steps[ScoreRecord]:
    """Run `score` step by step, for whoever drives the generator; as `score` otherwise.

    With `planned` the first event after opening tells the plan.
    """
    session = yield from Session.begin(sources, compute=compute, split=split, command=command)
    inputs, run = session.open(), session.compute
    if planned:
        speed = speed_on(inputs.subjects, inputs.craft.images, run)
        steps = plan_models(
            inputs,
            run,
            wanted=stand_ins,
            enough=1,
            config=stand_in,
            cache_dir=cache_dir,
            speed=speed,
        )
        # Two models, and every innocent one, forwarded and differentiated.
        cost = 3.0 * (1 + max(len(inputs.with_role("reference")), 1)) * existence.n_samples
        steps.append(PlannedStep("BEC", cost * speed.forward))
        yield Progress("planning", 0, 1, plan=Plan(steps, str(run.device)))
    prepared = yield from prepare_models(
        inputs, run, wanted=stand_ins, config=stand_in, cache_dir=cache_dir, enough=1
    )
    diagnostics = [*prepared.diagnostics]
    bec, reason = yield from existence_steps(prepared.inputs, run, existence)
    if reason is not None:
        diagnostics.append(
            Diagnostic(code="bec_undefined", severity="warning", subject="defended", message=reason)
        )
    return session.seal(
        ScoreRecord,
        ScoreFindings(baselines=prepared.baselines, bec=bec),
        inputs=prepared.inputs,
        settings={
            "existence": asdict(existence),
            "stand_ins": prepared.n_stand_ins,
            "stand_in": asdict(stand_in),
        },
        diagnostics=diagnostics,
    )
