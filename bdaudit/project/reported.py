"""Figures that BackdoorBench wrote down itself, beside the models of a record folder.

Its trainer appends a row an epoch to `<name>_df.csv` and ends with `<name>_df_summary.csv`, whose
row `last` holds the last value of every column: `test_acc` (clean accuracy), `test_asr` and
`test_ra` (share of triggered images given their true label), as fractions. Older versions called
them `benign acc` and `ASR`, and wrote the two in rows of their own. Source: BackdoorBench's
`utils/trainer_cls.py`.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping
from pathlib import Path

from bdaudit.errors import ProjectError, reads
from bdaudit.foundation.opening import LIST_BYTES
from bdaudit.foundation.texts import read_text
from bdaudit.records.sweeps import ReportedFigures

__all__ = ["read_reported"]

_FIGURES: Mapping[str, frozenset[str]] = {
    "clean_acc": frozenset(
        {"test_acc", "clean_acc", "benign_acc", "clean_test_acc", "test_c_acc", "c_acc", "acc"}
    ),
    "asr": frozenset({"test_asr", "asr", "attack_success_rate"}),
    "true_label_acc": frozenset({"test_ra", "ra", "robust_acc", "robust_accuracy"}),
}
"""What a column is called, without case, with every space and hyphen an underscore."""
_ENDINGS = ("_df_summary.csv", "_df.csv", "_summary.csv", ".csv")
_AFTERWARDS = ("finetune",)  # what fine-pruning does last
_LAST = "last"
_NO_EPOCHS = frozenset({"valid_max", "exist_nan_value"})


@reads(ProjectError)
def read_reported(folder: Path, name: str) -> tuple[ReportedFigures | None, str | None]:
    """Read what the CSV in a folder say of the model in it.

    Args:
        folder: Of an attack or of a defence; folders in it are not looked into.
        name: What the CSV of the model would be called: the defence's name, or "attack".

    Returns:
        The figures, `None` where there are none or it cannot be told whose they are, and why not in
        words, `None` where there is no CSV with such figures.
    """
    found: dict[str, ReportedFigures] = {}
    unread: list[str] = []
    for ending in _ENDINGS:
        for file in sorted(folder.glob(f"*{ending}")):
            stem = file.name.removesuffix(ending).casefold()
            if stem.endswith(("_df", "_df_summary", "_summary")) or stem in found:
                continue
            try:
                figures = _figures_in(file)
            except ProjectError as error:
                unread.append(str(error))
                continue
            if figures is not None:
                found[stem] = figures
    for stem in (name.casefold(), *_AFTERWARDS):
        if stem in found:
            return found[stem], None
    if len(found) == 1:
        return next(iter(found.values())), None
    if found:
        files = ", ".join(sorted(figures.file for figures in found.values()))
        return None, f"{folder}: several CSV hold figures ({files}), none called {name}_df.csv"
    return None, unread[0] if unread else None


def _figures_in(file: Path) -> ReportedFigures | None:
    """Return the last figures of a file, `None` where it has no such column."""
    text = read_text(file, what="figures", error=ProjectError, limit=LIST_BYTES, within=file.parent)
    try:
        rows = list(csv.reader(io.StringIO(text), strict=True))
    except csv.Error as error:
        raise ProjectError(f"{file}: is no CSV: {error}") from error
    if not rows:
        return None
    places: dict[str, int] = {}
    for place, column in enumerate(rows[0]):
        called = column.strip().casefold().replace(" ", "_").replace("-", "_")
        for figure, names in _FIGURES.items():
            if called in names:
                places.setdefault(figure, place)
    if "asr" not in places and "clean_acc" not in places:
        return None
    body = [row for row in rows[1:] if row and row[0] not in _NO_EPOCHS]
    body = [row for row in body if row[0] == _LAST] or body
    # A summary may stand alone, an epoch may have left a figure out.
    columns = {figure: _numbers(body, place) for figure, place in places.items()}
    known = {figure: numbers[-1] for figure, numbers in columns.items() if numbers}
    if not known:
        return None
    # Which of the two a file is in shows in any of its epochs.
    if max(value for place in places.values() for value in _numbers(rows[1:], place)) > 1:
        known = {figure: value / 100 for figure, value in known.items()}
    if not all(0 <= value <= 1 for value in known.values()):
        raise ProjectError(f"{file}: expected shares, or per cent, got {known}")
    return ReportedFigures(file=file.name, **known)


def _numbers(rows: list[list[str]], place: int) -> list[float]:
    numbers = []
    for row in rows:
        try:
            number = float(row[place]) if place < len(row) else math.nan
        except ValueError:
            continue  # "nan_value", or a summary's row of True and False
        if math.isfinite(number):
            numbers.append(number)
    return numbers
