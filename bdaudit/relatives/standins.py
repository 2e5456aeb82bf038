"""Stand-ins: innocent models of the defended one's architecture, made when none are given.

A fresh network learns the task from a teacher's answers on clean images. Where those never show
the trigger, they carry the task and not the backdoor, even if the teacher has one. A few hundred
images are enough when each is seen in thousands of variants, every variant is a mixture of two
images, and the teacher answers to the very variant that the student sees.

Source: distillation of Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015
(arXiv 1503.02531); patience, mixtures and the same view for teacher and student after Beyer et al.,
"Knowledge Distillation: A Good Teacher Is Patient and Consistent", CVPR 2022; mixtures of Zhang et
al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018. That the student of a backdoored
teacher is innocent is not granted, and is measured for each one (docs/stand-ins.md).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from functools import partial
from math import ceil, isfinite
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from bdaudit.data import Sample
from bdaudit.defenses import TuningConfig
from bdaudit.defenses.tuning import Gradients, augmented, device_of, tune
from bdaudit.errors import ConfigError, NumericsError
from bdaudit.foundation.digests import digest_tensors
from bdaudit.foundation.progress import Progress, Steps, reworded
from bdaudit.models import KeptClassifiers, LoadedModel, describe_classifier, training_order
from bdaudit.models.fresh import fresh_classifier
from bdaudit.precision import autocasting

__all__ = ["StandInConfig", "make_stand_ins", "n_kept"]

_WATCHED = 16  # mini-batches whose mean loss is judged at once
_WORST = 1.25  # times the fresh network's loss: more means that training diverges
_MAX_ATTEMPTS = 7  # the last at a 64th of the first one's rate, or less


@dataclass(frozen=True, slots=True, kw_only=True)
class StandInConfig:
    """How a stand-in is trained. The defaults are measured in docs/stand-ins-evidence.md.

    Attributes:
        n_images: Images it sees while training, every variant of a craft image counted.
        batch_size: Most images in a mini-batch.
        learning_rate: Peak of the one-cycle schedule. A wide network may not bear it: where
            training diverges it begins anew, its peak half of the rate at which it broke, six
            times at most.
        weight_decay: Of SGD.
        max_shift: Augmentation: largest shift as a share of the image's shorter side.
        lessons: What it learns: the teacher's `answers`, or the images' `labels`, with which
            nothing of the teacher comes along but its architecture.
        autocast: `bf16` trains under bfloat16 autocast.

    Raises:
        ConfigError: A setting is out of range.
    """

    n_images: int = 64_000
    batch_size: int = 64
    learning_rate: float = 0.1
    weight_decay: float = 5e-4
    max_shift: float = 0.08
    lessons: Literal["answers", "labels"] = "answers"
    autocast: Literal["bf16"] | None = None

    def __post_init__(self) -> None:
        if self.n_images < 1:
            raise ConfigError(f"n_images: expected 1 or more, got {self.n_images}")
        if not (isfinite(self.learning_rate) and self.learning_rate > 0):
            raise ConfigError(f"learning_rate: expected above 0, got {self.learning_rate}")
        if self.lessons not in ("answers", "labels"):
            raise ConfigError(f"lessons: expected answers or labels, got {self.lessons!r}")
        if self.autocast not in (None, "bf16"):
            raise ConfigError(f"autocast: expected bf16 or none, got {self.autocast!r}")
        self.tuning(1)  # checks the rest

    def tuning(self, n_craft: int) -> TuningConfig:
        """Return the training settings for `n_craft` craft images."""
        return TuningConfig(
            learning_rate=self.learning_rate,
            n_epochs=ceil(self.n_images / n_craft),
            batch_size=self.batch_size,
            weight_decay=self.weight_decay,
            max_shift=self.max_shift,
            # A teacher answers to the flipped image; a label may not hold for it.
            flip=self.lessons == "answers",
        )


def make_stand_ins(
    teacher: LoadedModel,
    craft: Sample,
    *,
    count: int,
    config: StandInConfig | None = None,
    generator: torch.Generator,
    cache_dir: Path | None = None,
) -> Steps[tuple[LoadedModel, ...]]:
    """Train `count` fresh networks of the teacher's architecture on its answers.

    Args:
        teacher: Left as it is. The stand-ins are made and put on its device.
        craft: Clean images; none of those that rates are reported on, and none with the trigger.
            Their labels are not used, unless the lessons are labels.
        count: How many; they differ by their seeds.
        config: How they are trained; `None` takes the defaults.
        generator: Seeded CPU generator. One number is drawn for each stand-in, whether it comes
            from the cache or not.
        cache_dir: Folder, made when missing, in which finished stand-ins are kept by the digest
            of all that determines them; `None` keeps none.

    Yields:
        `Progress` of the training, in stand-ins.

    Returns:
        The stand-ins, "stand-in 1" first ("label stand-in 1" where labels taught them): eval
        mode, no parameter requiring a gradient. How good they are is not checked here.

    Raises:
        ModelError: The architecture cannot be given fresh weights.
        DataError: Fewer than two craft images.
        NumericsError: Training diverged.
        ConfigError: `cache_dir` cannot be written to.
    """
    config = config or StandInConfig()
    kept = KeptClassifiers(cache_dir, "stand-in")
    made = []
    for number, (seed, key) in enumerate(_keys(kept, teacher, craft, count, config, generator), 1):
        by_answers = config.lessons == "answers"
        name = f"stand-in {number}" if by_answers else f"label stand-in {number}"
        taught_by = teacher.name if by_answers else "the labels"
        title = f"{name} of {count}, taught by {taught_by}"
        classifier = kept.read(key, teacher.classifier)
        if classifier is None:
            steps = _distil(teacher, craft, config, torch.Generator().manual_seed(seed))
            classifier = yield from _as_part(steps, title, number - 1, count)
            kept.write(key, classifier)
        yield Progress(title, number, count)
        made.append(
            _loaded(
                teacher,
                classifier,
                name,
                f"{taught_by} {'on' if by_answers else 'of'} {len(craft)}",
            )
        )
    return tuple(made)


def n_kept(
    teacher: LoadedModel,
    craft: Sample,
    *,
    count: int,
    config: StandInConfig,
    generator: torch.Generator,
    cache_dir: Path | None,
) -> int:
    """Return how many of the stand-ins that `make_stand_ins` would give are kept already."""
    kept = KeptClassifiers(cache_dir, "stand-in")
    return sum(kept.has(key) for _, key in _keys(kept, teacher, craft, count, config, generator))


def _keys(
    kept: KeptClassifiers,
    teacher: LoadedModel,
    craft: Sample,
    count: int,
    config: StandInConfig,
    generator: torch.Generator,
) -> Iterator[tuple[int, str]]:
    """Yield the seed of every stand-in, and the key it is kept under."""
    seen = {"images": craft.images}
    if config.lessons == "labels":
        seen["labels"] = craft.labels
    made_of = {
        **describe_classifier(teacher),
        "images": digest_tensors(seen),
        "config": asdict(config),
    }
    for _ in range(count):
        seed = int(torch.randint(2**62, (), generator=generator))
        yield seed, kept.key({**made_of, "seed": seed})


def _distil(
    teacher: LoadedModel, craft: Sample, config: StandInConfig, generator: torch.Generator
) -> Steps[nn.Module]:
    """Train one, beginning anew at a lower rate wherever the rate proves too high."""
    tuning = config.tuning(len(craft))
    n_steps = tuning.n_epochs * ceil(len(craft) / tuning.batch_size)
    gradients = (
        _imitation(teacher.classifier, config)
        if config.lessons == "answers"
        else _schooling(config)
    )
    shown = 0.0
    for _ in range(_MAX_ATTEMPTS):
        student = fresh_classifier(teacher, generator=generator)
        # Channels-last convolutions train faster; the strides are put back for what comes after.
        student = student.to(memory_format=training_order(student, device_of(student)))
        watched = _Watched()
        steps = tune(
            student,
            craft.images,
            craft.labels,
            config=tuning,
            generator=generator,
            title="stand-in",
            gradients=gradients,
            augment=partial(_mixed, lessons=config.lessons),
            watch=watched,
            replayed=True,
        )
        note = f"learning rate {tuning.learning_rate:.2g}"
        try:
            for event in steps:
                # A new beginning does not send the progress back.
                shown = max(shown, event.done / event.total)
                yield replace(event, done=shown * event.total, note=note)
        except (_DivergedError, NumericsError):
            broke_at = tuning.rate_at((watched.n_steps - 1) / n_steps)
            tuning = replace(tuning, learning_rate=broke_at / 2)
            continue
        return student.to(memory_format=torch.contiguous_format)
    raise NumericsError(
        f"a stand-in for {teacher.name} diverged {_MAX_ATTEMPTS} times, first at learning rate "
        f"{config.learning_rate:g} and last at {broke_at:g}; pass innocent models as references"
    )


class _DivergedError(Exception):
    """Training went so wrong that it has to begin anew."""


class _Watched:
    """Raises `_DivergedError` where the student becomes worse than it was when fresh.

    Told of the loss of every step.
    """

    def __init__(self) -> None:
        self.n_steps = 0
        self._fresh: Tensor | None = None
        self._losses: list[Tensor] = []

    def __call__(self, loss: Tensor) -> None:
        self.n_steps += 1
        if self._fresh is None:
            self._fresh = loss
        self._losses.append(loss)
        if len(self._losses) == _WATCHED:  # not each time, since a GPU is waited for here
            mean = torch.stack(self._losses).mean()
            self._losses.clear()
            if not bool(mean <= _WORST * self._fresh):  # so that NaN counts as diverged
                raise _DivergedError


def _imitation(teacher: nn.Module, config: StandInConfig) -> Gradients:
    """Return the gradient of the divergence from the teacher."""
    teacher = copy.deepcopy(teacher).eval().requires_grad_(False)
    order = training_order(teacher, device_of(teacher))
    teacher = teacher.to(memory_format=order)

    def backpropagate(student: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        images = images.contiguous(memory_format=order)
        with _autocasting(images, config):
            with torch.no_grad():
                answers = teacher(images)
            outputs = student(images)
        loss = functional.kl_div(
            functional.log_softmax(outputs.float(), dim=1),
            functional.log_softmax(answers.float(), dim=1),
            log_target=True,
            reduction="batchmean",
        )
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    return backpropagate


def _schooling(config: StandInConfig) -> Gradients:
    """Return the gradient of the cross-entropy on mixtures, weighted as their labels are mixed."""

    def backpropagate(student: nn.Module, images: Tensor, answers: Tensor) -> Tensor:
        images = images.contiguous(memory_format=training_order(student, images.device))
        with _autocasting(images, config):
            outputs = student(images)
        labels, partners = answers[:, 0].long(), answers[:, 1].long()
        own = functional.cross_entropy(outputs.float(), labels, reduction="none")
        other = functional.cross_entropy(outputs.float(), partners, reduction="none")
        loss = own.lerp(other, answers[:, 2].float()).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    return backpropagate


def _autocasting(images: Tensor, config: StandInConfig) -> AbstractContextManager[None]:
    return autocasting(images.device, "bfloat16" if config.autocast == "bf16" else "float32")


def _mixed(
    images: Tensor,
    labels: Tensor,
    config: TuningConfig,
    generator: torch.Generator,
    *,
    lessons: Literal["answers", "labels"],
) -> tuple[Tensor, Tensor]:
    """Shift and flip images, and mix each with another of them, in a share uniform in [0, 1].

    Returns:
        The mixtures (n, C, H, W). Where labels are the lessons, (n, 3): each image's own, its
        partner's, and the partner's share.
    """
    images, labels = augmented(images, labels, config, generator)
    n = len(images)
    partners = torch.randperm(n, generator=generator).to(images.device)
    shares = torch.rand((n, 1, 1, 1), generator=generator).to(images.device)
    mixed = images.lerp(images[partners], shares)
    if lessons == "answers":
        return mixed, labels
    return mixed, torch.stack((labels.float(), labels[partners].float(), shares.flatten()), dim=1)


def _loaded(teacher: LoadedModel, classifier: nn.Module, name: str, by: str) -> LoadedModel:
    model = replace(
        teacher,
        name=name,
        classifier=classifier,
        path=None,
        notes=(f"stand-in: fresh weights, taught by {by} clean craft images",),
    )
    return replace(model, weights_sha256=digest_tensors(model.network.state_dict()))


def _as_part(steps: Steps[nn.Module], title: str, number: int, total: int) -> Steps[nn.Module]:
    """Scale the progress of one stand-in to its part of all."""

    def scaled(event: Progress) -> Progress:
        return Progress(title, number + event.done / event.total, total, event.note)

    return reworded(steps, scaled)
