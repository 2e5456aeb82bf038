"""One self-contained HTML file: the answer, the figure that shows it, then the evidence."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePath

from markupsafe import Markup

from bdaudit.foundation.modes import MODES
from bdaudit.records import (
    Answer,
    AttackRun,
    AuditRecord,
    BecRecord,
    Comparison,
    PictureColumn,
    Rate,
    ReactivationRecord,
    RelearnRecord,
    ScoreRecord,
)
from bdaudit.report.curves import Attack, list_attacks
from bdaudit.report.drawing import Picture
from bdaudit.report.figures import (
    draw_bec,
    draw_curves,
    draw_queries,
    draw_relearning,
    draw_tac,
)
from bdaudit.report.glossary import GLOSSARY
from bdaudit.report.page import render_page
from bdaudit.report.placebos import about_placebos, placebo_rows
from bdaudit.report.release import about_policy, lead, limits_in_order, release_line
from bdaudit.report.taxonomies import ENTRIES, Entry, access_of
from bdaudit.report.wording import (
    SAME_IMAGES,
    AnyRecord,
    about_innocents,
    at_the_next_rate,
    barrier_in_words,
    defended_file,
    direction_in_words,
    find_decisive,
    gist_of,
    norm_name,
    not_proved,
    one_line,
    points,
    precision_in_words,
    share,
    telling_eps,
    tone_of,
    weakest_lifts,
)

__all__ = ["render"]

_PNG = "data:image/png;base64,"


def render(record: AnyRecord) -> str:
    """Write `record` as a page that works offline and printed."""
    runs = record.runs if isinstance(record, AuditRecord | ReactivationRecord) else ()
    bec = record.bec if isinstance(record, AuditRecord | ScoreRecord) else ()
    relearning = record.relearning if isinstance(record, AuditRecord | RelearnRecord) else None
    audit = record if isinstance(record, AuditRecord) else None
    decisive = None if audit is None else find_decisive(audit)
    attacks = list_attacks(runs, record.baselines)
    return render_page(
        "record.html.j2",
        record=record,
        audit=audit,
        verdict=None if audit is None else audit.verdict,
        gist=None if audit is None or audit.verdict is None else gist_of(audit.verdict),
        tone=None if audit is None or audit.verdict is None else tone_of(audit.verdict),
        summary=one_line(record),
        release=None if audit is None or audit.verdict is None else release_line(audit.verdict),
        lead=None if audit is None else lead(audit),
        policy=None if audit is None or audit.verdict is None else about_policy(audit.verdict),
        limits=None if audit is None or audit.verdict is None else limits_in_order(audit.verdict),
        glossary=GLOSSARY,
        pictures_count=None if audit is None else _count_pictures(audit),
        file_name=PurePath(defended_file(record)).name,
        tiles=_tiles(record, decisive),
        attacks=[_attack_section(k, a, audit, decisive) for k, a in enumerate(attacks)],
        pictures=None if audit is None else audit.pictures,
        placebos=None if audit is None else audit.placebos,
        placebo_rows=[] if audit is None else placebo_rows(audit),
        about_placebos=None if audit is None else about_placebos(audit),
        inversion=None if audit is None else audit.inversion,
        png=Markup(_PNG),  # noqa: S704 - what follows it is base64, which the record checks
        answer=_answer_in_words,
        class_name=_class_namer(record),
        bec=bec,
        bec_summary=_bec_summary(bec),
        bec_missing=None if audit is None else audit.bec_missing,
        barrier=_about_barrier(audit),
        direction=None
        if audit is None or audit.direction is None
        else direction_in_words(audit.direction),
        bec_figure=draw_bec(bec) if bec else None,
        tac_figure=draw_tac(bec[0]) if bec else None,
        relearning=relearning,
        relearning_figure=None if relearning is None else draw_relearning(relearning.evidence),
        same_images=SAME_IMAGES,
        at_the_next_rate=at_the_next_rate,
        innocents=about_innocents(record.baselines),
        precision=precision_in_words
        if any(b.detection is not None for b in record.baselines)
        else None,
        queries=_queried(runs),
        queries_figure=_queries_figure(runs),
        not_proved=[] if audit is None else not_proved(audit),
        taxonomies=[] if audit is None else _named_elsewhere(audit),
        command=None if record.command is None else shlex.join(record.command),
        norm_name=norm_name,
    )


def _count_pictures(record: AuditRecord) -> str | None:
    """Say how many of the pictures show the attack succeed, and of how many images in all."""
    pictures = record.pictures
    if pictures is None:
        return None
    there = sum(column.perturbed.answer == "target" for column in pictures.columns)
    said = f"Of the {len(pictures.columns)} shown {there} go to the target once perturbed"
    rates = (
        run.asr
        for run in record.runs_of(role="defended", condition="trigger")
        if (run.eps, run.norm) == (pictures.eps, pictures.norm)
    )
    rate = next(rates, None)
    if rate is None:
        return f"{said}."
    return f"{said}, of all held-out images {rate.successes:,} of {rate.total:,} ({share(rate)})."


@dataclass(frozen=True)
class _Tile:
    label: str
    value: str
    note: str


def _tiles(record: AnyRecord, decisive: tuple[AttackRun, Comparison] | None) -> list[_Tile]:
    """The four figures that carry an audit's answer."""
    defended = record.defended
    tiles = []
    if defended is not None:
        tiles.append(_rate_tile("Trigger alone", defended.asr))
    if decisive is not None:
        run, lift = decisive
        tiles.append(_rate_tile(f"Perturbed, eps {run.eps:g}", run.asr))
        tiles.append(
            _Tile(
                "Strongest control",
                f"{100 * (run.asr.value - lift.value):.1f}%",
                lift.against or "",
            )
        )
        low, high = lift.low, lift.high
        bounds = "" if low is None or high is None else f"{points(low)} to {points(high)}; "
        tiles.append(
            _Tile(
                "Lift over it",
                f"{100 * lift.value:+.1f} points",
                f"{bounds}limit {100 * lift.limit:g}",
            )
        )
    return tiles


