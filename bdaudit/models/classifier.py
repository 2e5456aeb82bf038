"""The one shape every model takes inside bdaudit: images in [0, 1] to logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from bdaudit.models.checkpoint import ReadFile

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
        one_score: Whether the network returns one score z an image, (N, 1), for class 1 against
            class 0. The logits are then (0, z), whose softmax is the sigmoid of z and whose larger
            one is class 1 where z > 0; of a probability p they are (log(1 - p), log p).
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
        one_score: bool = False,
    ) -> None:
        super().__init__()
        self.network = network
        self.input_size = input_size
        self.interpolation = interpolation
        self.outputs = outputs
        self.one_score = one_score
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
        if self.one_score:
            other = 1 - scores if self.outputs == "probabilities" else torch.zeros_like(scores)
            scores = torch.cat((other, scores), dim=1)
        if self.outputs == "probabilities":
            scores = scores.clamp_min(torch.finfo(scores.dtype).tiny).log()
        return scores  # type: ignore[no-any-return]

    def with_two_classes(self) -> Classifier:
        """Return the same classifier, its network's one score taken as two classes."""
        return self._again(one_score=True, outputs=self.outputs)

    def with_outputs(self, outputs: Literal["logits", "probabilities"]) -> Classifier:
        """Return the same classifier, its network's outputs taken as `outputs`."""
        return self._again(one_score=self.one_score, outputs=outputs)

    def _again(self, *, one_score: bool, outputs: Literal["logits", "probabilities"]) -> Classifier:
        again = Classifier(
            self.network,
            mean=self.mean.flatten().tolist(),
            std=self.std.flatten().tolist(),
            input_size=self.input_size,
            interpolation=self.interpolation,
            outputs=outputs,
            one_score=one_score,
        )
        return again.to(self.mean.device).train(self.training)


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
        weights: Which of the file's sets of weights it is, `None` where the file holds one and
            none was asked for.
        unaudited: The file's other sets of weights, which differ.
        files: What was read, as it was then: the file, or an index and its shards.
        class_names: Names of its classes in order of index, where its files have them.
    """

    name: str
    classifier: nn.Module
    num_classes: int
    image_shape: tuple[int, int, int]
    arch: str
    weights_sha256: str
    path: Path | None = None
    notes: tuple[str, ...] = ()
    weights: str | None = None
    unaudited: tuple[str, ...] = ()
    files: tuple[ReadFile, ...] = ()
    class_names: tuple[str, ...] | None = None

    @property
    def network(self) -> nn.Module:
        """The bare network, whose layer names match the checkpoint's."""
        if isinstance(self.classifier, Classifier):
            return self.classifier.network
        return self.classifier
