"""How images lie in the tensor that a model file or a server takes, and scores in what it gives."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bdaudit.errors import ConfigError, ModelError
from bdaudit.models import ModelSettings

__all__ = [
    "MOST_INPUT_VALUES",
    "DataType",
    "ImageLayout",
    "Order",
    "TensorSpec",
    "choose_output",
    "place_images",
    "read_rows",
]

Order: TypeAlias = Literal["NCHW", "NHWC"]
DataType: TypeAlias = Literal["uint8", "float16", "float32", "float64"]
Shape: TypeAlias = tuple[int | None, ...]

MOST_INPUT_VALUES = 1 << 28
"""The most values that one call's images may have: 1 GiB of float32."""

_CHANNEL_COUNTS = (1, 3, 4)
_UINT8_MAX = 255
_IMAGE_TYPES = ("uint8", "float16", "float32", "float64")
_LABEL_TYPES = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """An input or output as a model describes it.

    Attributes:
        name: Its name.
        dtype: As numpy spells it ("float32"), or as the model does where numpy has no such type.
        shape: One entry a dimension, `None` where it is free.
    """

    name: str
    dtype: str
    shape: Shape

    def __str__(self) -> str:
        """Describe it for a message: `scores float32 (?, 10)`."""
        sides = ", ".join("?" if side is None else str(side) for side in self.shape)
        return f"{self.name} {self.dtype} ({sides})"


@dataclass(frozen=True, kw_only=True)
class ImageLayout:
    """The image input of a model, and how to fill it.

    Attributes:
        order: Channels first or last.
        dtype: "uint8" takes 0 to 255; floats take [0, 1], normalised.
        image_shape: (C, H, W).
        batch: Images a call when the model takes no other number; `None` when it is free.
        mean: Subtracted from [0, 1] images, one value or one a channel.
        std: Divisor, likewise; 1/255 makes floats from 0 to 255.

    Raises:
        ConfigError: An 8-bit input was to be normalised, or mean and std do not fit the channels.
    """

    order: Order
    dtype: DataType
    image_shape: tuple[int, int, int]
    batch: int | None = None
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            values = getattr(self, name)
            if len(values) not in (1, self.image_shape[0]):
                raise ConfigError(
                    f"{name}: expected 1 or {self.image_shape[0]} values, got {values}"
                )
        if self.dtype == "uint8" and (set(self.mean), set(self.std)) != ({0.0}, {1.0}):
            raise ConfigError(
                f"mean and std: an 8-bit input takes no normalised values, got {self.mean} and "
                f"{self.std}; leave them out"
            )

    @property
    def grid(self) -> int | None:
        """Steps an image value can take between 0 and 1; `None` for floats."""
        return _UINT8_MAX if self.dtype == "uint8" else None

    def encode(self, images: Tensor) -> NDArray[Any]:
        """Lay images (N, C, H, W) in [0, 1] out as the model takes them, contiguous.

        A fixed batch is filled up with copies of the last image: only the first N answers count.
        """
        images = images.detach().to("cpu", torch.float32)
        if self.dtype == "uint8":
            values = (images * _UINT8_MAX).round().to(torch.uint8)
        else:
            mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (self.mean, self.std))
            values = (images - mean) / std
        if self.order == "NHWC":
            values = values.permute(0, 2, 3, 1)
        tensor = np.ascontiguousarray(values.numpy().astype(self.dtype, copy=False))
        if self.batch is not None and len(tensor) < self.batch:
            fill = np.repeat(tensor[-1:], self.batch - len(tensor), axis=0)
            tensor = np.concatenate([tensor, fill])
        return tensor

    def describe(self) -> dict[str, str]:
        """Return what of this decides the answers, for `Identity.details`."""
        return {
            "order": self.order,
            "dtype": self.dtype,
            "mean": ",".join(map(repr, self.mean)),
            "std": ",".join(map(repr, self.std)),
        }


