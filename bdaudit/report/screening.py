"""The words of a screening without images, and what they leave open."""

from __future__ import annotations

from collections.abc import Callable

from bdaudit.records import Screening, ScreenRecord

__all__ = ["GISTS_OF_SCREENING", "LEFT_OPEN", "class_namer", "file_of", "p_value"]

GISTS_OF_SCREENING = {
    "suspicious": "one class is out of proportion: look for a trigger",
    "nothing found": "no class is out of proportion, which clears nobody",
    "unknown": "this screening cannot tell",
}
"""By outcome, what it means in a few words."""

LEFT_OPEN = (
    "a backdoor: training alone can make one class stand out, and a trigger was neither found nor "
    "tried; `bdaudit invert` looks for one, on clean images",
    "innocence: a backdoor whose class does not stand out, with several target classes, or that "
    "sleeps after a defence is not seen",
    "a p-value that can be relied on: it takes the classes of an innocent model for draws from one "
    "gamma distribution, which they are not; how often real innocent models are suspected has not "
    "been measured (docs/screen.md)",
)
"""What a screening does not prove, whatever comes out."""


def class_namer(screening: Screening) -> Callable[[int], str]:
    """Return what names a class by its index, and by its name where that is known."""
    names = screening.class_names

    def name(label: int) -> str:
        if names is not None and 0 <= label < len(names):
            return f"{label} ({names[label]})"
        return str(label)

    return name


def file_of(record: ScreenRecord) -> str:
    """Name the model by its file, or else as the record calls it."""
    model = next(iter(record.models), None)
    return "model" if model is None else model.path or model.arch


def p_value(screening: Screening) -> str:
    """Write the p-value with the paper's, or that there is none."""
    if screening.p_value is None:
        return "none"
    if screening.published_p_value is None:
        return f"{screening.p_value:.2g}"
    return f"{screening.p_value:.2g} (by the paper's formula {screening.published_p_value:.2g})"
