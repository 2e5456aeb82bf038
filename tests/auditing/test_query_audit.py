"""Audits of models that are only asked, on twins with known answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

import bdaudit
from bdaudit.blackbox import BlackBoxOptions, FunctionBlackBox, TransportSettings
from bdaudit.cli import app
from bdaudit.errors import ConfigError, InputError, RemoteError
from bdaudit.models import ONE_SCORE, wrap_module
from bdaudit.records import AttackRun, AuditRecord, to_json
from tests.auditing.test_audit import TRIGGER, another_innocent
from tests.blackbox.faulty_server import FaultyServer, drop_late
from tests.blackbox.onnx_graphs import twin_onnx
from tests.twins import TARGET, TwinNet, dormant_twin, original_twin, removed_twin, twin_sample

SETTINGS = bdaudit.AuditSettings(
    stand_ins=0,
    mode=("query",),
    eps=(0.05,),
    max_queries=1500,
    cold=True,
    controls=("no_trigger", "noise"),
    compute=bdaudit.ComputeSettings(device="cpu"),
    split=bdaudit.SplitSettings(craft=100),
)


class Asked:
    """A model behind a function, which counts what it is asked and can fail on purpose."""

    def __init__(self, network: nn.Module, *, labels: bool = False) -> None:
        self.network = network
        self.labels = labels
        self.n_images = 0
        self.fails_after: int | None = None

    def __call__(self, images: Tensor) -> Tensor:
        if self.fails_after is not None and self.n_images >= self.fails_after:
            raise RemoteError("the line went dead")
        self.n_images += len(images)
        with torch.no_grad():
            scores: Tensor = self.network(images)
        return scores.argmax(dim=1) if self.labels else scores


def black_box(asked: Asked, *, feedback: str = "scores") -> FunctionBlackBox:
    return FunctionBlackBox(
        asked,
        name="defended",
        num_classes=4,
        image_shape=(1, 8, 8),
        feedback=feedback,  # type: ignore[arg-type]
    )


def audit(defended: object, **changes: object) -> AuditRecord:
    arguments: dict[str, object] = {
        "original": original_twin(),
        "data": twin_sample(400, seed=1),
        "trigger": TRIGGER,
        "reference": [another_innocent(1)],
        "settings": SETTINGS,
    }
    return bdaudit.audit(defended, **(arguments | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("feedback", ["scores", "labels"])
@pytest.mark.parametrize(
    ("twin", "outcome"), [(dormant_twin, "dormant"), (removed_twin, "removed")]
)
def test_a_model_that_is_only_asked_gets_its_verdict(
    twin: Callable[[], nn.Module], outcome: str, feedback: str
) -> None:
    asked = Asked(twin(), labels=feedback == "labels")
    record = audit(
        black_box(asked, feedback=feedback),
        settings=replace(SETTINGS, feedback=feedback),  # type: ignore[arg-type]
    )
    assert record.verdict is not None
    assert record.verdict.outcome == outcome, record.verdict
    assert "black-box model (predictions only)" in (record.bec_missing or "")
    runs = record.runs_of(role="defended", condition="trigger")
    assert [run.mode for run in runs] == ["query"]
    assert all(0 < run.image_queries <= 1500 for run in record.runs if run.condition != "noise")
    assert all(run.feedback == feedback for run in runs)
    assert runs[0].query_curve[-1].n_queries <= runs[0].image_queries
    counted = sum(r.image_queries + r.scoring_queries for r in record.runs_of(role="defended"))
    # What the audit did not attribute to a run: baselines, repeatability, the noise control.
    assert counted < asked.n_images < counted + 4000


def test_a_torch_file_in_query_mode_has_bec_beside_black_box_evidence() -> None:
    record = audit(dormant_twin())
    assert record.verdict is not None
    assert record.verdict.outcome == "dormant"
    assert record.bec
    assert {run.mode for run in record.runs} == {"query"}


def test_an_onnx_file_in_query_mode_has_bec_as_well(tmp_path: Path) -> None:
    record = audit(twin_onnx(tmp_path / "d.onnx", dormant_twin()))
    assert record.verdict is not None
    assert record.verdict.outcome == "dormant"
    in_torch = audit(dormant_twin())
    assert [b.value for b in record.bec] == [pytest.approx(b.value) for b in in_torch.bec]
    (defended,) = [m for m in record.models if m.role == "defended"]
    assert any("3 convolutions were matched" in note for note in defended.notes)


def one_output(net: TwinNet) -> TwinNet:
    """A twin of two classes that gives one logit: class 1 against the trigger's target, class 0."""
    assert TARGET == 0
    weight = net.linear.weight.data
    net.linear = nn.Linear(weight.shape[1], 1).requires_grad_(requires_grad=False)
    net.linear.weight.copy_(weight[1:2] - weight[:1])
    net.linear.bias.zero_()
    return net


