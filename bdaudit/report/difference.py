"""The words and rows of a difference between two audits, which its reports share."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from bdaudit.foundation.modes import MODES
from bdaudit.records.difference import (
    Change,
    ChangedFigure,
    ChangedInput,
    DifferenceRecord,
    JudgedAudit,
    Measured,
)
from bdaudit.report.release import RELEASES
from bdaudit.report.wording import norm_name

__all__ = [
    "CHANGES",
    "Row",
    "attack_line",
    "changed_inputs",
    "figure_rows",
    "gist",
    "input_value",
    "limits_line",
    "same_inputs",
    "side_line",
]

CHANGES: dict[Change, str] = {
    "better": "better",
    "worse": "WORSE",
    "unclear": "unclear",
    "only_old": "old only",
    "only_new": "new only",
}

_NAMES = {
    "clean_acc": "clean accuracy",
    "asr": "trigger alone",
    "reactivated_asr": "re-activated",
    "lift": "lift",
    "bec": "BEC",
}
_KINDS = {
    "model": "weights",
    "file": "file",
    "limit": "limit",
    "waiver": "waiver",
    "setting": "setting",
    "version": "version",
}
_DIGEST = 64


@dataclass(frozen=True)
class Row:
    """A figure as text.

    Attributes:
        name: What it is, with the attack or the innocent model it belongs to.
        old, new: With their bounds.
        difference, bounds: New less old, in points or, of a BEC, as a number.
        change: Which way it went, in words.
        kind: The same as records name it.
    """

    name: str
    old: str
    new: str
    difference: str
    bounds: str
    change: str
    kind: Change


def gist(made: DifferenceRecord) -> str:
    """Say what became of verdict and release, in a sentence."""
    old, new = made.old, made.new
    if made.change == "same":
        return f"Still {new.outcome}, {RELEASES[new.release]}."
    word = {"worse": "Worse", "better": "Better"}[made.change]
    parts = []
    if old.outcome != new.outcome:
        parts.append(f"{old.outcome} became {new.outcome}")
    if old.release != new.release:
        parts.append(f"{RELEASES[old.release]} became {RELEASES[new.release]}")
    return f"{word}: {'; '.join(parts)}."


def side_line(side: JudgedAudit) -> str:
    """Name one of the two audits with its verdict."""
    return f"{side.outcome}, {RELEASES[side.release]}: {side.model}"


def limits_line(made: DifferenceRecord) -> str:
    """Say by which limits both were judged."""
    changed = made.policy_changed
    about = f"not the default: {', '.join(changed)}" if changed else "all the default ones"
    return f"both judged by one policy: {_source(made.policy_source)}; limits: {about}"


def _source(source: str) -> str:
    return source.replace("the record's own", "the new record's own")


def figure_rows(made: DifferenceRecord) -> Iterator[Row]:
    """Yield every figure that either audit has."""
    kinds = {_kind(figure) for figure in made.figures if figure.mode is not None}
    for figure in made.figures:
        # Per cent and points of all but the coefficient, which is no share.
        scale, digits = (1.0, 2) if figure.name == "bec" else (100.0, 1)
        sign = figure.name == "lift"
        yield Row(
            name=_name(figure, attack=len(kinds) > 1),
            old=_value(figure.old, scale, digits, sign=sign),
            new=_value(figure.new, scale, digits, sign=sign),
            difference=_signed(figure.difference, scale, digits),
            bounds=(
                "-"
                if figure.low is None
                else f"{_signed(figure.low, scale, digits)}..{_signed(figure.high, scale, digits)}"
            ),
            change=CHANGES[figure.change],
            kind=figure.change,
        )


def attack_line(made: DifferenceRecord) -> str | None:
    """Name the kind of attack whose figures are shown; `None` where there are several, or none."""
    kinds = {_kind(figure) for figure in made.figures if figure.mode is not None}
    return kinds.pop() if len(kinds) == 1 else None


def _kind(figure: ChangedFigure) -> str:
    """Name the kind of attack; the lift is of all objectives of a mode together."""
    assert figure.mode is not None
    norm = "" if figure.norm is None else f", {norm_name(figure.norm)}"
    specific = ", specific objective" if figure.objective == "specific" else ""
    return f"{MODES[figure.mode].label}{norm}{specific}"


def _name(figure: ChangedFigure, *, attack: bool) -> str:
    name = _NAMES[figure.name]
    if figure.against is not None:
        name += f", {figure.against}"
    if figure.mode is None:
        return name
    if figure.eps is not None:
        name += f" eps {figure.eps:g}"
    return f"{name}, {_kind(figure)}" if attack else name


def _value(measured: Measured | None, scale: float, digits: int, *, sign: bool) -> str:
    if measured is None:
        return "-"
    values = (measured.value, measured.low, measured.high)
    written = [_signed(v, scale, digits) if sign else _plain(v, scale, digits) for v in values]
    unit = "%" if scale != 1.0 and not sign else ""
    if measured.low is None or measured.high is None:
        return f"{written[0]}{unit}"
    return f"{written[0]}{unit} ({written[1]}{'..' if sign else '-'}{written[2]})"


def _plain(value: float | None, scale: float, digits: int) -> str:
    return "-" if value is None else f"{scale * value:.{digits}f}"


def _signed(value: float | None, scale: float, digits: int) -> str:
    return "-" if value is None else f"{scale * value:+.{digits}f}"


def changed_inputs(made: DifferenceRecord) -> Iterator[tuple[str, ChangedInput]]:
    """Yield what is not the same in both, each with its name in words."""
    for given in made.inputs:
        if given.changed:
            yield _label(given), given


def same_inputs(made: DifferenceRecord) -> list[str]:
    """Name what is the same in both, by digest."""
    return [_label(given) for given in made.inputs if not given.changed]


def _label(given: ChangedInput) -> str:
    kind = _KINDS.get(given.kind)
    return _short(given.name) if kind is None else f"{kind} {_short(given.name)}"


def input_value(value: str | None) -> str:
    """Write a digest short, any other value as it is."""
    return "-" if value is None else _short(value)


def _short(text: str) -> str:
    whole = len(text) == _DIGEST and all(c in "0123456789abcdef" for c in text)
    return text[:12] if whole else text
