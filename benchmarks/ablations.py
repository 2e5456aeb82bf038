"""What eps, the number of images, and the share of channels do to the figures a verdict rests on.

    python benchmarks/ablations.py FAMILY docs/benchmark

FAMILY is a folder that `bdaudit zoo build` made. Three questions:

* `eps` and `images`: the lift of the white box over the strongest control (the attack without the
  trigger, the same delta on clean images, and the attack on every innocent reference) as the
  radius grows, and as the craft images do. On a few models of each truth, held-out images alike.
* `bec`: the area under the ROC curve of BEC, sleeping models against removed and innocent ones,
  for shares of channels and numbers of images. On every model of known truth whose trigger alone
  does not work (of the removed and innocent ones one in `--every`); against one reference.

Every figure is kept in OUT/ablations.json as soon as it is there, and one that is there is not
measured again. Then the figures are drawn (OUT/ablation_*.svg) and the tables printed.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")
import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn

from bdaudit.benchmarking.curves import area_under
from bdaudit.data import load_sample, split_sample
from bdaudit.existence import ExistenceConfig, existence_coefficient
from bdaudit.foundation.progress import finish
from bdaudit.models import load_model
from bdaudit.reactivation import WhiteboxConfig, reactivate_whitebox
from bdaudit.records.families import Family, FamilyMember, read_family
from bdaudit.scoring import predict, rate
from bdaudit.triggers import Poisoned, poison, read_trigger
from bdaudit.verdict import Policy

Row = dict[str, Any]

EPS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.08)
IMAGES = (50, 100, 200, 400, 800)
SHARES = (0.02, 0.05, 0.10, 0.20, 0.50, 1.00)
BEC_IMAGES = (25, 50, 100, 250, 500)
AT_EPS, AT_IMAGES, AT_SHARE, AT_BEC_IMAGES = 0.03, 200, 0.10, 250
TRUTHS = {"dormant": "sleeping", "removed": "removed", "innocent": "innocent"}
COLOURS = {"dormant": "#d94801", "removed": "#2171b5", "innocent": "#7f7f7f"}


def main() -> None:
    """Measure what is missing, then draw and tabulate."""
    options = _parse()
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    bench = Bench(options)
    for row in bench.planned():
        if not bench.kept.has(row):
            bench.kept.add(row | bench.measure(row))
    rows = bench.kept.rows
    for what in ("eps", "images"):
        draw_lifts(what, [r for r in rows if r["what"] == what], options.out)
    draw_areas([r for r in rows if r["what"].startswith("bec")], options.out)


class Kept:
    """Rows in a JSON file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[Row] = json.loads(path.read_text()) if path.exists() else []

    def has(self, row: Row) -> bool:
        """Say whether a row holds all that `row` does."""
        return any(row.items() <= other.items() for other in self.rows)

    def add(self, row: Row) -> None:
        """Keep one."""
        self.rows.append(row)
        print(json.dumps(row), flush=True)
        self.path.write_text("[\n" + ",\n".join(map(json.dumps, self.rows)) + "\n]\n")


