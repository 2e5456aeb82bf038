"""From sources to models, images and a trigger that fit one another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn

from bdaudit.blackbox import BlackBox, TorchBlackBox, open_black_box
from bdaudit.cases.description import describe_sources
from bdaudit.cases.fetching import fetch_sources, naming_origins
from bdaudit.cases.files import digest_inputs
from bdaudit.cases.settings import SplitSettings
from bdaudit.cases.sources import FileLike, Sources, can_only_be_asked
from bdaudit.cases.subjects import Inputs, Subject, shape_of
from bdaudit.cases.target import class_index, demand_goal, with_target
from bdaudit.data import Sample, from_arrays, load_for_task, split_sample, with_classes
from bdaudit.data.classes import absent_classes, agree_on_classes, shown
from bdaudit.data.loading import name_classes
from bdaudit.detection import CHANNELS, NOTHING, SCORE_THRESHOLD, Asked, is_detector
from bdaudit.errors import ConfigError, DataError, ModelError, TriggerError
from bdaudit.foundation.progress import finish
from bdaudit.foundation.sources import FileSource, InMemory, LocalFile, Source
from bdaudit.models import LoadedModel, ModelSettings, check_outputs, load_model, wrap_module
from bdaudit.records import Role
from bdaudit.triggers import Trigger, poison, read_trigger

__all__ = ["check_possible", "open_inputs", "open_model", "open_models", "open_trigger"]

_N_CHECKED = 64  # images on which a model's answers are looked at before anything is measured


_N_PEEKED = 4  # images read to learn the sample's own shape


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
    with naming_origins(sources.origins):
        return _open_local(sources, split=split, seed=seed, device=device)


def _open_local(
    sources: Sources, *, split: SplitSettings, seed: int, device: torch.device
) -> Inputs:
    subjects, sample = open_models(sources, device=device)
    first = subjects[0].black_box
    trigger = _aimed_trigger(sources, sample.class_names)
    if sample.places is not None:
        demand_goal(trigger, first.num_classes)
    halves = split_sample(
        sample, n_craft=split.craft_of(len(sample)), n_held_out=split.held_out, seed=seed
    )
    files = digest_inputs(subjects, sources)
    craft_poisoned = poison(halves.craft, trigger, first.num_classes)
    held_out_poisoned = poison(halves.held_out, trigger, first.num_classes)
    for poisoned in (craft_poisoned, held_out_poisoned):
        check_possible(sample, poisoned.triggered, trigger)
    return Inputs(
        subjects=subjects,
        craft=halves.craft,
        held_out=halves.held_out,
        craft_poisoned=craft_poisoned,
        held_out_poisoned=held_out_poisoned,
        trigger=trigger,
        placebos=tuple(_open_placebo(source, trigger, sources) for source in sources.placebos),
        num_classes=first.num_classes,
        files=files,
        sources=describe_sources(sources, files),
        origins=sources.origins,
    )


def check_possible(sample: Sample, triggered: Tensor, trigger: Trigger) -> None:
    """Refuse a trigger that makes rows which the columns of the table cannot hold.

    Args:
        sample: Says what its columns are, where it is a table.
        triggered: (n, 1, 1, F), rows of it with the trigger.
        trigger: What made them.

    Raises:
        TriggerError: One of them cannot be.
    """
    if sample.columns is None:
        return
    wrong = sample.columns.impossible(triggered.flatten(1).cpu())
    if wrong is not None:
        raise TriggerError(f"{trigger.source}: makes rows that cannot be: {wrong}")


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
    sources = _as_task_wants(sources)
    shape = _shape_of_sample(sources)
    opened: list[tuple[Role, LoadedModel]] = []
    for role, name, source in sources.named_models():
        shape = opened[0][1].image_shape if opened else shape
        opened.append((role, _open_model(source, role, name, shape, sources, device)))
    _check_weights_found(sources.model_options, opened)
    for _, model in opened:
        _check_task(model, sources)
    _demand_one_threshold([model for _, model in opened], sources)
    subjects = [_as_subject(role, model, sources) for role, model in opened]
    if sources.defended is not None and can_only_be_asked(sources.defended):
        subjects.insert(0, _open_black_box(sources, shape, opened, device))
    first = subjects[0].black_box
    for subject in subjects[1:]:
        _check_same_task(first, subject.black_box)
    _demand_one_order(sources)
    sample = _open_sample(sources, image_shape=first.image_shape, classes=sources.class_names)
    sample = _check_labels(sample, first)
    for subject in subjects:
        sample = _check_names(sample, subject)
    sample = _saying_what_is_asked(sample)
    checked = (_with_checked_outputs(subject, sample, sources, device) for subject in subjects)
    return tuple(checked), sample


def open_model(sources: Sources, *, device: torch.device, seed: int) -> Subject:
    """Open the one model of a verb that needs no images.

    What it answers, logits or probabilities, is looked at on random images.

    Args:
        sources: Where it comes from; there is nothing else in them, and it is not fetched here.
        device: Where it is put.
        seed: Of the random images.

    Raises:
        InputError: It cannot be read, or only be asked.
        ConfigError: It is in memory and nothing says the shape of its images.
    """
    ((role, name, source),) = sources.named_models()
    shape = sources.model_options.image_shape
    if isinstance(source, InMemory) and isinstance(source.value, nn.Module) and shape is None:
        raise ConfigError(
            "image_shape: a module does not say what images it takes; pass "
            "model_options=ModelSettings(image_shape=(channels, height, width))"
        )
    model = _open_model(source, role, name, shape, sources, device)
    _check_weights_found(sources.model_options, [(role, model)])
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(_N_CHECKED, *model.image_shape, generator=generator)
    checked = check_outputs(model, images.to(device), outputs=sources.model_options.outputs)
    return _as_subject(role, checked, sources)


def _as_task_wants(sources: Sources) -> Sources:
    """Read what is said about models and images as the task means it.

    Raises:
        ConfigError: A setting means nothing for the task, or data in memory are of another one.
    """
    options, data = sources.model_options, sources.data
    held = data.value if isinstance(data, InMemory) else None
    if isinstance(held, Sample) and held.places is not None:
        sources = replace(sources, task="detection")
    elif sources.task == "detection" and held is not None:
        raise ConfigError(
            "task: for detection expected a path, or a sample as load_objects returns it, got "
            "arrays in memory, which say nothing about boxes"
        )
    if sources.task != "detection":
        return sources
    unfit = {
        "image_column": sources.image_column,
        "label_column": sources.label_column,
        "mean": options.mean,
        "std": options.std,
        "outputs": options.outputs,
        "classnames": options.clip,
    }
    given = [name for name, value in unfit.items() if value is not None]
    if given:
        raise ConfigError(
            f"{given[0]}: means nothing for detectors; torchvision's normalise by themselves, and "
            "give scores of boxes"
        )
    if options.input_size is not None:
        # A detector resizes by itself, whatever it is given.
        shape = (CHANNELS, *options.input_size)
        options = replace(options, image_shape=shape, input_size=None)
    return replace(sources, model_options=options)


def _check_task(model: LoadedModel, sources: Sources) -> None:
    """Hold a model against the task: a detector answers otherwise than a classifier."""
    detects = is_detector(model.network)
    if detects and sources.task != "detection":
        raise ModelError(f"{model.name}: {model.arch} is a detector; pass --task detection")
    if not detects and sources.task == "detection":
        raise ModelError(
            f"{model.name}: for --task detection expected a detector of torchvision (Faster R-CNN, "
            f"RetinaNet, FCOS, SSD), got {model.arch}; any other detector can be the defended "
            "model as FILE.py:FUNCTION, ONNX or by its address"
        )


def _demand_one_threshold(models: Sequence[LoadedModel], sources: Sources) -> None:
    """Refuse detectors that count detections from different scores on.

    A file may say its own threshold, and one that is set high hides whatever scores below it.
    """
    found = {
        model.name: model.network.score_threshold
        for model in models
        if isinstance(model.network, Asked)
    }
    if sources.defended is not None and can_only_be_asked(sources.defended):
        found["defended"] = sources.model_options.score_threshold or SCORE_THRESHOLD
    if len(set(found.values())) > 1:
        said = ", ".join(f"{name} {value:g}" for name, value in found.items())
        raise ModelError(
            f"expected one score threshold for all detectors, got {said}; give that of your "
            "deployment with --score-threshold, which goes before what files say"
        )


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


def _open_sample(
    sources: Sources,
    *,
    image_shape: tuple[int, int, int] | None,
    classes: Sequence[str] | Path | None,
) -> Sample:
    """Return the clean sample that is named or held; what is remote has been fetched.

    Raises:
        DataError: It cannot be read or does not fit `image_shape`.
    """
    data = sources.data
    if isinstance(data, FileSource):
        return _read_file(data.path, sources, image_shape=image_shape, classes=classes)
    assert isinstance(data, InMemory)
    if sources.image_column is not None or sources.label_column is not None:
        raise DataError("image_column and label_column: arrays in memory have no columns")
    sample = with_classes(_sample_in_memory(data.value), classes)
    if image_shape is not None and tuple(sample.images.shape[1:]) != image_shape:
        raise DataError(
            f"{sample.source}: expected images of shape {image_shape}, which the model takes, got "
            f"{tuple(sample.images.shape[1:])}; resize them, or wrap the model"
        )
    return sample


def _read_file(path: Path, sources: Sources, **how: Any) -> Sample:
    return load_for_task(
        path,
        task=sources.task,
        image_column=sources.image_column,
        label_column=sources.label_column,
        **how,
    )


def _sample_in_memory(value: Any) -> Sample:
    return value if isinstance(value, Sample) else from_arrays(*value)


def _shape_of_sample(sources: Sources) -> tuple[int, int, int] | None:
    """Return the sample's own (C, H, W), `None` when its images differ in size.

    Of a file or folder a few images are read; whatever is wrong with it is said when all are.
    """
    data = sources.data
    if not isinstance(data, FileSource):
        sample = _open_sample(sources, image_shape=None, classes=None)
    else:
        try:
            sample = _read_file(data.path, sources, classes=sources.class_names, limit=_N_PEEKED)
        except DataError:
            return None
    return shape_of(sample)


def _open_model(
    source: Source,
    role: Role,
    name: str,
    image_shape: tuple[int, int, int] | None,
    sources: Sources,
    device: torch.device,
) -> LoadedModel:
    options = sources.model_options
    held = source.value if isinstance(source, InMemory) else None
    if isinstance(held, LoadedModel):
        held.classifier.to(device)
        return replace(held, name=name)
    if isinstance(held, nn.Module):
        if image_shape is None:
            # Reading all of the sample says what is wrong with it.
            image_shape = shape_of(_open_sample(sources, image_shape=None, classes=None))
        return wrap_module(
            held,
            name=name,
            image_shape=image_shape,
            num_classes=options.num_classes,
            input_size=options.input_size,
            mean=options.mean,
            std=options.std,
            outputs=options.outputs,
            score_threshold=options.score_threshold,
            device=device,
        )
    if not isinstance(source, LocalFile):
        raise ModelError(
            f"{name}: expected a checkpoint, whose weights can be read, got {source}; only the "
            "defended model may be a black-box model (predictions only)"
        )
    own, general = options.weights_of(role), options.weights_of(None)
    if role == "surrogate":
        return load_model(
            source.path,
            name=name,
            weights=own,
            preferred_weights=general,
            read_pickled_module=bool(options.read_pickled_module),
            fallback=options,
            fallback_image_shape=image_shape,
            device=device,
        )
    return load_model(
        source.path,
        name=name,
        arch=options.arch,
        num_classes=options.num_classes,
        image_shape=options.image_shape,
        input_size=options.input_size,
        mean=options.mean,
        std=options.std,
        interpolation=options.interpolation,
        outputs=options.outputs,
        score_threshold=options.score_threshold,
        clip=options.clip,
        weights=own,
        preferred_weights=general,
        read_pickled_module=bool(options.read_pickled_module),
        fallback_image_shape=image_shape,
        device=device,
    )


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
    if isinstance(source, InMemory) and isinstance(source.value, BlackBox):
        return Subject("defended", "defended", None, source.value)
    black_box = open_black_box(
        source,
        name="defended",
        feedback=sources.feedback,
        options=replace(sources.black_box, settings=sources.model_options),
        detects=sources.task == "detection",
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


def _saying_what_is_asked(sample: Sample) -> Sample:
    """Note of pictures with boxes what one image of the sample is."""
    if sample.places is None:
        return sample
    empty = int((sample.labels == NOTHING).sum())
    pictures = len(set(sample.places.pictures.tolist()))
    note = (
        f"every image is a picture and one box of it that is asked about: {len(sample) - empty:,} "
        f"objects and {empty:,} empty places in {pictures:,} pictures"
    )
    return replace(sample, notes=(note, *sample.notes))


def _check_names(sample: Sample, subject: Subject) -> Sample:
    """Hold the sample's class names against those in a model's own files."""
    own = None if subject.model is None else subject.model.class_names
    if own is None or sample.class_names is None:
        return sample
    note = agree_on_classes(
        sample.class_names,
        f"{sample.source} ({sample.classes_from})",
        own,
        f"the config of the {subject.name} model",
    )
    return sample if note is None else replace(sample, notes=(*sample.notes, note))


def open_trigger(sources: Sources) -> Trigger:
    """Return the trigger that was given, aimed as its own file says.

    Raises:
        TriggerError: Its file cannot be used.
    """
    assert sources.trigger is not None
    return _read_trigger(sources.trigger, sources)


def _read_trigger(source: FileLike, sources: Sources) -> Trigger:
    if isinstance(source, InMemory):
        assert isinstance(source.value, Trigger)
        return source.value
    assert isinstance(source, FileSource)
    return read_trigger(source.path, allow_code=sources.allow_trigger_code)


def _open_placebo(source: FileLike, trigger: Trigger, sources: Sources) -> Trigger:
    """Return a placebo, aimed as the true trigger is.

    Raises:
        TriggerError: Its file cannot be used; it is the true trigger; or it needs a picture of
            its own for every image, which held-out images of the true trigger need not have.
    """
    placebo = _read_trigger(source, sources)
    if placebo.transform.kind == "paired":
        raise TriggerError(
            f"{placebo.source}: a paired trigger cannot be a placebo; "
            "give one that stamps any image"
        )
    aimed = Trigger(transform=placebo.transform, rule=trigger.rule, source=placebo.source)
    if aimed.sha256 == trigger.sha256:
        raise TriggerError(f"{placebo.source}: is the true trigger, so it is no placebo")
    return aimed


def _aimed_trigger(sources: Sources, class_names: Sequence[str] | None) -> Trigger:
    """Return the trigger, aimed at the class that the user names in place of its own."""
    trigger = open_trigger(sources)
    if sources.target_label is None:
        return trigger
    return with_target(trigger, class_index(sources.target_label, class_names))
