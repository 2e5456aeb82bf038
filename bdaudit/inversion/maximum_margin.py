"""MM-BD: how far a model's logits can be driven apart for each class, and whether one is alone."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import special, stats
from torch import Tensor, nn

from bdaudit.errors import ConfigError, ModelError, NumericsError
from bdaudit.foundation.progress import Progress, Steps

__all__ = [
    "MIN_CLASSES",
    "GammaNull",
    "MaximumMarginConfig",
    "MaximumMargins",
    "find_maximum_margins",
    "hold_against_gamma",
]

MIN_CLASSES = 4
"""Classes below which there is no p-value: the null is fitted to all but one of them."""

_LEAST_SPREAD = 1e-6  # standard deviation over mean from which a gamma distribution is fitted
_N_SIMULATED = 20_000  # models without a backdoor, fewer where there are many classes
_MOST_DRAWS = 2_000_000
_SHAPES = (0.1, 1e4)  # beyond, what is simulated depends on the shape no more


@dataclass(frozen=True, slots=True, kw_only=True)
class MaximumMarginConfig:
    """Settings of the search for maximum margins; the defaults are the paper's.

    Attributes:
        n_images: Random images that each class is driven from.
        n_steps: Most gradient steps.
        learning_rate: Of gradient ascent on the pixels.
        momentum: Of it.
        tolerance: A class is done when the sum of its margins changes by less than this share.

    Raises:
        ConfigError: A setting is out of range.
    """

    n_images: int = 30
    n_steps: int = 300
    learning_rate: float = 0.01
    momentum: float = 0.2
    tolerance: float = 1e-5

    def __post_init__(self) -> None:
        if min(self.n_images, self.n_steps) < 1:
            raise ConfigError("maximum margin: expected counts of 1 or more")
        if not (self.learning_rate > 0 and 0 <= self.momentum < 1 and self.tolerance >= 0):
            raise ConfigError(
                "maximum margin: expected a learning rate above 0, a momentum in [0, 1) and a "
                "tolerance of 0 or more"
            )


@dataclass(frozen=True, slots=True, eq=False)
class MaximumMargins:
    """What the search found.

    Attributes:
        statistics: (K,) for each class the largest margin over its images.
        starts: (K,) the same before the first step.
        steps: (K,) gradient steps each class took.
        still: Classes none of whose pixels had a gradient at the start: the search never began.
        differentiated: Images that went through a forward and a backward pass.
    """

    statistics: Tensor
    starts: Tensor
    steps: tuple[int, ...]
    still: tuple[int, ...]
    differentiated: int


@dataclass(frozen=True, slots=True)
class GammaNull:
    """The largest statistic against a gamma distribution fitted to the others.

    Attributes:
        label: The class of the largest statistic.
        p_value: Share of models with K margins from one gamma distribution in which the largest
            stands out as far; `None` where no null could be fitted.
        published: The p-value of the paper, which is too small where classes are few.
        shape: Of the gamma distribution, which begins at 0.
        scale: Of it, in logits.
        reason: Why there is no p-value.
    """

    label: int
    p_value: float | None
    published: float | None = None
    shape: float | None = None
    scale: float | None = None
    reason: str | None = None


def find_maximum_margins(
    classifier: nn.Module,
    *,
    image_shape: tuple[int, int, int],
    num_classes: int,
    config: MaximumMarginConfig,
    seed: int,
    batch_size: int,
    device: torch.device | str = "cpu",
) -> Steps[MaximumMargins]:
    """Drive random images toward every class as far as the model's logits will go.

    For class c, pixels in [0, 1] climb the margin z_c - max(z_k, k other than c) by projected
    gradient ascent with momentum; a class's statistic is the largest margin over its images. A
    class that training tied to a trigger can often be driven further than all others. No image
    of the task and no other model is needed.

    All classes go through the model in one batch, or in as many as `batch_size` asks for; a class
    whose margins stand still leaves it. What a class comes to does not hang on which others share
    its batch, but for the last bits.

    Args:
        classifier: Maps (n, C, H, W) in [0, 1] to logits (n, K), without gradients on parameters.
        image_shape: (C, H, W).
        num_classes: K, 2 or more.
        config: Settings.
        seed: Of the random images.
        batch_size: Most images in one forward pass; at least those of one class go in.
        device: Where the model is.

    Returns:
        The statistics.

    Raises:
        ModelError: The model cannot be differentiated.
        NumericsError: A logit or a gradient was NaN or infinite.

    Source: Wang, Xiang, Miller and Kesidis, "MM-BD: Post-Training Detection of Backdoor Attacks
    with Arbitrary Backdoor Pattern Types Using a Maximum Margin Statistic", IEEE S&P 2024: 30
    images a class, uniform in [0, 1], learning rate .01, momentum .2, at most 300 steps, done
    when the loss changes by less than 1e-5 of itself. There pixels are those that the network
    takes; here they are in [0, 1] before normalisation, which makes steps larger by 1 / std^2.
    """
    statistics, starts = torch.empty(num_classes), torch.empty(num_classes)
    steps = [0] * num_classes
    still: list[int] = []
    differentiated = 0
    per_part = max(1, batch_size // config.n_images)
    generator = torch.Generator().manual_seed(seed)
    for first in range(0, num_classes, per_part):
        active = torch.arange(first, min(first + per_part, num_classes), device=device)
        # One draw a class, so that they do not hang on the size of a batch.
        drawn = [torch.rand(config.n_images, *image_shape, generator=generator) for _ in active]
        pixels = torch.stack(drawn).to(device)  # (k, n, C, H, W)
        velocity = torch.zeros_like(pixels)
        before = torch.full((len(active),), float("nan"), device=device)
        for step in range(config.n_steps):
            done = (first + len(active) * step / config.n_steps) / num_classes
            yield Progress("maximum margins", done, 1.0)
            margins, gradient = _climb(classifier, pixels, active)
            differentiated += margins.numel()
            if step == 0:
                starts[active.cpu()] = margins.amax(1).cpu()
                still += active[gradient.flatten(1).abs().amax(1) == 0].tolist()
            statistics[active.cpu()] = margins.amax(1).cpu()
            total = margins.sum(1)
            # As a loss would be compared with its last value; NaN, at first, is not below it.
            kept = ~((total - before).abs() < config.tolerance * before.abs())
            if not bool(kept.all()):
                active, pixels, velocity = active[kept], pixels[kept], velocity[kept]
                margins, gradient, total = margins[kept], gradient[kept], total[kept]
                if not len(active):
                    break
            before = total
            velocity = config.momentum * velocity + gradient
            pixels = (pixels + config.learning_rate * velocity).clamp_(0, 1)
            for label in active.tolist():
                steps[label] += 1
        if len(active):
            with torch.no_grad():
                margins = _margins(classifier(pixels.flatten(0, 1)), active)
            statistics[active.cpu()] = margins.amax(1).cpu()
    yield Progress("maximum margins", 1.0, 1.0)
    return MaximumMargins(statistics, starts, tuple(steps), tuple(still), differentiated)


def hold_against_gamma(statistics: Tensor) -> GammaNull:
    """Say how unusual the largest statistic is among the classes.

    A gamma distribution F from 0 on is fitted to the other K - 1 (maximum likelihood). The paper's
    p-value is 1 - F(largest)^K. But F was fitted without the largest, so that it is too narrow: of
    models whose margins *are* draws from one gamma distribution a quarter get .05 or less with ten
    classes, and half with four (docs/screen.md). So the same is done to many such models, drawn
    from F, and the p-value is the share of them in which the largest stands out as far.

    Args:
        statistics: (K,) one a class.

    Returns:
        Both p-values. None where K is below `MIN_CLASSES`, where one of the others is not above 0,
        or where they are all alike.

    Source: Wang et al., as in `find_maximum_margins`, who detect a backdoor at .05 of their
    p-value; there F may begin anywhere. The simulation is ours.
    """
    label = int(statistics.argmax())
    n_classes = len(statistics)
    if n_classes < MIN_CLASSES:
        return GammaNull(
            label,
            None,
            reason=f"{n_classes} classes: the null is fitted to all but one of them, which takes "
            f"{MIN_CLASSES} or more",
        )
    others = torch.cat([statistics[:label], statistics[label + 1 :]]).double().numpy()
    if others.min() <= 0:
        reached = int((others <= 0).sum())
        return GammaNull(
            label,
            None,
            reason=f"{reached} of {n_classes} classes could not be made the model's answer from "
            "random images, and a gamma distribution holds no margin of 0 or less",
        )
    if others.std() <= _LEAST_SPREAD * others.mean():
        return GammaNull(
            label, None, reason="the margins of the other classes are all alike: nothing to fit"
        )
    fitted = _fit_gamma(others[None])
    shape, scale = float(fitted[0][0]), float(fitted[1][0])
    # On a log scale, since the tail of a class that stands far out is below the least number.
    tail = float(stats.gamma.logsf(float(statistics[label]), shape, scale=scale))
    published = float(-np.expm1(n_classes * np.log1p(-np.exp(tail)))) if tail < 0 else 1.0
    # What is simulated hardly depends on the shape: to the next power of e is near enough.
    rounded = float(np.exp(np.round(np.log(np.clip(shape, *_SHAPES)))))
    simulated = _simulated_tails(n_classes, rounded)
    as_far = int(np.searchsorted(simulated, tail, side="right"))
    p_value = (1 + as_far) / (1 + len(simulated))
    return GammaNull(label, p_value, max(0.0, published), shape, scale)


@cache
def _simulated_tails(n_classes: int, shape: float) -> NDArray[np.float64]:
    """Return, ascending, how far the largest margin stands out in models without a backdoor.

    Args:
        n_classes: Margins of each model.
        shape: Of the gamma distribution that they are drawn from; its scale does not matter.

    Returns:
        For each model log(1 - F(largest)), with F fitted to its other margins.
    """
    n_models = min(_N_SIMULATED, _MOST_DRAWS // n_classes)
    draws = np.random.default_rng(0).gamma(shape, size=(max(n_models, 100), n_classes))
    margins = np.sort(np.maximum(draws, np.finfo(np.float64).tiny), axis=1)
    shapes, scales = _fit_gamma(margins[:, :-1])
    tails: NDArray[np.float64] = np.sort(stats.gamma.logsf(margins[:, -1], shapes, scale=scales))
    return tails


def _fit_gamma(margins: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return shape (n,) and scale (n,) of the likeliest gamma distributions, from 0 on, of rows.

    Source: Minka, "Estimating a Gamma distribution", 2002: the closed form is within 1.5 % of the
    shape, and a few steps of Newton's method make it exact.
    """
    means = margins.mean(1)
    apart = np.maximum(np.log(means) - np.log(margins).mean(1), np.finfo(np.float64).eps)
    shapes = (3 - apart + np.sqrt((apart - 3) ** 2 + 24 * apart)) / (12 * apart)
    for _ in range(5):
        wrong = np.log(shapes) - special.digamma(shapes) - apart
        shapes = shapes - wrong / (1 / shapes - special.polygamma(1, shapes))
    return shapes, means / shapes


