"""Result folders shaped like BackdoorBench's, traps included."""

from __future__ import annotations

import copy
from math import nan
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from bdaudit.errors import ModelError
from bdaudit.existence.layers import select_layers
from bdaudit.models import (
    Classifier,
    inspect_checkpoint,
    load_model,
    open_checkpoint,
    open_record,
)
from bdaudit.models.backdoorbench import NORMALISATIONS
from tests.models.checkpoints import RunsACommand, same_tensors, tiny_network

MODEL_NAME = "preactresnet18_w2"


def make_record(folder: Path, **changes: Any) -> Path:
    """An attack and two defences, one saved as a bare state_dict."""
    backdoored, tuned, pruned = (dict(tiny_network(4, seed=s).state_dict()) for s in (0, 1, 2))
    attack = {
        "model_name": MODEL_NAME,
        "num_classes": np.int64(4),
        "model": backdoored,
        "data_path": "../data/cifar10",
        "img_size": [32, 32, 3],
        "clean_data": "cifar10",
        "bd_train": {"index": np.arange(5), "target": np.int64(0)},
        "bd_test": {"images": ["a.png"], "poison_indicator": np.ones(3)},
        **changes,
    }
    for name in ("ft", "fp"):
        (folder / "defense" / name).mkdir(parents=True)
    torch.save(attack, folder / "attack_result.pt")
    torch.save(
        {"model_name": MODEL_NAME, "num_classes": 4, "model": tuned},
        folder / "defense/ft/defense_result.pt",
    )
    torch.save(pruned, folder / "defense/fp/defense_result.pt")
    return folder


def test_the_attack_result_needs_no_option(tmp_path: Path) -> None:
    record = make_record(tmp_path / "badnet")
    model = load_model(record, name="original")
    assert model.path == record / "attack_result.pt"
    assert (model.arch, model.num_classes) == ("bdaudit/preactresnet18_w2", 4)
    assert model.image_shape == (3, 32, 32)
    assert isinstance(model.classifier, Classifier)
    torch.testing.assert_close(
        model.classifier.mean.flatten(), torch.tensor([0.4914, 0.4822, 0.4465])
    )
    assert any("cifar10" in note for note in model.notes)
    assert open_checkpoint(record / "attack_result.pt").container == "BackdoorBench attack_result"


@pytest.mark.parametrize("defence", ["ft", "fp"])
def test_a_defence_takes_the_data_set_from_the_attack(tmp_path: Path, defence: str) -> None:
    record = make_record(tmp_path)
    original = load_model(record, name="original")
    defended = load_model(record / "defense" / defence, name="defended")
    assert defended.image_shape == original.image_shape
    assert isinstance(defended.classifier, Classifier)
    assert isinstance(original.classifier, Classifier)
    assert torch.equal(defended.classifier.std, original.classifier.std)
    assert defended.weights_sha256 != original.weights_sha256


def test_a_defence_alone_still_loads(tmp_path: Path) -> None:
    record = make_record(tmp_path)
    (record / "attack_result.pt").unlink()
    model = load_model(record / "defense/ft", name="defended", fallback_image_shape=(3, 16, 16))
    assert (model.num_classes, model.image_shape) == (4, (3, 16, 16))
    assert any("no normalisation" in note for note in model.notes)


@pytest.mark.parametrize("name", sorted(NORMALISATIONS))
def test_normalisation_by_data_set(tmp_path: Path, name: str) -> None:
    record = make_record(tmp_path, clean_data=name)
    model = load_model(record, name="m")
    assert isinstance(model.classifier, Classifier)
    mean, std = NORMALISATIONS[name]
    assert model.classifier.mean.flatten().tolist() == pytest.approx(mean)
    assert model.classifier.std.flatten().tolist() == pytest.approx(std)


def test_the_data_path_serves_where_no_data_set_is_named(tmp_path: Path) -> None:
    record = make_record(tmp_path, clean_data=None, data_path="D:\\data\\GTSRB\\train")
    assert any("gtsrb" in note for note in load_model(record, name="m").notes)


