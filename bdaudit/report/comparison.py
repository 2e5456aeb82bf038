"""Several defended versions of one original, side by side, from their records alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import PurePath

from bdaudit.errors import ConfigError, RecordError
from bdaudit.records import AttackRun, AuditRecord, Baseline, Mode, Outcome, Rate
from bdaudit.records.comparison import ComparedModel, ComparisonRecord, Neighbour, Span
from bdaudit.report.wording import attack_name, defended_file, weakest_lifts

__all__ = ["compare"]

_ORDER: dict[Outcome | None, int] = {
    "removed": 0,
    "inconclusive": 1,
    None: 2,
    "dormant": 3,
    "active": 4,
}


_COMPARED_SETTINGS = ("n_passes", "restarts", "objective", "max_queries", "feedback", "strategy")


def compare(
    records: Sequence[tuple[str, AuditRecord]],
    *,
    mode: Mode | None = None,
    eps: float | None = None,
) -> ComparisonRecord:
    """Put audits of several defended versions of one original side by side.

    Args:
        records: The file and the content of each record, two or more.
        mode: Kind of attack to compare; `None` takes the first that all records have.
        eps: Radius to compare at; `None` takes the one, among those that all records have, at
            which the largest lift over the controls was found.

    Raises:
        ConfigError: Fewer than two records, or no attack that all of them have.
        RecordError: The records are of different originals or triggers, or incomplete.
    """
    if len(records) < 2:
        raise ConfigError("compare: expected two records or more")
    _demand_one_case(records)
    _demand_one_order_of_classes(records)
    runs = [_choose(records, mode, eps, k) for k in range(len(records))]
    names = _names(records)
    models = [
        _compared(name, file, record, run)
        for name, (file, record), run in zip(names, records, runs, strict=True)
    ]
    models.sort(key=lambda m: (_ORDER[m.outcome], m.lift.value if m.lift else m.asr.value))
    first = runs[0]
    return ComparisonRecord(
        mode=first.mode,
        norm=first.norm,
        eps=first.eps,
        attack=attack_name(first),
        models=tuple(models),
        original=_original(records, first),
        innocent=_innocent(records, first),
        warnings=tuple(_differences(records, names)),
    )


def _demand_one_case(records: Sequence[tuple[str, AuditRecord]]) -> None:
    for what, remedy, value in (
        ("original", "compare defended versions of one original", _original_digest),
        ("trigger", "audit all of them with one trigger", lambda r: r.trigger.sha256),
        ("target", "audit all of them toward one target", lambda r: r.trigger.target_label),
        (
            "number of classes",
            "the original has one number of classes, so one of the records is not about it",
            lambda r: r.data.num_classes,
        ),
    ):
        found = [(file, value(record)) for file, record in records]
        for file, digest in found[1:]:
            if digest != found[0][1]:
                raise RecordError(
                    f"{file}: another {what} than in {found[0][0]} ({_short(digest)} and "
                    f"{_short(found[0][1])}); {remedy}"
                )


def _demand_one_order_of_classes(records: Sequence[tuple[str, AuditRecord]]) -> None:
    """Refuse records that have the same class under two indices; other names are only told."""
    named = [(file, names) for file, r in records if (names := r.data.class_names) is not None]
    for file, names in named[1:]:
        first_file, first = named[0]
        for index, name in enumerate(names):
            if name in first and first[index] != name:
                raise RecordError(
                    f"{file}: class {index} is {name!r}, which is class {first.index(name)} in "
                    f"{first_file}; one of them was audited with labels in another order"
                )


def _original_digest(record: AuditRecord) -> str:
    for model in record.models:
        if model.role == "original" and model.weights_sha256 is not None:
            return model.weights_sha256
    raise RecordError("a record does not say which original it is about")


def _short(value: object) -> str:
    text = str(value)
    return text[:12] if len(text) == 64 else text


def _differences(records: Sequence[tuple[str, AuditRecord]], names: Sequence[str]) -> Iterator[str]:
    """Yield differences between the records that make their figures less comparable."""
    checks: tuple[tuple[str, Callable[[AuditRecord], object]], ...] = (
        ("the images (rates are then of different images)", lambda r: r.data.sha256),
        (
            "the number of held-out images",
            lambda r: r.data.n_held_out,
        ),
        ("the names of the classes", lambda r: r.data.class_names),
        ("the seed", lambda r: r.seed),
        ("the innocent models (so the controls differ)", _reference_digests),
        (
            "the attack's settings",
            lambda r: [r.settings.get(name) for name in _COMPARED_SETTINGS],
        ),
        ("the policy that judged", lambda r: None if r.verdict is None else r.verdict.policy),
        ("the version of bdaudit", lambda r: r.environment.bdaudit),
    )
    for what, value in checks:
        values = [value(record) for _, record in records]
        others = [name for name, v in zip(names, values, strict=True) if v != values[0]]
        if others:
            yield f"the audits differ in {what}: {', '.join(others)} from {names[0]}"
    defended = [_digest_of_defended(record) for _, record in records]
    for digest, count in Counter(defended).items():
        if digest is not None and count > 1:
            same = [n for n, d in zip(names, defended, strict=True) if d == digest]
            yield f"the same weights twice: {', '.join(same)}"


def _reference_digests(record: AuditRecord) -> list[str]:
    # Stand-ins are made for each defended model from its own answers.
    return sorted(
        str(m.weights_sha256) for m in record.models if m.role == "reference" and not m.stand_in
    )


def _digest_of_defended(record: AuditRecord) -> str | None:
    return next((m.weights_sha256 for m in record.models if m.role == "defended"), None)


def _choose(
    records: Sequence[tuple[str, AuditRecord]], mode: Mode | None, eps: float | None, k: int
) -> AttackRun:
    """Return the run of record `k` at the attack and eps that are compared."""
    common = _common_attacks(records)
    fitting = [a for a in common if mode in (None, a[0]) and eps in (None, a[3])]
    if not fitting:
        known = ", ".join(f"{m} {norm} {e:g}" for m, _, norm, e in common) or "none"
        raise ConfigError(f"compare: no such attack in all of the records; they share: {known}")
    same_kind = [a for a in fitting if a[:3] == fitting[0][:3]]
    chosen = max(same_kind, key=lambda a: _largest_lift(records, a[0], a[3]))
    return next(run for run in _attacks(records[k][1]) if run.attack == chosen)


def _common_attacks(
    records: Sequence[tuple[str, AuditRecord]],
) -> list[tuple[Mode, str, str, float]]:
    """List the attacks that all records have, in the first record's order."""
    first, *others = ([run.attack for run in _attacks(record)] for _, record in records)
    return [attack for attack in first if all(attack in other for other in others)]


