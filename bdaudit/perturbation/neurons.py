"""Noise on neurons: relative changes of the scale and shift of normalisation layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from bdaudit.errors import ModelError

__all__ = ["NeuronNoise", "Neurons", "neurons_of"]

NeuronNoise: TypeAlias = dict[str, Tensor]
"""Relative change of each scale and shift, by the parameter's name: 0 leaves it, -1 makes it 0."""

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm)


@dataclass(frozen=True, slots=True, eq=False)
class Neurons:
    """The neurons of a classifier that noise can be put on. The classifier itself never changes.

    Attributes:
        classifier: Maps (n, C, H, W) in [0, 1] to logits (n, K).
        shaken: Scales and shifts of its normalisation layers, by name.
    """

    classifier: nn.Module
    shaken: dict[str, nn.Parameter]

    def still(self) -> NeuronNoise:
        """Return no noise at all."""
        return {name: torch.zeros_like(value) for name, value in self.shaken.items()}

    def random(self, eps: float, generator: torch.Generator) -> NeuronNoise:
        """Draw noise uniformly from [-eps, eps], on the CPU; it then moves to the parameters."""
        return {
            name: ((2 * torch.rand(value.shape, generator=generator) - 1) * eps).to(value)
            for name, value in self.shaken.items()
        }

    def answer(self, noise: NeuronNoise, images: Tensor) -> Tensor:
        """Return the logits (n, K) under noise; they can be differentiated by it and by weights."""
        noisy = {name: value * (1 + noise[name]) for name, value in self.shaken.items()}
        logits: Tensor = functional_call(self.classifier, noisy, (images,))
        return logits

    def raise_loss(
        self, noise: NeuronNoise, images: Tensor, labels: Tensor, *, step: float, eps: float
    ) -> NeuronNoise:
        """Take a sign step up the cross-entropy of labels (n,), and stay within eps.

        No parameter gets a gradient.
        """
        leaves = {name: value.detach().requires_grad_() for name, value in noise.items()}
        loss = functional.cross_entropy(self.answer(leaves, images).float(), labels)
        gradients = torch.autograd.grad(loss, list(leaves.values()))
        return {
            name: (noise[name] + step * gradient.sign()).clamp(-eps, eps)
            for name, gradient in zip(noise, gradients, strict=True)
        }


def neurons_of(classifier: nn.Module) -> Neurons:
    """Find the neurons of a classifier.

    Source: Xu et al., "BAN: Detecting Backdoors Activated by Adversarial Neuron Noise", NeurIPS
    2024, after Wu and Wang, "Adversarial Neuron Pruning Purifies Backdoored Deep Models", NeurIPS
    2021: scale and shift of batch norm stand for the neurons. We take those of layer and group
    norm likewise.

    Raises:
        ModelError: It has no normalisation layer with a scale.
    """
    shaken = {
        f"{name}.{part}" if name else part: value
        for name, module in classifier.named_modules()
        if isinstance(module, _NORMS)
        for part, value in module.named_parameters(recurse=False)
    }
    if not shaken:
        raise ModelError(
            "neuron noise needs normalisation layers with a scale of their own, and this network "
            "has none; use a method that needs none"
        )
    return Neurons(classifier, shaken)
