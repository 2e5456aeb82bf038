"""Which layers the coefficient looks at, chosen by what they are and by name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase

from torch import nn

from bdaudit.detection.candidates import kind_of
from bdaudit.errors import ModelError
from bdaudit.models.classifier import Classifier
from bdaudit.models.shortcuts import is_on_shortcut

__all__ = ["READABLE", "network_of", "select_layers"]

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)

READABLE = (*_CONVOLUTIONS, nn.Linear, nn.MultiheadAttention)
"""Kinds of module whose output has a known channel axis."""

_STEM_PARTS = frozenset({"stem", "patch_embed", "conv_proj"})
_ATTENTION_OUTPUTS = (
    "*attn.proj",  # timm
    "*attn.c_proj",
    "*attn.out_proj",
    "*attention.out_proj",
    "*attention.output.dense",
    "*attention.o_proj",  # transformers
    "*attn.o_proj",
    "*.to_out",
    "*.to_out.0",
)
# The last layer of an MLP whose layers stand in the block itself: of transformers, where a block's
# `output.dense` follows its `intermediate.dense`, and of ConvNeXt.
_MLP_OUTPUTS = ("*.output.dense", "*.pwconv2")
_MLP_PARTS = ("mlp", "ffn", "feed_forward")


def network_of(model: nn.Module) -> nn.Module:
    """Return the bare network, whose layer names are those of the checkpoint."""
    return model.network if isinstance(model, Classifier) else model


def select_layers(
    network: nn.Module, *, include: Sequence[str] = (), exclude: Sequence[str] = ()
) -> tuple[str, ...]:
    """Name the layers to compare, in the order in which the network registers them.

    Without `include` these are: every convolution except the stem (the first convolution,
    whatever is called `stem`, `patch_embed` or `conv_proj`, and the three that a CLIP's ResNet has
    before its first block) and those on shortcut paths; every
    attention output projection (`nn.MultiheadAttention` as a whole, since its fused path never
    calls `out_proj`); and the last linear layer of every transformer MLP. Of a detector it is those
    of the backbone: its heads run once for every size of map, or for every proposal.

    Args:
        network: The bare network; see `network_of`.
        include: Shell patterns over full layer names. Where given, they alone choose, among all
            convolutions, linear layers and attention modules.
        exclude: Shell patterns of layers to leave out, of either choice.

    Returns:
        At least one layer name.

    Raises:
        ModelError: Nothing is left.
    """
    readable = _readable_modules(network)
    if include:
        for pattern in include:
            if not any(fnmatchcase(name, pattern) for name in readable):
                some = ", ".join(list(readable)[:8]) or "none"
                raise ModelError(
                    f"no layer of {type(network).__name__} is called {pattern!r}; it has these "
                    f"convolutions, linear and attention layers: {some}"
                )
        chosen = {name for name in readable if _matches(name, include)}
    else:
        chosen = {*_trunk_convolutions(network, readable), *_transformer_outputs(network, readable)}
        if kind_of(network) is not None:
            chosen = {name for name in chosen if name.startswith("backbone.")}
    layers = tuple(name for name in readable if name in chosen and not _matches(name, exclude))
    if not layers:
        some = ", ".join(list(readable)[:8]) or "none"
        raise ModelError(
            f"no layer to compare in {type(network).__name__} with include={tuple(include)} and "
            f"exclude={tuple(exclude)}; it has these convolutions, linear and attention layers: "
            f"{some}; choose some by pattern"
        )
    return layers


def _readable_modules(network: nn.Module) -> dict[str, nn.Module]:
    """Modules with a known channel axis; not the `out_proj` that no attention module calls."""
    modules = dict(network.named_modules())
    return {
        name: module
        for name, module in modules.items()
        if isinstance(module, READABLE)
        and not (name and isinstance(modules[name.rpartition(".")[0]], nn.MultiheadAttention))
    }


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _trunk_convolutions(network: nn.Module, readable: dict[str, nn.Module]) -> Iterator[str]:
    """Convolutions behind the stem and not on a shortcut path."""
    names = [name for name, module in readable.items() if isinstance(module, _CONVOLUTIONS)]
    # open_clip's name for the ResNet of Radford et al. (2021), whose stem has three convolutions.
    deep = [n for n, m in network.named_modules() if type(m).__name__ == "ModifiedResNet"]
    for name in names[1:]:
        parts = set(name.lower().split("."))
        outside = name.rpartition(".")[0] in deep or parts & _STEM_PARTS or is_on_shortcut(name)
        if not outside:
            yield name


def _transformer_outputs(network: nn.Module, readable: dict[str, nn.Module]) -> Iterator[str]:
    """Layers whose output a transformer block adds to its residual stream."""
    for name, module in network.named_modules():
        last_part = name.rpartition(".")[2]
        if isinstance(module, nn.MultiheadAttention) or (
            isinstance(module, nn.Linear) and _matches(name, (*_ATTENTION_OUTPUTS, *_MLP_OUTPUTS))
        ):
            yield name
        elif isinstance(module, (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)):
            yield f"{name}.linear2" if name else "linear2"
        elif last_part.startswith(_MLP_PARTS) and "head" not in last_part:
            inside = [
                inner
                for inner, candidate in readable.items()
                if inner.startswith(name + ".") and isinstance(candidate, nn.Linear)
            ]
            yield from inside[-1:]
