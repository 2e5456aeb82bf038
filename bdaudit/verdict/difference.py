"""What changed between the audits of one release and the next, both judged by the same limits.

Nothing is computed on a model. Rates of the same held-out images are compared image by image
(Tango 1998), all other figures by their own intervals (Zou and Donner 2008).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any

from bdaudit.foundation.file_digests import digest_file
from bdaudit.foundation.statistics import Estimate, difference_of_estimates, paired_difference
from bdaudit.records import AttackRun, AuditRecord, Rate, Verdict, demand_audit, using_record
from bdaudit.records.attestations import read_attested
from bdaudit.records.difference import (
    Change,
    ChangedFigure,
    ChangedInput,
    DifferenceRecord,
    InputKind,
    JudgedAudit,
    Measured,
)
from bdaudit.records.summary import Figure, list_figures
from bdaudit.verdict.gate import limits_of
from bdaudit.verdict.judge import judge
from bdaudit.verdict.policy import Policy

__all__ = ["diff"]

_INTERVAL = 0.95
"""Two-sided, of rates and of their differences."""

_WORSE_OUTCOME = ("removed", "inconclusive", "dormant", "active")
_WORSE_WHERE_WANTED = ("active", "inconclusive", "dormant", "removed")
_WORSE_RELEASE = ("pass", "inconclusive", "fail")
_MORE_IS_BETTER = ("clean_acc",)


def diff(old: Path, new: Path, *, policy: Policy | str | Path | None = None) -> DifferenceRecord:
    """Say what changed from one audit to the next: verdict, figures and inputs.

    Args:
        old: What `bdaudit audit --json` wrote for the last release, or an attestation of it.
        new: The same for the next one.
        policy: The limits both are judged by, or a policy file; `None` takes those that the new
            record was judged by, so that the limits alone change no verdict.

    Raises:
        RecordError: A record cannot be read, was edited, or is no audit's.
        PolicyError: The policy cannot be read or contradicts itself.
    """
    records = (demand_audit(read_attested(old), old), demand_audit(read_attested(new), new))
    limits, source = limits_of(policy, records[1], new)
    judged, sides = [], []
    for path, record in zip((old, new), records, strict=True):
        with using_record(path):
            verdict = judge(record, limits, policy_source=source)
        judged.append(record.model_copy(update={"verdict": verdict}))
        sides.append(_side(path, record, verdict))
    with using_record(f"{old} or {new}"):
        return DifferenceRecord(
            old=sides[0],
            new=sides[1],
            policy=limits.model_dump(mode="json"),
            policy_source=source,
            policy_sha256=limits.sha256,
            policy_changed=limits.changed,
            change=_became(*sides, wanted=limits.expect == "active"),
            figures=tuple(_figures_by(limits, *judged)),
            inputs=tuple(_inputs(*records)),
            notes=tuple(_notes(*records, *sides)),
        )


def _side(path: Path, record: AuditRecord, verdict: Verdict) -> JudgedAudit:
    candidate = next(iter(record.models_with("defended")), None)
    assert verdict.release is not None
    return JudgedAudit(
        record=str(path),
        record_sha256=digest_file(path),
        created=record.created,
        model="defended" if candidate is None else candidate.path or candidate.name,
        outcome=verdict.outcome,
        why=verdict.why,
        reasons=verdict.reasons,
        release=verdict.release,
        warnings=(*verdict.release_reasons, *verdict.warnings),
        stated=None if record.verdict is None else record.verdict.outcome,
    )


def _became(old: JudgedAudit, new: JudgedAudit, *, wanted: bool) -> Any:
    worse = _WORSE_WHERE_WANTED if wanted else _WORSE_OUTCOME
    steps = (
        worse.index(new.outcome) - worse.index(old.outcome),
        _WORSE_RELEASE.index(new.release) - _WORSE_RELEASE.index(old.release),
    )
    if max(steps) > 0:
        return "worse"
    return "better" if min(steps) < 0 else "same"


# -- Figures ---------------------------------------------------------------------------------------


def _figures_by(limits: Policy, old: AuditRecord, new: AuditRecord) -> Iterator[ChangedFigure]:
    """Yield every figure; of a wanted trigger more of each is better."""
    turned: dict[Change, Change] = {"better": "worse", "worse": "better"}
    for figure in _figures(old, new):
        if limits.expect == "active" and figure.name not in _MORE_IS_BETTER:
            change = turned.get(figure.change, figure.change)
            yield figure.model_copy(update={"change": change})
        else:
            yield figure


def _figures(old: AuditRecord, new: AuditRecord) -> Iterator[ChangedFigure]:
    same_images = _same_images(old, new)
    same_poisoned = same_images and _target(old) == _target(new)
    before, after = old.defended, new.defended
    for name, paired in (("clean_acc", same_images), ("asr", same_poisoned)):
        rates = [None if b is None else getattr(b, name) for b in (before, after)]
        if rates != [None, None]:
            yield _of_rates(name, *rates, paired=paired)
    runs = [{run.attack: run for run in _attacks(record)} for record in (old, new)]
    for attack in _in_order(*runs):
        found = [by_attack.get(attack) for by_attack in runs]
        mode, objective, norm, eps = attack
        made = _of_rates(
            "reactivated_asr",
            *(None if run is None else run.asr for run in found),
            paired=same_poisoned,
        )
        yield made.model_copy(
            update={"mode": mode, "objective": objective, "norm": norm, "eps": eps}
        )
    for name in ("lift", "bec"):
        yield from _of_estimates(name, old, new)


def _same_images(old: AuditRecord, new: AuditRecord) -> bool:
    """Whether the held-out images are the same ones in the same order."""
    one, two = (
        (r.data.sha256, r.seed, r.data.n_images, r.data.n_craft, r.data.n_held_out)
        for r in (old, new)
    )
    return one == two


def _target(record: AuditRecord) -> tuple[str, int | None]:
    return record.trigger.target_rule, record.trigger.target_label


def _attacks(record: AuditRecord) -> tuple[AttackRun, ...]:
    return record.runs_of(role="defended", condition="trigger")


def _in_order(*found: Mapping[Any, AttackRun]) -> list[Any]:
    """Every attack that either audit made: by mode as they come, then by eps."""
    attacks = list(dict.fromkeys(key for by_attack in found for key in by_attack))
    kinds = list(dict.fromkeys(key[:3] for key in attacks))
    return sorted(attacks, key=lambda key: (kinds.index(key[:3]), key[3]))


def _of_rates(name: Any, old: Rate | None, new: Rate | None, *, paired: bool) -> ChangedFigure:
    before, after = (None if r is None else _measured(r) for r in (old, new))
    if old is None or new is None or not _has_pairs(old, new, paired):
        return _changed(name, before, after)
    gap = paired_difference(new.outcomes(), old.outcomes(), confidence=_INTERVAL)
    return _changed(name, before, after, gap=(gap.value, gap.low, gap.high))


def _has_pairs(old: Rate, new: Rate, paired: bool) -> bool:
    return paired and old.total == new.total and None not in (old.bits, new.bits)


def _of_estimates(name: Any, old: AuditRecord, new: AuditRecord) -> Iterator[ChangedFigure]:
    """Yield a figure for each attack or innocent model that either audit has one of."""

    def key(figure: Figure) -> tuple[object, ...]:
        return figure.mode, figure.norm, figure.eps, figure.against if name == "bec" else None

    found = [{key(f): f for f in list_figures(r) if f.name == name} for r in (old, new)]
    for which in dict.fromkeys(k for by_key in found for k in by_key):
        before, after = (_measured(by_key[which]) if which in by_key else None for by_key in found)
        mode, norm, eps, against = which
        made = _changed(name, before, after)
        yield made.model_copy(update={"mode": mode, "norm": norm, "eps": eps, "against": against})


def _measured(figure: Rate | Figure) -> Measured:
    return Measured(value=figure.value, low=figure.low, high=figure.high)


def _changed(
    name: Any,
    old: Measured | None,
    new: Measured | None,
    *,
    gap: tuple[float, float, float] | None = None,
) -> ChangedFigure:
    """Put both side by side; `gap` is their difference with its interval, where it was paired."""
    if old is None or new is None:
        only: Change = "only_new" if old is None else "only_old"
        return ChangedFigure(name=name, old=old, new=new, change=only)
    paired = gap is not None
    if gap is None and None not in (old.low, old.high, new.low, new.high):
        gap = difference_of_estimates(_estimate(new), _estimate(old))
    if gap is None:
        difference = new.value - old.value
        return ChangedFigure(name=name, old=old, new=new, difference=difference, change="unclear")
    difference, low, high = gap
    change: Change = "unclear"
    if low > 0.0 or high < 0.0:
        change = "better" if (low > 0.0) == (name in _MORE_IS_BETTER) else "worse"
    return ChangedFigure(
        name=name,
        old=old,
        new=new,
        difference=difference,
        low=low,
        high=high,
        paired=paired,
        change=change,
    )


def _estimate(measured: Measured) -> Estimate:
    return measured  # type: ignore[return-value]  # its bounds are there


# -- Inputs ----------------------------------------------------------------------------------------


def _inputs(old: AuditRecord, new: AuditRecord) -> Iterator[ChangedInput]:
    yield from _compared("model", *(_models(r) for r in (old, new)))
    yield from _compared("file", *(_files(r) for r in (old, new)))
    yield _input("data", "images and labels", old.data.sha256, new.data.sha256)
    yield _input("trigger", "trigger", old.trigger.sha256, new.trigger.sha256)
    yield from _compared("trigger", *(_about_trigger(r) for r in (old, new)), only_changed=True)
    yield from _compared("data", *(_about_data(r) for r in (old, new)), only_changed=True)
    yield from _compared("limit", *(_limits(r) for r in (old, new)), only_changed=True)
    yield from _compared("waiver", *(_waivers(r) for r in (old, new)))
    yield from _compared("setting", *(_settings(r) for r in (old, new)), only_changed=True)
    yield from _compared("version", *(_versions(r) for r in (old, new)), only_changed=True)


def _compared(
    kind: InputKind,
    old: Mapping[str, str | None],
    new: Mapping[str, str | None],
    *,
    only_changed: bool = False,
) -> Iterator[ChangedInput]:
    for name in dict.fromkeys((*old, *new)):
        made = _input(kind, name, old.get(name), new.get(name))
        if made.changed or not only_changed:
            yield made


def _input(kind: InputKind, name: str, old: str | None, new: str | None) -> ChangedInput:
    return ChangedInput(kind=kind, name=name, old=old, new=new, changed=old != new)


def _models(record: AuditRecord) -> dict[str, str | None]:
    """Weights by digest. What was made during the audit is no input of it."""
    return {
        model.name: model.weights_sha256
        for model in record.models
        if model.role != "surrogate" and not model.stand_in
    }


def _files(record: AuditRecord) -> dict[str, str | None]:
    """Files by role and, where a role has several, by name."""
    found: dict[str, str | None] = {}
    for role in dict.fromkeys(file.role for file in record.inputs):
        files = record.files_of(role)
        for file in files:
            name = role if len(files) == 1 else f"{role} {PurePath(file.path).name}"
            found[name if name not in found else f"{role} {file.path}"] = file.sha256
    return found


def _about_trigger(record: AuditRecord) -> dict[str, str | None]:
    return {
        "kind of trigger": record.trigger.kind,
        "target": f"{record.trigger.target_rule} {_text(record.trigger.target_label)}",
        "trigger recovered": _text(record.trigger.recovered),
    }


def _about_data(record: AuditRecord) -> dict[str, str | None]:
    data = record.data
    return {
        "classes": _text(data.num_classes),
        "names of the classes": None if data.class_names is None else ", ".join(data.class_names),
        "images to craft on": _text(data.n_craft),
        "held-out images": _text(data.n_held_out),
    }


def _limits(record: AuditRecord) -> dict[str, str | None]:
    """The limits that the record was judged by."""
    if record.verdict is None:
        return {}
    return {k: _text(v) for k, v in record.verdict.policy.items() if k != "waivers"}


def _waivers(record: AuditRecord) -> dict[str, str | None]:
    if record.verdict is None:
        return {}
    found: dict[str, str | None] = {}
    for waiver in record.verdict.policy.get("waivers") or ():
        said = f"until {waiver['until']} by {waiver['by']}, because: {waiver['because']}"
        found[waiver["sha256"]] = said
    return found


def _settings(record: AuditRecord) -> dict[str, str | None]:
    found = {"seed": _text(record.seed)}
    for name, value in _flat(record.settings):
        found[name] = _text(value)
    return found


def _flat(settings: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value


def _versions(record: AuditRecord) -> dict[str, str | None]:
    environment = record.environment
    return {
        "bdaudit": environment.bdaudit,
        "python": environment.python,
        "platform": environment.platform,
        "device": environment.device,
        **environment.packages,
    }


def _text(value: object) -> str | None:
    if isinstance(value, list | tuple):
        return ", ".join(str(_text(part)) for part in value)
    if isinstance(value, float):
        return f"{value:g}"
    return None if value is None else str(value)


# -- Notes -----------------------------------------------------------------------------------------


def _notes(
    old: AuditRecord, new: AuditRecord, before: JudgedAudit, after: JudgedAudit
) -> Iterator[str]:
    candidates, originals = (
        [next((m.weights_sha256 for m in r.models_with(role)), None) for r in (old, new)]
        for role in ("defended", "original")
    )
    if candidates[0] is not None and candidates[0] == candidates[1]:
        yield "the candidates have the same weights: what changed lies in the audits"
    for what, values in (
        ("original", originals),
        ("trigger", [r.trigger.sha256 for r in (old, new)]),
        ("target", [_target(r) for r in (old, new)]),
        ("number of classes", [r.data.num_classes for r in (old, new)]),
    ):
        if values[0] != values[1]:
            yield f"the two audits have another {what}: their figures answer two questions"
    if not _same_images(old, new):
        yield (
            "the held-out images are not the same ones: rates are compared by their intervals, "
            "as of independent samples"
        )
    for side in (before, after):
        if side.stated is not None and side.stated != side.outcome:
            yield f"{side.record}: its own limits said {side.stated}, these say {side.outcome}"
        if side.stated is None:
            yield f"{side.record}: was never judged before; it was judged here"
