"""Perturbations: norm balls, targeted losses, a delta on images, noise on neurons."""

from bdaudit.perturbation.balls import Ball, L2Ball, LinfBall, Norm, can_move, make_ball
from bdaudit.perturbation.delta import apply_delta, random_delta
from bdaudit.perturbation.losses import (
    Loss,
    boosted_cross_entropy,
    cross_entropy,
    margin,
    mean_of_counted,
    smoothed_failure,
    softplus_margin,
)
from bdaudit.perturbation.neurons import NeuronNoise, Neurons, neurons_of

__all__ = [
    "Ball",
    "L2Ball",
    "LinfBall",
    "Loss",
    "NeuronNoise",
    "Neurons",
    "Norm",
    "apply_delta",
    "boosted_cross_entropy",
    "can_move",
    "cross_entropy",
    "make_ball",
    "margin",
    "mean_of_counted",
    "neurons_of",
    "random_delta",
    "smoothed_failure",
    "softplus_margin",
]
