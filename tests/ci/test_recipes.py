"""The recipes for pipelines, run as the pipelines would run them, on the demonstration's files."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from bdaudit.records import AuditRecord, read_record

ROOT = Path(__file__).parents[2]
ACTION = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))
GITLAB = yaml.safe_load((ROOT / "examples/ci/gitlab-ci.yml").read_text(encoding="utf-8"))
STEPS = {step["name"]: step for step in ACTION["runs"]["steps"]}
# The smallest budget that goes through every step of an audit.
PROJECT = """\
[inputs]
defended = "{defended}"
original = "original.safetensors"
reference = ["innocent-1.safetensors"]
data = "clean.npz"
trigger = "trigger.toml"
stand_ins = 0
[attack]
eps = [0.02]
passes = 3
bec = false
relearn = false
[compute]
craft = 60
held_out = 300
device = "cpu"
"""


@pytest.fixture
def workspace(demo_files: Path, tmp_path: Path) -> Path:
    """A repository with a release candidate that is dormant."""
    folder = tmp_path / "workspace"
    shutil.copytree(demo_files, folder)
    (folder / "bdaudit.toml").write_text(PROJECT.format(defended="dormant.safetensors"))
    return folder


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """A virtual environment that holds what is under test."""
    bin_folder = tmp_path / "runner" / "bdaudit-venv" / "bin"
    bin_folder.mkdir(parents=True)
    script = bin_folder / "bdaudit"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m bdaudit "$@"\n')
    script.chmod(0o755)
    return bin_folder


def environment(**more: object) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("BDAUDIT")}
    return kept | {"OMP_NUM_THREADS": "1"} | {k: str(v) for k, v in more.items()}


def run_step(name: str, inputs: dict[str, str], workspace: Path) -> tuple[int, dict[str, str], str]:
    """Run a shell step of the action as the runner does.

    Returns:
        Its exit code, its outputs, and what it printed.
    """
    runner = workspace.parent / "runner"
    runner.mkdir(exist_ok=True)
    step = STEPS[name]
    values = {k: str(v.get("default", "")) for k, v in ACTION["inputs"].items()} | inputs

    def resolve(text: str) -> str:
        text = re.sub(r"\$\{\{ inputs\.([\w-]+) \}\}", lambda m: values[m[1]], text)
        return text.replace("${{ steps.python.outputs.python-path }}", sys.executable)

    script, output, summary = (runner / n for n in ("script.sh", "output", "summary"))
    script.write_text(step["run"])
    output.write_text("")
    summary.write_text("")
    ran = subprocess.run(
        ["bash", "--noprofile", "--norc", "-e", "-o", "pipefail", str(script)],
        cwd=workspace,
        env=environment(
            **{k: resolve(v) for k, v in step.get("env", {}).items()},
            GITHUB_OUTPUT=output,
            GITHUB_STEP_SUMMARY=summary,
            GITHUB_ACTION_PATH=ROOT,
            RUNNER_TEMP=runner,
        ),
        capture_output=True,
        text=True,
        timeout=300,
    )
    outputs = dict(line.split("=", 1) for line in output.read_text().splitlines())
    return ran.returncode, outputs, ran.stdout + ran.stderr


# -- GitHub ----------------------------------------------------------------------------------------


def test_the_action_audits_and_says_so(workspace: Path, tools: Path) -> None:
    code, outputs, printed = run_step("Audit", {}, workspace)
    assert code == 1, printed
    assert "::error title=bdaudit::the release does not pass (exit code 1)" in printed
    record = read_record(workspace / outputs["json"])
    assert isinstance(record, AuditRecord)
    assert record.verdict is not None
    assert outputs["verdict"] == record.verdict.outcome == "dormant"
    assert outputs["release"] == "fail"
    assert outputs["exit_code"] == "1"
    assert float(outputs["lift"]) > 0.10
    for name in ("json", "html", "sarif", "junit", "markdown"):
        assert (workspace / outputs[name]).is_file(), name
    summary = (workspace.parent / "runner" / "summary").read_text()
    assert summary.startswith("### :x: bdaudit: dormant")
    # Every output the action declares comes from a line that was written.
    declared = {o["value"] for o in ACTION["outputs"].values()}
    written = {f"${{{{ steps.audit.outputs.{name} }}}}" for name in outputs}
    assert declared <= written


def test_the_job_goes_on_where_it_is_told_to(workspace: Path, tools: Path) -> None:
    inner = workspace / "models"
    inner.mkdir()
    for file in workspace.iterdir():
        if file.is_file():
            file.rename(inner / file.name)
    inputs = {"fail": "false", "working-directory": "models", "arguments": "--seed\n1\r\n\n"}
    code, outputs, printed = run_step("Audit", inputs, workspace)
    assert code == 0, printed
    assert outputs["exit_code"] in ("1", "3")
    assert outputs["html"] == "models/bdaudit-report/bdaudit.html"
    record = read_record(workspace / outputs["json"])
    assert record.seed == 1


def test_an_input_that_cannot_be_used_fails_the_job_either_way(
    workspace: Path, tools: Path
) -> None:
    reports = workspace / "bdaudit-report"
    reports.mkdir()
    (reports / "bdaudit.env").write_text("verdict=removed\n")  # of an earlier run
    inputs = {"fail": "false", "arguments": "--trigger\nno such file.toml"}
    code, outputs, printed = run_step("Audit", inputs, workspace)
    assert code == 4
    assert "no such file.toml" in printed  # one line, one argument
    assert outputs == {"exit_code": "4"}


@pytest.mark.parametrize("bad", ["a\nb", "x=$(touch owned)"])
def test_inputs_are_never_run(workspace: Path, tools: Path, bad: str) -> None:
    code, outputs, _ = run_step("Audit", {"reports": bad}, workspace)
    assert (code, outputs) == (2, {})
    code, outputs, _ = run_step(
        "Audit", {"arguments": "$(touch owned)\n`touch owned`\n; touch owned"}, workspace
    )
    assert code == 2
    code, outputs, _ = run_step("Name the installation", {"extras": "x]; touch owned"}, workspace)
    assert (code, outputs) == (2, {})
    assert not list(workspace.parent.rglob("owned"))


def test_no_expression_stands_in_a_script() -> None:
    for step in STEPS.values():
        assert "${{" not in step.get("run", "")


def test_an_installation_is_found_again_and_named_by_its_content(
    workspace: Path, tools: Path
) -> None:
    code, _, printed = run_step("Install", {}, workspace)
    assert code == 0
    assert re.fullmatch(r"bdaudit \d+\.\d+\.\d+\n", printed)  # nothing was installed
    first, again, other = (
        run_step("Name the installation", {"extras": extras}, workspace)[1]["digest"]
        for extras in ("", "", "onnx,timm")
    )
    assert first == again != other
    assert re.fullmatch(r"[0-9a-f]{32}", first)


def test_actions_are_pinned_to_commits() -> None:
    used = [step["uses"] for step in STEPS.values() if "uses" in step]
    assert len(used) == 2
    assert all(re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", reference) for reference in used)


# -- GitLab and make -------------------------------------------------------------------------------


def test_the_gitlab_job_audits(workspace: Path) -> None:
    job: dict[str, Any] = GITLAB[".bdaudit"]
    variables = {k: v for k, v in job["variables"].items() if k != "PIP_CACHE_DIR"}
    binary = workspace / ".bdaudit-venv" / "bin" / "bdaudit"
    binary.parent.mkdir(parents=True)
    binary.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m bdaudit "$@"\n')
    binary.chmod(0o755)
    ran = subprocess.run(
        ["bash", "-e", "-c", "\n".join(job["script"])],
        cwd=workspace,
        env=environment(**variables | {"BDAUDIT_ARGUMENTS": "--seed 2"}),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ran.returncode in (1, 3), ran.stderr
    reports = job["artifacts"]["reports"]
    for kind in ("junit", "dotenv"):
        path = workspace / reports[kind].replace("$BDAUDIT_REPORTS", variables["BDAUDIT_REPORTS"])
        assert path.is_file()
    assert read_record(workspace / "bdaudit-report/bdaudit.json").seed == 2


@pytest.mark.parametrize(
    ("package", "accepted"),
    [
        ("bdaudit", False),
        ("", False),
        ("bdaudit[timm]", False),
        ("bdaudit==1.0", False),
        ("bdaudit/../x", False),
        ("https://example.org/bdaudit-1.0-py3-none-any.whl?x", False),
        ("https://example.org/bdaudit-1.0-py3-none-any.whl", False),
        ("wheels/bdaudit-1.0-py3-none-any.whl", True),
        ("wheels/bdaudit-1.0-py3-none-any.whl[timm,onnx]", True),
        ("./bdaudit", True),
        (f"https://example.org/bdaudit-1.0-py3-none-any.whl#sha256={'a' * 64}", True),
        (f"bdaudit[timm] @ https://example.org/b.whl#sha256={'a' * 64}", True),
    ],
)
def test_the_gitlab_job_installs_what_the_user_names_and_no_bare_name(
    workspace: Path, package: str, accepted: bool
) -> None:
    check_of_name = GITLAB[".bdaudit"]["before_script"][0]
    ran = subprocess.run(
        ["bash", "-e", "-c", check_of_name],
        cwd=workspace,
        env=environment(BDAUDIT_PACKAGE=package),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (ran.returncode == 0) == accepted, ran.stderr
    assert GITLAB[".bdaudit"]["variables"]["BDAUDIT_PACKAGE"] == ""


def make(workspace: Path, tools: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    shutil.copy(ROOT / "examples/ci/Makefile", workspace)
    return subprocess.run(
        ["make", "release", f"BDAUDIT={tools / 'bdaudit'}", *arguments],
        cwd=workspace,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("make") is None, reason="no make on this machine")
def test_make_releases_nothing_that_was_not_audited(workspace: Path, tools: Path) -> None:
    ran = make(workspace, tools, "MODEL=dormant.safetensors")
    assert ran.returncode != 0
    assert "releasing" not in ran.stdout
    record = workspace / "bdaudit-report" / "bdaudit.json"
    audited_at = record.stat().st_mtime_ns
    # An audit that passes, of another file: the record speaks for that file only.
    (workspace / "bdaudit.toml").write_text(PROJECT.format(defended="removed.safetensors"))
    swapped = make(workspace, tools, "MODEL=innocent-2.safetensors")
    assert swapped.returncode != 0
    assert "releasing" not in swapped.stdout
    assert record.stat().st_mtime_ns > audited_at
    released = make(workspace, tools, "MODEL=removed.safetensors")
    assert released.returncode == 0, released.stdout + released.stderr
    assert "releasing removed.safetensors" in released.stdout


# -- Linters ---------------------------------------------------------------------------------------


def check(*command: str) -> str:
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    return "" if ran.returncode == 0 else ran.stdout + ran.stderr


@pytest.mark.parametrize(
    ("schema", "file", "more"),
    [
        ("vendor.github-actions", "action.yml", ()),
        (
            "vendor.gitlab-ci",
            "examples/ci/gitlab-ci.yml",
            ("--data-transform", "gitlab-ci"),
        ),
    ],
)
def test_the_files_follow_their_schemas(schema: str, file: str, more: tuple[str, ...]) -> None:
    tool = str(Path(sys.executable).with_name("check-jsonschema"))
    assert check(tool, "--builtin-schema", schema, *more, file) == ""


def test_the_dockerfile_passes_its_linter() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    assert check(str(hadolint), "--no-color", "Dockerfile") == ""


def test_the_image_is_pinned_small_and_nobodys_root() -> None:
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    bases = [line.split()[1] for line in lines if line.startswith("FROM")]
    assert all(re.fullmatch(r"python:[\w.-]+-slim-\w+@sha256:[0-9a-f]{64}", b) for b in bases)
    assert len(set(bases)) == 1 < len(bases)  # built in one stage, shipped in another
    assert "USER 10001:10001" in lines
    copied = {word for line in lines if line.startswith("COPY") for word in line.split()[1:-1]}
    allowed = (ROOT / ".dockerignore").read_text().split()
    for name in copied - {"--from=build", "/opt/bdaudit"}:
        assert (ROOT / name).exists()
        assert f"!{name.removeprefix('./')}" in allowed


def test_shell_scripts_pass_their_linter(tmp_path: Path) -> None:
    shellcheck = str(Path(sys.executable).with_name("shellcheck"))
    scripts = {name: step["run"] for name, step in STEPS.items() if "run" in step}
    scripts["gitlab"] = "\n".join(GITLAB[".bdaudit"]["script"])
    for name, text in scripts.items():
        path = tmp_path / f"{name}.sh"
        path.write_text(text)
        # SC2086: the GitLab job splits its arguments on purpose.
        assert check(shellcheck, "--shell=bash", "--exclude=SC2086", str(path)) == "", name
