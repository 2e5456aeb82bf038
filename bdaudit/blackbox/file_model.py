"""What black boxes in files have in common: a runtime runs them a batch at a time."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bdaudit.blackbox.base import BlackBox, Feedback, join_answers
from bdaudit.blackbox.layout import TensorSpec, choose_output, place_images, read_rows
from bdaudit.blackbox.options import BlackBoxOptions
from bdaudit.errors import ModelError
from bdaudit.models import ONE_SCORE, ModelSettings

__all__ = ["FileBlackBox", "time_limit"]

TIME_LIMIT_S = 60.0
"""How long a call may take, in seconds, beside `TIME_LIMIT_EACH_S` for each of its images."""
TIME_LIMIT_EACH_S = 10.0
_BATCH_SIZE = 256


def time_limit(n_images: int) -> float:
    """Return how many seconds a call may take: a loop in a file may go round for ever."""
    return TIME_LIMIT_S + TIME_LIMIT_EACH_S * n_images


class FileBlackBox(BlackBox):
    """A classifier in a file that a runtime runs on this machine.

    A subclass opens the file and sets `path`, `notes` and what its runtime needs before it calls
    this.

    Args:
        taken: The input.
        given: The outputs.
        name: How records refer to the model.
        feedback: What `ask` gives back.
        options: What is known about it. A file with a fixed batch keeps its own batch size.
        fallback: Image shape and class count where neither options nor file say.

    Attributes:
        path: The file.
        layout: How images fill its input.
        batch_size: Images a call.

    Raises:
        ModelError: It has no image input or no scores, fails on a grey image, or was said to give
            logits and ends in a sigmoid.
        ConfigError: An argument is out of range.
    """

    computes_here = True
    path: Path

    def __init__(
        self,
        taken: TensorSpec,
        given: Sequence[TensorSpec],
        *,
        name: str,
        feedback: Feedback,
        options: BlackBoxOptions,
        fallback: ModelSettings,
    ) -> None:
        subject = f"{name} ({self.path})"
        self.layout = place_images(
            taken,
            subject=subject,
            settings=options.settings,
            order=options.layout,
            fallback_image_shape=fallback.image_shape,
        )
        self._output = choose_output(
            given, subject=subject, name=options.output_name, labels_only=feedback == "labels"
        )
        self._place = list(given).index(self._output)
        self.batch_size = self.layout.batch or options.request_size or _BATCH_SIZE
        super().__init__(
            name=name,
            num_classes=self._find_num_classes(
                options.settings.num_classes, fallback.num_classes, subject
            ),
            image_shape=self.layout.image_shape,
            feedback=feedback,
            grid=self.layout.grid or options.grid,
            scale=options.known_scale,
            notes=self.notes,
        )
        declared_logits = ONE_SCORE in self.notes and options.settings.outputs == "logits"
        # Above 0, a probability that was declared a logit would always be class 1.
        if declared_logits and self._last_operator() == "Sigmoid":
            raise ModelError(
                f"{subject}: its outputs were declared logits, but {self.output_name} comes out "
                "of a Sigmoid; declare outputs='probabilities', or leave it out"
            )

    @property
    def output_name(self) -> str:
        """The output with the scores or labels."""
        return self._output.name

    def _details(self) -> dict[str, str]:
        """Return what else decides the answers beside the file."""
        return {**self.layout.describe(), "output": self.output_name, "grid": str(self.grid)}

    @abstractmethod
    def _last_operator(self) -> str | None:
        """Return the operator that computes the output, those left out that keep its values."""

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

    def _find_num_classes(self, declared: int | None, fallback: int | None, subject: str) -> int:
        """Run one grey image, which is not a query, and look at the width of the answer."""
        grey = torch.full((1, *self.layout.image_shape), 0.5)
        answer = self._run(grey)
        told = answer.shape[1] if answer.ndim == 2 else None
        if told == 1:
            self.notes.append(ONE_SCORE)
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
