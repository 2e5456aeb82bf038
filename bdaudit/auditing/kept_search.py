"""A search for a trigger, kept in a folder, so that a run that was killed does not repeat it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bdaudit.auditing.invert import RecoveredTriggers
from bdaudit.data import Sample
from bdaudit.errors import InputError
from bdaudit.foundation.progress import Progress, Steps
from bdaudit.foundation.texts import read_json
from bdaudit.foundation.writing import write_atomically
from bdaudit.records import InversionRecord, read_record, to_json
from bdaudit.triggers import read_trigger, write_trigger

__all__ = ["KeptSearch"]


@dataclass(frozen=True)
class KeptSearch:
    """Where a search for a trigger is kept, and what determines it.

    Attributes:
        folder: Made when there is something to keep.
        determined_by: Digests of models, images and settings; another search is not taken for it.
    """

    folder: Path
    determined_by: Mapping[str, str]

    def run(self, search: Steps[RecoveredTriggers], sample: Sample) -> Steps[RecoveredTriggers]:
        """Run `search`, unless an earlier run did in the same way.

        Args:
            search: The search, not begun.
            sample: Clean images, of which pictures of a kept trigger are made.

        Raises:
            InputError: The folder cannot be written to.
        """
        kept = self._kept(sample)
        if kept is not None:
            search.close()
            yield Progress("the search for a trigger, kept from an earlier run", 1, 1)
            return kept
        found = yield from search
        self._keep(found)
        return found

    @property
    def _marker(self) -> Path:
        return self.folder / "search.json"

    def _keep(self, found: RecoveredTriggers) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._marker.unlink(missing_ok=True)  # until all is written, nothing is kept
            for number, trigger in enumerate(found.triggers):
                write_trigger(self.folder / f"trigger-{number}.toml", trigger)
            write_atomically(self.folder / "trigger.json", to_json(found.record).encode())
            kept = {"determined_by": dict(self.determined_by)}
            write_atomically(self._marker, (json.dumps(kept, indent=1) + "\n").encode())
        except OSError as error:
            raise InputError(
                f"{self.folder}: cannot be written: {error.strerror or error}"
            ) from error

    def _kept(self, sample: Sample) -> RecoveredTriggers | None:
        try:
            kept = read_json(self._marker, what="a search")
            if kept["determined_by"] != self.determined_by:
                return None
            record = read_record(self.folder / "trigger.json")
            assert isinstance(record, InversionRecord)
            triggers = tuple(
                read_trigger(self.folder / f"trigger-{number}.toml")
                for number in range(len(record.inversion.candidates))
            )
        except (OSError, ValueError, KeyError, TypeError, InputError):
            return None
        return RecoveredTriggers(record, triggers, sample)
