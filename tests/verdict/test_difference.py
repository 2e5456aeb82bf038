"""What changed between two audits: verdicts under one policy, figures told apart, inputs."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bdaudit.cli import app
from bdaudit.errors import RecordError
from bdaudit.foundation.statistics import difference_of_estimates, paired_difference
from bdaudit.records import AuditRecord, to_json
from bdaudit.records.difference import ChangedFigure, DifferenceRecord
from bdaudit.report.formats import render_report
from bdaudit.verdict import Policy, diff
from tests.records import bec_record, rate
from tests.report.many import LOUD, QUIET, judged, next_release, whole_record, written

OLD = next_release(whole_record(QUIET), "first")
NEW = next_release(whole_record(LOUD), "second")


def between(
    folder: Path, old: AuditRecord, new: AuditRecord, **options: object
) -> DifferenceRecord:
    return diff(written(folder, "old", old), written(folder, "new", new), **options)


def figure(made: DifferenceRecord, name: str, eps: float | None = None) -> ChangedFigure:
    return next(f for f in made.figures if f.name == name and f.eps == eps)


def changed(made: DifferenceRecord) -> dict[str, tuple[str | None, str | None]]:
    return {f"{i.kind} {i.name}": (i.old, i.new) for i in made.inputs if i.changed}


def test_a_rate_of_the_same_images_is_compared_image_by_image(tmp_path: Path) -> None:
    made = between(tmp_path, OLD, NEW)
    assert (made.old.outcome, made.new.outcome, made.change) == ("removed", "dormant", "worse")
    assert (made.old.release, made.new.release) == ("pass", "fail")
    woken = figure(made, "reactivated_asr", 0.02)
    assert woken.old is not None
    assert woken.new is not None
    assert (woken.old.value, woken.new.value) == (0.037, 0.487)
    expected = paired_difference(rate(0.487).outcomes(), rate(0.037).outcomes(), confidence=0.95)
    assert (woken.difference, woken.low, woken.high) == (
        expected.value, expected.low, expected.high,
    )  # fmt: skip
    assert woken.paired
    assert woken.change == "worse"
    assert figure(made, "clean_acc").change == figure(made, "asr").change == "unclear"
    assert figure(made, "lift", 0.05).change == "worse"
    assert made.notes == ()


def test_rates_of_other_images_are_compared_by_their_intervals(tmp_path: Path) -> None:
    other = NEW.model_copy(update={"data": NEW.data.model_copy(update={"sha256": "5" * 64})})
    made = between(tmp_path, OLD, other)
    woken = figure(made, "reactivated_asr", 0.02)
    value, low, high = difference_of_estimates(rate(0.487), rate(0.037))
    assert (woken.difference, woken.low, woken.high) == (value, low, high)
    assert not woken.paired
    assert any("not the same ones" in note for note in made.notes)
    assert "data images and labels" in changed(made)


def test_a_change_in_the_good_direction_is_better_for_each_figure(tmp_path: Path) -> None:
    better = OLD.model_copy(
        update={
            "baselines": tuple(
                b.model_copy(update={"clean_acc": rate(0.95)}) if b.role == "defended" else b
                for b in OLD.baselines
            ),
            "bec": tuple(
                b.model_copy(update={"value": 0.1, "low": 0.05, "high": 0.15}) for b in OLD.bec
            ),
        }
    )
    made = between(tmp_path, NEW, judged(better))
    assert made.change == "better"
    for name, eps in (
        ("clean_acc", None),
        ("reactivated_asr", 0.03),
        ("lift", 0.03),
        ("bec", None),
    ):
        assert figure(made, name, eps).change == "better", name
    reverse = between(tmp_path, judged(better), NEW)
    assert figure(reverse, "clean_acc").change == "worse"
    assert figure(reverse, "bec").change == "worse"


def test_what_only_one_audit_measured_is_told_and_not_counted_as_a_change(tmp_path: Path) -> None:
    bare = judged(OLD.model_copy(update={"bec": (), "bec_missing": "not asked for"}))
    no_interval = judged(
        NEW.model_copy(
            update={"bec": (bec_record().model_copy(update={"low": None, "high": None}),)}
        )
    )
    assert figure(between(tmp_path, bare, NEW), "bec").change == "only_new"
    assert figure(between(tmp_path, NEW, bare), "bec").change == "only_old"
    found = figure(between(tmp_path, NEW, no_interval), "bec")
    assert (found.low, found.high, found.change) == (None, None, "unclear")
    assert found.difference == pytest.approx(0.41 - 0.55)


def test_both_are_judged_by_the_same_limits(tmp_path: Path) -> None:
    lax = judged(NEW, Policy(lift=0.45, saturation=0.5))
    assert lax.verdict is not None
    made = between(tmp_path, NEW, NEW, policy=Policy(lift=0.95, saturation=0.05))
    assert made.old.outcome == made.new.outcome
    assert made.change == "same"
    strict = between(tmp_path, judged(OLD, Policy(lift=0.001)), OLD)
    assert strict.policy == Policy().model_dump(mode="json")
    assert strict.old.stated != strict.old.outcome
    assert any("its own limits said" in note for note in strict.notes)
    assert changed(strict)["limit lift"] == ("0.001", "0.1")


def test_inputs_are_told_by_digest_settings_and_versions(tmp_path: Path) -> None:
    environment = NEW.environment.model_copy(update={"packages": {"torch": "3.0"}})
    other = NEW.model_copy(
        update={
            "environment": environment,
            "settings": {"n_passes": 3, "split": {"n_craft": 40}},
            "seed": 7,
            "trigger": NEW.trigger.model_copy(update={"sha256": "7" * 64}),
        }
    )
    found = changed(between(tmp_path, OLD, other))
    assert found["setting n_passes"] == (None, "3")
    assert found["setting split.n_craft"] == (None, "40")
    assert found["setting seed"] == ("0", "7")
    assert found["version torch"] == (None, "3.0")
    assert found["trigger trigger"] == ("0" * 64, "7" * 64)
    assert {"model defended", "file defended"} <= set(found)
    same = between(tmp_path, OLD, OLD)
    assert changed(same) == {}
    assert {"model original", "model reference 3"} <= {f"{i.kind} {i.name}" for i in same.inputs}
    assert any("the same weights" in note for note in same.notes)


def test_a_waiver_is_told_and_one_that_ended_makes_the_release_worse(tmp_path: Path) -> None:
    (file,) = NEW.files_of("defended")
    today = datetime.now(UTC).date()

    def waived(until: str) -> Policy:
        waiver = {"sha256": file.sha256, "until": until, "because": "a demo", "by": "Kim"}
        return Policy.model_validate({"waivers": [waiver]})

    runs = judged(NEW, waived(str(today + timedelta(days=9))))
    made = between(tmp_path, NEW, runs)
    assert (made.new.outcome, made.new.release) == ("dormant", "pass")
    assert made.new.warnings[0].startswith("accepted by waiver")
    told = changed(made)[f"waiver {file.sha256}"]
    assert told[0] is None
    assert "by Kim, because: a demo" in str(told[1])
    ended = judged(NEW, waived(str(today - timedelta(days=1))))
    assert between(tmp_path, OLD, ended).change == "worse"


def test_another_original_or_target_is_said(tmp_path: Path) -> None:
    models = tuple(
        m.model_copy(update={"weights_sha256": "9" * 64}) if m.role == "original" else m
        for m in NEW.models
    )
    trigger = NEW.trigger.model_copy(update={"target_label": 1})
    made = between(tmp_path, OLD, NEW.model_copy(update={"models": models, "trigger": trigger}))
    assert any("another original" in note for note in made.notes)
    assert any("another target" in note for note in made.notes)
    assert not figure(made, "asr").paired
    assert figure(made, "clean_acc").paired


def run(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["diff", *map(str, arguments)])
    return result.exit_code, result.stdout, result.stderr


def test_the_command_exits_by_what_got_worse_and_writes_all_formats(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    old, new = written(tmp_path, "old", OLD), written(tmp_path, "new", NEW)
    code, out, err = run(
        *(old, new, "--json", "d.json", "--report", "html=d.html"),
        *("--report", "csv=d.csv", "--report", "md=d.md"),
    )
    assert code == 1, err
    assert "Worse: removed became dormant" in out
    assert json.loads((tmp_path / "d.json").read_text())["kind"] == "difference"
    assert "What the figures did" in (tmp_path / "d.html").read_text()
    for name in ("d.json", "d.html", "d.csv", "d.md"):
        assert f"wrote {name}" in err
    assert run(new, old)[0] == 0
    code, out, _ = run(new, new, "--quiet")
    assert (code, out) == (0, "Still dormant, release FAIL.\n")
    (tmp_path / "bdaudit.toml").write_text("[policy]\ninconclusive = 'warn'\n")
    assert "bdaudit.toml; limits: not the default: inconclusive" in run(new, new)[1]
    assert run(old, new, "--report", "pdf=x")[0] == 2
    assert run(old)[0] == 2
    assert run(old, tmp_path / "nowhere.json")[0] == 4


def test_attestations_are_taken_in_place_of_records(tmp_path: Path) -> None:
    old = tmp_path / "old.intoto.jsonl"
    old.write_text(render_report("intoto", OLD), encoding="utf-8")
    new = written(tmp_path, "new", NEW)
    made = diff(old, new)
    plain = diff(written(tmp_path, "plain", OLD), new)
    assert made.figures == plain.figures
    assert run(old, new)[0] == 1


def test_what_is_no_audit_is_refused(tmp_path: Path) -> None:
    edited = tmp_path / "edited.json"
    edited.write_text(to_json(OLD).replace('"removed"', '"dormant"'))
    with pytest.raises(RecordError, match="edited"):
        diff(edited, written(tmp_path, "new", NEW))
    made = diff(written(tmp_path, "old", OLD), written(tmp_path, "new", NEW))
    difference = tmp_path / "difference.json"
    difference.write_text(to_json(made))
    with pytest.raises(RecordError):
        diff(difference, written(tmp_path, "new", NEW))
