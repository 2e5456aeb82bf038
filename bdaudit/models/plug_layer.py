"""NPD's defence: a layer of its own, before one convolution of a network that stays as it was.

BackdoorBench writes it as `plug_layer.pt` beside weights that are the undefended model's: a mapping
of `target_layer` (a module's name), `plug_name` (the layer's kind) and `plug_model` (its tensors).
The input of the target layer goes through it first. Source: Zhu, Wei, Zha and Wu, "Neural
Polarizer" (NeurIPS 2023), and the file that BackdoorBench's `npd` writes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from bdaudit.errors import ModelError
from bdaudit.models.checkpoint import ReadFile, demand_finite, read_content, tree_of

__all__ = ["PlugLayer", "plug_in"]

_CONVOLUTIONS = {
    "onlyconv": "c",
    "convbn": "cb",
    "lightconv": "cb",
    "cnn": "cbc",
    "twoconv": "cbcb",
}
"""Kinds of convolutions (c) of one pixel without a bias, and batch norms (b), in their order."""
_SCALES = {"linear": 2, "linear_light": 2, "mlp": 4}
"""Kinds that scale and shift, and how many tensors they have."""
_MOST_CHANNELS = 65536


class _Pointwise(nn.Module):
    """A convolution of one pixel; no `Conv2d`, so that it is no layer of the network's own."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, features: Tensor) -> Tensor:
        return functional.conv2d(features, self.weight)


class _Scales(nn.Module):
    """x w1 + b1; with four tensors relu(x w1 + b1) w2 + b2."""

    def __init__(self, tensors: list[Tensor]) -> None:
        super().__init__()
        self.numbers = nn.ParameterList(nn.Parameter(tensor) for tensor in tensors)

    def forward(self, features: Tensor) -> Tensor:
        first, *rest = self.numbers
        features = features * first + rest[0]
        if len(rest) == 3:
            features = functional.relu(features) * rest[1] + rest[2]
        return features


class PlugLayer(nn.Sequential):
    """What stands before the target layer; features (N, C, H, W) to features of the same shape."""


def _through_plug(layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    plug = layer.plug
    assert isinstance(plug, PlugLayer)
    return (plug(inputs[0]), *inputs[1:])


def plug_in(network: nn.Module, path: Path, notes: list[str]) -> ReadFile:
    """Put the layer that a `plug_layer.pt` holds before its target layer.

    Args:
        network: With the undefended weights; the target layer gets a child `plug` whose parameters
            are the network's own from now on.
        path: The file; nothing in it runs.
        notes: Takes what was done.

    Returns:
        The file as it was read.

    Raises:
        ModelError: It is of another form, or does not fit the network.
    """
    content = read_content(path)
    target, kind, plug = _layer_in(path, tree_of(path, content))
    layer = dict(network.named_modules()).get(target)
    if not isinstance(layer, nn.Conv2d):
        found = "no such layer" if layer is None else f"a {type(layer).__name__}"
        raise ModelError(
            f"{path}: expected the convolution {target[:80]!r}, before which the plug layer goes, "
            f"got {found} in the network"
        )
    channels = {t.shape[0 if t.ndim == 4 and kind in _CONVOLUTIONS else 1] for t in _planes(plug)}
    if channels != {layer.in_channels}:
        raise ModelError(
            f"{path}: expected a layer of {layer.in_channels} channels, as {target!r} takes, got "
            f"{sorted(channels)}"
        )
    layer.plug = plug
    layer.register_forward_pre_hook(_through_plug)
    notes.append(
        f"NPD: the layer of {path.name} ({kind}) put before {target!r}; the network's own weights "
        "are the undefended model's"
    )
    return ReadFile.of(path, content)


def _planes(plug: PlugLayer) -> list[Tensor]:
    return [tensor for tensor in plug.parameters() if tensor.ndim == 4]


def _layer_in(path: Path, tree: Any) -> tuple[str, str, PlugLayer]:
    content = dict(dict.items(tree)) if isinstance(tree, dict) else {}
    target, kind = content.get("target_layer"), content.get("plug_name")
    if not isinstance(target, str) or not isinstance(kind, str):
        raise ModelError(
            f"{path}: expected NPD's plug layer with target_layer, plug_name and plug_model; this "
            "defence works through a layer that cannot be read, and the weights beside it alone "
            "are the undefended model"
        )
    held = content.get("plug_model")
    if kind in _CONVOLUTIONS and isinstance(held, dict):
        tensors = {str(k): v for k, v in dict.items(held) if isinstance(v, Tensor)}
        demand_finite(str(path), tensors)
        return target, kind, _of_convolutions(path, kind, tensors)
    if kind in _SCALES and isinstance(held, list | tuple):
        numbers = [_plain(value) for value in held if isinstance(value, Tensor)]
        demand_finite(str(path), {str(index): number for index, number in enumerate(numbers)})
        if len(numbers) == _SCALES[kind] and all(n.ndim == 4 and n.shape[0] == 1 for n in numbers):
            return target, kind, PlugLayer(_Scales(numbers))
    raise ModelError(
        f"{path}: expected the tensors of one of NPD's layers "
        f"({', '.join([*_CONVOLUTIONS, *_SCALES])}), got {kind[:40]!r} with "
        f"{type(held).__name__}; without it the weights are the undefended model"
    )


def _of_convolutions(path: Path, kind: str, tensors: Mapping[str, Tensor]) -> PlugLayer:
    parts: list[nn.Module] = []
    expected: set[str] = set()
    for place, part in enumerate(_CONVOLUTIONS[kind]):
        weight = tensors.get(f"{place}.weight")
        if weight is None or not 1 <= weight.shape[0] <= _MOST_CHANNELS:
            raise ModelError(f"{path}: expected '{place}.weight' of the plug layer {kind!r}")
        channels = int(weight.shape[0])
        if part == "c":
            if tuple(weight.shape) != (channels, channels, 1, 1):
                raise ModelError(
                    f"{path}: expected a convolution ({channels}, {channels}, 1, 1) in "
                    f"'{place}.weight', got {tuple(weight.shape)}"
                )
            parts.append(_Pointwise(_plain(weight)))
            expected.add(f"{place}.weight")
            continue
        norm = nn.BatchNorm2d(channels)
        names = {name: f"{place}.{name}" for name in norm.state_dict()}
        state = {name: _plain(tensors[full]) for name, full in names.items() if full in tensors}
        try:
            norm.load_state_dict({**norm.state_dict(), **state})
        except RuntimeError as error:
            raise ModelError(f"{path}: expected a batch norm at place {place}: {error}") from error
        # Old files lack the counter, and nothing else.
        if set(names) - set(state) - {"num_batches_tracked"}:
            raise ModelError(f"{path}: expected a whole batch norm at place {place}")
        parts.append(norm)
        expected |= set(names.values())
    if odd := sorted(set(tensors) - expected):
        raise ModelError(f"{path}: unexpected {odd[0][:80]!r} in the plug layer {kind!r}")
    return PlugLayer(*parts)


def _plain(tensor: Tensor) -> Tensor:
    tensor = tensor.detach().as_subclass(Tensor)
    return tensor.float().clone() if tensor.is_floating_point() else tensor.clone()
