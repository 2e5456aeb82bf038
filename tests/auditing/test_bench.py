"""A benchmark of twins whose answers are known, audited for real."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

import bdaudit
from bdaudit.auditing.bench import BenchSettings, bench_steps, open_bench_source
from bdaudit.engines import LocalEngine
from bdaudit.errors import ConfigError, InputError
from bdaudit.foundation.progress import finish
from bdaudit.foundation.statistics import wilson_interval
from bdaudit.models import ModelSettings, save_model
from bdaudit.records import Rate, read_record
from bdaudit.records.benchmark import BenchmarkRecord
from bdaudit.records.families import Family, FamilyMember, FamilyTrigger, read_family, write_family
from bdaudit.report import benchmark_html
from bdaudit.report.benchmark_terminal import print_benchmark
from tests.cli.twin_files import write_twin_files
from tests.twins import IMAGE_SHAPE, NUM_CLASSES, innocent_twin

FACTORY = f"{Path(__file__).parents[1] / 'cli' / 'twin_factory.py'}:twin"
SETTINGS = BenchSettings(
    audit=bdaudit.AuditSettings(
        eps=(0.02, 0.05),
        passes=4,
        controls=("no_trigger", "noise"),
        compute=bdaudit.ComputeSettings(device="cpu"),
        split=bdaudit.SplitSettings(craft=100),
    )
)
TRUTHS = {"dormant": "dormant", "removed": "removed", "active": "active"}


def member(name: str, **fields: object) -> FamilyMember:
    common = {"file": f"{name}.safetensors", "sha256": "0", "weights_sha256": "0"}
    return FamilyMember.model_validate({"name": name, **common, **fields})


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A family of twins: one sleeps, one was cured, one works, one is innocent."""
    folder = write_twin_files(tmp_path_factory.mktemp("family"))
    shutil.copy(folder / "original.safetensors", folder / "active.safetensors")
    # Not the very same weights: an audit warns of those.
    harmless = innocent_twin()
    with torch.no_grad():
        for parameter in harmless.parameters():
            parameter.mul_(1.001)
    save_model(
        folder / "harmless.safetensors",
        harmless,
        arch=None,
        num_classes=NUM_CLASSES,
        image_shape=IMAGE_SHAPE,
    )
    held = {"original": "original", "trigger": "patch", "attack": "badnets"}
    write_family(
        folder,
        Family(
            name="twins",
            dataset="made up",
            num_classes=NUM_CLASSES,
            image_shape=IMAGE_SHAPE,
            sample="clean.npz",
            references=("innocent",),
            triggers={"patch": FamilyTrigger(file="trigger.toml", sha256="1", attack="badnets")},
            members=(
                member("original", lineage="original", trigger="patch", truth="active"),
                *(member(n, lineage="defended", truth=t, **held) for n, t in TRUTHS.items()),
                member("harmless", lineage="clean", truth="innocent", **held),
                member("innocent", lineage="clean", truth="innocent"),
            ),
        ),
    )
    return folder


def bench(folder: Path, out: Path, settings: BenchSettings = SETTINGS) -> BenchmarkRecord:
    return finish(
        bench_steps(
            open_bench_source(folder),
            out=out,
            settings=settings,
            engine=LocalEngine(1),
            model_options=ModelSettings(arch=FACTORY),
        )
    )


def test_verdicts_are_held_against_the_truth(family: Path, tmp_path: Path) -> None:
    made = bench(family, tmp_path / "out")

    assert {case.member: case.outcome for case in made.cases} == {
        "dormant": "dormant",
        "removed": "removed",
        "active": "active",
        "harmless": "removed",
    }
    assert all(case.correct for case in made.cases)
    assert made.misses == ()
    found = made.confusion["white"]
    assert (found.innocent_called_backdoored.successes, found.inconclusive.successes) == (0, 0)
    assert {c.auc for c in made.curves if c.score == "lift" and c.attack is None} == {1.0}
    for case in made.cases:
        assert case.record is not None
        record = read_record(tmp_path / "out" / case.record)
        assert record.verdict.outcome == case.outcome
        assert case.peak_memory_bytes is None or case.peak_memory_bytes > 0


def test_what_is_finished_is_kept(family: Path, tmp_path: Path) -> None:
    once = bench(family, tmp_path / "out", replace(SETTINGS, only=("d*",)))
    records = {p: p.read_bytes() for p in (tmp_path / "out" / "records").iterdir()}

    more = bench(family, tmp_path / "out")

    assert [case.member for case in once.cases] == ["dormant"]
    assert len(more.cases) == 4
    for path, content in records.items():
        assert path.read_bytes() == content


