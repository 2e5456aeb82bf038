"""Audit records made of chosen figures, for tests of verdicts and reports."""

from __future__ import annotations

from datetime import UTC, datetime

from bdaudit.foundation.statistics import wilson_interval
from bdaudit.records import (
    AttackRun,
    AuditRecord,
    Baseline,
    BecRecord,
    DataInfo,
    Environment,
    LayerBec,
    LinePoint,
    LossBarrier,
    ModelInfo,
    Placebo,
    Placebos,
    Rate,
    Relearning,
    TriggerInfo,
)

N = 1000


def rate(share: float, *, n: int = N) -> Rate:
    """A rate whose successes are the first images: of two, the smaller lies within the larger."""
    successes = round(share * n)
    low, high = wilson_interval(successes, n)
    return Rate(
        successes=successes,
        total=n,
        low=low,
        high=high,
        bits=Rate.pack(k < successes for k in range(n)),
    )


def baseline(model: str, role: str, *, asr: float, clean_acc: float = 0.9, n: int = N) -> Baseline:
    return Baseline(
        model=model,
        role=role,
        clean_acc=rate(clean_acc, n=n),
        asr=rate(asr, n=n),
        clean_target_rate=rate(0.01, n=n),
        true_label_acc=rate(1 - asr, n=n),
    )


def run(
    model: str,
    role: str,
    eps: float,
    asr: float,
    *,
    condition: str = "trigger",
    delta_only: float | None = 0.02,
    objective: str = "standard",
    mode: str = "white",
    n: int = N,
) -> AttackRun:
    return AttackRun(
        mode=mode,
        model=model,
        role=role,
        condition=condition,
        objective=objective,
        norm="linf",
        eps=eps,
        target_label=0,
        seed=0,
        asr=rate(asr, n=n),
        delta_only=None if delta_only is None else rate(delta_only, n=n),
        craft_asr=asr,
        loss_trace=(2.0, 1.0),
        gradient_passes=24,
        delta_norm=eps,
        delta_sha256="0" * 64,
        elapsed_s=1.0,
    )


def placebos(
    reached: dict[str, dict[float, list[float]]], *, mode: str = "white", n: int = N
) -> Placebos:
    """Placebos of which each model's attacks reach what is given, by model and eps."""
    count = max(
        (len(shares) for by_eps in reached.values() for shares in by_eps.values()), default=0
    )
    runs = []
    for model, by_eps in reached.items():
        role = "defended" if model == "defended" else "reference"
        for eps, shares in by_eps.items():
            for k, share in enumerate(shares):
                made = run(model, role, eps, share, condition="placebo", mode=mode, n=n)
                runs.append(made.model_copy(update={"placebo": k}))
    return Placebos(
        kept=tuple(
            Placebo(kind="grating", sha256=f"{k:064x}", l2=1.3, original=0.02, innocent=0.01)
            for k in range(count)
        ),
        refused=(
            Placebo(
                kind="blocks",
                sha256="f" * 64,
                l2=1.3,
                original=0.8,
                why_not="the original answers to it",
            ),
        ),
        l2=1.3,
        shift=0.5,
        runs=tuple(runs),
    )


