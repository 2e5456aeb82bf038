"""Triggers: stamped on images, read from and written to files."""

from bdaudit.triggers.columns import SetColumns
from bdaudit.triggers.files import read_trigger, write_trigger
from bdaudit.triggers.function import Function, load_function
from bdaudit.triggers.importing import import_trigger
from bdaudit.triggers.networks import Encoder, InputAware, StampNetwork
from bdaudit.triggers.objects import InBox, OnObject
from bdaudit.triggers.paired import Paired
from bdaudit.triggers.poisoning import MIN_POISONED, Footprint, Poisoned, footprint, poison
from bdaudit.triggers.preview import preview_strip
from bdaudit.triggers.quantise import Quantise
from bdaudit.triggers.reflection import Reflection
from bdaudit.triggers.rules import (
    NOT_COUNTED,
    AllToAll,
    AllToOne,
    ClassMap,
    ObjectsToOne,
    SourceSpecific,
    TargetRule,
)
from bdaudit.triggers.transforms import (
    Additive,
    Blend,
    Patch,
    Sinusoid,
    Transform,
    Warp,
    control_grid,
    elastic_grid,
)
from bdaudit.triggers.trigger import Trigger, from_callable

__all__ = [
    "MIN_POISONED",
    "NOT_COUNTED",
    "Additive",
    "AllToAll",
    "AllToOne",
    "Blend",
    "ClassMap",
    "Encoder",
    "Footprint",
    "Function",
    "InBox",
    "InputAware",
    "ObjectsToOne",
    "OnObject",
    "Paired",
    "Patch",
    "Poisoned",
    "Quantise",
    "Reflection",
    "SetColumns",
    "Sinusoid",
    "SourceSpecific",
    "StampNetwork",
    "TargetRule",
    "Transform",
    "Trigger",
    "Warp",
    "control_grid",
    "elastic_grid",
    "footprint",
    "from_callable",
    "import_trigger",
    "load_function",
    "poison",
    "preview_strip",
    "read_trigger",
    "write_trigger",
]
