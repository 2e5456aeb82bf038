"""Classifiers that were trained here, kept in files by the digest of all that determines them."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import nn

from bdaudit.errors import ConfigError
from bdaudit.foundation.digests import digest_tensors
from bdaudit.foundation.writing import write_atomically
from bdaudit.models.classifier import Classifier, LoadedModel
from bdaudit.version import __version__

__all__ = ["KeptClassifiers", "describe_classifier"]


def describe_classifier(model: LoadedModel) -> dict[str, Any]:
    """Describe all of a model that what is trained from it depends on, as JSON can hold it."""
    classifier = model.classifier
    wrapping: dict[str, Any] = {}
    if isinstance(classifier, Classifier):
        wrapping = {
            "input_size": classifier.input_size,
            "interpolation": classifier.interpolation,
            "outputs": classifier.outputs,
        }
        if classifier.one_score:
            wrapping["one_score"] = True
    device = next((p.device.type for p in classifier.parameters()), "cpu")
    return {
        "weights": model.weights_sha256,
        # Normalisation lies in buffers outside the state dict, and strides in no tensor at all.
        "buffers": digest_tensors(dict(classifier.named_buffers())),
        "structure": str(classifier),
        "wrapping": wrapping,
        "device": device,
    }


class KeptClassifiers:
    """A folder of one kind of trained classifiers.

    Args:
        folder: Made when missing; `None` keeps nothing. Deleting it is always safe.
        kind: What they are, in one word: part of the files' names.
    """

    def __init__(self, folder: Path | None, kind: str) -> None:
        self._folder = folder
        self._kind = kind

    def key(self, parts: Mapping[str, Any]) -> str:
        """Digest everything that determines a classifier, and the version that trains it."""
        text = json.dumps({"version": __version__, **parts}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def has(self, key: str) -> bool:
        """Return whether one is kept; that its file is sound is seen when it is read."""
        return self._folder is not None and self._file(self._folder, key).is_file()

    def read(self, key: str, like: nn.Module) -> nn.Module | None:
        """Return the kept classifier, `None` when there is none or its file is damaged.

        Args:
            key: Of the classifier.
            like: A classifier of the same structure, left as it is; the result is on its device,
                in eval mode, without gradients.
        """
        if self._folder is None:
            return None
        classifier = copy.deepcopy(like)
        try:
            classifier.load_state_dict(load(self._file(self._folder, key).read_bytes()))
        except (OSError, SafetensorError, RuntimeError):
            return None  # it is made again and the file replaced
        return classifier.eval().requires_grad_(False)

    def write(self, key: str, classifier: nn.Module) -> None:
        """Keep a classifier.

        Raises:
            ConfigError: The folder cannot be written to.
        """
        if self._folder is None:
            return
        # Cloned, since safetensors refuses tensors that share memory.
        tensors = {
            name: tensor.detach().cpu().contiguous().clone()
            for name, tensor in classifier.state_dict().items()
        }
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            write_atomically(self._file(self._folder, key), save(tensors))
        except OSError as error:
            raise ConfigError(
                f"{self._folder}: {self._kind}s cannot be kept there ({error.strerror or error}); "
                "name another folder, or none"
            ) from error

    def _file(self, folder: Path, key: str) -> Path:
        return folder / f"{self._kind}-{key[:32]}.safetensors"
