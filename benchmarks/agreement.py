"""Every search for a backdoor on the same models of known truth: one table of what agrees.

    bdaudit zoo build examples/families/emoji.toml --out wide --data EMOJI
    python benchmarks/agreement.py wide --out agreement     # measures what is missing, prints
    python benchmarks/agreement.py --out agreement          # prints

Every original of a FAMILY, and as many of its innocent models as `--innocent` says (those that no
defence changed first), is searched once by every method: all classes, none dropped, with the
methods' default settings, on the same craft images, in float32 on one thread. One line of JSON a
model and method is added to agreement.jsonl in the folder, as it is made; what is there is not made
again. `--methods` and `--only` (patterns of models' names) leave some out.

The table holds each model against the other innocent ones measured, three at most, as
`bdaudit invert --method X` does (p-values for each method alone), and beside it what the method
would say of the model's own classes alone. No trigger is made in full, so that nobody asks whether
it wakes the model: `invert` finds less than these p-values, never more. `screen` is the maximum
margin statistic of `bdaudit screen`.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from statistics import median
from typing import Any, get_args

import torch
from kept_lines import KeptLines, read_lines
from torch import Tensor

from bdaudit.data import Sample, load_sample, split_sample
from bdaudit.foundation.progress import finish
from bdaudit.inversion import (
    AUTO,
    NOMINATORS,
    InversionConfig,
    MaximumMarginConfig,
    Method,
    make_arms,
)
from bdaudit.inversion.anomaly import residuals, score_arms
from bdaudit.inversion.batching import Asker
from bdaudit.inversion.embedded import EmbeddedSearch
from bdaudit.inversion.invert import ask_where, log_odds_against, make_search
from bdaudit.inversion.maximum_margin import find_maximum_margins, hold_against_gamma
from bdaudit.models import LoadedModel, load_model
from bdaudit.triggers import AllToOne

SCREEN = "screen"
METHODS = (*get_args(Method), SCREEN)
N_CRAFT, REFERENCES, SEED, BATCH = 300, 3, 0, 256
UNUSUAL = 0.01  # of a search's p-value: `found`, should the trigger wake the model
SUSPICIOUS = 0.05  # of a screening's
FLAGGED = 2.0  # median absolute deviations, of a model's own classes alone
COLLAPSED = 0.5  # share of images sent to one class

Line = dict[str, Any]


def members(folder: Path, n_innocent: int, only: Sequence[str]) -> Iterator[Line]:
    """Yield a family's originals, then innocent models: name, file, and target if it has one."""
    family = json.loads((folder / "family.json").read_text())
    innocent = [one for one in family["members"] if one["truth"] == "innocent"]
    innocent.sort(key=lambda one: one["defense"] not in (None, "retrained"))
    originals = [one for one in family["members"] if one["lineage"] == "original"]
    for one in [*originals, *innocent[:n_innocent]]:
        if only and not any(fnmatch(one["name"], pattern) for pattern in only):
            continue
        backdoored = one["truth"] != "innocent"
        trigger = family["triggers"][one["trigger"]] if backdoored else {}
        yield {
            "family": family["name"],
            "num_classes": family["num_classes"],
            "model": one["name"],
            "file": str(folder / one["file"]),
            "sample": str(folder / family["sample"]),
            "attack": one["attack"] if backdoored else None,
            "target": trigger.get("target_label"),
        }


def search(model: LoadedModel, craft: Sample, method: str, screen_images: int) -> Line:
    """Search one model by one method; what it comes to, and what that cost."""
    rules = [*(AllToOne(k) for k in range(model.num_classes)), None]
    arms, _ = make_arms(rules, craft.labels, model.num_classes)
    began = time.process_time()
    if method == SCREEN:
        margins = finish(
            find_maximum_margins(
                model.classifier.to(memory_format=torch.channels_last),  # type: ignore[call-overload]
                image_shape=model.image_shape,
                num_classes=model.num_classes,
                config=MaximumMarginConfig(n_images=screen_images),
                seed=SEED,
                batch_size=512,
            )
        )
        found: Line = {
            "statistics": margins.statistics.tolist(),
            "images": screen_images,
            "differentiated": margins.differentiated,
        }
    elif method in NOMINATORS:
        generator = torch.Generator().manual_seed(SEED)
        answers, cost = finish(
            ask_where(
                method,  # type: ignore[arg-type]
                model.classifier,
                craft.images,
                craft.labels,
                config=InversionConfig(),
                generator=generator,
            )
        )
        found = {
            "sizes": log_odds_against(answers, arms).tolist(),
            "differentiated": cost,
        }
    else:
        asker = Asker(model.classifier, craft.images, batch_size=BATCH)
        race = make_search(method, asker, arms, InversionConfig())  # type: ignore[arg-type]
        for stage in range(race.n_stages):
            race.advance(stage, range(len(arms)), torch.Generator().manual_seed(SEED + stage))
        found = {"sizes": race.sizes(race.n_stages - 1).tolist()}
        if isinstance(race, EmbeddedSearch):
            found["statistics"] = race.statistics.tolist()
        found["differentiated"] = asker.differentiated
    return {**found, "cpu_s": round(time.process_time() - began, 1)}


