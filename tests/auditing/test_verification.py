"""A record is held against its inputs and against a part of its audit run again."""

from __future__ import annotations

import json
import shutil
import zlib
from base64 import b64encode
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

import bdaudit
from bdaudit.auditing import AuditSettings, ComputeSettings, ModelSettings, SplitSettings
from bdaudit.auditing.verification import verify
from bdaudit.blackbox import BlackBoxOptions, ScoreScale, TransportSettings
from bdaudit.cases.description import describe_sources
from bdaudit.cases.kept_trigger import keep_trigger, restore_trigger
from bdaudit.cases.restoring import restore_settings, restore_sources
from bdaudit.cases.sources import Sources
from bdaudit.cli import app
from bdaudit.errors import InputError, RecordError
from bdaudit.foundation.statistics import wilson_interval
from bdaudit.models.clip_settings import ClipSettings
from bdaudit.records import AuditRecord, KeptTrigger, Rate, read_record, to_json
from bdaudit.verdict import Policy, judge
from bdaudit.verdict.policy import digest_limits
from tests.blackbox.onnx_graphs import twin_onnx
from tests.cli.twin_files import write_twin_files
from tests.records import audit_record
from tests.twins import dormant_twin, original_twin, twin_sample

FACTORY = f"{Path(__file__).parents[1] / 'cli' / 'twin_factory.py'}:twin"
SETTINGS = AuditSettings(
    stand_ins=0,
    eps=(0.02, 0.05),
    passes=6,
    bec=False,
    relearn=None,
    compute=ComputeSettings(device="cpu", seed=5),
    split=SplitSettings(craft=100),
)


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with twins and the record of a real audit, by paths relative to the folder."""
    folder = write_twin_files(tmp_path_factory.mktemp("audited"))
    (folder / "policy.toml").write_text("lift = 0.2\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        record = bdaudit.audit(
            "dormant.safetensors",
            original="original.safetensors",
            data="clean.npz",
            trigger="trigger.toml",
            reference=["innocent.safetensors"],
            policy="policy.toml",
            model_options=ModelSettings(arch=FACTORY),
            settings=SETTINGS,
        )
    (folder / "result.json").write_text(to_json(record))
    return folder


@pytest.fixture
def copy(audited: Path, tmp_path: Path) -> Path:
    return shutil.copytree(audited, tmp_path / "copy")


def read(folder: Path) -> AuditRecord:
    record = read_record(folder / "result.json")
    assert isinstance(record, AuditRecord)
    return record


def verified(folder: Path, **options: object) -> bdaudit.auditing.verification.VerificationRecord:
    return verify(folder / "result.json", folder=folder, allow_code=True, **options)


def test_an_honest_record_agrees_and_only_a_part_is_run(audited: Path) -> None:
    made = verified(audited)
    assert made.agrees
    assert made.objections == ()
    assert made.files_checked == len(read(audited).inputs)
    attacks = [check for check in made.numbers if "eps" in check.name]
    assert attacks, "an attack was run again"
    assert len({check.name.partition("eps ")[2][:4] for check in attacks}) == 1, "at one eps"
    assert all(check.measured.value == check.recorded.value for check in made.numbers)


def test_the_seed_draws_the_part(audited: Path) -> None:
    parts = {verified(audited, seed=seed).part for seed in range(6)}
    assert len(parts) > 2
    assert verified(audited, seed=3).part == verified(audited, seed=3).part


def forge(folder: Path, change: Callable[[AuditRecord], AuditRecord]) -> None:
    """Write a changed record as a cheat would: judged anew, with a fresh digest."""
    record = change(read(folder))
    assert record.verdict is not None
    policy = Policy.model_validate(record.verdict.policy)
    (folder / "result.json").write_text(
        to_json(record.model_copy(update={"verdict": judge(record, policy)}))
    )


def rate_of(share: float, like: Rate) -> Rate:
    successes = round(share * like.total)
    low, high = wilson_interval(successes, like.total)
    bits = Rate.pack(k < successes for k in range(like.total))
    return Rate(successes=successes, total=like.total, low=low, high=high, bits=bits)


def woken_less(record: AuditRecord) -> AuditRecord:
    runs = tuple(
        run.model_copy(update={"asr": rate_of(0.01, run.asr)})
        if run.role == "defended" and run.condition == "trigger"
        else run
        for run in record.runs
    )
    return record.model_copy(update={"runs": runs})


def test_numbers_made_up_with_a_fresh_digest_are_found(copy: Path) -> None:
    assert read(copy).verdict.outcome == "dormant"
    forge(copy, woken_less)
    assert read(copy).verdict.outcome == "removed", "read without complaint: the digest is fresh"
    made = verified(copy)
    assert not made.agrees
    assert any("trigger on defended" in objection for objection in made.objections)


def test_a_verdict_that_does_not_follow_is_found_without_running_anything(copy: Path) -> None:
    record = read(copy)
    assert record.verdict is not None
    lied = record.verdict.model_copy(update={"outcome": "removed", "release": "pass"})
    (copy / "result.json").write_text(to_json(record.model_copy(update={"verdict": lied})))
    made = verified(copy, digests_only=True)
    assert not made.agrees
    assert "figures and limits give dormant" in made.objections[0]
    assert made.numbers == ()


@pytest.mark.parametrize(
    "name", ["dormant.safetensors", "innocent.safetensors", "clean.npz", "delta.npy"]
)
def test_a_changed_input_is_found_and_nothing_is_run(copy: Path, name: str) -> None:
    path = copy / name
    path.write_bytes(path.read_bytes()[:-1] + b"\x7f")
    made = verified(copy)
    assert not made.agrees
    assert name in made.objections[0]
    assert made.part is None


def test_a_changed_policy_is_only_noted(copy: Path) -> None:
    (copy / "policy.toml").write_text("lift = 0.9\n")
    made = verified(copy, digests_only=True)
    assert made.agrees
    assert "policy.toml" in made.notes[0]


def test_a_record_of_a_version_with_fewer_limits_has_the_digest_of_those_it_had(
    copy: Path,
) -> None:
    record = read(copy)
    assert record.verdict is not None
    fewer = {k: v for k, v in record.verdict.policy.items() if not k.startswith("placebo")}
    assert len(fewer) < len(record.verdict.policy)
    for digest, agrees in ((digest_limits(fewer), True), (record.verdict.policy_sha256, False)):
        older = record.verdict.model_copy(update={"policy": fewer, "policy_sha256": digest})
        (copy / "result.json").write_text(to_json(record.model_copy(update={"verdict": older})))
        assert verified(copy, digests_only=True).agrees is agrees


def test_what_cannot_be_verified_says_why(copy: Path) -> None:
    with pytest.raises(InputError, match=r"would run .*twin_factory"):
        verify(copy / "result.json", folder=copy)
    (copy / "clean.npz").unlink()
    with pytest.raises(InputError, match=r"clean\.npz.*pass the folder"):
        verified(copy)
    with pytest.raises(RecordError, match="nowhere"):
        verify(copy / "nowhere.json")


def test_a_record_that_would_send_a_token_needs_trust(copy: Path) -> None:
    def with_token(record: AuditRecord) -> AuditRecord:
        sources = json.loads(json.dumps(record.sources))
        sources["model_options"]["arch"] = None
        sources["defended"] = "http://127.0.0.1:9/v2/models/x"
        sources["black_box"]["transport"]["token_env"] = "AWS_SECRET"
        return record.model_copy(update={"sources": sources})

    forge(copy, with_token)
    with pytest.raises(InputError, match=r"send the content of \$AWS_SECRET"):
        verify(copy / "result.json", folder=copy)


def with_sources(folder: Path, **changes: object) -> None:
    forge(folder, lambda r: r.model_copy(update={"sources": dict(r.sources) | changes}))


def test_a_record_cannot_vouch_for_files_it_states_no_digest_of(copy: Path) -> None:
    forge(copy, lambda r: r.model_copy(update={"inputs": ()}))
    made = verified(copy)
    assert not made.agrees
    assert any("without its digest" in objection for objection in made.objections)


def test_nor_name_one_model_and_measure_another(copy: Path) -> None:
    with_sources(copy, defended="removed.safetensors")
    made = verified(copy)
    assert not made.agrees
    assert any("tensors are not those" in objection for objection in made.objections)


@pytest.mark.parametrize(
    "changes",
    [
        {"model_options": 3},
        {"model_options": {"arch": None, "mean": "much"}},
        {"black_box": None},
        {"unheard_of": "x"},
        {"data": {"a": 1}},
    ],
)
def test_a_record_that_says_nonsense_is_refused(copy: Path, changes: dict[str, object]) -> None:
    with_sources(copy, **changes)
    with pytest.raises(RecordError, match="not in the form that this version writes"):
        verified(copy)


def test_a_record_does_not_make_us_read_devices(copy: Path) -> None:
    def with_device(record: AuditRecord) -> AuditRecord:
        first = record.inputs[0].model_copy(update={"path": "/dev/zero"})
        return record.model_copy(update={"inputs": (first, *record.inputs[1:])})

    forge(copy, with_device)
    with pytest.raises(RecordError, match="a regular file, got a device"):
        verified(copy)


def test_models_in_memory_cannot_be_opened_again(tmp_path: Path) -> None:
    sample = twin_sample(400, seed=1)
    record = bdaudit.audit(
        dormant_twin(),
        original=original_twin(),
        data=(sample.images, sample.labels),
        trigger=write_twin_files(tmp_path) / "trigger.toml",
        settings=SETTINGS,
    )
    assert record.sources["defended"] == "in memory"
    (tmp_path / "result.json").write_text(to_json(record))
    with pytest.raises(InputError, match="defended, original, data was passed in memory"):
        verify(tmp_path / "result.json")


def test_stand_ins_are_not_made_again(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(copy)
    (copy / "policy.toml").write_text("max_stand_in_acc_loss = 1.0\nmax_stand_in_asr = 1.0\n")
    record = bdaudit.audit(
        "dormant.safetensors",
        original="original.safetensors",
        data="clean.npz",
        trigger="trigger.toml",
        policy="policy.toml",
        model_options=ModelSettings(arch=FACTORY),
        settings=replace(
            SETTINGS, stand_ins=2, stand_in=bdaudit.StandInConfig(n_images=64), eps=(0.05,)
        ),
    )
    assert len(record.runs_of(role="reference", condition="trigger")) == 2
    (copy / "result.json").write_text(to_json(record))
    for seed in range(3):
        made = verified(copy, seed=seed)
        assert made.agrees, made.objections
        assert "stand-in" not in str(made.part)
        assert not [check for check in made.numbers if "stand-in" in check.name]


def test_a_record_without_attacks_cannot_be_verified(tmp_path: Path) -> None:
    made = audit_record(defended={}, innocents=[])
    (tmp_path / "r.json").write_text(
        to_json(made.model_copy(update={"verdict": judge(made, Policy())}))
    )
    with pytest.raises(RecordError, match="no attack with a control"):
        verify(tmp_path / "r.json")


def test_the_command_ends_with_0_1_and_4(copy: Path) -> None:
    def run(*more: object) -> tuple[int, str]:
        arguments = ["verify", copy / "result.json", "--folder", copy, *more]
        result = CliRunner().invoke(app, [str(a) for a in arguments])
        return result.exit_code, result.stdout

    code, output = run("--trust-record", "--json", copy / "verification.json")
    assert code == 0, output
    assert output.startswith("AGREES: 8 files")
    assert "run again: plain rates of all models; re-activation (white)" in output
    assert json.loads((copy / "verification.json").read_text())["agrees"] is True
    assert run()[0] == 4
    (copy / "trigger.toml").write_text((copy / "trigger.toml").read_text() + "\n# edited\n")
    code, output = run("--trust-record")
    assert code == 1, output
    assert "trigger.toml" in output


def test_everything_that_was_said_comes_back(tmp_path: Path) -> None:
    """Every setting and every source survives the record, whatever is added to them later."""
    (tmp_path / "names.txt").write_text("a\nb\n")
    sources = Sources.of(
        defended="d.onnx",
        original=Path("o.pt"),
        references=["r1.pt", Path("r2.pt")],
        surrogates=["s.pt"],
        data="clean",
        trigger=Path("t.toml"),
        classes=Path("names.txt"),
        model_options=ModelSettings(
            arch="open_clip/x",
            mean=(0.5,),
            std=(0.25,),
            clip=ClipSettings(class_names=("a", "b"), config_folder=Path("configs")),
        ),
        black_box=BlackBoxOptions(
            grid=255, scale=ScoreScale(kind="logits"), transport=TransportSettings(qps=3.0)
        ),
        feedback="labels",
        target_label="a",
        project="bdaudit.toml",
    )
    settings = AuditSettings(mode=("white", "query"), norm="l2", eps=(0.5,), controls=("noise",))
    made = audit_record(defended={}, innocents=[]).model_copy(
        update={
            "sources": json.loads(json.dumps(describe_sources(sources, ()))),
            "settings": json.loads(json.dumps(settings.as_dict())),
        }
    )
    back = restore_sources(made, Path(), tmp_path, allow_code=False)
    for entry in fields(Sources):
        said, restored = getattr(sources, entry.name), getattr(back, entry.name)
        if isinstance(said, Path):
            said = str(said)
        if isinstance(said, list):
            said, restored = [str(s) for s in said], [str(r) for r in restored]
        assert restored == said, entry.name
    assert restore_settings(made, tmp_path) == settings


def test_a_record_from_before_settings_were_renamed_is_verified(copy: Path) -> None:
    def as_before(record: AuditRecord) -> AuditRecord:
        settings = json.loads(json.dumps(record.settings))
        assert settings["compute"].pop("precision") == "float32"
        settings["compute"]["bf16"] = False
        return record.model_copy(update={"settings": settings})

    record = read(copy)
    # A record keeps the names that settings had when its schema was made.
    assert {"n_passes", "modes", "measure_bec", "warm"} <= record.settings.keys()
    black_box = record.sources["black_box"]
    assert {"order", "batch_size"} <= black_box.keys()
    assert {"timeout_s", "max_retries"} <= black_box["transport"].keys()
    forge(copy, as_before)
    made = verified(copy)
    assert made.agrees, made.objections
    assert all(check.measured.value == check.recorded.value for check in made.numbers)


def test_a_query_audit_of_an_onnx_file_is_verified_by_queries(tmp_path: Path) -> None:
    write_twin_files(tmp_path)
    twin_onnx(tmp_path / "dormant.onnx", dormant_twin())
    record = bdaudit.audit(
        tmp_path / "dormant.onnx",
        original=tmp_path / "original.safetensors",
        data=tmp_path / "clean.npz",
        trigger=tmp_path / "trigger.toml",
        model_options=ModelSettings(arch=FACTORY),
        settings=replace(SETTINGS, mode=("query",), max_queries=300, cold=True),
    )
    (tmp_path / "result.json").write_text(to_json(record))
    made = verify(tmp_path / "result.json", allow_code=True)
    assert made.agrees, made.objections
    assert made.part is not None
    assert made.part.startswith("re-activation (query)")


@pytest.fixture(scope="module")
def searched(audited: Path) -> Path:
    """The same folder with the record of an audit that had to look for its trigger."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(audited)
        record = bdaudit.audit(
            "dormant.safetensors",
            original="original.safetensors",
            data="clean.npz",
            reference=["innocent.safetensors"],
            model_options=ModelSettings(arch=FACTORY),
            settings=replace(
                SETTINGS, inversion=bdaudit.InversionConfig(methods=("neural-cleanse",))
            ),
        )
    (audited / "searched.json").write_text(to_json(record))
    return audited


