"""How fast the trigger comes back in the defended model, held against innocent models."""

from __future__ import annotations

import time
from dataclasses import replace

from bdaudit.cases.subjects import Inputs, Subject
from bdaudit.errors import ModelError
from bdaudit.foundation.progress import Steps, reworded
from bdaudit.measuring.compute import Compute, derive_generator
from bdaudit.records import RelearnCurve, Relearning, RelearningEvidence
from bdaudit.relearning import (
    GAP_LIMIT,
    RelearnConfig,
    Relearned,
    compare_relearning,
    read_gap,
    relearn_at_chosen_rate,
)
from bdaudit.relearning import relearn as relearn_model

__all__ = ["measure_relearning", "relearning_cost"]


def measure_relearning(
    inputs: Inputs, compute: Compute, config: RelearnConfig
) -> Steps[Relearning]:
    """Relearn the trigger on the innocent models, then on the defended one at the rate they chose.

    Args:
        inputs: Models, images, trigger; what is left out plays no part.
        compute: Device, batch size for scoring, and the seed: every model is taught the same.
        config: Settings; `batch_size` and precision are those of `compute`.

    Raises:
        ConfigError: The defended model can only be queried.
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
            "relearning: expected an innocent model to compare with, got none; pass --reference"
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
