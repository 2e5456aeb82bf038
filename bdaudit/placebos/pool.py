"""Where placebo triggers are drawn from: changes of the image that nobody trained a model on.

A pool gives patterns one after another from a seed, each of the strength of the true trigger. Which
of them serve as placebos is found out by asking models (`screening.py`).

The pool of a trigger that covers the image is wide on purpose. A backdoor answers to its whole
kind: another noise picture at the same alpha, the same frequencies with other phases or another
warp wake the original as the true one does (measured, docs/placebos.md). Half of the patterns are
the trigger's own, turned and stretched, which resemble it most where the original tells them apart;
the others are smooth fields, gratings, blocks, noise and pictures of the sample.

On marked images (`detection.mark`) patterns are of the three channels of the picture. Those of a
trigger that lies on the object, or is kept inside its box, do so too.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import torch
from torch import Tensor
from torch.nn import functional

from bdaudit.detection import boxes_of, inside_of, pixels_of, unmarked
from bdaudit.triggers import InBox, OnObject, Poisoned, Trigger, footprint
from bdaudit.triggers.poisoning import CHANGED
from bdaudit.triggers.transforms import Additive, Patch, Transform

__all__ = ["Drawn", "added_by", "as_strong", "draw", "mean_l2"]

_MEASURED_ON = 256
_TOLERANCE = 0.02
_HALVINGS = 24
_ONE_COLOUR = 0.02
_MOST_REPEATS = 200
_FEW_ORDERS = 100
_MOST_TRIED = 20  # pictures drawn for one that is new and can be made as strong
_FITTED_ON, _FITTINGS = 64, 8
_THINNEST = 1 / 255  # of a mask that covers


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
    poisoned: Poisoned,
    generator: torch.Generator,
    *,
    transform: Transform | None = None,
    given: Sequence[Trigger] = (),
) -> Iterator[Drawn]:
    """Draw patterns as strong as the true trigger.

    Args:
        poisoned: Images with and without the true trigger. Its mean L2 norm on them is what every
            pattern is brought to, within 2 %; a local trigger's placebos change as many pixels.
        generator: Seeded CPU generator, the only source of randomness.
        transform: What the true trigger does to an image, which images alone do not tell where it
            depends on the box asked about: placebos of an `OnObject` are others of its share and
            place, and those of an `InBox` are kept inside the box.
        given: Patterns of the user's own, which come first and are taken as they are.

    Yields:
        Patterns, without end unless none can be brought to that strength; those that cannot are
        passed over.
    """
    clean, triggered = (
        part[:_MEASURED_ON].detach().float().cpu() for part in (poisoned.clean, poisoned.triggered)
    )
    strength = mean_l2(triggered - clean)
    for trigger in given:
        l2 = mean_l2(trigger.transform.stamp(clean) - clean)
        yield Drawn(f"given: {trigger.source}", trigger.transform, l2)
    if isinstance(transform, OnObject):
        yield from _on_objects(transform, clean, strength, generator)
        return
    if isinstance(transform, InBox):
        # Of the change inside one box little would be left inside another.
        pixels = pixels_of(clean)
        change = transform.inner.stamp(pixels) - pixels
        yield from _wide(clean, change, strength, generator, in_box=True)
        return
    change = unmarked(triggered) - unmarked(clean)
    changed = (change.abs().amax(dim=1) > CHANGED).float().mean(dim=0) > 0.05  # (H, W)
    # A local trigger that lies elsewhere on every image has no shape of its own.
    if not footprint(poisoned).wide and bool(changed.any()):
        yield from _patches(clean, triggered, changed, generator)
    else:
        yield from _wide(clean, change, strength, generator, in_box=False)


def mean_l2(change: Tensor) -> float:
    """Return the mean L2 norm of changes (N, C, H, W), in pixel units."""
    return float(change.flatten(1).double().norm(dim=1).mean())


# -- triggers that cover the image -----------------------------------------------------------------


def _wide(
    clean: Tensor, change: Tensor, strength: float, generator: torch.Generator, *, in_box: bool
) -> Iterator[Drawn]:
    """Draw as many patterns of the trigger's own making, turned, as of other kinds."""
    pictures = unmarked(clean)
    shape = tuple(pictures.shape[1:])
    found_some = True
    # Black and white end what can be added, so no pattern may reach a strong trigger's strength.
    while found_some:
        found_some = False
        for kind, pattern in _PATTERNS:
            for name, values in (
                ("turned trigger", _turned(change, generator)),
                (kind, pattern(shape, pictures, generator)),
            ):
                found = as_strong(clean, values, strength, in_box=in_box)
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


def as_strong(
    clean: Tensor, pattern: Tensor, strength: float, *, in_box: bool = False
) -> tuple[Transform, float] | None:
    """Scale a pattern until it changes images by `strength`; clipping at black and white counts.

    Args:
        clean: Images (N, C, H, W) in [0, 1], on the CPU; marked or not.
        pattern: What is added to the picture of each, (C, H, W).
        strength: Mean L2 norm of the change, in pixel units.
        in_box: Whether it is added only inside the box that marked images ask about.

    Returns:
        The pattern as a transform, and what it reaches; `None` where it cannot be within 2 %.
    """
    pictures = unmarked(clean)
    inside = inside_of(clean) if in_box else torch.ones((), dtype=torch.bool)

    def reached(scale: float) -> float:
        return mean_l2(((pictures + scale * pattern).clamp(0, 1) - pictures) * inside)

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
    additive = Additive(delta=(high * pattern).contiguous())
    return (InBox(inner=additive) if in_box else additive), l2


