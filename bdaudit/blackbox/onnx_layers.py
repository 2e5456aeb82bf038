"""The convolutions of an ONNX file, read as those of a torch network are.

An ONNX file gives scores and nothing else, but any tensor of its graph can be made an output. The
convolutions of the defended model's file are matched with those of the original by size and order,
so that the backdoor existence coefficient can be measured as on two torch models.

Exporters fold a batch norm into the convolution before it. What such a convolution gives is the
*normalised* map, scaled channel by channel, and CKA is not blind to that. So where a file has one
folded in, the torch models are compared with theirs folded in as well.
"""

from __future__ import annotations

import copy
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import fuse_conv_bn_eval

from bdaudit.blackbox.onnx_model import OnnxBlackBox
from bdaudit.errors import ModelError, reads
from bdaudit.models import Classifier, LoadedModel

__all__ = ["OnnxLayers", "fold_batch_norms", "read_onnx_layers"]

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
# How a batch norm that was not folded goes on after the convolution.
_NORMALISING = frozenset({"BatchNormalization", "Mul", "Sub", "Div"})
_ROUNDING = 1e-3  # of the largest score: what folding may change


@dataclass(frozen=True, slots=True)
class OnnxLayers:
    """An ONNX file whose convolutions can be read.

    Attributes:
        network: Images in [0, 1] to raw scores; has a convolution under the name of each of the
            original's, to be hooked as in any network.
        folded: Names of convolution and batch norm of the original that are one in the file.
        note: How the file was read, for the record.
    """

    network: nn.Module
    folded: tuple[tuple[str, str], ...]
    note: str


@dataclass(frozen=True, slots=True)
class _Convolution:
    """One convolution of either side.

    Attributes:
        name: Of the module, or of the tensor in the graph.
        size: Shape of the kernel, groups, and shape of the map: what must agree.
        has_bias: Whether it adds one.
        batch_norm: Of a module: the batch norm that takes its map, if there is one.
        normalised: Of a graph: whether its map goes into something like a batch norm.
    """

    name: str
    size: Hashable
    has_bias: bool
    batch_norm: str | None = None
    normalised: bool = False


@reads(ModelError)
def read_onnx_layers(black_box: OnnxBlackBox, original: LoadedModel) -> OnnxLayers:
    """Make the convolutions of an ONNX file readable under the names the original gives them.

    Counts no query: this looks into a file that is at hand.

    Args:
        black_box: The defended model's file.
        original: The model it was made from; left as it is.

    Raises:
        ModelError: The file has other convolutions than the original, or cannot be run with their
            maps as outputs.
    """
    grey = torch.full((1, *black_box.image_shape), 0.5)
    model = black_box.load_graph()
    nodes = [node for node in model.graph.node if node.op_type == "Conv"]
    session = black_box.open_with_outputs(model, [node.output[0] for node in nodes])
    tapped = _TappedOnnx(black_box, session)
    maps = tapped.read([node.output[0] for node in nodes], grey)
    consumers: defaultdict[str, set[str]] = defaultdict(set)
    for node in model.graph.node:
        for name in node.input:
            consumers[name].add(node.op_type)
    kernels = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    # A quantised kernel (QDQ) goes through a node of its own, which keeps its shape.
    quantised = {
        node.output[0]: kernels[node.input[0]]
        for node in model.graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in kernels
    }
    kernels |= quantised
    found = [
        _Convolution(
            name=node.output[0],
            size=_size(kernels.get(node.input[1]), _attribute(node, "group", 1), map_),
            has_bias=len(node.input) > 2 and node.input[2] != "",
            normalised=not consumers[node.output[0]].isdisjoint(_NORMALISING),
        )
        for node, map_ in zip(nodes, maps, strict=True)
    ]
    pairs = _match(_convolutions_of(original, grey), found, f"{black_box.path}")
    folded = tuple(
        (own.name, own.batch_norm) for own, other in pairs if own.batch_norm and _folds(own, other)
    )
    for own, other in pairs:
        tapped.add(own.name, other.name)
    note = f"its {len(pairs)} convolutions were matched with the original's by size and order"
    n_quantised = sum(node.input[1] in quantised for node in nodes)
    if n_quantised:
        note += (
            f"; {n_quantised} have kernels of 8 bits (QDQ), and their maps are read before "
            "they are rounded"
        )
    if folded:
        note += (
            f"; {len(folded)} have a batch norm folded in, and for BEC the other models had theirs "
            "folded in as well"
        )
    return OnnxLayers(tapped.eval(), folded, note)


def fold_batch_norms(model: LoadedModel, pairs: Sequence[tuple[str, str]]) -> nn.Module:
    """Return a copy of a classifier with batch norms folded into the convolutions before them.

    Args:
        model: Left as it is.
        pairs: Names of convolution and batch norm, as `OnnxLayers.folded` has them.

    Raises:
        ModelError: It has no such layers, or would answer otherwise afterwards.
    """
    classifier = copy.deepcopy(model.classifier)
    network = classifier.network if isinstance(classifier, Classifier) else classifier
    modules = dict(network.named_modules())
    for convolution, batch_norm in pairs:
        one, other = modules.get(convolution), modules.get(batch_norm)
        if not (isinstance(one, _CONVOLUTIONS) and isinstance(other, _BATCH_NORMS)):
            raise ModelError(
                f"{model.name}: expected the convolution {convolution} and the batch norm "
                f"{batch_norm} behind it, as in the original"
            )
        network.set_submodule(convolution, fuse_conv_bn_eval(one, other))
        network.set_submodule(batch_norm, nn.Identity())
    device = next((p.device for p in classifier.parameters()), torch.device("cpu"))
    draw = torch.Generator().manual_seed(0)
    images = torch.rand((4, *model.image_shape), generator=draw).to(device)
    with torch.inference_mode():
        before, after = model.classifier(images), classifier(images)
    if float((before - after).abs().max()) > _ROUNDING * float(before.abs().max().clamp_min(1)):
        raise ModelError(
            f"{model.name}: cannot be compared with a file whose batch norms are folded: it gives "
            "other answers with its own folded in"
        )
    return classifier.requires_grad_(False)


