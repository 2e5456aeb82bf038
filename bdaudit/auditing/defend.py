"""Try defences on a suspected model, audit what each gives, and rank the results."""

from __future__ import annotations

import contextlib
import copy
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import nn

from bdaudit.auditing.audit import audit_steps, read_limits
from bdaudit.auditing.invert import RecoveredTriggers
from bdaudit.auditing.kept_search import KeptSearch
from bdaudit.auditing.recovered import search_steps
from bdaudit.auditing.session import without_secrets
from bdaudit.cases.fetching import fetch_sources
from bdaudit.cases.opening import open_models, open_trigger
from bdaudit.cases.settings import AuditSettings
from bdaudit.cases.sources import DataSource, ModelSource, Sources, TriggerSource
from bdaudit.cases.subjects import Subject
from bdaudit.data import Sample, split_sample
from bdaudit.defenses.catalogue import DEFENSES, defense_config, defense_name, flat_settings
from bdaudit.detection import NOTHING
from bdaudit.engines import Advanced, Engine, Failed, Finished, LocalEngine, Task
from bdaudit.errors import BdauditError, ConfigError, InputError, ModelError
from bdaudit.foundation.digests import digest_file, digest_tensors
from bdaudit.foundation.opening import MODEL_BYTES, RECORD_BYTES, is_file, read_bytes
from bdaudit.foundation.plain_settings import Setting
from bdaudit.foundation.plan import Plan, PlannedStep
from bdaudit.foundation.progress import Listener, Progress, Steps, finish, reworded, within
from bdaudit.foundation.renamed import renamed
from bdaudit.foundation.sources import FileSource, InMemory
from bdaudit.foundation.tasks import Task as ModelTask
from bdaudit.foundation.writing import write_atomically
from bdaudit.measuring.baselines import demand_matching_labels
from bdaudit.measuring.compute import Compute, derive_generator
from bdaudit.measuring.environment import describe_environment, resolve_device
from bdaudit.measuring.speed import speed_on
from bdaudit.measuring.standins import n_missing, stand_in_cost
from bdaudit.measuring.store import MemoryStore
from bdaudit.models import (
    Classifier,
    LoadedModel,
    ModelSettings,
    ZeroShotNetwork,
    save_model,
)
from bdaudit.models.architectures import is_python_factory
from bdaudit.models.plug_layer import PlugLayer
from bdaudit.models.transformers_models import HubNetwork
from bdaudit.precision import computing_in, settled
from bdaudit.records import AuditRecord, Rate, Release, read_record, to_json
from bdaudit.records.defenses import DefenseRecord, TriedDefense
from bdaudit.verdict import Policy
from bdaudit.version import __version__

__all__ = ["DefendSettings", "defend", "defend_steps"]

_RECORD, _BEST, _STATE = "defend.json", "best", "state"
_DEFENSE_SHARE = 0.4  # of the time of a method, for the progress bar
_MOST_DEFENDER_IMAGES = 2_000


@renamed({"method_settings": "settings", "n_defender": "defender_images"})
@dataclass(frozen=True, kw_only=True)
class DefendSettings:
    """What is tried, and how it is audited.

    Attributes:
        methods: Names of defences, or what tables call them; `None` takes all there are.
        settings: By method, the settings that differ from its defaults, as
            `defense_config` reads them.
        defender_images: Clean images the defences get; `None` takes half, at most 2,000. The
            audits get the others.
        audit: How every result is audited; the device and the seed are those of the defences too.

    Raises:
        ConfigError: A method or a setting is not known, or out of range.
    """

    methods: tuple[str, ...] | None = None
    settings: Mapping[str, Mapping[str, Setting]] = field(default_factory=dict)
    defender_images: int | None = None
    audit: AuditSettings = field(default_factory=AuditSettings)

    def __post_init__(self) -> None:
        if self.defender_images is not None and self.defender_images < 2:
            raise ConfigError(f"defender_images: expected 2 or more, got {self.defender_images}")
        if self.methods is not None:
            object.__setattr__(self, "methods", tuple(_named("methods", m) for m in self.methods))
        by_name = {_named("settings", method): given for method, given in self.settings.items()}
        object.__setattr__(self, "settings", by_name)
        if not self.chosen:
            raise ConfigError("methods: expected one defence or more, got none")
        for method in self.settings:
            if method not in self.chosen:
                raise ConfigError(
                    f"settings of {method}: it is not among the methods ({', '.join(self.chosen)})"
                )
        self.configs()

    @property
    def chosen(self) -> tuple[str, ...]:
        """The methods to try, each once, in the order given."""
        return tuple(dict.fromkeys(DEFENSES if self.methods is None else self.methods))

    def configs(self) -> dict[str, Any]:
        """Build the settings of every method."""
        return {method: defense_config(method, self.settings.get(method)) for method in self.chosen}