def test_another_way_audits_some_of_the_models(family: Path, tmp_path: Path) -> None:
    settings = replace(SETTINGS, variants=("white", "transfer"), every=2)
    settings = replace(settings, audit=replace(settings.audit, eps=(0.05,)))

    made = bench(family, tmp_path / "out", settings)

    by_variant = {v: [c.member for c in made.cases if c.variant == v] for v in settings.variants}
    assert len(by_variant["white"]) == 4
    assert len(by_variant["transfer"]) == 2
    assert [a.name for a in made.agreements] == ["transfer against white box"]


def test_a_model_that_cannot_be_audited_is_no_pass(family: Path, tmp_path: Path) -> None:
    folder = tmp_path / "family"
    shutil.copytree(family, folder)
    (folder / "harmless.safetensors").write_bytes(b"junk")

    made = bench(folder, tmp_path / "out")

    (case,) = [c for c in made.cases if c.member == "harmless"]
    assert (case.outcome, case.correct) == (None, None)
    assert "harmless.safetensors" in case.why
    assert made.confusion["white"].inconclusive.successes == 1


def test_a_wrong_truth_is_a_miss(family: Path, tmp_path: Path) -> None:
    folder = tmp_path / "family"
    shutil.copytree(family, folder)
    known = read_family(folder)
    wrong = [
        m.model_copy(update={"truth": "removed"}) if m.name == "dormant" else m
        for m in known.members
    ]
    write_family(folder, known.model_copy(update={"members": tuple(wrong)}))

    made = bench(folder, tmp_path / "out", replace(SETTINGS, only=("dormant",)))

    assert [(m.case, m.outcome) for m in made.misses] == [("dormant--white", "dormant")]


def test_one_original_is_too_few_to_calibrate(family: Path, tmp_path: Path) -> None:
    settings = replace(SETTINGS, only=("removed",), calibrate=True)

    with pytest.raises(ConfigError, match="two originals or more"):
        bench(family, tmp_path / "out", settings)


def test_backdoorbench_records_are_audited_with_their_truth_unknown(
    family: Path, tmp_path: Path
) -> None:
    record = tmp_path / "badnet_0_1"
    channels, *sides = IMAGE_SHAPE
    size = [*sides, channels]
    for place, name in ((".", "original"), ("defense/ft", "dormant"), ("defense/nad", "removed")):
        (record / place).mkdir(parents=True, exist_ok=True)
        kind = "attack" if place == "." else "defense"
        state = load_file(family / f"{name}.safetensors")
        torch.save(
            {"model_name": "twin", "num_classes": NUM_CLASSES, "model": state, "img_size": size},
            record / place / f"{kind}_result.pt",
        )
    with pytest.raises(InputError, match="hold no clean sample"):
        open_bench_source(tmp_path)
    with pytest.raises(InputError, match=r"trigger\.toml: expected the trigger"):
        open_bench_source(tmp_path, data=family / "clean.npz")
    for file in (family / "trigger.toml", family / "delta.npy"):
        shutil.copy(file, record)

    source = open_bench_source(
        tmp_path, data=family / "clean.npz", references=[family / "innocent.safetensors"]
    )
    made = finish(
        bench_steps(
            source,
            out=tmp_path / "out",
            settings=SETTINGS,
            engine=LocalEngine(1),
            model_options=ModelSettings(arch=FACTORY),
        )
    )

    assert not [c.why for c in made.cases if c.outcome is None]
    assert {c.member: (c.outcome, c.truth, c.correct) for c in made.cases} == {
        "badnet_0_1--ft": ("dormant", "unknown", None),
        "badnet_0_1--nad": ("removed", "unknown", None),
    }


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected a family of models"):
        open_bench_source(tmp_path)


@pytest.mark.parametrize("variants", [(), ("white", "white"), ("grey",)])
def test_unknown_variants_are_refused(variants: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="variants: expected some of"):
        BenchSettings(variants=variants)  # type: ignore[arg-type]


def test_models_that_did_not_learn_are_left_out_of_the_counts_and_said(
    family: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(family, tmp_path / "family"))
    described = read_family(folder)
    low, high = wilson_interval(250, 1000)
    guessing = Rate(successes=250, total=1000, low=low, high=high)
    changed = tuple(
        m.model_copy(update={"clean_acc": guessing}) if m.name in ("removed", "innocent") else m
        for m in described.members
    )
    write_family(folder, described.model_copy(update={"members": changed}))

    source = open_bench_source(folder)
    assert "removed" not in {case.member.name for case in source.cases}
    assert source.references == ()
    made = bench(folder, tmp_path / "out", replace(SETTINGS, only=("dormant",)))
    assert set(made.left_out) == {"removed", "innocent"}
    console = Console(record=True, width=200)
    print_benchmark(made, console)
    assert "left out: removed did not learn the task: clean accuracy 25.0%" in console.export_text()
    assert "did not learn the task" in benchmark_html.render(made)

    nobody = tuple(m.model_copy(update={"clean_acc": guessing}) for m in changed)
    write_family(folder, described.model_copy(update={"members": nobody}))
    with pytest.raises(InputError, match="none that learned the task"):
        open_bench_source(folder)
