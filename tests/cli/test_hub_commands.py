"""Folders of the Hugging Face hub on the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner, Result

from bdaudit.cli import app
from bdaudit.models import load_model
from tests.fetching.test_repositories import COMMIT
from tests.models.hub_folders import write

TRIGGER = 'kind = "patch"\n[target]\nlabel = 0\n[patch]\nimage = "white.npy"\n'
NAMES = ["cat", "dog", "eel", "fox", "gnu"]


def run(*arguments: object, env: dict[str, str] | None = None) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments], env=env)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hub")
    for name in ("original", "defended", "innocent"):
        write(folder / name, config={"id2label": dict(enumerate(NAMES))})
    rng = np.random.default_rng(0)
    images = rng.random((200, 3, 8, 8)).astype(np.float32).repeat(4, axis=2).repeat(4, axis=3)
    # What the model says is right, so that it has learned its task.
    with torch.no_grad():
        known = load_model(folder / "original", name="m").classifier(torch.tensor(images))
    labels = (known - known.mean(dim=0)).argmax(dim=1)
    assert len(labels.unique()) == 5
    head = load_file(folder / "original" / "model.safetensors")
    head["classifier.bias"] -= known.mean(dim=0)  # as many of each class
    for name in ("original", "defended"):
        save_file(head, folder / name / "model.safetensors", {"format": "pt"})
    noise = torch.Generator().manual_seed(0)
    near = {k: t + 1e-5 * torch.randn(t.shape, generator=noise) for k, t in head.items()}
    save_file(near, folder / "innocent" / "model.safetensors", {"format": "pt"})
    np.savez(folder / "clean.npz", images=images, labels=labels.numpy())
    np.save(folder / "white.npy", np.ones((3, 4, 4), dtype=np.float32))
    (folder / "trigger.toml").write_text(TRIGGER)
    return folder


def score(files: Path, defended: object, *more: object, **options: Any) -> Result:
    return run(
        "score",
        defended,
        *("--original", files / "original", "--data", files / "clean.npz"),
        *("--trigger", files / "trigger.toml", "--device", "cpu", "--stand-ins", 0),
        *("--no-cache", "--bootstrap", 0, "--samples", 20, *more),
        **options,
    )


def test_two_folders_are_scored(files: Path, tmp_path: Path) -> None:
    reference = ("--reference", files / "innocent", "--json", tmp_path / "r.json")
    result = score(files, files / "defended", *reference)
    assert result.exit_code == 0, result.output
    record = json.loads((tmp_path / "r.json").read_text())
    defended = record["models"][0]
    assert defended["arch"] == "transformers/ViTForImageClassification"
    assert defended["image_shape"] == [3, 32, 32]
    read = [Path(f["path"]).name for f in record["inputs"] if f["role"] == "defended"]
    assert sorted(read) == ["config.json", "model.safetensors", "preprocessor_config.json"]
    assert "model.vit.layers.1.attention.o_proj" in (tmp_path / "r.json").read_text()


def test_class_names_in_another_order_are_refused(files: Path, tmp_path: Path) -> None:
    names = tmp_path / "classes.txt"
    names.write_text("\n".join([*NAMES[1:], NAMES[0]]) + "\n")
    result = score(files, files / "defended", "--classes", names)
    assert result.exit_code == 4
    said = " ".join(result.stderr.split())
    assert "the config of the defended model" in said
    assert "must have the same order" in said
    names.write_text("\n".join(NAMES) + "\n")
    assert score(files, files / "defended", "--classes", names).exit_code == 0


def test_a_model_of_the_hubs_cache_is_named_by_its_commit(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    model = tmp_path / "hub" / "models--org--net"
    (model / "refs").mkdir(parents=True)
    (model / "refs" / "main").write_text(COMMIT)
    (model / "blobs").mkdir()
    (model / "snapshots" / COMMIT).mkdir(parents=True)
    for file in (files / "defended").iterdir():
        (model / "blobs" / file.name).write_bytes(file.read_bytes())
        (model / "snapshots" / COMMIT / file.name).symlink_to(f"../../blobs/{file.name}")
    offline = {"BDAUDIT_OFFLINE": "1"}
    result = score(files, "hf://org/net", "--json", tmp_path / "r.json", env=offline)
    assert result.exit_code == 0, result.output
    text = (tmp_path / "r.json").read_text()
    assert json.loads(text)["sources"]["defended"] == f"hf://org/net@{COMMIT}"
    assert str(tmp_path / "hub") not in text
    missing = score(files, "hf://org/other", env=offline)
    assert missing.exit_code == 4
    assert "is not in the hub's cache" in " ".join(missing.stderr.split())
