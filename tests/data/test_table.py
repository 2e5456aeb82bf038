from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bdaudit.data import from_arrays, load_sample
from bdaudit.data.table_columns import FIXED
from bdaudit.errors import DataError

PLAIN = "a,b,kind=x,kind=y,label\n0.25,1,1,0,0\n0.5,0,0,1,1\n1,1,0,1,1\n"
DESCRIBED = """\
label = "good"
ignored = ["id"]
[columns.age]
kind = "integer"
range = [20, 60]
step = 10
[columns.income]
range = [0, 1000]
"""
RAW = "id,income,age,good\n7,250,20,yes\n8,1000,60,no\n9,0,30,yes\n"


def written(folder: Path, text: str, columns: str | None = None) -> Path:
    (folder / "rows.csv").write_text(text)
    if columns is not None:
        (folder / "columns.toml").write_text(columns)
    return folder / "rows.csv"


def test_rows_are_images_of_one_line(tmp_path: Path) -> None:
    sample = load_sample(written(tmp_path, PLAIN))
    assert sample.images.tolist()[1] == [[[0.5, 0.0, 0.0, 1.0]]]
    assert sample.labels.tolist() == [0, 1, 1]
    assert sample.columns is not None
    assert sample.columns.steps == (0.0, 1.0, FIXED, FIXED)
    assert sample.columns.groups == ((2, 3),)
    assert any("inferred" in note for note in sample.notes)
    (taken,) = [note for note in sample.notes if "taken for integers" in note]
    assert ": b; where" in taken
    assert 'columns.toml, these as kind = "number"' in taken


def test_a_file_beside_it_says_what_the_columns_are(tmp_path: Path) -> None:
    sample = load_sample(written(tmp_path, RAW, DESCRIBED))
    # In the order of the description, not of the table.
    assert sample.images[:, 0, 0].tolist() == [[0.0, 0.25], [1.0, 1.0], [0.25, 0.0]]
    assert sample.class_names == ("no", "yes")
    assert sample.columns is not None
    assert sample.columns.steps == (0.25, 0.0)
    assert sample.columns.scaled("age", 30) == (0, 0.25)
    assert not any("taken for integers" in note for note in sample.notes)


def test_what_columns_can_hold_is_in_the_digest(tmp_path: Path) -> None:
    path = written(tmp_path, RAW, DESCRIBED)
    before = load_sample(path)
    after = load_sample(written(tmp_path, RAW, DESCRIBED.replace("step = 10", "step = 5")))
    assert torch.equal(before.images, after.images)
    assert before.sha256 != after.sha256


def test_parquet_is_read_alike(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    rows = {"age": [20, 60, 30], "income": [250.0, 1000.0, 0.0], "id": [7, 8, 9]}
    pq.write_table(pa.table({**rows, "good": ["yes", "no", "yes"]}), tmp_path / "rows.parquet")
    from_csv = load_sample(written(tmp_path, RAW, DESCRIBED))
    assert load_sample(tmp_path / "rows.parquet").sha256 == from_csv.sha256


@pytest.mark.parametrize(
    ("text", "columns", "message"),
    [
        (
            RAW.replace("good", "label"),
            None,
            "column 'id' of row 1 holds 7, and without a columns.toml",
        ),
        (RAW.replace("8,1000", "8,1001"), DESCRIBED, "'income' of row 2 holds 1001, and its range"),
        (RAW.replace("20,yes", "25,yes"), DESCRIBED, "'age' of row 1 is 0.125 .* no multiple"),
        (RAW.replace("250", "nan"), DESCRIBED, "finite numbers; column 'income' of row 1"),
        (RAW.replace("250", "2_50"), DESCRIBED, "finite numbers; column 'income' of row 1"),
        (RAW, DESCRIBED.replace('["id"]', "[]"), "column 'id' is not in columns.toml"),
        (RAW.replace("income", "pay"), DESCRIBED, "expected the column 'income'"),
        (RAW, DESCRIBED + "unit = 3\n", "income.unit: Extra inputs are not permitted"),
        (RAW, DESCRIBED.replace("step = 10", "step = 7"), "no whole number of steps of 7"),
        (RAW, DESCRIBED.replace("[0, 1000]", "[1000, 0]"), "low below high"),
        (
            PLAIN.replace("0.5,0,0,1,1", "0.5,0,0,0,1"),
            '[columns."kind=x"]\nkind = "one-hot"\ngroup = "kind"\n'
            '[columns."kind=y"]\nkind = "one-hot"\ngroup = "kind"\n[columns.a]\n[columns.b]\n',
            "row 2: expected one 1 among the one-hot columns kind=x, kind=y",
        ),
        ("pic,label\na.png,0\nb.png,1\n", None, "column 'pic' of row 1 holds 'a.png'"),
    ],
)
def test_what_cannot_be_is_refused(
    tmp_path: Path, text: str, columns: str | None, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        load_sample(written(tmp_path, text, columns))


def test_rows_are_not_brought_to_another_number_of_columns(tmp_path: Path) -> None:
    path = written(tmp_path, PLAIN)
    with pytest.raises(DataError, match="got 4 columns"):
        load_sample(path, image_shape=(1, 1, 5))
    with pytest.raises(DataError, match="4 columns"):
        load_sample(path, image_shape=(3, 32, 32))
    with pytest.raises(DataError, match="rows of a table are not resized"):
        from_arrays(torch.rand(4, 1, 1, 7), [0, 1, 0, 1], image_shape=(1, 1, 8))
