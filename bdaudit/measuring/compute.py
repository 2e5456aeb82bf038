"""Where and in which precision things are computed, and from which seed."""

from __future__ import annotations

import hashlib
import weakref
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from bdaudit.cases.settings import ComputeSettings
from bdaudit.foundation.memory import sent_if_small
from bdaudit.precision import settled
from bdaudit.settings import Precision

__all__ = ["Compute", "derive_generator"]


@dataclass(frozen=True)
class Compute:
    """Where everything is computed, from which seed and in which arithmetic.

    Attributes:
        device: Of models and images.
        seed: From which every random draw derives.
        batch_size: Images in one forward pass when scoring.
        precision: Of attacks, their scoring, and everything that is trained.
    """

    device: torch.device
    seed: int
    batch_size: int
    precision: Precision = "float32"
    _sent: dict[int, tuple[weakref.ref[Tensor], Tensor]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @classmethod
    def of(cls, settings: ComputeSettings, device: torch.device) -> Compute:
        """Return what settings ask for, on the device that they come to here."""
        precision = settled(settings.precision, str(device))
        return cls(device, settings.seed, settings.batch_size, precision)

    def sent(self, images: Tensor) -> Tensor:
        """Return `images` on a card, sent there once for as long as they live.

        They are returned as they are elsewhere, and where they take a quarter of what is free.
        """
        if self.device.type != "cuda" or images.is_cuda:
            return images
        key = id(images)
        if key in self._sent and self._sent[key][0]() is images:
            return self._sent[key][1]
        there = sent_if_small(images, self.device)
        if there is not images:
            gone = weakref.ref(images, lambda _: self._sent.pop(key, None))
            self._sent[key] = (gone, there)
        return there

    @property
    def autocast(self) -> Literal["bf16"] | None:
        """The precision as the methods' own settings call it."""
        return "bf16" if self.precision == "bfloat16" else None


def derive_generator(seed: int, *parts: object) -> torch.Generator:
    """Return a CPU generator seeded from `seed` and what is being done.

    The same parts give the same stream, so every model under comparison meets the same attack,
    and adding a step to an audit does not shift the draws of the others.
    """
    text = "/".join(str(part) for part in (seed, *parts))
    digest = hashlib.sha256(text.encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
