"""The kinds of trigger: what each does to the pixels.

Each kind is a frozen dataclass whose tensor fields and plain fields are all there is to know about
it, which is what makes it possible to write any of them to a file and to digest it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from bdaudit.data.images import fit_images
from bdaudit.detection import is_marked, pixels_of, with_pixels
from bdaudit.errors import ConfigError, TriggerError

__all__ = [
    "Additive",
    "Blend",
    "Corner",
    "Patch",
    "Sinusoid",
    "Transform",
    "Warp",
    "control_grid",
    "elastic_grid",
    "require_channels",
    "require_unit",
]

Corner = Literal["top-left", "top-right", "bottom-left", "bottom-right"]
Setting = str | int | float | bool | list[int] | list[float]


class Transform(ABC):
    """Base of the trigger kinds.

    Attributes:
        kind: As trigger files and records spell it.
        needs_box: Whether it lies in the box of an object, so that it can be stamped on marked
            images alone.
    """

    kind: ClassVar[str]
    needs_box: ClassVar[bool] = False

    def stamp(self, images: Tensor, names: Sequence[str] | None = None) -> Tensor:
        """Return stamped images in [0, 1], of the type and on the device of `images` (N, C, H, W).

        Of marked images (`detection.mark`) the three channels of the picture alone are changed;
        the box that they ask about stays as it is, whatever the trigger does.

        Raises:
            TriggerError: The trigger does not fit the images.
        """
        if not is_marked(images):
            stamped = self.apply(images, names)
        elif self.needs_box:
            stamped = with_pixels(images, pixels_of(self.apply(images, names)).to(images))
        else:
            stamped = with_pixels(images, self.apply(pixels_of(images), names).to(images))
        return stamped.to(images).clamp(0, 1)

    @abstractmethod
    def apply(self, images: Tensor, names: Sequence[str] | None) -> Tensor:
        """Change `images` (N, C, H, W); `stamp` clamps to [0, 1] and looks after marks.

        Each image is changed without regard to the others, and `images` is left as it is.
        """

    def covers(self, names: Sequence[str], labels: Tensor) -> Tensor:
        """Return (N,) whether each image, by name and true label, has a triggered version."""
        return torch.ones(len(names), dtype=torch.bool)

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors it is made of, by field."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}

    def settings(self) -> dict[str, Setting]:
        """Return what else it is made of, by field, in types that TOML and JSON have."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in values.items()
            if value is not None and not isinstance(value, Tensor)
        }

    def file_digests(self) -> dict[str, str]:
        """Return the sha256 of every file that is read only when images are stamped."""
        return {}


@dataclass(frozen=True, kw_only=True, eq=False)
class Patch(Transform):
    """Pixels replaced by those of a small image: `x * (1 - mask) + image * mask`.

    A mask and pattern of the image's full size, as Neural Cleanse recovers them, are a patch too.
    Source: Gu et al., "BadNets" (2017).

    Attributes:
        image: (C, h, w) in [0, 1]; C of 1 is stamped on every channel.
        mask: (1, h, w) or (C, h, w) in [0, 1], 1 where the patch covers; `None` covers everywhere.
        corner: Corner of the image from which `offset` is counted.
        offset: Rows and columns between that corner and the patch's own.
    """

    kind: ClassVar[str] = "patch"
    image: Tensor
    mask: Tensor | None = None
    corner: Corner = "bottom-right"
    offset: tuple[int, int] = (0, 0)

    def __post_init__(self) -> None:
        require_unit(self.image, "patch image", (1, 3))
        if self.mask is not None:
            require_unit(self.mask, "patch mask", (1, self.image.shape[0]))
            if self.mask.shape[1:] != self.image.shape[1:]:
                raise ConfigError(
                    f"patch mask: expected {tuple(self.image.shape[1:])} pixels like the image, "
                    f"got {tuple(self.mask.shape[1:])}"
                )
        if self.corner not in get_args(Corner):
            raise ConfigError(
                f"corner: expected one of {', '.join(get_args(Corner))}, got {self.corner!r}"
            )
        if len(self.offset) != 2 or min(self.offset) < 0:
            raise ConfigError(
                f"offset: expected [rows, columns], both 0 or above, got {list(self.offset)}"
            )

    def apply(self, images: Tensor, names: Sequence[str] | None) -> Tensor:
        """Stamp the patch on `images` (N, C, H, W)."""
        require_channels(self.image, images, self.kind)
        rows, columns = self._place(images.shape[-2], images.shape[-1])
        patch = self.image.to(images)
        mask = torch.ones_like(patch[:1]) if self.mask is None else self.mask.to(images)
        stamped = images.clone()
        below = images[..., rows, columns]
        stamped[..., rows, columns] = below * (1 - mask) + patch * mask
        return stamped

    def _place(self, height: int, width: int) -> tuple[slice, slice]:
        patch_height, patch_width = self.image.shape[1:]
        if self.offset[0] + patch_height > height or self.offset[1] + patch_width > width:
            raise TriggerError(
                f"patch of {patch_height}x{patch_width} at {list(self.offset)} from the "
                f"{self.corner} does not fit images of {height}x{width}"
            )
        vertical, horizontal = self.corner.split("-")
        top = self.offset[0] if vertical == "top" else height - self.offset[0] - patch_height
        left = self.offset[1] if horizontal == "left" else width - self.offset[1] - patch_width
        return slice(top, top + patch_height), slice(left, left + patch_width)