def _named(setting: str, method: str) -> str:
    try:
        return defense_name(method)
    except ConfigError as error:
        raise ConfigError(f"{setting}: {error}") from error


def _with_all_boxes(sample: Sample, defender: Sample) -> Sample:
    """Give the defences all boxes of their pictures: a detector is tuned on whole ones.

    Raises:
        ConfigError: Not all objects of those pictures are in the sample.
    """
    if sample.places is None or defender.places is None:
        return defender
    shown = torch.isin(sample.places.pictures, defender.places.pictures)
    whole = sample.take(shown.nonzero()[:, 0])
    assert whole.places is not None
    read = torch.bincount(
        whole.places.pictures[whole.labels != NOTHING], minlength=len(whole.places.annotated)
    )
    lacking = [
        number
        for number in sorted(set(whole.places.pictures.tolist()))
        if int(read[number]) < len(whole.places.annotated[number][1])
    ]
    if lacking:
        raise ConfigError(
            f"{sample.source}: of {len(lacking)} pictures only some objects are there, and "
            "detectors are tuned on whole pictures; give all boxes of every picture"
        )
    return whole


@dataclass(frozen=True)
class _Shared:
    """What all methods have in common; handed to every worker once.

    Attributes:
        original: On the CPU.
        found: The recovered triggers, where none was given.
        store: Attacks on the original and the references, made once in each worker.
    """

    folder: Path
    sources: Sources
    original: LoadedModel
    saved_arch: str | None
    defender: Sample
    found: RecoveredTriggers | None
    settings: AuditSettings
    cache_dir: Path | None
    store: MemoryStore = field(default_factory=MemoryStore)


@dataclass(frozen=True)
class _Job:
    """One method: its settings, what determines model and audit, and what an earlier run left."""

    method: str
    config: Any
    made_of: dict[str, str]
    audited_by: dict[str, str]
    earlier: TriedDefense | None


