from __future__ import annotations

from pathlib import Path

import pytest

import bdaudit
from bdaudit.errors import PolicyError, ProjectError
from bdaudit.project import find_project, read_project
from bdaudit.verdict import read_policy


def write(folder: Path, text: str, name: str = "bdaudit.toml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_values_come_by_option_name_as_the_command_takes_them(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        """
policy = "limits.toml"
[inputs]
defended = "models/d.safetensors"
reference = ["a.pt", "https://example.org/b.pt"]
data = "s3://bucket/clean.npz"
target = 3
[models]
arch = "torchvision/resnet18"
input_size = 32
mean = [0.5, "1/4"]
[attack]
eps = [0.01, "2/255"]
bec = false
[query]
cold = true
[output]
json = "out/result.json"
report = ["html=out/r.html", "json=-"]
""",
    )
    assert read_project(path).options() == {
        "policy": str(tmp_path / "limits.toml"),
        "defended": str(tmp_path / "models/d.safetensors"),
        "reference": [str(tmp_path / "a.pt"), "https://example.org/b.pt"],
        "data": "s3://bucket/clean.npz",
        "target": "3",
        "arch": "torchvision/resnet18",
        "input_size": "32",
        "mean": "0.5,1/4",
        "eps": ["0.01", "2/255"],
        "bec": False,
        "cold": True,
        "json": str(tmp_path / "out/result.json"),
        "report": [f"html={tmp_path}/out/r.html", "json=-"],
    }


def test_a_value_alone_stands_for_a_list_of_one(tmp_path: Path) -> None:
    text = '[inputs]\nreference = "a.pt"\n[attack]\nmode = "white"\neps = 0.02\n'
    project = read_project(write(tmp_path, text))
    assert project.options() == {
        "reference": [str(tmp_path / "a.pt")],
        "mode": ["white"],
        "eps": ["0.02"],
    }
    assert project.file.attack.mode == ("white",)
    with pytest.raises(ProjectError, match=r"attack\.mode\.0: .*'white'.*got 'wite'"):
        read_project(write(tmp_path, '[attack]\nmode = "wite"\n'))


def test_a_python_file_is_relative_to_the_project_too(tmp_path: Path) -> None:
    path = write(tmp_path, '[models]\narch = "net.py:build"\n')
    assert read_project(path).options() == {"arch": str(tmp_path / "net.py:build")}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[inputz]\n", "did you mean 'inputs'"),
        ('[inputs]\norignal = "a"\n', "inputs: unknown key 'orignal'; did you mean 'original'"),
        ("[inputs]\nseed = 1\n", r"'seed' belongs in \[compute\]"),
        ("passes = 3\n", r"'passes' belongs in \[attack\]"),
        ('[attack]\npasses = "3"\n', "attack.passes: .*valid integer, got '3'"),
        ("[attack]\npasses = 2.5\n", "attack.passes"),
        ('[attack]\nmode = ["grey"]\n', "attack.mode"),
        ("[inputs]\ndefended = 3\n", "inputs.defended: .*string"),
        ("inputs = 3\n", "inputs"),
        ("= 3", "TOML"),
    ],
)
def test_what_is_wrong_is_said_with_file_and_key(tmp_path: Path, text: str, said: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ProjectError, match=said) as caught:
        read_project(path)
    assert str(path) in str(caught.value)


def test_a_wrong_policy_is_a_policy_error(tmp_path: Path) -> None:
    path = write(tmp_path, "[policy]\nlfit = 0.2\n")
    with pytest.raises(PolicyError, match="did you mean 'lift'"):
        read_project(path)


def test_a_policy_in_the_file_is_given_by_the_file_and_read_from_it(tmp_path: Path) -> None:
    path = write(tmp_path, "[policy]\nlift = 0.2\n")
    assert read_project(path).options()["policy"] == str(path)
    assert read_policy(path).lift == 0.2
    shared = write(tmp_path, "[tool.bdaudit.policy]\nlift = 0.3\n", "pyproject.toml")
    assert read_policy(shared).lift == 0.3
    write(tmp_path, "lift = 0.4\n", "limits.toml")
    assert read_policy(write(tmp_path, 'policy = "limits.toml"\n')).lift == 0.4


def test_a_policy_that_is_not_there_is_not_the_default_one(tmp_path: Path) -> None:
    """A gate pointed at a file without limits must not pass by the default ones."""
    for path in (
        write(tmp_path, "[attack]\npasses = 3\n"),
        write(tmp_path, "[tool.other]\nx = 1\n", "pyproject.toml"),
    ):
        with pytest.raises(PolicyError, match="no policy"):
            read_policy(path)


def test_the_project_is_found_in_the_folder_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_project(tmp_path) is None
    with pytest.raises(ProjectError, match="bdaudit init"):
        bdaudit.read_project()
    shared = write(tmp_path, '[tool.bdaudit.inputs]\ndata = "clean"\n', "pyproject.toml")
    assert find_project(tmp_path) == shared
    assert bdaudit.read_project().options() == {"data": "clean"}
    own = write(tmp_path, "")
    with pytest.raises(ProjectError, match="expected one project file"):
        find_project(tmp_path)
    shared.write_text("[tool.ruff]\n")
    assert find_project(tmp_path) == own
    below = tmp_path / "below"
    below.mkdir()
    assert find_project(below) is None


@pytest.mark.parametrize(
    ("text", "option", "said"),
    [
        ('[models]\narch = "net.py:build"\n', "arch", "models.arch runs the Python file net.py"),
        ('[inputs]\ndefended = "d.py:f"\n', "defended", "runs the Python file d.py"),
        ("[inputs]\nallow_trigger_code = true\n", "allow_trigger_code", "runs the Python file"),
        ('[query]\ntoken_env = "AWS_SECRET"\n', "token_env", "environment variable"),
        ('[output]\njson = "../other/x.json"\n', "json", "outside the project's folder"),
        ('[output]\nreport = ["html=r.html", "json=../x"]\n', "report", "to ../x"),
        ('[query]\nstate = "/var/x"\n', "state", "outside the project's folder"),
    ],
)
def test_what_a_strangers_file_could_do_harm_with_needs_trust(
    tmp_path: Path, text: str, option: str, said: str
) -> None:
    needed = read_project(write(tmp_path, text)).needs_trust()
    assert list(needed) == [option]
    assert said in needed[option]


def test_what_is_harmless_needs_no_trust(tmp_path: Path) -> None:
    text = """
[inputs]
defended = "../elsewhere/d.pt"
allow_trigger_code = false
[models]
arch = "timm/resnet10t"
[output]
json = "out/result.json"
"""
    assert read_project(write(tmp_path, text)).needs_trust() == {}
