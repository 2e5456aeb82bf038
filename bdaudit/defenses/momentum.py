"""Stochastic gradient descent with momentum, as torch does it, without torch's optimiser objects.

`torch.optim.SGD` loads torch's compiler at its first step, a second or more that a short training
does not have, and holds its learning rate in Python, which a recorded step would never look at
again. `torch.optim.sgd.sgd` does the arithmetic for both.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.optim.sgd import sgd

__all__ = ["Momentum"]


class Momentum:
    """Moves parameters along what their gradients have summed up to.

    Args:
        parameters: What is moved.
        momentum: Share of the sum that is kept from step to step, in [0, 1).
        weight_decay: Weight of the L2 penalty.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], *, momentum: float, weight_decay: float = 0.0
    ) -> None:
        self.parameters = list(parameters)
        self.sums = [torch.zeros_like(parameter) for parameter in self.parameters]
        self._momentum, self._weight_decay = momentum, weight_decay

    def forget_gradients(self) -> None:
        """Leave no parameter a gradient."""
        for parameter in self.parameters:
            parameter.grad = None

    @torch.no_grad()
    def step(self, rate: float | Tensor) -> None:
        """Take a step; a parameter without a gradient stays.

        Args:
            rate: The learning rate; a tensor () on the parameters' device where it is to be read
                anew by every replay of a recorded step.
        """
        moving = [
            (parameter, parameter.grad, total)
            for parameter, total in zip(self.parameters, self.sums, strict=True)
            if parameter.grad is not None
        ]
        sgd(
            [parameter for parameter, _, _ in moving],
            [gradient for _, gradient, _ in moving],
            [total for _, _, total in moving],
            weight_decay=self._weight_decay,
            momentum=self._momentum,
            lr=rate,
            dampening=0.0,
            nesterov=False,
            maximize=False,
            fused=True if isinstance(rate, Tensor) else None,  # else torch's own choice
        )

    def judged(self, buffers: Sequence[Tensor] = ()) -> list[list[Tensor]]:
        """Return what a replay of a step is judged by: weights, sums, and a model's buffers."""
        floating = [tensor for tensor in buffers if tensor.is_floating_point()]
        groups = [[parameter.detach() for parameter in self.parameters], self.sums, floating]
        return [group for group in groups if group]

    def restart(self) -> None:
        """Forget all that was summed up."""
        for total in self.sums:
            total.zero_()
