"""Adversarial neuron noise: shake the neurons, and see where images go without benign features."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from bdaudit.errors import ConfigError
from bdaudit.foundation.plain_settings import LATER
from bdaudit.foundation.progress import Progress, Steps, reworded, within
from bdaudit.inversion.features import (
    BenignMaskConfig,
    FeatureMap,
    FeatureReader,
    find_last_map,
    fit_benign_mask,
    fit_map_mask,
)
from bdaudit.perturbation import neurons_of

__all__ = ["NeuronNoiseConfig", "shake"]

_TITLE = "adversarial neuron noise"
_MASK_SHARE = 0.6  # of the time, for the progress bar
_ANSWERED = 256  # images in one forward pass without gradients


@dataclass(frozen=True, slots=True, kw_only=True)
class NeuronNoiseConfig:
    """Settings of the noise, and of the mask of benign features.

    Attributes:
        eps: Largest relative change of a normalisation layer's scale or shift.
        n_steps: Sign steps, all over one mini-batch.
        n_images: Images in a mini-batch.
        mask: `sparsity` is the weight of the mask's norm; the rest is used for networks that end
            without a feature map, as transformers do.
        n_epochs: Passes over the craft images that the mask of a feature map takes.
        mask_rate: Learning rate of Adam on that mask.
        projected: Keep the noise within `eps`, as the paper says; the published code lets it come
            to twice as much.
        batch_statistics: Let batch norm use the statistics of the batch instead of those kept from
            training, as the published code does.

    Raises:
        ConfigError: A setting is out of range.
    """

    eps: float = 0.3
    n_steps: int = 30
    n_images: int = 64
    mask: BenignMaskConfig = field(default_factory=lambda: BenignMaskConfig(sparsity=0.75))
    n_epochs: int = field(default=20, metadata=LATER)
    mask_rate: float = field(default=0.01, metadata=LATER)
    projected: bool = field(default=True, metadata=LATER)
    batch_statistics: bool = field(default=True, metadata=LATER)

    def __post_init__(self) -> None:
        if not self.eps > 0 or min(self.n_steps, self.n_images, self.n_epochs) < 1:
            raise ConfigError("neuron noise: expected eps above 0 and counts of 1 or more")
        if not self.mask_rate > 0:
            raise ConfigError("neuron noise: expected a learning rate above 0 for the mask")


def shake(
    classifier: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    config: NeuronNoiseConfig,
    generator: torch.Generator,
) -> Steps[tuple[Tensor, int]]:
    """Find the noise on the neurons that hurts the task most, and ask what is left beside the task.

    A backdoored network under such noise sends images to the backdoor's target, with the benign
    features masked out all the more; a clean one errs in all directions. One run whatever the
    number of classes; there is no trigger in it.

    Args:
        classifier: The model; it has normalisation layers, and its last feature map is followed by
            nothing but pooling and linear layers, or its last layer is linear.
        images: (N, C, H, W) clean craft images, where the model is.
        labels: (N,) true labels, there too.
        config: Settings.
        generator: Seeded CPU generator.

    Returns:
        The answers (N,) under noise and mask; images differentiated by the noise.

    Raises:
        ModelError: No normalisation layer with a scale, or neither a last map nor a last linear
            layer.

    Source: Xu et al., "BAN: Detecting Backdoors Activated by Adversarial Neuron Noise", NeurIPS
    2024: noise of the scale and shift of batch norm, eps 0.3, 30 steps, mask weight 0.75. For every
    mini-batch noise begins anew at random and the last is kept, so that one mini-batch gives the
    same and is all that is asked here. docs/inversion-evidence.md says where we differ.
    """
    neurons = neurons_of(classifier)
    with _statistics_of_batches(classifier, on=config.batch_statistics):
        layer = find_last_map(classifier, images[:2])
        reader = FeatureReader(classifier, images[:2]) if layer is None else FeatureMap(layer)
        share = _MASK_SHARE if isinstance(reader, FeatureMap) else 0.0
        with reader.hooked():
            yield Progress(_TITLE, 0, 1)
            if isinstance(reader, FeatureMap):
                fitting = fit_map_mask(
                    classifier,
                    reader,
                    images,
                    labels,
                    n_epochs=config.n_epochs,
                    n_images=config.n_images,
                    learning_rate=config.mask_rate,
                    sparsity=config.mask.sparsity,
                    generator=generator,
                )
                mask = yield from reworded(fitting, within(0.0, share))
            else:
                with torch.no_grad():
                    parts = torch.split(images, _ANSWERED)
                    features = torch.cat([reader.features(part) for part in parts])
                mask = fit_benign_mask(reader, features, labels, config.mask)
            n_images = min(config.n_images, len(images))
            chosen = torch.randperm(len(images), generator=generator)[:n_images].to(images.device)
            noise = neurons.random(config.eps, generator)
            for step in range(config.n_steps):
                noise = neurons.raise_loss(
                    noise,
                    images[chosen],
                    labels[chosen],
                    step=config.eps / config.n_steps,
                    eps=config.eps if config.projected else math.inf,
                )
                yield Progress(_TITLE, share + (1 - share) * (step + 1) / config.n_steps, 1)
            reader.mask_with(1 - mask)
            with torch.no_grad():
                # Of one size, so that no batch is too small to have statistics.
                parts = torch.tensor_split(images, -(-len(images) // _ANSWERED))
                answers = torch.cat([neurons.answer(noise, part).argmax(1) for part in parts])
            reader.mask_with(None)
    return answers, config.n_steps * n_images


@contextmanager
def _statistics_of_batches(classifier: nn.Module, *, on: bool) -> Iterator[None]:
    """Let batch norm use each batch's own statistics, and keep none of them.

    Everything else, dropout too, stays as in evaluation.
    """
    norms = [m for m in classifier.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    before = [(norm.training, norm.track_running_stats) for norm in norms]
    try:
        for norm in norms if on else ():
            norm.training, norm.track_running_stats = True, False
        yield
    finally:
        for norm, (training, tracked) in zip(norms, before, strict=True):
            norm.training, norm.track_running_stats = training, tracked
