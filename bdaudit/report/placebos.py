"""The placebos of an audit, arranged for all reports."""

from __future__ import annotations

from dataclasses import dataclass

from bdaudit.records import AuditRecord, Mode, Rate

__all__ = ["PlaceboRow", "about_placebos", "placebo_rows"]


@dataclass(frozen=True)
class PlaceboRow:
    """One model at one eps: the true trigger beside the placebos.

    Attributes:
        trigger: What the true trigger reaches; `None` where that was not measured.
        reached: What each placebo reaches, in order.
    """

    mode: Mode
    eps: float
    model: str
    defended: bool
    trigger: Rate | None
    reached: tuple[float, ...]

    @property
    def span(self) -> str:
        """The range of the placebos, in per cent."""
        return f"{100 * min(self.reached):.1f} to {100 * max(self.reached):.1f}%"


def placebo_rows(record: AuditRecord) -> list[PlaceboRow]:
    """Return a row for each attack and model that placebos were tried on, in order."""
    runs = () if record.placebos is None else record.placebos.runs
    true = {(r.model, r.attack): r.asr for r in record.runs if r.condition == "trigger"}
    rows = []
    for model, attack in dict.fromkeys((run.model, run.attack) for run in runs):
        own = [run for run in runs if (run.model, run.attack) == (model, attack)]
        rows.append(
            PlaceboRow(
                mode=own[0].mode,
                eps=own[0].eps,
                model=model,
                defended=own[0].role == "defended",
                trigger=true.get((model, attack)),
                reached=tuple(run.asr.value for run in own),
            )
        )
    return sorted(rows, key=lambda row: (row.mode, row.eps, not row.defended))


def about_placebos(record: AuditRecord) -> str | None:
    """Return how many placebos were drawn and kept, in words; `None` without any."""
    placebos = record.placebos
    if placebos is None:
        return None
    if placebos.missing is not None:
        return f"No placebos: {placebos.missing}."
    n_drawn = len(placebos.kept) + len(placebos.refused)
    refused = sum(p.why_not is not None for p in placebos.refused)
    most = max(p.original for p in placebos.kept)
    return (
        f"Drawn: {n_drawn} patterns as strong as the trigger (L2 {placebos.l2:.2f}). Refused, "
        f"since the original or an innocent model answers to them: {refused}. Kept: "
        f"{len(placebos.kept)}, which take at most {100 * most:.1f}% of images to the target on "
        "the original."
    )
