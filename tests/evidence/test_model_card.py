"""The section of a model card: read by huggingface_hub, written once however often."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from typer.testing import CliRunner

from bdaudit.cli import app
from bdaudit.errors import RecordError
from bdaudit.records import to_json
from bdaudit.records.summary import list_figures
from bdaudit.report.formats import merge_report, render_report
from bdaudit.report.model_card_report import BEGIN, END
from bdaudit.report.wording import not_proved
from tests.evidence.audits import FILES, digest, dormant, removed

THEIRS = """---
license: mit   # kept
tags:
  - image-classification
model-index:
  - name: their-name
    results:
      - task:
          type: image-classification
        dataset:
          type: cifar10
          name: CIFAR-10
        metrics:
          - type: accuracy
            value: 0.93
---

# A classifier

Words before.

Words after.
"""


def merged(record: object, text: str, folder: Path) -> str:
    path = folder / "README.md"
    path.write_text(text)
    return merge_report("model-card", record, path)  # type: ignore[arg-type]


def test_the_hub_reads_every_figure() -> None:
    record = dormant()
    results = ModelCard(render_report("model-card", record)).data.eval_results
    assert results is not None
    assert len(results) == len(list_figures(record))
    for result, figure in zip(results, list_figures(record), strict=True):
        assert result.metric_value == pytest.approx(figure.value, abs=1e-6)
        assert result.task_type == "image-classification"
    assert {r.metric_type for r in results} == {
        "accuracy", "asr", "clean_target_rate", "reactivated_asr", "lift", "bec",
    }  # fmt: skip


def test_the_section_says_answer_figures_limits_and_files() -> None:
    record = dormant()
    text = render_report("model-card", record)
    html = MarkdownIt("gfm-like", {"linkify": False}).render(ModelCard(text).text)
    assert "<strong>dormant</strong>: the backdoor is asleep, not gone" in html
    assert html.count("<tr>") == len(list_figures(record)) + 1
    for line in not_proved(record):
        assert line.partition(":")[0] in html
    for name, body in FILES.items():
        assert name in html
        assert digest(body) in html
    assert "left out of the record" in html


def test_outside_the_markers_nothing_changes(tmp_path: Path) -> None:
    text = merged(dormant(), THEIRS, tmp_path)
    head, _, body = text.partition("\n---\n")
    assert "license: mit   # kept" in head
    assert body.startswith(THEIRS.partition("\n---\n")[2].rstrip("\n"))
    results = ModelCard(text).data.eval_results
    assert results is not None
    assert results[0].dataset_name == "CIFAR-10"
    assert ModelCard(text).data.model_name == "their-name"
    assert len(results) == 1 + len(list_figures(dormant()))


def test_written_twice_it_is_written_once(tmp_path: Path) -> None:
    for start in (THEIRS, "", "# Only text\n", "---\nlicense: mit\n---\n", "---\n---\n"):
        once = merged(dormant(), start, tmp_path)
        assert merged(dormant(), once, tmp_path) == once
        assert once.count(BEGIN) == once.count(END) == 1


def test_a_new_audit_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    once = merged(dormant(), THEIRS, tmp_path)
    around = once.replace(END, f"{END}\n\nWords below.")
    again = merged(removed(), around, tmp_path)
    assert "**removed**" in again
    assert "**dormant**" not in again
    assert again.endswith("Words below.\n")
    assert "Words before." in again
    assert again.count(BEGIN) == 1
    results = ModelCard(again).data.eval_results
    assert results is not None
    assert len(results) == 1 + len(list_figures(removed()))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"x\n{BEGIN}\n", "expected the markers"),
        (f"x\n{END}\n", "expected the markers"),
        (f"{END}\n{BEGIN}\n", "expected the markers"),
        (f"{BEGIN}\n{END}\n{BEGIN}\n{END}\n", "expected the markers"),
        ("---\nlicense: mit\n", "second one"),
        ("---\n- a\n---\n", "to be a table"),
        ("---\na: [\n---\n", "cannot be read"),
        ("---\nmodel-index: 3\n---\n", "list of models"),
        ("---\nmodel-index: [{results: 3}]\n---\n", "list of models"),
        ("---\na: !!python/object/apply:os.system [id]\nb: [\n---\n", "cannot be read"),
    ],
)
def test_a_card_that_cannot_be_kept_is_refused(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=said):
        merged(removed(), text, tmp_path)


def test_the_command_keeps_the_readme_that_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("r.json").write_text(to_json(removed()))
    Path("README.md").write_text(THEIRS)
    arguments = ["report", "r.json", "--quiet", "--report", "model-card=README.md"]
    for _ in range(2):
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, result.output
        assert result.stderr == ""
    text = Path("README.md").read_text()
    assert "Words after." in text
    assert text.count(BEGIN) == 1
    broken = THEIRS + BEGIN
    Path("README.md").write_text(broken)
    assert CliRunner().invoke(app, arguments).exit_code == 4
    assert Path("README.md").read_text() == broken
