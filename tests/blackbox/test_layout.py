"""How images are laid out, and which outputs hold scores."""

from __future__ import annotations

import pytest
import torch

from bdaudit.blackbox.layout import ImageLayout, TensorSpec, choose_output, place_images
from bdaudit.errors import ConfigError, ModelError
from bdaudit.models import ModelSettings

OPEN = ModelSettings()


def spec(*shape: int | None, dtype: str = "float32", name: str = "x") -> TensorSpec:
    return TensorSpec(name=name, dtype=dtype, shape=shape)


@pytest.mark.parametrize(
    ("shape", "order", "image_shape"),
    [
        ((None, 3, 32, 40), "NCHW", (3, 32, 40)),
        ((None, 32, 40, 3), "NHWC", (3, 32, 40)),
        ((4, 1, 28, 28), "NCHW", (1, 28, 28)),
        # Both readings are possible: channels first, unless told.
        ((None, 3, 32, 3), "NCHW", (3, 32, 3)),
    ],
)
def test_shapes_that_explain_themselves(
    shape: tuple[int | None, ...], order: str, image_shape: tuple[int, int, int]
) -> None:
    layout = place_images(spec(*shape), subject="m", settings=OPEN)
    assert (layout.order, layout.image_shape, layout.batch) == (order, image_shape, shape[0])


def test_the_user_settles_what_is_open() -> None:
    free = spec(None, None, None, None)
    settings = ModelSettings(image_shape=(3, 32, 40))
    assert place_images(free, subject="m", settings=settings).order == "NCHW"
    assert place_images(free, subject="m", settings=settings, order="NHWC").order == "NHWC"
    odd = spec(None, 12, 16, 16)
    assert place_images(odd, subject="m", settings=OPEN, order="NCHW").image_shape == (12, 16, 16)
    with pytest.raises(ModelError, match="pass image_shape"):
        place_images(odd, subject="m", settings=OPEN)
    # The sample's shape only where it fits: the model's own is stronger.
    own = place_images(
        spec(None, 3, 64, 64), subject="m", settings=OPEN, fallback_image_shape=(1, 28, 28)
    )
    assert own.image_shape == (3, 64, 64)


def test_values_and_order_as_the_model_takes_them() -> None:
    images = torch.arange(24.0).view(1, 2, 3, 4) / 24
    layout = ImageLayout(
        order="NHWC", dtype="float32", image_shape=(2, 3, 4), mean=(0.0, 0.5), std=(1.0, 0.25)
    )
    tensor = layout.encode(images)
    assert tensor.shape == (1, 3, 4, 2)
    assert tensor.flags["C_CONTIGUOUS"]
    for row, column in ((0, 0), (2, 3)):
        assert tensor[0, row, column, 0] == pytest.approx(float(images[0, 0, row, column]))
        expected = (float(images[0, 1, row, column]) - 0.5) / 0.25
        assert tensor[0, row, column, 1] == pytest.approx(expected)


def test_eight_bits_round_and_reach_both_ends() -> None:
    layout = ImageLayout(order="NCHW", dtype="uint8", image_shape=(1, 1, 4))
    images = torch.tensor([0.0, 1.0, 0.4999 / 255, 0.5001 / 255]).view(1, 1, 1, 4)
    assert layout.encode(images).ravel().tolist() == [0, 255, 0, 1]
    with pytest.raises(ConfigError, match="mean and std"):
        ImageLayout(order="NCHW", dtype="uint8", image_shape=(1, 1, 4), std=(0.5,))
    with pytest.raises(ConfigError, match="mean: expected 1 or 3 values"):
        ImageLayout(order="NCHW", dtype="float32", image_shape=(3, 1, 4), mean=(0.5, 0.5))


def test_outputs() -> None:
    scores, labels = spec(None, 10, name="scores"), spec(None, dtype="int64", name="label")
    assert choose_output([labels, scores], subject="m", labels_only=True) is scores
    assert choose_output([labels], subject="m", labels_only=True) is labels
    assert choose_output([labels, scores], subject="m", name="label") is labels
    with pytest.raises(ModelError, match=r"got none among label int64 \(\?\)"):
        choose_output([labels], subject="m")
    with pytest.raises(ModelError, match="got none among no outputs"):
        choose_output([], subject="m")
