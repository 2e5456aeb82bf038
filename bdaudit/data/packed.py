"""Images inside archives: a zip of class folders, and the tar shards of WebDataset.

Nothing is unpacked to disk: an entry is read into memory, up to the size of one picture, when its
image is wanted.
"""

from __future__ import annotations

import io
import json
import stat
import tarfile
import zipfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any

import torch
from torch import Tensor

from bdaudit.data.catalogue import Catalogue
from bdaudit.data.classes import look_up_folders, number_folders
from bdaudit.data.columns import LABEL_COLUMNS, choose_column, number_labels
from bdaudit.data.folder import GIVEN_CLASSES, are_numbers_of
from bdaudit.data.images import EXTENSIONS, ImageShape, decode_stream, gather_images
from bdaudit.data.splits import choose_split, choose_split_files, split_of
from bdaudit.errors import DataError
from bdaudit.foundation.opening import PICTURE_BYTES, SAMPLE_BYTES, open_file

__all__ = ["find_tar_folder", "tar_catalogue", "zip_catalogue"]

_MOST_ENTRIES = 2_000_000
_LABEL_BYTES = 1 << 16
_ENCRYPTED = 0x1


def zip_catalogue(
    path: Path,
    *,
    split: str,
    class_names: Sequence[str] | None = None,
    classes_from: str = GIVEN_CLASSES,
) -> Catalogue:
    """Describe a zip archive of class folders of images.

    Folders that all entries share are left out, and of folders for splits the held-out one is
    taken. Classes are numbered as those of class folders on disk.

    Args:
        path: The archive.
        split: "train" or "test".
        class_names: Names in order of index.
        classes_from: Who gave them.

    Raises:
        DataError: It is damaged or encrypted, an entry is a link, leads out of the archive, is
            there twice or unpacks to more than a picture.
    """
    notes: list[str] = []
    entries = _zip_entries(path, notes)
    by_parts = {PurePosixPath(name).parts: info for name, info in entries.items()}
    by_parts = _below_shared(by_parts)
    by_parts, chosen = choose_split(by_parts, split, str(path))
    notes += chosen
    by_parts = _below_shared(by_parts, keep=2)
    loose = [parts for parts in by_parts if len(parts) < 2]
    if loose or not by_parts:
        raise DataError(
            f"{path}: expected a zip archive of class folders of images, got "
            f"{len(loose)} images beside the folders and {len(by_parts) - len(loose)} in them"
        )
    ordered = sorted(by_parts)
    folders = sorted({parts[0] for parts in ordered})
    if class_names is not None and not are_numbers_of(folders, class_names, str(path)):
        indices = look_up_folders(folders, class_names, str(path))
    else:
        indices, own, more = number_folders(folders, str(path))
        notes += more
        if class_names is None:
            class_names, classes_from = own, "its class folders"
    infos = [by_parts[parts] for parts in ordered]

    def read(chosen: Tensor, image_shape: ImageShape | None) -> tuple[Tensor, tuple[str, ...]]:
        with (
            open_file(path, limit=SAMPLE_BYTES, what="a zip archive", error=DataError) as stream,
            zipfile.ZipFile(stream) as archive,
        ):
            wanted = [infos[int(index)] for index in chosen]
            decoders = [(i.filename, partial(_decode_entry, path, archive, i)) for i in wanted]
            return gather_images(decoders, image_shape)

    return Catalogue(
        labels=torch.tensor([indices[parts[0]] for parts in ordered], dtype=torch.int64),
        names=tuple(PurePosixPath(*parts).with_suffix("").as_posix() for parts in ordered),
        class_names=None if class_names is None else tuple(class_names),
        source=str(path),
        read=read,
        notes=tuple(notes),
        classes_from=classes_from,
    )


