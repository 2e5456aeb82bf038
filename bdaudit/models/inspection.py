"""What a checkpoint holds, hostile or not, found without building or running anything."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from bdaudit.errors import ModelError, reads
from bdaudit.foundation.digests import digest_file, digest_tensors
from bdaudit.foundation.opening import is_file, is_folder, shown, why_not
from bdaudit.models.architectures import is_python_factory
from bdaudit.models.backdoorbench import locate_checkpoint, plug_layer_of
from bdaudit.models.checkpoint import (
    Checkpoint,
    demand_finite,
    non_finite_tensors,
    read_checkpoint,
    read_content,
)
from bdaudit.models.clamps import describe_clamps, without_clamps
from bdaudit.models.clip_fingerprint import ClipShape, clip_shape, matching_configs
from bdaudit.models.fingerprint import closest_architectures, drop_wrapper_prefix
from bdaudit.models.hub_folder import CONFIG, HubFolder, is_hub_folder, read_hub_folder
from bdaudit.models.open_clip_folder import OPEN_CLIP_CONFIG
from bdaudit.models.pickles import wanted_globals

__all__ = ["ArchitectureGuess", "Inspection", "inspect_checkpoint"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchitectureGuess:
    """A known architecture that the tensors resemble.

    Attributes:
        arch: Its name, as `--arch` spells it.
        score: Share of tensors that agree in name and shape; 1.0 fits.
        num_classes: Length of the head, `None` when it cannot be told.
        in_channels: Channels of the stem, `None` when it cannot be told.
    """

    arch: str
    score: float
    num_classes: int | None
    in_channels: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """What `inspect_checkpoint` found; everything in it is plain and JSON-able.

    Attributes:
        path: The file looked at.
        size_bytes: Its size.
        file_sha256: Digest of its bytes.
        problem: Why it cannot be opened or loaded, `None` when nothing stands in the way.
        wanted_globals: Names that its pickle wants and that are never run; a file with any is not
            safe to open by plain unpickling. Empty for a harmless file.
        container: The format found, `None` when it cannot be opened.
        n_tensors: Tensors in the file.
        n_parameters: Numbers in the floating-point tensors.
        dtypes: Tensors by type.
        metadata: What the file says about itself. Not to be trusted.
        notes: What opening it did to the content.
        non_finite: Names of tensors with NaN or infinity.
        guesses: Known architectures that resemble the tensors, best first.
        clip: Sizes of its towers, where the file holds a CLIP.
        weights_sha256: Digest of the tensors, the same whatever file they are in.
        weights: Key of the set of weights that is described, `None` where the file holds one.
        other_weights: Keys of its other sets, which differ.
    """

    path: str
    size_bytes: int
    file_sha256: str
    problem: str | None
    wanted_globals: tuple[str, ...]
    container: str | None = None
    n_tensors: int = 0
    n_parameters: int = 0
    dtypes: dict[str, int] = dataclasses.field(default_factory=dict)
    metadata: dict[str, str] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()
    non_finite: tuple[str, ...] = ()
    guesses: tuple[ArchitectureGuess, ...] = ()
    clip: ClipShape | None = None
    weights_sha256: str | None = None
    weights: str | None = None
    other_weights: tuple[str, ...] = ()

    @property
    def is_safe(self) -> bool:
        """Whether the file was opened and wants nothing run."""
        return self.problem is None and not self.wanted_globals

    def to_dict(self) -> dict[str, Any]:
        """Return the findings as plain containers, for JSON."""
        return dataclasses.asdict(self)


@reads(ModelError)
def inspect_checkpoint(
    path: Path | str, *, weights: str | None = None, read_pickled_module: bool = False
) -> Inspection:
    """Look into a checkpoint file or a BackdoorBench folder.

    A damaged or hostile file is described, not refused.

    Args:
        path: The file or folder.
        weights: Which of the file's sets of weights to describe.
        read_pickled_module: Whether to look into a whole pickled module, whose classes stay inert.

    Raises:
        ModelError: There is no such file, it cannot be read, or it is a folder with no result that
            can be loaded.
    """
    hub = read_hub_folder(Path(path)) if is_hub_folder(path) else None
    file = Path(path) if hub is None else hub.weights
    if hub is None and is_folder(path):
        file = locate_checkpoint(path)
    try:
        size = file.stat().st_size
    except (OSError, ValueError) as error:
        reason = why_not(file, error) if isinstance(error, OSError) else error
        raise ModelError(f"{shown(file)}: cannot be read: {reason}") from error
    file_sha256: str | None = None
    wanted: tuple[str, ...] = ()
    try:
        content = read_content(file)
        file_sha256 = hashlib.sha256(content).hexdigest()
        wanted = wanted_globals(content)
        checkpoint = read_checkpoint(
            file, weights=weights, read_pickled_module=read_pickled_module, content=content
        )
    except ModelError as error:
        return Inspection(
            path=str(file),
            size_bytes=size,
            file_sha256=file_sha256 or (digest_file(file) if is_file(file) else ""),
            problem=str(error),
            wanted_globals=wanted,
        )
    tensors = checkpoint.tensors
    clip = _clip_in(tensors)
    return Inspection(
        path=str(file),
        size_bytes=size,
        file_sha256=file_sha256,
        problem=_problem(checkpoint),
        wanted_globals=wanted,
        container=checkpoint.container,
        n_tensors=len(tensors),
        n_parameters=sum(t.numel() for t in tensors.values() if t.is_floating_point()),
        dtypes=dict(Counter(str(t.dtype).removeprefix("torch.") for t in tensors.values())),
        metadata=checkpoint.metadata,
        notes=(
            *checkpoint.notes,
            *_notes_of_clamps(tensors),
            *(_notes_of_plug(file) if hub is None else _notes_of(hub)),
        ),
        non_finite=tuple(non_finite_tensors(tensors)),
        guesses=_guesses(checkpoint) if clip is None else _guesses_of_clip(clip),
        clip=clip,
        weights_sha256=digest_tensors(tensors),
        weights=checkpoint.key if checkpoint.was_named or checkpoint.others else None,
        other_weights=checkpoint.others,
    )


def _notes_of(hub: HubFolder) -> tuple[str, ...]:
    if hub.of_open_clip:
        return (f"{hub.folder / OPEN_CLIP_CONFIG} describes a model of open_clip", *hub.notes)
    named = hub.config.get("architectures") or hub.config.get("architecture")
    return (f"{hub.folder / CONFIG} describes {named!r:.200}", *hub.notes)


def _notes_of_clamps(tensors: Mapping[str, Tensor]) -> tuple[str, ...]:
    _, bounds = without_clamps(tensors)
    return (describe_clamps(bounds),) if bounds else ()


def _notes_of_plug(file: Path) -> tuple[str, ...]:
    layer = plug_layer_of(file)
    if layer is None:
        return ()
    return (f"{layer.name} beside it is NPD's defence, which is put before a layer of the network",)


def _problem(checkpoint: Checkpoint) -> str | None:
    """Return why `load_model` would refuse what could be read."""
    if is_python_factory(checkpoint.metadata.get("arch")):
        return f"its metadata names Python code to run as arch: {checkpoint.metadata['arch']!r}"
    try:
        demand_finite(str(checkpoint.path), checkpoint.tensors)
    except ModelError as error:
        return str(error)
    return None


def _clip_in(tensors: Mapping[str, Tensor]) -> ClipShape | None:
    unwrapped = drop_wrapper_prefix(tensors)
    return clip_shape(tensors) or (None if unwrapped is None else clip_shape(unwrapped[0]))


def _guesses_of_clip(shape: ClipShape) -> tuple[ArchitectureGuess, ...]:
    return tuple(
        ArchitectureGuess(arch=arch, score=1.0, num_classes=None, in_channels=3)
        for arch in matching_configs(shape)
    )


def _guesses(checkpoint: Checkpoint) -> tuple[ArchitectureGuess, ...]:
    tensors, _ = without_clamps(checkpoint.tensors)
    matches = closest_architectures(tensors)
    unwrapped = drop_wrapper_prefix(tensors)
    if not matches and unwrapped is not None:
        matches = closest_architectures(unwrapped[0])
    return tuple(
        ArchitectureGuess(
            arch=match.arch,
            score=match.score,
            num_classes=match.num_classes,
            in_channels=match.in_channels,
        )
        for match in matches
    )
