"""Where a family's files are, and which of them still are what its file asks for."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from bdaudit.errors import ConfigError, InputError, TriggerError
from bdaudit.foundation.file_digests import digest_file
from bdaudit.foundation.opening import RECORD_BYTES, is_file, read_bytes
from bdaudit.foundation.writing import write_atomically
from bdaudit.records import Rate, Record
from bdaudit.triggers import read_trigger
from bdaudit.zoo.planning import Recipe

__all__ = ["CLEAN_PICTURES", "CLEAN_SAMPLE", "FamilyFolder", "Made", "Measured", "changes_between"]

CLEAN_SAMPLE = "clean.npz"
CLEAN_PICTURES = "clean"
"""The same of pictures with objects: a folder, with annotations in COCO's form."""


class Measured(Record):
    """Rates of one model on the family's test images.

    Attributes:
        key: Digest of the images and the trigger.
        clean_acc: Share of clean images classified as their true labels; of a detector the share of
            objects called by their class.
        asr: Share of triggered images classified as the trigger wants, of a detector among those
            that it does not answer so untouched; `None` without a trigger.
        untriggered: Share of the same images classified so without the trigger.
    """

    key: str
    clean_acc: Rate
    asr: Rate | None = None
    untriggered: Rate | None = None


class Made(Record):
    """The note beside everything that was made: what determined it, and what came of it.

    Attributes:
        key: Of the recipe.
        determined_by: What the key is a digest of.
        sha256: Of the file; of a trigger the digest of the trigger itself.
        weights_sha256: Of a model's tensors.
        poison_rate: Share of training images that the attack stamped.
        elapsed_s: Wall-clock seconds it took.
        measured: Rates of a model.
    """

    key: str
    determined_by: dict[str, Any]
    sha256: str
    weights_sha256: str | None = None
    poison_rate: float | None = Field(default=None, ge=0, le=1)
    elapsed_s: float
    measured: Measured | None = None


class FamilyFolder:
    """A family's folder.

    Args:
        root: The folder; made, with its folders, by `prepare`.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def prepare(self) -> None:
        """Make the folders.

        Raises:
            ConfigError: They cannot be made.
        """
        try:
            for name in ("models", "helpers", "triggers", "relearning"):
                (self.root / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"{self.root}: cannot be made a folder to write to: {error.strerror or error}"
            ) from error

    def file(self, recipe: Recipe) -> Path:
        """Return the file of what a recipe makes."""
        return self.root / self.relative(recipe)

    def relative(self, recipe: Recipe) -> str:
        """Return the same, from the family's folder."""
        name = recipe.name.partition(":")[2] or recipe.name
        folders = {"trigger": "triggers", "helper": "helpers", "member": "models"}
        suffix = ".toml" if recipe.kind == "trigger" else ".safetensors"
        return f"{folders[recipe.kind]}/{name}{suffix}"

    def note(self, recipe: Recipe) -> Made | None:
        """Read the note beside what a recipe made; `None` where there is none that can be read."""
        try:
            return Made.model_validate_json(
                read_bytes(self._note_file(recipe), limit=RECORD_BYTES, what="a note")
            )
        except (InputError, ValidationError):
            return None

    def write_note(self, recipe: Recipe, made: Made) -> None:
        """Write the note, last of all: what has none was not finished."""
        text = json.dumps(made.model_dump(mode="json"), indent=1)
        write_atomically(self._note_file(recipe), f"{text}\n".encode())

    def holds(self, recipe: Recipe) -> bool:
        """Return whether what the recipe makes is there, undamaged."""
        made = self.note(recipe)
        if made is None or made.key != recipe.key:
            return False
        path = self.file(recipe)
        if recipe.kind == "trigger":
            try:
                return read_trigger(path).sha256 == made.sha256
            except TriggerError:
                return False
        return is_file(path) and digest_file(path) == made.sha256

    def strangers(self, recipes: Iterator[Recipe]) -> list[str]:
        """Name models in the folder that no recipe makes."""
        expected = {self.file(recipe) for recipe in recipes}
        found = sorted((self.root / "models").glob("*.safetensors"))
        return [path.stem for path in found if path not in expected]

    def _note_file(self, recipe: Recipe) -> Path:
        path = self.file(recipe)
        return path.with_name(path.name.removesuffix(path.suffix) + ".json")


def changes_between(old: Mapping[str, Any], new: Mapping[str, Any], at: str = "") -> list[str]:
    """Return what differs between what determined two things: "training.epochs: 5, was 4"."""
    changes = []
    for key in sorted(old.keys() | new.keys()):
        before, now = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(now, Mapping):
            changes += changes_between(before, now, f"{at}{key}.")
        elif before != now:
            is_digest = key == "images" or at == "needs."
            changes.append(f"{at}{key}" if is_digest else f"{at}{key}: {now!r}, was {before!r}")
    return changes
