from __future__ import annotations

import pytest

from bdaudit.records import AuditRecord, FileDigest
from bdaudit.verdict import Policy, judge
from bdaudit.verdict.release import match_files
from tests.records import audit_record, baseline, bec_record, relearning_record

QUIET = {0.02: 0.03, 0.05: 0.05}
LOUD = {0.02: 0.5, 0.05: 0.9}
A, B, C = "a" * 64, "b" * 64, "c" * 64


def file(role: str, sha256: str) -> FileDigest:
    return FileDigest(role=role, path=f"{role}-{sha256[0]}.pt", sha256=sha256, size_bytes=1)


def record(defended: dict[float, float] = QUIET, **changes: object) -> AuditRecord:
    made = audit_record(defended=defended, innocents=[QUIET, QUIET, QUIET])
    return made.model_copy(update=changes)


def with_clean_acc(share: float) -> AuditRecord:
    made = record()
    worse = baseline("defended", "defended", asr=0.02, clean_acc=share)
    return made.model_copy(update={"baselines": (worse, *made.baselines[1:])})


INCONCLUSIVE = Policy(min_held_out=100_000)


@pytest.mark.parametrize(
    ("defended", "policy", "release"),
    [
        (QUIET, Policy(), "pass"),
        (LOUD, Policy(), "fail"),
        (LOUD, Policy(inconclusive="warn"), "fail"),
        (QUIET, INCONCLUSIVE, "inconclusive"),
        (QUIET, INCONCLUSIVE.model_copy(update={"inconclusive": "warn"}), "pass"),
    ],
)
def test_the_outcome_decides(defended: dict[float, float], policy: Policy, release: str) -> None:
    verdict = judge(record(defended), policy)
    assert verdict.release == release
    assert verdict.release_reasons == ()
    warned = any("could not tell" in warning for warning in verdict.warnings)
    assert warned is (verdict.outcome == "inconclusive" and release == "pass")


@pytest.mark.parametrize(
    ("share", "policy", "release", "n_reasons", "n_warnings"),
    [
        (0.75, Policy(), "pass", 0, 1),
        (0.75, Policy(clean_acc_loss="fail"), "fail", 1, 0),
        (0.85, Policy(clean_acc_loss="fail"), "pass", 0, 0),
        # Above the limit, but not surely: a person is told, the release is not stopped.
        (0.795, Policy(clean_acc_loss="fail"), "pass", 0, 1),
    ],
)
def test_lost_accuracy_is_flagged_or_stops_the_release(
    share: float, policy: Policy, release: str, n_reasons: int, n_warnings: int
) -> None:
    verdict = judge(with_clean_acc(share), policy)
    assert verdict.outcome == "removed"
    assert verdict.release == release
    assert len(verdict.release_reasons) == n_reasons
    assert len(verdict.warnings) == n_warnings


def test_an_accuracy_that_was_not_measured_does_not_pass_a_gate_on_it() -> None:
    made = record()
    blind = made.model_copy(update={"baselines": made.baselines[:1]})
    policy = Policy(clean_acc_loss="fail", inconclusive="warn")
    verdict = judge(blind, policy)
    assert verdict.release == "fail"
    assert "was not measured" in verdict.release_reasons[0]


def test_a_high_bec_only_warns() -> None:
    made = record(bec=(bec_record(),))
    assert judge(made, Policy()).warnings == ()
    assert judge(made, Policy(bec_warning=0.5)).warnings == ()
    verdict = judge(made, Policy(bec_warning=0.3))
    assert verdict.release == "pass"
    assert "0.41" in verdict.warnings[0]
    assert "not measured" in judge(record(), Policy(bec_warning=0.3)).warnings[0]


@pytest.mark.parametrize(
    ("defended", "gap", "outcome", "warned"),
    [
        (QUIET, 0.0, "removed", False),
        (QUIET, 0.1, "unknown", False),
        (LOUD, 0.8, "dormant", False),
        (LOUD, 0.0, "removed", True),
    ],
)
def test_relearning_leads_to_no_verdict_and_is_heard_where_it_disagrees(
    defended: dict[float, float], gap: float, outcome: str, warned: bool
) -> None:
    without = judge(record(defended), Policy())
    found = relearning_record(gap, outcome=outcome)
    verdict = judge(record(defended, relearning=found), Policy())
    assert (verdict.outcome, verdict.release) == (without.outcome, without.release)
    assert any("does not agree" in warning for warning in verdict.warnings) is warned


def test_removed_is_withheld_where_relearning_brings_the_trigger_back() -> None:
    """Measured: TrojanNN on emoji, fine-tuned: 19.5 %, without trigger 21.2 %; relearned 63 %."""
    remembered = record(QUIET, relearning=relearning_record(0.8, outcome="dormant"))
    verdict = judge(remembered, Policy())
    assert (verdict.outcome, verdict.release) == ("inconclusive", "inconclusive")
    (reason,) = verdict.reasons
    assert "5 triggered images bring it back faster than in any innocent model" in reason
    assert not any("does not agree" in warning for warning in verdict.warnings)
    assert "another defence" in verdict.advice[0]

    lenient = judge(remembered, Policy(relearning="warn"))
    assert lenient.outcome == "removed"
    assert any("does not agree" in warning for warning in lenient.warnings)


