"""Many audits side by side: what they have in common is done once, what is there is kept."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path, PurePath
from typing import Any, TypeAlias

from bdaudit.auditing.audit import audit_steps
from bdaudit.cases.files import FileDigests, is_still_true, request_digests, shared_by
from bdaudit.cases.request import AuditRequest
from bdaudit.engines import Advanced, Engine, Event, Failed, Finished, Started, Task
from bdaudit.errors import BdauditError, ConfigError, InputError, RemoteError
from bdaudit.foundation.progress import Progress, Steps
from bdaudit.foundation.texts import read_json
from bdaudit.foundation.writing import write_atomically
from bdaudit.measuring.attacking import KINDS, rests_on_surrogates
from bdaudit.measuring.sharing import SharingStore
from bdaudit.records import AuditRecord, Condition, Mode, demand_audit, read_record, to_json
from bdaudit.records.sweeps import ReportedFigures, SweepRecord, SweptAudit
from bdaudit.report.sweeps import compare_reported, describe_audit
from bdaudit.version import __version__

__all__ = ["record_path", "sweep_steps"]

Told: TypeAlias = Callable[[SweptAudit], None]
"""Somebody who wants to hear of every audit as soon as it is over."""

_RECORDS = "records"
_STAMPS = "stamps"
_RUNS = "runs"
_STATE = "state"


def record_path(folder: Path, key: str) -> Path:
    """Return where the record of the audit `key` is in the folder of a sweep."""
    return folder / _RECORDS / f"{key}.json"


def sweep_steps(
    requests: Sequence[AuditRequest],
    *,
    folder: Path,
    engine: Engine,
    cache_dir: Path | None = None,
    command: Sequence[str] | None = None,
    told: Told | None = None,
    reported: Mapping[str, ReportedFigures] | None = None,
    notes: Sequence[str] = (),
) -> Steps[SweepRecord]:
    """Run many audits, each into a record of its own; one that fails leaves the others be.

    A record that is there, of the same version, settings, policy and contents of all files, is
    kept. With several workers the attacks on originals and references that requests have in common
    are tasks of their own, and come first: no two workers make the same one.

    Args:
        requests: The audits, each of another key.
        folder: For records, and for what is needed to go on after an interrupt; made when missing.
            All workers must see it under this name, as they must see the inputs.
        engine: Where the audits are done.
        cache_dir: Folder that keeps models made here (surrogates, stand-ins); `None` keeps none.
        command: What the records say they were made by.
        told: Told of every audit when it is over.
        reported: What somebody else's files say of the defended models, by the audit's key, and of
            the original under "original"; shown beside what is measured.
        notes: What else is worth knowing, for the record.

    Returns:
        What became of each, in the order of `requests`.

    Raises:
        ConfigError: Two requests have the same key.
        InputError: The folder cannot be written to.
        ResourceError: The engine has no worker to give.
    """
    started = time.perf_counter()
    _check_keys(requests)
    _make_folders(folder)
    board = _Board(len(requests), told or _ignore)
    files = FileDigests()
    missing = []
    for request in requests:
        yield board.progress("looking at what is there")
        record = _find_kept(request, folder, files)
        if record is None:
            missing.append(request)
        else:
            board.settle(_line(request.key, record, "kept"))
    tasks = _plan(missing, files, engine.workers)
    board.expect(task.key for task in tasks)
    common = _Common(folder, cache_dir, None if command is None else tuple(command))
    with contextlib.closing(engine.run(_do, tasks, common)) as events:
        for event in events:
            board.hear(event, folder)
            yield board.progress()
    reported = reported or {}
    audits = tuple(
        board.over[request.key].model_copy(update={"reported": reported.get(request.key)})
        for request in requests
    )
    records = {}
    if reported:  # else they need not be read again
        paths = {a.key: record_path(folder, a.key) for a in audits if a.record is not None}
        records = {key: demand_audit(read_record(path), path) for key, path in paths.items()}
    return SweepRecord(
        created=datetime.now(UTC),
        bdaudit=__version__,
        audits=audits,
        elapsed_s=time.perf_counter() - started,
        notes=(*notes, *compare_reported(reported, records), *board.notes),
    )


def _ignore(_: SweptAudit) -> None:
    pass


def _check_keys(requests: Sequence[AuditRequest]) -> None:
    seen = set()
    for request in requests:
        # Some file systems do not tell "A" from "a".
        if request.key.lower() in seen:
            raise ConfigError(f"audits: two are called {request.key!r}; give each its own name")
        seen.add(request.key.lower())


def _make_folders(folder: Path) -> None:
    try:
        for name in (_RECORDS, _STAMPS, _RUNS, _STATE):
            (folder / name).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: {error.strerror or error}") from error


def _line(key: str, record: AuditRecord, status: Any) -> SweptAudit:
    return describe_audit(key, record, file=PurePath(_RECORDS, f"{key}.json"), status=status)


# -- what is there already ----------------------------------------------------------------------


def _stamp_path(folder: Path, key: str) -> Path:
    return folder / _STAMPS / f"{key}.json"


def _find_kept(request: AuditRequest, folder: Path, files: FileDigests) -> AuditRecord | None:
    """Return the record of an earlier sweep, where this one would give the same."""
    try:
        stamp = read_json(_stamp_path(folder, request.key), what="the stamp of an audit")
    except InputError:
        return None
    if stamp != request_digests(request, files):
        return None
    try:
        record = read_record(record_path(folder, request.key))
    except BdauditError:
        return None
    if not isinstance(record, AuditRecord) or record.verdict is None:
        return None
    return record if is_still_true(record, files) else None


# -- what is to be done -------------------------------------------------------------------------


@dataclass(frozen=True)
class _Common:
    """What all tasks are told."""

    folder: Path
    cache_dir: Path | None
    command: tuple[str, ...] | None


@dataclass(frozen=True)
class _SharedRuns:
    """The attacks on some models that several audits need.

    Attributes:
        key: Of the task.
        request: An audit of no more than these models; the original stands in the place of the
            defended one, and is not attacked there.
        models: Names of those that are attacked.
    """

    key: str
    request: AuditRequest
    models: frozenset[str]

    @classmethod
    def of(
        cls, key: str, request: AuditRequest, *, original: bool, indices: Sequence[int]
    ) -> _SharedRuns:
        """Ask for the original, where `original` says so, and the references at `indices`."""
        sources, settings = request.sources, request.settings
        references = tuple(sources.references)
        if settings.objective != "specific":
            references = tuple(references[index] for index in indices)
            indices = range(len(references))
        # The specific objective is made on the others too, so they are there under their names.
        alone = len(references) == 1
        names = {"reference" if alone else f"reference {index + 1}" for index in indices}
        request = replace(
            request,
            sources=replace(sources, defended=sources.original, references=references),
            settings=replace(settings, controls=(), bec=False, pictures=False, stand_ins=0),
        )
        return cls(key, request, frozenset(names | ({"original"} if original else set())))


def _plan(requests: Sequence[AuditRequest], files: FileDigests, workers: int) -> list[Task]:
    """List the tasks; those that several audits need stand before the first of these."""
    cases: dict[str, list[AuditRequest]] = {}
    for request in requests:
        case = shared_by(request_digests(request, files)) if workers > 1 else None
        cases.setdefault(case or f"alone {request.key}", []).append(request)
    tasks: list[Task] = []
    for number, members in enumerate(cases.values()):
        shared = _shared_tasks(members[0], number, workers) if len(members) > 1 else []
        tasks += shared
        keys = tuple(task.key for task in shared)
        tasks += [Task(request.key, request, behind=keys) for request in members]
    return tasks


def _shared_tasks(request: AuditRequest, number: int, workers: int) -> list[Task]:
    """Deal out the attacks that are alike in all audits of a case, to all workers at most.

    Where the trigger is looked for first, each audit looks for it itself.
    """
    request = request.with_modes()
    sources, kinds = request.sources, [KINDS[mode] for mode in request.settings.mode or ()]
    if sources.original is None or sources.trigger is None:
        return []
    # Some attacks show the original what is made for each defended model.
    originals = [] if all(kind.shown_around for kind in kinds) else [None]
    models = [*originals, *range(len(sources.references))]
    tasks: list[Task] = []
    for part in range(min(workers, len(models))):
        dealt = models[part :: min(workers, len(models))]
        payload = _SharedRuns.of(
            f"_{number}-shared-{part + 1}",  # no name of an audit begins like this
            request,
            original=None in dealt,
            indices=[index for index in dealt if index is not None],
        )
        # Surrogates are made once, by the first, and kept in the cache.
        behind = (tasks[0].key,) if tasks and rests_on_surrogates(request.settings) else ()
        tasks.append(Task(payload.key, payload, behind=behind))
    return tasks


# -- in the workers -----------------------------------------------------------------------------


def _do(payload: AuditRequest | _SharedRuns, common: _Common) -> Steps[SweptAudit | None]:
    if isinstance(payload, _SharedRuns):
        yield from _make_shared(payload, common)
        return None
    return (yield from _make_record(payload, common))


def _make_shared(payload: _SharedRuns, common: _Common) -> Steps[None]:
    store = SharingStore(common.folder / _STATE / payload.key, common.folder / _RUNS)

    def is_wanted(mode: Mode, name: str, condition: Condition, eps: float) -> bool:
        return name in payload.models and condition == "trigger"

    # What is wrong is said by the audits themselves, which go on without.
    with contextlib.suppress(BdauditError):
        yield from audit_steps(
            payload.request.sources,
            settings=payload.request.settings,
            store=store,
            cache_dir=common.cache_dir,
            only=is_wanted,
        )
    store.finish()


def _make_record(request: AuditRequest, common: _Common) -> Steps[SweptAudit]:
    yield Progress("hashing the inputs", 0, 1)
    digests = request_digests(request, FileDigests())
    stamp = _stamp_path(common.folder, request.key)
    # An old stamp must not vouch for a new record.
    stamp.unlink(missing_ok=True)
    store = SharingStore(common.folder / _STATE / request.key, common.folder / _RUNS)
    record = yield from audit_steps(
        request.sources,
        settings=request.settings,
        store=store,
        cache_dir=common.cache_dir,
        command=common.command,
    )
    write_atomically(record_path(common.folder, request.key), to_json(record).encode())
    if digests is not None:
        write_atomically(stamp, json.dumps(digests, indent=1).encode())
    store.finish()
    return _line(request.key, record, "done")


# -- what is told -------------------------------------------------------------------------------


@dataclass
class _Board:
    """How far all audits are together."""

    n_audits: int
    told: Told
    over: dict[str, SweptAudit] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    _shares: dict[str, float] = field(default_factory=dict)
    _running: dict[str, str] = field(default_factory=dict)

    def expect(self, keys: Iterator[str]) -> None:
        self._shares = dict.fromkeys(keys, 0.0)

    def settle(self, line: SweptAudit) -> None:
        self.over[line.key] = line
        self.told(line)

    def hear(self, event: Event, folder: Path) -> None:
        key = event.key
        if isinstance(event, Started):
            self._running[key] = "starting"
            return
        if isinstance(event, Advanced):
            total = event.progress.total
            self._running[key] = event.progress.step
            self._shares[key] = min(event.progress.done / total, 1.0) if total else 0.0
            return
        self._running.pop(key, None)
        self._shares[key] = 1.0
        if isinstance(event, Failed) and event.retried:
            what = "attacks that several audits share" if key.startswith("_") else key
            self.notes.append(f"{what}: started again after the first worker died")
        if key.startswith("_"):
            if isinstance(event, Failed):
                self.notes.append(
                    f"attacks that several audits share were not made beforehand: {event.error}"
                )
            return
        self.settle(_line_of_failure(event) if isinstance(event, Failed) else _seen(event, folder))

    def progress(self, what: str | None = None) -> Progress:
        """Return how far all are: in tasks, those under way by their share."""
        n_failed = sum(line.status == "failed" for line in self.over.values())
        step = f"{len(self.over)} of {self.n_audits} audits"
        if n_failed:
            step += f", {n_failed} failed"
        done = sum(self._shares.values())
        under_way = [
            f"{'for several audits' if key.startswith('_') else key}: {step}"
            for key, step in self._running.items()
        ]
        note = what or "; ".join(under_way)
        if not self._shares:
            return Progress(step, 0, 1, note)
        return Progress(step, done, len(self._shares), note)


def _seen(event: Finished, folder: Path) -> SweptAudit:
    """Take a line from a worker, whose files must be here too."""
    line: SweptAudit = event.result
    if record_path(folder, line.key).is_file():
        return line
    return _line_of_failure(
        Failed(
            line.key,
            InputError(
                f"{record_path(folder, line.key)}: a worker wrote it, but it is not here; --out "
                f"must be a folder that all machines share"
            ),
        )
    )


def _line_of_failure(event: Failed) -> SweptAudit:
    error = event.error
    is_input = isinstance(error, InputError | ConfigError | RemoteError)
    gist = str(error).strip().splitlines() or [type(error).__name__]
    named = isinstance(error, BdauditError)
    return SweptAudit(
        key=event.key,
        status="failed",
        why=gist[0] if named else f"{type(error).__name__}: {gist[0]}",
        failed_of="input" if is_input else "internal",
        traceback=event.traceback,
    )