def measure(
    folders: Sequence[Path], out: Path, methods: Sequence[str], args: argparse.Namespace
) -> None:
    """Measure whatever is not in `out` yet, all models by one method before the next."""
    lines = KeptLines(out)
    suspects = [one for folder in folders for one in members(folder, args.innocent, args.only)]
    for method in methods:
        for one in suspects:
            if lines.has({"family": one["family"], "model": one["model"], "method": method}):
                continue
            model = load_model(one["file"], name=one["model"])
            halves = split_sample(load_sample(one["sample"]), n_craft=N_CRAFT, seed=SEED)
            found = search(model, halves.craft, method, args.screen_images)
            lines.add({**one, "method": method, **found})


@dataclass(frozen=True)
class Judged:
    """What a method says of one model.

    Attributes:
        named: The class it names, the number of classes for "any other class".
        p_value: How unusual that is; `None` for methods without, and without an innocent model.
        alone: Classes out of line judged by the model's own classes alone, as published.
        share: Of images that go to `named`, where that is what is looked at.
        times: How many times less the model needs than innocent ones, where sizes are.
    """

    named: int
    p_value: float | None
    alone: frozenset[int]
    share: float | None = None
    times: float | None = None


def judge(line: Line, innocent: Sequence[Line]) -> Judged:
    """Judge one model by one method, against innocent models (three at most) by the same."""
    others = [one for one in innocent if one["model"] != line["model"]][:REFERENCES]
    if line["method"] == SCREEN:
        null = hold_against_gamma(torch.tensor(line["statistics"]))
        beyond = null.published is not None and null.published <= SUSPICIOUS
        return Judged(null.label, null.p_value, frozenset([null.label] if beyond else []))
    count = line["num_classes"]
    sizes = torch.tensor([one["sizes"] for one in (line, *others)])
    if line["method"] in NOMINATORS:
        shares = 1 / (1 + 2 ** sizes[0, :count])
        named = int(residuals(sizes)[:count].argmax())
        most = int(shares.argmax())
        alone = frozenset([most] if shares[most] > COLLAPSED else [])
        return Judged(named, None, alone, float(shares[named]))
    scored = score_arms(sizes, n_tests=sizes.shape[1])
    named = int(scored.gains.argmax())
    looked_at = [sizes[0, :count]]
    if "statistics" in line:
        looked_at += list(torch.tensor(line["statistics"])[:count].T)
    alone = frozenset(k for values in looked_at for k in outlying(values))
    p_value = scored.p_values[named] if others and scored.p_values is not None else None
    return Judged(named, p_value, alone, times=2 ** float(scored.gains[named]))


def outlying(values: Tensor) -> list[int]:
    """Return the smallest of values (n,) where it is `FLAGGED` deviations below their median.

    Source: the anomaly index of Neural Cleanse, Wang et al., S&P 2019.
    """
    below = values.median() - values
    least = int(below.argmax())
    return [least] if below[least] > FLAGGED * 1.4826 * below.abs().median() else []


def combined(judged: dict[str, Judged]) -> Judged | None:
    """Return what the default methods say together, None where not all of them were run."""
    if any(method not in judged for method in AUTO):
        return None
    each = [judged[method] for method in AUTO]
    first = min(each, key=lambda one: 1.0 if one.p_value is None else one.p_value)
    together = None if first.p_value is None else min(1.0, len(AUTO) * first.p_value)
    return Judged(first.named, together, frozenset().union(*(one.alone for one in each)))


