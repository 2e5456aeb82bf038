"""Transfer-based re-activation: one delta made on surrogates, for a model that is never asked.

Source: the transfer-based attack of Zhu, Liang, Wu, "Breaking the False Sense of Security in
Backdoor Defense through Re-Activation Attack", NeurIPS 2024: a perturbation made on several
defended versions of the same original wakes another one. We differ in the loss and in the step,
which is the white box's; docs/transfer.md has the figures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import cycle
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from bdaudit.errors import ConfigError, DataError
from bdaudit.foundation.plain_settings import LATER
from bdaudit.foundation.progress import Progress, Steps
from bdaudit.perturbation import Norm, margin, mean_of_counted
from bdaudit.reactivation.config import WhiteboxConfig
from bdaudit.reactivation.descent import Descent, descend
from bdaudit.reactivation.doubts import doubts_about_model, doubts_about_search
from bdaudit.reactivation.objective import CraftSet, MiniBatch, Objective, ask, shown
from bdaudit.records import Diagnostic
from bdaudit.scoring import evaluating, predict

__all__ = ["Strategy", "TransferConfig", "TransferResult", "reactivate_transfer"]

Strategy: TypeAlias = Literal["ensemble", "momentum", "one-per-step"]

_MOMENTUM_DECAY = 1.0
_SMALLEST = 0.9  # side of a diverse input before it is padded, as a share of the image's


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferConfig:
    """Settings of the transfer-based search.

    Attributes:
        eps: Radius of the ball in pixel units on [0, 1] images; 0 returns delta = 0.
        norm: "linf" or "l2".
        n_passes: Passes over the craft images that may be differentiated, through each surrogate
            with "ensemble" and "momentum", through all together with "one-per-step".
        batch_size: Most images in a mini-batch.
        strategy: "ensemble" averages the loss over all surrogates at every step; "momentum" does
            so and steps along a running sum of gradients (Dong et al., CVPR 2018); "one-per-step"
            takes the surrogates in turn.
        input_diversity: Chance in [0, 1] that a mini-batch is shrunk and padded at random before
            a surrogate sees it (Xie et al., CVPR 2019).
        patience: Stop when the mean loss has not fallen for this many passes in a row; `None`
            uses all passes.
        autocast: "bf16" runs the surrogates' passes under bfloat16 autocast.
        steps: What the columns of a table move by (`LinfBall.steps`); empty for images.
        marked: Whether images are marked with the box that a detector is asked about.

    Raises:
        ConfigError: A setting is out of range.
    """

    eps: float
    norm: Norm = "linf"
    n_passes: int = 24
    batch_size: int = 50
    strategy: Strategy = "ensemble"
    input_diversity: float = 0.0
    patience: int | None = 8
    autocast: Literal["bf16"] | None = None
    steps: tuple[float, ...] = ()
    marked: bool = field(default=False, metadata=LATER)

    def __post_init__(self) -> None:
        self.search()
        if self.strategy not in get_args(Strategy):
            raise ConfigError(
                f"strategy: expected one of {get_args(Strategy)}, got {self.strategy!r}"
            )
        if not 0 <= self.input_diversity <= 1:
            raise ConfigError(f"input_diversity: expected 0 to 1, got {self.input_diversity}")

    def search(self) -> WhiteboxConfig:
        """Return the settings of the white-box descent that this search runs on surrogates."""
        return WhiteboxConfig(
            eps=self.eps,
            norm=self.norm,
            n_passes=self.n_passes,
            batch_size=self.batch_size,
            patience=self.patience,
            autocast=self.autocast,
            steps=self.steps,
            marked=self.marked,
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TransferResult:
    """What a transfer-based search found.

    Attributes:
        delta: (1, C, H, W) float32 on the CPU; its norm never exceeds `config.eps`.
        config: The settings it was found with.
        seed: Initial seed of the generator that was passed in.
        loss_trace: Mean craft loss of each pass over the surrogates asked, measured on the way.
        craft_success: Share of craft images + delta at their targets, for each surrogate. It says
            how well the search went, not what the delta does to another model.
        gradient_passes: Images differentiated, through whichever surrogate, over craft images.
        delta_norm: Norm of delta in pixel units.
        diagnostics: What makes the search doubtful; see docs/reactivation.md.
    """

    delta: Tensor
    config: TransferConfig
    seed: int
    loss_trace: tuple[float, ...]
    craft_success: tuple[float, ...]
    gradient_passes: float
    delta_norm: float
    diagnostics: tuple[Diagnostic, ...]


def reactivate_transfer(
    surrogates: Sequence[nn.Module],
    triggered: Tensor,
    targets: Tensor,
    *,
    config: TransferConfig,
    generator: torch.Generator,
) -> Steps[TransferResult]:
    """Search one delta, no longer than eps, that takes craft images to their targets everywhere.

    Args:
        surrogates: Classifiers of images (N, C, H, W) in [0, 1], on one device; architectures may
            differ. Their modes are put back, also on failure. Their parameters should require no
            gradient, as those of a `LoadedModel`, or each pass keeps needless activations.
        triggered: (N, C, H, W) craft images in [0, 1] with the trigger on them (without it for a
            control). Left as they are; moved to the surrogates' device.
        targets: (N,) int64, the class each image should be taken to; no -1 among them.
        config: Settings.
        generator: Seeded CPU generator, the only source of randomness.

    Yields:
        One `Progress` a pass.

    Returns:
        The delta. What it does to the defended model must be measured there, on held-out images.

    Raises:
        DataError: Images and targets do not fit each other or the surrogates' classes, or there
            is no surrogate.
        ModelError: A surrogate's answers cannot be differentiated, or are not (N, K).
        NumericsError: Not one step had a finite loss and gradient.
    """
    _check_inputs(surrogates, triggered, targets)
    seed = generator.initial_seed()
    search = config.search()
    device = next((p.device for p in surrogates[0].parameters()), torch.device("cpu"))
    craft = CraftSet(triggered.detach().to(device=device, dtype=torch.float32), targets.to(device))
    with evaluating(*surrogates):
        doubts = [
            doubt.model_copy(update={"subject": f"surrogate {number}"})
            for number, surrogate in enumerate(surrogates, start=1)
            for doubt in doubts_about_model(surrogate, craft, search)
        ]
        objective = _objective(surrogates, config, generator)
        without = _successes(surrogates, craft, None, search)
        start = search.ball.random_point((1, *craft.images.shape[1:]), generator)
        descent = Descent(craft, search, generator, start.to(device))
        # Its steps draw at random and take turns, which no CUDA graph repeats.
        for _ in descend([descent], objective, lambda ended: None):
            yield _progress(descent.passes, descent.success, config)
        if descent.error is not None:
            raise descent.error
        found = _successes(surrogates, craft, descent.delta, search)
    yield _progress(config.n_passes, sum(found) / len(found), config)
    gained = sum(found) > sum(without) or descent.loss_trace[-1] < descent.loss_trace[0]
    doubts += [
        doubt.model_copy(update={"subject": "transfer"})
        for doubt in doubts_about_search(descent, eps=config.eps, gained=gained)
    ]
    delta = descent.delta.cpu().contiguous()
    return TransferResult(
        delta=delta,
        config=config,
        seed=seed,
        loss_trace=tuple(descent.loss_trace),
        craft_success=found,
        gradient_passes=descent.images * objective.models_per_image / len(craft),
        delta_norm=float(search.ball.norm(delta)),
        diagnostics=tuple(doubts),
    )


def transfer_loss(logits: Tensor, targets: Tensor, counted: Tensor | None = None) -> Tensor:
    """Return softplus(margin / S) (N,), S the batch's mean absolute margin, taken as a constant.

    The white box's loss counts images won and lets go of them. Here an image won on a surrogate
    is not won on the model that matters, so every image keeps pulling, the more the further it is
    from its target. S puts surrogates whose logits differ in scale on a par.
    """
    margins = margin(logits, targets)
    scale = margins.detach().abs().mean().clamp_min(torch.finfo(margins.dtype).tiny)
    return functional.softplus(margins / scale)


def _objective(
    surrogates: Sequence[nn.Module], config: TransferConfig, generator: torch.Generator
) -> Objective:
    """Take craft images + delta to their targets on the surrogates asked at each step."""
    in_turn = config.strategy == "one-per-step"
    groups = [[surrogate] for surrogate in surrogates] if in_turn else [list(surrogates)]
    turns = cycle(groups)
    accumulate = momentum_accumulator() if config.strategy == "momentum" else None

    def evaluate(deltas: Tensor, batch: MiniBatch) -> tuple[Tensor, Tensor]:
        if accumulate is not None:
            deltas.register_hook(accumulate)  # type: ignore[no-untyped-call]
        images, targets, counted = shown(batch.images, deltas), batch.targets, batch.counted
        asked = next(turns)
        losses, won = [], []
        for surrogate in asked:
            seen = diversified(images, config.input_diversity, generator)
            logits = ask(surrogate, seen, bf16=config.autocast == "bf16")
            logits = logits.view(*targets.shape, -1)
            losses.append(mean_of_counted(transfer_loss(logits, targets, counted), counted))
            won.append(((logits.argmax(-1) == targets) & counted).sum(-1))
        return torch.stack(losses).mean(0), torch.stack(won).sum(0) / len(asked)

    # An image won on every surrogate may still be lost on the defended model: never stop at it.
    return Objective(evaluate, models_per_image=len(groups[0]), only_attacks=False)


def momentum_accumulator() -> Callable[[Tensor], Tensor]:
    """Return a gradient hook that replaces each gradient by the running sum of all so far.

    Each is divided by its mean absolute value first (Dong et al., CVPR 2018, equation 6).
    """
    velocity: Tensor | None = None

    def accumulate(gradient: Tensor) -> Tensor:
        nonlocal velocity
        scale = gradient.abs().mean()
        # Zero and non-finite gradients go through, to be counted as such, and leave no trace.
        usable = scale.isfinite() & (scale > 0)
        fresh = torch.where(usable, gradient / scale, 0.0)
        velocity = fresh if velocity is None else _MOMENTUM_DECAY * velocity + fresh
        return torch.where(usable, velocity, gradient)

    return accumulate


def diversified(images: Tensor, chance: float, generator: torch.Generator) -> Tensor:
    """With `chance`, shrink a mini-batch a little and put it at a random place on black."""
    if chance == 0 or float(torch.rand((), generator=generator)) >= chance:
        return images
    height, width = images.shape[-2:]
    share = _SMALLEST + (1 - _SMALLEST) * float(torch.rand((), generator=generator))
    size = (max(1, round(share * height)), max(1, round(share * width)))
    top = int(torch.randint(height - size[0] + 1, (), generator=generator))
    left = int(torch.randint(width - size[1] + 1, (), generator=generator))
    small = functional.interpolate(images, size=size, mode="bilinear", align_corners=False)
    return functional.pad(small, (left, width - size[1] - left, top, height - size[0] - top))


def _successes(
    surrogates: Sequence[nn.Module], craft: CraftSet, delta: Tensor | None, search: WhiteboxConfig
) -> tuple[float, ...]:
    """Return for each surrogate the share of craft images at their targets."""
    targets = craft.targets.cpu()
    shares = []
    for surrogate in surrogates:
        predicted = predict(
            surrogate,
            craft.images,
            batch_size=search.batch_size,
            device=craft.images.device,
            delta=delta,
        )
        shares.append(float((predicted == targets).float().mean()))
    return tuple(shares)


def _progress(n_passes: int, success: float, config: TransferConfig) -> Progress:
    return Progress(
        step=f"transfer, {config.norm} eps {config.eps:g}",
        done=n_passes,
        total=config.n_passes,
        note=f"{success:.0%} of craft images on surrogates",
    )


def _check_inputs(surrogates: Sequence[nn.Module], triggered: Tensor, targets: Tensor) -> None:
    if not surrogates:
        raise DataError("transfer: expected one surrogate or more, got none")
    if triggered.ndim != 4 or targets.shape != triggered.shape[:1] or len(targets) == 0:
        raise DataError(
            "transfer: expected images (N, C, H, W) and targets (N,) with N of at least 1, "
            f"got {tuple(triggered.shape)} and {tuple(targets.shape)}"
        )
    if int(targets.min()) < 0:
        raise DataError(
            "transfer: a target of -1 marks an image that does not count; leave those out"
        )
