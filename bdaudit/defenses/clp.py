"""Channel Lipschitz pruning: remove the channels that amplify most. Needs no data."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite

import torch
from torch import Tensor, nn

from bdaudit.defenses.tuning import check_images, device_of, trainable_copy
from bdaudit.errors import ConfigError, ModelError
from bdaudit.foundation.progress import Progress, Steps
from bdaudit.scoring import evaluating

__all__ = ["ClpConfig", "channel_lipschitz", "prune_by_lipschitz"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClpConfig:
    """Settings of `prune_by_lipschitz`.

    Attributes:
        u: How many standard deviations above the mean of its layer a channel's bound must lie to
            be pruned. A layer of n channels has none above (n - 1) / sqrt(n): with 3, layers of 10
            channels or fewer are never pruned.

    Raises:
        ConfigError: A setting is out of range.
    """

    u: float = 3.0

    def __post_init__(self) -> None:
        if not (isfinite(self.u) and self.u >= 0):
            raise ConfigError(f"u: expected a finite number of at least 0, got {self.u}")


def prune_by_lipschitz(
    classifier: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    config: ClpConfig,
    generator: torch.Generator,
) -> Steps[nn.Module]:
    """Prune the channels of a copy of `classifier` whose Lipschitz bound stands out in their layer.

    Channels that answer to a trigger amplify it, which shows in their weights: the bound of a
    channel is the spectral norm of its kernel, input channels against pixels, times the scale of
    the batch norm behind. Those above the mean of their layer by u standard deviations are pruned:
    scale and shift become 0. Nothing is trained.

    Args:
        classifier: Maps (n, C, H, W) in [0, 1] to logits (n, K); left as it is, on its device.
        images: (N, C, H, W); only their shape is used.
        labels: (N,); not used.
        config: Settings.
        generator: Not used: the result depends on the weights alone.

    Returns:
        The pruned copy, in eval mode, no parameter requiring a gradient.

    Raises:
        ModelError: No convolution is followed by a batch norm.
        DataError: Images and labels do not fit each other.

    Source: Zheng et al., "Data-free Backdoor Removal based on Channel Lipschitzness", ECCV 2022: u
    of 3 on CIFAR-10 and 5 on Tiny ImageNet. Their code takes for a batch norm the convolution that
    is declared before it; we take the one that ran last before it, where it has as many channels,
    which differs behind a shortcut with a projection. Epsilon is added to the variance, as batch
    norm itself does.
    """
    title = "channel Lipschitz pruning"
    check_images(images, labels)
    pruned = trainable_copy(classifier).requires_grad_(False).eval()
    yield Progress(title, 0, 1)
    pairs = _normalised_convolutions(pruned, images)
    for convolution, norm in pairs:
        bounds = channel_lipschitz(convolution, norm)
        standing_out = bounds > bounds.mean() + config.u * bounds.std()
        for parameter in (norm.weight, norm.bias):
            parameter[standing_out.to(parameter.device)] = 0.0
    yield Progress(title, 1, 1)
    return pruned


def channel_lipschitz(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> Tensor:
    """Bound how much each channel amplifies its input.

    Args:
        convolution: Of weight (channels, inputs, height, width).
        norm: Of as many channels, behind it, with scale and running variance.

    Returns:
        (channels,) in double precision on the CPU: the largest singular value of each kernel as a
        matrix (inputs, height * width), times |scale| / sqrt(variance + eps).
    """
    assert norm.running_var is not None
    kernels = convolution.weight.detach().cpu().double().flatten(2)
    scale = norm.weight.detach().cpu().double().abs()
    scale = scale / (norm.running_var.detach().cpu().double() + norm.eps).sqrt()
    bounds: Tensor = torch.linalg.matrix_norm(kernels, ord=2) * scale
    return bounds


def _normalised_convolutions(
    classifier: nn.Module, images: Tensor
) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    """Find each batch norm with the convolution that ran last before it, by running a grey image.

    Raises:
        ModelError: There is none with as many channels.
    """
    ran: list[nn.Conv2d] = []
    pairs: dict[nn.BatchNorm2d, nn.Conv2d] = {}

    def note(part: nn.Module, _inputs: object, _output: object) -> None:
        if isinstance(part, nn.Conv2d):
            ran.append(part)
        elif (
            isinstance(part, nn.BatchNorm2d)
            and ran
            and part.affine
            and part.running_var is not None
            and part.num_features == ran[-1].out_channels > 1
        ):
            pairs.setdefault(part, ran[-1])

    handles = [part.register_forward_hook(note) for part in classifier.modules()]
    grey = torch.full((1, *images.shape[1:]), 0.5)
    try:
        with evaluating(classifier), torch.no_grad():
            classifier(grey.to(device_of(classifier)))
    finally:
        for handle in handles:
            handle.remove()
    if not pairs:
        raise ModelError(
            "channel Lipschitz pruning: expected a network with a batch norm behind a convolution, "
            "found none (transformers have layer norm); use another defence, such as fine-tuning"
        )
    return [(convolution, norm) for norm, convolution in pairs.items()]
