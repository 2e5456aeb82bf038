"""How much memory a piece of work needs at its peak, and how much a card has left."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

__all__ = ["PeakMemory", "free_on_card", "is_half_free", "sent_if_small"]

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_PEAK = "5"
_NEAR = 16 * 2**20  # bytes; the two counts are not read at the same moment


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
        # No Linux, or not allowed; read below.
        with suppress(OSError):
            _CLEAR.write_text(_RESET_PEAK)
        # Some containers take the reset and do nothing. What counts is whether an earlier peak
        # is still there, since it would be taken for this work's.
        peak, resident = _status("VmHWM"), _status("VmRSS")
        self._counts = peak is not None and resident is not None and peak <= resident + _NEAR

    def read(self) -> int | None:
        """Return the peak so far in bytes, or `None` where the system does not tell."""
        if self._device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self._device))
        return _status("VmHWM") if self._counts else None


def free_on_card(device: torch.device) -> int:
    """Return the bytes that tensors can still take on a CUDA device, torch's reserve included."""
    free, _ = torch.cuda.mem_get_info(device)
    reserve = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return free + reserve


def is_half_free(device: torch.device) -> bool:
    """Return whether half of a CUDA device's memory can still be taken."""
    return free_on_card(device) > torch.cuda.mem_get_info(device)[1] // 2


def sent_if_small(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on a card, where it takes at most a quarter of what is free there.

    Elsewhere, and where it would take more, it is returned as it is.
    """
    if device.type != "cuda" or tensor.is_cuda:
        return tensor
    return tensor.to(device) if tensor.nbytes <= free_on_card(device) // 4 else tensor


def _status(field: str) -> int | None:
    """Return a field of the process's status in bytes, or `None` where there is none."""
    with suppress(OSError, ValueError, StopIteration):
        lines = _STATUS.read_text().splitlines()
        line = next(line for line in lines if line.startswith(f"{field}:"))
        return int(line.split()[1]) * 1024
    return None
