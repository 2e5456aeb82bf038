"""What makes a white-box search doubtful; each code has a paragraph in docs/reactivation.md."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from bdaudit.errors import DataError, ModelError
from bdaudit.reactivation.config import WhiteboxConfig
from bdaudit.reactivation.descent import Descent
from bdaudit.reactivation.objective import CraftSet, ask
from bdaudit.records import Diagnostic

__all__ = ["doubts_about_model", "doubts_about_search", "not_replayed", "nothing_changed"]


def doubts_about_model(
    classifier: nn.Module, craft: CraftSet, config: WhiteboxConfig
) -> list[Diagnostic]:
    """Ask about the same few images twice, before anything is spent on a search.

    Raises:
        ModelError: The answers are not (n, K), or do not depend differentiably on the images.
        DataError: A target is not among the K classes.
    """
    images = craft.images[: config.batch_size].clone().requires_grad_()
    bf16 = config.autocast == "bf16"
    logits, again = ask(classifier, images, bf16=bf16), ask(classifier, images, bf16=bf16)
    _check_answers(logits, craft, len(images))
    logits, again = logits.detach(), again.detach()
    found = []
    if not torch.allclose(logits, again, rtol=1e-3, atol=1e-3, equal_nan=True):
        found.append(
            _doubt(
                "nondeterministic_model",
                "error",
                "the same images got different answers from call to call; switch off what is "
                "random in the model (dropout or noise at test time), or average over it",
            )
        )
    if _are_probabilities(logits):
        found.append(
            _doubt(
                "probabilities_not_logits",
                "warning",
                "the answers look like probabilities, whose gradients vanish where the model is "
                "sure; wrap the model so that it returns logits or log-probabilities",
            )
        )
    return found


def doubts_about_search(descent: Descent, *, eps: float, gained: bool) -> list[Diagnostic]:
    """Look back at a finished search.

    Args:
        descent: The search that was kept.
        eps: Radius it had.
        gained: Whether its delta has more successes or a lower cross-entropy on the craft images
            than no delta at all.
    """
    found = []
    if descent.unusable_steps:
        found.append(
            _doubt(
                "non_finite_loss",
                "error",
                f"{descent.unusable_steps} of {descent.steps} steps were skipped because the "
                "loss or its gradient was not finite; look for NaN or huge values in the "
                "weights, or try without bf16",
            )
        )
    still = eps > 0 and descent.success < 1.0 and not bool(descent.delta.any())
    if still:
        found.append(nothing_changed("white box"))
    if descent.flat_steps:
        found.append(
            _doubt(
                "zero_gradient",
                "error" if descent.flat_steps > descent.steps // 2 else "warning",
                f"the gradient was exactly zero in {descent.flat_steps} of {descent.steps} steps "
                "with images still to win: the model hides its gradients, or is so sure that "
                "they vanish; use a query attack",
            )
        )
    elif eps > 0 and descent.success < 1.0 and not gained and not still:
        found.append(
            _doubt(
                "no_progress",
                "warning",
                "the delta found does no better on the craft images than no delta at all; a "
                "search that never got going is weak evidence: try more passes or restarts",
            )
        )
    return found


def nothing_changed(subject: str) -> Diagnostic:
    """Say that a search ended where nothing is changed, so that it says nothing of its radius."""
    return Diagnostic(
        code="nothing_changed",
        severity="error",
        message="the perturbation that was kept changes nothing at all: an attack that never "
        "moved cannot show that a trigger is gone; where columns of a table move by steps, try "
        "radii of several steps",
        subject=subject,
    )


def not_replayed(why: str) -> Diagnostic:
    """Say that steps could not be replayed as a CUDA graph, which costs time and nothing else."""
    return _doubt(
        "no_cuda_graph",
        "info",
        f"the steps were taken one by one and not replayed as a CUDA graph ({why}); the result is "
        "the same, and the search takes longer on a small network",
    )


def _check_answers(logits: Tensor, craft: CraftSet, n_images: int) -> None:
    if logits.ndim != 2 or logits.shape[0] != n_images:
        raise ModelError(f"white box: expected logits ({n_images}, K), got {tuple(logits.shape)}")
    highest, num_classes = int(craft.targets.max()), logits.shape[1]
    if highest >= num_classes:
        raise DataError(
            f"white box: target {highest}, but the model has classes 0 to {num_classes - 1}"
        )
    if not logits.requires_grad:
        raise ModelError(
            "white box: the model's answers do not depend differentiably on its images (a "
            "no_grad block or a rounding inside it?); use a query attack"
        )


def _are_probabilities(logits: Tensor) -> bool:
    sums = logits.sum(1)
    return bool((logits >= 0).all()) and torch.allclose(sums, torch.ones_like(sums), atol=1e-3)


def _doubt(code: str, severity: Literal["error", "warning", "info"], message: str) -> Diagnostic:
    return Diagnostic(code=code, severity=severity, message=message, subject="white box")
