"""Audits by perturbations that the defended model never took part in making, on twins."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import bdaudit
from bdaudit.errors import ConfigError, ModelError
from bdaudit.foundation.cache import cache_folder
from bdaudit.models import Classifier, preactresnet18, save_model
from bdaudit.records import AuditRecord
from tests.auditing.test_audit import TRIGGER, another_innocent
from tests.auditing.test_query_audit import Asked, black_box
from tests.twins import TwinNet, dormant_twin, original_twin, removed_twin, twin_sample

SETTINGS = bdaudit.AuditSettings(
    stand_ins=0,
    mode=("transfer",),
    eps=(0.05,),
    passes=8,
    controls=("no_trigger", "noise"),
    bec=False,
    relearn=None,
    compute=bdaudit.ComputeSettings(device="cpu"),
    split=bdaudit.SplitSettings(craft=100),
)


def sibling(seed: int) -> TwinNet:
    """A model whose backdoor sleeps as in the dormant twin, with other weights."""
    net = dormant_twin()
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        net.linear.weight += 0.002 * torch.randn(net.linear.weight.shape, generator=draw)
    return net


def audit(defended: object, **changes: object) -> AuditRecord:
    arguments: dict[str, object] = {
        "original": original_twin(),
        "data": twin_sample(400, seed=1),
        "trigger": TRIGGER,
        "reference": [another_innocent(1)],
        "surrogate": [sibling(1), sibling(2)],
        "settings": SETTINGS,
        # The innocent model's relatives are the same in every test.
        "cache_dir": cache_folder(),
    }
    return bdaudit.audit(defended, **(arguments | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("strategy", ["ensemble", "momentum", "one-per-step"])
def test_siblings_wake_the_dormant_model_unseen(strategy: str) -> None:
    asked = Asked(dormant_twin())
    record = audit(black_box(asked), settings=replace(SETTINGS, strategy=strategy))  # type: ignore[arg-type]
    assert record.verdict is not None
    assert record.verdict.outcome == "dormant", record.verdict
    assert "never on this model" in record.verdict.why
    (run,) = record.runs_of(role="defended", condition="trigger")
    assert run.mode == "transfer"
    assert run.made_on == ("surrogate 1", "surrogate 2")
    assert (run.image_queries, run.scoring_queries) == (0, 2 * run.asr.total)
    # 300 clean and 225 triggered images, eight asked twice, alone and among others, every scoring.
    scoring = 3 * 225 + 2 * 225
    assert asked.n_images == 300 + 225 + 16 + 56 + scoring


def test_every_surrogate_is_on_the_record_with_its_own_figures() -> None:
    record = audit(dormant_twin())
    assert [m.name for m in record.models if m.role == "surrogate"] == [
        "surrogate 1",
        "surrogate 2",
    ]
    woken = record.runs_of(role="surrogate", condition="trigger")
    assert [run.model for run in woken] == ["surrogate 1", "surrogate 2"]
    assert all(run.asr.value > 0.9 for run in woken)
    alone = [b for b in record.baselines if b.role == "surrogate"]
    assert all(b.asr.value < 0.05 < b.clean_acc.value for b in alone)
    digests = {run.delta_sha256 for run in record.runs if run.condition == "trigger"}
    (own,) = {run.delta_sha256 for run in record.runs_of(role="reference")}
    # One delta for the defended model, its relatives and the original; the innocent has its own.
    assert len(digests) == 2
    assert own in digests


def test_a_failed_transfer_never_says_removed() -> None:
    record = audit(removed_twin())
    assert record.verdict is not None
    assert record.verdict.outcome == "inconclusive"
    assert any("surrogates may differ from" in reason for reason in record.verdict.reasons)


def test_a_failed_transfer_leaves_the_white_box_its_verdict() -> None:
    record = audit(removed_twin(), settings=replace(SETTINGS, mode=("white", "transfer")))
    assert record.verdict is not None
    assert record.verdict.outcome == "removed", record.verdict


def test_an_innocent_model_is_attacked_from_its_own_relatives() -> None:
    record = audit(dormant_twin())
    (run,) = record.runs_of(role="reference", condition="trigger")
    assert run.mode == "transfer"
    assert all(name.endswith("of reference") for name in run.made_on)
    assert len(run.made_on) == 4


def test_surrogates_are_made_from_the_original_and_kept(tmp_path: Path) -> None:
    first = audit(dormant_twin(), surrogate=(), cache_dir=tmp_path)
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert len(kept) == 8, "four from the original and four from the innocent"
    names = [m.name for m in first.models if m.role == "surrogate"]
    assert names[0] == "surrogate 1 (fine-tuning)"
    assert len(names) == 4
    second = audit(dormant_twin(), surrogate=(), cache_dir=tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == kept
    assert [r.asr for r in first.runs] == [r.asr for r in second.runs]


def test_a_surrogate_may_be_of_another_architecture(tmp_path: Path) -> None:
    class Other(nn.Module):
        """The same decision as the dormant twin's, through one convolution over the image."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = dormant_twin()
            self.mix = nn.Conv2d(1, 1, 1, bias=False)
            nn.init.ones_(self.mix.weight)

        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = self.inner(self.mix(images))
            return logits

    record = audit(dormant_twin(), surrogate=[Other(), sibling(1)])
    assert record.verdict is not None
    assert record.verdict.outcome == "dormant"
    archs = {m.name: m.arch for m in record.models}
    assert archs["surrogate 1"] != archs["defended"]


