"""bdaudit: is the backdoor in a cleaned model gone, or only asleep?

The verbs of the command line are functions here:

    record = bdaudit.audit(defended, original=..., data=..., trigger=..., references=[...])
    print(record.verdict.outcome, record.verdict.why)

Models and data may be paths or objects in memory; see `audit`, `score`, `reactivate`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from bdaudit.version import __version__

if TYPE_CHECKING:
    from bdaudit.auditing import (
        AuditSettings,
        BlackBoxOptions,
        ClipSettings,
        ComputeSettings,
        DefendSettings,
        ExistenceConfig,
        FolderStore,
        InversionConfig,
        MemoryStore,
        ModelSettings,
        QueryConfig,
        Reactivation,
        RelearnConfig,
        SplitSettings,
        StandInConfig,
        TransferConfig,
        TransportSettings,
        WhiteboxConfig,
        audit,
        defend,
        invert,
        reactivate,
        relearn,
        save_delta,
        save_recovered,
        score,
        screen,
    )
    from bdaudit.auditing.verification import verify
    from bdaudit.data import Sample, load_objects, load_sample
    from bdaudit.models import LoadedModel, inspect_checkpoint, load_model, save_model
    from bdaudit.project import Project, read_project
    from bdaudit.records import (
        AuditRecord,
        InversionRecord,
        ReactivationRecord,
        RelearnRecord,
        ScoreRecord,
        ScreenRecord,
        read_record,
        to_json,
    )
    from bdaudit.report.comparison import compare
    from bdaudit.report.formats import render_report
    from bdaudit.triggers import Trigger, from_callable, read_trigger, write_trigger
    from bdaudit.verdict import Policy, diff, gate, judge, read_policy

# Names are imported when first asked for, so that `import bdaudit` does not load torch.
_HOMES = {
    "AuditSettings": "auditing",
    "ComputeSettings": "auditing",
    "DefendSettings": "auditing",
    "ExistenceConfig": "auditing",
    "BlackBoxOptions": "auditing",
    "ClipSettings": "auditing",
    "FolderStore": "auditing",
    "InversionConfig": "auditing",
    "MemoryStore": "auditing",
    "ModelSettings": "auditing",
    "QueryConfig": "auditing",
    "TransferConfig": "auditing",
    "TransportSettings": "auditing",
    "Reactivation": "auditing",
    "RelearnConfig": "auditing",
    "SplitSettings": "auditing",
    "StandInConfig": "auditing",
    "WhiteboxConfig": "auditing",
    "audit": "auditing",
    "defend": "auditing",
    "invert": "auditing",
    "reactivate": "auditing",
    "relearn": "auditing",
    "save_delta": "auditing",
    "save_recovered": "auditing",
    "score": "auditing",
    "screen": "auditing",
    "Sample": "data",
    "load_objects": "data",
    "load_sample": "data",
    "LoadedModel": "models",
    "inspect_checkpoint": "models",
    "load_model": "models",
    "save_model": "models",
    "Project": "project",
    "read_project": "project",
    "render_report": "report.formats",
    "AuditRecord": "records",
    "InversionRecord": "records",
    "ReactivationRecord": "records",
    "RelearnRecord": "records",
    "ScoreRecord": "records",
    "ScreenRecord": "records",
    "read_record": "records",
    "to_json": "records",
    "Trigger": "triggers",
    "from_callable": "triggers",
    "read_trigger": "triggers",
    "write_trigger": "triggers",
    "Policy": "verdict",
    "compare": "report.comparison",
    "diff": "verdict",
    "gate": "verdict",
    "judge": "verdict",
    "verify": "auditing.verification",
    "read_policy": "verdict",
}

__all__ = [
    "AuditRecord",
    "AuditSettings",
    "BlackBoxOptions",
    "ClipSettings",
    "ComputeSettings",
    "DefendSettings",
    "ExistenceConfig",
    "FolderStore",
    "InversionConfig",
    "InversionRecord",
    "LoadedModel",
    "MemoryStore",
    "ModelSettings",
    "Policy",
    "Project",
    "QueryConfig",
    "Reactivation",
    "ReactivationRecord",
    "RelearnConfig",
    "RelearnRecord",
    "Sample",
    "ScoreRecord",
    "ScreenRecord",
    "SplitSettings",
    "StandInConfig",
    "TransferConfig",
    "TransportSettings",
    "Trigger",
    "WhiteboxConfig",
    "__version__",
    "audit",
    "compare",
    "defend",
    "diff",
    "from_callable",
    "gate",
    "inspect_checkpoint",
    "invert",
    "judge",
    "load_model",
    "load_objects",
    "load_sample",
    "reactivate",
    "read_policy",
    "read_project",
    "read_record",
    "read_trigger",
    "relearn",
    "render_report",
    "save_delta",
    "save_model",
    "save_recovered",
    "score",
    "screen",
    "to_json",
    "verify",
    "write_trigger",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'bdaudit' has no attribute {name!r}")
    return getattr(importlib.import_module(f"bdaudit.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
