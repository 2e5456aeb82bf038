"""Triggers that are the user's own Python code."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from bdaudit.errors import TriggerError
from bdaudit.foundation.file_digests import digest_file
from bdaudit.foundation.usercode import failing_as
from bdaudit.foundation.usercode import load_function as load_user_function
from bdaudit.triggers.transforms import Setting, Transform

__all__ = ["Function", "load_function"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Function(Transform):
    """A function from images (N, C, H, W) in [0, 1] to images of the same shape.

    It must treat each image alike whatever batch it comes in, and must not draw random numbers of
    its own: the audit stamps in batches, and more than once.

    Attributes:
        function: The function; it is handed a copy of the images.
        path: The file it was loaded from, `None` for a function handed over in memory.
    """

    kind: ClassVar[str] = "python"
    function: Callable[[Tensor], Tensor]
    path: Path | None = None

    def apply(self, images: Tensor, names: Sequence[str] | None) -> Tensor:
        """Call the function on a copy of `images`."""
        with failing_as(TriggerError, f"{self._name()}: the trigger function raised"):
            stamped = self.function(images.clone())
        if not isinstance(stamped, Tensor) or stamped.shape != images.shape:
            got = tuple(stamped.shape) if isinstance(stamped, Tensor) else type(stamped).__name__
            raise TriggerError(
                f"{self._name()}: expected images of shape {tuple(images.shape)} back, got {got}"
            )
        if not torch.isfinite(stamped).all():
            raise TriggerError(f"{self._name()}: gave NaN or infinite pixels")
        return stamped

    def tensors(self) -> dict[str, Tensor]:
        """Return nothing: what a function closes over is not known."""
        return {}

    def settings(self) -> dict[str, Setting]:
        """Return the function's name."""
        return {"function": self._name()}

    def file_digests(self) -> dict[str, str]:
        """Return the sha256 of the function's file, or of its source text as far as it is known."""
        if self.path is not None:
            return {"source": digest_file(self.path)}
        try:
            source = inspect.getsource(self.function)
        except (OSError, TypeError):
            source = ""
        return {"source": hashlib.sha256(source.encode()).hexdigest()}

    def _name(self) -> str:
        return str(getattr(self.function, "__qualname__", type(self.function).__qualname__))


def load_function(path: Path, name: str) -> Function:
    """Run the Python file at `path` and take the function called `name` from it.

    This executes the file. Callers ask the user first.

    Raises:
        TriggerError: The file cannot be run or has no such function.
    """
    return Function(function=load_user_function(path, name, error=TriggerError), path=path)
