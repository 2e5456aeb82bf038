"""Folders as open_clip publishes models, with text towers and tokenizers of Hugging Face."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from open_clip.push_to_hf_hub import save_for_hf
from open_clip.tokenizer import HFTokenizer
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, RobertaConfig

from bdaudit.errors import ModelError
from bdaudit.existence.layers import select_layers
from bdaudit.foundation.sources import FileSource, RemoteFile, parse_model
from bdaudit.models import ClipSettings, LoadedModel, inspect_checkpoint, load_model
from tests.clips import NAMES, TEMPLATES, VIT

WORDS = [
    *("a", "photo", "of", "in", "picture", "one", "block", "north", "east", "south", "west"),
    *(".", "<pad>", "<s>", "</s>", "<unk>"),
]
IMAGES = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
CLIP = ClipSettings(class_names=NAMES, templates=TEMPLATES)


def write_tokenizer(folder: Path) -> None:
    """A small tokenizer as transformers saves one, with ends and a padding token."""
    tokenizer = Tokenizer(models.WordLevel({w: k for k, w in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ends = [(end, WORDS.index(end)) for end in ("<s>", "</s>")]
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=ends)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        sep_token="</s>",
        unk_token="<unk>",
    )
    fast.save_pretrained(folder)


def published(folder: Path, kind: str) -> Path:
    """A model as open_clip's own writer leaves it for the hub."""
    folder.mkdir()
    text: dict[str, Any] = {"context_length": 16, "hf_tokenizer_name": "org/tokenizer"}
    config: dict[str, Any] = {"embed_dim": 16, "vision_cfg": VIT["vision_cfg"], "text_cfg": text}
    if kind == "roberta":
        RobertaConfig(
            vocab_size=len(WORDS),
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            max_position_embeddings=40,
            pad_token_id=WORDS.index("<pad>"),
        ).save_pretrained(folder)
        text |= {"hf_model_name": "org/roberta", "hf_pooler_type": "mean_pooler"}
        built = {**text, "hf_model_name": str(folder), "hf_model_pretrained": False}
    else:  # as SigLIP and CLIPA have it: a text tower of open_clip's, a tokenizer of the hub's
        text |= {"vocab_size": len(WORDS), "width": 16, "heads": 2, "layers": 1}
        cleaning = {"clean": "canonicalize"} if kind == "siglip" else {"strip_sep_token": True}
        text["tokenizer_kwargs"] = cleaning
        built = dict(text)
        if kind == "siglip":
            config |= {"custom_text": True, "init_logit_bias": -10}
    write_tokenizer(folder)
    settings = {k: v for k, v in config.items() if k != "custom_text"} | {"text_cfg": built}
    custom = kind == "roberta" or config.get("custom_text")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = (open_clip.CustomTextCLIP if custom else open_clip.CLIP)(**settings).eval()
    model.visual.image_mean, model.visual.image_std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    # Its writer wants a tokenizer object; ours lies there already.
    tokenizer = HFTokenizer(str(folder))
    save_for_hf(model, tokenizer, config, str(folder), safe_serialization=True)
    return folder


def reference(folder: Path, kind: str) -> torch.Tensor:
    """Logits by open_clip's own loader, tokenizer and encoders."""
    config = json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]
    if kind == "roberta":  # which it would download
        config["text_cfg"] |= {"hf_model_name": str(folder), "hf_model_pretrained": False}
    custom = config.pop("custom_text", kind == "roberta")
    model = (open_clip.CustomTextCLIP if custom else open_clip.CLIP)(**config).eval()
    open_clip.load_checkpoint(model, str(folder / "open_clip_model.safetensors"))
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    rows = []
    with torch.no_grad():
        for name in NAMES:
            prompts = [template.replace("{}", name) for template in TEMPLATES]
            embedded = model.encode_text(tokenizer(prompts), normalize=True).mean(dim=0)
            rows.append(embedded / embedded.norm())
        mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4)))
        seen = model.encode_image((IMAGES - mean) / std, normalize=True)
        logits = model.logit_scale.exp() * seen @ torch.stack(rows).T
    bias = model.logit_bias
    return logits if bias is None else logits + bias.detach()


def load(folder: Path, clip: ClipSettings | None = CLIP) -> LoadedModel:
    return load_model(folder, name="m", clip=clip, fallback_image_shape=(3, 8, 8))


