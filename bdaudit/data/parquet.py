"""Parquet files with a column of images, as Hugging Face's `datasets` writes them."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bdaudit.data.catalogue import Catalogue
from bdaudit.data.columns import (
    ANY_COLUMNS,
    LABEL_COLUMNS,
    Columns,
    choose_column,
    number_labels,
)
from bdaudit.data.folder import GIVEN_CLASSES
from bdaudit.data.images import ImageShape, decode_stream, gather_images
from bdaudit.data.splits import choose_split_files
from bdaudit.data.table import is_table, table_catalogue
from bdaudit.errors import DataError
from bdaudit.foundation.opening import PICTURE_BYTES, SAMPLE_BYTES, open_file

__all__ = ["columns_of_parquet", "find_parquet_folder", "parquet_catalogue"]

_IMAGES = ("image", "img", "images", "jpg", "png", "webp")
_MOST_ROWS = 10_000_000
_METADATA_BYTES = 64 << 20
_ROWS_AT_ONCE = 16


def find_parquet_folder(folder: Path) -> tuple[Path, ...]:
    """Return the parquet files of a folder, or of `data/` in it, that has no other folders."""
    for place in (folder, folder / "data"):
        inside = list(place.iterdir()) if place.is_dir() else []
        found = sorted(path for path in inside if path.suffix.lower() == ".parquet")
        folders = [path.name for path in inside if path.is_dir() and path.name[0] != "."]
        if found and not folders:
            return tuple(found)
    return ()


def parquet_catalogue(
    files: Sequence[Path],
    *,
    source: Path,
    split: str,
    class_names: Sequence[str] | None = None,
    classes_from: str = GIVEN_CLASSES,
    asked: Columns = ANY_COLUMNS,
) -> Catalogue:
    """Describe images in parquet files.

    The column of images holds encoded bytes, bare or with a path beside them. Names of classes
    come from the features that `datasets` writes into a file. Of files whose names begin with
    different splits the held-out ones are taken.

    Args:
        files: The files.
        source: The file or folder that was named.
        split: "train" or "test".
        class_names: Names in order of index.
        classes_from: Who gave them.
        asked: Which columns are meant.

    Raises:
        DataError: pyarrow is missing, a file is damaged or has no such columns, or its images lie
            elsewhere.
    """
    chosen, said = choose_split_files(files, split, str(source))
    notes = list(said)
    labels: list[Any] = []
    rows: list[tuple[Path, str, int]] = []
    own: list[str] | None = None
    for path in chosen:
        with _opened(path) as file:
            if not 0 <= file.metadata.num_rows <= _MOST_ROWS:
                raise DataError(f"{path}: expected at most {_MOST_ROWS:,} rows")
            columns = list(file.schema_arrow.names)
            if is_table(path, columns, _IMAGES, asked) and _holds_numbers(file):
                if len(chosen) > 1:
                    raise DataError(f"{source}: expected one table, got {len(chosen)} files")
                return table_catalogue(
                    path,
                    {name: file.read(columns=[name]).column(0).to_pylist() for name in columns},
                    class_names=class_names,
                    classes_from=classes_from,
                    asked=asked,
                    known_paths=_IMAGES,
                )
            image = choose_column(columns, _IMAGES, "images", str(path), notes, wanted=asked.images)
            rest = [column for column in columns if column != image]
            label = choose_column(
                rest, LABEL_COLUMNS, "labels", str(path), notes, wanted=asked.labels
            )
            _demand_types(path, file, image)
            names = _class_names(file, label)
            if own is not None and names != own:
                raise DataError(f"{path}: has other class names than the files before it")
            own = names
            values = file.read(columns=[label]).column(0).to_pylist()
            labels += values
            rows += [(path, image, row) for row in range(len(values))]
    notes = list(dict.fromkeys(notes))
    found = number_labels(
        labels,
        where=str(source),
        class_names=class_names,
        classes_from=classes_from,
        own_names=own,
        own_by="the features in the file",
    )

    def read(indices: Tensor, image_shape: ImageShape | None) -> tuple[Tensor, tuple[str, ...]]:
        in_order = indices.sort()
        wanted = [rows[int(index)] for index in in_order.values]
        encoded = _encoded_images(wanted)
        decoders = [
            (f"{path.name}, row {row}", partial(_decode_next, encoded, f"{path}, row {row}"))
            for path, _, row in wanted
        ]
        images, said = gather_images(decoders, image_shape)
        return images[in_order.indices.argsort()], said

    return Catalogue(
        labels=torch.tensor(found.indices, dtype=torch.int64),
        names=tuple(f"{path.stem}/{row}" for path, _, row in rows),
        class_names=found.class_names,
        source=str(source),
        read=read,
        notes=(*notes, *found.notes),
        classes_from=found.classes_from,
        has_columns=True,
    )


def columns_of_parquet(path: Path, names: Sequence[str]) -> dict[str, list[Any]]:
    """Read columns of a parquet file.

    Raises:
        DataError: pyarrow is missing, the file is damaged, or has no such column.
    """
    with _opened(path) as file:
        missing = [name for name in names if name not in file.schema_arrow.names]
        if missing:
            raise DataError(f"{path}: expected a column {missing[0]!r}")
        return {name: file.read(columns=[name]).column(0).to_pylist() for name in names}


def _holds_numbers(file: Any) -> bool:
    """Whether no column is of bytes or nested, as a column of images is."""
    import pyarrow as pa

    nested = (pa.types.is_nested, pa.types.is_binary, pa.types.is_large_binary)
    return not any(check(field.type) for field in file.schema_arrow for check in nested)


def _decode_next(encoded: Iterator[Any], where: str) -> tuple[Tensor, tuple[str, ...]]:
    content = next(encoded)
    if not isinstance(content, bytes):
        raise DataError(f"{where}: holds no image but a path; export the images into the file")
    if len(content) > PICTURE_BYTES:
        raise DataError(f"{where}: holds {len(content):,} bytes, more than a picture has")
    return decode_stream(io.BytesIO(content), where)


def _encoded_images(wanted: Sequence[tuple[Path, str, int]]) -> Iterator[Any]:
    """Yield the encoded images of rows, which are in order, few of them held at a time."""
    by_file: dict[tuple[Path, str], list[int]] = {}
    for path, column, number in wanted:
        by_file.setdefault((path, column), []).append(number)
    for (path, column), rows in by_file.items():
        pending = iter(rows)
        row: int | None = next(pending, None)
        first = 0
        with _opened(path) as file:
            batches = file.iter_batches(
                batch_size=_ROWS_AT_ONCE, columns=[column], use_threads=False
            )
            for batch in batches:
                values = batch.column(0)
                while row is not None and row < first + len(values):
                    value = values[row - first].as_py()
                    yield value.get("bytes") if isinstance(value, dict) else value
                    row = next(pending, None)
                first += len(values)
                if row is None:
                    break


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        import pyarrow.parquet as pq
    except ImportError as error:
        raise DataError(
            f"{path}: parquet files need pyarrow, which is not installed; pip install "
            "'bdaudit[parquet]'"
        ) from error
    with open_file(path, limit=SAMPLE_BYTES, what="a parquet file", error=DataError) as stream:
        try:
            file = pq.ParquetFile(
                stream,
                thrift_string_size_limit=_METADATA_BYTES,
                thrift_container_size_limit=_MOST_ROWS,
            )
            yield file
        except DataError:
            raise
        # What pyarrow raises on a damaged file is of many kinds.
        except Exception as error:
            raise DataError(
                f"{path}: expected a parquet file, got a damaged or different one "
                f"({type(error).__name__}: {str(error)[:120]})"
            ) from error


def _demand_types(path: Path, file: Any, image: str) -> None:
    import pyarrow as pa

    kind = file.schema_arrow.field(image).type
    plain = (pa.types.is_binary, pa.types.is_large_binary)
    holds_bytes = pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0
    if not holds_bytes and not any(check(kind) for check in plain):
        raise DataError(
            f"{path}: expected encoded images in column {image!r}, got {str(kind)[:80]}"
        )


def _class_names(file: Any, label: str) -> list[str] | None:
    """Return the class names among the features that `datasets` writes into a file."""
    metadata = file.schema_arrow.metadata or {}
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        names = features[label]["names"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return None
    return names
