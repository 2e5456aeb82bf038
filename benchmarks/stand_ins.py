"""Verdict and BEC with stand-ins, with true innocent models, and with none at all.

    python benchmarks/stand_ins.py --data /usr/share/datasets/fashion-mnist
    python benchmarks/stand_ins.py --data ... --craft 2000 --seed 1
    python benchmarks/stand_ins.py --data ... --original A.safetensors --trigger trigger.toml \
        --defended D.safetensors --reference C1.safetensors C2.safetensors C3.safetensors

For each defended model three audits that share their attacks: with the given references, with three
stand-ins made from the craft images, and with neither. Prints a table of what every model does and
the verdicts. By default the demonstration's models, on Fashion-MNIST's test images. Training and
attacks run under bfloat16 unless --float32 is given.
"""

from __future__ import annotations

import argparse
import time
from importlib import resources
from pathlib import Path

import torch

import bdaudit
from bdaudit.data import Sample, load_sample
from bdaudit.foundation.progress import Progress
from bdaudit.records import AuditRecord, to_json

DEMO = Path(str(resources.files("bdaudit") / "demo_files"))


def audit(
    arguments: argparse.Namespace,
    sample: Sample,
    defended: Path,
    store: bdaudit.MemoryStore,
    *,
    references: list[Path],
    stand_ins: int,
) -> AuditRecord:
    settings = bdaudit.AuditSettings(
        eps=tuple(arguments.eps),
        passes=arguments.passes,
        controls=("no_trigger",),
        stand_ins=stand_ins,
        stand_in=bdaudit.StandInConfig(n_images=arguments.images),
        compute=bdaudit.ComputeSettings(
            seed=arguments.seed, precision="float32" if arguments.float32 else "bfloat16"
        ),
        split=bdaudit.SplitSettings(craft=arguments.craft, held_out=arguments.held_out),
    )
    return bdaudit.audit(
        defended,
        original=arguments.original,
        data=sample,
        trigger=arguments.trigger,
        reference=references,
        settings=settings,
        store=store,
        cache_dir=arguments.cache,
        listener=Steps(),
    )


class Steps:
    """Prints each new step with its time, for a log."""

    def __init__(self) -> None:
        self.last, self.started = "", time.process_time()

    def __call__(self, event: Progress) -> None:
        if event.step != self.last:
            print(f"  {time.process_time() - self.started:6.0f} s  {event.step}", flush=True)
            self.last = event.step


def rows(record: AuditRecord, bec_of: dict[str, float | None]) -> list[str]:
    ladder = sorted({run.eps for run in record.runs})
    lines = []
    for b in record.baselines:
        cells = []
        for eps in ladder:
            found = {
                r.condition: r.asr.value for r in record.runs if r.model == b.model and r.eps == eps
            }
            own = (found.get("trigger"), found.get("no_trigger"))
            cells.append(" / ".join("-" if v is None else f"{v:.3f}" for v in own))
        bec = bec_of.get(b.model)
        note = " (left out)" if b.left_out else ""
        lines.append(
            f"| {b.model}{note} | {b.clean_acc.value:.3f} | {b.asr.value:.3f} | "
            + " | ".join(cells)
            + f" | {'' if bec is None else f'{bec:.2f}'} |"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument(
        "--defended",
        type=Path,
        nargs="+",
        default=[DEMO / "dormant.safetensors", DEMO / "removed.safetensors"],
    )
    parser.add_argument("--original", type=Path, default=DEMO / "original.safetensors")
    parser.add_argument("--trigger", type=Path, default=DEMO / "trigger.toml")
    parser.add_argument(
        "--reference",
        type=Path,
        nargs="*",
        default=[DEMO / f"innocent-{k}.safetensors" for k in (1, 2, 3)],
    )
    parser.add_argument("--craft", type=int, default=500)
    parser.add_argument("--held-out", type=int, default=1500)
    parser.add_argument("--eps", type=float, nargs="+", default=[0.02, 0.03])
    parser.add_argument("--passes", type=int, default=8)
    parser.add_argument("--images", type=int, default=64_000)
    parser.add_argument("--stand-ins", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--float32", action="store_true")
    parser.add_argument("--json", type=Path, help="folder for the records, to judge them again")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    sample = load_sample(arguments.data, split="test")
    order = torch.randperm(
        len(sample), generator=torch.Generator().manual_seed(1000 + arguments.seed)
    )
    sample = sample.take(order[: arguments.craft + arguments.held_out])
    store = bdaudit.MemoryStore()
    for defended in arguments.defended:
        given = audit(
            arguments, sample, defended, store, reference=arguments.reference, stand_ins=0
        )
        made = audit(
            arguments, sample, defended, store, reference=[], stand_ins=arguments.stand_ins
        )
        none = audit(arguments, sample, defended, store, reference=[], stand_ins=0)
        bec_of = {b.reference: b.value for record in (given, made) for b in record.bec}
        ladder = " | ".join(f"eps {eps:g}" for eps in sorted(arguments.eps))
        print(
            f"\n{defended.stem}, {arguments.craft} craft images, seed {arguments.seed}; cells: "
            "with the trigger / attack without it; BEC of the defended model against each\n"
            f"| model | clean acc | trigger alone | {ladder} | BEC |\n"
            f"|---|---|---|{'---|' * len(arguments.eps)}---|"
        )
        for line in [*rows(given, bec_of), *rows(made, bec_of)[2:]]:
            print(line)
        for title, record in (("references", given), ("stand-ins", made), ("neither", none)):
            assert record.verdict is not None
            if arguments.json is not None:
                arguments.json.mkdir(parents=True, exist_ok=True)
                path = arguments.json / f"{defended.stem}-{title}.json"
                path.write_text(to_json(record), encoding="utf-8")
            print(f"with {title}: {record.verdict.outcome}: {record.verdict.why}")
        took = next((s.elapsed_s for s in made.steps if s.name == "stand-ins"), 0.0)
        print(f"stand-ins made in {took:.0f} s", flush=True)


if __name__ == "__main__":
    main()
