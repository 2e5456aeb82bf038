"""Every kind of attack, done alike to all models that are compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from bdaudit.cases.settings import AuditSettings
from bdaudit.cases.subjects import Inputs, Subject
from bdaudit.errors import BdauditError, ConfigError
from bdaudit.foundation.progress import Steps
from bdaudit.measuring.conditions import AttackImages
from bdaudit.measuring.kinds import AttackConfig, AttackKind, Workshop
from bdaudit.measuring.query import QUERY
from bdaudit.measuring.store import ScoredRun
from bdaudit.measuring.transfer import TRANSFER
from bdaudit.measuring.white import WHITE
from bdaudit.records import Mode

__all__ = ["KINDS", "Attacker", "mode_of", "rests_on_surrogates"]

KINDS: dict[Mode, AttackKind[Any]] = {
    "white": WHITE,
    "query": QUERY,
    "transfer": TRANSFER,
}
"""Every kind of attack by its mode; the words for them are in `bdaudit.foundation.modes`."""


def mode_of(config: AttackConfig) -> Mode:
    """Name the kind of attack that these are the settings of.

    Raises:
        ConfigError: They are the settings of none.
    """
    for mode, kind in KINDS.items():
        if isinstance(config, kind.config):
            return mode
    raise ConfigError(
        f"config: expected a {', '.join(kind.config.__name__ for kind in KINDS.values())}, got a "
        f"{type(config).__name__}"
    )


def rests_on_surrogates(settings: AuditSettings) -> bool:
    """Return whether any attack that the settings ask for rests on surrogates."""
    kinds = [KINDS[mode] for mode in settings.mode or ()]
    return any(
        kind.needs_surrogates(kind.configure(settings, eps), settings.cold)
        for kind in kinds
        for eps in settings.ladder
    )


class Attacker(Workshop):
    """Attacks model after model, each kind of attack by its line in `KINDS`."""

    def attack(
        self, subject: Subject, images: AttackImages, config: AttackConfig, inputs: Inputs
    ) -> Steps[tuple[ScoredRun, ...]]:
        """Attack `subject`.

        Args:
            subject: The model; for a transfer attack the defended one or an innocent one.
            images: A condition's craft and held-out halves.
            config: Settings of the attack, the same for every model under comparison; their class
                tells which kind it is.
            inputs: All models of the audit, of which some lend a hand or are shown the result.

        Returns:
            The run on `subject`, first; after it those on other models that were shown the same
            perturbation.

        Raises:
            ModelError: A transfer attack has no surrogate.
            NumericsError: A model returned NaN or infinite scores.
            RemoteError: A served model could not be asked.
        """
        kind = KINDS[mode_of(config)]
        config = _within(config, inputs)
        return (yield from kind.run(subject, images, config, inputs, self))

    def most_together(self, subject: Subject, craft: Tensor, config: AttackConfig) -> int:
        """Return how many attacks on `subject` go together, of craft images (N, C, H, W) each."""
        together = KINDS[mode_of(config)].together
        if together is None or subject.model is None:
            return 1
        return together.most(subject, craft, config)

    def attack_together(
        self,
        subject: Subject,
        attacks: Sequence[tuple[AttackImages, AttackConfig]],
        inputs: Inputs,
    ) -> Steps[tuple[tuple[ScoredRun, ...] | BdauditError, ...]]:
        """Attack `subject` several times at once, by attacks of one kind that can be.

        Args:
            subject: The model.
            attacks: Conditions, each with settings that differ from the others in eps alone; at
                most as many as `most_together` says.
            inputs: All models of the audit.

        Returns:
            Of each attack what `attack` would return, or why it failed.
        """
        together = KINDS[mode_of(attacks[0][1])].together
        assert together is not None
        attacks = [(images, _within(config, inputs)) for images, config in attacks]
        return (yield from together.run(subject, attacks, inputs, self))


def _within(config: AttackConfig, inputs: Inputs) -> AttackConfig:
    """Keep an attack to what of the images can move."""
    if inputs.steps:
        config = replace(config, steps=inputs.steps)
    if inputs.marked:
        config = replace(config, marked=True)
    return config
