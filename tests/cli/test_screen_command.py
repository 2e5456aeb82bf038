"""`bdaudit screen`: every answer with its exit code, the record and its reports."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner, Result

import bdaudit
from bdaudit.cli import app
from bdaudit.errors import ConfigError, DataError, ModelError, RecordError
from bdaudit.models import ModelSettings, save_model
from bdaudit.records import ScreenRecord, read_record, to_json
from bdaudit.report.formats import FORMATS, render_report
from tests.inversion.nets import PixelNet

FACTORY = f"{Path(__file__).with_name('pixel_factory.py')}:pixels"
NETS = {
    "suspicious": (5.0, 6.0, 7.0, 6.5, 60.0),
    "even": (5.0, 6.0, 7.0, 6.5, 7.5),
    "alike": (5.0, 5.0, 5.0, 5.0, 90.0),
    "three": (5.0, 6.0, 60.0),
}
SHAPE = (1, 2, 4)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    for name, sizes in NETS.items():
        save_model(
            folder / f"{name}.safetensors",
            PixelNet(sizes),
            arch=None,
            num_classes=len(sizes),
            image_shape=SHAPE,
        )
    (folder / "classes.txt").write_text("ape\nbee\ncat\ndog\n=eel\n")
    return folder


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in ("screen", *arguments)])


def screened(name: str) -> ScreenRecord:
    return bdaudit.screen(
        PixelNet(NETS[name]), model_options=ModelSettings(image_shape=SHAPE), classes=None
    )


def test_a_class_out_of_proportion_is_pointed_at(files: Path, tmp_path: Path) -> None:
    written, page = tmp_path / "screen.json", tmp_path / "screen.html"
    result = run(
        files / "suspicious.safetensors", "--arch", FACTORY, "--classes", files / "classes.txt",
        "--json", written, "--report", f"html={page}", "--seed", 7,
    )  # fmt: skip
    assert result.exit_code == 1, result.output
    assert "SUSPICIOUS" in result.stdout
    assert "4 (=eel)" in result.stdout
    assert "What this does not prove" in result.stdout
    record = read_record(written)
    assert isinstance(record, ScreenRecord)
    assert record.seed == 7
    assert record.screening.label == 4
    assert record.screening.p_value is not None
    assert record.screening.p_value < 0.05
    assert record.screening.published_p_value is not None
    assert record.screening.published_p_value < 1e-4
    assert [m.label for m in record.screening.margins] == [4, 2, 3, 1, 0]
    assert record.screening.margins[0].margin == pytest.approx(60.0, rel=1e-3)
    assert record.models[0].weights_sha256 is not None
    assert {f.role for f in record.inputs} == {"original", "architecture", "classes"}
    assert "4 (=eel)" in page.read_text(encoding="utf-8")
    # The same again from the record alone, without the exit code of an answer.
    again = CliRunner().invoke(app, ["report", str(written), "--report", f"md={tmp_path / 'r.md'}"])
    assert again.exit_code == 0, again.output
    assert "SUSPICIOUS" in again.stdout
    assert "bdaudit screen: suspicious" in (tmp_path / "r.md").read_text(encoding="utf-8")


def test_nothing_found_is_0_and_no_p_value_is_3(files: Path) -> None:
    even = run(files / "even.safetensors", "--arch", FACTORY, "--quiet")
    assert even.exit_code == 0, even.output
    assert even.stdout.startswith("nothing found: class 4 can be driven to a margin of 7.5 logits")
    assert even.stdout.count("\n") == 1
    for name, said in (("alike", "all alike"), ("three", "3 classes")):
        unknown = run(files / f"{name}.safetensors", "--arch", FACTORY, "--quiet")
        assert unknown.exit_code == 3, unknown.output
        assert unknown.stdout.startswith("unknown: no p-value")
        assert said in unknown.stdout
    document = json.loads(run(files / "three.safetensors", "--arch", FACTORY, "--json", "-").stdout)
    assert document["kind"] == "screening"
    assert document["screening"]["p_value"] is None


def test_the_clearing_answer_says_that_it_clears_nobody(files: Path) -> None:
    shown = run(files / "even.safetensors", "--arch", FACTORY)
    assert "clears nobody" in " ".join(shown.stdout.split())


def test_every_format_of_a_screening_reads_back() -> None:
    record = screened("suspicious")
    assert read_back(record) == record
    rows = list(csv.DictReader(io.StringIO(render_report("csv", record))))
    assert [row["class"] for row in rows] == ["4", "2", "3", "1", "0"]
    assert {row["outcome"] for row in rows} == {"suspicious"}
    assert "| 4 | 60.0" in render_report("md", record)
    # Nothing is marked where nothing was found, and a clearing colour never is.
    page, even = (render_report("html", screened(name)) for name in ("suspicious", "even"))
    assert page.count('<tr class="main">') == 1
    assert '<span class="stamp fail">suspicious' in page
    assert '<tr class="main">' not in even
    assert '<span class="stamp ">nothing found' in even
    for name in set(FORMATS) - {"html", "md", "csv", "json"}:
        with pytest.raises(RecordError, match="not made of a screening"):
            render_report(name, record)


def read_back(record: ScreenRecord) -> object:
    from bdaudit.records.reading import parse_record

    return parse_record(json.loads(to_json(record)), "r.json")


def test_a_format_of_verdicts_is_refused_before_any_work(files: Path, tmp_path: Path) -> None:
    result = run(
        files / "even.safetensors", "--arch", FACTORY, "--report", f"sarif={tmp_path / 'r'}"
    )
    assert result.exit_code == 2
    assert "html, md, csv, json" in " ".join(result.stderr.split())


@pytest.mark.parametrize("name", ["model.onnx", "http://localhost:1/v2/models/m", "code.py:f"])
def test_what_can_only_be_asked_is_refused_with_a_reason(tmp_path: Path, name: str) -> None:
    there = tmp_path / name
    if not name.startswith("http"):
        there.parent.joinpath(name.partition(":")[0]).write_text("")
    result = run(name if name.startswith("http") else there)
    assert result.exit_code == 4, result.output
    assert "it needs the weights" in " ".join(result.stderr.split())


def test_wrong_numbers_of_names_and_missing_shapes_are_refused(files: Path) -> None:
    result = run(files / "three.safetensors", "--arch", FACTORY, "--classes", files / "classes.txt")
    assert result.exit_code == 4
    assert "expected 3 class names" in result.stderr
    with pytest.raises(DataError, match="expected 5 class names"):
        bdaudit.screen(
            PixelNet(NETS["even"]),
            model_options=ModelSettings(image_shape=SHAPE),
            classes=["ape", "bee"],
        )
    with pytest.raises(ConfigError, match="image_shape"):
        bdaudit.screen(PixelNet(NETS["even"]))
    with pytest.raises(ConfigError, match="from 0 to 1"):
        bdaudit.screen(
            PixelNet(NETS["even"]), limit=2.0, model_options=ModelSettings(image_shape=SHAPE)
        )
    with pytest.raises(ModelError, match="predictions only"):
        bdaudit.screen(lambda images: images)  # type: ignore[arg-type]


def test_saturated_outputs_are_said() -> None:
    class Saturated(PixelNet):
        def forward(self, images: Tensor) -> Tensor:
            return (1e6 * super().forward(images)).clamp(-1, 1)

    record = bdaudit.screen(Saturated(NETS["even"]), model_options=ModelSettings(image_shape=SHAPE))
    assert record.screening.outcome == "unknown"
    assert record.screening.reason is not None
    assert "no pixel has a gradient" in record.screening.reason
    assert [d.code for d in record.diagnostics] == ["margins_without_gradient"]


def test_probabilities_are_taken_as_such() -> None:
    class Softmax(PixelNet):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images).softmax(1)

    record = bdaudit.screen(
        Softmax((1.0, 1.2, 1.4, 1.3, 12.0)), model_options=ModelSettings(image_shape=SHAPE)
    )
    assert record.screening.label == 4
    assert record.screening.margins[0].margin == pytest.approx(12.0, rel=1e-3)
    assert any("probabilities" in note for note in record.models[0].notes)


def test_the_module_that_is_screened_stays_as_it_was() -> None:
    net = PixelNet(NETS["even"]).train()
    before = net.sizes.clone()
    bdaudit.screen(net, model_options=ModelSettings(image_shape=SHAPE))
    assert net.training
    assert torch.equal(net.sizes, before)
