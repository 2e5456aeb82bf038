"""A step of fixed shapes, recorded as a CUDA graph and replayed: a card does not wait for Python.

Source: CUDA graphs as `torch.cuda.graph` offers them. A replay repeats the kernels of the recorded
step on the same memory, so its inputs are copied to where the recording read them, and what it
moves in place stays where it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

__all__ = ["Answers", "Recording", "Replayed"]

_NEAR = 0.05
"""How far a replay may end from the same step without a graph, as a share of the step."""

_ROUNDING = 2.0**-23
"""Of float32, relative: what a small step on large values differs by anyhow."""

_WARM_UP = 3
"""Times a step is taken before it is recorded, in which libraries choose and load kernels."""

_LARGE = 2**26
"""Bytes of images that fill a card without replays, and whose activations fill its memory."""

_Shapes = tuple[tuple[int, ...], ...]


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
        judged: Sequence[Sequence[Tensor]],
    ) -> Recording:
        """Record a step that was taken before with inputs of the same shapes.

        The state is afterwards what it was before, also on failure. What is recorded is a step with
        other inputs, and its replay with these is held against the same step taken without a graph:
        so a model that keeps something in Python from call to call is not taken for what it was
        once.

        Args:
            step: Reads the inputs, and moves the state in place.
            inputs: On the card.
            state: All that the step moves.
            judged: What of it a replay is judged by, in floating point, group by group: a group
                that moves little is not hidden by one that moves much.

        Raises:
            RuntimeError: The step cannot be recorded, or its replay does something else.
        """
        device = inputs[0].device
        static = tuple(map(_another, inputs))
        before, there = _copied(state), [_copied(group) for group in judged]
        stream = torch.cuda.current_stream(device)
        side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        with torch.cuda.device(device):  # else the current one records, and sees nothing
            try:
                side.wait_stream(stream)
                with torch.cuda.stream(side):  # libraries prepare something for every stream
                    step(*inputs)
                stream.wait_stream(side)
                expected = [_copied(group) for group in judged]
                _put(state, before)
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph, stream=side):
                    step(*static)
                if any(float(_distance(*pair)) != 0.0 for pair in zip(judged, there, strict=True)):
                    raise RuntimeError("the step was taken and not recorded")
                made = cls(graph, static)
                made.replay(inputs)
                groups = zip(judged, expected, there, strict=True)
                apart = max((_apart(*group) for group in groups), default=0.0)
            finally:
                # A failed recording leaves its own stream as the current one.
                torch.cuda.set_stream(stream)
                stream.wait_stream(side)
                _put(state, before)
        if not apart <= _NEAR:
            raise RuntimeError(f"a replay differs from the step itself by {apart:.0%}")
        return made

    def replay(self, inputs: Sequence[Tensor]) -> None:
        """Take the step with other inputs of the same shapes; nothing is waited for."""
        for static, given in zip(self.inputs, inputs, strict=True):
            static.copy_(given)
        self.graph.replay()


@dataclass(slots=True, eq=False)
class Replayed:
    """A step that is taken as it is a few times, then recorded, and replayed from then on.

    What cannot be recorded, and what a replay does otherwise, is taken as it is for ever.

    Attributes:
        step: Reads the inputs it is given, and moves the state in place. It waits for nothing, and
            all that changes from one call to the next is in its inputs and in the state.
        state: Gives all that it moves, once it was taken.
        judged: Gives what of that a replay is judged by, in groups, as in `Recording.of`.
        after: Times that it is taken before it is recorded, shape by shape; `None` records never.
        must_fit: Whether memory that runs out while it is recorded is raised, for somebody who can
            do with less, rather than a reason not to replay.
        why_not: Why it is not replayed though it was to be, once that is known.
    """

    step: Callable[..., None]
    state: Callable[[], Sequence[Tensor]]
    judged: Callable[[], Sequence[Sequence[Tensor]]]
    after: int | None = _WARM_UP
    must_fit: bool = False
    why_not: str | None = None
    _taken: dict[_Shapes, int] = field(default_factory=dict)
    _recordings: dict[_Shapes, Recording] = field(default_factory=dict)

    def __call__(self, *inputs: Tensor) -> None:
        """Take the step; on a card nothing waits for it."""
        shapes = tuple(tuple(tensor.shape) for tensor in inputs)
        taken = self._taken.get(shapes, 0)
        if taken == self.after and self.why_not is None:
            self._record(shapes, inputs)
        self._taken[shapes] = taken + 1
        recording = self._recordings.get(shapes)
        if recording is None:
            self.step(*inputs)
        else:
            recording.replay(inputs)

    @property
    def may_replay(self) -> bool:
        """Whether steps are, or are still to be, replayed."""
        return self.after is not None and self.why_not is None

    def _record(self, shapes: _Shapes, inputs: Sequence[Tensor]) -> None:
        try:
            self._recordings[shapes] = Recording.of(
                self.step, inputs, state=self.state(), judged=self.judged()
            )
        except torch.OutOfMemoryError:
            if self.must_fit:
                raise
            self.why_not = "too little memory"
        except Exception as error:  # the same step without a graph follows, and raises what is real
            self.why_not = str(error).strip().partition("\n")[0] or type(error).__name__


class Answers:
    """A classifier whose forward passes are replayed, for asking it again and again on a card.

    Its weights may change between calls, in place.

    Args:
        classifier: Maps (n, C, H, W) to logits (n, K) without waiting for the card.
    """

    def __init__(self, classifier: nn.Module) -> None:
        self._classifier = classifier
        self._asked: dict[tuple[int, ...], tuple[Tensor, Replayed]] = {}

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """Return the logits (n, K)."""
        if images.nbytes > _LARGE:
            answers: Tensor = self._classifier(images)
            return answers
        shape = tuple(images.shape)
        if shape not in self._asked:
            first: Tensor = self._classifier(images)
            self._asked[shape] = _asking(self._classifier, torch.zeros_like(first))
            return first
        logits, ask_again = self._asked[shape]
        logits.zero_()  # so that a replay is judged by all of its answers
        ask_again(images)
        return logits.clone()


def _asking(classifier: nn.Module, logits: Tensor) -> tuple[Tensor, Replayed]:
    """Return logits, and what fills them; apart from `Answers`, whose graphs then go with it."""

    def ask(batch: Tensor) -> None:
        logits.copy_(classifier(batch))

    return logits, Replayed(ask, lambda: (logits,), lambda: ((logits,),), after=_WARM_UP - 1)


def _another(tensor: Tensor) -> Tensor:
    """Return a tensor of the same shape that holds something else."""
    return torch.zeros_like(tensor) if tensor.ndim == 0 else tensor.roll(1, 0)


def _copied(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [tensor.detach().clone() for tensor in tensors]


def _put(state: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    with torch.no_grad():
        for tensor, value in zip(state, values, strict=True):
            tensor.copy_(value)


def _apart(found: Sequence[Tensor], expected: Sequence[Tensor], before: Sequence[Tensor]) -> float:
    """Return how far a replay ended from the step, as a share of the step; rounding left out."""
    rounding = _ROUNDING * float(_distance(expected, [torch.zeros_like(t) for t in expected]))
    step = float(_distance(before, expected))
    return max(0.0, float(_distance(found, expected)) - rounding) / max(step, 1e-12)


def _distance(first: Sequence[Tensor], second: Sequence[Tensor]) -> Tensor:
    """Return the Euclidean distance of all values together."""
    squares = [
        (a.detach().float() - b.float()).square().sum(dtype=torch.float64)
        for a, b in zip(first, second, strict=True)
    ]
    return torch.stack(squares).sum().sqrt()