class Bench:
    """The family, and what is measured on it."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.folder: Path = options.family
        self.family: Family = read_family(self.folder)
        self.kept = Kept(options.out / "ablations.json")
        sample = load_sample(self.folder / self.family.sample)
        # The same held-out images whatever number of the craft images is used.
        halves = split_sample(sample, n_craft=max(IMAGES), n_held_out=None, seed=0)
        self.craft, self.held_out = halves.craft, halves.held_out
        self.model = cache(self._model)
        self.poisoned = cache(self._poisoned)
        self.reached = cache(self._reached)

    def _model(self, name: str) -> nn.Module:
        member = self.family.member(name)
        return load_model(self.folder / member.file, name=name).classifier

    def _poisoned(self, trigger: str, n_craft: int | None) -> Poisoned:
        """Stamp the first craft images, or for `None` the held-out ones."""
        known = read_trigger(self.folder / self.family.triggers[trigger].file)
        chosen = self.held_out if n_craft is None else self.craft.take(torch.arange(n_craft))
        return poison(chosen, known, self.family.num_classes)

    def planned(self) -> Iterator[Row]:
        """Name every figure by what determines it."""
        settled = [m for m in self.family.to_audit() if m.truth in TRUTHS]
        few = [m for truth in TRUTHS for m in self.spread(settled, truth)]
        if self.options.models:
            few = [self.family.member(name) for name in self.options.models]
        for member in few:
            about = {"member": member.name, "truth": member.truth}
            for eps in EPS:
                yield {"what": "eps", **about, "eps": eps, "images": AT_IMAGES}
            for n in IMAGES:
                yield {"what": "images", **about, "eps": AT_EPS, "images": n}
        sleeping = [m for m in settled if m.truth == "dormant"]
        others = [m for m in settled if m.truth != "dormant"]
        for member in (*sleeping, *others[:: self.options.every]):
            about = {"member": member.name, "truth": member.truth}
            for share in SHARES:
                yield {"what": "bec share", **about, "share": share, "images": AT_BEC_IMAGES}
            for n in BEC_IMAGES:
                yield {"what": "bec images", **about, "share": AT_SHARE, "images": n}

    def spread(self, members: Sequence[FamilyMember], truth: str) -> list[FamilyMember]:
        """Choose models of one truth, of as many attacks as there are."""
        by_attack: dict[str, list[FamilyMember]] = {}
        for member in sorted((m for m in members if m.truth == truth), key=lambda m: m.name):
            by_attack.setdefault(member.attack or "", []).append(member)
        turns = [list(group) for _, group in sorted(by_attack.items())]
        chosen = []
        while any(turns) and len(chosen) < self.options.members:
            chosen += [group.pop(0) for group in turns if group]
        return chosen[: self.options.members]

    def measure(self, row: Row) -> Row:
        """Return the figures of one row."""
        member = self.family.member(row["member"])
        return self.bec(member, row) if row["what"].startswith("bec") else self.lift(member, row)

    def lift(self, member: FamilyMember, row: Row) -> Row:
        """Attack the model and every innocent reference alike."""
        at = (member.trigger, row["eps"], row["images"])
        asr, delta_only = self.reached(member.name, True, *at)
        no_trigger, _ = self.reached(member.name, False, *at)
        innocent = max(self.reached(name, True, *at)[0] for name in self.family.references)
        controls = max(delta_only, no_trigger, innocent)
        return {
            "asr": asr,
            "delta_only": delta_only,
            "no_trigger": no_trigger,
            "innocent": innocent,
            "lift": asr - controls,
        }

    def _reached(
        self, name: str, with_trigger: bool, trigger: str, eps: float, n: int
    ) -> tuple[float, float]:
        """Return held-out success of an attack, and of its delta on clean images."""
        craft, held_out = self.poisoned(trigger, n), self.poisoned(trigger, None)
        model = self.model(name)
        autocast = "bf16" if self.options.bf16 else None
        delta = finish(
            reactivate_whitebox(
                model,
                craft.triggered if with_trigger else craft.clean,
                craft.targets,
                config=WhiteboxConfig(eps=eps, n_passes=self.options.passes, autocast=autocast),
                generator=torch.Generator().manual_seed(0),
            )
        ).delta
        on_clean = success(model, held_out.clean, held_out, delta)
        if not with_trigger:
            return on_clean, on_clean
        return success(model, held_out.triggered, held_out, delta), on_clean

    def bec(self, member: FamilyMember, row: Row) -> Row:
        """Measure BEC against the first reference."""
        assert member.original is not None
        assert member.trigger is not None
        reference = self.family.references[0]
        craft = self.poisoned(member.trigger, max(IMAGES))
        records = finish(
            existence_coefficient(
                self.model(member.original),
                self.model(member.name),
                [(reference, self.model(reference))],
                clean=craft.clean,
                triggered=craft.triggered,
                config=ExistenceConfig(
                    top_share=row["share"], n_samples=row["images"], n_bootstrap=0
                ),
                generator=torch.Generator().manual_seed(0),
            )
        )
        return {"bec": records[0].value}


def success(model: nn.Module, images: Tensor, held_out: Poisoned, delta: Tensor) -> float:
    """Return the share of `images` + delta at the targets."""
    predicted = predict(model, images, batch_size=256, delta=delta)
    return rate(predicted == held_out.targets).value


def draw_lifts(what: str, rows: Sequence[Row], out: Path) -> None:
    """Draw a line a model, and print the mean of each truth."""
    values = sorted({row[what] for row in rows})
    figure, axes = plt.subplots(figsize=(6.4, 3.8))
    print(f"\n| {what} | " + " | ".join(f"{t}: ASR / innocents / lift" for t in TRUTHS.values()))
    print("|---" * (len(TRUTHS) + 1) + "|")
    for value in values:
        cells = []
        for truth in TRUTHS:
            own = [r for r in rows if r[what] == value and r["truth"] == truth]
            means = [_mean(r[key] for r in own) for key in ("asr", "innocent", "lift")]
            cells.append(" / ".join(means))
        print(f"| {value:g} | " + " | ".join(cells) + " |")
    for truth, name in TRUTHS.items():
        label: str | None = name
        for member in sorted({r["member"] for r in rows if r["truth"] == truth}):
            line = sorted((r[what], r["lift"]) for r in rows if r["member"] == member)
            axes.plot(*zip(*line, strict=True), color=COLOURS[truth], marker=".", label=label)
            label = None
    axes.axhline(Policy().lift, color="black", linewidth=0.8, linestyle=":", label="default limit")
    axes.set_xscale("log")
    axes.set_xticks(values, [f"{v:g}" for v in values])
    axes.minorticks_off()
    axes.set_xlabel("L-inf eps" if what == "eps" else "craft images")
    axes.set_ylabel("lift over the strongest control")
    _save(figure, axes, out / f"ablation_{what}.svg")


def draw_areas(rows: Sequence[Row], out: Path) -> None:
    """Draw the area under the curve of BEC against share and images, and print it."""
    figure, axes = plt.subplots(figsize=(6.4, 3.2), ncols=2, sharey=True)
    for panel, what, key in (
        (axes[0], "bec share", "share"),
        (axes[1], "bec images", "images"),
    ):
        own = [r for r in rows if r["what"] == what and r["bec"] is not None]
        print(f"\n| {key} | AUC of BEC | sleeping | removed | innocent |\n|---|---|---|---|---|")
        line = []
        for value in sorted({r[key] for r in own}):
            here = [r for r in own if r[key] == value]
            by_truth = {t: [r["bec"] for r in here if r["truth"] == t] for t in TRUTHS}
            negative = by_truth["removed"] + by_truth["innocent"]
            if not by_truth["dormant"] or not negative:
                continue
            area = area_under(by_truth["dormant"], negative)
            line.append((value, area))
            means = " | ".join(_mean(found) for found in by_truth.values())
            print(f"| {value:g} | {area:.3f} | {means} |")
        if line:
            panel.plot(*zip(*line, strict=True), color=COLOURS["dormant"], marker=".")
            panel.set_xscale("log")
            panel.set_xticks([v for v, _ in line], [f"{v:g}" for v, _ in line], fontsize=8)
            panel.minorticks_off()
        panel.set_xlabel("share of channels" if key == "share" else "images")
    axes[0].set_ylabel("AUC of BEC")
    _save(figure, None, out / "ablation_bec.svg")


def _mean(values: Any) -> str:
    known = list(values)
    return f"{statistics.fmean(known):.2f}" if known else "-"


def _save(figure: Any, axes: Any, path: Path) -> None:
    mpl.rcParams["svg.hashsalt"] = "bdaudit"  # the same data give the same file
    if axes is not None:
        axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("family", type=Path, help="folder with family.json")
    parser.add_argument("out", type=Path, help="folder of the figures")
    parser.add_argument("--members", type=int, default=3, help="models of each truth attacked")
    parser.add_argument("--models", nargs="+", help="these are attacked instead")
    parser.add_argument(
        "--every", type=int, default=1, help="of removed and innocent models in BEC"
    )
    parser.add_argument("--passes", type=int, default=12)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--bf16", action="store_true", help="attack under bfloat16 autocast")
    return parser.parse_args()


if __name__ == "__main__":
    main()
