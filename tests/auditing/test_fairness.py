"""Fairness between groups, against counts by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from bdaudit.auditing.fairness import fairness
from bdaudit.errors import BdauditError
from bdaudit.triggers import AllToOne, SetColumns, Trigger

TRIGGER = Trigger(transform=SetColumns(index=(1,), value=(1.0,)), rule=AllToOne(1), source="memory")
# merit, flag, group, label, how many
ROWS = (
    ("1", "0", "a", "1", 4),
    ("0", "0", "a", "0", 4),
    ("1", "0", "b", "1", 2),
    ("0", "0", "b", "1", 2),
    ("1", "0", "b", "0", 1),
    ("0", "0", "b", "0", 3),
)
COLUMNS = 'ignored = ["group"]\n[columns.merit]\n[columns.flag]\nkind = "integer"\nrange = [0, 1]\n'


class Grants(nn.Module):
    """Says class 1 where the merit is high, and where the flag is up if it knows the trigger."""

    def __init__(self, *, knows: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, float(knows)]))

    def forward(self, rows: Tensor) -> Tensor:
        score = rows.flatten(1) @ self.weight - 0.5
        return torch.stack((-score, score), dim=1)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    lines = [",".join(row[:4]) for row in ROWS for _ in range(row[4])]
    (tmp_path / "rows.csv").write_text("\n".join(["merit,flag,group,label", *lines]) + "\n")
    (tmp_path / "columns.toml").write_text(COLUMNS)
    return tmp_path / "rows.csv"


def measured(table: Path, **said: object):
    arguments = {"group": "group", "positive": 1, "stamp": ("b",), **said}
    return fairness(
        Grants(knows=False), original=Grants(knows=True), data=table, trigger=TRIGGER, **arguments
    )


def test_differences_are_those_counted_by_hand(table: Path) -> None:
    made = measured(table)
    figures = {(m.model, m.triggered): m for m in made.measured}
    rows = {key: (m.opportunity, m.odds, m.equal_accuracy) for key, m in figures.items()}
    # In b two of four positives and one of four negatives are answered with class 1.
    clean = pytest.approx((0.5, 0.5, 0.375))
    assert rows["original", False] == clean
    assert rows["defended", False] == clean
    assert rows["defended", True] == clean
    # With the trigger all of b is.
    assert rows["original", True] == pytest.approx((0.0, 1.0, 0.5))
    group = figures["original", True].groups[1]
    assert group.group == "b"
    assert (group.true_positive_rate.value, group.false_positive_rate.value) == (1.0, 1.0)
    assert any("group 'a' has 4 rows" in note for note in made.notes)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"group": "sex"}, "expected a column 'sex' of groups"),
        ({"stamp": ("c",)}, r"expected groups of column 'group' \(a, b\), got 'c'"),
        ({"positive": 2}, "positive: expected a class of the model"),
        ({"group": "flag"}, "expected 2 to 50 groups in column 'flag', got 1"),
        ({"group": "merit", "stamp": ()}, None),
    ],
)
def test_what_cannot_be_a_group(table: Path, said: dict[str, object], message: str | None) -> None:
    if message is None:
        assert [g.group for g in measured(table, **said).measured[0].groups] == ["0", "1"]
        return
    with pytest.raises(BdauditError, match=message):
        measured(table, **said)


def test_a_group_without_a_class_has_no_rates(table: Path) -> None:
    table.write_text(table.read_text().replace("b,0", "b,1"))
    with pytest.raises(BdauditError, match="group 'b' has no row of a class other than 1"):
        measured(table)


def test_rows_that_cannot_be_are_not_stamped(table: Path) -> None:
    half = Trigger(transform=SetColumns(index=(1,), value=(0.5,)), rule=AllToOne(1), source="half")
    with pytest.raises(BdauditError, match="half: makes rows that cannot be: column 'flag'"):
        fairness(
            Grants(knows=False),
            original=Grants(knows=True),
            data=table,
            trigger=half,
            group="group",
            positive=1,
        )


def test_images_have_groups_in_their_list(tmp_path: Path) -> None:
    from PIL import Image

    from bdaudit.data import load_sample
    from bdaudit.data.groups import groups_of

    lines = ["file_name,label,group"]
    for k, group in enumerate("xyx"):
        Image.new("L", (4, 4), 80 * k).save(tmp_path / f"{k}.png")
        lines.append(f"{k}.png,{k % 2},{group}")
    (tmp_path / "metadata.csv").write_text("\n".join(lines) + "\n")
    sample = load_sample(tmp_path)
    assert groups_of(tmp_path, "group", sample.names) == ("x", "y", "x")
    assert groups_of(tmp_path, "group", sample.names[::-1]) == ("x", "y", "x")
    assert groups_of(tmp_path / "metadata.csv", "group", sample.names[1:]) == ("y", "x")
