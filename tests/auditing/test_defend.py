"""Defences tried on a hand-set twin, audited and ranked; a second run does nothing twice."""

from __future__ import annotations

import importlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from timm.models import save_for_hf
from torch import Tensor, nn

import bdaudit
from bdaudit.auditing import DefendSettings, Sources, defend_steps
from bdaudit.auditing.defend import _with_all_boxes
from bdaudit.data import Sample
from bdaudit.defenses import catalogue
from bdaudit.defenses.catalogue import Defense
from bdaudit.detection import Places
from bdaudit.engines import LocalEngine
from bdaudit.errors import ConfigError, InputError, ModelError, NumericsError
from bdaudit.foundation.progress import Progress, Steps, finish
from bdaudit.models import load_model
from bdaudit.records import AuditRecord, read_record
from bdaudit.records.defenses import DefenseRecord, TriedDefense, read_defenses
from bdaudit.relatives.standins import StandInConfig
from tests.cli.twin_files import write_twin_files
from tests.models.hub_folders import write
from tests.twins import IMAGE_SHAPE, NUM_CLASSES, dormant_twin, original_twin, removed_twin

FACTORY = f"{Path(__file__).parents[1] / 'cli' / 'twin_factory.py'}:twin"
AUDIT = bdaudit.AuditSettings(
    eps=(0.02, 0.05),
    passes=8,
    stand_ins=0,
    bec=False,
    relearn=None,
    pictures=False,
    compute=bdaudit.ComputeSettings(device="cpu"),
    split=bdaudit.SplitSettings(craft=60),
)


@dataclass(frozen=True, kw_only=True)
class SurgeryConfig:
    """Settings of a made-up defence.

    Attributes:
        strength: No weight of it matters; a change of it must be noticed.
    """

    strength: float = 1.0


# `bdaudit.auditing.defend` is the verb, which has the name of its module.
MODULE = importlib.import_module("bdaudit.auditing.defend")
CALLS: list[str] = []
SEEN: list[Tensor] = []


def surgery(name: str, twin: type[nn.Module] | None) -> Defense:
    """A defence whose effect is known: it puts another twin's weights into the network."""

    def run(
        classifier: nn.Module,
        images: Tensor,
        labels: Tensor,
        *,
        config: SurgeryConfig,
        generator: torch.Generator,
    ) -> Steps[nn.Module]:
        CALLS.append(name)
        SEEN.append(images)
        yield Progress(name, 0, 1)
        if twin is None:
            raise NumericsError(f"{name}: the loss was not finite")
        other = twin()
        classifier.network.load_state_dict(other.state_dict())  # type: ignore[union-attr]
        return classifier

    return Defense(name, name.upper(), SurgeryConfig, run)


