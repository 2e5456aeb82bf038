"""Every command as a user types it, in process and as a real subprocess."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from typer.core import TyperGroup
from typer.main import get_command
from typer.testing import CliRunner, Result

from bdaudit.cli import app
from bdaudit.models import save_model
from bdaudit.records import ReactivationRecord, read_record
from tests.cli.twin_files import write_twin_files
from tests.twins import TwinNet, original_twin

FACTORY = f"{Path(__file__).with_name('twin_factory.py')}:twin"


def run(*arguments: object, env: dict[str, str] | None = None) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments], env=env)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twins, a sample and a trigger on disk, as a user would have them."""
    return write_twin_files(tmp_path_factory.mktemp("files"))


def audit_arguments(files: Path, defended: str, *more: object) -> list[object]:
    return [
        "audit",
        files / f"{defended}.safetensors",
        "--original",
        files / "original.safetensors",
        "--data",
        files / "clean.npz",
        "--trigger",
        files / "trigger.toml",
        "--reference",
        files / "innocent.safetensors",
        "--arch",
        FACTORY,
        "--device",
        "cpu",
        "--craft",
        100,
        "--passes",
        8,
        "--eps",
        "0.02,0.05",
        "--stand-ins",
        0,
        *more,
    ]


@pytest.mark.parametrize(
    ("defended", "code", "word"),
    [("removed", 0, "REMOVED"), ("dormant", 1, "DORMANT"), ("innocent", 0, "REMOVED")],
)
def test_audit_exits_with_the_code_of_its_verdict(
    files: Path, defended: str, code: int, word: str
) -> None:
    # The innocent twin is its own reference here: the same weights, so that is left out.
    result = run(*audit_arguments(files, defended))
    assert result.exit_code == code, result.output
    assert word in result.stdout
    assert ("left out: reference" in result.stdout) == (defended == "innocent")


def test_an_active_backdoor_fails(files: Path, tmp_path: Path) -> None:
    net = original_twin()
    with torch.no_grad():
        net.linear.weight *= 1.01
    path = tmp_path / "active.safetensors"
    save_model(path, net, arch=None, num_classes=4, image_shape=(1, 8, 8))
    arguments = audit_arguments(files, "dormant")
    arguments[1] = path
    result = run(*arguments)
    assert result.exit_code == 1
    assert "ACTIVE" in result.stdout


def test_json_goes_to_a_file_and_report_redraws_it(files: Path, tmp_path: Path) -> None:
    target = tmp_path / "result.json"
    result = run(*audit_arguments(files, "dormant", "--json", target))
    record = read_record(target)
    assert record.command is not None
    assert {f.role for f in record.inputs} >= {"defended", "original", "data", "trigger"}
    redrawn = run("report", target)
    assert redrawn.exit_code == result.exit_code == 1
    assert redrawn.stdout == result.stdout
    assert [p.name for p in tmp_path.iterdir()] == ["result.json"]


def test_json_on_stdout_is_json_alone_even_on_a_narrow_terminal(files: Path) -> None:
    result = run(
        *audit_arguments(files, "dormant", "--json", "-"), env={"COLUMNS": "40", "TERM": "dumb"}
    )
    document = json.loads(result.stdout)
    assert document["verdict"]["outcome"] == "dormant"
    assert result.exit_code == 1


def test_quiet_says_one_line(files: Path) -> None:
    result = run(*audit_arguments(files, "dormant", "--quiet"))
    assert result.stdout.startswith("dormant: The trigger")
    assert result.stdout.count("\n") == 1
    assert result.stderr == ""


def test_a_policy_file_changes_the_verdict(files: Path, tmp_path: Path) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text("min_held_out = 100000\n")
    result = run(*audit_arguments(files, "removed", "--policy", policy))
    assert result.exit_code == 3
    policy.write_text("lfit = 0.2\n")
    result = run(*audit_arguments(files, "removed", "--policy", policy))
    assert result.exit_code == 4
    assert "did you mean 'lift'" in result.stderr


