"""What the perturbations are like that wake the models of a family: the paper's tables."""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from fnmatch import fnmatch
from pathlib import Path

from pydantic import ValidationError

from bdaudit.auditing.bench import BenchCase, BenchSource
from bdaudit.auditing.session import Session, without_secrets
from bdaudit.cases.files import FileDigests, request_digests
from bdaudit.cases.request import AuditRequest
from bdaudit.cases.settings import AuditSettings
from bdaudit.cases.sources import Sources
from bdaudit.cases.subjects import Inputs
from bdaudit.errors import BdauditError, ConfigError, InputError
from bdaudit.foundation.opening import RECORD_BYTES, is_file, read_bytes
from bdaudit.foundation.progress import Progress, Steps, reworded
from bdaudit.foundation.writing import write_atomically
from bdaudit.measuring.environment import describe_environment, resolve_device
from bdaudit.measuring.perturbations import PerturbationTables, measure_perturbations
from bdaudit.measuring.store import FolderStore
from bdaudit.models import ModelSettings
from bdaudit.records.perturbations import (
    TABLES,
    PerturbationCase,
    PerturbationsRecord,
    TableName,
)

__all__ = ["PerturbationSettings", "perturbation_steps"]

_CASES = "cases"
_RUNS = "runs"


@dataclass(frozen=True, kw_only=True)
class PerturbationSettings:
    """Which tables are made of which models.

    Attributes:
        tables: Which, each once.
        only: Patterns of member names (`*`, `?`); empty takes all.
        seeds: Under how many seeds, counted up from that of `audit`.
        audit: Settings of the attacks; its one radius is that of all perturbations.

    Raises:
        ConfigError: A table is unknown or there twice, `seeds` is below 1, or there is more than
            one radius.
    """

    tables: tuple[TableName, ...] = TABLES
    only: tuple[str, ...] = ()
    seeds: int = 1
    audit: AuditSettings = field(default_factory=lambda: AuditSettings(eps=(0.05,)))

    def __post_init__(self) -> None:
        if not self.tables or len(set(self.tables) & set(TABLES)) != len(self.tables):
            raise ConfigError(
                f"tables: expected some of {', '.join(TABLES)}, each once, got "
                f"{', '.join(self.tables) or 'none'}"
            )
        if self.seeds < 1:
            raise ConfigError(f"seeds: expected 1 or more, got {self.seeds}")
        if len(self.audit.ladder) != 1:
            raise ConfigError(f"eps: expected one radius, got {self.audit.ladder}")


@dataclass(frozen=True)
class _Planned:
    """A model under a seed, and everybody who takes part, by the names they get in the tables."""

    case: BenchCase
    request: AuditRequest
    names: tuple[str, ...]

    @property
    def seed(self) -> int:
        return self.request.settings.compute.seed


def perturbation_steps(
    source: BenchSource,
    *,
    out: Path,
    settings: PerturbationSettings,
    surrogates: Sequence[Path] = (),
    model_options: ModelSettings | None = None,
    cache_dir: Path | None = None,
    command: Sequence[str] | None = None,
) -> Steps[PerturbationsRecord]:
    """Measure the tables on the models of `source`.

    Finished models are kept in `out`, as are single attacks, so that a run that was killed goes on.
    A model that cannot be measured is a case with a reason, and the others go on.

    Args:
        source: The models. Perturbations for one are also made on the others of its original.
        out: Folder for the cases and their attacks, made where it is missing.
        settings: Which tables, how.
        surrogates: More models with the same trigger, of any architecture, to make perturbations
            on for each of them.
        model_options: What the user says about all checkpoints.
        cache_dir: Folder that keeps surrogates made on the way, where queries start from some.
        command: What to record as the command that reproduces this.

    Raises:
        ConfigError: No model matches.
        InputError: The folder cannot be written to.
    """
    started = time.perf_counter()
    device = resolve_device(settings.audit.compute.device)
    for pattern in settings.only:
        if not any(fnmatch(case.member.name, pattern) for case in source.cases):
            raise ConfigError(f"only: no model is called {pattern}")
    planned = list(_plan(source, settings, surrogates, model_options or ModelSettings()))
    store = _open_store(out)
    files = FileDigests()
    cases = []
    for number, each in enumerate(planned):
        title = f"{each.case.member.name}, seed {each.seed} ({number + 1} of {len(planned)})"
        yield Progress(title, number, len(planned), "looking at what is there")

        def within_all(event: Progress, number: int = number, title: str = title) -> Progress:
            share = event.done / event.total if event.total else 1.0
            return Progress(title, number + min(share, 1.0) * 0.99, len(planned), event.step)

        cases.append(
            (
                yield from reworded(
                    _case(each, settings.tables, out, store, files, cache_dir), within_all
                )
            )
        )
    return PerturbationsRecord(
        created=datetime.now(UTC),
        command=None if command is None else tuple(without_secrets(command)),
        family=source.name,
        family_sha256=source.sha256,
        dataset=source.dataset,
        tables=settings.tables,
        eps=settings.audit.ladder[0],
        norm=settings.audit.norm,
        settings={
            "only": list(settings.only),
            "seeds": settings.seeds,
            "surrogates": [str(path) for path in surrogates],
            "audit": settings.audit.as_dict(),
        },
        environment=describe_environment(device),
        cases=tuple(cases),
        left_out=dict(source.left_out),
        elapsed_s=time.perf_counter() - started,
    )