@renamed({"references": "reference", "target_label": "target"})
def defend(
    original: str | Path,
    *,
    data: DataSource,
    folder: Path,
    trigger: TriggerSource | None = None,
    reference: Sequence[ModelSource] = (),
    settings: DefendSettings | None = None,
    policy: Policy | str | Path | None = None,
    task: ModelTask = "classification",
    classes: Sequence[str] | Path | None = None,
    model_options: ModelSettings | None = None,
    target: int | str | None = None,
    allow_trigger_code: bool = False,
    engine: Engine | None = None,
    cache_dir: Path | None = None,
    command: Sequence[str] | None = None,
    listener: Listener | None = None,
) -> DefenseRecord:
    """Try defences on a suspected model, audit each result, rank them, and write all of it.

    Args:
        original: The suspected model: the path of a checkpoint.
        data: Clean labelled images; divided between the defences and the audits.
        folder: Made when missing; see `defend_steps`.
        trigger: The trigger, or the path of a trigger file; `None` has one looked for.
        reference: Innocent models of the same task.
        settings: Methods, their settings, how results are audited.
        policy: Limits of the verdicts, or the path of a policy file.
        task: What the models do; for "detection" data are pictures with boxes (docs/detection.md).
        classes: Class names in order of index, or a file with one a line.
        model_options: Architecture, normalisation and so on where the files do not say.
        target: Replaces the target of an all-to-one trigger; an index, or a class name.
        allow_trigger_code: Run Python code that the trigger file names.
        engine: What runs the methods; `None` runs one after the other in this process.
        cache_dir: Folder that keeps stand-ins for the next run; `None` keeps none.
        command: What to record as the command that reproduces this.
        listener: Told of progress.

    Returns:
        The record; `record.tried` is the ranking, best first.

    Raises:
        InputError: An input cannot be used, or the folder cannot be written to.
        ConfigError: A setting is out of range.
    """
    sources = Sources.of(
        defended=None,
        original=original,
        references=reference,
        data=data,
        trigger=trigger,
        policy=policy,
        task=task,
        classes=classes,
        model_options=model_options or ModelSettings(),
        target_label=target,
        allow_trigger_code=allow_trigger_code,
    )
    steps = defend_steps(
        sources,
        folder=folder,
        engine=engine or LocalEngine(),
        settings=settings,
        cache_dir=cache_dir,
        command=command,
    )
    return finish(steps, listener)


