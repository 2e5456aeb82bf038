"""Where placebo triggers are drawn from: changes of the image that nobody trained a model on.

A pool gives patterns one after another from a seed, each of the strength of the true trigger. Which
of them serve as placebos is found out by asking models (`screening.py`).

The pool of a trigger that covers the image is wide on purpose. A backdoor answers to its whole
kind: another noise picture at the same alpha, the same frequencies with other phases or another
warp wake the original as the true one does (measured, docs/placebos.md). Half of the patterns are
the trigger's own, turned and stretched, which resemble it most where the original tells them apart;
the others are smooth fields, gratings, blocks, noise and pictures of the sample.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from bdaudit.triggers import Poisoned, Trigger, footprint
from bdaudit.triggers.poisoning import CHANGED
from bdaudit.triggers.transforms import Additive, Patch, Transform

__all__ = ["Drawn", "as_strong", "draw", "mean_l2"]

_MEASURED_ON = 256
_TOLERANCE = 0.02
_HALVINGS = 24
_ONE_COLOUR = 0.02
_MOST_REPEATS = 200


@dataclass(frozen=True)
class Drawn:
    """One pattern of a pool.

    Attributes:
        kind: Of the pool it was drawn from, in words: "smooth field", "grating", ...
        transform: What it does to the pixels.
        l2: Mean L2 norm of the change over the images it was measured on, in pixel units.
    """

    kind: str
    transform: Transform
    l2: float


def draw(
    poisoned: Poisoned, generator: torch.Generator, *, given: Sequence[Trigger] = ()
) -> Iterator[Drawn]:
    """Draw patterns as strong as the true trigger.

    Args:
        poisoned: Images with and without the true trigger. Its mean L2 norm on them is what every
            pattern is brought to, within 2 %; a local trigger's placebos change as many pixels.
        generator: Seeded CPU generator, the only source of randomness.
        given: Patterns of the user's own, which come first and are taken as they are.

    Yields:
        Patterns, without end unless none can be brought to that strength; those that cannot are
        passed over.
    """
    clean, triggered = (
        part[:_MEASURED_ON].detach().float().cpu() for part in (poisoned.clean, poisoned.triggered)
    )
    change = triggered - clean
    strength = mean_l2(change)
    for trigger in given:
        l2 = mean_l2(trigger.transform.apply(clean, None).clamp(0, 1) - clean)
        yield Drawn(f"given: {trigger.source}", trigger.transform, l2)
    changed = (change.abs().amax(dim=1) > CHANGED).float().mean(dim=0) > 0.05  # (H, W)
    # A local trigger that lies elsewhere on every image has no shape of its own.
    if not footprint(poisoned).wide and bool(changed.any()):
        yield from _patches(clean, triggered, changed, generator)
    else:
        yield from _wide(clean, change, strength, generator)


def mean_l2(change: Tensor) -> float:
    """Return the mean L2 norm of changes (N, C, H, W), in pixel units."""
    return float(change.flatten(1).double().norm(dim=1).mean())


# -- triggers that cover the image -----------------------------------------------------------------


def _wide(
    clean: Tensor, change: Tensor, strength: float, generator: torch.Generator
) -> Iterator[Drawn]:
    """Draw as many patterns of the trigger's own making, turned, as of other kinds."""
    shape = tuple(clean.shape[1:])
    found_some = True
    # Black and white end what can be added, so no pattern may reach a strong trigger's strength.
    while found_some:
        found_some = False
        for kind, pattern in _PATTERNS:
            for name, values in (
                ("turned trigger", _turned(change, generator)),
                (kind, pattern(shape, clean, generator)),
            ):
                found = as_strong(clean, values, strength)
                if found is not None:
                    found_some = True
                    yield Drawn(name, *found)


