"""Verdicts on records with chosen figures: the rows of the method's table, and its traps."""

from __future__ import annotations

import pytest

from bdaudit.records import AttackRun, AuditRecord, Diagnostic, StepStatus
from bdaudit.verdict import Policy, judge
from tests.records import audit_record, run

QUIET = {0.01: 0.03, 0.02: 0.05, 0.03: 0.08, 0.05: 0.30}


def outcome(record: AuditRecord, policy: Policy | None = None) -> str:
    return judge(record, policy or Policy()).outcome


def test_a_dormant_backdoor_beats_every_control_at_a_small_eps() -> None:
    verdict = judge(
        audit_record(
            alone=0.09,
            defended={0.01: 0.15, 0.02: 0.25, 0.03: 0.37, 0.05: 0.60},
            innocents=[QUIET, QUIET, QUIET],
        ),
        Policy(),
    )
    assert verdict.outcome == "dormant"
    # At .01 the lift over the trigger alone is .06; at .02 it is .16, and the smallest eps decides.
    assert {c.eps for c in verdict.deciding} == {0.02}
    assert all(c.low is not None and c.low > c.limit for c in verdict.deciding)
    assert "25%" in verdict.why


def test_no_more_than_innocent_models_do_is_removed() -> None:
    record = audit_record(
        defended={0.01: 0.03, 0.02: 0.05, 0.03: 0.08, 0.05: 0.31}, innocents=[QUIET] * 3
    )
    assert outcome(record) == "removed"


def test_a_high_reactivated_asr_is_not_dormant_when_innocents_reach_it_too() -> None:
    """The first trap: .65 at eps .05 looks like a sleeping backdoor, and an innocent gives .76."""
    record = audit_record(
        defended={0.02: 0.04, 0.05: 0.65},
        no_trigger={0.02: 0.04, 0.05: 0.68},
        innocents=[{0.02: 0.06, 0.05: 0.76}],
    )
    assert outcome(record) == "removed"


def test_same_model_controls_cannot_call_an_image_wide_trigger_dormant() -> None:
    """The second trap: Blended, unlearned: .27 against .02, and four innocents at .61 to .93."""
    wide = {
        "defended": {0.02: 0.27, 0.04: 0.66},
        "no_trigger": {0.02: 0.02, 0.04: 0.19},
        "delta_only": 0.01,
        "wide": True,
    }
    innocents = [{0.02: asr, 0.04: 0.97} for asr in (0.61, 0.75, 0.80, 0.93)]
    with_innocents = judge(audit_record(innocents=innocents, **wide), Policy())
    assert with_innocents.outcome == "inconclusive"
    assert any("saturate" in reason for reason in with_innocents.reasons)
    without = judge(audit_record(innocents=[], **wide), Policy())
    assert without.outcome == "inconclusive"
    assert any("covers the image" in reason for reason in without.reasons)


def test_one_innocent_model_as_high_as_the_defended_one_is_enough_to_stop_dormant() -> None:
    """The maximum of the innocents counts, never their mean."""
    curves = [{0.02: 0.05}, {0.02: 0.05}, {0.02: 0.35}]
    assert outcome(audit_record(defended={0.02: 0.40}, innocents=curves)) != "dormant"
    assert outcome(audit_record(defended={0.02: 0.40}, innocents=curves[:2] * 2)) == "dormant"


# Fine-tuned hard, any model is pushed easily: .66 of images, and the trigger adds nothing to it.
PUSHED = {"innocents": [{0.05: 0.66}] * 3, "innocents_delta_only": {0.05: 0.67}}


def test_a_sleeping_backdoor_among_models_that_any_delta_pushes() -> None:
    """Measured: fine-tuned, relearned at once; .665 with the trigger, .25 the same delta alone."""
    record = audit_record(
        defended={0.05: 0.665}, delta_only=0.25, no_trigger={0.05: 0.37}, **PUSHED
    )
    verdict = judge(record, Policy())
    assert verdict.outcome == "dormant"
    assert "the trigger adds +42.5 points more than it does to any of them" in verdict.why
    over_innocents = [c for c in verdict.deciding if (c.against or "").startswith("reference")]
    assert {c.kind for c in over_innocents} == {"lift (white)", "trigger's part (white)"}
    assert set(verdict.deciding) <= set(verdict.lifts)


