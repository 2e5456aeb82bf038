"""Manifests of many audits, and what audits they ask for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bdaudit.cases.assembly import request_from_project
from bdaudit.cases.request import AuditRequest
from bdaudit.errors import PolicyError, ProjectError
from bdaudit.project import read_manifest
from bdaudit.project.reading import check_project
from bdaudit.project.schema import TABLES, keys_of

COMMON = """
[defaults.inputs]
original = "original.pt"
data = "clean.npz"
trigger = "trigger.toml"
reference = ["innocent-*.pt"]
[defaults.attack]
eps = [0.02, "4/255"]
"""


def manifest(folder: Path, text: str) -> Path:
    path = folder / "sweep.toml"
    path.write_text(COMMON + text)
    for name in ("innocent-1.pt", "innocent-2.pt", "cleaned/a.pt", "cleaned/b.pt"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    return path


def requests(folder: Path, text: str) -> dict[str, AuditRequest]:
    return {
        key: request_from_project(key, project)
        for key, project in read_manifest(manifest(folder, text))
    }


def test_an_audit_takes_the_defaults_and_adds_to_them(tmp_path: Path) -> None:
    asked = requests(
        tmp_path,
        '[[audit]]\n[audit.inputs]\ndefended = "one.pt"\n'
        '[[audit]]\nname = "second"\n[audit.inputs]\ndefended = "two.pt"\noriginal = "other.pt"\n'
        "[audit.attack]\npasses = 3\n[audit.policy]\nlift = 0.25\n",
    )
    assert list(asked) == ["one", "second"]
    one, second = asked.values()
    assert str(one.sources.defended) == str(tmp_path / "one.pt")
    assert [str(r) for r in one.sources.references] == [
        str(tmp_path / f"innocent-{k}.pt") for k in (1, 2)
    ]
    assert (str(one.sources.original), str(second.sources.original)) == (
        str(tmp_path / "original.pt"),
        str(tmp_path / "other.pt"),
    )
    assert one.settings.eps == second.settings.eps == (0.02, 4 / 255)
    assert (one.settings.passes, second.settings.passes) == (24, 3)
    assert one.sources.policy is None
    assert second.sources.policy.lift == 0.25  # type: ignore[union-attr]


def test_wildcards_lists_and_a_matrix_stand_for_many(tmp_path: Path) -> None:
    asked = requests(
        tmp_path,
        '[[audit]]\n[audit.inputs]\ndefended = ["cleaned/*.pt", "c.pt"]\n'
        "[audit.matrix.compute]\nseed = [0, 1]\n"
        '[audit.matrix.attack]\nmode = [["white"], ["white", "query"]]\n',
    )
    assert len(asked) == 3 * 2 * 2
    assert "a-seed-1-mode-white-query" in asked
    one = asked["b-seed-1-mode-white"]
    assert str(one.sources.defended) == str(tmp_path / "cleaned" / "b.pt")
    assert (one.settings.compute.seed, one.settings.mode) == (1, ("white",))
    assert asked["c-seed-0-mode-white-query"].settings.mode == ("white", "query")


def test_files_called_alike_are_named_by_their_folders(tmp_path: Path) -> None:
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "model.pt").touch()
    asked = requests(tmp_path, '[[audit]]\n[audit.inputs]\ndefended = "[xy]/model.pt"\n')
    assert list(asked) == ["x-model", "y-model"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", r"expected one \[\[audit\]\]"),
        ("[audits]\n", "did you mean 'audit'"),
        ('[[audit]]\n[audit.inputs]\ndefendet = "a"\n', "audit 1: .*did you mean 'defended'"),
        ("[[audit]]\n[audit.input]\n", "did you mean 'inputs'"),
        ('[[audit]]\n[audit.inputs]\ndefended = "none-*.pt"\n', "none-.*no such file"),
        ('[[audit]]\n[audit.inputs]\ndefended = ["a/m.pt", "a-m.pt", "b/m.pt"]\n', "second audit"),
        ('[[audit]]\n[audit.inputs]\nendpoint = "http://h/v2/models/m"\n', "needs a name"),
        ('[[audit]]\n[audit.output]\njson = "a.json"\n', r"output\.json: not in a manifest"),
        ('[[audit]]\n[audit.defend]\nmethods = ["fst"]\n', r"defend\.methods: not in a manifest"),
        ('[[audit]]\n[audit.query]\nstate = "s"\n', r"query\.state: not in a manifest"),
        ("[[audit]]\n[audit.engine]\nworkers = 2\n", r"engine\.workers: .*--engine"),
        ("[[audit]]\n[audit.existence]\nsamples = 9\n", r"existence\.samples: .*`bdaudit score`"),
        ("[[audit]]\n[audit.inversion]\ntarget = 1\n", r"inversion\.target: .*inputs\.target"),
        ("[[audit]]\n[audit.matrix]\nseed = [1]\n", r"matrix\.seed: expected a table"),
        ("[[audit]]\n[audit.matrix.compute]\nseed = 1\n", "expected a list of values"),
        ('[[audit]]\n[audit.matrix.inputs]\ndefended = ["a"]\n', "inputs.defended itself"),
        ("[[audit]]\nname = 3\n", "name: expected a text"),
        ('[[audit]]\nname = "x"\n[audit.compute]\nseed = "1"\n', r"audit 1 \(x\): compute\.seed"),
    ],
)
def test_what_is_wrong_is_said_with_the_audit(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ProjectError, match=said):
        requests(tmp_path, text)


def test_what_is_no_audit_is_said_by_its_name(tmp_path: Path) -> None:
    with pytest.raises(ProjectError, match=r"x: expected exactly one of inputs\.defended"):
        requests(tmp_path, '[[audit]]\nname = "x"\n')
    both = '[[audit]]\n[audit.inputs]\ndefended = "x.pt"\nendpoint = "http://h/v2/models/m"\n'
    with pytest.raises(ProjectError, match="exactly one of"):
        requests(tmp_path, both)
    with pytest.raises(ProjectError, match=r"attack: eps: expected numbers such as"):
        requests(tmp_path, '[[audit]]\n[audit.inputs]\ndefended="x"\n[audit.attack]\neps=["a"]\n')
    with pytest.raises(PolicyError):
        requests(tmp_path, '[[audit]]\n[audit.inputs]\ndefended="x"\n[audit.policy]\nlift = 7\n')


def test_python_files_need_trust(tmp_path: Path) -> None:
    text = '[[audit]]\n[audit.inputs]\ndefended = "a.pt"\n[audit.models]\narch = "net.py:net"\n'
    ((_, project),) = read_manifest(manifest(tmp_path, text))
    assert project.needs_trust() == {"arch": "models.arch runs the Python file net.py"}


CHANGES: dict[str, Any] = {
    "inputs.stand_ins": 1,
    "inputs.stand_in_images": 999,
    "inputs.reference": ["r.pt"],
    "inputs.task": "detection",
    "inputs.classes": "classes.txt",
    "inputs.label_column": "breed",
    "inputs.image_column": "shot",
    "inputs.trigger": "t.toml",
    "inputs.placebo": ["p.toml"],
    "inputs.target": 3,
    "inputs.allow_trigger_code": True,
    "models.arch": "torchvision/resnet18",
    "models.num_classes": 7,
    "models.input_size": "10x12",
    "models.mean": [0.1],
    "models.std": [0.2],
    "models.outputs": "logits",
    "models.score_threshold": 0.3,
    "models.weights": ["model"],
    "models.read_pickled_module": True,
    "attack.mode": ["query"],
    "attack.eps": [0.5],
    "attack.norm": "l2",
    "attack.passes": 3,
    "attack.restarts": 2,
    "attack.objective": "specific",
    "attack.placebos": 8,
    "attack.bec": False,
    "attack.relearn": False,
    "query.max_queries": 10,
    "query.feedback": "labels",
    "query.schedule": "research",
    "query.cold": True,
    "query.qps": 2.0,
    "query.concurrency": 2,
    "query.timeout": 2.0,
    "query.retries": 1,
    "query.token_env": "TOKEN",
    "query.ca_file": "ca.pem",
    "query.binary": True,
    "query.layout": "NHWC",
    "query.first_label": 0,
    "query.input_name": "x",
    "query.output_name": "y",
    "query.grid": 255,
    "query.request_size": 8,
    "surrogates.surrogate": ["s.pt"],
    "surrogates.strategy": "momentum",
    "surrogates.input_diversity": 0.5,
    "relearning.shots": 3,
    "relearning.steps": [1, 3],
    "relearning.learning_rates": [0.01, 0.02],
    "relearning.draws": 2,
    "relearning.freeze_batch_norm": False,
    "inversion.method": ["warp"],
    "inversion.passes": 3,
    "compute.craft": 5,
    "compute.held_out": 6,
    "compute.device": "cpu",
    "compute.seed": 4,
    "compute.batch_size": 9,
    "compute.precision": "bfloat16",
    "output.pictures": False,
}
"""For every key a value that is not its default."""

ELSEWHERE = {
    *("inputs.defended", "inputs.endpoint", "inputs.original", "inputs.data"),
    *("clip.classnames", "clip.templates", "clip.pretrained", "clip.clip_config"),
    *(
        f"{table}.{key}"
        for table in ("defend", "engine", "existence")
        for key in keys_of(TABLES[table])
    ),
    "inversion.target",
    *("output.json", "output.report", "query.state", "surrogates.cache", "surrogates.no_cache"),
}
"""Needed by all, tested below, or the sweep's own."""


