"""Everything that is measured about cost, in one run on one machine.

    python benchmarks/costs.py OUT [--only bec audit] [--quick]

runs, one after the other and each in a process of its own, so that peak memory is its own:

* `bec`: BEC against bare forward passes and the research recipe, with peak memory
  (`bec_cost.py`, full-width PreAct-ResNet-18, 500 images);
* `white`: the white box against bare forward and backward passes, and the research optimiser in
  gradient passes to equal held-out ASR (`whitebox_cost.py`, the demonstration's dormant model);
* `query`: the query search against the research schedule, in image queries to equal ASR
  (`query_cost.py`, the same model);
* `audit`: a whole audit as images, classes, layers and width grow (`audit_cost.py`).

What each prints goes to OUT/NAME.txt as well, and OUT/costs.json says on which machine and how long
it took. `--quick` takes smaller cases, to see that all of it runs.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import torch

HERE = Path(__file__).parent
FULL = {
    "bec": ("bec_cost.py", "--width", "64", "--images", "500", "--repeats", "1", "--bfloat16"),
    "white": ("whitebox_cost.py", "--eps", "0.02", "0.03", "--seeds", "0",
              "--research-passes", "24", "100", "--rounds", "3"),
    "query": ("query_cost.py", "--eps", "0.03", "--seeds", "0", "--max-queries", "20000",
              "--searches", "research, scores", "cold, scores", "warm, scores"),
    "audit": ("audit_cost.py",),
}  # fmt: skip
QUICK = {
    "bec": ("bec_cost.py", "--width", "8", "--images", "64", "--repeats", "1"),
    "white": ("whitebox_cost.py", "--eps", "0.02", "--seeds", "0", "--n-craft", "50",
              "--default-passes", "3", "--research-passes", "3", "--rounds", "1"),
    "query": ("query_cost.py", "--eps", "0.03", "--seeds", "0", "--max-queries", "1000",
              "--n-craft", "50", "--searches", "research, scores", "cold, scores"),
    "audit": ("audit_cost.py", "--only", "base"),
}  # fmt: skip


def main() -> None:
    """Run what is asked for, and say of each how it ended."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder of the results")
    parser.add_argument("--only", nargs="+", choices=list(FULL), default=list(FULL))
    parser.add_argument("--quick", action="store_true", help="small cases")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    chosen = QUICK if options.quick else FULL
    report: dict[str, object] = {
        "machine": platform.machine(),
        "processors": os.cpu_count(),
        "torch": torch.__version__,
        "quick": options.quick,
    }
    failed = []
    for name in options.only:
        script, *arguments = chosen[name]
        print(f"\n== {name}: {script} {' '.join(arguments)}", flush=True)
        started, load = time.perf_counter(), os.getloadavg()[0]
        code = run([sys.executable, str(HERE / script), *arguments], options.out / f"{name}.txt")
        report[name] = {
            "command": [script, *arguments],
            "elapsed_s": round(time.perf_counter() - started, 1),
            "load_before": round(load, 2),
            "exit_code": code,
        }
        (options.out / "costs.json").write_text(json.dumps(report, indent=1) + "\n")
        failed += [name] if code else []
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def run(command: list[str], path: Path) -> int:
    """Run a command, show what it prints as it comes and keep it in `path`."""
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    with (
        path.open("w") as kept,
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            kept.write(line)
    return process.returncode


if __name__ == "__main__":
    main()
