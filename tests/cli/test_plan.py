"""`--plan`, the first line of a run, and `--budget`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import bdaudit
from bdaudit.auditing.audit import audit_steps
from bdaudit.auditing.planning import first_plan
from bdaudit.cases.settings import AuditSettings, ComputeSettings
from bdaudit.cases.sources import Sources
from bdaudit.measuring.compute import Compute
from bdaudit.measuring.speed import measure_speed
from bdaudit.records import read_record
from bdaudit.relatives.standins import StandInConfig
from tests.cli.test_commands import audit_arguments, files, run
from tests.twins import original_twin, removed_twin, twin_sample

__all__ = ["files"]

CPU = Compute(torch.device("cpu"), 0, 256)


class Slow(nn.Module):
    """Works on every image `n_times` over."""

    def __init__(self, n_times: int) -> None:
        super().__init__()
        self.n_times = n_times
        self.layer = nn.Linear(3 * 64 * 64, 256)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        for _ in range(self.n_times):
            answer: torch.Tensor = self.layer(images.flatten(1))
        return answer


def test_speed_follows_the_model_and_leaves_it_and_the_draws_alone() -> None:
    images = torch.rand(64, 3, 64, 64)
    slow = Slow(40).eval().requires_grad_(False)
    before = {k: v.clone() for k, v in slow.state_dict().items()}
    state = torch.random.get_rng_state()
    measured = measure_speed(slow, images, CPU)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(before[k], v) for k, v in slow.state_dict().items())
    assert not any(p.requires_grad for p in slow.parameters())
    assert not slow.training
    quick = measure_speed(Slow(1).eval().requires_grad_(False), images, CPU)
    # Forty times the work; a busy machine may hide a part of it, not all.
    assert measured.forward > 3 * quick.forward
    assert measured.in_seconds


def plan(**changes: Any) -> Any:
    settings = AuditSettings(
        mode=("white",),
        eps=(0.02, 0.05),
        stand_in=StandInConfig(n_images=100),
        compute=ComputeSettings(device="cpu"),
        **changes.pop("settings", {}),
    )
    sources = Sources.of(
        defended=removed_twin(),
        original=original_twin(),
        data=twin_sample(200, seed=1),
        trigger=bdaudit.from_callable(lambda images: images, 0),
        **changes,
    )
    made = first_plan(audit_steps(sources, settings=settings, planned=True))
    assert made is not None
    return made


def test_a_plan_names_what_is_trained_unasked() -> None:
    short = plan().in_short()
    assert "5 models measured, 3 stand-ins trained for lack of --reference, BEC" in short
    # Two eps: the defended model under three conditions, the original, three stand-ins under two.
    assert "20 white-box attacks" in short
    assert re.search(r"; about .+ on cpu$", short)
    given = plan(settings={"stand_ins": 0, "bec": False}).in_short()
    assert "stand-in" not in given
    assert "BEC" not in given


def test_nothing_is_reckoned_for_whoever_did_not_ask() -> None:
    seen: list[object] = []
    bdaudit.audit(
        removed_twin(),
        original=original_twin(),
        data=twin_sample(200, seed=1),
        trigger=bdaudit.from_callable(lambda images: images, 0),
        settings=AuditSettings(eps=(0.05,), passes=1, stand_ins=0, bec=False, pictures=False),
        listener=lambda event: seen.append(event.plan),
    )
    assert seen
    assert set(seen) == {None}


def test_plan_does_nothing(files: Path, tmp_path: Path) -> None:
    outputs = ["--json", tmp_path / "r.json", "--report", f"html={tmp_path / 'r.html'}"]
    result = run(*audit_arguments(files, "removed", *outputs, "--plan"))
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0] == "plan:"
    assert any(line.startswith("  3 models measured") for line in lines)
    assert any(line.startswith("in all about") for line in lines)
    assert lines[-1] == f"results: {tmp_path / 'r.json'}, {tmp_path / 'r.html'}"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["relearn", "score"])
def test_stand_ins_are_announced_where_a_verb_makes_them(files: Path, command: str) -> None:
    arguments = audit_arguments(files, "dormant")
    original = ["--original", files / "original.safetensors"] if command == "score" else []
    inputs = [*arguments[4:8], "--arch", arguments[arguments.index("--arch") + 1]]
    result = run(command, arguments[1], *original, *inputs, "--device", "cpu", "--plan")
    assert result.exit_code == 0, result.output
    n = 1 if command == "score" else 3
    assert f"{n} stand-in{'s' * (n > 1)} trained for lack of --reference" in result.stdout


def test_invert_and_defend_plan_too(files: Path, tmp_path: Path) -> None:
    arguments = audit_arguments(files, "dormant")
    data = [*arguments[4:6], "--arch", arguments[arguments.index("--arch") + 1]]
    searched = run("invert", arguments[3], *data, "--device", "cpu", "--plan")
    assert searched.exit_code == 0, searched.output
    assert "3 stand-ins trained for lack of --reference" in searched.stdout
    assert re.search(r"the search for a trigger .* unknown", searched.stdout)
    out = tmp_path / "defended"
    defended = run(
        "defend",
        *(files / "original.safetensors", *arguments[4:8], *data[2:], "--device", "cpu"),
        *("--methods", "ft,anp", "--out", out, "--plan"),
    )
    assert defended.exit_code == 0, defended.output
    assert "2 defences (finetune, anp)" in defended.stdout
    assert "6 stand-ins trained" in defended.stdout
    assert not out.exists()


def test_the_first_line_of_a_run_is_its_plan(files: Path) -> None:
    result = run(*audit_arguments(files, "removed"))
    first = result.stderr.splitlines()[0]
    assert first.startswith("bdaudit: plan: 3 models measured, ")
    assert first.endswith("; results: shown here, kept nowhere (--json)")


def test_a_budget_sets_what_nobody_said(files: Path, tmp_path: Path) -> None:
    arguments = audit_arguments(files, "removed", "--json", tmp_path / "r.json")
    for name in ("--passes", "--stand-ins"):
        at = arguments.index(name)
        del arguments[at : at + 2]
    assert run(*arguments, "--budget", "quick", "--quiet").exit_code == 0
    quick = read_record(tmp_path / "r.json").settings
    assert (quick["stand_ins"], quick["measure_bec"]) == (0, False)
    said = ["--passes", 24, "--stand-ins", 0, "--bec", "--restarts", 1, "--placebos", 0]
    assert run(*arguments, *said, "--budget", "thorough", "--quiet").exit_code == 0
    thorough = read_record(tmp_path / "r.json").settings
    assert (thorough["n_passes"], thorough["restarts"]) == (24, 1)
    assert thorough["relearn"] is not None
