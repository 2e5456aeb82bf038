"""The features a classifier's last layer reads, and which of them carry the task."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from bdaudit.errors import ModelError
from bdaudit.foundation.progress import Progress, Steps

__all__ = [
    "BenignMaskConfig",
    "FeatureMap",
    "FeatureReader",
    "find_last_map",
    "fit_benign_mask",
    "fit_map_mask",
]


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


class FeatureMap:
    """Masks the last feature map of a classifier, before it is pooled.

    Args:
        layer: The module that gives the map (n, C, H, W).

    Attributes:
        shape: (C, H, W) of the map last seen.
    """

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer
        self.shape: tuple[int, ...] = ()
        self._mask: Tensor | None = None

    @contextmanager
    def hooked(self) -> Iterator[FeatureMap]:
        """Attach to the layer, and let it go afterwards."""

        def answered(_: nn.Module, __: object, output: Tensor) -> Tensor:
            self.shape = tuple(output.shape[1:])
            return output if self._mask is None else output * self._mask

        handle = self.layer.register_forward_hook(answered)
        try:
            yield self
        finally:
            handle.remove()
            self._mask = None

    def mask_with(self, mask: Tensor | None) -> None:
        """Multiply the map by `mask` (C, H, W) from now on, whoever calls the model."""
        self._mask = mask


def find_last_map(classifier: nn.Module, images: Tensor) -> nn.Module | None:
    """Return the module that gives a classifier's last feature map, before any pooling.

    Of the modules that answer with maps (n, C, H, W) once the last layer with weights other than a
    linear one has answered, it is the last of those with the most places: a residual block rather
    than its last convolution, and no average of it.

    Args:
        classifier: Maps images to logits (n, K).
        images: A few of them, to run it on.

    Returns:
        The module; `None` where a network has none, as a transformer, whose last layers with
        weights give tokens.
    """
    answered: list[tuple[nn.Module, int]] = []
    calls: Counter[nn.Module] = Counter()

    def watch(module: nn.Module, _: object, output: object) -> None:
        calls[module] += 1
        if not isinstance(module, nn.Linear) and any(
            True for _ in module.parameters(recurse=False)
        ):
            answered.clear()
        if isinstance(output, Tensor) and output.ndim == 4:
            answered.append((module, output.shape[2] * output.shape[3]))

    handles = [
        module.register_forward_hook(watch)
        for module in classifier.modules()
        if module is not classifier
    ]
    try:
        with torch.no_grad():
            classifier(images)
    finally:
        for handle in handles:
            handle.remove()
    # One that is called in several places, as a shared activation, gives other maps as well.
    maps = [(module, places) for module, places in answered if calls[module] == 1]
    most = max((places for _, places in maps), default=0)
    return next((module for module, places in reversed(maps) if places == most), None)


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
    here it is what the last linear layer reads (the map after pooling, or a transformer's token).
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


def fit_map_mask(
    classifier: nn.Module,
    features: FeatureMap,
    images: Tensor,
    labels: Tensor,
    *,
    n_epochs: int,
    n_images: int,
    learning_rate: float,
    sparsity: float,
    generator: torch.Generator,
) -> Steps[Tensor]:
    """Find which places of the last feature map carry the task.

    The mask m in [0, 1], of the map's shape (C, H, W), lowers CE(m * f, y) - CE((1 - m) * f, y)
    plus `sparsity` times its L1 norm over that norm's value: a pull whose strength does not hang on
    how large the mask is.

    Args:
        classifier: The model.
        features: Its last map, hooked.
        images: (N, C, H, W) clean craft images, where the model is.
        labels: (N,) true labels, there too.
        n_epochs: Passes over the images.
        n_images: Images in a mini-batch.
        learning_rate: Of Adam.
        sparsity: Weight of the norm.
        generator: Seeded CPU generator.

    Returns:
        The mask (C, H, W).

    Source: Xu et al. (BAN), as in `fit_benign_mask`: Adam at .01 from uniform noise, clamped.
    """
    title = "mask of benign features"
    yield Progress(title, 0, n_epochs)
    with torch.no_grad():
        classifier(images[:2])  # tells the map's shape
    mask = torch.rand(features.shape, generator=generator).to(images.device)
    optimizer = torch.optim.Adam([mask], lr=learning_rate)
    n_batches = max(1, len(images) // n_images)
    for epoch in range(n_epochs):
        order = torch.randperm(len(images), generator=generator).to(images.device)
        for chosen in order.tensor_split(n_batches):
            leaf = mask.detach().requires_grad_()
            losses = []
            for part in (leaf, 1 - leaf):
                features.mask_with(part)
                logits = classifier(images[chosen]).float()
                losses.append(functional.cross_entropy(logits, labels[chosen]))
            norm = leaf.sum()
            pull = sparsity * norm / norm.detach().clamp_min(1e-6)
            (mask.grad,) = torch.autograd.grad(losses[0] - losses[1] + pull, leaf)
            optimizer.step()
            mask.clamp_(0, 1)
        yield Progress(title, epoch + 1, n_epochs)
    features.mask_with(None)
    return mask


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
