"""The search for an unknown trigger on the terminal: the outcome, the candidates, the classes."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console, Group, RenderableType
from rich.text import Text

from bdaudit.records import Inversion, InversionRun, Rate, RecoveredTrigger, TargetScore
from bdaudit.report.panels import outcome_panel
from bdaudit.report.tables import Column, FittedTable

__all__ = ["inversion_parts"]

_HEADLINES = {
    "found": ("red", "FOUND", "the original holds a backdoor; its trigger is recovered"),
    "none": ("green", "NONE FOUND", "no backdoor found in the original by these methods"),
    "unsure": ("yellow", "UNSURE", "the original may or may not hold a backdoor"),
}
_LEAST_SHOWN = 5
"""Classes shown of each method, beside all that are unusual."""
_ONE_DECIMAL_BELOW = 10.0  # percent
_UNUSUAL = 0.10


def inversion_parts(
    inversion: Inversion,
    class_names: Sequence[str] | None,
    console: Console,
    *,
    brief: bool = False,
) -> list[RenderableType]:
    """Return what there is to show, fitted to the console's width.

    Args:
        inversion: What was found.
        class_names: In order of index, where they are known.
        console: Where it will be shown.
        brief: The outcome and the recovered triggers only, as a part of an audit's report.
    """
    names = class_names or ()
    if brief:
        _, word, _ = _HEADLINES[inversion.outcome]
        head = Text.assemble(
            ("Search for the trigger: ", "bold"), (word, "bold"), f"\n{inversion.why}"
        )
        return [head, _candidate_table(inversion, names, console), *_made(inversion)]
    color, word, gist = _HEADLINES[inversion.outcome]
    panel = outcome_panel(word, gist, inversion.why, color=color, console=console)
    parts: list[RenderableType] = [panel]
    parts.append(_candidate_table(inversion, names, console))
    parts += [_ranking(run, names, console) for run in inversion.runs]
    parts += _made(inversion)
    if inversion.skipped:
        parts.append(Text(f"Not tried, too few images: {', '.join(inversion.skipped)}"))
    return parts


def _made(inversion: Inversion) -> list[RenderableType]:
    said = []
    if inversion.made:
        names = ", ".join(model.name for model in inversion.made)
        said.append(f"Innocent models made for the search: {names}")
    said += [f"{name} left out: {why}" for name, why in inversion.left_out.items()]
    return [Text("; ".join(said), style="dim")] if said else []


def _candidate_table(
    inversion: Inversion, names: Sequence[str], console: Console
) -> RenderableType:
    method, wakes = Column("method", text=True), Column("wakes", text=True)
    figures = ("size", "p", "original", "innocent", "own")
    table = FittedTable("target", method, *figures, wakes)
    for c in inversion.candidates:
        table.add_row(
            _target(c, names),
            c.method,
            _size(c.size, c.unit),
            _p(c.p_value),
            f"{100 * c.asr.value:.1f}%",
            _range(c.innocent_asr),
            _range(c.own_asr),
            Text("yes", style="bold red") if c.wakes_original else Text("no"),
        )
    reasons = [
        Text(f"{_target(c, names)} ({c.method}): {c.why_not}", style="dim")
        for c in inversion.candidates
        if c.why_not is not None
    ]
    gloss = (
        "share of held-out images taken to the target: on the original, by the same trigger on "
        "innocent models, by triggers of their own of that size; whether it wakes the original"
    )
    return Group(
        Text("Recovered triggers (recovered, not known)", style="bold"),
        Text(gloss, style="dim"),
        table,
        *reasons,
    )


def _ranking(run: InversionRun, names: Sequence[str], console: Console) -> RenderableType:
    table = FittedTable("target", "original", "innocent", "times less", "score", "p")
    shown = [
        s
        for place, s in enumerate(run.scores)
        if place < _LEAST_SHOWN or (s.p_value is not None and s.p_value <= _UNUSUAL)
    ]
    for s in shown:
        low, high = min(s.innocent_sizes, default=None), max(s.innocent_sizes, default=None)
        innocent = "-" if low is None or high is None else f"{low:.3g}-{high:.3g}"
        unusual = s.p_value is not None and s.p_value <= _UNUSUAL
        table.add_row(
            Text(_target(s, names), style="bold red" if unusual else ""),
            f"{s.size:.3g}",
            innocent,
            f"{2**s.gain:.2f}",
            "-" if s.score is None else f"{s.score:+.1f}",
            "dropped" if s.dropped_after is not None else _p(s.p_value),
        )
    rest = len(run.scores) - len(shown)
    lines: list[RenderableType] = [
        Text.assemble(
            (f"Classes by {run.method}", "bold"), (f"  what each needs, in {run.unit}", "dim")
        ),
        table,
    ]
    if rest:
        lines.append(Text(f"and {rest} more, less suspicious", style="dim"))
    if run.reason is not None:
        lines.append(Text(f"no p-values: {run.reason}"))
    lines.append(
        Text(
            f"{run.gradient_passes:.0f} gradient passes over the craft images, all models; "
            f"every class in full would take {run.naive_passes:.0f}",
            style="dim",
        )
    )
    return Group(*lines)


def _target(of: RecoveredTrigger | TargetScore, names: Sequence[str]) -> str:
    if of.target_label is None:
        classes = of.class_map if isinstance(of, RecoveredTrigger) else None
        moved = [f"{k} to {to}" for k, to in enumerate(classes or ()) if k != to]
        return ", ".join(moved) or of.target_rule
    name = names[of.target_label] if of.target_label < len(names) else ""
    return f"{of.target_label} {name}".strip()


def _size(size: float, unit: str) -> str:
    return f"{size:.3g} {'px' if unit == 'pixels' else ''}".strip()


def _range(rates: Sequence[Rate]) -> str:
    if not rates:
        return "-"
    low, high = 100 * min(r.value for r in rates), 100 * max(r.value for r in rates)
    digits = 1 if high < _ONE_DECIMAL_BELOW else 0  # a narrow terminal has no room for more
    shown = f"{high:.{digits}f}%"
    return shown if len(rates) == 1 else f"{low:.{digits}f}-{shown}"


def _p(value: float | None) -> str:
    if value is None:
        return "-"
    return "<.0001" if value < 1e-4 else f"{value:.2g}"
