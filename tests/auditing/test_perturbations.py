"""Tables of perturbations of twins whose answers are known."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

import bdaudit
from bdaudit.auditing.bench import open_bench_source
from bdaudit.auditing.perturbations import PerturbationSettings, perturbation_steps
from bdaudit.cli import app
from bdaudit.errors import ConfigError
from bdaudit.foundation.progress import finish
from bdaudit.models import ModelSettings
from bdaudit.records.families import Family, FamilyMember, FamilyTrigger, write_family
from bdaudit.records.perturbations import PerturbationsRecord, read_perturbations
from bdaudit.report.perturbations import perturbations_markdown, printed_tables
from bdaudit.report.perturbations_terminal import print_perturbations
from tests.cli.twin_files import write_twin_files
from tests.twins import IMAGE_SHAPE, NUM_CLASSES

FACTORY = f"{Path(__file__).parents[1] / 'cli' / 'twin_factory.py'}:twin"
SETTINGS = PerturbationSettings(
    only=("dormant", "removed"),
    audit=bdaudit.AuditSettings(
        eps=(0.05,),
        passes=3,
        max_queries=300,
        cold=True,
        compute=bdaudit.ComputeSettings(device="cpu"),
        split=bdaudit.SplitSettings(craft=40, held_out=40),
    ),
)


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_twin_files(tmp_path_factory.mktemp("family"))

    def member(name: str, **fields: object) -> FamilyMember:
        common = {"file": f"{name}.safetensors", "sha256": "0", "weights_sha256": "0"}
        return FamilyMember.model_validate({"name": name, **common, **fields})

    held = {"original": "original", "trigger": "patch", "attack": "badnets", "lineage": "defended"}
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
                member("dormant", truth="dormant", **held),
                member("removed", truth="removed", **held),
                member("innocent", lineage="clean", truth="innocent"),
            ),
        ),
    )
    return folder


def measure(family: Path, out: Path, settings: PerturbationSettings) -> PerturbationsRecord:
    return finish(
        perturbation_steps(
            open_bench_source(family),
            out=out,
            settings=settings,
            model_options=ModelSettings(arch=FACTORY),
        )
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tables")


@pytest.fixture(scope="module")
def made(family: Path, folder: Path) -> PerturbationsRecord:
    return measure(family, folder, SETTINGS)


def test_what_wakes_the_sleeping_twin_stands_in_every_table(made: PerturbationsRecord) -> None:
    dormant, removed = made.cases

    still = {(e.model, e.shown): e.rate.value for e in dormant.noise if e.radius == 0}
    assert still["original", "trigger"] == 1
    assert still["dormant", "trigger"] == 0
    assert still["dormant", "reactivated"] == 1
    assert still["dormant", "general"] == 0
    assert still["innocent", "reactivated"] == 0
    assert still["dormant", "clean"] == 1
    assert {e.radius for e in dormant.noise} == {0.0, 0.03, 0.06, 0.09}
    assert all(e.rate.value == 0 for e in removed.noise if e.shown == "reactivated")
    on_dormant = {e.made_on: e.asr.value for e in dormant.transfer}
    assert on_dormant["dormant",] == 1
    assert on_dormant.keys() == {("dormant",), ("original",), ("innocent",), ("removed",)}
    reached = {(e.model, e.shown): e.asr.value for e in dormant.queries if e.wanted == 300}
    assert reached.keys() == {
        ("dormant", "reactivated"), ("dormant", "general"), ("innocent", "reactivated"),
    }  # fmt: skip
    assert reached["dormant", "reactivated"] > 0.5
    assert reached["dormant", "general"] == reached["innocent", "reactivated"] == 0
    assert all(e.queries <= e.wanted for e in dormant.queries)


def test_the_woken_twin_is_more_alike_than_an_innocent_one(made: PerturbationsRecord) -> None:
    alike = {(e.model, e.shown): e.mean for e in made.cases[0].likeness}

    assert ("original", "trigger") not in alike  # 1 by definition
    woken, innocent = alike["dormant", "reactivated"], alike["innocent", "reactivated"]
    assert woken is not None
    assert innocent is not None
    assert woken > innocent


def test_what_is_finished_is_kept(family: Path, folder: Path, made: PerturbationsRecord) -> None:
    again = measure(family, folder, SETTINGS)

    assert again.cases == made.cases  # with the seconds it took then


def test_a_model_that_cannot_be_measured_leaves_the_others(
    family: Path, tmp_path: Path, made: PerturbationsRecord
) -> None:
    broken = tmp_path / "family"
    shutil.copytree(family, broken)
    content = (broken / "removed.safetensors").read_bytes()
    (broken / "removed.safetensors").write_bytes(content[: len(content) // 2])

    settings = replace(SETTINGS, tables=("likeness",), only=("removed",))
    (case,) = measure(broken, tmp_path / "out", settings).cases

    assert case.reason is not None
    assert "removed.safetensors" in case.reason
    failed = made.model_copy(update={"cases": (case,)})
    assert printed_tables(failed) == ()
    assert "removed.safetensors" in perturbations_markdown(failed)


def test_they_are_printed(made: PerturbationsRecord) -> None:
    tables = {table.title: table for table in printed_tables(made)}

    transfer = tables["Transfer"]
    assert transfer.columns == ("made on", "architecture", "on dormant", "on removed")
    assert transfer.rows[0][0] == "itself (white box)"
    assert transfer.rows[0][2] == "100.0% [0.0%]"
    console = Console(record=True, width=60)
    print_perturbations(made, console)
    assert "Likeness of activations: original" in console.export_text()
    page = perturbations_markdown(made)
    assert "## Random noise: original" in page
    assert "| original | trigger | 100.0% |" in page


def test_settings_that_contradict_are_refused() -> None:
    with pytest.raises(ConfigError, match="one radius"):
        PerturbationSettings(audit=bdaudit.AuditSettings())
    with pytest.raises(ConfigError, match="some of noise"):
        PerturbationSettings(tables=("noise", "noise"))
    with pytest.raises(ConfigError, match="1 or more"):
        PerturbationSettings(seeds=0)


def test_the_command_writes_its_pages(family: Path, tmp_path: Path) -> None:
    command = [
        "perturbations", str(family), "--out", str(tmp_path / "out"), "--arch", FACTORY,
        "--tables", "noise", "--only", "dormant", "--passes", "1", "--craft", "20",
        "--held-out", "20", "--quiet",
    ]  # fmt: skip

    result = CliRunner().invoke(app, command)

    assert result.exit_code == 0, result.output
    assert result.stdout == "twins: noise of 1 models, seed 0\n"
    made = read_perturbations(tmp_path / "out" / "perturbations.json")
    assert (made.eps, made.tables) == (0.05, ("noise",))
    assert (
        (tmp_path / "out" / "perturbations.md").read_text().startswith("# Perturbations of twins")
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tables", "colour"], "--tables: expected some of noise"),
        (["--only", "nothing-*"], "no model is called nothing-*"),
        (["--eps", "0.01,0.02"], "eps"),
    ],
)
def test_what_cannot_be_done_is_said(
    family: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    command = ["perturbations", str(family), "--out", str(tmp_path / "out"), *arguments]

    result = CliRunner().invoke(app, command)

    assert result.exit_code == 2
    assert message in result.output
