"""The modes of attack: their names, and the words everybody has for them.

A new mode is a file in `bdaudit/measuring/` with its `AttackKind`, one line in the table of
`bdaudit/measuring/attacking.py`, and its name and words here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

__all__ = ["MODES", "Mode", "ModeWords", "mode_for"]

Mode: TypeAlias = Literal["white", "query", "transfer"]


@dataclass(frozen=True, kw_only=True)
class ModeWords:
    """How a mode is spoken of, and what it is given of the model under attack.

    Attributes:
        label: Its name in reports.
        short: The same where two modes are named side by side.
        help: What it does, in the help of `--mode`.
        means: What reaches a rate in this mode, in a sentence that holds it against the white box.
        found_how: What a verdict adds about a perturbation, between commas; the fields of its
            `AttackRun` that are numbers, and `n_made_on`, stand in braces.
        has_weights: Whether it looks into the model, as only somebody who holds the weights can.
        asks: Whether it searches by asking the model, so that images asked about are counted and
            what was answered is worth keeping.
        objectives: Whether it knows another objective than the standard one.
    """

    label: str
    short: str
    help: str
    means: str
    found_how: str = ""
    has_weights: bool = False
    asks: bool = False
    objectives: bool = False

    @property
    def made_elsewhere(self) -> bool:
        """Whether the model takes no part in the search; that one fails then shows little."""
        return not (self.has_weights or self.asks)


MODES: dict[Mode, ModeWords] = {
    "white": ModeWords(
        label="white box",
        short="white box",
        help="with gradients",
        means="the white box",
        has_weights=True,
        objectives=True,
    ),
    "query": ModeWords(
        label="queries only",
        short="queries",
        help="asking alone",
        means="queries alone",
        found_how="found with {image_queries:,} image queries",
        asks=True,
    ),
    "transfer": ModeWords(
        label="transfer",
        short="transfer",
        help="made on surrogates",
        means="a perturbation made elsewhere",
        found_how="made on {n_made_on} surrogates and never on this model",
    ),
}
"""Every mode, in the order of all tables."""


def mode_for(*, only_asked: bool) -> Mode:
    """Return the mode that suits a model when the user names none: the strongest it allows."""
    fitting = (
        mode for mode, words in MODES.items() if (words.asks if only_asked else words.has_weights)
    )
    return next(fitting)
