"""How networks are run on this machine: in which arithmetic, and on how many images at once."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TypeVar

import torch

from bdaudit.foundation.progress import Steps
from bdaudit.settings import Precision, PrecisionChoice

__all__ = ["autocasting", "computing_in", "images_a_pass", "settled"]

Result = TypeVar("Result")


def settled(precision: PrecisionChoice, device: str) -> Precision:
    """Return what "auto" comes to on this machine; anything else as it is.

    Args:
        precision: "auto" is bfloat16 on a card that computes it, and float32 elsewhere: a processor
            without instructions for it is many times slower in bfloat16.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
    """
    if precision != "auto":
        return precision
    on_card = _is_card(device)
    has_it = on_card and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bfloat16" if has_it else "float32"


_ON_A_PROCESSOR, _ON_A_CARD = 256, 1024
"""Images in one forward pass; few small ones leave a card idle between its kernels."""


def images_a_pass(batch_size: int | None, device: str) -> int:
    """Return how many images are scored at once: what was asked for, or what suits the device.

    Where a card has too little memory for so many, `scoring.predict` and its like halve it.
    """
    if batch_size is not None:
        return batch_size
    return _ON_A_CARD if _is_card(device) else _ON_A_PROCESSOR


def _is_card(device: str) -> bool:
    return device != "cpu" and torch.cuda.is_available()


def autocasting(device: torch.device, precision: Precision) -> AbstractContextManager[None]:
    """Return a context in which networks compute in `precision`; "float32" changes nothing.

    Its cache of converted weights is off: that is emptied when the context ends, and a training
    loop inside would go on with the weights of its first mini-batch.
    """
    return torch.autocast(
        device.type, torch.bfloat16, enabled=precision == "bfloat16", cache_enabled=False
    )


def computing_in(
    precision: Precision, device: torch.device, steps: Callable[[], Steps[Result]]
) -> Steps[Result]:
    """Run a step of somebody else's with its networks in `precision`.

    Autocast holds only while the step itself works, so whoever listens computes as before.

    Args:
        precision: "float32" changes nothing.
        device: Where the step computes.
        steps: Begins the step.
    """
    with autocasting(device, precision):
        running = steps()
    try:
        while True:
            try:
                with autocasting(device, precision):
                    event = next(running)
            except StopIteration as stop:
                return stop.value  # type: ignore[no-any-return]
            yield event
    finally:
        running.close()
