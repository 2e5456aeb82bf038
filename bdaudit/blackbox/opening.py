"""From a path, an address or a Python function to a black box."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from bdaudit.blackbox.base import BlackBox, Feedback
from bdaudit.blackbox.detections import Asking, answering
from bdaudit.blackbox.function import FunctionBlackBox
from bdaudit.blackbox.onnx_detector import OnnxDetector
from bdaudit.blackbox.onnx_model import OnnxBlackBox
from bdaudit.blackbox.openvino_model import OpenVinoBlackBox
from bdaudit.blackbox.options import BlackBoxOptions
from bdaudit.blackbox.scale import ScoreScale
from bdaudit.blackbox.served import ServedBlackBox
from bdaudit.blackbox.served_detector import ServedDetector
from bdaudit.blackbox.torch_model import TorchBlackBox
from bdaudit.detection import CHANNELS, SCORE_THRESHOLD
from bdaudit.errors import ConfigError, ModelError, reads
from bdaudit.foundation.sources import (
    FileSource,
    InMemory,
    OnnxFile,
    OpenVinoFile,
    PythonFunction,
    RemoteFile,
    ServedModel,
    Source,
    parse_model,
)
from bdaudit.foundation.usercode import load_function
from bdaudit.models import LoadedModel, ModelSettings, load_model, wrap_module
from bdaudit.models.settings import read_model_toml

__all__ = ["open_black_box"]

Device: TypeAlias = torch.device | str


@reads(ModelError)
def open_black_box(
    source: LoadedModel | nn.Module | Callable[[Tensor], Any] | Path | str | Source,
    *,
    name: str,
    feedback: Feedback = "scores",
    options: BlackBoxOptions | None = None,
    fallback_image_shape: tuple[int, int, int] | None = None,
    fallback_num_classes: int | None = None,
    detects: bool = False,
    device: Device = "cpu",
) -> BlackBox:
    """Open whatever can be asked.

    Args:
        source: A loaded model; a module, or any function from images to scores or labels; an
            address (`http://host:port/v2/models/NAME`); `file.py:function`, which runs the user's
            own code; an `.onnx` file; or a checkpoint that `load_model` opens.
        name: How records refer to the model.
        feedback: What it gives back.
        options: What is known about it.
        fallback_image_shape: (C, H, W) where neither options nor model say: the sample's.
        fallback_num_classes: K, likewise: the original's.
        detects: Whether it is a detector, which is asked about marked images (4, H, W): a function
            from pictures to detections (`answering`), an ONNX file or an address.
        device: Where a torch model or an ONNX file runs.

    Raises:
        ConfigError: An option is out of range.
        ModelError: It cannot be opened, or is no classifier of images.
        RemoteError: The server cannot be queried.
    """
    options = options or BlackBoxOptions()
    fallback = ModelSettings(image_shape=fallback_image_shape, num_classes=fallback_num_classes)
    if detects:
        return _ask_detector(parse_model(source), name, feedback, options, fallback, device)
    match parse_model(source):
        case InMemory(value=LoadedModel() as loaded):
            return _ask_torch(loaded, feedback, options)
        case InMemory(value=nn.Module() as network):
            own_shape = ModelSettings(image_shape=fallback_image_shape)
            module = _wrap(network, name, options.settings.over(own_shape), device)
            return _ask_torch(module, feedback, options)
        case InMemory(value=function) if callable(function):
            return _ask_function(function, None, name, feedback, options, fallback)
        case ServedModel(address=address) | RemoteFile(url=address):
            return ServedBlackBox(
                address, name=name, feedback=feedback, options=options, fallback=fallback
            )
        case PythonFunction(file=file, name=function_name):
            function = load_function(file, function_name, error=ModelError)
            return _ask_function(function, file, name, feedback, options, fallback)
        case OnnxFile(path=path):
            return _ask_file(OnnxBlackBox, path, name, feedback, options, fallback, device)
        case OpenVinoFile(path=path):
            return _ask_file(OpenVinoBlackBox, path, name, feedback, options, fallback, device)
        case FileSource(path=path):
            return _ask_checkpoint(path, name, feedback, options, fallback_image_shape, device)
        case other:
            raise ModelError(
                f"{name}: expected a model, a function, a path or an address, got {other}"
            )


def _ask_detector(
    source: Source,
    name: str,
    feedback: Feedback,
    options: BlackBoxOptions,
    fallback: ModelSettings,
    device: Device,
) -> BlackBox:
    """Open a detector that can only be asked."""
    settings = options.settings.over(fallback)
    if settings.image_shape is None or settings.num_classes is None:
        raise ConfigError(
            "a detector that can only be asked does not say how many classes it has, nor the size "
            'of its pictures; pass --num-classes (which counts "nothing" as one) and --input-size'
        )
    if settings.image_shape[0] != CHANNELS:
        raise ConfigError(
            f"image_shape: expected {CHANNELS} channels, those of a picture and the mark of the "
            f"box that is asked about, got {settings.image_shape}"
        )
    asking = Asking(
        num_classes=settings.num_classes,
        threshold=settings.score_threshold or SCORE_THRESHOLD,
        first_label=options.first_label,
    )
    shape = settings.image_shape
    match source:
        case InMemory(value=function) if callable(function) and not isinstance(function, nn.Module):
            return _ask_function(
                answering(function, asking, name),
                None,
                name,
                feedback,
                options,
                fallback,
                asking.describe(),
            )
        case PythonFunction(file=file, name=function_name):
            function = load_function(file, function_name, error=ModelError)
            return _ask_function(
                answering(function, asking, name),
                file,
                name,
                feedback,
                options,
                fallback,
                asking.describe(),
            )
        case ServedModel(address=address) | RemoteFile(url=address):
            return ServedDetector(
                address,
                name=name,
                asking=asking,
                feedback=feedback,
                options=options,
                image_shape=shape,
            )
        case OnnxFile(path=path):
            return OnnxDetector(
                path,
                name=name,
                asking=asking,
                feedback=feedback,
                options=options,
                image_shape=shape,
                device=device,
            )
        case other:
            raise ModelError(
                f"{name}: expected a detector as FILE.py:FUNCTION, an .onnx file or an address, "
                f"got {other}"
            )


def _ask_checkpoint(
    path: Path,
    name: str,
    feedback: Feedback,
    options: BlackBoxOptions,
    fallback_image_shape: tuple[int, int, int] | None,
    device: Device,
) -> TorchBlackBox:
    model = load_model(
        path,
        name=name,
        arch=options.settings.arch,
        num_classes=options.settings.num_classes,
        image_shape=options.settings.image_shape,
        input_size=options.settings.input_size,
        mean=options.settings.mean,
        std=options.settings.std,
        interpolation=options.settings.interpolation,
        outputs=options.settings.outputs,
        score_threshold=options.settings.score_threshold,
        clip=options.settings.clip,
        read_pickled_module=bool(options.settings.read_pickled_module),
        fallback_image_shape=fallback_image_shape,
        device=device,
    )
    return _ask_torch(model, feedback, options)


def _ask_torch(model: LoadedModel, feedback: Feedback, options: BlackBoxOptions) -> TorchBlackBox:
    # Where the outputs were declared, the loader has acted on it, and what comes out are logits.
    declared = None if options.settings.outputs is None else ScoreScale(kind="logits")
    return TorchBlackBox(
        model,
        feedback=feedback,
        grid=options.grid,
        scale=options.scale or declared,
        batch_size=options.request_size or 256,
    )


def _wrap(module: nn.Module, name: str, settings: ModelSettings, device: Device) -> LoadedModel:
    if settings.image_shape is None:
        raise ConfigError("image_shape: a module in memory does not say what it takes; pass it")
    return wrap_module(
        module,
        name=name,
        image_shape=settings.image_shape,
        num_classes=settings.num_classes,
        input_size=settings.input_size,
        mean=settings.mean,
        std=settings.std,
        outputs=settings.outputs,
        score_threshold=settings.score_threshold,
        device=device,
    )


def _ask_function(
    function: Callable[[Tensor], Any],
    path: Path | None,
    name: str,
    feedback: Feedback,
    options: BlackBoxOptions,
    fallback: ModelSettings,
    details: Mapping[str, str] | None = None,
) -> FunctionBlackBox:
    settings = options.settings.over(fallback)
    if settings.image_shape is None or settings.num_classes is None:
        raise ConfigError(
            "image_shape and num_classes: a Python function does not say what it takes and gives, "
            f"got {settings.image_shape} and {settings.num_classes}; pass both"
        )
    if settings.mean or settings.std or settings.input_size:
        raise ConfigError(
            "mean, std and input_size: a Python function is given images in [0, 1] as they are; "
            "normalise and resize inside it"
        )
    return FunctionBlackBox(
        function,
        name=name,
        num_classes=settings.num_classes,
        image_shape=settings.image_shape,
        path=path,
        feedback=feedback,
        grid=options.grid,
        scale=options.known_scale,
        batch_size=options.request_size or 256,
        details=details,
    )


def _ask_file(
    kind: type[OnnxBlackBox | OpenVinoBlackBox],
    path: Path,
    name: str,
    feedback: Feedback,
    options: BlackBoxOptions,
    fallback: ModelSettings,
    device: Device,
) -> OnnxBlackBox | OpenVinoBlackBox:
    beside, toml = read_model_toml(path)
    options = replace(options, settings=options.settings.over(beside))
    black_box = kind(
        path, name=name, feedback=feedback, options=options, fallback=fallback, device=device
    )
    if toml is not None:
        black_box.notes.append(f"read settings from {toml.name}")
    return black_box
