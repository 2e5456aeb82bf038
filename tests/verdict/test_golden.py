"""Verdicts on made-up records, held to what they were before the rules were taken apart.

The records cover every sentence that a verdict can say. After a change of the rules that is meant,
`python -m tests.verdict.test_golden` writes the file anew; read its diff.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bdaudit.records import Comparison
from bdaudit.verdict import judge
from tests.verdict.made_up import made_up

_FILE = Path(__file__).with_name("golden.json")
GOLDEN: dict[str, dict[str, Any]] = json.loads(_FILE.read_text(encoding="utf-8"))


def _row(comparison: Comparison) -> list[Any]:
    c = comparison
    figures = [None if x is None else round(x, 6) for x in (c.value, c.low, c.high)]
    return [c.name, c.kind, c.eps, c.against, *figures, c.limit, c.holds]


def described(seed: int) -> dict[str, Any]:
    """What is kept of the verdict on one made-up record."""
    verdict = judge(*made_up(seed))
    return {
        "outcome": verdict.outcome,
        "why": verdict.why,
        "reasons": list(verdict.reasons),
        "telling_eps": {mode: list(eps) for mode, eps in verdict.telling_eps.items()},
        "release": verdict.release,
        "release_reasons": list(verdict.release_reasons),
        "warnings": list(verdict.warnings),
        "deciding": [_row(c) for c in verdict.deciding],
        "n_lifts": len(verdict.lifts),
        "n_lifts_that_hold": sum(c.holds for c in verdict.lifts),
    }


@pytest.mark.parametrize("seed", sorted(GOLDEN, key=int))
def test_the_verdict_on_a_made_up_record_is_what_it_was(seed: str) -> None:
    expected, found = GOLDEN[seed], described(int(seed))
    rows, expected_rows = found.pop("deciding"), expected["deciding"]
    assert found == {key: value for key, value in expected.items() if key != "deciding"}
    for row, expected_row in zip(rows, expected_rows, strict=True):
        words, figures = (row[:4], row[8]), row[4:8]
        assert words == (expected_row[:4], expected_row[8])
        for figure, expected_figure in zip(figures, expected_row[4:8], strict=True):
            assert figure == pytest.approx(expected_figure, abs=1e-5)


def test_the_made_up_records_end_in_every_way() -> None:
    assert {kept["outcome"] for kept in GOLDEN.values()} == {
        "removed", "dormant", "active", "inconclusive"
    }  # fmt: skip


def _write() -> None:
    kept = {seed: described(int(seed)) for seed in sorted(GOLDEN, key=int)}
    lines = []
    for seed, verdict in kept.items():
        rows = ",\n".join(f"   {json.dumps(row)}" for row in verdict["deciding"])
        rest = {key: value for key, value in verdict.items() if key != "deciding"}
        text = json.dumps(rest, indent=1).removesuffix("\n}").replace("\n", "\n ")
        lines.append(f' "{seed}": {text},\n  "deciding": [\n{rows}\n  ]\n }}')
    _FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    _write()
