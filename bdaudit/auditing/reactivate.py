"""One re-activation attack on one model."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors.torch import save
from torch import Tensor

from bdaudit.atomic import write_atomically
from bdaudit.auditing.baselines import check_baselines, check_inputs, measure_baselines
from bdaudit.auditing.documents import document_fields
from bdaudit.auditing.environment import resolve_device
from bdaudit.auditing.inputs import (
    DataSource,
    DefendedSource,
    ModelSource,
    Sources,
    TriggerSource,
    open_inputs,
)
from bdaudit.auditing.runs import Compute, derive_generator, noise_run, query_run, whitebox_run
from bdaudit.auditing.settings import ComputeSettings, SplitSettings
from bdaudit.auditing.store import MemoryStore, RunStore
from bdaudit.auditing.surrogates import surrogate_steps
from bdaudit.blackbox import BlackBoxOptions
from bdaudit.controls import attack_images
from bdaudit.models import LoadedModel, ModelSettings
from bdaudit.progress import Listener, Progress, Steps, finish
from bdaudit.reactivation import WhiteboxConfig
from bdaudit.reactivation.query_config import QueryConfig
from bdaudit.results import AttackRun, ReactivationRecord
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


def reactivate(
    defended: DefendedSource,
    *,
    data: DataSource,
    trigger: TriggerSource,
    config: WhiteboxConfig | QueryConfig,
    original: ModelSource | None = None,
    references: Sequence[ModelSource] = (),
    warm: bool = True,
    compute: ComputeSettings | None = None,
    split: SplitSettings | None = None,
    classes: Sequence[str] | Path | None = None,
    model_options: ModelSettings | None = None,
    black_box: BlackBoxOptions | None = None,
    target_label: int | None = None,
    allow_trigger_code: bool = False,
    store: RunStore | None = None,
    command: Sequence[str] | None = None,
    listener: Listener | None = None,
) -> Reactivation:
    """Search one universal perturbation that wakes the trigger on `defended`.

    Args:
        defended: The model to attack; for a query search also something that can only be asked.
        data: Clean labelled images.
        trigger: The trigger.
        config: `WhiteboxConfig` differentiates through the model, `QueryConfig` only asks it.
        original: Attacked alike for comparison, where given; a query search starts from
            surrogates made from it.
        references: Innocent models, attacked alike.
        warm: Whether a query search uses surrogates; without `original` there are none.
        compute: Device, seed, batch size.
        split: Sizes of the craft and held-out halves.
        classes: Class names in order of index, or a file with one a line.
        model_options: Architecture, normalisation and so on where the files do not say.
        black_box: What is known about a model that can only be asked.
        target_label: Replaces the target of the trigger's rule.
        allow_trigger_code: Run Python code that the trigger file names.
        store: Where finished runs and a running search are kept; a `FolderStore` lets a search
            that was killed go on without paying for an answer twice.
        command: What to record as the command that reproduces this.
        listener: Told of progress.

    Returns:
        The record and the perturbation. A high ASR alone does not show a dormant backdoor: read
        it beside the controls, or run `bdaudit.audit`.

    Raises:
        InputError: An input cannot be used.
        ConfigError: A setting is out of range.
    """
    sources = Sources(
        defended=defended,
        original=original,
        references=references,
        data=data,
        trigger=trigger,
        classes=classes,
        model_options=model_options or ModelSettings(),
        black_box=black_box or BlackBoxOptions(),
        feedback=config.feedback if isinstance(config, QueryConfig) else "scores",
        target_label=target_label,
        allow_trigger_code=allow_trigger_code,
    )
    steps = reactivate_steps(
        sources,
        config=config,
        warm=warm,
        compute=compute or ComputeSettings(),
        split=split or SplitSettings(),
        store=MemoryStore() if store is None else store,
        command=command,
    )
    return finish(steps, listener)


def reactivate_steps(
    sources: Sources,
    *,
    config: WhiteboxConfig | QueryConfig,
    warm: bool,
    compute: ComputeSettings,
    split: SplitSettings,
    store: RunStore,
    command: Sequence[str] | None = None,
) -> Steps[Reactivation]:
    """Run `reactivate` step by step, for whoever drives the generator."""
    started = time.perf_counter()
    device = resolve_device(compute.device)
    yield Progress("opening models and data", 0, 1)
    inputs = open_inputs(sources, split=split, seed=compute.seed, device=device)
    run = Compute(device, compute.seed, compute.batch_size)
    store.describe(inputs.description() | {"attack": repr(config), "seed": str(compute.seed)})
    baselines = yield from measure_baselines(inputs, run)
    diagnostics = [
        *check_inputs(inputs),
        *check_baselines(
            baselines, inputs.num_classes, max_clean_acc_loss=Policy().max_clean_acc_loss
        ),
    ]
    surrogates: tuple[LoadedModel, ...] = ()
    if isinstance(config, QueryConfig) and warm and config.schedule == "default":
        surrogates = yield from surrogate_steps(inputs, run)
    arranged = {
        condition: attack_images(
            condition,
            inputs.craft_poisoned,
            inputs.held_out_poisoned,
            num_classes=inputs.num_classes,
            generator=derive_generator(compute.seed, "images", condition),
        )
        for condition in ("trigger", "no_trigger")
    }
    runs: list[AttackRun] = []
    delta: Tensor | None = None
    for subject in inputs.subjects:
        conditions = arranged if subject.role == "defended" else {"trigger": arranged["trigger"]}
        for condition, images in conditions.items():
            if isinstance(config, QueryConfig):
                scored = yield from query_run(
                    subject, images, config, compute=run, store=store, surrogates=surrogates
                )
            else:
                scored = yield from whitebox_run(
                    subject,
                    images,
                    config,
                    compute=run,
                    store=store,
                    innocent=inputs.innocent_other_than(subject),
                )
            runs.append(scored.record)
            diagnostics += scored.record.diagnostics
            if subject.role == "defended" and condition == "trigger":
                delta = scored.delta
    (defended_subject,) = inputs.with_role("defended")
    runs.append(
        noise_run(
            defended_subject,
            arranged["trigger"],
            mode=runs[0].mode if runs[0].mode == "query" else "white",
            norm=config.norm,
            eps=config.eps,
            compute=run,
        )
    )
    assert delta is not None
    record = ReactivationRecord(
        **document_fields(
            inputs,
            run,
            settings={
                "compute": asdict(compute),
                "split": asdict(split),
                "attack": asdict(config),
            },
            diagnostics=diagnostics,
            steps=(),
            command=command,
            started=started,
        ),
        baselines=baselines,
        runs=tuple(runs),
    )
    return Reactivation(record, delta)


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
