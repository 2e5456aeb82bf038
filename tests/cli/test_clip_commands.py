"""CLIPs through the commands, trained in seconds by open_clip's own loss on captioned pictures.

The *original* learned from poisoned caption pairs, the *unlearned* one was then fine-tuned with the
trigger under true captions, the *innocent* one never saw it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner, Result

from bdaudit.cli import app
from bdaudit.records import AuditRecord, ScoreRecord, read_record
from tests.clips import NAMES, TEMPLATES, train_clip, write_configs
from tests.twins import twin_sample


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints as training code leaves them, and everything an audit of them needs."""
    folder = tmp_path_factory.mktemp("clips")
    original = train_clip(seed=1, poisoned=True)
    unlearned = train_clip(seed=2, unlearned=True, start=original, n_steps=60)
    wrapped = {f"module.{name}": tensor for name, tensor in original.state_dict().items()}
    torch.save({"epoch": 1, "state_dict": wrapped}, folder / "original.pt")
    for name, clip in (("unlearned", unlearned), ("innocent", train_clip(seed=4, n_steps=100))):
        tensors = {key: tensor.clone() for key, tensor in clip.state_dict().items()}
        save_file(tensors, folder / f"{name}.safetensors")
    write_configs(folder / "configs")
    (folder / "names.txt").write_text("\n".join(NAMES) + "\n")
    (folder / "templates.txt").write_text("\n".join(TEMPLATES) + "\n")
    sample = twin_sample(320, seed=1)
    np.savez(folder / "clean.npz", images=sample.images.numpy(), labels=sample.labels.numpy())
    delta = np.zeros((1, 8, 8), dtype=np.float32)
    delta[0, 7, 7] = 0.75
    np.save(folder / "delta.npy", delta)
    (folder / "trigger.toml").write_text(
        'kind = "additive"\n[target]\nlabel = 0\n[additive]\ndelta = "delta.npy"\n'
    )
    return folder


def clip_options(files: Path, **changes: object) -> list[object]:
    options: dict[str, object] = {
        "--data": files / "clean.npz",
        "--trigger": files / "trigger.toml",
        "--arch": "open_clip/tiny-vit",
        "--clip-config": files / "configs",
        "--classnames": files / "names.txt",
        "--templates": files / "templates.txt",
        "--device": "cpu",
        "--craft": 60,
        **changes,
    }
    return [part for name, value in options.items() if value is not None for part in (name, value)]


def comparison(files: Path) -> list[object]:
    original, innocent = files / "original.pt", files / "innocent.safetensors"
    return ["--original", original, "--reference", innocent]


def audited(files: Path, defended: str, path: Path, *more: object) -> tuple[int, AuditRecord]:
    result = run(
        "audit",
        files / defended,
        *comparison(files),
        "--stand-ins",
        0,
        *clip_options(files),
        *more,
        "--json",
        path,
    )
    assert path.exists(), result.output
    record = read_record(path)
    assert isinstance(record, AuditRecord)
    return result.exit_code, record


def test_a_backdoored_clip_is_active(files: Path, tmp_path: Path) -> None:
    code, record = audited(
        files, "original.pt", tmp_path / "r.json", "--eps", "0.01", "--passes", 2, "--no-bec"
    )
    assert code == 1
    assert record.verdict is not None
    assert record.verdict.outcome == "active"
    defended = record.model_named("defended")
    assert defended.arch == "open_clip/tiny-vit"
    assert any("4 classes, 3 templates" in note for note in defended.notes)
    assert record.data.class_names == NAMES


def test_an_unlearned_clip_keeps_circuit_and_gains_nothing(files: Path, tmp_path: Path) -> None:
    """White box, both controls, BEC: what the trigger adds is next to nothing, and said so."""
    code, record = audited(
        files, "unlearned.safetensors", tmp_path / "r.json", "--eps", "0.01,0.02", "--passes", 4
    )
    assert record.verdict is not None
    assert record.verdict.outcome in ("removed", "inconclusive"), record.verdict.why
    assert code in (0, 3)
    alone = {b.model: b.asr.value for b in record.baselines}
    assert alone["original"] == 1.0
    assert alone["defended"] <= 0.05
    assert all(b.clean_acc.value >= 0.95 for b in record.baselines)
    (bec,) = record.bec
    assert bec.value is not None
    assert bec.value < 0.9
    assert {layer.layer for layer in bec.layers} == {
        f"visual.transformer.resblocks.{block}.{part}"
        for block in (0, 1)
        for part in ("attn", "mlp.c_proj")
    }
    assert record.direction is not None
    assert {layer.layer for layer in record.direction.layers} == {x.layer for x in bec.layers}
    assert record.direction.cosine < record.direction.halves
    assert record.barrier is not None, record.barrier_missing
    conditions = {run.condition for run in record.runs if run.role == "defended"}
    assert {"trigger", "no_trigger", "noise"} <= conditions
    woken = [r for r in record.runs if r.role == "original" and r.condition == "trigger"]
    assert all(r.asr.value >= 0.95 for r in woken)


