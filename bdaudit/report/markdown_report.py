"""Markdown for a pull-request comment or a job's summary: the answer, four figures, then details.

Strings of a record are shown as they are: nothing in a file name can become a link, a picture that
reports its reader, or a mention that calls somebody.
"""

from __future__ import annotations

from collections.abc import Iterator

from bdaudit.records import (
    AuditRecord,
    ReactivationRecord,
    Relearning,
    RelearnRecord,
    ScoreRecord,
    Verdict,
)
from bdaudit.report.curves import Attack, list_attacks
from bdaudit.report.markdown_parts import diagnostics, notes, origin, row
from bdaudit.report.placebos import about_placebos, placebo_rows
from bdaudit.report.release import lead, limits_in_order, release_line
from bdaudit.report.untrusted import markdown
from bdaudit.report.wording import (
    SAME_IMAGES,
    AnyRecord,
    at_the_next_rate,
    barrier_in_words,
    defended_file,
    direction_in_words,
    find_decisive,
    gist_of,
    norm_name,
    not_proved,
    number,
    one_line,
    points,
    precision_in_words,
    share,
    share_with_interval,
    tone_of,
    weakest_lifts,
)

__all__ = ["render"]

_SIGNS = {
    "removed": ":white_check_mark:",
    "dormant": ":x:",
    "active": ":x:",
    "inconclusive": ":warning:",
}


def render(record: AnyRecord) -> str:
    """Write `record` as a few lines of GitHub- and GitLab-flavoured Markdown."""
    lines = [*_head(record), "", "<details>", "<summary>Details</summary>", ""]
    runs = record.runs if isinstance(record, AuditRecord | ReactivationRecord) else ()
    audit = record if isinstance(record, AuditRecord) else None
    for attack in list_attacks(runs, record.baselines):
        lines += [*_attack_table(attack, audit), ""]
    if audit is not None:
        lines += _placebos(audit)
    lines += [*_baseline_table(record), ""]
    if isinstance(record, AuditRecord | RelearnRecord) and record.relearning is not None:
        lines += [*_relearning_table(record.relearning), ""]
    if isinstance(record, AuditRecord | ScoreRecord) and record.bec:
        values = ", ".join(f"{number(b.value)} against {markdown(b.reference)}" for b in record.bec)
        lines += [
            f"**Backdoor existence coefficient** {values}. It explains and never decides.",
            "",
        ]
    if audit is not None and audit.barrier is not None:
        lines += [f"**The line of weights between the two** {barrier_in_words(audit.barrier)}.", ""]
    if audit is not None and audit.direction is not None:
        lines += [f"**The linear backdoor direction** {direction_in_words(audit.direction)}.", ""]
    lines += [*diagnostics(record), *notes(record)]
    if audit is not None:
        lines += ["**What this does not prove**", ""]
        lines += [f"- {markdown(line)}" for line in not_proved(audit)]
        lines.append("")
    if audit is not None and audit.verdict is not None:
        if lead(audit) is not None:
            lines += [markdown(audit.verdict.why), ""]
        lines += _policy(audit.verdict)
    lines += [*origin(record), "", "</details>"]
    return "\n".join(lines) + "\n"


def _head(record: AnyRecord) -> Iterator[str]:
    verdict = record.verdict if isinstance(record, AuditRecord) else None
    file = f"<code>{markdown(defended_file(record))}</code>"
    if verdict is None:
        yield f"### bdaudit {record.kind}: {file}"
        yield ""
        yield markdown(one_line(record))
        return
    yield f"### {_SIGNS[tone_of(verdict)]} bdaudit: {verdict.outcome} - {file}"
    yield ""
    release = release_line(verdict)
    if release is not None:
        yield f"**{markdown(release[:1].upper() + release[1:])}.**"
        yield ""
    first = lead(record)  # type: ignore[arg-type]
    gist = f"**{gist_of(verdict).capitalize()}.**"
    yield f"{gist} {markdown(verdict.why if first is None else first)}"
    yield from _reasons(verdict)
    yield from _advice(verdict)
    decisive = find_decisive(record)  # type: ignore[arg-type]
    defended = record.defended
    if decisive is None or defended is None:
        return
    run, lift = decisive
    yield ""
    yield f"| trigger alone | with perturbation, eps {run.eps:g} | strongest control | lift |"
    yield "|---|---|---|---|"
    strongest = f"{100 * (run.asr.value - lift.value):.1f}% ({markdown(lift.against or '')})"
    if not lift.kind.startswith("lift"):
        strongest = f"{markdown(lift.against or '')}, the trigger's contribution"
    bounds = f"{points(lift.value)} points ({points(lift.low)} to {points(lift.high)})"
    yield f"| {share(defended.asr)} | {share(run.asr)} | {strongest} | {bounds} |"


