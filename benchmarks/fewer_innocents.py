"""What the verdict would be with fewer innocent models, from audits that had three or more.

    bdaudit sweep family/emoji-audits.toml --out audits
    python benchmarks/fewer_innocents.py family audits

Every record of a sweep is judged again with each choice of one, two, ... of its innocent models and
with limits that ask for no more than those; nothing is attacked anew. The truth is the family's,
and where that is unknown, what relearning says in the record. Relearning has no say in these
verdicts, because it is itself held against all innocent models.
"""

from __future__ import annotations

import argparse
from collections import Counter, defaultdict
from itertools import combinations
from pathlib import Path

from bdaudit.records import AuditRecord, read_record
from bdaudit.records.families import read_family
from bdaudit.verdict import Policy, judge

OUTCOMES = ("removed", "dormant", "active", "inconclusive")


def main() -> None:
    """Print a confusion matrix for each number of innocent models, local and wide triggers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("family", type=Path)
    parser.add_argument("audits", type=Path, help="folder of a sweep over that family")
    arguments = parser.parse_args()
    known = {m.weights_sha256: m.truth for m in read_family(arguments.family).members}
    counts: dict[tuple[str, int, str], Counter[str]] = defaultdict(Counter)
    for path in sorted((arguments.audits / "records").glob("*.json")):
        record = read_record(path)
        if not isinstance(record, AuditRecord):
            continue
        kind = "wide" if record.trigger.wide else "local"
        truth = truth_of(record, known)
        innocents = [b.model for b in record.baselines if b.role == "reference"]
        for k in range(1, len(innocents) + 1):
            for chosen in combinations(innocents, k):
                counts[kind, k, truth][judge_with(record, chosen)] += 1
    print(f"| trigger | innocent models | truth | {' | '.join(OUTCOMES)} |")
    print("|---|---|---|" + "---|" * len(OUTCOMES))
    for (kind, k, truth), found in sorted(counts.items()):
        print(f"| {kind} | {k} | {truth} | {' | '.join(str(found[o]) for o in OUTCOMES)} |")


def truth_of(record: AuditRecord, known: dict[str, str]) -> str:
    """Return the family's truth of the defended model, or what relearning says."""
    (defended,) = [m for m in record.models if m.role == "defended"]
    truth = known.get(defended.weights_sha256 or "", "unknown")
    if truth != "unknown" or record.relearning is None:
        return truth
    return record.relearning.outcome


def judge_with(record: AuditRecord, chosen: tuple[str, ...]) -> str:
    """Judge a record as if only some of its innocent models had been given."""
    gone = {b.model for b in record.baselines if b.role == "reference"} - set(chosen)
    fewer = record.model_copy(
        update={
            "baselines": tuple(b for b in record.baselines if b.model not in gone),
            "runs": tuple(r for r in record.runs if r.model not in gone),
            "models": tuple(m for m in record.models if m.name not in gone),
            "relearning": None,
        }
    )
    limits = Policy(min_references_wide=len(chosen), relearning="warn")
    return judge(fewer, limits).outcome


if __name__ == "__main__":
    main()
