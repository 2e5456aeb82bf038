"""Backdoor attacks: a trigger, and a training set poisoned with it."""

from bdaudit.zoo.attacks.badnets import BadnetsConfig
from bdaudit.zoo.attacks.blended import BlendedConfig
from bdaudit.zoo.attacks.bpp import BppConfig
from bdaudit.zoo.attacks.catalogue import ATTACKS, Attack, attack_config
from bdaudit.zoo.attacks.frequency import CtrlConfig, FtrojanConfig
from bdaudit.zoo.attacks.input_aware import InputAwareConfig
from bdaudit.zoo.attacks.label_consistent import LabelConsistentConfig
from bdaudit.zoo.attacks.lira import LiraConfig
from bdaudit.zoo.attacks.low_frequency import LowFrequencyConfig
from bdaudit.zoo.attacks.on_objects import ObjectMaskConfig, ObjectPatchConfig
from bdaudit.zoo.attacks.poisoning import Poisoning
from bdaudit.zoo.attacks.refool import RefoolConfig
from bdaudit.zoo.attacks.semantic import SemanticConfig
from bdaudit.zoo.attacks.sig import SigConfig
from bdaudit.zoo.attacks.ssba import SsbaConfig
from bdaudit.zoo.attacks.trojannn import TrojannnConfig
from bdaudit.zoo.attacks.wanet import WanetConfig

__all__ = [
    "ATTACKS",
    "Attack",
    "BadnetsConfig",
    "BlendedConfig",
    "BppConfig",
    "CtrlConfig",
    "FtrojanConfig",
    "InputAwareConfig",
    "LabelConsistentConfig",
    "LiraConfig",
    "LowFrequencyConfig",
    "ObjectMaskConfig",
    "ObjectPatchConfig",
    "Poisoning",
    "RefoolConfig",
    "SemanticConfig",
    "SigConfig",
    "SsbaConfig",
    "TrojannnConfig",
    "WanetConfig",
    "attack_config",
]
