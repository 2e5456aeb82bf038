"""A step recorded once as a CUDA graph and replayed, so that a card does not wait for Python.

Source: CUDA graphs as `torch.cuda.graph` offers them. A replay repeats the kernels of the recorded
step on the same memory, so its inputs are copied to where the recording read them, and what it
moves in place stays where it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Recording"]

_NEAR = 0.05
"""Share by which a replay may differ from the same step without a graph, of the largest value."""


@dataclass(frozen=True, slots=True, eq=False)
class Recording:
    """A recorded step.

    Attributes:
        graph: What is replayed.
        inputs: Where the step reads its inputs.
    """

    graph: torch.cuda.CUDAGraph
    inputs: tuple[Tensor, ...]

    @classmethod
    def of(
        cls,
        step: Callable[..., None],
        inputs: Sequence[Tensor],
        *,
        state: Sequence[Tensor],
    ) -> Recording:
        """Record a step that was taken before with inputs of the same shapes.

        The state is afterwards what it was before. What is recorded is a step with other inputs,
        and its replay with these is held against the same step taken without a graph: so a model
        that keeps something in Python from call to call is not taken for what it was once.

        Args:
            step: Reads the inputs, and moves the state in place.
            inputs: On the card.
            state: All that the step moves.

        Raises:
            RuntimeError: The step cannot be recorded, or its replay does something else.
        """
        static = tuple(tensor.clone() for tensor in inputs)
        static[0].copy_(inputs[0].flip(0))
        before = [tensor.clone() for tensor in state]
        side = torch.cuda.Stream(inputs[0].device)  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream(inputs[0].device))
        with torch.cuda.stream(side):  # libraries prepare something for every stream
            step(*inputs)
        torch.cuda.current_stream(inputs[0].device).wait_stream(side)
        expected = [tensor.clone() for tensor in state]
        _put(state, before)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step(*static)
        made = cls(graph, static)
        made.replay(inputs)
        apart = max(
            float((got - want).abs().max() / want.abs().max().clamp_min(1e-12))
            for got, want in zip(state[1:], expected[1:], strict=True)
        )
        _put(state, before)
        if not apart <= _NEAR:
            raise RuntimeError(f"a replay differs from the step itself by {apart:.0%}")
        return made

    def replay(self, inputs: Sequence[Tensor]) -> None:
        """Take the step with other inputs of the same shapes; nothing is waited for."""
        for static, given in zip(self.inputs, inputs, strict=True):
            static.copy_(given)
        self.graph.replay()


def _put(state: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    for tensor, value in zip(state, values, strict=True):
        tensor.copy_(value)
