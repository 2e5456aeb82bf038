"""What defences that prune channels share: where masks lie, and which neurons are taken."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from bdaudit.defenses.tuning import device_of, statistics_held
from bdaudit.errors import ModelError
from bdaudit.perturbation import Neurons
from bdaudit.scoring import evaluating, predict

__all__ = ["accuracy_on", "batch_norms", "normalising_by_batch", "prune_lowest", "step_masks"]

_BATCH = 256


def batch_norms(classifier: nn.Module, title: str) -> tuple[Neurons, list[str]]:
    """Return the neurons of the batch-norm layers, and the layers' names.

    Args:
        classifier: Any.
        title: The defence that asks.

    Raises:
        ModelError: There is no batch norm with weights.
    """
    norms = {
        name: part
        for name, part in classifier.named_modules()
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.affine
    }
    if not norms:
        raise ModelError(
            f"{title}: expected a network with batch norm, whose channels it judges and prunes, "
            "found none (transformers have layer norm); use another defence, such as fine-tuning"
        )
    shaken = {
        f"{name}.{kind}": parameter
        for name, norm in norms.items()
        for kind, parameter in norm.named_parameters(recurse=False)
    }
    return Neurons(classifier, shaken), list(norms)


@contextmanager
def normalising_by_batch(classifier: nn.Module) -> Iterator[None]:
    """Normalise by the mini-batch, as in training, but leave the running statistics alone."""
    classifier.train()
    with statistics_held(classifier):
        yield


def step_masks(optimizer: torch.optim.Optimizer, masks: Sequence[Tensor], loss: Tensor) -> None:
    """Take one step down `loss` with the masks alone, and hold them in [0, 1]."""
    for mask, slope in zip(masks, torch.autograd.grad(loss, masks), strict=True):
        mask.grad = slope
    optimizer.step()
    with torch.no_grad():
        for mask in masks:
            mask.clamp_(0.0, 1.0)


def prune_lowest(
    classifier: nn.Module,
    weights: Sequence[nn.Parameter],
    masks: Sequence[Tensor],
    images: Tensor,
    labels: Tensor,
    *,
    threshold: float,
    max_acc_loss: float,
) -> None:
    """Zero the weights of neurons in place, lowest mask first, while accuracy lasts.

    Args:
        classifier: In eval mode.
        weights: (channels,) scale of each layer.
        masks: (channels,) of each layer.
        images: (N, C, H, W) on the classifier's device.
        labels: (N,) likewise.
        threshold: Neurons with a mask of this or less may go.
        max_acc_loss: By how much the accuracy on the images may fall.
    """
    before = torch.cat([weight.detach() for weight in weights])
    values, sizes = torch.cat(list(masks)), [len(mask) for mask in masks]
    order = values.argsort(stable=True)
    order = order[values[order] <= threshold]

    def zero(n: int) -> None:
        kept = before.index_fill(0, order[:n], 0.0)
        with torch.no_grad():
            for weight, part in zip(weights, torch.split(kept, sizes), strict=True):
                weight.copy_(part)

    least = accuracy_on(classifier, images, labels) - max_acc_loss
    low, high = 0, len(order)
    # Accuracy falls as neurons go, by and large, so the number that may go is found by halving;
    # the one that is taken was tried.
    while low < high:
        middle = (low + high + 1) // 2
        zero(middle)
        enough = accuracy_on(classifier, images, labels) >= least
        low, high = (middle, high) if enough else (low, middle - 1)
    zero(low)


def accuracy_on(classifier: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Return the share of images (N, C, H, W) answered by their labels (N,), in eval mode."""
    with evaluating(classifier):
        answers = predict(classifier, images, batch_size=_BATCH, device=device_of(classifier))
    return float((answers == labels.cpu()).double().mean())
