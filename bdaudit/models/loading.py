"""From a checkpoint file, or a module in memory, to a classifier ready to be audited."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bdaudit.detection.asked import SCORE_THRESHOLD, Asked, as_asked
from bdaudit.detection.candidates import kind_of
from bdaudit.detection.marking import CHANNELS
from bdaudit.errors import ModelError, reads
from bdaudit.foundation.digests import digest_tensors
from bdaudit.models import backdoorbench
from bdaudit.models.architectures import native_input_size
from bdaudit.models.checkpoint import (
    Checkpoint,
    demand_finite,
    open_checkpoint,
    read_metadata,
)
from bdaudit.models.classifier import Classifier, Interpolation, LoadedModel
from bdaudit.models.clip_settings import ClipSettings
from bdaudit.models.fitting import Fitted, build_and_fill
from bdaudit.models.hub_folder import HubFolder, is_hub_folder, read_hub_folder
from bdaudit.models.hub_models import demand_same_pooling, fill_hub_network
from bdaudit.models.outputs import ONE_SCORE, ask
from bdaudit.models.plug_layer import plug_in
from bdaudit.models.settings import ModelSettings, Outputs, read_model_toml

__all__ = ["load_model", "wrap_module"]


@reads(ModelError)
def load_model(
    path: Path | str,
    *,
    name: str,
    arch: str | None = None,
    num_classes: int | None = None,
    image_shape: tuple[int, int, int] | None = None,
    input_size: tuple[int, int] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    interpolation: Interpolation | None = None,
    outputs: Outputs | None = None,
    score_threshold: float | None = None,
    clip: ClipSettings | None = None,
    weights: str | None = None,
    preferred_weights: str | None = None,
    read_pickled_module: bool = False,
    fallback_image_shape: tuple[int, int, int] | None = None,
    fallback: ModelSettings | None = None,
    device: torch.device | str = "cpu",
) -> LoadedModel:
    """Open a checkpoint, build its architecture and make it a classifier.

    What is not given here is read from the file's metadata, else from `<stem>.toml` or
    `model.toml` beside it, else from what BackdoorBench stores or implies, else inferred from the
    tensors. Grey images are repeated over the channels of a network that takes three.

    Args:
        path: A checkpoint file, a BackdoorBench folder, or a folder as the Hugging Face hub keeps a
            model of transformers, timm or open_clip in.
        name: How records refer to the model.
        arch: Architecture, as `build_network` spells it. Only here may it name a Python file.
        num_classes: Length of the logits.
        image_shape: (C, H, W) of the images.
        input_size: (H', W') to resize to inside the model.
        mean: Subtracted from [0, 1] images, one value or one a channel; default 0.
        std: Divisor, likewise; default 1.
        interpolation: How images are resized; default bilinear, for a CLIP bicubic.
        outputs: What the network returns; default logits.
        score_threshold: Score from which a detector's box counts; default .5.
        clip: Class names and prompts, needed where the architecture is a CLIP.
        weights: Which of a file's sets of weights is meant, by the keys that lead to it joined by
            `/`; the file must have it.
        preferred_weights: Likewise, but only where the file has it.
        read_pickled_module: Whether a whole pickled module may be read, every class in it as an
            inert record: its tensors are taken, nothing of it runs.
        fallback_image_shape: Taken where no source gives an image shape: the sample's.
        fallback: Taken where file and neighbours do not say, and before anything is inferred.
        device: Where the classifier is put.

    Returns:
        The model in float32, eval mode, without gradients on its parameters.

    Raises:
        ModelError: The file cannot be opened safely, holds several different sets of weights and
            none was named, its architecture is unknown, or does not fit the tensors, the class
            count or the images; the message says what to pass.
        ConfigError: An argument is out of its range.
    """
    arguments = ModelSettings(
        arch=arch,
        num_classes=num_classes,
        image_shape=image_shape,
        input_size=input_size,
        mean=None if mean is None else tuple(mean),
        std=None if std is None else tuple(std),
        interpolation=interpolation,
        outputs=outputs,
        score_threshold=score_threshold,
        clip=clip,
    )
    hub = read_hub_folder(Path(path)) if is_hub_folder(path) else None
    file = backdoorbench.locate_checkpoint(path) if hub is None else hub.weights
    beside, _ = read_model_toml(file)
    checkpoint = open_checkpoint(
        file,
        weights=weights or beside.weights_of(None),
        preferred_weights=preferred_weights,
        read_pickled_module=read_pickled_module,
    )
    notes = [*(() if hub is None else hub.notes), *checkpoint.notes]
    settings = _complete(arguments, checkpoint, notes)
    if hub is not None:
        settings = settings.over(hub.settings)
        if hub.of_open_clip and settings.clip is not None and settings.arch == hub.settings.arch:
            settings = replace(settings, clip=replace(settings.clip, config_folder=hub.folder))
    settings = settings.over(fallback or ModelSettings())
    if hub is not None and settings.arch is None:
        fitted = fill_hub_network(hub, checkpoint, settings, notes, device=device)
    else:
        fitted = build_and_fill(checkpoint, settings, notes, device=device)
        if hub is not None and hub.of_timm:
            demand_same_pooling(hub, fitted.network)
    if hub is None and (layer := backdoorbench.plug_layer_of(file)) is not None:
        read = plug_in(fitted.network, layer, notes)
        fitted = replace(fitted, files=(*fitted.files, read))
    settings = settings.over(fitted.defaults)
    return _finish(
        fitted,
        settings.over(ModelSettings(image_shape=fallback_image_shape)),
        name=name,
        path=file,
        notes=notes,
        device=device,
        checkpoint=checkpoint,
        hub=hub,
    )


def wrap_module(
    module: nn.Module,
    *,
    name: str,
    image_shape: tuple[int, int, int],
    num_classes: int | None = None,
    input_size: tuple[int, int] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    outputs: Outputs | None = None,
    score_threshold: float | None = None,
    device: torch.device | str = "cpu",
) -> LoadedModel:
    """Make a module in memory a classifier ready to be audited.

    A deep copy is taken, so `module` keeps its mode, device, type and gradient flags. Of a
    `DataParallel` or compiled module the network inside is taken; a `Classifier` keeps its
    preprocessing unless `mean`, `std` or `input_size` is given.

    Args:
        module: Maps images (N, C, H, W), in [0, 1] unless `mean` and `std` say otherwise, to
            scores (N, K).
        name: How records refer to the model.
        image_shape: (C, H, W) of the images.
        num_classes: K; by default what the module returns.
        input_size: (H', W') to resize to inside the model.
        mean: Subtracted from [0, 1] images, one value or one a channel; default 0.
        std: Divisor, likewise; default 1.
        outputs: What the module returns; default logits.
        score_threshold: Score from which a detector's box counts; default .5. A detector of
            torchvision becomes a classifier of marked images, of shape (4, H, W).
        device: Where the copy is put.

    Raises:
        ModelError: The module cannot be copied, has NaN or infinite weights, or does not take
            such images.
        ConfigError: An argument is out of its range.
    """
    settings = ModelSettings(
        num_classes=num_classes,
        image_shape=image_shape,
        input_size=input_size,
        mean=None if mean is None else tuple(mean),
        std=None if std is None else tuple(std),
        outputs=outputs,
        score_threshold=score_threshold,
    )
    while isinstance(inner := getattr(module, "_orig_mod", None), nn.Module) or (
        isinstance(module, nn.DataParallel) and isinstance(inner := module.module, nn.Module)
    ):
        module = inner
    if isinstance(module, Classifier):
        settings = settings.over(_settings_within(module))
        module = module.network
    try:
        network = copy.deepcopy(module).cpu()
    except Exception as error:
        raise ModelError(
            f"{name}: the module cannot be copied ({error}); build it afresh and load its "
            "state_dict instead"
        ) from error
    demand_finite(name, _tensors_of(network))
    return _finish(
        Fitted(network=network, arch=type(network).__name__),
        settings,
        name=name,
        path=None,
        notes=[],
        device=device,
    )


def _complete(arguments: ModelSettings, checkpoint: Checkpoint, notes: list[str]) -> ModelSettings:
    """Fill what the arguments leave open from the file and its neighbours, strongest first."""
    path = checkpoint.path
    settings = arguments.over(ModelSettings.from_metadata(_own_metadata(checkpoint), path))
    beside, toml = read_model_toml(path)
    settings = settings.over(beside)
    if toml is not None:
        notes.append(f"read settings from {toml.name}")
    metadata = {} if checkpoint.container == "safetensors" else checkpoint.metadata
    settings = settings.over(ModelSettings.from_backdoorbench(metadata, path))
    attack = backdoorbench.attack_result_of(path)
    if attack is not None:
        # A defence's result names neither its data set nor its image size.
        metadata = {**read_metadata(attack), **metadata}
        settings = settings.over(ModelSettings.from_backdoorbench(metadata, attack))
        notes.append(f"read what it lacks from {attack.name}")
    normalisation = backdoorbench.normalisation_of(metadata)
    if normalisation is not None and (settings.mean, settings.std) == normalisation[1:]:
        notes.append(f"normalised as BackdoorBench does for {normalisation[0]}")
    return settings


def _own_metadata(checkpoint: Checkpoint) -> dict[str, str]:
    return checkpoint.metadata if checkpoint.container == "safetensors" else {}


def _settings_within(classifier: Classifier) -> ModelSettings:
    return ModelSettings(
        input_size=classifier.input_size,
        mean=tuple(classifier.mean.flatten().tolist()),
        std=tuple(classifier.std.flatten().tolist()),
        interpolation=classifier.interpolation,
        outputs=classifier.outputs,
        score_threshold=getattr(classifier.network, "score_threshold", None),
    )


def _finish(
    fitted: Fitted,
    settings: ModelSettings,
    *,
    name: str,
    path: Path | None,
    notes: list[str],
    device: torch.device | str,
    checkpoint: Checkpoint | None = None,
    hub: HubFolder | None = None,
) -> LoadedModel:
    """Wrap a network with its preprocessing and try it once."""
    subject = f"{name} ({path})" if path else name
    network = fitted.network
    if any(parameter.dtype != torch.float32 for parameter in network.parameters()):
        notes.append("cast parameters to float32")
    network = network.float().eval().requires_grad_(False)
    digest = digest_tensors(fitted.origin or _tensors_of(network))
    network = _with_question(network, settings, subject)
    fitted = replace(fitted, network=network)
    image_shape = settings.image_shape or _assumed_shape(subject, fitted, settings, notes)
    mean, std = _normalisation(subject, settings, image_shape[0], fitted, notes)
    classifier = Classifier(
        network,
        mean=mean,
        std=std,
        input_size=_input_size(settings, network, image_shape, notes),
        interpolation=settings.interpolation or "bilinear",
        outputs=settings.outputs or "logits",
    )
    classifier = classifier.eval().to(device)
    grey = torch.full((2, *image_shape), 0.5, device=device)
    with torch.no_grad():
        answers = ask(classifier, grey, subject)
        if answers.shape[1] == 1:
            # The one score of a classifier of two classes, asked again in its new form.
            classifier = classifier.with_two_classes()
            answers = ask(classifier, grey, subject)
            notes.append(ONE_SCORE)
    num_classes = int(answers.shape[1])
    if settings.num_classes not in (None, num_classes):
        raise ModelError(
            f"{subject}: expected logits (2, {settings.num_classes}), got {tuple(answers.shape)}; "
            f"pass num_classes={num_classes}"
        )
    return LoadedModel(
        name=name,
        classifier=classifier,
        num_classes=num_classes,
        image_shape=image_shape,
        arch=fitted.arch,
        weights_sha256=digest,
        path=path,
        notes=tuple(notes),
        **_read_from(checkpoint, hub, fitted),
    )


def _with_question(network: nn.Module, settings: ModelSettings, subject: str) -> nn.Module:
    """Make a detector answer marked images, with the threshold that is set."""
    if kind_of(network) is None:
        if settings.score_threshold is not None:
            raise ModelError(
                f"{subject}: score_threshold is of object detectors, and this network is none; "
                "leave it out"
            )
        return network
    if set(settings.mean or (0,)) != {0} or set(settings.std or (1,)) != {1}:
        raise ModelError(
            f"{subject}: a detector normalises pictures itself; leave out mean and std"
        )
    if settings.outputs == "probabilities":
        raise ModelError(
            f"{subject}: what a detector is asked for are logits, whatever its scores are; leave "
            "out outputs"
        )
    if settings.image_shape is not None and settings.image_shape[0] != CHANNELS:
        raise ModelError(
            f"{subject}: an object detector, which is asked about a box at a time, takes images of "
            f"{CHANNELS} channels, the last of which marks the box, got {settings.image_shape}; "
            f"audit it with task = 'detection' and pictures with boxes, or pass image_shape="
            f"{(CHANNELS, *settings.image_shape[1:])}"
        )
    given = settings.score_threshold
    if given is None:
        given = network.score_threshold if isinstance(network, Asked) else SCORE_THRESHOLD
    try:
        return as_asked(network, score_threshold=given)
    except ModelError as error:
        raise ModelError(f"{subject}: {error}") from error


def _read_from(
    checkpoint: Checkpoint | None, hub: HubFolder | None, fitted: Fitted
) -> dict[str, Any]:
    if checkpoint is None:
        return {}
    is_told = checkpoint.was_named or checkpoint.others
    return {
        "weights": checkpoint.key if is_told else None,
        "unaudited": checkpoint.others,
        "files": (*checkpoint.files, *(() if hub is None else hub.files), *fitted.files),
        "class_names": None if hub is None else hub.class_names,
    }


def _tensors_of(network: nn.Module) -> dict[str, Tensor]:
    # A state_dict may also hold a module's "extra state", which can be anything.
    return {key: value for key, value in network.state_dict().items() if isinstance(value, Tensor)}


def _input_size(
    settings: ModelSettings, network: nn.Module, image_shape: tuple[int, int, int], notes: list[str]
) -> tuple[int, int] | None:
    """Return what images must be resized to, `None` where they have the right size already."""
    size = settings.input_size or native_input_size(network)
    if size == image_shape[1:]:
        return None
    if size is not None and 1 in (size[0], image_shape[1]):
        raise ModelError(
            f"the network takes rows of {size[1]} columns, and the data are images of shape "
            f"{image_shape}; rows of a table are not resized"
        )
    if size is not None and settings.input_size is None:
        notes.append(f"resizes images to {size}, the only size the network takes")
    return size


def _normalisation(
    subject: str,
    settings: ModelSettings,
    image_channels: int,
    fitted: Fitted,
    notes: list[str],
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and std; three values on a grey image repeat it over the three channels."""
    network_channels = fitted.in_channels
    is_detector = isinstance(fitted.network, Asked)  # it has its own inside
    mean, std = settings.mean or (0.0,), settings.std or (1.0,)
    if settings.mean is None and settings.std is None and not is_detector:
        notes.append("no normalisation known: images go in as they are, in [0, 1]")
    lengths = {len(mean), len(std)}
    if image_channels == 1 and network_channels == 3 and lengths == {1}:
        mean, std, lengths = mean * 3, std * 3, {3}
    if image_channels == 1 and network_channels in (None, 3) and lengths == {3}:
        notes.append("grey images are repeated over the three channels the network takes")
        return mean, std
    if network_channels not in (None, image_channels):
        raise ModelError(
            f"{subject}: the network takes images of {network_channels} channels, got images of "
            f"{image_channels}; give the images that it was trained on, or the right image_shape"
        )
    if not lengths <= {1, image_channels}:
        raise ModelError(
            f"{subject}: mean and std: expected 1 or {image_channels} values, got {mean} and {std}"
        )
    return mean, std


def _assumed_shape(
    subject: str, fitted: Fitted, settings: ModelSettings, notes: list[str]
) -> tuple[int, int, int]:
    """Guess the image shape of a named architecture.

    Raises:
        ModelError: The network is the user's own, so nothing is known about it.
    """
    if fitted.in_channels is None:
        raise ModelError(
            f"{subject}: expected the image shape; pass image_shape, such as (3, 32, 32)"
        )
    usual = (32, 32) if fitted.arch.startswith("bdaudit/") else (224, 224)
    if isinstance(fitted.network, Asked):
        usual = (96, 96) if fitted.arch.startswith("bdaudit/") else (320, 320)
    size = settings.input_size or native_input_size(fitted.network) or usual
    shape = (fitted.in_channels, *size)
    notes.append(f"image shape not known: took {shape}")
    return shape
