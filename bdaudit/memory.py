"""How much memory a piece of work needs at its peak."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import torch

__all__ = ["PeakMemory"]

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_PEAK = "5"


class PeakMemory:
    """The peak from this object's making on.

    On a GPU that is what torch had allocated there at once, on the CPU the resident set of the
    whole process. One at a time: a second one starts the count anew.

    Args:
        device: Where the work is done.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._counts = True
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            return
        try:
            _CLEAR.write_text(_RESET_PEAK)
        except OSError:
            # No Linux, or not allowed: the peak of all time would be taken for this work's.
            self._counts = False

    def read(self) -> int | None:
        """Return the peak so far in bytes, or `None` where the system does not tell."""
        if self._device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self._device))
        if not self._counts:
            return None
        with suppress(OSError, ValueError, StopIteration):
            lines = _STATUS.read_text().splitlines()
            line = next(line for line in lines if line.startswith("VmHWM:"))
            return int(line.split()[1]) * 1024
        return None
