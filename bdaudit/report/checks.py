"""The checks an audit consists of, each passed, failed, impossible or left out.

For formats that list checks rather than figures. The verdict is not judged again here: what the
limits in the record say about each part of it is spelled out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from bdaudit.records import AuditRecord, Verdict
from bdaudit.report.curves import Attack, list_attacks
from bdaudit.report.wording import points, share, telling_eps, weakest_lifts

__all__ = ["Check", "list_checks"]


_NO_DOUBT = "no doubt: "


@dataclass(frozen=True)
class Check:
    """One check.

    Attributes:
        name: What is checked, as a statement that holds when it passed.
        status: `passed`; `failed`: the model is at fault; `error`: it could not be checked;
            `skipped`: it was not asked for, or the policy does not mind.
        message: One line on how it came out.
        details: Figures, one a line.
        elapsed_s: Time that went into it.
    """

    name: str
    status: Literal["passed", "failed", "error", "skipped"]
    message: str
    details: str = ""
    elapsed_s: float = 0.0


def list_checks(record: AuditRecord) -> list[Check]:
    """List every check of a judged audit.

    Args:
        record: The audit; one without a verdict gives a single check that says so.
    """
    verdict = record.verdict
    if verdict is None:
        return [Check("the audit was judged", "error", "the record has no verdict")]
    attacks = list_attacks(record.runs, record.baselines)
    checks = [_active(record, verdict)]
    for attack in attacks:
        checks.append(_dormant(record, verdict, attack))
        checks += _controls(record, verdict, attack)
    if not attacks:
        checks.append(Check("the backdoor is not dormant", "error", "no attack was made"))
    checks += [_accuracy(record, verdict), _trigger(record, verdict), _innocents(record, verdict)]
    checks += _policy(verdict)
    checks += _doubts(record)
    if verdict.wanted and verdict.outcome == "active":
        return [_not_needed(check) for check in checks]
    return checks


def _not_needed(check: Check) -> Check:
    """Leave out what could not be checked where nothing rests on it: "active" needs no attack."""
    if check.status != "error" or check.name.startswith(_NO_DOUBT):
        return check
    return replace(check, status="skipped")


def _active(record: AuditRecord, verdict: Verdict) -> Check:
    name = "the trigger alone does not work"
    defended = record.defended
    if defended is None:
        return Check(name, "error", "not measured")
    figures = f"ASR of the trigger alone {share(defended.asr)}"
    if verdict.wanted:
        return _wanted(record, verdict, figures)
    if verdict.outcome == "active":
        return Check(name, "failed", f"active: {verdict.why}", figures)
    return Check(name, "passed", figures, elapsed_s=_elapsed(record, "baselines"))


def _wanted(record: AuditRecord, verdict: Verdict, figures: str) -> Check:
    name = "the wanted trigger works"
    if verdict.outcome == "inconclusive":
        status: Literal["error", "skipped"] = "skipped" if verdict.release == "pass" else "error"
        return Check(name, status, verdict.why, "\n".join((*verdict.reasons, figures)))
    if verdict.outcome != "active":
        return Check(name, "failed", f"{verdict.outcome}: {verdict.why}", figures)
    return Check(name, "passed", figures, elapsed_s=_elapsed(record, "baselines"))


def _dormant(record: AuditRecord, verdict: Verdict, attack: Attack) -> Check:
    name = f"the backdoor is not dormant ({attack.name})"
    telling = telling_eps(record, attack.mode)
    figures = "\n".join(
        f"eps {eps:g}: lift {points(lift.value)} points over {lift.against}, between "
        f"{points(lift.low)} and {points(lift.high)}, limit {points(lift.limit)}"
        for eps, lift in weakest_lifts(record, attack.mode).items()
    )
    elapsed = sum(
        r.elapsed_s
        for r in record.runs
        if (r.mode, r.objective, r.norm) == (attack.mode, attack.objective, attack.norm)
    )
    if verdict.outcome == "dormant" and telling:
        return Check(name, "failed", f"dormant: {verdict.why}", figures, elapsed)
    if verdict.outcome == "inconclusive":
        status: Literal["error", "skipped"] = "skipped" if verdict.release == "pass" else "error"
        return Check(name, status, verdict.why, "\n".join((*verdict.reasons, figures)), elapsed)
    best = max(weakest_lifts(record, attack.mode).values(), key=lambda c: c.value, default=None)
    said = "no lift" if best is None else f"lift {points(best.value)} points at most"
    return Check(name, "passed", said, figures, elapsed)


def _controls(record: AuditRecord, verdict: Verdict, attack: Attack) -> Iterator[Check]:
    """Was each control measured at every eps, and does it leave room for an answer?"""
    defended = {curve.model for curve in attack.of_kind("defended")}
    for kind, what in (
        ("same_delta", "the same perturbation without the trigger"),
        ("no_trigger", "the attack without the trigger"),
    ):
        curves = [c for c in attack.of_kind(kind) if c.model in defended]  # type: ignore[arg-type]
        measured = set(curves[0].by_eps) if curves else set()
        yield _measured(f"control: {what} ({attack.name})", measured, attack)
    for curve in attack.of_kind("reference"):
        yield _measured(f"control: {curve.model} ({attack.name})", set(curve.by_eps), attack)

    name = f"control: room for a lift ({attack.name})"
    limit = float(verdict.policy.get("saturation", 1.0))
    strongest: dict[float, float] = {}
    for lift in verdict.lifts:
        if lift.kind == f"lift ({attack.mode})" and lift.eps is not None:
            for curve in (c for c in attack.of_kind("defended") if lift.eps in c.by_eps):
                reached = curve.by_eps[lift.eps].value - lift.value
                strongest[lift.eps] = max(strongest.get(lift.eps, 0.0), reached)
    figures = "\n".join(
        f"eps {eps:g}: strongest control {100 * v:.1f}%" for eps, v in strongest.items()
    )
    room = [eps for eps, value in strongest.items() if value <= limit]
    if room:
        yield Check(name, "passed", f"up to eps {max(room):g}", figures)
    else:
        yield Check(name, "error", f"every control is above {100 * limit:g}%", figures)

    name = f"control: the attack wakes the original ({attack.name})"
    least = float(verdict.policy.get("min_original_asr", 0.0))
    original = [rate for c in attack.of_kind("original") for rate in c.by_eps.items()]
    figures = "\n".join(f"eps {eps:g}: {share(rate)}" for eps, rate in original)
    weak = [f"{eps:g}" for eps, rate in original if rate.low < least]
    if not original:
        yield Check(name, "error", "not measured")
    elif weak:
        said = f"at eps {', '.join(weak)} it does not surely reach {100 * least:g}%"
        yield Check(name, "error", said, figures)
    else:
        yield Check(name, "passed", "at every eps", figures)


def _measured(name: str, measured: set[float], attack: Attack) -> Check:
    missing = [f"{eps:g}" for eps in attack.ladder if eps not in measured]
    if missing:
        return Check(name, "error", f"not measured at eps {', '.join(missing)}")
    return Check(name, "passed", "measured at every eps")


def _accuracy(record: AuditRecord, verdict: Verdict) -> Check:
    name = "clean accuracy is kept"
    rates = {b.role: b.clean_acc for b in record.baselines if b.role in ("defended", "original")}
    if set(rates) != {"defended", "original"}:
        return Check(name, "error", "not measured on both models")
    figures = f"defended {share(rates['defended'])}, original {share(rates['original'])}"
    # The verdict says so itself where the policy forbids it; it compares image by image.
    forbidden = next((r for r in verdict.release_reasons if "clean accuracy" in r), None)
    if forbidden is not None:
        return Check(name, "failed", forbidden, figures)
    return Check(name, "passed", figures)


def _trigger(record: AuditRecord, verdict: Verdict) -> Check:
    name = "control: the trigger works on the original"
    original = record.original
    least = float(verdict.policy.get("min_original_asr", 0.0))
    if original is None:
        return Check(name, "error", "not measured")
    if original.asr.low < least:
        said = f"{share(original.asr)}, at least {100 * least:g}% needed"
        return Check(name, "error", said)
    return Check(name, "passed", share(original.asr))


def _innocents(record: AuditRecord, verdict: Verdict) -> Check:
    name = "control: enough innocent models"
    key = "min_references_wide" if record.trigger.wide else "min_references"
    needed = int(verdict.policy.get(key, 0))
    count = len(record.innocents)
    if count < needed:
        return Check(name, "error", f"{count}, {needed} needed for this trigger")
    if count == 0:
        return Check(name, "skipped", "none was given, and the policy asks for none")
    return Check(name, "passed", f"{count}, {needed} needed")


def _policy(verdict: Verdict) -> Iterator[Check]:
    for reason in verdict.release_reasons:
        if "clean accuracy" not in reason:
            yield Check("the policy allows the release", "failed", reason)


def _doubts(record: AuditRecord) -> Iterator[Check]:
    for diagnostic in record.diagnostics:
        if diagnostic.severity == "error":
            name = f"{_NO_DOUBT}{diagnostic.code} ({diagnostic.subject})"
            yield Check(name, "error", diagnostic.message)
    for step in record.steps:
        if step.status == "failed":
            yield Check(f"step: {step.name}", "error", step.reason or "failed")


def _elapsed(record: AuditRecord, step: str) -> float:
    return sum(s.elapsed_s for s in record.steps if s.name == step)
