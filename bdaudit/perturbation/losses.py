"""Targeted losses: one value an image, lower where the image is nearer its target.

Every loss maps logits (N, K) and targets (N,) to (N,), so that any of them can drive any search.
All but `cross_entropy` also take many mini-batches at once, logits (R, N, K) and targets (R, N).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

__all__ = [
    "Loss",
    "boosted_cross_entropy",
    "cross_entropy",
    "margin",
    "mean_of_counted",
    "smoothed_failure",
    "softplus_margin",
]

Loss = Callable[[Tensor, Tensor], Tensor]
"""Logits (N, K) and int64 targets (N,) to losses (N,)."""


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return -log p(target) for every image (N,), at least 0."""
    return functional.cross_entropy(logits, targets, reduction="none")


def margin(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the best other class's logit minus the target's, for every image (N,).

    Negative exactly when the image is classified as its target.

    Source: Carlini and Wagner, S&P 2017, objective f6, without its floor.
    """
    target = logits.gather(-1, targets[..., None])[..., 0]
    return _other_logits(logits, targets).amax(-1) - target


def softplus_margin(logits: Tensor, targets: Tensor) -> Tensor:
    """Return log(1 + exp(margin)) for every image (N,), at least 0.

    The cross-entropy of the target against its strongest rival alone: it stops pulling at images
    that are won, and pulls equally at all that are far from it.
    """
    return functional.softplus(margin(logits, targets))


def smoothed_failure(logits: Tensor, targets: Tensor, counted: Tensor | None = None) -> Tensor:
    """Return sigmoid(margin / T) for every image (N,): a smooth count of images not yet won.

    `counted` (N,) leaves images out of T, as those that only fill a mini-batch up; none without it.

    Attack success is a count, so an image matters as long as it is near the boundary and not when
    it is won or out of reach; cross-entropy pulls hardest at those out of reach. T is a quarter of
    the batch's mean absolute margin, taken as a constant, so that what counts as near follows the
    scale of the model's logits: multiplying all logits by a number changes nothing.

    The mean is in [0, 1] and near 1 - ASR. T makes it a function of the whole batch.

    Source: ours; the sigmoid as a surrogate of the 0-1 loss is old (Mason et al., "Boosting
    Algorithms as Gradient Descent", NeurIPS 1999).
    """
    margins = margin(logits, targets)
    temperature = 0.25 * mean_of_counted(margins.detach().abs(), counted)[..., None]
    return torch.sigmoid(margins / temperature.clamp_min(torch.finfo(margins.dtype).tiny))


def boosted_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return -log p(target) - log(1 - p(best other class)) for every image (N,).

    Source: Wang et al., "Improving Adversarial Robustness Requires Revisiting Misclassified
    Examples", ICLR 2020, equation 10, there for the true class, here for the target.
    """
    log_p = functional.log_softmax(logits, dim=-1)
    rival = _other_logits(log_p, targets).argmax(-1, keepdim=True)
    # log(1 - p_rival) as the log of the sum of all the other probabilities, which keeps its digits
    # when p_rival is near 1.
    rest = log_p.scatter(-1, rival, float("-inf")).logsumexp(-1)
    return -log_p.gather(-1, targets[..., None])[..., 0] - rest


def mean_of_counted(values: Tensor, counted: Tensor | None = None) -> Tensor:
    """Return the mean of values (..., N) over their last dimension, of those that count (..., N).

    0 where none does.
    """
    if counted is None:
        return values.mean(-1)
    return values.masked_fill(~counted, 0.0).sum(-1) / counted.sum(-1).clamp_min(1)


def _other_logits(logits: Tensor, targets: Tensor) -> Tensor:
    """Return logits (N, K) with -inf at the target."""
    return logits.scatter(-1, targets[..., None], float("-inf"))
