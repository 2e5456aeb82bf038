"""Relearning: how fast does the trigger come back, alone or as a step of an audit."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from bdaudit.auditing.documents import make_header
from bdaudit.auditing.environment import resolve_device
from bdaudit.auditing.inputs import (
    DataSource,
    Inputs,
    ModelSource,
    Sources,
    Subject,
    TriggerSource,
    open_inputs,
)
from bdaudit.auditing.recorded import as_recorded
from bdaudit.auditing.remote import fetch_sources
from bdaudit.auditing.runs import Compute, derive_generator
from bdaudit.auditing.settings import ComputeSettings, SplitSettings
from bdaudit.auditing.standins import prepare_models
from bdaudit.errors import ModelError
from bdaudit.models import ModelSettings
from bdaudit.progress import Listener, Progress, Steps, finish, reworded
from bdaudit.records import (
    RelearnCurve,
    RelearnFindings,
    Relearning,
    RelearningEvidence,
    RelearnRecord,
)
from bdaudit.relearning import (
    GAP_LIMIT,
    RelearnConfig,
    Relearned,
    compare_relearning,
    read_gap,
    relearn_at_chosen_rate,
)
from bdaudit.relearning import (
    relearn as relearn_model,
)
from bdaudit.standins import StandInConfig

__all__ = ["measure_relearning", "relearn", "relearn_steps", "relearning_cost"]


def relearn(
    defended: ModelSource,
    *,
    data: DataSource,
    trigger: TriggerSource,
    references: Sequence[ModelSource] = (),
    config: RelearnConfig | None = None,
    stand_ins: int | None = None,
    stand_in: StandInConfig | None = None,
    cache_dir: Path | None = None,
    compute: ComputeSettings | None = None,
    split: SplitSettings | None = None,
    classes: Sequence[str] | Path | None = None,
    model_options: ModelSettings | None = None,
    target_label: int | str | None = None,
    allow_trigger_code: bool = False,
    command: Sequence[str] | None = None,
    listener: Listener | None = None,
) -> RelearnRecord:
    """Teach a model its trigger by a handful of images, and innocent models alike.

    Args:
        defended: The model in question.
        data: Clean labelled images. Shots come from the craft half, rates from the held-out one.
        trigger: The trigger.
        references: Innocent models of the same task; three or more, and put through a like
            defence, make the comparison fair. Where there are fewer, stand-ins are made.
        config: Shots, steps, learning rates, draws.
        stand_ins: Innocent models to make; `None` makes what the references lack to three.
        stand_in: How they are made; `None` takes the defaults.
        cache_dir: Folder that keeps models made here for the next run; `None` keeps none.
        compute: Device, seed, batch size.
        split: Sizes of the halves.
        classes: Class names in order of index, or a file with one a line.
        model_options: Architecture, normalisation and so on where the files do not say.
        target_label: Replaces the target of the trigger's rule; an index, or a class name.
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
    sources = Sources(
        defended=defended,
        references=references,
        data=data,
        trigger=trigger,
        classes=classes,
        model_options=model_options or ModelSettings(),
        target_label=target_label,
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
) -> Steps[RelearnRecord]:
    """Run `relearn` step by step, for whoever drives the generator; as `relearn` otherwise."""
    started = time.perf_counter()
    device = resolve_device(compute.device)
    sources = yield from fetch_sources(sources)
    yield Progress("opening models and data", 0, 1)
    inputs = open_inputs(sources, split=split, seed=compute.seed, device=device)
    run = Compute.of(compute, device)
    prepared = yield from prepare_models(
        inputs, run, wanted=stand_ins, config=stand_in, cache_dir=cache_dir
    )
    relearning = yield from measure_relearning(prepared.inputs, run, config)
    return RelearnRecord.of(
        make_header(
            prepared.inputs,
            run,
            settings={
                "compute": as_recorded(compute),
                "split": as_recorded(split),
                "relearn": asdict(config),
                "stand_ins": prepared.n_stand_ins,
                "stand_in": asdict(stand_in),
            },
            diagnostics=prepared.diagnostics,
            steps=(),
            command=command,
            started=started,
        ),
        RelearnFindings(
            baselines=prepared.baselines,
            relearning=relearning,
        ),
    )


