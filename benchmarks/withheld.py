"""How often relearning withholds "removed": from innocent models, wrongly, and from sleeping ones.

    bdaudit zoo build examples/families/emoji.toml --out family --data emoji/emoji.npz
    python benchmarks/withheld.py family --attack badnets-r10-s1 --out withheld.jsonl
    python benchmarks/withheld.py --table withheld.jsonl

For each attack of a family its trigger is relearned as an audit does it by default: by every
innocent model, held against three others, and by every model that was made from the attack's
original, held against three innocent ones. Which three is drawn anew for each of `--seeds`, and so
are the shots. An innocent model that reads "dormant" here would lose a "removed" that it deserves.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Iterator
from pathlib import Path

import bdaudit

N_AGAINST = 3


def innocent_models(family: Path) -> list[str]:
    """Return the names of models that never saw a poisoned image."""
    names = sorted(path.stem for path in (family / "models").glob("*.safetensors"))
    clean = ("--innocent", "--retrained")
    return [n for n in names if n.startswith("reference-") or any(c in n for c in clean)]


def measure(family: Path, attack: str, seed: int, images: int) -> Iterator[dict]:
    """Relearn one attack's trigger on every innocent model and on all that was made from it."""
    folder, innocents = family / "models", innocent_models(family)
    made = [
        path.stem
        for path in sorted(folder.glob(f"{attack}--*.safetensors"))
        if path.stem not in innocents
    ]
    chooser = random.Random(seed)
    for name in (*innocents, *made):
        lineage = name.removesuffix("--ft-hard").removesuffix("--ft-sam")
        others = [o for o in innocents if o != name and not o.startswith(lineage)]
        against = chooser.sample(others, min(N_AGAINST, len(others)))
        started = time.perf_counter()
        found = bdaudit.relearn(
            folder / f"{name}.safetensors",
            data=family / "clean.npz",
            trigger=family / "triggers" / f"{attack.rsplit('-r', 1)[0]}.toml",
            reference=[folder / f"{other}.safetensors" for other in against],
            stand_ins=0,
            compute=bdaudit.ComputeSettings(device="cpu", seed=seed),
            split=bdaudit.SplitSettings(craft=240, held_out=images),
        ).relearning
        evidence = found.evidence
        yield {
            "family": family.name,
            "attack": attack,
            "model": name,
            "innocent": name in innocents,
            "seed": seed,
            "against": against,
            "rate": evidence.settings["learning_rate"],
            "gap": evidence.gap,
            "low": evidence.low,
            "high": evidence.high,
            "asr": evidence.asr,
            "reading": found.outcome,
            "seconds": time.perf_counter() - started,
        }


def table(rows: list[dict]) -> None:
    """Print one line for each attack and kind of model."""
    print("| attack | models | seeds | dormant | unknown | removed | largest gap | smallest gap |")
    print("|---|---|---|---|---|---|---|---|")
    groups: dict[tuple[str, str], list[dict]] = {}
    for row in rows:
        kind = "innocent" if row["innocent"] else row["model"].split("--", 1)[1]
        groups.setdefault((f"{row['family']} {row['attack']}", kind), []).append(row)
    for (attack, kind), each in groups.items():
        readings = [row["reading"] for row in each]
        counts = " | ".join(str(readings.count(w)) for w in ("dormant", "unknown", "removed"))
        gaps = [row["gap"] for row in each]
        n_models, n_seeds = len({r["model"] for r in each}), len({r["seed"] for r in each})
        print(
            f"| {attack} | {kind} ({n_models}) | {n_seeds} | {counts} "
            f"| {max(gaps):+.2f} | {min(gaps):+.2f} |"
        )


def main() -> None:
    """Measure, or print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("family", type=Path, nargs="?")
    parser.add_argument("--attack", action="append", default=[])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--held-out", type=int, default=500)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--table", type=Path)
    asked = parser.parse_args()
    if asked.table is not None:
        table([json.loads(line) for line in asked.table.read_text().splitlines()])
        return
    for attack in asked.attack:
        for seed in range(asked.seeds):
            for row in measure(asked.family, attack, seed, asked.held_out):
                print(f"{row['model']}: {row['reading']} ({row['gap']:+.2f})", flush=True)
                if asked.out is not None:
                    with asked.out.open("a") as file:
                        print(json.dumps(row), file=file)


if __name__ == "__main__":
    main()
