"""An ONNX file as a black box, run by onnxruntime."""

from __future__ import annotations

import hashlib
import math
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import torch
from numpy.typing import NDArray
from torch import Tensor

from bdaudit.blackbox.base import Feedback, Identity
from bdaudit.blackbox.file_model import FileBlackBox, time_limit
from bdaudit.blackbox.layout import TensorSpec
from bdaudit.blackbox.options import BlackBoxOptions
from bdaudit.errors import ModelError
from bdaudit.foundation.file_digests import digest_file
from bdaudit.foundation.opening import MODEL_BYTES, check_file, is_file, open_file, path_inside
from bdaudit.models import ModelSettings
from bdaudit.models.foreign import describe_foreign

__all__ = [
    "OnnxBlackBox",
    "digest_together",
    "import_onnx",
    "only_input",
    "open_session",
    "run_within",
    "side_files",
    "spec_of",
]

_NUMPY_NAMES = {"float": "float32", "double": "float64"}
# Types of which several numbers share a byte.
_PACKED_BITS = {"UINT4": 4, "INT4": 4, "FLOAT4E2M1": 4, "UINT2": 2, "INT2": 2}
_HEAD_BYTES = 1024
_MOST_BYTES = 2 << 30  # of a protobuf message; larger weights lie beside it

# What leaves a probability a probability, on the way from a sigmoid to the end of a graph.
_KEEPING = frozenset(
    {"Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Cast", "Clip", "Dropout"}
)

_FATAL_ONLY = 4  # onnxruntime's log level: what is wrong comes as an exception anyway


class OnnxBlackBox(FileBlackBox):
    """A classifier in an ONNX file.

    The file runs as it is: no custom operator library is loaded, and weights beside it are read
    only from its own folder, wherever its entries point.

    Args:
        path: The `.onnx` file.
        name: How records refer to the model.
        feedback: What `ask` gives back.
        options: What is known about it; what they leave open is read from the file. A file with a
            fixed batch keeps its own batch size.
        fallback: Image shape and class count where neither options nor file say.
        device: Where to run. On "cuda" without onnxruntime's CUDA provider it runs on the CPU and
            says so in `notes`.

    Attributes:
        layout: How images fill its input.

    Raises:
        ModelError: onnxruntime is missing, or the file cannot be read or run, has unknown
            operators, several inputs, no image input or no scores, or side files elsewhere.
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
        runtime, onnx = import_onnx(subject)
        self.files = (self.path, *side_files(self.path, onnx, subject))
        self._sha256 = digest_together(self.files)
        self._device = torch.device(device)
        self._session = self._open_session(runtime, str(self.path), subject)
        taken = only_input(self._session, subject)
        self._input_name = taken.name
        super().__init__(
            taken,
            [spec_of(output) for output in self._session.get_outputs()],
            name=name,
            feedback=feedback,
            options=options,
            fallback=fallback,
        )

    def identity(self) -> Identity:
        """Digest the file together with its side files."""
        return Identity(
            kind="onnx", source=str(self.path), sha256=self._sha256, details=self._details()
        )

    def load_graph(self) -> Any:
        """Return the file as an `onnx.ModelProto`, weights included and functions written out.

        Raises:
            ModelError: It cannot be read.
        """
        subject = f"{self.name} ({self.path})"
        _, onnx = import_onnx(subject)
        side_files(self.path, onnx, subject)  # refuses weights outside its own folder
        try:
            return onnx.inliner.inline_local_functions(onnx.load(str(self.path)))
        except Exception as error:
            raise ModelError(f"{subject}: cannot be read: {_first_line(error)}") from error

    def open_with_outputs(self, model: Any, names: Sequence[str]) -> Any:
        """Open a session of `load_graph`'s model whose outputs are also the tensors named.

        Raises:
            ModelError: It has none, is above the 2 GiB of a protobuf message, or cannot be run.
        """
        subject = f"{self.name} ({self.path})"
        runtime, onnx = import_onnx(subject)
        if not names:
            raise ModelError(f"{subject}: has no convolution whose maps could be read")
        present = {output.name for output in model.graph.output}
        model.graph.output.extend(
            onnx.ValueInfoProto(name=name) for name in names if name not in present
        )
        try:
            content = model.SerializeToString()
        except Exception as error:
            raise ModelError(f"{subject}: cannot be rewritten: {_first_line(error)}") from error
        return self._open_session(runtime, content, subject)

    def run_session(self, session: Any, names: Sequence[str], images: Tensor) -> list[NDArray[Any]]:
        """Run one batch of images (n, C, H, W) in [0, 1], n of at most `batch_size`.

        Returns:
            The outputs of these names, n rows each, or a fixed batch's number of rows, of which
            the first n count.

        Raises:
            ModelError: The network fails on them.
        """
        return run_within(
            session, names, self._input_name, self.layout.encode(images), path=self.path
        )

    def _call(self, images: Tensor) -> Any:
        (answer,) = self.run_session(self._session, [self.output_name], images)
        return answer

    def _open_session(self, runtime: ModuleType, model: str | bytes, subject: str) -> Any:
        """Open a session of the file at a path, or of a file's bytes."""
        return open_session(runtime, model, subject, device=self._device, notes=self.notes)

    def _last_operator(self) -> str | None:
        subject = f"{self.name} ({self.path})"
        _, onnx = import_onnx(subject)
        try:
            model = onnx.load(str(self.path), load_external_data=False)
            graph = onnx.inliner.inline_local_functions(model).graph
        except Exception as error:
            raise ModelError(f"{subject}: cannot be read: {_first_line(error)}") from error
        return _last_operator(graph, self.output_name)


