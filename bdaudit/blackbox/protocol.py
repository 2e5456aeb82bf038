"""The Open Inference Protocol v2 over REST, as bytes: what is sent and what comes back.

Specification: https://github.com/kserve/open-inference-protocol. Triton, KServe, MLServer and
OpenVINO Model Server speak it. Tensors travel as JSON numbers, or, with the binary tensor data
extension, as raw little-endian bytes behind a JSON head whose length is in the header
`Inference-Header-Content-Length`.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bdaudit.blackbox.layout import TensorSpec
from bdaudit.errors import ConfigError, ModelError
from bdaudit.fetching.urls import check_http
from bdaudit.foundation.opening import shown as shortened

__all__ = [
    "BINARY_EXTENSION",
    "Endpoint",
    "MalformedAnswerError",
    "ModelMetadata",
    "decode_answer",
    "decode_outputs",
    "encode_request",
    "parse_endpoint",
    "parse_json",
    "parse_metadata",
]

BINARY_EXTENSION = "binary_tensor_data"
_LONGEST = 8192
_MOST_DIMENSIONS = 16
_HEAD_LENGTH = "Inference-Header-Content-Length"

_NUMPY_OF = {
    "BOOL": "bool",
    "UINT8": "uint8",
    "UINT16": "uint16",
    "UINT32": "uint32",
    "UINT64": "uint64",
    "INT8": "int8",
    "INT16": "int16",
    "INT32": "int32",
    "INT64": "int64",
    "FP16": "float16",
    "FP32": "float32",
    "FP64": "float64",
}
_PROTOCOL_OF = {numpy_name: name for name, numpy_name in _NUMPY_OF.items()}

_ENDPOINT = re.compile(
    r"(?P<server>https?://[^/?#@\s]+(?:/[^?#@\s]*?)?)/v2/models/(?P<model>[^/?#@\s]+)"
    r"(?:/versions/(?P<version>[^/?#@\s]+))?/?"
)


class MalformedAnswerError(ValueError):
    """What came was cut short, or is not what the protocol says."""


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """Where a served model is.

    Attributes:
        server: What stands before `/v2`.
        model: Its name.
        version: Its version, `None` for the server's choice.
    """

    server: str
    model: str
    version: str | None = None

    @property
    def server_url(self) -> str:
        """Where the server describes itself."""
        return f"{self.server}/v2"

    @property
    def model_url(self) -> str:
        """Where the model describes itself; `/infer` is asked below it."""
        version = "" if self.version is None else f"/versions/{self.version}"
        return f"{self.server_url}/models/{self.model}{version}"


def parse_endpoint(url: str) -> Endpoint:
    """Read `http(s)://host:port/v2/models/NAME[/versions/V]`.

    Raises:
        ConfigError: It is something else, or carries a user name, password or query, which would
            end up in records.
    """
    match = _ENDPOINT.fullmatch(url)
    if match is None:
        shown = re.sub(r"//[^/]*@", "//...@", url.split("?")[0])
        raise ConfigError(
            "endpoint: expected http(s)://host:port/v2/models/NAME or .../NAME/versions/V without "
            f"user, password or query, got {shortened(shown)!r}; give a token by --token-env"
        )
    if len(url) > _LONGEST:
        raise ConfigError(f"endpoint: expected at most {_LONGEST} characters, got {len(url)}")
    try:
        url.encode("utf-8")
        check_http(url)
    except ValueError as error:
        raise ConfigError(f"endpoint: {shortened(url)!a} is no address: {error}") from error
    return Endpoint(server=match["server"], model=match["model"], version=match["version"])


@dataclass(frozen=True, kw_only=True)
class ModelMetadata:
    """What a server says about a model; any of it may be missing."""

    name: str
    versions: tuple[str, ...]
    platform: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


def parse_json(body: bytes) -> Any:
    """Read JSON that somebody else wrote.

    Raises:
        MalformedAnswerError: It is cut short, is not JSON, or is nested beyond reason.
    """
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise MalformedAnswerError(f"no JSON: {error}") from error


def parse_metadata(payload: Any) -> ModelMetadata:
    """Read the answer to GET `/v2/models/NAME`.

    Raises:
        MalformedAnswerError: It is not a description of a model.
    """
    if not isinstance(payload, dict) or not isinstance(payload.get("name"), str):
        raise MalformedAnswerError("expected a JSON object with the model's name")
    try:
        return ModelMetadata(
            name=payload["name"],
            versions=tuple(str(version) for version in payload.get("versions") or ()),
            platform=str(payload.get("platform") or ""),
            inputs=_specs(payload.get("inputs")),
            outputs=_specs(payload.get("outputs")),
        )
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise MalformedAnswerError(f"inputs or outputs cannot be read: {error!r}") from error


def _specs(entries: Any) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(
            name=str(entry["name"]),
            dtype=_NUMPY_OF.get(entry["datatype"], str(entry["datatype"])),
            shape=tuple(None if int(side) < 0 else int(side) for side in entry["shape"]),
        )
        for entry in entries or ()
    )


def encode_request(
    tensor: NDArray[Any], *, input_name: str, output_name: str | None, binary: bool
) -> tuple[bytes, dict[str, str]]:
    """Write an inference request.

    Args:
        tensor: The one input, contiguous.
        input_name: Its name.
        output_name: The one output wanted; `None` leaves the choice to the server.
        binary: Whether to use the binary tensor data extension.

    Returns:
        Body and headers.

    Raises:
        ModelError: A float16 tensor, which JSON cannot carry in this protocol.
    """
    described: dict[str, Any] = {
        "name": input_name,
        "shape": list(tensor.shape),
        "datatype": _PROTOCOL_OF[tensor.dtype.name],
    }
    request: dict[str, Any] = {"inputs": [described]}
    if output_name is not None:
        request["outputs"] = [{"name": output_name}]
    if not binary:
        if tensor.dtype == np.float16:
            raise ModelError("FP16 inputs need the binary tensor extension; pass binary=True")
        described["data"] = tensor.ravel().tolist()
        return _json_bytes(request), {"Content-Type": "application/json"}
    raw = _little_endian(tensor).tobytes()
    described["parameters"] = {"binary_data_size": len(raw)}
    if output_name is None:
        request["parameters"] = {"binary_data_output": True}
    else:
        request["outputs"][0]["parameters"] = {"binary_data": True}
    head = _json_bytes(request)
    return head + raw, {"Content-Type": "application/octet-stream", _HEAD_LENGTH: str(len(head))}


def _json_bytes(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()


def _little_endian(array: NDArray[Any]) -> NDArray[Any]:
    return array.byteswap() if sys.byteorder == "big" else array


def decode_answer(
    body: bytes, headers: Mapping[str, str], *, output_name: str | None
) -> NDArray[Any]:
    """Read an inference answer, in JSON or binary, whichever came.

    Args:
        body: The whole body.
        headers: The response's headers, looked up without regard to case by the caller's mapping.
        output_name: The output wanted; `None` takes the only one.

    Returns:
        The output in the shape it claims.

    Raises:
        MalformedAnswerError: The body is cut short or no JSON.
        ModelError: It is no answer of this protocol, lacks the output, or the output's data do not
            fill its shape.
    """
    arrays = decode_outputs(body, headers)
    if output_name is None and len(arrays) == 1:
        return next(iter(arrays.values()))
    if output_name not in arrays:
        raise ModelError(
            f"expected the output {output_name or 'alone'!r}, got {sorted(arrays)}; name one with "
            "output_name"
        )
    return arrays[output_name]


def decode_outputs(body: bytes, headers: Mapping[str, str]) -> dict[str, NDArray[Any]]:
    """Read all outputs of an inference answer by name, each in the shape it claims.

    Raises:
        MalformedAnswerError: The body is cut short or no JSON.
        ModelError: It is no answer of this protocol, or an output's data do not fill its shape.
    """
    head_length = headers.get(_HEAD_LENGTH)
    head, tail = body, b""
    if head_length is not None:
        if not re.fullmatch("[0-9]{1,15}", head_length) or int(head_length) > len(body):
            raise MalformedAnswerError(
                f"{_HEAD_LENGTH} {shortened(head_length)!r} of {len(body)} bytes"
            )
        head, tail = body[: int(head_length)], body[int(head_length) :]
    answer = parse_json(head)
    if not isinstance(answer, dict) or not isinstance(answer.get("outputs"), list):
        raise ModelError(f"expected a JSON object with outputs, got {str(answer)[:100]}")
    arrays: dict[str, NDArray[Any]] = {}
    for output in answer["outputs"]:
        try:
            # Numbers too large for their type become infinite, and are refused as such.
            with np.errstate(over="ignore", invalid="ignore"):
                name, array, tail = _read_output(output, tail)
        except MalformedAnswerError:
            raise
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
            raise ModelError(f"an output cannot be read: {error}") from error
        arrays[name] = array
    return arrays


def _read_output(output: Any, tail: bytes) -> tuple[str, NDArray[Any], bytes]:
    """Return name and values of one output, and what is left of the binary tail."""
    name, shape = str(output["name"]), tuple(int(side) for side in output["shape"])
    if len(shape) > _MOST_DIMENSIONS:
        raise ValueError(f"{name} has {len(shape)} dimensions")
    dtype = _NUMPY_OF.get(output["datatype"])
    if dtype is None:
        raise ValueError(f"{name} has the type {output['datatype']!r}, which holds no numbers")
    n_bytes = (output.get("parameters") or {}).get("binary_data_size")
    if n_bytes is None:
        # Data may be flat or nested, as the specification allows.
        flat = np.asarray(output["data"], dtype=dtype).ravel()
    else:
        raw, tail = tail[: int(n_bytes)], tail[int(n_bytes) :]
        if len(raw) != int(n_bytes):
            raise MalformedAnswerError(f"{name}: {len(raw)} of {n_bytes} bytes arrived")
        flat = _little_endian(np.frombuffer(raw, dtype=dtype))
    if min(shape, default=1) < 0 or flat.size != math.prod(shape):
        raise ValueError(f"{name} claims the shape {shape} and has {flat.size} values")
    return name, flat.reshape(shape), tail
