"""How an audit is run: every setting with its default, checked when built."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields
from operator import not_
from typing import Any, Literal

from bdaudit.cases.recorded import as_recorded
from bdaudit.errors import ConfigError
from bdaudit.foundation.modes import MODES
from bdaudit.foundation.renamed import renamed
from bdaudit.inversion import InversionConfig
from bdaudit.precision import settled
from bdaudit.reactivation.transfer import Strategy
from bdaudit.records import Condition, Mode
from bdaudit.relatives.standins import StandInConfig
from bdaudit.relearning import RelearnConfig
from bdaudit.settings import (
    Attack,
    Compute,
    Inputs,
    Output,
    PrecisionChoice,
    Query,
    Surrogates,
    Table,
    declared,
)

__all__ = [
    "DEFAULT_EPS",
    "TELLING_CONTROLS",
    "AuditSettings",
    "ComputeSettings",
    "SplitSettings",
]

DEFAULT_EPS: dict[str, tuple[float, ...]] = {
    "linf": (0.01, 0.02, 0.03, 0.05),
    "l2": (0.25, 0.5, 0.75, 1.25),
}
"""The default ladder by norm, in pixel units on [0, 1] images."""


TELLING_CONTROLS: tuple[Condition, ...] = ("no_trigger", "noise")
"""All but the attack toward other classes, which is no null of the verdict and costs as much as the
attack itself."""


def _check(settings: object, *tables: type[Table]) -> None:
    """Hold settings against the ranges and choices that tables declare under the same names."""
    names = {each.name for each in fields(settings)}  # type: ignore[arg-type]
    for table in tables:
        for setting in declared(table):
            if setting.attribute in names:
                setting.check(getattr(settings, setting.attribute))


def _precision_of(bf16: Any) -> Any:
    """Turn the old truth value into a precision, and back."""
    if isinstance(bf16, bool):
        return "bfloat16" if bf16 else "float32"
    return bf16 == "bfloat16"


@renamed({"bf16": "precision"}, through={"bf16": _precision_of})
@dataclass(frozen=True, kw_only=True)
class ComputeSettings:
    """Where and how to compute.

    Attributes:
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        seed: From which every random draw derives.
        batch_size: Images in one forward pass when scoring.
        precision: Of attacks, their scoring, BEC and everything that is trained: `float32`, or
            `bfloat16` by autocast. `auto` becomes one of the two when the settings are made:
            `bfloat16` where there is a card that computes it, `float32` elsewhere. Rates without a
            perturbation are measured in float32 always.

    Raises:
        ConfigError: A setting is out of range.
    """

    device: str = Compute.device
    seed: int = Compute.seed
    batch_size: int = Compute.batch_size
    precision: PrecisionChoice = Compute.precision

    def __post_init__(self) -> None:
        _check(self, Compute)
        # What is computed in stands in the record, and in the keys of what is kept.
        object.__setattr__(self, "precision", settled(self.precision, self.device))

    @property
    def autocast(self) -> Literal["bf16"] | None:
        """The precision as the methods' own settings call it."""
        return "bf16" if self.precision == "bfloat16" else None