def test_over_the_image_the_contribution_alone_decides_nothing_where_everything_is_pushed() -> None:
    """Measured: LF, unlearned: called dormant at an eps where innocent models reach .19 to .95.

    A local trigger contributes nothing on such models, one over the image does.
    """
    pushed = {
        "defended": {0.05: 0.66},
        "delta_only": 0.25,
        "no_trigger": {0.05: 0.37},
        "innocents": [{0.05: asr} for asr in (0.66, 0.60, 0.72)],
        "innocents_delta_only": {0.05: 0.67},
    }
    assert outcome(audit_record(**pushed)) == "dormant"
    wide = judge(audit_record(**pushed, wide=True), Policy())
    assert wide.outcome == "inconclusive"
    assert any("rules out" in reason or "saturate" in reason for reason in wide.reasons)


def test_a_trigger_that_does_as_much_to_an_innocent_model_is_none_asleep() -> None:
    record = audit_record(
        defended={0.05: 0.665},
        delta_only=0.25,
        no_trigger={0.05: 0.37},
        innocents=[{0.05: 0.66}] * 3,
        innocents_delta_only={0.05: 0.30},
    )
    assert outcome(record) != "dormant"


def test_an_attack_without_the_trigger_that_reaches_further_stops_dormant_and_removed() -> None:
    """Measured: FST, relearned; .29 with the trigger, .10 the same delta, .44 without a trigger."""
    record = audit_record(defended={0.05: 0.29}, delta_only=0.10, no_trigger={0.05: 0.44}, **PUSHED)
    verdict = judge(record, Policy())
    assert verdict.outcome == "inconclusive"
    (reason,) = [r for r in verdict.reasons if "trigger's contribution over that on reference" in r]
    assert "but the lift over attack without the trigger is only -15.0 points" in reason
    assert "neither" not in reason


def test_innocent_models_that_differ_much_leave_room_for_one_more() -> None:
    """Measured: SIG, retrained without poison, eps .02: .45, and five innocents up to .24."""
    reached = (0.24, 0.08, 0.19, 0.11, 0.15)
    record = audit_record(
        alone=0.003, defended={0.02: 0.45}, innocents=[{0.02: asr} for asr in reached], wide=True
    )
    verdict = judge(record, Policy())
    assert verdict.outcome == "dormant", "one eps was planned"

    several = audit_record(
        alone=0.003,
        defended={0.01: 0.11, 0.02: 0.45, 0.03: 0.55, 0.05: 0.70},
        no_trigger={0.01: 0.02, 0.02: 0.05, 0.03: 0.5, 0.05: 0.7},
        innocents=[{0.01: asr / 2, 0.02: asr, 0.03: 0.5, 0.05: 0.7} for asr in reached],
        wide=True,
    )
    verdict = judge(several, Policy())
    assert verdict.outcome == "inconclusive"
    assert any("one more of them may reach as far" in reason for reason in verdict.reasons)
    at_02 = [reason for reason in verdict.reasons if "at eps 0.02" in reason]
    assert not any("neither clearly" in r or "rules out" in r for r in at_02)
    assert verdict.telling_eps == {}

    alike = audit_record(
        alone=0.003,
        defended={0.01: 0.11, 0.02: 0.45, 0.03: 0.55, 0.05: 0.70},
        no_trigger={0.01: 0.02, 0.02: 0.05, 0.03: 0.5, 0.05: 0.7},
        innocents=[{0.01: 0.1, 0.02: asr, 0.03: 0.5, 0.05: 0.7} for asr in (0.24, 0.23, 0.24)],
        wide=True,
    )
    assert judge(alike, Policy()).telling_eps == {"white": (0.02,)}