def _turned(change: Tensor, generator: torch.Generator) -> Tensor:
    """What the trigger adds to an image, turned by an angle, stretched and perhaps mirrored.

    It keeps the trigger's look, so it acts on innocent models most nearly as the trigger does.
    Whether the original takes it for the trigger is found out by asking.
    """
    index = int(torch.randint(len(change), (1,), generator=generator))
    pattern = change[index : index + 1]
    angle = math.pi * (1.0 / 9.0 + 16.0 / 9.0 * _uniform(generator))  # 20 to 340 degrees
    scale = 0.8 + 0.45 * _uniform(generator)
    mirrored = 1.0 if _uniform(generator) < 0.5 else -1.0
    sign = 1.0 if _uniform(generator) < 0.5 else -1.0
    cosine, sine = math.cos(angle) * scale, math.sin(angle) * scale
    turn = torch.tensor([[[mirrored * cosine, -sine, 0.0], [mirrored * sine, cosine, 0.0]]])
    grid = functional.affine_grid(turn, list(pattern.shape), align_corners=False)
    turned = functional.grid_sample(
        pattern, grid, mode="bilinear", padding_mode="reflection", align_corners=False
    )
    return sign * turned[0]


def as_strong(clean: Tensor, pattern: Tensor, strength: float) -> tuple[Transform, float] | None:
    """Scale a pattern until it changes images by `strength`; clipping at black and white counts.

    Args:
        clean: Images (N, C, H, W) in [0, 1], on the CPU.
        pattern: What is added to each, (C, H, W).
        strength: Mean L2 norm of the change, in pixel units.

    Returns:
        The pattern as a transform, and what it reaches; `None` where it cannot be within 2 %.
    """

    def reached(scale: float) -> float:
        return mean_l2((clean + scale * pattern).clamp(0, 1) - clean)

    size = float(pattern.norm())
    if not size > 0.0:
        return None
    low, high = 0.0, strength / size
    for _ in range(_HALVINGS):
        if reached(high) >= strength:
            break
        low, high = high, 2.0 * high
    for _ in range(_HALVINGS):
        middle = (low + high) / 2.0
        low, high = (middle, high) if reached(middle) < strength else (low, middle)
    l2 = reached(high)
    if abs(l2 - strength) > _TOLERANCE * strength:
        return None
    return Additive(delta=(high * pattern).contiguous()), l2


_Pattern = Callable[[tuple[int, ...], Tensor, torch.Generator], Tensor]


def _smooth_field(shape: tuple[int, ...], clean: Tensor, generator: torch.Generator) -> Tensor:
    """White noise on a coarse grid of 2 to 8 points a side, interpolated."""
    points = _choose((2, 3, 4, 5, 6, 8), generator)
    coarse = torch.randn((1, shape[0], points, points), generator=generator)
    field = functional.interpolate(coarse, size=shape[1:], mode="bicubic", align_corners=True)[0]
    return field - field.mean()


def _grating(shape: tuple[int, ...], clean: Tensor, generator: torch.Generator) -> Tensor:
    """A sinusoid of random direction, phase and frequency."""
    angle = math.pi * _uniform(generator)
    frequency = 1.0 + (max(shape[1:]) / 3.0 - 1.0) * _uniform(generator)
    rows, columns = (torch.linspace(0, 1, size) for size in shape[1:])
    along = rows[:, None] * math.sin(angle) + columns[None] * math.cos(angle)
    wave = torch.sin(2 * math.pi * (frequency * along + _uniform(generator)))
    weights = torch.randn((shape[0], 1, 1), generator=generator)
    return wave[None] * weights / weights.abs().amax()


