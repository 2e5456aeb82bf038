"""What the records of all verbs have in common."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

from bdaudit.cases.fetching import in_public
from bdaudit.cases.subjects import Inputs
from bdaudit.fetching import public_url
from bdaudit.measuring.compute import Compute
from bdaudit.measuring.environment import describe_environment
from bdaudit.records import Diagnostic, Header, Record, StepStatus

__all__ = ["make_header"]


def make_header(
    inputs: Inputs,
    compute: Compute,
    *,
    settings: dict[str, Any],
    diagnostics: Sequence[Diagnostic],
    steps: Sequence[StepStatus],
    command: Sequence[str] | None,
    started: float,
) -> Header:
    """Return what a record begins with: who, with what, when, from which files.

    `started` is `time.perf_counter()` at the beginning of the work.
    """
    return Header(
        created=datetime.now(UTC),
        command=None if command is None else tuple(_without_secrets(command)),
        seed=compute.seed,
        settings=settings,
        sources=dict(inputs.sources),
        environment=describe_environment(compute.device),
        inputs=_named(inputs.files, inputs),
        data=_named([inputs.data_info()], inputs)[0],
        trigger=_named([inputs.trigger_info()], inputs)[0],
        models=_named(inputs.model_infos(), inputs),
        diagnostics=_named(diagnostics, inputs),
        steps=_named(steps, inputs),
        elapsed_s=time.perf_counter() - started,
    )


def _without_secrets(command: Sequence[str]) -> Iterator[str]:
    """Leave users, passwords and signed queries out of the addresses in a command line."""
    for argument in command:
        name, separator, value = argument.partition("=")
        if separator and name.startswith("-"):
            yield f"{name}={public_url(value)}"
        else:
            yield public_url(argument)


Named = TypeVar("Named", bound=Record)


def _named(records: Sequence[Named], inputs: Inputs) -> tuple[Named, ...]:
    """Name files that were fetched by their addresses."""
    if not inputs.origins:
        return tuple(records)
    return tuple(
        record.model_validate_json(
            json.dumps(in_public(record.model_dump(mode="json"), inputs.origins))
        )
        for record in records
    )
