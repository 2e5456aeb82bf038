"""Audit every model of a family whose truth is known, and judge the judge."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from fnmatch import fnmatch
from pathlib import Path

from bdaudit.auditing.session import without_secrets
from bdaudit.auditing.sweep import sweep_steps
from bdaudit.benchmarking import Audited, SearchSpace, calibrate, case_key, summarise
from bdaudit.cases.request import AuditRequest
from bdaudit.cases.settings import TELLING_CONTROLS, AuditSettings
from bdaudit.cases.sources import DataSource, Sources
from bdaudit.engines import Engine
from bdaudit.errors import ConfigError, InputError
from bdaudit.foundation.file_digests import digest_file
from bdaudit.foundation.modes import MODES
from bdaudit.foundation.opening import is_file
from bdaudit.foundation.progress import Steps
from bdaudit.foundation.tasks import Task
from bdaudit.measuring.environment import describe_environment, resolve_device
from bdaudit.models import BackdoorBenchRecord, ModelSettings, find_records
from bdaudit.records import AuditRecord, read_record
from bdaudit.records.benchmark import VARIANTS, BenchmarkRecord, Calibration, Variant
from bdaudit.records.families import FAMILY_FILE, Family, FamilyMember, read_family
from bdaudit.records.sweeps import SweptAudit
from bdaudit.verdict import Policy

__all__ = ["BenchCase", "BenchSettings", "BenchSource", "bench_steps", "open_bench_source"]


_TRIGGER_FILE = "trigger.toml"


@dataclass(frozen=True, kw_only=True)
class BenchSettings:
    """Which audits a benchmark makes.

    Attributes:
        variants: How each model is audited; the first is the one others are held against.
        every: Of the variants after the first, audit only one model in so many, counted through
            the models of each truth and attack in turn.
        only: Patterns of member names (`*`, `?`); empty takes all.
        audit: Settings of each audit; modes, stand-ins and BEC follow from the variant, and the
            attack toward other classes, which no verdict rests on, is left out by default.
        calibrate: Choose limits on half of the models, and report on the other half.
        space: Limits to try then.

    Raises:
        ConfigError: A variant is unknown or there twice, or `every` is below 1.
    """

    variants: tuple[Variant, ...] = ("white",)
    every: int = 1
    only: tuple[str, ...] = ()
    audit: AuditSettings = field(default_factory=AuditSettings)
    calibrate: bool = False
    space: SearchSpace = field(default_factory=SearchSpace)

    def __post_init__(self) -> None:
        if not self.variants or len(set(self.variants) & set(VARIANTS)) != len(self.variants):
            raise ConfigError(
                f"variants: expected some of {', '.join(VARIANTS)}, each once, got "
                f"{', '.join(self.variants) or 'none'}"
            )
        if self.every < 1:
            raise ConfigError(f"every: expected 1 or more, got {self.every}")


@dataclass(frozen=True)
class BenchCase:
    """A model to audit, with the files of its original and of its trigger."""

    member: FamilyMember
    defended: Path
    original: Path
    trigger: Path


@dataclass(frozen=True, kw_only=True)
class BenchSource:
    """Models to audit, and what is known about them.

    Attributes:
        name: Of the family.
        sha256: Of its file, or over the files of the models where it has none.
        dataset: Name of the data set.
        data: The clean sample.
        task: What the models do.
        references: Innocent models, the same for all.
        cases: Each model with its original and its trigger.
        left_out: Why some models are not audited, by name: they did not learn the task.
    """

    name: str
    sha256: str
    dataset: str
    data: DataSource
    task: Task = "classification"
    references: tuple[Path, ...]
    cases: tuple[BenchCase, ...]
    left_out: Mapping[str, str] = field(default_factory=dict)


def open_bench_source(
    folder: Path, *, data: DataSource | None = None, references: Sequence[Path] = ()
) -> BenchSource:
    """Find the models of a folder: a family with its `family.json`, or BackdoorBench records.

    Args:
        folder: A family's folder; a BackdoorBench record folder, or one that holds several, each
            with a `trigger.toml`. BackdoorBench does not say what its models are, so their truth
            is unknown.
        data: Clean sample; needed for BackdoorBench, which ships none.
        references: Innocent models beside the family's own.

    Raises:
        InputError: It is neither, has no model to audit, or lacks what an audit needs.
    """
    if is_file(folder / FAMILY_FILE):
        return _from_family(folder, read_family(folder), data, references)
    records = find_records(folder)
    if not records:
        raise InputError(
            f"{folder}: expected a family of models ({FAMILY_FILE}), or BackdoorBench record "
            "folders (attack_result.pt and defense/NAME/defense_result.pt); found neither"
        )
    if data is None:
        raise InputError(f"{folder}: BackdoorBench records hold no clean sample; give one: --data")
    return _from_backdoorbench(folder, records, data, references)


def _from_family(
    folder: Path, family: Family, data: DataSource | None, references: Sequence[Path]
) -> BenchSource:
    cases = tuple(
        BenchCase(
            member,
            defended=folder / member.file,
            original=folder / family.member(member.original).file,
            trigger=folder / family.triggers[member.trigger].file,
        )
        for member in family.to_audit()
        if member.original is not None and member.trigger is not None
    )
    left_out = family.did_not_learn()
    if not cases:
        said = "".join(f"; {name} {why}" for name, why in left_out.items())
        raise InputError(
            f"{folder}: no model of family {family.name} can be audited: none that learned the "
            f"task has an original and a trigger{said}"
        )
    own = tuple(
        folder / family.member(name).file for name in family.references if name not in left_out
    )
    return BenchSource(
        name=family.name,
        sha256=digest_file(folder / FAMILY_FILE),
        dataset=family.dataset,
        data=folder / family.sample if data is None else data,
        task=family.task,
        references=(*own, *references),
        cases=cases,
        left_out=left_out,
    )


def _from_backdoorbench(
    folder: Path,
    records: Sequence[BackdoorBenchRecord],
    data: DataSource,
    references: Sequence[Path],
) -> BenchSource:
    cases = tuple(case for record in records for case in _cases_of(record))
    if not cases:
        raise InputError(
            f"{folder}: no BackdoorBench record there has both its attack and a defence"
        )
    whole = hashlib.sha256("".join(case.member.sha256 for case in cases).encode())
    return BenchSource(
        name=folder.resolve().name,
        sha256=whole.hexdigest(),
        dataset="BackdoorBench records",
        data=data,
        references=tuple(references),
        cases=cases,
    )


def _cases_of(record: BackdoorBenchRecord) -> Iterator[BenchCase]:
    if record.attack_result is None:
        return
    name = record.folder.resolve().name
    trigger = record.folder / _TRIGGER_FILE
    if not is_file(trigger):
        raise InputError(
            f"{trigger}: expected the trigger of this BackdoorBench record; of one whose poisoned "
            'test images were kept write there: version = 1, kind = "paired", [target] rule = '
            '"all-to-one" and label = N, [paired] folder = "bd_test_dataset" (docs/triggers.md)'
        )
    for defense, file in record.defenses.items():
        member = FamilyMember(
            name=f"{name}--{defense}",
            file=str(file.relative_to(record.folder)),
            sha256=digest_file(file),
            weights_sha256="",
            lineage="defended",
            original=name,
            attack=name,
            defense=defense,
            truth="unknown",
            truth_source="given",
            truth_note="BackdoorBench records do not say",
        )
        yield BenchCase(member, defended=file, original=record.attack_result, trigger=trigger)


def bench_steps(
    source: BenchSource,
    *,
    out: Path,
    settings: BenchSettings,
    engine: Engine,
    policy: Policy | None = None,
    policy_source: str = "defaults",
    model_options: ModelSettings | None = None,
    cache_dir: Path | None = None,
    command: Sequence[str] | None = None,
) -> Steps[BenchmarkRecord]:
    """Audit the models of `source`, and hold the verdicts against what they are.

    What is finished in `out` already, from the same files under the same settings, is not audited
    again. An audit that fails is a case without a verdict, and the others go on.

    Args:
        source: The models.
        out: Folder of the records, made where it is missing.
        settings: Which audits.
        engine: What runs them.
        policy: Limits of the verdict; with `settings.calibrate` the ones the chosen are held
            against.
        policy_source: Where they came from.
        model_options: What the user says about all checkpoints.
        cache_dir: Folder that keeps models made on the way.
        command: What to record as the command that reproduces this.

    Raises:
        ConfigError: No model matches, or there are too few originals to calibrate on.
    """
    started = time.perf_counter()
    policy = policy or Policy()
    device = resolve_device(settings.audit.compute.device)
    for pattern in settings.only:
        if not any(fnmatch(case.member.name, pattern) for case in source.cases):
            raise ConfigError(f"only: no model is called {pattern}")
    planned = list(_plan(source, settings))
    requests = [
        AuditRequest(
            key=case_key(case.member.name, variant),
            sources=_sources(source, case, variant, model_options),
            settings=_settings_of(settings.audit, variant),
        )
        for case, variant in planned
    ]
    swept = yield from sweep_steps(
        requests, folder=out, engine=engine, cache_dir=cache_dir, command=command
    )
    audited = [
        _read(out, case.member, variant, audit)
        for (case, variant), audit in zip(planned, swept.audits, strict=True)
    ]
    calibration: Calibration | None = None
    if settings.calibrate:
        first = [a for a in audited if a.variant == settings.variants[0]]
        space = replace(settings.space, fixed=policy)
        calibration = yield from calibrate(first, space=space, seed=settings.audit.compute.seed)
        policy = Policy.model_validate(calibration.policy)
        policy_source = "chosen on half of the models"
    found = summarise(audited, policy, policy_source=policy_source, calibration=calibration)
    return BenchmarkRecord(
        created=datetime.now(UTC),
        command=None if command is None else tuple(without_secrets(command)),
        family=source.name,
        family_sha256=source.sha256,
        dataset=source.dataset,
        settings={
            "variants": list(settings.variants),
            "every": settings.every,
            "only": list(settings.only),
            "audit": settings.audit.as_dict(),
        },
        policy=policy.model_dump(mode="json"),
        policy_source=policy_source,
        environment=describe_environment(device),
        calibration=calibration,
        left_out=dict(source.left_out),
        elapsed_s=time.perf_counter() - started,
        **vars(found),
    )


def _plan(source: BenchSource, settings: BenchSettings) -> Iterator[tuple[BenchCase, Variant]]:
    cases = [
        case
        for case in source.cases
        if not settings.only or any(fnmatch(case.member.name, p) for p in settings.only)
    ]
    first, *others = settings.variants
    # In turn through what differs, so that few models still are of every kind.
    ordered = sorted(cases, key=lambda c: (c.member.truth, c.member.attack or "", c.member.name))
    some = {case.member.name for case in ordered[:: settings.every]}
    for case in cases:
        yield case, first
    for variant in others:
        yield from ((case, variant) for case in cases if case.member.name in some)


def _sources(
    source: BenchSource, case: BenchCase, variant: Variant, model_options: ModelSettings | None
) -> Sources:
    words = VARIANTS[variant]
    return Sources.of(
        defended=case.defended,
        original=case.original,
        references=() if words.without == "references" else source.references,
        data=source.data,
        trigger=None if words.without == "trigger" else case.trigger,
        task=source.task,
        model_options=model_options or ModelSettings(),
    )


def _settings_of(settings: AuditSettings, variant: Variant) -> AuditSettings:
    words = VARIANTS[variant]
    return replace(
        settings,
        mode=(words.mode,),
        controls=TELLING_CONTROLS if settings.controls is None else settings.controls,
        stand_ins=None if words.without == "references" else 0,
        bec=settings.bec and MODES[words.mode].has_weights and words.without != "trigger",
        pictures=False,
    )


def _read(out: Path, member: FamilyMember, variant: Variant, audit: SweptAudit) -> Audited:
    if audit.record is None:
        return Audited(member, variant, None, audit.why)
    record = read_record(out / audit.record)
    assert isinstance(record, AuditRecord)  # a sweep's audit
    return Audited(member, variant, record, file=audit.record)
