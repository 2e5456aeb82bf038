"""Digests of tensors follow from names, types, shapes and bytes, and from nothing else."""

from __future__ import annotations

import torch

from bdaudit.foundation.digests import digest_tensors


def test_how_a_tensor_lies_in_memory_changes_nothing() -> None:
    wide = torch.arange(24.0).view(4, 6)
    assert digest_tensors({"a": wide.T}) == digest_tensors({"a": wide.T.clone().contiguous()})
    assert digest_tensors({"a": wide[:, ::2]}) == digest_tensors({"a": wide[:, ::2].clone()})
    # One element counts as contiguous whatever its stride.
    assert digest_tensors({"a": wide[1:2, ::6]}) == digest_tensors({"a": torch.tensor([[6.0]])})
    assert digest_tensors({"a": wide[:0]}) != digest_tensors({"a": wide[:1]})


def test_names_types_shapes_and_values_all_count() -> None:
    one = torch.zeros(2, 3)
    digests = {
        digest_tensors({"a": one}),
        digest_tensors({"b": one}),
        digest_tensors({"a": one.double()}),
        digest_tensors({"a": one.T}),
        digest_tensors({"a": one + 1}),
    }
    assert len(digests) == 5
