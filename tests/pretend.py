"""A pretended CUDA device: tensors that claim to lie on a card and are computed on the processor.

Without a card nothing tells whether code keeps its tensors on one device. Here `cuda` tensors are
a subclass that holds the real values, so loops, branches and `.item()` work as ever; and what a
card refuses is refused: an operation on tensors of both devices, a generator of the processor for
numbers drawn on the card, `.numpy()` of what lies there. What cannot be seen this way: kernels,
memory, speed, rounding, and what the backward pass mixes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest import mock

import torch
import torch._dynamo  # it must not be imported first while functions of torch are replaced
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

__all__ = ["CARD", "WrongDeviceError", "pretended_card", "traffic"]

CARD = torch.device("cuda", 0)

_aten = torch.ops.aten
_INDEXES = {
    _aten.index.Tensor, _aten.index_put.default, _aten.index_put_.default,
    _aten._unsafe_index.Tensor, _aten._index_put_impl_.default,
}  # fmt: skip
"""What may take indices that lie on the processor."""


class WrongDeviceError(AssertionError):
    """Something that a card would have refused."""


class OnCard(Tensor):
    """A tensor that says it lies on the card; its values are those of `held`, on the processor."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> OnCard:
        made: OnCard = Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            layout=held.layout,
            device=held.device,
            requires_grad=held.requires_grad,
        )
        made.held = held
        return made

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return CARD

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        return True

    def numpy(self, *, force: bool = False) -> Any:
        if not force:
            raise WrongDeviceError("numpy() of a tensor on the card: call .cpu() first")
        return self.held.detach().numpy()

    def data_ptr(self) -> int:
        return self.held.data_ptr()

    def tolist(self) -> Any:
        return self.held.tolist()

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        if id(self) not in memo:
            made: Tensor = OnCard(self.held.detach().clone())
            if isinstance(self, torch.nn.Parameter):
                made = torch.nn.Parameter(made, requires_grad=self.requires_grad)
            memo[id(self)] = made
        copied: Tensor = memo[id(self)]
        return copied

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if self.dim() == 0 else super().__format__(spec)

    def __repr__(self, *, tensor_contents: object = None) -> str:
        return f"OnCard({self.held!r})"

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return _run(func, args, kwargs or {})


class _ToCard(torch.autograd.Function):
    """Moves a tensor there, and its gradient back."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:  # type: ignore[override]
        return OnCard(tensor.detach().clone())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return gradient.held if isinstance(gradient, OnCard) else gradient


class _ToProcessor(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: OnCard) -> Tensor:  # type: ignore[override]
        return tensor.held.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return gradient if isinstance(gradient, OnCard) else OnCard(gradient)


_to = Tensor.to


def _moved(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """`Tensor.to`, which knows of both devices."""
    if args and isinstance(args[0], Tensor):
        args = (args[0].device, args[0].dtype, *args[1:])
    copy = kwargs.pop("copy", False)
    device, dtype, _, memory_format = torch._C._nn._parse_to(*args, **kwargs)
    there = isinstance(tensor, OnCard)
    if device is not None and (device.type == "cuda") != there:
        tensor = _ToProcessor.apply(tensor) if there else _ToCard.apply(tensor)
    dtype = tensor.dtype if dtype is None else dtype
    if memory_format is not None:
        return _to(tensor, dtype=dtype, memory_format=memory_format, copy=copy)
    return _to(tensor, dtype=dtype, copy=copy)


def _made_by(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`torch.tensor` or its like, which asks for a driver before anything can be dispatched."""

    def made(*args: Any, device: Any = None, **kwargs: Any) -> Tensor:
        tensor = make(*args, **kwargs)
        return tensor if device is None else tensor.to(device)

    return made


def _both_here(one: Tensor, other: Tensor) -> bool:
    return not isinstance(one, OnCard) and not isinstance(other, OnCard)


class _Card(TorchDispatchMode):
    """Sees also what is made on the card, where no argument lies there yet."""

    def __torch_dispatch__(
        self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, Tensor)]
    if (wanted := kwargs.get("device")) is not None:
        on_card = torch.device(wanted).type == "cuda"
        if torch._C._current_graph_task_id() != -1:
            # The backward pass asks for the device that the shells are really on.
            on_card = on_card or any(isinstance(x, OnCard) for x in tensors)
        kwargs = {**kwargs, "device": torch.device("cpu")}
    elif func is _aten.copy_.default:  # which takes tensors of both devices
        on_card = isinstance(args[0], OnCard)
    else:
        on_card = any(isinstance(x, OnCard) for x in tensors)
        _check(func, args, tensors)
    if on_card and isinstance(kwargs.get("generator"), torch.Generator):
        raise WrongDeviceError(f"{func}: drawn on the card by a generator of the processor")
    told = func(*tree_map(_unwrapped, args), **tree_map(_unwrapped, kwargs))
    return tree_map(lambda x: _put(x, args, on_card=on_card), told)