def test_an_argument_beats_what_the_record_implies(tmp_path: Path) -> None:
    model = load_model(make_record(tmp_path), name="m", mean=(0.1,), std=(0.2,))
    assert isinstance(model.classifier, Classifier)
    assert model.classifier.mean.flatten().tolist() == pytest.approx([0.1])
    assert not any("cifar10" in note for note in model.notes)


def test_a_network_behind_a_resize_keeps_its_place(tmp_path: Path) -> None:
    state = {f"1.{name}": tensor for name, tensor in tiny_network(4).state_dict().items()}
    record = make_record(tmp_path, model=state)
    assert any("stripped '1.'" in note for note in load_model(record, name="m").notes)


def test_a_model_that_is_not_here_is_recognised_or_refused(tmp_path: Path) -> None:
    record = make_record(tmp_path, model_name="somebodys_net")
    assert load_model(record, name="m").arch == "bdaudit/preactresnet18_w2"
    state = {"stem.weight": torch.ones(2, 2)}
    torch.save({"model_name": "senet18", "model": state}, tmp_path / "attack_result.pt")
    with pytest.raises(ModelError, match="no architecture given"):
        load_model(record, name="m")


def npd(record: Path, plug: Any) -> Path:
    """A defence as NPD leaves it: the undefended weights, and a layer beside them."""
    folder = record / "defense" / "npd"
    folder.mkdir()
    state = dict(tiny_network(4).state_dict())
    torch.save({"model_name": MODEL_NAME, "model": state}, folder / "defense_result.pt")
    torch.save(plug, folder / "plug_layer.pt")
    return folder


def plug_of(kind: str, target: str = "layer4.1.conv1") -> tuple[dict[str, Any], Any]:
    """A plug layer as NPD's code makes and saves it, and what it does to features."""
    channels = 16
    generator = torch.Generator().manual_seed(1)
    if kind in ("linear", "linear_light", "mlp"):
        size = (1, channels, 1, 1) if kind == "linear_light" else (1, channels, 4, 4)
        count = 4 if kind == "mlp" else 2
        made = [torch.rand(size, generator=generator).requires_grad_() for _ in range(count)]
        w1, b1, *more = [tensor.detach() for tensor in made]

        def scaled(x: torch.Tensor) -> torch.Tensor:
            x = x * w1 + b1
            return torch.relu(x) * more[0] + more[1] if more else x

        return {"target_layer": target, "plug_name": kind, "plug_model": made}, scaled
    parts: list[nn.Module] = []
    for _ in range(2 if kind == "twoconv" else 1):
        parts.append(nn.Conv2d(channels, channels, 1, bias=False))
        if kind != "onlyconv":
            norm = nn.BatchNorm2d(channels)
            assert norm.running_mean is not None
            norm.running_mean += 0.3
            parts.append(norm)
    layer = nn.Sequential(*parts).eval()
    content = {"target_layer": target, "plug_name": kind, "plug_model": layer.state_dict()}
    return content, layer


@pytest.mark.parametrize("kind", ["onlyconv", "convbn", "twoconv", "linear", "linear_light", "mlp"])
def test_a_defence_in_a_layer_of_its_own_is_audited_with_it(tmp_path: Path, kind: str) -> None:
    record = make_record(tmp_path)
    content, layer = plug_of(kind)
    folder = npd(record, content)
    loaded = load_model(folder, name="defended")
    undefended = load_model(record, name="original")
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    # As NPD's own code evaluates it: a hook on the input of the target layer.
    target = undefended.network.get_submodule("layer4.1.conv1")
    with torch.no_grad():
        before = undefended.classifier(images)
        target.register_forward_pre_hook(lambda _, inputs: layer(inputs[0]))
        expected = undefended.classifier(images)
        torch.testing.assert_close(loaded.classifier(images), expected)
        torch.testing.assert_close(copy.deepcopy(loaded.classifier)(images), expected)
    assert not torch.allclose(before, expected)
    assert loaded.weights_sha256 != undefended.weights_sha256
    assert any("NPD" in note for note in loaded.notes)
    assert folder / "plug_layer.pt" in [file.path for file in loaded.files]
    # What trains on copies of a model finds the layer, and BEC its layers under the same names.
    assert any("plug" in name for name, _ in loaded.network.named_parameters())
    assert select_layers(loaded.network) == select_layers(undefended.network)
    assert any("plug_layer.pt" in note for note in inspect_checkpoint(folder).notes)


