"""A record on the terminal: the verdict first, then what it rests on."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.panel import Panel
from rich.text import Text

from bdaudit.foundation.modes import MODES
from bdaudit.records import (
    AnyDocument,
    AttackRun,
    AuditRecord,
    Baseline,
    BecRecord,
    Diagnostic,
    InversionRecord,
    Mode,
    RelearnRecord,
    ScoreRecord,
    ScreenRecord,
)
from bdaudit.report.chart import Band, Line, draw_chart
from bdaudit.report.inversion import inversion_parts
from bdaudit.report.placebos import about_placebos, placebo_rows
from bdaudit.report.relearning import relearning_parts
from bdaudit.report.release import lead, release_line
from bdaudit.report.screening_terminal import screening_footer, screening_parts
from bdaudit.report.tables import Column, FittedTable
from bdaudit.report.untrusted import shown
from bdaudit.report.wording import (
    CONDITIONS,
    SAME_DELTA,
    about_innocents,
    attack_name,
    barrier_in_words,
    direction_in_words,
    gist_of,
    norm_name,
    not_proved,
    number,
    precision_in_words,
    share,
    share_with_interval,
    telling_eps,
    tone_of,
    weakest_lifts,
    weights_of,
)

__all__ = ["print_record"]

_COLORS = {"removed": "green", "dormant": "red", "active": "red", "inconclusive": "yellow"}

_BAR_WIDTH = 24


def print_record(
    record: AnyDocument,
    console: Console,
    *,
    brief: bool = False,
) -> None:
    """Print `record` on `console`, fitted to its width.

    Args:
        record: What to show.
        console: Where; colour and characters are those it can show.
        brief: Of an audit, show the verdict, the attack and the diagnostics only.
    """
    record = shown(record)
    if isinstance(record, AuditRecord):
        parts = _audit_parts(record, console, brief=brief)
    elif isinstance(record, ScoreRecord):
        parts = [
            _baseline_table(record.baselines, record.bec, console),
            *_bec_parts(record.bec, None, console),
        ]
    elif isinstance(record, InversionRecord):
        parts = inversion_parts(record.inversion, record.data.class_names, console)
    elif isinstance(record, RelearnRecord):
        parts = [
            *relearning_parts(record.relearning, console),
            _baseline_table(record.baselines, (), console),
        ]
    elif isinstance(record, ScreenRecord):
        parts = screening_parts(record, console)
    else:
        parts = [
            _baseline_table(record.baselines, (), console),
            _reactivation_table(record.runs, console),
            *_query_parts(record.runs, console),
        ]
        chart = _reactivation_chart(record.runs, record.baselines, console)
        if chart is not None:
            parts.append(chart)
    parts += _diagnostic_parts(record.diagnostics)
    parts += _note_parts(record.input_notes())
    parts.append(_footer(record))
    for part in parts:
        console.print(part)
        console.print()


def _audit_parts(record: AuditRecord, console: Console, *, brief: bool) -> list[RenderableType]:
    parts: list[RenderableType] = []
    if record.verdict is not None:
        parts.append(_verdict_panel(record, console))
    if record.inversion is not None:
        parts += inversion_parts(record.inversion, record.data.class_names, console, brief=True)
    parts.append(_baseline_table(record.baselines, record.bec, console))
    if record.runs:
        parts.append(_reactivation_table(record.runs, console, record))
        chart = _reactivation_chart(record.runs, record.baselines, console)
        if chart is not None:
            parts.append(chart)
    parts += _placebo_parts(record, console)
    parts += _query_parts(record.runs, console, brief=brief)
    if record.relearning is not None:
        parts += relearning_parts(record.relearning, console, brief=True)
    if brief:
        return parts
    parts += _bec_parts(record.bec, record.bec_missing, console)
    parts += _barrier_parts(record)
    if record.direction is not None:
        said = direction_in_words(record.direction)
        parts.append(Group(_heading("The linear backdoor direction"), _bullet(said)))
    parts.append(
        Group(
            _heading("What this does not prove"),
            *(_bullet(line) for line in not_proved(record)),
        )
    )
    return parts


def _verdict_panel(record: AuditRecord, console: Console) -> Panel:
    verdict = record.verdict
    assert verdict is not None
    color, word = _COLORS[tone_of(verdict)], verdict.outcome.upper()
    gist = gist_of(verdict)
    lines: list[RenderableType] = [
        Text.assemble((f" {word} ", f"bold reverse {color}"), "  ", (gist, f"bold {color}")),
    ]
    release, first = release_line(verdict), lead(record)
    if release is not None:
        passes = verdict.release == "pass"
        lines.append(Text(release, style="bold green" if passes else "bold red"))
    lines.append(Text(""))
    if first is not None:
        lines.append(Text(first, style="bold"))
    lines.append(Text(verdict.why, style="" if first is None else "dim"))
    if len(verdict.reasons) > 1:
        lines += [Text(""), Text("What prevented a verdict:")]
        lines += [_bullet(reason) for reason in verdict.reasons]
    if verdict.release_reasons or verdict.warnings:
        lines.append(Text(""))
        lines += [
            Text.assemble(("Not to be released: ", "bold red"), reason)
            for reason in verdict.release_reasons
        ]
        lines += [
            Text.assemble(("Warning: ", "bold yellow"), warning) for warning in verdict.warnings
        ]
    if verdict.advice:
        lines += [Text(""), Text("What now:", style="bold")]
        lines += [_bullet(f"{line}.") for line in verdict.advice]
    style = box.ASCII if _ascii_only(console) else box.ROUNDED
    return Panel(Group(*lines), border_style=color, box=style, padding=(0, 1))


def _baseline_table(
    baselines: Sequence[Baseline], bec: Sequence[BecRecord], console: Console
) -> RenderableType:
    columns = ["model", "clean acc", "trigger alone", "no trigger", "true label"]
    detects = any(baseline.detection is not None for baseline in baselines)
    table = FittedTable(*columns, *(["mAP50"] if detects else []), *(["BEC"] if bec else []))
    for baseline in baselines:
        table.add_row(
            baseline.model,
            share(baseline.clean_acc),
            share_with_interval(baseline.asr),
            share(baseline.clean_target_rate),
            share(baseline.true_label_acc),
            *([precision_in_words(baseline)] if detects else []),
            *([_bec_cell(baseline, bec)] if bec else []),
        )
    total = baselines[0].asr.total if baselines else 0
    heading = _heading(
        "Without any perturbation", f"{total} held-out images not of the target class"
    )
    note = about_innocents(baselines)
    return Group(heading, table, *([] if note is None else [Text(note, style="dim")]))


def _bec_cell(baseline: Baseline, bec: Sequence[BecRecord]) -> str:
    """BEC by its definition: 1 for the original, 0 for the reference."""
    if baseline.role == "original":
        return "1"
    if baseline.role != "defended":
        return "0" if [b.reference for b in bec] == [baseline.model] else ""
    known = [b for b in bec if b.value is not None]
    if not known:
        return "undefined"
    if len(known) > 1:
        values = [b.value for b in known if b.value is not None]
        return f"{min(values):.2f}-{max(values):.2f}"
    first = known[0]
    interval = "" if first.low is None else f" ({first.low:.2f}-{first.high:.2f})"
    return f"{first.value:.2f}{interval}"


def _reactivation_table(
    runs: Sequence[AttackRun], console: Console, record: AuditRecord | None = None
) -> RenderableType:
    """One row a model and condition, one column an eps; the lift under them."""
    parts: list[RenderableType] = []
    for mode, objective, norm in dict.fromkeys((r.mode, r.objective, r.norm) for r in runs):
        chosen = [r for r in runs if (r.mode, r.objective, r.norm) == (mode, objective, norm)]
        ladder = sorted({run.eps for run in chosen})
        table = FittedTable(f"eps ({norm_name(norm)})", *(f"{eps:g}" for eps in ladder))
        for model in dict.fromkeys(run.model for run in chosen):
            own = [run for run in chosen if run.model == model]
            for condition in ("trigger", *CONDITIONS):
                row = {run.eps: run for run in own if run.condition == condition}
                if row:
                    bold = "bold" if own[0].role == "defended" and condition == "trigger" else ""
                    name = f"  {CONDITIONS[condition]}" if condition in CONDITIONS else model
                    table.add_row(
                        Text(name, style=bold),
                        *(_run_cell(row.get(eps), bold) for eps in ladder),
                    )
                if condition == "trigger" and any(run.delta_only for run in row.values()):
                    table.add_row(
                        Text(f"  {SAME_DELTA}"),
                        *(share(row[eps].delta_only) if eps in row else "-" for eps in ladder),
                    )
        if record is not None and record.verdict is not None:
            _add_lift_rows(table, record, ladder, mode)
        what = attack_name(chosen[0])
        parts.append(Group(_heading(f"Re-activation ({what})", "share taken to the target"), table))
    return Group(*parts)


def _add_lift_rows(
    table: FittedTable, record: AuditRecord, ladder: Sequence[float], mode: Mode
) -> None:
    """Show, for each eps, the lift over the strongest control with its bounds."""
    assert record.verdict is not None
    values, bounds = [], []
    weakest_by_eps, telling = weakest_lifts(record, mode), telling_eps(record, mode)
    for eps in ladder:
        weakest = weakest_by_eps.get(eps)
        if weakest is None:
            values.append(Text("-"))
            bounds.append("")
            continue
        style = "bold red" if eps in telling else ""
        values.append(Text(f"{100 * weakest.value:+.0f}", style=style))
        low, high = weakest.low, weakest.high
        bounds.append("" if low is None or high is None else f"{100 * low:+.0f}..{100 * high:+.0f}")
    table.add_row(Text("lift over strongest (points)", style="bold"), *values)
    table.add_row(Text("  its bounds", style="dim"), *(Text(b, style="dim") for b in bounds))


def _reactivation_chart(
    runs: Sequence[AttackRun], baselines: Sequence[Baseline], console: Console
) -> RenderableType | None:
    """ASR against eps: defended, original, the band of innocents and the controls."""
    first = next((run for run in runs if run.condition == "trigger"), None)
    if first is None:
        return None
    chosen = [r for r in runs if (r.mode, r.objective) == (first.mode, first.objective)]
    ladder = sorted({run.eps for run in chosen})
    if len(ladder) < 2:
        return None
    ascii_only = _ascii_only(console)
    alone = {b.model: b.asr.value for b in baselines}

    def curve(model: str, condition: str) -> list[float | None]:
        by_eps = {
            r.eps: r.asr.value for r in chosen if r.model == model and r.condition == condition
        }
        start = alone.get(model) if condition == "trigger" else None
        return [start, *(by_eps.get(eps) for eps in ladder)]

    models = {r.role: r.model for r in chosen}
    marks = {"defended": "D", "original": "A"} if ascii_only else {"defended": "●", "original": "○"}
    lines: list[Line] = []
    if "original" in models:
        lines.append(
            Line("original", marks["original"], "magenta", curve(models["original"], "trigger"))
        )
    if "defended" in models:
        name = models["defended"]
        delta_only = {
            r.eps: r.delta_only.value
            for r in chosen
            if r.model == name and r.condition == "trigger" and r.delta_only is not None
        }
        lines.append(Line(CONDITIONS["no_trigger"], "x", "yellow", curve(name, "no_trigger")))
        lines.append(Line(SAME_DELTA, "+", "cyan", [None, *map(delta_only.get, ladder)]))
        lines.append(Line("defended", marks["defended"], "bold red", curve(name, "trigger")))
    references = [
        curve(m, "trigger") for m in dict.fromkeys(r.model for r in chosen if r.role == "reference")
    ]
    band = None
    if references:
        columns = [[v for v in column if v is not None] for column in zip(*references, strict=True)]
        made = {b.model for b in baselines if b.stand_in}
        n_made = len(made & {r.model for r in chosen})
        label = f"innocent models ({len(references)})"
        if n_made:
            label = f"innocent models ({len(references)}, of them {n_made} stand-ins)"
        band = Band(
            label,
            "#" if ascii_only else "░",
            "green",
            [min(c, default=None) for c in columns],
            [max(c, default=None) for c in columns],
        )
    lines = [line for line in lines if any(v is not None for v in line.values)]
    ticks = ["alone", *(f"{eps:g}" for eps in ladder)]
    chart = draw_chart(
        ticks,
        lines=lines,
        band=band,
        width=min(console.width, 78),
        ascii_only=ascii_only,
        positions=[0.0, *ladder],
    )
    gloss = f"ASR by eps ({norm_name(first.norm)})"
    return Group(_heading("Trigger + one universal perturbation", gloss), chart)


def _placebo_parts(record: AuditRecord, console: Console) -> list[RenderableType]:
    """The true trigger beside triggers of the same strength that the original ignores."""
    about = about_placebos(record)
    if about is None:
        return []
    rows = placebo_rows(record)
    if not rows:
        return [Group(_heading("Placebo triggers"), Text(about, style="dim"))]
    columns = (Column("model", text=True), "trigger", f"{len(rows[0].reached)} placebos")
    table = FittedTable("eps", *columns)
    for row in rows:
        style = "bold" if row.defended else ""
        cells = (f"{row.eps:g}", row.model, share(row.trigger), row.span)
        table.add_row(*(Text(cell, style=style) for cell in cells))
    heading = _heading("Placebo triggers", "share taken to the target")
    return [Group(heading, table, Text(about, style="dim"))]


def _query_parts(
    runs: Sequence[AttackRun], console: Console, *, brief: bool = False
) -> list[RenderableType]:
    """What the queries cost, and what fewer of them would have bought."""
    asked = [r for r in runs if MODES[r.mode].asks and r.condition == "trigger"]
    searched = [r for r in asked if r.role == "defended"]
    if not searched:
        return []
    headings = ["queries", "scoring", "final ASR", "to 50% of it", "to 90% of it"]
    table = FittedTable("eps", Column("feedback", text=True), *headings)
    for run in searched:
        table.add_row(
            f"{run.eps:g}",
            run.feedback or "-",
            f"{run.image_queries:,}",
            f"{run.scoring_queries:,}",
            share(run.asr),
            _queries_to(run, 0.5),
            _queries_to(run, 0.9),
        )
    parts: list[RenderableType] = [
        Group(_heading("Image queries", "scoring on held-out images counted apart"), table)
    ]
    longest = max(searched, key=lambda run: run.asr.value)
    if len(longest.query_curve) > 1 and not brief:
        line = Line(
            f"defended, eps {longest.eps:g}",
            "D" if _ascii_only(console) else "●",
            "bold red",
            [point.asr.value for point in longest.query_curve],
        )
        chart = draw_chart(
            [_thousands(point.n_queries) for point in longest.query_curve],
            lines=[line],
            width=min(console.width, 78),
            height=9,
            ascii_only=_ascii_only(console),
            positions=[point.n_queries for point in longest.query_curve],
        )
        few = longest.query_curve[0].asr.total
        gloss = f"on {few} held-out images, by image queries"
        parts.append(Group(_heading("ASR by queries", gloss), chart))
    return parts


def _queries_to(run: AttackRun, share: float) -> str:
    """First number of queries after which the curve has that share of the run's final ASR."""
    if not run.query_curve:
        return "-"
    last = run.query_curve[-1].asr.value
    reached = (p.n_queries for p in run.query_curve if last > 0 and p.asr.value >= share * last)
    first = next(reached, None)
    return "-" if first is None else f"{first:,}"


