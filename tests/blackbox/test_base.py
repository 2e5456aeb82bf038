"""What holds for every black box: counting, checking, budgets, scales."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from bdaudit.blackbox import (
    BlackBoxOptions,
    FunctionBlackBox,
    Identity,
    Meter,
    ScoreScale,
    TorchBlackBox,
    detect_scale,
    open_black_box,
    top_labels,
)
from bdaudit.blackbox.scale import rounding_step
from bdaudit.errors import BudgetError, ConfigError, DataError, ModelError
from bdaudit.models import ONE_SCORE, ModelSettings, preactresnet18, save_model, wrap_module
from tests.twins import IMAGE_SHAPE, NUM_CLASSES, original_twin, twin_sample

NET = original_twin()
IMAGES = twin_sample(9, 0).images


def function_box(function: object, **settings: object) -> FunctionBlackBox:
    return FunctionBlackBox(
        function,
        **{"name": "defended", "num_classes": NUM_CLASSES, "image_shape": IMAGE_SHAPE} | settings,
    )


def torch_box(**settings: object) -> TorchBlackBox:
    model = wrap_module(NET, name="defended", image_shape=IMAGE_SHAPE)
    return TorchBlackBox(model, **settings)


def test_a_torch_model_answers_as_it_would_itself() -> None:
    box = torch_box(batch_size=4)
    before = IMAGES.clone()
    answers = box.ask(IMAGES)
    torch.testing.assert_close(answers, NET(IMAGES))
    assert box.n_queries == 9
    assert torch.equal(IMAGES, before)
    assert not answers.is_inference()  # or a search could not compute with them
    assert torch.equal(top_labels(answers), torch_box(feedback="labels").ask(IMAGES))


@pytest.mark.parametrize("outputs", [None, "logits", "probabilities"])
def test_a_module_in_memory_is_taken_at_its_word_or_looked_at(outputs: str | None) -> None:
    module = nn.Sequential(NET, nn.Softmax(dim=1))
    options = BlackBoxOptions(settings=ModelSettings(outputs=outputs))
    box = open_black_box(module, name="defended", options=options, fallback_image_shape=IMAGE_SHAPE)
    expected = module(IMAGES) if outputs == "logits" else NET(IMAGES).log_softmax(1)
    torch.testing.assert_close(box.ask(IMAGES), expected, rtol=1e-4, atol=1e-5)
    assert box.score_kind == ("probabilities" if outputs is None else "logits")
    with pytest.raises(ConfigError, match="image_shape"):
        open_black_box(module, name="defended")


def test_a_checkpoint_is_opened_like_any_other(tmp_path: Path) -> None:
    net = preactresnet18(num_classes=4, in_channels=1, width=2).eval()
    save_model(
        tmp_path / "net.safetensors",
        net,
        arch="bdaudit/preactresnet18_w2",
        num_classes=4,
        image_shape=(1, 16, 16),
        mean=(0.5,),
        std=(0.25,),
    )
    box = open_black_box(str(tmp_path / "net.safetensors"), name="defended")
    images = torch.rand(3, 1, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(box.ask(images), net((images - 0.5) / 0.25))
    assert box.identity().kind == "torch"


@pytest.mark.cuda
def test_a_torch_model_is_asked_where_it_is() -> None:
    model = wrap_module(NET, name="defended", image_shape=IMAGE_SHAPE, device="cuda")
    torch.testing.assert_close(TorchBlackBox(model).ask(IMAGES), NET(IMAGES), rtol=1e-3, atol=1e-3)


def test_images_are_rounded_to_the_grid_before_anything_sees_them() -> None:
    seen = []
    box = function_box(lambda images: (seen.append(images), NET(images))[1], grid=255)
    box.ask(IMAGES)
    assert torch.equal(seen[0] * 255, (seen[0] * 255).round())
    torch.testing.assert_close(seen[0], IMAGES, rtol=0, atol=0.5 / 255 + 1e-6)
    assert torch.equal(box.to_grid(box.to_grid(IMAGES)), box.to_grid(IMAGES))


def test_no_images_cost_nothing() -> None:
    box = torch_box()
    assert box.ask(IMAGES[:0]).shape == (0, NUM_CLASSES)
    assert torch_box(feedback="labels").ask(IMAGES[:0]).shape == (0,)
    assert box.n_queries == 0


@pytest.mark.parametrize(
    "images",
    [
        IMAGES[0],
        IMAGES[:, :, :4],
        IMAGES + 1,
        IMAGES - 0.5,
        torch.full((1, *IMAGE_SHAPE), torch.nan),
    ],
)
def test_images_that_are_none_are_not_sent(images: Tensor) -> None:
    box = torch_box()
    with pytest.raises(DataError, match="defended: expected images"):
        box.ask(images)
    assert box.n_queries == 0


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (torch.zeros(9, 5), r"expected scores \(9, 4\), got \(9, 5\)"),
        (torch.zeros(8, 4), r"expected scores \(9, 4\) or labels"),
        (torch.zeros(9, 2, 2), "from the function"),
        (torch.full((9, 4), torch.inf), "NaN or infinity"),
        (torch.zeros(9, dtype=torch.int64), "got labels only"),
        ("nine images", "failed on 9 images"),
    ],
)
def test_answers_that_are_none(answer: object, said: str) -> None:
    with pytest.raises(ModelError, match=said):
        function_box(lambda images: answer).ask(IMAGES)


def test_labels_out_of_range() -> None:
    box = function_box(lambda images: np.full(len(images), 7), feedback="labels")
    with pytest.raises(ModelError, match="expected labels from 0 to 3, got 7 to 7"):
        box.ask(IMAGES)


def test_a_function_may_answer_in_arrays_or_lists_and_cannot_touch_the_images() -> None:
    def spoil(images: Tensor) -> list[list[float]]:
        scores = NET(images).tolist()
        images.zero_()
        return scores

    before = IMAGES.clone()
    torch.testing.assert_close(function_box(spoil).ask(IMAGES), NET(IMAGES))
    assert torch.equal(IMAGES, before)


def test_a_function_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("def answer(images):\n    return images.flatten(1)[:, :4].numpy()\n")
    settings = {"fallback_image_shape": IMAGE_SHAPE, "fallback_num_classes": 4}
    box = open_black_box(f"{file}:answer", name="defended", **settings)
    assert torch.equal(box.ask(IMAGES), IMAGES.flatten(1)[:, :4])
    old = box.identity()
    file.write_text(file.read_text() + "# changed\n")
    (change,) = old.changes(box.identity())
    assert change.startswith("sha256: was ")
    with pytest.raises(ModelError, match="has no function 'nothing'"):
        open_black_box(f"{file}:nothing", name="defended", **settings)
    with pytest.raises(ConfigError, match="pass both"):
        open_black_box(f"{file}:answer", name="defended")


def test_options_that_a_function_would_not_hear_of() -> None:
    options = BlackBoxOptions(
        settings=ModelSettings(mean=(0.5,), image_shape=IMAGE_SHAPE, num_classes=4)
    )
    with pytest.raises(ConfigError, match="normalise and resize inside it"):
        open_black_box(NET.forward, name="defended", options=options)


@settings(max_examples=40)
@given(st.lists(st.integers(0, 9), max_size=8), st.integers(0, 40))
def test_a_budget_is_never_exceeded_by_one(sizes: list[int], budget: int) -> None:
    box = function_box(lambda images: images.flatten(1)[:, :4], batch_size=3)
    search, scoring = Meter(box, max_queries=budget), Meter(box)
    spent = 0
    for size in sizes:
        if spent + size > budget:
            with pytest.raises(BudgetError, match=f"at most {budget - spent} more images"):
                search.ask(IMAGES[:size])
        kept = search.affordable(IMAGES[:size])
        assert len(kept) == min(size, budget - spent)
        search.ask(kept)
        scoring.ask(IMAGES[:1])
        spent += len(kept)
        assert search.n_spent == spent <= budget
    assert scoring.n_spent == len(sizes)
    assert box.n_queries == spent + len(sizes)


def test_a_meter_resumes_where_it_stopped() -> None:
    meter = Meter(torch_box(), max_queries=10, n_spent=7)
    assert len(meter.affordable(IMAGES)) == meter.n_left == 3
    with pytest.raises(ConfigError):
        Meter(torch_box(), max_queries=-1)


def test_what_was_answered_before_a_failure_is_counted() -> None:
    calls = iter([NET, NET, None])

    def answer(images: Tensor) -> Tensor:
        net = next(calls)
        if net is None:
            raise OSError("gone")
        return net(images)

    box = function_box(answer, batch_size=4)
    meter = Meter(box, max_queries=100)
    with pytest.raises(ModelError, match="OSError: gone"):
        meter.ask(IMAGES)
    assert meter.n_spent == box.n_queries == 8


def test_what_changed_between_two_identities() -> None:
    a = Identity(kind="onnx", source="here.onnx", sha256="1", details={"grid": "255"})
    moved = Identity(kind="onnx", source="there.onnx", sha256="1", details={"grid": "255"})
    other = Identity(kind="onnx", source="here.onnx", sha256="2", details={})
    assert a.changes(moved) == []
    assert a.changes(other) == ["grid: was 255, is not set", "sha256: was 1, is 2"]
    served = Identity(kind="served", source="http://a/v2/models/m")
    elsewhere = Identity(kind="served", source="http://b/v2/models/m")
    assert len(served.changes(elsewhere)) == 1


# Scales.


@given(st.integers(2, 12), st.integers(2, 20), st.integers(0, 2**31))
def test_probabilities_are_known_from_logits(n: int, k: int, seed: int) -> None:
    logits = torch.randn(n, k, generator=torch.Generator().manual_seed(seed)) * 3
    assert detect_scale(logits).kind == "logits"
    assert detect_scale(logits.log_softmax(1)).kind == "logits"
    assert detect_scale(logits.softmax(1)).kind == "probabilities"


@given(st.sampled_from([0.1, 0.01, 0.001, 0.0001, 1 / 255]), st.integers(0, 2**31))
def test_rounding_is_found_and_its_step_named(step: float, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    exact = (torch.randn(40, 10, generator=draw, dtype=torch.float64) * 2).softmax(1)
    rounded = (exact / step).round() * step
    scale = detect_scale(rounded.float())
    assert scale.kind == "probabilities"
    assert scale.step == pytest.approx(step)
    assert detect_scale(exact.float()).step is None
    # The logarithm of a rounded 0 is that of half a step, not of nothing.
    assert float(scale.to_log_scale(rounded.float()).min()) >= np.log(step / 2) - 1e-5


def test_certain_answers_are_not_taken_for_rounded_ones() -> None:
    confident = torch.tensor([[1.0, 1e-9, 3e-9], [2e-12, 1.0, 1e-20]])
    assert detect_scale(confident) == ScoreScale(kind="probabilities")
    assert rounding_step(torch.eye(3)) is None
    torch.testing.assert_close(
        ScoreScale(kind="probabilities").to_log_scale(confident), confident.log()
    )


def test_a_scale_is_held_to() -> None:
    answers = iter([NET(IMAGES).softmax(1), NET(IMAGES)])
    box = function_box(lambda images: next(answers))
    torch.testing.assert_close(box.ask(IMAGES), NET(IMAGES).log_softmax(1))
    assert box.score_kind == "probabilities"
    with pytest.raises(ModelError, match="declare outputs='logits'"):
        box.ask(IMAGES)


def test_a_declared_scale_is_believed() -> None:
    box = function_box(lambda images: NET(images).softmax(1), scale=ScoreScale(kind="logits"))
    torch.testing.assert_close(box.ask(IMAGES), NET(IMAGES).softmax(1))
    with pytest.raises(ConfigError, match="step"):
        ScoreScale(kind="logits", step=0.1)
    with pytest.raises(ConfigError, match="kind"):
        ScoreScale(kind="odds")


@pytest.mark.parametrize(
    "setting", [{"feedback": "hints"}, {"grid": 0}, {"batch_size": 0}, {"num_classes": 1}]
)
def test_settings_out_of_range(setting: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(setting))):
        function_box(NET.forward, **setting)


def one_logit(images: Tensor) -> Tensor:
    return 60 * (images.mean((1, 2, 3)) - 0.5)[:, None]


LIGHT_AND_DARK = torch.linspace(0.02, 0.98, 8).view(-1, 1, 1, 1).expand(-1, *IMAGE_SHAPE)


@pytest.mark.parametrize("sure", [False, True], ids=["logits", "probabilities"])
def test_one_score_of_a_function_is_two_classes(sure: bool) -> None:
    box = function_box(
        (lambda images: one_logit(images).sigmoid()) if sure else one_logit, num_classes=2
    )
    answers = box.ask(LIGHT_AND_DARK)
    assert box.notes == [ONE_SCORE]
    assert answers.argmax(1).tolist() == [0] * 4 + [1] * 4
    logits = answers[:, 1] - answers[:, 0]
    # Of a probability that float32 rounds to 1 no more is known than that the rest is below 2^-24.
    wanted = one_logit(LIGHT_AND_DARK)[:, 0].clamp(max=17.33 if sure else 99)
    torch.testing.assert_close(logits, wanted, rtol=0.03, atol=1e-4)


def test_whole_numbers_are_labels_and_fractions_are_not() -> None:
    column = function_box(
        lambda images: (images.mean((1, 2, 3)) > 0.5).long()[:, None],
        num_classes=2,
        feedback="labels",
    )
    assert column.ask(LIGHT_AND_DARK).tolist() == [0] * 4 + [1] * 4
    row = function_box(
        lambda images: one_logit(images)[:, 0].sigmoid(), num_classes=2, feedback="labels"
    )
    with pytest.raises(ModelError, match=r"one score an image as \(8, 1\)"):
        row.ask(LIGHT_AND_DARK)


def test_answers_of_a_function_keep_their_form() -> None:
    forms = iter((1, 2))
    box = function_box(
        lambda images: torch.zeros(len(images), next(forms)), num_classes=2, batch_size=4
    )
    with pytest.raises(ModelError, match="answers of one form"):
        box.ask(LIGHT_AND_DARK)