@pytest.mark.parametrize("probabilities", [False, True], ids=["logit", "sigmoid"])
@pytest.mark.parametrize(
    ("twin", "outcome"), [(dormant_twin, "dormant"), (removed_twin, "removed")]
)
def test_an_onnx_file_with_one_output_is_audited_as_two_classes(
    tmp_path: Path,
    twin: Callable[[], TwinNet],
    outcome: str,
    probabilities: bool,
) -> None:
    sample = twin_sample(1200, seed=1)
    binary = (sample.labels < 2).nonzero()[:, 0]
    record = audit(
        twin_onnx(tmp_path / "d.onnx", one_output(twin()), probabilities=probabilities),
        original=one_output(original_twin()),
        data=replace(
            sample,
            images=sample.images[binary],
            labels=sample.labels[binary],
            names=tuple(sample.names[k] for k in binary),
        ),
        reference=[one_output(another_innocent(1))],
    )
    assert record.verdict is not None
    assert record.verdict.outcome == outcome, record.verdict
    assert {model.num_classes for model in record.models} == {2}
    assert f"defended: {ONE_SCORE}" in record.input_notes()
    file = tmp_path / "audit.json"
    file.write_text(to_json(record))
    said = "one score an image"  # the rest has signs that formats escape
    assert said in ONE_SCORE
    for command in (["report", "--report", f"md={tmp_path / 'r.md'}"], ["gate"]):
        printed = CliRunner().invoke(app, [command[0], str(file), *command[1:]]).output
        assert said in " ".join(printed.split())
    assert said in " ".join((tmp_path / "r.md").read_text().split())


def test_an_onnx_file_of_another_architecture_is_audited_without_bec(tmp_path: Path) -> None:
    original = wrap_module(original_twin(), name="original", image_shape=(1, 8, 8))
    wider = original_twin()
    wider.conv1 = nn.Conv2d(1, 3, 5, padding=2)
    wider.conv1.weight.data.zero_()[:, 0, 2, 2] = 1
    nn.init.zeros_(wider.conv1.bias)  # type: ignore[arg-type]
    original = replace(original, classifier=wider.eval().requires_grad_(False))
    record = audit(twin_onnx(tmp_path / "d.onnx", dormant_twin()), original=original)
    assert record.bec == ()
    assert "convolutions of the original" in (record.bec_missing or "")
    assert record.verdict is not None
    assert record.verdict.outcome == "dormant"


def test_surrogates_made_from_the_original_are_used_when_it_is_at_hand() -> None:
    record = audit(dormant_twin(), settings=replace(SETTINGS, cold=False, max_queries=600))
    assert "surrogates" in {step.name for step in record.steps}
    assert record.verdict is not None
    assert record.verdict.outcome == "dormant"


def test_both_modes_stand_beside_each_other() -> None:
    record = audit(dormant_twin(), settings=replace(SETTINGS, mode=("white", "query"), passes=8))
    assert {run.mode for run in record.runs} == {"white", "query"}
    assert record.verdict is not None
    assert {c.kind for c in record.verdict.lifts} >= {"lift (white)", "lift (query)"}


def test_a_black_box_cannot_be_attacked_white_box() -> None:
    with pytest.raises(ConfigError, match="black-box model"):
        audit(black_box(Asked(dormant_twin())), settings=replace(SETTINGS, mode=("white",)))


