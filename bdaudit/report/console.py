"""The console that everything on a terminal is drawn with."""

from __future__ import annotations

from collections.abc import Iterable
from typing import IO, Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from bdaudit.plain_text import visible

__all__ = ["VisibleConsole", "open_console"]


class VisibleConsole(Console):
    r"""A console that sends no code but its own.

    Colours and cursor movements are rich's, of styles; whatever text holds of them is shown as
    `\u{1b}` and the like.
    """

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Render as rich does, with the text of every segment made visible."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=visible(segment.text))

    def on_broken_pipe(self) -> None:
        """Let the stream's own error pass: rich would leave with 1, which is a verdict."""
        raise


def open_console(file: IO[str], **settings: Any) -> VisibleConsole:
    """Return a console on `file` to which no text is markup.

    Args:
        file: Where it draws.
        settings: Further arguments of rich's console.
    """
    settings = {"highlight": False, "soft_wrap": False} | settings
    return VisibleConsole(file=file, markup=False, emoji=False, **settings)
