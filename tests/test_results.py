from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from bdaudit.errors import RecordError
from bdaudit.records import AuditRecord, Rate, read_record, to_json
from bdaudit.verdict import Policy, judge
from tests.records import audit_record, bec_record, rate
from tests.report.many import comparison_record, defense_record, difference_record, sweep_record


@given(st.lists(st.booleans(), min_size=1, max_size=70))
def test_outcomes_survive_packing(flags: list[bool]) -> None:
    packed = Rate(successes=sum(flags), total=len(flags), low=0.0, high=1.0, bits=Rate.pack(flags))
    assert packed.outcomes() == flags


def test_the_first_image_is_the_highest_bit() -> None:
    assert Rate.pack([True] + [False] * 7) == "gA=="  # 0x80


def test_a_rate_whose_bits_contradict_its_count_is_refused() -> None:
    with pytest.raises(ValidationError, match="do not add up"):
        Rate(successes=2, total=3, low=0.0, high=1.0, bits=Rate.pack([True, False, False]))
    with pytest.raises(ValidationError, match="4 successes out of 3"):
        Rate(successes=4, total=3, low=0.0, high=1.0)


def whole_record() -> AuditRecord:
    record = audit_record(
        defended={0.01: 0.1, 0.02: 0.4}, innocents=[{0.01: 0.02, 0.02: 0.03}], bec=(bec_record(),)
    )
    return record.model_copy(update={"verdict": judge(record, Policy())})


def test_a_record_survives_json(tmp_path: Path) -> None:
    record = whole_record()
    path = tmp_path / "result.json"
    path.write_text(to_json(record), encoding="utf-8")
    assert read_record(path) == record
    assert to_json(read_record(path)) == path.read_text(encoding="utf-8")


def test_the_same_verdict_comes_from_the_json_alone(tmp_path: Path) -> None:
    record = whole_record()
    path = tmp_path / "result.json"
    path.write_text(to_json(record), encoding="utf-8")
    again = read_record(path)
    assert isinstance(again, AuditRecord)
    assert judge(again, Policy()) == record.verdict


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: d.update(schema_version=99), "schema version 99"),
        (lambda d: d.update(schema_version=99, kind="of the future"), "schema version 99"),
        (lambda d: d.update(seed=d["seed"] + 1), "was edited"),
        (lambda d: d["verdict"].update(outcome="removed"), "was edited"),
        (lambda d: d.update(content_sha256="0" * 64), "was edited"),
        (lambda d: d.pop("content_sha256"), "no digest of its own"),
        (lambda d: d.update(kind="other"), "not a bdaudit record"),
        (lambda d: d.update(surprise=1), "surprise"),
        (lambda d: d["baselines"][0]["asr"].update(successes=500), "do not add up"),
        (lambda d: d["baselines"][0]["asr"].update(bits="%%%"), "base64"),
        (lambda d: d.pop("trigger"), "trigger"),
    ],
)
def test_a_damaged_or_newer_record_is_refused(tmp_path: Path, change: object, said: str) -> None:
    document = json.loads(to_json(whole_record()))
    change(document)
    path = tmp_path / "result.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(RecordError, match=said):
        read_record(path)


def test_layout_is_no_content(tmp_path: Path) -> None:
    """A record that went through a tool that sorts keys or strips spaces is still itself."""
    path = tmp_path / "result.json"
    path.write_text(json.dumps(json.loads(to_json(whole_record())), sort_keys=True))
    assert read_record(path) == whole_record()


def test_files_that_are_no_records_are_refused(tmp_path: Path) -> None:
    for text in ("", "[1]", "{", "\x00\xff"):
        path = tmp_path / "result.json"
        path.write_bytes(text.encode("latin-1"))
        with pytest.raises(RecordError, match=r"result\.json"):
            read_record(path)
    with pytest.raises(RecordError, match="nowhere"):
        read_record(tmp_path / "nowhere.json")


def test_what_another_command_wrote_is_called_by_its_name(tmp_path: Path) -> None:
    for made, command in (
        (comparison_record(), "bdaudit compare"),
        (sweep_record(), "bdaudit sweep"),
        (defense_record(), "bdaudit defend"),
        (difference_record(tmp_path), "bdaudit diff"),
    ):
        path = tmp_path / "made.json"
        path.write_text(to_json(made))
        with pytest.raises(RecordError, match=f"is what {command} wrote"):
            read_record(path)


def test_nothing_in_a_record_can_be_nan() -> None:
    with pytest.raises(ValidationError):
        rate(0.5).model_copy().__class__(successes=1, total=2, low=float("nan"), high=1.0)
