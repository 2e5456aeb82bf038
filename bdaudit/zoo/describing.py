"""What is written about a family that was built: its record, its README and its clean sample."""

from __future__ import annotations

import io
import json
import platform
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bdaudit.detection import PIXELS
from bdaudit.foundation.file_digests import digest_file
from bdaudit.foundation.writing import write_atomically
from bdaudit.records import FileDigest, Rate
from bdaudit.records.families import Family, FamilyMember, FamilyTrigger
from bdaudit.triggers import read_trigger
from bdaudit.version import __version__
from bdaudit.zoo.folder import CLEAN_PICTURES, CLEAN_SAMPLE, Made
from bdaudit.zoo.making import Workshop
from bdaudit.zoo.manifest import Manifest
from bdaudit.zoo.planning import Recipe
from bdaudit.zoo.truth import (
    Ruling,
    floor_of,
    judge_truth,
    kept_evidence,
    needs_relearning,
    original_answers,
)

__all__ = ["describe_family", "family_readme", "write_clean_sample"]

_PICTURE = "{:05}.png"
_ANNOTATIONS = "_annotations.coco.json"
_PACKAGES = ("torch", "torchvision", "numpy", "scipy", "safetensors")


def write_clean_sample(shop: Workshop) -> None:
    """Write the auditor's images, where they are not there already.

    Raises:
        OSError: The folder cannot be written to.
    """
    sample = shop.parts.sample
    if shop.manifest.is_of_detectors:
        _write_clean_pictures(shop)
        return
    content = io.BytesIO()
    np.savez_compressed(content, images=sample.pixels.numpy(), labels=sample.labels.numpy())
    path = shop.root / CLEAN_SAMPLE
    if not path.is_file() or path.read_bytes() != content.getvalue():
        write_atomically(path, content.getvalue())


def _write_clean_pictures(shop: Workshop) -> None:
    """Write the auditor's pictures with their annotations, in COCO's form.

    What nobody is asked about, yet lies where nothing is empty, is written as a crowd.
    """
    sample, names = shop.parts.sample, shop.parts.class_names
    folder = shop.root / CLEAN_PICTURES
    folder.mkdir(parents=True, exist_ok=True)
    places = sample.places
    assert places is not None
    height, width = sample.pixels.shape[-2:]
    images, annotations = list[dict[str, Any]](), list[dict[str, Any]]()
    for number, (picture, rows) in enumerate(places.rows().items()):
        name = _PICTURE.format(number)
        images.append({"id": number, "file_name": name, "width": width, "height": height})
        content = io.BytesIO()
        pixels = np.ascontiguousarray(sample.pixels[rows[0], :PIXELS].permute(1, 2, 0).numpy())
        Image.fromarray(pixels).save(content, "png")
        _write_if_other(folder / name, content.getvalue())
        boxes, labels = places.annotated[picture]
        shown = [
            (box, label, 0) for box, label in zip(boxes.tolist(), labels.tolist(), strict=True)
        ]
        shown += [(box, 1, 1) for box in _beside(places.blocked[picture], boxes)]
        for (left, top, right, bottom), label, is_crowd in shown:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": label,
                    "bbox": [left, top, right - left, bottom - top],
                    "area": (right - left) * (bottom - top),
                    "iscrowd": is_crowd,
                }
            )
    categories = [
        {"id": label, "name": str(label) if names is None else names[label]}
        for label in range(1, shop.parts.num_classes)
    ]
    document = {"images": images, "annotations": annotations, "categories": categories}
    _write_if_other(folder / _ANNOTATIONS, json.dumps(document).encode())
    written = {image["file_name"] for image in images}
    for path in folder.glob("*.png"):
        if path.name not in written and path.stem.isdecimal():  # of a larger sample before
            path.unlink()