def measure_relearning(
    inputs: Inputs, compute: Compute, config: RelearnConfig
) -> Steps[Relearning]:
    """Relearn the trigger on the innocent models, then on the defended one at the rate they chose.

    Args:
        inputs: Models, images, trigger; what is left out plays no part.
        compute: Device, batch size for scoring, and the seed: every model is taught the same.
        config: Settings; `batch_size` and precision are those of `compute`.

    Raises:
        ConfigError: The defended model can only be asked.
        ModelError: There is no innocent model.
        NumericsError: Training gave no finite answers.
    """
    started = time.perf_counter()
    config = replace(
        config, batch_size=compute.batch_size, autocast=compute.autocast or config.autocast
    )
    (defended,) = inputs.with_role("defended")
    references = [s for s in inputs.with_role("reference") if s.model is not None]
    if not references:
        raise ModelError(
            "relearning: expected an innocent model to hold it against, got none; pass --reference"
        )
    innocents: dict[str, Relearned] = {}
    for done, subject in enumerate(references):
        innocents[subject.name] = yield from _within(
            _taught(subject, inputs, compute, config), subject, done, len(references)
        )

    def teach(rate: float) -> Steps[Relearned]:
        one_rate = replace(config, learning_rates=(rate,))
        taught = _taught(defended, inputs, compute, one_rate)
        return _within(taught, defended, len(references), len(references))

    rate, mine = yield from relearn_at_chosen_rate(teach, innocents)
    evidence = compare_relearning(
        mine,
        innocents,
        generator=derive_generator(compute.seed, "relearning", "bootstrap"),
        learning_rate=rate,
    )
    curves = [_curve(defended, mine, rate)]
    for subject in references:
        found = innocents[subject.name]
        curves += [_curve(subject, found, tried) for tried in found.triggered]
    return Relearning(
        outcome=read_gap(evidence),
        why=_why(evidence),
        limit=GAP_LIMIT,
        evidence=evidence,
        curves=tuple(curves),
        elapsed_s=time.perf_counter() - started,
    )


def relearning_cost(n_innocent: int, config: RelearnConfig) -> float:
    """Return what it costs in images forwarded, a backward pass taken as twice a forward one."""
    once = config.draws * (
        3.0 * config.steps[-1] * (config.shots + config.n_clean)
        + 2.0 * len(config.steps) * config.n_held_out
    )
    return once * (n_innocent * len(config.learning_rates) + 1)


def _taught(
    subject: Subject, inputs: Inputs, compute: Compute, config: RelearnConfig
) -> Steps[Relearned]:
    return relearn_model(
        subject.white.classifier,
        inputs.craft.images,
        inputs.craft.labels,
        craft=inputs.craft_poisoned,
        held_out=inputs.held_out_poisoned,
        config=config,
        generator=derive_generator(compute.seed, "relearning"),
    )


def _within(
    steps: Steps[Relearned], subject: Subject, done: int, n_innocent: int
) -> Steps[Relearned]:
    """Put one model's progress in terms of all: the defended one is tried at one rate only."""
    total = n_innocent + 1.0
    return reworded(
        steps,
        lambda event: replace(
            event,
            step=f"{event.step}, {subject.name}",
            done=done + event.done / event.total,
            total=total,
        ),
    )


def _curve(subject: Subject, found: Relearned, rate: float) -> RelearnCurve:
    return RelearnCurve(
        model=subject.name,
        role=subject.role,
        learning_rate=rate,
        asr=found.asr(rate),
        clean_target_rate=found.clean_target_rate(rate),
    )


def _why(evidence: RelearningEvidence) -> str:
    low, high = f"{100 * evidence.low:+.0f}", f"{100 * evidence.high:+.0f}"
    measured = (
        f"{evidence.shots} triggered images bring its response to the trigger "
        f"{100 * evidence.gap:+.0f} points ({low} to {high}) above that of the innocent model "
        f"that responds most, over {evidence.steps[-1]} steps (limit {100 * GAP_LIMIT:.0f})"
    )
    said = {
        "dormant": "The model remembers the trigger",
        "removed": "The model learns the trigger no faster than one that never saw it",
        "unknown": "Whether the model remembers the trigger is not settled",
    }[read_gap(evidence)]
    return f"{said}: {measured}."
