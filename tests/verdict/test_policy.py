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
        ("active_asr = 0.6", "active_asr 0.6 is above min_original_asr"),
        ("clean_acc_loss = 'fail'\nmax_clean_acc_loss = 1.0", "no loss is above"),
        ("clean_acc_loss = 'ignore'", "clean_acc_loss"),
        ("allowed_sha256 = []", "allows no file at all"),
        ("allowed_sha256 = ['abc']", "allowed_sha256"),
        ("inconclusive = 'pass'", "inconclusive"),
        ("= 3", "TOML"),
    ],
)
def test_a_policy_that_cannot_hold_is_refused_with_the_reason(
    tmp_path: Path, text: str, said: str
) -> None:
    with pytest.raises(PolicyError, match=said):
        read_policy(write(tmp_path, text))


def test_the_digest_is_over_the_limits_and_not_their_spelling(tmp_path: Path) -> None:
    spelled = read_policy(write(tmp_path, "# mine\nlift = 0.20\nactive_asr = 0.1\n"))
    assert spelled.sha256 == Policy(lift=0.2).sha256
    assert Policy(lift=0.21).sha256 != Policy(lift=0.2).sha256


def test_a_missing_policy_is_named(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match=r"nowhere\.toml"):
        read_policy(tmp_path / "nowhere.toml")
