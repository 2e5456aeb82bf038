"""A trigger that was recovered during an audit, kept in its record so that it can be verified."""

from __future__ import annotations

import tempfile
import zlib
from base64 import b64decode, b64encode
from pathlib import Path

from bdaudit.errors import RecordError, TriggerError
from bdaudit.foundation.opening import TENSOR_BYTES, read_bytes
from bdaudit.records import KeptTrigger
from bdaudit.triggers import Trigger, read_trigger, write_trigger

__all__ = ["keep_trigger", "restore_trigger"]

_TOML, _TENSORS = "trigger.toml", "trigger.safetensors"
_MAX_SIZE = 1 << 28  # bytes of one file: a record may be a stranger's


def keep_trigger(trigger: Trigger) -> KeptTrigger:
    """Put a trigger of plain tensors into a form that a record can hold."""
    with tempfile.TemporaryDirectory() as folder:
        write_trigger(Path(folder) / _TOML, trigger)
        return KeptTrigger(
            files={
                file.name: b64encode(
                    zlib.compress(
                        read_bytes(file, limit=TENSOR_BYTES, what="a file of the trigger")
                    )
                ).decode()
                for file in sorted(Path(folder).iterdir())
            }
        )


def restore_trigger(kept: KeptTrigger) -> Trigger:
    """Return the trigger that a record holds. No code of it is run.

    Raises:
        RecordError: It is damaged, or is no trigger of plain tensors.
    """
    if not {_TOML} <= set(kept.files) <= {_TOML, _TENSORS}:
        raise RecordError(
            f"kept trigger: expected {_TOML} and {_TENSORS}, got {', '.join(kept.files)}"
        )
    with tempfile.TemporaryDirectory() as folder:
        for name, content in kept.files.items():
            try:
                deflated = zlib.decompressobj()
                plain = deflated.decompress(b64decode(content, validate=True), _MAX_SIZE)
            except (ValueError, zlib.error) as error:
                raise RecordError(f"kept trigger: {name} is damaged: {error}") from error
            if not deflated.eof:
                raise RecordError(f"kept trigger: {name} is cut short, or above {_MAX_SIZE} bytes")
            (Path(folder) / name).write_bytes(plain)
        try:
            return read_trigger(Path(folder) / _TOML)
        except TriggerError as error:
            raise RecordError(f"kept trigger: {error}") from error
