"""What a whole audit costs as images, classes, layers, width and the ladder of eps grow.

    python benchmarks/audit_cost.py --json audit_cost.json

One factor at a time is changed from a base case (PreAct-ResNet-18 of width 8, 28x28, 10 classes,
200 craft and 400 held-out images, one eps, three innocent models). Every audit runs in a process of
its own, so that its peak memory is its own, and the base case is measured first and last, which
shows how much the machine itself wavers. Seconds are of the processor, since machines are shared.
Weights and images are random: what is measured is the work, and no verdict is drawn from it.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from bdaudit import audit
from bdaudit.auditing import AuditSettings, SplitSettings
from bdaudit.models import build_network
from bdaudit.triggers import AllToOne, Patch, Trigger

EPS = (0.01, 0.02, 0.03, 0.05)


@dataclass(frozen=True)
class Case:
    """What one audit is made of."""

    arch: str = "bdaudit/preactresnet18_w8"
    side: int = 28
    classes: int = 10
    craft: int = 200
    held_out: int = 400
    n_eps: int = 1


BASE = Case()
CASES = {
    "base": BASE,
    "craft images x 2": replace(BASE, craft=400),
    "held-out images x 4": replace(BASE, held_out=1_600),
    "classes x 10": replace(BASE, classes=100),
    "width x 2": replace(BASE, arch="bdaudit/preactresnet18_w16"),
    "width x 4": replace(BASE, arch="bdaudit/preactresnet18_w32"),
    "side x 2 (pixels x 4)": replace(BASE, side=56),
    "eps x 4": replace(BASE, n_eps=4),
    "ResNet-18 (20 convolutions)": replace(BASE, arch="torchvision/resnet18"),
    "ResNet-34 (36 convolutions)": replace(BASE, arch="torchvision/resnet34"),
    "base again": BASE,
}


def network(case: Case, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    channels = 3 if case.arch.startswith("torchvision") else 1
    return build_network(case.arch, num_classes=case.classes, in_channels=channels).eval()


def sample(case: Case) -> tuple[Tensor, Tensor]:
    n = case.craft + case.held_out
    channels = 3 if case.arch.startswith("torchvision") else 1
    random = torch.Generator().manual_seed(0)
    images = torch.rand(n, channels, case.side, case.side, generator=random)
    return images, torch.arange(n) % case.classes


def run_one(name: str) -> dict[str, object]:
    """Audit one case in this process."""
    torch.set_num_threads(1)
    case = CASES[name]
    images, labels = sample(case)
    started = time.process_time()
    patch = Patch(image=torch.ones(images.shape[1], 3, 3), offset=(1, 1))
    original = network(case, 0)
    record = audit(
        network(case, 1),
        original=original,
        reference=[network(case, seed) for seed in (2, 3, 4)],
        data=(images, labels),
        trigger=Trigger(transform=patch, rule=AllToOne(0)),
        settings=AuditSettings(
            eps=EPS[: case.n_eps],
            stand_ins=0,
            pictures=False,
            split=SplitSettings(craft=case.craft, held_out=case.held_out),
        ),
    )
    steps: dict[str, dict[str, float]] = {}
    for step in record.steps:
        kind = step.name.split(")")[0].split(" (")[0]
        own = steps.setdefault(kind, {"elapsed_s": 0.0, "peak_mib": 0.0})
        own["elapsed_s"] += step.elapsed_s
        own["peak_mib"] = max(own["peak_mib"], (step.peak_memory_bytes or 0) / 2**20)
    return {"case": asdict(case), "cpu_s": time.process_time() - started, "steps": steps}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="file to write")
    parser.add_argument("--only", nargs="*", default=list(CASES), choices=list(CASES))
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(run_one(arguments.one)))
        return
    found = {}
    print(f"torch {torch.__version__}, {platform.machine()}, 1 thread")
    print(f"{'':30}{'CPU s':>9}{'ratio':>7}{'BEC':>7}{'attacks':>9}{'peak MiB':>10}")
    for name in arguments.only:
        command = [sys.executable, __file__, "--one", name]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found[name] = json.loads(done.stdout.splitlines()[-1])
        steps, cpu_s = found[name]["steps"], found[name]["cpu_s"]
        elapsed_s = sum(step["elapsed_s"] for step in steps.values())
        shares = [steps[kind]["elapsed_s"] / elapsed_s for kind in ("existence", "re-activation")]
        print(
            f"{name:30}{cpu_s:9.1f}{cpu_s / next(iter(found.values()))['cpu_s']:7.2f}"
            f"{shares[0]:7.0%}{shares[1]:9.0%}"
            f"{max(step['peak_mib'] for step in steps.values()):10.0f}",
            flush=True,
        )
    if arguments.json:
        report = {"machine": platform.machine(), "torch": torch.__version__, "cases": found}
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