def broken_plugs() -> dict[str, tuple[Any, str]]:
    good, _ = plug_of("convbn")
    held = good["plug_model"]

    def changed(**tensors: torch.Tensor) -> dict[str, Any]:
        return {**good, "plug_model": {**held, **tensors}}

    return {
        "no description": ({"weight": torch.eye(2)}, "undefended model"),
        "another layer": ({**good, "target_layer": "layer9"}, "no such layer"),
        "no convolution": ({**good, "target_layer": "linear"}, "got a Linear"),
        "another width": (plug_of("convbn", "layer1.0.conv1")[0], "layer of 2 channels"),
        "an unknown kind": ({**good, "plug_name": "transformer"}, "one of NPD's layers"),
        "a part missing": ({**good, "plug_model": {"0.weight": held["0.weight"]}}, "'1.weight'"),
        "a part too many": (
            {**good, "plug_model": {**held, "2.bias": torch.ones(1)}},
            "unexpected",
        ),
        "not finite": (changed(**{"1.bias": torch.tensor([nan])}), "NaN"),
        "code": (RunsACommand(Path("never")), "nothing was run"),
    }


@pytest.mark.parametrize("what", broken_plugs())
def test_a_plug_layer_that_does_not_fit_is_never_left_out(tmp_path: Path, what: str) -> None:
    plug, said = broken_plugs()[what]
    with pytest.raises(ModelError, match=said):
        load_model(npd(make_record(tmp_path), plug), name="defended")


def test_pruning_masks_in_a_result_are_merged(tmp_path: Path) -> None:
    """Fine-pruning leaves torch's masks, ANP and RNP a mask on the scale of each batch norm."""
    record = make_record(tmp_path)
    network = tiny_network(4, seed=3)
    masks = {}
    for name, module in network.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            mask = (torch.arange(module.num_features) % 2).float()
            masks[f"{name}.neuron_mask"] = mask
            masks[f"{name}.neuron_noise"] = torch.full_like(mask, 0.3)
            masks[f"{name}.neuron_noise_bias"] = torch.full_like(mask, 0.3)
    prune.l1_unstructured(network.layer4[1].conv2, "weight", amount=0.5)
    state = {**network.state_dict(), **masks}
    assert "layer4.1.conv2.weight_orig" in state
    torch.save({"model_name": MODEL_NAME, "model": state}, record / "defense/ft/defense_result.pt")
    loaded = load_model(record / "defense/ft", name="defended")
    for name, module in network.named_modules():
        if isinstance(module, nn.BatchNorm2d):  # as ANP's masked batch norm computes
            module.weight.data *= masks[f"{name}.neuron_mask"]
    images = torch.rand(3, 3, 32, 32)
    with torch.no_grad():
        mine = loaded.classifier(images)
        loaded.classifier.network = network.eval()
        torch.testing.assert_close(mine, loaded.classifier(images))
    assert any("neuron masks" in note for note in loaded.notes)
    wrong = {**state, "layer1.0.bn1.neuron_mask": torch.ones(7)}
    torch.save(wrong, record / "defense/ft/defense_result.pt")
    with pytest.raises(ModelError, match="neuron_mask"):
        load_model(record / "defense/ft", name="defended")


def test_a_record_lists_its_files(tmp_path: Path) -> None:
    record = make_record(tmp_path / "badnet")
    for start in (record, record / "defense/ft", record / "defense/ft/defense_result.pt"):
        found = open_record(start)
        assert found.folder == record
        assert found.attack_result == record / "attack_result.pt"
        assert list(found.defenses) == ["fp", "ft"]
    with pytest.raises(ModelError, match="BackdoorBench record folder"):
        open_record(tmp_path / "elsewhere")


def test_a_folder_without_results_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"attack_result\.pt or defense_result\.pt"):
        load_model(tmp_path, name="m")


def test_the_weights_are_the_stored_ones(tmp_path: Path) -> None:
    record = make_record(tmp_path)
    model = load_model(record, name="m")
    assert same_tensors(dict(model.network.state_dict()), dict(tiny_network(4).state_dict()))
