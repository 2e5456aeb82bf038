"""Result folders shaped like BackdoorBench's, traps included."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bdaudit.errors import ModelError
from bdaudit.models import (
    Classifier,
    inspect_checkpoint,
    load_model,
    locate_checkpoint,
    open_checkpoint,
    open_record,
)
from bdaudit.models.backdoorbench import NORMALISATIONS
from tests.models.checkpoints import same_tensors, tiny_network

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


@pytest.mark.parametrize("name", ["defense/npd", "defense/npd/defense_result.pt"])
def test_a_defence_in_a_layer_of_its_own_is_never_audited_without_it(
    tmp_path: Path, name: str
) -> None:
    record = make_record(tmp_path)
    (record / "defense/npd").mkdir()
    state = dict(tiny_network(4).state_dict())
    torch.save({"model_name": MODEL_NAME, "model": state}, record / "defense/npd/defense_result.pt")
    torch.save({"weight": torch.eye(2)}, record / "defense/npd/plug_layer.pt")
    for opened in (locate_checkpoint, lambda path: load_model(path, name="defended")):
        with pytest.raises(ModelError, match=r"plug_layer\.pt.*undefended"):
            opened(record / name)
    if name.endswith(".pt"):
        assert "undefended" in str(inspect_checkpoint(record / name).problem)


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