def _put(value: Any, args: Iterable[Any], *, on_card: bool) -> Any:
    """Wrap what came out; what was changed in place stays the object it was."""
    if not isinstance(value, Tensor):
        return value
    for argument in tree_flatten(tuple(args))[0]:
        if isinstance(argument, OnCard) and argument.held is value:
            return argument
        if argument is value:
            return value
    return OnCard(value) if on_card and not isinstance(value, OnCard) else value


def _unwrapped(value: Any) -> Any:
    return value.held if isinstance(value, OnCard) else value


def _check(func: Any, args: tuple[Any, ...], tensors: list[Tensor]) -> None:
    if not any(isinstance(x, OnCard) for x in tensors):
        return
    if torch._C._current_graph_task_id() != -1:
        return  # the backward pass itself makes zeros where the processor's tensors would lie
    if func in _INDEXES:
        if not isinstance(args[0], OnCard):
            raise WrongDeviceError(f"{func}: a tensor on the processor, indexed from the card")
        tensors = [x for x in (args[0], *args[2:]) if isinstance(x, Tensor)]
    for tensor in tensors:
        if not isinstance(tensor, OnCard) and tensor.dim() > 0:
            raise WrongDeviceError(
                f"{func}: tensors on both devices, one of them {tuple(tensor.shape)} on the "
                "processor"
            )


def _without_gradients(mode: Any) -> None:
    """In the place of inference mode, which a subclass of tensors does not bear."""
    mode.gradients_before = torch.is_grad_enabled()
    torch.set_grad_enabled(False)


def _as_before(mode: Any, *_: object) -> None:
    torch.set_grad_enabled(mode.gradients_before)


@contextmanager
def pretended_card() -> Iterator[torch.device]:
    """Pretend that there is one card, as long as this lasts; gives its device."""
    nothing: Callable[..., None] = lambda *_, **__: None  # noqa: E731
    answers: dict[str, Any] = {
        "_lazy_init": nothing,
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "get_rng_state": lambda *_: torch.zeros(0, dtype=torch.uint8),
        "manual_seed": nothing,
        "manual_seed_all": nothing,
        "set_rng_state": nothing,
        "synchronize": nothing,
        "empty_cache": nothing,
        "reset_peak_memory_stats": nothing,
        "max_memory_allocated": lambda *_: 0,
        "get_device_name": lambda *_: "a pretended card",
        "mem_get_info": lambda *_: (2**33, 2**33),
        "is_bf16_supported": lambda *_, **__: True,
    }
    with (
        mock.patch.multiple(torch.cuda, **answers),
        mock.patch.object(
            torch.optim.Optimizer, "_accelerator_graph_capture_health_check", nothing
        ),
        mock.patch.multiple(
            torch.inference_mode, __enter__=_without_gradients, __exit__=_as_before
        ),
        mock.patch.object(Tensor, "to", _moved),
        mock.patch.object(Tensor, "cuda", lambda tensor, *_, **__: tensor.to(CARD)),
        mock.patch.object(Tensor, "cpu", lambda tensor, *_, **__: tensor.to("cpu")),
        mock.patch.object(torch, "tensor", _made_by(torch.tensor)),
        mock.patch.object(torch, "as_tensor", _made_by(torch.as_tensor)),
        # Else `module.to` puts the shell of a tensor into a parameter, and loses its values.
        mock.patch.object(torch, "_has_compatible_shallow_copy_type", _both_here),
        _Card(),
    ):
        yield CARD


# -- CUDA graphs --------------------------------------------------------------------------------

_WAITING = {
    _aten._local_scalar_dense.default, _aten.nonzero.default, _aten.masked_select.default,
    _aten.is_nonzero.default, _aten.equal.default,
}  # fmt: skip
"""What makes Python wait for the card, which no recording bears."""


