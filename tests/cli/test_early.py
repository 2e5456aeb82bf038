"""A missing file is refused before torch is imported, by every command that takes one."""

from __future__ import annotations

import json
import subprocess
import sys

COMMANDS = {
    "audit": ("audit", "nope.pt", "--original", "{here}", "--data", "{here}"),
    "original": ("audit", "{here}", "--original", "nope.onnx", "--data", "{here}"),
    "reference": (
        *("audit", "{here}", "--original", "{here}", "--data", "{here}"),
        *("--reference", "nope.pt"),
    ),
    "data": ("score", "{here}", "--original", "{here}", "--trigger", "{here}", "--data", "nope"),
    "trigger": (
        *("reactivate", "{here}", "--data", "{here}", "--eps", "0.02"),
        *("--trigger", "nope.toml"),
    ),
    "relearn": (
        *("relearn", "nope.pt", "--data", "{here}"),
        *("--trigger", "{here}"),
    ),
    "invert": ("invert", "nope.pt", "--data", "{here}"),
    "defend": ("defend", "nope.pt", "--data", "{here}", "--out", "o"),
    "inspect": ("inspect", "nope.pt"),
    "verify": ("verify", "nope.json"),
    "gate": ("gate", "nope.json"),
    "report": ("report", "nope.json"),
    "compare": ("compare", "nope.json", "nope2.json"),
}

PROGRAM = """
import json, sys
from typer.testing import CliRunner
from bdaudit.cli import app
answers = {}
for name, arguments in json.loads(sys.argv[1]).items():
    result = CliRunner().invoke(app, arguments)
    answers[name] = (result.exit_code, result.output, "torch" in sys.modules)
print(json.dumps(answers))
"""


def test_a_missing_file_is_refused_before_anything_slow_is_imported() -> None:
    commands = {
        name: [part.format(here=__file__) for part in command] for name, command in COMMANDS.items()
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(commands)],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    answers = json.loads(done.stdout)
    assert {name: code for name, (code, _, _) in answers.items()} == dict.fromkeys(COMMANDS, 4)
    for name, (_, output, torch) in answers.items():
        assert "nope" in output, name
        assert "No such file or directory" in output, name
        assert not torch, name
