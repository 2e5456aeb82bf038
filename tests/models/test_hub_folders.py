"""Folders of the hub: every answer is the library's own, and no code of a folder runs."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from bdaudit.errors import ModelError
from bdaudit.existence.layers import select_layers
from bdaudit.models import ClipSettings, inspect_checkpoint, load_model
from bdaudit.models.fresh import fresh_classifier
from tests.models import hub_folders
from tests.models.hub_folders import NUM_CLASSES, change, families, write, write_clip


def pixels(side: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)


def as_images(image: np.ndarray[Any, Any]) -> torch.Tensor:
    return torch.tensor(image).permute(2, 0, 1)[None].float() / 255


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vit")
    write(folder)
    return folder


@pytest.fixture
def copied(vit: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(vit, tmp_path / "copy"))


# What BEC must find: attention outputs, the last layers of MLPs, convolutions behind the stem.
LAYERS: dict[str, tuple[int, dict[str, tuple[int, ...]]]] = {
    "vit": (4, {"vit.layers.0.attention.o_proj": (32, 32), "vit.layers.1.mlp.fc2": (32, 64)}),
    "deit": (4, {"deit.layers.1.attention.o_proj": (32, 32), "deit.layers.0.mlp.fc2": (32, 64)}),
    "beit": (4, {"beit.layers.1.attention.o_proj": (32, 32), "beit.layers.0.mlp.fc2": (32, 64)}),
    "swin": (
        4,
        {
            "swin.encoder.layers.0.blocks.0.attention.o_proj": (16, 16),
            "swin.encoder.layers.1.blocks.0.mlp.fc2": (32, 128),
        },
    ),
    "convnext": (
        11,
        {
            "convnext.encoder.stages.0.layers.0.dwconv": (8, 1, 7, 7),
            "convnext.encoder.stages.3.layers.0.pwconv2": (16, 64),
            "convnext.encoder.stages.2.downsampling_layer.1": (16, 16, 2, 2),
        },
    ),
    "dinov2": (
        4,
        {
            "dinov2.encoder.layer.0.attention.o_proj": (32, 32),
            "dinov2.encoder.layer.1.mlp.fc2": (32, 128),
        },
    ),
    "resnet": (8, {"resnet.encoder.stages.3.layers.0.layer.1.convolution": (16, 16, 3, 3)}),
    "mobilevit": (
        52,
        {
            "mobilevit.encoder.layer.2.transformer.layer.0.attention.output.dense": (16, 16),
            "mobilevit.encoder.layer.2.transformer.layer.1.output.dense": (16, 32),
            "mobilevit.encoder.layer.2.conv_kxk.convolution": (16, 16, 3, 3),
        },
    ),
    "efficientnet": (
        35,
        {
            "efficientnet.encoder.blocks.1.depthwise_conv.depthwise_conv": (48, 1, 3, 3),
            "efficientnet.encoder.top_conv": (320, 80, 1, 1),
        },
    ),
}


@pytest.mark.parametrize("family", families())
def test_a_folder_answers_as_its_library_does(family: str, tmp_path: Path) -> None:
    """Preprocessor and model of transformers on one side, the folder opened on the other."""
    model, processor = write(tmp_path, family)
    opened = load_model(tmp_path, name="m")
    side = 64 if family == "mobilevit" else 32
    assert opened.image_shape == (3, side, side)
    assert opened.num_classes == NUM_CLASSES
    image = pixels(side)
    inputs = processor(images=[Image.fromarray(image)], return_tensors="pt")
    with torch.no_grad():
        expected = model(**inputs).logits
        found = opened.classifier(as_images(image))
    assert expected.std() > 1e-4
    assert torch.allclose(found, expected, atol=1e-5)

    n, named = LAYERS[family]
    layers = select_layers(opened.network)
    assert len(layers) == n
    modules = dict(opened.network.named_modules())
    for name, shape in named.items():
        assert f"model.{name}" in layers
        assert tuple(modules[f"model.{name}"].weight.shape) == shape

    fresh = fresh_classifier(opened, generator=torch.Generator().manual_seed(1))
    before, after = opened.classifier.state_dict(), fresh.state_dict()
    changed = [k for k, t in before.items() if t.ndim > 1 and not torch.equal(t, after[k])]
    assert len(changed) >= n  # nothing of what it learned is left in a matrix or kernel


@pytest.mark.parametrize(
    "changes",
    [
        {"rescale_factor": 1 / 127.5, "image_mean": [1.0] * 3, "image_std": [1.0] * 3},
        {"do_rescale": False, "image_mean": [100.0, 120.0, 110.0], "image_std": [60.0] * 3},
        {"do_normalize": False},
        {"do_normalize": False, "do_rescale": False},
    ],
    ids=["another scale", "bytes", "not normalised", "bytes, not normalised"],
)
def test_pixels_are_scaled_as_its_own_preprocessor_does(
    copied: Path, changes: dict[str, Any]
) -> None:
    import transformers

    path = copied / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    processor = transformers.AutoImageProcessor.from_pretrained(copied)
    model = transformers.ViTForImageClassification.from_pretrained(copied).eval()
    image = pixels(32)
    inputs = processor(images=[Image.fromarray(image)], return_tensors="pt")
    with torch.no_grad():
        expected = model(pixel_values=inputs["pixel_values"].float()).logits
        found = load_model(copied, name="m").classifier(as_images(image))
    assert torch.allclose(found, expected, atol=1e-4)


# Names and shapes of the published sizes, built without memory.
FULL_SIZE = {
    "ViTConfig": ("ViTForImageClassification", 24, (768, 3072)),
    "DeiTConfig": ("DeiTForImageClassification", 24, (768, 3072)),
    "BeitConfig": ("BeitForImageClassification", 24, (768, 3072)),
    "SwinConfig": ("SwinForImageClassification", 24, (768, 3072)),
    "ConvNextConfig": ("ConvNextForImageClassification", 39, (768, 3072)),
    "Dinov2Config": ("Dinov2ForImageClassification", 24, (768, 3072)),
    "ResNetConfig": ("ResNetForImageClassification", 48, (2048, 512, 1, 1)),
    "MobileViTConfig": ("MobileViTForImageClassification", 52, (640, 160, 1, 1)),
    "EfficientNetConfig": ("EfficientNetForImageClassification", 272, (2560, 640, 1, 1)),
}


@pytest.mark.parametrize("config", FULL_SIZE)
def test_layers_of_the_published_sizes(config: str) -> None:
    import transformers

    name, n, last = FULL_SIZE[config]
    with torch.device("meta"), hub_folders.quiet():
        network = getattr(transformers, name)(getattr(transformers, config)())
    layers = select_layers(network)
    assert len(layers) == n
    assert tuple(dict(network.named_modules())[layers[-1]].weight.shape) == last


def test_shards_names_and_half_precision(tmp_path: Path) -> None:
    names = {0: "cat", 1: "dog", 2: "eel", 3: "fox", 4: "gnu"}
    model, _ = write(tmp_path, config={"id2label": names}, max_shard_size="20KB")
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 1
    opened = load_model(tmp_path, name="m")
    assert opened.class_names == ("cat", "dog", "eel", "fox", "gnu")
    read = {file.path.name for file in opened.files}
    assert {"config.json", "preprocessor_config.json", *index["weight_map"].values()} <= read
    half = {k: t.half() for k, t in model.state_dict().items()}
    with torch.no_grad():
        model.load_state_dict({k: t.float() for k, t in half.items()})
    with hub_folders.quiet():
        model.half().save_pretrained(tmp_path / "half")
    shutil.copy(tmp_path / "preprocessor_config.json", tmp_path / "half")
    halved = load_model(tmp_path / "half", name="m")
    assert any("float16" in note for note in halved.notes)
    images = as_images(pixels(32))
    with torch.no_grad():
        expected = model.float()(pixel_values=(images - MEAN) / 0.5).logits
        assert torch.allclose(halved.classifier(images), expected, atol=1e-5)


MEAN = torch.tensor([0.4, 0.5, 0.6]).view(1, 3, 1, 1)


def test_images_of_another_size_are_resized_inside(vit: Path) -> None:
    opened = load_model(vit, name="m", fallback_image_shape=(3, 16, 16))
    assert opened.image_shape == (3, 16, 16)
    assert opened.classifier(torch.rand(2, 3, 16, 16)).shape == (2, NUM_CLASSES)


def test_an_argument_is_stronger_than_the_folder(vit: Path) -> None:
    opened = load_model(vit, name="m", mean=(0.0,) * 3, std=(1.0,) * 3)
    assert opened.classifier.mean.flatten().tolist() == [0.0, 0.0, 0.0]
    (vit / "model.toml").write_text("mean = [0.1, 0.2, 0.3]\nstd = [1.0, 1.0, 1.0]\n")
    try:
        beside = load_model(vit, name="m")
    finally:
        (vit / "model.toml").unlink()
    assert beside.classifier.mean.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])


def test_a_folder_is_inspected(vit: Path) -> None:
    found = inspect_checkpoint(vit)
    assert found.is_safe
    assert any("ViTForImageClassification" in note for note in found.notes)


@pytest.mark.parametrize("file", ["config.json", "preprocessor_config.json"])
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("auto_map", {"AutoModelForImageClassification": "modeling_evil.EvilNet"}),
        ("trust_remote_code", True),
        ("custom_pipelines", {"x": {"impl": "evil.Pipe"}}),
    ],
)
def test_what_asks_for_code_is_refused(copied: Path, file: str, key: str, value: Any) -> None:
    (copied / "modeling_evil.py").write_text("open('canary', 'w')\n")
    change(copied / file, **{key: value})
    with pytest.raises(ModelError, match=rf"{file}: refused: '{key}' asks for Python code"):
        load_model(copied, name="m")
    assert not any("evil" in name for name in sys.modules)


def test_code_beside_a_sound_config_is_not_looked_at(copied: Path) -> None:
    (copied / "modeling_vit.py").write_text("raise SystemExit(1)\n")
    change(copied / "config.json", attn_implementation="evil/kernels", _attn_implementation="e/k")
    change(copied / "config.json", use_kernels=True, _name_or_path="evil/model")
    assert load_model(copied, name="m").num_classes == NUM_CLASSES


def _two_preprocessors(folder: Path) -> None:
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    settings["image_mean"] = [0.0, 0.0, 0.0]
    (folder / "processor_config.json").write_text(json.dumps({"image_processor": settings}))


def _another_head(folder: Path) -> None:
    change(folder / "config.json", id2label={str(k): f"c{k}" for k in range(7)})


def _gap_in_labels(folder: Path) -> None:
    change(folder / "config.json", id2label={"0": "a", "2": "b"})


def _labels_against(folder: Path) -> None:
    names = {str(k): f"c{k}" for k in range(NUM_CLASSES)}
    change(folder / "config.json", id2label=names, label2id={f"c{4 - k}": k for k in range(5)})


def _an_adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")


def _no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def _tensor_too_few(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors.pop("classifier.bias")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def _tensor_too_many(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["backdoor.weight"] = torch.ones(3)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def _huge(folder: Path) -> None:
    change(folder / "config.json", hidden_size=1 << 20, intermediate_size=1 << 20)


def _endless(folder: Path) -> None:
    change(folder / "config.json", num_hidden_layers=1_000_000)


def _beyond(folder: Path) -> None:
    change(folder / "config.json", hidden_size=1 << 60)


REFUSED = {
    "two preprocessors": (_two_preprocessors, r"two that differ"),
    "a head of another size": (
        _another_head,
        r"of another shape: 'classifier\.bias', 'classifier\.weight'",
    ),
    "a gap in the labels": (_gap_in_labels, r"id2label with the numbers from 0"),
    "labels both ways that differ": (_labels_against, r"contradict each other"),
    "an adapter": (_an_adapter, r"adapter"),
    "no weights": (_no_weights, r"model\.safetensors or model\.safetensors\.index\.json"),
    "a tensor too few": (_tensor_too_few, r"missing: 'classifier\.bias'"),
    "a tensor too many": (_tensor_too_many, r"unexpected: 'backdoor\.weight'"),
    "a network of terabytes": (_huge, r"config that asks for|cannot build"),
    "a million layers": (_endless, r"num_hidden_layers of 1000000"),
    "a size beyond any": (_beyond, r"numbers beyond any"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_does_not_fit_together_is_refused(copied: Path, what: str) -> None:
    spoil, said = REFUSED[what]
    spoil(copied)
    with pytest.raises(ModelError, match=said):
        load_model(copied, name="m")


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({"model_type": "bert", "architectures": ["BertModel"]}, r"expected an image classifier"),
        ({"architectures": ["ViTModel"]}, r"got 'ViTModel'.*head is ViTForImageClassification"),
        ({"architectures": ["EvilForImageClassification"]}, r"expected an image classifier"),
        ({"architectures": ["os"]}, r"expected an image classifier"),
        ({"model_type": None}, r"expected a config of transformers"),
        ({"problem_type": "multi_label_classification"}, r"one class an image"),
        ({"quantization_config": {"load_in_8bit": True}}, r"'quantization_config'"),
        ({"hidden_act": "evil"}, r"cannot build ViTForImageClassification"),
        ({"hidden_size": "32"}, r"cannot build"),
        ({"image_size": 10**7}, r"asks for|cannot build|input_size"),
    ],
)
def test_configs_of_something_else(copied: Path, entries: dict[str, Any], said: str) -> None:
    change(copied / "config.json", **entries)
    with pytest.raises(ModelError, match=said):
        load_model(copied, name="m")


def test_a_link_out_of_the_folder_is_refused(copied: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.json").write_text('{"secret": 1}')
    (copied / "preprocessor_config.json").unlink()
    (copied / "preprocessor_config.json").symlink_to(tmp_path / "secret.json")
    with pytest.raises(ModelError, match=r"leads out of"):
        load_model(copied, name="m")


# --- two towers -----------------------------------------------------------------------------------

PROMPTS = ("a photo of a cat.", "a photo of a dog.")


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_two_towers_answer_as_their_library_does(kind: str, tmp_path: Path) -> None:
    model, tokenizer, processor = write_clip(tmp_path, kind)
    opened = load_model(tmp_path, name="m", clip=ClipSettings(class_names=("cat", "dog")))
    image = pixels(32)
    inputs = processor(images=[Image.fromarray(image)], return_tensors="pt")
    words = tokenizer(list(PROMPTS), padding="max_length", max_length=12, return_tensors="pt")
    inputs |= {"input_ids": words["input_ids"]}
    if kind == "clip":
        inputs |= {"attention_mask": words["attention_mask"]}
    with torch.no_grad():
        expected = model(**inputs).logits_per_image
        found = opened.classifier(as_images(image))
    assert torch.allclose(found, expected, atol=1e-4)
    layers = select_layers(opened.network)
    assert sum(name.endswith("out_proj") for name in layers) == 2
    assert sum(name.endswith("mlp.fc2") for name in layers) >= 2
    fresh = fresh_classifier(opened, generator=torch.Generator().manual_seed(1))
    assert torch.equal(fresh.network.text_embeddings, opened.network.text_embeddings)
    assert {"tokenizer.json", "config.json"} <= {f.path.name for f in opened.files}
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"expected tokenizer\.json"):
        load_model(tmp_path, name="m", clip=ClipSettings(class_names=("cat", "dog")))
    with pytest.raises(ModelError, match="--classnames"):
        load_model(tmp_path, name="m")


def test_prompts_that_do_not_fit(tmp_path: Path) -> None:
    write_clip(tmp_path, "clip")
    names = ("cat", "dog " * 20)
    with pytest.raises(ModelError, match=r"at most 12 tokens"):
        load_model(tmp_path, name="m", clip=ClipSettings(class_names=names))
    document = json.loads((tmp_path / "tokenizer.json").read_text())
    document["model"]["vocab"]["dog"] = 5000
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    with pytest.raises(ModelError, match=r"the token 5000.*another model"):
        load_model(tmp_path, name="m", clip=ClipSettings(class_names=("cat", "dog")))
    (tmp_path / "tokenizer.json").write_text("[1]")
    with pytest.raises(ModelError, match="expected a tokenizer"):
        load_model(tmp_path, name="m", clip=ClipSettings(class_names=("cat", "dog")))


# --- timm -----------------------------------------------------------------------------------------


def test_a_folder_of_timm(tmp_path: Path) -> None:
    import timm
    from timm.models import save_for_hf

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = timm.create_model("test_resnet", num_classes=3).eval()
    save_for_hf(
        model, tmp_path, model_config={"num_classes": 3, "label_names": ["cat", "dog", "eel"]}
    )
    opened = load_model(tmp_path, name="m")
    data = timm.data.resolve_model_data_config(model)
    assert opened.arch == "timm/test_resnet"
    assert opened.image_shape == data["input_size"]
    assert opened.class_names == ("cat", "dog", "eel")
    images = torch.rand(2, *data["input_size"], generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(data[k]).view(1, 3, 1, 1) for k in ("mean", "std"))
    with torch.no_grad():
        expected = model((images - mean) / std)
        assert torch.allclose(opened.classifier(images), expected, atol=1e-5)
    change(tmp_path / "config.json", model_args={"global_pool": "max"})
    with pytest.raises(ModelError, match=r"expected the pooling 'avg'.*got 'max'"):
        load_model(tmp_path, name="m")
    change(tmp_path / "config.json", model_args={"width": 3})
    with pytest.raises(ModelError, match="changed by 'model_args'"):
        load_model(tmp_path, name="m")
