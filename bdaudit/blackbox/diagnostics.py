"""What makes a black box's answers doubtful; each code has a paragraph in docs/black-box.md."""

from __future__ import annotations

import torch
from torch import Tensor

from bdaudit.blackbox.base import BlackBox
from bdaudit.results import Diagnostic

__all__ = ["check_repeatability", "describe_scale", "diagnose_grid"]

# Two runs of one model on one machine differ by rounding only.
_LOG_SCORE_TOLERANCE = 1e-3


def check_repeatability(black_box: BlackBox, images: Tensor) -> list[Diagnostic]:
    """Ask about the same images twice and compare the answers.

    Costs two queries an image. The second call has the images in the opposite order, so that
    answers which depend on the rest of the batch show as well.

    Args:
        black_box: What is asked.
        images: (N, C, H, W) in [0, 1], two or more.

    Returns:
        Nothing, or `answers_change`: an error where top labels differ, else a warning.
    """
    first = black_box.ask(images)
    second = black_box.ask(images.flip(0)).flip(0)
    labels = [a if a.ndim == 1 else a.argmax(dim=1) for a in (first, second)]
    n_moved = int((labels[0] != labels[1]).sum())
    gap = 0.0 if first.ndim == 1 else float((first - second).abs().max())
    if n_moved == 0 and gap <= _LOG_SCORE_TOLERANCE:
        return []
    return [
        Diagnostic(
            code="answers_change",
            severity="error" if n_moved else "warning",
            message=(
                f"asked twice about the same {len(images)} images, {n_moved} top labels changed"
                + (f" and log-scale scores moved by up to {gap:.3g}" if first.ndim == 2 else "")
                + "; the model draws random numbers, answers depend on the batch, or different "
                "models answer in turn"
            ),
            subject=black_box.name,
        )
    ]


def describe_scale(black_box: BlackBox) -> list[Diagnostic]:
    """Say what the scores turned out to be, once something was asked.

    Returns:
        Nothing where labels are given or nothing was asked; `scores_are_probabilities` (info)
        where logs were taken; `scores_rounded` (warning) where they are multiples of a step.
    """
    scale = black_box.scale
    if scale is None or scale.kind == "logits":
        return []
    found = [
        Diagnostic(
            code="scores_are_probabilities",
            severity="info",
            message="the scores are probabilities; their logarithms were used",
            subject=black_box.name,
        )
    ]
    if scale.step is not None:
        found.append(
            Diagnostic(
                code="scores_rounded",
                severity="warning",
                message=(
                    f"the scores are rounded to multiples of {scale.step:.4g}; a search cannot see "
                    "smaller gains and may stop early, so a failed search says less"
                ),
                subject=black_box.name,
            )
        )
    return found


def diagnose_grid(black_box: BlackBox, delta: Tensor) -> list[Diagnostic]:
    """Say what sending images as 8-bit values does to a perturbation.

    Args:
        black_box: What is asked.
        delta: (1, C, H, W) in pixel units.

    Returns:
        Nothing without a grid, else `images_on_grid`: an info, or a warning where delta nowhere
        reaches half a step, so that most images arrive as if there were none.
    """
    if black_box.grid is None:
        return []
    largest = float(torch.nan_to_num(delta).abs().max())
    lost = largest < 0.5 / black_box.grid
    return [
        Diagnostic(
            code="images_on_grid",
            severity="warning" if lost else "info",
            message=(
                f"images are sent in steps of 1/{black_box.grid} and were rounded to them first; "
                f"delta is at most {largest:.4g}"
                + (", less than half a step, so hardly any of it arrives" if lost else "")
            ),
            subject=black_box.name,
        )
    ]