def test_what_a_surrogates_file_says_goes_before_what_was_said_of_the_others(
    tmp_path: Path,
) -> None:
    torch.manual_seed(0)
    network = preactresnet18(num_classes=4, width=4, in_channels=1)
    path = tmp_path / "other.safetensors"
    save_model(
        path,
        Classifier(network.eval()),
        arch="bdaudit/preactresnet18_w4",
        num_classes=4,
        image_shape=(1, 8, 8),
    )
    record = audit(
        dormant_twin(),
        surrogate=[path],
        model_options=bdaudit.ModelSettings(arch="bdaudit/preactresnet18_w8"),
    )
    assert record.model_named("surrogate 1").arch == "bdaudit/preactresnet18_w4"


def test_a_surrogate_of_another_task_is_refused() -> None:
    with pytest.raises(ModelError, match="surrogate 1: expected 4 classes"):
        audit(dormant_twin(), surrogate=[nn.Sequential(nn.Flatten(), nn.Linear(64, 7))])


def _reactivate(**changes: object) -> bdaudit.Reactivation:
    arguments: dict[str, object] = {
        "data": twin_sample(400, seed=1),
        "trigger": TRIGGER,
        "config": bdaudit.TransferConfig(eps=0.05, n_passes=8),
        "compute": bdaudit.ComputeSettings(device="cpu"),
        "cache_dir": cache_folder(),
    }
    return bdaudit.reactivate(dormant_twin(), **(arguments | changes))  # type: ignore[arg-type]


def test_one_attack_alone() -> None:
    found = _reactivate(
        original=original_twin(), reference=[another_innocent(1)], surrogate=[sibling(1)]
    )
    runs = {(r.model, r.condition): r for r in found.record.runs}
    assert runs["defended", "trigger"].asr.value > 0.5
    assert runs["defended", "no_trigger"].asr.value < 0.05
    assert runs["reference", "trigger"].asr.value < 0.05
    assert runs["original", "trigger"].asr.value == 1.0
    assert runs["surrogate 1", "trigger"].asr.value > 0.5
    assert ("defended", "noise") in runs
    assert float(found.delta.abs().max()) <= 0.05


def test_one_attack_makes_its_surrogates_from_the_original() -> None:
    found = _reactivate(original=original_twin())
    made = [r.model for r in found.record.runs if r.role == "surrogate"]
    assert made == [
        "surrogate 1 (fine-tuning)",
        "surrogate 2 (FT-SAM)",
        "surrogate 3 (fine-pruning)",
        "surrogate 4 (FST)",
    ]
    assert found.record.runs[0].made_on == tuple(made)


def test_transfer_from_nothing_says_what_it_needs() -> None:
    with pytest.raises(ConfigError, match="--surrogate"):
        _reactivate()