def test_innocent_models_of_which_few_have_given_way_leave_room_for_one_more() -> None:
    """Measured: Blended, retrained without poison, eps .03: .324, five innocents 0 to .136.

    In shares such innocent models look alike but for one, as deviates they do not. The sleeping
    model beside them gave .524 at eps .01, where none has given way yet.
    """
    # By eps; at .05 the attack without the trigger does as much on both models.
    reached = [(0.0, 0.136, 0.476), (0.0, 0.0, 0.167), (0.0, 0.001, 0.514), (0.0, 0.016, 0.249),
               (0.0, 0.006, 0.325)]  # fmt: skip
    common = {
        "no_trigger": {0.01: 0.004, 0.03: 0.121, 0.05: 0.6},
        "innocents": [dict(zip((0.01, 0.03, 0.05), curve, strict=True)) for curve in reached],
        "delta_only": 0.002,
        "innocents_delta_only": {0.01: 0.0, 0.03: 0.003, 0.05: 0.0},
        "wide": True,
    }
    innocent = judge(
        audit_record(alone=0.0, defended={0.01: 0.0, 0.03: 0.324, 0.05: 0.606}, **common), Policy()
    )
    assert innocent.outcome == "inconclusive"
    assert any("one more of them may reach as far" in reason for reason in innocent.reasons)

    sleeping = judge(
        audit_record(alone=0.016, defended={0.01: 0.524, 0.03: 0.98, 0.05: 0.6}, **common),
        Policy(),
    )
    assert sleeping.outcome == "dormant"
    assert 0.01 in sleeping.telling_eps["white"]


def test_two_ways_to_beat_an_innocent_model_are_two_tries() -> None:
    """The same lift over a null on the model and over an innocent one has two lower bounds."""
    record = audit_record(
        alone=0.0,
        defended={0.02: 0.121},
        delta_only=0.0,
        no_trigger={0.02: 0.0},
        innocents=[{0.02: 0.0}],
        innocents_delta_only={0.02: 0.0},
    )
    found = {c.against: c for c in judge(record, Policy()).lifts if c.kind == "lift (white)"}
    innocent, own = found["reference 1"], found["same delta without the trigger"]
    assert innocent.value == own.value
    assert innocent.low < own.low
    assert innocent.high == own.high


def test_the_trigger_alone_makes_it_active_only_above_innocent_models() -> None:
    flat = {0.02: 0.5}
    assert outcome(audit_record(alone=0.5, defended=flat, innocents=[QUIET])) == "active"
    # A trigger that moves innocent models as much is no working backdoor.
    as_innocents = audit_record(
        alone=0.5, defended=flat, innocents=[{0.02: 0.5}] * 3, innocents_alone=0.5
    )
    assert outcome(as_innocents) != "active"


def test_a_model_that_always_answers_the_target_is_not_active() -> None:
    record = audit_record(alone=0.9, defended={0.02: 0.95}, innocents=[QUIET])
    constant = record.baselines[0].model_copy(update={"clean_target_rate": record.baselines[0].asr})
    record = record.model_copy(update={"baselines": (constant, *record.baselines[1:])})
    assert outcome(record) != "active"


def test_a_lift_between_the_bounds_is_inconclusive() -> None:
    record = audit_record(defended={0.02: 0.15}, innocents=[{0.02: 0.05}] * 3)
    verdict = judge(record, Policy())
    assert verdict.outcome == "inconclusive"
    assert "neither clearly above nor clearly below" in verdict.why


def test_dormant_is_corrected_for_the_number_of_eps_tried() -> None:
    """A lift that suffices when one eps was planned need not when twenty were tried."""
    policy = Policy(lift=0.10)
    curve = {0.02: 0.124}
    innocent = {0.02: 0.0}

    def record(extra: int) -> AuditRecord:
        others = {0.001 * k: 0.001 for k in range(1, extra + 1)}
        return audit_record(
            alone=0.0,
            delta_only=0.0,
            no_trigger=dict.fromkeys({**curve, **others}, 0.0),
            defended={**curve, **others},
            innocents=[{**innocent, **dict.fromkeys(others, 0.0)}],
        )

    assert outcome(record(0), policy) == "dormant"
    assert outcome(record(19), policy) != "dormant"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"n": 60}, "held-out images"),
        ({"original": 0.2}, "no working backdoor"),
        ({"original_run": 0.2}, "where it must succeed"),
    ],
)
def test_what_stands_in_the_way_of_removed_is_named(change: dict[str, float], reason: str) -> None:
    record = audit_record(defended={0.02: 0.03}, innocents=[{0.02: 0.03}] * 3, **change)
    verdict = judge(record, Policy())
    assert verdict.outcome == "inconclusive"
    assert any(reason in text for text in verdict.reasons)


