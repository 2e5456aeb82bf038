"""Folders as the Hugging Face hub keeps models in, written by the libraries themselves."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

NUM_CLASSES = 5
_TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 8}
_SQUARE = {"height": 32, "width": 32}


@cache
def families() -> dict[str, tuple[str, Callable[[Any], Any], Callable[[Any], Any]]]:
    """By name: class, config, and preprocessor of transformers, all small."""
    plain = {"size": _SQUARE, "do_center_crop": False}

    def processor(name: str, **settings: Any) -> Callable[[Any], Any]:
        return lambda t: getattr(t, name)(**settings)

    def config(name: str, **settings: Any) -> Callable[[Any], Any]:
        return lambda t: getattr(t, name)(num_labels=NUM_CLASSES, **settings)

    def vit_like(name: str) -> Callable[[Any], Any]:
        return config(f"{name}Config", image_size=32, intermediate_size=64, **_TINY)

    narrow = {"hidden_sizes": [8, 16, 16, 16], "depths": [1, 1, 1, 1]}
    return {
        "vit": (
            "ViTForImageClassification",
            vit_like("ViT"),
            processor("ViTImageProcessor", size=_SQUARE, image_mean=[0.4, 0.5, 0.6]),
        ),
        "deit": (
            "DeiTForImageClassification",
            vit_like("DeiT"),
            processor("DeiTImageProcessor", **plain),
        ),
        "beit": (
            "BeitForImageClassification",
            vit_like("Beit"),
            processor("BeitImageProcessor", **plain),
        ),
        "swin": (
            "SwinForImageClassification",
            config(
                "SwinConfig",
                embed_dim=16,
                depths=[1, 1],
                num_heads=[2, 2],
                window_size=4,
                image_size=32,
                patch_size=4,
            ),
            processor("ViTImageProcessor", size=_SQUARE),
        ),
        "convnext": (
            "ConvNextForImageClassification",
            config("ConvNextConfig", image_size=32, **narrow),
            processor("ConvNextImageProcessor", size={"shortest_edge": 32}, crop_pct=1.0),
        ),
        "dinov2": (
            "Dinov2ForImageClassification",
            config("Dinov2Config", image_size=32, **_TINY),
            processor("BitImageProcessor", size={"shortest_edge": 32}, crop_size=_SQUARE),
        ),
        "resnet": (
            "ResNetForImageClassification",
            config("ResNetConfig", embedding_size=8, layer_type="basic", **narrow),
            processor("ConvNextImageProcessor", size={"shortest_edge": 32}, crop_pct=1.0),
        ),
        "mobilevit": (
            "MobileViTForImageClassification",
            config(
                "MobileViTConfig",
                image_size=64,
                hidden_sizes=[16, 24, 32],
                neck_hidden_sizes=[8, 8, 16, 16, 24, 24, 32],
                num_attention_heads=2,
            ),
            processor(
                "MobileViTImageProcessor",
                size={"shortest_edge": 64},
                crop_size={"height": 64, "width": 64},
            ),
        ),
        "efficientnet": (
            "EfficientNetForImageClassification",
            config(
                "EfficientNetConfig",
                image_size=32,
                width_coefficient=0.25,
                depth_coefficient=0.25,
                hidden_dim=320,
            ),
            processor("EfficientNetImageProcessor", size=_SQUARE),
        ),
    }


def build(family: str, **changes: Any) -> nn.Module:
    """A network of a family with random weights and statistics that are not the initial ones."""
    import transformers

    name, config, _ = families()[family]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        described = config(transformers)
        for key, value in changes.items():
            setattr(described, key, value)
        model: nn.Module = getattr(transformers, name)(described)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None
                module.running_mean.normal_(std=0.1)
            elif isinstance(module, nn.Linear) and module.out_features == NUM_CLASSES:
                nn.init.normal_(module.weight)
    return model.eval()


def write(folder: Path, family: str = "vit", **options: Any) -> tuple[Any, Any]:
    """Write a folder by `save_pretrained`; return the model and its preprocessor."""
    import transformers

    model: Any = build(family, **options.pop("config", {}))
    processor = families()[family][2](transformers)
    with quiet():
        model.save_pretrained(folder, **options)
        processor.save_pretrained(folder)
    return model, processor


def quiet() -> Any:
    from bdaudit.models.transformers_models import quiet_library

    return quiet_library()


def change(path: Path, **entries: Any) -> None:
    """Write other values into a JSON file."""
    document = json.loads(path.read_text())
    path.write_text(json.dumps({**document, **entries}))


def write_clip(folder: Path, kind: str) -> tuple[Any, Any, Any]:
    """Write a CLIP or SigLIP with a tokenizer of ten words; return model, tokenizer, processor."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = ["<pad>", "<s>", "</s>", "<unk>", "a", "photo", "of", "cat", "dog", "."]
    bare = Tokenizer(models.WordLevel({w: k for k, w in enumerate(words)}, unk_token="<unk>"))
    bare.pre_tokenizer = pre_tokenizers.Whitespace()
    bare.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=bare,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
    )
    shared = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    text = {**shared, "vocab_size": 10, "max_position_embeddings": 12}
    text |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    towers = {
        "text_config": text,
        "vision_config": {**shared, "image_size": 32, "patch_size": 8},
    }
    processor: Any
    with quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if kind == "clip":
            config: Any = transformers.CLIPConfig(projection_dim=16, **towers)
            model: Any = transformers.CLIPModel(config)
            processor = transformers.CLIPImageProcessor(
                size={"shortest_edge": 32}, crop_size=_SQUARE
            )
        else:
            model = transformers.SiglipModel(transformers.SiglipConfig(**towers))
            processor = transformers.SiglipImageProcessor(size=_SQUARE)
        model.eval()
        for part in (model, tokenizer, processor):
            part.save_pretrained(folder)
    return model, tokenizer, processor
