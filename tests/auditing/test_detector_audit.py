"""Audits of the small detectors in examples/detectors, whose history docs/detection.md gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import bdaudit
from bdaudit.cases.settings import AuditSettings, ComputeSettings, SplitSettings
from bdaudit.models import load_model

EXAMPLES = Path(__file__).parents[2] / "examples" / "detectors"


def audit(defended: Any, **settings: Any) -> bdaudit.AuditRecord:
    return bdaudit.audit(
        defended=defended,
        original=EXAMPLES / "original.safetensors",
        reference=[EXAMPLES / "innocent.safetensors"],
        data=EXAMPLES / "pictures",
        trigger=EXAMPLES / "trigger" / "corner.toml",
        task="detection",
        settings=AuditSettings(
            eps=(0.03,),
            stand_ins=0,
            relearn=None,
            compute=ComputeSettings(device="cpu"),
            split=SplitSettings(craft=40, held_out=120),
            **settings,
        ),
    )


@pytest.mark.slow
def test_a_trigger_that_works_is_active_and_the_detector_is_measured() -> None:
    record = audit(EXAMPLES / "original.safetensors", passes=1)
    assert record.verdict is not None
    assert record.verdict.outcome == "active"
    assert record.sources["task"] == "detection"
    assert (record.trigger.kind, record.trigger.target_label) == ("on-object", 4)
    for baseline in record.baselines:
        assert baseline.detection is not None
        assert baseline.detection.ap50 > 0.8
    assert record.bec[0].layers
    assert all(layer.layer.startswith("backbone.") for layer in record.bec[0].layers)
    assert record.pictures is not None


@pytest.mark.slow
def test_a_detector_that_is_only_asked_is_audited_by_queries() -> None:
    network = load_model(EXAMPLES / "removed.safetensors", name="asked").network

    def detect(pictures: torch.Tensor) -> list[dict[str, torch.Tensor]]:
        assert pictures.shape[1:] == (3, 96, 96)
        found: list[dict[str, torch.Tensor]] = network.detect(pictures)  # type: ignore[operator]
        return found

    record = audit(detect, mode=("query",), max_queries=100, cold=True, bec=False)
    (defended,) = (b for b in record.baselines if b.role == "defended")
    assert defended.asr.value < 0.1
    assert defended.clean_acc.value > 0.8
    assert defended.detection is None
    runs = [run for run in record.runs if run.role == "defended" and run.condition == "trigger"]
    assert runs
    assert all(0 < run.image_queries <= 100 for run in runs)
