"""Relearning on the terminal: the outcome, ASR against steps as a table and as a chart."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console, Group, RenderableType
from rich.text import Text

from bdaudit.records import Relearning
from bdaudit.report.chart import Band, Line, draw_chart
from bdaudit.report.tables import FittedTable
from bdaudit.report.wording import SAME_IMAGES, at_the_next_rate, gap_with_interval

__all__ = ["relearning_parts"]

_HEADLINES = {
    "dormant": ("red", "REMEMBERED"),
    "removed": ("green", "NOT REMEMBERED"),
    "unknown": ("yellow", "NOT SETTLED"),
}


def relearning_parts(
    relearning: Relearning, console: Console, *, brief: bool = False
) -> list[RenderableType]:
    """Return what there is to show, fitted to the console's width; `brief`: the outcome alone."""
    color, word = _HEADLINES[relearning.outcome]
    evidence = relearning.evidence
    head = Text.assemble(
        ("Relearning: ", "bold"),
        (word, f"bold {color}"),
        ('  no verdict by itself; REMEMBERED forbids "removed"', "dim"),
        f"\n{relearning.why}",
    )
    if brief:
        return [head]
    return [head, _table(relearning), _chart(relearning, console), _gloss(evidence.settings)]


def _table(relearning: Relearning) -> RenderableType:
    evidence = relearning.evidence
    table = FittedTable("ASR after steps", *map(str, evidence.steps))
    names = [c.model for c in relearning.curves if c.role == "defended"]
    name = names[0] if names else "defended"
    rows = [(name, evidence.asr, evidence.clean_target_rate)]
    rows += [
        (model, asr, evidence.innocent_clean_target_rate.get(model, ()))
        for model, asr in evidence.innocent_asr.items()
    ]
    for place, (model, asr, bare) in enumerate(rows):
        style = "bold" if place == 0 else ""
        table.add_row(Text(model, style=style), *(Text(_share(v), style=style) for v in asr))
        if bare:
            table.add_row(Text(f"  {SAME_IMAGES}", style="dim"), *map(_share, bare))
    strongest = evidence.settings.get("strongest", "the strongest innocent model")
    parts: list[RenderableType] = [
        table,
        Text.assemble(f"gap over {strongest}: ", (gap_with_interval(evidence), "bold")),
    ]
    if relearning.faster is not None:
        parts.append(Text(at_the_next_rate(relearning.faster)))
    return Group(*parts)


def _chart(relearning: Relearning, console: Console) -> RenderableType:
    evidence = relearning.evidence
    ascii_only = not console.encoding.lower().startswith("utf")
    innocents = list(zip(*evidence.innocent_asr.values(), strict=True))
    band = Band(
        f"innocent models ({len(evidence.innocent_asr)})",
        "#" if ascii_only else "░",
        "green",
        [min(column) for column in innocents],
        [max(column) for column in innocents],
    )
    lines = [
        Line(SAME_IMAGES, "+", "cyan", evidence.clean_target_rate),
        Line("defended", "D" if ascii_only else "●", "bold red", evidence.asr),
    ]
    chart = draw_chart(
        [str(step) for step in evidence.steps],
        lines=[line for line in lines if line.values],
        band=band,
        width=min(console.width, 78),
        height=9,
        ascii_only=ascii_only,
    )
    return Group(Text("ASR by training steps", style="bold"), chart)


def _gloss(settings: dict[str, object]) -> Text:
    rates = settings.get("learning_rates")
    tried = f" of {', '.join(f'{r:g}' for r in rates)}" if isinstance(rates, Sequence) else ""
    return Text(
        f"learning rate {settings.get('learning_rate')}{tried}, chosen on the innocent models; "
        f"{settings.get('draws')} draws of the shots; {settings.get('n_held_out')} held-out images",
        style="dim",
    )


def _share(value: float) -> str:
    return f"{100 * value:.1f}%"
