"""Audit records and policies drawn at random, of all the shapes that the verdict must cope with."""

from __future__ import annotations

from datetime import UTC, datetime
from random import Random
from typing import Any

from bdaudit.foundation.statistics import wilson_interval
from bdaudit.records import (
    AttackRun,
    AuditRecord,
    Baseline,
    DataInfo,
    Diagnostic,
    Environment,
    Inversion,
    Rate,
    StepStatus,
    TriggerInfo,
)
from bdaudit.verdict import Policy

__all__ = ["Draw", "made_up"]

_LADDER = (0.005, 0.01, 0.02, 0.03, 0.05)


class Draw:
    """Choices by a seed, from `Random.random` alone, which is the same in every Python."""

    def __init__(self, seed: int) -> None:
        self._random = Random(seed)

    def share(self) -> float:
        return self._random.random()

    def chance(self, probability: float) -> bool:
        return self.share() < probability

    def between(self, low: int, high: int) -> int:
        return low + int(self.share() * (high - low + 1))

    def one_of(self, *choices: Any) -> Any:
        return choices[int(self.share() * len(choices))]


def made_up(seed: int) -> tuple[AuditRecord, Policy]:
    """Draw a record and the policy that it is to be judged by."""
    draw = Draw(seed)
    return _Maker(draw).record(), _policy(draw)


def _policy(draw: Draw) -> Policy:
    if draw.chance(0.4):
        return Policy()
    lift = draw.one_of(0.02, 0.05, 0.1, 0.2, 0.4)
    fewest = draw.between(0, 3)
    return Policy(
        active_asr=draw.one_of(0.0, 0.1, 0.3),
        lift=lift,
        confidence=draw.one_of(0.5, 0.9, 0.95, 0.99),
        saturation=draw.one_of(0.3, 0.5, 0.6),
        min_held_out=draw.one_of(50, 200, 500),
        min_original_asr=draw.one_of(0.3, 0.5, 0.9),
        min_references=fewest,
        min_references_wide=fewest + draw.between(0, 3),
        bec_warning=draw.one_of(None, 0.3),
        clean_acc_loss=draw.one_of("flag", "fail"),
        inconclusive=draw.one_of("fail", "warn"),
    )


