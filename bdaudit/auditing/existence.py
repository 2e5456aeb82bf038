"""The existence coefficient as a step of an audit."""

from __future__ import annotations

from bdaudit.auditing.inputs import Inputs
from bdaudit.auditing.runs import Compute, derive_generator
from bdaudit.existence import ExistenceConfig, existence_coefficient
from bdaudit.progress import Steps
from bdaudit.results import BecRecord

__all__ = ["existence_steps"]


def existence_steps(
    inputs: Inputs, compute: Compute, config: ExistenceConfig | None = None
) -> Steps[tuple[tuple[BecRecord, ...], str | None]]:
    """Compute BEC of the defended model against every reference, on held-out images.

    Returns:
        The records, one a reference, and the reason why there is none where it is undefined.
    """
    (defended,) = inputs.with_role("defended")
    (original,) = inputs.with_role("original")
    if defended.model is None:
        return (), "not measured: the defended model can only be asked"
    records = yield from existence_coefficient(
        original.white.classifier,
        defended.model.classifier,
        [(s.name, s.white.classifier) for s in inputs.with_role("reference")],
        clean=inputs.held_out_poisoned.clean,
        triggered=inputs.held_out_poisoned.triggered,
        config=config or ExistenceConfig(batch_size=compute.batch_size),
        generator=derive_generator(compute.seed, "existence"),
        device=compute.device,
    )
    undefined = [record.reason for record in records if record.value is None and record.reason]
    return records, undefined[0] if len(undefined) == len(records) else None