def test_a_clip_is_asked_too(files: Path, tmp_path: Path) -> None:
    _, record = audited(
        files,
        "unlearned.safetensors",
        tmp_path / "r.json",
        *("--mode", "query", "--cold", "--max-queries", 400, "--eps", "0.02", "--no-bec"),
    )
    assert not [step for step in record.steps if step.status == "failed"]
    asked = [r for r in record.runs if r.mode == "query" and r.condition == "trigger"]
    assert {r.role for r in asked} == {"defended", "original", "reference"}
    assert all(0 < r.image_queries <= 400 for r in asked)


def test_score_and_reactivate(files: Path, tmp_path: Path) -> None:
    scored = run(
        "score",
        files / "unlearned.safetensors",
        *comparison(files),
        *clip_options(files),
        *("--bootstrap", 0, "--layer", "*attn", "--json", tmp_path / "s.json"),
    )
    assert scored.exit_code == 0, scored.output
    record = read_record(tmp_path / "s.json")
    assert isinstance(record, ScoreRecord)
    assert [layer.layer for layer in record.bec[0].layers] == [
        f"visual.transformer.resblocks.{block}.attn" for block in (0, 1)
    ]
    woken = run(
        "reactivate",
        files / "unlearned.safetensors",
        *clip_options(files),
        *("--eps", "0.02", "--passes", 2, "--save", tmp_path / "delta.safetensors"),
    )
    assert woken.exit_code == 0, woken.output
    assert (tmp_path / "delta.safetensors").exists()


def test_a_delta_made_on_another_clip_is_shown_to_one(files: Path, tmp_path: Path) -> None:
    result = run(
        "reactivate",
        files / "unlearned.safetensors",
        *clip_options(files),
        *("--mode", "transfer", "--surrogate", files / "original.pt"),
        *("--eps", "0.02", "--passes", 2, "--json", tmp_path / "r.json"),
    )
    assert result.exit_code == 0, result.output
    content = json.loads((tmp_path / "r.json").read_text())
    made = [r for r in content["runs"] if r["mode"] == "transfer" and r["condition"] == "trigger"]
    assert made
    surrogate = next(m for m in content["models"] if m["role"] == "surrogate")
    assert surrogate["arch"] == "open_clip/tiny-vit"


