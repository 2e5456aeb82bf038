"""Backdoor attacks: a trigger, and a training set poisoned with it."""

from bdaudit.zoo.attacks.badnets import BadnetsConfig
from bdaudit.zoo.attacks.blended import BlendedConfig
from bdaudit.zoo.attacks.catalogue import ATTACKS, Attack, attack_config
from bdaudit.zoo.attacks.poisoning import Poisoning

__all__ = [
    "ATTACKS",
    "Attack",
    "BadnetsConfig",
    "BlendedConfig",
    "Poisoning",
    "attack_config",
]
