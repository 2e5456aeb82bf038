"""Path-aware minimisation: leave no backdoor on the way back to the backdoored weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import isfinite

import torch
from torch import Tensor, nn
from torch.nn import functional

from bdaudit.defenses.synthesis import SynthesisConfig, TriggerNetwork, train_trigger_network
from bdaudit.defenses.tuning import (
    TuningConfig,
    check_images,
    device_of,
    statistics_held,
    trainable_copy,
    tune,
    weights_moved,
)
from bdaudit.errors import ConfigError
from bdaudit.foundation.progress import Steps

__all__ = ["PamConfig", "minimise_along_path"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PamConfig:
    """Settings of `minimise_along_path`.

    Attributes:
        rho: How far toward the backdoored weights the gradient is taken, as the length of the move
            over all parameters; 0 is fine-tuning on the same images.
        n_rounds: Rounds, each of which makes new stamped images first.
        stamped_share: Share of a mini-batch that is stamped, in (0, 1].
        synthesis: How stamped images are made.
        tuning: How a round trains.

    Raises:
        ConfigError: A setting is out of range.
    """

    rho: float = 0.5
    n_rounds: int = 3
    stamped_share: float = 0.2
    synthesis: SynthesisConfig = field(default_factory=SynthesisConfig)
    tuning: TuningConfig = field(default_factory=lambda: TuningConfig(learning_rate=0.05))

    def __post_init__(self) -> None:
        if not (isfinite(self.rho) and self.rho >= 0):
            raise ConfigError(f"rho: expected a finite number of at least 0, got {self.rho}")
        if self.n_rounds < 1:
            raise ConfigError(f"n_rounds: expected 1 or more, got {self.n_rounds}")
        if not 0 < self.stamped_share <= 1:
            raise ConfigError(f"stamped_share: expected in (0, 1], got {self.stamped_share}")


def minimise_along_path(
    classifier: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    config: PamConfig,
    generator: torch.Generator,
) -> Steps[nn.Module]:
    """Train a copy of `classifier` on gradients taken part of the way back to where it started.

    With w the present weights and w0 those of `classifier`, every step follows the gradient at
    w + rho (w0 - w) / |w0 - w|, of the loss on clean images, a share of which is stamped by a
    network that was trained to move what is not benign in the features (`train_trigger_network`),
    all under their true labels. So the loss is low not only at w but on the path back as well,
    where a few poisoned images would otherwise soon lead again.

    Args:
        classifier: Maps (n, C, H, W) in [0, 1] to logits (n, K); left as it is, on its device.
        images: (N, C, H, W) clean images in [0, 1].
        labels: (N,) true labels.
        config: Settings.
        generator: Seeded CPU generator.

    Returns:
        The tuned copy, in eval mode, no parameter requiring a gradient.

    Raises:
        ModelError: The logits do not come from a linear layer.
        DataError: Images and labels do not fit each other.
        NumericsError: Training diverged.

    Source: Min et al., "Uncovering, Explaining, and Mitigating the Superficial Safety of Backdoor
    Defense", NeurIPS 2024 (arXiv 2410.09838), and the code its authors published, on which details
    rest: 3 rounds of 30 epochs, SGD at 0.01 with momentum 0.1, a fifth of each mini-batch stamped,
    rho 0.5 on CIFAR-10 and ResNet-18, stamped images by BTI-DBF's U-Net. We train for fewer epochs
    at a larger rate on a one-cycle schedule with the momentum of all defences here, stamp by a
    smaller network, and take batch-norm statistics at w, where theirs come from the moved weights.
    """
    check_images(images, labels)
    title = "path-aware minimisation"
    tuned = trainable_copy(classifier)
    device = device_of(tuned)
    images, labels = images.to(device=device, dtype=torch.float32), labels.to(device)
    start = [parameter.detach().clone() for parameter in tuned.parameters()]
    network = TriggerNetwork(tuple(images.shape[1:]), generator).to(device)

    def gradients(model: nn.Module, batch: Tensor, answers: Tensor) -> Tensor:
        n_stamped = max(1, round(config.stamped_share * len(batch)))
        with torch.no_grad():
            # A mini-batch comes in random order.
            batch = torch.cat([network(batch[:n_stamped]), batch[n_stamped:]])
            model(batch)  # for the statistics of batch norm
        with moved_toward(model, start, config.rho), statistics_held(model):
            loss = functional.cross_entropy(model(batch).float(), answers)
            loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    target: int | None = None
    for done in range(config.n_rounds):
        part = f"{title}, round {done + 1} of {config.n_rounds}"
        network.requires_grad_(True)
        target = yield from train_trigger_network(
            network,
            tuned.requires_grad_(False),
            images,
            labels,
            target=target,
            config=config.synthesis,
            generator=generator,
            title=f"{part}: stamps",
        )
        network.requires_grad_(False)
        yield from tune(
            tuned.requires_grad_(True),
            images,
            labels,
            config=config.tuning,
            generator=generator,
            title=part,
            gradients=gradients,
        )
    return tuned


@contextmanager
def moved_toward(model: nn.Module, start: list[Tensor], rho: float) -> Iterator[None]:
    """Hold the weights a length `rho` nearer to `start`; where they are there, hold them."""
    parameters = list(model.parameters())
    with torch.no_grad():
        ways = [there - here for there, here in zip(start, parameters, strict=True)]
        length = torch.stack([torch.linalg.vector_norm(way) for way in ways]).norm()
        scale = rho / length.clamp_min(torch.finfo(length.dtype).tiny)
        moves = [scale * way for way in ways]
    with weights_moved(list(zip(parameters, moves, strict=True))):
        yield
