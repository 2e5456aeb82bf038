"""What all records are made of: shares of images with their intervals, and diagnostics.

Fractions are in [0, 1]; durations are seconds. A quantity that was not measured is `None` beside a
reason, never 0.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable
from itertools import chain
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from bdaudit.errors import RecordError
from bdaudit.foundation.modes import Mode

__all__ = [
    "Condition",
    "Diagnostic",
    "Fraction",
    "Mode",
    "Outcome",
    "Rate",
    "Record",
    "Release",
    "Role",
]

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


Role = Literal["defended", "original", "reference", "surrogate"]


Condition = Literal["trigger", "no_trigger", "wrong_target", "noise", "placebo"]


Outcome = Literal["removed", "dormant", "active", "inconclusive"]


Release = Literal["pass", "fail", "inconclusive"]


class Record(BaseModel):
    """Base of all records: frozen, no unknown fields, no NaN in the JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


# A policy is judged many times over when limits are calibrated, each time from all outcomes.
_BITS_OF = tuple(tuple(bool(byte >> (7 - k) & 1) for k in range(8)) for byte in range(256))


class Rate(Record):
    """A share of held-out (or craft) images, with its 95 % Wilson interval.

    Attributes:
        successes: Images for which the event happened.
        total: Images asked about; at least 1.
        low: Lower end of the interval.
        high: Upper end of the interval.
        bits: The event image by image, in the order of the sample, packed eight to a byte (first
            image in the highest bit) and base64-encoded; `None` where pairs are never needed.
            Two rates with bits over the same images can be compared image by image.
    """

    successes: int = Field(ge=0)
    total: int = Field(ge=1)
    low: Fraction
    high: Fraction
    bits: str | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Rate:
        if self.successes > self.total:
            raise ValueError(f"{self.successes} successes out of {self.total}")
        if self.bits is not None and sum(self.outcomes()) != self.successes:
            raise ValueError("the packed outcomes do not add up to the count of successes")
        return self

    @property
    def value(self) -> float:
        """The share itself."""
        return self.successes / self.total

    def outcomes(self) -> list[bool]:
        """Unpack `bits`, one boolean an image.

        Raises:
            RecordError: The rate was stored without its outcomes, or they are damaged.
        """
        if self.bits is None:
            raise RecordError("this rate was stored without its image-by-image outcomes")
        try:
            packed = base64.b64decode(self.bits, validate=True)
        except binascii.Error as error:
            raise RecordError("image-by-image outcomes are not base64") from error
        if len(packed) != (self.total + 7) // 8:
            raise RecordError(f"{len(packed)} bytes of outcomes for {self.total} images")
        flags = list(chain.from_iterable(_BITS_OF[byte] for byte in packed))
        return flags[: self.total]

    @staticmethod
    def pack(outcomes: Iterable[bool]) -> str:
        """Pack booleans as `bits` stores them."""
        flags = list(outcomes)
        packed = bytearray((len(flags) + 7) // 8)
        for index, flag in enumerate(flags):
            if flag:
                packed[index // 8] |= 1 << (7 - index % 8)
        return base64.b64encode(bytes(packed)).decode("ascii")


class Diagnostic(Record):
    """Something that makes a number doubtful; each code has a paragraph in docs/diagnostics.md.

    Attributes:
        code: A stable identifier such as `clean_accuracy_near_chance`.
        severity: `error` makes a would-be "removed" inconclusive; `warning` is reported.
        message: What was seen and what to do, for a person.
        subject: The model, file or step it is about.
    """

    code: str
    severity: Literal["error", "warning", "info"]
    message: str
    subject: str
