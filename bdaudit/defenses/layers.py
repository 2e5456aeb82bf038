"""Find the layers that a defence treats specially: the classifier head, the last features."""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor, nn

from bdaudit.errors import ModelError
from bdaudit.models import ZeroShotNetwork, is_on_shortcut
from bdaudit.scoring import evaluating

__all__ = ["Weighted", "classifier_head", "hidden_layers", "last_feature_layer", "logit_head"]

Weighted: TypeAlias = nn.Linear | nn.Conv2d
"""A layer whose weight has one row an output channel."""


def classifier_head(classifier: nn.Module) -> nn.Linear:
    """Return the linear layer that gives the logits: the last one of the network.

    Raises:
        ModelError: There is none.
    """
    if _is_zero_shot(classifier):
        raise ModelError(
            "expected a network that ends in a linear layer, got a CLIP, whose logits are cosines "
            "with fixed text embeddings; use a defence that needs no head, such as fine-tuning"
        )
    linear = _linear_layers(classifier)
    if not linear:
        raise ModelError(
            "expected a network that ends in a linear layer, found no linear layer at all; use a "
            "defence that needs none, such as fine-tuning"
        )
    return linear[-1]


def logit_head(classifier: nn.Module, images: Tensor, title: str) -> nn.Linear:
    """Return the linear layer that the logits come out of.

    Args:
        classifier: Maps images to logits.
        images: One or more that it takes, on any device.
        title: The defence that asks.

    Raises:
        ModelError: The last linear layer does not give the logits, or there is none.
    """
    head = classifier_head(classifier)
    device = next(classifier.parameters()).device
    with evaluating(classifier), torch.no_grad():
        num_classes = classifier(images[:1].to(device)).shape[1]
    if head.out_features != num_classes:
        raise ModelError(
            f"{title}: expected the last linear layer to give the {num_classes} logits, got one "
            f"with {head.out_features} outputs; use another defence"
        )
    return head


def last_feature_layer(classifier: nn.Module) -> Weighted:
    """Return the last convolution, or without convolutions past the stem the last hidden layer.

    In a transformer the only convolution embeds the patches, and the last hidden layer is the
    output projection of the last MLP. That is the last linear layer of all in a CLIP's, which has
    no head.

    Raises:
        ModelError: There is no such layer.
    """
    convolutions = [part for part in classifier.modules() if isinstance(part, nn.Conv2d)]
    if len(convolutions) > 1:
        return convolutions[-1]
    linear = _linear_layers(classifier)
    if len(linear) > 1:
        return linear[-1] if _is_zero_shot(classifier) else linear[-2]
    raise ModelError(
        "expected a network with two convolutions or two linear layers, so that features can be "
        "pruned; use a defence that prunes nothing, such as fine-tuning"
    )


def hidden_layers(classifier: nn.Module) -> list[Weighted]:
    """List the convolutions that are on no shortcut path.

    Without convolutions past the stem it is the hidden linear layers, as in a transformer.
    An attention module's own weights are in no layer, and so not among them.

    Raises:
        ModelError: There is no such layer.
    """
    convolutions: list[Weighted] = [
        part
        for name, part in classifier.named_modules()
        if isinstance(part, nn.Conv2d) and not is_on_shortcut(name)
    ]
    if len(convolutions) > 1:
        return convolutions
    linear = _linear_layers(classifier)
    hidden: list[Weighted] = [*linear] if _is_zero_shot(classifier) else [*linear[:-1]]
    if hidden:
        return hidden
    raise ModelError(
        "expected a network with two convolutions or two linear layers, whose neurons can be told "
        "apart; use a defence that resets none, such as fine-tuning"
    )


def _is_zero_shot(classifier: nn.Module) -> bool:
    return any(isinstance(part, ZeroShotNetwork) for part in classifier.modules())


def _linear_layers(classifier: nn.Module) -> list[nn.Linear]:
    """List the linear layers that run as modules.

    An attention module reads the weights of its `out_proj` and never calls it.
    """
    parts = list(classifier.modules())
    unused = {id(part.out_proj) for part in parts if isinstance(part, nn.MultiheadAttention)}
    return [part for part in parts if isinstance(part, nn.Linear) and id(part) not in unused]
