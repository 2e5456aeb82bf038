"""Ask a classifier about images and count the answers.

Every reported rate is made here. The attack success rate (ASR) has one definition: over images
whose true label is not the target, the share classified as the target.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import ceil

import torch
from torch import Tensor, nn

from bdaudit.detection import framed
from bdaudit.errors import NumericsError
from bdaudit.foundation.statistics import wilson_interval
from bdaudit.records import Rate

__all__ = ["evaluating", "predict", "predict_logits", "rate"]

_SMALL = 2**26
"""Bytes of images in one pass, up to which more of them cost a card next to nothing."""


@contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Hold `modules` in eval mode, and put every submodule's own mode back afterwards."""
    modes = [(part, part.training) for module in modules for part in module.modules()]
    for module in modules:
        module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


def predict_logits(
    classifier: Callable[[Tensor], Tensor],
    images: Tensor,
    *,
    batch_size: int,
    device: torch.device | str = "cpu",
    delta: Tensor | None = None,
) -> Tensor:
    """Score `images`, optionally with a universal perturbation added.

    Args:
        classifier: Maps (n, C, H, W) in [0, 1] to (n, K).
        images: (N, C, H, W) in [0, 1]; left as they are.
        batch_size: Images a call; the result does not depend on it beyond rounding. On a card four
            times as many where they are small, and half as many where memory is too little.
        device: Where the classifier lives; batches are moved there.
        delta: (1, C, H, W) in pixel units, or `None`. What is asked about is
            `clamp(images + delta, 0, 1)`.

    Returns:
        (N, K) float32 on the CPU.

    Raises:
        NumericsError: A score is NaN, or +inf.
    """
    logits = _answers(classifier, images, batch_size, device, delta).float()
    # A log-probability of minus infinity is a legitimate answer.
    if torch.isnan(logits).any() or torch.isposinf(logits).any():
        raise NumericsError("the model returned NaN or infinite scores for some images")
    return logits


def predict(
    classifier: Callable[[Tensor], Tensor],
    images: Tensor,
    *,
    batch_size: int,
    device: torch.device | str = "cpu",
    delta: Tensor | None = None,
) -> Tensor:
    """Return the top label (N,) of each image.

    Arguments as for `predict_logits`, but that the classifier may also answer with labels (n,).
    """
    failed: list[Tensor] = []  # looked at when all is asked: a look waits for a card

    def label(batch: Tensor) -> Tensor:
        answers = classifier(batch)
        if answers.ndim == 1:
            return answers
        failed.append((torch.isnan(answers) | torch.isposinf(answers)).any())
        return answers.argmax(dim=1)

    labels = _answers(label, images, batch_size, device, delta)
    if failed and torch.stack(failed).any():
        raise NumericsError("the model returned NaN or infinite scores for some images")
    return labels


def _answers(
    classifier: Callable[[Tensor], Tensor],
    images: Tensor,
    batch_size: int,
    device: torch.device | str,
    delta: Tensor | None,
) -> Tensor:
    """Ask batch by batch; gather the answers on the CPU once all are there."""
    answers: list[Tensor] = []
    done = 0
    on_card = torch.device(device).type == "cuda"
    if on_card and len(images) and 4 * batch_size * images[0].nbytes <= _SMALL:
        batch_size *= 4
    with torch.inference_mode():
        shift = None if delta is None else delta.to(device)
        while done < len(images) or not answers:
            batch = images[done : done + batch_size]
            n_images = len(batch)
            try:
                batch = batch.to(device, non_blocking=True)
                if shift is not None:
                    batch = (batch + framed(shift, batch)).clamp_(0.0, 1.0)
                answers.append(classifier(batch))
            except torch.OutOfMemoryError:
                if n_images == 1:
                    raise
                batch_size = ceil(n_images / 2)
            else:
                done += n_images
                continue
            # Only here is what the larger batch held given back.
            torch.cuda.empty_cache()
        return torch.cat(answers).cpu()


def rate(outcomes: Tensor) -> Rate:
    """Make a `Rate` of boolean outcomes (N,), with its 95 % Wilson interval and its bits."""
    flags = outcomes.tolist()
    successes = sum(flags)
    low, high = wilson_interval(successes, len(flags))
    return Rate(successes=successes, total=len(flags), low=low, high=high, bits=Rate.pack(flags))
