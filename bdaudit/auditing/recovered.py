"""An audit whose trigger nobody knows: one is recovered from the original, then audited with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

from bdaudit.auditing.invert import RecoveredTriggers, invert_steps
from bdaudit.auditing.kept_search import KeptSearch
from bdaudit.cases.kept_trigger import keep_trigger
from bdaudit.cases.opening import open_models
from bdaudit.cases.settings import AuditSettings
from bdaudit.cases.sources import Sources
from bdaudit.errors import ConfigError
from bdaudit.foundation.progress import Steps, reworded, within
from bdaudit.foundation.sources import InMemory
from bdaudit.measuring.environment import resolve_device
from bdaudit.measuring.store import FolderStore, RunStore
from bdaudit.records import AuditRecord, Diagnostic, Inversion, StepStatus
from bdaudit.triggers import Trigger
from bdaudit.version import __version__

__all__ = ["audit_recovered", "search_steps"]

AuditOne: TypeAlias = Callable[[Sources, Inversion, bool], Steps[AuditRecord]]
"""Audits with the trigger of its sources, and puts the inversion into the record; the last argument
says whether the defended model is attacked, or only scored without any perturbation."""

_SEARCH_SHARE = 0.4  # of the time, for the progress bar
_GRAVEST_FIRST = ("active", "dormant", "inconclusive", "removed")


def search_steps(
    sources: Sources, settings: AuditSettings, *, cache_dir: Path | None, planned: bool = False
) -> Steps[RecoveredTriggers]:
    """Look for a trigger in the original of an audit, by the audit's settings."""
    return invert_steps(
        replace(sources, defended=None, surrogates=()),
        config=settings.inversion,
        compute=settings.compute,
        split=settings.split,
        stand_ins=settings.stand_ins,
        stand_in=settings.stand_in,
        cache_dir=cache_dir,
        planned=planned,
    )


def audit_recovered(
    sources: Sources,
    settings: AuditSettings,
    audit_one: AuditOne,
    *,
    cache_dir: Path | None,
    store: RunStore | None = None,
    found: RecoveredTriggers | None = None,
    planned: bool = False,
) -> Steps[AuditRecord]:
    """Look for a trigger in the original, and audit with what was found.

    The search makes what it lacks of innocent models by itself (`invert_steps` says why they are
    not those that the attacks are held against).

    Where a backdoor was found toward several targets, each is audited and the gravest verdict is
    the audit's; a diagnostic names the others. Where none was found nothing is attacked. With
    `found` the search is made already; a `store` in a folder keeps the search with the attacks.

    Raises:
        ConfigError: There is no original to look into.
    """
    if sources.original is None:
        raise ConfigError("expected a trigger, or an original to search for one, got neither")
    if found is None:
        search = search_steps(sources, settings, cache_dir=cache_dir, planned=planned)
        if isinstance(store, FolderStore):
            search = _kept_in(store, search, sources, settings)
        found = yield from reworded(search, within(0.0, _SEARCH_SHARE))
    inversion = found.record.inversion
    chosen = _to_audit(inversion, found.triggers)
    # Whatever a trigger that does not work gives on the defended model says nothing.
    attack = inversion.outcome != "none" and inversion.candidates[0].wakes_original
    records = []
    for number, trigger in enumerate(chosen):
        share = (1 - _SEARCH_SHARE) / len(chosen)
        steps = audit_one(
            replace(sources, trigger=InMemory(trigger), target_label=None), inversion, attack
        )
        record = yield from reworded(steps, within(_SEARCH_SHARE + number * share, share))
        records.append(record.model_copy(update={"kept_trigger": keep_trigger(trigger)}))
    return _with_search(_gravest(records), inversion)


def _kept_in(
    store: FolderStore,
    search: Steps[RecoveredTriggers],
    sources: Sources,
    settings: AuditSettings,
) -> Steps[RecoveredTriggers]:
    """Run a search, or take it from the store of an audit that was killed after it."""
    device = resolve_device(settings.compute.device)
    subjects, sample = open_models(
        replace(sources, defended=None, surrogates=()), device=resolve_device("cpu")
    )
    determined_by = {
        f"{subject.name} {name}": value
        for subject in subjects
        for name, value in subject.what_answers().items()
    } | {
        "data": sample.sha256,
        "target": str(sources.target_label),
        "settings": settings.as_text(),
        "device": device.type,
        "bdaudit": __version__,
    }
    store.describe(determined_by)
    kept = KeptSearch(store.folder / "search", determined_by)
    return (yield from kept.run(search, sample))


def _to_audit(inversion: Inversion, triggers: Sequence[Trigger]) -> list[Trigger]:
    """Pick the best trigger toward each target that counts as found; otherwise the first."""
    limit = inversion.settings["found_p"]
    picked: dict[tuple[str, int | None], Trigger] = {}
    for candidate, trigger in zip(inversion.candidates, triggers, strict=True):
        sure = candidate.p_value is not None and candidate.p_value <= limit
        if inversion.outcome == "found" and sure and candidate.wakes_original:
            picked.setdefault((candidate.target_rule, candidate.target_label), trigger)
    return list(picked.values()) or [triggers[0]]


def _gravest(records: Sequence[AuditRecord]) -> AuditRecord:
    ranked = sorted(records, key=lambda r: _GRAVEST_FIRST.index(r.verdict.outcome))  # type: ignore[union-attr]
    first, rest = ranked[0], ranked[1:]
    others = [
        Diagnostic(
            code="other_target_audited",
            severity="info",
            subject="defended",
            message=f"the trigger recovered toward class {r.trigger.target_label} was audited as "
            f"well: {r.verdict.outcome}. {r.verdict.why}",
        )
        for r in rest
        if r.verdict is not None
    ]
    return first.model_copy(update={"diagnostics": (*first.diagnostics, *others)})


def _with_search(record: AuditRecord, inversion: Inversion) -> AuditRecord:
    """Put the search first among the steps, and its time into the whole."""
    step = StepStatus(name="inversion", status="done", elapsed_s=inversion.elapsed_s)
    return record.model_copy(
        update={
            "steps": (step, *record.steps),
            "elapsed_s": record.elapsed_s + inversion.elapsed_s,
        }
    )
