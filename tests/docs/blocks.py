"""Commands out of the documentation, and how they are run.

A fenced block whose lines begin with a command (`bdaudit`, `pip`, `docker`, ...) is run as it
stands, in a folder that holds the files the pages speak of. Only budgets are lowered. An HTML
comment on the line above a block changes that:

    <!-- not run: REASON -->    it cannot be run here, and why
    <!-- exits: 1 4 -->         it ends with one of these codes
    <!-- file: NAME -->         no command: a file that the commands below find

Exit codes 0, 1 and 3 are answers; any other fails the test unless it is named.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Block", "commands", "read_blocks", "with_small_budgets"]

_FENCE = re.compile(
    r"(?:^<!-- (?P<mark>[^\n]*?) -->\n)?^```(?P<language>[^\n]*)\n(?P<body>.*?)^```$",
    re.DOTALL | re.MULTILINE,
)
_TOOLS = ("bdaudit", "pip", "python", "python3", "pytest", "docker", "make", "mkdocs", "curl")
_COMMAND = re.compile(rf"^({'|'.join(_TOOLS)})\s", re.MULTILINE)
_SHELL = re.compile(r"[|<>$`&;*]")
_BUDGETS = {
    "audit": {"--passes": "2", "--craft": "40", "--held-out": "220", "--eps": "0.02",
              "--stand-ins": "0", "--device": "cpu"},
    "reactivate": {"--passes": "2", "--craft": "40", "--held-out": "220", "--device": "cpu"},
    "score": {"--craft": "40", "--held-out": "60", "--device": "cpu"},
    "invert": {"--passes": "1", "--craft": "60", "--held-out": "200", "--method": "universal",
               "--target": "0", "--device": "cpu"},
    "defend": {"--methods": "finetune", "--passes": "2", "--craft": "40", "--eps": "0.02",
               "--stand-ins": "0", "--device": "cpu", "--defender-images": "40"},
    "relearn": {"--draws": "1", "--steps": "1,2", "--learning-rates": "0.001", "--craft": "40",
                "--held-out": "60", "--stand-ins": "0", "--device": "cpu"},
}  # fmt: skip


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        page: The file it stands in, relative to the repository.
        line: Where its fence begins.
        language: After the fence.
        body: Its lines.
        mark: What the comment above it says, or nothing.
    """

    page: str
    line: int
    language: str
    body: str
    mark: str

    @property
    def is_commands(self) -> bool:
        """Whether it holds commands rather than output, settings or Python."""
        shell = self.language in ("", "console", "bash", "sh", "shell")
        return shell and _COMMAND.search(self.body) is not None

    @property
    def not_run(self) -> str | None:
        """Why it is not run, `None` when it is."""
        return self.mark.removeprefix("not run: ") if self.mark.startswith("not run: ") else None

    @property
    def file(self) -> str | None:
        """The name under which it is written for the commands that follow."""
        return self.mark.removeprefix("file: ") if self.mark.startswith("file: ") else None

    @property
    def exits(self) -> set[int]:
        """Exit codes that its commands may end with."""
        named = self.mark.removeprefix("exits: ") if self.mark.startswith("exits: ") else "0 1 3"
        return {int(code) for code in named.split()}


def read_blocks(path: Path, root: Path) -> list[Block]:
    """Return every fenced block of a page, in order."""
    text = path.read_text(encoding="utf-8")
    return [
        Block(
            page=str(path.relative_to(root)),
            line=text.count("\n", 0, match.start("body")),
            language=match["language"].strip(),
            body=match["body"],
            mark=match["mark"] or "",
        )
        for match in _FENCE.finditer(text)
    ]


def commands(block: Block) -> list[str]:
    """Split a block into commands: lines, joined where they end in a backslash."""
    joined = block.body.replace("\\\n", " ")
    return [line.strip() for line in joined.splitlines() if line.strip()]


def with_small_budgets(command: str) -> tuple[list[str], bool]:
    """Split a command into arguments, and lower its budgets.

    Returns:
        The arguments, and whether a shell is needed to run it.
    """
    words = shlex.split(command, comments=True)
    bare = shlex.join(words)
    needs_shell = words[0] != "bdaudit" or _SHELL.search(command.split(" #", 1)[0]) is not None
    if needs_shell or bare == "bdaudit":
        return words, needs_shell
    for option, value in _BUDGETS.get(words[1], {}).items():
        if option not in words:
            words += [option, value]
    if words[1] == "audit" and not {"--bec", "--no-bec"} & set(words):
        words.append("--no-bec")
    if words[1] in ("audit", "defend") and not {"--relearn", "--no-relearn"} & set(words):
        words.append("--no-relearn")
    return words, False
