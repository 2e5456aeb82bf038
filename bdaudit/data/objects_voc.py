"""Objects in the layout of Pascal VOC: a file of XML for each picture."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from xml.etree import ElementTree

from bdaudit.data.annotated import (
    NOTHING_NAME,
    AnnotatedObject,
    AnnotatedPicture,
    AnnotatedSet,
    Box,
    number_from_file,
    with_nothing,
)
from bdaudit.data.classes import look_up_folders, read_class_names, shown
from bdaudit.data.folder import CLASSES_FILE
from bdaudit.data.images import EXTENSIONS
from bdaudit.data.splits import choose_split_name, note_of_split, split_of
from bdaudit.errors import DataError
from bdaudit.foundation.opening import SETTINGS_BYTES, is_file, is_folder, path_inside
from bdaudit.foundation.texts import read_text

__all__ = ["choose_voc_list", "folder_of_list", "is_voc_folder", "read_voc_objects"]

_ANNOTATIONS, _IMAGES, _LISTS = "Annotations", "JPEGImages", "ImageSets/Main"
_SIDES = ("xmin", "ymin", "xmax", "ymax")
_MOST_SIDE = 1 << 15
_NOT_DIFFICULT = frozenset({"", "0", "false"})
_DECLARATION = re.compile(r"<!(doctype|entity)", re.IGNORECASE)
_IN_WORDS = "an annotation as Pascal VOC has them"


def is_voc_folder(folder: Path) -> bool:
    """Return whether a folder is in this layout."""
    return is_folder(folder / _ANNOTATIONS) and is_folder(folder / _IMAGES)


def folder_of_list(path: Path) -> Path | None:
    """Return the folder in this layout of which a file is a list, `None` where it is none."""
    folder = path.parent.parent.parent
    inside = path.suffix == ".txt" and path.parent == folder / _LISTS
    return folder if inside and is_voc_folder(folder) else None


def choose_voc_list(folder: Path, split: str) -> tuple[str | None, list[str]]:
    """Choose the list of the part to read, by name, and a note on that; `None` where none is one.

    Raises:
        DataError: There are lists of other parts only.
    """
    place = folder / _LISTS
    lists = [p.stem for p in place.glob("*.txt")] if is_folder(place) else []
    parts = [name for name in lists if split_of(name) is not None]
    if not parts:
        return None, ["no list of a part: all its pictures are read"]
    chosen = choose_split_name(parts, split, str(place))
    return chosen, [note_of_split(chosen, parts)]


def read_voc_objects(
    folder: Path, *, class_names: Sequence[str] | None, classes_from: str, part: str | None
) -> AnnotatedSet:
    """Read pictures and objects in the layout of Pascal VOC.

    Args:
        folder: Holds `Annotations/` and `JPEGImages/`, and mostly `ImageSets/Main/`, whose lists
            say what is in which part.
        class_names: In order of label, the first "nothing"; without them the lines of `classes.txt`
            in the folder count, and else the sorted names of all objects in the folder, of the
            other parts too, from 1.
        classes_from: Who gave them.
        part: The name of such a list, `None` for all pictures.

    Raises:
        DataError: A file is no such XML, declares a type or an entity, leads out of the folder, or
            has an object without a box, or of a class that is not among the names.
    """
    every = sorted(p.stem for p in (folder / _ANNOTATIONS).glob("*.xml") if p.name[0] != ".")
    stems = dict.fromkeys(every if part is None else _listed(folder, part))
    notes = []
    if class_names is None and is_file(folder / CLASSES_FILE):
        listed = read_class_names(folder / CLASSES_FILE, within=folder)
        class_names, classes_from = with_nothing(listed), CLASSES_FILE
    roots: dict[str, ElementTree.Element] = {}
    names: set[str] = set()
    for stem in stems if class_names is not None else dict.fromkeys([*every, *stems]):
        root = _parse(folder, stem)
        names.update(
            _text_of(each, "name", _named(folder, stem)) for each in root.findall("object")
        )
        if class_names is not None or stem in stems:
            roots[stem] = root
    if class_names is None:
        class_names, classes_from = (NOTHING_NAME, *sorted(names)), "the names of its objects"
    labels = look_up_folders(sorted(names), class_names, str(folder), what="class")
    if 0 in labels.values():
        raise DataError(f"{folder}: an object is of the class {class_names[0]!r}, which none is")
    by_stem = _pictures_in(folder / _IMAGES)
    pictures = tuple(_picture(folder, stem, roots[stem], labels, by_stem) for stem in stems)
    n_difficult = sum(not each.asked for picture in pictures for each in picture.objects)
    notes += [f"left out {n_difficult} objects marked as difficult"] if n_difficult else []
    return AnnotatedSet(
        pictures=pictures,
        class_names=tuple(class_names),
        classes_from=classes_from,
        source=str(folder),
        root=folder,
        notes=tuple(notes),
    )


def _listed(folder: Path, part: str) -> list[str]:
    """Return the pictures of a part, by name in order."""
    path = folder / _LISTS / f"{part}.txt"
    text = read_text(path, what="names of pictures", error=DataError, within=folder)
    # Lists of one class have a number behind the name.
    stems = [line.split()[0] for line in text.split("\n") if line.strip()]
    if len(set(stems)) != len(stems):
        raise DataError(f"{path}: names a picture for the second time")
    return stems


def _named(folder: Path, stem: str) -> str:
    return str(folder / _ANNOTATIONS / f"{stem}.xml")


def _parse(folder: Path, stem: str) -> ElementTree.Element:
    """Parse one file, in which nothing may be declared: entities grow, and lead to other files."""
    path = path_inside(folder / _ANNOTATIONS, f"{stem}.xml", what="the annotation", error=DataError)
    text = read_text(path, what=_IN_WORDS, error=DataError, limit=SETTINGS_BYTES, within=folder)
    if (found := _DECLARATION.search(text)) is not None:
        raise DataError(
            f"{path}: expected {_IN_WORDS}, got a declaration (<!{found[1]}), which is not read; "
            "remove it"
        )
    try:
        root = ElementTree.fromstring(text)  # noqa: S314 -- no entity can be declared
    except ElementTree.ParseError as error:
        raise DataError(f"{path}: expected {_IN_WORDS}: {error}") from error
    if root.tag != "annotation":
        raise DataError(f"{path}: expected {_IN_WORDS}, got <{root.tag:.80}>")
    return root


def _text_of(entry: ElementTree.Element, key: str, where: str) -> str:
    text = (entry.findtext(key) or "").strip()
    if not text:
        raise DataError(f"{where}: expected a text for <{key}> in <{entry.tag:.80}>, got none")
    return text


def _pictures_in(folder: Path) -> dict[str, list[Path]]:
    by_stem: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in EXTENSIONS and not path.name.startswith("."):
            by_stem.setdefault(path.stem, []).append(path)
    return by_stem


def _picture(
    folder: Path,
    stem: str,
    root: ElementTree.Element,
    labels: Mapping[str, int],
    by_stem: Mapping[str, Sequence[Path]],
) -> AnnotatedPicture:
    where = _named(folder, stem)
    # As torchvision: the annotation's own name counts, and not <filename>, which often is stale.
    found = by_stem.get(stem, ())
    if len(found) != 1:
        raise DataError(
            f"{where}: expected one picture {stem}.jpg (or .png, ...) in {folder / _IMAGES}, got "
            f"{shown([path.name for path in found]) or 'none'}"
        )
    objects = tuple(
        _object(each, f"{where}: object {k}", labels)
        for k, each in enumerate(root.findall("object"))
    )
    return AnnotatedPicture(found[0], stem, _size(root, where), objects)


def _size(root: ElementTree.Element, where: str) -> tuple[int, int] | None:
    size = root.find("size")
    if size is None:
        return None
    width, height = (
        number_from_file(_text_of(size, key, where), where, f"<{key}>")
        for key in ("width", "height")
    )
    if not (width and height):  # some tools write 0 for what they do not know
        return None
    if not (width.is_integer() and height.is_integer() and min(width, height) >= 1) or (
        max(width, height) > _MOST_SIDE
    ):
        raise DataError(f"{where}: expected a <size> in whole pixels, got {width:g} x {height:g}")
    return int(width), int(height)


def _object(entry: ElementTree.Element, where: str, labels: Mapping[str, int]) -> AnnotatedObject:
    box = entry.find("bndbox")
    if box is None:
        raise DataError(f"{where}: expected a <bndbox>, got none")
    left, top, right, bottom = (
        number_from_file(_text_of(box, key, where), where, f"<{key}>") for key in _SIDES
    )
    asked = (entry.findtext("difficult") or "").strip().lower() in _NOT_DIFFICULT
    # Pixels are counted from 1, and the last one belongs to the box. Tools that count from 0 write
    # the same key, so that their boxes begin a pixel early; 0 itself is the first pixel.
    corners: Box = (left - 1 if left else 0.0, top - 1 if top else 0.0, right, bottom)
    return AnnotatedObject(where, corners, labels[_text_of(entry, "name", where)], asked)
