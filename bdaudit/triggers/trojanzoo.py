"""TrojanZoo's marks, as a trigger.

An attack's result is three files of one name: the mark as an array, the same as a picture, and the
weights. The array is (C + 1, h, w) in [0, 1], whose last plane is its opacity; it is multiplied by
`mark_alpha` and put at `mark_height_offset` and `mark_width_offset` from the top left. The name
says target and alpha, and not the offsets. Arrays without opacity, of older versions, are refused.
Source: TrojanZoo's `trojanvision/marks` and `trojanvision/attacks/backdoor`.
"""

from __future__ import annotations

import re
from pathlib import Path

from bdaudit.errors import ConfigError, TriggerError
from bdaudit.triggers.files import read_tensor
from bdaudit.triggers.rules import AllToOne
from bdaudit.triggers.transforms import Patch
from bdaudit.triggers.trigger import Trigger

__all__ = ["is_mark", "mark_trigger"]

_NAME = re.compile(
    r"(?P<flags>.*)_tar(?P<target>\d+)_alpha(?P<alpha>\d\.\d+)_mark\((?P<h>\d+),(?P<w>\d+)\)"
)
_RANDOM = ("random-pos_", "randompos_")


def is_mark(path: Path) -> bool:
    """Return whether a file has the name that TrojanZoo gives to a mark's array."""
    return path.suffix.lower() == ".npy" and _NAME.match(path.stem) is not None


def mark_trigger(path: Path, *, target: int | None, offset: tuple[int, int] | None) -> Trigger:
    """Return the trigger that a mark is.

    Args:
        path: Its array, under the name that TrojanZoo gives it.
        target: Index of the target class, where it is given beside the name.
        offset: Rows and columns from the top left.

    Raises:
        TriggerError: The mark is put at a random place, the name says another target, the offset is
            not given, or the array is none.
    """
    found = _NAME.match(path.stem)
    assert found is not None
    if any(flag in found["flags"] for flag in _RANDOM):
        raise TriggerError(
            f"{path}: this mark is put at a random place of every image, which no trigger file "
            "says; write a python trigger that puts it at one place"
        )
    label = int(found["target"])
    if target not in (None, label):
        raise TriggerError(f"{path}: the name says target {label}, got --target {target}")
    if offset is None:
        raise TriggerError(
            f"{path}: expected where the mark is put, which the file does not say: --offset "
            "ROWS,COLUMNS, the attack's mark_height_offset and mark_width_offset (TrojanZoo's "
            "default is 0,0)"
        )
    values = read_tensor(path, "mark").float()
    size = (int(found["h"]), int(found["w"]))
    if values.ndim != 3 or values.shape[0] not in (2, 4) or tuple(values.shape[1:]) != size:
        raise TriggerError(
            f"{path}: expected a mark of {size[0]}x{size[1]} pixels with its opacity as the last "
            f"plane, (2, h, w) or (4, h, w), got {tuple(values.shape)}"
        )
    opacity = values[-1:] * float(found["alpha"])
    if float(opacity.max()) == 0:
        raise TriggerError(
            f"{path}: this mark cannot be seen at all (alpha {found['alpha']}), so its alpha is no "
            "opacity: older versions meant transparency. Write the patch by hand, with its mask"
        )
    try:
        patch = Patch(image=values[:-1], mask=opacity, corner="top-left", offset=offset)
    except ConfigError as error:
        raise TriggerError(f"{path}: {error}") from error
    return Trigger(transform=patch, rule=AllToOne(label))
