"""From a checkpoint file, or a module in memory, to a classifier ready to be audited."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from bdaudit.digests import digest_tensors
from bdaudit.errors import ModelError
from bdaudit.models import backdoorbench
from bdaudit.models.architectures import is_python_factory, native_input_size
from bdaudit.models.checkpoint import (
    Checkpoint,
    demand_finite,
    open_checkpoint,
    read_checkpoint,
)
from bdaudit.models.classifier import Classifier, LoadedModel
from bdaudit.models.fitting import build_and_fill
from bdaudit.models.outputs import ask
from bdaudit.models.settings import ModelSettings, Outputs, read_model_toml

__all__ = ["load_model", "wrap_module"]


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
    outputs: Outputs | None = None,
    fallback_image_shape: tuple[int, int, int] | None = None,
    device: torch.device | str = "cpu",
) -> LoadedModel:
    """Open a checkpoint, build its architecture and make it a classifier.

    What is not given here is read from the file's metadata, else from `<stem>.toml` or
    `model.toml` beside it, else from what BackdoorBench stores or implies, else inferred from the
    tensors. Grey images are repeated over the channels of a network that takes three.

    Args:
        path: A checkpoint file or a BackdoorBench folder.
        name: How records refer to the model.
        arch: Architecture, as `build_network` spells it. Only here may it name a Python file.
        num_classes: Length of the logits.
        image_shape: (C, H, W) of the images.
        input_size: (H', W') to resize to inside the model.
        mean: Subtracted from [0, 1] images, one value or one a channel; default 0.
        std: Divisor, likewise; default 1.
        outputs: What the network returns; default logits.
        fallback_image_shape: Taken where no source gives an image shape: the sample's.
        device: Where the classifier is put.

    Returns:
        The model in float32, eval mode, without gradients on its parameters.

    Raises:
        ModelError: The file cannot be opened safely, its architecture is unknown, or does not fit
            the tensors, the class count or the images; the message says what to pass.
        ConfigError: An argument is out of its range.
    """
    arguments = ModelSettings(
        arch=arch,
        num_classes=num_classes,
        image_shape=image_shape,
        input_size=input_size,
        mean=None if mean is None else tuple(mean),
        std=None if std is None else tuple(std),
        outputs=outputs,
    )
    file = backdoorbench.locate_checkpoint(path)
    checkpoint = open_checkpoint(file)
    notes = list(checkpoint.notes)
    settings = arguments.over(_settings_of(checkpoint, notes))
    network, settings, arch = build_and_fill(checkpoint, settings, notes)
    return _finish(
        network,
        settings.over(ModelSettings(image_shape=fallback_image_shape)),
        name=name,
        arch=arch,
        path=file,
        notes=notes,
        device=device,
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
        network,
        settings,
        name=name,
        arch=type(network).__name__,
        path=None,
        notes=[],
        device=device,
    )


def _settings_of(checkpoint: Checkpoint, notes: list[str]) -> ModelSettings:
    """Gather what the file and its neighbours say, strongest first."""
    path, metadata = checkpoint.path, checkpoint.metadata
    beside, toml = read_model_toml(path)
    if toml is not None:
        notes.append(f"read settings from {toml.name}")
    settings = beside
    if checkpoint.container == "safetensors":
        return ModelSettings.from_metadata(metadata, path).over(settings)
    settings = settings.over(ModelSettings.from_backdoorbench(metadata, path))
    attack = backdoorbench.attack_result_of(path)
    if attack is not None:
        # A defence's result names neither its data set nor its image size.
        attack_metadata = read_checkpoint(attack).metadata
        settings = settings.over(ModelSettings.from_backdoorbench(attack_metadata, attack))
        notes.append(f"read the data set and image size from {attack.name}")
        metadata = {**attack_metadata, **metadata}
    normalisation = backdoorbench.normalisation_of(metadata)
    if normalisation is not None and (settings.mean, settings.std) == normalisation[1:]:
        notes.append(f"normalised as BackdoorBench does for {normalisation[0]}")
    return settings


def _settings_within(classifier: Classifier) -> ModelSettings:
    return ModelSettings(
        input_size=classifier.input_size,
        mean=tuple(classifier.mean.flatten().tolist()),
        std=tuple(classifier.std.flatten().tolist()),
        outputs=classifier.outputs,
    )


def _finish(
    network: nn.Module,
    settings: ModelSettings,
    *,
    name: str,
    arch: str,
    path: Path | None,
    notes: list[str],
    device: torch.device | str,
) -> LoadedModel:
    """Wrap a network with its preprocessing and try it once."""
    subject = f"{name} ({path})" if path else name
    if any(parameter.dtype != torch.float32 for parameter in network.parameters()):
        notes.append("cast parameters to float32")
    network = network.float().eval().requires_grad_(False)
    digest = digest_tensors(_tensors_of(network))
    stem = next((m for m in network.modules() if isinstance(m, nn.Conv2d)), None)
    channels = stem.in_channels if stem is not None else None
    image_shape = settings.image_shape or _assumed_shape(subject, arch, network, channels, notes)
    mean, std = _normalisation(subject, settings, image_shape[0], channels, notes)
    classifier = Classifier(
        network,
        mean=mean,
        std=std,
        input_size=_input_size(settings, network, image_shape, notes),
        outputs=settings.outputs or "logits",
    )
    classifier = classifier.eval().to(device)
    with torch.no_grad():
        answers = ask(classifier, torch.full((2, *image_shape), 0.5, device=device), subject)
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
        arch=arch,
        weights_sha256=digest,
        path=path,
        notes=tuple(notes),
    )


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
    if size is not None and settings.input_size is None:
        notes.append(f"resizes images to {size}, the only size the network takes")
    return size


def _normalisation(
    subject: str,
    settings: ModelSettings,
    image_channels: int,
    network_channels: int | None,
    notes: list[str],
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and std; three values on a grey image repeat it over the three channels."""
    mean, std = settings.mean, settings.std
    if mean is None and std is None:
        notes.append("no normalisation known: images go in as they are, in [0, 1]")
    mean, std = mean or (0.0,), std or (1.0,)
    repeats = image_channels == 1 and network_channels == 3
    if repeats:
        notes.append("grey images are repeated over the three channels the network takes")
        if len(mean) == len(std) == 1:
            mean, std = mean * 3, std * 3
    elif network_channels not in (None, image_channels):
        raise ModelError(
            f"{subject}: the network takes images of {network_channels} channels, got images of "
            f"{image_channels}; give the images that it was trained on, or the right image_shape"
        )
    lengths = {len(mean), len(std)}
    if lengths != {3} if repeats else not lengths <= {1, image_channels}:
        raise ModelError(
            f"{subject}: mean and std: expected 1 or {network_channels or image_channels} values, "
            f"got {mean} and {std}"
        )
    return mean, std


def _assumed_shape(
    subject: str, arch: str, network: nn.Module, channels: int | None, notes: list[str]
) -> tuple[int, int, int]:
    if channels is None or is_python_factory(arch):
        raise ModelError(
            f"{subject}: expected the image shape; pass image_shape, such as (3, 32, 32)"
        )
    height, width = native_input_size(network) or ((32, 32) if "bdaudit/" in arch else (224, 224))
    notes.append(f"image shape not known: took {(channels, height, width)}")
    return channels, height, width
