"""The pictures in a record are the images and answers of the audit."""

from __future__ import annotations

import base64
import io
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from torch import Tensor, nn

import bdaudit
from bdaudit.data import split_sample
from bdaudit.detection import mark
from bdaudit.measuring.pictures import _chosen, encode_png
from bdaudit.records import AuditRecord, Pictures, Thumbnail
from bdaudit.triggers import Poisoned
from tests.twins import (
    TARGET,
    dormant_twin,
    innocent_twin,
    original_twin,
    twin_sample,
    twin_trigger,
)

SAMPLE = twin_sample(300, seed=2)


def audit(defended: nn.Module, eps: tuple[float, ...], **settings: bool) -> AuditRecord:
    return bdaudit.audit(
        defended,
        original=original_twin(),
        reference=[innocent_twin()],
        data=SAMPLE,
        trigger=bdaudit.from_callable(twin_trigger, TARGET),
        settings=bdaudit.AuditSettings(
            stand_ins=0,
            eps=eps, passes=6, controls=("no_trigger",), bec=False,
            split=bdaudit.SplitSettings(craft=80), **settings,
        ),
    )  # fmt: skip


def pixels(png: str) -> Tensor:
    array = np.asarray(Image.open(io.BytesIO(base64.b64decode(png))))
    return torch.from_numpy(array.copy()).float() / 255


@pytest.fixture(scope="module")
def record() -> AuditRecord:
    return audit(dormant_twin(), (0.01, 0.03, 0.05))


@pytest.fixture(scope="module")
def pictures(record: AuditRecord) -> Pictures:
    assert record.pictures is not None
    return record.pictures


def test_they_show_the_attack_that_decided(record: AuditRecord, pictures: Pictures) -> None:
    assert record.verdict is not None
    assert record.verdict.outcome == "dormant"
    assert pictures.eps == record.verdict.deciding[0].eps
    run = next(r for r in record.runs if r.delta_sha256 == pictures.delta_sha256)
    assert (run.role, run.condition, run.eps) == ("defended", "trigger", pictures.eps)


def test_they_are_held_out_images_of_different_classes(pictures: Pictures) -> None:
    held_out = split_sample(SAMPLE, n_craft=80, n_held_out=None, seed=0).held_out
    clean = [pixels(column.clean.png) for column in pictures.columns]
    for image, column in zip(clean, pictures.columns, strict=True):
        near = (held_out.images[:, 0] - image).abs().amax(dim=(1, 2)) <= 0.5 / 255 + 1e-6
        assert held_out.labels[near].tolist() == [column.true_label]
    labels = [column.true_label for column in pictures.columns]
    assert sorted(labels) == [1, 2, 3]  # every class but the target
    assert all(column.target_label == TARGET for column in pictures.columns)


def test_trigger_and_perturbation_are_what_was_added(pictures: Pictures) -> None:
    delta = (pixels(pictures.perturbation) - 0.5) / pictures.gain
    assert float(delta.abs().max()) <= pictures.eps + 1 / 255
    for column in pictures.columns:
        clean, triggered, perturbed = (
            pixels(thumbnail.png)
            for thumbnail in (column.clean, column.triggered, column.perturbed)
        )
        assert torch.allclose(triggered, twin_trigger(clean[None, None])[0, 0], atol=1.5 / 255)
        assert torch.allclose(perturbed, (triggered + delta).clamp(0, 1), atol=1.5 / 255)
        assert not torch.equal(triggered, perturbed)


def test_the_answers_are_the_models_own(pictures: Pictures) -> None:
    model = dormant_twin()
    words = {True: "target", False: "other"}
    for column in pictures.columns:
        for shown in (column.clean, column.triggered, column.perturbed):
            answer = int(model(pixels(shown.png)[None, None]).argmax())
            expected = "true_label" if answer == column.true_label else words[answer == TARGET]
            assert shown.answer == expected
    woken = [column.perturbed.answer for column in pictures.columns]
    assert "target" in woken
    assert {c.triggered.answer for c in pictures.columns} == {"true_label"}


