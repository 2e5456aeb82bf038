"""Relearning: how fast does the trigger come back, alone or as a step of an audit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from bdaudit.auditing.planning import plan_models
from bdaudit.auditing.session import Session
from bdaudit.cases.settings import ComputeSettings, SplitSettings
from bdaudit.cases.sources import DataSource, ModelSource, Sources, TriggerSource
from bdaudit.foundation.plan import Plan, PlannedStep
from bdaudit.foundation.progress import Listener, Progress, Steps, finish
from bdaudit.foundation.renamed import renamed
from bdaudit.foundation.tasks import Task
from bdaudit.measuring.relearning import measure_relearning, relearning_cost
from bdaudit.measuring.speed import speed_on
from bdaudit.measuring.standins import N_INNOCENT, prepare_models
from bdaudit.models import ModelSettings
from bdaudit.records import RelearnFindings, RelearnRecord
from bdaudit.relatives.standins import StandInConfig
from bdaudit.relearning import RelearnConfig

__all__ = ["relearn", "relearn_steps"]


@renamed({"references": "reference", "target_label": "target"})
def relearn(
    defended: ModelSource,
    *,
    data: DataSource,
    trigger: TriggerSource,
    reference: Sequence[ModelSource] = (),
    config: RelearnConfig | None = None,
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
) -> RelearnRecord:
    """Teach a model its trigger by a handful of images, and innocent models alike.

    Args:
        defended: The model in question.
        data: Clean labelled images. Shots come from the craft half, rates from the held-out one.
        trigger: The trigger.
        reference: Innocent models of the same task; three or more, and put through a like
            defence, make the comparison fair. Where there are fewer, stand-ins are made.
        config: Shots, steps, learning rates, draws.
        stand_ins: Innocent models to make; `None` makes what the references lack to three.
        stand_in: How they are made; `None` takes the defaults.
        cache_dir: Folder that keeps models made here for the next run; `None` keeps none.
        compute: Device, seed, batch size.
        split: Sizes of the halves.
        task: What the models do; for "detection" data are pictures with boxes (docs/detection.md).
        classes: Class names in order of index, or a file with one a line.
        model_options: Architecture, normalisation and so on where the files do not say.
        target: Replaces the target of the trigger's rule; an index, or a class name.
        allow_trigger_code: Run Python code that the trigger file names.
        command: What to record as the command that reproduces this.
        listener: Told of progress.

    Returns:
        The record. `record.relearning.outcome` says `dormant`, `removed` or `unknown`; it is
        evidence beside a verdict, and none itself.

    Raises:
        InputError: An input cannot be used, or there is no innocent model.
        ConfigError: A setting is out of range.
        NumericsError: Training gave no finite answers.
    """
    sources = Sources.of(
        defended=defended,
        references=reference,
        data=data,
        trigger=trigger,
        task=task,
        classes=classes,
        model_options=model_options or ModelSettings(),
        target_label=target,
        allow_trigger_code=allow_trigger_code,
    )
    steps = relearn_steps(
        sources,
        config=config or RelearnConfig(),
        stand_ins=stand_ins,
        stand_in=stand_in or StandInConfig(),
        cache_dir=cache_dir,
        compute=compute or ComputeSettings(),
        split=split or SplitSettings(),
        command=command,
    )
    return finish(steps, listener)


def relearn_steps(
    sources: Sources,
    *,
    config: RelearnConfig,
    stand_ins: int | None,
    stand_in: StandInConfig,
    cache_dir: Path | None,
    compute: ComputeSettings,
    split: SplitSettings,
    command: Sequence[str] | None = None,
    planned: bool = False,
) -> Steps[RelearnRecord]:
    """Run `relearn` step by step, for whoever drives the generator; as `relearn` otherwise.

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
            enough=N_INNOCENT,
            config=stand_in,
            cache_dir=cache_dir,
            speed=speed,
        )
        n_innocent = max(len(inputs.with_role("reference")), N_INNOCENT if stand_ins != 0 else 0)
        cost = relearning_cost(n_innocent, config)
        steps.append(PlannedStep(f"relearning on {n_innocent + 1} models", cost * speed.training))
        yield Progress("planning", 0, 1, plan=Plan(steps, str(run.device)))
    prepared = yield from prepare_models(
        inputs, run, wanted=stand_ins, config=stand_in, cache_dir=cache_dir
    )
    relearning = yield from measure_relearning(prepared.inputs, run, config)
    return session.seal(
        RelearnRecord,
        RelearnFindings(baselines=prepared.baselines, relearning=relearning),
        inputs=prepared.inputs,
        settings={
            "relearn": asdict(config),
            "stand_ins": prepared.n_stand_ins,
            "stand_in": asdict(stand_in),
        },
        diagnostics=prepared.diagnostics,
    )
