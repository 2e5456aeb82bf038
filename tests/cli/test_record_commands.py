"""A BackdoorBench record folder from its poisoned images to a sweep of its defences."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner, Result

from bdaudit.cli import app
from bdaudit.models import load_model
from bdaudit.triggers import read_trigger
from tests.models.checkpoints import tiny_network
from tests.models.test_backdoorbench import make_record


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture
def record(tmp_path: Path) -> Path:
    """A record whose attack answers its own clean images right, with poisoned ones beside."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (48, 2, 2, 3), dtype=np.uint8).repeat(4, 1).repeat(4, 2)
    pixels = torch.tensor(images).permute(0, 3, 1, 2).float() / 255
    folder = make_record(tmp_path / "badnet", img_size=[8, 8, 3])
    state = dict(tiny_network(4, seed=0).state_dict())
    with torch.no_grad():
        said = load_model(folder, name="m").classifier(pixels)
    state["linear.bias"] -= said.mean(dim=0)  # or nearly all images were of one class to it
    labels = (said - said.mean(dim=0)).argmax(dim=1).numpy()
    assert len(set(labels)) == 4
    shutil.rmtree(folder)
    make_record(folder, model=state, img_size=[8, 8, 3])
    near = {k: t + 1e-5 if t.is_floating_point() else t for k, t in state.items()}
    torch.save(near, folder / "defense" / "ft" / "defense_result.pt")
    np.savez(tmp_path / "clean.npz", images=images, labels=labels)
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        if label != 0:
            image[-3:, -3:] = 255
            place = folder / "bd_test_dataset" / str(label)
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(place / f"{index}.png")
    return folder


def csv_of(folder: Path, name: str, acc: float, asr: float, ra: float) -> None:
    (folder / f"{name}_df_summary.csv").write_text(
        f",epoch,test_acc,test_asr,test_ra\nlast,9,{acc},{asr},{ra}\nvalid_max,9,1.0,1.0,1.0\n"
    )


@pytest.mark.slow  # a whole audit, as the command makes it
def test_from_a_record_to_a_sweep_in_one_command(record: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ("sweep", record, "--data", tmp_path / "clean.npz", "--out", out, "--no-cache")
    early = run(*arguments)
    assert early.exit_code == 4
    assert "bdaudit trigger import" in " ".join(early.stderr.split())

    torch.save({"attack": "badnet", "attack_target": 0}, record / "info.pickle")
    csv_of(record, "attack", 0.99, 0.98, 0.01)
    csv_of(record / "defense" / "ft", "ft", 1.0, 0.91, 0.05)
    npd = record / "defense" / "npd"  # a plug layer that cannot be read is no defence left out
    npd.mkdir()
    (npd / "defense_result.pt").write_bytes((record / "attack_result.pt").read_bytes())
    (npd / "plug_layer.pt").write_bytes(b"x")
    csv_of(npd, "npd", 0.9, 0.02, 0.8)
    result = run(*arguments, "--stand-ins", 0)
    assert "wrote" in result.stderr
    trigger = read_trigger(record / "trigger.toml")
    assert (trigger.kind, trigger.target_label) == ("paired", 0)
    made = json.loads((out / "sweep.json").read_text())
    swept = {a["key"]: a for a in made["audits"]}
    assert sorted(swept) == ["fp", "ft", "npd"], result.output
    assert "plug_layer.pt" in swept["npd"]["why"]
    assert swept["npd"]["outcome"] is None
    assert swept["npd"]["reported"]["asr"] == 0.02
    assert swept["ft"]["outcome"] is not None
    assert swept["ft"]["reported"]["file"] == "ft_df_summary.csv"
    assert swept["fp"]["reported"] is None
    record_of = json.loads((out / "records" / "ft.json").read_text())
    assert record_of["trigger"]["kind"] == "paired"
    assert [m["name"] for m in record_of["models"]] == ["defended", "original"]
    # Measured again on the images that were given, beside what the CSV says.
    (defended,) = (b for b in record_of["baselines"] if b["role"] == "defended")
    rate = defended["asr"]["successes"] / defended["asr"]["total"]
    assert swept["ft"]["asr"] == pytest.approx(rate)
    assert rate < 0.8
    said = [note for note in made["notes"] if note.startswith("ft:")]
    assert "success of the trigger alone 91.0%, measured" in said[0]
    assert "clean accuracy" not in said[0]  # which agrees
    assert any(n.startswith("original: attack_df_summary.csv says") for n in made["notes"])
    assert "91.0%" in result.stdout
    assert "91.0%" in (out / "sweep.html").read_text()
    rows = list(csv.DictReader((out / "sweep.csv").read_text().splitlines()))
    assert {row["key"]: row["reported_asr"] for row in rows} == {
        "fp": "",
        "ft": "0.91",
        "npd": "0.02",
    }
    assert result.exit_code == 4  # for NPD, and what the network of another seed answers


def test_what_a_record_lacks_is_said(record: Path, tmp_path: Path) -> None:
    run("trigger", "import", record, "--target", 0)
    without_data = run("sweep", record, "--out", tmp_path / "o")
    assert (without_data.exit_code, "--data" in without_data.stderr) == (2, True)
    empty = tmp_path / "empty"
    empty.mkdir()
    no_record = run("sweep", empty, "--out", tmp_path / "o", "--data", tmp_path / "clean.npz")
    assert "BackdoorBench record folder" in " ".join(no_record.stderr.split())
    (tmp_path / "m.toml").write_text('[[audit]]\nname = "a"\n')
    manifest = run("sweep", tmp_path / "m.toml", "--out", tmp_path / "o", "--data", "x.npz")
    assert manifest.exit_code == 2
    assert "[defaults.inputs]" in manifest.stderr
