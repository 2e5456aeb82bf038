"""What black boxes in files have in common: a runtime runs them a batch at a time."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bdaudit.blackbox.base import BlackBox, join_answers
from bdaudit.blackbox.layout import ImageLayout, read_rows
from bdaudit.errors import ModelError
from bdaudit.models import ONE_SCORE

__all__ = ["FileBlackBox", "time_limit"]

TIME_LIMIT_S = 60.0
"""How long a call may take, in seconds, beside `TIME_LIMIT_EACH_S` for each of its images."""
TIME_LIMIT_EACH_S = 10.0


def time_limit(n_images: int) -> float:
    """Return how many seconds a call may take: a loop in a file may go round for ever."""
    return TIME_LIMIT_S + TIME_LIMIT_EACH_S * n_images


class FileBlackBox(BlackBox):
    """A classifier in a file that a runtime runs on this machine.

    Attributes:
        path: The file.
        layout: How images fill its input.
        batch_size: Images a call.
    """

    computes_here = True
    path: Path
    layout: ImageLayout
    batch_size: int

    @property
    @abstractmethod
    def output_name(self) -> str:
        """The output with the scores or labels."""

    @abstractmethod
    def _call(self, images: Tensor) -> Any:
        """Give the runtime one batch of images (n, C, H, W) in [0, 1]; return that output."""

    def _answer(self, images: Tensor) -> Tensor:
        answers = []
        for batch in torch.split(images, self.batch_size):
            answers.append(self._run(batch))
            self._count(len(batch))
        return join_answers([torch.from_numpy(rows) for rows in answers], str(self.path))

    def _run(self, images: Tensor) -> NDArray[Any]:
        """Run one batch of images; scores (n, K) float32, or labels (n,) int64."""
        answer = self._call(images)
        n_rows = self.layout.batch or len(images)
        rows = read_rows(answer, n_rows)
        if rows is None:
            got = answer.shape if isinstance(answer, np.ndarray) else type(answer).__name__
            raise ModelError(
                f"{self.path}: expected scores ({n_rows}, K) or labels ({n_rows},) in "
                f"{self.output_name}, got {got}"
            )
        return rows[: len(images)]

    def _find_num_classes(
        self, declared: int | None, fallback: int | None, subject: str, notes: list[str]
    ) -> int:
        """Run one grey image, which is not a query, and look at the width of the answer."""
        grey = torch.full((1, *self.layout.image_shape), 0.5)
        answer = self._run(grey)
        told = answer.shape[1] if answer.ndim == 2 else None
        if told == 1:
            notes.append(ONE_SCORE)
            told = 2
        if told is not None and declared not in (None, told):
            raise ModelError(
                f"{subject}: expected scores (1, {declared}) for one image, got "
                f"{answer.shape}; pass the right num_classes or output_name"
            )
        number = told or declared or fallback
        if number is None:
            raise ModelError(f"{subject}: gives labels only; pass num_classes")
        return int(number)
