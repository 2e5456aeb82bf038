"""The protocol's bytes: read back by the reader they were not written with, and mangled."""

from __future__ import annotations

import contextlib
import json
import struct

import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from tritonclient import http as triton
from tritonclient.utils import np_to_triton_dtype

from bdaudit.blackbox.protocol import (
    MalformedAnswerError,
    decode_answer,
    encode_request,
    parse_endpoint,
    parse_metadata,
)
from bdaudit.errors import ModelError

HEAD = "Inference-Header-Content-Length"


@given(npst.arrays(np.float32, npst.array_shapes(), elements=st.floats(-9, 9, width=32)))
def test_requests_say_what_they_carry(tensor: np.ndarray) -> None:
    body, _ = encode_request(tensor, input_name="x", output_name="y", binary=False)
    plain = json.loads(body)["inputs"][0]
    assert (plain["name"], plain["datatype"], tuple(plain["shape"])) == ("x", "FP32", tensor.shape)
    assert np.array_equal(np.float32(plain["data"]), tensor.ravel())
    body, headers = encode_request(tensor, input_name="x", output_name="y", binary=True)
    length = int(headers[HEAD])
    head = json.loads(body[:length])
    assert head["outputs"] == [{"name": "y", "parameters": {"binary_data": True}}]
    assert head["inputs"][0]["parameters"]["binary_data_size"] == len(body) - length
    assert struct.unpack(f"<{tensor.size}f", body[length:]) == tuple(tensor.ravel().tolist())


@pytest.mark.parametrize(
    "data", [[1, 2, 3, 4, 5, 6], [[1, 2, 3], [4, 5, 6]]], ids=["flat", "nested"]
)
def test_json_data_may_be_flat_or_nested(data: list[object]) -> None:
    outputs = [
        {"name": "other", "datatype": "INT64", "shape": [1], "data": [9]},
        {"name": "y", "datatype": "FP32", "shape": [2, 3], "data": data},
    ]
    body = json.dumps({"outputs": outputs}).encode()
    assert decode_answer(body, {}, output_name="y").tolist() == [[1, 2, 3], [4, 5, 6]]
    with pytest.raises(ModelError, match=r"got .'other', 'y'."):
        decode_answer(body, {}, output_name=None)


def binary_answer() -> tuple[bytes, httpx.Headers]:
    """One plain output between two binary ones, as the extension allows."""
    first = struct.pack("<2q", 7, 8)
    last = struct.pack("<4f", 0.5, 1.5, 2.5, 3.5)
    outputs = [
        {"name": "a", "datatype": "INT64", "shape": [2], "parameters": {"binary_data_size": 16}},
        {"name": "b", "datatype": "FP32", "shape": [1], "data": [1.0]},
        {"name": "c", "datatype": "FP32", "shape": [2, 2], "parameters": {"binary_data_size": 16}},
    ]
    head = json.dumps({"outputs": outputs}).encode()
    return head + first + last, httpx.Headers({HEAD.lower(): str(len(head))})


def test_binary_outputs_are_cut_in_order() -> None:
    body, headers = binary_answer()
    assert decode_answer(body, headers, output_name="a").tolist() == [7, 8]
    assert decode_answer(body, headers, output_name="c").tolist() == [[0.5, 1.5], [2.5, 3.5]]


@given(st.integers(0, 400))
def test_an_answer_cut_anywhere_is_known_to_be_cut(length: int) -> None:
    body, headers = binary_answer()
    if length < len(body):
        with pytest.raises(MalformedAnswerError):
            decode_answer(body[:length], headers, output_name="c")


@given(st.binary(max_size=200), st.none() | st.text(max_size=4))
def test_junk_raises_nothing_unforeseen(body: bytes, length: str | None) -> None:
    headers = {} if length is None else {HEAD: length}
    with contextlib.suppress(MalformedAnswerError, ModelError):
        decode_answer(body, headers, output_name="y")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["name", "shape", "datatype", "data", "outputs", "inputs", "parameters"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(JSON, st.lists(JSON, max_size=2))
def test_json_of_any_shape_raises_nothing_unforeseen(value: object, outputs: object) -> None:
    for payload in (value, {"outputs": outputs}, {"name": "m", "inputs": outputs}):
        body = json.dumps(payload).encode()
        with contextlib.suppress(MalformedAnswerError, ModelError):
            decode_answer(body, {}, output_name="y")
        with contextlib.suppress(MalformedAnswerError):
            parse_metadata(payload)


@given(
    npst.arrays(
        st.sampled_from([np.float32, np.float16, np.uint8]),
        st.tuples(st.integers(1, 3), st.just(2), st.just(2)),
        elements=st.integers(0, 9),
    )
)
def test_tritons_own_client_writes_the_same_request(tensor: np.ndarray) -> None:
    given_input = triton.InferInput("x", list(tensor.shape), np_to_triton_dtype(tensor.dtype))
    given_input.set_data_from_numpy(tensor, binary_data=True)
    wanted = triton.InferRequestedOutput("y", binary_data=True)
    theirs, length = triton.InferenceServerClient.generate_request_body(
        [given_input], outputs=[wanted]
    )
    ours, headers = encode_request(tensor, input_name="x", output_name="y", binary=True)
    our_length = int(headers[HEAD])
    assert json.loads(ours[:our_length]) == json.loads(theirs[:length])
    assert ours[our_length:] == theirs[length:]


def test_tritons_own_client_reads_the_same_answer() -> None:
    body, headers = binary_answer()
    theirs = triton.InferenceServerClient.parse_response_body(
        body, header_length=int(headers[HEAD])
    )
    for name in ("a", "c"):
        ours = decode_answer(body, headers, output_name=name)
        assert np.array_equal(ours, theirs.as_numpy(name))


def test_addresses() -> None:
    plain = parse_endpoint("http://localhost:8000/v2/models/twin")
    assert (plain.server, plain.model, plain.version) == ("http://localhost:8000", "twin", None)
    deep = parse_endpoint("https://host/team/a/v2/models/twin/versions/3/")
    assert deep.server_url == "https://host/team/a/v2"
    assert deep.model_url == "https://host/team/a/v2/models/twin/versions/3"