def _zip_entries(path: Path, notes: list[str]) -> dict[str, zipfile.ZipInfo]:
    entries: dict[str, zipfile.ZipInfo] = {}
    skipped = 0
    with open_file(path, limit=SAMPLE_BYTES, what="a zip archive", error=DataError) as stream:
        try:
            with zipfile.ZipFile(stream) as archive:
                infos = archive.infolist()
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
            raise DataError(f"{path}: expected a zip archive, got {error}") from error
    if len(infos) > _MOST_ENTRIES:
        raise DataError(f"{path}: expected at most {_MOST_ENTRIES:,} entries, got {len(infos):,}")
    for info in infos:
        name = info.filename
        if info.is_dir():
            continue
        where = f"{path}: entry {name[:120]!r}"
        _demand_inside(name, where)
        if stat.S_ISLNK(info.external_attr >> 16):
            raise DataError(f"{where} is a link; pack the file itself")
        if any(part.startswith((".", "__MACOSX")) for part in PurePosixPath(name).parts):
            continue
        if PurePosixPath(name).suffix.lower() not in EXTENSIONS:
            skipped += 1
            continue
        if info.flag_bits & _ENCRYPTED:
            raise DataError(f"{where} is encrypted; unpack the archive")
        if info.file_size > PICTURE_BYTES:
            raise DataError(f"{where} unpacks to {info.file_size:,} bytes, more than a picture has")
        if name in entries:
            raise DataError(f"{where} is there twice")
        entries[name] = info
    if skipped:
        notes.append(f"skipped {skipped} files that are not images by their names")
    return entries


def _decode_entry(
    path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo
) -> tuple[Tensor, tuple[str, ...]]:
    where = f"{path}/{info.filename[:120]}"
    try:
        with archive.open(info) as stream:
            content = stream.read(info.file_size + 1)
    except (zipfile.BadZipFile, OSError, EOFError, ValueError, NotImplementedError) as error:
        raise DataError(f"{where}: cannot be unpacked: {error}") from error
    # Damage that only zlib and its like see.
    except Exception as error:
        raise DataError(f"{where}: cannot be unpacked: {type(error).__name__}") from error
    return decode_stream(io.BytesIO(content), where)


def _demand_inside(name: str, where: str) -> None:
    parts = PurePosixPath(name).parts
    if not parts or ".." in parts or name.startswith("/") or "\\" in name or "\0" in name:
        raise DataError(f"{where} leads out of the archive, or is no name; do not trust this file")


def _below_shared(
    entries: dict[tuple[str, ...], zipfile.ZipInfo], keep: int = 3
) -> dict[tuple[str, ...], zipfile.ZipInfo]:
    """Leave out folders that all entries share, as long as enough are left to be classes."""
    while (
        entries
        and len({parts[0] for parts in entries}) == 1
        and split_of(next(iter(entries))[0]) is None
        and min(len(parts) for parts in entries) >= keep
    ):
        entries = {parts[1:]: info for parts, info in entries.items()}
    return entries


# --- WebDataset -----------------------------------------------------------------------------------


def find_tar_folder(folder: Path) -> tuple[Path, ...]:
    """Return the tar shards of a folder that holds nothing else to read; none of any other."""
    if any(path.is_dir() and not path.name.startswith(".") for path in folder.iterdir()):
        return ()
    return tuple(sorted(path for path in folder.iterdir() if path.suffix.lower() == ".tar"))


def tar_catalogue(
    shards: Sequence[Path],
    *,
    source: Path,
    split: str,
    class_names: Sequence[str] | None = None,
    classes_from: str = GIVEN_CLASSES,
) -> Catalogue:
    """Describe images in tar shards as WebDataset writes them.

    Entries of one name but for the extension belong together: an image, and its label as `.cls`
    (a number or a name) or under `label` or `cls` in a `.json`. Of shards whose names begin with
    different splits the held-out ones are taken.

    Args:
        shards: The files.
        source: The file or folder that was named.
        split: "train" or "test".
        class_names: Names in order of index.
        classes_from: Who gave them.

    Raises:
        DataError: A shard is damaged or compressed, an entry is larger than a picture or is a
            sparse file, or an image has no label.
    """
    chosen, said = choose_split_files(shards, split, str(source))
    notes = list(said)
    where: list[tuple[Path, str, int, int]] = []
    labels: list[Any] = []
    for path in chosen:
        for key, (name, offset, size), label in _tar_samples(path):
            if label is None:
                raise DataError(f"{path}: expected a label for {key[:120]!r}, a .cls or a .json")
            where.append((path, name, offset, size))
            labels.append(label)
    found = number_labels(
        labels, where=str(source), class_names=class_names, classes_from=classes_from
    )

    def read(indices: Tensor, image_shape: ImageShape | None) -> tuple[Tensor, tuple[str, ...]]:
        wanted = [where[int(index)] for index in indices]
        decoders = [(name, partial(_decode_slice, p, name, at, n)) for p, name, at, n in wanted]
        return gather_images(decoders, image_shape)

    return Catalogue(
        labels=torch.tensor(found.indices, dtype=torch.int64),
        names=tuple(
            f"{path.stem}/{PurePosixPath(name).with_suffix('')}" for path, name, *_ in where
        ),
        class_names=found.class_names,
        source=str(source),
        read=read,
        notes=(*notes, *found.notes),
        classes_from=found.classes_from,
    )