def _keys() -> set[str]:
    return {
        f"{name}.{key}"
        for name, table in TABLES.items()
        for key, setting in keys_of(table).items()
        if setting.option.now is None
    }


def test_every_key_of_a_project_file_is_tried_here() -> None:
    assert _keys() == CHANGES.keys() | ELSEWHERE


@pytest.mark.parametrize("key", sorted(CHANGES))
def test_every_key_changes_the_audit_that_is_asked_for(key: str, tmp_path: Path) -> None:
    inputs = {"defended": "d.pt", "original": "o.pt", "data": "c.npz"}
    plain: dict[str, Any] = {"inputs": inputs}
    table, name = key.split(".")
    changed = {**plain, table: {**plain.get(table, {}), name: CHANGES[key]}}
    asked = [
        repr(request_from_project("x", check_project(document, tmp_path / "m.toml")))
        for document in (plain, changed)
    ]
    assert asked[0] != asked[1]


def test_a_clip_is_asked_for_with_its_class_names(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    inputs = {"defended": "d.pt", "original": "o.pt", "data": "c.npz"}
    document = {"inputs": inputs, "clip": {"classnames": "names.txt", "pretrained": "openai"}}
    asked = request_from_project("x", check_project(document, tmp_path / "m.toml"))
    clip = asked.sources.model_options.clip
    assert clip is not None
    assert (clip.class_names, clip.pretrained) == (("cat", "dog"), "openai")
    document["clip"] = {"pretrained": "openai"}
    with pytest.raises(ProjectError, match="classnames"):
        request_from_project("x", check_project(document, tmp_path / "m.toml"))