def _thousands(count: int) -> str:
    return str(count) if count < 1000 else f"{count / 1000:.3g}k"


def _bec_parts(
    bec: Sequence[BecRecord], missing: str | None, console: Console
) -> list[RenderableType]:
    if not bec:
        if missing is None:
            return []
        return [Group(_heading("Backdoor existence coefficient"), _bullet(missing))]
    parts: list[RenderableType] = []
    for record in bec[:1]:
        bar = Column("0 ... 1", text=True, spare=True)
        table = FittedTable("layer", "kept", "S_DA", "S_CA", "BEC", bar)
        for layer in record.layers:
            table.add_row(
                layer.layer,
                f"{layer.channels_kept}/{layer.channels}",
                number(layer.cka_defended),
                number(layer.cka_reference),
                number(layer.coefficient),
                _bar(layer.coefficient),
            )
        summary = [f"mean {number(record.value)}"]
        if record.low is not None and record.high is not None:
            summary.append(f"95 % interval {record.low:.2f} to {record.high:.2f}")
        summary.append(f"averaged before normalising {number(record.ratio_of_means)}")
        parts.append(
            Group(
                _heading(
                    f"Backdoor existence coefficient against {record.reference}",
                    "1: the original's whole circuit; 0: like an innocent model. It explains, it "
                    "never decides",
                ),
                table,
                Text("; ".join(summary)),
            )
        )
    if len(bec) > 1:
        others = ", ".join(f"{b.reference} {number(b.value)}" for b in bec[1:])
        parts.append(Text(f"against the other references: {others}"))
    return parts


