"""Probabilities where logits are expected, and answers that cannot be audited."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from bdaudit.errors import ModelError
from bdaudit.models import Classifier, LoadedModel, check_outputs, wrap_module
from tests.models.checkpoints import IMAGE_SHAPE, tiny_network

IMAGES = torch.rand(6, *IMAGE_SHAPE, generator=torch.Generator().manual_seed(0))


def wrapped(*layers: nn.Module, **options: object) -> LoadedModel:
    network = nn.Sequential(tiny_network(), *layers)
    return wrap_module(network, name="m", image_shape=IMAGE_SHAPE, **options)  # type: ignore[arg-type]


def test_logits_pass_as_they_are() -> None:
    model = wrapped()
    assert check_outputs(model, IMAGES) is model


def test_probabilities_get_logs_and_a_note() -> None:
    model = wrapped(nn.Softmax(dim=1), mean=(0.5,), std=(0.5,), input_size=(16, 16))
    checked = check_outputs(model, IMAGES)
    torch.testing.assert_close(checked.classifier(IMAGES), model.classifier(IMAGES).log())
    assert any("took logs" in note for note in checked.notes)
    assert check_outputs(checked, IMAGES) is checked
    assert not checked.classifier.training


def test_a_user_who_says_logits_is_believed() -> None:
    model = wrapped(nn.Softmax(dim=1))
    assert check_outputs(model, IMAGES, outputs="logits") is model


def test_log_probabilities_are_logits() -> None:
    model = wrapped(nn.LogSoftmax(dim=1))
    assert check_outputs(model, IMAGES) is model


def test_sigmoids_are_not_taken_for_probabilities() -> None:
    model = wrapped(nn.Sigmoid())
    assert check_outputs(model, IMAGES) is model


def test_declared_probabilities_must_be_some() -> None:
    with pytest.raises(ModelError, match="declared probabilities"):
        check_outputs(wrapped(nn.Sigmoid(), outputs="probabilities"), IMAGES)


def test_a_probability_of_zero_has_a_finite_log() -> None:
    scores = torch.tensor([[1.0, 0.0]])

    class Certain(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return scores.expand(len(images), 2)

    classifier = Classifier(Certain(), outputs="probabilities")
    assert torch.isfinite(classifier(IMAGES)).all()


class NanForBright(nn.Module):
    """Fine on the grey image that loading tries, NaN on real ones."""

    def forward(self, images: Tensor) -> Tensor:
        return (0.9 - images.flatten(1).amax(1, keepdim=True)).sqrt().expand(len(images), 3)


def test_answers_that_are_not_finite_on_real_images() -> None:
    model = wrap_module(NanForBright(), name="defended", image_shape=IMAGE_SHAPE)
    with pytest.raises(ModelError, match="defended: expected finite logits"):
        check_outputs(model, IMAGES)


class WidthFromHeight(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.mean(dim=(1, 3))


def test_a_class_count_that_changes_with_the_images() -> None:
    model = wrap_module(WidthFromHeight(), name="m", image_shape=IMAGE_SHAPE)
    with pytest.raises(ModelError, match=r"expected logits \(6, 8\), got \(6, 5\)"):
        check_outputs(model, IMAGES[:, :, :5])
