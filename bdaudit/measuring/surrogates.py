"""The models that an attack makes its perturbation on, or starts from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from bdaudit.cases.subjects import Inputs, Subject
from bdaudit.foundation.progress import Steps
from bdaudit.measuring.compute import Compute, derive_generator
from bdaudit.models import LoadedModel
from bdaudit.relatives.surrogates import SurrogateConfig, make_surrogates

__all__ = ["relative_steps", "surrogate_steps"]


def surrogate_steps(
    inputs: Inputs, compute: Compute, cache_dir: Path | None
) -> Steps[tuple[LoadedModel, ...]]:
    """Return the surrogates the user gave, else some made from the original; none without either.

    One and the same set serves the attack on every model under comparison.
    """
    given = inputs.with_role("surrogate")
    if given:
        return tuple(subject.white for subject in given)
    for original in inputs.with_role("original"):
        return (yield from relative_steps(original, inputs, compute, cache_dir))
    return ()


def relative_steps(
    subject: Subject, inputs: Inputs, compute: Compute, cache_dir: Path | None
) -> Steps[tuple[LoadedModel, ...]]:
    """Make surrogates from `subject`, on the craft images, the same way whichever model it is."""
    made = yield from make_surrogates(
        subject.white,
        inputs.craft,
        config=SurrogateConfig(precision=compute.precision),
        generator=derive_generator(compute.seed, "surrogates"),
        cache_dir=cache_dir,
    )
    if subject.role == "original":
        return made
    return tuple(replace(model, name=f"{model.name} of {subject.name}") for model in made)
