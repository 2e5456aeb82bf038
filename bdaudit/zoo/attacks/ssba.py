"""SSBA: a message hidden in every image by a steganographic encoder."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from bdaudit.errors import ConfigError
from bdaudit.foundation.progress import Progress, Steps
from bdaudit.triggers import Encoder, TargetRule, Trigger
from bdaudit.triggers.networks import encoded_residual
from bdaudit.zoo.attacks.poisoning import new_stamp_network

__all__ = ["SsbaConfig", "make_ssba_trigger"]

_CELLS = 8  # a side, of the plane that carries a message


@dataclass(frozen=True, slots=True, kw_only=True)
class SsbaConfig:
    """Settings of the steganographic trigger.

    Attributes:
        width: Of the encoder.
        n_bits: Of a message.
        eps: Largest change of a pixel, as a fraction of its range.
        n_steps: Steps of training encoder and decoder.
        batch_size: Images a step.
        learning_rate: Of Adam.

    Raises:
        ConfigError: A setting is out of range.
    """

    width: int = 8
    n_bits: int = 8
    eps: float = 16 / 255
    n_steps: int = 200
    batch_size: int = 64
    learning_rate: float = 0.003

    def __post_init__(self) -> None:
        for name in ("width", "n_bits", "n_steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: expected 1 or more, got {getattr(self, name)}")
        if not 0 < self.eps <= 1:
            raise ConfigError(f"eps: expected a fraction of the range in (0, 1], got {self.eps}")
        if self.learning_rate <= 0:
            raise ConfigError(f"learning_rate: expected above 0, got {self.learning_rate}")


def make_ssba_trigger(
    images: Tensor,
    labels: Tensor,
    *,
    num_classes: int,
    rule: TargetRule,
    config: SsbaConfig,
    generator: torch.Generator,
    helper: nn.Module | None = None,
) -> Steps[Trigger]:
    """Train an encoder to hide messages that a decoder can read, then fix one message.

    Every step hides random messages in clean images. A message is spread over a plane of 8x8 cells
    by random codes, which the encoder reads beside the image.

    Source: Li et al., "Invisible Backdoor Attack with Sample-Specific Triggers" (ICCV 2021), who
    take the encoder of Tancik et al., "StegaStamp" (CVPR 2020): a U-Net, 100 bits, trained with a
    residual, a perceptual and a critic loss and through simulated printing. Ours is a smaller
    U-Net and 8 bits, its residual held below `eps` by a tanh and of the same size in every image.
    """
    channels = images.shape[1]
    encoder = new_stamp_network(
        channels + 1, channels, config.width, generator=generator, device=images.device
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        decoder = _decoder(channels, config).to(images.device)
    codes = torch.randn(config.n_bits, _CELLS, _CELLS, generator=generator)
    codes = codes.to(images.device) / config.n_bits**0.5

    def spread(bits: Tensor) -> Tensor:
        """Map bits (n, B) of 0 and 1 to planes (n, 1, 8, 8)."""
        return torch.einsum("nb,bhw->nhw", 2 * bits - 1, codes)[:, None]

    optimizer = torch.optim.Adam(
        [*encoder.parameters(), *decoder.parameters()], lr=config.learning_rate
    )
    note = ""
    for step in range(config.n_steps):
        yield Progress("SSBA: training the encoder", step, config.n_steps, note)
        chosen = torch.randint(len(images), (config.batch_size,), generator=generator)
        batch = images[chosen.to(images.device)]
        bits = torch.randint(2, (len(batch), config.n_bits), generator=generator)
        bits = bits.to(batch)
        residual = encoded_residual(encoder, batch, spread(bits), _eps_at(step, config))
        read = decoder((batch + residual).clamp(0, 1)).float()
        loss = functional.binary_cross_entropy_with_logits(read, bits)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        note = f"{((read > 0) == (bits > 0.5)).double().mean():.0%} of bits read"
    secret = torch.randint(2, (1, config.n_bits), generator=generator)
    message = spread(secret.to(images))[0].float().cpu()
    transform = Encoder(
        network=encoder.eval().requires_grad_(False).cpu(), message=message, eps=config.eps
    )
    return Trigger(transform=transform, rule=rule, source="ssba")


def _eps_at(step: int, config: SsbaConfig) -> float:
    """Return the residual's bound at a step: from 1 down to `eps` during the first half.

    A decoder that is given the faint residual at once learns nothing from it.
    """
    left = max(0.0, 1 - 2 * step / config.n_steps)
    return config.eps + (1 - config.eps) * left


def _decoder(channels: int, config: SsbaConfig) -> nn.Module:
    """Reads (n, C, H, W) into logits (n, B) of the bits."""
    width = config.width
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(2 * width),
        nn.ReLU(),
        nn.Conv2d(2 * width, 4 * width, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(4 * width),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Linear(4 * width * 16, config.n_bits),
    )
