"""Find the layers that a defence treats specially: the classifier head, the last features."""

from __future__ import annotations

from typing import TypeAlias

from torch import nn

from bdaudit.errors import ModelError

__all__ = ["Weighted", "classifier_head", "last_feature_layer"]

Weighted: TypeAlias = nn.Linear | nn.Conv2d
"""A layer whose weight has one row an output channel."""


def classifier_head(classifier: nn.Module) -> nn.Linear:
    """Return the linear layer that gives the logits: the last one of the network.

    Raises:
        ModelError: There is none.
    """
    linear = [part for part in classifier.modules() if isinstance(part, nn.Linear)]
    if not linear:
        raise ModelError(
            "expected a network that ends in a linear layer, found no linear layer at all; use a "
            "defence that needs none, such as fine-tuning"
        )
    return linear[-1]


def last_feature_layer(classifier: nn.Module) -> Weighted:
    """Return the last convolution, or without convolutions past the stem the last hidden layer.

    In a transformer the only convolution embeds the patches, and the last hidden layer is the
    output projection of the last MLP.

    Raises:
        ModelError: There is no such layer.
    """
    convolutions = [part for part in classifier.modules() if isinstance(part, nn.Conv2d)]
    if len(convolutions) > 1:
        return convolutions[-1]
    linear = [part for part in classifier.modules() if isinstance(part, nn.Linear)]
    if len(linear) > 1:
        return linear[-2]
    raise ModelError(
        "expected a network with two convolutions or two linear layers, so that features can be "
        "pruned; use a defence that prunes nothing, such as fine-tuning"
    )
