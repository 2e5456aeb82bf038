"""Settings of the query-based search."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import isfinite
from typing import Literal, get_args

from bdaudit.blackbox import Feedback
from bdaudit.errors import ConfigError
from bdaudit.foundation.plain_settings import LATER
from bdaudit.perturbation import Ball, Norm, make_ball

__all__ = ["QueryConfig", "QuerySchedule"]

QuerySchedule = Literal["default", "research"]


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryConfig:
    """Settings of the query-based search.

    Attributes:
        eps: Radius of the ball in pixel units on [0, 1] images; 0 returns delta = 0 and asks
            nothing.
        norm: "linf" (no pixel value moves by more than eps) or "l2" (the whole change is no
            longer than eps).
        max_queries: Images the model may be asked about, repeats included; never exceeded.
        feedback: "scores" (N, K), or "labels" (N,) when the top label is all there is.
        schedule: "default" (a student distilled from the answers where there are surrogates, then
            antithetic probes), or "research" for the universal Square search of the paper's
            script, kept for comparison.
        batch_size: Most images in one question of the default schedule.
        distil_share: Largest share of the budget spent on distilling, in (0, 1].
        distil_rounds: Most rounds of distilling: ask, refit the student, make its delta anew.
        probe_scale: Length of a probe in units of eps.
        autocast: "bf16" fits the student and makes its delta under bfloat16 autocast. What is
            asked about does not depend on it otherwise.
        steps: What the columns of a table move by (`LinfBall.steps`); empty for images.
        marked: Whether images are marked with the box that a detector is asked about.

    Raises:
        ConfigError: A setting is out of range.
    """

    eps: float
    norm: Norm = "linf"
    max_queries: int = 20_000
    feedback: Feedback = "scores"
    schedule: QuerySchedule = "default"
    batch_size: int = 300
    distil_share: float = 0.5
    distil_rounds: int = 12
    probe_scale: float = 1.0
    autocast: Literal["bf16"] | None = None
    steps: tuple[float, ...] = ()
    marked: bool = field(default=False, metadata=LATER)

    def __post_init__(self) -> None:
        make_ball(self.norm, self.eps, self.steps, marked=self.marked)
        for name, allowed in (
            ("feedback", get_args(Feedback)),
            ("schedule", get_args(QuerySchedule)),
            ("autocast", ("bf16", None)),
        ):
            if getattr(self, name) not in allowed:
                raise ConfigError(f"{name}: expected one of {allowed}, got {getattr(self, name)!r}")
        for name, least in (("max_queries", 0), ("batch_size", 2), ("distil_rounds", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name}: expected {least} or more, got {getattr(self, name)}")
        if not 0 < self.distil_share <= 1:
            raise ConfigError(f"distil_share: expected above 0, to 1, got {self.distil_share}")
        if not (isfinite(self.probe_scale) and self.probe_scale > 0):
            raise ConfigError(f"probe_scale: expected a number above 0, got {self.probe_scale}")

    @property
    def ball(self) -> Ball:
        """The set delta is kept in."""
        return make_ball(self.norm, self.eps, self.steps, marked=self.marked)
