"""Families built from nothing: what is made, what is kept, and what is made again."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from bdaudit.cli import app
from bdaudit.data import load_sample
from bdaudit.engines import Event, Finished, LocalEngine
from bdaudit.errors import ConfigError
from bdaudit.foundation.digests import digest_tensors
from bdaudit.foundation.progress import finish
from bdaudit.models import load_model
from bdaudit.records.families import Family, read_family
from bdaudit.report.family_terminal import print_family
from bdaudit.scoring import predict
from bdaudit.triggers import poison, read_trigger
from bdaudit.zoo.building import build_family, prepare_build
from bdaudit.zoo.costs import estimate_costs
from bdaudit.zoo.folder import FamilyFolder, changes_between
from bdaudit.zoo.manifest import read_manifest
from bdaudit.zoo.parts import load_parts
from tests.pretend import pretended_card
from tests.zoo.attacks.photos import ON_IMAGES
from tests.zoo.conftest import FAMILY

NAMES = [
    *("badnets-r10-s1", "badnets-r10-s1--innocent", "badnets-r10-s1--ft", "reference-ft"),
]


def run_build(
    folder: Path, text: str, out: Path, only: str | None = None
) -> tuple[Family, list[str]]:
    """Build what `text` asks for, and return the family and what was made for it, in order."""
    path = folder / f"{out.name}.toml"
    path.write_text(text)
    made = []

    def building() -> Generator[Event, None, Family]:
        built = yield from build_family(
            prepare_build(read_manifest(path), out, only=[only] if only else ()), LocalEngine()
        )
        assert not built.failed
        return built.family

    family = finish(building(), lambda e: made.append(e.key) if isinstance(e, Finished) else None)
    return family, made


@pytest.fixture(scope="module")
def built(small_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("built") / "family"
    run_build(small_data, FAMILY, out)
    return out


@pytest.fixture
def copied(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "family"))


def weights(folder: Path) -> dict[str, str]:
    return {member.name: member.weights_sha256 for member in read_family(folder).members}


def test_what_is_written(built: Path, small_data: Path) -> None:
    family = read_family(built)
    assert [member.name for member in family.members] == NAMES
    assert family.references == ("reference-ft",)
    original, innocent, defended, reference = family.members
    assert (original.lineage, innocent.lineage, defended.lineage) == (
        *("original", "clean", "defended"),
    )
    assert innocent.original == defended.original == original.name
    assert reference.original is reference.trigger is None
    assert original.poison_rate == defended.poison_rate == pytest.approx(0.1)
    assert (innocent.truth, innocent.truth_source) == ("innocent", "construction")
    assert (reference.truth, reference.asr) == ("innocent", None)
    assert [m.name for m in family.to_audit()] == [innocent.name, defended.name]
    for member in family.members:
        assert (built / member.file).is_file()
        assert member.elapsed_s is not None
        assert member.elapsed_s > 0
    readme = (built / "README.md").read_text()
    assert all(name in readme for name in NAMES)
    assert family.config["attack"][0]["type"] == "badnets"
    assert family.dataset == family.config["data"]["path"] == "images.npz"


def test_rates_are_those_of_the_files(built: Path, small_data: Path) -> None:
    """Count again, on the files as a user opens them."""
    family = read_family(built)
    parts = load_parts(read_manifest(small_data / "family.toml").data, seed=3)
    sample = parts.measure.as_sample("measure")
    trigger = read_trigger(built / family.triggers["badnets"].file)
    assert trigger.sha256 == family.triggers["badnets"].sha256
    stamped = poison(sample, trigger, 10)
    for member in family.members:
        model = load_model(built / member.file, name=member.name)
        assert model.weights_sha256 == member.weights_sha256
        right = predict(model.classifier, sample.images, batch_size=64) == sample.labels
        assert member.clean_acc is not None
        assert member.clean_acc.successes == int(right.sum())
        if member.asr is not None:
            taken = predict(model.classifier, stamped.triggered, batch_size=64) == 0
            assert member.asr.successes == int(taken.sum())
            assert member.asr.total == len(stamped)


def test_the_clean_sample_was_seen_by_nobody(built: Path, small_data: Path) -> None:
    parts = load_parts(read_manifest(small_data / "family.toml").data, seed=3)
    clean = load_sample(built / "clean.npz")
    shown = {bytes(image.numpy().tobytes()) for image in (clean.images * 255).round().byte()}
    assert len(shown) == 100
    seen = [
        {p.numpy().tobytes() for p in part.pixels}
        for part in (parts.pool, parts.defense, parts.measure)
    ]
    assert not any(shown & used for used in seen)
    assert not seen[0] & seen[1]


def test_the_same_family_twice_has_the_same_weights(
    built: Path, small_data: Path, tmp_path: Path
) -> None:
    """And another member changes none of the others."""
    more = FAMILY.replace("seeds = [1]", "seeds = [2, 1]").replace(
        'of = ["badnets-*"]', 'of = ["*"]'
    )
    run_build(small_data, more, tmp_path / "again", only="badnets-r10-s1*")
    again = weights(tmp_path / "again")
    assert again == {name: digest for name, digest in weights(built).items() if name in again}
    assert len(again) == 3


def test_nothing_is_made_twice(built: Path, small_data: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in built.rglob("*.safetensors")}
    _, made = run_build(small_data, FAMILY, built)
    assert made == []
    assert before == {path: path.stat().st_mtime_ns for path in built.rglob("*.safetensors")}


def test_a_new_member_is_added(copied: Path, small_data: Path) -> None:
    more = (
        FAMILY
        + '[[defense]]\ntype = "fst"\nof = ["badnets-*"]\nsettings = { tuning = { n_epochs = 1 } }'
    )
    before = weights(copied)
    _, made = run_build(small_data, more, copied)
    assert [name for name in made if not name.startswith("relearning")] == ["badnets-r10-s1--fst"]
    assert before.items() < weights(copied).items()


def test_only_what_a_change_touches_is_made_again(copied: Path, small_data: Path) -> None:
    before = weights(copied)
    changed = FAMILY.replace("n_epochs = 1", "n_epochs = 2")
    (small_data / "changed.toml").write_text(changed)
    build = prepare_build(read_manifest(small_data / "changed.toml"), copied)
    assert set(build.stale) == {"badnets-r10-s1--ft", "reference-ft"}
    assert build.stale["reference-ft"] == ("settings.tuning.n_epochs: 2, was 1",)
    _, made = run_build(small_data, changed, copied)
    assert {name for name in made if not name.startswith("relearning")} == set(build.stale)
    after = weights(copied)
    assert {name for name in after if after[name] != before[name]} == set(build.stale)


def test_what_was_made_of_something_stale_is_stale(copied: Path, small_data: Path) -> None:
    (small_data / "patch.toml").write_text(
        FAMILY.replace("seeds = [1]", "seeds = [1]\nsettings = { size = 4 }")
    )
    build = prepare_build(read_manifest(small_data / "patch.toml"), copied)
    assert set(build.stale) == {"trigger:badnets", "badnets-r10-s1", "badnets-r10-s1--ft"}
    # The innocent one is not trained again, but what it does with the new trigger is counted.
    assert build.missing - build.stale.keys() == {"badnets-r10-s1--innocent"}


def test_damage_is_repaired(copied: Path, small_data: Path) -> None:
    before = weights(copied)
    path = copied / "models" / "badnets-r10-s1--ft.safetensors"
    path.write_bytes(path.read_bytes()[:-8] + bytes(8))
    (copied / "models" / "badnets-r10-s1--innocent.json").write_text('{"key": "half')
    (copied / "models" / "stranger.safetensors").write_bytes(b"")
    (small_data / "damage.toml").write_text(FAMILY)
    build = prepare_build(read_manifest(small_data / "damage.toml"), copied)
    assert build.missing == {"badnets-r10-s1--ft", "badnets-r10-s1--innocent"}
    assert build.strangers == ("stranger",)
    run_build(small_data, FAMILY, copied)
    assert weights(copied) == before
    assert (copied / "models" / "stranger.safetensors").exists()


def test_a_failure_leaves_the_others(
    copied: Path, small_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    diverging = FAMILY + '[[defense]]\nname = "wild"\ntype = "finetune"\nof = ["badnets-*"]\n'
    diverging += "settings = { tuning = { learning_rate = 1e30 } }"
    path = small_data / "wild.toml"
    path.write_text(diverging)
    arguments = ["zoo", "build", str(path), "--out", str(copied), "--device", "cpu"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 70, result.output
    assert "badnets-r10-s1--wild" in result.output
    assert "not finite" in result.output
    assert [member.name for member in read_family(copied).members] == NAMES


def test_members_that_did_not_learn_are_of_unknown_truth_and_no_references(
    small_data: Path, tmp_path: Path
) -> None:
    text = FAMILY.replace("learning_rate = 0.05", "learning_rate = 1e-9")
    text = text.replace("epochs = 4", "epochs = 1")
    # Not "family": that is the name of the file the other tests build from.
    family, made = run_build(small_data, text, tmp_path / "unlearned")
    assert family.references == ()
    assert family.to_audit() == ()
    assert not [key for key in made if key.startswith("relearning")]
    for member in family.members:
        assert member.truth == "unknown"
        assert "did not learn the task: clean accuracy" in member.truth_note
    console = Console(record=True, width=250)
    print_family(family, console)
    assert "unknown: reference-ft: did not learn the task" in console.export_text()


def test_only_asks_for_a_name_that_exists(small_data: Path, tmp_path: Path) -> None:
    manifest = read_manifest(small_data / "family.toml")
    with pytest.raises(ConfigError, match=r"'sig-\*' matches none of badnets-r10-s1"):
        prepare_build(manifest, tmp_path / "out", only=["sig-*"])
    with pytest.raises(ConfigError, match=r"'sig-\*' matches none"):
        prepare_build(manifest, tmp_path / "out", only=["badnets-r10-s1", "sig-*"])
    both = prepare_build(manifest, tmp_path / "out", only=["badnets-r10-s1", "*--innocent"])
    build = prepare_build(manifest, tmp_path / "out", only=["*--innocent"])
    assert {recipe.name for recipe in both.wanted} >= {"badnets-r10-s1", "badnets-r10-s1--innocent"}
    assert [recipe.name for recipe in build.wanted] == [
        *("trigger:badnets", "badnets-r10-s1", "badnets-r10-s1--innocent")
    ]
    assert not (tmp_path / "out").exists()


def test_dry_run_lists_and_writes_nothing(small_data: Path, tmp_path: Path) -> None:
    path, out = small_data / "family.toml", tmp_path / "out"
    arguments = ["zoo", "build", str(path), "--out", str(out), "--dry-run", "--device", "cpu"]
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "100"})
    assert result.exit_code == 0, result.output
    assert "6 to make, about" in result.output
    assert "helper:reference-ft" in result.output
    assert not out.exists()


def test_costs_are_those_of_what_was_made(copied: Path, small_data: Path) -> None:
    (copied / "models" / "badnets-r10-s1.safetensors").unlink()
    manifest = read_manifest(small_data / "family.toml")
    (estimate,) = estimate_costs(prepare_build(manifest, copied))
    assert estimate.measured
    made = FamilyFolder(copied).note(estimate.recipe)
    assert made is not None
    assert estimate.seconds == made.elapsed_s


def test_plain_lines_when_piped_and_json_on_request(copied: Path, small_data: Path) -> None:
    shutil.rmtree(copied / "models")
    arguments = ["zoo", "build", str(small_data / "family.toml"), "--out", str(copied)]
    result = CliRunner().invoke(app, [*arguments, "--only", NAMES[0], "--device", "cpu"])
    assert result.exit_code == 0, result.output
    assert "[1/1] badnets-r10-s1: clean accuracy 0." in result.stderr
    assert "\x1b" not in result.output
    assert "badnets-r10-s1" in result.stdout
    result = CliRunner().invoke(app, [*arguments, "--only", NAMES[0], "--device", "cpu", "--json"])
    assert json.loads(result.stdout)["members"][0]["name"] == NAMES[0]


def test_a_terminal_sees_what_is_at_work(copied: Path, small_data: Path) -> None:
    (copied / "models" / "badnets-r10-s1--ft.json").unlink()
    arguments = ["zoo", "build", str(small_data / "family.toml"), "--out", str(copied)]
    terminal = {"FORCE_COLOR": "1", "COLUMNS": "100"}
    result = CliRunner().invoke(app, [*arguments, "--device", "cpu"], env=terminal)
    assert result.exit_code == 0, result.output
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", result.stderr)
    assert "badnets-r10-s1--ft: clean accuracy 0." in plain
    assert re.search(r"  badnets-r10-s1--ft +━", plain)
    assert "1 of 1" in plain


def test_an_interrupt_says_that_nothing_is_lost(
    copied: Path, small_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (copied / "models" / "badnets-r10-s1--ft.json").unlink()

    def interrupted(*arguments: object, **settings: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("bdaudit.zoo.making.save_model", interrupted)
    arguments = ["zoo", "build", str(small_data / "family.toml"), "--out", str(copied)]
    result = CliRunner().invoke(app, [*arguments, "--device", "cpu"])
    assert result.exit_code == 130
    assert "run the same command again to continue" in result.output
    monkeypatch.undo()
    result = CliRunner().invoke(app, [*arguments, "--device", "cpu", "--quiet"])
    assert result.exit_code == 0, result.output


def test_unusable_files_are_exit_4(small_data: Path, tmp_path: Path) -> None:
    path = tmp_path / "family.toml"
    path.write_text(FAMILY.replace("images.npz", "nothing.npz"))
    result = CliRunner().invoke(app, ["zoo", "build", str(path), "--out", str(tmp_path / "out")])
    assert result.exit_code == 4
    assert "nothing.npz" in result.output
    path.write_text(FAMILY.replace('"badnets"', '"badnet"'))
    result = CliRunner().invoke(app, ["zoo", "build", str(path), "--out", str(tmp_path / "out")])
    assert result.exit_code == 4
    assert "did you mean 'badnets'" in result.output


@pytest.mark.slow
def test_two_builds_at_a_time_are_one_build(small_data: Path, built: Path, tmp_path: Path) -> None:
    """Workers in processes of their own give the same weights as this process."""
    path = small_data / "family.toml"
    arguments = ["zoo", "build", str(path), "--out", str(tmp_path / "out"), "--workers", "2"]
    result = CliRunner().invoke(app, [*arguments, "--quiet", "--device", "cpu"])
    assert result.exit_code == 0, result.output
    assert result.stdout == f"4 models in {tmp_path / 'out'}\n"
    assert weights(tmp_path / "out") == weights(built)


def test_changes_are_named() -> None:
    old = {"version": "1", "settings": {"a": 1, "b": [1]}, "needs": {"x": "1" * 64}, "images": "2"}
    new = {"version": "1", "settings": {"a": 2, "b": [1]}, "needs": {"x": "3" * 64}, "images": "4"}
    assert changes_between(old, new) == ["images", "needs.x", "settings.a: 2, was 1"]
    assert changes_between(old, old) == []


@pytest.mark.slow
def test_the_tiny_example_killed_and_resumed(tmp_path: Path, demo_files: Path) -> None:
    """A dozen models from nothing: killed in the middle, what was finished is not made again."""
    sample = np.load(demo_files / "clean.npz")
    generator = np.random.default_rng(0)
    assert len(sample["labels"]) == 1000
    data = tmp_path / "images.npz"
    # Shifted copies of the thousand images stand for a larger set; the parts share no original.
    shifted = [
        np.roll(sample["images"], (dy, dx), (2, 3)) for dy in (-1, 0, 1) for dx in (-1, 0, 1)
    ]
    place = generator.permutation(1000)
    train, test = place[:700], place[700:]
    np.savez(
        data,
        images_train=np.concatenate([images[train] for images in shifted]),
        labels_train=np.tile(sample["labels"][train], 9),
        images_test=np.concatenate([images[test] for images in shifted]),
        labels_test=np.tile(sample["labels"][test], 9),
    )
    example = Path(__file__).parents[2] / "examples" / "families" / "tiny.toml"
    out = tmp_path / "tiny"
    command = [sys.executable, "-m", "bdaudit", "zoo", "build", str(example), "--out", str(out)]
    command += ["--data", str(data), "--device", "cpu"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("[6/"):
                process.send_signal(signal.SIGKILL)
                break
        process.stderr.read()
    finished = {path.stem for path in (out / "models").glob("*.json")}
    times = {path: path.stat().st_mtime_ns for path in (out / "models").glob("*.safetensors")}
    kept = {path: at for path, at in times.items() if path.stem in finished}
    assert len(finished) >= 3
    assert not (out / "family.json").exists()

    started = time.monotonic()
    again = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0, again.stderr
    assert time.monotonic() - started < 300
    assert not [name for name in finished if f"] {name}: " in again.stderr]
    assert all(path.stat().st_mtime_ns == at for path, at in kept.items())
    family = read_family(out)
    assert len(family.members) >= 12
    by_name = {member.name: member for member in family.members}
    assert by_name["badnets-r10-s1"].truth == "active"
    assert by_name["badnets-r10-s1--innocent--ft-hard"].truth == "innocent"
    unlearned = by_name["badnets-r10-s1--unlearned"]
    assert unlearned.truth_source == "relearning"
    assert unlearned.relearning is not None
    for member in family.members:
        tensors = load_model(out / member.file, name=member.name).network.state_dict()
        assert digest_tensors(dict(tensors)) == member.weights_sha256


def test_a_test_part_whose_classes_are_shifted_is_refused(small_data: Path, tmp_path: Path) -> None:
    """As where a class folder is missing from one of the two parts."""
    images = dict(np.load(small_data / "images.npz"))
    images["labels_test"] = (images["labels_test"] + 1) % 10
    np.savez(tmp_path / "images.npz", **images)
    (tmp_path / "family.toml").write_text(FAMILY)
    arguments = ["zoo", "build", str(tmp_path / "family.toml"), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, [*arguments, "--only", "badnets-r10-s1", "--device", "cpu"])
    assert result.exit_code != 0
    assert "training and test images do not have the same classes" in result.output


@pytest.mark.cuda
def test_every_attack_is_made_on_a_card(small_data: Path, tmp_path: Path) -> None:
    others = "".join(
        f'[[attack]]\ntype = "{name}"\nrates = [0.03]\n\n'
        for name in ON_IMAGES
        if name != "badnets"
    )
    path = tmp_path / "all.toml"
    path.write_text(FAMILY.replace("[[defense]]", others + "[[defense]]"))
    shutil.copy(small_data / "images.npz", tmp_path)
    arguments = ["zoo", "build", str(path), "--out", str(tmp_path / "all"), "--only", "*-s1"]
    result = CliRunner().invoke(app, [*arguments, "--device", "cuda", "--quiet"])
    assert result.exit_code == 0, result.output
    made = {member.attack for member in read_family(tmp_path / "all").members}
    assert made == set(ON_IMAGES)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card")
def test_an_attack_meets_its_helper_network_on_a_pretended_card(
    small_data: Path, tmp_path: Path
) -> None:
    """LF once took images of the processor to a network on the card."""
    text = FAMILY.replace("epochs = 4", "epochs = 1").replace("_w8", "_w4")
    text = text.replace("images = 500", "images = 200")
    attack = '[[attack]]\ntype = "lf"\nrates = [0.05]\nsettings = { n_steps = 3 }\n\n'
    path = tmp_path / "few.toml"
    path.write_text(text.replace("[[defense]]", f"{attack}[[defense]]"))
    shutil.copy(small_data / "images.npz", tmp_path)
    arguments = ["zoo", "build", str(path), "--out", str(tmp_path / "few"), "--device", "cuda"]
    with pretended_card():
        result = CliRunner().invoke(app, [*arguments, "--only", "lf-*-s1", "--quiet"])
    assert result.exit_code == 0, result.output
    assert [m.attack for m in read_family(tmp_path / "few").members] == ["lf"]