def open_session(
    runtime: ModuleType,
    model: str | bytes,
    subject: str,
    *,
    device: torch.device,
    notes: list[str],
) -> Any:
    """Open an onnxruntime session of the file at a path, or of a file's bytes.

    Args:
        runtime: onnxruntime.
        model: The path, or the bytes.
        subject: The model, for messages.
        device: Where to run.
        notes: Is told where there is no CUDA provider, so that it runs on the CPU.

    Raises:
        ModelError: It cannot be opened.
    """
    options = runtime.SessionOptions()
    options.log_severity_level = _FATAL_ONLY
    options.intra_op_num_threads = torch.get_num_threads()
    providers: list[Any] = ["CPUExecutionProvider"]
    if device.type == "cuda":
        if "CUDAExecutionProvider" in runtime.get_available_providers():
            providers.insert(0, ("CUDAExecutionProvider", {"device_id": device.index or 0}))
        else:
            note = "this onnxruntime has no CUDA provider: runs on the CPU"
            notes += [] if note in notes else [note]
    try:
        return runtime.InferenceSession(model, options, providers=providers)
    except Exception as error:
        raise ModelError(
            f"{subject}: onnxruntime {runtime.__version__} cannot open it: {_first_line(error)}"
        ) from error


def run_within(
    session: Any, names: Sequence[str], input_name: str, tensor: NDArray[Any], *, path: Path
) -> list[NDArray[Any]]:
    """Run one batch, and stop it when it takes too long.

    Args:
        session: As `open_session` returns it.
        names: Outputs wanted.
        input_name: The one input.
        tensor: What it is given, images first.
        path: The file, for messages.

    Raises:
        ModelError: The network fails on it, or takes longer than `time_limit`.
    """
    runtime, _ = import_onnx(path.name)
    options = runtime.RunOptions()
    seconds = time_limit(len(tensor))
    # This is looked at between the steps of a loop.
    watch = threading.Timer(seconds, setattr, (options, "terminate", True))
    watch.daemon = True
    watch.start()
    try:
        return cast(list[NDArray[Any]], session.run(list(names), {input_name: tensor}, options))
    except Exception as error:
        if options.terminate:
            raise ModelError(
                f"{path}: took longer than {seconds:g} s for {len(tensor)} images"
            ) from error
        raise ModelError(
            f"{path}: cannot take {tensor.dtype} images of shape {tensor.shape}: "
            f"{_first_line(error)}"
        ) from error
    finally:
        watch.cancel()


def _last_operator(graph: Any, output: str) -> str | None:
    """Return the operator that computes an output, those left out that keep its values."""
    makers = {name: node for node in graph.node for name in node.output}
    # No more steps than there are nodes, should a graph go round in a ring.
    for _ in graph.node:
        node = makers.get(output)
        if node is None or node.domain not in ("", "ai.onnx") or not node.input:
            return None
        if node.op_type not in _KEEPING:
            return str(node.op_type)
        output = node.input[0]
    return None


def import_onnx(subject: str) -> tuple[ModuleType, ModuleType]:
    """Import onnxruntime and onnx, or say how to install them."""
    try:
        import onnx.inliner
        import onnxruntime
    except ImportError as error:
        raise ModelError(
            f"{subject}: needs onnx and onnxruntime; pip install 'bdaudit[onnx]'"
        ) from error
    return onnxruntime, onnx


