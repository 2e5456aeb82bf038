"""Attacks that try to wake a dormant backdoor."""

from bdaudit.reactivation.config import WhiteboxConfig
from bdaudit.reactivation.objective import SpecificTerms
from bdaudit.reactivation.recipes import OptimizerName
from bdaudit.reactivation.whitebox import WhiteboxResult, reactivate_whitebox

__all__ = [
    "OptimizerName",
    "SpecificTerms",
    "WhiteboxConfig",
    "WhiteboxResult",
    "reactivate_whitebox",
]