def test_a_trigger_recovered_on_the_way_is_in_the_record(searched: Path) -> None:
    made = verify(searched / "searched.json", folder=searched, allow_code=True)
    assert made.agrees, made.objections
    assert any("eps" in check.name for check in made.numbers)
    assert any("was not run again" in note for note in made.notes)


def test_another_trigger_in_the_record_is_noticed(searched: Path, tmp_path: Path) -> None:
    record = read_record(searched / "searched.json")
    assert isinstance(record, AuditRecord)
    trigger = bdaudit.read_trigger(searched / "trigger.toml")
    cheat = record.model_copy(update={"kept_trigger": keep_trigger(replace(trigger))})
    (tmp_path / "cheat.json").write_text(to_json(cheat))
    made = verify(tmp_path / "cheat.json", folder=searched, allow_code=True)
    assert "trigger: is not that of the record" in made.objections


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"trigger.toml": "%%"}, "damaged"),
        ({"trigger.toml": "eJwD"}, "cut short"),
        ({"evil.py": ""}, "expected trigger.toml"),
        ({"trigger.toml": b64encode(zlib.compress(b"kind = 1")).decode()}, "kind"),
    ],
)
def test_a_damaged_trigger_in_a_record(files: dict[str, str], said: str) -> None:
    with pytest.raises(RecordError, match=said):
        restore_trigger(KeptTrigger(files=files))
