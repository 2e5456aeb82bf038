"""Put the weights of a hub folder into the network that its config describes."""

from __future__ import annotations

import torch
from torch import nn

from bdaudit.errors import ModelError
from bdaudit.models.checkpoint import Checkpoint
from bdaudit.models.clip import tensors_and_prompts
from bdaudit.models.fitting import Fitted, note_casts
from bdaudit.models.hub_folder import CONFIG, HubFolder
from bdaudit.models.settings import ModelSettings
from bdaudit.models.transformers_clip import TwoTowers, plan_two_towers
from bdaudit.models.transformers_models import HubNetwork, plan_classifier

__all__ = ["demand_same_pooling", "fill_hub_network"]


def fill_hub_network(
    hub: HubFolder,
    checkpoint: Checkpoint,
    settings: ModelSettings,
    notes: list[str],
    *,
    device: torch.device | str = "cpu",
) -> Fitted:
    """Build the network of transformers that a folder describes and give it its weights.

    Args:
        hub: The folder's settings.
        checkpoint: Its tensors.
        settings: What is known of the model.
        notes: Takes what was done, in words.
        device: Where a text tower runs.

    Raises:
        ModelError: transformers is missing, does not know the model, or the weights are not those
            that the config describes.
    """
    towers = plan_two_towers(hub.folder / CONFIG, hub.config)
    if towers is not None:
        return _fill_two_towers(hub, checkpoint, towers, settings, notes, device)
    if settings.clip is not None:
        raise ModelError(
            f"{hub.folder}: is a classifier with a head of its own; leave out --classnames, which "
            "are for a CLIP or SigLIP"
        )
    plan = plan_classifier(hub.folder / CONFIG, hub.config)
    note_casts(checkpoint.tensors, notes)
    network = HubNetwork(
        plan.fill(checkpoint.tensors),
        plan,
        flips_channels=hub.flips_channels,
        image_size=hub.settings.input_size,
    )
    if hub.flips_channels:
        notes.append("its preprocessor turns red, green, blue around, as is done here")
    return Fitted(
        network=network,
        arch=plan.arch,
        num_classes=settings.num_classes,
        in_channels=int(hub.config.get("num_channels", 3)),
    )


def demand_same_pooling(hub: HubFolder, network: nn.Module) -> None:
    """Compare how a folder of timm pools with how the network that was built does.

    Pooling has no tensors, so nothing else would show the difference.

    Raises:
        ModelError: They differ.
    """
    changes = hub.config.get("model_args") or {}
    told = changes.get("global_pool", hub.config.get("global_pool"))
    pool = getattr(network, "global_pool", None)
    if pool is None:
        pool = getattr(getattr(network, "head", None), "global_pool", None)
    built = getattr(pool, "pool_type", pool)
    if isinstance(told, str) and isinstance(built, str) and told != built:
        raise ModelError(
            f"{hub.folder / CONFIG}: expected the pooling {built!r} of {hub.config['architecture']}"
            f", got {told!r:.80}; write a FILE.py:FACTORY that builds it, and give the file of "
            "weights with --arch"
        )


def _fill_two_towers(
    hub: HubFolder,
    checkpoint: Checkpoint,
    towers: TwoTowers,
    settings: ModelSettings,
    notes: list[str],
    device: torch.device | str,
) -> Fitted:
    if settings.clip is None:
        raise ModelError(
            f"{hub.folder}: {towers.plan.class_name} is a classifier by its class names; give "
            "them, one per line, in order of index (--classnames FILE)"
        )
    note_casts(checkpoint.tensors, notes)
    model = towers.plan.fill(checkpoint.tensors)
    size = settings.input_size or _vision_size(hub)
    network, tokenizer = towers.as_zero_shot(
        model, hub.folder, settings.clip, image_size=size, device=device
    )
    n, several = len(settings.clip.templates), "s" * (len(settings.clip.templates) != 1)
    notes.append(
        f"zero-shot: {len(settings.clip.class_names)} classes, {n} template{several}; text "
        "embeddings computed once"
    )
    return Fitted(
        network=network,
        arch=towers.plan.arch,
        num_classes=len(settings.clip.class_names),
        in_channels=3,
        origin=tensors_and_prompts(model, settings.clip),
        files=(tokenizer,),
    )


def _vision_size(hub: HubFolder) -> tuple[int, int]:
    vision = hub.config.get("vision_config")
    side = vision.get("image_size") if isinstance(vision, dict) else None
    side = side if isinstance(side, int) and not isinstance(side, bool) else 224
    return side, side
