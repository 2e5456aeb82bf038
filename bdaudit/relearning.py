"""Relearning: how fast does the trigger come back under a handful of poisoned images?

A model in which the backdoor sleeps needs a few steps of training on a few triggered images to
answer the trigger again; a model that never had it, or has lost it, must learn it from nothing. The
probe changes weights where re-activation changes images, so the two can be wrong in different ways.

Two things look like relearning and are not. A few images of one label teach a model that label for
anything, triggered or not: so every ASR is measured beside the share of the same images that go to
the target *without* the trigger, and the response to the trigger is the difference. And any model
learns any trigger if it is taught hard enough: so the response is held against that of innocent
models taught the same images in the same order, at a learning rate chosen on those alone.

Source: the finding that purified models relearn quickly is that of Min et al., "Uncovering,
Explaining, and Mitigating the Superficial Safety of Backdoor Defense", NeurIPS 2024 (arXiv
2410.09838), who tune for whole epochs and read the ASR at the end. The comparison with innocent
models over the course of a few steps, the choice of the rate and the interval are ours
(docs/relearning.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import pairwise
from math import inf, isfinite, sqrt
from statistics import fmean
from typing import Literal

import numpy as np
import torch
from scipy import stats
from torch import Tensor, nn
from torch.nn import functional

from bdaudit.defenses.momentum import Momentum
from bdaudit.defenses.tuning import device_of, trainable_copy
from bdaudit.errors import ConfigError, DataError, NumericsError
from bdaudit.foundation.memory import sent_if_small
from bdaudit.foundation.progress import Progress, Steps
from bdaudit.foundation.recording import Answers, Replayed
from bdaudit.precision import autocasting
from bdaudit.records import RelearningEvidence
from bdaudit.scoring import predict
from bdaudit.settings import Precision
from bdaudit.triggers import Poisoned

__all__ = [
    "GAP_LIMIT",
    "Reading",
    "RelearnConfig",
    "Relearned",
    "Teaching",
    "choose_rate",
    "compare_relearning",
    "ignores_trigger",
    "read_gap",
    "relearn",
    "relearn_at_chosen_rate",
    "stays_upright",
]

GAP_LIMIT = 0.10
"""A gap surely above it is read as dormant, one surely below it as removed."""

_UNTAUGHT = 0.10
"""Mean response over the steps up to which an innocent model has not learnt the trigger."""

_UPRIGHT = 0.25
"""Mean share of untriggered images at the target up to which training has left a model its task."""

Reading = Literal["dormant", "removed", "unknown"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RelearnConfig:
    """Settings of `relearn`. The defaults are measured in docs/relearning.md.

    Attributes:
        shots: Triggered images, labelled as the target, that every step sees.
        n_clean: Clean images beside them in a step, drawn anew each time.
        learning_rates: Of SGD, constant; each is tried by itself, ascending.
        steps: Steps after which the ASR is measured, ascending.
        draws: How often it is repeated with other shots and other clean images.
        momentum: Of SGD.
        freeze_batch_norm: Whether batch norm keeps its running statistics. A handful of images, a
            seventh of them alike, would distort them.
        n_held_out: Held-out images the ASR is measured on at most, drawn once: they are asked
            about after every one of the steps, with and without the trigger.
        batch_size: Images in one forward pass when scoring.
        autocast: `bf16` trains under bfloat16 autocast; what is measured is float32 either way.

    Raises:
        ConfigError: A setting is out of range.
    """

    shots: int = 5
    n_clean: int = 32
    learning_rates: tuple[float, ...] = (0.0001, 0.0003, 0.001, 0.003)
    steps: tuple[int, ...] = (2, 5, 10, 20)
    draws: int = 5
    momentum: float = 0.9
    freeze_batch_norm: bool = True
    n_held_out: int = 500
    batch_size: int = 256
    autocast: Literal["bf16"] | None = None

    def __post_init__(self) -> None:
        for name in ("shots", "n_clean", "draws", "n_held_out", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: expected 1 or more, got {getattr(self, name)}")
        _check_ladder("learning_rates", self.learning_rates)
        _check_ladder("steps", self.steps)
        if self.autocast not in (None, "bf16"):
            raise ConfigError(f"autocast: expected bf16 or none, got {self.autocast!r}")
        if not 0 <= self.momentum < 1:
            raise ConfigError(f"momentum: expected in [0, 1), got {self.momentum}")


def _check_ladder(name: str, values: Sequence[float]) -> None:
    rising = all(a < b for a, b in pairwise(values))
    if not values or not rising or not all(isfinite(v) and v > 0 for v in values):
        raise ConfigError(f"{name}: expected rising values above 0, got {tuple(values)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Relearned:
    """One model's relearning.

    Attributes:
        config: How it was done.
        before: (N,) whether the trigger alone took each held-out image to its target.
        triggered: By learning rate: (draws, steps, N), the same after that many steps.
        clean: By learning rate: (draws, steps, N), whether the image without the trigger went
            there.
        diverged: Rates at which training gave no finite answers; they are in neither mapping.
    """

    config: RelearnConfig
    before: Tensor
    triggered: Mapping[float, Tensor]
    clean: Mapping[float, Tensor]
    diverged: tuple[float, ...] = ()

    def asr(self, learning_rate: float) -> tuple[float, ...]:
        """Return the ASR after each number of steps, mean over the draws."""
        return _by_step(self._at(self.triggered, learning_rate))

    def clean_target_rate(self, learning_rate: float) -> tuple[float, ...]:
        """Return the share of the images that go to the target untriggered, likewise."""
        return _by_step(self._at(self.clean, learning_rate))

    def responses(self, learning_rate: float) -> Tensor:
        """Return (draws, N): success with the trigger less without it, mean over the steps."""
        net = self._at(self.triggered, learning_rate).double()
        return (net - self._at(self.clean, learning_rate).double()).mean(dim=1)

    def _at(self, outcomes: Mapping[float, Tensor], learning_rate: float) -> Tensor:
        if learning_rate in self.diverged:
            raise NumericsError(
                f"relearning: training at learning rate {learning_rate:g} gave no finite answers; "
                "lower the learning rates"
            )
        if learning_rate not in outcomes:
            raise ConfigError(
                f"relearning: expected a learning rate among {sorted(outcomes)}, got "
                f"{learning_rate:g}"
            )
        return outcomes[learning_rate]


def _by_step(outcomes: Tensor) -> tuple[float, ...]:
    return tuple(outcomes.double().mean(dim=(0, 2)).tolist())


def relearn(
    classifier: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    craft: Poisoned,
    held_out: Poisoned,
    config: RelearnConfig,
    generator: torch.Generator,
) -> Steps[Relearned]:
    """Teach copies of `classifier` the trigger by a few images, and watch the held-out ASR.

    Args:
        classifier: Maps (n, C, H, W) in [0, 1] to logits (n, K); left as it is, on its device.
        images: (M, C, H, W) clean images in [0, 1] that the shots are mixed with.
        labels: (M,) their true labels.
        craft: Poisonable images that the shots are drawn from; none of them is held out.
        held_out: Poisonable images that the ASR is measured on.
        config: Settings.
        generator: Seeded CPU generator, from which all shots and clean images are drawn before
            training starts: the same seed teaches every model the same images in the same order.

    Returns:
        What came of it, image by image.

    Raises:
        DataError: Fewer images to draw from than shots, or none.
        NumericsError: The classifier itself returned NaN or infinite scores.
    """
    teaching = Teaching(
        classifier,
        images,
        labels,
        craft=craft,
        held_out=held_out,
        config=config,
        generator=generator,
    )
    return (yield from teaching.at(config.learning_rates))


class Teaching:
    """One model, what it is taught and what it is asked: at one learning rate after another.

    Arguments and errors as for `relearn`. Holds a copy of the classifier, and on a card what of it
    is replayed.
    """

    def __init__(
        self,
        classifier: nn.Module,
        images: Tensor,
        labels: Tensor,
        *,
        craft: Poisoned,
        held_out: Poisoned,
        config: RelearnConfig,
        generator: torch.Generator,
    ) -> None:
        if len(craft) < config.shots or len(labels) < 1 or len(held_out) < 1:
            raise DataError(
                f"relearning: expected {config.shots} images to draw shots from, clean images "
                f"beside them and images to measure on, got {len(craft)}, {len(labels)} and "
                f"{len(held_out)}"
            )
        self.config = config
        self._device = device_of(classifier)
        asked = torch.randperm(len(held_out), generator=generator)[: config.n_held_out]
        asked = asked.sort().values
        shown = torch.cat([held_out.triggered[asked], held_out.clean[asked]])
        self._shown = sent_if_small(shown, self._device)
        self._targets = held_out.targets[asked].cpu()
        self._lessons = [
            _draw_lesson(craft, len(labels), config, generator) for _ in range(config.draws)
        ]
        self._pupil = _Pupil(classifier, images, labels, craft, config)
        self._before = self._taken()[0]

    def at(self, learning_rates: Sequence[float]) -> Steps[Relearned]:
        """Teach at each of the rates, every draw from the model as it came.

        Yields:
            One `Progress` a draw.
        """
        config, n_rates = self.config, len(learning_rates)
        triggered: dict[float, Tensor] = {}
        clean: dict[float, Tensor] = {}
        diverged: list[float] = []
        total = n_rates * config.draws
        for place, rate in enumerate(learning_rates):
            outcomes = []
            try:
                for number, lesson in enumerate(self._lessons):
                    yield Progress(
                        f"relearning, learning rate {rate:g}", place * config.draws + number, total
                    )
                    outcomes += [self._taken() for _ in self._pupil.taught(lesson, rate)]
            except NumericsError:
                diverged.append(rate)
                continue
            shape = (2, config.draws, len(config.steps), len(self._targets))
            triggered[rate], clean[rate] = torch.stack(outcomes, dim=1).view(shape)
        yield Progress("relearning", total, total)
        return Relearned(
            config=replace(config, learning_rates=tuple(learning_rates)),
            before=self._before,
            triggered=triggered,
            clean=clean,
            diverged=tuple(diverged),
        )

    def _taken(self) -> Tensor:
        """Return (2, N): whether each image with the trigger, and without it, goes there."""
        labels = predict(
            self._pupil.answers,
            self._shown,
            batch_size=self.config.batch_size,
            device=self._device,
        )
        return labels.view(2, -1) == self._targets


@dataclass(frozen=True, slots=True)
class _Lesson:
    """Indices of what is taught: shots (shots,) in the craft images, clean (steps, n_clean)."""

    shots: Tensor
    clean: Tensor


def _draw_lesson(
    craft: Poisoned, n_images: int, config: RelearnConfig, generator: torch.Generator
) -> _Lesson:
    shots = torch.randperm(len(craft), generator=generator)[: config.shots]
    size = (config.steps[-1], config.n_clean)
    return _Lesson(shots, torch.randint(n_images, size, generator=generator))


class _Pupil:
    """A copy of a classifier that is taught again and again, each time from the same weights.

    On a card its steps, and what it is asked between them, are replayed as CUDA graphs.

    Args:
        classifier: What is copied.
        images: Clean images that the shots are mixed with.
        labels: Their true labels.
        craft: What the shots are drawn from.
        config: Settings.
    """

    def __init__(
        self,
        classifier: nn.Module,
        images: Tensor,
        labels: Tensor,
        craft: Poisoned,
        config: RelearnConfig,
    ) -> None:
        self.device = device_of(classifier)
        self.config = config
        self._model = trainable_copy(classifier).eval()
        self._norms = [
            part
            for part in self._model.modules()
            if isinstance(part, nn.modules.batchnorm._BatchNorm)
        ]
        self._images, self._labels = sent_if_small(images, self.device), labels.to(self.device)
        self._craft = craft
        self._descent = Momentum(self._model.parameters(), momentum=config.momentum)
        self._weights = [*self._model.parameters(), *self._model.buffers()]
        self._before = [tensor.detach().clone() for tensor in self._weights]
        on_card = self.device.type == "cuda"
        self.answers: Callable[[Tensor], Tensor] = Answers(self._model) if on_card else self._model
        learn = partial(_learn, self._model, self._descent, config, self.device)
        # Nothing here leads back to this object, so that the memory of a graph goes with it.
        weights, descent = self._weights, self._descent
        self._step: Callable[..., None] = (
            Replayed(learn, lambda: (*weights, *descent.sums), descent.judged) if on_card else learn
        )

    def taught(self, lesson: _Lesson, learning_rate: float) -> Iterator[None]:
        """Learn from the start, and stop after each number of steps, in eval mode."""
        with torch.no_grad():
            for tensor, value in zip(self._weights, self._before, strict=True):
                tensor.copy_(value)
        self._descent.restart()
        shots = self._craft.triggered[lesson.shots].to(self.device)
        answers = self._craft.targets[lesson.shots].to(self.device)
        rate = (
            torch.tensor(learning_rate, device=self.device)
            if isinstance(self._step, Replayed)
            else learning_rate
        )
        for step, chosen in enumerate(lesson.clean, start=1):
            # Only batch norm is ever put in train mode: dropout would add a source of chance.
            for norm in self._norms:
                norm.train(not self.config.freeze_batch_norm)
            there = chosen.to(self._images.device)
            batch = torch.cat([self._images[there].to(self.device), shots])
            self._step(batch, torch.cat([self._labels[chosen.to(self.device)], answers]), rate)
            if step in self.config.steps:
                self._model.eval()
                yield


def _learn(
    model: nn.Module,
    descent: Momentum,
    config: RelearnConfig,
    device: torch.device,
    batch: Tensor,
    wanted: Tensor,
    rate: float | Tensor,
) -> None:
    """Take one step of training."""
    precision: Precision = "bfloat16" if config.autocast == "bf16" else "float32"
    descent.forget_gradients()
    with autocasting(device, precision):
        logits = model(batch)
    functional.cross_entropy(logits.float(), wanted).backward()  # type: ignore[no-untyped-call]
    descent.step(rate)


def choose_rate(innocents: Sequence[Relearned], *, below: float = inf) -> float:
    """Choose the learning rate at which a model that remembers shows best.

    It is the largest at which every innocent model still ignores the trigger (`ignores_trigger`).
    A smaller one gives a sleeping backdoor less time; at a larger one innocent models learn the
    trigger or come to answer the target to anything, and where training does that it also destroys
    what a model remembers. Where even the smallest does that, it is the smallest.

    Args:
        innocents: One or more, relearned with the same settings. The model in question plays no
            part, so the choice cannot favour an answer.
        below: Only smaller rates are considered: for a model whose training gave no finite answers
            at the one chosen first.

    Raises:
        ConfigError: There is none.
        NumericsError: At every rate some training gave no finite answers.
    """
    if not innocents:
        raise ConfigError("relearning: expected one innocent model or more to choose a rate on")
    finite = set.intersection(*(set(innocent.triggered) for innocent in innocents))
    usable = sorted(rate for rate in finite if rate < below)
    if not usable:
        raise NumericsError(
            "relearning: at every learning rate the training of some model gave no finite answers; "
            "lower the learning rates"
        )
    kept_low = [rate for rate in usable if all(ignores_trigger(one, rate) for one in innocents)]
    return kept_low[-1] if kept_low else usable[0]


def ignores_trigger(innocent: Relearned, learning_rate: float) -> bool:
    """Return whether training at that rate leaves an innocent model one that ignores the trigger.

    Its response, mean over the steps, is at most .10, and the share of untriggered images that go
    to the target at most .25. The ASR itself is not asked: five images of one label teach that
    label for anything, by which an innocent model's ASR passes .10 at rates where it has learnt
    nothing about the trigger, and a sleeping backdoor shows best (measured, docs/relearning.md).
    """
    untriggered = fmean(innocent.clean_target_rate(learning_rate))
    response = fmean(innocent.asr(learning_rate)) - untriggered
    return response <= _UNTAUGHT and stays_upright(innocent, learning_rate)


def stays_upright(innocent: Relearned, learning_rate: float) -> bool:
    """Return whether training at that rate leaves a model one that tells classes apart.

    The share of untriggered images that go to the target, mean over the steps, is at most .25.
    """
    return fmean(innocent.clean_target_rate(learning_rate)) <= _UPRIGHT


def relearn_at_chosen_rate(
    teach: Callable[[float], Steps[Relearned]], innocents: Mapping[str, Relearned]
) -> Steps[tuple[float, Relearned]]:
    """Teach a model at the rate that innocent models choose, or the next below that bears it.

    Args:
        teach: Teaches the model at one learning rate.
        innocents: What innocent models were taught, by name.

    Returns:
        The rate, and what came of it.

    Raises:
        NumericsError: The model diverges at every rate there is.
    """
    rate = choose_rate(list(innocents.values()))
    while rate in (mine := (yield from teach(rate))).diverged:
        rate = choose_rate(list(innocents.values()), below=rate)
    return rate, mine


def compare_relearning(
    model: Relearned,
    innocents: Mapping[str, Relearned],
    *,
    generator: torch.Generator,
    learning_rate: float | None = None,
    n_bootstrap: int = 2_000,
) -> RelearningEvidence:
    """Hold a model's relearning against that of innocent models.

    The gap is the model's response to the trigger (its ASR less the share of the same images that
    go to the target untriggered, mean over the steps: the area between two curves), less that of
    the innocent model that responds most. Its interval is a bootstrap over held-out images and over
    draws of shots, both drawn once for all models, since all were taught and asked the same. With
    few draws a bootstrap is too narrow, so the percentiles are moved outward by Student's t with a
    degree of freedom less than there are draws (the expanded percentile interval of Hesterberg,
    "What Teachers Should Know About the Bootstrap", The American Statistician 69, 2015). How
    innocent models differ from one another, beyond those given, is not in it.

    Args:
        model: The model in question; it needs the chosen rate only.
        innocents: One or more by name, relearned with the same lessons and held-out images.
        generator: Seeded CPU generator, of the bootstrap.
        learning_rate: At which they are compared; `None` takes `choose_rate`'s.
        n_bootstrap: Bootstrap draws.

    Returns:
        The evidence. A gap near 1 says that the model remembers, near 0 (or below) that it learns
        like a model that never saw the trigger.

    Raises:
        ConfigError: No innocent model, or they were not relearned alike.
        NumericsError: The model's training gave no finite answers at that rate.
    """
    if learning_rate is None:
        learning_rate = choose_rate(list(innocents.values()))
    config = model.config
    mine = model.responses(learning_rate)
    theirs = {name: innocent.responses(learning_rate) for name, innocent in innocents.items()}
    unlike = [
        name
        for name, innocent in innocents.items()
        if theirs[name].shape != mine.shape or innocent.config.steps != config.steps
    ]
    if unlike:
        raise ConfigError(
            "relearning: expected innocent models relearned with the same steps, draws and "
            f"held-out images, got {', '.join(unlike)}"
        )
    strongest = max(theirs, key=lambda name: float(theirs[name].mean()))
    difference = mine - theirs[strongest]
    low, high = _interval(difference, n_bootstrap, generator)
    return RelearningEvidence(
        steps=config.steps,
        asr=model.asr(learning_rate),
        clean_target_rate=model.clean_target_rate(learning_rate),
        innocent_asr={name: found.asr(learning_rate) for name, found in innocents.items()},
        innocent_clean_target_rate={
            name: found.clean_target_rate(learning_rate) for name, found in innocents.items()
        },
        gap=float(difference.mean()),
        low=low,
        high=high,
        shots=config.shots,
        settings={
            **{key: list(v) if isinstance(v, tuple) else v for key, v in asdict(config).items()},
            "learning_rates": sorted({r for i in innocents.values() for r in i.triggered}),
            "learning_rate": learning_rate,
            "strongest": strongest,
            "n_held_out": mine.shape[1],
            "n_bootstrap": n_bootstrap,
        },
    )


def read_gap(evidence: RelearningEvidence, *, limit: float = GAP_LIMIT) -> Reading:
    """Return what a gap tells: the whole interval above the limit, below it, or neither."""
    if evidence.low > limit:
        return "dormant"
    return "removed" if evidence.high < limit else "unknown"


def _interval(
    difference: Tensor, n_bootstrap: int, generator: torch.Generator
) -> tuple[float, float]:
    """95 % interval of the mean of (draws, N), rows and columns drawn independently."""
    n_draws, n_images = difference.shape
    rows = _counts(n_bootstrap, n_draws, generator) / n_draws  # (B, draws)
    means = torch.empty(n_bootstrap, dtype=torch.float64)
    for start in range(0, n_bootstrap, 256):
        part = rows[start : start + 256]
        columns = _counts(len(part), n_images, generator) / n_images  # (b, N)
        means[start : start + 256] = ((part @ difference) * columns).sum(dim=1)
    tail = 0.025
    if n_draws > 1:
        reach = sqrt(n_draws / (n_draws - 1)) * float(stats.t.ppf(1 - tail, n_draws - 1))
        tail = float(stats.norm.sf(reach))
    low, high = np.quantile(means.numpy(), [tail, 1 - tail])
    return float(low), float(high)


def _counts(n: int, size: int, generator: torch.Generator) -> Tensor:
    """Count (n, size): how often each of `size` things comes up in `size` draws, n times."""
    drawn = torch.randint(size, (n, size), generator=generator)
    return torch.zeros(n, size, dtype=torch.float64).scatter_add_(
        1, drawn, torch.ones(n, size, dtype=torch.float64)
    )
