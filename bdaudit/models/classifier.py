"""The one shape every model takes inside bdaudit: images in [0, 1] to logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["Classifier", "Interpolation", "LoadedModel"]

Interpolation = Literal["bilinear", "bicubic"]


class Classifier(nn.Module):
    """A network with its preprocessing inside.

    Args:
        network: Maps normalised images (N, C, H', W') to scores (N, K).
        mean: Per-channel mean subtracted from the [0, 1] image, length C or 1.
        std: Per-channel divisor, all above 0.
        input_size: (H', W') to resize to (antialiased) before normalising; `None` passes images
            at their own size.
        interpolation: How to resize. What bicubic overshoots is brought back into [0, 1].
        outputs: What the network returns. Of "probabilities" the log is taken, so that every
            loss and every CKA sees scores on the same scale.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: nn.Module,
        *,
        mean: Sequence[float] = (0.0,),
        std: Sequence[float] = (1.0,),
        input_size: tuple[int, int] | None = None,
        interpolation: Interpolation = "bilinear",
        outputs: Literal["logits", "probabilities"] = "logits",
    ) -> None:
        super().__init__()
        self.network = network
        self.input_size = input_size
        self.interpolation = interpolation
        self.outputs = outputs
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (N, C, H, W) in [0, 1] to logits (N, K)."""
        if self.input_size is not None and tuple(images.shape[-2:]) != self.input_size:
            images = functional.interpolate(
                images,
                size=self.input_size,
                mode=self.interpolation,
                antialias=True,
                align_corners=False,
            )
            if self.interpolation == "bicubic":
                images = images.clamp(0, 1)
        scores = self.network((images - self.mean) / self.std)
        if self.outputs == "probabilities":
            scores = scores.clamp_min(torch.finfo(scores.dtype).tiny).log()
        return scores  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A classifier ready to be audited: eval mode, no parameter requires a gradient.

    Attributes:
        name: How the record refers to it.
        classifier: Maps images (N, C, H, W) in [0, 1] to logits (N, num_classes). Names of layers
            are those of `classifier.network` where it is a `Classifier`.
        image_shape: (C, H, W) it takes.
        arch: The architecture's name as `--arch` spells it, or the class name of a module.
        weights_sha256: Digest of the tensors it runs with.
        path: The file it came from; `None` for a module handed over in memory.
        notes: What the loader did to the file's content, in words.
    """

    name: str
    classifier: nn.Module
    num_classes: int
    image_shape: tuple[int, int, int]
    arch: str
    weights_sha256: str
    path: Path | None = None
    notes: tuple[str, ...] = ()

    @property
    def network(self) -> nn.Module:
        """The bare network, whose layer names match the checkpoint's."""
        if isinstance(self.classifier, Classifier):
            return self.classifier.network
        return self.classifier