def side_files(path: Path, onnx: ModuleType, subject: str) -> list[Path]:
    """Return the files that hold weights of the model at `path`, in order of name.

    Raises:
        ModelError: The file is no ONNX model, or one of its entries leaves its folder.
    """
    with open_file(path, limit=_MOST_BYTES, what="an ONNX model", error=ModelError) as stream:
        # Before gigabytes of something else are read.
        foreign = describe_foreign(stream.read(_HEAD_BYTES))
        if foreign is not None:
            raise ModelError(f"{subject}: expected an ONNX model, {foreign}")
        stream.seek(0)
        content = stream.read()
    try:
        model = onnx.load_model_from_string(content)
    except Exception as error:
        raise ModelError(f"{subject}: expected an ONNX model: {_first_line(error)}") from error
    found: dict[Path, int] = {}
    for tensor in _external_tensors(model):
        entries = [(entry.key, entry.value) for entry in tensor.external_data]
        external = dict(entries)
        location = external.get("location", "")
        if len(external) != len(entries):
            raise ModelError(f"{subject}: says twice where its weights are; do not trust this file")
        # An absolute or climbing path could make a digest, and a crash report, of any file.
        try:
            side = path_inside(path.parent, location, what="the weights", error=ModelError)
        except ModelError as error:
            raise ModelError(
                f"{subject}: expected its weights in its own folder, got {location[:200]!r}; do "
                "not trust this file"
            ) from error
        if side not in found:
            if not is_file(side):
                raise ModelError(f"{subject}: lacks {location}, which holds its weights")
            found[side] = check_file(
                side,
                limit=MODEL_BYTES,
                what="the model's weights",
                error=ModelError,
                within=path.parent,
            )
        _check_range(tensor, external, found[side], subject, onnx)
    return sorted(found)


def _check_range(
    tensor: Any, external: dict[str, str], size: int, subject: str, onnx: ModuleType
) -> None:
    """Refuse a tensor whose bytes are not all inside its file, or are more or fewer than it needs.

    Readers differ in what they make of such a tensor: some fill up with zeros, some go on reading.
    """
    numbers = {key: external.get(key, "") for key in ("offset", "length")}
    if any(text and not (text.isdecimal() and len(text) < 19) for text in numbers.values()):
        raise ModelError(
            f"{subject}: expected whole numbers for where {tensor.name[:80]!r} is, got {numbers}"
        )
    offset = int(numbers["offset"] or 0)
    length = int(numbers["length"] or size - offset)
    try:
        bits = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize * 8
    except (KeyError, TypeError) as error:
        raise ModelError(f"{subject}: {tensor.name[:80]!r} is of an unknown type") from error
    bits = _PACKED_BITS.get(onnx.TensorProto.DataType.Name(tensor.data_type), bits)
    needed = -(-math.prod(tensor.dims) * bits // 8)
    if offset + length > size or length != needed:
        raise ModelError(
            f"{subject}: expected the {needed} bytes of {tensor.name[:80]!r} inside the "
            f"{size} bytes of {external['location'][:80]!r}, got {length} from {offset}; copy the "
            "files again, or export the model again"
        )


def _external_tensors(message: Any) -> Iterator[Any]:
    """Yield every external tensor anywhere in a protobuf message.

    Walks all fields rather than known ones: initialisers, attributes, subgraphs, functions and
    training graphs can all hold tensors.
    """
    if message.DESCRIPTOR.full_name == "onnx.TensorProto":
        if message.data_location == message.EXTERNAL:
            yield message
        return
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        for part in (value,) if hasattr(value, "DESCRIPTOR") else value:
            if hasattr(part, "DESCRIPTOR"):
                yield from _external_tensors(part)


def digest_together(files: Sequence[Path]) -> str:
    """Return the file's own sha256, or one over names and digests when it has side files."""
    if len(files) == 1:
        return digest_file(files[0])
    # The model's own name is left out: renaming it changes nothing, renaming a side file does.
    lines = [digest_file(files[0]), *(f"{f.name} {digest_file(f)}" for f in files[1:])]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def only_input(session: Any, subject: str) -> TensorSpec:
    """Return the one input that takes images."""
    specs = [spec_of(node) for node in session.get_inputs()]
    if len(specs) != 1:
        raise ModelError(
            f"{subject}: expected one input that takes images, got {len(specs)}: "
            f"{'; '.join(map(str, specs))}"
        )
    return specs[0]


def spec_of(node: Any) -> TensorSpec:
    """Describe an input or output of a session."""
    inner = node.type.removeprefix("tensor(").removesuffix(")")
    # A free dimension is a name or None.
    sides = tuple(side if isinstance(side, int) and side > 0 else None for side in node.shape)
    return TensorSpec(name=node.name, dtype=_NUMPY_NAMES.get(inner, inner), shape=sides)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
