"""Hold a record, or a folder of them, against what is there today: files, limits, verdicts.

Nothing is measured and no model is opened: files are hashed, and recorded figures are judged again.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from bdaudit.errors import BdauditError, InputError, RecordError
from bdaudit.fetching import fetch
from bdaudit.foundation.file_digests import digest_file
from bdaudit.foundation.opening import is_file, is_folder
from bdaudit.foundation.sources import is_url
from bdaudit.foundation.texts import read_json
from bdaudit.plain_text import on_one_line
from bdaudit.records import AuditRecord, FileDigest, demand_audit, read_record, using_record
from bdaudit.records.attestations import is_attestation, is_signed, read_attested
from bdaudit.records.ledger import LedgerEntry, LedgerFile, LedgerRecord
from bdaudit.records.signing import check_signature, signature_of
from bdaudit.records.summary import release_of
from bdaudit.records.verification import NumberCheck, VerificationRecord
from bdaudit.verdict import Policy, judge, parse_policy, read_policy
from bdaudit.verdict.policy import digest_limits
from bdaudit.version import __version__

__all__ = ["Rehashed", "read_ledger", "rehash", "verify_digests"]

MOST_RECORDS = 10_000
MOST_FILES = 200_000
_SUFFIXES = (".json", ".jsonl")
_NOT_FOR_NUMBERS = ("policy", "project")
"""Files that shape a verdict but no measurement; the record holds what they said."""


def verify_digests(record: Path, *, folder: Path = Path()) -> VerificationRecord:
    """Hash the files that a record names again, and judge its figures by its own limits.

    Args:
        record: What `bdaudit audit --json` wrote.
        folder: Folder that relative paths in the record refer to.

    Raises:
        RecordError: The record cannot be read, was edited, or is no audit's; or a file that it
            names is not there.
    """
    document = demand_audit(read_record(record), record)
    found = rehash(document, record, folder)
    return found.as_record("nothing was run again: only files were hashed")


@dataclass(frozen=True, kw_only=True)
class Rehashed:
    """A record held against its files and its own limits.

    Attributes:
        record: The file of the record.
        changed: Files that shaped a measurement and are others now, in words.
        objections: These, and what of the verdict does not follow from the figures.
        notes: Files that are others and shaped no measurement.
        files_checked: How many have the digest that the record states.
    """

    record: Path
    changed: tuple[str, ...]
    objections: tuple[str, ...]
    notes: tuple[str, ...]
    files_checked: int

    def as_record(
        self,
        *notes: str,
        objections: Sequence[str] = (),
        part: str | None = None,
        numbers: tuple[NumberCheck, ...] = (),
    ) -> VerificationRecord:
        """Return the record of the verification, with what else was found."""
        against = (*self.objections, *objections)
        return VerificationRecord(
            record=str(self.record),
            record_sha256=digest_file(self.record),
            agrees=not against,
            objections=against,
            notes=(*self.notes, *notes),
            files_checked=self.files_checked,
            part=part,
            numbers=numbers,
        )


def rehash(document: AuditRecord, record: Path, folder: Path) -> Rehashed:
    """Hash the files that a record names, and judge its figures by its own limits.

    Args:
        document: What was read from `record`.
        record: The file.
        folder: Folder that relative paths in it refer to.

    Raises:
        RecordError: A file that it names is not there.
    """
    changed, notes = _compare_files(document, folder)
    return Rehashed(
        record=record,
        changed=tuple(changed),
        objections=(*changed, *_compare_verdict(document, record)),
        notes=tuple(notes),
        files_checked=len(document.inputs) - len(changed),
    )


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
    if stated.policy_sha256 is not None and stated.policy_sha256 != digest_limits(stated.policy):
        yield "the recorded limits do not have the recorded digest"
    with using_record(path):
        judged = judge(document, policy)
    if (judged.outcome, judged.release) != (stated.outcome, stated.release or judged.release):
        yield (
            f"the recorded verdict is {stated.outcome} ({stated.release}), but the recorded "
            f"figures and limits give {judged.outcome} ({judged.release})"
        )


def read_ledger(
    folder: Path,
    *,
    policy: Path | None = None,
    base: Path = Path(),
    key: Path | None = None,
) -> LedgerRecord:
    """Look at every record below a folder.

    Args:
        folder: Holds records of audits and their attestations, at any depth.
        policy: Today's limits; `None` for the default ones.
        base: Folder that relative paths in the records refer to.
        key: Public key that each must be signed by.

    Raises:
        InputError: The folder is not there, cannot be looked into, holds no record, or holds more
            than `MOST_FILES` files or `MOST_RECORDS` that may be records.
        PolicyError: The policy cannot be read.
    """
    if not is_folder(folder):
        raise InputError(f"{folder}: expected a folder of records")
    limits = Policy() if policy is None else read_policy(policy)
    source = f"defaults of bdaudit {__version__}" if policy is None else str(policy)
    entries, skipped = [], 0
    for path in _candidates(folder):
        entry = _entry(path, folder, limits, base, key)
        if entry is None:
            skipped += 1
        else:
            entries.append(entry)
    if not entries:
        others = f" (JSON files there: {skipped}, none of them a record)" if skipped else ""
        raise InputError(f"{folder}: no record of an audit lies in this folder{others}")
    entries.sort(key=lambda e: (e.created is not None, str(e.created), e.path))
    return LedgerRecord(
        folder=str(folder),
        policy_source=source,
        policy_sha256=limits.sha256,
        version=__version__,
        entries=tuple(entries),
        skipped=skipped,
    )


def _candidates(folder: Path) -> list[Path]:
    """List what may be a record, in order of path; links out of the folder are not followed."""
    root = folder.resolve()
    found, n_seen = [], 0
    for parent, _, names in os.walk(folder, onerror=_unreadable):
        n_seen += len(names)
        if n_seen > MOST_FILES:
            raise InputError(f"{folder}: holds more than {MOST_FILES} files; name a part of it")
        for path in (Path(parent, name) for name in names):
            if path.suffix not in _SUFFIXES or not is_file(path):
                continue
            if not path.resolve().is_relative_to(root):
                continue
            found.append(path)
            if len(found) > MOST_RECORDS:
                raise InputError(
                    f"{folder}: holds more than {MOST_RECORDS} records; name a part of it"
                )
    return sorted(found)


def _unreadable(error: OSError) -> None:
    """Refuse a folder that cannot be looked into; one that went away meanwhile holds nothing."""
    if not isinstance(error, FileNotFoundError):
        raise InputError(f"{error.filename}: {error.strerror or error}") from error


def _entry(
    path: Path, folder: Path, limits: Policy, base: Path, key: Path | None
) -> LedgerEntry | None:
    """Look at one file; `None` where it is another kind of JSON."""
    name = path.relative_to(folder).as_posix()
    try:
        if not _claims_to_be_an_audit(path):
            return None
        document = read_attested(path)
        if not isinstance(document, AuditRecord):
            return None
        with using_record(path):
            return _look(document, path, name, limits, base, key)
    except BdauditError as error:
        return LedgerEntry(path=name, unreadable=on_one_line(str(error)))


def _claims_to_be_an_audit(path: Path) -> bool:
    """Tell records apart from other JSON that may lie in the folder.

    What cannot be parsed at all counts as a record: a damaged one must not vanish from the list.
    """
    if is_attestation(path):
        return True
    if path.suffix != ".json":
        return False
    document = read_json(path, what="a record", error=RecordError)
    return isinstance(document, dict) and document.get("kind") == "audit"


def _look(
    document: AuditRecord, path: Path, name: str, limits: Policy, base: Path, key: Path | None
) -> LedgerEntry:
    stated = document.verdict
    if stated is None:
        raise RecordError(f"{path}: the record holds no verdict")
    own = parse_policy(stated.policy, str(path))
    then, now = judge(document, own), judge(document, limits)
    release = release_of(document)
    release_today = now.release or release
    changes = (now.outcome, release_today) != (stated.outcome, release)
    defended = next(iter(document.models_with("defended")), None)
    target = document.trigger.target_label
    return LedgerEntry.model_validate(
        {
            "path": name,
            "sha256": digest_file(path),
            "created": document.created,
            "bdaudit": document.environment.bdaudit,
            "model": "defended" if defended is None else defended.path or defended.name,
            "backdoor": f"{document.trigger.sha256[:16]}, "
            + (document.trigger.target_rule if target is None else f"target {target}"),
            "outcome": stated.outcome,
            "release": release,
            "signature": _signature(path, key),
            "files": tuple(_file(file, base) for file in document.inputs),
            "versions": tuple(_other_versions(document)),
            "limits": "same" if own.sha256 == limits.sha256 else "changed",
            "follows": (then.outcome, then.release or release) == (stated.outcome, release),
            "today": now.outcome,
            "release_today": release_today,
            "changes": changes,
            "why_today": now.why if changes else None,
        }
    )


def _signature(path: Path, key: Path | None) -> str:
    signed = is_signed(path) or is_file(signature_of(path))
    if key is None:
        return "unchecked" if signed else "none"
    try:
        check_signature(path, public_key=key)
    except RecordError:
        return "invalid"
    return "valid"


def _file(file: FileDigest, base: Path) -> LedgerFile:
    if is_url(file.path):
        return LedgerFile(role=file.role, path=file.path, state="elsewhere")
    try:
        found = digest_file(base / file.path)
    except InputError:
        return LedgerFile(role=file.role, path=file.path, state="missing")
    state = "there" if found == file.sha256 else "changed"
    return LedgerFile.model_validate({"role": file.role, "path": file.path, "state": state})


def _other_versions(document: AuditRecord) -> Iterator[str]:
    recorded = {"bdaudit": document.environment.bdaudit, **document.environment.packages}
    for package, then in recorded.items():
        try:
            now = __version__ if package == "bdaudit" else metadata.version(package)
        except metadata.PackageNotFoundError:
            now = "not installed"
        if now != then:
            yield f"{package} {then}, now {now}"
