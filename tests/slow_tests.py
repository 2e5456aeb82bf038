"""Which tests are slow: those that `slow_tests.txt` lists, or that bear the mark themselves.

    pytest --durations=0 --durations-min=0.8 | tee durations.txt
    python -m tests.slow_tests durations.txt

lists anew what took more than .8 s on a quiet machine: a test by its name, whatever its parameters;
and where a fixture took that long the whole file, since without the first test the next one would
pay for it.
What is listed already stays while it exists, for a busy machine and an idle one differ.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

LISTED = Path(__file__).with_name("slow_tests.txt")
_SECONDS = 0.8
_LINE = re.compile(r"\s*(?P<seconds>[\d.]+)s (?P<phase>call|setup|teardown)\s+(?P<test>tests/\S+)")


def listed() -> frozenset[str]:
    """Return what is listed: files, and tests as `file::name`."""
    return frozenset(LISTED.read_text().split())


def is_listed(nodeid: str, names: frozenset[str]) -> bool:
    """Return whether a collected test is slow by the list."""
    name = nodeid.split("[")[0]
    return name in names or name.split("::")[0] in names


def exists(name: str, root: Path) -> bool:
    """Return whether a listed name is that of a file, or of a test in one."""
    file, _, test = name.partition("::")
    path = root / file
    return path.is_file() and (not test or f"def {test}(" in path.read_text())


def from_durations(lines: Iterable[str]) -> set[str]:
    """Return what took that long, as it is listed."""
    files, tests = set(), set()
    for line in lines:
        found = _LINE.match(line)
        if found is None or float(found["seconds"]) < _SECONDS:
            continue
        test = found["test"].split("[")[0]
        if found["phase"] == "setup":
            files.add(test.split("::")[0])
        tests.add(test)
    return files | {test for test in tests if test.split("::")[0] not in files}


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the list."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("durations", type=Path, help="what pytest --durations=0 printed")
    options = parser.parse_args(arguments)
    root = LISTED.parents[1]
    names = from_durations(options.durations.read_text().splitlines()) | listed()
    kept = {n for n in names if exists(n, root)}
    whole = {n for n in kept if "::" not in n}
    LISTED.write_text(
        "\n".join(sorted(n for n in kept if n in whole or n.split("::")[0] not in whole)) + "\n"
    )


if __name__ == "__main__":
    main()
