"""The demonstration's files are what docs/demo.md says, and its builder still works."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch
from typer.testing import CliRunner

from bdaudit.auditing.demo import DEMO_MODELS, export_demo
from bdaudit.cli import app
from bdaudit.data import load_sample
from bdaudit.errors import InputError
from bdaudit.foundation.progress import finish
from bdaudit.models import load_model
from bdaudit.reactivation import WhiteboxConfig, reactivate_whitebox
from bdaudit.scoring import predict
from bdaudit.triggers import Poisoned, poison, read_trigger

NAMES = ("original", "dormant", "removed", "innocent-1", "innocent-2", "innocent-3")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "files"
    export_demo(folder)
    return folder


@pytest.fixture(scope="module")
def poisoned(folder: Path) -> Poisoned:
    sample = load_sample(folder / "clean.npz")
    assert len(sample) == 1000
    return poison(sample, read_trigger(folder / "trigger.toml"), 10)


def asr(folder: Path, name: str, images: torch.Tensor, delta: torch.Tensor | None = None) -> float:
    model = load_model(folder / f"{name}.safetensors", name=name)
    answers = predict(model.classifier, images, batch_size=250, delta=delta)
    return float((answers == 0).float().mean())


def test_the_files_are_small(folder: Path) -> None:
    sizes = [path.stat().st_size for path in folder.iterdir()]
    assert max(sizes) < 1_000_000
    assert sum(sizes) < 6_000_000


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [("original", 0.99, 1.0), ("dormant", 0.0, 0.10), ("removed", 0.0, 0.03)]
    + [(f"innocent-{k}", 0.0, 0.04) for k in (1, 2, 3)],
)
def test_the_trigger_alone_does_what_the_page_says(
    folder: Path, poisoned: Poisoned, name: str, low: float, high: float
) -> None:
    assert low <= asr(folder, name, poisoned.triggered) <= high


def test_every_model_knows_its_clothes(folder: Path) -> None:
    sample = load_sample(folder / "clean.npz")
    for name in NAMES:
        model = load_model(folder / f"{name}.safetensors", name=name)
        answers = predict(model.classifier, sample.images, batch_size=250)
        assert float((answers == sample.labels).float().mean()) > 0.88, name


def test_a_short_attack_wakes_the_dormant_one_only(folder: Path, poisoned: Poisoned) -> None:
    craft, held_out = slice(0, 150), slice(150, 650)
    woken = {}
    for name in ("dormant", "removed", "innocent-2"):
        model = load_model(folder / f"{name}.safetensors", name=name)
        found = finish(
            reactivate_whitebox(
                model.classifier,
                poisoned.triggered[craft],
                poisoned.targets[craft],
                config=WhiteboxConfig(eps=0.02, n_passes=6),
                generator=torch.Generator().manual_seed(0),
            )
        )
        woken[name] = asr(folder, name, poisoned.triggered[held_out], found.delta)
    assert woken["dormant"] > 0.25
    assert woken["dormant"] > max(woken["removed"], woken["innocent-2"]) + 0.10
    assert woken["removed"] < 0.10


def test_export_refuses_a_folder_with_something_in_it(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="not empty"):
        export_demo(tmp_path)
    assert CliRunner().invoke(app, ["demo", "--export", str(tmp_path)]).exit_code == 4


def test_export_gives_all_that_an_audit_needs(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["demo", "--export", str(tmp_path / "demo")])
    assert result.exit_code == 0
    names = {path.name for path in (tmp_path / "demo").iterdir()}
    assert {f"{name}.safetensors" for name in NAMES} | {"clean.npz", "trigger.toml"} <= names
    assert set(DEMO_MODELS) < set(NAMES)


def builder() -> ModuleType:
    path = Path(__file__).parents[1] / "examples" / "build_demo.py"
    spec = importlib.util.spec_from_file_location("build_demo", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_builder_trains_defends_and_relearns(folder: Path, poisoned: Poisoned) -> None:
    build = builder()
    images, labels = poisoned.clean[:128], poisoned.labels[:128]
    stamped, relabelled = build.poisoned(images, labels, seed=0)
    assert int((stamped != images).flatten(1).any(dim=1).sum()) == 12
    assert int((relabelled == 0).sum()) == 12
    model = load_model(folder / "removed.safetensors", name="removed")
    classifier = build.new_classifier(0)
    classifier.network.load_state_dict(model.network.state_dict())
    tuned = build.unlearned(classifier, images, labels)
    assert not torch.equal(tuned.network.linear.weight, classifier.network.linear.weight)

    def share(other: torch.nn.Module) -> float:
        answers = predict(other, poisoned.triggered[200:400], batch_size=200)
        return float((answers == 0).float().mean())

    shots = poisoned.triggered[:5]
    again = build.relearned(classifier, (images, labels), shots, 0.001, share)
    assert list(again) == ["5 steps", "10 steps", "20 steps"]
    assert all(value is not None and value < 0.5 for value in again.values())