class Traffic(TorchDispatchMode):
    """What passes between Python and a pretended card.

    Attributes:
        waits: What Python waited for, one name a time.
        sent: The shapes of the tensors that were moved to the card.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []
        self.sent: list[tuple[int, ...]] = []

    def __torch_dispatch__(
        self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func in _WAITING and any(isinstance(x, OnCard) for x in tree_flatten(args)[0]):
            self.waits.append(str(func))
        return func(*args, **(kwargs or {}))


@contextmanager
def traffic() -> Iterator[Traffic]:
    """Count, within `pretended_card`, what Python waits for and what is sent to the card."""
    seen, to, tolist = Traffic(), Tensor.to, OnCard.tolist

    def moved(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        result = to(tensor, *args, **kwargs)
        if isinstance(tensor, OnCard) and not isinstance(result, OnCard):
            seen.waits.append("moved to the processor")
        elif isinstance(result, OnCard) and not isinstance(tensor, OnCard):
            seen.sent.append(tuple(tensor.shape))
        return result

    def listed(tensor: OnCard) -> Any:
        seen.waits.append("tolist")
        return tolist(tensor)

    with (
        mock.patch.object(Tensor, "to", moved),
        mock.patch.object(OnCard, "tolist", listed),
        seen,
    ):
        yield seen


class PretendedGraph:
    """What a recording keeps: every operation with the tensors it read and made."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []
        self.n_replays = 0

    @torch.no_grad()
    def replay(self) -> None:
        """Do every operation again, on the same memory."""
        self.n_replays += 1
        for func, args, kwargs, made in self.calls:
            again = func(*args, **kwargs)
            if not _is_written(func):
                for old, new in zip(tree_flatten(made)[0], tree_flatten(again)[0], strict=True):
                    if isinstance(old, Tensor):
                        old.copy_(new)


class _Recording(TorchDispatchMode):
    """Writes down what is done meanwhile, and undoes it: a recording does nothing yet."""

    def __init__(self, graph: PretendedGraph) -> None:
        super().__init__()
        self.graph = graph
        self.before: list[tuple[Tensor, Tensor]] = []

    def __torch_dispatch__(
        self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        by_truth = func in _INDEXES and any(
            isinstance(x, Tensor) and x.dtype == torch.bool for x in args[1]
        )
        if func in _WAITING or by_truth:
            raise RuntimeError(f"{func}: operation not permitted when stream is capturing")
        self.before += [(tensor, tensor.clone()) for tensor in _written(func, args)]
        made = func(*args, **kwargs)
        if not _is_view(func):
            self.graph.calls.append((func, args, kwargs, made))
        return made


def _is_written(func: Any) -> bool:
    return any(
        argument.alias_info is not None and argument.alias_info.is_write
        for argument in func._schema.arguments
    )


def _written(func: Any, args: tuple[Any, ...]) -> list[Tensor]:
    """The tensors that an operation changes."""
    changed = [
        value
        for argument, value in zip(func._schema.arguments, args, strict=False)
        if argument.alias_info is not None and argument.alias_info.is_write
    ]
    if func is _aten.native_batch_norm.default and args[5]:
        changed += args[3:5]  # of which its schema says nothing
    return [x for x in tree_flatten(changed)[0] if isinstance(x, Tensor)]


def _is_view(func: Any) -> bool:
    returned = func._schema.returns[:1]
    aliased = bool(returned and returned[0].alias_info is not None)
    return aliased and not _is_written(func)


@contextmanager
def pretended_graphs() -> Iterator[list[PretendedGraph]]:
    """Pretend that CUDA graphs can be recorded, on any device; gives those that were."""
    made: list[PretendedGraph] = []

    def begin() -> PretendedGraph:
        made.append(PretendedGraph())
        return made[-1]

    @contextmanager
    def recorded(graph: PretendedGraph, stream: object = None) -> Iterator[None]:
        recording = _Recording(graph)

        def waits(*_: object, **__: object) -> Any:
            raise RuntimeError("operation not permitted when stream is capturing")

        waiting = dict.fromkeys(("tolist", "numpy", "cpu"), waits)
        try:
            with mock.patch.multiple(Tensor, **waiting), recording:
                yield
        finally:
            with torch.no_grad():
                for tensor, value in reversed(recording.before):
                    tensor.copy_(value)

    stream = mock.MagicMock(name="stream")
    with mock.patch.multiple(
        torch.cuda,
        CUDAGraph=begin,
        graph=recorded,
        device=lambda _: nullcontext(),
        set_stream=lambda _: None,
        Stream=lambda *_: stream,
        stream=lambda _: nullcontext(),
        current_stream=lambda *_: stream,
    ):
        yield made
