"""One re-activation attack on one model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from operator import not_
from pathlib import Path

from safetensors.torch import save
from torch import Tensor

from bdaudit.auditing.session import Session
from bdaudit.blackbox import BlackBoxOptions
from bdaudit.cases.settings import ComputeSettings, SplitSettings
from bdaudit.cases.sources import DataSource, DefendedSource, ModelSource, Sources, TriggerSource
from bdaudit.cases.subjects import Inputs, Subject
from bdaudit.errors import BdauditError, ConfigError
from bdaudit.foundation.progress import Listener, Steps, finish
from bdaudit.foundation.renamed import renamed
from bdaudit.foundation.tasks import Task
from bdaudit.foundation.writing import write_atomically
from bdaudit.measuring.asking import keep_answers
from bdaudit.measuring.attacking import KINDS, Attacker, mode_of
from bdaudit.measuring.columns import demand_columns_move, doubts_about_columns
from bdaudit.measuring.conditions import AttackImages
from bdaudit.measuring.kinds import AttackConfig
from bdaudit.measuring.runs import images_of, noise_run
from bdaudit.measuring.standins import doubts_about_models, examine_new, measure_and_assess
from bdaudit.measuring.store import MemoryStore, RunStore, ScoredRun
from bdaudit.models import ModelSettings
from bdaudit.records import Mode, ReactivationFindings, ReactivationRecord
from bdaudit.verdict import Policy

__all__ = ["Reactivation", "reactivate", "reactivate_steps", "save_delta"]


@dataclass(frozen=True)
class Reactivation:
    """What `reactivate` gives back.

    Attributes:
        record: Every rate, with the attack without the trigger and random noise beside it.
        delta: (1, C, H, W) float32 in pixel units, the perturbation itself.
    """

    record: ReactivationRecord
    delta: Tensor


@renamed(
    {
        "references": "reference",
        "surrogates": "surrogate",
        "target_label": "target",
        "warm": "cold",
    },
    through={"warm": not_},
)
def reactivate(
    defended: DefendedSource,
    *,
    data: DataSource,
    trigger: TriggerSource,
    config: AttackConfig,
    original: ModelSource | None = None,
    reference: Sequence[ModelSource] = (),
    surrogate: Sequence[ModelSource] = (),
    cold: bool = False,
    compute: ComputeSettings | None = None,
    split: SplitSettings | None = None,
    task: Task = "classification",
    classes: Sequence[str] | Path | None = None,
    model_options: ModelSettings | None = None,
    black_box: BlackBoxOptions | None = None,
    target: int | str | None = None,
    allow_trigger_code: bool = False,
    store: RunStore | None = None,
    cache_dir: Path | None = None,
    command: Sequence[str] | None = None,
    listener: Listener | None = None,
) -> Reactivation:
    """Search one universal perturbation that wakes the trigger on `defended`.

    Args:
        defended: The model to attack; for a query search also something that can only be queried.
        data: Clean labelled images.
        trigger: The trigger.
        config: `WhiteboxConfig` differentiates through the model, `QueryConfig` only asks it,
            `TransferConfig` makes delta on surrogates and only scores it on the model.
        original: Attacked alike for comparison, where given; surrogates are made from it.
        reference: Innocent models, attacked alike.
        surrogate: Other defended versions of `original`, of any architecture, to be used in
            place of ones made from it.
        cold: Whether a query search does without surrogates, as it must with neither of these.
        compute: Device, seed, batch size.
        split: Sizes of the craft and held-out halves.
        task: What the models do; for "detection" data are pictures with boxes (docs/detection.md).
        classes: Class names in order of index, or a file with one a line.
        model_options: Architecture, normalisation and so on where the files do not say.
        black_box: What is known about a model that can only be queried.
        target: Replaces the target of the trigger's rule; an index, or a class name.
        allow_trigger_code: Run Python code that the trigger file names.
        store: Where finished runs and a running search are kept; a `FolderStore` lets a search
            that was killed go on without paying for an answer twice.
        cache_dir: Folder that keeps surrogates for the next run; `None` keeps none.
        command: What to record as the command that reproduces this.
        listener: Told of progress.

    Returns:
        The record and the perturbation. A high ASR alone does not show a dormant backdoor: read
        it beside the controls, or run `bdaudit.audit`.

    Raises:
        InputError: An input cannot be used.
        ConfigError: A setting is out of range.
    """
    sources = Sources.of(
        defended=defended,
        original=original,
        references=reference,
        surrogates=surrogate,
        data=data,
        trigger=trigger,
        task=task,
        classes=classes,
        model_options=model_options or ModelSettings(),
        black_box=black_box or BlackBoxOptions(),
        feedback=KINDS[mode_of(config)].feedback(config),
        target_label=target,
        allow_trigger_code=allow_trigger_code,
    )
    steps = reactivate_steps(
        sources,
        config=config,
        cold=cold,
        compute=compute or ComputeSettings(),
        split=split or SplitSettings(),
        store=MemoryStore() if store is None else store,
        cache_dir=cache_dir,
        command=command,
    )
    return finish(steps, listener)


def reactivate_steps(
    sources: Sources,
    *,
    config: AttackConfig,
    cold: bool,
    compute: ComputeSettings,
    split: SplitSettings,
    store: RunStore,
    cache_dir: Path | None,
    command: Sequence[str] | None = None,
) -> Steps[Reactivation]:
    """Run `reactivate` step by step, for whoever drives the generator."""
    mode = mode_of(config)
    kind = KINDS[mode]
    session = yield from Session.begin(sources, compute=compute, split=split, command=command)
    inputs, run = session.open(), session.compute
    demand_columns_move(inputs, config.norm, (config.eps,))
    store.describe(inputs.description() | {"attack": repr(config), "seed": str(compute.seed)})
    keep_answers(inputs.subjects, store)
    attacker = Attacker(run, store, cache_dir, cold)
    examined = examine_new(inputs)
    if kind.needs_surrogates(config, cold):
        yield from attacker.prepare(inputs)
    if kind.shown_around:
        inputs = _with_surrogates(inputs, attacker, mode)
    assessed = yield from measure_and_assess(inputs, run, Policy(), examined=examined, known=())
    inputs, baselines = assessed.inputs, assessed.baselines
    diagnostics = [*assessed.diagnostics, *doubts_about_models(inputs, baselines, Policy())]
    diagnostics += doubts_about_columns(inputs, (config.eps,))
    arranged = {
        condition: images_of(inputs, condition, run) for condition in ("trigger", "no_trigger")
    }
    scored: list[ScoredRun] = []
    for subject in inputs.compared:
        if kind.shown_around and subject.role == "original":
            continue  # it is shown what is made for the defended model
        some = [*arranged.values()] if subject.role == "defended" else [arranged["trigger"]]
        scored += yield from _attack(attacker, subject, some, config, inputs)
    (defended_subject,) = inputs.with_role("defended")
    noise = noise_run(
        defended_subject,
        arranged["trigger"],
        mode=mode,
        norm=config.norm,
        eps=config.eps,
        compute=run,
        steps=inputs.steps,
        marked=inputs.marked,
    )
    # The defended model with the trigger comes first of all.
    delta = scored[0].delta
    diagnostics += [doubt for found in scored for doubt in found.record.diagnostics]
    runs = (*(found.record for found in scored), noise)
    record = session.seal(
        ReactivationRecord,
        ReactivationFindings(baselines=baselines, runs=runs),
        inputs=inputs,
        settings={"attack": asdict(config)},
        diagnostics=diagnostics,
    )
    return Reactivation(record, delta)


def _attack(
    attacker: Attacker,
    subject: Subject,
    some: Sequence[AttackImages],
    config: AttackConfig,
    inputs: Inputs,
) -> Steps[list[ScoredRun]]:
    """Attack a model under some conditions, under all of them at once where that can be."""
    scored: list[ScoredRun] = []
    most = attacker.most_together(subject, inputs.craft_poisoned.triggered, config)
    if not 1 < len(some) <= most:
        for images in some:
            scored += yield from attacker.attack(subject, images, config, inputs)
        return scored
    attacks = [(images, config) for images in some]
    for outcome in (yield from attacker.attack_together(subject, attacks, inputs)):
        if isinstance(outcome, BdauditError):
            raise outcome
        scored += outcome
    return scored


def _with_surrogates(inputs: Inputs, attacker: Attacker, mode: Mode) -> Inputs:
    """Show the perturbation also to the models it was made on, where they were made here.

    Raises:
        ConfigError: There are none.
    """
    if not attacker.surrogates:
        raise ConfigError(
            f"{mode}: expected surrogates to make the perturbation on; pass --surrogate, or "
            f"--original to make them from"
        )
    if inputs.with_role("surrogate"):
        return inputs
    return inputs.with_surrogates(attacker.surrogates)


def save_delta(path: Path, found: Reactivation) -> None:
    """Write the perturbation as safetensors, with what it was made with in the metadata.

    The file holds one tensor `delta` (1, C, H, W), float32, in pixel units; it is the tensor of a
    trigger file of kind `additive`.
    """
    run = next(r for r in found.record.runs if r.role == "defended" and r.condition == "trigger")
    metadata = {
        "mode": run.mode,
        "norm": run.norm,
        "eps": repr(run.eps),
        "target_label": str(run.target_label),
        "seed": str(run.seed),
        "asr": repr(run.asr.value),
        "model_weights_sha256": found.record.model_named(run.model).weights_sha256 or "unknown",
        "bdaudit": found.record.environment.bdaudit,
    }
    write_atomically(path, save({"delta": found.delta.contiguous()}, metadata=metadata))
