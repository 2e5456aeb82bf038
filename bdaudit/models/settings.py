"""What must be known about a model beside its weights, and where it is written down.

Keys, the same in a safetensors file's metadata (as text) and in a `model.toml`:

| key | text form | meaning |
|---|---|---|
| `arch` | `torchvision/resnet18` | architecture, as `--arch` spells it; never a Python file |
| `num_classes` | `10` | length of the logits |
| `image_shape` | `1,28,28` | channels, height, width of the images it takes |
| `input_size` | `224,224` | height, width to resize to inside the model |
| `mean`, `std` | `0.4914,0.4822,0.4465` | subtracted from, then divided into, [0, 1] images |
| `interpolation` | `bilinear` | or `bicubic`: how images are resized |
| `outputs` | `logits` | or `probabilities` |
| `score_threshold` | `0.5` | score from which a detector's box counts, in (0, 1) |
| `weights` | not there | which of the file's sets of weights is meant; in a `model.toml` only |

How a CLIP becomes a classifier (`ClipSettings`) is the user's to say and in no file.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bdaudit.errors import ConfigError, ModelError, reads
from bdaudit.foundation.opening import is_file
from bdaudit.foundation.texts import read_toml
from bdaudit.models import backdoorbench
from bdaudit.models.architectures import from_backdoorbench_name, is_python_factory
from bdaudit.models.classifier import Interpolation
from bdaudit.models.clip_settings import ClipSettings

__all__ = ["ModelSettings", "Outputs", "read_model_toml"]

Outputs = Literal["logits", "probabilities"]

# A file must not be able to ask for a giant dry run.
_MAX_SIDE = 8192
_MAX_CLASSES = 1_000_000
_LARGEST = 10**9
_ROLES = ("defended", "original", "reference", "surrogate")


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """Settings of a model; `None` where a source does not say.

    Attributes:
        arch: Architecture, as `build_network` spells it.
        num_classes: Length of the logits, at least 2.
        image_shape: (C, H, W) of the images it takes.
        input_size: (H', W') to resize to inside the model.
        mean: Per channel, or one for all, subtracted from [0, 1] images.
        std: Likewise, the divisor; above 0.
        interpolation: How images are resized to `input_size`, antialiased either way.
        outputs: What the network returns.
        score_threshold: Score from which a detection counts, in (0, 1), where it is a detector.
        clip: Class names and prompts, where `arch` is a CLIP.
        weights: Which of a file's sets of weights is meant: KEY for every file that has it,
            ROLE=KEY ("original=ema") for the models of one role, whose files must have it.
        read_pickled_module: Whether whole pickled modules may be read, as inert records.

    Raises:
        ConfigError: A value is out of its range.
    """

    arch: str | None = None
    num_classes: int | None = None
    image_shape: tuple[int, int, int] | None = None
    input_size: tuple[int, int] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    interpolation: Interpolation | None = None
    outputs: Outputs | None = None
    score_threshold: float | None = None
    clip: ClipSettings | None = None
    weights: tuple[str, ...] | None = None
    read_pickled_module: bool | None = None

    def __post_init__(self) -> None:
        if self.num_classes is not None and not 2 <= self.num_classes <= _MAX_CLASSES:
            raise ConfigError(f"num_classes: expected 2 or more, got {self.num_classes}")
        for name, length in (("image_shape", 3), ("input_size", 2)):
            sides = getattr(self, name)
            if sides is not None and (
                len(sides) != length or not all(1 <= side <= _MAX_SIDE for side in sides)
            ):
                raise ConfigError(f"{name}: expected {length} whole numbers from 1, got {sides}")
        for name in ("mean", "std"):
            values = getattr(self, name)
            if values is not None and (not values or not all(map(math.isfinite, values))):
                raise ConfigError(f"{name}: expected finite numbers, one per channel, got {values}")
        if self.std is not None and min(self.std) <= 0:
            raise ConfigError(f"std: expected numbers above 0, got {self.std}")
        if self.mean and self.std and len(self.mean) != len(self.std):
            raise ConfigError(f"mean and std: expected equally many, got {self.mean}, {self.std}")
        if self.interpolation not in (None, "bilinear", "bicubic"):
            raise ConfigError(
                f"interpolation: expected bilinear or bicubic, got {self.interpolation!r}"
            )
        if self.outputs not in (None, "logits", "probabilities"):
            raise ConfigError(f"outputs: expected logits or probabilities, got {self.outputs!r}")
        if self.score_threshold is not None and not 0 < self.score_threshold < 1:
            raise ConfigError(
                f"score_threshold: expected a number in (0, 1), got {self.score_threshold}"
            )
        roles = [_split_role(text)[0] for text in self.weights or ()]
        if len(set(roles)) != len(roles):
            raise ConfigError(
                f"weights: expected one KEY for all models and one ROLE=KEY a role, got "
                f"{', '.join(self.weights or ())}"
            )
        if not all(_split_role(text)[1] for text in self.weights or ()):
            raise ConfigError("weights: expected a KEY, got none")

    def weights_of(self, role: str | None) -> str | None:
        """Return the KEY that was given for the models of a role, or (`None`) for all."""
        return dict(_split_role(text) for text in self.weights or ()).get(role)

    def over(self, weaker: ModelSettings) -> ModelSettings:
        """Return these settings, with `weaker` filling what they leave open.

        `mean` and `std` belong together and are taken from one source.
        """
        filled = {
            field.name: getattr(weaker, field.name)
            for field in dataclasses.fields(self)
            if getattr(self, field.name) is None
        }
        if self.mean is not None or self.std is not None:
            filled.pop("mean", None)
            filled.pop("std", None)
        return dataclasses.replace(self, **filled)

    def to_metadata(self) -> dict[str, str]:
        """Write the settings that are set as a safetensors file's metadata."""
        entries = {}
        for key in _IN_METADATA:
            value = getattr(self, key)
            if isinstance(value, tuple):
                value = ",".join(repr(part) for part in value)
            if value is not None:
                entries[key] = str(value)
        return entries

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str], source: Path) -> ModelSettings:
        """Read the settings among a file's metadata; other keys are left alone.

        Raises:
            ModelError: A value does not parse, is out of range, or names Python code to run.
        """
        return _from_file({key: metadata[key] for key in _IN_METADATA if key in metadata}, source)

    @classmethod
    def from_backdoorbench(cls, metadata: Mapping[str, str], source: Path) -> ModelSettings:
        """Read the settings that BackdoorBench stores or implies.

        Raises:
            ModelError: The class count or image size is out of range.
        """
        entries: dict[str, Any] = {}
        if "model_name" in metadata:
            entries["arch"] = from_backdoorbench_name(metadata["model_name"])
        if "num_classes" in metadata:
            entries["num_classes"] = metadata["num_classes"]
        sides = metadata.get("img_size", "").split(",")
        if len(sides) == 3:
            entries["image_shape"] = ",".join((sides[2], *sides[:2]))  # stored as H, W, C
        normalisation = backdoorbench.normalisation_of(metadata)
        if normalisation is not None:
            _, entries["mean"], entries["std"] = normalisation
        return _from_file(
            {key: value for key, value in entries.items() if value is not None}, source
        )


