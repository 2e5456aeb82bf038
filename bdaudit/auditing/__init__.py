"""The public verbs: from paths or objects in memory to a record."""

from bdaudit.auditing.audit import audit, audit_steps
from bdaudit.auditing.defend import DefendSettings, defend, defend_steps
from bdaudit.auditing.invert import RecoveredTriggers, invert, invert_steps, save_recovered
from bdaudit.auditing.reactivate import Reactivation, reactivate, reactivate_steps, save_delta
from bdaudit.auditing.relearn import relearn, relearn_steps
from bdaudit.auditing.score import score, score_steps
from bdaudit.auditing.screen import screen, screen_steps
from bdaudit.auditing.sweep import record_path, sweep_steps
from bdaudit.blackbox import BlackBoxOptions, TransportSettings
from bdaudit.cases.request import AuditRequest
from bdaudit.cases.settings import AuditSettings, ComputeSettings, SplitSettings
from bdaudit.cases.sources import Sources, default_modes
from bdaudit.existence import ExistenceConfig
from bdaudit.inversion import InversionConfig
from bdaudit.measuring.store import FolderStore, MemoryStore, RunStore
from bdaudit.models import ClipSettings, ModelSettings
from bdaudit.reactivation import WhiteboxConfig
from bdaudit.reactivation.query_config import QueryConfig
from bdaudit.reactivation.transfer import TransferConfig
from bdaudit.relatives.standins import StandInConfig
from bdaudit.relearning import RelearnConfig

__all__ = [
    "AuditRequest",
    "AuditSettings",
    "BlackBoxOptions",
    "ClipSettings",
    "ComputeSettings",
    "DefendSettings",
    "ExistenceConfig",
    "FolderStore",
    "InversionConfig",
    "MemoryStore",
    "ModelSettings",
    "QueryConfig",
    "Reactivation",
    "RecoveredTriggers",
    "RelearnConfig",
    "RunStore",
    "Sources",
    "SplitSettings",
    "StandInConfig",
    "TransferConfig",
    "TransportSettings",
    "WhiteboxConfig",
    "audit",
    "audit_steps",
    "default_modes",
    "defend",
    "defend_steps",
    "invert",
    "invert_steps",
    "reactivate",
    "reactivate_steps",
    "record_path",
    "relearn",
    "relearn_steps",
    "save_delta",
    "save_recovered",
    "score",
    "score_steps",
    "screen",
    "screen_steps",
    "sweep_steps",
]
