"""Many audits on one engine, on twins with known answers."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bdaudit
from bdaudit.auditing import AuditRequest, Sources, record_path, sweep_steps
from bdaudit.cases.files import FileDigests, request_digests
from bdaudit.engines import LocalEngine
from bdaudit.errors import ConfigError, InputError
from bdaudit.foundation.progress import Progress, finish
from bdaudit.measuring.sharing import SharingStore
from bdaudit.measuring.store import ScoredRun
from bdaudit.models import ModelSettings
from bdaudit.records import AuditRecord, read_record
from bdaudit.records.sweeps import SweepRecord, SweptAudit
from tests.cli.twin_files import write_twin_files
from tests.twins import removed_twin

FACTORY = f"{Path(__file__).parents[1] / 'cli' / 'twin_factory.py'}:twin"
SETTINGS = bdaudit.AuditSettings(
    eps=(0.02, 0.05),
    passes=4,
    controls=("no_trigger", "noise"),
    stand_ins=0,
    compute=bdaudit.ComputeSettings(device="cpu"),
    split=bdaudit.SplitSettings(craft=100),
)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    folder = tmp_path / "files"
    folder.mkdir()
    return write_twin_files(folder)


def request(files: Path, name: str, **changes: Any) -> AuditRequest:
    settings = changes.pop("settings", SETTINGS)
    sources: dict[str, Any] = {
        "defended": files / f"{name}.safetensors",
        "original": files / "original.safetensors",
        "references": [files / "innocent.safetensors"],
        "data": files / "clean.npz",
        "trigger": files / "trigger.toml",
        "model_options": ModelSettings(arch=FACTORY),
    }
    return AuditRequest(key=name, sources=Sources.of(**(sources | changes)), settings=settings)


def sweep(requests: Sequence[AuditRequest], folder: Path, *, workers: int = 1) -> SweepRecord:
    return finish(sweep_steps(requests, folder=folder, engine=LocalEngine(workers)))


def statuses(made: SweepRecord) -> dict[str, str]:
    return {line.key: line.status for line in made.audits}


def record_of(folder: Path, key: str) -> AuditRecord:
    record = read_record(record_path(folder, key))
    assert isinstance(record, AuditRecord)
    return record


def figures(record: AuditRecord) -> list[tuple[object, ...]]:
    return [
        (r.model, r.condition, r.eps, r.asr.successes, r.delta_sha256, r.gradient_passes)
        for r in record.runs
    ]


def computed(record: AuditRecord) -> set[str]:
    """Name the models whose attacks were not taken from another audit."""
    return {run.model for run in record.runs if run.elapsed_s > 0 and run.condition == "trigger"}


def test_every_audit_of_a_sweep_is_the_audit_alone(files: Path, tmp_path: Path) -> None:
    requests = [request(files, "dormant"), request(files, "removed")]
    made = sweep(requests, tmp_path / "out")
    assert {line.key: line.outcome for line in made.audits} == {
        "dormant": "dormant",
        "removed": "removed",
    }
    for one in requests:
        sources = one.sources
        alone = bdaudit.audit(
            sources.defended,  # type: ignore[arg-type]
            original=sources.original,  # type: ignore[arg-type]
            reference=sources.references,
            data=sources.data,
            trigger=sources.trigger,
            model_options=sources.model_options,
            settings=SETTINGS,
        )
        swept = record_of(tmp_path / "out", one.key)
        assert figures(swept) == figures(alone)
        assert swept.verdict == alone.verdict
        assert [b.value for b in swept.bec] == [b.value for b in alone.bec]
    line = made.audits[0]
    dormant = record_of(tmp_path / "out", "dormant")
    (shown,) = (
        run
        for run in dormant.runs
        if (run.role, run.condition, run.eps) == ("defended", "trigger", line.eps)
    )
    assert dormant.verdict is not None
    lifts = [c.value for c in dormant.verdict.lifts if c.eps == line.eps]
    assert (line.mode, line.reactivated_asr) == ("white", shown.asr.value)
    assert line.lift == min(lifts) > 0.1
    assert line.record == "records/dormant.json"


def test_what_audits_have_in_common_is_made_once(files: Path, tmp_path: Path) -> None:
    sweep([request(files, "dormant"), request(files, "removed")], tmp_path)
    assert computed(record_of(tmp_path, "dormant")) == {"defended", "original", "reference"}
    assert computed(record_of(tmp_path, "removed")) == {"defended"}
    # Two models at two radii; what the defended models needed is not kept.
    assert len(list((tmp_path / "runs").iterdir())) == 4
    assert list((tmp_path / "state").iterdir()) == []


def test_workers_share_what_audits_have_in_common(files: Path, tmp_path: Path) -> None:
    requests = [request(files, "dormant"), request(files, "removed"), request(files, "innocent")]
    one, two = tmp_path / "one", tmp_path / "two"
    alone, made = sweep(requests, one), sweep(requests, two, workers=2)
    assert [line.outcome for line in made.audits] == [line.outcome for line in alone.audits]
    # Made beforehand, as tasks of their own, for all three; the last is the reference itself.
    for key, models in (("dormant", {"defended"}), ("removed", {"defended"}), ("innocent", set())):
        assert computed(record_of(two, key)) == models
    for line in made.audits:
        assert figures(record_of(two, line.key)) == figures(record_of(one, line.key))
    assert {p.name for p in (two / "runs").iterdir()} == {p.name for p in (one / "runs").iterdir()}


def test_finished_audits_are_kept_until_something_changes(files: Path, tmp_path: Path) -> None:
    requests = [request(files, "dormant"), request(files, "removed")]
    sweep(requests, tmp_path)
    before = record_path(tmp_path, "dormant").read_bytes()
    again = sweep(requests, tmp_path)
    assert statuses(again) == {"dormant": "kept", "removed": "kept"}
    assert record_path(tmp_path, "dormant").read_bytes() == before
    assert again.audits[0].outcome == "dormant"

    other = replace(SETTINGS, passes=5)
    changed = sweep([request(files, "dormant", settings=other), requests[1]], tmp_path)
    assert statuses(changed) == {"dormant": "done", "removed": "kept"}
    assert record_of(tmp_path, "dormant").settings["n_passes"] == 5
    assert statuses(sweep(requests, tmp_path)) == {"dormant": "done", "removed": "kept"}


def change_policy(files: Path) -> dict[str, Any]:
    return {"policy": bdaudit.Policy(lift=0.2)}


def change_target(files: Path) -> dict[str, Any]:
    return {"target_label": 1}


def change_trigger(files: Path) -> dict[str, Any]:
    np.save(files / "delta.npy", 0.9 * np.load(files / "delta.npy"))
    return {}


def change_data(files: Path) -> dict[str, Any]:
    arrays = dict(np.load(files / "clean.npz"))
    arrays["images"][0, 0, 0, 0] += 0.25
    np.savez(files / "clean.npz", **arrays)
    return {}


def change_model(files: Path) -> dict[str, Any]:
    (files / "removed.safetensors").write_bytes((files / "innocent.safetensors").read_bytes())
    return {}


def add_settings_of_models(files: Path) -> dict[str, Any]:
    (files / "model.toml").write_text('outputs = "logits"\n')
    return {}


def damage_the_record(files: Path) -> dict[str, Any]:
    path = record_path(files.parent, "removed")
    path.write_text(path.read_text().replace('"removed"', '"dormant"'))
    return {}


@pytest.mark.parametrize(
    "change",
    [
        change_policy,
        change_target,
        change_trigger,
        change_data,
        change_model,
        add_settings_of_models,
        damage_the_record,
    ],
)
def test_whatever_a_record_depends_on_makes_it_anew(
    change: Any, files: Path, tmp_path: Path
) -> None:
    assert statuses(sweep([request(files, "removed")], tmp_path)) == {"removed": "done"}
    assert statuses(sweep([request(files, "removed")], tmp_path)) == {"removed": "kept"}
    changes = change(files)
    assert statuses(sweep([request(files, "removed", **changes)], tmp_path)) == {"removed": "done"}


def test_what_cannot_be_told_from_something_else_is_not_kept(files: Path, tmp_path: Path) -> None:
    in_memory = request(files, "removed", defended=removed_twin())
    served = request(files, "removed", defended="http://localhost:1/v2/models/m")
    moving = request(files, "removed", original="https://example.org/original.safetensors")
    pinned = request(files, "removed", original=f"https://example.org/o#sha256={'0' * 64}")
    missing = request(files, "nothing")
    digests = [request_digests(r, FileDigests()) for r in (in_memory, served, moving, missing)]
    assert digests == [None] * 4
    assert request_digests(pinned, FileDigests()) is not None
    assert statuses(sweep([in_memory], tmp_path)) == {"removed": "done"}
    assert statuses(sweep([in_memory], tmp_path)) == {"removed": "done"}


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_failed_audit_leaves_the_others_be(workers: int, files: Path, tmp_path: Path) -> None:
    heard: list[SweptAudit] = []
    requests = [request(files, "nothing"), request(files, "removed")]
    steps = sweep_steps(requests, folder=tmp_path, engine=LocalEngine(workers), told=heard.append)
    made = finish(steps)
    assert statuses(made) == {"nothing": "failed", "removed": "done"}
    failed = made.audits[0]
    assert (failed.failed_of, failed.outcome, failed.record) == ("input", None, None)
    assert "nothing.safetensors" in failed.why
    assert "audit_steps" in failed.traceback
    assert not record_path(tmp_path, "nothing").exists()
    assert {line.key for line in heard} == {"nothing", "removed"}
    assert "traceback" not in json.loads(made.model_dump_json())["audits"][0]
    # The model turns up, and only that audit is made.
    (files / "nothing.safetensors").write_bytes((files / "dormant.safetensors").read_bytes())
    assert statuses(sweep(requests, tmp_path)) == {"nothing": "done", "removed": "kept"}


def test_a_failed_audit_does_not_leave_an_old_record_to_be_kept(
    files: Path, tmp_path: Path
) -> None:
    sweep([request(files, "removed")], tmp_path)
    broken = request(files, "removed", target_label=99)
    assert statuses(sweep([broken], tmp_path)) == {"removed": "failed"}
    assert statuses(sweep([request(files, "removed")], tmp_path)) == {"removed": "done"}


def test_an_interrupted_audit_goes_on_with_what_it_has(files: Path, tmp_path: Path) -> None:
    steps = sweep_steps([request(files, "removed")], folder=tmp_path, engine=LocalEngine())
    for event in steps:
        if "on original" in event.note:
            break
    steps.close()
    # The attacks on the defended model came first, and are there.
    assert list((tmp_path / "state" / "removed").iterdir())
    assert statuses(sweep([request(files, "removed")], tmp_path)) == {"removed": "done"}
    assert "defended" not in computed(record_of(tmp_path, "removed"))
    assert list((tmp_path / "state").iterdir()) == []


def test_progress_is_over_all_audits(files: Path, tmp_path: Path) -> None:
    heard: list[Progress] = []
    requests = [request(files, "dormant"), request(files, "removed")]
    steps = sweep_steps(requests, folder=tmp_path, engine=LocalEngine())
    finish(steps, heard.append)
    done = [event.done / event.total for event in heard]
    assert done == sorted(done)
    assert done[-1] == 1.0
    assert heard[-1].step == "2 of 2 audits"
    assert any("dormant: white box on defended" in event.note for event in heard)


def test_what_cannot_be_a_sweep_is_refused_at_once(files: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="two are called 'removed'"):
        sweep([request(files, "removed"), request(files, "removed")], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ConfigError, match="expected a name"):
        AuditRequest(key="../up", sources=request(files, "removed").sources, settings=SETTINGS)
    (tmp_path / "a file").touch()
    with pytest.raises(InputError, match="a file"):
        sweep([request(files, "removed")], tmp_path / "a file")


def test_a_shared_run_is_never_seen_in_halves(files: Path, tmp_path: Path) -> None:
    sweep([request(files, "removed")], tmp_path)
    runs = tmp_path / "runs"
    keys = [path.stem for path in runs.iterdir()]
    stores = [SharingStore(tmp_path / "own" / str(k), runs) for k in range(3)]
    known = {key: stores[0].find(key) for key in keys}
    wrong: list[str] = []

    def write_and_read(store: SharingStore) -> None:
        for _ in range(40):
            for key, run in known.items():
                assert isinstance(run, ScoredRun)
                store.keep(key, run)
                found = store.find(key)
                if found is None or found.record != run.record or not found.delta.equal(run.delta):
                    wrong.append(key)

    threads = [threading.Thread(target=write_and_read, args=(store,)) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    (runs / f"{keys[0]}.safetensors").write_bytes(b"half")
    assert stores[0].find(keys[0]) is None
