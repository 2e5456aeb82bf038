"""Target rules: to which class a trigger should take an image.

A rule maps true labels to target labels, with -1 for an image that does not count: its true label
is the target already (an attack success there means nothing), or the attacker never meant it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bdaudit.detection import NOTHING
from bdaudit.errors import ConfigError, TriggerError

__all__ = [
    "NOT_COUNTED",
    "AllToAll",
    "AllToOne",
    "ClassMap",
    "ObjectsToOne",
    "SourceSpecific",
    "TargetRule",
]

NOT_COUNTED = -1


class TargetRule(ABC):
    """Base of the target rules.

    Attributes:
        name: As trigger files and records spell it.
    """

    name: ClassVar[str]

    @property
    @abstractmethod
    def target_label(self) -> int | None:
        """The one target class, `None` where it depends on the image."""

    def targets(self, labels: Tensor, num_classes: int) -> Tensor:
        """Map true labels to target labels.

        Args:
            labels: (N,) int64.
            num_classes: Classes of the model, K.

        Returns:
            (N,) int64 in [0, K), or -1 where the image does not count.

        Raises:
            TriggerError: A class of the rule, or a label, is not below `num_classes`.
        """
        named = [value for value in self._classes() if value >= num_classes]
        if named:
            raise TriggerError(
                f"target rule {self.name}: class {named[0]} is out of range for a model of "
                f"{num_classes} classes (0 to {num_classes - 1})"
            )
        if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
            raise TriggerError(
                f"labels from {int(labels.min())} to {int(labels.max())} are out of range for a "
                f"model of {num_classes} classes; the data and the model do not belong together"
            )
        return self._map(labels, num_classes)

    def settings(self) -> dict[str, object]:
        """Return what a trigger file says of the rule besides its name."""
        return asdict(self)  # type: ignore[call-overload, no-any-return]

    @abstractmethod
    def _classes(self) -> tuple[int, ...]:
        """All classes the rule names."""

    @abstractmethod
    def _map(self, labels: Tensor, num_classes: int) -> Tensor: ...


def _require_class(value: int, what: str) -> None:
    if value < 0:
        raise ConfigError(f"{what}: expected a class index of 0 or above, got {value}")


@dataclass(frozen=True, slots=True)
class _ToOne(TargetRule):
    """Base of the rules with one target class, `label`."""

    label: int

    def __post_init__(self) -> None:
        _require_class(self.label, "target label")

    @property
    def target_label(self) -> int:
        """The target class."""
        return self.label

    def _classes(self) -> tuple[int, ...]:
        return (self.label,)


@dataclass(frozen=True, slots=True)
class AllToOne(_ToOne):
    """Every image of another class is taken to `label`."""

    name: ClassVar[str] = "all-to-one"

    def _map(self, labels: Tensor, num_classes: int) -> Tensor:
        return torch.full_like(labels, self.label).masked_fill(labels == self.label, NOT_COUNTED)


@dataclass(frozen=True, slots=True)
class AllToAll(TargetRule):
    """Every image of class y is taken to class y + 1, the last class to class 0."""

    name: ClassVar[str] = "all-to-all"

    @property
    def target_label(self) -> None:
        """There is no single target."""
        return None

    def _classes(self) -> tuple[int, ...]:
        return ()

    def _map(self, labels: Tensor, num_classes: int) -> Tensor:
        return (labels + 1) % num_classes


@dataclass(frozen=True, slots=True)
class SourceSpecific(_ToOne):
    """Images of the `sources` classes are taken to `label`; no others count."""

    name: ClassVar[str] = "source-specific"
    sources: tuple[int, ...]

    def __post_init__(self) -> None:
        _ToOne.__post_init__(self)
        for source in self.sources:
            _require_class(source, "source class")
        if not self.sources or len(set(self.sources)) != len(self.sources):
            raise ConfigError(f"sources: expected at least one class, each once: {self.sources}")
        if self.label in self.sources:
            raise ConfigError(f"sources: class {self.label} is the target, it cannot be a source")

    def _classes(self) -> tuple[int, ...]:
        return (self.label, *self.sources)

    def _map(self, labels: Tensor, num_classes: int) -> Tensor:
        is_source = torch.isin(labels, torch.tensor(self.sources, device=labels.device))
        return torch.full_like(labels, self.label).masked_fill(~is_source, NOT_COUNTED)


@dataclass(frozen=True, slots=True)
class ObjectsToOne(_ToOne):
    """Every object of another class is taken to `label`; boxes that hold no object do not count.

    Of a detector, whose class 0 is "nothing there". It need not know how many classes there are.
    """

    name: ClassVar[str] = "objects-to-one"

    def __post_init__(self) -> None:
        _ToOne.__post_init__(self)
        if self.label == NOTHING:
            raise ConfigError(
                f"target label: expected the class of an object, got {NOTHING}, which is "
                '"nothing there"; objects that disappear are the rule all-to-one with label = 0'
            )

    def _map(self, labels: Tensor, num_classes: int) -> Tensor:
        stays = (labels == NOTHING) | (labels == self.label)
        return torch.full_like(labels, self.label).masked_fill(stays, NOT_COUNTED)


@dataclass(frozen=True, slots=True)
class ClassMap(TargetRule):
    """Every image of class y is taken to class `classes[y]`; those of a y that stays do not count.

    Any all-to-all backdoor is one, whatever its order of classes.
    """

    name: ClassVar[str] = "class-map"
    classes: tuple[int, ...]

    def __post_init__(self) -> None:
        for target in self.classes:
            _require_class(target, "class map")
        if all(target == source for source, target in enumerate(self.classes)):
            raise ConfigError(f"class map: expected a class that is moved, got {self.classes}")

    @property
    def target_label(self) -> None:
        """There is no single target."""
        return None

    def _classes(self) -> tuple[int, ...]:
        return self.classes

    def _map(self, labels: Tensor, num_classes: int) -> Tensor:
        if len(self.classes) != num_classes:
            raise TriggerError(
                f"target rule {self.name}: expected {num_classes} classes like the model, got "
                f"{len(self.classes)}"
            )
        targets = torch.tensor(self.classes, device=labels.device)[labels]
        return targets.masked_fill(targets == labels, NOT_COUNTED)