def audit_record(
    *,
    alone: float = 0.02,
    defended: dict[float, float],
    innocents: list[dict[float, float]],
    no_trigger: dict[float, float] | None = None,
    original: float = 1.0,
    original_run: float = 1.0,
    innocents_alone: float = 0.01,
    delta_only: float = 0.02,
    innocents_delta_only: dict[float, float] | None = None,
    wide: bool = False,
    untriggered: list[dict[float, float]] | None = None,
    n: int = N,
    **changes: object,
) -> AuditRecord:
    """A whole audit: `defended` and each of `innocents` give re-activated ASR by eps.

    What the same delta does to the innocents without the trigger is .02 unless
    `innocents_delta_only` gives it by eps. With `untriggered`, the innocents are stand-ins, and it
    gives what the attack made without the trigger reaches on each.
    """
    quiet = dict.fromkeys(defended, 0.02) if no_trigger is None else no_trigger
    kind = "reference" if untriggered is None else "stand-in"
    names = [f"{kind} {k}" for k in range(1, len(innocents) + 1)]
    baselines = [
        baseline("defended", "defended", asr=alone, n=n),
        baseline("original", "original", asr=original, n=n),
        *(
            baseline(name, "reference", asr=innocents_alone, n=n).model_copy(
                update={"stand_in": untriggered is not None}
            )
            for name in names
        ),
    ]
    runs = []
    for eps, asr in defended.items():
        runs.append(run("defended", "defended", eps, asr, delta_only=delta_only, n=n))
        runs.append(run("original", "original", eps, original_run, n=n))
    for eps, asr in quiet.items():
        runs.append(
            run("defended", "defended", eps, asr, condition="no_trigger", delta_only=None, n=n)
        )
    for name, curve in zip(names, innocents, strict=True):
        runs += [
            run(
                name,
                "reference",
                eps,
                asr,
                delta_only=(innocents_delta_only or {}).get(eps, 0.02),
                n=n,
            )
            for eps, asr in curve.items()
        ]
    for name, curve in zip(names, untriggered or [], strict=False):
        runs += [
            run(name, "reference", eps, asr, condition="no_trigger", delta_only=None, n=n)
            for eps, asr in curve.items()
        ]
    fields: dict[str, object] = {
        "created": datetime(2026, 1, 1, tzinfo=UTC),
        "seed": 0,
        "settings": {},
        "environment": Environment(
            bdaudit="0", python="3", platform="test", device="cpu", packages={}
        ),
        "inputs": (),
        "data": DataInfo(
            source="made up",
            sha256="0" * 64,
            image_shape=(1, 8, 8),
            num_classes=10,
            n_images=2 * n,
            n_craft=n,
            n_held_out=n,
            n_craft_poisonable=n,
            n_held_out_poisonable=n,
        ),
        "trigger": TriggerInfo(
            kind="patch",
            target_rule="all-to-one",
            target_label=0,
            source="made up",
            sha256="0" * 64,
            footprint=1.0 if wide else 0.01,
            mean_linf=0.5,
            mean_l2=1.0,
            wide=wide,
        ),
        "models": tuple(
            ModelInfo(
                name=b.model,
                role=b.role,
                arch="made-up",
                num_classes=10,
                image_shape=(1, 8, 8),
                weights_sha256=f"{k:064x}",
                stand_in=b.stand_in,
            )
            for k, b in enumerate(baselines)
        ),
        "elapsed_s": 1.0,
        "baselines": tuple(baselines),
        "bec": (),
        "bec_missing": "made up",
        "runs": tuple(runs),
    }
    return AuditRecord.model_validate(fields | changes)


def relearning_record(gap: float, *, outcome: str) -> Relearning:
    """A model that relearns `gap` better than the only innocent one, which does not at all."""
    asr, bare = (gap, gap), (0.0, 0.0)
    return Relearning.model_validate(
        {
            "outcome": outcome,
            "why": f"It responds {100 * gap:+.0f} points above the innocent model.",
            "limit": 0.1,
            "evidence": {
                "steps": (5, 20),
                "asr": asr,
                "clean_target_rate": bare,
                "innocent_asr": {"reference 1": bare},
                "innocent_clean_target_rate": {"reference 1": bare},
                "gap": gap,
                "low": gap - 0.02,
                "high": gap + 0.02,
                "shots": 5,
                "settings": {
                    "learning_rate": 0.01,
                    "learning_rates": [0.001, 0.01],
                    "strongest": "reference 1",
                    "draws": 5,
                    "n_held_out": 500,
                },
            },
            "curves": [
                {
                    "model": model,
                    "role": role,
                    "learning_rate": 0.01,
                    "asr": values,
                    "clean_target_rate": bare,
                }
                for model, role, values in (
                    ("defended", "defended", asr),
                    ("reference 1", "reference", bare),
                )
            ],
            "elapsed_s": 1.0,
        }
    )


def bec_record() -> BecRecord:
    return BecRecord(
        reference="reference 1",
        value=0.41,
        low=0.35,
        high=0.47,
        ratio_of_means=0.4,
        top_share=0.1,
        estimator="plain",
        n_samples=500,
        n_bootstrap=200,
        layers=(
            LayerBec(
                layer="layer1.0.conv1",
                channels=16,
                channels_kept=2,
                top_channels=(3, 1),
                top_tac=(1.5, 1.2),
                cka_defended=0.7,
                cka_reference=0.4,
                coefficient=0.5,
            ),
            LayerBec(
                layer="layer1.0.conv2",
                channels=16,
                channels_kept=2,
                top_channels=(0, 1),
                top_tac=(1.1, 1.0),
                cka_defended=0.7,
                cka_reference=1.0,
                coefficient=None,
                reason="S_CA is 1",
            ),
        ),
        elapsed_s=1.0,
    )


def barrier_record() -> LossBarrier:
    """A line that rises by .2 above its ends, along which the trigger dies away."""
    ends = ((0.0, 0.3, 0.9, 1.0), (0.5, 0.55, 0.85, 0.3), (1.0, 0.4, 0.88, 0.06))
    return LossBarrier(
        points=tuple(
            LinePoint(share=at, clean_loss=loss, clean_acc=rate(acc), asr=rate(asr))
            for at, loss, acc, asr in ends
        ),
        loss=0.2,
        error=0.04,
        batch_norm="measured anew",
        n_calibration=250,
    )
