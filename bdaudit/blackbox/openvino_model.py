"""An OpenVINO IR as a black box, run by OpenVINO's own runtime on the processor.

An IR is two files of one name: the graph in XML, and the weights in `.bin`. Both are read here,
within limits, and handed to the runtime as bytes: it opens no file itself, and loads no extension.
"""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bdaudit.blackbox.base import Feedback, Identity
from bdaudit.blackbox.file_model import FileBlackBox, time_limit
from bdaudit.blackbox.layout import TensorSpec
from bdaudit.blackbox.options import BlackBoxOptions
from bdaudit.errors import ModelError
from bdaudit.foundation.opening import LIST_BYTES, MODEL_BYTES, is_file, read_bytes
from bdaudit.models import ModelSettings

__all__ = ["OpenVinoBlackBox", "weights_beside"]

_NUMPY_NAMES = {
    "f16": "float16", "f32": "float32", "f64": "float64", "u8": "uint8",
    **{f"{kind}{bits}": f"{name}{bits}" for kind, name in (("i", "int"), ("u", "uint"))
       for bits in (8, 16, 32, 64)},
}  # fmt: skip
# What leaves a probability a probability, on the way from a sigmoid to the end of a graph.
_KEEPING = frozenset({"Reshape", "Squeeze", "Unsqueeze", "Convert", "Clamp"})
_MOST_STEPS = 1000


class OpenVinoBlackBox(FileBlackBox):
    """A classifier in OpenVINO's intermediate representation.

    Args:
        path: The `.xml` file; the weights lie beside it as `.bin`.
        name: How records refer to the model.
        feedback: What `ask` gives back.
        options: What is known about it; what they leave open is read from the file. A file with a
            fixed batch keeps its own batch size.
        fallback: Image shape and class count where neither options nor file say.
        device: Of the audit; the model runs on the processor, in float32, and a note says so
            where that is another.

    Attributes:
        layout: How images fill its input.

    Raises:
        ModelError: openvino is missing, or the file cannot be read or run, has several inputs, no
            image input or no scores.
        ConfigError: An argument is out of range.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        name: str,
        feedback: Feedback = "scores",
        options: BlackBoxOptions | None = None,
        fallback: ModelSettings | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        options, fallback = options or BlackBoxOptions(), fallback or ModelSettings()
        self.path = Path(path)
        self.notes: list[str] = []
        subject = f"{name} ({self.path})"
        openvino = _import_openvino(subject)
        weights = weights_beside(self.path)
        if not is_file(weights):
            raise ModelError(
                f"{subject}: expected its weights beside it as {weights.name}, got none; copy both "
                "files of the model"
            )
        self.files = (self.path, weights)
        model, self._sha256 = _read(openvino, self.path, weights, subject)
        if torch.device(device).type != "cpu":
            self.notes.append("OpenVINO runs it on the processor")
        self._request = _compile(openvino, model, subject)
        self._tensor = openvino.Tensor
        if len(model.inputs) != 1:
            raise ModelError(
                f"{subject}: expected one input that takes images, got {len(model.inputs)}: "
                f"{'; '.join(str(_spec_of(port, k)) for k, port in enumerate(model.inputs))}"
            )
        self._outputs = model.outputs
        super().__init__(
            _spec_of(model.inputs[0], 0),
            [_spec_of(port, k) for k, port in enumerate(model.outputs)],
            name=name,
            feedback=feedback,
            options=options,
            fallback=fallback,
        )

    def identity(self) -> Identity:
        """Digest both files."""
        return Identity(
            kind="openvino", source=str(self.path), sha256=self._sha256, details=self._details()
        )

    def _last_operator(self) -> str | None:
        return _last_operator(self._outputs[self._place].get_node())

    def _call(self, images: Tensor) -> Any:
        tensor = np.ascontiguousarray(self.layout.encode(images))
        seconds = time_limit(len(tensor))
        try:
            self._request.set_input_tensor(self._tensor(tensor))
            self._request.start_async()
            if self._request.wait_for(int(seconds * 1000)):
                # The runtime writes the next answer into the same memory.
                return np.array(self._request.get_output_tensor(self._place).data)
            self._request.cancel()
        except Exception as error:
            raise ModelError(
                f"{self.path}: cannot take {tensor.dtype} images of shape {tensor.shape}: "
                f"{_gist(error)}"
            ) from error
        raise ModelError(f"{self.path}: took longer than {seconds:g} s for {len(tensor)} images")


def weights_beside(path: Path) -> Path:
    """Return where the weights of an IR lie."""
    return path.with_suffix(".bin")


def _read(openvino: ModuleType, path: Path, weights: Path, subject: str) -> tuple[Any, str]:
    graph = read_bytes(path, limit=LIST_BYTES, what="an OpenVINO IR", error=ModelError)
    if b"<net" not in graph[:4096] or b"<!" in graph.replace(b"<!--", b""):
        raise ModelError(f"{subject}: expected an OpenVINO IR, <net ...> in XML without a DOCTYPE")
    content = read_bytes(
        weights, limit=MODEL_BYTES, what="a model's weights", error=ModelError, within=path.parent
    )
    try:
        model = openvino.Core().read_model(io.BytesIO(graph), io.BytesIO(content))
    except Exception as error:
        raise ModelError(f"{subject}: OpenVINO cannot open it: {_gist(error)}") from error
    digests = (hashlib.sha256(part).hexdigest() for part in (graph, content))
    return model, hashlib.sha256("\n".join(digests).encode()).hexdigest()


def _compile(openvino: ModuleType, model: Any, subject: str) -> Any:
    # A processor may else compute in bfloat16, and use as many threads as it likes.
    settings = {
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }
    try:
        return openvino.Core().compile_model(model, "CPU", settings).create_infer_request()
    except Exception as error:
        raise ModelError(f"{subject}: OpenVINO cannot run it: {_gist(error)}") from error


def _spec_of(port: Any, number: int) -> TensorSpec:
    kind = port.element_type.get_type_name()
    shape = port.partial_shape
    sides = () if shape.rank.is_dynamic else tuple(
        None if side.is_dynamic else side.get_length() for side in shape
    )  # fmt: skip
    name = port.get_any_name() if port.names else f"{port.get_node().get_friendly_name()}:{number}"
    return TensorSpec(name=name, dtype=_NUMPY_NAMES.get(kind, kind), shape=sides)


def _last_operator(result: Any) -> str | None:
    """Return the operator that computes an output, those left out that keep its values."""
    node = result
    for _ in range(_MOST_STEPS):
        if node.get_input_size() == 0:
            return None
        node = node.input_value(0).get_node()
        kind = str(node.get_type_name())
        if kind not in _KEEPING:
            return kind
    return None


def _import_openvino(subject: str) -> ModuleType:
    try:
        import openvino
    except ImportError as error:
        raise ModelError(f"{subject}: needs openvino; pip install 'bdaudit[openvino]'") from error
    return openvino  # type: ignore[no-any-return]


def _gist(error: Exception) -> str:
    """Return the last line of what the runtime says, which names the cause."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[-1][:300]
