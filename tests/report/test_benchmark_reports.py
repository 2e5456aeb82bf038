"""Reports of a benchmark, drawn from a record of made-up audits."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from functools import cache
from html.parser import HTMLParser

import pytest
from rich.console import Console

from bdaudit.benchmarking import calibrate, summarise
from bdaudit.errors import RecordError
from bdaudit.foundation.progress import finish
from bdaudit.records import Environment, to_json
from bdaudit.records.benchmark import BenchmarkRecord, QueryCurve, read_benchmark
from bdaudit.report.benchmark import average_queries, control_rows
from bdaudit.report.benchmark_html import render
from bdaudit.report.benchmark_terminal import print_benchmark
from bdaudit.verdict import Policy
from tests.benchmarking.audits import audited

HOSTILE = "<script>alert(1)</script>"


@cache
def benchmark(*, calibrated: bool = False, attack: str = "badnets") -> BenchmarkRecord:
    audits = [
        audited(f"{original}-{truth}{bec}-{variant}", truth, original=original, attack=attack,
                variant=variant, bec=bec, defended=figures)
        for variant in ("white", "transfer")
        for original in "abc"
        for truth, bec, figures in (
            ("dormant", 0.4, None),
            ("removed", 0.5, None),
            ("innocent", 0.05, None),
            ("dormant", 0.3, {0.01: 0.02, 0.05: 0.2}),
        )
    ]  # fmt: skip
    audits = [
        type(a)(a.member.model_copy(update={"name": a.member.name.rsplit("-", 1)[0]}), a.variant,
                a.record, file=a.file)
        for a in audits
    ]  # fmt: skip
    calibration = (
        finish(calibrate([a for a in audits if a.variant == "white"])) if calibrated else None
    )
    policy = Policy() if calibration is None else Policy.model_validate(calibration.policy)
    found = summarise(audits, policy, calibration=calibration)
    return BenchmarkRecord(
        created=datetime(2026, 1, 1, tzinfo=UTC),
        command=("bdaudit", "bench", "family"),
        family=f"small {attack}",
        family_sha256="0" * 64,
        dataset="made up",
        settings={},
        policy=policy.model_dump(mode="json"),
        policy_source="defaults",
        environment=Environment(bdaudit="0", python="3", platform="t", device="cpu", packages={}),
        calibration=calibration,
        elapsed_s=1.0,
        **{name: getattr(found, name) for name in (
            "cases", "confusion", "curves", "recipes", "agreements", "costs", "misses"
        )},
    )  # fmt: skip


def printed(record: BenchmarkRecord, width: int = 100) -> str:
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    print_benchmark(record, console)
    console.file.close()
    return console.export_text()


def test_it_reads_what_was_written(tmp_path):
    path = tmp_path / "bench.json"
    path.write_text(to_json(benchmark(calibrated=True)))

    assert read_benchmark(path) == benchmark(calibrated=True)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"kind": "audit"}'])
def test_another_file_is_refused(tmp_path, text):
    path = tmp_path / "bench.json"
    path.write_text(text)

    with pytest.raises(RecordError, match="expected the record of a benchmark"):
        read_benchmark(path)


def test_the_terminal_says_how_often_it_was_wrong():
    text = printed(benchmark(), 160)

    assert "0 of 3 innocent models called backdoored" in text
    assert "3 of 6 sleeping backdoors called removed" in text
    assert re.search(r"sleeping +0 +3 +3 +0", text)
    assert "transfer against white box: same verdict 100.0%" in text
    assert "wrong: a-dormant0.3--white is sleeping, called removed" in text


@pytest.mark.parametrize("width", [40, 80])
def test_a_narrow_terminal_is_not_overrun(width):
    assert max(map(len, printed(benchmark(), width).splitlines())) <= width


def test_controls_are_averaged_over_the_models_of_a_truth():
    rows = {(r.truth, r.mode, r.eps): r for r in control_rows(benchmark())}
    sleeping = rows["dormant", "white", 0.05]

    # Two variants of six models: half of them at .60, half at .20.
    assert sleeping.n == 12
    assert sleeping.figures["trigger + delta"] == pytest.approx(0.4)
    assert sleeping.figures["innocents (the most)"] == pytest.approx(0.32)
    assert sleeping.figures["trigger + noise"] is None


def test_query_searches_are_averaged_where_they_stand():
    record = benchmark()
    curves = [
        QueryCurve(of="trigger", eps=0.05, points=points)
        for points in (((100, 0.0), (300, 1.0)), ((100, 0.2), (200, 0.4)))
    ]
    cases = [
        case.model_copy(update={"variant": "query", "query_curves": (curve,)})
        for case, curve in zip(
            [c for c in record.cases if c.truth == "dormant"][:2], curves, strict=True
        )
    ]

    eps, n_models, means = average_queries(record.model_copy(update={"cases": cases}), "dormant")

    assert (eps, n_models) == (0.05, 2)
    assert means == {"trigger": [(100, 0.1), (200, pytest.approx(0.2)), (300, 0.7)]}


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.identifiers: list[str] = []
        self.links: list[str] = []
        self.tags: set[str] = set()
        self.columns: list[int] = []
        self._row = 0

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        values = dict(attrs)
        if "id" in values:
            self.identifiers.append(values["id"])
        if tag == "a" and values["href"].startswith("#"):
            self.links.append(values["href"][1:])


def test_the_page_is_whole():
    text = render(benchmark(calibrated=True))
    page = _Page()
    page.feed(text)

    assert set(page.links) <= set(page.identifiers)
    assert len(page.identifiers) == len(set(page.identifiers))
    assert "script" not in page.tags
    assert text.count("<svg") > 4
    for words in ("Verdict against truth", "Limits, chosen on one half", "Every wrong verdict"):
        assert words in text


def test_names_cannot_bring_markup():
    text = render(benchmark(attack=HOSTILE))

    assert HOSTILE not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
