"""A user's own Python function as a black box."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bdaudit.blackbox.base import BlackBox, Feedback, Identity, join_answers
from bdaudit.blackbox.scale import ScoreScale
from bdaudit.errors import ConfigError, ModelError
from bdaudit.foundation.file_digests import digest_file
from bdaudit.foundation.usercode import failing_as

__all__ = ["FunctionBlackBox"]


class FunctionBlackBox(BlackBox):
    """A function from images (n, C, H, W) in [0, 1], float32, to scores (n, K) or labels (n,).

    It may give a torch tensor, a numpy array or nested lists; of two classes also one score an
    image, (n, 1). Whole numbers (n, 1) are labels. An image counts as answered when the
    function returns.

    Args:
        function: The function.
        name: How records refer to the model.
        num_classes: K.
        image_shape: (C, H, W).
        path: The file it came from; `None` for one in memory.
        feedback: What `ask` gives back.
        grid: As for `BlackBox`.
        scale: As for `BlackBox`.
        batch_size: Images a call, 1 or more.
        details: What else decides the answers, for `identity`.
    """

    def __init__(
        self,
        function: Callable[[Tensor], Any],
        *,
        name: str,
        num_classes: int,
        image_shape: tuple[int, int, int],
        path: Path | None = None,
        feedback: Feedback = "scores",
        grid: int | None = None,
        scale: ScoreScale | None = None,
        batch_size: int = 256,
        details: Mapping[str, str] | None = None,
    ) -> None:
        if batch_size < 1:
            raise ConfigError(f"batch_size: expected 1 or more, got {batch_size}")
        super().__init__(
            name=name,
            num_classes=num_classes,
            image_shape=image_shape,
            feedback=feedback,
            grid=grid,
            scale=scale,
        )
        self.function = function
        self.path = path
        self._more = dict(details or {})
        self.files = () if path is None else (path,)
        self.batch_size = self.request_size = batch_size

    def identity(self) -> Identity:
        """Name the function and digest its file; what it calls elsewhere is not known."""
        function = getattr(self.function, "__qualname__", type(self.function).__qualname__)
        return Identity(
            kind="function",
            source=function if self.path is None else f"{self.path}:{function}",
            sha256=None if self.path is None else digest_file(self.path),
            details={"function": function, "grid": str(self.grid), **self._more},
        )

    def _answer(self, images: Tensor) -> Tensor:
        answers = []
        for batch in torch.split(images, self.batch_size):
            answers.append(self._call(batch))
            self._count(len(batch))
        return join_answers(answers, self.name)

    def _call(self, batch: Tensor) -> Tensor:
        where = (
            f"{self.name}: the function of {self.path or 'memory'} failed on {len(batch)} images"
        )
        with failing_as(ModelError, where):
            # A copy, so that it cannot change the images of whoever asks.
            answer = torch.as_tensor(self.function(batch.detach().float().cpu().clone()))
        if answer.ndim not in (1, 2) or len(answer) != len(batch):
            raise ModelError(
                f"{self.name}: expected scores ({len(batch)}, {self.num_classes}) or labels "
                f"({len(batch)},) from the function, got {tuple(answer.shape)}"
            )
        if answer.ndim == 2 and answer.shape[1] == 1 and not answer.dtype.is_floating_point:
            answer = answer[:, 0]
        if answer.ndim == 1 and answer.dtype.is_floating_point:
            # Labels would be cut to whole numbers: every probability below 1 to class 0.
            raise ModelError(
                f"{self.name}: expected labels ({len(batch)},) as whole numbers, got "
                f"{answer.dtype}; give one score an image as ({len(batch)}, 1)"
            )
        return answer.detach().cpu()
