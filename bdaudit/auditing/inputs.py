"""From paths or objects in memory to models, images and a trigger that fit one another."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bdaudit.auditing.evidence import describe_sources, digest_inputs
from bdaudit.auditing.remote import fetch_sources, in_public, is_endpoint, is_remote_file
from bdaudit.auditing.settings import SplitSettings
from bdaudit.blackbox import (
    BlackBox,
    BlackBoxOptions,
    Feedback,
    TorchBlackBox,
    open_black_box,
)
from bdaudit.data import Sample, from_arrays, load_sample, split_sample, with_classes
from bdaudit.data.classes import absent_classes, agree_on_classes, shown
from bdaudit.data.loading import name_classes
from bdaudit.errors import ConfigError, DataError, InputError, ModelError, TriggerError
from bdaudit.fetching import public_url
from bdaudit.models import (
    Classifier,
    LoadedModel,
    ModelSettings,
    check_outputs,
    load_model,
    wrap_module,
)
from bdaudit.progress import finish
from bdaudit.results import DataInfo, FileDigest, ModelInfo, Role, TriggerInfo
from bdaudit.triggers import Poisoned, Trigger, footprint, poison, read_trigger
from bdaudit.usercode import split_reference
from bdaudit.verdict import Policy

__all__ = [
    "DataSource",
    "DefendedSource",
    "Inputs",
    "ModelSource",
    "Sources",
    "Subject",
    "TriggerSource",
    "as_stand_ins",
    "can_only_be_asked",
    "default_modes",
    "describe_trigger",
    "open_inputs",
    "open_models",
    "open_sample",
]

ModelSource: TypeAlias = LoadedModel | nn.Module | str | Path
"""A model: loaded, a module in memory (images in [0, 1] to logits), or a checkpoint's path."""

DefendedSource: TypeAlias = ModelSource | BlackBox | Callable[[Tensor], Any]
"""A model, or something that can only be asked: a black box, a function from images to scores or
labels, the path of an ONNX file, `file.py:function`, or a served model's address."""

DataSource: TypeAlias = (
    Sample | tuple[Tensor | NDArray[Any], Tensor | NDArray[Any] | Sequence[int]] | str | Path
)
"""Clean images: a sample, a pair (images, labels), or a path that `load_sample` reads."""

TriggerSource: TypeAlias = Trigger | str | Path
"""A trigger or the path of a trigger file."""

_WIDE_FOOTPRINT = 0.10
_N_CHECKED = 64  # images on which a model's answers are looked at before anything is measured
_N_NAMED = 10  # class names listed in an error
_N_PEEKED = 4  # images read to learn the sample's own shape


@dataclass(frozen=True, kw_only=True)
class Sources:
    """Where the inputs of a verb come from, before anything is opened.

    Attributes:
        defended: The release candidate; `None` where only the original is looked at.
        original: The suspected model before the defence, where the verb needs it.
        references: Innocent models of the same task.
        surrogates: Models that resemble the defended one: other defended versions of `original`.
            What their files do not say is taken from `model_options`, which other models' files
            do not override, so their architecture may be another one.
        data: Clean labelled images.
        trigger: The trigger, `None` when nobody knows it.
        policy: Limits of the verdict, or a policy file; `None` for the defaults.
        classes: Class names in order of index, or a file with one a line.
        model_options: What the user says about all the checkpoints.
        black_box: What the user says about a defended model that can only be asked.
        feedback: What a query search is given.
        target_label: Replaces the target of the trigger's rule; an index, or a class name.
        allow_trigger_code: Whether a trigger file may name Python code to run.
        project: The project file that said all this, `None` when none did.
        origins: Where files came from that were fetched, by path; see `fetch_sources`.
    """

    defended: DefendedSource | None
    original: ModelSource | None = None
    references: Sequence[ModelSource] = ()
    surrogates: Sequence[ModelSource] = ()
    data: DataSource
    trigger: TriggerSource | None
    policy: Policy | str | Path | None = None
    classes: Sequence[str] | Path | None = None
    model_options: ModelSettings = field(default_factory=ModelSettings)
    black_box: BlackBoxOptions = field(default_factory=BlackBoxOptions)
    feedback: Feedback = "scores"
    target_label: int | str | None = None
    allow_trigger_code: bool = False
    project: str | Path | None = None
    origins: Mapping[str, str] = field(default_factory=dict)

    @property
    def class_names(self) -> Sequence[str] | Path | None:
        """Names for the data's classes: those given for it, or else a CLIP's."""
        if self.classes is not None or self.model_options.clip is None:
            return self.classes
        return self.model_options.clip.class_names

    def named_models(self) -> list[tuple[Role, str, ModelSource]]:
        """Give the models that are opened as files or modules their role and name.

        The defended one comes first, unless it can only be asked.
        """
        named: list[tuple[Role, str, ModelSource]] = []
        if self.defended is not None and not can_only_be_asked(self.defended):
            named.append(("defended", "defended", self.defended))  # type: ignore[arg-type]
        if self.original is not None:
            named.append(("original", "original", self.original))
        for number, reference in enumerate(self.references, start=1):
            name = "reference" if len(self.references) == 1 else f"reference {number}"
            named.append(("reference", name, reference))
        for number, surrogate in enumerate(self.surrogates, start=1):
            named.append(("surrogate", f"surrogate {number}", surrogate))
        return named


