"""A CLIP opens as a classifier whose logits are those of open_clip's own pieces."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import open_clip
import pytest
import safetensors.torch
import torch
import torchvision
from torch.nn import functional

from bdaudit.errors import ModelError
from bdaudit.models import (
    ClipSettings,
    LoadedModel,
    ZeroShotNetwork,
    inspect_checkpoint,
    load_model,
    wrap_module,
)
from bdaudit.models.clip import open_pretrained, plan_clip, preprocessing_of
from bdaudit.models.clip_fingerprint import clip_shape, matching_configs
from bdaudit.models.fresh import fresh_classifier
from tests.clips import ARCH, MEAN, NAMES, RN, STD, TEMPLATES, VIT, new_clip, write_configs
from tests.models.checkpoints import RunsACommand

SHAPE = {"vit": (3, 8, 8), "rn": (3, 32, 32)}


@pytest.fixture
def configs(tmp_path: Path) -> Path:
    return write_configs(tmp_path / "configs")


def settings(configs: Path, **changes: Any) -> ClipSettings:
    return ClipSettings(
        **{"class_names": NAMES, "templates": TEMPLATES, "config_folder": configs, **changes}
    )


def save(path: Path, clip: torch.nn.Module) -> Path:
    safetensors.torch.save_file({k: v.clone() for k, v in clip.state_dict().items()}, path)
    return path


def load(path: Path, clip: ClipSettings, tower: str = "vit", **more: Any) -> LoadedModel:
    return load_model(path, name="m", arch=ARCH[tower], clip=clip, **more)


def expected_logits(clip: open_clip.CLIP, images: torch.Tensor) -> torch.Tensor:
    """Compute prompt by prompt what the classifier should give."""
    tokenizer = open_clip.SimpleTokenizer(context_length=12)
    columns = []
    for name in NAMES:
        texts = [clip.encode_text(tokenizer([t.replace("{}", name)]))[0] for t in TEMPLATES]
        mean = torch.stack([text / text.norm() for text in texts]).mean(0)
        columns.append(mean / mean.norm())
    seen = clip.encode_image((images - MEAN) / STD)
    return clip.logit_scale.exp() * (seen / seen.norm(dim=1, keepdim=True)) @ torch.stack(columns).T


@pytest.mark.parametrize("tower", ["vit", "rn"])
def test_logits_are_those_of_open_clip(tower: str, tmp_path: Path, configs: Path) -> None:
    clip = new_clip(tower)
    model = load(save(tmp_path / "m.safetensors", clip), settings(configs), tower)
    images = torch.rand(5, *SHAPE[tower], generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = expected_logits(clip, images)
    torch.testing.assert_close(model.classifier(images), expected, atol=1e-4, rtol=1e-4)
    assert (model.num_classes, model.image_shape) == (4, SHAPE[tower])
    assert not any(parameter.requires_grad for parameter in model.classifier.parameters())
    assert not [n for n, _ in model.network.named_parameters() if not n.startswith("visual.")]


def test_images_are_resized_bicubically_and_grey_ones_repeated(
    tmp_path: Path, configs: Path
) -> None:
    clip = new_clip()
    path = save(tmp_path / "m.safetensors", clip)
    model = load(path, settings(configs), fallback_image_shape=(1, 12, 12))
    assert model.image_shape == (1, 12, 12)
    images = torch.rand(4, 1, 12, 12, generator=torch.Generator().manual_seed(1)).round()
    small = functional.interpolate(images, size=(8, 8), mode="bicubic", antialias=True)
    assert small.max() > 1.0  # black and white edges overshoot, so that clamping is tested too
    with torch.no_grad():
        expected = expected_logits(clip, small.clamp(0, 1).expand(-1, 3, -1, -1))
    torch.testing.assert_close(model.classifier(images), expected, atol=1e-4, rtol=1e-4)
    # What is handed over in memory keeps its way of resizing.
    wrapped = wrap_module(model.classifier, name="w", image_shape=(1, 12, 12))
    torch.testing.assert_close(wrapped.classifier(images), model.classifier(images))


def test_checkpoints_as_training_code_saves_them(tmp_path: Path, configs: Path) -> None:
    clip = new_clip()
    tensors = clip.state_dict()
    custom = {
        name if name.startswith(("visual.", "logit_scale")) else f"text.{name}": tensor
        for name, tensor in tensors.items()
    }
    optimizer = torch.optim.Adam(clip.parameters())
    layouts: dict[str, Any] = {
        "plain": tensors,
        "open_clip": {
            "epoch": 3,
            "name": "run",
            "state_dict": {f"module.{name}": tensor for name, tensor in tensors.items()},
            "optimizer": optimizer.state_dict(),
        },
        "attribute": {"model": {f"clip.{name}": tensor for name, tensor in tensors.items()}},
        "custom text": custom,
        "openai": {
            **{name: tensor.half() for name, tensor in tensors.items()},
            "input_resolution": torch.tensor(8),
            "context_length": torch.tensor(12),
            "vocab_size": torch.tensor(49_408),
        },
        "vector scale": {**tensors, "logit_scale": tensors["logit_scale"].reshape(1)},
    }
    images = torch.rand(3, 3, 8, 8)
    for name, content in layouts.items():
        path = tmp_path / "m.pt"
        torch.save(content, path)
        with torch.no_grad():
            expected = expected_logits(clip, images)
        got = load(path, settings(configs)).classifier(images)
        tolerance = 0.2 if name == "openai" else 1e-4  # half precision
        torch.testing.assert_close(got, expected, atol=tolerance, rtol=1e-3, msg=name)


def test_a_custom_text_architecture_takes_old_names(tmp_path: Path, configs: Path) -> None:
    (configs / "custom.json").write_text(json.dumps({**VIT, "custom_text": True}))
    path = save(tmp_path / "m.safetensors", new_clip())
    images = torch.rand(3, 3, 8, 8)
    custom = load_model(path, name="m", arch="open_clip/custom", clip=settings(configs))
    torch.testing.assert_close(
        custom.classifier(images), load(path, settings(configs)).classifier(images)
    )
    assert "put 'text.' before the names of the text tower" in custom.notes


def test_the_image_tower_alone_takes_its_text_tower_from_the_pretrained_file(
    tmp_path: Path, configs: Path
) -> None:
    base, tuned = new_clip(seed=1), new_clip(seed=2)
    whole = save(tmp_path / "base.safetensors", base)
    mixed = new_clip(seed=1)
    mixed.visual.load_state_dict(tuned.visual.state_dict())
    images = torch.rand(3, 3, 8, 8)
    with torch.no_grad():
        expected = expected_logits(mixed, images)
    for name, tensors in (
        ("bare", tuned.visual.state_dict()),
        ("named", {f"visual.{k}": v for k, v in tuned.visual.state_dict().items()}),
    ):
        path = tmp_path / f"{name}.pt"
        torch.save(tensors, path)
        model = load(path, settings(configs, pretrained=str(whole)))
        torch.testing.assert_close(model.classifier(images), expected, atol=1e-4, rtol=1e-4)
        assert any("the text tower is that of" in note for note in model.notes)
        with pytest.raises(ModelError, match=r"its image tower alone.*--pretrained TAG or FILE"):
            load(path, settings(configs))


def test_each_model_has_text_embeddings_of_its_own(tmp_path: Path, configs: Path) -> None:
    first, second = new_clip(seed=1), new_clip(seed=1)
    with torch.no_grad():
        second.token_embedding.weight += 0.1 * torch.randn_like(second.token_embedding.weight)
    models = [
        load(save(tmp_path / f"{n}.safetensors", clip), settings(configs))
        for n, clip in enumerate((first, second))
    ]
    one, other = (model.network for model in models)
    assert isinstance(one, ZeroShotNetwork)
    assert isinstance(other, ZeroShotNetwork)
    assert not torch.allclose(one.text_embeddings, other.text_embeddings)
    torch.testing.assert_close(one.text_embeddings.norm(dim=1), torch.ones(4))


def test_the_digest_covers_both_towers_and_the_prompts(tmp_path: Path, configs: Path) -> None:
    path = save(tmp_path / "m.safetensors", new_clip())
    digest = load(path, settings(configs)).weights_sha256
    assert load(path, settings(configs)).weights_sha256 == digest
    other_prompt = settings(configs, templates=("a painting of a {}.",))
    assert load(path, other_prompt).weights_sha256 != digest
    other_order = settings(configs, class_names=NAMES[::-1])
    assert load(path, other_order).weights_sha256 != digest


def test_no_global_state_is_left_behind(tmp_path: Path, configs: Path) -> None:
    path = save(tmp_path / "m.safetensors", new_clip())
    before = torch.get_rng_state()
    load(path, settings(configs))
    assert torch.equal(torch.get_rng_state(), before)
    assert "tiny-vit" not in open_clip.list_models()


def test_fresh_weights_keep_the_text_embeddings(tmp_path: Path, configs: Path) -> None:
    for tower in ("vit", "rn"):
        path = save(tmp_path / f"{tower}.safetensors", new_clip(tower))
        model = load(path, settings(configs), tower)
        fresh = fresh_classifier(model, generator=torch.Generator().manual_seed(3))
        torch.testing.assert_close(fresh.network.text_embeddings, model.network.text_embeddings)
        for name, parameter in fresh.network.visual.named_parameters():
            if parameter.ndim > 1:
                assert not torch.equal(parameter, model.network.visual.get_parameter(name)), name
        assert all(parameter.requires_grad for parameter in fresh.parameters())


# ---- what cannot be opened -----------------------------------------------------------------------


def test_nothing_in_a_checkpoint_or_a_pretrained_file_is_run(tmp_path: Path, configs: Path) -> None:
    witness, path = tmp_path / "ran", tmp_path / "m.pt"
    path.write_bytes(pickle.dumps({"state_dict": RunsACommand(witness)}))
    with pytest.raises(ModelError, match="nothing was run"):
        load(path, settings(configs))
    tower = tmp_path / "tower.pt"
    torch.save(new_clip().visual.state_dict(), tower)
    with pytest.raises(ModelError, match="nothing was run"):
        load(tower, settings(configs, pretrained=str(path)))
    assert not witness.exists()


def test_an_unknown_config_names_similar_ones_and_the_folder(tmp_path: Path, configs: Path) -> None:
    path = save(tmp_path / "m.safetensors", new_clip())
    with pytest.raises(ModelError, match="open_clip/ViT-B-32") as caught:
        load_model(path, name="m", arch="open_clip/ViT-B32", clip=settings(configs))
    assert "there: tiny-rn, tiny-vit" in str(caught.value)
    assert "--clip-config" in str(caught.value)
    for arch in ("open_clip/hf-hub:someone/model", "open_clip/../x"):
        with pytest.raises(ModelError, match="expected open_clip/NAME"):
            load_model(path, name="m", arch=arch, clip=settings(configs))


@pytest.mark.parametrize("text", ["no json", "[]", '{"embed_dim": 4}', '{"embed_dim": "x"}'])
def test_a_damaged_config_is_named(tmp_path: Path, configs: Path, text: str) -> None:
    (configs / "tiny-vit.json").write_text(text)
    path = save(tmp_path / "m.safetensors", new_clip())
    with pytest.raises(ModelError, match=r"tiny-vit\.json: expected"):
        load(path, settings(configs))


def test_a_config_that_open_clip_cannot_build(tmp_path: Path, configs: Path) -> None:
    wrong = {**VIT, "vision_cfg": {**VIT["vision_cfg"], "widht": 3}}
    (configs / "wrong.json").write_text(json.dumps(wrong))
    path = save(tmp_path / "m.safetensors", new_clip())
    with pytest.raises(ModelError, match="widht"):
        load_model(path, name="m", arch="open_clip/wrong", clip=settings(configs))


def test_embedding_sizes_that_do_not_match(tmp_path: Path, configs: Path) -> None:
    path = save(tmp_path / "m.safetensors", new_clip())
    (configs / "longer.json").write_text(json.dumps({**VIT, "embed_dim": 24}))
    with pytest.raises(ModelError, match=r"'visual.proj': expected \(32, 24\), got \(32, 16\)"):
        load_model(path, name="m", arch="open_clip/longer", clip=settings(configs))
    # Towers that each fit the file and not each other.
    unprojected = {**VIT, "text_cfg": {**VIT["text_cfg"], "width": 24, "proj_type": "none"}}
    (configs / "apart.json").write_text(json.dumps(unprojected))
    apart = save(tmp_path / "apart.safetensors", open_clip.CLIP(**unprojected))
    with pytest.raises(ModelError, match=r"as long as the text embeddings, \(1, 24\)"):
        load_model(apart, name="m", arch="open_clip/apart", clip=settings(configs))


def test_the_wrong_tower_is_described(tmp_path: Path, configs: Path) -> None:
    path = save(tmp_path / "m.safetensors", new_clip())
    with pytest.raises(ModelError, match="The file holds a CLIP: ViT image tower"):
        load(path, settings(configs), "rn")
    with pytest.raises(ModelError, match="The file holds a CLIP: ViT image tower"):
        load_model(path, name="m")  # no architecture at all
    for tower, title in (("vit", "ViT"), ("rn", "ModifiedResNet")):
        alone = tmp_path / f"{tower}.pt"
        torch.save(new_clip(tower).visual.state_dict(), alone)
        with pytest.raises(ModelError, match=f"a CLIP: {title} image tower .*no text tower"):
            load(alone, settings(configs), {"vit": "rn", "rn": "vit"}[tower])


def test_tags_without_their_weights(tmp_path: Path, configs: Path) -> None:
    path = save(tmp_path / "m.safetensors", new_clip())
    with pytest.raises(ModelError, match=r"no tag of open_clip/tiny-vit \(known: none\)"):
        load(path, settings(configs, pretrained="openai"))
    with pytest.raises(ModelError, match=r"known: openai, .*local file"):
        load_model(
            path, name="m", arch="open_clip/RN50", clip=settings(configs, pretrained="laion9000")
        )


def test_a_tag_that_cannot_be_fetched_says_how_to_give_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As on a machine without a network and with nothing in its cache.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    tag = ClipSettings(class_names=("a", "b"), pretrained="openai")
    with pytest.raises(
        ModelError, match="'openai' of open_clip/RN50-quickgelu are not on"
    ) as caught:
        open_pretrained(plan_clip("open_clip/RN50-quickgelu", tag), tag)
    assert "give the local file instead: --pretrained FILE" in str(caught.value)


def test_a_tag_gives_the_normalisation_it_was_trained_with(configs: Path) -> None:
    notes: list[str] = []
    tag = settings(configs, pretrained="laion400m_e32")
    plan = plan_clip("open_clip/ViT-B-32-quickgelu", tag)
    assert preprocessing_of(plan, tag, notes)[0] == open_clip.OPENAI_DATASET_MEAN
    assert not [note for note in notes if "GELU" in note]
    plain = plan_clip("open_clip/ViT-B-32", settings(configs, pretrained="openai"))
    preprocessing_of(plain, settings(configs, pretrained="openai"), notes)
    assert [note for note in notes if "QuickGELU" in note]


@pytest.mark.parametrize(
    ("names", "templates", "message"),
    [
        (("a",), None, "two class names or more"),
        (("a", "  "), None, "on line 2, got an empty one"),
        (("a", "b", "A"), None, "on line 1 and again on line 3"),
        (("a", "b"), (), "one template or more"),
        (("a", "b"), ("{}", "a photo"), r"on line 2, got 'a photo'"),
        (("a", "b"), ("{} {}",), "once"),
    ],
)
def test_names_and_templates_that_cannot_be_used(
    names: tuple[str, ...], templates: tuple[str, ...] | None, message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        ClipSettings(class_names=names, **({} if templates is None else {"templates": templates}))


def test_files_of_names_and_templates(tmp_path: Path) -> None:
    names, templates = tmp_path / "names.txt", tmp_path / "templates.txt"
    names.write_text(" ankle boot \nt-shirt\n\n")
    templates.write_text("a {}.\n{name} {}\n")
    read = ClipSettings.from_files(names, templates=templates)
    assert read.class_names == ("ankle boot", "t-shirt")
    # Braces other than the one place are text, not a format to be followed.
    assert read.prompts("t-shirt") == ["a t-shirt.", "{name} t-shirt"]
    names.write_text("\n\n")
    with pytest.raises(ModelError, match=r"names\.txt: expected class names.*empty"):
        ClipSettings.from_files(names)
    with pytest.raises(ModelError, match=r"gone\.txt"):
        ClipSettings.from_files(tmp_path / "gone.txt")


def test_names_that_only_look_alike(tmp_path: Path) -> None:
    """A person sees one name where a tokenizer reads two, or another one."""
    names = tmp_path / "names.txt"
    for content in (
        "ankle boot\nt-shirt\n".encode("utf-8-sig"),
        "ankle boot\r\nt-shirt".encode("utf-16"),
    ):
        names.write_bytes(content)
        assert ClipSettings.from_files(names).class_names == ("ankle boot", "t-shirt")
    names.write_text("caf\u00e9\ncafe\u0301\n", encoding="utf-8")
    with pytest.raises(ModelError, match="line 1 and again on line 2"):
        ClipSettings.from_files(names)
    names.write_text("ankle\u00a0boot\nt-shirt\n", encoding="utf-8")
    with pytest.raises(ModelError, match=r"line 1 holds U\+00A0"):
        ClipSettings.from_files(names)
    with pytest.raises(ModelError, match=r"line 1 holds U\+200B"):
        ClipSettings(class_names=("a", "b"), templates=("a \u200b{}",))


def test_prompts_the_tokenizer_would_cut_short(tmp_path: Path, configs: Path) -> None:
    path = save(tmp_path / "m.safetensors", new_clip())
    long = settings(configs, class_names=("a", "one two three four five six seven eight"))
    with pytest.raises(ModelError, match="expected at most 12 tokens"):
        load(path, long)
    small = {**VIT, "text_cfg": {**VIT["text_cfg"], "vocab_size": 1000}}
    (configs / "small.json").write_text(json.dumps(small))
    other = save(tmp_path / "small.safetensors", open_clip.CLIP(**small))
    with pytest.raises(ModelError, match="knows 1000 tokens"):
        load_model(other, name="m", arch="open_clip/small", clip=settings(configs))


def test_class_names_are_needed(tmp_path: Path) -> None:
    path = save(tmp_path / "m.safetensors", new_clip())
    with pytest.raises(ModelError, match="--classnames FILE"):
        load_model(path, name="m", arch="open_clip/ViT-B-32")


# ---- inspection ----------------------------------------------------------------------------------


def test_inspection_recognises_a_clip(tmp_path: Path) -> None:
    vit = inspect_checkpoint(save(tmp_path / "vit.safetensors", new_clip("vit")))
    assert vit.clip is not None
    assert vit.clip.describe() == (
        "a CLIP: ViT image tower (width 32, 2 layers, patch 4, images of 8x8); text tower: width "
        "16, 1 layers, 12 tokens of 49408; embeddings of 16"
    )
    assert vit.guesses == ()
    json.dumps(vit.to_dict())
    rn = inspect_checkpoint(save(tmp_path / "rn.safetensors", new_clip("rn"))).clip
    assert rn is not None
    assert (rn.tower, rn.width, rn.layers, rn.image_side) == ("ModifiedResNet", 8, (1, 2, 1, 1), 32)
    assert rn.embed_dim == RN["embed_dim"]


@pytest.mark.parametrize("name", ["RN50", "ViT-B-32", "RN50x4", "ViT-L-14-336"])
def test_published_architectures_are_named(name: str) -> None:
    with torch.device("meta"):
        clip = open_clip.CLIP(**open_clip.get_model_config(name))
    shape = clip_shape(clip.state_dict())
    assert shape is not None
    assert matching_configs(shape) == (f"open_clip/{name}", f"open_clip/{name}-quickgelu")
    alone = clip_shape(clip.visual.state_dict())
    assert alone is not None
    assert alone.text_width is None
    assert set(matching_configs(shape)) <= set(matching_configs(alone))


def test_other_networks_are_no_clips() -> None:
    with torch.device("meta"):
        for network in (torchvision.models.resnet18(), torchvision.models.vit_b_32()):
            assert clip_shape(network.state_dict()) is None
