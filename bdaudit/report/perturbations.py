"""Tables of what perturbations are like, from their record alone."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from bdaudit.records import Role
from bdaudit.records.perturbations import (
    Likeness,
    PerturbationCase,
    PerturbationsRecord,
    Shown,
    Transferred,
)
from bdaudit.report.markdown_parts import row
from bdaudit.report.untrusted import markdown, shown
from bdaudit.report.wording import norm_name

__all__ = ["PrintedTable", "gist", "perturbations_markdown", "printed_tables"]

_WORDS: dict[Shown, str] = {
    "trigger": "trigger",
    "reactivated": "re-activated",
    "general": "general",
    "clean": "clean",
}
_ORDER: dict[Role, int] = {"original": 0, "defended": 1, "surrogate": 2, "reference": 3}
_ORDER_OF_SOURCES: dict[Role, int] = {"defended": 0, "original": 1, "surrogate": 2, "reference": 3}
_LEGEND = (
    "Re-activated: trigger and the perturbation that the attack makes on that very model. General: "
    "clean images and the one that the same attack makes there without the trigger."
)

Row = TypeVar("Row")


@dataclass(frozen=True)
class PrintedTable:
    """A table in words and figures.

    Attributes:
        title: What is in it.
        of: The original whose defended versions it is about.
        note: What its figures are.
        columns: Headings; the first two hold text, the others figures.
        rows: As many cells each.
    """

    title: str
    of: str
    note: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def printed_tables(record: PerturbationsRecord) -> tuple[PrintedTable, ...]:
    """Put a record into tables, original by original; figures are means over seeds.

    Returns:
        Those that hold anything. Of several seeds the smallest and the largest stand beside the
        mean.
    """
    made: list[PrintedTable] = []
    for original in dict.fromkeys(case.original for case in record.cases):
        cases = [case for case in record.cases if case.original == original]
        made += [_PRINTERS[name](original, cases) for name in record.tables]
    return tuple(table for table in made if table.rows)


def perturbations_markdown(record: PerturbationsRecord) -> str:
    """Write the tables in Markdown, as a page by itself."""
    record = shown(record)
    lines = [
        f"# Perturbations of {markdown(record.family)}",
        "",
        f"{norm_name(record.norm)} {record.eps:g}, {_seeds(record)}. What was measured and what it "
        "means: docs/perturbations.md of bdaudit.",
        "",
    ]
    for table in printed_tables(record):
        lines += [f"## {table.title}: {markdown(table.of)}", "", table.note, ""]
        lines += [row([text if text[:1].isdigit() else markdown(text) for text in table.columns])]
        lines += [row(["---"] * len(table.columns))]
        for name, kind, *figures in table.rows:
            lines += [row([markdown(name), markdown(kind), *figures])]
        lines += [""]
    lines += [f"- {markdown(line)}" for line in not_measured(record)]
    return "\n".join(lines).rstrip() + "\n"


def not_measured(record: PerturbationsRecord) -> Iterator[str]:
    """Say which models are missing, and why."""
    for case in record.cases:
        if case.reason is not None:
            yield f"{case.model}, seed {case.seed}: {case.reason}"
    for name, why in record.left_out.items():
        yield f"{name}: {why}"


def gist(record: PerturbationsRecord) -> str:
    """Say in one line what was measured."""
    failed = sum(case.reason is not None for case in record.cases)
    done = len({case.model for case in record.cases if case.reason is None})
    told = f"{record.family}: {', '.join(record.tables)} of {done} models, {_seeds(record)}"
    return f"{told}; {failed} could not be measured" if failed else told


def _seeds(record: PerturbationsRecord) -> str:
    seeds = sorted({case.seed for case in record.cases})
    return f"seed {seeds[0]}" if len(seeds) == 1 else f"{len(seeds)} seeds"


def _noise(original: str, cases: Sequence[PerturbationCase]) -> PrintedTable:
    rows = [each for case in cases for each in case.noise]
    radii = sorted({each.radius for each in rows})
    found = _by(rows, lambda each: (_ORDER[each.role], each.model, each.shown))
    return PrintedTable(
        "Random noise",
        original,
        "Share taken to the target after random noise of so much (L-inf) is added to each image; "
        f"of clean images, the share given its true label. {_LEGEND}",
        ("model", "shown", *(f"{radius:g}" for radius in radii)),
        tuple(
            (
                _called(same[0].model, same[0].role, original),
                _WORDS[same[0].shown],
                *(_mean(e.rate.value for e in same if e.radius == radius) for radius in radii),
            )
            for same in found
        ),
    )


def _likeness(original: str, cases: Sequence[PerturbationCase]) -> PrintedTable:
    rows = [each for case in cases for each in case.likeness]
    found = _by(rows, lambda each: (_ORDER[each.role], each.model, each.shown))
    return PrintedTable(
        "Likeness of activations",
        original,
        "Linear CKA with the original on triggered images, over the channels that react most to "
        f"its trigger: 1 is the same. {_LEGEND}",
        ("model", "shown", "mean over layers", "last layer"),
        tuple(
            (
                _called(same[0].model, same[0].role, original),
                _WORDS[same[0].shown],
                _mean((e.mean for e in same), per_cent=False),
                _mean((_last(e) for e in same), per_cent=False),
            )
            for same in found
        ),
    )


def _last(each: Likeness) -> float | None:
    return each.layers[-1].cka if each.layers else None


def _transfer(original: str, cases: Sequence[PerturbationCase]) -> PrintedTable:
    rows = [(case.model, each) for case in cases for each in case.transfer]
    models = list(dict.fromkeys(model for model, _ in rows))
    found = _by(rows, lambda pair: (_ORDER_OF_SOURCES[pair[1].role], _made_on(pair[1], original)))
    return PrintedTable(
        "Transfer",
        original,
        "Share taken to the target by the trigger with a perturbation made on another model; in "
        "brackets the same perturbation without the trigger.",
        ("made on", "architecture", *(f"on {_short(model, original)}" for model in models)),
        tuple(
            (
                _made_on(same[0][1], original),
                ", ".join(same[0][1].archs),
                *(_with_and_without([e for m, e in same if m == model]) for model in models),
            )
            for same in found
        ),
    )


def _with_and_without(same: Sequence[Transferred]) -> str:
    if not same:
        return "-"
    bare = [each.delta_only.value for each in same if each.delta_only is not None]
    return f"{_mean(each.asr.value for each in same)} [{_mean(bare)}]"


def _made_on(each: Transferred, original: str) -> str:
    if each.role == "defended":
        return "itself (white box)"
    if each.role == "original":
        return "the original"
    if len(each.made_on) > 1:
        return "all others with the trigger"
    return _called(each.made_on[0], each.role, original)


def _queries(original: str, cases: Sequence[PerturbationCase]) -> PrintedTable:
    rows = [each for case in cases for each in case.queries]
    counts = sorted({each.wanted for each in rows})
    found = _by(rows, lambda each: (_ORDER[each.role], each.model, each.shown))
    return PrintedTable(
        "Image queries",
        original,
        "Share taken to the target by what a search that only asks had found within so many "
        "image queries.",
        ("model", "made", *(f"{count:,}" for count in counts)),
        tuple(
            (
                _called(same[0].model, same[0].role, original),
                "with trigger" if same[0].shown == "reactivated" else "without trigger",
                *(_mean(e.asr.value for e in same if e.wanted == count) for count in counts),
            )
            for same in found
        ),
    )


_PRINTERS: dict[str, Callable[[str, Sequence[PerturbationCase]], PrintedTable]] = {
    "noise": _noise,
    "likeness": _likeness,
    "transfer": _transfer,
    "queries": _queries,
}


def _by(rows: Iterable[Row], key: Callable[[Row], tuple[Hashable, ...]]) -> list[list[Row]]:
    """Gather rows of one key; original first, innocent models last, else as they come."""
    found: dict[tuple[Hashable, ...], list[Row]] = {}
    for each in rows:
        found.setdefault(key(each), []).append(each)
    return [found[k] for k in sorted(found, key=lambda k: k[0] if isinstance(k[0], int) else 0)]


def _called(model: str, role: Role, original: str) -> str:
    name = _short(model, original)
    return f"{name} (innocent)" if role == "reference" else name


def _short(model: str, original: str) -> str:
    """Leave out what the table's title says: the original that a model came from."""
    return model.removeprefix(f"{original}--")


def _mean(values: Iterable[float | None], *, per_cent: bool = True) -> str:
    """Write the mean, and where values differ the smallest and the largest."""
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    scale, digits, sign = (100, 1, "%") if per_cent else (1, 2, "")
    mean, low, high = (
        f"{scale * value:.{digits}f}" for value in (sum(known) / len(known), min(known), max(known))
    )
    return f"{mean}{sign}" if low == high else f"{mean}{sign} ({low}-{high})"