@dataclass(frozen=True)
class Subject:
    """A model with the part it plays.

    Attributes:
        role: Its part.
        name: How the record refers to it.
        model: What can be looked into and differentiated; `None` when it can only be asked.
        black_box: What is asked in query mode. Of a loaded model it is the same model.
        stand_in: Whether it was made here, to stand for an innocent model.
    """

    role: Role
    name: str
    model: LoadedModel | None
    black_box: BlackBox
    stand_in: bool = False

    @property
    def white(self) -> LoadedModel:
        """The model, for steps that need to look into it.

        Raises:
            ConfigError: It can only be asked.
        """
        if self.model is None:
            raise ConfigError(
                f"{self.name} can only be asked, and this step needs its weights: use --mode query"
            )
        return self.model

    @property
    def weights_sha256(self) -> str | None:
        """Digest of its weights or files, `None` where nobody can know it."""
        return self.black_box.identity().sha256

    def what_answers(self) -> dict[str, str]:
        """Say by name what decides the answers; the same model elsewhere gives the same."""
        identity = self.black_box.identity()
        subject = {"weights": identity.sha256} if identity.sha256 else {"source": identity.source}
        decisive = subject | dict(identity.details)
        classifier = None if self.model is None else self.model.classifier
        if isinstance(classifier, Classifier):
            decisive |= {
                "mean": str(classifier.mean.flatten().tolist()),
                "std": str(classifier.std.flatten().tolist()),
                "input size": str(classifier.input_size),
                "outputs": classifier.outputs,
            }
        return decisive

    def describe(self) -> ModelInfo:
        """Describe it for the record."""
        identity = self.black_box.identity()
        if self.model is None:
            return ModelInfo(
                name=self.name,
                role=self.role,
                arch=identity.kind,
                num_classes=self.black_box.num_classes,
                image_shape=self.black_box.image_shape,
                weights_sha256=identity.sha256,
                access="black",
                path=identity.source,
                notes=(
                    *self.black_box.notes,
                    *(f"{key} {value}" for key, value in identity.details.items()),
                ),
            )
        return ModelInfo(
            name=self.name,
            role=self.role,
            arch=self.model.arch,
            num_classes=self.model.num_classes,
            image_shape=self.model.image_shape,
            weights_sha256=self.model.weights_sha256,
            stand_in=self.stand_in,
            path=None if self.model.path is None else str(self.model.path),
            notes=self.model.notes,
            weights=self.model.weights,
            unaudited=self.model.unaudited,
        )


