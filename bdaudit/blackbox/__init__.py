"""Ask a model that cannot be looked into: images in, scores or labels out, every image counted."""

from bdaudit.blackbox.base import BlackBox, Feedback, Identity, top_labels
from bdaudit.blackbox.meter import Meter
from bdaudit.blackbox.scale import ScoreKind, ScoreScale, detect_scale
from bdaudit.blackbox.torch_model import TorchBlackBox

__all__ = [
    "BlackBox",
    "Feedback",
    "Identity",
    "Meter",
    "ScoreKind",
    "ScoreScale",
    "TorchBlackBox",
    "detect_scale",
    "top_labels",
]
