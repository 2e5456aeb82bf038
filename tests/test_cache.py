"""The cache folder is where users and their systems expect it."""

from __future__ import annotations

from pathlib import Path

import pytest

from bdaudit.foundation.cache import CACHE_VARIABLE, cache_folder


def test_it_follows_its_own_variable_then_the_systems(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "own"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "own"
    monkeypatch.delenv(CACHE_VARIABLE)
    assert cache_folder() == tmp_path / "xdg" / "bdaudit"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert cache_folder() == tmp_path / ".cache" / "bdaudit"
    assert not list(tmp_path.iterdir())