@reads(ModelError)
def read_model_toml(checkpoint: Path) -> tuple[ModelSettings, Path | None]:
    """Read `<stem>.toml` or else `model.toml` beside a checkpoint.

    Returns:
        The settings and the file they came from, or empty settings and `None`.

    Raises:
        ModelError: The file does not parse, has an unknown key, or a value is out of range.
    """
    for path in (checkpoint.with_suffix(".toml"), checkpoint.with_name("model.toml")):
        if not is_file(path):
            continue
        entries = read_toml(path, what="settings of a model", error=ModelError)
        unknown = sorted(entries.keys() - _PARSERS.keys())
        if unknown:
            raise ModelError(f"{path}: expected the keys {', '.join(_PARSERS)}, got {unknown}")
        return _from_file(entries, path), path
    return ModelSettings(), None


def _from_file(entries: Mapping[str, Any], source: Path) -> ModelSettings:
    values = {}
    for key, value in entries.items():
        try:
            values[key] = _PARSERS[key](value)
        except (TypeError, ValueError) as error:
            raise ModelError(f"{source}: {key}: cannot read {_shown(value)}: {error}") from error
    if is_python_factory(values.get("arch")):
        raise ModelError(
            f"{source}: arch: {values['arch']!r} would run Python code that came with the file; "
            "give it yourself with --arch if you trust it"
        )
    try:
        return ModelSettings(**values)
    except ConfigError as error:
        raise ModelError(f"{source}: {error}") from error


def _parts(value: Any) -> list[Any]:
    if isinstance(value, str):
        return value.split(",")
    return list(value) if isinstance(value, list | tuple) else [value]


def _integers(value: Any) -> tuple[int, ...]:
    parts = _parts(value)
    if any(isinstance(part, bool | float) for part in parts):
        raise ValueError("expected whole numbers")
    numbers = tuple(int(part) for part in parts)
    if any(abs(number) > _LARGEST for number in numbers):
        raise ValueError("the number is too large")
    return numbers


def _integer(value: Any) -> int:
    (number,) = _integers(value)
    return number


def _floats(value: Any) -> tuple[float, ...]:
    return tuple(float(part) for part in _parts(value))


def _float(value: Any) -> float:
    (number,) = _floats(value)
    return number


def _shown(value: Any) -> str:
    try:
        return repr(value)[:100]
    except ValueError:  # a whole number of thousands of digits has no decimal form
        return "a number that is too large"


def _split_role(text: str) -> tuple[str | None, str]:
    role, equals, key = text.partition("=")
    return (role, key) if equals and role in _ROLES else (None, text)


def _key(value: Any) -> tuple[str, ...]:
    return (_text(value),)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("expected text")
    return value


_PARSERS: dict[str, Callable[[Any], Any]] = {
    "arch": _text,
    "num_classes": _integer,
    "image_shape": _integers,
    "input_size": _integers,
    "mean": _floats,
    "std": _floats,
    "interpolation": _text,
    "outputs": _text,
    "score_threshold": _float,
    "weights": _key,
}
# Which of its weights count is not for the file itself to say.
_IN_METADATA = tuple(key for key in _PARSERS if key != "weights")
