"""Pictures with annotated objects, as a sample of marked images: one image for each box.

What is asked about an image of the sample is one box (`detection.mark`). Beside the annotated
objects each picture gives a box that touches none of them, where there is room: its label is
`NOTHING`, an object can be made to appear there, and a detector that reports objects everywhere is
found out.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from bdaudit.data.annotated import AnnotatedPicture, AnnotatedSet, with_nothing
from bdaudit.data.catalogue import Catalogue
from bdaudit.data.files import is_inside
from bdaudit.data.images import ImageShape, decode_image, gather_images, read_image_size
from bdaudit.data.loading import load_sample, name_classes, read_limited, take_names
from bdaudit.data.objects_coco import choose_coco_file, find_coco_objects, read_coco_objects
from bdaudit.data.objects_voc import (
    choose_voc_list,
    folder_of_list,
    is_voc_folder,
    read_voc_objects,
)
from bdaudit.data.sample import Sample
from bdaudit.data.splits import choose_split_name, note_of_split, split_of
from bdaudit.detection import CHANNELS, NOTHING, Places, mark
from bdaudit.errors import ConfigError, DataError, reads
from bdaudit.foundation.opening import demand_there, is_folder
from bdaudit.foundation.tasks import Task

__all__ = ["load_for_task", "load_objects"]

_SPLIT = "test"
_SMALLEST = 2.0  # pixels a side
_TRIES = 50
_AT_ONCE = 256  # images marked, so that few are there twice
_LAYOUTS = (
    "COCO's form (a .json, a folder with _annotations.coco.json or with annotations/*.json) or "
    "Pascal VOC's (Annotations/ and JPEGImages/)"
)
_OTHERWISE = "; for pictures of one class each, leave the task out (--task detection)"


def load_for_task(
    path: str | Path,
    *,
    task: Task,
    image_shape: ImageShape | None = None,
    classes: str | Path | Sequence[str] | None = None,
    limit: int | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
) -> Sample:
    """Read what a task is measured on: `load_objects` for detection, else `load_sample`.

    The columns are of data in a table, which pictures with objects are in none of.

    Raises:
        DataError: As theirs.
        ConfigError: As theirs.
    """
    if task == "detection":
        return load_objects(path, image_shape=image_shape, classes=classes, limit=limit)
    return load_sample(
        path,
        image_shape=image_shape,
        classes=classes,
        limit=limit,
        image_column=image_column,
        label_column=label_column,
    )


@reads(DataError)
def load_objects(
    path: str | Path,
    *,
    image_shape: ImageShape | None = None,
    classes: str | Path | Sequence[str] | None = None,
    limit: int | None = None,
    split: str = _SPLIT,
    seed: int = 0,
) -> Sample:
    """Read pictures with annotated objects into a sample of marked images, one for each box.

    Args:
        path: A file of annotations in COCO's form; a folder with `_annotations.coco.json`, or with
            `annotations/*.json` and a folder of pictures, as COCO itself; a folder with
            `Annotations/` and `JPEGImages/`, as Pascal VOC, or one list of it
            (`ImageSets/Main/val.txt`); or a folder of parts (`train/`, `test/`) with such. Of
            several parts the test part is read, else the validation part. docs/data.md has each
            layout.
        image_shape: (4, H, W), the fourth channel for the box. Pictures are resized to H x W, and
            boxes along with them. `None` asks that all agree already.
        classes: Names of classes in order of label, or a file of them, one a line; "nothing", which
            is class 0, may be left out.
        limit: Most images, thus boxes, to read, chosen by `seed` so that every class keeps its
            share; `None` reads all. Pictures without a chosen box are never decoded.
        split: Of several parts "train" reads the training part; "test" as above.
        seed: For `limit`, and for where the empty boxes lie.

    Returns:
        The sample, on the CPU, with `places`. Images are (N, 4, H, W); label 0 is an empty box, and
        an image is called after its picture: "street#2" is its third object, "street#empty" its
        empty box.

    Raises:
        DataError: Nothing is there, it is none of the above, has no objects, an object whose box
            has no area or lies outside its picture, or pictures that do not open, are not of the
            size that the annotations say, disagree in size, or lie outside the folder.
        ConfigError: `limit` is below 2, or `image_shape` has other than four channels.
    """
    path = Path(path)
    if limit is not None and limit < 2:
        raise ConfigError(f"limit: expected at least 2 images (two classes), got {limit}")
    if image_shape is not None and image_shape[0] != CHANNELS:
        raise ConfigError(
            f"image shape: expected {CHANNELS} channels for pictures with objects, three of "
            f"colour and one for the box, got {image_shape[0]}; "
            f"pass --image-shape {CHANNELS},{image_shape[1]},{image_shape[2]}"
        )
    class_names, given_by = name_classes(classes)
    if class_names is not None:
        class_names = with_nothing(class_names)
    annotated = _without_repeats(_open(path, class_names, given_by, split))
    catalogue = _catalogue(annotated, image_shape, seed)
    return read_limited(take_names(catalogue, class_names, given_by), image_shape, limit, seed)


def _open(
    path: Path, class_names: tuple[str, ...] | None, given_by: str, split: str
) -> AnnotatedSet:
    if is_folder(path):
        folder = path.resolve() if path.name in {"", ".."} else path
        return _open_folder(folder, class_names, given_by, split)
    demand_there(path, what="a folder or a file of annotations", error=DataError)
    if path.suffix.lower() == ".json":
        return read_coco_objects(path, source=path)
    if (listed := folder_of_list(path)) is not None:
        return read_voc_objects(
            listed, class_names=class_names, classes_from=given_by, part=path.stem
        )
    raise DataError(
        f"{path}: expected pictures with objects in {_LAYOUTS}, got a file "
        f"'{path.suffix or path.name}'{_OTHERWISE}"
    )


def _without_repeats(annotated: AnnotatedSet) -> AnnotatedSet:
    """Ask about an object once where the same box of the same class is annotated again.

    Asked about twice it would count as two, and intervals would be narrower than they are.
    """
    pictures, repeated = [], 0
    for picture in annotated.pictures:
        seen: set[tuple[object, ...]] = set()
        objects = []
        for each in picture.objects:
            again = each.asked and (each.label, each.box) in seen
            seen |= {(each.label, each.box)} if each.asked else set()
            objects.append(replace(each, asked=False) if again else each)
            repeated += again
        pictures.append(replace(picture, objects=tuple(objects)))
    notes = [f"left out {repeated} objects that are annotated twice"] if repeated else []
    return replace(annotated, pictures=tuple(pictures), notes=(*annotated.notes, *notes))


def _open_folder(
    folder: Path, class_names: tuple[str, ...] | None, given_by: str, split: str
) -> AnnotatedSet:
    notes: list[str] = []
    found = _layout_below(folder, notes, split)
    if files := find_coco_objects(found):
        file, more = choose_coco_file([_in(found, file) for file in files], found, split)
        notes += more
        annotated = read_coco_objects(file, source=found)
    else:
        part, said = choose_voc_list(found, split)
        notes += said
        annotated = read_voc_objects(
            found, class_names=class_names, classes_from=given_by, part=part
        )
    return replace(annotated, notes=(*notes, *annotated.notes))


def _layout_below(folder: Path, notes: list[str], split: str) -> Path:
    """Return the folder itself, the part of it to read, or the only one in it with objects."""
    if _has_objects(folder):
        return folder
    below = [each for each in sorted(folder.iterdir()) if is_folder(each)]
    inner = [each for each in below if not each.name.startswith(".") and _has_objects(each)]
    parts = [each.name for each in inner if split_of(each.name) is not None]
    if parts:
        chosen = choose_split_name(parts, split, str(folder))
        notes.append(note_of_split(chosen, parts))
        inner = [folder / chosen]
    if len(inner) != 1:
        raise DataError(
            f"{folder}: expected pictures with objects in {_LAYOUTS}, or one folder with such, got "
            + (
                f"several: {', '.join(each.name for each in inner)}"
                if inner
                else f"neither{_OTHERWISE}"
            )
        )
    return _in(folder, inner[0])


def _in(folder: Path, place: Path) -> Path:
    if not is_inside(place, folder):
        raise DataError(f"{place}: a link that leads out of {folder}; copy it in")
    return place


def _has_objects(folder: Path) -> bool:
    return bool(find_coco_objects(folder)) or is_voc_folder(folder)


@dataclass(frozen=True, slots=True)
class _Scaled:
    """What a picture has at the size of the sample.

    Attributes:
        boxes: (M, 4) of the objects that are asked about.
        labels: M labels.
        numbers: M places in the order of the file.
        blocked: (B, 4), whole pixels that no empty box may touch.
    """

    boxes: Tensor
    labels: list[int]
    numbers: list[int]
    blocked: Tensor


def _catalogue(annotated: AnnotatedSet, image_shape: ImageShape | None, seed: int) -> Catalogue:
    """Describe the sample; of the pictures nothing but headers is read."""
    pictures = annotated.pictures
    sizes = [each.size or read_image_size(each.path, within=annotated.root) for each in pictures]
    width, height = _common_size(annotated, sizes, image_shape)
    counts: Counter[str] = Counter()
    scaled = [
        _scale(picture, size, (width, height), counts)
        for picture, size in zip(pictures, sizes, strict=True)
    ]
    if not any(each.labels for each in scaled):
        raise DataError(
            f"{annotated.source}: expected objects, got none of {_SMALLEST:g} pixels a side or "
            f"more in pictures of {width} x {height}"
        )
    empty = _empty_boxes(scaled, (width, height), seed)
    boxes, labels, names, numbers = [], [], [], []
    for number, (picture, found, free) in enumerate(zip(pictures, scaled, empty, strict=True)):
        boxes.append(found.boxes)
        labels += found.labels
        names += [f"{picture.name}#{k}" for k in found.numbers]
        if free is not None:
            boxes.append(free[None])
            labels.append(NOTHING)
            names.append(f"{picture.name}#empty")
        numbers += [number] * (len(found.labels) + (free is not None))
    n_full = sum(free is None for free in empty)
    counts["pictures have no room for an empty box"] += n_full
    places = Places(
        pictures=torch.tensor(numbers),
        boxes=torch.cat(boxes),
        annotated=tuple(
            (found.boxes, torch.tensor(found.labels, dtype=torch.int64)) for found in scaled
        ),
        blocked=tuple(found.blocked for found in scaled),
    )
    return Catalogue(
        labels=torch.tensor(labels),
        names=tuple(names),
        class_names=annotated.class_names,
        source=annotated.source,
        read=partial(_read, annotated, sizes, places),
        notes=(*annotated.notes, *(f"{n} {what}" for what, n in counts.items() if n)),
        classes_from=annotated.classes_from,
        places=places,
    )


def _common_size(
    annotated: AnnotatedSet, sizes: Sequence[tuple[int, int]], image_shape: ImageShape | None
) -> tuple[int, int]:
    if image_shape is not None:
        return image_shape[2], image_shape[1]
    for picture, size in zip(annotated.pictures, sizes, strict=True):
        if size != sizes[0]:
            raise DataError(
                f"{annotated.source}: expected pictures of one size, got {sizes[0][0]} x "
                f"{sizes[0][1]} ({annotated.pictures[0].name}) and {size[0]} x {size[1]} "
                f"({picture.name}); pass --input-size HxW to bring all to one, or --image-shape "
                f"{CHANNELS},H,W where a command has that"
            )
    return sizes[0]


def _scale(
    picture: AnnotatedPicture,
    size: tuple[int, int],
    wanted: tuple[int, int],
    counts: Counter[str],
) -> _Scaled:
    boxes, labels, numbers, blocked = [], [], [], []
    for number, each in enumerate(picture.objects):
        left, top, right, bottom = box = each.inside(size)
        counts["boxes that stick out of their pictures were clipped"] += box != each.box
        # Multiplied first: what ends with the picture still does.
        left, right = left * wanted[0] / size[0], right * wanted[0] / size[0]
        top, bottom = top * wanted[1] / size[1], bottom * wanted[1] / size[1]
        blocked.append([math.floor(left), math.floor(top), math.ceil(right), math.ceil(bottom)])
        if not each.asked:
            continue
        if min(right - left, bottom - top) < _SMALLEST:
            counts[f"objects of less than {_SMALLEST:g} pixels a side were left out"] += 1
            continue
        boxes.append([left, top, right, bottom])
        labels.append(each.label)
        numbers.append(number)
    return _Scaled(_boxes(boxes), labels, numbers, _boxes(blocked))


def _boxes(rows: Iterable[Sequence[float]]) -> Tensor:
    return torch.tensor([*rows], dtype=torch.float32).reshape(-1, 4)


def _empty_boxes(
    scaled: Sequence[_Scaled], size: tuple[int, int], seed: int
) -> list[Tensor | None]:
    """Draw for each picture a box (4,) in whole pixels that touches no object, `None` if none fits.

    Each is as large as some object of the sample. The first of 50 that fits is taken.
    """
    objects = torch.cat([each.boxes for each in scaled])
    room = torch.tensor(size, dtype=torch.float32)
    sides = (objects[:, 2:] - objects[:, :2]).ceil().minimum(room)
    generator = torch.Generator().manual_seed(seed)
    found: list[Tensor | None] = []
    for each in scaled:
        chosen = sides[torch.randint(len(sides), (_TRIES,), generator=generator)]
        drawn = torch.rand(_TRIES, 2, generator=generator, dtype=torch.float64)
        corner = (drawn * (room - chosen + 1)).floor().float()
        tried = torch.cat((corner, corner + chosen), dim=1)
        touches = (tried[:, None, :2] < each.blocked[:, 2:]) & (
            tried[:, None, 2:] > each.blocked[:, :2]
        )
        free = ~touches.all(dim=2).any(dim=1)
        found.append(tried[int(free.int().argmax())] if bool(free.any()) else None)
    return found


def _read(
    annotated: AnnotatedSet,
    sizes: Sequence[tuple[int, int]],
    places: Places,
    indices: Tensor,
    image_shape: ImageShape | None,
) -> tuple[Tensor, tuple[str, ...]]:
    """Decode each picture once, and mark in it the boxes at `indices`."""
    used, rows = torch.unique(places.pictures[indices], return_inverse=True)
    n_grey = [0]

    def decode(number: int) -> tuple[Tensor, tuple[str, ...]]:
        picture, size = annotated.pictures[number], sizes[number]
        pixels, oddities = decode_image(picture.path, within=annotated.root)
        height, width = pixels.shape[-2:]
        if (width, height) != size:
            turned = " (is it turned by an orientation tag?)" if (height, width) == size else ""
            raise DataError(
                f"{picture.path}: expected {size[0]} x {size[1]} pixels, as its annotations say, "
                f"got {width} x {height}{turned}"
            )
        n_grey[0] += len(pixels) == 1
        return pixels.expand(3, -1, -1), oddities

    shape = None if image_shape is None else (3, *image_shape[1:])
    decoders = [
        (annotated.pictures[number].path.name, partial(decode, number)) for number in used.tolist()
    ]
    pixels, notes = gather_images(decoders, shape)
    grey = (f"{n_grey[0]} of {len(used)} images: grey repeated to 3 channels",) if n_grey[0] else ()
    marked = torch.empty(len(rows), CHANNELS, *pixels.shape[-2:])
    for start in range(0, len(rows), _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        marked[part] = mark(pixels[rows[part]], places.boxes[indices[part]])
    return marked, (*notes, *grey)
