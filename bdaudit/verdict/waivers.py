"""Accepting a file that the rules would not let pass: for a time, for a reason, by somebody."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from bdaudit.records import FileDigest

__all__ = ["Waiver", "Waiving", "find_waiver"]


class Waiver(BaseModel):
    """A signed, dated, reasoned acceptance of one file.

    Attributes:
        sha256: Digest of the file.
        until: The last day on which it holds, in UTC.
        because: The reason.
        by: Who answers for it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", str_strip_whitespace=True)

    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    until: date
    because: Annotated[str, Field(min_length=1)]
    by: Annotated[str, Field(min_length=1)]

    @property
    def text(self) -> str:
        """The waiver in words."""
        return f"{self.sha256[:12]} until {self.until} by {self.by}, because: {self.because}"


@dataclass(frozen=True)
class Waiving:
    """What the waivers of a policy say of a candidate.

    Attributes:
        accepted: Those by which all of its files are accepted; empty where one file is not.
        ended: Those that accepted a file once and do no longer.
    """

    accepted: tuple[Waiver, ...] = ()
    ended: tuple[Waiver, ...] = ()


def find_waiver(waivers: Sequence[Waiver], files: Sequence[FileDigest], *, today: date) -> Waiving:
    """Return by which waivers the files of a candidate are accepted on a day.

    Every file must be: a candidate of two is not accepted by its half. One without a digest (it was
    only asked) never is.
    """
    best: dict[str, Waiver] = {}
    for waiver in sorted(waivers, key=lambda one: one.until):
        best[waiver.sha256] = waiver
    found = [best.get(file.sha256) for file in files]
    named = [waiver for waiver in found if waiver is not None]
    ended = tuple(waiver for waiver in named if waiver.until < today)
    if not files or None in found or ended:
        return Waiving(ended=ended)
    return Waiving(accepted=tuple(dict.fromkeys(named)))