def show(out: Path) -> None:
    """Print what every method says of every model, and what that comes to."""
    lines = read_lines(out.parent)
    found: dict[tuple[str, str], dict[str, Judged]] = {}
    models: dict[tuple[str, str], Line] = {}
    for line in lines:
        key = line["family"], line["model"]
        innocent = [
            one
            for one in lines
            if one["target"] is None
            and (one["family"], one["method"]) == (line["family"], line["method"])
        ]
        found.setdefault(key, {})[line["method"]] = judge(line, innocent)
        models[key] = line
    for judged in found.values():
        together = combined(judged)
        if together is not None:
            judged["auto"] = together
    methods = [method for method in METHODS if any(method in one for one in found.values())]
    print(f"| family | trigger | target | {' | '.join(methods)} |")
    print("|---" * (3 + len(methods)) + "|")
    # By family, innocent models last.
    ordered = sorted(found, key=lambda key: (key[0], models[key]["target"] is None))
    for key in ordered:
        cells = [cell(found[key].get(method), models[key]) for method in methods]
        target = "-" if models[key]["target"] is None else str(models[key]["target"])
        print(f"| {key[0]} | {models[key]['attack'] or 'none'} | {target} | {' | '.join(cells)} |")
    print()
    print(
        "| method | true class first | unusual where right | where wrong | on innocent models "
        "| by its own classes alone: right, wrong, innocent | CPU s a model |"
    )
    print("|---" * 7 + "|")
    for method in [*methods, "auto"]:
        rows = [(models[key], one[method]) for key, one in found.items() if method in one]
        if rows:
            cost = [line["cpu_s"] for line in lines if line["method"] == method]
            spent = f"{median(cost):.0f} ({min(cost):.0f} to {max(cost):.0f})" if cost else ""
            print(f"| {method} | {' | '.join(counts(method, rows))} | {spent} |")


def cell(judged: Judged | None, model: Line) -> str:
    """Return one cell: the class named, in bold where it is the true one, and how unusual it is."""
    if judged is None:
        return ""
    name = "any other" if judged.named == model["num_classes"] else str(judged.named)
    name = f"**{name}**" if judged.named == model["target"] else name
    if judged.share is not None:
        return f"{name} ({judged.share:.2f})"
    times = "" if judged.times is None else f"{judged.times:.2g}x, "
    return f"{name}, {times}{'no p' if judged.p_value is None else 'p ' + as_p(judged.p_value)}"


def as_p(value: float) -> str:
    """Write a p-value in two digits at most."""
    if 0 < value < 5e-4:
        digits, _, power = f"{value:.0e}".partition("e")
        return f"{digits}e{int(power)}"
    return f"{value:.1g}".removeprefix("0") if value < 1 else "1"


def counts(method: str, rows: Sequence[tuple[Line, Judged]]) -> list[str]:
    """Count, over all models, how often a method is right, and how often it raises an alarm."""
    limit = SUSPICIOUS if method == SCREEN else UNUSUAL
    originals = [(line, one) for line, one in rows if line["target"] is not None]
    innocent = [one for line, one in rows if line["target"] is None]
    right = [one for line, one in originals if one.named == line["target"]]
    wrong = [one for line, one in originals if one.named != line["target"]]

    def unusual(those: Sequence[Judged]) -> str:
        if method in NOMINATORS:
            return "-"
        count = sum(one.p_value is not None and one.p_value <= limit for one in those)
        return f"{count} of {len(those)}"

    alone = (
        sum(line["target"] in one.alone for line, one in originals),
        sum(bool(one.alone - {line["target"]}) for line, one in originals),
        sum(bool(one.alone) for one in innocent),
    )
    return [
        f"{len(right)} of {len(originals)}",
        unusual(right),
        unusual(wrong),
        unusual(innocent),
        f"{alone[0]}, {alone[1]}, {alone[2]}",
    ]


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("family", type=Path, nargs="*", help="folders that `zoo build` made")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--only", action="append", default=[], help="patterns of models' names")
    parser.add_argument("--innocent", type=int, default=3, help="innocent models of a family")
    parser.add_argument("--screen-images", type=int, default=30, help="random images a class")
    args = parser.parse_args()
    for folder in args.family:
        if not (folder / "family.json").is_file():
            parser.error(
                f"{folder}: expected a folder that `bdaudit zoo build` made, no family.json"
            )
    if not args.family and not (args.out / "agreement.jsonl").is_file():
        parser.error(f"{args.out}: holds no agreement.jsonl to print; name families to measure")
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    out = args.out / "agreement.jsonl"
    measure(args.family, out, args.methods, args)
    show(out)


if __name__ == "__main__":
    main()