@dataclass(frozen=True, kw_only=True, eq=False)
class Blend(Transform):
    """A whole picture mixed in: `(1 - alpha) * x + alpha * image`.

    Source: Chen et al., "Targeted Backdoor Attacks on Deep Learning Systems Using Data Poisoning"
    (2017), blended injection.

    Attributes:
        image: (C, h, w) in [0, 1], resized to the images it is blended into (bilinear,
            antialiased); C of 1 is blended into every channel.
        alpha: Share of the picture, in (0, 1].
    """

    kind: ClassVar[str] = "blend"
    image: Tensor
    alpha: float

    def __post_init__(self) -> None:
        require_unit(self.image, "blend image", (1, 3))
        object.__setattr__(self, "alpha", float(self.alpha))  # 1 and 1.0 have the same digest
        if not 0 < self.alpha <= 1:
            raise ConfigError(f"alpha: expected a share in (0, 1], got {self.alpha}")

    def apply(self, images: Tensor, names: Sequence[str] | None) -> Tensor:
        """Blend the picture into `images` (N, C, H, W)."""
        require_channels(self.image, images, self.kind)
        size = (self.image.shape[0], images.shape[-2], images.shape[-1])
        return torch.lerp(images, fit_images(self.image[None].to(images), size), self.alpha)


@dataclass(frozen=True, kw_only=True, eq=False)
class Sinusoid(Transform):
    """Vertical stripes added: column j of W gets `amplitude * sin(2 pi j frequency / W)`.

    Source: Barni et al., "A New Backdoor Attack in CNNs by Training Set Corruption" (SIG, 2019).
    Papers give the amplitude out of 255; here it is a fraction of the pixel range, so the usual
    20 is 20 / 255 = 0.0784.

    Attributes:
        amplitude: In (0, 1].
        frequency: Periods across the image, above 0.
    """

    kind: ClassVar[str] = "sinusoid"
    amplitude: float
    frequency: float

    def __post_init__(self) -> None:
        if not 0 < self.amplitude <= 1:
            raise ConfigError(
                f"amplitude: expected a fraction of the pixel range in (0, 1], got "
                f"{self.amplitude}; divide an amplitude out of 255 by 255"
            )
        # 6 and 6.0 are the same trigger and must have the same digest.
        object.__setattr__(self, "amplitude", float(self.amplitude))
        object.__setattr__(self, "frequency", float(self.frequency))
        if not 0 < self.frequency < math.inf:
            raise ConfigError(f"frequency: expected periods above 0, got {self.frequency}")

    def apply(self, images: Tensor, names: Sequence[str] | None) -> Tensor:
        """Add the stripes to `images` (N, C, H, W)."""
        width = images.shape[-1]
        column = torch.arange(width, dtype=torch.float64)
        stripes = self.amplitude * torch.sin(2 * math.pi * column * self.frequency / width)
        return images + stripes.to(images)


@dataclass(frozen=True, kw_only=True, eq=False)
class Additive(Transform):
    """The same pattern added to every image: low-frequency and universal triggers.

    Attributes:
        delta: (C, H, W) in pixel units, of any sign, the size of the images; C of 1 is added to
            every channel.
    """

    kind: ClassVar[str] = "additive"
    delta: Tensor

    def __post_init__(self) -> None:
        _require_finite(self.delta, "delta")
        if self.delta.ndim != 3 or self.delta.shape[0] not in (1, 3):
            raise ConfigError(f"delta: expected (C, H, W), got {tuple(self.delta.shape)}")

    def apply(self, images: Tensor, names: Sequence[str] | None) -> Tensor:
        """Add the pattern to `images` (N, C, H, W)."""
        require_channels(self.delta, images, self.kind)
        _require_size(self.delta.shape[1:], images, "pattern to add")
        return images + self.delta.to(images)