def _plan(
    source: BenchSource,
    settings: PerturbationSettings,
    surrogates: Sequence[Path],
    model_options: ModelSettings,
) -> Iterator[_Planned]:
    chosen = [
        case
        for case in source.cases
        if not settings.only or any(fnmatch(case.member.name, p) for p in settings.only)
    ]
    for step in range(settings.seeds):
        compute = settings.audit.compute
        audit = replace(settings.audit, compute=replace(compute, seed=compute.seed + step))
        for case in chosen:
            # An innocent model has nothing of its original's backdoor to lend.
            others = [
                other
                for other in chosen
                if other is not case
                and other.member.original == case.member.original
                and other.member.lineage == "defended"
            ]
            references = [p for p in source.references if p.resolve() != case.defended.resolve()]
            yield _Planned(
                case=case,
                request=AuditRequest(
                    key=f"{case.member.name}--seed-{compute.seed + step}",
                    sources=Sources.of(
                        defended=case.defended,
                        original=case.original,
                        references=references,
                        surrogates=[*(other.defended for other in others), *surrogates],
                        data=source.data,
                        trigger=case.trigger,
                        model_options=model_options,
                    ),
                    settings=audit,
                ),
                names=_told_apart(
                    [
                        case.member.name,
                        case.member.original or "original",
                        *(path.stem for path in references),
                        *(other.member.name for other in others),
                        *(path.stem for path in surrogates),
                    ]
                ),
            )


def _told_apart(names: Sequence[str]) -> tuple[str, ...]:
    """Number those that are called like one before them: a family's own names stay as they are."""
    seen = Counter[str]()
    told = []
    for name in names:
        seen[name] += 1
        told.append(f"{name} ({seen[name]})" if seen[name] > 1 else name)
    return tuple(told)


def _open_store(out: Path) -> FolderStore:
    folder = out / _RUNS
    try:
        (out / _CASES).mkdir(parents=True, exist_ok=True)
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise InputError(f"{out}: {error.strerror or error}") from error
    store = FolderStore(folder, resume=is_file(folder / "inputs.json"))
    # Each run is under the digest of all that determined it, so any of them may lie here.
    store.describe({"holds": "attacks for tables of perturbations"})
    return store


def _case(
    planned: _Planned,
    tables: tuple[TableName, ...],
    out: Path,
    store: FolderStore,
    files: FileDigests,
    cache_dir: Path | None,
) -> Steps[PerturbationCase]:
    key = _digest(planned, tables, files)
    kept = out / _CASES / f"{planned.request.key}-{key[:16]}.json"
    if key and (known := _read_kept(kept)) is not None:
        return known
    started = time.perf_counter()
    member = planned.case.member
    made = PerturbationCase(
        model=member.name,
        original=planned.names[1],
        truth=member.truth,
        seed=planned.seed,
    )
    try:
        measured = yield from _measure(planned, tables, store, cache_dir)
    except ConfigError:
        raise
    except BdauditError as error:
        return made.model_copy(
            update={"reason": str(error), "elapsed_s": time.perf_counter() - started}
        )
    made = made.model_copy(update={**vars(measured), "elapsed_s": time.perf_counter() - started})
    if key:
        write_atomically(kept, made.model_dump_json().encode())
    return made


def _measure(
    planned: _Planned, tables: tuple[TableName, ...], store: FolderStore, cache_dir: Path | None
) -> Steps[PerturbationTables]:
    settings = planned.request.settings
    session = yield from Session.begin(
        planned.request.sources, compute=settings.compute, split=settings.split
    )
    inputs = _named(session.open(), planned.names)
    return (
        yield from measure_perturbations(
            inputs,
            session.compute,
            settings=settings,
            tables=tables,
            store=store,
            cache_dir=cache_dir,
        )
    )


def _named(inputs: Inputs, names: Sequence[str]) -> Inputs:
    """Call the models what the family calls them."""
    subjects = zip(inputs.subjects, names, strict=True)
    return replace(inputs, subjects=tuple(replace(s, name=name) for s, name in subjects))


def _digest(planned: _Planned, tables: tuple[TableName, ...], files: FileDigests) -> str:
    """Digest all that determines a case; empty where that cannot be told."""
    digests = request_digests(planned.request, files)
    if digests is None:
        return ""
    text = json.dumps([digests, sorted(tables), planned.names], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _read_kept(path: Path) -> PerturbationCase | None:
    """Return a finished case; one that is damaged is made again."""
    if not is_file(path):
        return None
    try:
        content = read_bytes(path, limit=RECORD_BYTES, what="a kept case")
        return PerturbationCase.model_validate_json(content)
    except (BdauditError, ValidationError):
        return None
