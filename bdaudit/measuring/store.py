"""Where finished runs, and the search that is running, are kept.

A run is found again by the digest of everything that determined it. In memory that spares an audit
of a second defended model the attacks on the same original and references; in a folder it lets an
audit that was killed go on where it stopped.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from bdaudit.blackbox import AnswerJournal
from bdaudit.errors import ConfigError, InputError, RecordError
from bdaudit.foundation.opening import RECORD_BYTES, TENSOR_BYTES, is_file, is_folder, read_bytes
from bdaudit.foundation.texts import read_json
from bdaudit.foundation.writing import write_atomically
from bdaudit.reactivation.query_state import QueryState, read_state, write_state
from bdaudit.records import AttackRun

__all__ = ["FolderStore", "MemoryStore", "RunStore", "ScoredRun"]


@dataclass(frozen=True)
class ScoredRun:
    """A run's record and its perturbation (1, C, H, W)."""

    record: AttackRun
    delta: Tensor


class MemoryStore:
    """Keeps runs as long as the process lives."""

    def __init__(self) -> None:
        self._runs: dict[str, ScoredRun] = {}

    def __len__(self) -> int:
        return len(self._runs)

    def describe(self, inputs: Mapping[str, str]) -> None:
        """Be told what the runs are made from; nothing to compare it with here."""

    def find(self, key: str) -> ScoredRun | None:
        """Return a finished run, or `None`."""
        return self._runs.get(key)

    def keep(self, key: str, run: ScoredRun) -> None:
        """Keep a finished run."""
        self._runs[key] = run

    def search_state(self, key: str) -> QueryState | None:
        """Return where an interrupted search stands: never, in memory."""
        return None

    def checkpoint(self, key: str) -> Callable[[QueryState], None] | None:
        """Return what a search hands its state to: nothing, in memory."""
        return None

    def journal(self, key: str) -> AnswerJournal | None:
        """Return where answers are kept as they arrive, by run or purpose: nowhere, in memory."""
        return None


class FolderStore(MemoryStore):
    """Keeps runs, and the state of the running search, in a folder.

    Args:
        folder: Made when it is missing.
        resume: Go on with what the folder holds. Otherwise what it holds is thrown away.

    Raises:
        InputError: There is nothing to resume, or the folder holds something that is not this
            store's and would have to be thrown away.
    """

    _INPUTS = "inputs.json"

    def __init__(self, folder: Path, *, resume: bool) -> None:
        super().__init__()
        self.folder = folder
        self.resume = resume
        self._n_described = 0
        marker = folder / self._INPUTS
        if resume and not is_file(marker):
            raise InputError(f"{folder}: nothing to resume there; run without --resume")
        if not is_folder(folder):
            # Nothing, which is made when it is needed, or something that is in the way.
            if os.path.lexists(folder):
                raise InputError(f"{folder}: expected a folder for the state, got something else")
        elif not is_file(marker) and any(map(self._is_foreign, folder.iterdir())):
            raise InputError(
                f"{folder}: contains something else; choose another folder for the state"
            )

    @property
    def holds_results(self) -> bool:
        """Whether there is anything of an earlier run to go on with."""
        return is_file(self.folder / self._INPUTS) and len(list(self.folder.iterdir())) > 1

    def describe(self, inputs: Mapping[str, str]) -> None:
        """Write down what the runs are made from, or compare it with what was written.

        The folder is made here, when the inputs have been found usable. One audit may describe
        several in turn, as one that looks for its trigger first does: each is compared with what
        stood in its place.

        Raises:
            ConfigError: Resuming under other settings, models, data or trigger; all are named.
            InputError: The folder cannot be made.
        """
        self._n_described += 1
        first = self._n_described == 1
        marker = self.folder / (self._INPUTS if first else f"inputs-{self._n_described}.json")
        if self.resume and is_file(marker):
            _demand_same(self.folder, read_json(marker, what="the inputs of an audit"), inputs)
            return
        try:
            if first:
                if self.folder.exists():
                    self._clear()
                self.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(marker, json.dumps(dict(inputs), indent=1).encode())
        except OSError as error:
            raise InputError(f"{self.folder}: {error.strerror or error}") from error

    def find(self, key: str) -> ScoredRun | None:
        """Return a run that was finished before, or `None`."""
        record, delta = self.folder / f"{key}.json", self.folder / f"{key}.delta.safetensors"
        if not (is_file(record) and is_file(delta)):
            return None
        try:
            return ScoredRun(
                AttackRun.model_validate_json(read_bytes(record, limit=RECORD_BYTES, what="a run")),
                load(read_bytes(delta, limit=TENSOR_BYTES, what="a perturbation"))["delta"],
            )
        except (ValidationError, SafetensorError, KeyError, ValueError) as error:
            raise RecordError(f"{record}: damaged; delete it to repeat that run") from error

    def keep(self, key: str, run: ScoredRun) -> None:
        """Write a finished run; its record comes last, so half of one is never found."""
        write_atomically(
            self.folder / f"{key}.delta.safetensors", save({"delta": run.delta.contiguous()})
        )
        write_atomically(self.folder / f"{key}.json", run.record.model_dump_json().encode())
        self._forget_search(key)

    def search_state(self, key: str) -> QueryState | None:
        """Return where an interrupted search stands."""
        path = self._search(key)
        return read_state(path) if is_file(path) else None

    def checkpoint(self, key: str) -> Callable[[QueryState], None]:
        """Return what a search hands its state to, after every answer that was paid for."""

        def write(state: QueryState) -> None:
            write_state(self._search(key), state)
            # Every answer so far is in the state now.
            self._answers(key).unlink(missing_ok=True)

        return write

    def journal(self, key: str) -> AnswerJournal:
        """Return where the answers to a question are kept until all of it is answered."""
        return AnswerJournal(self._answers(key))

    def finish(self) -> None:
        """Throw the folder away: the result is written, nothing is left to resume."""
        with suppress(OSError):
            self._clear()
            self.folder.rmdir()

    def _clear(self) -> None:
        """Empty the folder, its marker last, so that what a kill leaves is still known as ours."""
        marker = self.folder / self._INPUTS
        for path in self.folder.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path != marker:
                path.unlink()
        marker.unlink(missing_ok=True)

    def _is_foreign(self, path: Path) -> bool:
        """Return whether a file is none that a kill before the marker was written leaves."""
        return not path.name.startswith(f".{self._INPUTS}.")

    def _forget_search(self, key: str) -> None:
        self._search(key).unlink(missing_ok=True)
        self._answers(key).unlink(missing_ok=True)

    def _search(self, key: str) -> Path:
        return self.folder / f"{key}.search.safetensors"

    def _answers(self, key: str) -> Path:
        return self.folder / f"{key}.answers"


def _demand_same(folder: Path, before: Mapping[str, str], now: Mapping[str, str]) -> None:
    changes = [
        f"{name} was {before.get(name, 'absent')}, is {now.get(name, 'absent')}"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    ]
    if changes:
        raise ConfigError(
            f"cannot resume from {folder}: {'; '.join(changes)}; restore that, or start again "
            "without --resume"
        )


RunStore: TypeAlias = MemoryStore
"""Either of the two."""