@dataclass(frozen=True, kw_only=True, eq=False)
class Warp(Transform):
    """Every pixel taken from elsewhere, along a fixed smooth grid.

    Source: Nguyen and Tran, "WaNet: Imperceptible Warping-based Backdoor Attack" (ICLR 2021).
    `elastic_grid` makes such a grid.

    Attributes:
        grid: (H, W, 2) in [-1, 1]: for each pixel the x and y it is sampled from, where -1 and 1
            are the centres of the first and last pixel (`grid_sample` with `align_corners=True`).
    """

    kind: ClassVar[str] = "warp"
    grid: Tensor

    def __post_init__(self) -> None:
        _require_finite(self.grid, "grid")
        if self.grid.ndim != 3 or self.grid.shape[2] != 2:
            raise ConfigError(f"grid: expected (H, W, 2), got {tuple(self.grid.shape)}")
        if self.grid.abs().max() > 1:
            raise ConfigError(
                f"grid: expected coordinates in [-1, 1], got up to {self.grid.abs().max():.4g}"
            )

    def apply(self, images: Tensor, names: Sequence[str] | None) -> Tensor:
        """Warp `images` (N, C, H, W)."""
        _require_size(self.grid.shape[:2], images, "warping grid")
        grid = self.grid.to(images).expand(images.shape[0], -1, -1, -1)
        return functional.grid_sample(images, grid, mode="bilinear", align_corners=True)


def control_grid(k: int, generator: torch.Generator) -> Tensor:
    """Draw WaNet's control grid.

    Args:
        k: Control points a side, at least 2 (the paper's default is 4).
        generator: CPU generator that is drawn from.

    Returns:
        (k, k, 2) displacements, uniform in [-1, 1], then scaled to a mean magnitude of 1.
    """
    if k < 2:
        raise ConfigError(f"control points a side: expected at least 2, got {k}")
    control = torch.rand(k, k, 2, generator=generator) * 2 - 1
    return control / control.abs().mean()


def elastic_grid(control: Tensor, size: tuple[int, int], *, strength: float = 0.5) -> Tensor:
    """Make a sampling grid from control points, as WaNet does.

    Args:
        control: (k, k, 2) displacements, as `control_grid` draws them.
        size: (H, W) of the images.
        strength: The paper's s. A displacement of 1 moves a pixel by about s / 2 pixels.

    Returns:
        (H, W, 2) in [-1, 1]: the identity grid plus `strength` times the displacements, upsampled
        bicubically, over the image's height and width; clamped.

    Source: Nguyen and Tran, ICLR 2021, section 3.2. Theirs divides by the height alone, which is
    the same for square images.
    """
    height, width = size
    smooth = functional.interpolate(
        control.permute(2, 0, 1)[None], size=size, mode="bicubic", align_corners=True
    )[0].permute(1, 2, 0)  # (H, W, 2)
    y, x = torch.meshgrid(
        torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij"
    )
    identity = torch.stack([x, y], dim=2)
    return (identity + strength * smooth / torch.tensor([width, height])).clamp(-1, 1)


def _require_finite(values: Tensor, what: str) -> None:
    if not values.is_floating_point() or values.numel() == 0 or not torch.isfinite(values).all():
        raise ConfigError(f"{what}: expected finite floats, got {values.dtype} with other values")


def require_unit(image: Tensor, what: str, channels: Sequence[int]) -> None:
    """Raise a ConfigError unless a picture (C, h, w) has these channels and lies in [0, 1]."""
    _require_finite(image, what)
    if image.ndim != 3 or image.shape[0] not in channels:
        raise ConfigError(
            f"{what}: expected (C, h, w) with C of {' or '.join(map(str, sorted(set(channels))))}, "
            f"got {tuple(image.shape)}"
        )
    if image.min() < 0 or image.max() > 1:
        raise ConfigError(
            f"{what}: expected values in [0, 1], got {image.min():.4g} to {image.max():.4g}"
        )


def require_channels(pattern: Tensor, images: Tensor, kind: str) -> None:
    """Raise a TriggerError unless a pattern (C, h, w) is grey or has the images' channels."""
    if pattern.shape[0] not in (1, images.shape[1]):
        raise TriggerError(
            f"{kind} trigger of {pattern.shape[0]} channels does not fit images of "
            f"{images.shape[1]}; make it grey (1 channel) or give the images' own channels"
        )


def _require_size(size: Sequence[int], images: Tensor, what: str) -> None:
    if tuple(size) != tuple(images.shape[-2:]):
        raise TriggerError(
            f"{what} of {size[0]}x{size[1]} does not fit images of "
            f"{images.shape[-2]}x{images.shape[-1]}"
        )
