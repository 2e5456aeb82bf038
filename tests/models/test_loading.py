"""From a file to a classifier: sources of settings, fitting, preprocessing, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from bdaudit.errors import ConfigError, ModelError
from bdaudit.foundation.digests import digest_tensors
from bdaudit.models import Classifier, load_model, save_model, wrap_module
from tests.models.checkpoints import ARCH, IMAGE_SHAPE, tiny_network

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def saved(path: Path, network: nn.Module, **changes: Any) -> Path:
    settings: dict[str, Any] = {
        "arch": ARCH,
        "num_classes": 4,
        "image_shape": IMAGE_SHAPE,
        "mean": MEAN,
        "std": STD,
    }
    save_model(path, network, **{**settings, **changes})
    return path


def test_a_saved_model_loads_with_no_option_and_answers_the_same(tmp_path: Path) -> None:
    network = tiny_network().eval()
    model = load_model(saved(tmp_path / "m.safetensors", network), name="defended")
    images = torch.rand(5, *IMAGE_SHAPE)
    mean, std = torch.tensor(MEAN).view(1, 3, 1, 1), torch.tensor(STD).view(1, 3, 1, 1)
    with torch.no_grad():
        torch.testing.assert_close(model.classifier(images), network((images - mean) / std))
    assert (model.arch, model.num_classes, model.image_shape) == (ARCH, 4, IMAGE_SHAPE)
    assert model.weights_sha256 == digest_tensors(dict(network.state_dict()))
    assert model.notes == ()
    assert not model.classifier.training
    assert not any(parameter.requires_grad for parameter in model.classifier.parameters())


def test_loading_leaves_the_global_generator_alone(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.safetensors", tiny_network())
    before = torch.random.get_rng_state()
    load_model(path, name="m")
    assert torch.equal(before, torch.random.get_rng_state())


def test_the_model_does_not_hang_on_the_file(tmp_path: Path) -> None:
    torch.save(tiny_network().state_dict(), tmp_path / "m.pt")
    model = load_model(tmp_path / "m.pt", name="m", image_shape=IMAGE_SHAPE)
    before = model.weights_sha256
    (tmp_path / "m.pt").write_bytes(b"\0" * (tmp_path / "m.pt").stat().st_size)
    assert digest_tensors(dict(model.network.state_dict())) == before


def test_settings_come_from_argument_then_metadata_then_toml(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.safetensors", tiny_network(), mean=None, std=None)
    (tmp_path / "m.toml").write_text("mean = [0.1]\nstd = [0.9]\nimage_shape = [3, 16, 16]")
    model = load_model(path, name="m")
    assert model.image_shape == IMAGE_SHAPE  # the metadata's
    assert isinstance(model.classifier, Classifier)
    assert model.classifier.mean.flatten().tolist() == pytest.approx([0.1])  # the TOML's
    assert "read settings from m.toml" in model.notes
    model = load_model(path, name="m", image_shape=(3, 24, 24), mean=(0.3,), std=(0.5,))
    assert model.image_shape == (3, 24, 24)
    assert isinstance(model.classifier, Classifier)
    assert model.classifier.std.flatten().tolist() == pytest.approx([0.5])


def test_model_toml_serves_where_no_toml_bears_the_name(tmp_path: Path) -> None:
    torch.save(tiny_network().state_dict(), tmp_path / "m.pt")
    (tmp_path / "model.toml").write_text(f'arch = "{ARCH}"\nimage_shape = [3, 8, 8]')
    model = load_model(tmp_path / "m.pt", name="m")
    assert (model.arch, model.image_shape) == (ARCH, IMAGE_SHAPE)


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        ("arhc = 'x'", "arhc"),
        ("arch = ", "TOML"),
        ("num_classes = 1", "num_classes"),
        ("num_classes = true", "num_classes"),
        ("num_classes = 2.5", "whole numbers"),
        ("image_shape = [3, 8]", "image_shape"),
        ("image_shape = [3, 100000000, 100000000]", "image_shape"),
        ("std = [0.0]", "above 0"),
        ("mean = [nan]", "finite"),
        ("mean = ['x']", "mean"),
        ("outputs = 'odds'", "logits or probabilities"),
        ("arch = 'net.py:make'", "would run Python code"),
    ],
)
def test_bad_toml_names_the_file_and_the_key(tmp_path: Path, toml: str, message: str) -> None:
    torch.save(tiny_network().state_dict(), tmp_path / "m.pt")
    (tmp_path / "model.toml").write_text(toml)
    with pytest.raises(ModelError, match=rf"model\.toml.*{message}"):
        load_model(tmp_path / "m.pt", name="m", image_shape=IMAGE_SHAPE)


def test_metadata_that_names_python_code_is_refused_and_not_run(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    witness = tmp_path / "ran"
    (tmp_path / "net.py").write_text(f"open({str(witness)!r}, 'w')\ndef make(): ...")
    arch = f"{tmp_path}/net.py:make"
    save_file(dict(tiny_network().state_dict()), tmp_path / "m.safetensors", {"arch": arch})
    with pytest.raises(ModelError, match="would run Python code"):
        load_model(tmp_path / "m.safetensors", name="m")
    assert not witness.exists()


def test_an_unlabelled_file_is_recognised(tmp_path: Path) -> None:
    state = {f"module.{name}": tensor for name, tensor in tiny_network(7, 1).state_dict().items()}
    torch.save({"model": state}, tmp_path / "m.pt")
    model = load_model(tmp_path / "m.pt", name="m", fallback_image_shape=(1, 16, 16))
    assert (model.arch, model.num_classes, model.image_shape) == (ARCH, 7, (1, 16, 16))
    assert any("recognised" in note for note in model.notes)
    assert any("no normalisation" in note for note in model.notes)


@pytest.mark.parametrize("prefix", ["1.", "model.", "backbone."])
@pytest.mark.parametrize("arch", [None, ARCH])
def test_wrapped_names_fit_once_the_wrapper_is_dropped(
    tmp_path: Path, prefix: str, arch: str | None
) -> None:
    network = tiny_network()
    torch.save({prefix + n: t for n, t in network.state_dict().items()}, tmp_path / "m.pt")
    model = load_model(tmp_path / "m.pt", name="m", arch=arch, image_shape=IMAGE_SHAPE)
    assert model.weights_sha256 == digest_tensors(dict(network.state_dict()))
    assert any(f"stripped {prefix!r}" in note for note in model.notes)


def test_a_factory_of_the_user(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(
        "import torch\ndef make(num_classes=4):\n"
        "    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, num_classes))"
    )
    arch = f"{tmp_path}/net.py:make"
    state = {"1.weight": torch.randn(4, 192), "1.bias": torch.randn(4)}
    torch.save(state, tmp_path / "m.pt")
    model = load_model(tmp_path / "m.pt", name="m", arch=arch, image_shape=IMAGE_SHAPE)
    images = torch.rand(2, *IMAGE_SHAPE)
    expected = images.flatten(1) @ state["1.weight"].T + state["1.bias"]
    torch.testing.assert_close(model.classifier(images), expected)
    with pytest.raises(ModelError, match=r"'1\.weight': expected \(6, 192\), got \(4, 192\)"):
        load_model(tmp_path / "m.pt", name="m", arch=arch, image_shape=IMAGE_SHAPE, num_classes=6)
    with pytest.raises(ModelError, match="pass image_shape"):
        load_model(tmp_path / "m.pt", name="m", arch=arch)


def test_a_wrong_architecture_lists_differences_and_the_closest(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.safetensors", tiny_network())
    with pytest.raises(ModelError) as caught:
        load_model(path, name="m", arch="torchvision/resnet18")
    message = str(caught.value)
    assert "'conv1.weight': expected (64, 3, 7, 7), got (2, 3, 3, 3)" in message
    assert "missing" in message
    assert "'linear.weight'" in message
    assert f"closest known architecture is {ARCH} (100%" in message


def test_no_architecture_fits(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2, 2)}, tmp_path / "m.pt")
    with pytest.raises(ModelError, match=r"no architecture given.*\n.*file\.py:factory"):
        load_model(tmp_path / "m.pt", name="m")


def test_metadata_cannot_make_it_take_memory(tmp_path: Path) -> None:
    """The widest network would take two terabytes; it is compared on paper and refused."""
    path = saved(tmp_path / "m.safetensors", tiny_network(), arch="bdaudit/preactresnet18_w9999")
    with pytest.raises(ModelError, match="does not fit"):
        load_model(path, name="m")


@pytest.mark.parametrize("num_classes", [2, 10])
def test_a_wrong_class_count_says_what_to_pass(tmp_path: Path, num_classes: int) -> None:
    path = saved(tmp_path / "m.safetensors", tiny_network())
    with pytest.raises(ModelError, match=rf"head of {num_classes} classes, got one of 4; pass"):
        load_model(path, name="m", num_classes=num_classes)


def test_wrong_channels_say_what_the_network_takes(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.safetensors", tiny_network(in_channels=1), mean=None, std=None)
    with pytest.raises(ModelError, match="takes images of 1 channels, got images of 3"):
        load_model(path, name="m")


def test_grey_images_are_repeated_for_a_colour_network(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.safetensors", tiny_network(), image_shape=(1, 8, 8))
    grey = load_model(path, name="m")
    colour = load_model(path, name="m", image_shape=IMAGE_SHAPE)
    images = torch.rand(3, 1, 8, 8)
    torch.testing.assert_close(
        grey.classifier(images), colour.classifier(images.repeat(1, 3, 1, 1))
    )
    assert any("grey" in note for note in grey.notes)
    one = load_model(path, name="m", mean=(0.5,), std=(0.5,))
    assert one.classifier(images).shape == (3, 4)


@pytest.mark.parametrize("values", [(0.5, 0.5), (0.5,) * 4])
def test_a_normalisation_of_another_length_is_refused(
    tmp_path: Path, values: tuple[float, ...]
) -> None:
    path = saved(tmp_path / "m.safetensors", tiny_network())
    with pytest.raises(ModelError, match="expected 1 or 3 values"):
        load_model(path, name="m", mean=values, std=values)


@pytest.mark.parametrize(
    "argument",
    [{"num_classes": 1}, {"std": (0.0,)}, {"image_shape": (3, 0, 8)}, {"outputs": "odds"}],
)
def test_arguments_out_of_range_are_settings_errors(
    tmp_path: Path, argument: dict[str, Any]
) -> None:
    path = saved(tmp_path / "m.safetensors", tiny_network())
    with pytest.raises(ConfigError):
        load_model(path, name="m", **argument)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_cast_and_noted(tmp_path: Path, dtype: torch.dtype) -> None:
    state = {
        n: t.to(dtype) if t.is_floating_point() else t
        for n, t in tiny_network().state_dict().items()
    }
    torch.save(state, tmp_path / "m.pt")
    model = load_model(tmp_path / "m.pt", name="m", image_shape=IMAGE_SHAPE)
    assert {p.dtype for p in model.classifier.parameters()} == {torch.float32}
    assert any("float32" in note for note in model.notes)


def test_images_are_resized_inside_the_model(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.safetensors", tiny_network(), mean=None, std=None)
    model = load_model(path, name="m", image_shape=(3, 16, 16), input_size=(8, 8))
    images = torch.rand(2, 3, 16, 16)
    small = nn.functional.interpolate(images, size=(8, 8), mode="bilinear", antialias=True)
    torch.testing.assert_close(model.classifier(images), model.network(small))


def test_a_vision_transformer_takes_any_image(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    network = timm.create_model("test_vit", num_classes=3)
    torch.save(network.state_dict(), tmp_path / "m.pt")
    model = load_model(tmp_path / "m.pt", name="m", arch="timm/test_vit", image_shape=(3, 32, 32))
    assert model.num_classes == 3
    assert model.classifier(torch.rand(2, 3, 32, 32)).shape == (2, 3)
    assert any("resizes images to (160, 160)" in note for note in model.notes)


def test_images_too_small_for_the_network_say_what_to_pass(tmp_path: Path) -> None:
    from bdaudit.models import build_network

    network = build_network("torchvision/squeezenet1_0", num_classes=3)
    torch.save(network.state_dict(), tmp_path / "m.pt")
    with pytest.raises(ModelError, match=r"cannot take images.*input_size"):
        load_model(tmp_path / "m.pt", name="m", image_shape=IMAGE_SHAPE)


def test_auxiliary_heads_of_training_are_left_out(tmp_path: Path) -> None:
    from torchvision.models import googlenet

    network = googlenet(weights=None, num_classes=3, init_weights=False)
    assert any(name.startswith("aux1.") for name in network.state_dict())
    torch.save(network.state_dict(), tmp_path / "m.pt")
    model = load_model(tmp_path / "m.pt", name="m", image_shape=(3, 32, 32), mean=(0,), std=(1,))
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(model.classifier(images), network.eval()(images))


# --- modules in memory


def test_wrapping_leaves_the_module_as_it_was() -> None:
    network = tiny_network().double().train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    model = wrap_module(network, name="m", image_shape=IMAGE_SHAPE)
    assert network.training
    assert all(p.requires_grad and p.dtype == torch.float64 for p in network.parameters())
    assert all(torch.equal(before[n], t) for n, t in network.state_dict().items())
    assert (model.num_classes, model.arch) == (4, "PreActResNet")
    assert not any(p.requires_grad for p in model.classifier.parameters())


def test_wrapping_sees_through_data_parallel_and_keeps_a_classifier() -> None:
    network = tiny_network().eval()
    inner = Classifier(network, mean=MEAN, std=STD)
    model = wrap_module(nn.DataParallel(inner), name="m", image_shape=IMAGE_SHAPE)
    images = torch.rand(2, *IMAGE_SHAPE)
    with torch.no_grad():
        torch.testing.assert_close(model.classifier(images), inner(images))
    assert model.weights_sha256 == digest_tensors(dict(network.state_dict()))


def test_a_file_and_a_module_of_the_same_weights_have_one_digest(tmp_path: Path) -> None:
    network = tiny_network()
    path = saved(tmp_path / "m.safetensors", network)
    wrapped = wrap_module(network, name="m", image_shape=IMAGE_SHAPE)
    assert load_model(path, name="m").weights_sha256 == wrapped.weights_sha256


class Refuses(nn.Module):
    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, images: torch.Tensor) -> Any:
        return self.answer


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (torch.zeros(2), r"got \(2,\)"),
        (torch.zeros(3, 4), r"got \(3, 4\)"),
        ((torch.zeros(2, 4),), "got tuple"),
        (torch.full((2, 4), float("nan")), "NaN or infinity"),
    ],
)
def test_answers_of_another_form_are_refused(answer: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        wrap_module(Refuses(answer), name="m", image_shape=IMAGE_SHAPE)


def test_modules_with_nan_weights_or_another_class_count_are_refused() -> None:
    network = tiny_network()
    with pytest.raises(ModelError, match="pass num_classes=4"):
        wrap_module(network, name="m", image_shape=IMAGE_SHAPE, num_classes=9)
    with torch.no_grad():
        network.get_parameter("linear.bias")[0] = float("nan")
    with pytest.raises(ModelError, match=r"'linear\.bias'"):
        wrap_module(network, name="m", image_shape=IMAGE_SHAPE)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_model_on_cuda_answers_as_on_the_cpu(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.safetensors", tiny_network())
    images = torch.rand(4, *IMAGE_SHAPE)
    on_cpu, on_cuda = load_model(path, name="m"), load_model(path, name="m", device="cuda")
    torch.testing.assert_close(
        on_cuda.classifier(images.cuda()).cpu(), on_cpu.classifier(images), rtol=1e-2, atol=1e-2
    )
    assert on_cpu.weights_sha256 == on_cuda.weights_sha256