def place_images(
    spec: TensorSpec,
    *,
    subject: str,
    settings: ModelSettings,
    order: Order | None = None,
    fallback_image_shape: tuple[int, int, int] | None = None,
) -> ImageLayout:
    """Work out how images fill an input.

    Args:
        spec: The model's one input.
        subject: The model, for messages.
        settings: Image shape, which must fit, and normalisation, as far as the user says.
        order: Settles which dimension holds the channels where both could.
        fallback_image_shape: (C, H, W) taken where the user does not say and where it fits.

    Raises:
        ModelError: It is no image input, does not fit the image shape, or leaves it open.
        ConfigError: As for `ImageLayout`, or images were to be resized on their way.
    """
    if spec.dtype not in _IMAGE_TYPES or len(spec.shape) != 4:
        raise ModelError(
            f"{subject}: expected one input of images, (N, C, H, W) or (N, H, W, C), of type "
            f"{', '.join(_IMAGE_TYPES)}, got {spec}"
        )
    batch, *sides = spec.shape
    orders: tuple[Order, ...] = ("NCHW", "NHWC") if order is None else (order,)
    readings = [(one, _channels_first(sides, one)) for one in orders]
    placed = _placed(readings, settings.image_shape)
    if placed is None and settings.image_shape is None:
        placed = _placed(readings, fallback_image_shape) or _self_explaining(readings)
    if placed is None:
        raise ModelError(
            f"{subject}: expected an input that takes images of shape "
            f"{settings.image_shape or '(C, H, W)'}, got {spec}; pass image_shape, and the order "
            "of the dimensions, NCHW or NHWC"
        )
    chosen, image_shape = placed
    n_values = math.prod(image_shape) * (batch or 1)
    if n_values > MOST_INPUT_VALUES:
        raise ModelError(
            f"{subject}: expected an input of at most {MOST_INPUT_VALUES:,} values a call, got "
            f"{spec}, {n_values:,}"
        )
    if settings.input_size not in (None, image_shape[1:]):
        raise ConfigError(
            f"input_size: {subject} takes images of {image_shape[1:]} and resizes none, got "
            f"{settings.input_size}; leave it out"
        )
    return ImageLayout(
        order=chosen,
        dtype=cast(DataType, spec.dtype),
        image_shape=image_shape,
        batch=batch,
        mean=settings.mean or (0.0,),
        std=settings.std or (1.0,),
    )


def _placed(
    readings: Sequence[tuple[Order, Shape]], image_shape: tuple[int, int, int] | None
) -> tuple[Order, tuple[int, int, int]] | None:
    """Return the first order in which the input takes `image_shape`.

    Where both do, channels first: the rule of exporters and of most servers.
    """
    if image_shape is None:
        return None
    fitting = (
        order
        for order, shape in readings
        if all(side in (None, own) for own, side in zip(image_shape, shape, strict=True))
    )
    chosen = next(fitting, None)
    return None if chosen is None else (chosen, image_shape)


def _self_explaining(
    readings: Sequence[tuple[Order, Shape]],
) -> tuple[Order, tuple[int, int, int]] | None:
    """Return the order and shape that an input states without anybody's help."""
    for order, (channels, height, width) in readings:
        known = channels is not None and height is not None and width is not None
        if known and (channels in _CHANNEL_COUNTS or len(readings) == 1):
            return order, (channels, height, width)  # type: ignore[return-value]
    return None


def _channels_first(sides: Sequence[int | None], order: Order) -> Shape:
    return tuple(sides) if order == "NCHW" else (sides[2], sides[0], sides[1])


def choose_output(
    specs: Sequence[TensorSpec], *, subject: str, name: str | None = None, labels_only: bool = False
) -> TensorSpec:
    """Choose the output that holds scores (N, K), or labels (N,) or (N, 1).

    Args:
        specs: The model's outputs.
        subject: The model, for messages.
        name: The output the user named.
        labels_only: Whether an output of labels will do where there is none of scores.

    Raises:
        ModelError: None or several could be meant.
    """
    if name is not None:
        named = [spec for spec in specs if spec.name == name]
        if not named:
            raise ModelError(f"{subject}: has no output {name!r}; it has {_listed(specs)}")
        return named[0]
    candidates = [s for s in specs if len(s.shape) == 2 and s.dtype.startswith("float")]
    if not candidates and labels_only:
        candidates = [spec for spec in specs if _is_label_output(spec)]
    if len(candidates) != 1:
        found = "none" if not candidates else "several"
        raise ModelError(
            f"{subject}: expected one output of scores (N, K), got {found} among "
            f"{_listed(specs)}; name one with output_name, or ask for labels only"
        )
    return candidates[0]


def _is_label_output(spec: TensorSpec) -> bool:
    """Whether an output can hold one label an image."""
    return spec.dtype in _LABEL_TYPES and len(spec.shape) in (1, 2) and spec.shape[1:] in ((), (1,))


def read_rows(answer: Any, n_images: int) -> NDArray[Any] | None:
    """Return an output as scores (n, K) float32 or labels (n,) int64, `None` if it is neither.

    Args:
        answer: What the model gave: integers (n,) or (n, 1) are labels, floats (n, K) scores.
        n_images: How many rows it must have.
    """
    if not isinstance(answer, np.ndarray) or answer.ndim not in (1, 2) or len(answer) != n_images:
        return None
    if np.issubdtype(answer.dtype, np.integer) and answer.size == n_images:
        return answer.reshape(n_images).astype(np.int64)
    if answer.ndim == 1:
        return None
    # What overflows becomes infinite and is refused as such.
    with np.errstate(over="ignore"):
        return answer.astype(np.float32)


def _listed(specs: Sequence[TensorSpec]) -> str:
    return "; ".join(map(str, specs)) or "no outputs"
