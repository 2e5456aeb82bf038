"""`bdaudit init`, and commands run from a project file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from bdaudit.cli import app
from bdaudit.project import json_schema, read_project
from bdaudit.records import AuditRecord, read_record
from tests.cli.twin_files import write_twin_files

FACTORY = f"{Path(__file__).with_name('twin_factory.py')}:twin"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with everything, and a project file for the removed twin."""
    write_twin_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "bdaudit.toml"
    path.write_text(
        f"""
[inputs]
defended = "removed.safetensors"
original = "original.safetensors"
data = "clean.npz"
trigger = "trigger.toml"
reference = ["innocent.safetensors"]
stand_ins = 0
[models]
arch = {json.dumps(FACTORY)}
[attack]
eps = [0.02, 0.05]
passes = 8
[compute]
device = "cpu"
craft = 100
[output]
json = "result.json"
"""
    )
    return path


def record_of(folder: Path) -> AuditRecord:
    record = read_record(folder / "result.json")
    assert isinstance(record, AuditRecord)
    return record


def test_audit_without_arguments_runs_the_project(project: Path) -> None:
    result = run("audit", "--trust-config")
    assert result.exit_code == 0, result.output
    assert "REMOVED" in result.stdout
    assert "using settings from bdaudit.toml" in result.stderr
    record = record_of(project.parent)
    assert record.settings["eps"] == [0.02, 0.05]
    assert record.settings["n_passes"] == 8
    assert record.data.n_craft == 100
    assert "project" in {f.role for f in record.inputs}


def test_the_command_line_wins_over_the_project(project: Path) -> None:
    result = run("audit", "--trust-config", "dormant.safetensors", "--eps", "0.05", "--passes", 4)
    assert result.exit_code == 1, result.output
    record = record_of(project.parent)
    assert record.settings["eps"] == [0.05]
    assert record.settings["n_passes"] == 4
    assert record.model_named("defended").path == "dormant.safetensors"


def test_a_policy_in_the_project_judges(project: Path) -> None:
    project.write_text(project.read_text() + "[policy]\nmin_held_out = 100000\n")
    result = run("audit", "--trust-config")
    assert result.exit_code == 3, result.output
    verdict = record_of(project.parent).verdict
    assert verdict is not None
    assert verdict.policy["min_held_out"] == 100000
    assert verdict.policy_source == "bdaudit.toml"


def test_config_names_another_file_and_paths_are_relative_to_it(
    project: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    assert run("audit").exit_code == 2
    result = run("audit", "--config", project, "--trust-config")
    assert result.exit_code == 0, result.output
    assert (project.parent / "result.json").is_file()


def test_a_python_file_is_not_run_for_an_untrusted_project(project: Path) -> None:
    marker = project.parent / "ran"
    (project.parent / "evil.py").write_text(f"open({str(marker)!r}, 'w')\n")
    project.write_text(project.read_text().replace(FACTORY, "evil.py:twin"))
    refused = run("audit")
    assert refused.exit_code == 4
    assert "models.arch runs the Python file evil.py" in refused.stderr
    assert "--trust-config" in refused.stderr
    assert not marker.exists()
    # Named by the user on the command line it is the user's own word.
    assert run("audit", "--arch", FACTORY, "--stand-ins", 0).exit_code == 0


def test_an_endpoint_on_the_command_line_replaces_the_projects_checkpoint(project: Path) -> None:
    result = run(
        "audit", "--trust-config", "--endpoint", "http://127.0.0.1:9/v2/models/x", "--retries", 0
    )
    assert result.exit_code == 4
    assert "127.0.0.1" in result.stderr


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[attack]\npases = 3\n", "did you mean 'passes'"),
        ("[policy]\nlfit = 3\n", "did you mean 'lift'"),
        ("[", "TOML"),
    ],
)
def test_a_project_that_cannot_be_used_ends_with_4(project: Path, text: str, said: str) -> None:
    project.write_text(text)
    result = run("audit")
    assert result.exit_code == 4
    assert said in result.stderr
    assert "Traceback" not in result.stderr


