"""Undo what wrapping a network does to the names of its tensors."""

from __future__ import annotations

import re

from torch import Tensor

__all__ = ["strip_wrappers"]

_DATA_PARALLEL = re.compile(r"(?:module\.)+(?=.)")
_COMPILED = "_orig_mod."
_AVERAGED = "n_averaged"


def strip_wrappers(tensors: dict[str, Tensor], notes: list[str]) -> dict[str, Tensor]:
    """Undo the renaming of DataParallel (`module.`) and torch.compile (`_orig_mod.`).

    The counter `n_averaged` that `torch.optim.swa_utils.AveragedModel` keeps beside the network is
    left out. Each step is written in `notes`.
    """
    if any(_COMPILED in name for name in tensors):
        tensors = {name.replace(_COMPILED, ""): tensor for name, tensor in tensors.items()}
        notes.append(f"stripped {_COMPILED!r}")
    counter = tensors.get(_AVERAGED)
    rest = {name: tensor for name, tensor in tensors.items() if name != _AVERAGED}
    if counter is not None and counter.numel() == 1 and rest and _shared_prefix(rest):
        tensors = rest
        notes.append(f"left out {_AVERAGED!r}, the counter of weight averaging")
    prefix = _shared_prefix(tensors)
    if prefix:
        tensors = {name[len(prefix) :]: tensor for name, tensor in tensors.items()}
        notes.append("stripped 'module.'")
    return tensors


def _shared_prefix(tensors: dict[str, Tensor]) -> str:
    """Return the run of `module.` that all names begin with, however long it is."""
    runs = [match[0] if (match := _DATA_PARALLEL.match(name)) else "" for name in tensors]
    return min(runs, key=len, default="")