def test_score_and_reactivate_report_and_save(files: Path, tmp_path: Path) -> None:
    arguments = audit_arguments(files, "dormant")
    scored = run("score", *arguments[1:12], "--device", "cpu", "--json", tmp_path / "score.json")
    assert scored.exit_code == 0, scored.output
    assert "layer1.conv2" in scored.stdout
    delta = tmp_path / "delta.safetensors"
    woken = run(
        "reactivate",
        files / "dormant.safetensors",
        "--mode",
        "white",
        "--eps",
        "0.05",
        "--data",
        files / "clean.npz",
        "--trigger",
        files / "trigger.toml",
        "--target",
        0,
        "--arch",
        FACTORY,
        "--save",
        delta,
        "--json",
        tmp_path / "woken.json",
    )
    assert woken.exit_code == 0, woken.output
    from safetensors.torch import load_file

    assert load_file(delta)["delta"].shape == (1, 1, 8, 8)
    for name in ("score.json", "woken.json"):
        assert run("report", tmp_path / name).exit_code == 0


def test_stand_ins_are_shown_and_labelled(files: Path, tmp_path: Path) -> None:
    """Too few images to learn anything from, so it is made, shown, and left out."""
    arguments = audit_arguments(files, "dormant", "--json", tmp_path / "audit.json")
    arguments[arguments.index("--stand-ins") + 1] = 1
    audited = run(*arguments, "--stand-in-images", 64)
    assert audited.exit_code == 1, audited.output
    shown = " ".join(audited.stdout.split())
    assert "a substitute innocent model, made from clean images" in shown
    assert "left out: stand-in 1" in shown
    assert "stand_in_left_out" in audited.stdout
    record = read_record(tmp_path / "audit.json")
    assert record.model_named("stand-in 1").stand_in
    assert record.settings["stand_in"]["n_images"] == 64
    scored = run(
        "score", *arguments[1:8], *arguments[10:12], "--stand-in-images", 64, "--craft", 100
    )
    assert scored.exit_code == 0, scored.output
    assert "left out: stand-in 1" in " ".join(scored.stdout.split())


def test_a_saved_delta_is_a_trigger_for_the_next_command(files: Path, tmp_path: Path) -> None:
    delta = tmp_path / "delta.safetensors"
    arguments = audit_arguments(files, "dormant")
    assert (
        run(
            "reactivate", arguments[1], *arguments[4:8], "--eps", "0.05", "--arch", FACTORY,
            "--save", delta,
        ).exit_code
        == 0
    )  # fmt: skip
    trigger = tmp_path / "again.toml"
    trigger.write_text(
        'kind = "additive"\n[target]\nlabel = 0\n[additive]\ndelta = "delta.safetensors"\n'
    )
    strip = tmp_path / "strip.png"
    result = run("trigger", "preview", trigger, "--data", files / "clean.npz", "--out", strip)
    assert result.exit_code == 0, result.output
    with Image.open(strip) as picture:
        assert picture.width > 100