def test_init_writes_what_audit_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_twin_files(tmp_path)
    (tmp_path / "dormant.safetensors").unlink()
    (tmp_path / "removed.safetensors").rename(tmp_path / "cleaned.safetensors")
    monkeypatch.chdir(tmp_path)
    made = run("init")
    assert made.exit_code == 0, made.output
    assert "guessed inputs.defended = cleaned.safetensors (by its name)" in made.stdout
    assert "review it, then run: bdaudit audit" in made.stdout
    result = run(
        "audit", "--arch", FACTORY, "--craft", 100, "--passes", 8, "--eps", "0.02,0.05", "--quiet",
        "--stand-ins", 0,
    )  # fmt: skip
    assert result.exit_code == 0, result.output


def test_init_never_overwrites_without_force(project: Path) -> None:
    before = project.read_text()
    refused = run("init")
    assert refused.exit_code == 4
    assert "--force" in refused.stderr
    assert project.read_text() == before
    assert run("init", "--force").exit_code == 0
    assert project.read_text() != before


def test_init_does_not_make_a_second_project_file(project: Path) -> None:
    project.unlink()
    shared = project.with_name("pyproject.toml")
    shared.write_text('[tool.bdaudit.inputs]\ndata = "x"\n')
    refused = run("init", "--force")
    assert refused.exit_code == 4
    assert "pyproject.toml" in refused.stderr
    assert not project.exists()


def test_init_prints_the_schema(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = run("init", "--schema")
    assert result.stdout == json_schema()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "precision"), [((), "bfloat16"), (("--precision", "float32"), "float32")]
)
def test_the_old_name_of_the_precision_warns_and_the_command_line_wins(
    project: Path, arguments: tuple[str, ...], precision: str
) -> None:
    project.write_text(project.read_text().replace("[compute]", "[compute]\nbf16 = true"))
    result = run("audit", "--trust-config", *arguments)
    assert result.exit_code == 0, result.output
    said = 'bdaudit: bf16 will be removed in the next release: use precision = "bfloat16"'
    assert result.stderr.count(said) == 1
    compute = record_of(project.parent).settings["compute"]
    assert isinstance(compute, dict)
    assert compute["precision"] == precision


def test_a_value_out_of_range_in_a_project_is_named_with_its_key(project: Path) -> None:
    project.write_text(project.read_text().replace("passes = 8", "passes = 0"))
    result = run("audit", "--trust-config")
    assert result.exit_code == 4
    assert "bdaudit.toml: attack.passes" in result.stderr
    assert "greater than or equal to 1, got 0" in result.stderr


# --- the commands that take one step of an audit -----------------------------------------------

STEPS = """
[existence]
samples = 40
bootstrap = 0
[relearning]
shots = 3
steps = [1, 2]
draws = 1
[inversion]
method = ["universal"]
target = 0
passes = 2
"""


@pytest.fixture
def with_steps(project: Path) -> Path:
    text = project.read_text().replace("eps = [0.02, 0.05]", "eps = [0.05]")
    project.write_text(text + STEPS)
    return project


def settings_of(result: Result, part: str) -> dict[str, Any]:
    assert result.exit_code in (0, 1, 3), result.output
    settings: dict[str, Any] = json.loads(result.stdout)["settings"][part]
    return settings


