"""Recognise a CLIP by its tensors, without building it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

__all__ = ["ClipShape", "clip_shape", "matching_configs"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipShape:
    """Sizes of a CLIP's towers, as its tensors tell them.

    Attributes:
        tower: `ViT`, `ModifiedResNet`, or `other` (a timm network).
        embed_dim: Length of the embeddings; `None` where no projection tells.
        width: Of the image tower.
        layers: Blocks of a ViT, or blocks of each of the four stages of a ResNet.
        patch_size: Of a ViT.
        image_side: Height and width of the images.
        text_width: Of the text tower; `None` where the file holds the image tower alone.
        text_layers: Its blocks.
        context_length: Tokens it reads.
        vocab_size: Tokens it knows.
    """

    tower: str
    embed_dim: int | None = None
    width: int | None = None
    layers: int | tuple[int, ...] | None = None
    patch_size: int | None = None
    image_side: int | None = None
    text_width: int | None = None
    text_layers: int | None = None
    context_length: int | None = None
    vocab_size: int | None = None

    def describe(self) -> str:
        """Return it in words."""
        image = [
            f"width {self.width}" if self.width else "",
            f"{self.layers} layers".replace("(", "").replace(")", "") if self.layers else "",
            f"patch {self.patch_size}" if self.patch_size else "",
            f"images of {self.image_side}x{self.image_side}" if self.image_side else "",
        ]
        if self.text_width is None:
            text = "no text tower in the file"
        else:
            text = (
                f"text tower: width {self.text_width}, {self.text_layers} layers, "
                f"{self.context_length} tokens of {self.vocab_size}"
            )
        embedding = f"; embeddings of {self.embed_dim}" if self.embed_dim else ""
        tower = "timm" if self.tower == "other" else self.tower
        return f"a CLIP: {tower} image tower ({', '.join(filter(None, image))}); {text}{embedding}"


def clip_shape(tensors: Mapping[str, Tensor]) -> ClipShape | None:
    """Read the sizes off the tensors of a CLIP, `None` when they are no CLIP's.

    A CLIP has tensors under `visual.` and either a text tower or a logit scale. An image tower
    saved alone may lack the `visual.`.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if "attnpool.positional_embedding" in shapes or (
        "class_embedding" in shapes and "transformer.resblocks.0.ln_1.weight" in shapes
    ):
        shapes = {f"visual.{name}": shape for name, shape in shapes.items()}
    prefix = "text." if "text.positional_embedding" in shapes else ""
    has_text = f"{prefix}token_embedding.weight" in shapes
    if not any(name.startswith("visual.") for name in shapes) or not (
        has_text or "logit_scale" in shapes or _tower(shapes) != "other"
    ):
        return None
    sizes: dict[str, Any] = {"tower": _tower(shapes)}
    if has_text:
        vocabulary, width = shapes[f"{prefix}token_embedding.weight"]
        sizes |= {
            "vocab_size": vocabulary,
            "text_width": width,
            "text_layers": _count(shapes, f"{prefix}transformer.resblocks."),
            "context_length": shapes.get(f"{prefix}positional_embedding", (None,))[0],
        }
        projection = shapes.get(f"{prefix}text_projection")
        if projection is not None and len(projection) == 2:
            sizes["embed_dim"] = projection[1]
    if sizes["tower"] == "ViT":
        sizes |= _vit_sizes(shapes)
    elif sizes["tower"] == "ModifiedResNet":
        sizes |= _resnet_sizes(shapes)
    return ClipShape(**sizes)


def matching_configs(shape: ClipShape) -> tuple[str, ...]:
    """Name open_clip's configs with these sizes; none where open_clip is not installed.

    Several may fit: tensors do not tell GELU from QuickGELU, nor an image tower alone which text
    tower it was trained with.
    """
    try:
        import open_clip
    except ImportError:
        return ()
    wanted = _comparable(shape)
    return tuple(
        f"open_clip/{name}"
        for name in open_clip.list_models()
        if shape.tower != "other"
        and wanted.items() <= _sizes_of_config(open_clip.get_model_config(name)).items()
    )


def _tower(shapes: Mapping[str, tuple[int, ...]]) -> str:
    if "visual.transformer.resblocks.0.ln_1.weight" in shapes:
        return "ViT"
    if "visual.attnpool.positional_embedding" in shapes:
        return "ModifiedResNet"
    return "other"


def _vit_sizes(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    stem = shapes.get("visual.conv1.weight", ())
    places = shapes.get("visual.positional_embedding", ())
    sizes: dict[str, Any] = {"layers": _count(shapes, "visual.transformer.resblocks.")}
    if len(stem) == 4:
        sizes |= {"width": stem[0], "patch_size": stem[3]}
        if len(places) == 2:
            sizes["image_side"] = round((places[0] - 1) ** 0.5) * stem[3]
    if len(shapes.get("visual.proj", ())) == 2:
        sizes["embed_dim"] = shapes["visual.proj"][1]
    return sizes


def _resnet_sizes(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    places = shapes["visual.attnpool.positional_embedding"]
    stages = tuple(_count(shapes, f"visual.layer{stage}.") for stage in range(1, 5))
    sizes: dict[str, Any] = {"layers": stages}
    if len(places) == 2:
        sizes |= {"width": places[1] // 32, "image_side": round((places[0] - 1) ** 0.5) * 32}
    if len(shapes.get("visual.attnpool.c_proj.weight", ())) == 2:
        sizes["embed_dim"] = shapes["visual.attnpool.c_proj.weight"][0]
    return sizes


def _count(shapes: Mapping[str, tuple[int, ...]], prefix: str) -> int:
    """Count the numbered modules under a prefix."""
    return len({n[len(prefix) :].partition(".")[0] for n in shapes if n.startswith(prefix)})


def _comparable(shape: ClipShape) -> dict[str, Any]:
    image = {
        "embed_dim": shape.embed_dim,
        "width": shape.width,
        "layers": shape.layers,
        "patch_size": shape.patch_size,
        "image_side": shape.image_side,
    }
    if shape.text_width is None:
        return image
    return image | {
        "text_width": shape.text_width,
        "text_layers": shape.text_layers,
        "context_length": shape.context_length,
        "vocab_size": shape.vocab_size,
    }


def _sizes_of_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config's sizes, empty where its towers come from elsewhere."""
    vision, text = config["vision_cfg"], config["text_cfg"]
    if "timm_model_name" in vision or "hf_model_name" in text or "multimodal_cfg" in config:
        return {}
    layers = vision.get("layers", 12)
    is_resnet = isinstance(layers, list)
    return {
        "embed_dim": config["embed_dim"],
        "width": vision.get("width", 64 if is_resnet else 768),
        "layers": tuple(layers) if is_resnet else layers,
        "patch_size": None if is_resnet else vision.get("patch_size", 16),
        "image_side": vision.get("image_size", 224),
        "text_width": text.get("width", 512),
        "text_layers": text.get("layers", 12),
        "context_length": text.get("context_length", 77),
        "vocab_size": text.get("vocab_size", 49_408),
    }
