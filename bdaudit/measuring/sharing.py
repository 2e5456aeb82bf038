"""Runs that several audits need, in a folder that several processes write to at once."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from bdaudit.errors import InputError
from bdaudit.foundation.opening import TENSOR_BYTES, check_file, is_file
from bdaudit.foundation.writing import write_atomically
from bdaudit.measuring.store import FolderStore, MemoryStore, ScoredRun
from bdaudit.records import AttackRun

__all__ = ["SharingStore"]

_SHARED_ROLES = ("original", "reference")
_RECORD = "record"


class SharingStore(FolderStore):
    """Keeps what only one audit needs in a folder of its own, and what others need with theirs.

    Attacks on originals and references are others' too. Each is one file, named by the digest of
    all that determines it, that appears whole: whoever comes first or last, it says the same.
    An audit that was killed goes on with what its own folder holds for the very same inputs.

    Args:
        own: Folder of this audit alone; made when missing.
        shared: Folder of all.
    """

    def __init__(self, own: Path, shared: Path) -> None:
        MemoryStore.__init__(self)
        self._own = own
        self._shared = shared
        self.folder = own
        self.resume = True

    def describe(self, inputs: Mapping[str, str]) -> None:
        """Take the folder for these inputs; what belongs to others is left where it is.

        Raises:
            InputError: A folder cannot be made.
        """
        text = json.dumps(dict(inputs), sort_keys=True)
        self.folder = self._own / hashlib.sha256(text.encode()).hexdigest()[:16]
        for folder in (self.folder, self._shared):
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise InputError(f"{folder}: {error.strerror or error}") from error

    def find(self, key: str) -> ScoredRun | None:
        """Return a finished run, of this audit or of another."""
        return super().find(key) or self._find_shared(key)

    def keep(self, key: str, run: ScoredRun) -> None:
        """Write a finished run where those who need it look for it."""
        if run.record.role not in _SHARED_ROLES:
            super().keep(key, run)
            return
        content = save(
            {"delta": run.delta.contiguous()}, metadata={_RECORD: run.record.model_dump_json()}
        )
        write_atomically(self._file(key), content)
        self._forget_search(key)

    def finish(self) -> None:
        """Throw away what only this audit needed."""
        shutil.rmtree(self._own, ignore_errors=True)

    def _find_shared(self, key: str) -> ScoredRun | None:
        path = self._file(key)
        if not is_file(path):
            return None
        try:
            check_file(path, limit=TENSOR_BYTES, what="a run")
            with safe_open(path, framework="pt") as file:
                record = AttackRun.model_validate_json(file.metadata()[_RECORD])
                return ScoredRun(record, file.get_tensor("delta"))
        except (InputError, ValidationError, SafetensorError, KeyError, TypeError):
            return None  # damaged: it is made again, and replaced

    def _file(self, key: str) -> Path:
        return self._shared / f"{key}.safetensors"
