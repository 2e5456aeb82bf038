"""Trigger inversion: find the trigger and the target when nobody knows them."""

from bdaudit.inversion.arms import ANY_OTHER, Arm, describe, make_arms
from bdaudit.inversion.config import AUTO, NOMINATORS, RACED, InversionConfig, Method
from bdaudit.inversion.embedded import EmbeddedConfig
from bdaudit.inversion.feature_decoupling import FeatureDecouplingConfig
from bdaudit.inversion.invert import Inverted, demand_classifier, invert_with
from bdaudit.inversion.maximum_margin import MaximumMarginConfig
from bdaudit.inversion.neural_cleanse import NeuralCleanseConfig
from bdaudit.inversion.neuron_noise import NeuronNoiseConfig
from bdaudit.inversion.recovered import Recovered
from bdaudit.inversion.universal import UniversalConfig

__all__ = [
    "ANY_OTHER",
    "AUTO",
    "NOMINATORS",
    "RACED",
    "Arm",
    "EmbeddedConfig",
    "FeatureDecouplingConfig",
    "InversionConfig",
    "Inverted",
    "MaximumMarginConfig",
    "Method",
    "NeuralCleanseConfig",
    "NeuronNoiseConfig",
    "Recovered",
    "UniversalConfig",
    "demand_classifier",
    "describe",
    "invert_with",
    "make_arms",
]
