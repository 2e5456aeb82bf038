"""A record whose figures contradict each other, its digest computed anew, is a record's fault."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bdaudit.errors import ConfigError, RecordError
from bdaudit.records import to_json, using_record
from bdaudit.records.base import Rate
from bdaudit.verdict.gate import gate
from tests.hostile.generators import sealed
from tests.records import audit_record, rate


def test_rates_over_the_same_images_of_different_length(tmp_path: Path) -> None:
    sound = audit_record(defended={0.02: 0.05}, innocents=[{0.02: 0.05}] * 3)
    document = json.loads(to_json(sound))
    for baseline in document["baselines"]:
        if baseline["role"] == "defended":
            baseline["clean_acc"] = rate(0.9, n=8000).model_dump(mode="json")
    (tmp_path / "r.json").write_text(sealed(document))
    with pytest.raises(RecordError, match="figures contradict each other"):
        gate(tmp_path / "r.json")


def test_errors_of_ours_and_of_the_program_stay_what_they_are() -> None:
    with pytest.raises(ConfigError, match="as it was"), using_record("r.json"):
        raise ConfigError("as it was")
    with pytest.raises(RuntimeError), using_record("r.json"):
        raise RuntimeError("no fault of the record")
    with pytest.raises(RecordError, match=r"r\.json.*ZeroDivisionError"), using_record("r.json"):
        _ = 1 / 0


def test_a_rate_says_itself_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="do not add up"):
        Rate(successes=1, total=8, low=0.0, high=1.0, bits=Rate.pack([False] * 8))
