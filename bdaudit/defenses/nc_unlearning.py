"""Neural Cleanse unlearning: recover a trigger, and teach its images their true labels."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import ceil

import torch
from torch import Tensor, nn

from bdaudit.defenses.tuning import (
    TuningConfig,
    backpropagate,
    check_images,
    device_of,
    trainable_copy,
    tune,
)
from bdaudit.detection import is_marked
from bdaudit.errors import ConfigError
from bdaudit.foundation.progress import Progress, Steps
from bdaudit.inversion import (
    InversionConfig,
    Inverted,
    NeuralCleanseConfig,
    demand_classifier,
    describe,
    invert_with,
    make_arms,
)
from bdaudit.scoring import evaluating
from bdaudit.triggers import AllToOne, Trigger

__all__ = ["NcUnlearnConfig", "nc_unlearn"]

_ASKED_AT_ONCE = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class NcUnlearnConfig:
    """Settings of `nc_unlearn`.

    Attributes:
        search: Settings of the search for masks.
        n_full_steps: Steps in which the trigger of a class is made in full.
        flagged_p: A class is taken to be a backdoor's target when a mask as small beside those of
            the other classes had a chance of this or less, corrected for the number of classes.
        stamped_share: Share of every mini-batch that carries a recovered trigger, under its true
            labels.
        tuning: How it trains.

    Raises:
        ConfigError: A setting is out of range.
    """

    search: NeuralCleanseConfig = field(default_factory=NeuralCleanseConfig)
    n_full_steps: int = 225
    flagged_p: float = 0.05
    stamped_share: float = 0.2
    tuning: TuningConfig = field(default_factory=TuningConfig)

    def __post_init__(self) -> None:
        if self.n_full_steps < 1:
            raise ConfigError(f"n_full_steps: expected 1 or more, got {self.n_full_steps}")
        if not 0 < self.flagged_p < 1:
            raise ConfigError(f"flagged_p: expected in (0, 1), got {self.flagged_p}")
        if not 0 < self.stamped_share <= 1:
            raise ConfigError(f"stamped_share: expected in (0, 1], got {self.stamped_share}")


def nc_unlearn(
    classifier: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    config: NcUnlearnConfig,
    generator: torch.Generator,
) -> Steps[nn.Module]:
    """Recover triggers by Neural Cleanse, and fine-tune a copy of `classifier` against them.

    The smallest mask and pattern that take images of other classes to it are sought for every
    class. The classes that need conspicuously small ones are flagged, or if there are none the
    most suspicious class is taken, and `Progress` says so. Then the copy is fine-tuned on clean
    images of which a share carries a recovered trigger under the true label.

    Args:
        classifier: Maps (n, C, H, W) in [0, 1] to logits (n, K); left as it is, on its device.
        images: (N, C, H, W) clean images in [0, 1].
        labels: (N,) true labels.
        config: Settings.
        generator: Seeded CPU generator.

    Returns:
        The tuned copy, in eval mode, no parameter requiring a gradient.

    Raises:
        DataError: Images and labels do not fit each other, or too few images are outside of a
            class.
        NumericsError: The search or the training diverged.

    Source: Wang et al., "Neural Cleanse: Identifying and Mitigating Backdoor Attacks in Neural
    Networks", S&P 2019, sections IV and VI: one epoch on a tenth of the training set, a fifth of
    it stamped with the reversed trigger; classes are flagged by an anomaly index above 2. In
    BackdoorBench (Wu et al., NeurIPS 2022) 100 epochs at 0.01 on 5 % of the training set, a fifth
    stamped, and a model without a flagged class is returned as it is. The search is that of
    `bdaudit.inversion`: docs/inversion-evidence.md lists its defaults and the authors'; it
    compares sizes as logarithms, and makes the recovered trigger stronger than the smallest.
    Which images are stamped is drawn anew in every mini-batch, and after the augmentation, which
    would shift the trigger. Only triggers toward one class are sought, as in the source.
    """
    check_images(images, labels)
    demand_classifier("Neural Cleanse unlearning", is_detector=is_marked(images))
    tuned = trainable_copy(classifier)
    device = device_of(tuned)
    images, labels = images.to(device=device, dtype=torch.float32), labels.to(device)
    triggers = yield from _recover(tuned, images, labels, config, generator)

    def gradients(model: nn.Module, batch: Tensor, answers: Tensor) -> Tensor:
        n_stamped = ceil(config.stamped_share * len(batch))
        chosen = torch.randperm(len(batch), generator=generator)[:n_stamped]
        which = torch.randint(len(triggers), (n_stamped,), generator=generator)
        batch = batch.clone()
        for number, trigger in enumerate(triggers):
            here = chosen[which == number]
            batch[here] = trigger.stamp(batch[here])
        return backpropagate(model, batch, answers)

    yield from tune(
        tuned,
        images,
        labels,
        config=config.tuning,
        generator=generator,
        title="Neural Cleanse unlearning",
        gradients=gradients,
    )
    return tuned


def _recover(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    config: NcUnlearnConfig,
    generator: torch.Generator,
) -> Steps[list[Trigger]]:
    """Find the triggers of the flagged classes, or of the most suspicious one."""
    with evaluating(model):
        with torch.no_grad():
            num_classes = model(images[:1]).shape[1]
        arms, skipped = make_arms(
            [AllToOne(label) for label in range(num_classes)], labels.cpu(), num_classes
        )
        model.requires_grad_(False)
        inverted = yield from invert_with(
            "neural-cleanse",
            [model],
            images,
            labels,
            arms,
            config=InversionConfig(
                methods=("neural-cleanse",),
                n_candidates=len(arms),
                n_passes=ceil(config.n_full_steps * config.search.n_images / len(images)),
                found_p=config.flagged_p,
                unsure_p=config.flagged_p,
                neural_cleanse=config.search,
            ),
            wanted=range(len(arms)),
            n_tests=len(arms),
            seed=int(torch.randint(2**31, (), generator=generator)),
            batch_size=_ASKED_AT_ONCE,
            bf16=torch.is_autocast_enabled(images.device.type),
        )
        model.requires_grad_(True)
    names = [describe(arms[found.arm].rule) for found in inverted.recovered]
    yield Progress("Neural Cleanse", 1, 1, _in_words(inverted, names, skipped, config))
    return [
        Trigger(transform=found.transform, rule=rule, recovered=True)
        for found in inverted.recovered
        if (rule := arms[found.arm].rule) is not None
    ]


def _in_words(
    inverted: Inverted, names: list[str], skipped: tuple[str, ...], config: NcUnlearnConfig
) -> str:
    """Return which classes' triggers are unlearned, and why."""
    anomalies, race = inverted.anomalies, inverted.race
    first = inverted.recovered[0].arm
    p_value = None if anomalies.p_values is None else anomalies.p_values[race.finished.index(first)]
    if p_value is not None and p_value <= config.flagged_p:
        said = f"flagged: {', '.join(names)} (p {p_value:.2g} for the first)"
    elif p_value is not None:
        said = f"no class stands out (p {p_value:.2g}); unlearning the most suspicious, {names[0]}"
    else:
        said = f"no class can be flagged ({anomalies.reason}); unlearning {names[0]}"
    return f"{said}; not sought: {', '.join(skipped)}" if skipped else said
