"""The arithmetic that networks compute in: float32, or bfloat16 by autocast."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TypeVar

import torch

from bdaudit.foundation.progress import Steps
from bdaudit.settings import Precision, PrecisionChoice

__all__ = ["autocasting", "computing_in", "settled"]

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
    on_card = device != "cpu" and torch.cuda.is_available()
    has_it = on_card and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bfloat16" if has_it else "float32"


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
