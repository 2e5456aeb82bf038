"""The public verbs: from paths or objects in memory to a record."""

from bdaudit.auditing.audit import audit, audit_steps
from bdaudit.auditing.inputs import ModelOptions, Sources
from bdaudit.auditing.reactivate import Reactivation, reactivate, reactivate_steps, save_delta
from bdaudit.auditing.runs import RunCache
from bdaudit.auditing.score import score, score_steps
from bdaudit.auditing.settings import AuditSettings, ComputeSettings, SplitSettings
from bdaudit.existence import ExistenceConfig
from bdaudit.reactivation import WhiteboxConfig

__all__ = [
    "AuditSettings",
    "ComputeSettings",
    "ExistenceConfig",
    "ModelOptions",
    "Reactivation",
    "RunCache",
    "Sources",
    "SplitSettings",
    "WhiteboxConfig",
    "audit",
    "audit_steps",
    "reactivate",
    "reactivate_steps",
    "save_delta",
    "score",
    "score_steps",
]
