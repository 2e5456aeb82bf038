"""What BackdoorBench's result folders look like, and the traps in them.

A record folder holds `attack_result.pt` (the backdoored model) and, a folder a defence,
`defense/<name>/defense_result.pt`. Source: Wu et al., "BackdoorBench: A Comprehensive Benchmark
of Backdoor Learning" (NeurIPS 2022), and the format its published results have.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bdaudit.errors import ModelError, reads
from bdaudit.foundation.opening import is_file, is_folder

__all__ = [
    "NORMALISATIONS",
    "BackdoorBenchRecord",
    "attack_result_of",
    "find_records",
    "locate_checkpoint",
    "normalisation_of",
    "open_record",
    "plug_layer_of",
    "read_result",
]

ATTACK_FILE = "attack_result.pt"
DEFENSE_FILE = "defense_result.pt"
_PLUG_LAYER_FILE = "plug_layer.pt"
_LARGEST = 10**9

NORMALISATIONS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "tiny": ((0.4802, 0.4481, 0.3975), (0.2302, 0.2265, 0.2262)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "mnist": ((0.5,), (0.5,)),
    "gtsrb": ((0.0,), (1.0,)),
    "celeba": ((0.0,), (1.0,)),
}
"""Mean and standard deviation that BackdoorBench trains with, by its name of the data set."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BackdoorBenchRecord:
    """The checkpoints of one attack and the defences against it.

    Attributes:
        folder: The record folder.
        attack_result: The backdoored model, `None` when it is not there.
        defenses: `defense_result.pt` by the name of the defence, in order of name.
    """

    folder: Path
    attack_result: Path | None
    defenses: dict[str, Path]


@reads(ModelError)
def open_record(path: Path | str) -> BackdoorBenchRecord:
    """List the checkpoints of the record folder that `path` is, or lies in.

    Raises:
        ModelError: No folder at or up to three levels above `path` is a record folder.
    """
    start = Path(path)
    for folder in [start, *start.parents][:4]:
        attack = folder / ATTACK_FILE
        defenses = {
            file.parent.name: file for file in sorted(folder.glob(f"defense/*/{DEFENSE_FILE}"))
        }
        if attack.is_file() or defenses:
            return BackdoorBenchRecord(
                folder=folder, attack_result=attack if attack.is_file() else None, defenses=defenses
            )
    raise ModelError(
        f"{path}: expected a BackdoorBench record folder with {ATTACK_FILE} or "
        f"defense/<name>/{DEFENSE_FILE}, or a file in one; found neither here nor above"
    )


@reads(ModelError)
def find_records(folder: Path) -> tuple[BackdoorBenchRecord, ...]:
    """List the record folders that `folder` is, or holds directly, in order of name."""
    places = [folder, *sorted(p for p in folder.iterdir() if p.is_dir())] if folder.is_dir() else []
    holding = [
        place
        for place in places
        if (place / ATTACK_FILE).is_file() or any(place.glob(f"defense/*/{DEFENSE_FILE}"))
    ]
    return tuple(open_record(place) for place in holding)


def locate_checkpoint(path: Path | str) -> Path:
    """Return the file to open for a checkpoint file or a BackdoorBench folder.

    Raises:
        ModelError: The folder holds no result.
    """
    file = Path(path)
    if is_folder(file):
        candidates = [file / DEFENSE_FILE, file / ATTACK_FILE]
        found = next((candidate for candidate in candidates if is_file(candidate)), None)
        if found is None:
            raise ModelError(
                f"{path}: expected a checkpoint file, or a BackdoorBench folder with {ATTACK_FILE} "
                f"or {DEFENSE_FILE} in it, got a folder with neither"
            )
        file = found
    return file


def attack_result_of(path: Path) -> Path | None:
    """Return the `attack_result.pt` of the record that a defence's result belongs to, or `None`."""
    if path.name != DEFENSE_FILE:
        return None
    candidates = (folder / ATTACK_FILE for folder in path.parents[:4])
    return next((candidate for candidate in candidates if is_file(candidate)), None)


def plug_layer_of(checkpoint: Path) -> Path | None:
    """Return NPD's `plug_layer.pt` beside a defence's result, without which that is undefended."""
    layer = checkpoint.with_name(_PLUG_LAYER_FILE)
    return layer if checkpoint.name != ATTACK_FILE and is_file(layer) else None


def read_result(content: Mapping[Any, Any]) -> tuple[dict[str, str], str] | None:
    """Take BackdoorBench's container apart, or return `None` when `content` is not one.

    Returns:
        Metadata as text, and the container's name. Its weights are under "model".
    """
    if not {"model_name", "model"} <= content.keys() or not isinstance(content["model"], dict):
        return None
    metadata = {}
    for key in ("model_name", "num_classes", "clean_data", "data_path"):
        value = content.get(key)
        if isinstance(value, str) or (isinstance(value, int | float) and abs(value) < _LARGEST):
            metadata[key] = str(value)
    size = content.get("img_size")
    if isinstance(size, list | tuple) and all(
        isinstance(side, int) and abs(side) < _LARGEST for side in size
    ):
        metadata["img_size"] = ",".join(str(side) for side in size)
    is_attack = not {"bd_train", "bd_test", "clean_data"}.isdisjoint(content)
    return (
        metadata,
        f"BackdoorBench {'attack' if is_attack else 'defense'}_result",
    )


def normalisation_of(
    metadata: Mapping[str, str],
) -> tuple[str, tuple[float, ...], tuple[float, ...]] | None:
    """Return data set, mean and standard deviation, or `None` for an unknown data set.

    The data set is known by `clean_data`, else by the last part of `data_path` that names one.
    """
    parts = metadata.get("data_path", "").replace("\\", "/").lower().split("/")
    for name in [metadata.get("clean_data", "").lower(), *reversed(parts)]:
        if name in NORMALISATIONS:
            return (name, *NORMALISATIONS[name])
    return None
