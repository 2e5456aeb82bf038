"""How an audit is run: every setting with its default, checked when built."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from bdaudit.errors import ConfigError
from bdaudit.inversion import InversionConfig
from bdaudit.reactivation.transfer import Strategy
from bdaudit.relearning import RelearnConfig
from bdaudit.results import Condition, Mode
from bdaudit.standins import StandInConfig

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


@dataclass(frozen=True, kw_only=True)
class ComputeSettings:
    """Where and how to compute.

    Attributes:
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        seed: From which every random draw derives.
        batch_size: Images in one forward pass when scoring.
        bf16: Run attacks and scoring of attacks under bfloat16 autocast.
    """

    device: str = "auto"
    seed: int = 0
    batch_size: int = 256
    bf16: bool = False

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ConfigError(f"batch size: expected 1 or more, got {self.batch_size}")
        if self.seed < 0:
            raise ConfigError(f"seed: expected 0 or more, got {self.seed}")


@dataclass(frozen=True, kw_only=True)
class SplitSettings:
    """How the clean sample is divided.

    Attributes:
        n_craft: Images that perturbations are made on; `None` takes half, at most 500.
        n_held_out: Images that rates are reported on; `None` takes all the rest.
    """

    n_craft: int | None = None
    n_held_out: int | None = None

    def __post_init__(self) -> None:
        for name, count in (("n_craft", self.n_craft), ("n_held_out", self.n_held_out)):
            if count is not None and count < 1:
                raise ConfigError(f"{name}: expected 1 or more, got {count}")

    def craft_of(self, n_images: int) -> int:
        """Return how many of `n_images` go to the craft half."""
        return min(500, n_images // 2) if self.n_craft is None else self.n_craft


@dataclass(frozen=True, kw_only=True)
class AuditSettings:
    """What a full audit does beside the inputs.

    Attributes:
        norm: Ball that the perturbation stays in.
        eps: Ladder of radii in pixel units; `None` takes the norm's default.
        n_passes: Passes over the craft images an attack may differentiate.
        restarts: Independent starts of each attack.
        objective: `standard`, or `specific` (see docs/reactivation.md).
        modes: Kinds of attack: `white` differentiates through the model, `query` only asks it,
            `transfer` makes the perturbation on surrogates and only scores it on the model;
            `None` takes what the defended model allows.
        max_queries: Images a query search may ask about, each time it is run.
        feedback: What a query search is given: `scores`, or the top `labels` alone.
        schedule: Of the query search: `default`, or `research` for the paper's.
        warm: Whether a query search starts from surrogates.
        strategy: Of the transfer attack; see `TransferConfig`.
        input_diversity: Of the transfer attack; see `TransferConfig`.
        controls: Conditions run on the defended model beside the trigger; `None` takes all that
            the number of classes allows.
        measure_bec: Whether to compute the backdoor existence coefficient.
        pictures: Whether the record keeps a few small held-out images for its report.
        stand_ins: Innocent models to make; `None` makes what the references lack to three.
        stand_in: How they are made.
        inversion: How a trigger is looked for, where none is given.
        relearn: How relearning is measured beside the verdict; `None` does not measure it.
    """

    norm: Literal["linf", "l2"] = "linf"
    eps: tuple[float, ...] | None = None
    n_passes: int = 24
    restarts: int = 1
    objective: Literal["standard", "specific"] = "standard"
    modes: tuple[Mode, ...] | None = None
    max_queries: int = 20_000
    feedback: Literal["scores", "labels"] = "scores"
    schedule: Literal["default", "research"] = "default"
    warm: bool = True
    strategy: Strategy = "ensemble"
    input_diversity: float = 0.0
    controls: tuple[Condition, ...] | None = None
    measure_bec: bool = True
    pictures: bool = True
    stand_ins: int | None = None
    stand_in: StandInConfig = field(default_factory=StandInConfig)
    inversion: InversionConfig = field(default_factory=InversionConfig)
    relearn: RelearnConfig | None = None
    compute: ComputeSettings = field(default_factory=ComputeSettings)
    split: SplitSettings = field(default_factory=SplitSettings)

    def __post_init__(self) -> None:
        if self.norm not in DEFAULT_EPS:
            raise ConfigError(f"norm: expected one of {sorted(DEFAULT_EPS)}, got {self.norm!r}")
        known = set(get_args(Mode))
        if self.modes is not None and len(set(self.modes) & known) != len(self.modes):
            raise ConfigError(
                f"modes: expected one or more of {', '.join(sorted(known))}, got {self.modes}"
            )
        if set(self.modes or ()) - {"white"} and self.objective != "standard":
            raise ConfigError("objective: only the white box knows another one than the standard")
        if self.stand_ins is not None and self.stand_ins < 0:
            raise ConfigError(f"stand_ins: expected 0 or more, got {self.stand_ins}")
        if self.modes == ():
            raise ConfigError("modes: expected one at least")
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

    def as_dict(self) -> dict[str, Any]:
        """Return the settings for the record."""
        return {**asdict(self), "eps": list(self.ladder)}
