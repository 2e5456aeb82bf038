"""CLIP and SigLIP of transformers as zero-shot classifiers, with the tokenizer of their folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from bdaudit.errors import ModelError
from bdaudit.foundation.opening import LIST_BYTES, is_file, read_bytes
from bdaudit.models.checkpoint import ReadFile
from bdaudit.models.clip_settings import ClipSettings
from bdaudit.models.shards import linked_within
from bdaudit.models.transformers_models import (
    TransformersPlan,
    gist,
    import_transformers,
    quiet_library,
    structure_of,
)
from bdaudit.models.zeroshot import ZeroShotNetwork

__all__ = ["TOKENIZER", "TwoTowers", "plan_two_towers", "read_tokenizer"]

TOKENIZER = "tokenizer.json"
"""What a tokenizer of the `tokenizers` library is saved as."""
_CLASSES = {"clip": "CLIPModel", "siglip": "SiglipModel"}


class _ImageTower(nn.Module):
    """From normalised images to embeddings, by the names that the whole model has."""

    def __init__(self, vision_model: nn.Module, visual_projection: nn.Module | None) -> None:
        super().__init__()
        self.vision_model = vision_model
        self.visual_projection = visual_projection

    def forward(self, images: Tensor) -> Tensor:
        """Map images (N, 3, H, W) to embeddings (N, D)."""
        pooled: Tensor = self.vision_model(pixel_values=images).pooler_output
        return pooled if self.visual_projection is None else self.visual_projection(pooled)


@dataclass(frozen=True, slots=True, kw_only=True)
class TwoTowers:
    """A CLIP or SigLIP that a folder describes.

    Attributes:
        plan: The class and its config.
    """

    plan: TransformersPlan

    def build_visual(self) -> nn.Module:
        """Build the image tower alone, with weights from torch's global generator."""
        return _image_tower(self.plan.build())

    def as_zero_shot(
        self,
        model: Any,
        folder: Path,
        settings: ClipSettings,
        *,
        image_size: tuple[int, int],
        device: torch.device | str,
    ) -> tuple[ZeroShotNetwork, ReadFile]:
        """Compute the text embeddings once and leave the text tower behind.

        A class' embedding is the mean over its prompts, each of length 1, brought to length 1
        again (Radford et al., ICML 2021, section 3.1.4).

        Returns:
            The network on the CPU, and the tokenizer's file.

        Raises:
            ModelError: The folder has no tokenizer, or a prompt is too long for the text tower.
        """
        tokenizer, file = read_tokenizer(folder)
        tower = model.eval().to(device)
        rows = []
        with torch.no_grad(), quiet_library():
            for name in settings.class_names:
                tokens, seen = self._tokens(tokenizer, settings.prompts(name), folder)
                embeddings = self._text_features(tower, tokens.to(device), seen.to(device))
                mean = functional.normalize(embeddings, dim=-1).mean(dim=0)
                rows.append(functional.normalize(mean, dim=-1))
            scale = float(model.logit_scale.exp())
        bias = getattr(model, "logit_bias", None)
        network = ZeroShotNetwork(
            _image_tower(model).cpu(),
            torch.stack(rows).float().cpu(),
            logit_scale=scale,
            logit_bias=0.0 if bias is None else float(bias.detach()),
            image_size=image_size,
            build_visual=self.build_visual,
        )
        return network, file

    def _text_features(self, model: Any, tokens: Tensor, seen: Tensor) -> Tensor:
        if self.plan.model_type == "clip":
            pooled = model.text_model(input_ids=tokens, attention_mask=seen).pooler_output
            return model.text_projection(pooled)  # type: ignore[no-any-return]
        return model.text_model(input_ids=tokens).pooler_output  # type: ignore[no-any-return]

    def _tokens(self, tokenizer: Any, prompts: list[str], folder: Path) -> tuple[Tensor, Tensor]:
        """Return tokens and which of them are no padding, (P, L) each."""
        text = self.plan.config.get("text_config") or {}
        transformers = import_transformers(folder)
        defaults = (
            transformers.CLIPTextConfig
            if self.plan.model_type == "clip"
            else transformers.SiglipTextConfig
        )()
        longest = int(text.get("max_position_embeddings", defaults.max_position_embeddings))
        vocabulary = int(text.get("vocab_size", defaults.vocab_size))
        padding = text.get("pad_token_id", defaults.pad_token_id)
        padding = padding if isinstance(padding, int) else 0
        rows, masks = [], []
        for prompt in prompts:
            ids = tokenizer.encode(prompt).ids
            if not 0 < len(ids) <= longest:
                raise ModelError(
                    f"prompt {prompt!r}: expected at most {longest} tokens, which "
                    f"{self.plan.class_name} reads, got {len(ids)}; shorten the name or template"
                )
            if max(ids) >= vocabulary:
                raise ModelError(
                    f"{folder / TOKENIZER}: gives the token {max(ids)}, and the text tower knows "
                    f"{vocabulary}; it is the tokenizer of another model"
                )
            rest = longest - len(ids)
            rows.append([*ids, *[padding] * rest])
            masks.append([1] * len(ids) + [0] * rest)
        return torch.tensor(rows), torch.tensor(masks)


def plan_two_towers(source: Path, config: Mapping[str, Any]) -> TwoTowers | None:
    """Return how a CLIP or SigLIP is built, `None` where the config is of something else.

    Raises:
        ModelError: transformers is missing, or the config asks for what is not in the folder.
    """
    wanted = _CLASSES.get(str(config.get("model_type")))
    named = config.get("architectures")
    if wanted is None or not isinstance(named, list) or wanted not in named:
        return None
    import_transformers(source)
    inner = structure_of(source, config)
    for part in ("text_config", "vision_config"):
        if isinstance(inner.get(part), dict):
            kind = inner[part].get("model_type")
            inner[part] = structure_of(source, inner[part])
            if kind is not None:
                inner[part]["model_type"] = str(kind)
    plan = TransformersPlan(
        source=source, class_name=wanted, model_type=str(config["model_type"]), config=inner
    )
    return TwoTowers(plan=plan)


def _image_tower(model: Any) -> _ImageTower:
    return _ImageTower(model.vision_model, getattr(model, "visual_projection", None))


def read_tokenizer(folder: Path) -> tuple[Any, ReadFile]:
    """Open the `tokenizer.json` of a folder, without padding and cutting.

    Raises:
        ModelError: There is none, or it is no tokenizer.
    """
    path = folder / TOKENIZER
    if not is_file(path):
        raise ModelError(
            f"{folder}: expected {TOKENIZER}, which turns class names into tokens, got none; save "
            "the tokenizer beside the model: transformers' save_pretrained writes it"
        )
    content = read_bytes(
        path, limit=LIST_BYTES, what="a tokenizer", error=ModelError, within=linked_within(folder)
    )
    try:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_buffer(content)
        tokenizer.no_padding()
        tokenizer.no_truncation()
    except Exception as error:
        raise ModelError(f"{path}: expected a tokenizer, got {gist(error)}") from error
    return tokenizer, ReadFile.of(path, content)
