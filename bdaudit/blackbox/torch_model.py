"""A torch model as a black box."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from bdaudit.blackbox.base import BlackBox, Feedback, Identity
from bdaudit.blackbox.scale import ScoreScale
from bdaudit.errors import ConfigError
from bdaudit.models import LoadedModel

__all__ = ["TorchBlackBox"]


class TorchBlackBox(BlackBox):
    """A model at hand that is only asked: no gradients, no look inside.

    Args:
        model: As loaded; it is asked on the device it is on.
        feedback: What `ask` gives back.
        grid: As for `BlackBox`.
        scale: As for `BlackBox`; a model that takes logs of its probabilities itself gives logits.
        batch_size: Images a forward pass, 1 or more.
    """

    computes_here = True

    def __init__(
        self,
        model: LoadedModel,
        *,
        feedback: Feedback = "scores",
        grid: int | None = None,
        scale: ScoreScale | None = None,
        batch_size: int = 256,
    ) -> None:
        if batch_size < 1:
            raise ConfigError(f"batch_size: expected 1 or more, got {batch_size}")
        super().__init__(
            name=model.name,
            num_classes=model.num_classes,
            image_shape=model.image_shape,
            feedback=feedback,
            grid=grid,
            scale=scale,
            notes=model.notes,
        )
        self.model = model
        self.batch_size = batch_size

    def identity(self) -> Identity:
        """Return which weights answer."""
        source = "in memory" if self.model.path is None else str(self.model.path)
        details = {} if self.grid is None else {"grid": str(self.grid)}
        return Identity(
            kind="torch", source=source, sha256=self.model.weights_sha256, details=details
        )

    def _answer(self, images: Tensor) -> Tensor:
        tensors = self.model.classifier.state_dict().values()
        device = next((t.device for t in tensors if isinstance(t, Tensor)), images.device)
        with torch.inference_mode():
            answers = [
                cast(Tensor, self.model.classifier(batch.to(device))).float().cpu()
                for batch in torch.split(images, self.batch_size)
            ]
        self._count(len(images))
        # Out of inference mode, so that whoever asked may compute with them freely.
        return torch.cat(answers)
