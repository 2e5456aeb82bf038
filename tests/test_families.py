from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from bdaudit.errors import RecordError
from bdaudit.foundation.statistics import wilson_interval
from bdaudit.records import Rate
from bdaudit.records.families import (
    FAMILY_FILE,
    Family,
    FamilyMember,
    FamilyTrigger,
    read_family,
    write_family,
)


def member(name: str, **fields: object) -> FamilyMember:
    defaults = {"file": f"{name}.safetensors", "sha256": "0", "weights_sha256": "0"}
    return FamilyMember.model_validate({"name": name, "lineage": "clean", **defaults, **fields})


def family(*members: FamilyMember, **fields: object) -> Family:
    settings = {
        "name": "small",
        "dataset": "fashion-mnist",
        "num_classes": 10,
        "image_shape": (1, 28, 28),
        "sample": "clean.npz",
        "triggers": {"patch": FamilyTrigger(file="patch.toml", sha256="1", attack="badnets")},
        "members": members,
    }
    return Family.model_validate({**settings, **fields})


def test_a_family_written_is_read_again(tmp_path):
    original = member("a", lineage="original", trigger="patch")
    tuned = member("a-ft", lineage="defended", original="a", trigger="patch", truth="dormant")
    innocent = member("i1", truth="innocent")
    written = family(original, tuned, innocent, references=("i1",))

    write_family(tmp_path, written)

    assert read_family(tmp_path) == written
    assert read_family(tmp_path).to_audit() == (tuned,)
    assert written.member("i1") == innocent
    with pytest.raises(RecordError, match="no member is called 'b'"):
        written.member("b")


@pytest.mark.parametrize("path", ["/etc/passwd", "../a.safetensors", "x/../../a", "..\\a", ""])
def test_a_path_out_of_the_folder_is_refused(path):
    with pytest.raises(ValidationError, match="inside the family's folder"):
        member("a", file=path)


@pytest.mark.parametrize(
    ("members", "fields", "message"),
    [
        ((member("a"), member("a")), {}, "two members of one name"),
        ((member("a", original="b"),), {}, "no member is called b"),
        ((member("a"),), {"references": ("c",)}, "no member is called c"),
        ((member("a", trigger="warp"),), {}, "no trigger is called warp"),
    ],
)
def test_names_must_resolve(members, fields, message):
    with pytest.raises(ValidationError, match=message):
        family(*members, **fields)


def test_a_file_that_is_none_says_what_is_wrong_with_it(tmp_path):
    with pytest.raises(RecordError, match="No such file"):
        read_family(tmp_path)
    (tmp_path / FAMILY_FILE).write_text(json.dumps({"name": "x"}))
    with pytest.raises(RecordError, match=r"not a family of models: dataset: Field required"):
        read_family(tmp_path)


def test_members_that_may_be_guessing_are_not_audited():
    def learned(share):
        successes = round(1000 * share)
        low, high = wilson_interval(successes, 1000)
        return Rate(successes=successes, total=1000, low=low, high=high)

    def defended(name, original, share):
        held = {"lineage": "defended", "original": original, "trigger": "patch"}
        return member(name, clean_acc=learned(share), **held)

    described = family(
        member("a", lineage="original", trigger="patch", clean_acc=learned(0.9)),
        member("b", lineage="original", trigger="patch", clean_acc=learned(0.1)),
        defended("a-ft", "a", 0.88),
        defended("a-broken", "a", 0.14),
        defended("b-ft", "b", 0.8),
        member("i1", clean_acc=learned(0.1)),
        member("i2"),
        references=("i1", "i2"),
    )

    assert [m.name for m in described.to_audit()] == ["a-ft"]
    left_out = described.did_not_learn()
    assert set(left_out) == {"b", "a-broken", "b-ft", "i1"}
    assert left_out["a-broken"] == ("did not learn the task: clean accuracy 14.0%, chance is 10.0%")
    assert left_out["b-ft"].startswith("its original b did not learn the task")
