"""Settings as plain data, and as parts of keys of kept work."""

from __future__ import annotations

from dataclasses import dataclass, field

from bdaudit.foundation.plain_settings import LATER, flat_settings, keyed_settings


@dataclass(frozen=True)
class Inner:
    old: int = 1
    new: str = field(default="as ever", metadata=LATER)


@dataclass(frozen=True)
class Outer:
    inner: Inner = field(default_factory=Inner)
    added: Inner = field(default_factory=Inner, metadata=LATER)


def test_a_later_setting_is_part_of_a_key_only_where_it_says_something() -> None:
    assert keyed_settings(Outer()) == {"inner": {"old": 1}}
    assert flat_settings(Outer(), unsaid=False) == {"inner.old": 1}
    said = Outer(inner=Inner(new="other"), added=Inner(old=2))
    assert keyed_settings(said) == {"inner": {"old": 1, "new": "other"}, "added": {"old": 2}}
    assert flat_settings(said, unsaid=False) == {
        "inner.old": 1,
        "inner.new": "other",
        "added.old": 2,
    }
    assert flat_settings(Outer())["inner.new"] == "as ever"