@pytest.mark.parametrize(
    ("command", "part", "from_file", "option", "overridden"),
    [
        ("score", "existence", ("n_samples", 40), ("--samples", 60), 60),
        ("reactivate", "attack", ("eps", 0.05), ("--eps", "0.01"), 0.01),
        ("relearn", "relearn", ("shots", 3), ("--shots", 4), 4),
        ("invert", "inversion", ("n_passes", 2), ("--passes", 3), 3),
    ],
)
def test_every_step_reads_the_project_and_the_command_line_wins(
    with_steps: Path,
    command: str,
    part: str,
    from_file: tuple[str, object],
    option: tuple[str, object],
    overridden: object,
) -> None:
    name, value = from_file
    result = run(command, "--trust-config", "--json", "-")
    assert settings_of(result, part)[name] == value
    assert "using settings from bdaudit.toml" in result.stderr
    record = json.loads(result.stdout)
    assert record["data"]["n_craft"] == 100
    assert "project" in {each["role"] for each in record["inputs"]}
    assert settings_of(run(command, "--trust-config", "--json", "-", *option), part)[name] == (
        overridden
    )


@pytest.mark.parametrize("command", ["score", "reactivate", "relearn", "invert"])
def test_a_step_does_not_write_over_the_record_of_the_audit(with_steps: Path, command: str) -> None:
    record = with_steps.parent / "result.json"
    record.write_text("of the audit")
    assert run(command, "--trust-config").exit_code in (0, 1, 3)
    assert record.read_text() == "of the audit"


@pytest.mark.parametrize(
    ("command", "table", "key", "meant"),
    [
        ("score", "existence", "sample = 3", "samples"),
        ("reactivate", "attack", "norms = 'l2'", "norm"),
        ("relearn", "relearning", "shot = 3", "shots"),
        ("invert", "inversion", "methods = ['auto']", "method"),
        ("defend", "engine", "worker = 2", "workers"),
    ],
)
def test_a_wrong_key_of_a_step_is_refused_with_the_nearest(
    project: Path, command: str, table: str, key: str, meant: str
) -> None:
    project.write_text(f"[{table}]\n{key}\n")
    refused = run(command, *(("--out", "out") if command == "defend" else ()))
    assert refused.exit_code == 4
    assert f"{table}: unknown key" in refused.stderr
    assert f"did you mean '{meant}'" in refused.stderr


def test_a_step_takes_what_an_audit_may_not_without_trust(with_steps: Path) -> None:
    refused = run("score")
    assert refused.exit_code == 4
    assert "models.arch runs the Python file" in refused.stderr
    assert "--trust-config" in refused.stderr


def test_one_attack_takes_one_radius_and_the_file_may_not_leave_it_open(project: Path) -> None:
    refused = run("reactivate", "--trust-config", "--json", "-")
    assert refused.exit_code == 4
    assert "bdaudit.toml: attack.eps: expected one value, got 0.02, 0.05" in refused.stderr
    assert "choose one by --eps" in refused.stderr
    chosen = run("reactivate", "--trust-config", "--json", "-", "--eps", "0.02")
    assert settings_of(chosen, "attack")["eps"] == 0.02


def test_an_audit_follows_the_tables_of_its_steps(with_steps: Path) -> None:
    result = run("audit", "--trust-config", "--relearn")
    assert result.exit_code == 0, result.output
    settings: Any = record_of(with_steps.parent).settings
    assert settings["relearn"]["shots"] == 3
    assert settings["relearn"]["steps"] == [1, 2]
    assert settings["inversion"]["n_passes"] == 2


def test_keys_that_two_tables_have_do_not_meet(with_steps: Path) -> None:
    # attack.passes is 8, inversion.passes is 2.
    audited = run("audit", "--trust-config")
    assert audited.exit_code == 0, audited.output
    assert record_of(with_steps.parent).settings["n_passes"] == 8
    options = read_project(with_steps).options()
    assert options["passes"] == "8"
    assert read_project(with_steps).options(["inversion"])["passes"] == "2"


def test_a_ray_cluster_in_the_project_needs_trust(project: Path) -> None:
    project.write_text(project.read_text() + "[engine]\nengine = 'ray'\nray_address = 'h:1'\n")
    refused = run("defend", "--out", "out", "--arch", FACTORY, "--json", "-")
    assert refused.exit_code == 4
    assert "engine.ray_address lets the Ray cluster there run code" in refused.stderr
