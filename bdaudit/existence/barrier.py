"""The straight line of weights from the original to the defended model, and what is on it.

A defence that leaves a model in the basin it was found in can be undone by going back the way it
came: on the line between the two there is no barrier, and the backdoor comes back along it. A
model that was trained anew lies behind one.

Sources: Frankle, Dziugaite, Roy and Carbin, "Linear Mode Connectivity and the Lottery Ticket
Hypothesis" (ICML 2020), for the barrier; Entezari et al. (ICLR 2022), who measure it above the
straight line between the ends, as here, since two ends seldom lose the same; Lubana et al.,
"Mechanistic Mode Connectivity" (ICML 2023), for what it says about mechanisms that two models
share; Jordan et al., "REPAIR" (ICLR 2023), for batch norms whose statistics are measured anew.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional

from bdaudit.errors import ModelError, NumericsError
from bdaudit.existence.passes import at_work
from bdaudit.foundation.progress import Progress, Steps
from bdaudit.models import Classifier
from bdaudit.records import LinePoint, LossBarrier, Rate
from bdaudit.scoring import predict_logits, rate

__all__ = ["N_POINTS", "measure_barrier"]

N_POINTS = 9
"""Points on the line, both ends among them."""


def measure_barrier(
    original: nn.Module,
    defended: nn.Module,
    *,
    clean: Tensor,
    labels: Tensor,
    triggered: Tensor,
    targets: Tensor,
    calibration: Tensor,
    batch_size: int,
    device: torch.device,
) -> Steps[LossBarrier]:
    """Measure clean loss, clean accuracy and ASR at points between two models.

    At `share` s every weight is (1 - s) of the original's and s of the defended model's. Running
    statistics of batch norms fit neither end there, so between the ends they are measured anew on
    `calibration`; at the ends they are the models' own. The two models stay as they are.

    Args:
        original: The model before the defence.
        defended: What the defence made of it, with the same tensors by name and size.
        clean: Held-out images (N, C, H, W) in [0, 1].
        labels: Their classes (N,).
        triggered: Held-out images (M, C, H, W) with the trigger, whose label is not the target.
        targets: The classes (M,) that they should be taken to.
        calibration: Clean images that no figure is of.
        batch_size: Images a forward pass.
        device: Where to compute.

    Returns:
        The points, and how far the clean loss and error rise above the line between the ends.

    Raises:
        ModelError: The models do not have the same tensors, prepare images differently, or cannot
            be copied.
        NumericsError: A model between them gives no finite scores.
    """
    _demand_alike(original, defended)
    first, last = _weights(original), _weights(defended)
    try:
        between = copy.deepcopy(original)
    except (AttributeError, NotImplementedError, RuntimeError, TypeError) as error:
        # As of a module that holds a lock, or tensors that a step of `forward` left there.
        raise ModelError(f"the original cannot be copied ({error})") from error
    norms = [m for m in between.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    norms = [norm for norm in norms if norm.running_mean is not None]
    points: list[LinePoint] = []
    with at_work(between, device):
        for number in range(N_POINTS):
            yield Progress("existence: between the weights", number, N_POINTS)
            at = number / (N_POINTS - 1)
            with torch.no_grad():
                _fill(between, first, last, at)
                if norms and 0 < at < 1:
                    _measure_statistics(between, norms, calibration, batch_size, device)
            scores = predict_logits(between, clean, batch_size=batch_size, device=device)
            answers = predict_logits(between, triggered, batch_size=batch_size, device=device)
            loss = float(functional.cross_entropy(scores.double(), labels.cpu()))
            if not loss < float("inf"):
                raise NumericsError(f"the model {at:.0%} of the way has no finite loss")
            points.append(
                LinePoint(
                    share=at,
                    clean_loss=loss,
                    clean_acc=_plain(scores.argmax(1) == labels.cpu()),
                    asr=_plain(answers.argmax(1) == targets.cpu()),
                )
            )
    return LossBarrier(
        points=tuple(points),
        loss=_above_the_line([p.clean_loss for p in points]),
        error=_above_the_line([1 - p.clean_acc.value for p in points]),
        batch_norm="measured anew" if norms else "none",
        n_calibration=len(calibration) if norms else 0,
    )


def _weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def _plain(outcomes: Tensor) -> Rate:
    return rate(outcomes).model_copy(update={"bits": None})


def _above_the_line(heights: list[float]) -> float:
    """Return how far a curve rises above the straight line between its ends; at least 0."""
    first, last, steps = heights[0], heights[-1], len(heights) - 1
    return max(h - first - (last - first) * k / steps for k, h in enumerate(heights))


def _demand_alike(original: nn.Module, defended: nn.Module) -> None:
    own, other = (
        {name: tuple(value.shape) for name, value in model.state_dict().items()}
        for model in (original, defended)
    )
    for name in own.keys() ^ other.keys():
        raise ModelError(f"one of the two has no tensor {name}, so there is no line between them")
    for name, shape in own.items():
        if other[name] != shape:
            raise ModelError(
                f"tensor {name} has the shape {shape} in the original and {other[name]} in the "
                "defended model, so there is no line between them"
            )
    if isinstance(original, Classifier) and isinstance(defended, Classifier):
        same = (
            torch.equal(original.mean.cpu(), defended.mean.cpu())
            and torch.equal(original.std.cpu(), defended.std.cpu())
            and original.input_size == defended.input_size
            and original.outputs == defended.outputs
        )
        if not same:
            raise ModelError("the two prepare their images differently")


def _fill(
    between: nn.Module, original: Mapping[str, Tensor], defended: Mapping[str, Tensor], at: float
) -> None:
    """Put the weights at a point of the line into `between`; counts are the nearer end's."""
    for name, tensor in between.state_dict().items():
        first, last = original[name], defended[name].to(original[name].device)
        if at in (0.0, 1.0) or not first.is_floating_point():
            tensor.copy_(first if at < 0.5 else last)
        else:
            tensor.copy_(torch.lerp(first, last, at))


def _measure_statistics(
    model: nn.Module,
    norms: list[nn.modules.batchnorm._BatchNorm],
    images: Tensor,
    batch_size: int,
    device: torch.device,
) -> None:
    with _averaging(norms):
        for batch in torch.split(images, batch_size):
            if len(batch) > 1:  # one image alone has no spread
                model(batch.to(device))


@contextmanager
def _averaging(norms: list[nn.modules.batchnorm._BatchNorm]) -> Iterator[None]:
    """Let batch norms, and nothing else, gather plain averages over all batches."""
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            norm.eval()
