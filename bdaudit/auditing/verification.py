"""Do a record's inputs still have the digests it states, and do its numbers come out again?"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from bdaudit.auditing.audit import audit_steps
from bdaudit.auditing.evidence import IN_MEMORY
from bdaudit.auditing.inputs import Sources
from bdaudit.auditing.kept_trigger import restore_trigger
from bdaudit.auditing.recorded import from_recorded
from bdaudit.auditing.settings import AuditSettings
from bdaudit.blackbox import BlackBoxOptions
from bdaudit.errors import InputError, RecordError
from bdaudit.fetching import fetch
from bdaudit.file_digests import digest_file
from bdaudit.foundation.sources import is_url
from bdaudit.models import ModelSettings
from bdaudit.progress import Listener, Progress, Steps, finish
from bdaudit.records import using_record
from bdaudit.results import (
    AttackRun,
    AuditRecord,
    Condition,
    FileDigest,
    Mode,
    Rate,
    Record,
    read_record,
)
from bdaudit.usercode import split_reference
from bdaudit.verdict import judge, parse_policy

__all__ = ["NumberCheck", "VerificationRecord", "verify", "verify_steps"]

_NOT_FOR_NUMBERS = ("policy", "project")
"""Files that shape a verdict but no measurement; the record holds what they said."""


class NumberCheck(Record):
    """A rate as the record has it, and as it came out now.

    Attributes:
        name: Of what.
        recorded: In the record, with its 95 % interval.
        measured: Now, on the same images.
        agrees: Whether the share measured now lies within the recorded interval.
    """

    name: str
    recorded: Rate
    measured: Rate
    agrees: bool


class VerificationRecord(Record):
    """What became of a record that was verified.

    Attributes:
        record: The file.
        record_sha256: Its digest.
        agrees: Whether nothing speaks against it.
        objections: Everything that does.
        notes: What is worth knowing and does not.
        files_checked: How many files have the digest that the record states.
        part: The attack and the control that were run again, in words; `None` when none were.
        numbers: Every rate that was measured again.
    """

    kind: Literal["verification"] = "verification"
    record: str
    record_sha256: str
    agrees: bool
    objections: tuple[str, ...]
    notes: tuple[str, ...]
    files_checked: int
    part: str | None
    numbers: tuple[NumberCheck, ...]


def verify(
    record: Path,
    *,
    seed: int = 0,
    folder: Path = Path(),
    digests_only: bool = False,
    allow_code: bool = False,
    device: str | None = None,
    listener: Listener | None = None,
) -> VerificationRecord:
    """Hash a record's inputs again, and run a part of its audit again.

    The plain rates of every model are measured again, and at one eps the attack on the defended
    model and one control: drawn by `seed`, run from the record's own seed.

    Args:
        record: What `bdaudit audit --json` wrote.
        seed: Draws eps and control.
        folder: What the record's relative paths are relative to.
        digests_only: Only hash; run nothing.
        allow_code: Run Python files that the record names, and use the token's variable it names.
        device: Where to compute; `None` for the recorded choice.
        listener: Told of progress.

    Raises:
        RecordError: The record cannot be read, was edited, or is no audit's.
        InputError: An input is not there, was handed over in memory, or needs `allow_code`.
    """
    steps = verify_steps(
        record,
        seed=seed,
        folder=folder,
        digests_only=digests_only,
        allow_code=allow_code,
        device=device,
    )
    return finish(steps, listener)


def verify_steps(
    record: Path,
    *,
    seed: int,
    folder: Path,
    digests_only: bool,
    allow_code: bool,
    device: str | None,
) -> Steps[VerificationRecord]:
    """Run `verify` step by step, for whoever drives the generator."""
    document = read_record(record)
    if not isinstance(document, AuditRecord):
        raise RecordError(
            f"{record}: expected the record of an audit, got one of kind {document.kind!r}"
        )
    yield Progress("hashing the inputs", 0, 1)
    changed, notes = _compare_files(document, folder)
    objections = [*changed, *_compare_verdict(document, record)]
    numbers: tuple[NumberCheck, ...] = ()
    part = None
    if digests_only:
        notes.append("nothing was run again: only files were hashed")
    elif changed:
        notes.append("nothing was run again: the inputs are not those of the record")
    else:
        if document.kept_trigger is not None:
            notes.append(
                "the trigger is the one that the record holds; the search that recovered it was "
                "not run again"
            )
        sample = _Sample.draw(document, seed)
        part = str(sample)
        again = yield from audit_steps(
            _restore_sources(document, folder, record, allow_code=allow_code),
            settings=sample.settings(_restore_settings(document, record), device),
            only=sample.wants,
        )
        objections += _compare_inputs(document, again)
        numbers = tuple(_compare_numbers(document, again))
        objections += [
            f"{check.name}: recorded {_share(check.recorded)}, measured {_share(check.measured)}"
            for check in numbers
            if not check.agrees
        ]
        objections += _missing_runs(again, sample)
    return VerificationRecord(
        record=str(record),
        record_sha256=digest_file(record),
        agrees=not objections,
        objections=tuple(objections),
        notes=tuple(notes),
        files_checked=len(document.inputs) - len(changed),
        part=part,
        numbers=numbers,
    )


@dataclass(frozen=True)
class _Sample:
    """The part of an audit that is run again."""

    mode: Mode
    eps: float
    control_model: str
    control_condition: Condition

    @classmethod
    def draw(cls, document: AuditRecord, seed: int) -> _Sample:
        """Draw an eps and one of the controls beside it.

        Raises:
            RecordError: The record has no attack to run again, or none with a control.
        """
        draws = random.Random(seed)  # noqa: S311 - a choice, no secret
        made = {model.name for model in document.models if model.stand_in}
        candidates = [
            (run, controls)
            for run in document.runs_of(role="defended", condition="trigger")
            if (
                controls := [
                    other
                    for other in document.runs
                    if _is_control(other, run) and other.model not in made
                ]
            )
        ]
        if not candidates:
            raise RecordError("the record has no attack with a control to run again")
        run, controls = draws.choice(candidates)
        control = draws.choice(controls)
        return cls(run.mode, run.eps, control.model, control.condition)

    def wants(self, mode: Mode, model: str, condition: Condition, eps: float) -> bool:
        """Say whether an attack belongs to the part."""
        if (mode, eps) != (self.mode, self.eps):
            return False
        return (model, condition) in (
            ("defended", "trigger"),
            (self.control_model, self.control_condition),
        )

    def settings(self, recorded: AuditSettings, device: str | None) -> AuditSettings:
        """Narrow the recorded settings to the part.

        Stand-ins are not made again: that takes long, and bit for bit they follow from the seed
        on one kind of processor only.
        """
        compute = recorded.compute
        return replace(
            recorded,
            mode=(self.mode,),
            eps=(self.eps,),
            bec=False,
            stand_ins=0,
            compute=compute if device is None else replace(compute, device=device),
        )

    def __str__(self) -> str:
        what = (
            f"the same attack on {self.control_model}"
            if self.control_condition == "trigger"
            else f"the control {self.control_condition.replace('_', ' ')}"
        )
        return f"re-activation ({self.mode}) of defended at eps {self.eps:g}, and {what}"


def _is_control(other: AttackRun, run: AttackRun) -> bool:
    if other.attack != run.attack:
        return False
    if other.role == "defended":
        return other.condition != "trigger"
    return other.role == "reference" and other.condition == "trigger"


# --- digests -----------------------------------------------------------------------------------


def _compare_files(document: AuditRecord, folder: Path) -> tuple[list[str], list[str]]:
    """Hash every file the record names: what changed, and what is only worth a note.

    Raises:
        InputError: A file is not there.
    """
    changed, notes = [], []
    for file in document.inputs:
        path = _local_path(file, folder)
        try:
            found = digest_file(path, what=f"the file that the record names as its {file.role}")
        except InputError as error:
            raise RecordError(
                f"{error}. Run this where the audit was run, or pass the folder its paths are "
                "relative to"
            ) from error
        if found == file.sha256:
            continue
        text = f"{file.role} {file.path}: sha256 was {file.sha256[:12]}, is {found[:12]}"
        if file.role in _NOT_FOR_NUMBERS:
            notes.append(f"{text}; the record holds what it said")
        else:
            changed.append(text)
    return changed, notes


def _local_path(file: FileDigest, folder: Path) -> Path:
    """Find a file of the record again, by fetching it where it came from a URL."""
    if not is_url(file.path):
        return folder / file.path
    address = file.path if "#" in file.path else f"{file.path}#sha256={file.sha256}"
    return fetch(address)


def _compare_verdict(document: AuditRecord, path: Path) -> Iterator[str]:
    """Judge the recorded figures by the recorded limits: does the recorded verdict follow?"""
    stated = document.verdict
    if stated is None:
        yield "the record holds no verdict"
        return
    policy = parse_policy(stated.policy, str(path))
    if stated.policy_sha256 is not None and stated.policy_sha256 != policy.sha256:
        yield "the recorded limits do not have the recorded digest"
    with using_record(path):
        judged = judge(document, policy)
    if (judged.outcome, judged.release) != (stated.outcome, stated.release or judged.release):
        yield (
            f"the recorded verdict is {stated.outcome} ({stated.release}), but the recorded "
            f"figures and limits give {judged.outcome} ({judged.release})"
        )


def _compare_inputs(document: AuditRecord, again: AuditRecord) -> Iterator[str]:
    """Compare what was opened now with what was opened then, whatever files it came from.

    Models that are made during an audit are left out: elsewhere they come out a little different.
    """
    given = {file.role for file in document.inputs}
    then = {m.name: m.weights_sha256 for m in document.models if m.name in given}
    for model in again.models:
        if model.name in then and then[model.name] != model.weights_sha256:
            yield f"{model.name}: its tensors are not those of the record"
    recorded = {(file.role, file.sha256) for file in document.inputs}
    for file in again.inputs:
        if (file.role, file.sha256) not in recorded:
            yield f"{file.role}: the record names {file.path} as what it used, without its digest"
    if document.data.sha256 != again.data.sha256:
        yield "data: the images or labels are not those of the record"
    if document.trigger.sha256 != again.trigger.sha256:
        yield "trigger: is not that of the record"


# --- numbers -----------------------------------------------------------------------------------


def _compare_numbers(document: AuditRecord, again: AuditRecord) -> Iterator[NumberCheck]:
    for now in again.baselines:
        then = document.baseline_of(now.model)
        if then is None:
            continue
        yield _check(f"clean accuracy of {now.model}", then.clean_acc, now.clean_acc)
        yield _check(f"trigger alone on {now.model}", then.asr, now.asr)
    recorded = {_identity(run): run for run in document.runs}
    for run in again.runs:
        before = recorded.get(_identity(run))
        if before is None:
            continue
        name = f"{run.condition.replace('_', ' ')} on {run.model}, {run.mode}, eps {run.eps:g}"
        yield _check(name, before.asr, run.asr)
        if before.delta_only is not None and run.delta_only is not None:
            yield _check(f"{name}, same delta alone", before.delta_only, run.delta_only)


def _identity(run: AttackRun) -> tuple[object, ...]:
    return (run.mode, run.model, run.condition, run.objective, run.norm, run.eps)


def _check(name: str, recorded: Rate, measured: Rate) -> NumberCheck:
    return NumberCheck(
        name=name,
        recorded=recorded,
        measured=measured,
        agrees=recorded.low <= measured.value <= recorded.high,
    )


def _missing_runs(again: AuditRecord, sample: _Sample) -> Iterator[str]:
    """A part that could not be run again speaks against the record."""
    for step in again.steps:
        if step.status == "failed":
            yield f"step {step.name} failed: {step.reason}"
    for model, condition in (
        ("defended", "trigger"),
        (sample.control_model, sample.control_condition),
    ):
        if not any((r.model, r.condition) == (model, condition) for r in again.runs):
            yield f"{condition.replace('_', ' ')} on {model} could not be run again"


def _share(rate: Rate) -> str:
    return f"{rate.value:.1%} ({rate.low:.1%} to {rate.high:.1%})"


# --- opening everything again ------------------------------------------------------------------


def _restore_settings(document: AuditRecord, path: Path) -> AuditSettings:
    try:
        return TypeAdapter(AuditSettings).validate_python(
            from_recorded("AuditSettings", document.settings)
        )
    except ValidationError as error:
        raise RecordError(
            f"{path}: its settings are not this version's; verify it with bdaudit "
            f"{document.environment.bdaudit}: {error.errors()[0]['msg']}"
        ) from error


def _restore_sources(
    document: AuditRecord, folder: Path, path: Path, *, allow_code: bool
) -> Sources:
    """Name everything as the record does, with paths as seen from here.

    Raises:
        RecordError: The record does not say, or says what this version does not know.
        InputError: Something was handed over in memory, or is code and that is not allowed.
    """
    _refuse_what_is_gone(document, path)
    try:
        if not allow_code:
            _refuse_code(document.sources, path)
        sources = _open_again(document.sources, folder)
        if document.kept_trigger is None:
            return sources
        return replace(sources, trigger=restore_trigger(document.kept_trigger))
    except (ValidationError, KeyError, TypeError, AttributeError) as error:
        raise RecordError(
            f"{path}: what it was made from is not said as this version says it "
            f"({type(error).__name__}); verify it with bdaudit {document.environment.bdaudit}"
        ) from error


def _open_again(said: Mapping[str, Any], folder: Path) -> Sources:
    values: dict[str, Any] = {}
    for name, value in said.items():
        if name in _TABLES:
            kind, adapter = _TABLES[name]
            values[name] = adapter.validate_python(from_recorded(kind, value))
        elif isinstance(value, Mapping):
            raise TypeError(f"{name}: a table")
        else:
            values[name] = _located(value, folder) if name in _PATHS else value
    options = values["model_options"]
    if options.arch is not None and split_reference(options.arch) is not None:
        values["model_options"] = replace(options, arch=_located(options.arch, folder))
    return Sources(**values)


_TABLES: dict[str, tuple[str, TypeAdapter[Any]]] = {
    "model_options": ("ModelSettings", TypeAdapter(ModelSettings)),
    "black_box": ("BlackBoxOptions", TypeAdapter(BlackBoxOptions)),
}
_PATHS = ("defended", "original", "references", "surrogates", "data", "trigger", "classes")


def _located(value: Any, folder: Path) -> Any:
    if isinstance(value, str):
        return value if is_url(value) else str(folder / value)
    if isinstance(value, Sequence):
        return [_located(inner, folder) for inner in value]
    return value


def _refuse_what_is_gone(document: AuditRecord, path: Path) -> None:
    said = document.sources
    if not said:
        raise RecordError(f"{path}: does not say what it was made from")
    gone = [name for name, value in said.items() if value == IN_MEMORY]
    if gone == ["trigger"] and document.kept_trigger is not None:
        return
    if gone:
        raise InputError(
            f"{path}: {', '.join(gone)} was handed over in memory and cannot be opened again; "
            "audit files to be able to verify"
        )


def _refuse_code(said: Mapping[str, Any], path: Path) -> None:
    """A record may be a stranger's: it may not run code here, nor send a token somewhere."""
    named = [said.get("defended"), said["model_options"]["arch"]]
    code = [text for text in named if isinstance(text, str) and split_reference(text) is not None]
    token = said["black_box"]["transport"]["token_env"]
    wants = [f"run {text}" for text in code]
    if said.get("allow_trigger_code"):
        wants.append("run the Python file of its trigger")
    if token is not None:
        wants.append(f"send the content of ${token} to {said.get('defended')}")
    if wants:
        raise InputError(
            f"{path}: the record would {' and '.join(wants)}; if you trust it pass --trust-record "
            "(allow_code=True)"
        )