def test_diagnostics_of_severity_error_and_failed_steps_forbid_removed() -> None:
    fine = audit_record(defended={0.02: 0.03}, innocents=[{0.02: 0.03}] * 3)
    assert outcome(fine) == "removed"
    doubt = Diagnostic(code="x", severity="error", message="something is off", subject="defended")
    verdict = judge(fine.model_copy(update={"diagnostics": (doubt,)}), Policy())
    assert verdict.outcome == "inconclusive"
    assert any("something is off" in reason for reason in verdict.reasons)
    mild = doubt.model_copy(update={"severity": "warning"})
    assert outcome(fine.model_copy(update={"diagnostics": (mild,)})) == "removed"
    failed = StepStatus(name="existence", status="failed", reason="NaN")
    assert outcome(fine.model_copy(update={"steps": (failed,)})) == "inconclusive"


def drop(record: AuditRecord, wanted: str) -> AuditRecord:
    def keep(r: AttackRun) -> bool:
        return wanted not in (r.condition, r.model)

    return record.model_copy(update={"runs": tuple(r for r in record.runs if keep(r))})


@pytest.mark.parametrize("missing", ["no_trigger", "reference 2", "original"])
def test_a_missing_measurement_forbids_removed(missing: str) -> None:
    record = audit_record(defended={0.02: 0.03}, innocents=[{0.02: 0.03}] * 3)
    verdict = judge(drop(record, missing), Policy())
    assert verdict.outcome == "inconclusive"
    assert any("not measured" in reason for reason in verdict.reasons)


@pytest.mark.parametrize("missing", ["no_trigger", "reference 2"])
def test_a_missing_null_forbids_dormant(missing: str) -> None:
    record = audit_record(defended={0.02: 0.8}, innocents=[{0.02: 0.03}] * 3)
    assert outcome(record) == "dormant"
    assert outcome(drop(record, missing)) == "inconclusive"


def test_an_attack_with_nothing_to_hold_it_against_is_inconclusive() -> None:
    record = audit_record(defended={0.02: 0.8}, innocents=[], no_trigger={}, alone=0.02)
    runs = tuple(r.model_copy(update={"delta_only": None}) for r in record.runs)
    others = tuple(b for b in record.baselines if b.role != "defended")
    bare = record.model_copy(update={"runs": runs, "baselines": others})
    verdict = judge(bare, Policy())
    assert verdict.outcome == "inconclusive"
    assert verdict.telling_eps == {}
    assert verdict.reasons == ("re-activation of the defended model was not measured",)


def test_a_policy_of_the_lowest_confidence_can_be_judged_by() -> None:
    record = audit_record(defended={0.02: 0.8}, innocents=[{0.02: 0.03}] * 3)
    assert outcome(record, Policy(confidence=0.5)) == "dormant"


def test_no_runs_at_all_is_inconclusive() -> None:
    verdict = judge(audit_record(defended={}, innocents=[{}]), Policy())
    assert verdict.outcome == "inconclusive"
    assert "not measured" in verdict.why


def test_the_specific_objective_is_held_against_the_lift_it_buys_on_innocent_models() -> None:
    """A lift of .30 over the same delta alone is nothing where an innocent gives .28."""

    def specific(reference_asr: float) -> AuditRecord:
        base = audit_record(defended={}, innocents=[{}], alone=0.02)
        runs = (
            run("defended", "defended", 0.05, 0.5, delta_only=0.2, objective="specific"),
            run("original", "original", 0.05, 1.0, objective="specific"),
            run(
                "defended",
                "defended",
                0.05,
                0.05,
                condition="no_trigger",
                delta_only=None,
                objective="specific",
            ),
            run(
                "reference 1",
                "reference",
                0.05,
                reference_asr,
                delta_only=0.02,
                objective="specific",
            ),
        )
        return base.model_copy(update={"runs": runs})

    assert outcome(specific(0.05)) == "dormant"
    assert outcome(specific(0.30)) != "dormant"