@pytest.fixture(autouse=True)
def _surgeries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put defences of known effect in place of those that take minutes to have one."""
    made = {
        one.name: one
        for one in (
            surgery("lull", dormant_twin),
            surgery("cut", removed_twin),
            surgery("nothing", original_twin),
            surgery("diverge", None),
        )
    }
    monkeypatch.setattr(catalogue, "DEFENSES", made)
    monkeypatch.setattr(MODULE, "DEFENSES", made)
    CALLS.clear()
    SEEN.clear()
    return


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_twin_files(tmp_path_factory.mktemp("files"))
    for number in (1, 2, 3):
        net = load_model(folder / "innocent.safetensors", name="i", arch=FACTORY).network
        with torch.no_grad():
            net.linear.weight.mul_(1.0 + 0.01 * number)  # type: ignore[union-attr,operator]
        bdaudit.save_model(
            folder / f"innocent-{number}.safetensors",
            net,
            arch=None,
            num_classes=4,
            image_shape=(1, 8, 8),
        )
    return folder


def defend(files: Path, folder: Path, **changes: object) -> DefenseRecord:
    settings = DefendSettings(audit=AUDIT, defender_images=60)
    named: dict[str, Any] = {
        "defended": None,
        "original": files / "original.safetensors",
        "references": [files / f"innocent-{number}.safetensors" for number in (1, 2, 3)],
        "data": files / "clean.npz",
        "trigger": files / "trigger.toml",
        "model_options": bdaudit.ModelSettings(arch=FACTORY),
    }
    sources = Sources.of(**(named | changes.pop("sources", {})))
    settings = replace(settings, **changes)  # type: ignore[arg-type]
    steps = defend_steps(sources, folder=folder, engine=LocalEngine(), settings=settings)
    return finish(steps)


def row(record: DefenseRecord, method: str) -> TriedDefense:
    return next(one for one in record.tried if one.method == method)


def test_removed_comes_first_and_a_failure_is_a_row(files: Path, tmp_path: Path) -> None:
    record = defend(files, tmp_path / "out")
    assert [one.method for one in record.tried] == ["cut", "lull", "nothing", "diverge"]
    assert [one.outcome for one in record.tried] == ["removed", "dormant", "active", None]
    failed = row(record, "diverge")
    assert failed.status == "failed"
    assert "not finite" in failed.why
    assert record.outcome == "pass"
    assert record.best == "best.safetensors"
    out = tmp_path / "out"
    assert (out / "best.safetensors").read_bytes() == (out / "cut.safetensors").read_bytes()
    best = read_record(out / "best.json")
    assert isinstance(best, AuditRecord)
    assert best.verdict is not None
    assert best.verdict.outcome == "removed"
    assert read_defenses(out / "defend.json") == record
    kept = load_model(out / "cut.safetensors", name="cut", arch=FACTORY).network.state_dict()
    assert all(torch.equal(kept[k], v) for k, v in removed_twin().state_dict().items())


def test_the_defences_never_see_an_image_of_the_audits(files: Path, tmp_path: Path) -> None:
    record = defend(files, tmp_path / "out", methods=("cut",))
    audited = read_record(tmp_path / "out" / "cut.json")
    assert isinstance(audited, AuditRecord)
    assert (record.n_defender, record.n_auditor) == (60, 340)
    assert audited.data.n_images == 340
    everything = bdaudit.load_sample(files / "clean.npz").images.flatten(1)
    shown = {bytes(image.numpy().tobytes()) for image in SEEN[0].flatten(1)}
    assert len(shown) == 60
    assert sum(image.numpy().tobytes() in shown for image in everything) == 60


def test_a_second_run_does_nothing_twice(files: Path, tmp_path: Path) -> None:
    first = defend(files, tmp_path / "out")
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").glob("*[!d].safetensors")}
    CALLS.clear()
    again = defend(files, tmp_path / "out")
    assert CALLS == []
    assert {one.kept for one in again.tried} == {"audit"}
    assert {p: p.stat().st_mtime_ns for p in before if p.stem != "best"} == {
        p: t for p, t in before.items() if p.stem != "best"
    }
    assert [o.model_copy(update={"kept": "nothing"}) for o in again.tried] == list(first.tried)


def test_what_changed_is_named_and_done_again_alone(files: Path, tmp_path: Path) -> None:
    defend(files, tmp_path / "out", methods=("cut", "lull"))
    CALLS.clear()
    stronger = {"cut": {"strength": 2.0}}
    record = defend(files, tmp_path / "out", methods=("cut", "lull"), settings=stronger)
    assert CALLS == ["cut"]
    assert row(record, "cut").changes == ("cut.strength was 1.0, is 2.0",)
    assert row(record, "cut").kept == "nothing"
    assert row(record, "lull").kept == "audit"


def test_another_policy_judges_anew_and_trains_nothing(files: Path, tmp_path: Path) -> None:
    defend(files, tmp_path / "out", methods=("cut",))
    CALLS.clear()
    strict = bdaudit.Policy(min_held_out=100_000)
    record = defend(files, tmp_path / "out", methods=("cut",), sources={"policy": strict})
    assert CALLS == []
    assert row(record, "cut").kept == "model"
    assert row(record, "cut").changes == ("policy differs",)
    assert record.outcome == "inconclusive"
    assert record.best is None
    assert not (tmp_path / "out" / "best.safetensors").exists()


def test_a_model_that_was_tampered_with_is_made_again(files: Path, tmp_path: Path) -> None:
    defend(files, tmp_path / "out", methods=("cut",))
    written = tmp_path / "out" / "cut.safetensors"
    written.write_bytes((tmp_path / "out" / "cut.safetensors").read_bytes() + b" ")
    CALLS.clear()
    assert row(defend(files, tmp_path / "out", methods=("cut",)), "cut").outcome == "removed"
    assert CALLS == ["cut"]


def test_a_fault_that_nobody_foresaw_is_a_row_and_tried_again(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stumble(classifier: nn.Module, *_: object, **__: object) -> Steps[nn.Module]:
        CALLS.append("stumble")
        yield Progress("stumble", 0, 1)
        raise ZeroDivisionError("by nought")

    made = {**catalogue.DEFENSES, "stumble": Defense("stumble", "X", SurgeryConfig, stumble)}
    monkeypatch.setattr(catalogue, "DEFENSES", made)
    monkeypatch.setattr(MODULE, "DEFENSES", made)
    record = defend(files, tmp_path / "out", methods=("cut", "stumble"))
    assert row(record, "stumble").why == "ZeroDivisionError: by nought"
    assert record.outcome == "pass"
    defend(files, tmp_path / "out", methods=("cut", "stumble"))
    assert CALLS.count("stumble") == 2


def test_none_removed_fails_and_leaves_no_best(files: Path, tmp_path: Path) -> None:
    record = defend(files, tmp_path / "out", methods=("lull", "diverge"))
    assert record.outcome == "fail"
    assert "no defence tried is known to have removed" in record.why
    assert record.best is None
    assert not (tmp_path / "out" / "best.safetensors").exists()


def test_a_second_witness_that_disagrees_is_heard(files: Path, tmp_path: Path) -> None:
    taught = bdaudit.RelearnConfig(learning_rates=(1e-4,), steps=(5,), draws=3, n_held_out=60)
    audit = replace(AUDIT, relearn=taught, eps=(0.001,), passes=2)
    record = defend(files, tmp_path / "out", methods=("lull",), audit=audit)
    (lulled,) = record.tried
    # So small a perturbation wakes nothing, and training does.
    assert lulled.outcome != "dormant"
    audited = read_record(tmp_path / "out" / "lull.json")
    assert isinstance(audited, AuditRecord)
    assert audited.verdict is not None
    assert any("bring it back faster" in reason for reason in audited.verdict.reasons)


def test_without_a_trigger_it_is_looked_for_once(files: Path, tmp_path: Path) -> None:
    audit = replace(
        AUDIT,
        inversion=bdaudit.InversionConfig(methods=("universal",), n_passes=2),
        stand_ins=1,
        stand_in=StandInConfig(n_images=64),
    )
    changes = {"methods": ("cut", "lull"), "audit": audit, "sources": {"trigger": None}}
    record = defend(files, tmp_path / "out", **changes)
    assert record.trigger_recovered
    assert record.search
    search = tmp_path / "out" / "state" / "trigger.json"
    stamp = search.stat().st_mtime_ns
    shas = set()
    for name in ("cut", "lull"):
        audited = read_record(tmp_path / "out" / f"{name}.json")
        assert isinstance(audited, AuditRecord)
        assert audited.inversion is not None
        shas.add(audited.trigger.sha256)
    assert len(shas) == 1
    again = defend(files, tmp_path / "out", **changes)
    assert {one.kept for one in again.tried} == {"audit"}
    # A method that was not tried before meets the search that was kept.
    more = defend(files, tmp_path / "out", **{**changes, "methods": ("nothing",)})
    assert row(more, "nothing").kept == "nothing"
    assert search.stat().st_mtime_ns == stamp
    made = {}
    for name in ("cut", "nothing"):
        audited = read_record(tmp_path / "out" / f"{name}.json")
        assert isinstance(audited, AuditRecord)
        assert audited.inversion is not None
        made[name] = audited.inversion.made[0].weights_sha256
    assert made["cut"] == made["nothing"]


def test_unusable_requests_are_refused_before_any_work(files: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown key 'cutt'; did you mean 'cut'"):
        DefendSettings(methods=("cutt",))
    with pytest.raises(ConfigError, match="not among the methods"):
        DefendSettings(methods=("cut",), settings={"lull": {"strength": 1.0}})
    with pytest.raises(ConfigError, match="strength"):
        DefendSettings(methods=("cut",), settings={"cut": {"strengh": 1.0}})
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="contains something else"):
        defend(files, tmp_path / "full")
    with pytest.raises(ModelError, match="got a module in memory"):
        defend(files, tmp_path / "out", sources={"original": original_twin()})
    assert CALLS == []


def test_how_images_are_resized_goes_with_the_model(files: Path, tmp_path: Path) -> None:
    original = tmp_path / "original.safetensors"
    settings = {"num_classes": NUM_CLASSES, "image_shape": IMAGE_SHAPE, "input_size": (8, 8)}
    bdaudit.save_model(original, original_twin(), arch=None, interpolation="bicubic", **settings)
    defend(files, tmp_path / "out", methods=("cut",), sources={"original": original})
    made = load_model(tmp_path / "out" / "cut.safetensors", name="m", arch=FACTORY)
    assert made.classifier.interpolation == "bicubic"


def keep(
    classifier: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    config: SurgeryConfig,
    generator: torch.Generator,
) -> Steps[nn.Module]:
    """A defence that changes nothing."""
    yield Progress("keep", 0, 1)
    return classifier


def test_folders_of_the_hub(tmp_path: Path) -> None:
    """Of timm the defended versions are files; of transformers no file says how they are built."""
    MODULE.DEFENSES["keep"] = Defense("keep", "KEEP", SurgeryConfig, keep)
    rng = np.random.default_rng(0)
    images = rng.random((240, 3, 8, 8)).astype(np.float32).repeat(4, axis=2).repeat(4, axis=3)
    folder = tmp_path / "timm"
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = timm.create_model("test_resnet", num_classes=3).eval()
        said = model((torch.tensor(images) - 0.5) / 0.5)
        model.get_classifier().bias -= said.mean(dim=0)  # or nearly all were of one class to it
    save_for_hf(model, folder, safe_serialization=True)
    config = json.loads((folder / "config.json").read_text())
    config["pretrained_cfg"] |= {"input_size": [3, 32, 32], "crop_pct": 1.0}
    config["pretrained_cfg"] |= {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic"}
    (folder / "config.json").write_text(json.dumps(config))
    labels = (said - said.mean(dim=0)).argmax(dim=1)
    assert len(labels.unique()) == 3
    np.save(tmp_path / "white.npy", np.ones((3, 4, 4), dtype=np.float32))
    (tmp_path / "trigger.toml").write_text(
        'kind = "patch"\n[target]\nlabel = 0\n[patch]\nimage = "white.npy"\n'
    )
    given = {
        "data": (torch.tensor(images), labels),
        "references": (),
        "model_options": bdaudit.ModelSettings(),
    }
    made = defend(
        tmp_path,
        tmp_path / "out",
        methods=("keep",),
        audit=replace(AUDIT, eps=(0.02,), passes=1, controls=("no_trigger",)),
        sources={**given, "original": folder},
    )
    assert [row.status for row in made.tried] == ["audited"], made.tried[0].why
    kept = load_model(tmp_path / "out" / "keep.safetensors", name="m")
    original = load_model(folder, name="m")
    assert (kept.arch, kept.weights_sha256) == ("timm/test_resnet", original.weights_sha256)
    other = torch.rand(2, 3, 48, 48)
    assert torch.equal(kept.classifier(other), original.classifier(other))

    write(tmp_path / "vit")
    sources = {**given, "original": tmp_path / "vit"}
    with pytest.raises(ModelError, match="save_pretrained"):
        defend(tmp_path, tmp_path / "no", methods=("keep",), sources=sources)
    assert not (tmp_path / "no").exists()


def test_the_record_is_plain_json(files: Path, tmp_path: Path) -> None:
    defend(files, tmp_path / "out", methods=("cut",))
    document = json.loads((tmp_path / "out" / "defend.json").read_text())
    assert document["kind"] == "defenses"
    assert document["tried"][0]["settings"] == {"strength": 1.0}


def test_the_verb_takes_paths(files: Path, tmp_path: Path) -> None:
    record = bdaudit.defend(
        files / "original.safetensors",
        data=files / "clean.npz",
        folder=tmp_path / "out",
        trigger=files / "trigger.toml",
        reference=[files / "innocent-1.safetensors"],
        settings=DefendSettings(audit=AUDIT, methods=("nothing",), defender_images=60),
        model_options=bdaudit.ModelSettings(arch=FACTORY),
    )
    assert [one.outcome for one in record.tried] == ["active"]
    assert record.original_clean_acc is not None
    assert record.original_clean_acc.value == 1.0


def places(labels: list[int], pictures: list[int], n_objects: list[int]) -> Sample:
    drawn = torch.rand((len(labels), 4, 8, 8))
    annotated = tuple((torch.zeros(n, 4), torch.ones(n, dtype=torch.int64)) for n in n_objects)
    return Sample(
        images=drawn,
        labels=torch.tensor(labels),
        names=tuple(map(str, range(len(labels)))),
        class_names=None,
        source="streets",
        sha256="",
        places=Places(torch.tensor(pictures), torch.zeros(len(labels), 4), annotated),
    )


def test_defences_of_a_detector_get_all_boxes_of_their_pictures() -> None:
    sample = places([1, 2, 0, 1, 0, 3], [0, 0, 0, 1, 1, 2], [2, 1, 1])
    whole = _with_all_boxes(sample, sample.take(torch.tensor([1, 5])))
    assert whole.names == ("0", "1", "2", "5")
    assert torch.equal(whole.images, sample.images[[0, 1, 2, 5]])
    classified = replace(sample, places=None)
    assert _with_all_boxes(classified, classified) is classified
    with pytest.raises(ConfigError, match="of 1 pictures only some objects are there"):
        _with_all_boxes(places([1, 0, 1], [0, 0, 1], [2, 1]), sample.take(torch.tensor([0])))
