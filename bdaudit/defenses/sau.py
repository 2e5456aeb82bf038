"""Shared adversarial unlearning: forget the adversarial examples shared with the original."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from math import isfinite

import torch
from torch import Tensor, nn
from torch.nn import functional

from bdaudit.defenses.tuning import TuningConfig, statistics_held, trainable_copy, tune
from bdaudit.detection import sparing_marks
from bdaudit.errors import ConfigError
from bdaudit.foundation.progress import Steps
from bdaudit.scoring import evaluating

__all__ = ["SauConfig", "shared_adversarial_unlearn"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SauConfig:
    """Settings of `shared_adversarial_unlearn`.

    Attributes:
        eps: L-inf radius of the adversarial perturbations, in pixel units.
        n_steps: Sign steps to each of them.
        step_size: Length of a step, in pixel units.
        error_weight: Weight of both models' errors when a perturbation is sought, beside 1 for
            their agreement.
        unlearning_weight: Weight of unlearning the shared examples, beside 1 for clean images.
        tuning: How it trains.

    Raises:
        ConfigError: A setting is out of range.
    """

    eps: float = 0.2
    n_steps: int = 5
    step_size: float = 0.2
    error_weight: float = 0.01
    unlearning_weight: float = 1.0
    tuning: TuningConfig = field(default_factory=TuningConfig)

    def __post_init__(self) -> None:
        for name in ("eps", "step_size"):
            if not 0 < getattr(self, name) <= 1:
                raise ConfigError(f"{name}: expected in (0, 1], got {getattr(self, name)}")
        if self.n_steps < 1:
            raise ConfigError(f"n_steps: expected 1 or more, got {self.n_steps}")
        for name in ("error_weight", "unlearning_weight"):
            value = getattr(self, name)
            if not (isfinite(value) and value >= 0):
                raise ConfigError(f"{name}: expected a finite number of at least 0, got {value}")


def shared_adversarial_unlearn(
    classifier: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    config: SauConfig,
    generator: torch.Generator,
) -> Steps[nn.Module]:
    """Train a copy of `classifier` out of the adversarial examples that it shares with it.

    In every mini-batch perturbations are sought that lead the copy and the original astray to the
    same class; poisoned images are such examples. The step lowers the copy's loss on clean images
    and, wherever the original was led astray, the copy's probability of the original's answer.

    Args:
        classifier: Maps (n, C, H, W) in [0, 1] to logits (n, K); left as it is, on its device.
        images: (N, C, H, W) clean images in [0, 1].
        labels: (N,) true labels.
        config: Settings.
        generator: Seeded CPU generator.

    Returns:
        The copy, in eval mode, no parameter requiring a gradient.

    Raises:
        DataError: Images and labels do not fit each other.
        NumericsError: Training diverged.

    Source: Wei et al., "Shared Adversarial Unlearning: Backdoor Mitigation by Unlearning Shared
    Adversarial Examples", NeurIPS 2023, and its authors' code in BackdoorBench: L-inf 0.2, five
    steps of 0.2 from +0.2 everywhere, weights 1 (clean), 1 (unlearning), 1 (agreement) and 0.01
    (errors), 100 epochs of Adam at 0.0001 in mini-batches of 256 on 5 % of the training set, batch
    norm's statistics held. We clamp perturbed images to [0, 1], train for fewer epochs by SGD at a
    larger rate, and let clean images move batch norm's statistics.
    """
    original = copy.deepcopy(classifier).eval().requires_grad_(False)
    tuned = trainable_copy(classifier)

    def gradients(model: nn.Module, batch: Tensor, answers: Tensor) -> Tensor:
        delta = shared_perturbation(model, original, batch, answers, config)
        perturbed = _moved(batch, delta)
        with torch.no_grad():
            misled = original(perturbed).argmax(1)
            astray = (misled != answers) & (misled != original(batch).argmax(1))
        clean = functional.cross_entropy(model(batch).float(), answers)
        clean.backward()  # type: ignore[no-untyped-call]
        with statistics_held(model):
            shared = log_not(model(perturbed).float(), misled)[astray].sum() / len(batch)
            (-config.unlearning_weight * shared).backward()  # type: ignore[no-untyped-call]
        return (clean - config.unlearning_weight * shared).detach()

    yield from tune(
        tuned,
        images,
        labels,
        config=config.tuning,
        generator=generator,
        title="shared adversarial unlearning",
        gradients=gradients,
    )
    return tuned


def shared_perturbation(
    model: nn.Module, original: nn.Module, images: Tensor, labels: Tensor, config: SauConfig
) -> Tensor:
    """Find what leads both models astray from their answers to the same class.

    Args:
        model: The model being purified; in eval mode while it is asked, and back afterwards.
        original: The backdoored model.
        images: (n, C, H, W) in [0, 1].
        labels: (n,) true labels.
        config: Settings.

    Returns:
        (n, C, H, W), of L-inf length `config.eps` at most.
    """
    delta = torch.full_like(images, config.eps)
    with evaluating(model, original):
        with torch.no_grad():
            before = [one(images).argmax(1) for one in (model, original)]
        for _ in range(config.n_steps):
            leaf = delta.requires_grad_()
            logits = [one(_moved(images, leaf)).float() for one in (model, original)]
            wrong = [scores.argmax(1) != was for scores, was in zip(logits, before, strict=True)]
            shared = wrong[0] & wrong[1] & (logits[0].argmax(1) == logits[1].argmax(1))
            if bool(shared.all()):
                break
            loss = divergence(*logits)[~shared].sum()
            for scores, already in zip(logits, wrong, strict=True):
                errors = functional.cross_entropy(scores, labels, reduction="none")
                # Of an image that is led astray already more error is not asked.
                loss = loss - config.error_weight / 2 * errors[~already].sum()
            (gradient,) = torch.autograd.grad(loss, leaf)
            delta = (leaf.detach() - config.step_size * gradient.sign()).clamp(
                -config.eps, config.eps
            )
    return delta.detach()


def _moved(images: Tensor, delta: Tensor) -> Tensor:
    """Add and clamp to [0, 1]; the gradient goes through as if nothing were clamped."""
    shifted = images + sparing_marks(delta, images)
    return shifted + (shifted.clamp(0.0, 1.0) - shifted).detach()


def divergence(first: Tensor, second: Tensor) -> Tensor:
    """Return the Jensen-Shannon divergence (n,) of two models' answers, in nats."""
    log_p, log_q = first.log_softmax(1), second.log_softmax(1)
    log_mean = torch.stack([log_p, log_q]).logsumexp(0) - torch.log(torch.tensor(2.0))
    to_mean = (log_p.exp() * (log_p - log_mean) + log_q.exp() * (log_q - log_mean)).sum(1)
    return 0.5 * to_mean


def log_not(logits: Tensor, labels: Tensor) -> Tensor:
    """Return log(1 - p) (n,) of the probability p of a label, as the log of all others' sum."""
    others = logits.scatter(1, labels[:, None], float("-inf"))
    return others.logsumexp(1) - logits.logsumexp(1)
