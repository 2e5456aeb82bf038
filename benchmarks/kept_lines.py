"""What a benchmark has measured, one JSON object a line, so that a killed run can go on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["KeptLines", "read_lines"]


class KeptLines:
    """A file of lines, made with its folder when the first one is added."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._lines = _lines(file) if file.exists() else []

    def has(self, about: dict[str, Any]) -> bool:
        """Say whether a line agrees with all of `about`."""
        return any(about.items() <= _plain(line).items() for line in self._lines)

    def add(self, line: dict[str, Any]) -> None:
        """Keep a line, and print it."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open("a") as opened:
            opened.write(json.dumps(line) + "\n")
        self._lines.append(line)
        print(*line.values(), flush=True)


def read_lines(folder: Path) -> list[dict[str, Any]]:
    """Return all lines of all files in a folder, none of which ends the program."""
    lines = [line for file in sorted(folder.glob("*.jsonl")) for line in _lines(file)]
    if not lines:
        raise SystemExit(f"{folder}: expected a folder with lines that this benchmark wrote")
    return lines


def _lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def _plain(line: dict[str, Any]) -> dict[str, Any]:
    """Leave out what cannot be held in a set."""
    return {name: value for name, value in line.items() if not isinstance(value, list)}
