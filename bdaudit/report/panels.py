"""The panel at the head of a result on the terminal."""

from __future__ import annotations

from rich import box
from rich.console import Console, Group
from rich.panel import Panel
from rich.text import Text

__all__ = ["outcome_panel"]


def outcome_panel(word: str, gist: str, why: str, *, color: str, console: Console) -> Panel:
    """Return an outcome, what it means in a few words, and why it came out.

    Args:
        word: The outcome, in capitals.
        gist: What it means.
        why: One sentence.
        color: Of all but the sentence.
        console: Where it is shown; its encoding decides how the border is drawn.
    """
    ascii_only = not console.encoding.lower().startswith("utf")
    return Panel(
        Group(
            Text.assemble((f" {word} ", f"bold reverse {color}"), "  ", (gist, f"bold {color}")),
            Text(""),
            Text(why),
        ),
        border_style=color,
        box=box.ASCII if ascii_only else box.ROUNDED,
        padding=(0, 1),
    )
