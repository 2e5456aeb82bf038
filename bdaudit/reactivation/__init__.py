"""Attacks that try to wake a dormant backdoor."""

from bdaudit.reactivation.config import WhiteboxConfig
from bdaudit.reactivation.objective import SpecificTerms
from bdaudit.reactivation.recipes import OptimizerName
from bdaudit.reactivation.whitebox import (
    Search,
    WhiteboxResult,
    most_together,
    reactivate_together,
    reactivate_whitebox,
)

__all__ = [
    "OptimizerName",
    "Search",
    "SpecificTerms",
    "WhiteboxConfig",
    "WhiteboxResult",
    "most_together",
    "reactivate_together",
    "reactivate_whitebox",
]