@dataclass(frozen=True)
class Inputs:
    """Everything an audit measures on, checked to fit together.

    Attributes:
        subjects: The models: defended first, then the original, references, and surrogates.
        craft, held_out: The two halves of the clean sample.
        craft_poisoned, held_out_poisoned: Their images that the trigger's rule applies to.
        files: Every file that was read, by digest.
        sources: How all of it was named, for the record.
        origins: Where files came from that were fetched, by path.
        left_out: Names of innocent models that are described and play no part.
    """

    subjects: tuple[Subject, ...]
    craft: Sample
    held_out: Sample
    craft_poisoned: Poisoned
    held_out_poisoned: Poisoned
    trigger: Trigger
    num_classes: int
    files: tuple[FileDigest, ...]
    sources: Mapping[str, Any]
    origins: Mapping[str, str]
    left_out: frozenset[str] = frozenset()

    def with_role(self, role: Role) -> tuple[Subject, ...]:
        """Return the subjects that play `role`."""
        return tuple(subject for subject in self.taking_part if subject.role == role)

    @property
    def taking_part(self) -> tuple[Subject, ...]:
        """The subjects but for those left out."""
        return tuple(subject for subject in self.subjects if subject.name not in self.left_out)

    def with_stand_ins(self, models: Sequence[LoadedModel]) -> Inputs:
        """Return the same inputs with innocent models that were made here after the references."""
        made = as_stand_ins(models, self.subjects[0].black_box)
        last = max(k for k, s in enumerate(self.subjects) if s.role != "surrogate") + 1
        return replace(self, subjects=(*self.subjects[:last], *made, *self.subjects[last:]))

    @property
    def compared(self) -> tuple[Subject, ...]:
        """The models under comparison: all but surrogates, which only serve an attack."""
        return tuple(subject for subject in self.taking_part if subject.role != "surrogate")

    def with_surrogates(self, models: Sequence[LoadedModel]) -> Inputs:
        """Return the same inputs with models made for an attack among the subjects."""
        made = (Subject("surrogate", model.name, model, TorchBlackBox(model)) for model in models)
        return replace(self, subjects=(*self.subjects, *made))

    def innocent_other_than(self, subject: Subject) -> Subject | None:
        """Return a reference that is not `subject` itself, or `None`."""
        return next((s for s in self.with_role("reference") if s is not subject), None)

    def description(self) -> dict[str, str]:
        """Say in digests what everything is measured on, to be held against at a resume."""
        models = {
            f"{subject.name} {name}": value
            for subject in self.subjects
            for name, value in subject.what_answers().items()
        }
        return models | {
            "data": self.held_out.sha256,
            "trigger": self.trigger.sha256,
            "split": f"{len(self.craft)} craft, {len(self.held_out)} held out",
        }

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
            notes=self.held_out.notes,
        )

    def trigger_info(self) -> TriggerInfo:
        """Describe the trigger and what it does to the held-out images."""
        return describe_trigger(self.trigger, self.held_out_poisoned)

    def model_infos(self) -> tuple[ModelInfo, ...]:
        """Describe the models for the record."""
        return tuple(subject.describe() for subject in self.subjects)


def as_stand_ins(models: Sequence[LoadedModel], like: BlackBox) -> tuple[Subject, ...]:
    """Give innocent models that were made here their part; they are asked as `like` is."""
    return tuple(
        Subject(
            "reference",
            model.name,
            model,
            TorchBlackBox(model, feedback=like.feedback, grid=like.grid),
            stand_in=True,
        )
        for model in models
    )