def _beside(blocked: Tensor, boxes: Tensor) -> list[list[float]]:
    """Return those of the blocked boxes (B, 4) that are not the whole pixels of a box (M, 4)."""
    whole = torch.cat([boxes[:, :2].floor(), boxes[:, 2:].ceil()], dim=1)
    known = {tuple(box) for box in whole.tolist()}
    return [
        box
        for box in blocked.tolist()
        if tuple(box) not in known and box[2] > box[0] and box[3] > box[1]
    ]


def _write_if_other(path: Path, content: bytes) -> None:
    if not path.is_file() or path.read_bytes() != content:
        write_atomically(path, content)


def describe_family(
    shop: Workshop,
    present: Sequence[tuple[Recipe, Made]],
    floors: Mapping[str, float],
    failed: Mapping[str, Exception],
) -> Family:
    """Describe a family as it is now.

    Args:
        shop: The family.
        present: The members that are there, with their notes.
        floors: Largest ASR of each attack's trigger alone on a reference, where it is known.
        failed: What was tried and failed, by task.
    """
    members, triggers = [], dict[str, FamilyTrigger]()
    for recipe, note in present:
        if recipe.attack is not None and recipe.attack not in triggers:
            made = shop.recipes[f"trigger:{recipe.attack}"]
            trigger = read_trigger(shop.folder.file(made))
            triggers[recipe.attack] = FamilyTrigger(
                file=shop.folder.relative(made),
                sha256=trigger.sha256,
                attack=_attack_type(recipe, shop),
                target_label=trigger.target_label,
            )
        members.append(_member(recipe, note, shop, floors, failed))
    manifest = shop.manifest
    sample = CLEAN_PICTURES if manifest.is_of_detectors else CLEAN_SAMPLE
    return Family(
        name=manifest.family.name,
        dataset=Path(manifest.data.path or manifest.data.train or "").name,
        arch=manifest.model.arch,
        num_classes=shop.parts.num_classes,
        image_shape=shop.parts.image_shape,
        task=manifest.data.task,
        sample=sample,
        sample_digests=tuple(_digests(shop.root, sample)),
        references=tuple(r.name for r in shop.references if r.name in {m.name for m in members}),
        triggers=triggers,
        members=tuple(members),
        config=_config(manifest),
        versions=_versions(),
    )


def _digests(root: Path, sample: str) -> Iterator[FileDigest]:
    """Digest the auditor's file, or all files of the folder."""
    place = root / sample
    files = [*sorted(place.glob("*.png")), place / _ANNOTATIONS] if place.is_dir() else [place]
    for path in files:
        yield FileDigest(
            role="sample",
            path=path.relative_to(root).as_posix(),
            sha256=digest_file(path),
            size_bytes=path.stat().st_size,
        )


def _config(manifest: Manifest) -> dict[str, Any]:
    """Return the family file as data; of paths the names, since a family is copied elsewhere."""
    config = manifest.model_dump(mode="json", exclude_defaults=True)
    for key in ("path", "train", "test"):
        if key in config["data"]:
            config["data"][key] = Path(config["data"][key]).name
    return config


def _member(
    recipe: Recipe,
    note: Made,
    shop: Workshop,
    floors: Mapping[str, float],
    failed: Mapping[str, Exception],
) -> FamilyMember:
    assert recipe.lineage is not None
    assert note.measured is not None
    assert note.weights_sha256 is not None
    asr = note.measured.asr
    on_references = floors.get(recipe.attack or "")
    floor = floor_of(note.measured, on_references)
    evidence, original_took = None, original_answers(recipe, shop, on_references)
    if needs_relearning(recipe, shop.recipes, asr, original_took, floor):
        evidence = kept_evidence(shop, recipe)
    ruling = judge_truth(
        recipe,
        shop.recipes,
        asr,
        evidence,
        original_took=original_took,
        floor=floor,
        why_none=_why_no_evidence(recipe, shop, failed),
    )
    why = shop.why_not_learned(recipe)
    if why is not None:
        ruling = Ruling("unknown", ruling.source, why)
    original = None if recipe.original is None else shop.recipes[recipe.original]
    return FamilyMember(
        name=recipe.name,
        file=shop.folder.relative(recipe),
        sha256=note.sha256,
        weights_sha256=note.weights_sha256,
        lineage=recipe.lineage,
        original=recipe.original,
        trigger=recipe.attack,
        attack=None if recipe.attack is None else _attack_type(recipe, shop),
        poison_rate=_poison_rate(recipe if original is None else original, shop),
        defense=recipe.defense,
        settings={**recipe.settings, "method": recipe.method, "made_from": list(recipe.needs)},
        seed=recipe.seed,
        clean_acc=note.measured.clean_acc,
        asr=asr,
        relearning=evidence,
        truth=ruling.truth,
        truth_source=ruling.source,
        truth_note=ruling.note,
        elapsed_s=note.elapsed_s,
    )


