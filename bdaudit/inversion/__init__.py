"""Trigger inversion: find the trigger and the target when nobody knows them."""

from bdaudit.inversion.arms import Arm, describe, make_arms
from bdaudit.inversion.config import METHODS, InversionConfig, Method
from bdaudit.inversion.invert import Inverted, invert_with
from bdaudit.inversion.neural_cleanse import NeuralCleanseConfig
from bdaudit.inversion.recovered import Recovered
from bdaudit.inversion.universal import UniversalConfig

__all__ = [
    "METHODS",
    "Arm",
    "InversionConfig",
    "Inverted",
    "Method",
    "NeuralCleanseConfig",
    "Recovered",
    "UniversalConfig",
    "describe",
    "invert_with",
    "make_arms",
]