def _climb(classifier: nn.Module, pixels: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the margins (k, n) of images (k, n, C, H, W), and each image's gradient of its own.

    Raises:
        ModelError: The model cannot be differentiated.
        NumericsError: A margin or a gradient is not finite.
    """
    leaves = pixels.flatten(0, 1).detach().requires_grad_()
    with torch.enable_grad():
        margins = _margins(classifier(leaves), labels)
        if not margins.requires_grad:
            raise ModelError(
                "maximum margin: expected a model through which gradients flow, got none at its "
                "input; quantised and detached networks cannot be screened"
            )
        (gradient,) = torch.autograd.grad(margins.sum(), leaves)
    if not bool(gradient.isfinite().all()):
        raise NumericsError(
            "maximum margin: a gradient was not finite; look for NaN or huge values in the weights"
        )
    return margins.detach(), gradient.view_as(pixels)


def _margins(logits: Tensor, labels: Tensor) -> Tensor:
    """Return z_c - max(z_k, k other than c) as (k, n), of logits (k * n, K) and labels (k,)."""
    own = labels.repeat_interleave(len(logits) // len(labels))[:, None]
    logits = logits.float()
    if not bool(logits.isfinite().all()):
        raise NumericsError(
            "maximum margin: expected finite logits, got NaN or infinity; the weights overflow on "
            "images unlike those of the task, or the normalisation does not match the model"
        )
    others = logits.scatter(1, own, float("-inf")).amax(1)
    return (logits.gather(1, own)[:, 0] - others).view(len(labels), -1)
