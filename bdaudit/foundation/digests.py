"""sha256 of files and tensors, so that a record says exactly what it was made from."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

from bdaudit.foundation.file_digests import digest_file

__all__ = ["digest_file", "digest_tensors"]


def digest_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Return the sha256 over names, types, shapes and bytes of `tensors`, in order of name.

    Two state dicts have the same digest exactly when they hold the same tensors, whatever file
    format or device they came from.
    """
    state = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        state.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        flat = tensor.reshape(-1)
        if flat.numel() == 1:  # counts as contiguous whatever its stride
            flat = flat.clone(memory_format=torch.contiguous_format)
        # Viewed as bytes, since numpy has no bfloat16.
        state.update(flat.view(torch.uint8).numpy().data)
    return state.hexdigest()