class _Bounded(io.RawIOBase):
    """A stream of which no read takes more than a picture: tarfile reads what headers claim."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= PICTURE_BYTES:
            raise DataError(f"an entry or header of {size:,} bytes, more than a picture has")
        return self._stream.read(size)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        return self._stream.tell()


def _tar_samples(path: Path) -> list[tuple[str, tuple[str, int, int], Any]]:
    """Return key, image (name, offset and size) and label of each sample of a shard."""
    images: dict[str, tuple[str, int, int]] = {}
    labels: dict[str, Any] = {}
    with open_file(path, limit=SAMPLE_BYTES, what="a tar shard", error=DataError) as stream:
        try:
            with tarfile.open(fileobj=_Bounded(stream), mode="r:") as archive:
                for number, member in enumerate(archive):
                    if number > _MOST_ENTRIES:
                        raise DataError(f"expected at most {_MOST_ENTRIES:,} entries")
                    archive.members = []  # type: ignore[attr-defined]  # each would be kept
                    if not member.isreg() or PurePosixPath(member.name).name.startswith("."):
                        continue
                    _take_member(archive, member, images, labels)
        except DataError as error:
            raise DataError(f"{path}: {error}") from error
        # A damaged header raises ValueError, EOFError, UnicodeDecodeError and more.
        except Exception as error:
            raise DataError(
                f"{path}: expected a tar shard, uncompressed, got {type(error).__name__}: "
                f"{str(error)[:120]}"
            ) from error
    if not images:
        raise DataError(f"{path}: expected images in the tar shard, found none")
    return [(key, image, labels.get(key)) for key, image in images.items()]


def _take_member(
    archive: tarfile.TarFile,
    member: tarfile.TarInfo,
    images: dict[str, tuple[str, int, int]],
    labels: dict[str, Any],
) -> None:
    folder, _, base = member.name.rpartition("/")
    stem, _, extension = base.partition(".")
    key, extension = f"{folder}/{stem}", extension.lower()
    shown = repr(member.name[:120])
    if f".{extension.rpartition('.')[2]}" in EXTENSIONS:
        if member.issparse() or member.size > PICTURE_BYTES:
            raise DataError(f"entry {shown} is sparse, or larger than a picture")
        if key in images:
            raise DataError(f"entry {shown} is a second image of one sample")
        images[key] = (member.name, member.offset_data, member.size)
    elif extension in ("cls", "json"):
        if member.issparse() or member.size > _LABEL_BYTES:
            raise DataError(f"entry {shown} is sparse, or larger than a label")
        stream = archive.extractfile(member)
        text = b"" if stream is None else stream.read(_LABEL_BYTES)
        value = _label_in(text.decode("utf-8"), extension, shown)
        if value is not None and labels.setdefault(key, value) != value:
            raise DataError(f"entry {shown} gives its sample a second label")


def _label_in(text: str, extension: str, shown: str) -> Any:
    if extension == "cls":
        return text.strip()
    document = json.loads(text)
    if not isinstance(document, dict):
        return None
    known = [column for column in document if isinstance(column, str)]
    if not {"cls", *LABEL_COLUMNS}.intersection(name.casefold() for name in known):
        return None
    return document[choose_column(known, ("cls", *LABEL_COLUMNS), "labels", shown, [])]


def _decode_slice(path: Path, name: str, offset: int, size: int) -> tuple[Tensor, tuple[str, ...]]:
    with open_file(path, limit=SAMPLE_BYTES, what="a tar shard", error=DataError) as stream:
        stream.seek(offset)
        content = stream.read(size)
    return decode_stream(io.BytesIO(content), f"{path}/{name[:120]}")