def test_what_relearning_brings_back_by_its_estimate_alone_is_no_removed_either() -> None:
    """Measured: SIG on emoji after NAD: gap +.17, between +.07 and +.28."""
    unsettled = record(QUIET, relearning=relearning_record(0.17, outcome="unknown"))
    verdict = judge(unsettled, Policy())
    assert verdict.outcome == "inconclusive"
    assert "5 triggered images seem to bring it back" in verdict.reasons[0]
    assert "more draws" in verdict.advice[0]
    below = record(QUIET, relearning=relearning_record(0.09, outcome="unknown"))
    assert judge(below, Policy()).outcome == "removed"


def test_what_the_next_larger_rate_brings_back_is_no_removed_either() -> None:
    """Measured: Blended on a VGG after FT-SAM: gap +.04 at the rate chosen, +.14 at the next."""
    chosen = relearning_record(0.04, outcome="removed")
    above = relearning_record(0.14, outcome="unknown").evidence
    verdict = judge(record(QUIET, relearning=chosen.model_copy(update={"faster": above})), Policy())
    assert verdict.outcome == "inconclusive"
    assert "at the next larger learning rate, 0.01 (gap +14.0 points" in verdict.reasons[0]
    quiet = chosen.model_copy(update={"faster": chosen.evidence})
    assert judge(record(QUIET, relearning=quiet), Policy()).outcome == "removed"


@pytest.mark.parametrize(("defended", "heard"), [(QUIET, True), (LOUD, False)])
def test_a_pass_without_relearning_says_so(defended: dict[float, float], heard: bool) -> None:
    verdict = judge(record(defended, relearning_missing="it can only be queried"), Policy())
    assert any("relearning was not measured" in w for w in verdict.warnings) is heard


def test_only_allowed_files_pass() -> None:
    made = record(inputs=(file("defended", A), file("original", B)))
    assert judge(made, Policy(allowed_sha256=(A, C))).release == "pass"
    refused = judge(made, Policy(allowed_sha256=(B,)))
    assert refused.outcome == "removed"
    assert refused.release == "fail"
    assert "not among the allowed" in refused.release_reasons[0]
    unknown = judge(record(), Policy(allowed_sha256=(A,)))
    assert unknown.release == "fail"
    assert "not known" in unknown.release_reasons[0]


@pytest.mark.parametrize(
    ("audited", "released", "said"),
    [
        ([("defended", A)], [A], None),
        ([("defended", A)], [A, A], None),
        ([("defended", A)], [B], "is not what was audited"),
        ([("defended", A), ("original", B)], [B], "is this audit's original"),
        ([("defended", A)], [A, B], "is not what was audited"),
        ([("defended", A), ("defended", B)], [A], "also consists of defended-b.pt"),
        ([("defended", A), ("defended", B)], [B, A], None),
        ([("original", B)], [B], "no digest of the candidate"),
    ],
)
def test_what_is_released_is_what_was_audited(
    audited: list[tuple[str, str]], released: list[str], said: str | None
) -> None:
    made = record(inputs=tuple(file(role, sha) for role, sha in audited))
    found = list(match_files(made, [file("released", sha) for sha in released]))
    assert len(found) == (said is not None)
    if said is not None:
        assert said in found[0]


def with_unaudited(*names: str) -> AuditRecord:
    record = audit_record(defended={0.03: 0.02}, innocents=[{0.03: 0.02}] * 3)
    chosen = record.model_named("defended").model_copy(
        update={"weights": "state_dict", "unaudited": names, "notes": ("stripped 'module.'",)}
    )
    models = tuple(chosen if m.name == "defended" else m for m in record.models)
    return record.model_copy(update={"models": models})


def test_weights_that_nobody_audited_forbid_the_release_until_the_policy_allows_them() -> None:
    record = with_unaudited("state_dict_ema")
    verdict = judge(record, Policy())
    assert (verdict.outcome, verdict.release) == ("removed", "fail")
    assert any("'state_dict_ema'" in reason for reason in verdict.release_reasons)
    assert "The weights under 'state_dict' were audited" in verdict.why
    allowed = judge(record, Policy(unaudited_weights="allow"))
    assert allowed.release == "pass"
    assert any("'state_dict_ema'" in warning for warning in allowed.warnings)


def test_a_file_with_one_set_of_weights_is_not_spoken_of() -> None:
    verdict = judge(with_unaudited(), Policy())
    assert (verdict.release, verdict.release_reasons) == ("pass", ())
    assert "under" not in verdict.why


def test_notes_on_given_inputs_are_told_and_those_on_models_made_here_are_not() -> None:
    record = with_unaudited()
    made = record.models[0].model_copy(
        update={"name": "stand-in 1", "stand_in": True, "role": "reference", "notes": ("made",)}
    )
    data = record.data.model_copy(update={"notes": ("dropped the alpha channel",)})
    record = record.model_copy(update={"models": (*record.models, made), "data": data})
    assert record.input_notes() == (
        "defended: stripped 'module.'",
        "images: dropped the alpha channel",
    )