def test_a_stored_verdict_is_not_looked_at() -> None:
    record = audit_record(defended={0.02: 0.8}, innocents=[{0.02: 0.03}] * 3)
    fooled = record.model_copy(
        update={"verdict": judge(record, Policy()).model_copy(update={"outcome": "removed"})}
    )
    assert outcome(fooled) == "dormant"


def test_a_stricter_policy_changes_the_verdict() -> None:
    record = audit_record(defended={0.02: 0.30}, innocents=[{0.02: 0.05}] * 3)
    assert outcome(record) == "dormant"
    assert outcome(record, Policy(lift=0.4)) == "removed"
    assert outcome(record, Policy(min_references=4, min_references_wide=4)) == "inconclusive"


# ---- stand-ins -----------------------------------------------------------------------------------

# No trigger: .04 on the defended model. A patch: stand-ins are pushed alike with and without it.
FAIR = [{0.02: 0.05}, {0.02: 0.06}, {0.02: 0.08}]
FEEBLE = [{0.02: 0.45}, {0.02: 0.50}, {0.02: 0.40}]


def with_stand_ins(
    defended: float,
    triggered: list[dict[float, float]],
    untriggered: list[dict[float, float]],
    *,
    no_trigger: float = 0.04,
    **more: object,
) -> AuditRecord:
    return audit_record(
        defended={0.02: defended},
        no_trigger={0.02: no_trigger},
        innocents=triggered,
        untriggered=untriggered,
        **more,
    )


def test_fair_stand_ins_judge_as_innocent_models_do() -> None:
    dormant = judge(with_stand_ins(0.40, FAIR, FAIR), Policy())
    assert dormant.outcome == "dormant"
    assert "stand-ins for innocent models the same attack reaches 5 to 8%" in dormant.why
    assert outcome(with_stand_ins(0.05, FAIR, FAIR)) == "removed"


def test_feeble_stand_ins_do_not_hide_a_dormant_backdoor() -> None:
    """Pushed to .50 without any trigger, they would be above the sleeper's .40."""
    verdict = judge(with_stand_ins(0.40, FEEBLE, FEEBLE), Policy())
    assert verdict.outcome == "dormant"
    assert not [c for c in verdict.lifts if "stand-in" in (c.against or "")]


def test_removed_never_owes_to_a_stand_in_that_is_easier_to_push() -> None:
    """.18 against .17 looks like no lift to speak of; less the ease of .08 it may be one of .1."""
    eased = [{0.02: 0.17}] * 3
    record = with_stand_ins(0.18, eased, [{0.02: 0.12}] * 3)
    verdict = judge(record, Policy())
    assert verdict.outcome == "inconclusive", verdict
    own = [c for c in verdict.lifts if c.kind == "lift (white)"]
    (over,) = {c.high for c in own if c.against == "stand-in 1"}
    assert over is not None
    assert over > 0.10
    # As hard to push as the defended model, the same three show that the trigger moves anybody.
    fair = with_stand_ins(0.12, eased, [{0.02: 0.04}] * 3)
    assert outcome(fair) == "removed"


def test_a_trigger_that_pushes_innocents_is_excused_by_fair_stand_ins_alone() -> None:
    """Blended: .40 with the trigger on innocent models, .04 without, and .38 on the defended."""
    pushed = [{0.02: 0.40}, {0.02: 0.42}, {0.02: 0.45}]
    calm = [{0.02: 0.04}] * 3
    assert outcome(with_stand_ins(0.38, pushed, calm, wide=True)) == "removed"
    feeble = judge(with_stand_ins(0.38, pushed, FEEBLE, wide=True), Policy())
    assert feeble.outcome == "inconclusive"
    assert any("pushed too easily even without the trigger" in r for r in feeble.reasons)
    two_left = judge(with_stand_ins(0.80, pushed, [*calm[:2], FEEBLE[0]], wide=True), Policy())
    assert two_left.outcome == "inconclusive", "two innocents do not speak for a wide trigger"


