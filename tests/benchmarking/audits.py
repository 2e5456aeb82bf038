"""Finished audits of made-up figures, for models of stated truth."""

from __future__ import annotations

from bdaudit.benchmarking import Audited
from bdaudit.records import StepStatus
from bdaudit.records.families import FamilyMember
from tests.records import audit_record, bec_record

SLEEPS = {0.01: 0.10, 0.05: 0.60}
QUIET = {0.01: 0.03, 0.05: 0.30}
INNOCENT = {0.01: 0.04, 0.05: 0.32}
BETWEEN = {0.01: 0.05, 0.05: 0.42}
"""A lift of .10 at eps .05: neither clearly above the default limit of .10 nor below."""


def audited(
    name: str,
    truth: str,
    *,
    original: str = "a",
    attack: str = "badnets",
    defended: dict[float, float] | None = None,
    alone: float = 0.02,
    bec: float | None = 0.4,
    variant: str = "white",
    failure: str | None = None,
) -> Audited:
    """An audit whose defended model gives `defended` by eps; by default what fits its truth."""
    member = FamilyMember.model_validate(
        {
            "name": name,
            "file": f"{name}.safetensors",
            "sha256": "0",
            "weights_sha256": "0",
            "lineage": "clean" if truth == "innocent" else "defended",
            "original": original,
            "attack": attack,
            "defense": "finetune",
            "truth": truth,
        }
    )
    if failure is not None:
        return Audited(member, variant, None, failure)
    record = audit_record(
        alone=alone,
        defended=defended or (SLEEPS if truth == "dormant" else QUIET),
        innocents=[INNOCENT, INNOCENT, INNOCENT],
        bec=() if bec is None else (bec_record().model_copy(update={"value": bec}),),
        steps=(
            StepStatus(name="baselines", status="done", elapsed_s=2.0, peak_memory_bytes=1000),
            StepStatus(
                name="re-activation (white) of defended, trigger",
                status="done",
                elapsed_s=5.0,
                peak_memory_bytes=3000,
            ),
        ),
    )
    return Audited(member, variant, record, file=f"records/{name}.json")