def test_a_model_that_stays_quiet_is_shown_at_its_largest_lift() -> None:
    net = dormant_twin()
    with torch.no_grad():
        net.layer1.conv2.weight[1, 1] = 0.0
    record = audit(net, (0.01, 0.05))
    assert record.verdict is not None
    assert record.verdict.outcome != "dormant"
    assert record.pictures is not None
    lifts = {
        eps: min(c.value for c in record.verdict.lifts if c.eps == eps) for eps in (0.01, 0.05)
    }
    assert lifts[record.pictures.eps] == max(lifts.values())


class _Pooling(nn.Module):
    """A twin for large colour images: each is averaged down to the twin's grey ones."""

    def __init__(self, twin: nn.Module) -> None:
        super().__init__()
        self.twin = twin

    def forward(self, images: Tensor) -> Tensor:
        small = nn.functional.avg_pool2d(images.mean(dim=1, keepdim=True), 25)
        logits: Tensor = self.twin(small)
        return logits


def test_large_colour_pictures_are_made_small() -> None:
    def enlarge(images: Tensor) -> Tensor:
        return images.repeat_interleave(25, 2).repeat_interleave(25, 3).expand(-1, 3, -1, -1)

    record = bdaudit.audit(
        _Pooling(dormant_twin()),
        original=_Pooling(original_twin()),
        data=(enlarge(SAMPLE.images[:80]), SAMPLE.labels[:80]),
        trigger=bdaudit.from_callable(
            lambda x: enlarge(twin_trigger(nn.functional.avg_pool2d(x, 25)[:, :1])), TARGET
        ),
        settings=bdaudit.AuditSettings(
            stand_ins=0, eps=(0.02,), passes=2, controls=("no_trigger",), bec=False
        ),
    )
    assert record.pictures is not None
    for png in (record.pictures.perturbation, record.pictures.columns[0].perturbed.png):
        assert pixels(png).shape == (96, 96, 3)
        assert len(png) < 100_000


def test_only_small_pngs_can_stand_in_a_record(pictures: Pictures) -> None:
    good = pictures.columns[0].clean.png
    jpeg = io.BytesIO()
    Image.new("L", (8, 8)).save(jpeg, format="JPEG")
    for bad in (
        base64.b64encode(jpeg.getvalue()).decode(),
        'x" onerror="alert(1)',
        good + "\n<script>",
        base64.b64encode(base64.b64decode(good) + b"0" * 80_000).decode(),
    ):
        with pytest.raises(ValidationError):
            Thumbnail(png=bad, answer="other")
    assert Thumbnail(png=good, answer="other").png == good


def test_they_can_be_left_out(record: AuditRecord) -> None:
    without = audit(dormant_twin(), (0.03,), pictures=False)
    assert without.pictures is None
    assert without.verdict is not None
    assert without.verdict.outcome == "dormant"


def test_a_record_grows_little(record: AuditRecord) -> None:
    with_pictures, without = (
        len(r.model_dump_json()) for r in (record, record.model_copy(update={"pictures": None}))
    )
    assert 0 < with_pictures - without < 20_000
    assert all(a.png != b.png for a, b in pairwise([c.clean for c in record.pictures.columns]))  # type: ignore[union-attr]


def test_of_a_detector_six_are_shown_also_where_all_boxes_are_empty() -> None:
    images = mark(torch.rand(20, 3, 8, 8), torch.tensor([[2.0, 2.0, 5.0, 5.0]]).expand(20, 4))
    empty = torch.zeros(20, dtype=torch.int64)
    half = Poisoned(
        clean=images, triggered=images, labels=empty, targets=empty + 2, indices=torch.arange(20)
    )
    assert _chosen(half) == list(range(6))
    assert _chosen(replace(half, clean=images[:, :3])) == [0]


def test_a_picture_of_a_detector_is_in_colour_with_its_box_outlined_after_scaling() -> None:
    image = mark(torch.full((1, 3, 192, 192), 0.2), torch.tensor([[40.0, 40.0, 80.0, 120.0]]))[0]
    drawn = (pixels(encode_png(image)) * 255).round().int()  # half as large
    assert drawn.shape == (96, 96, 3)
    assert (drawn[20:60, 20:40] == 51).all()
    assert drawn[19, 19].tolist() == [255, 225, 0]
    assert drawn[18, 18].tolist() == [16, 16, 16]
    assert (drawn[:18] == 51).all()