def describe_trigger(trigger: Trigger, held_out: Poisoned) -> TriggerInfo:
    """Describe a trigger and what it does to held-out images, for the record."""
    changed = footprint(held_out)
    return TriggerInfo(
        kind=trigger.kind,
        target_rule=trigger.rule.name,
        target_label=trigger.target_label,
        source=trigger.source,
        sha256=trigger.sha256,
        footprint=changed.share_changed,
        mean_linf=changed.mean_linf,
        mean_l2=changed.mean_l2,
        wide=changed.share_changed > _WIDE_FOOTPRINT,
        recovered=trigger.recovered,
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
    sources = finish(fetch_sources(sources))  # nothing is left to fetch where that was a step
    try:
        return _open_local(sources, split=split, seed=seed, device=device)
    except InputError as error:
        if not sources.origins:
            raise
        raise type(error)(in_public(str(error), sources.origins)) from error


def _open_local(
    sources: Sources, *, split: SplitSettings, seed: int, device: torch.device
) -> Inputs:
    subjects, sample = open_models(sources, device=device)
    first = subjects[0].black_box
    trigger = _open_trigger(sources, sample.class_names)
    halves = split_sample(
        sample, n_craft=split.craft_of(len(sample)), n_held_out=split.held_out, seed=seed
    )
    files = digest_inputs(subjects, sources)
    return Inputs(
        subjects=subjects,
        craft=halves.craft,
        held_out=halves.held_out,
        craft_poisoned=poison(halves.craft, trigger, first.num_classes),
        held_out_poisoned=poison(halves.held_out, trigger, first.num_classes),
        trigger=trigger,
        num_classes=first.num_classes,
        files=files,
        sources=describe_sources(sources, files),
        origins=sources.origins,
    )


def open_models(sources: Sources, *, device: torch.device) -> tuple[tuple[Subject, ...], Sample]:
    """Open the models and the sample, and check that they fit together.

    Args:
        sources: Where everything comes from; the trigger is left alone.
        device: Where the models are put.

    Returns:
        The models, defended first where there is one, and the sample at the first one's size.

    Raises:
        InputError: Something cannot be read, or does not fit; nothing has been computed yet.
    """
    shape = _shape_of_sample(sources)
    opened: list[tuple[Role, LoadedModel]] = []
    for role, name, source in sources.named_models():
        shape = opened[0][1].image_shape if opened else shape
        opened.append((role, _open_model(source, role, name, shape, sources, device)))
    _check_weights_found(sources.model_options, opened)
    subjects = [_as_subject(role, model, sources) for role, model in opened]
    if sources.defended is not None and can_only_be_asked(sources.defended):
        subjects.insert(0, _open_black_box(sources, shape, opened, device))
    first = subjects[0].black_box
    for subject in subjects[1:]:
        _check_same_task(first, subject.black_box)
    _demand_one_order(sources)
    sample = open_sample(sources.data, image_shape=first.image_shape, classes=sources.class_names)
    sample = _check_labels(sample, first)
    checked = (_with_checked_outputs(subject, sample, sources, device) for subject in subjects)
    return tuple(checked), sample


def _demand_one_order(sources: Sources) -> None:
    """Hold the data's class names against those that a CLIP is asked with, which also count."""
    clip = sources.model_options.clip
    if sources.classes is None or clip is None:
        return
    given, given_by = name_classes(sources.classes)
    assert given is not None
    agree_on_classes(given, given_by, clip.class_names, "the class names of the CLIP")


def _check_weights_found(
    options: ModelSettings, opened: Sequence[tuple[Role, LoadedModel]]
) -> None:
    """Refuse a key that no model's file has: it is misspelt, or meant for another audit."""
    for role in (None, *get_args(Role)):
        key = options.weights_of(role)
        if key is None:
            continue
        models = [model for own, model in opened if role in (None, own)]
        if not any(model.weights == key for model in models):
            of = "a model" if role is None else f"{role} model"
            raise ConfigError(
                f"weights: expected the key of weights in the file of {of}, got {key!r}, which "
                "none of them has; `bdaudit inspect FILE` lists the keys"
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
    sample = with_classes(data if isinstance(data, Sample) else from_arrays(*data), classes)
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
            sample = load_sample(Path(data), classes=sources.class_names, limit=_N_PEEKED)
        except DataError:
            return None
    return _shape_of(sample)


def _shape_of(sample: Sample) -> tuple[int, int, int]:
    channels, height, width = sample.images.shape[1:]
    return channels, height, width


def _open_model(
    source: ModelSource,
    role: Role,
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
    own, general = options.weights_of(role), options.weights_of(None)
    if role == "surrogate":
        return load_model(
            source,
            name=name,
            weights=own,
            preferred_weights=general,
            fallback=options,
            fallback_image_shape=image_shape,
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
        interpolation=options.interpolation,
        outputs=options.outputs,
        clip=options.clip,
        weights=own,
        preferred_weights=general,
        fallback_image_shape=image_shape,
        device=device,
    )


def can_only_be_asked(source: DefendedSource) -> bool:
    """Say whether a source is something without weights to look into."""
    if isinstance(source, LoadedModel | nn.Module):
        return False
    if isinstance(source, str | Path):
        text = str(source)
        if is_remote_file(text):
            text = public_url(text).partition("#")[0]
        return (
            is_endpoint(text) or text.lower().endswith(".onnx") or split_reference(text) is not None
        )
    return True


def default_modes(source: DefendedSource) -> tuple[Literal["white", "query"], ...]:
    """Return the kinds of attack that suit a source when the user names none."""
    return ("query",) if can_only_be_asked(source) else ("white",)


def _open_black_box(
    sources: Sources,
    image_shape: tuple[int, int, int] | None,
    opened: Sequence[tuple[Role, LoadedModel]],
    device: torch.device,
) -> Subject:
    """Open the defended model as something to be asked; what it does not say, the others do."""
    known = opened[0][1] if opened else None
    source = sources.defended
    assert source is not None
    if isinstance(source, BlackBox):
        return Subject("defended", "defended", None, source)
    black_box = open_black_box(
        source,
        name="defended",
        feedback=sources.feedback,
        options=replace(sources.black_box, settings=sources.model_options),
        fallback_image_shape=known.image_shape if known else image_shape,
        fallback_num_classes=known.num_classes if known else None,
        device=device,
    )
    return Subject("defended", "defended", None, black_box)


def _as_subject(role: Role, model: LoadedModel, sources: Sources) -> Subject:
    black_box = TorchBlackBox(model, feedback=sources.feedback, grid=sources.black_box.grid)
    return Subject(role, model.name, model, black_box)


def _with_checked_outputs(
    subject: Subject, sample: Sample, sources: Sources, device: torch.device
) -> Subject:
    """Look at a few answers of a model that was loaded; a black box checks its own."""
    if subject.model is None:
        return subject
    checked = check_outputs(
        subject.model,
        sample.images[:_N_CHECKED].to(device),
        outputs=sources.model_options.outputs,
    )
    return _as_subject(subject.role, checked, sources)


def _check_same_task(first: BlackBox, other: BlackBox) -> None:
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


def _check_labels(sample: Sample, model: BlackBox) -> Sample:
    """Hold the sample's classes against the model's, and note those it has no images of."""
    names = sample.class_names
    if names is not None and len(names) != model.num_classes:
        empty = absent_classes(sample.labels, len(names), names)
        raise DataError(
            f"{sample.source}: expected {model.num_classes} classes like {model.name}, got "
            f"{len(names)} by {sample.classes_from}: {shown(names)}"
            + (f"; of these without images: {shown(empty)}" if empty else "")
            + ". With a class too few or too many, later ones get the label of another: add or "
            f"remove it (a folder may be empty), or name all {model.num_classes} classes in order "
            "with --classes"
        )
    highest = int(sample.labels.max())
    if highest >= model.num_classes:
        raise DataError(
            f"{sample.source}: expected labels below {model.num_classes}, the number of classes "
            f"of {model.name}, got {highest}; is this the data of that model, or is --classes "
            "needed?"
        )
    absent = absent_classes(sample.labels, model.num_classes, names)
    if not absent:
        return sample
    note = f"no images of {len(absent)} of {model.num_classes} classes: {shown(absent)}"
    return replace(sample, notes=(*sample.notes, note))


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
    rule = replace(trigger.rule, label=target_label)  # type: ignore[type-var]
    return replace(trigger, rule=rule)


def _open_trigger(sources: Sources, class_names: Sequence[str] | None) -> Trigger:
    trigger = sources.trigger
    assert trigger is not None  # whoever has none looks for one first
    if not isinstance(trigger, Trigger):
        trigger = read_trigger(Path(trigger), allow_code=sources.allow_trigger_code)
    if sources.target_label is None:
        return trigger
    return _with_target(trigger, class_index(sources.target_label, class_names))


def class_index(target: int | str, class_names: Sequence[str] | None) -> int:
    """Return the index of a class that was given as an index or by its name.

    A name is compared as it is written, then without regard to case.

    Raises:
        TriggerError: It is no index and not among the names, or a number that is also the name of
            another class.
    """
    text = str(target).strip()
    names = list(class_names or ())
    folded = [name.casefold() for name in names]
    for wanted, known in ((text, names), (text.casefold(), folded)):
        if known.count(wanted) == 1 and not isinstance(target, int):
            index = known.index(wanted)
            if text.isdecimal() and int(text) != index:
                raise TriggerError(
                    f"target {text!r}: is class {index} by its name and class {int(text)} by its "
                    "index; give the index in Python, or another name by --classes"
                )
            return index
    if isinstance(target, int) or text.isdecimal():
        return int(target)
    near = difflib.get_close_matches(text.casefold(), folded, n=1)
    if near:
        hint = f"did you mean {names[folded.index(near[0])]!r}?"
    elif names:
        more = ", ..." if len(names) > _N_NAMED else ""
        hint = f"the classes are {', '.join(names[:_N_NAMED])}{more}"
    else:
        hint = "class names are not known, give them with --classes"
    raise TriggerError(
        f"target {text!r}: expected the index of a class or the name of one, got neither; {hint}"
    )
