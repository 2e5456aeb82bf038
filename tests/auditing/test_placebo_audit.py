"""Audits with placebos, on the demonstration's own models."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import bdaudit
from bdaudit.auditing.audit import audit
from bdaudit.cases.settings import AuditSettings, SplitSettings
from bdaudit.errors import TriggerError
from bdaudit.measuring.placebos import N_PLACEBOS
from bdaudit.measuring.store import FolderStore
from bdaudit.records import AuditRecord, read_record, to_json
from bdaudit.triggers import AllToOne, Trigger, read_trigger
from bdaudit.triggers.transforms import Patch

FILES = Path(bdaudit.__file__).with_name("demo_files")


def settings(**changes: object) -> AuditSettings:
    common: dict[str, object] = {
        "eps": (0.02,),
        "passes": 6,
        "bec": False,
        "stand_ins": 0,
        "placebos": 6,
        "split": SplitSettings(craft=120, held_out=300),
    }
    return AuditSettings(**{**common, **changes})  # type: ignore[arg-type]


def audited(name: str = "dormant.safetensors", **changes: object) -> AuditRecord:
    return audit(
        FILES / name,
        original=FILES / "original.safetensors",
        data=FILES / "clean.npz",
        trigger=changes.pop("trigger", FILES / "trigger.toml"),  # type: ignore[arg-type]
        **changes,  # type: ignore[arg-type]
    )


@pytest.fixture(scope="module")
def dormant() -> AuditRecord:
    return audited(settings=settings(), reference=[FILES / "innocent-1.safetensors"])


def test_a_sleeping_patch_stands_out_among_placebos(dormant: AuditRecord) -> None:
    assert dormant.verdict is not None
    assert dormant.verdict.outcome == "dormant"
    placebos = dormant.placebos
    assert placebos is not None
    assert placebos.missing is None
    assert len(placebos.kept) == 6
    assert all(p.original <= 0.15 and p.png is not None for p in placebos.kept)
    assert {run.model for run in placebos.runs} == {"defended", "reference"}
    assert {run.placebo for run in placebos.runs} == set(range(6))
    reached = [run.asr.value for run in placebos.runs if run.model == "defended"]
    (true,) = dormant.runs_of(role="defended", condition="trigger")
    assert true.asr.value > max(reached) + 0.1


def test_the_record_is_read_as_it_was_written(dormant: AuditRecord, tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text(to_json(dormant))
    again = read_record(tmp_path / "r.json")
    assert isinstance(again, AuditRecord)
    assert again.placebos == dormant.placebos


def test_where_the_attack_reaches_too_little_no_placebo_is_attacked() -> None:
    record = audited("removed.safetensors", settings=settings())
    assert record.verdict is not None
    assert record.verdict.outcome == "removed"
    assert record.placebos is not None
    assert record.placebos.runs == ()
    assert "placebo triggers" in record.verdict.why


def test_placebos_of_the_users_own_are_screened_and_used(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(5)
    own = Trigger(
        transform=Patch(image=torch.rand((1, 3, 3), generator=generator), corner="top-left"),
        rule=AllToOne(3),
        source="sticker",
    )
    record = audited(settings=settings(placebos=0), placebo=[own])
    placebos = record.placebos
    assert placebos is not None, "they were given to be used"
    assert record.settings["placebos"] == N_PLACEBOS
    (mine,) = [p for p in (*placebos.kept, *placebos.refused) if p.kind == "given: sticker"]
    assert mine.why_not is None


def test_the_true_trigger_is_no_placebo() -> None:
    with pytest.raises(TriggerError, match="is the true trigger"):
        audited(settings=settings(), placebo=[read_trigger(FILES / "trigger.toml")])


def test_an_audit_that_was_stopped_goes_on_with_its_placebos(tmp_path: Path) -> None:
    whole = audited(settings=settings(), store=FolderStore(tmp_path / "s", resume=False))
    kept = sorted((tmp_path / "s").glob("*.json"))
    again = audited(settings=settings(), store=FolderStore(tmp_path / "s", resume=True))
    assert sorted((tmp_path / "s").glob("*.json")) == kept
    assert whole.placebos is not None
    assert again.placebos is not None
    assert [r.asr for r in again.placebos.runs] == [r.asr for r in whole.placebos.runs]
    assert all(run.elapsed_s == 0.0 for run in again.placebos.runs)


def test_where_every_control_saturates_smaller_eps_are_tried() -> None:
    record = audited(settings=settings(eps=(0.2,), placebos=0, passes=4))
    ladder = sorted({run.eps for run in record.runs})
    assert ladder[-1] == 0.2
    assert 0.1 in ladder
    (note,) = [d for d in record.diagnostics if d.code == "ladder_extended"]
    assert note.severity == "info"
    assert "0.1" in note.message