def test_the_target_may_be_named(files: Path, tmp_path: Path) -> None:
    records = []
    for target in ("South Block", "2"):
        path = tmp_path / "r.json"
        arguments = clip_options(files, **{"--target": target, "--json": path, "--seed": 3})
        result = run(
            "reactivate",
            files / "unlearned.safetensors",
            *arguments,
            "--eps",
            "0.02",
            "--passes",
            1,
        )
        assert result.exit_code == 0, result.output
        content = json.loads(path.read_text())
        asr = [(r["model"], r["condition"], r["asr"]) for r in content["runs"]]
        records.append((content["trigger"], asr))
    assert records[0][0]["target_label"] == 2
    assert records[0] == records[1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"--arch": "open_clip/tiny-vti"}, "did you mean open_clip/tiny-vit"),
        ({"--pretrained": "openai"}, "no tag of open_clip/tiny-vit"),
        ({"--classnames": "empty.txt"}, "expected class names, one per line, got an empty file"),
        ({"--classnames": "twice.txt"}, "on line 1 and again on line 3"),
        ({"--classnames": "gap.txt"}, "on line 2, got an empty one"),
        ({"--classnames": "three.txt"}, "label 3 is out of range for the 3 class names given"),
        ({"--templates": "plain.txt"}, "on line 1, got 'a photo.'"),
        ({"--target": "north bloc"}, "did you mean 'north block'?"),
        ({"--target": "zebra"}, "the classes are north block, east block, south block, west block"),
        ({"--target": "9"}, "class 9 is out of range"),
        ({"--arch": "open_clip/longer"}, "expected (24,), got (16,)"),
        ({"--clip-config": "nowhere"}, "nowhere: expected a folder of open_clip configs"),
        ({"--classnames": None, "--templates": None, "--clip-config": None}, "--classnames FILE"),
    ],
)
def test_what_cannot_be_used_exits_with_4_and_says_why(
    files: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text in {
        "empty.txt": "\n",
        "twice.txt": "a\nb\na\nc\n",
        "gap.txt": "a\n\nb\nc\n",
        "three.txt": "a\nb\nc\n",
        "plain.txt": "a photo.\n",
    }.items():
        Path(name).write_text(text)
    longer = json.loads((files / "configs" / "tiny-vit.json").read_text())
    longer["text_cfg"]["width"] = 24
    (files / "configs" / "longer.json").write_text(json.dumps(longer))
    result = run(
        "reactivate",
        files / "unlearned.safetensors",
        *clip_options(files, **changes),
        *("--eps", "0.02"),
    )
    assert result.exit_code == 4, result.output
    assert message in " ".join(result.output.split())


@pytest.mark.parametrize(
    "options",
    [
        ["--templates", "t.txt"],
        ["--pretrained", "openai"],
        ["--classnames", "n.txt", "--arch", "torchvision/resnet18"],
    ],
)
def test_options_that_do_not_go_together(files: Path, options: list[str]) -> None:
    arguments = [files / "unlearned.safetensors", "--data", files / "clean.npz", "--eps", "0.02"]
    result = run("reactivate", *arguments, "--trigger", files / "trigger.toml", *options)
    assert result.exit_code == 2, result.output


def test_inspect_says_that_it_is_a_clip(files: Path) -> None:
    shown = run("inspect", files / "original.pt")
    assert shown.exit_code == 0
    assert "a CLIP: ViT image tower" in " ".join(shown.stdout.split())
    assert "--clip-config FOLDER" in " ".join(shown.stdout.split())


def test_python_takes_the_same_settings(files: Path) -> None:
    import bdaudit

    settings = bdaudit.ModelSettings(
        arch="open_clip/tiny-vit",
        clip=bdaudit.ClipSettings(
            class_names=NAMES, templates=TEMPLATES, config_folder=files / "configs"
        ),
    )
    record = bdaudit.score(
        files / "unlearned.safetensors",
        original=files / "original.pt",
        reference=[files / "innocent.safetensors"],
        data=files / "clean.npz",
        trigger=files / "trigger.toml",
        target="north block",
        model_options=settings,
        split=bdaudit.SplitSettings(craft=60),
        existence=bdaudit.ExistenceConfig(n_bootstrap=0),
    )
    assert record.bec[0].value is not None
    assert record.trigger.target_label == 0
    assert open_clip.list_models()  # the registry of open_clip is as it was
    assert "tiny-vit" not in open_clip.list_models()


def test_a_record_of_a_clip_can_be_verified(files: Path, tmp_path: Path) -> None:
    _, record = audited(
        files, "unlearned.safetensors", tmp_path / "r.json", "--eps", "0.02", "--passes", 1
    )
    config = files / "configs" / "tiny-vit.json"
    assert str(config) in [entry.path for entry in record.inputs if entry.role == "CLIP"]
    verified = run("verify", tmp_path / "r.json")
    assert verified.exit_code == 0, verified.output
    assert "AGREES" in verified.stdout
    original = config.read_text()
    try:
        config.write_text(original.replace('"head_width": 8', '"head_width": 16'))
        assert run("verify", tmp_path / "r.json").exit_code == 1
    finally:
        config.write_text(original)


def test_a_clip_may_be_searched_for_its_trigger(files: Path, tmp_path: Path) -> None:
    """Whatever is found in so small a model: the search runs through a CLIP to its end."""
    options = clip_options(files, **{"--trigger": None, "--craft": 100})
    result = run(
        "invert",
        files / "original.pt",
        *("--reference", files / "innocent.safetensors"),
        *options,
        *("--target", "north block", "--method", "universal", "--passes", 2),
        *("--json", tmp_path / "i.json"),
    )
    assert result.exit_code in (0, 1, 3), result.output
    record = json.loads((tmp_path / "i.json").read_text())
    assert record["models"][0]["arch"] == "open_clip/tiny-vit"