def _attack_type(recipe: Recipe, shop: Workshop) -> str:
    kind = shop.recipes[f"trigger:{recipe.attack}"].type
    assert kind is not None
    return kind


def _poison_rate(original: Recipe, shop: Workshop) -> float | None:
    """Return the share that was really stamped: a clean-label attack may reach less than asked."""
    note = shop.folder.note(original)
    return None if note is None else note.poison_rate


def _why_no_evidence(recipe: Recipe, shop: Workshop, failed: Mapping[str, Exception]) -> str:
    if not shop.references:
        return "no relearning, since the family has no references to hold it against"
    attempts = [f"relearning {name.name} by {recipe.attack}" for name in (recipe, *shop.references)]
    reason = next((failed[attempt] for attempt in attempts if attempt in failed), None)
    if reason is not None:
        return f"relearning failed: {reason}"
    return "not relearned yet, since not all references are there"


def _versions() -> dict[str, str]:
    versions = {"bdaudit": __version__, "python": platform.python_version()}
    return versions | {name: metadata.version(name) for name in _PACKAGES}


def family_readme(family: Family, shop: Workshop) -> str:
    """Tell people what the folder holds."""
    parts, config = shop.parts, shop.manifest.training_config()
    rows = [
        f"| {m.name} | {m.attack or ''} | {m.defense or ''} | {_share(m.clean_acc)} | "
        f"{_share(m.asr)} | {m.truth} | {m.truth_note} |"
        for m in family.members
    ]
    c, h, w = family.image_shape
    what = "pictures" if shop.manifest.is_of_detectors else "images"
    pool, defense = parts.pool.size, parts.defense.size
    n_trained = min(config.images or pool, pool)
    place = "clean/" if shop.manifest.is_of_detectors else CLEAN_SAMPLE
    return "\n".join(
        [
            f"# {family.name}: {len(family.members)} models of known truth",
            "",
            f"Built by `bdaudit zoo build` of bdaudit {__version__}. `family.json` says how each",
            "model was made, what was measured on it and how its truth is known.",
            "",
            f"* Networks: {family.arch}, {family.num_classes} classes, images of {c}x{h}x{w}.",
            f"* Trained on {n_trained:,} of {pool:,} {what}, {config.epochs} epochs,",
            f"  in {config.precision}; defended on {defense:,} others.",
            f"* `{place}`: {parts.sample.size:,} test {what} for whoever audits. No model was",
            f"  trained, defended or measured on them; rates are of {parts.measure.size:,} others.",
            "* `triggers/`: the trigger of each attack. `models/`: the models. `helpers/`: models",
            "  that others were made with; they are not part of the family.",
            f"* References, set aside and never audited: {', '.join(family.references) or 'none'}.",
            "",
            "| model | attack | defence | clean acc. | trigger alone | truth | because |",
            "|---|---|---|---|---|---|---|",
            *rows,
            "",
        ]
    )


def _share(rate: Rate | None) -> str:
    return "" if rate is None else f"{rate.value:.3f}"
