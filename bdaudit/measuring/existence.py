"""What is left of the original in the defended model, as a step of an audit."""

from __future__ import annotations

import torch
from torch import nn

from bdaudit.blackbox import OnnxBlackBox, fold_batch_norms, read_onnx_layers
from bdaudit.cases.subjects import Inputs
from bdaudit.errors import BdauditError, ModelError
from bdaudit.existence import ExistenceConfig, existence_coefficient
from bdaudit.existence.barrier import N_POINTS, measure_barrier
from bdaudit.existence.direction import backdoor_direction, transformer_layers
from bdaudit.existence.layers import network_of, select_layers
from bdaudit.foundation.progress import Steps
from bdaudit.measuring.compute import Compute, derive_generator
from bdaudit.records import BackdoorDirection, BecRecord, LossBarrier

__all__ = ["barrier_cost", "barrier_steps", "direction_steps", "existence_steps"]

_N_ON_THE_LINE = 250
"""Images of each kind that go through every model on the line, at most."""


def existence_steps(
    inputs: Inputs, compute: Compute, config: ExistenceConfig | None = None
) -> Steps[tuple[tuple[BecRecord, ...], str | None]]:
    """Compute BEC of the defended model against every reference, on held-out images.

    Returns:
        The records, one a reference, and the reason why there is none where it is undefined.
    """
    (defended,) = inputs.with_role("defended")
    (original,) = inputs.with_role("original")
    references = [s.white for s in inputs.with_role("reference")]
    if not references:
        return (), (
            "not measured: it needs an innocent model, and none is usable; pass --reference"
        )
    if defended.model is not None:
        networks = [original.white.classifier, *(r.classifier for r in references)]
        network: nn.Module = defended.model.classifier
    elif isinstance(defended.black_box, OnnxBlackBox):
        try:
            layers = read_onnx_layers(defended.black_box, original.white)
            networks = [fold_batch_norms(m, layers.folded) for m in (original.white, *references)]
        except ModelError as error:
            return (), f"not measured: {error}"
        unread = (
            set(select_layers(original.white.network)) - dict(layers.network.named_modules()).keys()
        )
        if unread:
            return (), (
                "not measured: of an ONNX file only convolutions are read, and layers to compare "
                f"are others: {min(unread)}"
            )
        defended.black_box.notes.append(layers.note)
        network = layers.network
    else:
        return (), "not measured: the defended model is a black-box model (predictions only)"
    records = yield from existence_coefficient(
        networks[0],
        network,
        [(r.name, other) for r, other in zip(references, networks[1:], strict=True)],
        clean=inputs.held_out_poisoned.clean,
        triggered=inputs.held_out_poisoned.triggered,
        config=config
        or ExistenceConfig(batch_size=compute.batch_size, precision=compute.precision),
        generator=derive_generator(compute.seed, "existence"),
        device=compute.device,
    )
    undefined = [record.reason for record in records if record.value is None and record.reason]
    return records, undefined[0] if len(undefined) == len(records) else None


def barrier_steps(inputs: Inputs, compute: Compute) -> Steps[tuple[LossBarrier | None, str | None]]:
    """Measure what lies on the straight line of weights from original to defended model.

    It decides nothing, so where it cannot be measured that is told and no step has failed.

    Returns:
        What was measured, or the reason why nothing was.
    """
    (defended,), (original,) = inputs.with_role("defended"), inputs.with_role("original")
    if defended.model is None:
        return None, "not measured: the defended model is a black-box model (predictions only)"
    few, craft = slice(_N_ON_THE_LINE), inputs.craft.images
    poisoned = inputs.held_out_poisoned
    try:
        made = yield from measure_barrier(
            original.white.classifier,
            defended.model.classifier,
            clean=inputs.held_out.images[few],
            labels=inputs.held_out.labels[few],
            triggered=poisoned.triggered[few],
            targets=poisoned.targets[few],
            calibration=craft[few],
            batch_size=compute.batch_size,
            device=compute.device,
        )
    except BdauditError as error:
        return None, f"not measured: {error}"
    except (MemoryError, torch.OutOfMemoryError):
        return None, "not measured: there is not enough memory for a copy of the model"
    return made, None


def direction_steps(inputs: Inputs, compute: Compute) -> Steps[BackdoorDirection | None]:
    """Measure how much of a transformer's linear backdoor direction the defended model keeps.

    It decides nothing, so where it cannot be measured, as of other networks, there is none.
    """
    (defended,), (original,) = inputs.with_role("defended"), inputs.with_role("original")
    config = ExistenceConfig(batch_size=compute.batch_size, precision=compute.precision)
    if defended.model is None:
        return None
    try:
        if not transformer_layers(network_of(original.white.classifier), config):
            return None
        return (
            yield from backdoor_direction(
                original.white.classifier,
                defended.model.classifier,
                [s.white.classifier for s in inputs.with_role("reference")],
                clean=inputs.held_out_poisoned.clean,
                triggered=inputs.held_out_poisoned.triggered,
                config=config,
                device=compute.device,
            )
        )
    except (BdauditError, MemoryError, torch.OutOfMemoryError):
        return None


def barrier_cost(inputs: Inputs) -> float:
    """Return how many images go through a network."""
    images = len(inputs.held_out) + len(inputs.held_out_poisoned) + len(inputs.craft)
    return float(N_POINTS * min(images, 3 * _N_ON_THE_LINE))