def added_by(transform: Transform) -> tuple[Tensor, bool] | None:
    """Return what a pattern of `as_strong` adds (C, H, W), and whether only inside the box.

    `None` of a transform that adds nothing: a patch.
    """
    in_box = isinstance(transform, InBox)
    inner = transform.inner if isinstance(transform, InBox) else transform
    return (inner.delta, in_box) if isinstance(inner, Additive) else None


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
    pictures = unmarked(clean)
    rows, columns = (mask.any(dim=axis).nonzero()[:, 0] for axis in (1, 0))
    top, bottom = int(rows.min()), int(rows.max()) + 1
    left, right = int(columns.min()), int(columns.max()) + 1
    shape = mask[top:bottom, left:right]
    stamped = unmarked(triggered).median(dim=0).values  # (C, H, W)
    pixels = stamped[:, top:bottom, left:right][:, shape]  # (C, n)
    height, width = clean.shape[-2:]
    recoloured = _is_plain(pixels)
    seen: set[bytes] = set()
    n_known = 0
    while n_known < _MOST_REPEATS:
        image = torch.zeros((pictures.shape[1], *shape.shape))
        image[:, shape] = _reordered(pixels, generator, recoloured=recoloured)
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
        yield Drawn("patch", patch, mean_l2(patch.stamp(clean) - clean))


def _is_plain(pixels: Tensor) -> bool:
    """Whether pixels (C, n) are of one colour, or so few that they have too few orders."""
    return bool((pixels.amax(1) - pixels.amin(1)).amax() < _ONE_COLOUR) or pixels.shape[1] < 4


def _reordered(pixels: Tensor, generator: torch.Generator, *, recoloured: bool) -> Tensor:
    """Return pixels (C, n) in another order, or as many of other colours."""
    order = torch.randperm(pixels.shape[1], generator=generator)
    return torch.rand(pixels.shape, generator=generator) if recoloured else pixels[:, order]


# -- triggers on the object ------------------------------------------------------------------------


def _on_objects(
    transform: OnObject, clean: Tensor, strength: float, generator: torch.Generator
) -> Iterator[Drawn]:
    """Other pictures with the share and place of the true one, as many of its own as of others.

    A detector whose objects disappear behind a picture may answer to most that is made of its
    tiles, where pieces of the sample's pictures and plain colours leave it alone more often
    (measured, docs/placebos.md).
    """
    left, top, right, bottom = boxes_of(clean).unbind(1)
    shorter = int(torch.minimum(bottom - top, right - left).median())
    side = transform.side_in(shorter, shorter)
    own = _mixed_tiles(transform, side, generator)
    kinds = (
        ("tiles of the trigger", own),
        ("piece of a picture", _pieces(transform, side, pixels_of(clean), generator)),
        ("tiles of the trigger", own),
        ("plain colour", _plain_colours(transform, side, generator)),
    )
    seen: set[bytes] = set()
    found_some = True
    while found_some:
        found_some = False
        for kind, pictures in kinds:
            for image, mask in islice(pictures, _MOST_TRIED):
                known = repr(tuple(image.shape)).encode() + image.numpy().tobytes()
                if known in seen:
                    continue
                drawn = replace(transform, image=image, mask=mask)
                other = _contrasted(drawn, clean, strength)
                if other is None:
                    continue
                seen.add(known)
                found_some = True
                yield Drawn(kind, other, mean_l2(other.stamp(clean) - clean))
                break


def _contrasted(transform: OnObject, clean: Tensor, strength: float) -> OnObject | None:
    """Raise or lower a picture's contrast with grey until it is about as strong as the true one.

    Returns:
        It, as it is where its strength is not off by more than a sixth; `None` where no contrast
        brings it there.
    """
    few = clean[:_FITTED_ON]

    def with_contrast(scale: float) -> OnObject:
        return replace(transform, image=(0.5 + scale * (transform.image - 0.5)).clamp(0, 1))

    def reached(found: OnObject) -> float:
        return mean_l2(found.stamp(few) - few)

    if abs(reached(transform) - strength) <= strength / 6:
        return transform
    low, high = 0.25, 16.0
    for _ in range(_FITTINGS):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if reached(with_contrast(middle)) < strength else (low, middle)
    fitted = with_contrast(high)
    return fitted if abs(reached(fitted) - strength) <= strength / 6 else None


