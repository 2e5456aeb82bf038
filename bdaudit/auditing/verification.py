"""Do a record's inputs still have the digests it states, and do its numbers come out again?"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from bdaudit.auditing.audit import audit_steps
from bdaudit.cases.restoring import restore_settings, restore_sources
from bdaudit.cases.settings import AuditSettings
from bdaudit.errors import RecordError
from bdaudit.foundation.progress import Listener, Progress, Steps, finish
from bdaudit.ledger import rehash, verify_digests
from bdaudit.records import (
    AttackRun,
    AuditRecord,
    Condition,
    Mode,
    Rate,
    demand_audit,
    read_record,
)
from bdaudit.records.verification import NumberCheck, VerificationRecord

__all__ = ["verify", "verify_steps"]


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
        folder: Folder that relative paths in the record refer to.
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
    yield Progress("hashing the inputs", 0, 1)
    if digests_only:
        return verify_digests(record, folder=folder)
    document = demand_audit(read_record(record), record)
    hashed = rehash(document, record, folder)
    if hashed.changed:
        return hashed.as_record("nothing was run again: the inputs are not those of the record")
    notes = []
    if document.kept_trigger is not None:
        notes.append(
            "the trigger is the one that the record holds; the search that recovered it was not "
            "run again"
        )
    sample = _Sample.draw(document, seed)
    again = yield from audit_steps(
        restore_sources(document, folder, record, allow_code=allow_code),
        settings=sample.settings(restore_settings(document, record), device),
        only=sample.wants,
    )
    numbers = tuple(_compare_numbers(document, again))
    objections = [
        *_compare_inputs(document, again),
        *(
            f"{check.name}: recorded {_share(check.recorded)}, measured {_share(check.measured)}"
            for check in numbers
            if not check.agrees
        ),
        *_missing_runs(again, sample),
    ]
    return hashed.as_record(*notes, objections=objections, part=str(sample), numbers=numbers)


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
        """Return whether an attack belongs to the part."""
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
    """A part that could not be run again counts against the record."""
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
