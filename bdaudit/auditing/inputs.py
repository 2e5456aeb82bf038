"""From paths or objects in memory to models, images and a trigger that fit one another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bdaudit.auditing.settings import SplitSettings
from bdaudit.data import Sample, from_arrays, load_sample, split_sample
from bdaudit.digests import digest_file
from bdaudit.errors import DataError, ModelError, TriggerError
from bdaudit.models import LoadedModel, check_outputs, load_model, wrap_module
from bdaudit.results import DataInfo, FileDigest, ModelInfo, Role, TriggerInfo
from bdaudit.triggers import Poisoned, Trigger, footprint, poison, read_trigger
from bdaudit.verdict import Policy

__all__ = [
    "DataSource",
    "Inputs",
    "ModelOptions",
    "ModelSource",
    "Sources",
    "Subject",
    "TriggerSource",
    "open_inputs",
    "open_sample",
]

ModelSource: TypeAlias = LoadedModel | nn.Module | str | Path
"""A model: loaded, a module in memory (images in [0, 1] to logits), or a checkpoint's path."""

DataSource: TypeAlias = (
    Sample | tuple[Tensor | NDArray[Any], Tensor | NDArray[Any] | Sequence[int]] | str | Path
)
"""Clean images: a sample, a pair (images, labels), or a path that `load_sample` reads."""

TriggerSource: TypeAlias = Trigger | str | Path
"""A trigger or the path of a trigger file."""

_WIDE_FOOTPRINT = 0.10
_LEAST_NUMBER_OF_CLASSES = 2
_N_CHECKED = 64  # images on which a model's answers are looked at before anything is measured
_N_PEEKED = 4  # images read to learn the sample's own shape


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """What the user says about the checkpoints; `None` leaves it to the file's own metadata."""

    arch: str | None = None
    num_classes: int | None = None
    input_size: tuple[int, int] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    outputs: Literal["logits", "probabilities"] | None = None


@dataclass(frozen=True, kw_only=True)
class Sources:
    """Where the inputs of a verb come from, before anything is opened.

    Attributes:
        defended: The release candidate.
        original: The suspected model before the defence, where the verb needs it.
        references: Innocent models of the same task.
        data: Clean labelled images.
        trigger: The trigger.
        policy: Limits of the verdict, or a policy file; `None` for the defaults.
        classes: Class names in order of index, or a file with one a line.
        model_options: What the user says about all the checkpoints.
        target_label: Replaces the target of the trigger's rule.
        allow_trigger_code: Whether a trigger file may name Python code to run.
    """

    defended: ModelSource
    original: ModelSource | None = None
    references: Sequence[ModelSource] = ()
    data: DataSource
    trigger: TriggerSource
    policy: Policy | str | Path | None = None
    classes: Sequence[str] | Path | None = None
    model_options: ModelOptions = ModelOptions()
    target_label: int | None = None
    allow_trigger_code: bool = False

    def named_models(self) -> list[tuple[Role, str, ModelSource]]:
        """Give every model its role and the name the record will use, the defended one first."""
        named: list[tuple[Role, str, ModelSource]] = [("defended", "defended", self.defended)]
        if self.original is not None:
            named.append(("original", "original", self.original))
        for number, reference in enumerate(self.references, start=1):
            name = "reference" if len(self.references) == 1 else f"reference {number}"
            named.append(("reference", name, reference))
        return named


@dataclass(frozen=True)
class Subject:
    """A model with the part it plays."""

    role: Role
    model: LoadedModel

    @property
    def name(self) -> str:
        """How the record refers to it."""
        return self.model.name


