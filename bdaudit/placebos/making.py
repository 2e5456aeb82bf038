"""Placebos made where too few are found: patterns unlearned until the original ignores them.

A backdoor whose trigger covers the image may answer to nearly everything of its strength, so that
hardly any pattern of a pool is left. Those that were refused are then changed by gradient descent,
their strength held, until they do two things that define a placebo: leave the original where clean
images leave it, and move innocent models as far as the true trigger does.

What is made is fitted to the original, and the defended model descends from it. That such
placebos are no weaker on defended models than those found is measured in docs/placebos.md.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bdaudit.defenses.tuning import device_of
from bdaudit.detection import inside_of, is_marked, pixels_of, with_pixels
from bdaudit.foundation.progress import Progress, Steps
from bdaudit.placebos.pool import Drawn, added_by, as_strong, mean_l2
from bdaudit.placebos.screening import margins_of, spread_of
from bdaudit.triggers import Poisoned

__all__ = ["N_STEPS", "make"]

N_STEPS = 80
"""Steps of descent for each pattern."""

_BATCH = 80
_LENGTH = 0.02
"""Step of Adam, as a share of the pattern's largest value."""


def make(
    starts: Sequence[Drawn],
    poisoned: Poisoned,
    *,
    original: nn.Module,
    innocents: Sequence[nn.Module],
    generator: torch.Generator,
) -> Steps[tuple[Drawn, ...]]:
    """Change patterns that the original answers to until it ignores them.

    Minimised are the squared changes of the original's margins toward the target, in units of
    their spread on clean images, and the squared difference between the mean change of an innocent
    model's margins and what the true trigger changes them by. After each step the pattern is
    brought back to the true trigger's mean L2 norm.

    Args:
        starts: Patterns that add something to the image, or inside the box that a marked image
            asks about; others are passed over.
        poisoned: Images with and without the true trigger, and their targets.
        original: The model with the backdoor, in eval mode.
        innocents: Innocent models in eval mode, if there are any.
        generator: Seeded CPU generator of the mini-batches.

    Returns:
        As many patterns as could be made, of kind "made from ...". Whether they serve is for
        `screening.screen` to find out.
    """
    device = device_of(original)
    clean, triggered = poisoned.clean.to(device), poisoned.triggered.to(device)
    targets = poisoned.targets.to(device)
    models = (original, *innocents)
    with torch.no_grad():
        before = [margins_of(model(clean), targets) for model in models]
        wanted = [
            (margins_of(model(triggered), targets) - then).mean() / spread_of(then)
            for model, then in zip(innocents, before[1:], strict=True)
        ]
    strength = mean_l2(poisoned.triggered - poisoned.clean)
    made: list[Drawn] = []
    for number, start in enumerate(starts):
        yield Progress("placebos: making", number, len(starts))
        added = added_by(start.transform)
        if added is None:
            continue
        in_box = added[1]
        delta = added[0].detach().clone().to(device).requires_grad_()
        descent = torch.optim.Adam([delta], lr=_LENGTH * float(delta.detach().abs().amax()))
        for _ in range(N_STEPS):
            chosen = torch.randperm(len(targets), generator=generator)[:_BATCH].to(device)
            images = _with(delta, clean[chosen], in_box=in_box)
            moved = [
                (margins_of(model(images), targets[chosen]) - then[chosen]) / spread_of(then)
                for model, then in zip(models, before, strict=True)
            ]
            loss = moved[0].pow(2).mean()
            for shift, goal in zip(moved[1:], wanted, strict=True):
                loss = loss + (shift.mean() - goal).pow(2) / len(innocents)
            if not loss.requires_grad:  # no box of any image has a candidate that could change
                break
            (delta.grad,) = torch.autograd.grad(loss, [delta])
            descent.step()
            _bring_back(delta, clean[chosen], strength, in_box=in_box)
        found = as_strong(poisoned.clean.cpu(), delta.detach().cpu(), strength, in_box=in_box)
        if found is not None:
            made.append(Drawn(f"made from {start.kind}", *found))
    return tuple(made)


def _with(delta: Tensor, images: Tensor, *, in_box: bool) -> Tensor:
    """Add a pattern (C, H, W) to the pictures of images, or to what is inside their boxes."""
    if not is_marked(images):
        return (images + delta).clamp(0, 1)
    added = delta * inside_of(images) if in_box else delta
    return with_pixels(images, (pixels_of(images) + added).clamp(0, 1))


@torch.no_grad()
def _bring_back(delta: Tensor, clean: Tensor, strength: float, *, in_box: bool) -> None:
    """Scale a pattern in place to about the strength; `as_strong` does it exactly at the end."""
    changed = mean_l2(_with(delta, clean, in_box=in_box) - clean)
    if changed > 0.0:
        delta.mul_(strength / changed)
