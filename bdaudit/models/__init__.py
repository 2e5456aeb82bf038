"""Open checkpoints safely and make them classifiers."""

from bdaudit.models.architectures import build_network
from bdaudit.models.backdoorbench import (
    BackdoorBenchRecord,
    find_records,
    locate_checkpoint,
    open_record,
)
from bdaudit.models.checkpoint import Checkpoint, open_checkpoint
from bdaudit.models.clamps import Clampable, OutputClamp, clamp_output
from bdaudit.models.classifier import Classifier, LoadedModel
from bdaudit.models.clip_settings import ClipSettings
from bdaudit.models.inspection import ArchitectureGuess, Inspection, inspect_checkpoint
from bdaudit.models.keeping import KeptClassifiers, describe_classifier
from bdaudit.models.loading import load_model, wrap_module
from bdaudit.models.memory_order import training_order
from bdaudit.models.outputs import ONE_SCORE, check_outputs
from bdaudit.models.preactresnet import PreActResNet, preactresnet18
from bdaudit.models.saving import save_model
from bdaudit.models.settings import ModelSettings
from bdaudit.models.shortcuts import is_on_shortcut
from bdaudit.models.zeroshot import ZeroShotNetwork

__all__ = [
    "ONE_SCORE",
    "ArchitectureGuess",
    "BackdoorBenchRecord",
    "Checkpoint",
    "Clampable",
    "Classifier",
    "ClipSettings",
    "Inspection",
    "KeptClassifiers",
    "LoadedModel",
    "ModelSettings",
    "OutputClamp",
    "PreActResNet",
    "ZeroShotNetwork",
    "build_network",
    "check_outputs",
    "clamp_output",
    "describe_classifier",
    "find_records",
    "inspect_checkpoint",
    "is_on_shortcut",
    "load_model",
    "locate_checkpoint",
    "open_checkpoint",
    "open_record",
    "preactresnet18",
    "save_model",
    "training_order",
    "wrap_module",
]
