"""What turns a CLIP into a classifier: class names, prompt templates, where its config lies."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bdaudit.errors import ModelError
from bdaudit.foundation.texts import character_in_words, is_invisible, read_text, visible_form

__all__ = ["ClipSettings"]

_PLACE = "{}"
_BLANK = " \t\n"


@dataclass(frozen=True, kw_only=True)
class ClipSettings:
    """How a zero-shot classifier is made of a CLIP.

    Attributes:
        class_names: One a class, in order of index; two or more, each different (whatever the
            case, which the tokenizer ignores).
        templates: Prompts with `{}` for the class name; of several the embeddings are averaged.
        config_folder: Folder of open_clip configs (`<name>.json`), in addition to open_clip's own.
        pretrained: Weights that the checkpoints were trained from: a tag of open_clip, or a local
            file. Gives the normalisation that goes with a tag, and the text tower where a
            checkpoint holds the image tower alone.

    Raises:
        ModelError: A name is empty or there twice, or a template has no `{}`.
    """

    class_names: tuple[str, ...]
    templates: tuple[str, ...] = ("a photo of a {}.",)
    config_folder: Path | None = None
    pretrained: str | None = None

    def __post_init__(self) -> None:
        _check_names(self.class_names, "class names")
        _check_templates(self.templates, "templates")

    @classmethod
    def from_files(
        cls,
        class_names: Path,
        *,
        templates: Path | None = None,
        config_folder: Path | None = None,
        pretrained: str | None = None,
    ) -> ClipSettings:
        """Read names and templates, one a line; blank lines at the end are dropped.

        Raises:
            ModelError: A file cannot be read or is empty, or a line in it cannot be used.
        """
        names = _read_lines(class_names, "class names")
        _check_names(names, str(class_names))
        prompts = cls.templates if templates is None else _read_lines(templates, "templates")
        _check_templates(prompts, str(templates))
        return cls(
            class_names=names,
            templates=prompts,
            config_folder=config_folder,
            pretrained=pretrained,
        )

    def prompts(self, class_name: str) -> list[str]:
        """Return the prompts of one class, one a template."""
        return [template.replace(_PLACE, class_name) for template in self.templates]


def _read_lines(path: Path, what: str) -> tuple[str, ...]:
    text = read_text(path, what=f"{what}, one a line", error=ModelError)
    lines = text.rstrip(_BLANK).split("\n")
    if lines == [""]:
        raise ModelError(f"{path}: expected {what}, one per line, got an empty file")
    return tuple(line.strip(_BLANK) for line in lines)


def _demand_visible(line: str, number: int, source: str) -> None:
    """Refuse characters that nobody sees: a tokenizer reads them."""
    for character in line:
        if is_invisible(character):
            raise ModelError(
                f"{source}: line {number} holds {character_in_words(character)}, which is "
                f"invisible or looks like a space; retype the line"
            )


def _check_names(names: tuple[str, ...], source: str) -> None:
    if len(names) < 2:
        raise ModelError(f"{source}: expected two class names or more, got {len(names)}")
    seen: dict[str, int] = {}
    for number, name in enumerate(names, start=1):
        if not name.strip():
            raise ModelError(f"{source}: expected a class name on line {number}, got an empty one")
        _demand_visible(name, number, source)
        first = seen.setdefault(visible_form(name).casefold(), number)
        if first != number:
            raise ModelError(
                f"{source}: class name {name!r} is on line {first} and again on line {number}; "
                "prompts could not tell the two classes apart"
            )


def _check_templates(templates: tuple[str, ...], source: str) -> None:
    if not templates:
        raise ModelError(f"{source}: expected one template or more, such as 'a photo of a {{}}.'")
    for number, template in enumerate(templates, start=1):
        _demand_visible(template, number, source)
        if template.count(_PLACE) != 1:
            raise ModelError(
                f"{source}: expected '{{}}' once, for the class name, on line {number}, got "
                f"{template!r}"
            )