@dataclass(frozen=True)
class Inputs:
    """Everything an audit measures on, checked to fit together.

    Attributes:
        subjects: The models: defended first, then the original, then references.
        craft, held_out: The two halves of the clean sample.
        craft_poisoned, held_out_poisoned: Their images that the trigger's rule applies to.
    """

    subjects: tuple[Subject, ...]
    craft: Sample
    held_out: Sample
    craft_poisoned: Poisoned
    held_out_poisoned: Poisoned
    trigger: Trigger
    num_classes: int
    files: tuple[FileDigest, ...]

    def with_role(self, role: Role) -> tuple[Subject, ...]:
        """Return the subjects that play `role`."""
        return tuple(subject for subject in self.subjects if subject.role == role)

    def innocent_other_than(self, subject: Subject) -> Subject | None:
        """Return a reference that is not `subject` itself, or `None`."""
        return next((s for s in self.with_role("reference") if s is not subject), None)

    def data_info(self) -> DataInfo:
        """Describe the sample for the record."""
        return DataInfo(
            source=self.held_out.source,
            sha256=self.held_out.sha256,
            image_shape=_shape_of(self.held_out),
            num_classes=self.num_classes,
            class_names=self.held_out.class_names,
            n_images=len(self.craft) + len(self.held_out),
            n_craft=len(self.craft),
            n_held_out=len(self.held_out),
            n_craft_poisonable=len(self.craft_poisoned),
            n_held_out_poisonable=len(self.held_out_poisoned),
        )

    def trigger_info(self) -> TriggerInfo:
        """Describe the trigger and what it does to the held-out images."""
        changed = footprint(self.held_out_poisoned)
        return TriggerInfo(
            kind=self.trigger.kind,
            target_rule=self.trigger.rule.name,
            target_label=self.trigger.target_label,
            source=self.trigger.source,
            sha256=self.trigger.sha256,
            footprint=changed.share_changed,
            mean_linf=changed.mean_linf,
            mean_l2=changed.mean_l2,
            wide=changed.share_changed > _WIDE_FOOTPRINT,
            recovered=self.trigger.recovered,
        )

    def model_infos(self) -> tuple[ModelInfo, ...]:
        """Describe the models for the record."""
        return tuple(
            ModelInfo(
                name=subject.name,
                role=subject.role,
                arch=subject.model.arch,
                num_classes=subject.model.num_classes,
                image_shape=subject.model.image_shape,
                weights_sha256=subject.model.weights_sha256,
                path=None if subject.model.path is None else str(subject.model.path),
                notes=subject.model.notes,
            )
            for subject in self.subjects
        )


def open_inputs(
    sources: Sources,
    *,
    split: SplitSettings,
    seed: int,
    device: torch.device,
) -> Inputs:
    """Open models, sample and trigger, and check that they fit together.

    Args:
        sources: Where everything comes from.
        split: Sizes of the halves of the sample, which is resized to the first model's input.
        seed: Of the split.
        device: Where the models are put.

    Raises:
        InputError: Something cannot be read, or does not fit; nothing has been computed yet.
    """
    seen = _shape_of_sample(sources)
    subjects: list[Subject] = []
    for role, name, source in sources.named_models():
        shape = subjects[0].model.image_shape if subjects else seen
        subjects.append(Subject(role, _open_model(source, name, shape, sources, device)))
    first = subjects[0].model
    for subject in subjects[1:]:
        _check_same_task(first, subject.model)
    sample = open_sample(sources.data, image_shape=first.image_shape, classes=sources.classes)
    _check_labels(sample, first)
    outputs = sources.model_options.outputs
    subjects = [
        replace(
            subject,
            model=check_outputs(
                subject.model, sample.images[:_N_CHECKED].to(device), outputs=outputs
            ),
        )
        for subject in subjects
    ]
    trigger = _open_trigger(sources)
    halves = split_sample(
        sample, n_craft=split.craft_of(len(sample)), n_held_out=split.n_held_out, seed=seed
    )
    return Inputs(
        subjects=tuple(subjects),
        craft=halves.craft,
        held_out=halves.held_out,
        craft_poisoned=poison(halves.craft, trigger, first.num_classes),
        held_out_poisoned=poison(halves.held_out, trigger, first.num_classes),
        trigger=trigger,
        num_classes=first.num_classes,
        files=tuple(_file_digests(subjects, sources)),
    )


def open_sample(
    data: DataSource,
    *,
    image_shape: tuple[int, int, int] | None,
    classes: Sequence[str] | Path | None,
) -> Sample:
    """Return the clean sample that `data` names or holds.

    Raises:
        DataError: It cannot be read or does not fit `image_shape`.
    """
    if isinstance(data, str | Path):
        return load_sample(Path(data), image_shape=image_shape, classes=classes)
    sample = data if isinstance(data, Sample) else from_arrays(*data)
    if image_shape is not None and tuple(sample.images.shape[1:]) != image_shape:
        raise DataError(
            f"{sample.source}: expected images of shape {image_shape}, which the model takes, got "
            f"{tuple(sample.images.shape[1:])}; resize them, or wrap the model"
        )
    return sample


