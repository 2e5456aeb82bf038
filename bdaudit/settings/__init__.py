"""Every setting, declared once: name, type, range, default, help."""

from bdaudit.settings.declaring import Declared, Table, declared, option
from bdaudit.settings.tables import (
    Attack,
    Clip,
    Compute,
    Defend,
    Engine,
    Existence,
    Inputs,
    Inversion,
    Limits,
    Models,
    Output,
    Precision,
    Query,
    Relearning,
    Surrogates,
)

__all__ = [
    "Attack",
    "Clip",
    "Compute",
    "Declared",
    "Defend",
    "Engine",
    "Existence",
    "Inputs",
    "Inversion",
    "Limits",
    "Models",
    "Output",
    "Precision",
    "Query",
    "Relearning",
    "Surrogates",
    "Table",
    "declared",
    "option",
]
