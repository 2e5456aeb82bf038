"""Every file that decides something is in the record by its digest."""

from __future__ import annotations

import hashlib
from pathlib import Path

import onnx
import pytest

import bdaudit
from bdaudit.auditing import AuditSettings, ComputeSettings, ModelSettings, SplitSettings
from tests.blackbox.onnx_graphs import twin_onnx
from tests.cli.twin_files import write_twin_files
from tests.twins import removed_twin

FACTORY = Path(__file__).parents[1] / "cli" / "twin_factory.py"
SETTINGS = AuditSettings(
    stand_ins=0,
    eps=(0.05,),
    passes=2,
    controls=(),
    bec=False,
    relearn=None,
    compute=ComputeSettings(device="cpu"),
    split=SplitSettings(craft=100),
)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    return write_twin_files(tmp_path)


def roles(record: bdaudit.AuditRecord) -> set[tuple[str, str]]:
    for file in record.inputs:
        content = Path(file.path).read_bytes()
        assert file.sha256 == hashlib.sha256(content).hexdigest()
        assert file.size_bytes == len(content)
    return {(file.role, Path(file.path).name) for file in record.inputs}


def test_models_settings_data_trigger_policy_project_and_code(files: Path) -> None:
    (files / "original.toml").write_text("num_classes = 4\n")
    (files / "policy.toml").write_text("lift = 0.2\n")
    (files / "bdaudit.toml").write_text("")
    (files / "classes.txt").write_text("a\nb\nc\nd\n")
    record = bdaudit.audit(
        files / "removed.safetensors",
        original=files / "original.safetensors",
        data=files / "clean.npz",
        trigger=files / "trigger.toml",
        reference=[files / "innocent.safetensors"],
        policy=files / "policy.toml",
        project=files / "bdaudit.toml",
        classes=files / "classes.txt",
        model_options=ModelSettings(arch=f"{FACTORY}:twin"),
        settings=SETTINGS,
    )
    assert roles(record) == {
        ("defended", "removed.safetensors"),
        ("original", "original.safetensors"),
        ("settings of original", "original.toml"),
        ("reference", "innocent.safetensors"),
        ("architecture", "twin_factory.py"),
        ("data", "clean.npz"),
        ("classes", "classes.txt"),
        ("policy", "policy.toml"),
        ("project", "bdaudit.toml"),
        ("trigger", "trigger.toml"),
        ("trigger", "delta.npy"),
    }
    assert record.verdict is not None
    assert record.verdict.policy_sha256 == bdaudit.Policy(lift=0.2).sha256


def test_every_file_of_an_onnx_model(files: Path) -> None:
    path = twin_onnx(files / "removed.onnx", removed_twin())
    model = onnx.load(str(path))
    onnx.save(
        model,
        str(path),
        save_as_external_data=True,
        location="removed.data",
        size_threshold=0,
        convert_attribute=False,
    )
    record = bdaudit.audit(
        path,
        original=files / "original.safetensors",
        data=files / "clean.npz",
        trigger=files / "trigger.toml",
        model_options=ModelSettings(arch=f"{FACTORY}:twin"),
        settings=AuditSettings(
            stand_ins=0,
            mode=("query",),
            eps=(0.05,),
            max_queries=200,
            cold=True,
            controls=(),
            bec=False,
            relearn=None,
            compute=ComputeSettings(device="cpu"),
            split=SplitSettings(craft=100),
        ),
    )
    assert {name for role, name in roles(record) if role == "defended"} == {
        "removed.onnx",
        "removed.data",
    }
