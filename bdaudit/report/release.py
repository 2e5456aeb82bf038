"""The top of every report: may it be released, by which policy, and what to do next."""

from __future__ import annotations

from typing import Any

from bdaudit.records import AuditRecord, Outcome, Release, Verdict
from bdaudit.report.wording import find_decisive, points, share

__all__ = ["RELEASES", "about_policy", "lead", "limits_in_order", "release_line"]

RELEASES: dict[Release, str] = {
    "pass": "release PASS",
    "fail": "release FAIL",
    "inconclusive": "release FAIL: inconclusive is no pass",
}

_OVER: dict[Outcome, str] = {
    "dormant": "{lift} points over the strongest control",
    "removed": "{lift} points over the strongest control",
}


def release_line(verdict: Verdict) -> str | None:
    """Say whether the policy lets it be released; `None` in records that do not say."""
    if verdict.release is None:
        return None
    return f"{RELEASES[verdict.release]}, by {about_policy(verdict)}"


def about_policy(verdict: Verdict) -> str:
    """Name the policy that judged, and how far it is from the default one."""
    source = verdict.policy_source
    name = "the default policy" if source == "defaults" else f"the policy {source}"
    changed = verdict.policy_changed
    if changed:
        name += f" ({len(changed)} limit{'' if len(changed) == 1 else 's'} not the default)"
    return f"{name}, which expects the trigger to be active" if verdict.wanted else name


def lead(record: AuditRecord) -> str | None:
    """Return the verdict in a sentence with two figures.

    `None` where it is inconclusive or was not measured: then the reason itself comes first.
    """
    verdict, defended, decisive = record.verdict, record.defended, find_decisive(record)
    if verdict is None or defended is None:
        return None
    if verdict.outcome == "active":
        return (
            f"The trigger alone takes {share(defended.asr)} of images to the target, "
            f"{share(defended.clean_target_rate)} go there without it."
        )
    if decisive is None or verdict.outcome not in _OVER:
        return None
    run, lift = decisive
    over = _OVER[verdict.outcome].format(lift=points(lift.value))
    return f"Perturbed, the trigger takes {share(run.asr)} of images to the target, {over}."


def limits_in_order(verdict: Verdict) -> tuple[list[tuple[str, Any]], list[tuple[str, Any]]]:
    """Return the limits that are not the default ones, and the others."""
    changed = verdict.policy_changed or ()
    first = [(name, verdict.policy[name]) for name in changed if name in verdict.policy]
    return first, [(k, v) for k, v in verdict.policy.items() if k not in changed]
