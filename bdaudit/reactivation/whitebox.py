"""White-box re-activation: one small delta that sends triggered images to their targets.

The attack is the same whatever images it is given. Handed images without the trigger, or another
model, it is a control (see `bdaudit.measuring.conditions`).

Source: the white-box attack of Zhu, Liang, Wu, "Breaking the False Sense of Security in Backdoor
Defense through Re-Activation Attack", NeurIPS 2024. We differ in the optimiser (theirs is kept as
`optimizer="research"`) and add the *specific* objective and the diagnostics.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from math import inf

import torch
from torch import Tensor, nn

from bdaudit.errors import ConfigError, DataError
from bdaudit.foundation.progress import Progress, Steps
from bdaudit.perturbation import cross_entropy
from bdaudit.reactivation.config import WhiteboxConfig
from bdaudit.reactivation.descent import Descent, descend
from bdaudit.reactivation.doubts import doubts_about_model, doubts_about_search
from bdaudit.reactivation.objective import (
    CraftSet,
    Objective,
    SpecificTerms,
    specific_objective,
    standard_objective,
)
from bdaudit.reactivation.recipes import RECIPES
from bdaudit.records import Diagnostic
from bdaudit.scoring import evaluating, predict_logits

__all__ = ["WhiteboxResult", "reactivate_whitebox"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class WhiteboxResult:
    """What a white-box search found.

    Attributes:
        delta: (1, C, H, W) float32 on the CPU; its norm never exceeds `config.eps`.
        config: The settings it was found with.
        seed: Initial seed of the generator that was passed in.
        loss_trace: Mean craft loss of each pass, measured on the way (delta moves meanwhile).
        craft_success: Share of craft images + delta classified as their target: optimistic, since
            delta was made on them.
        gradient_passes: Images differentiated, through whichever model, over craft images, all
            restarts together.
        delta_norm: Norm of delta in pixel units.
        diagnostics: What makes the search doubtful; see docs/reactivation.md.
    """

    delta: Tensor
    config: WhiteboxConfig
    seed: int
    loss_trace: tuple[float, ...]
    craft_success: float
    gradient_passes: float
    delta_norm: float
    diagnostics: tuple[Diagnostic, ...]


def reactivate_whitebox(
    classifier: nn.Module,
    triggered: Tensor,
    targets: Tensor,
    *,
    config: WhiteboxConfig,
    generator: torch.Generator,
    specific: SpecificTerms | None = None,
) -> Steps[WhiteboxResult]:
    """Search one delta, no longer than eps, that takes craft images to their targets.

    Args:
        classifier: Maps images (N, C, H, W) in [0, 1] to logits (N, K). Its mode, parameters and
            their `requires_grad` are left as they were, also on failure.
        triggered: (N, C, H, W) craft images in [0, 1] with the trigger on them (without it for a
            control). Left as they are; moved to the classifier's device.
        targets: (N,) int64, the class each image should be taken to; no -1 among them.
        config: Settings.
        generator: Seeded CPU generator, the only source of randomness.
        specific: What to hold still, for the specific objective.

    Yields:
        One `Progress` a pass.

    Returns:
        The best delta found. Its success must be measured on held-out images.

    Raises:
        ConfigError: The objective and `specific` do not agree.
        DataError: Images and targets do not fit each other or the model's classes.
        ModelError: The model's answers cannot be differentiated, or are not (N, K).
        NumericsError: Not one step had a finite loss and gradient.
    """
    _check_inputs(triggered, targets, config, specific)
    seed = generator.initial_seed()
    craft = _place(triggered, targets, classifier, config)
    models = [classifier]
    if specific is not None and specific.reference is not None:
        models.append(specific.reference)
    best: Descent | None = None
    best_success, best_loss = -1.0, inf
    n_images = 0
    with evaluating(*models), _frozen(*models):
        diagnostics = doubts_about_model(classifier, craft, config)
        objective = _objective(classifier, craft, config, specific)
        success_without, loss_without = _judge(
            classifier, craft, torch.zeros_like(craft.images[:1]), config
        )
        for restart in range(config.restarts):
            descent = Descent(_start(craft, config, generator))
            for n_passes in descend(descent, objective, craft, config, generator):
                yield _progress(restart * config.n_passes + n_passes, descent.success, config)
            n_images += descent.images
            success, loss = _judge(classifier, craft, descent.delta, config)
            if success > best_success:
                best, best_success, best_loss = descent, success, loss
    assert best is not None
    gained = best_success > success_without or best_loss < loss_without
    yield _progress(config.restarts * config.n_passes, best_success, config)
    delta = best.delta.cpu().contiguous()
    return WhiteboxResult(
        delta=delta,
        config=config,
        seed=seed,
        loss_trace=tuple(best.loss_trace),
        craft_success=best_success,
        gradient_passes=n_images * objective.models_per_image / len(craft),
        delta_norm=float(config.ball.norm(delta)),
        diagnostics=(
            *diagnostics,
            *doubts_about_search(best, eps=config.eps, gained=gained),
        ),
    )


def _objective(
    classifier: nn.Module,
    craft: CraftSet,
    config: WhiteboxConfig,
    specific: SpecificTerms | None,
) -> Objective:
    loss, bf16 = RECIPES[config.optimizer].loss, config.autocast == "bf16"
    if specific is None:
        return standard_objective(classifier, craft, loss, bf16=bf16)
    return specific_objective(classifier, craft, loss, specific, bf16=bf16)


def _start(craft: CraftSet, config: WhiteboxConfig, generator: torch.Generator) -> Tensor:
    shape = (1, *craft.images.shape[1:])
    start = RECIPES[config.optimizer].start(shape, config.ball, generator)
    return start.to(craft.images.device)


def _judge(
    classifier: nn.Module, craft: CraftSet, delta: Tensor, config: WhiteboxConfig
) -> tuple[float, float]:
    """Return the share of craft images + delta at their targets, and their mean cross-entropy."""
    logits = predict_logits(
        classifier,
        craft.images,
        batch_size=config.batch_size,
        device=craft.images.device,
        delta=delta,
    )
    targets = craft.targets.cpu()
    success = float((logits.argmax(1) == targets).float().mean())
    return success, float(cross_entropy(logits, targets).mean())


def _progress(n_passes: int, success: float, config: WhiteboxConfig) -> Progress:
    return Progress(
        step=f"white box, {config.norm} eps {config.eps:g}",
        done=n_passes,
        total=config.restarts * config.n_passes,
        note=f"{success:.0%} of craft images",
    )


def _place(
    images: Tensor, targets: Tensor, classifier: nn.Module, config: WhiteboxConfig
) -> CraftSet:
    """Bring images and targets to where the model is, in the memory format to be used there."""
    tensors = chain(classifier.parameters(), classifier.buffers())
    device = next((tensor.device for tensor in tensors), torch.device("cpu"))
    wanted = device.type == "cuda" if config.channels_last is None else config.channels_last
    layout = torch.channels_last if wanted else torch.contiguous_format
    placed = images.detach().to(device=device, dtype=torch.float32, memory_format=layout)
    return CraftSet(placed, targets.to(device))


@contextmanager
def _frozen(*modules: nn.Module) -> Iterator[None]:
    """Let no parameter require a gradient meanwhile, then put the flags back.

    A gradient with respect to delta alone would leave `.grad` untouched anyway, but autograd
    would keep every activation that a weight's gradient needs.
    """
    thawed = [p for module in modules for p in module.parameters() if p.requires_grad]
    for parameter in thawed:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in thawed:
            parameter.requires_grad_(True)


def _check_inputs(
    triggered: Tensor, targets: Tensor, config: WhiteboxConfig, specific: SpecificTerms | None
) -> None:
    if triggered.ndim != 4 or targets.shape != triggered.shape[:1] or len(targets) == 0:
        raise DataError(
            "white box: expected images (N, C, H, W) and targets (N,) with N of at least 1, "
            f"got {tuple(triggered.shape)} and {tuple(targets.shape)}"
        )
    if int(targets.min()) < 0:
        raise DataError(
            "white box: a target of -1 marks an image that does not count; leave those out"
        )
    if (config.objective == "specific") != (specific is not None):
        raise ConfigError(
            'white box: objective "specific" needs SpecificTerms, and only it; got '
            f"objective {config.objective!r} with specific={'none' if specific is None else 'set'}"
        )
    if specific is not None and specific.clean.shape != triggered.shape:
        raise DataError(
            "white box: the specific objective needs the clean craft images row by row; "
            f"got {tuple(specific.clean.shape)} for {tuple(triggered.shape)} triggered ones"
        )
