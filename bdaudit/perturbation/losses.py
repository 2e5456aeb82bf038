"""Targeted losses: one value an image, lower where the image is nearer its target.

Every loss maps logits (N, K) and targets (N,) to (N,), and is a function of the logits alone, so
that any of them can drive any search.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional

__all__ = [
    "Loss",
    "boosted_cross_entropy",
    "cross_entropy",
    "margin",
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
    target = logits.gather(1, targets[:, None])[:, 0]
    return _other_logits(logits, targets).amax(1) - target


def softplus_margin(logits: Tensor, targets: Tensor) -> Tensor:
    """Return log(1 + exp(margin)) for every image (N,), at least 0.

    The cross-entropy of the target against its strongest rival alone: it stops pulling at images
    that are won, and pulls equally at all that are far from it.
    """
    return functional.softplus(margin(logits, targets))


def boosted_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return -log p(target) - log(1 - p(best other class)) for every image (N,).

    Source: Wang et al., "Improving Adversarial Robustness Requires Revisiting Misclassified
    Examples", ICLR 2020, equation 10, there for the true class, here for the target.
    """
    log_p = functional.log_softmax(logits, dim=1)
    rival = _other_logits(log_p, targets).argmax(1, keepdim=True)
    # log(1 - p_rival) as the log of the sum of all the other probabilities, which keeps its digits
    # when p_rival is near 1.
    rest = log_p.scatter(1, rival, float("-inf")).logsumexp(1)
    return -log_p.gather(1, targets[:, None])[:, 0] - rest


def _other_logits(logits: Tensor, targets: Tensor) -> Tensor:
    """Return logits (N, K) with -inf at the target."""
    return logits.scatter(1, targets[:, None], float("-inf"))
