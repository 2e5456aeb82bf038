"""Audits of tables: what is refused, and what forbids "removed", for want of columns that move."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import bdaudit
from bdaudit.cases.files import FileDigests, request_digests
from bdaudit.cases.request import AuditRequest
from bdaudit.cases.sources import Sources
from bdaudit.errors import ConfigError, TriggerError
from bdaudit.foundation.progress import Progress
from bdaudit.records import AuditRecord, Diagnostic
from bdaudit.triggers import AllToOne, SetColumns, Trigger

COLUMNS = 4


class Sums(nn.Module):
    """Says class 1 of rows whose first column is high, and of those that the trigger is in."""

    def __init__(self, trigger: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([4.0, 0.0, trigger, 0.0]))

    def forward(self, rows: Tensor) -> Tensor:
        score = rows.flatten(1) @ self.weight - 2.0
        return torch.stack((-score, score), dim=1)


def table(folder: Path, kinds: str) -> Path:
    """Write 60 rows of four columns: n a number, i an integer of steps of .5, b one of 0 and 1."""
    steps = {"n": "", "i": 'kind = "integer"\nrange = [0, 2]\n', "b": 'kind = "integer"\n'}
    draw = torch.Generator().manual_seed(0)
    rows = torch.randint(2, (60, COLUMNS), generator=draw)
    rows[:, 2] = 0
    lines = [",".join(map(str, [*row, row[0]])) for row in rows.tolist()]
    (folder / "rows.csv").write_text("\n".join(["a,b,c,d,label", *lines]) + "\n")
    described = [f"[columns.{name}]\n{steps[k]}" for name, k in zip("abcd", kinds, strict=True)]
    (folder / "columns.toml").write_text("".join(described))
    return folder / "rows.csv"


def trigger(value: float = 1.0) -> Trigger:
    setting = SetColumns(index=(2,), value=(value,))
    return Trigger(transform=setting, rule=AllToOne(1), source="memory")


def audited(
    data: Path,
    *,
    set_to: float = 1.0,
    listener: Callable[[Progress], None] | None = None,
    **settings: object,
) -> AuditRecord:
    chosen: dict[str, object] = {
        "eps": (0.2,),
        "passes": 2,
        "controls": ("no_trigger",),
        "stand_ins": 0,
        "bec": False,
        "relearn": None,
        "pictures": False,
        "compute": bdaudit.ComputeSettings(device="cpu"),
        "split": bdaudit.SplitSettings(craft=25),
    }
    return bdaudit.audit(
        Sums(),
        original=Sums(trigger=9.0),
        data=data,
        trigger=trigger(set_to),
        settings=bdaudit.AuditSettings(**(chosen | settings)),  # type: ignore[arg-type]
        listener=listener,
    )


def doubt(record: AuditRecord) -> Diagnostic:
    (found,) = [d for d in record.diagnostics if d.code == "columns_that_move"]
    return found


@pytest.mark.parametrize(
    ("kinds", "said"),
    [
        ("nbbb", "fewer than half of all"),
        ("nnbn", "none of those that the trigger changes (c)"),
    ],
)
def test_too_few_columns_that_move_forbid_removed(tmp_path: Path, kinds: str, said: str) -> None:
    record = audited(table(tmp_path, kinds))
    found = doubt(record)
    assert found.severity == "error"
    assert said in found.message
    assert record.verdict is not None
    assert record.verdict.outcome == "inconclusive"
    assert any(found.message in reason for reason in map(str, record.verdict.reasons))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"norm": "l2", "eps": (2.0,)}, "use --norm linf"),
        ({"eps": (0.1, 0.5)}, "at 0.1 no column of the table can change"),
    ],
)
def test_what_leaves_no_room_is_refused_before_anything_is_measured(
    tmp_path: Path, settings: dict[str, object], message: str
) -> None:
    heard: list[Progress] = []
    with pytest.raises(ConfigError, match=message):
        audited(table(tmp_path, "ibbb"), listener=heard.append, **settings)
    assert {event.step for event in heard} == {"opening models and data"}


def test_smaller_eps_than_the_smallest_step_are_not_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = import_module("bdaudit.auditing.audit")
    monkeypatch.setattr(module._Audit, "_everything_saturates", lambda self: True)
    record = audited(table(tmp_path, "iiib"), eps=(1.0,))
    assert {run.eps for run in record.runs} == {1.0, 0.5}
    found = doubt(record)
    assert found.severity == "info"
    assert found.message == "of 4 columns of the table an attack can change 4 at eps 1"


def test_a_trigger_is_held_to_the_columns_on_craft_rows_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    halves: list[int] = []

    def check(sample: object, triggered: Tensor, trigger: object) -> None:
        halves.append(len(triggered))

    with pytest.raises(TriggerError, match="makes rows that cannot be: column 'c'"):
        audited(table(tmp_path, "nnin"), set_to=0.3)
    monkeypatch.setattr("bdaudit.cases.opening.check_possible", check)
    audited(table(tmp_path, "nnnn"))
    assert len(halves) == 2


def test_what_describes_the_columns_is_part_of_a_record_s_stamp(tmp_path: Path) -> None:
    data = table(tmp_path, "nnnn")
    (tmp_path / "model.pt").write_text("weights")
    sources = Sources.of(
        defended=tmp_path / "model.pt",
        original=tmp_path / "model.pt",
        data=data,
        trigger=tmp_path / "t.toml",
    )
    (tmp_path / "t.toml").write_text('kind = "columns"\n')
    request = AuditRequest(key="one", sources=sources, settings=bdaudit.AuditSettings())
    before = request_digests(request, FileDigests())
    table(tmp_path, "nnnb")
    changed = request_digests(request, FileDigests())
    (tmp_path / "columns.toml").unlink()
    without = request_digests(request, FileDigests())
    assert before is not None
    assert changed is not None
    assert without is not None
    assert before["columns"] != changed["columns"]
    assert without.items() < before.items()