def _blocks(shape: tuple[int, ...], clean: Tensor, generator: torch.Generator) -> Tensor:
    """Squares of 2 to 8 pixels a side, each of one random sign."""
    side = _choose((2, 3, 4, 6, 8), generator)
    coarse = torch.randn(
        (1, shape[0], -(-shape[1] // side), -(-shape[2] // side)), generator=generator
    ).sign()
    large = coarse.repeat_interleave(side, 2).repeat_interleave(side, 3)[0]
    return large[:, : shape[1], : shape[2]]


def _white_noise(shape: tuple[int, ...], clean: Tensor, generator: torch.Generator) -> Tensor:
    """Independent normal noise in every pixel."""
    return torch.randn(shape, generator=generator)


def _coloured_noise(shape: tuple[int, ...], clean: Tensor, generator: torch.Generator) -> Tensor:
    """Noise whose amplitude falls with the frequency, as in natural images."""
    noise = torch.fft.rfft2(torch.randn(shape, generator=generator))
    rows = torch.fft.fftfreq(shape[1])[:, None] * shape[1]
    columns = torch.fft.rfftfreq(shape[2])[None] * shape[2]
    falling = (rows**2 + columns**2).clamp(min=1.0).pow(-0.25 - 0.75 * _uniform(generator))
    falling[0, 0] = 0.0
    pattern: Tensor = torch.fft.irfft2(noise * falling, s=shape[1:])
    return pattern


def _picture(shape: tuple[int, ...], clean: Tensor, generator: torch.Generator) -> Tensor:
    """An image of the sample turned upside down, less the mean image."""
    index = int(torch.randint(len(clean), (1,), generator=generator))
    pattern = clean[index].flip(1) - clean.mean(dim=0)
    return pattern - pattern.mean()


_PATTERNS: tuple[tuple[str, _Pattern], ...] = (
    ("smooth field", _smooth_field),
    ("grating", _grating),
    ("blocks", _blocks),
    ("coloured noise", _coloured_noise),
    ("white noise", _white_noise),
    ("picture", _picture),
)


# -- local triggers --------------------------------------------------------------------------------


def _patches(
    clean: Tensor, triggered: Tensor, mask: Tensor, generator: torch.Generator
) -> Iterator[Drawn]:
    """Patches of the true one's shape (H, W) and colours, in another order and where it is.

    Or where it would be in a mirror: a patch in the middle covers what the image shows, and does
    more to any model than one in a corner (measured, docs/placebos.md).
    """
    rows, columns = (mask.any(dim=axis).nonzero()[:, 0] for axis in (1, 0))
    top, bottom = int(rows.min()), int(rows.max()) + 1
    left, right = int(columns.min()), int(columns.max()) + 1
    shape = mask[top:bottom, left:right]
    pixels = triggered.median(dim=0).values[:, top:bottom, left:right][:, shape]  # (C, n)
    height, width = clean.shape[-2:]
    # A patch of one colour, or of few pixels, has too few orders to be told from.
    recoloured = bool((pixels.amax(1) - pixels.amin(1)).amax() < _ONE_COLOUR) or pixels.shape[1] < 4
    seen: set[bytes] = set()
    n_known = 0
    while n_known < _MOST_REPEATS:
        order = torch.randperm(pixels.shape[1], generator=generator)
        image = torch.zeros((clean.shape[1], *shape.shape))
        image[:, shape] = (
            torch.rand(pixels.shape, generator=generator) if recoloured else pixels[:, order]
        )
        turns = int(torch.randint(4, (1,), generator=generator))
        image, turned = (torch.rot90(t, turns, (-2, -1)) for t in (image, shape))
        room = (height - image.shape[1], width - image.shape[2])
        if min(room) < 0:
            n_known += 1
            continue
        mirrored = torch.randint(2, (2,), generator=generator).tolist()
        offset = tuple(
            r - min(start, r) if flip else min(start, r)
            for r, start, flip in zip(room, (top, left), mirrored, strict=True)
        )
        patch = Patch(
            image=image.clamp(0, 1).clone(memory_format=torch.contiguous_format),
            mask=turned[None].float().contiguous(),
            corner="top-left",
            offset=(offset[0], offset[1]),
        )
        known = repr((offset, turns % 2)).encode() + patch.image.numpy().tobytes()
        if known in seen:
            n_known += 1
            continue
        seen.add(known)
        n_known = 0
        yield Drawn("patch", patch, mean_l2(patch.apply(clean, None).clamp(0, 1) - clean))


def _uniform(generator: torch.Generator) -> float:
    return float(torch.rand((), generator=generator))


def _choose(values: tuple[int, ...], generator: torch.Generator) -> int:
    return values[int(torch.randint(len(values), (1,), generator=generator))]
