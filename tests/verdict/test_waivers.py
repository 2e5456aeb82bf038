"""Waivers: a file is released that would not be, until a day, and everybody is told."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest

from bdaudit.errors import PolicyError
from bdaudit.records import AuditRecord
from bdaudit.records.verdict import WAIVED
from bdaudit.report.formats import render_report
from bdaudit.verdict import Policy, judge, read_policy
from bdaudit.verdict.release import decide_release
from bdaudit.verdict.waivers import Waiver
from tests.verdict.test_release import INCONCLUSIVE, LOUD, QUIET, A, B, file, record

DAY = date(2031, 3, 1)


def waiver(sha256: str = A, until: date = DAY) -> Waiver:
    return Waiver(sha256=sha256, until=until, because="no other model for the demo", by="Kim Ek")


def candidate(defended: dict[float, float] = LOUD, *digests: str) -> AuditRecord:
    files = tuple(file("defended", digest) for digest in digests or (A,))
    return record(defended, inputs=files)


def with_waivers(*waivers: Waiver, policy: Policy | None = None) -> Policy:
    return (policy or Policy()).model_copy(update={"waivers": waivers})


def test_a_waiver_changes_the_release_and_not_the_verdict() -> None:
    made = judge(candidate(), with_waivers(waiver(until=date(9999, 1, 1))))
    assert made.outcome == "dormant"
    assert made.release == "pass"
    assert made.release_reasons == ()
    assert made.warnings[0] == (
        f"{WAIVED} {A[:12]} until 9999-01-01 by Kim Ek, because: no other model for the demo; "
        "without it this would not pass: the verdict is dormant"
    )
    without = judge(candidate(), Policy())
    assert (without.outcome, without.release) == ("dormant", "fail")
    assert without.why == made.why


@pytest.mark.parametrize(
    ("today", "release"),
    [(date(2031, 2, 28), "pass"), (DAY, "pass"), (date(2031, 3, 2), "fail")],
)
def test_it_fails_the_day_after(today: date, release: str) -> None:
    made = decide_release(candidate(), "dormant", with_waivers(waiver()), today=today)
    assert made.release == release
    assert any("the waiver has ended" in r for r in made.reasons) == (release == "fail")


def test_of_several_for_one_file_the_longest_holds() -> None:
    policy = with_waivers(waiver(), waiver(until=date(2031, 1, 1)))
    assert decide_release(candidate(), "dormant", policy, today=DAY).release == "pass"


def test_inconclusive_and_a_loss_of_accuracy_can_be_accepted() -> None:
    policy = with_waivers(waiver(), policy=INCONCLUSIVE)
    assert decide_release(candidate(QUIET), "inconclusive", policy, today=DAY).release == "pass"
    late = decide_release(candidate(QUIET), "inconclusive", policy, today=date(2031, 3, 2))
    assert late.release == "fail"


@pytest.mark.parametrize("digests", [(B,), (A, B)])
def test_every_file_must_be_accepted(digests: tuple[str, ...]) -> None:
    made = decide_release(candidate(LOUD, *digests), "dormant", with_waivers(waiver()), today=DAY)
    assert made.release == "fail"
    assert not made.warnings


def test_what_is_not_the_audited_file_or_not_allowed_is_never_accepted() -> None:
    policy = with_waivers(waiver())
    other = decide_release(
        candidate(), "dormant", policy, against=["x.pt is not what was audited"], today=DAY
    )
    assert other.release == "fail"
    listed = policy.model_copy(update={"allowed_sha256": (B,)})
    assert decide_release(candidate(), "dormant", listed, today=DAY).release == "fail"
    asked = record(LOUD, inputs=())
    assert decide_release(asked, "dormant", policy, today=DAY).release == "fail"


def test_nothing_is_said_where_it_was_not_needed() -> None:
    made = decide_release(candidate(QUIET), "removed", with_waivers(waiver()), today=DAY)
    assert made.release == "pass"
    assert made.warnings == ()


@pytest.mark.parametrize("name", ["html", "md", "sarif", "junit", "csv", "json"])
def test_every_report_shows_it(name: str) -> None:
    audited = candidate()
    verdict = judge(audited, with_waivers(waiver(until=date(9999, 1, 1))))
    text = render_report(name, audited.model_copy(update={"verdict": verdict}))
    assert WAIVED in text
    assert "Kim Ek" in text


def test_variables_of_a_pipeline_say_that_it_passed_by_a_waiver() -> None:
    for policy, waived in ((with_waivers(waiver(until=date(9999, 1, 1))), "true"), (None, "false")):
        verdict = judge(candidate(), policy or Policy())
        text = render_report("env", candidate().model_copy(update={"verdict": verdict}))
        assert f"waived={waived}\n" in text
        assert "Kim" not in text


def test_a_policy_file_holds_them(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    entry = f'[[waivers]]\nsha256 = "{A}"\nuntil = 2031-03-01\nbecause = "demo"\nby = "Kim"\n'
    path.write_text(entry)
    (read,) = read_policy(path).waivers
    assert (read.until, read.by) == (DAY, "Kim")
    for line in entry.splitlines()[1:]:
        path.write_text(entry.replace(line + "\n", ""))
        with pytest.raises(PolicyError, match="waivers"):
            read_policy(path)
    path.write_text(entry + "forever = true\n")
    with pytest.raises(PolicyError, match="forever"):
        read_policy(path)
    path.write_text(entry.replace('"Kim"', '"  "'))
    with pytest.raises(PolicyError, match="by"):
        read_policy(path)
