"""The list of slow tests names what is there, and is read as it is written."""

from __future__ import annotations

from pathlib import Path

from tests.slow_tests import LISTED, exists, from_durations, is_listed, listed

ROOT = Path(__file__).parents[1]

DURATIONS = """\
============================= slowest durations ==============================
12.50s call     tests/a/test_one.py::test_long[x::y]
1.20s setup    tests/a/test_two.py::test_first
3.00s call     tests/a/test_two.py::test_second
0.70s call     tests/a/test_one.py::test_quick
"""


def test_all_that_is_listed_is_there() -> None:
    assert [name for name in listed() if not exists(name, ROOT)] == []
    assert LISTED.read_text().split() == sorted(listed())


def test_the_list_follows_from_what_pytest_prints() -> None:
    names = from_durations(DURATIONS.splitlines())
    assert names == {"tests/a/test_one.py::test_long", "tests/a/test_two.py"}


def test_a_test_is_listed_by_its_name_or_its_file() -> None:
    names = frozenset(from_durations(DURATIONS.splitlines()))
    assert is_listed("tests/a/test_one.py::test_long[z]", names)
    assert is_listed("tests/a/test_two.py::test_third", names)
    assert not is_listed("tests/a/test_one.py::test_quick", names)