class _Maker:
    """Draws the parts of a record; `self.kind` sets how it is likely to end."""

    def __init__(self, draw: Draw) -> None:
        self.draw = draw
        self.kind = draw.one_of("sleeps", "gone", "gone", "between", "any")
        self.n = draw.one_of(60, 200, 400, 1000, 1000)
        self.nested = draw.chance(0.5)
        self.wide = draw.chance(0.5)
        self.modes = draw.one_of(
            ("white",), ("white",), ("query",), ("transfer",), ("white", "query"), ("transfer",)
        )
        self.objectives = draw.one_of(("standard",), ("standard",), ("specific",), None)
        self.norm = draw.one_of("linf", "linf", "l2")
        count = draw.between(1, 4)
        self.ladder = sorted({draw.one_of(*_LADDER) for _ in range(count)})
        self.complete = draw.chance(0.6)
        self.names = [f"reference {k}" for k in range(1, draw.between(0, 6) + 1)]
        made = draw.one_of("none", "none", "all", "some")
        self.stand_ins = {
            name: made == "all" or (made == "some" and draw.chance(0.5)) for name in self.names
        }
        self.asleep = draw.share() * 0.6 + 0.2

    def lost(self, probability: float) -> bool:
        """Whether a measurement is missing."""
        return not self.complete and self.draw.chance(probability)

    def rate(self, share: float) -> Rate:
        """Outcomes that lie within one another, or are drawn one by one."""
        share = min(max(share, 0.0), 1.0)
        if self.nested:
            outcomes = [k < round(share * self.n) for k in range(self.n)]
        else:
            outcomes = [self.draw.chance(share) for _ in range(self.n)]
        low, high = wilson_interval(sum(outcomes), self.n)
        return Rate(
            successes=sum(outcomes), total=self.n, low=low, high=high, bits=Rate.pack(outcomes)
        )

    def response(self, role: str, eps: float, *, trigger: bool) -> float:
        """What a model is likely to give."""
        noise = self.draw.share()
        if self.kind == "any":
            return noise**2
        if role == "original":
            return 1.0 if self.draw.chance(0.95) else noise
        pushed = 4 * eps * noise * (2.0 if self.wide and trigger else 1.0)
        if self.draw.chance(0.05):
            pushed += 0.4
        if role != "defended" or not trigger or self.kind == "gone":
            return pushed
        return pushed + (self.asleep if self.kind == "sleeps" else 0.12)

    def baseline(self, model: str, role: str) -> Baseline:
        draw = self.draw
        alone = 0.03 * draw.share()
        if role == "original":
            alone = draw.one_of(1.0, 0.98, 1.0, 1.0, 0.3)
        elif draw.chance(0.1):
            alone = draw.share()
        stand_in = self.stand_ins.get(model, False)
        left_out = "too weak" if role == "reference" and draw.chance(0.08) else None
        return Baseline(
            model=model,
            role=role,
            clean_acc=self.rate(0.9 - 0.2 * draw.share()),
            asr=self.rate(alone),
            clean_target_rate=self.rate(draw.one_of(0.0, 0.01, 0.02, 0.3)),
            true_label_acc=self.rate(1 - alone),
            stand_in=stand_in,
            left_out=left_out,
        )

    def run(
        self, model: str, role: str, eps: float, mode: str, objective: str, *, trigger: bool
    ) -> AttackRun:
        asr = self.response(role, eps, trigger=trigger)
        alone = None
        if trigger and not self.lost(0.08):
            eased = asr if self.draw.chance(0.2) else 2 * eps
            alone = self.rate(self.draw.share() * eased)
        return AttackRun(
            mode=mode,
            model=model,
            role=role,
            condition="trigger" if trigger else "no_trigger",
            objective=objective,
            norm=self.norm,
            eps=eps,
            target_label=0,
            seed=0,
            asr=self.rate(asr),
            delta_only=alone,
            made_on=("surrogate 1", "surrogate 2") if mode == "transfer" else (),
            image_queries=self.draw.between(100, 90_000) if mode == "query" else 0,
            delta_norm=eps,
            delta_sha256="0" * 64,
            elapsed_s=1.0,
        )

    def runs(self) -> tuple[AttackRun, ...]:
        found = []
        models = [("defended", "defended"), ("original", "original")]
        models += [(name, "reference") for name in self.names]
        if self.lost(0.05):
            return ()
        for mode in self.modes:
            for eps in self.ladder:
                for objective in self.objectives or ("standard", "specific"):
                    for model, role in models:
                        if role == "defended" or not self.lost(0.06):
                            found.append(self.run(model, role, eps, mode, objective, trigger=True))
                        if role == "original" or self.lost(0.06):
                            continue
                        if role == "defended" or self.stand_ins[model]:
                            found.append(self.run(model, role, eps, mode, objective, trigger=False))
        if self.draw.chance(0.3):
            found.reverse()
        return tuple(found)

    def inversion(self) -> Inversion | None:
        if not self.draw.chance(0.1):
            return None
        return Inversion(
            outcome=self.draw.one_of("found", "found", "none", "unsure"),
            why="No class stands out.",
            candidates=(),
            runs=(),
            n_tests=10,
            settings={},
            elapsed_s=1.0,
        )

    def record(self) -> AuditRecord:
        draw = self.draw
        baselines = [
            self.baseline(model, role)
            for model, role in (("defended", "defended"), ("original", "original"))
            if not self.lost(0.05)
        ]
        baselines += [self.baseline(name, "reference") for name in self.names]
        diagnostics = [
            Diagnostic(code="x", severity=severity, message="something is off", subject="defended")
            for severity in ("error", "warning")
            if draw.chance(0.04)
        ]
        steps = [
            StepStatus(name=name, status=status, reason=draw.one_of(None, "out of memory"))
            for name, status in (("existence", "failed"), ("pictures", "skipped"))
            if draw.chance(0.04)
        ]
        return AuditRecord(
            created=datetime(2026, 1, 1, tzinfo=UTC),
            seed=0,
            settings={},
            environment=Environment(
                bdaudit="0", python="3", platform="test", device="cpu", packages={}
            ),
            inputs=(),
            data=DataInfo(
                source="made up",
                sha256="0" * 64,
                image_shape=(1, 8, 8),
                num_classes=10,
                n_images=2 * self.n,
                n_craft=self.n,
                n_held_out=self.n,
                n_craft_poisonable=self.n,
                n_held_out_poisonable=self.n,
            ),
            trigger=TriggerInfo(
                kind="patch",
                target_rule="all-to-one",
                target_label=0,
                source="made up",
                sha256="0" * 64,
                footprint=1.0 if self.wide else 0.01,
                mean_linf=0.5,
                mean_l2=1.0,
                wide=self.wide,
                recovered=draw.chance(0.1),
            ),
            models=(),
            baselines=tuple(baselines),
            bec=(),
            runs=self.runs(),
            inversion=self.inversion(),
            diagnostics=tuple(diagnostics),
            steps=tuple(steps),
            elapsed_s=1.0,
        )
