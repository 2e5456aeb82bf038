"""Adversarial neuron noise: shake the neurons, and see where images go without benign features."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from bdaudit.errors import ConfigError
from bdaudit.foundation.progress import Progress, Steps
from bdaudit.inversion.features import BenignMaskConfig, FeatureReader, fit_benign_mask
from bdaudit.perturbation import neurons_of

__all__ = ["NeuronNoiseConfig", "shake"]


@dataclass(frozen=True, slots=True, kw_only=True)
class NeuronNoiseConfig:
    """Settings of the noise.

    Attributes:
        eps: Largest relative change of a normalisation layer's scale or shift.
        n_steps: Sign steps, each over one mini-batch.
        n_images: Images in a mini-batch.
        mask: Settings of the mask of benign features.

    Raises:
        ConfigError: A setting is out of range.
    """

    eps: float = 0.3
    n_steps: int = 30
    n_images: int = 64
    mask: BenignMaskConfig = field(default_factory=lambda: BenignMaskConfig(sparsity=0.75))

    def __post_init__(self) -> None:
        if not self.eps > 0 or min(self.n_steps, self.n_images) < 1:
            raise ConfigError("neuron noise: expected eps above 0 and counts of 1 or more")


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
        classifier: The model; its last layer is linear, and it has normalisation layers.
        images: (N, C, H, W) clean craft images, where the model is.
        labels: (N,) true labels, there too.
        config: Settings.
        generator: Seeded CPU generator.

    Returns:
        The answers (N,) under noise and mask; images differentiated.

    Raises:
        ModelError: No linear last layer, or no normalisation layer with a scale.

    Source: Xu et al., "BAN: Detecting Backdoors Activated by Adversarial Neuron Noise", NeurIPS
    2024: noise of the scale and shift of batch norm, eps 0.3, 30 steps, mask weight 0.75. They
    draw new noise for every mini-batch and keep the last; here the steps go on over mini-batches.
    """
    title = "adversarial neuron noise"
    neurons = neurons_of(classifier)
    reader = FeatureReader(classifier, images[:2])
    noise = neurons.still()
    with reader.hooked():
        yield Progress(title, 0, config.n_steps)
        with torch.no_grad():
            features = torch.cat([reader.features(part) for part in torch.split(images, 256)])
        mask = fit_benign_mask(reader, features, labels, config.mask)
        n_images = min(config.n_images, len(images))
        for step in range(config.n_steps):
            chosen = torch.randperm(len(images), generator=generator)[:n_images].to(images.device)
            noise = neurons.raise_loss(
                noise,
                images[chosen],
                labels[chosen],
                step=config.eps / config.n_steps,
                eps=config.eps,
            )
            yield Progress(title, step + 1, config.n_steps)
        reader_mask = 1 - mask
        with torch.no_grad():
            answers = []
            for part in torch.split(images, 256):
                reader.mask_with(reader_mask)
                answers.append(neurons.answer(noise, part).argmax(1))
            reader.mask_with(None)
    return torch.cat(answers), config.n_steps * n_images