def _rate_tile(label: str, rate: Rate) -> _Tile:
    return _Tile(label, share(rate), f"{100 * rate.low:.1f} to {100 * rate.high:.1f}")


@dataclass(frozen=True)
class _AttackSection:
    identifier: str
    attack: Attack
    figure: Picture
    lifts: dict[float, Comparison]
    telling: set[float]


def _attack_section(
    position: int,
    attack: Attack,
    audit: AuditRecord | None,
    decisive: tuple[AttackRun, Comparison] | None,
) -> _AttackSection:
    own = None
    if decisive is not None:
        run, lift = decisive
        if (run.mode, run.objective, run.norm) == (attack.mode, attack.objective, attack.norm):
            own = lift
    identifier = f"attack-{position}"
    return _AttackSection(
        identifier=identifier,
        attack=attack,
        figure=draw_curves(attack, own, name=identifier),
        lifts={} if audit is None else weakest_lifts(audit, attack.mode),
        telling=set() if audit is None else telling_eps(audit, attack.mode),
    )


def _queried(runs: tuple[AttackRun, ...]) -> list[AttackRun]:
    return [
        r for r in runs if MODES[r.mode].asks and (r.condition, r.role) == ("trigger", "defended")
    ]


def _queries_figure(runs: tuple[AttackRun, ...]) -> Picture | None:
    drawable = [run for run in _queried(runs) if len(run.query_curve) > 1]
    return draw_queries(drawable) if drawable else None


def _about_barrier(audit: AuditRecord | None) -> str | None:
    """Say what lies on the line of weights, or why that is not known."""
    if audit is None:
        return None
    if audit.barrier is not None:
        return barrier_in_words(audit.barrier)
    # Where BEC is missing for the same reason it has been told.
    return None if audit.barrier_missing == audit.bec_missing else audit.barrier_missing


def _bec_summary(bec: tuple[BecRecord, ...]) -> list[tuple[str, str]]:
    lines = []
    for record in bec:
        if record.value is None:
            lines.append((record.reference, record.reason or "undefined"))
            continue
        text = f"{record.value:.2f}"
        if record.low is not None and record.high is not None:
            text += f" ({record.low:.2f} to {record.high:.2f})"
        if record.ratio_of_means is not None:
            text += f"; averaged before normalising {record.ratio_of_means:.2f}"
        lines.append((record.reference, text))
    return lines


def _named_elsewhere(audit: AuditRecord) -> list[tuple[Entry, str]]:
    """List what an audit looks for under other catalogues' names, each with what became of it."""
    verdict = audit.verdict
    if verdict is None:
        return []
    tried = {run.mode for run in audit.runs if run.condition == "trigger"}
    decided = set(access_of(audit))
    rows = []
    for entry in ENTRIES:
        if not entry.findings or (entry.modes and not tried & set(entry.modes)):
            became = "not tried"
        elif verdict.outcome == "removed":
            became = "looked for, not found"
        elif verdict.outcome == "inconclusive":
            became = "looked for, unsure"
        elif verdict.outcome not in entry.findings:
            # An active backdoor needs no waking.
            became = "looked for, not decided on"
        elif entry.modes and not decided & set(entry.modes):
            became = "looked for, not decided on"
        else:
            became = "found"
        rows.append((entry, became))
    return rows


def _class_namer(record: AnyRecord) -> Callable[[int], str]:
    names = record.data.class_names

    def class_name(label: int) -> str:
        if names is not None and 0 <= label < len(names):
            return names[label]
        return f"class {label}"

    return class_name


def _answer_in_words(
    column: PictureColumn, answer: Answer, class_name: Callable[[int], str]
) -> str:
    if answer == "target":
        return f"the target, {class_name(column.target_label)}"
    return "right" if answer == "true_label" else "another class"