@renamed({"n_craft": "craft", "n_held_out": "held_out"})
@dataclass(frozen=True, kw_only=True)
class SplitSettings:
    """How the clean sample is divided.

    Attributes:
        craft: Images that perturbations are made on; `None` takes half, at most 500.
        held_out: Images that rates are reported on; `None` takes all the rest.

    Raises:
        ConfigError: A size is below 1.
    """

    craft: int | None = None
    held_out: int | None = None

    def __post_init__(self) -> None:
        _check(self, Compute)

    def craft_of(self, n_images: int) -> int:
        """Return how many of `n_images` go to the craft half."""
        return min(500, n_images // 2) if self.craft is None else self.craft


@renamed(
    {"n_passes": "passes", "modes": "mode", "measure_bec": "bec", "warm": "cold"},
    through={"warm": not_},
)
@dataclass(frozen=True, kw_only=True)
class AuditSettings:
    """What a full audit does beside the inputs.

    Attributes:
        norm: Ball that the perturbation stays in.
        eps: Ladder of radii in pixel units; `None` takes the norm's default.
        passes: Passes over the craft images an attack may differentiate.
        restarts: Independent starts of each attack.
        objective: `standard`, or `specific` (see docs/reactivation.md).
        optimizer: `default`, or `research` for the one of the paper's script, to compare.
        mode: Kinds of attack: `white` differentiates through the model, `query` only asks it,
            `transfer` makes the perturbation on surrogates and only scores it on the model;
            `None` takes what the defended model allows.
        max_queries: Images a query search may ask about, each time it is run.
        feedback: What a query search is given: `scores`, or the top `labels` alone.
        schedule: Of the query search: `default`, or `research` for the paper's.
        cold: Whether a query search starts without surrogates.
        strategy: Of the transfer attack; see `TransferConfig`.
        input_diversity: Of the transfer attack; see `TransferConfig`.
        controls: Conditions run on the defended model beside the trigger; `None` takes all that
            the number of classes allows.
        placebos: Placebo triggers that telling attacks are made with too; 0 for none. From five on
            the verdict is held against them.
        bec: Whether to compute the backdoor existence coefficient.
        pictures: Whether the record keeps a few small held-out images for its report.
        stand_ins: Innocent models to make; `None` makes what the references lack to three.
        stand_in: How they are made.
        inversion: How a trigger is looked for, where none is given.
        relearn: How relearning is measured, where weights are at hand; `None` does not measure it.
    """

    norm: Literal["linf", "l2"] = Attack.norm
    eps: tuple[float, ...] | None = None
    passes: int = Attack.passes
    restarts: int = Attack.restarts
    objective: Literal["standard", "specific"] = Attack.objective
    optimizer: Literal["default", "research"] = Attack.optimizer
    mode: tuple[Mode, ...] | None = None
    max_queries: int = Query.max_queries
    feedback: Literal["scores", "labels"] = Query.feedback
    schedule: Literal["default", "research"] = Query.schedule
    cold: bool = Query.cold
    strategy: Strategy = Surrogates.strategy
    input_diversity: float = Surrogates.input_diversity
    controls: tuple[Condition, ...] | None = None
    placebos: int = Attack.placebos
    bec: bool = Attack.bec
    pictures: bool = Output.pictures
    stand_ins: int | None = None
    stand_in: StandInConfig = field(default_factory=StandInConfig)
    inversion: InversionConfig = field(default_factory=InversionConfig)
    relearn: RelearnConfig | None = field(default_factory=RelearnConfig)
    compute: ComputeSettings = field(default_factory=ComputeSettings)
    split: SplitSettings = field(default_factory=SplitSettings)

    def __post_init__(self) -> None:
        _check(self, Inputs, Attack, Query, Surrogates, Output)
        if self.mode is not None and len(set(self.mode)) != len(self.mode):
            raise ConfigError(f"mode: the same mode twice in {self.mode}")
        if self.mode == ():
            raise ConfigError("mode: expected at least one")
        if (
            not all(MODES[mode].objectives for mode in self.mode or ())
            and self.objective != "standard"
        ):
            raise ConfigError(
                "objective: only mode white supports an objective other than standard"
            )
        ladder = self.ladder
        if not ladder or any(not eps > 0.0 for eps in ladder):
            raise ConfigError(f"eps: expected one or more values above 0, got {ladder}")
        if self.norm == "linf" and any(eps > 1.0 for eps in ladder):
            raise ConfigError(
                f"eps: expected values in (0, 1] (pixels run from 0 to 1), got {ladder}; "
                "8/255 is 0.0314"
            )
        if len(set(ladder)) != len(ladder):
            raise ConfigError(f"eps: the same value twice in {ladder}")

    @property
    def ladder(self) -> tuple[float, ...]:
        """The radii in rising order."""
        return tuple(sorted(DEFAULT_EPS[self.norm] if self.eps is None else self.eps))

    def as_dict(self, *, unsaid: bool = True) -> dict[str, Any]:
        """Return the settings for the record, under the names they have there.

        Args:
            unsaid: Whether later settings that are at their default are among them.
        """
        recorded = {**as_recorded(self, unsaid=unsaid), "eps": list(self.ladder)}
        if self.optimizer == Attack.optimizer:
            del recorded["optimizer"]  # as before audits knew another: kept runs are found by this
        if not self.placebos:
            del recorded["placebos"]  # likewise
        return recorded

    def as_text(self) -> str:
        """Return the settings as a text that is the same for the same settings."""
        return json.dumps(self.as_dict(unsaid=False), sort_keys=True, default=str)
