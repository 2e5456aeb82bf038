"""Tabulate what became of every model of a family, for docs/attacks.md and the like.

    python benchmarks/family_tables.py FAMILY

reads FAMILY/family.json and prints Markdown; nothing is computed anew.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

from bdaudit.records import Rate
from bdaudit.records.families import Family, FamilyMember, read_family


def main() -> None:
    """Print three tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("family", type=Path, help="folder with family.json")
    family = read_family(parser.parse_args().family)
    for table in (attacks(family), defenses(family), clean_ends(family)):
        print("\n".join(table), end="\n\n")


def attacks(family: Family) -> Iterable[str]:
    """Give a row an original, with the same trigger on the innocent models that were asked."""
    yield "| original | poisoned | clean accuracy | ASR | the same trigger on innocent models |"
    yield "|---|---|---|---|---|"
    for member in family.members:
        if member.lineage != "original":
            continue
        asked = [
            m.asr.value
            for m in family.members
            if m.trigger == member.trigger and m.truth == "innocent" and m.asr
        ]
        spread = "-" if not asked else f"{min(asked):.3f} to {max(asked):.3f} ({len(asked)})"
        poisoned = "-" if member.poison_rate is None else f"{100 * member.poison_rate:.3g} %"
        yield (
            f"| `{member.name}` | {poisoned} | {share(member.clean_acc)} | {share(member.asr)} "
            f"| {spread} |"
        )


def defenses(family: Family) -> Iterable[str]:
    """Give a row a defended model: before and after, and what became of the backdoor."""
    yield "| defence | original | clean accuracy | ASR | gap in relearning | truth | s |"
    yield "|---|---|---|---|---|---|---|"
    defended = [m for m in family.members if m.lineage == "defended"]
    for member in sorted(defended, key=lambda m: (m.defense or "", m.name)):
        before = family.member(member.original or "")
        seconds = "-" if member.elapsed_s is None else f"{member.elapsed_s:.0f}"
        yield (
            f"| `{member.defense}` | `{before.name}` | {share(before.clean_acc)} to "
            f"{share(member.clean_acc)} | {share(before.asr)} to {share(member.asr)} "
            f"| {gap(member)} | {member.truth} | {seconds} |"
        )


def clean_ends(family: Family) -> Iterable[str]:
    """Give a row a model that was never taught the backdoor."""
    yield "| model | clean accuracy | ASR | gap in relearning | truth |"
    yield "|---|---|---|---|---|"
    for member in family.members:
        if member.lineage == "clean":
            yield (
                f"| `{member.name}` | {share(member.clean_acc)} | {share(member.asr)} "
                f"| {gap(member)} | {member.truth} |"
            )


def gap(member: FamilyMember) -> str:
    """Write the gap of relearning with its interval."""
    found = member.relearning
    if found is None or found.gap is None:
        return ""
    return f"{found.gap:+.2f} ({found.low:+.2f} to {found.high:+.2f})"


def share(rate: Rate | None) -> str:
    """Write a share, `-` where it was not measured."""
    return "-" if rate is None else f"{rate.value:.3f}"


if __name__ == "__main__":
    main()
