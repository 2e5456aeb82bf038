"""What makes a black box's answers doubtful; each code has a paragraph in docs/black-box.md."""

from __future__ import annotations

from dataclasses import dataclass
from math import log
from typing import Literal

import torch
from torch import Tensor

from bdaudit.blackbox.base import BlackBox
from bdaudit.errors import RemoteError
from bdaudit.records import Diagnostic

__all__ = [
    "BatchAnswers",
    "ask_in_batches",
    "check_batch_dependence",
    "check_repeatability",
    "describe_scale",
    "diagnose_batch",
    "diagnose_grid",
]

# Two runs of one model on one machine differ by rounding only.
_LOG_SCORE_TOLERANCE = 1e-3

# As shares of the spread of the scores. A batch of the same size with other neighbours is computed
# by the same kernels, so here an image's scores come out bit for bit the same, in any precision.
_OTHER_NEIGHBOURS = 1e-3
# A batch of another size may be computed by other kernels, and a server may merge requests: half
# precision and TF32 then move scores; the room left for that is a choice, not a measurement.
_OTHER_SIZE = 5e-2
_LEAST_LOG = log(1e-4)
_TIMES_NOISE = 3.0  # beyond what the same batch differs by when it is asked about again
_FEWEST_LABELS = 2  # of labels alone one may lie on the edge and fall either way by rounding


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


@dataclass(frozen=True)
class BatchAnswers:
    """What a model answers about the same images in different company.

    All of it is (n, K) log-scale scores, or (n,) labels, in the order of the images.

    Attributes:
        first: Between other images.
        again: The very same batch, asked about once more.
        beside_others: In a batch of the same size, between images that look altogether different.
        alone: One image at a time; `None` where the model cannot.
        failure: Why it cannot.
    """

    first: Tensor
    again: Tensor
    beside_others: Tensor
    alone: Tensor | None
    failure: str | None = None


def ask_in_batches(black_box: BlackBox, images: Tensor, neighbours: Tensor) -> BatchAnswers:
    """Ask about the same images in different company.

    Costs seven queries an image. Every request of two images or more holds both kinds, whatever the
    size of requests.

    Args:
        black_box: What is asked.
        images: (n, C, H, W) in [0, 1].
        neighbours: As many others, which `images` are put between: as they are, then inverted.

    Raises:
        RemoteError: A served model could not be asked.
    """

    def between(others: Tensor) -> Tensor:
        mixed = torch.stack([images, others], dim=1).flatten(0, 1)  # image, other, image, other
        return black_box.ask(mixed)[0::2]

    first, again = between(neighbours), between(neighbours)
    beside_others = between(1.0 - neighbours)
    try:
        alone = torch.cat([black_box.ask(image[None]) for image in images])
    except RemoteError:
        raise
    except Exception as error:  # whatever the network of somebody else may raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        return BatchAnswers(first, again, beside_others, None, reason)
    return BatchAnswers(first, again, beside_others, alone)


def check_batch_dependence(
    black_box: BlackBox, images: Tensor, neighbours: Tensor
) -> list[Diagnostic]:
    """Ask about the same images alone and among others; as `ask_in_batches`, then judged."""
    return diagnose_batch(black_box, ask_in_batches(black_box, images, neighbours))


def diagnose_batch(black_box: BlackBox, answers: BatchAnswers) -> list[Diagnostic]:
    """Return whether what a model answers about an image depends on the images beside it.

    Args:
        black_box: What was asked.
        answers: What it said.

    Returns:
        Nothing, or `answers_depend_on_batch`: an error where more than rounding moved, or where the
        model cannot be queried about a single image; a warning where all that is known is that one
        top label of several changed.
    """
    if answers.alone is None:
        seen = f"it cannot be queried about one image alone ({answers.failure})"
        return [_depends(black_box, "error", seen)]
    others = _moved(black_box, answers.first, answers.beside_others)
    size = _moved(black_box, answers.first, answers.alone)
    noise = _moved(black_box, answers.first, answers.again)
    if answers.first.ndim == 1:
        n_moved = max(others, size) - noise
        if n_moved < 1:
            return []
        sure = n_moved >= _FEWEST_LABELS or (others > noise and black_box.computes_here)
        seen = f"{int(n_moved)} of {len(answers.first)} top labels changed"
        return [_depends(black_box, "error" if sure else "warning", seen)]
    room = _TIMES_NOISE * noise
    limit = _OTHER_NEIGHBOURS if black_box.computes_here else _OTHER_SIZE
    if others <= limit + room and size <= _OTHER_SIZE + room:
        return []
    changed = sum(
        int((answers.first.argmax(dim=1) != other.argmax(dim=1)).sum())
        for other in (answers.beside_others, answers.alone)
    )
    return [
        _depends(
            black_box,
            "error",
            f"other neighbours moved scores by {others:.2g} of their spread, none at all by "
            f"{size:.2g}, and {changed} of {2 * len(answers.first)} top labels changed",
        )
    ]


def _moved(black_box: BlackBox, one: Tensor, other: Tensor) -> float:
    """Return the largest move of a score as a share of their spread, or the labels that changed.

    Probabilities that were rounded are compared as such, and may differ by a step.
    """
    if one.ndim == 1:
        return float((one != other).sum())
    scale = black_box.scale
    if scale is not None and scale.step is not None:
        return float(((one.exp() - other.exp()).abs() - scale.step).clamp_min(0).max())
    if scale is not None and scale.kind == "probabilities":
        # Of next to nothing a logarithm is mostly rounding.
        one, other = one.clamp_min(_LEAST_LOG), other.clamp_min(_LEAST_LOG)
    one, other = (s - s.mean(dim=1, keepdim=True) for s in (one, other))
    spread = float(one.square().mean().sqrt())
    moved = float((one - other).abs().max())
    return moved / spread if spread > 0 else float(moved > 0)


def _depends(black_box: BlackBox, severity: Literal["error", "warning"], seen: str) -> Diagnostic:
    return Diagnostic(
        code="answers_depend_on_batch",
        severity=severity,
        message=(
            f"what it answers about an image depends on the images beside it: {seen}. No rate then "
            "says what the model does when it is used; give one whose batch norm keeps running "
            "statistics (track_running_stats=True, eval mode) and that takes no mean, range or "
            "attention over the batch, or ask it one image at a time (--request-size 1, or a "
            "module that does so)"
        ),
        subject=black_box.name,
    )


def describe_scale(black_box: BlackBox) -> list[Diagnostic]:
    """Return what the scores turned out to be, once something was asked.

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
    """Return what sending images as 8-bit values does to a perturbation.

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
