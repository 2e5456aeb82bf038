"""One re-activation attack on one model."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from safetensors.torch import save
from torch import Tensor

from bdaudit.atomic import write_atomically
from bdaudit.auditing.baselines import check_baselines, check_inputs, measure_baselines
from bdaudit.auditing.documents import document_fields
from bdaudit.auditing.environment import resolve_device
from bdaudit.auditing.inputs import (
    DataSource,
    ModelOptions,
    ModelSource,
    Sources,
    TriggerSource,
    open_inputs,
)
from bdaudit.auditing.runs import Compute, derive_generator, noise_run, whitebox_run
from bdaudit.auditing.settings import ComputeSettings, SplitSettings
from bdaudit.controls import attack_images
from bdaudit.errors import ConfigError
from bdaudit.progress import Listener, Progress, Steps, finish
from bdaudit.reactivation import WhiteboxConfig
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
    defended: ModelSource,
    *,
    data: DataSource,
    trigger: TriggerSource,
    config: WhiteboxConfig,
    mode: Literal["white"] = "white",
    original: ModelSource | None = None,
    references: Sequence[ModelSource] = (),
    compute: ComputeSettings | None = None,
    split: SplitSettings | None = None,
    classes: Sequence[str] | Path | None = None,
    model_options: ModelOptions | None = None,
    target_label: int | None = None,
    allow_trigger_code: bool = False,
    command: Sequence[str] | None = None,
    listener: Listener | None = None,
) -> Reactivation:
    """Search one universal perturbation that wakes the trigger on `defended`.

    Args:
        defended: The model to attack.
        data: Clean labelled images.
        trigger: The trigger.
        config: Radius, norm, budget and objective of the attack.
        mode: `white` differentiates through the model.
        original: Attacked alike for comparison, where given.
        references: Innocent models, attacked alike.
        compute: Device, seed, batch size.
        split: Sizes of the craft and held-out halves.
        classes: Class names in order of index, or a file with one a line.
        model_options: Architecture, normalisation and so on where the files do not say.
        target_label: Replaces the target of the trigger's rule.
        allow_trigger_code: Run Python code that the trigger file names.
        command: What to record as the command that reproduces this.
        listener: Told of progress.

    Returns:
        The record and the perturbation. A high ASR alone does not show a dormant backdoor: read
        it beside the controls, or run `bdaudit.audit`.

    Raises:
        InputError: An input cannot be used.
        ConfigError: A setting is out of range.
    """
    if mode != "white":
        raise ConfigError(f"mode: expected white, got {mode!r}")
    sources = Sources(
        defended=defended,
        original=original,
        references=references,
        data=data,
        trigger=trigger,
        classes=classes,
        model_options=model_options or ModelOptions(),
        target_label=target_label,
        allow_trigger_code=allow_trigger_code,
    )
    steps = reactivate_steps(
        sources,
        config=config,
        compute=compute or ComputeSettings(),
        split=split or SplitSettings(),
        command=command,
    )
    return finish(steps, listener)


def reactivate_steps(
    sources: Sources,
    *,
    config: WhiteboxConfig,
    compute: ComputeSettings,
    split: SplitSettings,
    command: Sequence[str] | None = None,
) -> Steps[Reactivation]:
    """Run `reactivate` step by step, for whoever drives the generator."""
    started = time.perf_counter()
    device = resolve_device(compute.device)
    yield Progress("opening models and data", 0, 1)
    inputs = open_inputs(sources, split=split, seed=compute.seed, device=device)
    run = Compute(device, compute.seed, compute.batch_size)
    baselines = yield from measure_baselines(inputs, run)
    diagnostics = [
        *check_inputs(inputs),
        *check_baselines(
            baselines, inputs.num_classes, max_clean_acc_loss=Policy().max_clean_acc_loss
        ),
    ]
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
            scored = yield from whitebox_run(
                subject,
                images,
                config,
                compute=run,
                innocent=inputs.innocent_other_than(subject),
            )
            runs.append(scored.record)
            diagnostics += scored.record.diagnostics
            if subject.role == "defended" and condition == "trigger":
                delta = scored.delta
    (defended_subject,) = inputs.with_role("defended")
    runs.append(
        noise_run(
            defended_subject, arranged["trigger"], norm=config.norm, eps=config.eps, compute=run
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
        "model_weights_sha256": found.record.model_named(run.model).weights_sha256,
        "bdaudit": found.record.environment.bdaudit,
    }
    write_atomically(path, save({"delta": found.delta.contiguous()}, metadata=metadata))