def test_a_preview_says_how_its_images_were_read(files: Path, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    for label in range(4):
        (folder / f"c{label}").mkdir(parents=True)
        Image.new("RGB", (8, 8), (10, 60 * label, 90)).save(folder / f"c{label}" / "one.png")
    (folder / "c1" / "notes.txt").write_text("left by somebody")
    arguments = ("--data", folder, "--image-shape", "1,8,8", "--out", tmp_path / "strip.png")
    result = run("trigger", "preview", files / "trigger.toml", *arguments)
    assert result.exit_code == 0, result.output
    said = [line for line in result.stdout.splitlines() if line.startswith("note: images: ")]
    assert any("grey" in line for line in said), result.stdout
    assert any("notes.txt" in line for line in said), result.stdout
    assert result.stdout.splitlines()[-1].startswith("wrote ")


def test_inspect_tells_safe_from_unsafe(files: Path, tmp_path: Path) -> None:
    safe = run("inspect", files / "dormant.safetensors")
    assert safe.exit_code == 0
    assert "safe to open" in safe.stdout
    hostile = tmp_path / "hostile.pt"
    marker = tmp_path / "ran"

    class Hostile:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch {marker}",)

    torch.save({"state_dict": Hostile()}, hostile)
    refused = run("inspect", hostile, "--json", "-")
    assert refused.exit_code == 4
    assert "posix.system" in json.loads(refused.stdout)["wanted_globals"]
    arguments = audit_arguments(files, "dormant")
    arguments[1] = hostile
    audited = run(*arguments)
    assert audited.exit_code == 4
    assert "system" in audited.stderr
    assert not marker.exists()


@pytest.mark.parametrize(
    ("change", "code", "said"),
    [
        ({1: "nowhere.safetensors"}, 4, "nowhere.safetensors"),
        ({5: "nowhere"}, 4, "nowhere"),
        ({7: "nowhere.toml"}, 4, "nowhere.toml"),
        ({11: "bdaudit/preactresnet18_w8"}, 4, "bdaudit/preactresnet18_w8"),
        ({13: "cuda:99"}, 2, "cuda:99"),
        ({19: "zero"}, 2, "zero"),
        ({19: "8"}, 2, "8/255"),
    ],
)
def test_what_cannot_be_used_is_said_in_one_line(
    files: Path, tmp_path: Path, change: dict[int, str], code: int, said: str
) -> None:
    target = tmp_path / "result.json"
    arguments = audit_arguments(files, "dormant", "--json", target)
    for position, value in change.items():
        arguments[position] = value
    result = run(*arguments)
    assert result.exit_code == code, result.output
    assert said in result.stderr
    assert len(result.stderr.strip().splitlines()) <= 12
    assert "Traceback" not in result.stderr
    assert not list(tmp_path.iterdir()), "nothing half-written"


def test_usage_errors_exit_with_2(files: Path) -> None:
    assert run("audit").exit_code == 2
    assert run("audit", files / "dormant.safetensors", "--bogus").exit_code == 2
    assert run("nonsense").exit_code == 2
    inputs = ("--data", files / "clean.npz", "--trigger", files / "trigger.toml")
    assert run("reactivate", files / "dormant.safetensors", *inputs, "--eps", "1,2").exit_code == 2


@pytest.mark.parametrize(
    ("defended", "options"),
    [("x.pt", ("--mode", "query")), ("x.pt", ("--mode", "transfer")), ("x.onnx", ())],
)
def test_a_single_attack_refuses_an_objective_that_its_mode_would_drop(
    defended: str, options: tuple[str, ...], tmp_path: Path
) -> None:
    for name in (defended, "d", "t"):
        (tmp_path / name).touch()
    attack = ("--data", tmp_path / "d", "--trigger", tmp_path / "t", "--eps", "0.1")
    result = run("reactivate", tmp_path / defended, *attack, "--objective", "specific", *options)
    assert result.exit_code == 2
    assert "only mode white supports" in result.stderr


def test_a_single_attack_of_eps_0_leaves_what_the_trigger_does_alone(
    files: Path, tmp_path: Path
) -> None:
    inputs = ("--data", files / "clean.npz", "--trigger", files / "trigger.toml", "--arch", FACTORY)
    out = tmp_path / "record.json"
    result = run("reactivate", files / "dormant.safetensors", *inputs, "--eps", "0", "--json", out)
    assert result.exit_code == 0, result.output
    record = read_record(out)
    assert isinstance(record, ReactivationRecord)
    attacked = {run.asr.successes for run in record.runs if run.condition == "trigger"}
    assert attacked == {baseline.asr.successes for baseline in record.baselines}


def test_an_unwritable_destination_is_noticed_before_the_work(files: Path, tmp_path: Path) -> None:
    result = run(*audit_arguments(files, "dormant", "--json", tmp_path / "no" / "result.json"))
    assert result.exit_code == 4
    assert "does not exist" in result.stderr


def test_debug_shows_the_traceback(files: Path) -> None:
    arguments = audit_arguments(files, "dormant", "--debug")
    arguments[1] = "nowhere.safetensors"
    result = run(*arguments)
    assert result.exit_code == 4
    assert "Traceback" in result.stderr


def test_an_unexpected_exception_is_an_internal_error(files: Path, tmp_path: Path) -> None:
    """A factory that raises something of its own: the user's code, in the middle of ours."""
    broken = tmp_path / "broken.py"
    broken.write_text("def twin(**_):\n    raise MemoryError\n")
    arguments = audit_arguments(files, "dormant")
    arguments[11] = f"{broken}:twin"
    result = run(*arguments)
    assert result.exit_code in (4, 70)
    assert "Traceback" not in result.stderr


def command(arguments: list[object]) -> list[str]:
    return [sys.executable, "-m", "bdaudit", *(str(a) for a in arguments)]


def environment(**changes: str) -> dict[str, str]:
    root = Path(__file__).parents[2]
    return os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"} | changes


@pytest.mark.parametrize(("defended", "code"), [("removed", 0), ("dormant", 1)])
def test_as_a_subprocess_piped_without_colour_or_progress(
    files: Path, defended: str, code: int
) -> None:
    done = subprocess.run(
        command(audit_arguments(files, defended)),
        capture_output=True,
        env=environment(COLUMNS="60"),
        check=False,
        timeout=120,
    )
    assert done.returncode == code, done.stderr
    assert b"\x1b[" not in done.stdout + done.stderr
    assert all(line.startswith(b"bdaudit: ") for line in done.stderr.splitlines()), done.stderr
    assert max(map(len, done.stdout.decode().splitlines())) <= 60


@pytest.mark.parametrize("defended", ["removed", "dormant"])
def test_a_reader_that_goes_away_has_an_exit_code_that_is_no_verdict(
    files: Path, defended: str
) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        command(audit_arguments(files, defended)),
        stdout=writing,
        stderr=subprocess.PIPE,
        env=environment(),
        check=False,
        timeout=120,
    )
    os.close(writing)
    assert done.returncode == 141, done.stderr
    assert b"cannot be written" not in done.stderr
    assert b"Traceback" not in done.stderr


