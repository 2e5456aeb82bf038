"""Wall-clock and processor time of one sweep with 1 and more workers: docs/scaling.md.

    python benchmarks/scaling.py --workers 1 2 --json scaling.json

The sweep is of the embedded demonstration's models: both defended ones, from several seeds. Every
number of workers begins with an empty folder. Turns are taken, so that other work on the machine
meets all of them.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import tempfile
import time
from importlib import resources
from pathlib import Path

from bdaudit.auditing import (
    AuditRequest,
    AuditSettings,
    ComputeSettings,
    Sources,
    SplitSettings,
    record_path,
    sweep_steps,
)
from bdaudit.engines import open_engine
from bdaudit.foundation.progress import finish
from bdaudit.records import AuditRecord, read_record


def list_requests(folder: Path, *, n_seeds: int, device: str) -> list[AuditRequest]:
    settings = {
        seed: AuditSettings(
            eps=(0.02, 0.05),
            passes=4,
            controls=("no_trigger", "noise"),
            pictures=False,
            compute=ComputeSettings(device=device, seed=seed),
            split=SplitSettings(craft=200, held_out=400),
        )
        for seed in range(n_seeds)
    }
    return [
        AuditRequest(
            key=f"{name}-{seed}",
            sources=Sources.of(
                defended=folder / f"{name}.safetensors",
                original=folder / "original.safetensors",
                references=[folder / f"innocent-{k}.safetensors" for k in (1, 2, 3)],
                data=folder / "clean.npz",
                trigger=folder / "trigger.toml",
            ),
            settings=chosen,
        )
        for seed, chosen in settings.items()
        for name in ("dormant", "removed")
    ]


def processor_s() -> float:
    """Processor seconds of this process and of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


def measure(requests: list[AuditRequest], n_workers: int) -> dict[str, object]:
    with tempfile.TemporaryDirectory() as name:
        out = Path(name)
        wall, processor = time.perf_counter(), processor_s()
        engine = open_engine("local", workers=n_workers, threads_per_worker=1)
        made = finish(sweep_steps(requests, folder=out, engine=engine))
        wall, processor = time.perf_counter() - wall, processor_s() - processor
        steps: dict[str, float] = {}
        for request in requests:
            record = read_record(record_path(out, request.key))
            assert isinstance(record, AuditRecord)
            for step in record.steps:
                kind = step.name.split(" of ")[0]
                steps[kind] = steps.get(kind, 0.0) + step.elapsed_s
    outcomes = [audit.outcome for audit in made.audits]
    return {
        "workers": n_workers,
        "wall_s": round(wall, 1),
        "processor_s": round(processor, 1),
        "outcomes": outcomes,
        "steps_s": {kind: round(seconds, 1) for kind, seconds in steps.items()},
        "load": round(os.getloadavg()[0], 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with resources.as_file(resources.files("bdaudit") / "demo_files") as folder:
        requests = list_requests(folder, n_seeds=arguments.seeds, device=arguments.device)
        rows = []
        for _ in range(arguments.repeats):
            for n_workers in arguments.workers:
                rows.append(measure(requests, n_workers))
                print(json.dumps(rows[-1]), flush=True)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
