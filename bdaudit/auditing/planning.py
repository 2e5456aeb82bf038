"""From what is open to the plan of a run: what is made, and how long each step takes."""

from __future__ import annotations

from pathlib import Path

from bdaudit.cases.subjects import Inputs
from bdaudit.data import Sample
from bdaudit.foundation.plan import Plan, PlannedStep
from bdaudit.foundation.progress import Steps
from bdaudit.measuring.compute import Compute
from bdaudit.measuring.speed import Speed
from bdaudit.measuring.standins import n_missing, stand_in_cost, stand_ins_kept, teacher_of
from bdaudit.models import LoadedModel
from bdaudit.relatives.standins import StandInConfig

__all__ = ["first_plan", "plan_models", "plan_stand_ins"]


def plan_stand_ins(
    teacher: LoadedModel,
    craft: Sample,
    compute: Compute,
    *,
    count: int,
    config: StandInConfig,
    cache_dir: Path | None,
    speed: Speed,
) -> list[PlannedStep]:
    """Say how many innocent models are trained that nobody gave, and how many the cache has."""
    if not count:
        return []
    kept = stand_ins_kept(teacher, craft, compute, count=count, config=config, cache_dir=cache_dir)
    steps = []
    if count > kept:
        seconds = stand_in_cost(count - kept, config) * speed.training
        missing = "stand-in" if count - kept == 1 else "stand-ins"
        steps.append(
            PlannedStep(f"{count - kept} {missing} trained for lack of --reference", seconds)
        )
    if kept:
        steps.append(PlannedStep(f"{kept} stand-in{'s' * (kept > 1)} from the cache"))
    return steps


def plan_models(
    inputs: Inputs,
    compute: Compute,
    *,
    wanted: int | None,
    enough: int,
    config: StandInConfig,
    cache_dir: Path | None,
    speed: Speed,
) -> list[PlannedStep]:
    """Plan what stands before every measurement: models scored, and made where they are missing.

    Innocent models that turn out unfit are missing too; that is not known before.
    """
    count = n_missing(inputs.taking_part, wanted, enough=enough)
    n_models = len(inputs.subjects) + count
    seconds = 2.0 * n_models * len(inputs.held_out) * speed.forward
    stand_ins = (
        plan_stand_ins(
            teacher_of(inputs),
            inputs.craft,
            compute,
            count=count,
            config=config,
            cache_dir=cache_dir,
            speed=speed,
        )
        if count
        else []
    )
    return [PlannedStep(f"{n_models} models measured", seconds), *stand_ins]


def first_plan(steps: Steps[object]) -> Plan | None:
    """Run a verb as far as its plan, and no further; `None` where it makes none."""
    try:
        for event in steps:
            if event.plan is not None:
                return event.plan
    finally:
        steps.close()
    return None
