"""How fast the trigger comes back in the defended model, held against innocent models."""

from __future__ import annotations

import time
from dataclasses import replace

from bdaudit.cases.subjects import Inputs, Subject
from bdaudit.errors import ConfigError, ModelError, NumericsError
from bdaudit.foundation.memory import is_half_free
from bdaudit.foundation.progress import Progress, Steps, reworded
from bdaudit.measuring.compute import Compute, derive_generator
from bdaudit.records import RelearnCurve, Relearning, RelearningEvidence
from bdaudit.relearning import (
    GAP_LIMIT,
    RelearnConfig,
    Relearned,
    Teaching,
    compare_relearning,
    ignores_trigger,
    read_gap,
    stays_upright,
)

__all__ = ["measure_relearning", "relearning_cost"]


def measure_relearning(
    inputs: Inputs, compute: Compute, config: RelearnConfig
) -> Steps[Relearning]:
    """Relearn the trigger on the innocent models, then on the defended one at the rate they chose.

    Learning rates are tried from the largest down, so what `choose_rate` would choose is found
    without teaching anything at the smaller ones: usually all is decided at the first. Where it is
    not, all are taught at the next larger rate as well, for a look at what more time would show.

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
    if defended.model is None:
        raise ConfigError("the defended model can only be queried, so it cannot be taught")
    references = [s for s in inputs.with_role("reference") if s.model is not None]
    if not references:
        raise ModelError(
            "relearning: expected an innocent model to compare with, got none; pass --reference"
        )
    innocents: dict[str, Relearned] = {}
    rates = sorted(config.learning_rates, reverse=True)
    more = len(references) + 1  # at the next larger rate
    total = len(references) * len(rates) + 1 + more

    teachings: dict[str, Teaching] = {}

    def taught(subject: Subject, rate: float, done: int) -> Steps[Relearned]:
        teaching = teachings.get(subject.name) or _teaching(subject, inputs, compute, config)
        found = yield from _within(teaching.at((rate,)), subject, done, total)
        # What was recorded is worth its memory, where there is plenty.
        if compute.device.type == "cuda" and is_half_free(compute.device):
            teachings[subject.name] = teaching
        else:
            teachings.clear()
        return found

    def keep(subject: Subject, found: Relearned) -> None:
        innocents[subject.name] = _joined(innocents.get(subject.name), found)

    def leaves_innocents(rate: float, place: int) -> Steps[bool]:
        """Teach the innocent models; the first that rules the rate out is the last."""
        for number, subject in enumerate(references):
            found = yield from taught(subject, rate, place * len(references) + number)
            keep(subject, found)
            if rate in found.diverged:
                return False
            if rate > rates[-1] and not ignores_trigger(found, rate):
                return False
        return True

    for place, rate in enumerate(rates):
        if not (yield from leaves_innocents(rate, place)):
            continue
        mine = yield from taught(defended, rate, total - 1 - (more if place else 0))
        if rate not in mine.diverged:
            break
    else:
        raise NumericsError(
            "relearning: at every learning rate the training of some model gave no finite "
            "answers; lower the learning rates"
        )

    def compared(at: float) -> RelearningEvidence:
        return compare_relearning(
            mine,
            innocents,
            generator=derive_generator(compute.seed, "relearning", "bootstrap"),
            learning_rate=at,
        )

    def teaches_more(at: float) -> Steps[bool]:
        """Teach everybody at a rate that was ruled out; False where there is nothing to compare."""
        for number, subject in enumerate(references):
            found = innocents[subject.name]
            if at not in (*found.triggered, *found.diverged):
                found = yield from taught(subject, at, total - more + number)
                keep(subject, found)
            if at in found.diverged or not stays_upright(found, at):
                return False
        return True

    evidence, faster = compared(rate), None
    if place > 0 and (yield from teaches_more(rates[place - 1])):
        mine = _joined(mine, (yield from taught(defended, rates[place - 1], total - 1)))
        if rates[place - 1] not in mine.diverged:
            faster = compared(rates[place - 1])
    yield Progress("relearning", float(total), float(total))
    curves = [_curve(defended, mine, tried) for tried in sorted(mine.triggered)]
    for subject in references:
        found = innocents[subject.name]
        curves += [_curve(subject, found, tried) for tried in sorted(found.triggered)]
    return Relearning(
        outcome=read_gap(evidence),
        why=_why(evidence),
        limit=GAP_LIMIT,
        evidence=evidence,
        faster=faster,
        curves=tuple(curves),
        elapsed_s=time.perf_counter() - started,
    )


def relearning_cost(n_innocent: int, config: RelearnConfig) -> float:
    """Return what it costs in images forwarded, a backward pass taken as twice a forward one.

    Models are taken to be taught at two learning rates: one where the trigger is local, more where
    it covers the image.
    """
    once = config.draws * (
        3.0 * config.steps[-1] * (config.shots + config.n_clean)
        + 2.0 * len(config.steps) * config.n_held_out
    )
    return once * (n_innocent + 1) * min(2, len(config.learning_rates))


def _teaching(
    subject: Subject, inputs: Inputs, compute: Compute, config: RelearnConfig
) -> Teaching:
    return Teaching(
        subject.white.classifier,
        inputs.craft.images,
        inputs.craft.labels,
        craft=inputs.craft_poisoned,
        held_out=inputs.held_out_poisoned,
        config=config,
        generator=derive_generator(compute.seed, "relearning"),
    )


def _within(steps: Steps[Relearned], subject: Subject, done: int, total: int) -> Steps[Relearned]:
    """Put the progress of one model at one rate in terms of all."""
    return reworded(
        steps,
        lambda event: replace(
            event,
            step=f"{event.step}, {subject.name}",
            done=done + event.done / event.total,
            total=float(total),
        ),
    )


def _joined(known: Relearned | None, found: Relearned) -> Relearned:
    """Put what one model was taught at several rates together."""
    if known is None:
        return found
    return replace(
        found,
        triggered={**known.triggered, **found.triggered},
        clean={**known.clean, **found.clean},
        diverged=(*known.diverged, *found.diverged),
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
