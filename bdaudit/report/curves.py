"""The curves of a record: held-out success against eps, model by model and control by control."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from bdaudit.records import AttackRun, Baseline, Mode, Rate
from bdaudit.report.wording import CONDITIONS, SAME_DELTA, attack_name

__all__ = ["Attack", "Curve", "list_attacks"]

Kind = Literal[
    "defended", "original", "reference", "surrogate", "same_delta", "no_trigger", "wrong_target",
    "noise",
]  # fmt: skip


@dataclass(frozen=True)
class Curve:
    """Success against eps.

    Attributes:
        kind: Whose it is: a model's part, or a control on the defended model.
        model: Whom it was measured on.
        label: For a legend or a row of a table.
        alone: Without any perturbation, where that is on the curve.
        by_eps: Rates by eps.
    """

    kind: Kind
    model: str
    label: str
    alone: Rate | None
    by_eps: dict[float, Rate]


@dataclass(frozen=True)
class Attack:
    """All curves of one kind of attack.

    Attributes:
        name: In words.
        norm: Of eps.
        ladder: Every eps tried, rising.
        curves: The defended model's first, each followed by its controls.
    """

    mode: Mode
    objective: Literal["standard", "specific"]
    name: str
    norm: str
    ladder: tuple[float, ...]
    curves: tuple[Curve, ...]

    def of_kind(self, kind: Kind) -> tuple[Curve, ...]:
        """Return the curves of one kind."""
        return tuple(curve for curve in self.curves if curve.kind == kind)


def list_attacks(runs: Sequence[AttackRun], baselines: Sequence[Baseline]) -> list[Attack]:
    """Arrange attack runs as curves, one `Attack` for each mode, objective and norm."""
    alone = {baseline.model: baseline.asr for baseline in baselines}
    attacks = []
    for mode, objective, norm in dict.fromkeys((r.mode, r.objective, r.norm) for r in runs):
        chosen = [r for r in runs if (r.mode, r.objective, r.norm) == (mode, objective, norm)]
        curves: list[Curve] = []
        for model in dict.fromkeys(run.model for run in chosen):
            curves += _curves_of(model, [r for r in chosen if r.model == model], alone.get(model))
        attacks.append(
            Attack(
                mode=mode,
                objective=objective,
                name=attack_name(chosen[0]),
                norm=norm,
                ladder=tuple(sorted({run.eps for run in chosen})),
                curves=tuple(curves),
            )
        )
    return attacks


def _curves_of(model: str, runs: Sequence[AttackRun], alone: Rate | None) -> list[Curve]:
    triggered = sorted((r for r in runs if r.condition == "trigger"), key=lambda r: r.eps)
    curves = []
    if triggered:
        by_eps = {r.eps: r.asr for r in triggered}
        curves.append(Curve(triggered[0].role, model, model, alone, by_eps))
    bare = {r.eps: r.delta_only for r in triggered if r.delta_only is not None}
    if bare:
        curves.append(Curve("same_delta", model, SAME_DELTA, None, bare))
    for condition, label in CONDITIONS.items():
        by_eps = {r.eps: r.asr for r in runs if r.condition == condition}
        if by_eps:
            curves.append(Curve(condition, model, label, None, dict(sorted(by_eps.items()))))  # type: ignore[arg-type]
    return curves