def _barrier_parts(record: AuditRecord) -> list[RenderableType]:
    """Tell of the line of weights; records written before it was measured say nothing of it."""
    if record.barrier is None:
        said = record.barrier_missing
        # Where BEC is missing for the same reason it has been told.
        if said is None or said == record.bec_missing:
            return []
    else:
        said = barrier_in_words(record.barrier)
    return [Group(_heading("The line of weights between the two"), _bullet(said))]


def _diagnostic_parts(diagnostics: Sequence[Diagnostic]) -> list[RenderableType]:
    if not diagnostics:
        return []
    styles = {"error": "bold red", "warning": "yellow", "info": "dim"}
    lines = [
        Text.assemble(
            (f"{d.severity}: ", styles[d.severity]), (d.code, "bold"), f" ({d.subject}) {d.message}"
        )
        for d in diagnostics
    ]
    return [Group(_heading("Diagnostics"), *(Padding(line, (0, 0, 0, 2)) for line in lines))]


def _note_parts(notes: Sequence[str]) -> list[RenderableType]:
    if not notes:
        return []
    return [Group(_heading("How the inputs were read"), *(_bullet(note) for note in notes))]


def _footer(record: AnyDocument) -> RenderableType:
    if isinstance(record, ScreenRecord):
        return screening_footer(record)
    trigger = record.trigger
    origin = "recovered" if trigger.recovered else "given"
    return Text(
        f"images: {record.data.n_craft} to craft on, {record.data.n_held_out} tested on, of "
        f"{record.data.source}; {trigger.kind} trigger ({origin}, {trigger.target_rule}); seed "
        f"{record.seed}; {record.environment.device}; {record.elapsed_s:.0f} s; "
        f"bdaudit {record.environment.bdaudit}\n{weights_of(record)}",
        style="dim",
    )


def _heading(title: str, gloss: str = "") -> Text:
    text = Text(title, style="bold")
    if gloss:
        text.append(f"  {gloss}", style="dim")
    return text


def _bullet(line: str) -> RenderableType:
    return Padding(Text(f"- {line}"), (0, 0, 0, 2))


def _run_cell(run: AttackRun | None, style: str) -> Text:
    return Text("-" if run is None else share(run.asr), style=style)


def _bar(value: float | None) -> Text:
    if value is None:
        return Text("left out", style="dim")
    filled = round(min(max(value, 0.0), 1.0) * _BAR_WIDTH)
    return Text.assemble(("#" * filled, "magenta"), ("." * (_BAR_WIDTH - filled), "dim"))


def _ascii_only(console: Console) -> bool:
    return not console.encoding.lower().startswith("utf")
