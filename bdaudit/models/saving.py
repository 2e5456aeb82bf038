"""Write a network as safetensors with everything needed to load it again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor, nn

from bdaudit.errors import ConfigError, ModelError
from bdaudit.foundation.writing import write_atomically
from bdaudit.models.architectures import is_python_factory
from bdaudit.models.classifier import Interpolation
from bdaudit.models.settings import ModelSettings, Outputs

__all__ = ["save_model"]


def save_model(
    path: Path | str,
    network: nn.Module,
    *,
    arch: str | None,
    num_classes: int,
    image_shape: tuple[int, int, int],
    input_size: tuple[int, int] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    interpolation: Interpolation | None = None,
    outputs: Outputs | None = None,
    score_threshold: float | None = None,
    extra: Mapping[str, str] | None = None,
) -> None:
    """Write a network's tensors and settings, so that `load_model(path)` needs nothing else.

    The file appears whole or not at all: it is written beside its place and then moved there.

    Args:
        path: The `.safetensors` file; replaced when it is there.
        network: The bare network, without its `Classifier`; left as it is.
        arch: Architecture by name. `None` for one that only a Python file can build: a file may
            not name code to run, so loading it takes an explicit `arch`.
        num_classes: Length of the logits.
        image_shape: (C, H, W) of the images.
        input_size: (H', W') to resize to inside the model.
        mean: Subtracted from [0, 1] images, one value or one a channel.
        std: Divisor, likewise.
        interpolation: How images are resized to `input_size`; `None` for bilinear.
        outputs: What the network returns.
        score_threshold: Score from which a detector's box counts; `None` for .5.
        extra: More entries for the file's metadata, such as a seed.

    Raises:
        ConfigError: A setting is out of range, `arch` names a Python file, or `extra` has a key
            that means a setting.
        ModelError: The file cannot be written.
    """
    import safetensors.torch

    if is_python_factory(arch):
        raise ConfigError(f"arch: a file may not name code to run, got {arch!r}; pass None")
    settings = ModelSettings(
        arch=arch,
        num_classes=num_classes,
        image_shape=image_shape,
        input_size=input_size,
        mean=None if mean is None else tuple(mean),
        std=None if std is None else tuple(std),
        interpolation=interpolation,
        outputs=outputs,
        score_threshold=score_threshold,
    )
    clash = settings.to_metadata().keys() & (extra or {}).keys()
    if clash:
        raise ConfigError(f"extra: {sorted(clash)} are settings; pass them as arguments")
    # Cloned, since safetensors refuses tensors that share memory.
    tensors = {
        name: tensor.detach().cpu().contiguous().clone()
        for name, tensor in network.state_dict().items()
        if isinstance(tensor, Tensor)
    }
    metadata = {"format": "pt", **settings.to_metadata(), **(extra or {})}
    try:
        write_atomically(Path(path), safetensors.torch.save(tensors, metadata))
    except OSError as error:
        raise ModelError(f"{path}: cannot be written: {error.strerror or error}") from error
