"""Frozen records of everything that is measured, and their JSON form.

A record holds what a report or a verdict needs and nothing else is asked for: a report can be
redrawn, and a verdict judged again, from the JSON alone. A quantity that was not measured is
`None` beside a reason, never 0. Fractions are in [0, 1]; durations are seconds.
"""

from bdaudit.records.attacks import (
    AttackRun,
    Baseline,
    ClassAnswers,
    CurvePoint,
    DetectionQuality,
)
from bdaudit.records.base import (
    Condition,
    Diagnostic,
    Fraction,
    Mode,
    Outcome,
    Rate,
    Record,
    Release,
    Role,
)
from bdaudit.records.documents import (
    AnyDocument,
    AuditFindings,
    AuditRecord,
    BaselineFindings,
    Document,
    Findings,
    InversionFindings,
    InversionRecord,
    ReactivationFindings,
    ReactivationRecord,
    RelearnFindings,
    RelearnRecord,
    ScoreFindings,
    ScoreRecord,
    ScreenFindings,
    ScreenRecord,
    Sealed,
)
from bdaudit.records.existence import (
    BackdoorDirection,
    BecRecord,
    LayerBec,
    LayerDirection,
    LinePoint,
    LossBarrier,
)
from bdaudit.records.header import (
    SCHEMA_VERSION,
    DataInfo,
    Environment,
    FileDigest,
    Header,
    Heading,
    ModelInfo,
    StepStatus,
    TriggerInfo,
)
from bdaudit.records.inversion import (
    Inversion,
    InversionRun,
    KeptTrigger,
    RecoveredTrigger,
    TargetScore,
)
from bdaudit.records.pictures import (
    Answer,
    PictureColumn,
    Pictures,
    Png,
    Thumbnail,
)
from bdaudit.records.placebos import (
    Placebo,
    Placebos,
)
from bdaudit.records.reading import (
    demand_audit,
    read_record,
    to_json,
    using_record,
)
from bdaudit.records.relearning import (
    RelearnCurve,
    Relearning,
    RelearningEvidence,
)
from bdaudit.records.screening import (
    ClassMargin,
    Screening,
)
from bdaudit.records.verdict import (
    Comparison,
    Verdict,
)

__all__ = [
    "SCHEMA_VERSION",
    "Answer",
    "AnyDocument",
    "AttackRun",
    "AuditFindings",
    "AuditRecord",
    "BackdoorDirection",
    "Baseline",
    "BaselineFindings",
    "BecRecord",
    "ClassAnswers",
    "ClassMargin",
    "Comparison",
    "Condition",
    "CurvePoint",
    "DataInfo",
    "DetectionQuality",
    "Diagnostic",
    "Document",
    "Environment",
    "FileDigest",
    "Findings",
    "Fraction",
    "Header",
    "Heading",
    "Inversion",
    "InversionFindings",
    "InversionRecord",
    "InversionRun",
    "KeptTrigger",
    "LayerBec",
    "LayerDirection",
    "LinePoint",
    "LossBarrier",
    "Mode",
    "ModelInfo",
    "Outcome",
    "PictureColumn",
    "Pictures",
    "Placebo",
    "Placebos",
    "Png",
    "Rate",
    "ReactivationFindings",
    "ReactivationRecord",
    "Record",
    "RecoveredTrigger",
    "RelearnCurve",
    "RelearnFindings",
    "RelearnRecord",
    "Relearning",
    "RelearningEvidence",
    "Release",
    "Role",
    "ScoreFindings",
    "ScoreRecord",
    "ScreenFindings",
    "ScreenRecord",
    "Screening",
    "Sealed",
    "StepStatus",
    "TargetScore",
    "Thumbnail",
    "TriggerInfo",
    "Verdict",
    "demand_audit",
    "read_record",
    "to_json",
    "using_record",
]
