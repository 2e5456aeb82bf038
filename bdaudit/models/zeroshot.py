"""The image tower of a CLIP held against fixed text embeddings: a network like any other."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["ZeroShotNetwork"]


class ZeroShotNetwork(nn.Module):
    """Scores an image by the cosine between its embedding and that of each class' prompts.

    The text embeddings, scale and bias are buffers: fine-tuning moves the image tower alone.

    Args:
        visual: Image tower, from normalised images (N, 3, H, W) to embeddings (N, D). Layers are
            named as in the checkpoint (`visual.layer1.0.conv1`).
        text_embeddings: (K, D), of length 1 each.
        logit_scale: What cosines are multiplied by, above 0.
        logit_bias: What is then added.
        image_size: (H, W), the only size the tower takes.
        build_visual: Builds such an image tower with fresh weights.
    """

    text_embeddings: Tensor
    logit_scale: Tensor
    logit_bias: Tensor

    def __init__(
        self,
        visual: nn.Module,
        text_embeddings: Tensor,
        *,
        logit_scale: float,
        logit_bias: float = 0.0,
        image_size: tuple[int, int],
        build_visual: Callable[[], nn.Module],
    ) -> None:
        super().__init__()
        self.visual = visual
        self.image_size = image_size
        self.build_visual = build_visual
        self.register_buffer("text_embeddings", text_embeddings)
        self.register_buffer("logit_scale", torch.tensor(logit_scale))
        self.register_buffer("logit_bias", torch.tensor(logit_bias))

    def forward(self, images: Tensor) -> Tensor:
        """Map normalised images (N, 3, H, W) to logits (N, K)."""
        embeddings = functional.normalize(self.visual(images), dim=-1)
        cosines = functional.linear(embeddings, self.text_embeddings)
        return cosines * self.logit_scale + self.logit_bias