def _shape_of_sample(sources: Sources) -> tuple[int, int, int] | None:
    """Return the sample's own (C, H, W), `None` when its images differ in size.

    Of a file or folder a few images are read; whatever is wrong with it is said when all are.
    """
    data = sources.data
    if not isinstance(data, str | Path):
        sample = open_sample(data, image_shape=None, classes=None)
    else:
        try:
            sample = load_sample(Path(data), classes=sources.classes, limit=_N_PEEKED)
        except DataError:
            return None
    return _shape_of(sample)


def _shape_of(sample: Sample) -> tuple[int, int, int]:
    channels, height, width = sample.images.shape[1:]
    return channels, height, width


def _open_model(
    source: ModelSource,
    name: str,
    image_shape: tuple[int, int, int] | None,
    sources: Sources,
    device: torch.device,
) -> LoadedModel:
    options = sources.model_options
    if isinstance(source, LoadedModel):
        source.classifier.to(device)
        return replace(source, name=name)
    if isinstance(source, nn.Module):
        if image_shape is None:
            # Reading all of the sample says what is wrong with it.
            image_shape = _shape_of(open_sample(sources.data, image_shape=None, classes=None))
        return wrap_module(
            source,
            name=name,
            image_shape=image_shape,
            num_classes=options.num_classes,
            input_size=options.input_size,
            mean=options.mean,
            std=options.std,
            outputs=options.outputs,
            device=device,
        )
    return load_model(
        source,
        name=name,
        arch=options.arch,
        num_classes=options.num_classes,
        input_size=options.input_size,
        mean=options.mean,
        std=options.std,
        outputs=options.outputs,
        fallback_image_shape=image_shape,
        device=device,
    )


def _check_same_task(first: LoadedModel, other: LoadedModel) -> None:
    if other.num_classes != first.num_classes:
        raise ModelError(
            f"{other.name}: expected {first.num_classes} classes like {first.name}, got "
            f"{other.num_classes}"
        )
    if other.image_shape != first.image_shape:
        raise ModelError(
            f"{other.name}: expected images of shape {first.image_shape} like {first.name}, got "
            f"{other.image_shape}"
        )


def _check_labels(sample: Sample, model: LoadedModel) -> None:
    highest = int(sample.labels.max())
    if highest >= model.num_classes:
        raise DataError(
            f"{sample.source}: expected labels below {model.num_classes}, the number of classes "
            f"of {model.name}, got {highest}; is this the data of that model, or is --classes "
            "needed?"
        )
    if model.num_classes < _LEAST_NUMBER_OF_CLASSES:
        raise ModelError(f"{model.name}: expected 2 classes or more, got {model.num_classes}")


def _with_target(trigger: Trigger, target_label: int) -> Trigger:
    """Aim a trigger at another class.

    Raises:
        TriggerError: Its rule has no single target to replace.
    """
    if trigger.rule.target_label is None:
        raise TriggerError(
            f"{trigger.source}: a target label was given, but the rule of this trigger is "
            f"{trigger.rule.name}, which has no single target"
        )
    return replace(trigger, rule=replace(trigger.rule, label=target_label))  # type: ignore[type-var]


def _open_trigger(sources: Sources) -> Trigger:
    trigger = sources.trigger
    if not isinstance(trigger, Trigger):
        trigger = read_trigger(Path(trigger), allow_code=sources.allow_trigger_code)
    if sources.target_label is None:
        return trigger
    return _with_target(trigger, sources.target_label)


def _file_digests(subjects: Sequence[Subject], sources: Sources) -> list[FileDigest]:
    """Digest every file that was read; folders are covered by the sample's own digest."""
    paths = [(subject.name, subject.model.path) for subject in subjects]
    for role, source in (
        ("data", sources.data),
        ("trigger", sources.trigger),
        ("policy", sources.policy),
    ):
        if isinstance(source, str | Path) and Path(source).is_file():
            paths.append((role, Path(source)))
    return [
        FileDigest(
            role=role, path=str(path), sha256=digest_file(path), size_bytes=path.stat().st_size
        )
        for role, path in paths
        if path is not None
    ]