@pytest.mark.parametrize("kind", ["roberta", "siglip", "clipa"])
def test_a_published_model_answers_as_open_clips_own(tmp_path: Path, kind: str) -> None:
    folder = published(tmp_path / "m", kind)
    expected = reference(folder, kind)
    model = load(folder)
    torch.testing.assert_close(model.classifier(IMAGES), expected, atol=1e-4, rtol=1e-4)
    assert model.arch == "open_clip/open_clip_config"
    assert any(name.startswith("visual.") for name in select_layers(model.network))
    read = {file.path.name for file in model.files}
    wanted = {"open_clip_config.json", "open_clip_model.safetensors", "tokenizer.json"}
    assert wanted <= read
    assert ("config.json" in read) == (kind == "roberta")
    assert any("model of open_clip" in note for note in inspect_checkpoint(folder).notes)
    # By the weights' file and the config folder it is the same model.
    by_name = load_model(
        folder / "open_clip_model.safetensors",
        name="m",
        arch="open_clip/whatever",
        mean=(0.5, 0.4, 0.3),
        std=(0.2, 0.3, 0.4),
        clip=ClipSettings(class_names=NAMES, templates=TEMPLATES, config_folder=folder),
    )
    assert torch.equal(by_name.classifier(IMAGES), model.classifier(IMAGES))


def rewrite(folder: Path, file: str, change: Callable[[dict[str, Any]], Any]) -> None:
    document = json.loads((folder / file).read_text())
    change(document)
    (folder / file).write_text(json.dumps(document))


BROKEN: dict[str, tuple[str, Callable[[Path], Any], str]] = {
    "no tokenizer": ("siglip", lambda f: (f / "tokenizer.json").unlink(), "expected its tokenizer"),
    "no text config": (
        "roberta",
        lambda f: (f / "config.json").unlink(),
        "which is not downloaded",
    ),
    "another tower": (
        "roberta",
        lambda f: rewrite(f, "config.json", lambda c: c.update(model_type="vit")),
        "expected the config of a text tower",
    ),
    "code": (
        "roberta",
        lambda f: rewrite(f, "config.json", lambda c: c.update(auto_map={"AutoModel": "x.Y"})),
        "never run",
    ),
    "a larger tower": (
        "roberta",
        lambda f: rewrite(f, "config.json", lambda c: c.update(num_hidden_layers=9)),
        "does not fit",
    ),
    "layers without end": (
        "roberta",
        lambda f: rewrite(f, "config.json", lambda c: c.update(num_hidden_layers=10**6)),
        "at most 1000 layers",
    ),
    "no padding": (
        "siglip",
        lambda f: rewrite(f, "tokenizer_config.json", lambda c: c.pop("pad_token")),
        "expected pad_token",
    ),
    "another vocabulary": (
        "roberta",
        lambda f: rewrite(f, "config.json", lambda c: c.update(vocab_size=40)),
        "does not fit",
    ),
    "arguments unknown": (
        "siglip",
        lambda f: rewrite(
            f,
            "open_clip_config.json",
            lambda c: c["model_cfg"]["text_cfg"].update(tokenizer_mode="x"),
        ),
        "tokenizer that is not at hand",
    ),
    "no model": (
        "siglip",
        lambda f: rewrite(f, "open_clip_config.json", lambda c: c.pop("model_cfg")),
        "with a model_cfg",
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_what_is_not_in_the_folder_is_not_fetched(tmp_path: Path, what: str) -> None:
    kind, breaks, said = BROKEN[what]
    folder = published(tmp_path / "m", kind)
    breaks(folder)
    with pytest.raises(ModelError, match=said):
        load(folder)


def test_class_names_and_short_prompts_are_needed(tmp_path: Path) -> None:
    folder = published(tmp_path / "m", "siglip")
    with pytest.raises(ModelError, match="--classnames"):
        load(folder, None)
    long = ClipSettings(class_names=("north", "east " * 20))
    with pytest.raises(ModelError, match="at most 16 tokens"):
        load(folder, long)


def test_a_model_of_transformers_beside_it_is_taken(tmp_path: Path) -> None:
    """Both forms of one model lie in many folders; `config.json` and its weights count."""
    folder = published(tmp_path / "m", "siglip")
    (folder / "config.json").write_text('{"model_type": "vit"}')
    (folder / "model.safetensors").write_bytes(
        (folder / "open_clip_model.safetensors").read_bytes()
    )
    with pytest.raises(ModelError, match="classifier with a head of its own"):
        load(folder)


def test_names_of_the_hub_as_its_libraries_spell_them() -> None:
    for name in ("hf-hub:timm/resnet18.a1_in1k", "hf_hub:timm/resnet18.a1_in1k"):
        assert parse_model(name) == RemoteFile("hf://timm/resnet18.a1_in1k")
    assert parse_model("hf-hub:laion/CLIP@main") == RemoteFile("hf://laion/CLIP@main")
    assert parse_model("local-dir:models/clip") == FileSource(Path("models/clip"))
    assert parse_model("hf-hub.pt") == FileSource(Path("hf-hub.pt"))
