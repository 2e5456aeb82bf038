"""Records of several defended models side by side: data, console, page and command."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from rich.console import Console
from typer.testing import CliRunner

from bdaudit.cli import app
from bdaudit.errors import ConfigError, RecordError
from bdaudit.records import AuditRecord, BackdoorDirection, ModelInfo, to_json
from bdaudit.records.comparison import ComparisonRecord
from bdaudit.report.comparison import compare
from bdaudit.report.comparison_html import render
from bdaudit.report.comparison_terminal import print_comparison
from bdaudit.report.formats import render_report
from bdaudit.verdict import Policy, judge
from tests.records import audit_record, barrier_record, bec_record
from tests.report.conftest import HOSTILE, OpenPage

QUIET = {0.02: 0.03, 0.05: 0.05}
LOUD = {0.02: 0.5, 0.05: 0.5}
LOUD_LATE = {0.02: 0.2, 0.05: 0.9}


def record(curve: dict[float, float], weights: str, **changes: object) -> AuditRecord:
    made = audit_record(defended=curve, innocents=[QUIET, QUIET, QUIET], **changes)
    defended = made.models[0].model_copy(
        update={"weights_sha256": weights * 64, "path": f"runs/{weights}/defended-{weights}.pt"}
    )
    made = made.model_copy(update={"models": (defended, *made.models[1:])})
    return made.model_copy(update={"verdict": judge(made, Policy())})


SLEEPY = record(LOUD, "a", bec=(bec_record(),))
CLEAN = record(QUIET, "b", bec=(bec_record(),))
AWAKE = record(LOUD, "c", alone=0.6)


def made(*records: AuditRecord, **options: object) -> ComparisonRecord:
    return compare([(f"{k}.json", r) for k, r in enumerate(records)], **options)


def test_the_best_comes_first_with_its_figures() -> None:
    found = made(AWAKE, SLEEPY, CLEAN)
    assert [m.name for m in found.models] == ["defended-b", "defended-a", "defended-c"]
    assert [m.outcome for m in found.models] == ["removed", "dormant", "active"]
    sleepy = found.models[1]
    assert sleepy.reactivated.value == 0.5
    assert sleepy.asr.value == 0.02
    assert sleepy.lift is not None
    assert sleepy.lift.value == pytest.approx(0.47)
    assert sleepy.bec is not None
    assert sleepy.bec.middle == 0.41
    assert found.models[2].bec_missing == "made up"
    assert (found.original.asr, found.original.reactivated) == (1.0, 1.0)
    assert found.innocent is not None
    assert (found.innocent.asr, found.innocent.reactivated_high) == (0.01, 0.03)
    assert found.warnings == ()


def test_fidelity_is_what_is_kept_times_what_is_gone() -> None:
    quiet = record(QUIET, "g", barrier=barrier_record())
    asleep, awake = made(SLEEPY, quiet), made(AWAKE, quiet)
    removed, dormant = asleep.models
    assert removed.fidelity == pytest.approx(0.98)  # all accuracy kept, 2 % of the trigger left
    assert removed.fidelity_reactivated == pytest.approx(0.97)
    assert dormant.fidelity == pytest.approx(0.98)  # which does not see what sleeps
    assert dormant.fidelity_reactivated == pytest.approx(0.5)
    assert awake.models[1].fidelity == pytest.approx(0.4)
    assert (removed.barrier, dormant.barrier) == (0.2, None)
    assert (removed.asr_half_way, dormant.asr_half_way) == (0.3, None)


def test_a_transformers_direction_has_a_column() -> None:
    left = BackdoorDirection(
        cosine=0.83,
        strength=0.5,
        halves=0.99,
        innocent=0.05,
        n_innocent=1,
        n_samples=500,
        layers=(),
    )
    found = made(SLEEPY, record(QUIET, "j", direction=left))
    assert [m.direction for m in found.models] == [0.83, None]
    console = Console(record=True, width=200)
    print_comparison(found, console)
    text = console.export_text()
    assert "direction" in text
    assert "0.83" in text
    assert '<th scope="col" class="n">direction</th>' in render(found)
    page = render_report("md", record(QUIET, "j", direction=left))
    assert "mean cosine with the original's 0.83" in page


def test_fidelity_is_undefined_where_the_original_does_nothing() -> None:
    dead = [record(QUIET, name, original=0.0) for name in "hi"]
    assert [m.fidelity for m in made(*dead).models] == [None, None]


def test_the_eps_is_the_most_telling_one_or_the_one_asked_for() -> None:
    assert made(CLEAN, record(LOUD_LATE, "d")).eps == 0.05
    assert made(CLEAN, record(LOUD_LATE, "d"), eps=0.02).eps == 0.02
    with pytest.raises(ConfigError, match=r"they share: white linf 0\.02, white linf 0\.05"):
        made(CLEAN, SLEEPY, eps=0.04)
    with pytest.raises(ConfigError, match="they share"):
        made(CLEAN, SLEEPY, mode="query")


def test_only_an_attack_that_all_have_is_compared() -> None:
    narrow = record({0.05: 0.5}, "e", no_trigger={0.05: 0.02})
    narrow = narrow.model_copy(update={"runs": tuple(r for r in narrow.runs if r.eps == 0.05)})
    assert made(SLEEPY, narrow).eps == 0.05
    alone = record({0.01: 0.1}, "f", no_trigger={0.01: 0.02})
    with pytest.raises(ConfigError, match="they share: none"):
        made(SLEEPY, alone)
    with pytest.raises(ConfigError, match="two records"):
        made(SLEEPY)


def other_original(r: AuditRecord) -> AuditRecord:
    models = tuple(
        m.model_copy(update={"weights_sha256": "9" * 64}) if m.role == "original" else m
        for m in r.models
    )
    return r.model_copy(update={"models": models})


def other_trigger(r: AuditRecord) -> AuditRecord:
    return r.model_copy(update={"trigger": r.trigger.model_copy(update={"sha256": "9" * 64})})


def other_target(r: AuditRecord) -> AuditRecord:
    return r.model_copy(update={"trigger": r.trigger.model_copy(update={"target_label": 1})})


def no_original(r: AuditRecord) -> AuditRecord:
    kept: tuple[ModelInfo, ...] = tuple(m for m in r.models if m.role != "original")
    return r.model_copy(update={"models": kept})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (other_original, r"1\.json: another original than in 0\.json"),
        (other_trigger, "another trigger"),
        (other_target, "another target"),
        (no_original, "which original"),
    ],
)
def test_what_cannot_be_compared_is_refused(change: object, said: str) -> None:
    with pytest.raises(RecordError, match=said):
        made(SLEEPY, change(CLEAN))


def test_what_makes_figures_less_comparable_is_said() -> None:
    data = CLEAN.data.model_copy(update={"sha256": "1" * 64, "n_held_out": 7})
    models = tuple(
        m.model_copy(update={"weights_sha256": "7" * 64}) if m.role == "reference" else m
        for m in CLEAN.models
    )
    changed = CLEAN.model_copy(
        update={"data": data, "seed": 4, "settings": {"n_passes": 3}, "models": models}
    )
    changed = changed.model_copy(update={"verdict": judge(changed, Policy(lift=0.3))})
    text = "\n".join(made(SLEEPY, changed).warnings)
    for what in ("images", "number of held-out", "seed", "innocent", "settings", "policy"):
        assert what in text
    assert "defended-b from defended-a" in text
    assert "same weights twice: 0, 1" in made(SLEEPY, SLEEPY).warnings[0]


def test_models_called_alike_are_named_by_their_records() -> None:
    twice = record(QUIET, "a")
    twice = twice.model_copy(
        update={
            "models": (
                twice.models[0].model_copy(update={"weights_sha256": "5" * 64}),
                *twice.models[1:],
            )
        }
    )
    found = compare([("x/ft.json", SLEEPY), ("x/fst.json", twice)])
    assert {m.name for m in found.models} == {"ft", "fst"}
    found = compare([("x/r.json", SLEEPY), ("y/r.json", twice)])
    assert {m.name for m in found.models} == {"x/r.json", "y/r.json"}


@pytest.mark.parametrize(("width", "encoding"), [(100, "utf-8"), (78, "ascii"), (60, "utf-8")])
def test_the_console_fits_and_shows_every_model(width: int, encoding: str) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    print_comparison(made(AWAKE, SLEEPY, CLEAN), Console(file=stream, width=width))
    stream.seek(0)
    text = stream.read()
    assert max(map(len, text.splitlines())) <= width
    if width > 70:
        assert text.index("defended-b") < text.index("defended-a") < text.index("defended-c")
        assert "+47.0" in text


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "comparison.html"
    path.write_text(render(made(AWAKE, SLEEPY, CLEAN)), encoding="utf-8")
    return path


@pytest.mark.parametrize(("width", "scheme"), [(1100, "light"), (400, "dark")])
def test_the_page_stands_alone(page: Path, look: OpenPage, width: int, scheme: str) -> None:
    seen = look(page, width=width, scheme=scheme)
    assert seen.console == []
    assert seen.requests == [page.as_uri()]
    text = seen.page.locator("body").inner_text()
    assert "No sign of the backdoor in defended-b; asleep in defended-a; still working in" in text
    assert "defended-c is not in the picture: BEC made up." in text
    drawn = seen.page.locator("figure .plot:visible svg")
    assert drawn.count() == 1
    assert "defended-a" in drawn.text_content()
    assert Axe().run(seen.page).response["violations"] == []
    assert seen.page.evaluate("document.documentElement.scrollWidth") <= width


def test_names_from_a_record_are_shown_and_do_nothing(tmp_path: Path, look: OpenPage) -> None:
    models = (CLEAN.models[0].model_copy(update={"path": HOSTILE}), *CLEAN.models[1:])
    hostile = CLEAN.model_copy(update={"models": models, "bec": (), "bec_missing": HOSTILE})
    path = tmp_path / "hostile.html"
    path.write_text(render(made(hostile, SLEEPY)), encoding="utf-8")
    seen = look(path)
    assert seen.console == []
    assert seen.requests == [path.as_uri()]
    assert "owned" not in seen.page.title()


def test_the_command_writes_all_three(tmp_path: Path) -> None:
    for name, content in (("ft", SLEEPY), ("unlearned", CLEAN)):
        (tmp_path / f"{name}.json").write_text(to_json(content))

    def run(*more: object) -> tuple[int, str, str]:
        arguments = ["compare", tmp_path / "ft.json", *more]
        result = CliRunner().invoke(app, [str(a) for a in arguments])
        return result.exit_code, result.stdout, result.stderr

    code, out, err = run(
        tmp_path / "unlearned.json",
        "--report", f"html={tmp_path / 'c.html'}",
        "--json", tmp_path / "c.json",
    )  # fmt: skip
    assert code == 0, err
    assert "defended-a" in out
    assert json.loads((tmp_path / "c.json").read_text())["eps"] == 0.02
    assert "Which defence worked" in (tmp_path / "c.html").read_text()
    assert run()[0] == 2
    assert run(tmp_path / "nowhere.json")[0] == 4
    (tmp_path / "other.json").write_text(to_json(other_original(CLEAN)))
    code, out, err = run(tmp_path / "other.json")
    assert code == 4
    assert "another original" in err
    assert out == ""
    edited = (tmp_path / "unlearned.json").read_text().replace('"removed"', '"dormant"')
    (tmp_path / "edited.json").write_text(edited)
    assert run(tmp_path / "edited.json")[0] == 4
    assert run(tmp_path / "unlearned.json", "--report", "pdf=x")[0] == 2
    assert run(tmp_path / "unlearned.json", "--report", "html=/no/where.html")[0] == 4


def test_stand_ins_of_different_models_are_no_difference_and_unfit_ones_no_innocents() -> None:
    def with_stand_ins(weights: str, *, left_out: str | None = None) -> AuditRecord:
        taught = record(QUIET, weights, untriggered=[QUIET] * 3)
        models = tuple(
            m.model_copy(update={"weights_sha256": f"{m.name}-{weights}"}) if m.stand_in else m
            for m in taught.models
        )
        baselines = tuple(
            b.model_copy(update={"left_out": left_out, "asr": taught.baselines[1].asr})
            if b.stand_in and left_out
            else b
            for b in taught.baselines
        )
        return taught.model_copy(update={"models": models, "baselines": baselines})

    fit = made(with_stand_ins("a"), with_stand_ins("b"))
    assert not [line for line in fit.warnings if "innocent" in line]
    assert fit.innocent is not None
    assert fit.innocent.asr_high == pytest.approx(0.01)
    unfit = made(with_stand_ins("a", left_out="weak"), with_stand_ins("b", left_out="weak"))
    assert unfit.innocent is None


def classed(made: AuditRecord, **update: object) -> AuditRecord:
    return made.model_copy(update={"data": made.data.model_copy(update=update)})


def test_records_whose_classes_contradict_each_other() -> None:
    names = ("cat", "dog", "owl", "pig")
    first = classed(SLEEPY, class_names=names)
    with pytest.raises(RecordError, match=r"class 0 is 'dog', which is class 1 in 0\.json"):
        made(first, classed(CLEAN, class_names=("dog", "cat", "owl", "pig")))
    with pytest.raises(RecordError, match="another number of classes"):
        made(first, classed(CLEAN, num_classes=7))
    other = made(first, classed(CLEAN, class_names=("chat", "chien", "hibou", "cochon")))
    assert any("the names of the classes" in warning for warning in other.warnings)
    assert made(first, classed(CLEAN, class_names=names)).warnings == made(SLEEPY, CLEAN).warnings
