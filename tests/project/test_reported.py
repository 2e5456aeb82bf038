"""CSV as BackdoorBench's trainer writes them, by the library that it writes them with."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from bdaudit.project.reported import read_reported

HEAD = (
    "",
    "epoch",
    "train_acc",
    "clean_test_loss_avg_over_batch",
    "test_acc",
    "test_asr",
    "test_ra",
)


def write(path: Path, rows: list[tuple[object, ...]]) -> None:
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows(rows)


def test_the_last_epoch_counts_and_not_the_best(tmp_path: Path) -> None:
    write(
        tmp_path / "ft_df.csv",
        [HEAD, (0, 1, 0.5, 2.0, 0.91, 0.80, 0.15), (1, 2, 0.6, 1.0, 0.90, 0.02, "nan_value")],
    )
    figures, why = read_reported(tmp_path, "ft")
    assert why is None
    assert figures is not None
    assert (figures.clean_acc, figures.asr, figures.true_label_acc) == (0.90, 0.02, 0.15)
    write(
        tmp_path / "ft_df_summary.csv",
        [
            HEAD,
            ("last", 2, 0.6, 1.0, 0.90, 0.02, 0.88),
            ("valid_max", 2, 0.6, 2.0, 0.91, 0.80, 0.88),
            ("exist_nan_value", *["False"] * 6),
        ],
    )
    figures, _ = read_reported(tmp_path, "ft")
    assert figures is not None
    assert figures.file == "ft_df_summary.csv"
    assert (figures.clean_acc, figures.asr, figures.true_label_acc) == (0.90, 0.02, 0.88)


def test_older_names_in_rows_of_their_own_and_per_cent(tmp_path: Path) -> None:
    write(
        tmp_path / "x_df.csv",
        [
            ("", "epoch", "benign acc", "benign loss", "ASR", "backdoor loss"),
            (0, 0, 0.8, 1, "", ""),
            (1, 0, "", "", 0.9, 1),
        ],
    )
    figures, _ = read_reported(tmp_path, "old")
    assert figures is not None
    assert (figures.clean_acc, figures.asr, figures.true_label_acc) == (0.8, 0.9, None)
    write(tmp_path / "x_df.csv", [("Test ACC", "test-asr"), (93.5, 0.4)])
    figures, _ = read_reported(tmp_path, "old")
    assert figures is not None
    assert (figures.clean_acc, figures.asr) == pytest.approx((0.935, 0.004))


def test_of_several_the_one_of_the_saved_model(tmp_path: Path) -> None:
    write(tmp_path / "prune_log.csv", [HEAD, (0, 1, 1, 1, 0.5, 0.5, 0.5)])
    write(tmp_path / "finetune_df.csv", [HEAD, (0, 1, 1, 1, 0.9, 0.1, 0.8)])
    figures, _ = read_reported(tmp_path, "fp")
    assert figures is not None
    assert figures.file == "finetune_df.csv"
    (tmp_path / "finetune_df.csv").rename(tmp_path / "unlearning_df.csv")
    figures, why = read_reported(tmp_path, "fp")
    assert figures is None
    assert "several CSV hold figures (prune_log.csv, unlearning_df.csv)" in str(why)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, None),
        ("", None),
        ("epoch,loss\n1,2\n", None),
        ("test_acc,test_asr\n", None),
        ("test_acc,test_asr\n-3,0.5\n", "expected shares"),
        ("test_acc,test_asr\n900,0.5\n", "expected shares"),
        ("test_acc,test_asr\n\0,0.5\n", "figures"),
        ('test_acc,test_asr\n"0.5"x,0.5\n', "no CSV"),
        ("test_acc,test_asr\nnan_value,\n", None),
    ],
)
def test_without_figures_there_are_none(tmp_path: Path, text: str | None, said: str | None) -> None:
    if text is not None:
        (tmp_path / "ft_df.csv").write_text(text)
    figures, why = read_reported(tmp_path, "ft")
    assert figures is None
    assert (why is None) == (said is None), why
    assert said is None or said in str(why)
