"""Settings of trigger inversion."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from bdaudit.errors import ConfigError
from bdaudit.foundation.plain_settings import LATER
from bdaudit.inversion.embedded import EmbeddedConfig
from bdaudit.inversion.feature_decoupling import FeatureDecouplingConfig
from bdaudit.inversion.neural_cleanse import NeuralCleanseConfig
from bdaudit.inversion.neuron_noise import NeuronNoiseConfig
from bdaudit.inversion.universal import UniversalConfig
from bdaudit.inversion.warp import WARP_LADDER

__all__ = ["AUTO", "NOMINATORS", "RACED", "InversionConfig", "Method"]

Method = Literal[
    "universal", "warp", "neural-cleanse", "embedded", "feature-decoupling", "neuron-noise"
]
AUTO: tuple[Method, ...] = ("universal", "warp", "neural-cleanse")
"""The default methods."""
RACED: tuple[Method, ...] = (*AUTO, "embedded")
"""Methods that try every target in a race, and whose sizes carry p-values."""
NOMINATORS: tuple[Method, ...] = ("feature-decoupling", "neuron-noise")
"""Methods that need no hypothesis about the target and point at one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InversionConfig:
    """Settings of trigger inversion.

    Attributes:
        methods: Searches to run, each with its own race.
        min_arms: No class is dropped from a race while this many or fewer are in it.
        n_candidates: Classes of each method for which a trigger is made in full.
        n_passes: Passes over the craft images that the trigger in full may take.
        found_p: The original is taken to be backdoored at a p-value (corrected for all classes and
            methods) of this or less, if the trigger also wakes it.
        unsure_p: Above this p-value nothing was found; between the two nobody knows.
        noticed_gain: Nothing was found only where a class easier by this many doublings would have
            been at `unsure_p` or below by every method; otherwise nobody knows.
        min_asr: A recovered trigger wakes the original when the lower end of its held-out success
            is at least this.
        min_gap: And when it exceeds what innocent models give by this at least, surely.
        universal: Settings of the universal perturbation.
        warp: Settings of the smallest warp; its radii are in pixels.
        neural_cleanse: Settings of the masks.
        embedded: Settings of the embedded perturbations.
        feature_decoupling: Settings of what moves all but the benign features.
        neuron_noise: Settings of the noise on neurons.

    Raises:
        ConfigError: A setting is out of range.
    """

    methods: tuple[Method, ...] = AUTO
    min_arms: int = 12
    n_candidates: int = 2
    n_passes: int = 12
    found_p: float = 0.01
    unsure_p: float = 0.10
    noticed_gain: float = 4.0
    min_asr: float = 0.50
    min_gap: float = 0.20
    universal: UniversalConfig = field(default_factory=UniversalConfig)
    warp: UniversalConfig = field(default_factory=lambda: UniversalConfig(ladder=WARP_LADDER))
    neural_cleanse: NeuralCleanseConfig = field(default_factory=NeuralCleanseConfig)
    embedded: EmbeddedConfig = field(default_factory=EmbeddedConfig, metadata=LATER)
    feature_decoupling: FeatureDecouplingConfig = field(default_factory=FeatureDecouplingConfig)
    neuron_noise: NeuronNoiseConfig = field(default_factory=NeuronNoiseConfig)

    def __post_init__(self) -> None:
        if not self.methods or any(method not in get_args(Method) for method in self.methods):
            raise ConfigError(
                f"method: expected some of {', '.join(get_args(Method))}, got "
                f"{self.methods or 'none'}"
            )
        if len(set(self.methods)) != len(self.methods):
            raise ConfigError(f"method: the same one twice in {self.methods}")
        if min(self.min_arms, self.n_candidates, self.n_passes) < 1:
            raise ConfigError("inversion: counts must be 1 or more")
        if not 0 < self.found_p <= self.unsure_p < 1:
            raise ConfigError("inversion: expected 0 < found_p <= unsure_p < 1")
        if not self.noticed_gain > 0:
            raise ConfigError("inversion: expected noticed_gain above 0")
        if not (0 < self.min_asr <= 1 and 0 <= self.min_gap < 1):
            raise ConfigError("inversion: expected min_asr in (0, 1] and min_gap in [0, 1)")