def _placebos(record: AuditRecord) -> Iterator[str]:
    """Write the true trigger beside triggers that the original ignores."""
    about = about_placebos(record)
    if about is None:
        return
    rows = placebo_rows(record)
    if rows:
        yield f"| eps | model | trigger | {len(rows[0].reached)} placebos |"
        yield "|---|---|---|---|"
        for row in rows:
            yield f"| {row.eps:g} | {markdown(row.model)} | {share(row.trigger)} | {row.span} |"
        yield ""
    yield markdown(about)
    yield ""


def _reasons(verdict: Verdict) -> Iterator[str]:
    if len(verdict.reasons) > 1:
        yield ""
        yield from (f"- {markdown(reason)}" for reason in verdict.reasons)
    for title, entries in (
        ("Not to be released", verdict.release_reasons),
        ("Warning", verdict.warnings),
    ):
        for entry in entries:
            yield ""
            yield f"**{title}:** {markdown(entry)}"


def _advice(verdict: Verdict) -> Iterator[str]:
    if verdict.advice:
        yield ""
        yield "**What now**"
        yield ""
        yield from (f"{k}. {markdown(line)}." for k, line in enumerate(verdict.advice, start=1))


def _policy(verdict: Verdict) -> Iterator[str]:
    """List the limits that judged, those that are not the default ones first."""
    changed, others = limits_in_order(verdict)
    yield "**Limits the verdict was judged by**"
    yield ""
    for name, value in changed:
        yield f"- **{markdown(name)} {markdown(str(value))}** (not the default)"
    if others:
        yield f"- {', '.join(markdown(f'{name} {value}') for name, value in others)}"
    yield ""


def _attack_table(attack: Attack, audit: AuditRecord | None) -> Iterator[str]:
    yield f"**Re-activation, {attack.name}**: share taken to the target"
    yield ""
    yield row([f"eps ({norm_name(attack.norm)})", *(f"{eps:g}" for eps in attack.ladder)])
    yield row(["---", *("---:" for _ in attack.ladder)])
    for curve in attack.curves:
        own = curve.label == curve.model
        name = markdown(curve.label) if own else f"&emsp;{markdown(curve.label)}"
        yield row([name, *(share(curve.by_eps.get(eps)) for eps in attack.ladder)])
    lifts = {} if audit is None else weakest_lifts(audit, attack.mode)
    if lifts:
        cells = [points(lifts[e].value) if e in lifts else "-" for e in attack.ladder]
        yield row(["**lift over the strongest control, points**", *cells])


def _relearning_table(relearning: Relearning) -> Iterator[str]:
    evidence = relearning.evidence
    role = 'no verdict by itself; where the trigger is remembered there is no "removed"'
    yield f"**Relearning** ({role}): {markdown(relearning.why)}"
    yield ""
    yield row(["ASR after steps", *map(str, evidence.steps)])
    yield row(["---", *("---:" for _ in evidence.steps)])
    rows = [("defended", evidence.asr), (f"&emsp;{SAME_IMAGES}", evidence.clean_target_rate)]
    rows += [(markdown(model), asr) for model, asr in evidence.innocent_asr.items()]
    for name, values in rows:
        if values:
            yield row([name, *(f"{100 * value:.1f}%" for value in values)])
    if relearning.faster is not None:
        yield ""
        yield at_the_next_rate(relearning.faster)


def _baseline_table(record: AnyRecord) -> Iterator[str]:
    yield "**Without any perturbation**"
    yield ""
    detects = any(b.detection is not None for b in record.baselines)
    more = ["mAP50"] if detects else []
    yield row(["model", "clean accuracy", "trigger alone", "no trigger", *more])
    yield row(["---", "---:", "---:", "---:", *("---:" for _ in more)])
    for b in record.baselines:
        cells = [share(b.clean_acc), share_with_interval(b.asr), share(b.clean_target_rate)]
        cells += [precision_in_words(b)] if detects else []
        yield row([markdown(b.model), *cells])
