"""The figures of an audit, one a row, as other tools take them.

Attestations, bills of materials and model cards show the same rows. Fractions are in [0, 1]; bounds
are those of the 95 % interval, and of a lift the one-sided ones it was judged by. A quantity that
was not measured has no row.
"""

from __future__ import annotations

from collections.abc import Iterator

from bdaudit.records.base import Mode, Rate, Record
from bdaudit.records.documents import AuditRecord

__all__ = ["Figure", "list_figures", "release_of"]


class Figure(Record):
    """One figure.

    Attributes:
        name: `clean_acc`, `asr`, `clean_target_rate`, `reactivated_asr`, `lift` or `bec`.
        model: What it was measured on.
        value: The figure.
        low: Lower bound, `None` where none was computed.
        high: Upper bound.
        total: Images it was counted on, of a share.
        mode: Of an attack.
        norm: Of an attack.
        eps: Of an attack, in pixel units.
        against: The strongest control, of a lift; the innocent model, of a BEC.
        limit: What a lift was held against.
    """

    name: str
    model: str
    value: float
    low: float | None = None
    high: float | None = None
    total: int | None = None
    mode: Mode | None = None
    norm: str | None = None
    eps: float | None = None
    against: str | None = None
    limit: float | None = None


def release_of(record: AuditRecord) -> str:
    """Return what the policy makes of the verdict: `pass`, `fail` or `inconclusive`.

    Raises:
        ValueError: The record was not judged.
    """
    verdict = record.verdict
    if verdict is None:
        raise ValueError("the record was not judged")
    if verdict.release is not None:
        return verdict.release
    return {"removed": "pass", "inconclusive": "inconclusive"}.get(verdict.outcome, "fail")


def list_figures(record: AuditRecord) -> tuple[Figure, ...]:
    """List the figures of an audit: plain ones, re-activation by eps, lifts, BEC."""
    return tuple(_figures(record))


def _figures(record: AuditRecord) -> Iterator[Figure]:
    for baseline in (record.defended, record.original):
        if baseline is not None:
            yield _share("clean_acc", baseline.model, baseline.clean_acc)
            yield _share("asr", baseline.model, baseline.asr)
            yield _share("clean_target_rate", baseline.model, baseline.clean_target_rate)
    for run in record.runs_of(role="defended", condition="trigger"):
        yield _share("reactivated_asr", run.model, run.asr).model_copy(
            update={"mode": run.mode, "norm": run.norm, "eps": run.eps}
        )
    yield from _lifts(record)
    for bec in record.bec:
        if bec.value is not None:
            yield Figure(
                name="bec",
                model="defended",
                value=bec.value,
                low=bec.low,
                high=bec.high,
                against=bec.reference,
            )


def _lifts(record: AuditRecord) -> Iterator[Figure]:
    """The lift over the strongest control, for each kind of attack and eps."""
    if record.verdict is None:
        return
    runs = record.runs_of(role="defended", condition="trigger")
    for mode in dict.fromkeys(run.mode for run in runs):
        norms = {run.eps: run.norm for run in runs if run.mode == mode}
        lifts = record.verdict.over_controls(mode)
        for eps in dict.fromkeys(lift.eps for lift in lifts):
            weakest = min((x for x in lifts if x.eps == eps), key=lambda x: x.value)
            yield Figure(
                name="lift",
                model="defended",
                value=weakest.value,
                low=weakest.low,
                high=weakest.high,
                mode=mode,
                norm=None if eps is None else norms.get(eps),
                eps=eps,
                against=weakest.against,
                limit=weakest.limit,
            )


def _share(name: str, model: str, rate: Rate) -> Figure:
    return Figure(
        name=name, model=model, value=rate.value, low=rate.low, high=rate.high, total=rate.total
    )
