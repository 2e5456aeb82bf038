"""The smallest universal warp toward each target, for many targets at once."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from bdaudit.inversion.universal import UniversalSearch
from bdaudit.triggers import Transform, Warp

__all__ = ["WARP_LADDER", "WarpSearch"]

_CONTROL_POINTS = 5  # a side
WARP_LADDER = tuple(2 ** (k / 2) / 4 for k in range(9))  # .25 to 4 pixels
"""Radii: how far, in pixels, a control point may be moved along either axis."""


class WarpSearch(UniversalSearch):
    """Climbs as `UniversalSearch` does, with a smooth displacement field in place of a delta.

    A warp moves what an image shows, and no pattern added to all images does the same, so that a
    warping backdoor can be out of reach of any small delta. An arm's change is the displacement of
    5 x 5 control points in pixels, upsampled bicubically; bounding them bounds the field but for
    the little by which bicubic interpolation overshoots.

    Source: the trigger's form is WaNet's (Nguyen and Tran, ICLR 2021); to search for it by gradient
    through the sampling is ours.
    """

    method = "warp"
    title = "smallest warps"
    unit = "pixels moved"

    def _shape(self) -> tuple[int, ...]:
        return (2, _CONTROL_POINTS, _CONTROL_POINTS)

    def _stamp(self, parameters: tuple[Tensor, ...], images: Tensor) -> Tensor:
        (control,) = parameters
        k, n, _, height, width = images.shape
        grids = _grid(control, height, width)  # (k, H, W, 2)
        return functional.grid_sample(
            images.flatten(0, 1),
            grids[:, None].expand(k, n, height, width, 2).flatten(0, 1),
            mode="bilinear",
            align_corners=True,
        ).view_as(images)

    def _transform(self, delta: Tensor) -> Transform:
        height, width = self.asker.images.shape[-2:]
        return Warp(grid=_grid(delta[None], height, width)[0].contiguous())


def _grid(control: Tensor, height: int, width: int) -> Tensor:
    """Turn displacements (k, 2, c, c) in pixels, x first, into sampling grids (k, H, W, 2)."""
    field = functional.interpolate(
        control, size=(height, width), mode="bicubic", align_corners=True
    ).permute(0, 2, 3, 1)
    y, x = torch.meshgrid(
        torch.linspace(-1, 1, height, device=control.device),
        torch.linspace(-1, 1, width, device=control.device),
        indexing="ij",
    )
    # One pixel is this much of the grid's range of 2.
    pixel = torch.tensor([2 / max(width - 1, 1), 2 / max(height - 1, 1)], device=control.device)
    return (torch.stack([x, y], dim=2) + field * pixel).clamp(-1, 1)