def _attacks(record: AuditRecord) -> list[AttackRun]:
    return [r for r in record.runs if (r.role, r.condition) == ("defended", "trigger")]


def _largest_lift(records: Sequence[tuple[str, AuditRecord]], mode: Mode, eps: float) -> float:
    lifts = [weakest_lifts(record, mode).get(eps) for _, record in records]
    return max((lift.value for lift in lifts if lift is not None), default=-1.0)


def _compared(name: str, file: str, record: AuditRecord, run: AttackRun) -> ComparedModel:
    baselines = {b.role: b for b in record.baselines}
    if not {"defended", "original"} <= baselines.keys():
        raise RecordError(f"{file}: its audit did not get as far as the plain rates")
    defended, original = baselines["defended"], baselines["original"]
    values = sorted(b.value for b in record.bec if b.value is not None)
    span = None
    if values:
        span = Span(low=values[0], middle=sum(values) / len(values), high=values[-1])
    return ComparedModel(
        name=name,
        record=file,
        outcome=None if record.verdict is None else record.verdict.outcome,
        release=None if record.verdict is None else record.verdict.release,
        clean_acc=defended.clean_acc,
        clean_acc_loss=original.clean_acc.value - defended.clean_acc.value,
        asr=defended.asr,
        reactivated=run.asr,
        delta_only=run.delta_only,
        lift=weakest_lifts(record, run.mode).get(run.eps),
        bec=span,
        bec_missing=None if span else record.bec_missing or "undefined",
        barrier=None if record.barrier is None else record.barrier.loss,
        asr_half_way=None if record.barrier is None else record.barrier.half_way.asr.value,
        direction=None if record.direction is None else record.direction.cosine,
        fidelity=_fidelity(defended, original, defended.asr),
        fidelity_reactivated=_fidelity(defended, original, run.asr),
    )


def _fidelity(defended: Baseline, original: Baseline, asr: Rate) -> float | None:
    """Return how faithfully a defence removed the trigger and nothing else, in [0, 1].

    Source: TrojAI's mitigation rounds (NIST), as their reports describe it: the share of clean
    accuracy kept times the share of ASR removed. There the ASR is the trigger's alone.
    """
    if not original.clean_acc.value or not original.asr.value:
        return None
    kept = min(defended.clean_acc.value / original.clean_acc.value, 1.0)
    return kept * max(1.0 - asr.value / original.asr.value, 0.0)


def _names(records: Sequence[tuple[str, AuditRecord]]) -> list[str]:
    """Name models by their files; where those are called alike, by their records."""
    by_model = [PurePath(defended_file(record)).stem for _, record in records]
    by_record = [PurePath(file).stem for file, _ in records]
    for names in (by_model, by_record):
        if len(set(names)) == len(names) and "defended" not in names[1:]:
            return names
    return [file for file, _ in records]


def _original(records: Sequence[tuple[str, AuditRecord]], run: AttackRun) -> Neighbour:
    plain = [b.asr.value for _, r in records for b in r.baselines if b.role == "original"]
    woken = _others(records, run, "original")
    return _neighbour("original", 1.0, plain, woken)


def _innocent(records: Sequence[tuple[str, AuditRecord]], run: AttackRun) -> Neighbour | None:
    plain = [
        b.asr.value
        for _, r in records
        for b in r.baselines
        if b.role == "reference" and b.left_out is None
    ]
    if not plain:
        return None
    return _neighbour("innocent models", 0.0, plain, _others(records, run, "reference"))


def _others(records: Sequence[tuple[str, AuditRecord]], run: AttackRun, role: str) -> list[float]:
    return [
        other.asr.value
        for _, record in records
        for other in record.runs
        if (other.role, other.condition) == (role, "trigger") and other.attack == run.attack
    ]


def _neighbour(name: str, bec: float, plain: Sequence[float], woken: Sequence[float]) -> Neighbour:
    return Neighbour(
        name=name,
        bec=bec,
        asr=min(plain),
        asr_high=max(plain),
        reactivated=min(woken, default=None),
        reactivated_high=max(woken, default=None),
    )
