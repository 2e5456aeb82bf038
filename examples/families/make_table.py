"""Make the table of the family `table.toml`: `python make_table.py FOLDER` (needs scikit-learn).

Six classes of rows from `sklearn.datasets.make_classification`: 32 columns of numbers, four of
integers from 0 to 5 and a one-hot group of three. Numbers have 256 levels, since a family keeps
bytes. Writes train.csv, test.csv and columns.toml.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import make_classification

N_ROWS, N_TRAIN = 12_000, 8_000
N_NUMBERS, N_INTEGERS, N_KINDS = 32, 4, 3


def main() -> None:
    """Write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where to write; made if it is not there")
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    rows, labels = make_classification(
        N_ROWS,
        n_features=N_NUMBERS + N_INTEGERS + 1,
        n_informative=20,
        n_redundant=10,
        n_classes=6,
        n_clusters_per_class=2,
        class_sep=2.5,
        flip_y=0.01,
        random_state=0,
    )
    table = columns_of(rows)
    names = list(table)
    values = np.stack(list(table.values()), axis=1)
    for part, chosen in (("train", slice(None, N_TRAIN)), ("test", slice(N_TRAIN, None))):
        lines = [",".join([*names, "label"])]
        lines += [
            ",".join([*(f"{value:g}" for value in row), str(label)])
            for row, label in zip(values[chosen], labels[chosen], strict=True)
        ]
        (folder / f"{part}.csv").write_text("\n".join(lines) + "\n")
    (folder / "columns.toml").write_text("\n".join(described(names)) + "\n")


def columns_of(rows: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """Turn features into columns: numbers from 0 to 255, integers from 0 to 5, kinds."""
    low, high = np.quantile(rows, [0.001, 0.999], axis=0)
    unit = ((rows - low) / (high - low)).clip(0, 1)
    found = {f"x{k}": (255 * unit[:, k]).round() for k in range(N_NUMBERS)}
    for k in range(N_INTEGERS):
        found[f"count{k}"] = (5 * unit[:, N_NUMBERS + k]).round()
    kind = (N_KINDS * unit[:, -1] * 0.999).astype(int)
    for k in range(N_KINDS):
        found[f"kind={k}"] = (kind == k).astype(float)
    return found


def described(names: list[str]) -> list[str]:
    """Describe the columns for `columns.toml`."""
    lines = ['label = "label"']
    for name in names:
        lines.append(f'[columns."{name}"]')
        if name.startswith("x"):
            lines.append("range = [0, 255]")
        elif name.startswith("count"):
            lines += ['kind = "integer"', "range = [0, 5]"]
        else:
            lines += ['kind = "one-hot"', 'group = "kind"']
    return lines


if __name__ == "__main__":
    main()
