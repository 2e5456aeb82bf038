"""Answers that depend on the rest of the batch make every rate doubtful, and no verdict passes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import bdaudit
from bdaudit.blackbox import BlackBoxOptions
from bdaudit.records import AuditRecord, Diagnostic
from tests.auditing.test_audit import SETTINGS, TRIGGER, another_innocent, audit
from tests.twins import dormant_twin, original_twin, removed_twin, twin_sample

CODE = "answers_depend_on_batch"


class BesideOthers(nn.Module):
    """A twin that takes from every score what the mean of the batch gives it."""

    def __init__(self, twin: nn.Module) -> None:
        super().__init__()
        self.twin = twin

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.twin(images)
        return logits - 0.5 * logits.mean(dim=0, keepdim=True)


def told(record: object, subject: str = "defended") -> list[Diagnostic]:
    found = record.diagnostics  # type: ignore[attr-defined]
    return [d for d in found if (d.code, d.subject) == (CODE, subject)]


def outcome(record: AuditRecord) -> str:
    assert record.verdict is not None
    return record.verdict.outcome


@pytest.mark.parametrize("twin", [removed_twin, dormant_twin])
def test_a_module_in_memory(twin: Callable[[], nn.Module]) -> None:
    record = audit(BesideOthers(twin()))
    (doubt,) = told(record)
    assert doubt.severity == "error"
    assert "track_running_stats=True" in doubt.message
    assert outcome(record) == "inconclusive"
    assert not told(audit(twin()))


def test_an_original_that_depends_on_the_batch_is_no_measure_either() -> None:
    record = audit(removed_twin(), original=BesideOthers(original_twin()))
    assert [d.severity for d in told(record, "original")] == ["error"]
    assert outcome(record) == "inconclusive"


def test_a_reference_that_depends_on_the_batch_is_left_out() -> None:
    record = audit(removed_twin(), reference=[another_innocent(1), BesideOthers(removed_twin())])
    assert not told(record, "reference 2")
    alone = record.baseline_of("reference 2")
    assert alone is not None
    assert "depends on the images beside it" in (alone.left_out or "")
    assert outcome(record) == "removed"


QUERY = replace(SETTINGS, mode=("query",), cold=True, eps=(0.05,), max_queries=400, bec=False)


@pytest.mark.parametrize("feedback", ["scores", "labels"])
def test_a_function_that_can_only_be_asked_and_the_remedy(feedback: str) -> None:
    asked: list[int] = []

    class Strong(BesideOthers):
        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = self.twin(images)
            return logits - 2.0 * logits.mean(dim=0, keepdim=True)

    network = Strong(removed_twin())

    def answer(images: Tensor) -> Tensor:
        asked.append(len(images))
        with torch.no_grad():
            scores: Tensor = network(images)
        return scores if feedback == "scores" else scores.argmax(dim=1)

    settings = replace(QUERY, feedback=feedback)
    record = audit(answer, settings=settings)  # type: ignore[arg-type]
    (doubt,) = told(record)
    assert doubt.severity == "error"
    assert "--request-size 1" in doubt.message
    assert outcome(record) == "inconclusive"
    steady = removed_twin()

    def beside_nobody(images: Tensor) -> Tensor:
        with torch.no_grad():
            scores: Tensor = steady(images)
        scores = scores - 2.0 * scores.mean(dim=0, keepdim=True) if len(images) > 1 else scores
        return scores if feedback == "scores" else scores.argmax(dim=1)

    one_at_a_time = audit(
        beside_nobody,  # type: ignore[arg-type]
        settings=replace(settings, max_queries=50),
        black_box=BlackBoxOptions(request_size=1),
    )
    assert not told(one_at_a_time)


def test_the_other_verbs_say_so(tmp_path: Path) -> None:
    network = BesideOthers(removed_twin())
    given = {
        "data": twin_sample(200, seed=2),
        "trigger": TRIGGER,
        "compute": bdaudit.ComputeSettings(device="cpu"),
    }
    scored = bdaudit.score(network, original=original_twin(), stand_ins=0, **given)  # type: ignore[arg-type]
    assert told(scored)
    relearned = bdaudit.relearn(
        network,
        reference=[another_innocent(1)],
        stand_ins=0,
        config=bdaudit.RelearnConfig(shots=2, steps=(2,), draws=1, learning_rates=(0.001,)),
        **given,  # type: ignore[arg-type]
    )
    assert told(relearned)
    attacked = bdaudit.reactivate(
        network,
        config=bdaudit.WhiteboxConfig(eps=0.05, n_passes=1),
        **given,  # type: ignore[arg-type]
    )
    assert told(attacked.record)
    searched = bdaudit.invert(
        BesideOthers(original_twin()),
        data=given["data"],  # type: ignore[arg-type]
        target=0,
        stand_ins=0,
        config=bdaudit.InversionConfig(methods=("universal",)),
        compute=bdaudit.ComputeSettings(device="cpu"),
    )
    assert told(searched.record, "original")


def test_transfer_says_so() -> None:
    settings = replace(SETTINGS, mode=("transfer",), eps=(0.05,), bec=False)
    record = audit(
        BesideOthers(removed_twin()), settings=settings, surrogate=[BesideOthers(dormant_twin())]
    )
    assert [d.severity for d in told(record)] == ["error"]
    assert [d.severity for d in told(record, "surrogate 1")] == ["warning"]