class _Relay(nn.Conv2d):
    """Stands for a convolution that was computed elsewhere: gives back its map as it is."""

    def __init__(self) -> None:
        nn.Module.__init__(self)  # no weights of its own

    def forward(self, map_: Tensor) -> Tensor:
        return map_

    def extra_repr(self) -> str:
        return "computed by onnxruntime"


class _TappedOnnx(nn.Module):
    """Runs a session, and passes the maps it gives through relays that can be hooked."""

    def __init__(self, black_box: OnnxBlackBox, session: Any) -> None:
        super().__init__()
        self._black_box = black_box
        self._session = session
        self._relays: dict[str, _Relay] = {}  # by the name of the tensor, in order of the graph

    def add(self, layer: str, tensor: str) -> None:
        """Give the map `tensor` the name of a layer, dots and all."""
        *path, last = layer.split(".")
        place: nn.Module = self
        for part in path:
            if part not in dict(place.named_children()):
                place.add_module(part, nn.Module())
            place = cast(nn.Module, getattr(place, part))
        relay = _Relay()
        place.add_module(last, relay)
        self._relays[tensor] = relay

    def read(self, names: Sequence[str], images: Tensor) -> list[Tensor]:
        """Return the tensors of these names for images (N, C, H, W) in [0, 1], float32."""
        ask = self._black_box.run_session
        parts = [
            [tensor[: len(batch)] for tensor in ask(self._session, names, batch)]
            for batch in torch.split(images.float().cpu(), self._black_box.batch_size)
        ]
        return [
            torch.from_numpy(np.concatenate(columns).astype(np.float32, copy=False))
            for columns in zip(*parts, strict=True)
        ]

    def forward(self, images: Tensor) -> Tensor:
        # Only what somebody waits for is computed and copied.
        wanted = [t for t, relay in self._relays.items() if relay._forward_hooks]
        *maps, scores = self.read([*wanted, self._black_box.output_name], images)
        for tensor, map_ in zip(wanted, maps, strict=True):
            self._relays[tensor](map_.to(images.device))
        return scores.to(images.device)


def _convolutions_of(original: LoadedModel, image: Tensor) -> list[_Convolution]:
    """List the convolutions of a torch model in the order in which they run."""
    order: list[tuple[str, nn.Module, Tensor]] = []
    behind: dict[str, str] = {}

    def after(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        return lambda module, _, output: order.append((name, module, output))

    def before(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def note(_: nn.Module, given: tuple[Tensor, ...]) -> None:
            for convolution, _module, output in order:
                if output is given[0]:
                    behind.setdefault(convolution, name)

        return note

    handles = []
    for name, module in original.network.named_modules():
        if isinstance(module, _CONVOLUTIONS):
            handles.append(module.register_forward_hook(after(name)))
        elif isinstance(module, _BATCH_NORMS):
            handles.append(module.register_forward_pre_hook(before(name)))
    device = next((p.device for p in original.classifier.parameters()), torch.device("cpu"))
    try:
        with torch.inference_mode():
            original.classifier(image.to(device))
    finally:
        for handle in handles:
            handle.remove()
    return [
        _Convolution(
            name=name,
            size=_size(tuple(cast(Tensor, module.weight).shape), module.groups, output),
            has_bias=module.bias is not None,
            batch_norm=behind.get(name),
        )
        for name, module, output in order
    ]


def _size(kernel: Sequence[int] | None, groups: object, map_: Tensor) -> Hashable:
    return None if kernel is None else tuple(kernel), groups, tuple(map_.shape[1:])


def _match(
    wanted: Sequence[_Convolution], found: Sequence[_Convolution], subject: str
) -> list[tuple[_Convolution, _Convolution]]:
    """Pair convolutions of one size in their order; those of other sizes do not disturb it.

    So the two branches of a residual block are told apart whichever was written first.

    Raises:
        ModelError: There are not equally many of every size.
    """
    counts = Counter(c.size for c in wanted), Counter(c.size for c in found)
    if counts[0] != counts[1]:
        odd = next(iter((counts[0] - counts[1]) + (counts[1] - counts[0])))
        raise ModelError(
            f"{subject}: expected the {len(wanted)} convolutions of the original, got "
            f"{len(found)}: {counts[0][odd]} in the original and {counts[1][odd]} in the file have "
            f"kernel, groups and map {odd}; is it the same architecture, neither quantised nor "
            "rewritten?"
        )
    waiting: defaultdict[Hashable, list[_Convolution]] = defaultdict(list)
    for convolution in found:
        waiting[convolution.size].append(convolution)
    return [(own, waiting[own.size].pop(0)) for own in wanted]


def _folds(own: _Convolution, other: _Convolution) -> bool:
    """Whether the batch norm behind `own` is inside `other`.

    A folded one leaves a bias; where `own` has a bias too, what follows in the graph tells.
    """
    return other.has_bias and (not own.has_bias or not other.normalised)


def _attribute(node: Any, name: str, default: int) -> int:
    values: Mapping[str, int] = {a.name: a.i for a in node.attribute}
    return int(values.get(name, default))