def _mixed_tiles(
    transform: OnObject, side: int, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Draw pictures and masks of the true one's tiles, mirrored or not, in another order, turned.

    Tiles and not pixels: a picture is resized to every object, and pixels in another order blur to
    a grey where tiles stay about as strong as the picture they are of. The mask goes with them.
    Where tiles have few orders, as those of a chequerboard do, the channels of the picture are
    exchanged and inverted as well, which leaves its contrasts.
    """
    tiles = _tiles_of(transform, side)  # (rows, columns, C + 1, h, w)
    paint, covers = transform.resized(min(side, max(transform.image.shape[1:])))
    pixels = (paint / covers.clamp_min(_THINNEST))[:, covers[0] >= covers.max() / 2]  # (C, n)
    plain = _is_plain(pixels)
    few = not plain and _orders(tiles.flatten(0, 1)) < _FEW_ORDERS
    while True:
        order = torch.randperm(tiles.shape[0] * tiles.shape[1], generator=generator)
        mixed = tiles.flatten(0, 1)[order]
        mirrored = torch.rand((2, len(mixed), 1, 1, 1), generator=generator) < 0.5
        mixed = torch.where(mirrored[0], mixed.flip(-1), mixed)
        mixed = torch.where(mirrored[1], mixed.flip(-2), mixed)
        # (rows, columns, C + 1, h, w) to (C + 1, rows h, columns w)
        together = mixed.reshape(tiles.shape).permute(2, 0, 3, 1, 4).flatten(3).flatten(1, 2)
        mask = together[-1:].clamp(0, 1)
        image = (together[:-1] / mask.clamp_min(_THINNEST)).clamp(0, 1)
        if few:
            image = _exchanged(image, generator)
        if plain:  # of a grey picture too: there may be no other grey
            colours = torch.rand((3, *tiles.shape[:2]), generator=generator)
            rows = colours.repeat_interleave(tiles.shape[3], 1)
            image = rows.repeat_interleave(tiles.shape[4], 2)
        turns = int(torch.randint(4, (1,), generator=generator))
        yield (
            torch.rot90(image, turns, (-2, -1)).contiguous(),
            torch.rot90(mask, turns, (-2, -1)).contiguous(),
        )


def _pieces(
    transform: OnObject, side: int, pictures: Tensor, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Draw pieces of pictures (N, 3, H, W), of the size and with the mask of the true one."""
    mask = transform.resized(side)[1]
    height, width = mask.shape[1:]
    room = (pictures.shape[-2] - height + 1, pictures.shape[-1] - width + 1)
    while True:
        index, top, left = (
            int(torch.randint(n, (), generator=generator))
            for n in (len(pictures), room[0], room[1])
        )
        piece = pictures[index, :, top : top + height, left : left + width]
        yield piece.clamp(0, 1).clone(memory_format=torch.contiguous_format), mask


def _plain_colours(
    transform: OnObject, side: int, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Draw pictures of one random colour each, with the mask of the true one."""
    mask = transform.resized(side)[1]
    while True:
        colour = torch.rand((3, 1, 1), generator=generator)
        yield colour.expand(-1, *mask.shape[1:]).contiguous(), mask


def _orders(tiles: Tensor) -> int:
    """Return in how many ways tiles (n, ...) can be put that do not look alike."""
    alike = Counter(tile.contiguous().numpy().tobytes() for tile in tiles)
    return math.factorial(len(tiles)) // math.prod(math.factorial(n) for n in alike.values())


def _exchanged(image: Tensor, generator: torch.Generator) -> Tensor:
    """Put the channels of (C, h, w) in another order, and each light for dark or not."""
    channels = torch.randperm(3, generator=generator)
    inverted = torch.rand((3, 1, 1), generator=generator) < 0.5
    coloured = image.expand(3, -1, -1)[channels]
    return torch.where(inverted, 1 - coloured, coloured)


def _tiles_of(transform: OnObject, side: int) -> Tensor:
    """Cut a picture, weighed with its mask and the mask below it, into up to 4 x 4 tiles.

    Args:
        transform: Whose picture.
        side: Pixels of its longer side on most objects, which no tile is to be finer than.

    Returns:
        (rows, columns, C + 1, h, w).
    """
    height, width = transform.image.shape[1:]
    seen = transform.resized(side)[1].shape[1:]
    rows, columns = _cuts(height, seen[0]), _cuts(width, seen[1])
    size = (rows * math.ceil(height / rows), columns * math.ceil(width / columns))
    both = torch.cat(transform.resized(max(height, width)))[None]
    if (height, width) != size:
        both = functional.interpolate(both, size, mode="bilinear", antialias=True).clamp(0, 1)
    tile = (size[0] // rows, size[1] // columns)
    return both.reshape(-1, rows, tile[0], columns, tile[1]).permute(1, 3, 0, 2, 4)


def _cuts(length: int, seen: int) -> int:
    """Return into how many parts a side is cut: so that none is resampled if that can be."""
    dividing = [parts for parts in (4, 3, 2) if length % parts == 0 and parts <= seen]
    if dividing:
        return dividing[0]
    return length if length <= min(8, seen) else min(4, seen)


def _uniform(generator: torch.Generator) -> float:
    return float(torch.rand((), generator=generator))


def _choose(values: tuple[int, ...], generator: torch.Generator) -> int:
    return values[int(torch.randint(len(values), (1,), generator=generator))]
