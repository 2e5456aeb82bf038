"""A screening without images on the terminal: the outcome, the classes, what it leaves open."""

from __future__ import annotations

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from bdaudit.records import ScreenRecord
from bdaudit.report.panels import outcome_panel
from bdaudit.report.screening import GISTS_OF_SCREENING, LEFT_OPEN, class_namer, p_value
from bdaudit.report.tables import Column, FittedTable
from bdaudit.report.wording import weights_of

__all__ = ["screening_footer", "screening_parts"]

_COLORS = {"suspicious": "red", "nothing found": "yellow", "unknown": "yellow"}
_MOST_SHOWN = 12  # classes, largest margin first
_BAR_WIDTH = 24


def screening_parts(record: ScreenRecord, console: Console) -> list[RenderableType]:
    """Return what there is to show, fitted to the console's width."""
    screening = record.screening
    color, word = _COLORS[screening.outcome], screening.outcome.upper()
    gist = GISTS_OF_SCREENING[screening.outcome]
    panel = outcome_panel(word, gist, screening.why, color=color, console=console)
    bar = Column("0 ... largest", text=True, spare=True)
    table = FittedTable("class", "maximum margin", "at the start", "steps", bar)
    name = class_namer(screening)
    largest = screening.margins[0].margin if screening.margins else 0.0
    for place, row in enumerate(screening.margins[:_MOST_SHOWN]):
        style = f"bold {color}" if place == 0 and screening.outcome == "suspicious" else ""
        figures = (f"{row.margin:.2f}", f"{row.start:.2f}", str(row.steps))
        table.add_row(name(row.label), *figures, _bar(row.margin, largest), style=style)
    left = len(screening.margins) - _MOST_SHOWN
    heading = Text("Maximum margin of each class", style="bold")
    heading.append(f"  in logits; p of the largest: {p_value(screening)}", style="dim")
    more = [Text(f"and {left} classes below these", style="dim")] if left > 0 else []
    return [
        panel,
        Group(heading, table, *more),
        Group(
            Text("What this does not prove", style="bold"),
            *(Padding(Text(f"- {line}"), (0, 0, 0, 2)) for line in LEFT_OPEN),
        ),
    ]


def screening_footer(record: ScreenRecord) -> RenderableType:
    """Return what it was measured with."""
    return Text(
        f"no images and no trigger; {record.screening.n_images} random images a class; seed "
        f"{record.seed}; {record.environment.device}; {record.elapsed_s:.0f} s; "
        f"bdaudit {record.environment.bdaudit}\n{weights_of(record)}",
        style="dim",
    )


def _bar(margin: float, largest: float) -> Text:
    share = margin / largest if largest > 0 else 0.0
    filled = round(min(max(share, 0.0), 1.0) * _BAR_WIDTH)
    return Text.assemble(("#" * filled, "magenta"), ("." * (_BAR_WIDTH - filled), "dim"))