def defend_steps(
    sources: Sources,
    *,
    folder: Path,
    engine: Engine,
    settings: DefendSettings | None = None,
    cache_dir: Path | None = None,
    command: Sequence[str] | None = None,
    planned: bool = False,
) -> Steps[DefenseRecord]:
    """Try defences, audit each result, rank them, and write all of it.

    The clean images are divided first: the defences get one part, the audits the other. Where no
    trigger is given, one is looked for in the original, once. What an earlier run in the same
    folder did is kept where nothing that determines it has changed; what has is named.

    Args:
        sources: Original, data, and optionally trigger, references, policy; no defended model.
        folder: Made when missing. Gets METHOD.safetensors and METHOD.json (the audit's record) of
            every method, best.safetensors and best.json where the best may be released,
            defend.json (what is returned), and state/ for resuming.
        engine: What runs the methods.
        settings: Methods, their settings, the audit's; `None` takes the defaults.
        cache_dir: Folder that keeps stand-ins for the next run; `None` keeps none.
        command: What to record as the command that reproduces this.
        planned: Have an event before the work, and before anything is written, tell the plan.

    Returns:
        The record. A defence that fails is in it with the reason.

    Raises:
        InputError: An input cannot be used, or the folder cannot be written to.
        ConfigError: A setting is out of range.
    """
    started = time.perf_counter()
    settings = settings or DefendSettings()
    compute = settings.audit.compute
    sources = yield from fetch_sources(sources)
    yield Progress("opening models and data", 0, 1)
    subjects, sample = open_models(sources, device=resolve_device("cpu"))
    suspect = next(subject for subject in subjects if subject.role == "original")
    original = suspect.white
    _demand_own_file(original)
    demand_matching_labels(suspect, sample, Compute.of(compute, resolve_device("cpu")))
    saved_arch = _saved_arch(original, sources)
    parts = split_sample(
        sample,
        n_craft=settings.defender_images or max(min(len(sample) // 2, _MOST_DEFENDER_IMAGES), 2),
        seed=compute.seed,
    )
    defender, auditor = _with_all_boxes(sample, parts.craft), parts.held_out
    audited = replace(sources, data=InMemory(auditor))
    limits, _ = read_limits(sources.policy)
    if limits.expect != "removed":
        raise ConfigError(
            "defend looks for a defence that removes the backdoor, and the policy expects the "
            'trigger to be active; pass a policy with expect = "removed"'
        )
    if planned:
        plan = _plan(settings, sources, subjects, auditor)
        yield Progress("planning", 0, 1, plan=plan)
    _make_folder(folder)
    inherent = {
        "original": original.weights_sha256,
        "bdaudit": __version__,
        "seed": str(compute.seed),
        "device": resolve_device(compute.device).type,
    }
    audited_by = inherent | {
        "the auditor's images": _digest_images(auditor),
        "references": ", ".join(s.weights_sha256 or "" for s in subjects if s.role == "reference"),
        "audit settings": settings.audit.as_text(),
        "target": str(sources.target_label),
        "policy": limits.model_dump_json(),
    }
    found: RecoveredTriggers | None = None
    if sources.trigger is None:
        search = search_steps(audited, settings.audit, cache_dir=cache_dir)
        kept = KeptSearch(folder / _STATE, dict(audited_by))
        found = yield from kept.run(search, auditor)
        audited_by["trigger"] = found.triggers[0].sha256
    else:
        audited_by["trigger"] = open_trigger(sources).sha256
    made_of = inherent | {"the defender's images": _digest_images(defender)}
    if compute.precision != "float32":
        made_of["precision"] = compute.precision
    jobs = [
        _Job(
            method,
            config,
            made_of | {f"{method}.{key}": str(v) for key, v in flat_settings(config).items()},
            audited_by,
            _earlier(folder, method),
        )
        for method, config in settings.configs().items()
    ]
    shared = _Shared(
        folder, audited, original, saved_arch, defender, found, settings.audit, cache_dir
    )
    tried = yield from _run(jobs, shared, engine)
    return _finish(
        tried,
        shared,
        auditor=auditor,
        environment_device=compute.device,
        command=command,
        started=started,
    )


def _plan(
    settings: DefendSettings, sources: Sources, subjects: Sequence[Subject], auditor: Sample
) -> Plan:
    """Plan as if nothing were kept from an earlier run."""
    audit, n_methods = settings.audit, len(settings.chosen)
    compute = Compute.of(audit.compute, resolve_device(audit.compute.device))
    # Of the models, which are on the CPU here; elsewhere it is faster.
    here = replace(compute, device=resolve_device("cpu"))
    speed = speed_on(subjects, auditor.images, here)
    references = [subject for subject in subjects if subject.role == "reference"]
    n_made = n_missing(references, audit.stand_ins)
    n_craft = audit.split.craft_of(len(auditor))
    n_conditions = 3 + 2 * n_made
    run = 3.0 * audit.passes * audit.restarts * n_craft * speed.gradient
    run += 2.0 * (len(auditor) - n_craft) * speed.forward
    attacks = len(audit.ladder) * run
    steps = []
    if sources.trigger is None:
        steps.append(PlannedStep("the search for a trigger", None))
    steps.append(PlannedStep(f"{n_methods} defences ({', '.join(settings.chosen)})", None))
    if n_made:
        steps.append(
            PlannedStep(
                f"{n_made * n_methods} stand-ins trained for lack of --reference",
                n_methods * stand_in_cost(n_made, audit.stand_in) * speed.training,
            )
        )
    seconds = attacks * (n_methods * n_conditions + 1 + len(references))
    steps.append(PlannedStep(f"{n_methods} audits", seconds))
    return Plan(steps, "the CPU")


def defend_one(job: _Job, shared: _Shared) -> Steps[TriedDefense]:
    """Defend, write, audit, write; the work of one task. What was done before is not done again."""
    earlier, changes = job.earlier, list[str]()
    path = shared.folder / f"{job.method}.safetensors"
    row = TriedDefense(
        method=job.method,
        title=DEFENSES[job.method].title,
        status="failed",
        settings=flat_settings(job.config),
        why="not finished",
        made_of=job.made_of,
        audited_by=job.audited_by,
    )
    if earlier is not None:
        changes = [
            *_differences(earlier.made_of, job.made_of),
            *_differences(earlier.audited_by, job.audited_by),
        ]
        same_model = earlier.made_of == job.made_of and _is_there(path, earlier)
        if same_model and earlier.audited_by == job.audited_by and _is_whole(shared, earlier):
            return earlier.model_copy(update={"kept": "audit", "changes": ()})
        row = row.model_copy(update={"changes": tuple(dict.fromkeys(changes))})
        if same_model and earlier.model is not None:
            row = row.model_copy(
                update={
                    "kept": "model",
                    "model": earlier.model,
                    "model_sha256": earlier.model_sha256,
                    "defense_s": earlier.defense_s,
                }
            )
    try:
        if row.model is None:
            row = yield from reworded(_defend(job, row, shared, path), within(0.0, _DEFENSE_SHARE))
        row = yield from reworded(
            _audit(row, shared, path), within(_DEFENSE_SHARE, 1.0 - _DEFENSE_SHARE)
        )
    except BdauditError as error:
        row = row.model_copy(update={"status": "failed", "why": str(error)})
    _write(shared.folder / _STATE / f"{job.method}.json", row.model_dump_json(indent=1) + "\n")
    return row


def _defend(job: _Job, row: TriedDefense, shared: _Shared, path: Path) -> Steps[TriedDefense]:
    started = time.perf_counter()
    compute = shared.settings.compute
    classifier = copy.deepcopy(shared.original.classifier).to(resolve_device(compute.device))
    begin = partial(
        DEFENSES[job.method].run,
        classifier,
        shared.defender.images,
        shared.defender.labels,
        config=job.config,
        generator=derive_generator(compute.seed, "defend", job.method),
    )
    defended: nn.Module = yield from computing_in(
        settled(compute.precision, compute.device), resolve_device(compute.device), begin
    )
    _save(
        path,
        defended,
        like=shared.original,
        arch=shared.saved_arch,
        extra={
            "defense": job.method,
            "defense_settings": json.dumps(flat_settings(job.config), sort_keys=True),
            "original_weights_sha256": shared.original.weights_sha256,
        },
    )
    return row.model_copy(
        update={
            "model": path.name,
            "model_sha256": digest_file(path),
            "defense_s": time.perf_counter() - started,
        }
    )


def _save(
    path: Path,
    classifier: nn.Module,
    *,
    like: LoadedModel,
    arch: str | None,
    extra: Mapping[str, str],
) -> None:
    """Write a model made from `like`, or in its image."""
    assert isinstance(classifier, Classifier)  # as the original's is
    save_model(
        path,
        classifier.network,
        arch=arch,
        num_classes=like.num_classes,
        image_shape=like.image_shape,
        input_size=classifier.input_size,
        mean=classifier.mean.flatten().tolist(),
        std=classifier.std.flatten().tolist(),
        interpolation=classifier.interpolation,
        outputs=classifier.outputs,
        score_threshold=getattr(classifier.network, "score_threshold", None),
        extra=extra,
    )


def _audit(row: TriedDefense, shared: _Shared, path: Path) -> Steps[TriedDefense]:
    record = yield from audit_steps(
        replace(shared.sources, defended=FileSource(path)),
        settings=shared.settings,
        store=shared.store,
        cache_dir=shared.cache_dir,
        found=shared.found,
    )
    verdict, baseline = record.verdict, record.baseline_of("defended")
    assert verdict is not None
    written = path.with_suffix(".json")
    _write(written, to_json(record))
    return row.model_copy(
        update={
            "status": "audited",
            "record": written.name,
            "outcome": verdict.outcome,
            "release": verdict.release,
            "why": verdict.why,
            "warnings": verdict.warnings,
            "clean_acc": None if baseline is None else baseline.clean_acc,
            "asr": None if baseline is None else baseline.asr,
            "audit_s": record.elapsed_s,
        }
    )


def _run(jobs: Sequence[_Job], shared: _Shared, engine: Engine) -> Steps[list[TriedDefense]]:
    """Run every job; one that fails in a way nobody foresaw is a row as well."""
    rows: dict[str, TriedDefense] = {}
    done = {job.method: 0.0 for job in jobs}
    tasks = [Task(job.method, job) for job in jobs]
    with contextlib.closing(engine.run(defend_one, tasks, shared)) as events:
        for event in events:
            if isinstance(event, Advanced):
                total = event.progress.total
                done[event.key] = event.progress.done / total if total else 1.0
                step = f"{event.key}: {event.progress.step}"
            elif isinstance(event, Finished):
                rows[event.key], done[event.key] = event.result, 1.0
                step = f"{event.key}: done"
            elif isinstance(event, Failed):
                job = next(job for job in jobs if job.method == event.key)
                rows[event.key] = TriedDefense(
                    method=job.method,
                    title=DEFENSES[job.method].title,
                    status="failed",
                    settings=flat_settings(job.config),
                    why=f"{type(event.error).__name__}: {event.error}",
                )
                done[event.key], step = 1.0, f"{event.key}: failed"
            else:
                continue
            yield Progress(step, sum(done.values()), len(jobs))
    return [rows[job.method] for job in jobs]


def _finish(
    tried: Sequence[TriedDefense],
    shared: _Shared,
    *,
    auditor: Sample,
    environment_device: str,
    command: Sequence[str] | None,
    started: float,
) -> DefenseRecord:
    ranked = sorted(tried, key=_rank)
    first = ranked[0]
    outcome: Release = "fail" if first.status == "failed" else first.release or "inconclusive"
    best = _write_best(first if outcome == "pass" else None, shared.folder)
    record = DefenseRecord(
        created=datetime.now(UTC),
        command=None if command is None else tuple(without_secrets(command)),
        seed=shared.settings.compute.seed,
        outcome=outcome,
        why=_why(ranked, outcome),
        tried=tuple(ranked),
        best=best,
        trigger_recovered=shared.found is not None,
        search=None if shared.found is None else shared.found.record.inversion.why,
        original_clean_acc=_original_clean_acc(ranked, shared.folder),
        n_defender=len(shared.defender),
        n_auditor=len(auditor),
        environment=describe_environment(resolve_device(environment_device)),
        elapsed_s=time.perf_counter() - started,
    )
    _write(shared.folder / _RECORD, record.model_dump_json(indent=1) + "\n")
    return record


def _rank(row: TriedDefense) -> tuple[int, float]:
    """Order by what may be done with it, then by clean accuracy."""
    if row.status == "failed":
        return (5, 0.0)
    place = {"pass": 0, "inconclusive": 2, "fail": 3}[row.release or "inconclusive"]
    if row.outcome == "removed" and row.release == "fail":
        place = 1  # gone, but the policy forbids it for another reason
    elif row.release == "pass" and row.outcome != "removed":
        place = 2
    return (place, -(row.clean_acc.value if row.clean_acc is not None else 0.0))


def _why(ranked: Sequence[TriedDefense], outcome: Release) -> str:
    counts: dict[str, int] = {}
    for row in ranked:
        name = row.outcome or "failed"
        counts[name] = counts.get(name, 0) + 1
    tally = ", ".join(f"{count} {name}" for name, count in counts.items())
    first = ranked[0]
    if first.outcome == "removed":
        what = f"the best is {first.title}"
        if outcome != "pass":
            what += ", and the policy forbids its release for another reason"
    elif outcome == "pass":
        what = f"the best is {first.title}, which the policy lets pass"
    else:
        what = "no defence tried is known to have removed the backdoor"
    return f"Of {len(ranked)} defences {tally}; {what}."


def _write_best(row: TriedDefense | None, folder: Path) -> str | None:
    """Copy the best model and its audit; without one nothing of an earlier run stays under it."""
    model, record = folder / f"{_BEST}.safetensors", folder / f"{_BEST}.json"
    if row is None or row.model is None or row.record is None:
        model.unlink(missing_ok=True)
        record.unlink(missing_ok=True)
        return None
    for target, name in ((model, row.model), (record, row.record)):
        _write(target, read_bytes(folder / name, limit=MODEL_BYTES, what="a file of a defence"))
    return model.name


def _original_clean_acc(rows: Sequence[TriedDefense], folder: Path) -> Rate | None:
    for row in rows:
        if row.record is not None:
            record = read_record(folder / row.record)
            assert isinstance(record, AuditRecord)
            return None if record.original is None else record.original.clean_acc
    return None


# -- what an earlier run left ----------------------------------------------------------------------


def _earlier(folder: Path, method: str) -> TriedDefense | None:
    try:
        content = read_bytes(
            folder / _STATE / f"{method}.json", limit=RECORD_BYTES, what="a defence"
        )
        return TriedDefense.model_validate_json(content)
    except (InputError, ValidationError):
        return None


def _is_there(path: Path, earlier: TriedDefense) -> bool:
    """Return whether the earlier model is still the file it was; one that failed never was."""
    if earlier.model is None:
        return True
    return is_file(path) and digest_file(path) == earlier.model_sha256


def _is_whole(shared: _Shared, earlier: TriedDefense) -> bool:
    if earlier.status == "failed":
        return True  # it would fail again
    try:
        read_record(shared.folder / str(earlier.record))
    except InputError:
        return False
    return True


def _differences(before: Mapping[str, str], now: Mapping[str, str]) -> Iterator[str]:
    for key in dict.fromkeys((*before, *now)):
        one, other = before.get(key, "unset"), now.get(key, "unset")
        if one == other:
            continue
        short = max(len(one), len(other)) <= 40
        yield f"{key} was {one}, is {other}" if short else f"{key} differs"


# -- inputs ----------------------------------------------------------------------------------------


def _demand_own_file(original: LoadedModel) -> None:
    """Refuse a model of a kind that cannot be written as a file of its own.

    Raises:
        ModelError: It is.
    """
    classifier = original.classifier
    if not isinstance(classifier, Classifier) or isinstance(classifier.network, ZeroShotNetwork):
        raise ModelError(
            f"{original.name}: expected a network with logits of its own, got a CLIP or a bare "
            "module; its defended versions cannot be written as files"
        )
    if isinstance(classifier.network, HubNetwork):
        raise ModelError(
            f"{original.name}: expected a model of torchvision, timm or bdaudit, or one with "
            "--arch FILE.py:FACTORY, got a folder of transformers, of which no other file says how "
            "it is built; defend it in Python (bdaudit.defenses), save it with save_pretrained, "
            "and audit that folder"
        )
    if any(isinstance(part, PlugLayer) for part in classifier.network.modules()):
        raise ModelError(
            f"{original.name}: expected an undefended model, got one with NPD's layer in it, which "
            "no architecture has; give attack_result.pt"
        )


def _saved_arch(original: LoadedModel, sources: Sources) -> str | None:
    """Return what a defended model's file says of its architecture; checked before any work.

    Raises:
        ModelError: The original is in memory, so nothing says how it is built.
    """
    if isinstance(sources.original, InMemory):
        raise ModelError(
            "original: expected the path of a checkpoint, so that defended versions are written "
            "as the same architecture, got a module in memory"
        )
    return None if is_python_factory(original.arch) else original.arch


def _digest_images(sample: Sample) -> str:
    return digest_tensors({"images": sample.images, "labels": sample.labels})


def _make_folder(folder: Path) -> None:
    """Make the folder and the one for the state.

    Raises:
        InputError: It cannot be made, or holds something else.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: expected a folder to write to, got a file")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / _STATE).is_dir():
        raise InputError(f"{folder}: contains something else; choose another folder")
    try:
        (folder / _STATE).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot be made: {error.strerror or error}") from error


def _write(path: Path, content: str | bytes) -> None:
    try:
        write_atomically(path, content if isinstance(content, bytes) else content.encode())
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror or error}") from error