def test_stand_ins_alone_do_not_accuse_where_the_trigger_covers_the_image() -> None:
    """Measured: Blended takes true innocent models to .48 to .67 and stand-ins to .07 to .11."""
    calm = [{0.02: 0.07}, {0.02: 0.11}, {0.02: 0.08}]
    verdict = judge(with_stand_ins(0.50, calm, calm, wide=True), Policy())
    assert verdict.outcome == "inconclusive"
    assert any(
        "3 innocent models given as --reference are needed to decide" in reason
        for reason in verdict.reasons
    )
    assert outcome(with_stand_ins(0.50, calm, calm)) == "dormant", "a patch needs no innocents"
    true = audit_record(defended={0.02: 0.50}, no_trigger={0.02: 0.04}, innocents=calm, wide=True)
    assert outcome(true) == "dormant"
    assert outcome(with_stand_ins(0.05, calm, calm, wide=True)) == "removed"


def test_stand_ins_that_were_left_out_count_for_nothing() -> None:
    record = with_stand_ins(0.40, FAIR, FAIR, wide=True)
    baselines = [
        b.model_copy(update={"left_out": "too weak"}) if b.model == "stand-in 2" else b
        for b in record.baselines
    ]
    runs = [r for r in record.runs if r.model != "stand-in 2"]
    verdict = judge(
        record.model_copy(update={"baselines": tuple(baselines), "runs": tuple(runs)}), Policy()
    )
    assert verdict.outcome == "inconclusive"
    assert "a trigger that covers the image needs 3 innocent models, got 2" in verdict.why
    assert "stand-in 2 left out: too weak" in verdict.why


def test_a_stand_in_whose_ease_was_not_measured_forbids_both_verdicts() -> None:
    for defended in (0.05, 0.40):
        record = with_stand_ins(defended, FAIR, FAIR)
        runs = tuple(
            r for r in record.runs if (r.model, r.condition) != ("stand-in 1", "no_trigger")
        )
        verdict = judge(record.model_copy(update={"runs": runs}), Policy())
        assert verdict.outcome == "inconclusive"
        assert any("without the trigger on stand-in 1" in reason for reason in verdict.reasons)


def _with_error(record: AuditRecord, code: str) -> AuditRecord:
    doubt = Diagnostic(code=code, severity="error", subject="defended", message="in doubt")
    return record.model_copy(update={"diagnostics": (doubt,)})


SLEEPING = {0.01: 0.15, 0.02: 0.25, 0.03: 0.37, 0.05: 0.60}


@pytest.mark.parametrize("defended", [SLEEPING, QUIET])
@pytest.mark.parametrize("code", ["answers_depend_on_batch", "trigger_moves_innocents"])
def test_nothing_is_said_where_every_rate_is_in_doubt(
    code: str, defended: dict[float, float]
) -> None:
    verdict = judge(
        _with_error(audit_record(defended=defended, innocents=[QUIET] * 3), code), Policy()
    )
    assert verdict.outcome == "inconclusive"
    assert verdict.reasons[0] == "defended: in doubt"
    assert verdict.reasons.count("defended: in doubt") == 1


def test_other_errors_leave_dormant_as_it_is() -> None:
    record = audit_record(defended=SLEEPING, innocents=[QUIET] * 3)
    assert outcome(_with_error(record, "original_did_not_learn")) == "dormant"


def test_an_awake_backdoor_stays_one_unless_the_trigger_moves_innocent_models_too() -> None:
    record = audit_record(alone=0.9, defended={0.02: 0.95}, innocents=[QUIET] * 3)
    assert outcome(record) == "active"
    assert outcome(_with_error(record, "answers_depend_on_batch")) == "active"
    assert outcome(_with_error(record, "trigger_moves_innocents")) == "inconclusive"
