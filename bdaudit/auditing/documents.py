"""What the records of all verbs have in common."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from bdaudit.auditing.environment import describe_environment
from bdaudit.auditing.inputs import Inputs
from bdaudit.auditing.runs import Compute
from bdaudit.results import Diagnostic, StepStatus

__all__ = ["document_fields"]


def document_fields(
    inputs: Inputs,
    compute: Compute,
    *,
    settings: dict[str, Any],
    diagnostics: Sequence[Diagnostic],
    steps: Sequence[StepStatus],
    command: Sequence[str] | None,
    started: float,
) -> dict[str, Any]:
    """Return the shared fields of a record: who, with what, when, from which files.

    `started` is `time.perf_counter()` at the beginning of the work.
    """
    return {
        "created": datetime.now(UTC),
        "command": None if command is None else tuple(command),
        "seed": compute.seed,
        "settings": settings,
        "sources": dict(inputs.sources),
        "environment": describe_environment(compute.device),
        "inputs": inputs.files,
        "data": inputs.data_info(),
        "trigger": inputs.trigger_info(),
        "models": inputs.model_infos(),
        "diagnostics": tuple(diagnostics),
        "steps": tuple(steps),
        "elapsed_s": time.perf_counter() - started,
    }
