"""Hold a written record against a policy and against the files to be released.

Nothing is computed and no model is opened: the figures of the record are judged again.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bdaudit.errors import InputError
from bdaudit.foundation.file_digests import digest_file
from bdaudit.foundation.opening import is_folder
from bdaudit.records import AuditRecord, FileDigest, demand_audit, using_record
from bdaudit.records.attestations import read_attested
from bdaudit.records.gate import GateRecord
from bdaudit.verdict.judge import judge
from bdaudit.verdict.policy import Policy, parse_policy, read_policy
from bdaudit.verdict.release import decide_release, match_files

__all__ = ["gate", "limits_of"]

_NO_FILES = (
    "no files were given: nothing ties this verdict to what is released; name the files after "
    "the record"
)


def gate(
    record: Path, *, policy: Policy | str | Path | None = None, files: Sequence[str | Path] = ()
) -> GateRecord:
    """Judge a record again and decide on a release.

    Args:
        record: What `bdaudit audit --json` wrote, or an attestation of it.
        policy: The limits, or a policy file; `None` takes those the record was judged by.
        files: What is to be released. Each must be a file of the candidate that was audited, and
            all of that candidate's files must be there. Without any, only the verdict is judged,
            and a warning says so.

    Raises:
        RecordError: The record cannot be read, was edited, or is no audit's.
        PolicyError: The policy cannot be read or contradicts itself.
        InputError: A file is not there.
    """
    document = demand_audit(read_attested(record), record)
    limits, source = limits_of(policy, document, record)
    with using_record(record):
        verdict = judge(document, limits, policy_source=source)
    digests = tuple(_digest(Path(file)) for file in files)
    against = tuple(match_files(document, digests)) if digests else ()
    with using_record(record):
        decision = decide_release(document, verdict.outcome, limits, against=against)
    return GateRecord(
        record=str(record),
        record_sha256=digest_file(record),
        files=digests,
        verdict=verdict,
        release=decision.release,
        reasons=decision.reasons,
        warnings=decision.warnings if digests else (_NO_FILES, *decision.warnings),
        notes=document.input_notes(),
    )


def limits_of(
    policy: Policy | str | Path | None, document: AuditRecord, path: Path
) -> tuple[Policy, str]:
    """Return the limits to judge a record by, and where they came from.

    Args:
        policy: The limits, or a policy file; `None` takes those the record was judged by.
        document: The record.
        path: Its file, named in errors.
    """
    if isinstance(policy, Policy):
        return policy, "given in memory"
    if policy is not None:
        return read_policy(Path(policy)), str(policy)
    if document.verdict is None:
        return Policy(), "defaults"
    source = f"the record's own ({document.verdict.policy_source})"
    return parse_policy(document.verdict.policy, str(path)), source


def _digest(path: Path) -> FileDigest:
    if is_folder(path):
        raise InputError(f"{path}: is a folder; name the model's files")
    return FileDigest(
        role="released",
        path=str(path),
        sha256=digest_file(path, what="a file of the model"),
        size_bytes=path.stat().st_size,
    )
