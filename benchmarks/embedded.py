"""Embedded perturbations on models of known truth: the true class found, and false alarms.

    bdaudit zoo build examples/families/emoji.toml --out wide --data EMOJI
    python benchmarks/embedded.py wide --out embedded.jsonl
    python benchmarks/embedded.py --table embedded.jsonl

Every original of a family and every innocent model in it is searched once, all classes and "any
other class", on 300 craft images. The table judges each in two ways: by its own classes alone (the
median absolute deviation, as published: flagged above 2 of each statistic, or of the size) and
against up to three innocent models of the family, as `bdaudit invert --method embedded` does.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch

from bdaudit.data import load_sample, split_sample
from bdaudit.inversion import InversionConfig, make_arms
from bdaudit.inversion.anomaly import score_arms
from bdaudit.inversion.batching import Asker
from bdaudit.inversion.embedded import EmbeddedSearch
from bdaudit.inversion.invert import make_search
from bdaudit.models import load_model
from bdaudit.triggers import AllToOne

N_CRAFT, FLAGGED, REFERENCES = 300, 2.0, 3
STATISTICS = ("norm of deltas", "the same over v's", "disagreement over v's")


def measure(folder: Path, out: Path) -> None:
    """Append a line for every original and innocent model to `out`."""
    family = json.loads((folder / "family.json").read_text())
    halves = split_sample(load_sample(folder / "clean.npz"), n_craft=N_CRAFT, seed=0)
    count = family["num_classes"]
    rules = [*(AllToOne(k) for k in range(count)), None]
    arms, _ = make_arms(rules, halves.craft.labels, count)
    kept = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    known = {(line["family"], line["model"]) for line in kept}
    for member in family["members"]:
        innocent = member["truth"] == "innocent"
        if (not innocent and member["lineage"] != "original") or (
            folder.name,
            member["name"],
        ) in known:
            continue
        model = load_model(folder / member["file"], name=member["name"])
        asker = Asker(model.classifier, halves.craft.images, batch_size=256)
        began = time.process_time()
        search = make_search("embedded", asker, arms, InversionConfig())
        assert isinstance(search, EmbeddedSearch)
        for stage in range(search.n_stages):
            search.advance(stage, range(len(arms)), torch.Generator().manual_seed(stage))
        line = {
            "family": folder.name,
            "model": member["name"],
            "target": None if innocent else family["triggers"][member["trigger"]]["target_label"],
            "sizes": search.sizes(search.n_stages - 1).tolist(),
            "statistics": search.statistics.tolist(),
            "missed": search.missed.tolist(),
            "differentiated": asker.differentiated,
            "forwarded": asker.forwarded,
            "cpu_s": round(time.process_time() - began, 1),
        }
        with out.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(line["family"], line["model"], line["cpu_s"], flush=True)


def outlying(values: torch.Tensor) -> tuple[int, float]:
    """Return the smallest of values (n,), and by how many deviations it is below their median."""
    gains = values.median() - values
    return int(gains.argmax()), float(gains.max() / (1.4826 * gains.abs().median()))


def show(file: Path) -> None:
    """Print what is found on every model, in both ways."""
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    for line in lines:
        sizes, statistics = torch.tensor(line["sizes"]), torch.tensor(line["statistics"])[:-1]
        flagged = [
            f"{what}: class {k}, {score:.1f}{' flagged' if score > FLAGGED else ''}"
            for what, (k, score) in zip(
                (*STATISTICS, "size"),
                map(outlying, [*statistics.T, sizes[:-1]]),
                strict=True,
            )
        ]
        print(f"{line['family']} {line['model']}, target {line['target']}, {line['cpu_s']} CPU s")
        print("    by its own classes:", "; ".join(flagged))
        others = [
            other
            for other in lines
            if other["family"] == line["family"]
            and other["target"] is None
            and other["model"] != line["model"]
        ][:REFERENCES]
        if not others:
            continue
        table = torch.tensor([one["sizes"] for one in (line, *others)])
        scored = score_arms(table, n_tests=table.shape[1])
        assert scored.scores is not None
        assert scored.p_values is not None
        order = scored.gains.argsort(descending=True).tolist()[:3]
        ranking = "; ".join(
            f"class {'other' if k == len(sizes) - 1 else k}, {2 ** float(scored.gains[k]):.1f}x, "
            f"p {scored.p_values[k]:.2g}"
            for k in order
        )
        print(f"    against {len(others)} innocent models: {ranking}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("family", type=Path, nargs="*", help="folders that `zoo build` made")
    parser.add_argument("--out", type=Path, default=Path("embedded.jsonl"))
    parser.add_argument("--table", type=Path, help="print what a file holds, and stop")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.table:
        show(arguments.table)
    for folder in arguments.family:
        measure(folder, arguments.out)


if __name__ == "__main__":
    main()
