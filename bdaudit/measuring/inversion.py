"""Search the original for a trigger that nobody knows, against innocent models."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal

import torch

from bdaudit.cases.subjects import Subject, describe_trigger
from bdaudit.data import Sample, Split
from bdaudit.errors import ConfigError, InputError
from bdaudit.foundation.progress import Progress, Steps, reworded
from bdaudit.foundation.statistics import paired_difference
from bdaudit.inversion import (
    ANY_OTHER,
    RACED,
    Arm,
    InversionConfig,
    Inverted,
    Recovered,
    invert_with,
    make_arms,
)
from bdaudit.inversion.anomaly import LEAST_SPREAD, LEAST_SPREAD_OF_STAND_INS
from bdaudit.measuring.asking import ask
from bdaudit.measuring.compute import Compute
from bdaudit.measuring.innocents import lacks_accuracy, looks_moved
from bdaudit.records import Inversion, InversionRun, Rate, RecoveredTrigger, TargetScore
from bdaudit.scoring import rate
from bdaudit.triggers import AllToOne, ClassMap, TargetRule, Transform, Trigger, poison
from bdaudit.verdict import Policy

__all__ = ["lacking_accuracy", "recover_steps"]

_CONFIDENCE = 0.95


_N_COMPANIONS = 11  # classes raced beside a given target, to show what chance does


_SHOWN = 6


_MOST_DOUBLINGS = 10.0  # that a sentence spells out


_MAX_ACC_LOSS = 0.15  # of an innocent model for the search: it is compared class by class


def _clean_acc(subject: Subject, held_out: Sample, compute: Compute) -> Rate:
    return rate(ask(subject, held_out.images, compute) == held_out.labels)


def lacking_accuracy(accuracies: Mapping[str, Rate], original: Rate) -> dict[str, str]:
    """Return which innocent models did not learn the original's task well enough, and why.

    That no trigger moves them can only be looked at when there is one.
    """
    reasons = {
        name: lacks_accuracy(acc.value, original.value - acc.value, "the original's", _MAX_ACC_LOSS)
        for name, acc in accuracies.items()
    }
    return {name: reason for name, reason in reasons.items() if reason is not None}


def recover_steps(
    subjects: Sequence[Subject],
    halves: Split,
    *,
    target_label: int | None,
    config: InversionConfig,
    compute: Compute,
) -> Steps[tuple[Inversion, tuple[Trigger, ...]]]:
    """Look for triggers in the original among `subjects`, with every method of `config`.

    Args:
        subjects: The original and the references; others are left alone.
        halves: Triggers are made on `craft` and scored on `held_out`.
        target_label: The only class suspected, or `None`.
        config: Settings.
        compute: Device, seed, batch size, precision.

    Returns:
        What was found, and the recovered triggers, one a candidate.

    Raises:
        ConfigError: The target is no class of the model, or the original can only be queried.
        DataError: Too few images.
        NumericsError: A gradient was not finite.
    """
    started = time.perf_counter()
    (original,) = (s for s in subjects if s.role == "original")
    references = [s for s in subjects if s.role == "reference" and s.model is not None]
    num_classes = original.white.num_classes
    rules, wanted_rules = _hypotheses(num_classes, target_label, compute.seed)
    arms, skipped = make_arms(rules, halves.craft.labels, num_classes)
    wanted = [k for k, arm in enumerate(arms) if arm.rule in wanted_rules]
    if not wanted:
        raise InputError(f"too few images of other classes: {', '.join(skipped)}")
    n_tests = len(wanted) * max(1, len(set(config.methods) & set(RACED)))
    images = halves.craft.images.to(compute.device)
    made_here = any(s.stand_in for s in references)
    least_spread = LEAST_SPREAD_OF_STAND_INS if made_here else LEAST_SPREAD
    found = []
    for number, method in enumerate(config.methods):
        began = time.perf_counter()
        steps = invert_with(
            method,
            [s.white.classifier for s in (original, *references)],
            images,
            halves.craft.labels.to(compute.device),
            arms,
            config=config,
            wanted=wanted,
            n_tests=n_tests,
            seed=compute.seed,
            batch_size=compute.batch_size,
            bf16=compute.autocast is not None,
            least_spread=least_spread,
        )
        inverted = yield from reworded(steps, _one_of(number, len(config.methods)))
        found.append((inverted, time.perf_counter() - began))
    scored = [
        _scored(recovered, inverted, arms, original, references, halves, config, compute)
        for inverted, _ in found
        for recovered in inverted.recovered
    ]
    scored.sort(key=lambda one: _order(one.candidate))
    candidates = tuple(one.candidate for one in scored)
    outcome, why = _decide(candidates, found, references, config)
    if outcome == "none":
        hidden = _hidden_by_stand_ins(scored, references, halves.held_out, n_tests, config, compute)
        doubt = hidden or _nothing_noticeable(found, references, n_tests, config)
        if doubt is not None:
            outcome, why = "unsure", doubt
    inversion = Inversion(
        outcome=outcome,
        why=why,
        candidates=candidates,
        runs=tuple(_as_run(inverted, arms, len(images), s) for inverted, s in found),
        n_tests=n_tests,
        references=tuple(s.name for s in references),
        skipped=skipped,
        settings=asdict(config),
        elapsed_s=time.perf_counter() - started,
    )
    return inversion, tuple(one.trigger for one in scored)


def _hypotheses(
    num_classes: int, target_label: int | None, seed: int
) -> tuple[list[TargetRule | None], list[TargetRule | None]]:
    """Return the rules that race, `None` for any other class, and those that are suspected."""
    if target_label is None:
        rules: list[TargetRule | None] = [AllToOne(k) for k in range(num_classes)]
        # With two classes, the other class is the only other: no rule of its own to tell apart.
        rules += [None] if num_classes > 2 else []
        return rules, rules
    if not 0 <= target_label < num_classes:
        raise ConfigError(
            f"target: expected a class from 0 to {num_classes - 1}, got {target_label}"
        )
    others = torch.randperm(num_classes, generator=torch.Generator().manual_seed(seed)).tolist()
    others = [k for k in others if k != target_label][:_N_COMPANIONS]
    suspected = AllToOne(target_label)
    return [suspected, *(AllToOne(k) for k in sorted(others))], [suspected]


@dataclass(frozen=True)
class _Scored:
    """A recovered trigger with what it does on held-out images, and where it is from."""

    candidate: RecoveredTrigger
    trigger: Trigger
    inverted: Inverted
    arm: int


def _scored(
    recovered: Recovered,
    inverted: Inverted,
    arms: Sequence[Arm],
    original: Subject,
    references: Sequence[Subject],
    halves: Split,
    config: InversionConfig,
    compute: Compute,
) -> _Scored:
    """Score one recovered trigger on held-out images, on the original and the innocent models."""
    rule = recovered.rule or arms[recovered.arm].rule
    assert rule is not None
    num_classes = original.white.num_classes

    def as_trigger(transform: Transform) -> Trigger:
        source = f"recovered from the original ({inverted.method})"
        return Trigger(transform=transform, rule=rule, source=source, recovered=True)

    trigger = as_trigger(recovered.transform)
    held_out = poison(halves.held_out, trigger, num_classes)

    def success(subject: Subject, transform: Transform | None = None) -> Rate:
        triggered = held_out.triggered
        if transform is not None:
            triggered = as_trigger(transform).stamp(held_out.clean)
        return rate(ask(subject, triggered, compute) == held_out.targets)

    asr = success(original)
    innocent = tuple(success(s) for s in references)
    own = tuple(
        success(s, transform) for s, transform in zip(references, recovered.own or (), strict=False)
    )
    bare = rate(ask(original, held_out.clean, compute) == held_out.targets)
    why_not = _why_asleep(asr, bare, [*innocent, *own], config)
    p_values = dict(zip(inverted.race.finished, inverted.anomalies.p_values or (), strict=False))
    candidate = RecoveredTrigger(
        method=inverted.method,
        target_rule=rule.name,
        target_label=rule.target_label,
        class_map=rule.classes if isinstance(rule, ClassMap) else None,
        size=recovered.size,
        unit=recovered.unit or inverted.unit,
        p_value=p_values.get(recovered.arm),
        asr=asr,
        clean_target_rate=bare,
        innocent_asr=innocent,
        own_asr=own,
        wakes_original=why_not is None,
        why_not=why_not,
        trigger=describe_trigger(trigger, held_out),
    )
    return _Scored(candidate, trigger, inverted, recovered.arm)


def _hidden_by_stand_ins(
    scored: Sequence[_Scored],
    references: Sequence[Subject],
    held_out: Sample,
    n_tests: int,
    config: InversionConfig,
    compute: Compute,
) -> str | None:
    """Return where stand-ins may be why nothing was found; `None` where they are not.

    A stand-in that learned the backdoor along with the task would make its target look as easy to
    reach as the original does. It would be moved by the trigger as well. So where the trigger
    works on the original, stand-ins that it moves are left out, and its target is judged anew: what
    is unusual then is no sure find, but it is not "none" either.
    """
    for one in scored:
        candidate = one.candidate
        if candidate.p_value is None or candidate.asr.low < config.min_asr:
            continue
        poisoned = poison(held_out, one.trigger, references[0].white.num_classes)
        moved = []
        for number, subject in enumerate(references):
            bare = rate(ask(subject, poisoned.clean, compute) == poisoned.targets)
            if subject.stand_in and looks_moved(
                candidate.innocent_asr[number], bare, Policy().max_stand_in_asr
            ):
                moved.append(number)
        if not moved or len(moved) == len(references):
            continue
        p_value = one.inverted.p_value_without(moved, one.arm, n_tests=n_tests)
        if p_value is not None and p_value <= config.unsure_p:
            names = ", ".join(references[number].name for number in moved)
            return (
                f"The trigger toward {_name(candidate)} ({candidate.method}) also moves {names}, "
                "made to stand for an innocent model: a backdoor may have been learned along with "
                f"the task. Without {'it' if len(moved) == 1 else 'them'} the chance of so easy a "
                f"class is {_p(p_value)}. Pass --reference."
            )
    return None


def _nothing_noticeable(
    found: Sequence[tuple[Inverted, float]],
    references: Sequence[Subject],
    n_tests: int,
    config: InversionConfig,
) -> str | None:
    """Return which search would not have noticed even a conspicuous class; `None` where all would.

    Few classes and few innocent models leave few degrees of freedom; innocent models that differ
    much, as when one of them is backdoored itself, leave a wide spread.
    """
    least, method = max(
        (i.anomalies.least_gain(config.unsure_p, n_tests=n_tests), i.method)
        for i, _ in found
        if i.anomalies.reason is None
    )
    if least <= config.noticed_gain:
        return None
    times = f"{2**least:.0f}" if least < _MOST_DOUBLINGS else "over 1,000"
    return (
        f"Undecided: with these {len(references)} {_named(references)} a class would have to be "
        f"{times} times easier to reach than on them to stand out from chance ({method}). Pass "
        f"more models with --reference."
    )


def _why_asleep(
    asr: Rate, bare: Rate, others: Sequence[Rate], config: InversionConfig
) -> str | None:
    """Return why a trigger cannot be said to wake the original, `None` where it can."""
    if asr.low < config.min_asr:
        return (
            f"it takes {asr.value:.1%} of held-out images to the target (at least {asr.low:.1%}; "
            f"{config.min_asr:.0%} needed)"
        )
    for other, what in ((bare, "no trigger"), *((o, "an innocent model") for o in others)):
        gap = paired_difference(asr.outcomes(), other.outcomes(), confidence=_CONFIDENCE)
        if gap.low < config.min_gap:
            return (
                f"it takes {asr.value:.1%} of held-out images to the target, {what} gives "
                f"{other.value:.1%} (surely {config.min_gap:.0%} more needed)"
            )
    return None


def _order(candidate: RecoveredTrigger) -> tuple[bool, float, float]:
    """Rank candidates: those that wake the original, the least likely by chance, the widest gap."""
    others = (candidate.clean_target_rate, *candidate.innocent_asr, *candidate.own_asr)
    gap = candidate.asr.value - max(other.value for other in others)
    p = 1.0 if candidate.p_value is None else max(candidate.p_value, 1e-4)
    return (not candidate.wakes_original, p, -gap)


def _decide(
    candidates: Sequence[RecoveredTrigger],
    found: Sequence[tuple[Inverted, float]],
    references: Sequence[Subject],
    config: InversionConfig,
) -> tuple[Literal["found", "none", "unsure"], str]:
    """Return the outcome and one sentence why."""
    best = candidates[0]
    what = f"{_name(best)} ({best.method})"
    reasons = [i.anomalies.reason for i, _ in found if i.anomalies.reason is not None]
    if len(reasons) == len(found):
        return "unsure", f"Undecided: {reasons[0]}. The most suspicious candidate is {what}."
    unusual = [c for c in candidates if c.p_value is not None and c.p_value <= config.unsure_p]
    if not references:
        stands_out = f"{what} stands out among the classes" if unusual else "no class stands out"
        return "unsure", (
            f"Without an innocent model to compare with, {stands_out}: innocent models have easy "
            "classes too. Pass --reference."
        )
    who = _named(references)
    awake = [c for c in unusual if c.wakes_original]
    sure = [c for c in awake if c.p_value is not None and c.p_value <= config.found_p]
    if sure:
        targets = ", ".join(dict.fromkeys(_name(c) for c in sure))
        return "found", (
            f"A trigger toward {targets}: on the original it takes {best.asr.value:.1%} of "
            f"held-out images there, on {who} at most {_most(best):.1%}; chance of so easy a class "
            f"in an innocent model {_p(best.p_value)}."
        )
    if unusual:
        first = awake[0] if awake else unusual[0]
        reason = (
            f"the chance of so easy a class in an innocent model is {_p(first.p_value)}, between "
            f"{config.found_p:g} and {config.unsure_p:g}"
            if first.wakes_original
            else first.why_not
        )
        return "unsure", f"{_name(first)} ({first.method}) is unusual, but {reason}."
    return "none", (
        f"No backdoor found in the original: no class is easier to reach than on "
        f"{len(references)} {who} beyond what chance explains (smallest p-value "
        f"{_p(min(c.p_value for c in candidates if c.p_value is not None))})."
    )


def _name(candidate: RecoveredTrigger) -> str:
    if candidate.target_label is not None:
        return f"class {candidate.target_label}"
    if candidate.class_map is None:
        return candidate.target_rule
    moved = [f"{k} to {to}" for k, to in enumerate(candidate.class_map) if k != to]
    more = ", ..." if len(moved) > _SHOWN else ""
    return f"other classes ({', '.join(moved[:_SHOWN])}{more})"


def _named(references: Sequence[Subject]) -> str:
    made = [s.stand_in for s in references]
    if all(made):
        return "stand-ins for innocent models"
    return "innocent models and stand-ins" if any(made) else "innocent models"


def _most(candidate: RecoveredTrigger) -> float:
    return max(r.value for r in (*candidate.innocent_asr, *candidate.own_asr))


def _p(value: float | None) -> str:
    if value is None:
        return "unknown"
    return "below 0.0001" if value < 1e-4 else f"{value:.2g}"


def _as_run(
    inverted: Inverted, arms: Sequence[Arm], n_craft: int, elapsed_s: float
) -> InversionRun:
    return InversionRun(
        method=inverted.method,
        unit=inverted.unit,
        scores=tuple(
            sorted(_scores(inverted, arms), key=lambda s: (s.dropped_after is not None, -s.gain))
        ),
        spread=inverted.anomalies.spread,
        degrees=inverted.anomalies.degrees,
        reason=inverted.anomalies.reason,
        gradient_passes=inverted.differentiated / n_craft,
        naive_passes=inverted.naive / n_craft,
        elapsed_s=elapsed_s,
    )


def _scores(inverted: Inverted, arms: Sequence[Arm]) -> Iterator[TargetScore]:
    race, anomalies = inverted.race, inverted.anomalies
    place = {arm: k for k, arm in enumerate(race.finished)}
    for number, arm in enumerate(arms):
        sizes = race.sizes[:, number]
        k = place.get(number)
        gain = sizes[1:].mean() - sizes[0] if len(sizes) > 1 else -sizes[0]
        yield TargetScore(
            target_rule=ANY_OTHER if arm.rule is None else arm.rule.name,
            target_label=None if arm.rule is None else arm.rule.target_label,
            size=float(2 ** sizes[0]),
            innocent_sizes=tuple((2 ** sizes[1:]).tolist()),
            gain=float(gain if k is None else anomalies.gains[k]),
            score=None if k is None or anomalies.scores is None else anomalies.scores[k],
            p_value=(
                1.0 if k is None else None if anomalies.p_values is None else anomalies.p_values[k]
            ),
            dropped_after=race.dropped_after[number],
        )


def _one_of(number: int, total: int) -> Callable[[Progress], Progress]:
    def change(event: Progress) -> Progress:
        return replace(event, done=number + event.done / (event.total or 1), total=total)

    return change
