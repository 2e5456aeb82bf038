"""Settings of the white-box search."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from bdaudit.errors import ConfigError
from bdaudit.foundation.plain_settings import LATER
from bdaudit.perturbation import Ball, Norm, make_ball
from bdaudit.reactivation.recipes import OptimizerName

__all__ = ["ObjectiveName", "WhiteboxConfig"]

ObjectiveName = Literal["standard", "specific"]


@dataclass(frozen=True, slots=True, kw_only=True)
class WhiteboxConfig:
    """Settings of the white-box search.

    Attributes:
        eps: Radius of the ball in pixel units on [0, 1] images; 0 returns delta = 0.
        norm: "linf" (no pixel value moves by more than eps) or "l2" (the whole change is no
            longer than eps).
        n_passes: Passes over the craft images that may be differentiated, in each restart.
        batch_size: Most images in a mini-batch. Smaller means more steps for the same passes.
        optimizer: "default", or "research" for the optimiser of the paper's script (projected
            SGD, learning rate 0.05, five steps a mini-batch), kept for comparison.
        restarts: Independent searches, of which the best on the craft images is kept.
        patience: Stop when the mean loss has not fallen for this many passes in a row; `None`
            never stops early on a plateau. A pass on which every image was already classified as
            its target always ends the search.
        objective: "standard", or "specific", which also holds other answers still
            (`SpecificTerms`).
        autocast: "bf16" runs the forward and backward passes under bfloat16 autocast.
        channels_last: Give the model its images in channels-last memory format; `None` does so on
            CUDA only.
        steps: What the columns of a table move by (`LinfBall.steps`); empty for images.
        marked: Whether images are marked with the box that a detector is asked about.
        graph: On a card, replay the step as a CUDA graph, which spares a small network the wait
            for Python; where that fails the search goes on without, and says so.

    Raises:
        ConfigError: A setting is out of range.
    """

    eps: float
    norm: Norm = "linf"
    n_passes: int = 24
    batch_size: int = 50
    optimizer: OptimizerName = "default"
    restarts: int = 1
    patience: int | None = 8
    objective: ObjectiveName = "standard"
    autocast: Literal["bf16"] | None = None
    channels_last: bool | None = None
    steps: tuple[float, ...] = ()
    graph: bool = field(default=True, metadata=LATER)
    marked: bool = field(default=False, metadata=LATER)

    def __post_init__(self) -> None:
        make_ball(self.norm, self.eps, self.steps, marked=self.marked)
        for name, allowed in (
            ("optimizer", get_args(OptimizerName)),
            ("objective", get_args(ObjectiveName)),
            ("autocast", ("bf16", None)),
        ):
            if getattr(self, name) not in allowed:
                raise ConfigError(f"{name}: expected one of {allowed}, got {getattr(self, name)!r}")
        for name in ("n_passes", "batch_size", "restarts", "patience"):
            count = getattr(self, name)
            if count is not None and count < 1:
                raise ConfigError(f"{name}: expected 1 or more, got {count}")

    @property
    def ball(self) -> Ball:
        """The set delta is kept in."""
        return make_ball(self.norm, self.eps, self.steps, marked=self.marked)