def test_without_utf8_the_report_is_plain_ascii(files: Path) -> None:
    done = subprocess.run(
        command(audit_arguments(files, "removed")),
        capture_output=True,
        env=environment(PYTHONIOENCODING="ascii", PYTHONUTF8="0"),
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    done.stdout.decode("ascii")


def test_ctrl_c_leaves_nothing_behind(
    files: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    target = tmp_path / "result.json"
    state = tmp_path_factory.mktemp("elsewhere") / "state"
    # Passes end when all is won or nothing moves; restarts are all made.
    long = audit_arguments(files, "dormant", "--json", target, "--restarts", 1_000_000)
    process = subprocess.Popen(
        command([*long, "--state", state]),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
        # A script in the background hands down an ignored SIGINT; a terminal does not.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    # What the audit writes there once its inputs are open and the work begins.
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (state / "inputs.json").exists():
        time.sleep(0.1)
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert b"interrupted" in stderr
    assert b"Traceback" not in stderr
    assert not list(tmp_path.iterdir())


def test_help_does_not_load_torch() -> None:
    code = "import sys; from bdaudit.cli import app; sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], env=environment(), check=False)
    assert done.returncode == 0
    for name in ("audit", "score", "reactivate", "inspect", "report", "demo", "trigger"):
        assert run(name, "--help").exit_code == 0


def commands(group: TyperGroup, *path: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, command in group.commands.items():
        if isinstance(command, TyperGroup):
            yield from commands(command, *path, name)
        else:
            yield (*path, name), command


def test_help_swallows_no_word() -> None:
    app_group = get_command(app)
    assert isinstance(app_group, TyperGroup)
    seen = 0
    for path, command in commands(app_group):
        # In one column all words of a description follow one another, whatever stands beside it.
        shown = run(*path, "--help", env={"COLUMNS": "400"}).stdout
        for parameter in command.params:
            if getattr(parameter, "hidden", False):
                continue  # an old name, which the help leaves out
            text = (getattr(parameter, "help", None) or "").replace("\\[", "[")
            assert text in shown, f"{' '.join(path)}: {parameter.name}"
            seen += "[default" in text
    assert seen > 50


def test_the_version_is_the_packages() -> None:
    from bdaudit import __version__

    assert run("--version").stdout.strip() == f"bdaudit {__version__}"


def test_the_twin_factory_builds_what_the_files_hold() -> None:
    assert TwinNet().state_dict().keys() == original_twin().state_dict().keys()


def test_a_whole_pickled_module_is_scored_by_its_tensors(files: Path, tmp_path: Path) -> None:
    torch.save(original_twin(), tmp_path / "whole.pt")
    (tmp_path / "whole.toml").write_text("image_shape = [1, 8, 8]\nnum_classes = 4\n")
    arguments = [
        "score",
        tmp_path / "whole.pt",
        *("--data", files / "clean.npz", "--trigger", files / "trigger.toml"),
        *("--original", files / "original.safetensors", "--arch", FACTORY),
        *("--device", "cpu", "--stand-ins", 0),
    ]
    refused = run(*arguments)
    assert refused.exit_code == 4
    assert "--read-pickled-module" in refused.stderr.replace("\n", " ")
    result = run(*arguments, "--read-pickled-module", "--json", tmp_path / "r.json")
    assert result.exit_code == 0, result.output
    record = json.loads((tmp_path / "r.json").read_text())
    defended, original = record["models"][:2]
    assert defended["weights_sha256"] == original["weights_sha256"]
    assert any("whole pickled module" in note for note in defended["notes"])
    assert record["sources"]["model_options"]["read_pickled_module"] is True
    assert "whole pickled module" in result.stdout.replace("\n", " ")