def test_a_model_whose_answers_change_is_never_called_removed() -> None:
    class Restless(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = removed_twin()

        def forward(self, images: Tensor) -> Tensor:
            scores: Tensor = self.inner(images)
            return scores + 5 * torch.randn(scores.shape)

    torch.manual_seed(0)
    record = audit(black_box(Asked(Restless())))
    assert "answers_change" in {d.code for d in record.diagnostics}
    assert record.verdict is not None
    assert record.verdict.outcome != "removed"


def run_of(record: AuditRecord) -> AttackRun:
    return record.runs_of(role="defended", condition="trigger")[0]


def test_a_killed_search_goes_on_with_the_same_numbers_and_pays_nothing_twice(
    tmp_path: Path,
) -> None:
    def reactivate(asked: Asked, store: bdaudit.MemoryStore) -> bdaudit.Reactivation:
        return bdaudit.reactivate(
            black_box(asked),
            data=twin_sample(400, seed=1),
            trigger=TRIGGER,
            config=bdaudit.QueryConfig(eps=0.05, max_queries=1500),
            compute=bdaudit.ComputeSettings(device="cpu"),
            store=store,
        )

    whole = Asked(dormant_twin())
    expected = reactivate(whole, bdaudit.MemoryStore())
    folder = tmp_path / "state"
    broken = Asked(dormant_twin())
    for fails_after in (10, 320, 700, 1500, 2300, whole.n_images - 300):
        broken.fails_after = fails_after
        with pytest.raises(RemoteError, match="went dead"):
            reactivate(broken, bdaudit.FolderStore(folder, resume=fails_after > 10))
    broken.fails_after = None
    again = reactivate(broken, bdaudit.FolderStore(folder, resume=True))
    assert torch.equal(again.delta, expected.delta)
    timeless = {"elapsed_s": 0.0}
    assert [r.model_copy(update=timeless) for r in again.record.runs] == [
        r.model_copy(update=timeless) for r in expected.record.runs
    ]
    assert broken.n_images == whole.n_images


def test_what_was_answered_beside_a_failed_request_is_not_asked_again(tmp_path: Path) -> None:
    server = FaultyServer(dormant_twin())
    settings = replace(SETTINGS, max_queries=600)
    options = BlackBoxOptions(
        request_size=20, transport=TransportSettings(concurrency=3, retries=0, backoff_s=0.01)
    )

    def run(folder: Path, *, resume: bool) -> AuditRecord:
        store = bdaudit.FolderStore(folder, resume=resume)
        return audit(server.url, settings=settings, black_box=options, store=store)

    with server.running():
        expected = run(tmp_path / "whole", resume=False)
        n_paid = server.n_answered
        server.reset()
        folder = tmp_path / "broken"
        for n_failures, n_sound in enumerate((3, 17, 30, 40)):
            server.faults = [*[None] * n_sound, drop_late]
            with pytest.raises(RemoteError, match="no usable answer"):
                run(folder, resume=n_failures > 0)
        again = run(folder, resume=True)
    assert server.n_answered == n_paid
    timeless = {"elapsed_s": 0.0}
    assert [r.model_copy(update=timeless) for r in again.runs] == [
        r.model_copy(update=timeless) for r in expected.runs
    ]


def test_resuming_under_other_circumstances_is_refused_and_says_which(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    audit(dormant_twin(), store=bdaudit.FolderStore(folder, resume=False))
    with pytest.raises(ConfigError, match="defended weights was"):
        audit(removed_twin(), store=bdaudit.FolderStore(folder, resume=True))
    with pytest.raises(ConfigError, match="settings"):
        audit(
            dormant_twin(),
            settings=replace(SETTINGS, max_queries=4000),
            store=bdaudit.FolderStore(folder, resume=True),
        )


def test_a_finished_audit_is_resumed_without_asking(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    first = audit(dormant_twin(), store=bdaudit.FolderStore(folder, resume=False))
    second = audit(dormant_twin(), store=bdaudit.FolderStore(folder, resume=True))
    assert [r.asr for r in first.runs] == [r.asr for r in second.runs]
    assert first.verdict == second.verdict
    assert sum(r.elapsed_s for r in second.runs if r.condition != "noise") == 0.0


def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("three years of work")
    with pytest.raises(InputError, match="something else"):
        bdaudit.FolderStore(tmp_path, resume=False)
    with pytest.raises(InputError, match="nothing to resume"):
        bdaudit.FolderStore(tmp_path / "empty", resume=True)
