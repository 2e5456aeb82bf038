"""A model that carries its trigger on purpose: the release turns round, the verdict does not."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner

from bdaudit.cli.app import app
from bdaudit.errors import PolicyError
from bdaudit.records import AuditRecord, Diagnostic, to_json
from bdaudit.report.checks import list_checks
from bdaudit.report.formats import render_report
from bdaudit.verdict import Policy, diff, judge, parse_policy
from tests.records import audit_record, baseline

QUIET = {0.02: 0.03, 0.05: 0.05}
LOUD = {0.02: 0.5, 0.05: 0.9}
WANTED = Policy(expect="active")
UNSURE = {"min_held_out": 100_000}


def audited(kind: str, asr: float = 0.97) -> AuditRecord:
    """An audit with a verdict of a kind; of an active one the trigger's share may be said."""
    made = audit_record(
        defended=LOUD if kind == "dormant" else QUIET, innocents=[QUIET, QUIET, QUIET]
    )
    if kind != "active":
        return made
    works = baseline("defended", "defended", asr=asr)
    return made.model_copy(update={"baselines": (works, *made.baselines[1:])})


@pytest.mark.parametrize(
    ("kind", "policy", "outcome", "release"),
    [
        ("active", WANTED, "active", "pass"),
        ("dormant", WANTED, "dormant", "fail"),
        ("removed", WANTED, "removed", "fail"),
        ("removed", Policy(expect="active", **UNSURE), "inconclusive", "inconclusive"),
        ("removed", Policy(expect="active", inconclusive="warn", **UNSURE), "inconclusive", "pass"),
        # What an inconclusive audit may do is not for one that found the trigger asleep or gone.
        ("dormant", Policy(expect="active", inconclusive="warn"), "dormant", "fail"),
        ("active", Policy(), "active", "fail"),
    ],
)
def test_only_a_wanted_trigger_that_works_passes(
    kind: str, policy: Policy, outcome: str, release: str
) -> None:
    verdict = judge(audited(kind), policy)
    assert (verdict.outcome, verdict.release) == (outcome, release)
    as_by_default = policy.model_copy(update={"expect": "removed"})
    assert judge(audited(kind), as_by_default).outcome == outcome


def test_a_wanted_trigger_that_hardly_works_does_not_pass() -> None:
    verdict = judge(audited("active", asr=0.3), WANTED)
    assert (verdict.outcome, verdict.release) == ("active", "fail")
    assert "50% are needed" in verdict.release_reasons[0]


@pytest.mark.parametrize(
    "code",
    [
        "answers_change",
        "answers_depend_on_batch",
        "clean_accuracy_near_chance",
        "labels_do_not_match",
    ],
)
def test_rates_that_are_worth_nothing_let_no_wanted_trigger_pass(code: str) -> None:
    doubt = Diagnostic(code=code, severity="error", message="said so", subject="defended")
    made = audited("active").model_copy(update={"diagnostics": (doubt,)})
    verdict = judge(made, WANTED)
    assert (verdict.outcome, verdict.release) == ("active", "fail")
    assert verdict.release_reasons == (f"{code}: said so",)
    judged = made.model_copy(update={"verdict": verdict})
    checks = {check.name: check.status for check in list_checks(judged)}
    assert checks[f"no doubt: {code} (defended)"] == "error"


def test_a_model_may_be_audited_against_itself() -> None:
    same = Diagnostic(code="same_weights", severity="error", message="m", subject="defended")
    made = audited("active").model_copy(update={"diagnostics": (same,)})
    assert judge(made, WANTED).release == "pass"


def test_a_handful_of_images_shows_no_wanted_trigger() -> None:
    verdict = judge(audited("active"), Policy(expect="active", **UNSURE))
    assert verdict.release == "fail"
    assert "100000 are needed (min_held_out)" in verdict.release_reasons[0]


def test_a_pass_says_that_the_trigger_works() -> None:
    assert "whoever knows it chooses" in judge(audited("active"), WANTED).warnings[0]


def test_a_recovered_trigger_is_not_the_wanted_one() -> None:
    made = audited("active")
    trigger = made.trigger.model_copy(update={"recovered": True})
    verdict = judge(made.model_copy(update={"trigger": trigger}), WANTED)
    assert verdict.release == "fail"
    assert "--trigger" in verdict.release_reasons[0]


def test_another_word_than_removed_or_active_is_refused() -> None:
    with pytest.raises(PolicyError, match="expect: Input should be 'removed' or 'active'"):
        parse_policy({"expect": "dormant"}, "policy.toml")


def written(made: AuditRecord, policy: Policy, path: Path) -> Path:
    judged = made.model_copy(update={"verdict": judge(made, policy)})
    path.write_text(to_json(judged))
    return path


@pytest.mark.parametrize(("kind", "code"), [("active", 0), ("dormant", 1), ("removed", 1)])
def test_the_gate_takes_it_from_the_project_file(tmp_path: Path, kind: str, code: int) -> None:
    record = written(audited(kind), Policy(), tmp_path / "record.json")
    (tmp_path / "bdaudit.toml").write_text('[policy]\nexpect = "active"\n')
    arguments = ["gate", str(record), "--config", str(tmp_path / "bdaudit.toml")]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == code
    assert "(the policy expects active)" in done.stdout
    assert "not the default: expect active" in done.stdout
    # By its own limits the same record is judged as ever.
    assert CliRunner().invoke(app, ["gate", str(record)]).exit_code == int(kind != "removed")


@pytest.mark.parametrize("kind", ["active", "dormant", "removed"])
def test_reports_say_what_was_hoped_for(kind: str) -> None:
    made = audited(kind)
    made = made.model_copy(update={"verdict": judge(made, WANTED)})
    sarif = json.loads(render_report("sarif", made))["runs"][0]
    alerts = [result["ruleId"] for result in sarif["results"]]
    suite = ElementTree.fromstring(render_report("junit", made))
    failed = {
        case.get("name") for case in suite.iter("testcase") if case.find("failure") is not None
    }
    page = render_report("html", made)
    assert "which expects the trigger to be active" in page
    if kind == "active":
        assert alerts == []
        assert suite.get("failures") == suite.get("errors") == "0"
        assert "the wanted trigger works" in page
        assert 'class="badge removed"' in page
    else:
        assert alerts == ["bdaudit/wanted-trigger-lost"]
        assert "the wanted trigger works" in failed
        assert f"the wanted trigger is {'asleep' if kind == 'dormant' else 'gone'}" in page


def test_losing_a_wanted_trigger_is_worse(tmp_path: Path) -> None:
    before = written(audited("active"), WANTED, tmp_path / "before.json")
    after = written(audited("removed"), WANTED, tmp_path / "after.json")
    made = diff(before, after)
    assert made.change == "worse"
    assert {f.name: f.change for f in made.figures}["asr"] == "worse"
    assert diff(before, after, policy=Policy()).change == "better"
