"""A model's architecture with fresh weights: nothing of what it learned."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import nn

from bdaudit.detection.asked import Asked
from bdaudit.errors import ModelError
from bdaudit.models.architectures import build_network, canonical_name, is_python_factory
from bdaudit.models.clamps import remove_clamps
from bdaudit.models.classifier import Classifier, LoadedModel
from bdaudit.models.transformers_models import HubNetwork
from bdaudit.models.zeroshot import ZeroShotNetwork

__all__ = ["fresh_classifier"]


def fresh_classifier(model: LoadedModel, *, generator: torch.Generator) -> nn.Module:
    """Return a classifier of the same architecture and preprocessing, untrained.

    An architecture known by name is built anew; of a CLIP the image tower, which is held against
    the same text embeddings. Of any other network a copy is taken, and every layer's own
    `reset_parameters` draws its weights. Bounds that a defence has put on layers are left out: they
    are learned.

    Args:
        model: Left as it is.
        generator: Seeded CPU generator; torch's global one is left as it was.

    Returns:
        A classifier on the model's device, in training mode, every parameter requiring a gradient.

    Raises:
        ModelError: A layer has parameters and no way to draw them anew, so that something of what
            the model learned would be left; or it is a detector, which answers about boxes cannot
            teach where to look.
    """
    if isinstance(model.network, Asked):
        raise ModelError(
            f"{model.name}: a detector cannot be trained anew from single boxes alone, since they "
            "do not say what is in the rest of a picture; give detectors of the same kind, trained "
            "without the backdoor, with --reference"
        )
    device = next((p.device for p in model.classifier.parameters()), torch.device("cpu"))
    classifier = copy.deepcopy(model.classifier).cpu()
    network = classifier.network if isinstance(classifier, Classifier) else classifier
    remove_clamps(network)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
        if isinstance(network, ZeroShotNetwork):
            network.visual = network.build_visual()
        elif isinstance(network, HubNetwork):
            network.model = network.plan.build()
        elif not _rebuild(network, model):
            _draw_anew(network, model.name)
    return classifier.to(device).train().requires_grad_(True)


def _rebuild(network: nn.Module, model: LoadedModel) -> bool:
    """Put the weights of a network built by name into `network`; say whether they fit."""
    if is_python_factory(model.arch):
        return False  # what a user's factory returns may be trained already
    one_score = isinstance(model.classifier, Classifier) and model.classifier.one_score
    try:
        canonical_name(model.arch)
        stem = next((m for m in network.modules() if isinstance(m, nn.Conv2d)), None)
        built = build_network(
            model.arch,
            num_classes=1 if one_score else model.num_classes,
            in_channels=model.image_shape[0] if stem is None else stem.in_channels,
        )
        network.load_state_dict(built.state_dict())
    except (ModelError, RuntimeError):
        return False
    return True


def _draw_anew(network: nn.Module, name: str) -> None:
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    if not before:
        raise ModelError(f"{name}: expected parameters to draw anew, found none")
    without = []
    for path, layer in network.named_modules():
        own = [*layer.parameters(recurse=False), *layer.buffers(recurse=False)]
        reset = _reset_of(layer)
        if own and reset is not None:
            reset()
        elif any(True for _ in layer.parameters(recurse=False)):
            without.append(f"{path or 'the network itself'} ({type(layer).__name__})")
    # A bias or a norm's scale may be what it was by chance; a matrix never is.
    kept = [n for n, p in network.named_parameters() if p.ndim > 1 and torch.equal(p, before[n])]
    if without or kept:
        raise ModelError(
            f"{name}: expected layers whose weights can be drawn anew by reset_parameters(), got "
            f"{', '.join((without + kept)[:5])}"
        )


def _reset_of(layer: nn.Module) -> Callable[[], object] | None:
    for method in ("reset_parameters", "_reset_parameters"):  # torch's attention has the latter
        reset = getattr(layer, method, None)
        if callable(reset):
            return reset  # type: ignore[no-any-return]
    return None
