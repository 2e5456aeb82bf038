"""A trigger: what is stamped on an image, and where that should take it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from bdaudit.errors import TriggerError
from bdaudit.foundation.digests import digest_tensors
from bdaudit.triggers.function import Function
from bdaudit.triggers.rules import AllToOne, TargetRule
from bdaudit.triggers.transforms import Transform

__all__ = ["Trigger", "from_callable"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Trigger:
    """A transform of images with a target rule.

    Attributes:
        transform: What is done to the pixels.
        rule: Which class an image should be taken to.
        source: Where the trigger came from, for the record.
        recovered: True when it was inverted from a model rather than given.
        sha256: Digest over kind, settings, rule, tensors and files; the same for the same trigger
            wherever it is kept.
    """

    transform: Transform
    rule: TargetRule
    source: str = "memory"
    recovered: bool = False
    sha256: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "sha256", _digest(self.transform, self.rule))

    @property
    def kind(self) -> str:
        """The transform's kind, as trigger files spell it."""
        return self.transform.kind

    @property
    def target_label(self) -> int | None:
        """The one target class, `None` where it depends on the image."""
        return self.rule.target_label

    def stamp(self, images: Tensor, *, names: Sequence[str] | None = None) -> Tensor:
        """Put the trigger on images.

        Args:
            images: (N, C, H, W) floats in [0, 1]; left as they are.
            names: One name an image, needed by a paired trigger only.

        Returns:
            (N, C, H, W) in [0, 1], on the same device and of the same type. Each image is stamped
            without regard to the others in the batch. Of marked images (`detection.mark`) the
            picture alone is changed.

        Raises:
            TriggerError: The trigger does not fit the images, or has no version of one of them.
        """
        if images.ndim != 4 or not images.is_floating_point():
            raise TriggerError(
                f"expected float images (N, C, H, W), got {images.dtype} {tuple(images.shape)}"
            )
        return self.transform.stamp(images, names)

    def targets(self, labels: Tensor, num_classes: int) -> Tensor:
        """Map true labels (N,) to target labels (N,), -1 where an image does not count.

        Raises:
            TriggerError: A class of the rule, or a label, is not below `num_classes`.
        """
        return self.rule.targets(labels, num_classes)


def from_callable(
    function: Callable[[Tensor], Tensor],
    target: int | TargetRule,
    *,
    source: str = "python function",
) -> Trigger:
    """Make a trigger of a Python function.

    Args:
        function: Maps images (N, C, H, W) in [0, 1] to images of the same shape; see `Function`
            for what it must keep to.
        target: The target class, or a rule.
        source: What the record says about where it came from.
    """
    rule = AllToOne(target) if isinstance(target, int) else target
    return Trigger(transform=Function(function=function), rule=rule, source=source)


def _digest(transform: Transform, rule: TargetRule) -> str:
    description = {
        "kind": transform.kind,
        "settings": transform.settings(),
        "rule": {"name": rule.name, **rule.settings()},
        "tensors": digest_tensors(transform.tensors()),
        "files": transform.file_digests(),
    }
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()
