"""The models a query search starts from."""

from __future__ import annotations

from bdaudit.auditing.inputs import Inputs
from bdaudit.auditing.runs import Compute, derive_generator
from bdaudit.models import LoadedModel
from bdaudit.progress import Steps
from bdaudit.surrogates import SurrogateConfig, make_surrogates

__all__ = ["surrogate_steps"]


def surrogate_steps(inputs: Inputs, compute: Compute) -> Steps[tuple[LoadedModel, ...]]:
    """Return the original and surrogates made from it on the craft images; none without it.

    One and the same set serves the search on every model under comparison.
    """
    originals = inputs.with_role("original")
    if not originals:
        return ()
    original = originals[0].white
    made = yield from make_surrogates(
        original,
        inputs.craft,
        config=SurrogateConfig(),
        generator=derive_generator(compute.seed, "surrogates"),
    )
    return (original, *made)
