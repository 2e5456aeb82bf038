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
from bdaudit.plain_settings import Setting, config_from
from bdaudit.progress import Steps
from bdaudit.triggers import Trigger
from bdaudit.zoo.attacks.badnets import BadnetsConfig, make_badnets_trigger
from bdaudit.zoo.attacks.blended import BlendedConfig, make_blended_trigger
from bdaudit.zoo.attacks.poisoning import Poisoning, make_poisoning

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
) -> Steps[Poisoning]:
    """Stamp a share of the images and change their labels: all that most attacks do."""
    yield from ()
    return make_poisoning(
        images,
        labels,
        num_classes=num_classes,
        trigger=trigger,
        poison_rate=poison_rate,
        generator=generator,
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
            config=..., generator=..., helper=...)`, returns a `Poisoning`.
        needs_helper: Whether both want a clean classifier of the task, eval and frozen, that maps
            images in [0, 1] to logits; it is left as it is.
        one_target: Whether, by default, only a rule with one target class will do.
    """

    name: str
    title: str
    config_type: type
    make_trigger: Callable[..., Steps[Trigger]]
    poison: Callable[..., Steps[Poisoning]] = _poison
    needs_helper: bool = False
    one_target: bool = False


_ALL = (
    Attack("badnets", "BadNets", BadnetsConfig, make_badnets_trigger),
    Attack("blended", "Blended", BlendedConfig, make_blended_trigger),
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
