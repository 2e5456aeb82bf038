"""What bills of materials, vulnerability statements and model cards say of an audit alike.

Which component it is about, which backdoor, what became of it, and what of the record they leave
out. Given to the formats after `untrusted.shown`.
"""

from __future__ import annotations

import hashlib
import uuid
from pathlib import PurePath
from typing import Literal
from urllib.parse import quote

from bdaudit.errors import RecordError
from bdaudit.foundation.modes import MODES
from bdaudit.records import AuditRecord, Verdict
from bdaudit.records.summary import Figure
from bdaudit.report.wording import AnyRecord, defended_file, norm_name

__all__ = [
    "LEFT_OUT",
    "Status",
    "action_of",
    "backdoor_name",
    "backdoor_words",
    "identifier",
    "identity_of",
    "judged_audit",
    "model_name",
    "moment",
    "product_of",
    "slice_of",
    "status_of",
]

Status = Literal["affected", "not_affected", "under_investigation"]

LEFT_OUT = (
    "left out of the record: outcomes image by image, controls one by one, loss traces, pictures, "
    "settings, and paths of other files than the candidate's"
)

_STATUS: dict[str, Status] = {
    "removed": "not_affected",
    "dormant": "affected",
    "active": "affected",
    "inconclusive": "under_investigation",
}


def judged_audit(record: AnyRecord, what: str) -> tuple[AuditRecord, Verdict]:
    """Return an audit and its verdict.

    Args:
        record: Any record.
        what: The format, for the message: "a bill of materials".

    Raises:
        RecordError: It is not of an audit, or was not judged.
    """
    if not isinstance(record, AuditRecord) or record.verdict is None:
        raise RecordError(f"{what} is of a verdict, and this {record.kind} record has none")
    return record, record.verdict


def model_name(record: AuditRecord) -> str:
    """Name the candidate by its file, without the folders that lead to it."""
    return PurePath(defended_file(record)).name or "defended"


def identity_of(record: AuditRecord) -> str:
    """Return a digest that is the same for the same candidate, whatever audit it is of.

    Over the digests of its files; of one that lies in no file, over its tensors or its address.
    """
    digests = sorted(file.sha256 for file in record.files_of("defended"))
    if not digests:
        model = next(iter(record.models_with("defended")), None)
        known = None if model is None else model.weights_sha256
        digests = [known or defended_file(record)]
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def product_of(record: AuditRecord) -> str:
    """Name the candidate as a package URL; of one file with its digest."""
    files = record.files_of("defended")
    digest = files[0].sha256 if len(files) == 1 else identity_of(record)
    return f"pkg:generic/{quote(model_name(record), safe='')}?checksum=sha256:{quote(digest)}"


def backdoor_name(record: AuditRecord) -> str:
    """Name the backdoor: by its trigger's digest and its target.

    The same trigger and target are the same backdoor in every audit and every model.
    """
    target = record.trigger.target_label
    where = record.trigger.target_rule if target is None else f"target-{target}"
    digest = record.trigger.sha256[:16]
    return f"BACKDOOR-{quote(digest, safe='')}-{quote(where, safe='')}"


def backdoor_words(record: AuditRecord) -> str:
    """Describe the backdoor in a sentence."""
    trigger = record.trigger
    target = "" if trigger.target_label is None else f" to class {trigger.target_label}"
    how = "recovered from the original" if trigger.recovered else "given"
    return (
        f"Backdoor with a trigger of kind {trigger.kind} ({how}; sha256 {trigger.sha256}), "
        f"{trigger.target_rule}{target}."
    )


def status_of(verdict: Verdict) -> Status:
    """Return what an outcome is in the words of VEX."""
    return _STATUS[verdict.outcome]


def action_of(verdict: Verdict) -> str:
    """Say what to do about an affected model."""
    if verdict.wanted:
        if verdict.outcome == "active":
            return (
                "The trigger is in the model on purpose: keep it from those who are not to use it, "
                "and audit what is distilled from this model before that is released."
            )
        return (
            "Do not release the model as the one that carries the trigger: the trigger no longer "
            "works by itself. Teach it again, and audit the result."
        )
    what = "repeat the defence with other settings, or train again from clean data"
    if verdict.outcome == "dormant":
        what = "use another defence, or one that unlearns the trigger itself"
    return f"Do not release the model: {what}, and audit the result."


def moment(record: AuditRecord) -> str:
    """Write when the record was sealed."""
    return record.created.isoformat()


def identifier(*parts: str) -> uuid.UUID:
    """Return an identifier that is the same for the same parts."""
    return uuid.uuid5(uuid.NAMESPACE_URL, "\n".join(("bdaudit", *parts)))


def slice_of(figure: Figure) -> str:
    """Say in words what a figure was measured on."""
    parts = [figure.model]
    if figure.mode is not None:
        parts.append(MODES[figure.mode].label)
    if figure.eps is not None:
        norm = "" if figure.norm is None else f"{norm_name(figure.norm)} "
        parts.append(f"{norm}eps {figure.eps:g}")
    if figure.against is not None:
        parts.append(f"against {figure.against}")
    if figure.limit is not None:
        parts.append(f"limit {figure.limit:g}")
    if figure.total is not None:
        parts.append(f"{figure.total} images")
    return ", ".join(parts)
