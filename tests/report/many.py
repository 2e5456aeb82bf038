"""Records of many models, made of chosen figures, for tests of tables and pages."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from pathlib import Path

from bdaudit.records import AuditRecord, Environment, FileDigest, to_json
from bdaudit.records.comparison import ComparisonRecord
from bdaudit.records.defenses import DefenseRecord, TriedDefense
from bdaudit.records.difference import DifferenceRecord
from bdaudit.records.sweeps import SweepRecord, SweptAudit
from bdaudit.report.comparison import compare
from bdaudit.verdict import Policy, diff, judge
from tests.records import audit_record, barrier_record, bec_record, rate

LADDER = (0.005, 0.01, 0.02, 0.03, 0.05)
QUIET = dict.fromkeys(LADDER, 0.037)
LOUD = {0.005: 0.041, 0.01: 0.213, 0.02: 0.487, 0.03: 0.731, 0.05: 0.962}
LONG = "resnet18-badnets-fine-pruned-without-the-last-block"


def judged(record: AuditRecord, policy: Policy | None = None) -> AuditRecord:
    """Judge a record, so that it has a verdict."""
    return record.model_copy(update={"verdict": judge(record, policy or Policy())})


def whole_record(curve: dict[float, float] | None = None, **changes: object) -> AuditRecord:
    """A judged audit over five eps, against three innocent models, with BEC on two of them."""
    second = bec_record().model_copy(update={"reference": "reference 2", "value": 0.57})
    made = audit_record(
        **{
            "alone": 0.064,
            "defended": LOUD if curve is None else curve,
            "innocents": [QUIET, QUIET, QUIET],
            "bec": (bec_record().model_copy(update={"value": 0.55}), second),
            "bec_missing": None,
            "barrier": barrier_record(),
        }
        | changes
    )
    return judged(made)


def comparison_record() -> ComparisonRecord:
    """A dormant model of a long name beside a removed one; BEC 0.55 to 0.57."""
    records = []
    for name, curve, weights in ((LONG, LOUD, "a"), ("unlearned", QUIET, "b")):
        made = whole_record(curve)
        defended = made.models[0].model_copy(
            update={"path": f"{name}.safetensors", "weights_sha256": weights * 64}
        )
        made = made.model_copy(update={"models": (defended, *made.models[1:])})
        records.append((f"{name}.json", made))
    return compare(records)


def next_release(record: AuditRecord, name: str, **changes: object) -> AuditRecord:
    """The same audit of a candidate in another file, with other weights."""
    digest = hashlib.sha256(name.encode()).hexdigest()
    candidate = record.models[0].model_copy(
        update={"path": f"{name}.safetensors", "weights_sha256": digest}
    )
    kept = [file for file in record.inputs if file.role != "defended"]
    file = FileDigest(role="defended", path=f"{name}.safetensors", sha256=digest, size_bytes=9)
    return record.model_copy(
        update={"models": (candidate, *record.models[1:]), "inputs": (file, *kept)} | changes
    )


def written(folder: Path, name: str, record: AuditRecord) -> Path:
    """Write a record as an audit does."""
    path = folder / f"{name}.json"
    path.write_text(to_json(record), encoding="utf-8")
    return path


def difference_record(folder: Path) -> DifferenceRecord:
    """A removed release, and a dormant one of a long name after it, by another seed and version."""
    old = next_release(whole_record(QUIET), "unlearned")
    environment = old.environment.model_copy(update={"bdaudit": "1.2.3"})
    new = next_release(whole_record(LOUD), LONG, environment=environment)
    return diff(written(folder, "old", old), written(folder, "new", new))


def sweep_record() -> SweepRecord:
    """One audit of each outcome, and one that failed."""
    figures = {"clean_acc": 0.912, "reactivated_asr": 0.847, "mode": "white", "eps": 0.02}
    made = [
        SweptAudit(
            key=f"{LONG}/{outcome}",
            status="done",
            record=f"audits/{outcome}.json",
            outcome=outcome,
            release="pass" if outcome == "removed" else "fail",
            why=f"Made up to be {outcome}.",
            asr=0.031,
            lift=0.615,
            bec=0.563,
            elapsed_s=3725.0,
            **figures,
        )
        for outcome in ("removed", "dormant", "active", "inconclusive")
    ]
    made.append(SweptAudit(key="broken", status="failed", why="no such file", failed_of="input"))
    return SweepRecord(
        created=datetime(2026, 1, 1, tzinfo=UTC),
        bdaudit="0",
        audits=tuple(made),
        elapsed_s=7450.0,
        notes=("a note",),
    )


def defense_record() -> DefenseRecord:
    """A defence that removed the backdoor, one that put it to sleep, and one that failed."""
    tried = (
        TriedDefense(
            method="anp",
            title="Adversarial neuron pruning",
            status="audited",
            settings={"threshold": 0.2},
            model="anp/model.safetensors",
            model_sha256="a" * 64,
            record="anp/audit.json",
            outcome="removed",
            release="pass",
            why="With the trigger it does no more.",
            clean_acc=rate(0.913),
            asr=rate(0.012),
            defense_s=1234.0,
            audit_s=5678.0,
        ),
        TriedDefense(
            method="finetune",
            title="Fine-tuning",
            status="audited",
            record="finetune/audit.json",
            outcome="dormant",
            release="fail",
            why="It is asleep.",
            warnings=("it remembers",),
            clean_acc=rate(0.927),
            asr=rate(0.064),
            kept="audit",
            changes=("seed 0 to 1",),
        ),
        TriedDefense(method="nad", title="Distillation", status="failed", why="it diverged"),
    )
    return DefenseRecord(
        created=datetime(2026, 1, 1, tzinfo=UTC),
        command=("bdaudit", "defend", "original.safetensors"),
        seed=0,
        outcome="pass",
        why="anp removes the backdoor.",
        tried=tried,
        best="anp/model.safetensors",
        trigger_recovered=False,
        original_clean_acc=rate(0.931),
        n_defender=500,
        n_auditor=1500,
        environment=Environment(
            bdaudit="0", python="3", platform="test", device="cpu", packages={}
        ),
        elapsed_s=6912.0,
    )
