"""One run of a verb: what it is on is opened, measured, and sealed in a record."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TypeVar

from bdaudit.cases.description import describe_sources
from bdaudit.cases.fetching import fetch_sources, in_public
from bdaudit.cases.files import digest_inputs
from bdaudit.cases.opening import open_inputs
from bdaudit.cases.recorded import as_recorded
from bdaudit.cases.settings import ComputeSettings, SplitSettings
from bdaudit.cases.sources import Sources
from bdaudit.cases.subjects import Inputs, Subject
from bdaudit.fetching import public_url
from bdaudit.foundation.progress import Progress, Steps
from bdaudit.measuring.compute import Compute
from bdaudit.measuring.environment import describe_environment, resolve_device
from bdaudit.records import (
    Diagnostic,
    Document,
    FileDigest,
    Findings,
    Header,
    Heading,
    ModelInfo,
    Record,
    Sealed,
    StepStatus,
)

__all__ = ["Session", "without_secrets"]

SealedDocument = TypeVar("SealedDocument", bound=Document)
SealedRecord = TypeVar("SealedRecord", bound=Sealed)


@dataclass(frozen=True, kw_only=True)
class Session:
    """A run that has begun: everything is fetched and nothing is opened.

    Every verb is `begin`, open, measure, `seal`.

    Attributes:
        sources: What it is on; nothing is left to fetch.
        compute: Device, seed, batch size and precision, for everything that computes.
        split: Sizes of the halves of the sample.
        computing: What the user said about computing, for the record.
        command: What to record as the command that reproduces this.
        started: `time.perf_counter()` when it began.
    """

    sources: Sources
    compute: Compute
    split: SplitSettings
    computing: ComputeSettings
    command: Sequence[str] | None = None
    started: float = field(default_factory=time.perf_counter)

    @classmethod
    def begin(
        cls,
        sources: Sources,
        *,
        compute: ComputeSettings,
        split: SplitSettings,
        command: Sequence[str] | None = None,
    ) -> Steps[Session]:
        """Choose the device and fetch what is named by a URL.

        Raises:
            ConfigError: There is no such device.
            FetchError: Something cannot be fetched, or is not what its digest says.
        """
        started = time.perf_counter()
        device = resolve_device(compute.device)
        sources = yield from fetch_sources(sources)
        yield Progress("opening models and data", 0, 1)
        return cls(
            sources=sources,
            compute=Compute.of(compute, device),
            split=split,
            computing=compute,
            command=command,
            started=started,
        )

    def open(self) -> Inputs:
        """Open models, images and trigger, and check that they fit one another.

        Raises:
            InputError: Something cannot be read or does not fit; nothing has been computed yet.
        """
        return open_inputs(
            self.sources, split=self.split, seed=self.compute.seed, device=self.compute.device
        )

    @property
    def elapsed_s(self) -> float:
        """Seconds since it began."""
        return time.perf_counter() - self.started

    def seal(
        self,
        kind: type[SealedDocument],
        findings: Findings,
        *,
        inputs: Inputs,
        settings: Mapping[str, Any],
        diagnostics: Sequence[Diagnostic] = (),
        steps: Sequence[StepStatus] = (),
    ) -> SealedDocument:
        """Put what was measured under a header that says who, on what, where and how.

        Args:
            kind: The verb's record.
            findings: What was measured.
            inputs: Everyone who took part, models that were made on the way included.
            settings: How it was run, beside computing and split.
            diagnostics: What makes a number doubtful.
            steps: The steps and how each ended, where the verb keeps count.
        """
        header = Header(
            **self._heading(
                inputs.model_infos(),
                files=inputs.files,
                named=inputs.sources,
                settings={"split": as_recorded(self.split), **settings},
                diagnostics=diagnostics,
                steps=steps,
            ),
            data=_named([inputs.data_info()], self.sources)[0],
            trigger=_named([inputs.trigger_info()], self.sources)[0],
        )
        return kind.of(header, findings)

    def seal_model(
        self,
        kind: type[SealedRecord],
        findings: Findings,
        *,
        subject: Subject,
        settings: Mapping[str, Any],
        diagnostics: Sequence[Diagnostic] = (),
    ) -> SealedRecord:
        """Seal what was measured on one model alone, without images."""
        files = digest_inputs([subject], self.sources)
        heading = Heading(
            **self._heading(
                [subject.describe()],
                files=files,
                named=describe_sources(self.sources, files),
                settings=settings,
                diagnostics=diagnostics,
            )
        )
        return kind.of(heading, findings)

    def _heading(
        self,
        models: Sequence[ModelInfo],
        *,
        files: Sequence[FileDigest],
        named: Mapping[str, Any],
        settings: Mapping[str, Any],
        diagnostics: Sequence[Diagnostic] = (),
        steps: Sequence[StepStatus] = (),
    ) -> dict[str, Any]:
        """Return what every header holds."""
        return {
            "created": datetime.now(UTC),
            "command": None if self.command is None else tuple(without_secrets(self.command)),
            "seed": self.compute.seed,
            "settings": {"compute": as_recorded(self.computing), **settings},
            "sources": dict(named),
            "environment": describe_environment(self.compute.device),
            "inputs": _named(files, self.sources),
            "models": _named(models, self.sources),
            "diagnostics": _named(diagnostics, self.sources),
            "steps": _named(steps, self.sources),
            "elapsed_s": self.elapsed_s,
        }


def without_secrets(command: Sequence[str]) -> Iterator[str]:
    """Leave users, passwords and signed queries out of the addresses in a command line."""
    for argument in command:
        name, separator, value = argument.partition("=")
        if separator and name.startswith("-"):
            yield f"{name}={public_url(value)}"
        else:
            yield public_url(argument)


Named = TypeVar("Named", bound=Record)


def _named(records: Sequence[Named], sources: Sources) -> tuple[Named, ...]:
    """Name files that were fetched by their addresses."""
    if not sources.origins:
        return tuple(records)
    return tuple(
        record.model_validate_json(
            json.dumps(in_public(record.model_dump(mode="json"), sources.origins))
        )
        for record in records
    )
