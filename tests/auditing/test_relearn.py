"""Relearning on hand-set twins: alone, and beside the verdict of an audit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import bdaudit
from bdaudit.auditing import relearn_steps
from bdaudit.cases.sources import Sources
from bdaudit.errors import ModelError
from bdaudit.foundation.progress import Progress, finish
from bdaudit.records import RelearnRecord, read_record, to_json
from bdaudit.relatives.standins import StandInConfig
from bdaudit.relearning import read_gap
from tests.twins import (
    TARGET,
    dormant_twin,
    innocent_twin,
    original_twin,
    removed_twin,
    twin_sample,
    twin_trigger,
)

TRIGGER = bdaudit.from_callable(twin_trigger, TARGET)
CONFIG = bdaudit.RelearnConfig(
    learning_rates=(1e-4, 1e-3, 1e-2), steps=(1, 2, 5), draws=3, n_clean=8, n_held_out=60
)
COMPUTE = bdaudit.ComputeSettings(device="cpu")


def relearn(defended: nn.Module, **changes: object) -> RelearnRecord:
    arguments: dict[str, object] = {
        "data": twin_sample(200, seed=1),
        "trigger": TRIGGER,
        "reference": [innocent_twin(), innocent_twin()],
        "config": CONFIG,
        "stand_ins": 0,
        "compute": COMPUTE,
    }
    return bdaudit.relearn(defended, **(arguments | changes))  # type: ignore[arg-type]


def test_a_sleeping_backdoor_is_remembered_and_a_removed_one_is_not(tmp_path: Path) -> None:
    asleep = relearn(dormant_twin())
    assert asleep.relearning.outcome == "dormant"
    assert asleep.relearning.evidence.gap > 0.9
    assert asleep.relearning.evidence.settings["n_held_out"] == 60
    assert "remembers the trigger" in asleep.relearning.why
    gone = relearn(removed_twin())
    assert gone.relearning.outcome == "removed"
    path = tmp_path / "relearn.json"
    path.write_text(to_json(asleep), encoding="utf-8")
    again = read_record(path)
    assert isinstance(again, RelearnRecord)
    assert again.relearning == asleep.relearning


def test_the_defended_model_is_taught_at_the_chosen_rate_alone() -> None:
    """At the next larger one innocent models go to the target anyway."""
    found = relearn(dormant_twin()).relearning
    rate = found.evidence.settings["learning_rate"]
    assert [c.learning_rate for c in found.curves if c.role == "defended"] == [rate]
    tried = [c.learning_rate for c in found.curves if c.model == "reference 1"]
    assert tried == [1e-3, 1e-2]  # from the largest down, until innocent models stay as they are
    assert found.faster is None


class Quick(nn.Module):
    """An innocent twin that learns the trigger, and nothing else, in a few larger steps."""

    def __init__(self) -> None:
        super().__init__()
        self.net = innocent_twin()
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.net(images)
        seen = twin_trigger(torch.zeros_like(images[:1])).mul(images).sum((1, 2, 3))
        return logits + (100.0 * self.weight * seen)[:, None] * (
            torch.arange(logits.shape[1]) == TARGET
        )


def test_all_are_taught_at_the_next_larger_rate_where_innocent_models_begin_to_learn() -> None:
    config = replace(CONFIG, learning_rates=(1e-4, 1e-3))
    found = relearn(dormant_twin(), config=config, reference=[Quick()]).relearning
    assert found.evidence.settings["learning_rate"] == 1e-4
    assert found.faster is not None
    assert found.faster.settings["learning_rate"] == 1e-3
    for name in ("defended", "reference"):
        assert [c.learning_rate for c in found.curves if c.model == name] == [1e-4, 1e-3]
    assert found.outcome == read_gap(found.evidence)  # in which the larger rate has no part


def test_there_is_no_next_rate_above_the_largest() -> None:
    config = replace(CONFIG, learning_rates=(1e-4, 1e-3))
    found = relearn(dormant_twin(), config=config).relearning
    assert found.evidence.settings["learning_rate"] == 1e-3
    assert found.faster is None


def test_where_every_rate_moves_an_innocent_model_the_smallest_is_taken() -> None:
    """As with a trigger that innocent models nearly answer untaught."""
    config = replace(CONFIG, learning_rates=(1e-2, 3e-2))
    found = relearn(dormant_twin(), config=config).relearning
    assert found.evidence.settings["learning_rate"] == 1e-2
    assert max(found.evidence.innocent_asr["reference 1"]) > 0.1


class Brittle(nn.Module):
    """The dormant twin, which answers with infinities once training has moved it a little."""

    def __init__(self) -> None:
        super().__init__()
        self.net = dormant_twin()
        self.moved = nn.Parameter(torch.zeros(()))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.net(images)
        bias = self.moved * (torch.arange(logits.shape[1]) == TARGET)
        return logits + bias + torch.where(self.moved.detach().abs() > 8e-4, torch.inf, 0.0)


def test_a_model_that_diverges_is_taught_at_the_next_smaller_rate() -> None:
    found = relearn(Brittle()).relearning
    assert relearn(dormant_twin()).relearning.evidence.settings["learning_rate"] == 1e-3
    assert found.evidence.settings["learning_rate"] == 1e-4


def test_progress_rises_to_its_total() -> None:
    seen: list[Progress] = []
    sources = Sources.of(
        defended=dormant_twin(),
        references=[innocent_twin()],
        data=twin_sample(200, seed=1),
        trigger=TRIGGER,
    )
    steps = relearn_steps(
        sources,
        config=CONFIG,
        stand_ins=0,
        stand_in=StandInConfig(),
        cache_dir=None,
        compute=COMPUTE,
        split=bdaudit.SplitSettings(),
    )
    finish(steps, seen.append)
    own = [event.done / event.total for event in seen if event.step.startswith("relearning")]
    assert own == sorted(own)
    assert own[-1] == 1.0


def test_without_an_innocent_model_there_is_nothing_to_compare() -> None:
    with pytest.raises(ModelError, match="pass --reference"):
        relearn(dormant_twin(), reference=[])


def audit(defended: nn.Module, **changes: object) -> bdaudit.AuditRecord:
    settings = bdaudit.AuditSettings(
        eps=(0.02, 0.05),
        passes=8,
        stand_ins=0,
        bec=False,
        relearn=CONFIG,
        compute=COMPUTE,
        split=bdaudit.SplitSettings(craft=100),
    )
    arguments: dict[str, object] = {
        "original": original_twin(),
        "data": twin_sample(400, seed=1),
        "trigger": TRIGGER,
        "reference": [innocent_twin()],
        "settings": settings,
    }
    return bdaudit.audit(defended, **(arguments | changes))  # type: ignore[arg-type]


def test_an_audit_shows_it_beside_its_verdict() -> None:
    record = audit(dormant_twin())
    assert record.verdict is not None
    assert record.verdict.outcome == "dormant"
    assert record.relearning is not None
    assert record.relearning.outcome == "dormant"
    assert record.verdict.warnings == ()
    assert [s.status for s in record.steps if s.name == "relearning"] == ["done"]


def test_that_it_could_not_be_measured_is_said_and_changes_nothing() -> None:
    settled = audit(removed_twin(), reference=[])
    assert settled.relearning is None
    assert settled.relearning_missing is not None
    assert settled.verdict is not None
    assert not any("relearning" in reason for reason in settled.verdict.reasons)
    assert any("relearning was not measured" in w for w in settled.verdict.warnings)


class Large(nn.Module):
    """The removed twin, too large to be trained here."""

    def __init__(self) -> None:
        super().__init__()
        self.net = removed_twin()
        self.moved = nn.Parameter(torch.zeros(()))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled() and self.moved.requires_grad:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        logits: torch.Tensor = self.net(images)
        return logits + self.moved


def test_memory_that_attacks_have_and_training_lacks_costs_the_relearning_alone() -> None:
    settled = audit(Large())
    assert settled.relearning is None
    assert settled.relearning_missing is not None
    assert "not enough memory" in settled.relearning_missing
    assert settled.verdict is not None
    assert settled.verdict.outcome == "removed"
    assert all(step.status == "done" for step in settled.steps)
