"""Many arms in one forward pass, as many as memory allows."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from bdaudit.errors import NumericsError
from bdaudit.inversion.arms import as_rivals, is_won
from bdaudit.perturbation import Loss, cross_entropy

__all__ = ["Asker"]

Stamp = Callable[[Tensor, slice], Tensor]
"""Images (k, n, C, H, W) of the arms of a slice to those images triggered, each arm its own way."""


class Asker:
    """Asks one model about images that many arms trigger, and counts what that costs.

    Args:
        classifier: Maps (n, C, H, W) in [0, 1] to logits (n, K).
        images: (N, C, H, W) craft images, where the model is.
        batch_size: Most images in one forward pass.
        bf16: Run the passes under bfloat16 autocast.

    Attributes:
        differentiated: Images that went through a forward and a backward pass.
        forwarded: Images that went through a forward pass alone.
    """

    def __init__(
        self, classifier: nn.Module, images: Tensor, *, batch_size: int, bf16: bool = False
    ) -> None:
        self.classifier = classifier
        self.images = images
        self.batch_size = batch_size
        self.bf16 = bf16
        self.differentiated = 0
        self.forwarded = 0

    def logits(self, images: Tensor) -> Tensor:
        """Return float32 logits (n, K)."""
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.bf16):
            scores: Tensor = self.classifier(images)
        return scores.float()

    def gradients(
        self,
        parameters: tuple[Tensor, ...],
        stamp: Callable[[tuple[Tensor, ...], Tensor], Tensor],
        indices: Tensor,
        targets: Tensor,
        loss: Loss,
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        """Differentiate each arm's mean loss by its own parameters.

        Args:
            parameters: Tensors whose first dimension is the arm, (K, ...).
            stamp: From parameters (k, ...) and images (k, n, C, H, W) to triggered images.
            indices: (K, n) into the images.
            targets: (K, n), as `Arm.targets` has them.
            loss: Logits and targets to one value an image; it may depend on the whole batch, so
                it sees each arm's images apart.

        Returns:
            Gradients like `parameters`, and the share of images (K,) won on the way.

        Raises:
            NumericsError: A gradient is not finite.
        """
        found, won = [], []
        for part in self._parts(*indices.shape):
            leaves = tuple(p[part].detach().requires_grad_() for p in parameters)
            stamped = stamp(leaves, self.images[indices[part]])
            logits = self.logits(stamped.flatten(0, 1)).view(*stamped.shape[:2], -1)
            wanted = targets[part].to(logits.device)
            total = torch.stack(
                [
                    loss(*as_rivals(one, goal)).mean()
                    for one, goal in zip(logits, wanted, strict=True)
                ]
            ).sum()
            found.append(torch.autograd.grad(total, leaves))
            won.append(is_won(logits.argmax(2), wanted).float().mean(1).detach())
        self.differentiated += indices.numel()
        gradients = tuple(torch.cat(parts) for parts in zip(*found, strict=True))
        if not all(bool(g.isfinite().all()) for g in gradients):
            raise NumericsError(
                "trigger inversion: a gradient was not finite; look for NaN or huge values in the "
                "weights, or try without bf16"
            )
        return gradients, torch.cat(won)

    @torch.no_grad()
    def success(
        self,
        parameters: tuple[Tensor, ...],
        stamp: Callable[[tuple[Tensor, ...], Tensor], Tensor],
        indices: Tensor,
        targets: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Return each arm's share of images (K,) that its trigger takes to their targets.

        And how near the images are to their targets (K,): 1 / (1 + mean cross-entropy), from 0 to
        1, which tells arms apart while none has won anything.
        """
        won, near = [], []
        for part in self._parts(*indices.shape):
            stamped = stamp(tuple(p[part] for p in parameters), self.images[indices[part]])
            logits = self.logits(stamped.flatten(0, 1)).view(*stamped.shape[:2], -1)
            wanted = targets[part].to(logits.device)
            won.append(is_won(logits.argmax(2), wanted).float().mean(1))
            near += [
                1 / (1 + cross_entropy(*as_rivals(one, goal)).mean())
                for one, goal in zip(logits, wanted, strict=True)
            ]
        self.forwarded += indices.numel()
        return torch.cat(won), torch.stack(near)

    def _parts(self, n_arms: int, n_images: int) -> Iterator[slice]:
        step = max(1, self.batch_size // n_images)
        for start in range(0, n_arms, step):
            yield slice(start, start + step)
