"""Every attack by the name it has on the command line and in files.

An attack works in two steps: it makes a trigger, training whatever that takes, and it poisons a
training set with it. One trigger serves any number of poison rates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bdaudit.errors import ConfigError, unknown_key
from bdaudit.foundation.plain_settings import Setting, config_from
from bdaudit.foundation.progress import Steps
from bdaudit.foundation.tasks import Task
from bdaudit.triggers import Trigger
from bdaudit.zoo.attacks.badnets import BadnetsConfig, make_badnets_trigger
from bdaudit.zoo.attacks.blended import BlendedConfig, make_blended_trigger
from bdaudit.zoo.attacks.bpp import BppConfig, make_bpp_trigger, poison_bpp
from bdaudit.zoo.attacks.frequency import CtrlConfig, FtrojanConfig, make_frequency_trigger
from bdaudit.zoo.attacks.input_aware import (
    InputAwareConfig,
    make_input_aware_trigger,
    poison_input_aware,
)
from bdaudit.zoo.attacks.label_consistent import (
    LabelConsistentConfig,
    make_label_consistent_trigger,
    poison_label_consistent,
)
from bdaudit.zoo.attacks.lira import LiraConfig, make_lira_trigger
from bdaudit.zoo.attacks.low_frequency import LowFrequencyConfig, make_low_frequency_trigger
from bdaudit.zoo.attacks.on_objects import (
    ObjectMaskConfig,
    ObjectPatchConfig,
    make_object_mask_trigger,
    make_object_patch_trigger,
    poison_objects,
)
from bdaudit.zoo.attacks.poisoning import Poisoning, make_poisoning
from bdaudit.zoo.attacks.refool import RefoolConfig, make_refool_trigger
from bdaudit.zoo.attacks.semantic import SemanticConfig, make_semantic_trigger
from bdaudit.zoo.attacks.set_columns import SetColumnsConfig, make_columns_trigger
from bdaudit.zoo.attacks.sig import SigConfig, make_sig_trigger
from bdaudit.zoo.attacks.ssba import SsbaConfig, make_ssba_trigger
from bdaudit.zoo.attacks.trojannn import TrojannnConfig, make_trojannn_trigger
from bdaudit.zoo.attacks.wanet import WanetConfig, make_wanet_trigger, poison_wanet

__all__ = ["ATTACKS", "Attack", "attack_config"]


def _poison(
    images: Tensor,
    labels: Tensor,
    *,
    num_classes: int,
    trigger: Trigger,
    poison_rate: float,
    config: object,
    generator: torch.Generator,
    helper: nn.Module | None = None,
    preferred: Tensor | None = None,
) -> Steps[Poisoning]:
    """Stamp a share of the images and change their labels: all that most attacks do.

    Where the settings have a `clean_label` that is true, images of the target class are stamped, at
    most all of them, and keep their label.
    """
    yield from ()
    return make_poisoning(
        images,
        labels,
        num_classes=num_classes,
        trigger=trigger,
        poison_rate=poison_rate,
        generator=generator,
        clean_label=getattr(config, "clean_label", False),
        preferred=preferred,
    )


@dataclass(frozen=True, slots=True)
class Attack:
    """One attack.

    Attributes:
        name: Its key in `ATTACKS`.
        title: What people read.
        config_type: The dataclass of its settings; built without arguments it has the defaults.
        make_trigger: Called as `make_trigger(images, labels, num_classes=..., rule=..., config=...,
            generator=..., helper=...)` with the clean training set, returns a `Trigger`.
        poison: Called as `poison(images, labels, num_classes=..., trigger=..., poison_rate=...,
            config=..., generator=..., helper=..., preferred=...)`, returns a `Poisoning`; images at
            the places in `preferred` are stamped first.
        needs_helper: Whether both want a clean classifier of the task, eval and frozen, that maps
            images in [0, 1] to logits; it is left as it is.
        one_target: Whether, by default, only a rule with one target class will do.
        for_tables: Whether it is made on rows of a table, and on no other images.
        task: What the models do that it is made for.
    """

    name: str
    title: str
    config_type: type
    make_trigger: Callable[..., Steps[Trigger]]
    poison: Callable[..., Steps[Poisoning]] = _poison
    needs_helper: bool = False
    one_target: bool = False
    for_tables: bool = False
    task: Task = "classification"


_ALL = (
    Attack("badnets", "BadNets", BadnetsConfig, make_badnets_trigger),
    Attack("blended", "Blended", BlendedConfig, make_blended_trigger),
    Attack("sig", "SIG", SigConfig, make_sig_trigger, one_target=True),
    Attack("lf", "LF", LowFrequencyConfig, make_low_frequency_trigger, needs_helper=True),
    Attack("wanet", "WaNet", WanetConfig, make_wanet_trigger, poison_wanet),
    Attack(
        "input-aware",
        "input-aware",
        InputAwareConfig,
        make_input_aware_trigger,
        poison_input_aware,
        needs_helper=True,
    ),
    Attack("ssba", "SSBA", SsbaConfig, make_ssba_trigger),
    Attack("trojannn", "TrojanNN", TrojannnConfig, make_trojannn_trigger, needs_helper=True),
    Attack(
        "label-consistent",
        "label-consistent",
        LabelConsistentConfig,
        make_label_consistent_trigger,
        poison_label_consistent,
        needs_helper=True,
        one_target=True,
    ),
    Attack("bpp", "BPP", BppConfig, make_bpp_trigger, poison_bpp),
    Attack("ftrojan", "FTrojan", FtrojanConfig, make_frequency_trigger),
    Attack("ctrl", "CTRL", CtrlConfig, make_frequency_trigger, one_target=True),
    Attack("refool", "Refool", RefoolConfig, make_refool_trigger, one_target=True),
    Attack("lira", "LIRA", LiraConfig, make_lira_trigger, needs_helper=True),
    Attack("columns", "columns", SetColumnsConfig, make_columns_trigger, for_tables=True),
    Attack("semantic", "semantic", SemanticConfig, make_semantic_trigger, needs_helper=True),
    Attack(
        "object-patch",
        "patch on the object",
        ObjectPatchConfig,
        make_object_patch_trigger,
        poison_objects,
        one_target=True,
        task="detection",
    ),
    Attack(
        "object-mask",
        "mask-bounded",
        ObjectMaskConfig,
        make_object_mask_trigger,
        poison_objects,
        needs_helper=True,
        one_target=True,
        task="detection",
    ),
)

ATTACKS: Mapping[str, Attack] = {attack.name: attack for attack in _ALL}


def attack_config(name: str, settings: Mapping[str, Setting] | None = None) -> Any:
    """Build the settings of an attack from plain data, as a TOML or JSON file holds it.

    Args:
        name: A key of `ATTACKS`.
        settings: Those that differ from the defaults; nested groups are tables or dotted names.

    Returns:
        An instance of the attack's `config_type`.

    Raises:
        ConfigError: No such attack or setting, a wrong type, or a value out of range.
    """
    if name not in ATTACKS:
        raise ConfigError(f"attack: {unknown_key(name, ATTACKS)}")
    return config_from(ATTACKS[name].config_type, settings or {}, f"attack {name}")
