from __future__ import annotations

from pathlib import Path

import pytest

from bdaudit.errors import PolicyError
from bdaudit.verdict import Policy, read_policy


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "policy.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_keys_left_out_keep_their_defaults(tmp_path: Path) -> None:
    policy = read_policy(write(tmp_path, "lift = 0.2\n"))
    assert policy == Policy(lift=0.2)
    assert policy.active_asr == Policy().active_asr


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("lfit = 0.2", "did you mean 'lift'"),
        ("lift = 1.5", "lift"),
        ("lift = 'much'", "lift"),
        ("saturation = 0.95\nlift = 0.2", "above 1"),
        ("min_references = 5", "min_references_wide"),
        ("= 3", "TOML"),
    ],
)
def test_a_policy_that_cannot_hold_is_refused_with_the_reason(
    tmp_path: Path, text: str, said: str
) -> None:
    with pytest.raises(PolicyError, match=said):
        read_policy(write(tmp_path, text))


def test_a_missing_policy_is_named(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match=r"nowhere\.toml"):
        read_policy(tmp_path / "nowhere.toml")
