"""Which weights are meant of a file that holds several sets of them."""

from __future__ import annotations

import argparse
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from bdaudit.errors import ConfigError, ModelError
from bdaudit.models import ModelSettings, inspect_checkpoint, load_model, open_checkpoint
from tests.models.checkpoints import ARCH, IMAGE_SHAPE, same_tensors, tiny_network

ONE = {"fc.weight": torch.arange(6.0).reshape(2, 3), "fc.bias": torch.tensor([1.0, -1.0])}
OTHER = {name: tensor + 1 for name, tensor in ONE.items()}


def save(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


def optimiser_state() -> dict[str, Any]:
    """A real one, with moments of the shapes of weights."""
    weight = torch.nn.Parameter(torch.ones(2, 3))
    optimiser = torch.optim.Adam([weight])
    weight.sum().backward()
    optimiser.step()
    return optimiser.state_dict()


SEVERAL: dict[str, tuple[Any, tuple[str, str]]] = {
    "network and average": (
        {"state_dict": ONE, "state_dict_ema": OTHER},
        ("state_dict", "state_dict_ema"),
    ),
    "average first": ({"ema": OTHER, "model": ONE}, ("model", "ema")),
    "teacher and student": ({"student": ONE, "teacher": OTHER}, ("student", "teacher")),
    "names nobody uses": ({"x": ONE, "backup of tuesday": OTHER}, ("x", "backup of tuesday")),
    "deep": ({"a": {"b": {"c": ONE}}, "d": OTHER}, ("a/b/c", "d")),
    "one at the top": ({**ONE, "best": OTHER}, (".", "best")),
    "in a list": ({"models": [ONE, OTHER]}, ("models/0", "models/1")),
    "among the options": (
        {"state_dict": ONE, "args": argparse.Namespace(resume=OTHER)},
        ("state_dict", "args/resume"),
    ),
    "beside BackdoorBench's": (
        {"model_name": "resnet18", "num_classes": 2, "model": ONE, "kept": OTHER},
        ("model", "kept"),
    ),
    "under another type": (
        {"model": ONE, "half": {n: t.half() for n, t in ONE.items()}},
        ("model", "half"),
    ),
}


@pytest.mark.parametrize("kind", SEVERAL)
def test_different_sets_are_refused_by_name_until_one_is_chosen(tmp_path: Path, kind: str) -> None:
    content, keys = SEVERAL[kind]
    path = save(tmp_path / "m.pt", content)
    with pytest.raises(ModelError, match="several that differ") as caught:
        open_checkpoint(path)
    assert all(repr(key) in str(caught.value) for key in keys)
    for key, other in (keys, keys[::-1]):
        chosen = open_checkpoint(path, weights=key)
        assert (chosen.key, chosen.others) == (key, (other,))
        assert any(repr(other) in note for note in chosen.notes)
    assert same_tensors(open_checkpoint(path, weights=keys[0]).tensors, ONE)


def test_a_set_that_is_hidden_among_a_containers_attributes_counts(tmp_path: Path) -> None:
    state = OrderedDict(ONE)
    state.kept = OTHER  # type: ignore[attr-defined]
    with pytest.raises(ModelError, match="'kept'"):
        open_checkpoint(save(tmp_path / "m.pt", state))


def test_tensors_without_names_can_be_a_network_too(tmp_path: Path) -> None:
    average = [torch.ones(3, 3) * k for k in range(6)]
    path = save(tmp_path / "m.pt", {"model": ONE, "shadow_params": average})
    with pytest.raises(ModelError, match="'shadow_params'"):
        open_checkpoint(path)
    assert open_checkpoint(path, weights="model").others == ("shadow_params",)


@pytest.mark.parametrize("wrap", ["", "module.", "_orig_mod."])
def test_equal_sets_are_one(tmp_path: Path, wrap: str) -> None:
    again = {wrap + name: tensor.clone() for name, tensor in ONE.items()}
    checkpoint = open_checkpoint(save(tmp_path / "m.pt", {"model": ONE, "ema": again}))
    assert checkpoint.others == ()
    assert any("same weights again under 'ema'" in note for note in checkpoint.notes)


@pytest.mark.parametrize(
    "beside",
    [
        {"identity_grid": torch.zeros(1, 4, 4, 2), "noise_grid": torch.zeros(1, 4, 4, 2)},
        {"best_acc": torch.tensor(0.9), "epoch": 3},
        {"optimizer": optimiser_state(), "schedulers": [{"last_epoch": 3}]},
        {"optimizer_states": [optimiser_state()]},
        {"rng": torch.zeros(5000, dtype=torch.uint8)},
    ],
)
@pytest.mark.parametrize("key", ["netC", "my_net", "state_dict"])
def test_helpers_and_optimisers_are_no_networks(
    tmp_path: Path, beside: dict[str, Any], key: str
) -> None:
    checkpoint = open_checkpoint(save(tmp_path / "m.pt", {key: ONE, **beside}))
    assert same_tensors(checkpoint.tensors, ONE)
    assert (checkpoint.key, checkpoint.others) == (key, ())
    assert any(repr(key) in note for note in checkpoint.notes)


def test_helper_tensors_are_named(tmp_path: Path) -> None:
    content = {"netC": ONE, "identity_grid": torch.zeros(1, 4, 4, 2)}
    notes = open_checkpoint(save(tmp_path / "m.pt", content)).notes
    assert any("'identity_grid'" in note for note in notes)


def test_a_key_that_is_not_there_is_refused_with_those_that_are(tmp_path: Path) -> None:
    path = save(tmp_path / "m.pt", {"model": ONE})
    with pytest.raises(ModelError, match=r"under 'mdoel', found 'model' \(2 tensors\)"):
        open_checkpoint(path, weights="mdoel")
    assert open_checkpoint(path, preferred_weights="mdoel").key == "model"


def test_sets_in_one_namespace_are_chosen_by_their_first_part(tmp_path: Path) -> None:
    flat = {f"student.{name}": tensor for name, tensor in ONE.items()}
    flat |= {f"teacher.{name}": tensor for name, tensor in OTHER.items()}
    save_file(flat, tmp_path / "m.safetensors")
    chosen = open_checkpoint(tmp_path / "m.safetensors", weights="teacher")
    assert same_tensors(chosen.tensors, OTHER)
    assert (chosen.key, chosen.others) == ("teacher", ("student",))


def test_a_container_within_itself_is_looked_at_once(tmp_path: Path) -> None:
    loop: dict[str, Any] = {"model": ONE}
    loop["again"] = [loop]
    assert open_checkpoint(save(tmp_path / "m.pt", loop)).key == "model"


def test_settings_beside_a_file_choose_and_arguments_win(tmp_path: Path) -> None:
    first, second = (dict(tiny_network(seed=seed).state_dict()) for seed in (0, 1))
    path = save(tmp_path / "m.pt", {"net": first, "ema": second})
    (tmp_path / "m.toml").write_text('weights = "ema"\n')
    model = load_model(path, name="m", arch=ARCH, image_shape=IMAGE_SHAPE)
    assert (model.weights, model.unaudited) == ("ema", ("net",))
    for given in ({"weights": "net"}, {"preferred_weights": "net"}):
        chosen = load_model(path, name="m", arch=ARCH, image_shape=IMAGE_SHAPE, **given)
        assert (chosen.weights, chosen.unaudited) == ("net", ("ema",))
    assert model.weights_sha256 != chosen.weights_sha256
    assert [file.path for file in model.files] == [path]


def test_a_file_does_not_choose_for_itself(tmp_path: Path) -> None:
    flat = {f"{who}.{name}": t.clone() for who in ("a", "b") for name, t in ONE.items()}
    save_file(flat, tmp_path / "m.safetensors", {"weights": "a"})
    assert open_checkpoint(tmp_path / "m.safetensors").key == "."
    read = ModelSettings.from_metadata({"weights": "a"}, Path("m.safetensors"))
    assert read.weights is None


def test_roles_have_keys_of_their_own() -> None:
    options = ModelSettings(weights=("ema=1", "original=a/b"))
    assert (options.weights_of(None), options.weights_of("original")) == ("ema=1", "a/b")
    assert options.weights_of("defended") is None
    for wrong in (("a", "b"), ("original=a", "original=b"), ("original=",)):
        with pytest.raises(ConfigError, match="weights"):
            ModelSettings(weights=wrong)


def test_inspection_describes_the_set_that_is_named(tmp_path: Path) -> None:
    path = save(tmp_path / "m.pt", {"model": ONE, "ema": OTHER})
    unsaid = inspect_checkpoint(path)
    assert "several that differ" in str(unsaid.problem)
    found = inspect_checkpoint(path, weights="ema")
    assert (found.problem, found.weights, found.other_weights) == (None, "ema", ("model",))
