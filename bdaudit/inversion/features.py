"""The features a classifier's last layer reads, and which of them carry the task."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from bdaudit.errors import ModelError

__all__ = ["BenignMaskConfig", "FeatureReader", "fit_benign_mask"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BenignMaskConfig:
    """Settings of the mask that tells benign features from the rest.

    Attributes:
        n_steps: Adam steps, each over all the images' features (which are computed once).
        learning_rate: Of Adam on the mask's logits.
        sparsity: Weight of the mean of the mask: 0 in BTI-DBF, above 0 in BAN, which keeps
            features that nothing decides out of the benign part.
    """

    n_steps: int = 200
    learning_rate: float = 0.05
    sparsity: float = 0.0


class FeatureReader:
    """Reads and masks the input of a classifier's last linear layer.

    Args:
        classifier: Maps images to logits (n, K).
        images: A few of them, to look for the layer with.

    Raises:
        ModelError: No linear layer gives the logits.
    """

    def __init__(self, classifier: nn.Module, images: Tensor) -> None:
        self.classifier = classifier
        self.layer = _last_linear(classifier, images)
        self._mask: Tensor | None = None
        self._seen: Tensor | None = None

    @contextmanager
    def hooked(self) -> Iterator[FeatureReader]:
        """Attach to the model, and let it go afterwards."""

        def read(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            self._seen = inputs[0]
            return inputs if self._mask is None else (inputs[0] * self._mask, *inputs[1:])

        handle = self.layer.register_forward_pre_hook(read)
        try:
            yield self
        finally:
            handle.remove()
            self._mask = self._seen = None

    def mask_with(self, mask: Tensor | None) -> None:
        """Multiply the features by `mask` (F,) from now on, whoever calls the model."""
        self._mask = mask

    def features(self, images: Tensor) -> Tensor:
        """Return the features (n, F) of images, before any mask."""
        self.classifier(images)
        assert self._seen is not None
        return self._seen.float()

    def logits(self, images: Tensor) -> Tensor:
        """Return logits (n, K)."""
        scores: Tensor = self.classifier(images)
        return scores.float()

    def read_out(self, features: Tensor) -> Tensor:
        """Return what the last layer makes of features."""
        scores: Tensor = functional.linear(features, self.layer.weight, self.layer.bias)
        return scores


def fit_benign_mask(
    reader: FeatureReader, features: Tensor, labels: Tensor, config: BenignMaskConfig
) -> Tensor:
    """Find the features that carry the task on clean images.

    The mask m in [0, 1] lowers CE(m * f, y) - CE((1 - m) * f, y): the benign features alone answer
    rightly, the rest alone wrongly.

    Args:
        reader: Of the model.
        features: (N, F) of clean images.
        labels: (N,) true labels.
        config: Settings.

    Returns:
        (F,) the mask.

    Source: Xu et al., "Towards Reliable and Efficient Backdoor Trigger Inversion via Decoupling
    Benign Features", ICLR 2024, equation 1; with a sparsity term, Xu et al., "BAN: Detecting
    Backdoors Activated by Adversarial Neuron Noise", NeurIPS 2024. Both mask the last feature map;
    here it is what the last linear layer reads (the map after pooling).
    """
    logits = torch.zeros(features.shape[1], device=features.device)
    optimizer = torch.optim.Adam([logits], lr=config.learning_rate)
    for _ in range(config.n_steps):
        leaf = logits.detach().requires_grad_()
        mask = leaf.sigmoid()
        kept = functional.cross_entropy(reader.read_out(features * mask), labels)
        rest = functional.cross_entropy(reader.read_out(features * (1 - mask)), labels)
        (logits.grad,) = torch.autograd.grad(kept - rest + config.sparsity * mask.mean(), leaf)
        optimizer.step()
    return logits.sigmoid()


def _last_linear(classifier: nn.Module, images: Tensor) -> nn.Linear:
    called: list[nn.Linear] = []
    handles = [
        module.register_forward_hook(lambda m, *_: called.append(m))
        for module in classifier.modules()
        if isinstance(module, nn.Linear)
    ]
    try:
        with torch.no_grad():
            logits = classifier(images)
    finally:
        for handle in handles:
            handle.remove()
    if not called or called[-1].out_features != logits.shape[1]:
        raise ModelError(
            "this method needs a network whose last layer is linear and gives the logits; use "
            "--method universal, warp or neural-cleanse"
        )
    return called[-1]
