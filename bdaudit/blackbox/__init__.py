"""Ask a model that cannot be looked into: images in, scores or labels out, every image counted."""

from bdaudit.blackbox.base import BlackBox, Feedback, Identity, top_labels
from bdaudit.blackbox.diagnostics import (
    BatchAnswers,
    ask_in_batches,
    check_batch_dependence,
    check_repeatability,
    describe_scale,
    diagnose_batch,
    diagnose_grid,
)
from bdaudit.blackbox.function import FunctionBlackBox
from bdaudit.blackbox.journal import AnswerJournal
from bdaudit.blackbox.meter import Meter
from bdaudit.blackbox.onnx_layers import OnnxLayers, fold_batch_norms, read_onnx_layers
from bdaudit.blackbox.onnx_model import OnnxBlackBox
from bdaudit.blackbox.opening import open_black_box
from bdaudit.blackbox.openvino_model import OpenVinoBlackBox, weights_beside
from bdaudit.blackbox.options import BlackBoxOptions
from bdaudit.blackbox.scale import ScoreKind, ScoreScale, detect_scale
from bdaudit.blackbox.served import ServedBlackBox
from bdaudit.blackbox.torch_model import TorchBlackBox
from bdaudit.blackbox.transport import TransportSettings

__all__ = [
    "AnswerJournal",
    "BatchAnswers",
    "BlackBox",
    "BlackBoxOptions",
    "Feedback",
    "FunctionBlackBox",
    "Identity",
    "Meter",
    "OnnxBlackBox",
    "OnnxLayers",
    "OpenVinoBlackBox",
    "ScoreKind",
    "ScoreScale",
    "ServedBlackBox",
    "TorchBlackBox",
    "TransportSettings",
    "ask_in_batches",
    "check_batch_dependence",
    "check_repeatability",
    "describe_scale",
    "detect_scale",
    "diagnose_batch",
    "diagnose_grid",
    "fold_batch_norms",
    "open_black_box",
    "read_onnx_layers",
    "top_labels",
    "weights_beside",
]
