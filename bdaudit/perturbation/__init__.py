"""Universal perturbations: norm balls, targeted losses, drawing and applying a delta."""

from bdaudit.perturbation.balls import Ball, L2Ball, LinfBall, Norm, make_ball
from bdaudit.perturbation.delta import apply_delta, random_delta
from bdaudit.perturbation.losses import (
    Loss,
    boosted_cross_entropy,
    cross_entropy,
    margin,
    smoothed_failure,
    softplus_margin,
)

__all__ = [
    "Ball",
    "L2Ball",
    "LinfBall",
    "Loss",
    "Norm",
    "apply_delta",
    "boosted_cross_entropy",
    "cross_entropy",
    "make_ball",
    "margin",
    "random_delta",
    "smoothed_failure",
    "softplus_margin",
]
