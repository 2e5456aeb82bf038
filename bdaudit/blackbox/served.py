"""A served model as a black box, over the Open Inference Protocol v2 REST."""

from __future__ import annotations

import hashlib
import threading
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from typing import Any, TypeAlias

import torch
from numpy.typing import NDArray
from torch import Tensor

from bdaudit.blackbox.base import BlackBox, Feedback, Identity, join_answers
from bdaudit.blackbox.layout import TensorSpec, choose_output, place_images, read_rows
from bdaudit.blackbox.options import BlackBoxOptions
from bdaudit.blackbox.protocol import (
    BINARY_EXTENSION,
    MalformedAnswerError,
    ModelMetadata,
    decode_answer,
    encode_request,
    parse_endpoint,
    parse_json,
    parse_metadata,
)
from bdaudit.blackbox.transport import Answer, LostAnswerError, Transport
from bdaudit.errors import ModelError, RemoteError
from bdaudit.models import ONE_SCORE, ModelSettings

__all__ = ["ServedBlackBox"]

Key: TypeAlias = tuple[str, int]

_BATCH_SIZE = 32
_UNDESCRIBED_INPUT = TensorSpec(name="input-0", dtype="float32", shape=(None, None, None, None))


class ServedBlackBox(BlackBox):
    """A model behind `http(s)://host:port/v2/models/NAME[/versions/V]`.

    Images go out `batch_size` a request, several requests at once where the transport allows, and
    answers come back in the order of the images. When a request fails for good, the answers of the
    others are kept, and asking about the same images again pays only for the rest.

    An image counts when its request was answered, once, however often the request had to be sent.

    Args:
        url: The model's address.
        name: How records refer to the model.
        feedback: What `ask` gives back.
        options: What is known about it; what they leave open is read from the server's metadata. A
            model with a fixed batch keeps its own batch size.
        fallback: Image shape and class count where neither options nor metadata say.

    Attributes:
        layout: How images fill the model's input.

    Raises:
        ConfigError: The address or an argument is wrong.
        RemoteError: The server cannot be reached, refuses the token, or speaks something else.
        ModelError: The server has no such model, or it does not take images or give scores.
    """

    def __init__(
        self,
        url: str,
        *,
        name: str,
        feedback: Feedback = "scores",
        options: BlackBoxOptions | None = None,
        fallback: ModelSettings | None = None,
    ) -> None:
        options, fallback = options or BlackBoxOptions(), fallback or ModelSettings()
        self.endpoint = parse_endpoint(url)
        self.notes: list[str] = []
        self._transport = Transport(options.transport)
        self._kept: dict[Key, NDArray[Any]] = {}
        self._lock = threading.Lock()
        try:
            self._metadata = self._get_metadata()
            spec = self._input_spec(options.input_name)
            output = self._output_spec(options.output_name, feedback)
            self._input_name = spec.name
            self._output_name = options.output_name if output is None else output.name
            self.layout = place_images(
                spec,
                subject=self.endpoint.model_url,
                settings=options.settings,
                order=options.layout,
                fallback_image_shape=fallback.image_shape,
            )
            self._binary = self._choose_encoding(options.binary)
            self.batch_size = self.layout.batch or options.request_size or _BATCH_SIZE
            super().__init__(
                name=name,
                num_classes=self._find_num_classes(
                    output, options.settings.num_classes, fallback.num_classes
                ),
                image_shape=self._image_shape(),
                feedback=feedback,
                grid=self.layout.grid or options.grid,
                scale=options.known_scale,
                notes=self.notes,
            )
            self.request_size = self.batch_size
            self.requests_at_once = options.transport.concurrency
        except BaseException:
            self._transport.close()
            raise

    def _image_shape(self) -> tuple[int, int, int]:
        """Return (C, H, W) of the images it is asked about."""
        return self.layout.image_shape

    def identity(self) -> Identity:
        """Return where the model is and what it calls itself; its weights are not known."""
        return Identity(
            kind="served",
            source=self.endpoint.model_url,
            details={
                **self.layout.describe(),
                "model": self._metadata.name,
                "platform": self._metadata.platform,
                "versions": ",".join(self._metadata.versions),
                "output": self._output_name or "",
                "grid": str(self.grid),
            },
        )

    def close(self) -> None:
        """Close the connections."""
        self._transport.close()

    def n_unpaid(self, images: Tensor) -> int:
        """Return how many of these images no kept answer covers."""
        chunks = torch.split(self.to_grid(images), self.batch_size)
        keys = _keys(chunks)
        return sum(len(c) for c, key in zip(chunks, keys, strict=True) if key not in self._kept)

    def _answer(self, images: Tensor) -> Tensor:
        chunks = torch.split(images, self.batch_size)
        keys = _keys(chunks)
        cancelled = threading.Event()
        with ThreadPoolExecutor(self._transport.settings.concurrency) as pool:
            futures = [
                pool.submit(self._ask_chunk, chunk, key, cancelled)
                for chunk, key in zip(chunks, keys, strict=True)
                if key not in self._kept
            ]
            try:
                for future in as_completed(futures):
                    future.result()
            except BaseException:
                # Those on their way are waited for, since their answers will have been paid for;
                # nothing is sent any more.
                cancelled.set()
                pool.shutdown(wait=True, cancel_futures=True)
                raise
        answers = [self._kept[key] for key in keys]
        self._kept.clear()
        return join_answers([torch.from_numpy(rows) for rows in answers], self.endpoint.model_url)

    def _answered_of(self, parts: Sequence[Tensor]) -> list[Tensor | None]:
        kept = [self._kept.get(key) for key in _keys(parts)]
        return [None if rows is None else torch.from_numpy(rows) for rows in kept]

    def _ask_chunk(self, chunk: Tensor, key: Key, cancelled: threading.Event) -> None:
        """Have one request's worth of images answered, and keep the answer."""
        tensor = self._encode(chunk)
        body, headers = encode_request(
            tensor,
            input_name=self._input_name,
            output_name=self._output_name,
            binary=self._binary,
        )
        url = f"{self.endpoint.model_url}/infer"
        answer = self._transport.send(
            "POST",
            url,
            read=self._read_answer,
            body=body,
            headers=headers,
            n_images=len(chunk),
            cancelled=cancelled,
        )
        with self._lock:
            self._count(len(chunk))
        rows = self._rows_of(answer, chunk, len(tensor), url)[: len(chunk)]
        with self._lock:
            self._kept[key] = rows

    def _encode(self, chunk: Tensor) -> NDArray[Any]:
        """Lay out what is sent of some images."""
        return self.layout.encode(chunk)

    def _decode(self, answer: Answer) -> Any:
        """Read what an answer holds."""
        return decode_answer(answer.body, answer.headers, output_name=self._output_name)

    def _read_answer(self, answer: Answer) -> Any:
        _refuse_html(answer, self.endpoint.model_url)
        try:
            return self._decode(answer)
        except MalformedAnswerError as error:
            # Most likely cut short on its way: the server closed the connection half way.
            raise LostAnswerError(f"an answer that cannot be read: {error}") from error
        except ModelError as error:
            raise ModelError(f"{self.endpoint.model_url}: {error}") from error

    def _rows_of(self, answer: Any, chunk: Tensor, n_images: int, url: str) -> NDArray[Any]:
        """Check an answer's form; scores become (n, K) float32, labels (n,) int64.

        `n_images` is how many were sent: those of `chunk`, and copies that fill a fixed batch.
        """
        rows = read_rows(answer, n_images)
        forms = [(), (self.num_classes,), *([(1,)] if self.num_classes == 2 else [])]
        if rows is not None and rows.shape[1:] in forms:
            return rows
        raise ModelError(
            f"{url}: expected scores ({n_images}, {self.num_classes}) or labels ({n_images},), got "
            f"{answer.dtype} {answer.shape}; pass the right num_classes or output_name"
        )

    def _get_metadata(self) -> ModelMetadata:
        url = self.endpoint.model_url

        def read(answer: Answer) -> ModelMetadata:
            _refuse_html(answer, url)
            try:
                description = parse_json(answer.body)
            except MalformedAnswerError as error:
                raise LostAnswerError(f"a description that cannot be read: {error}") from error
            try:
                return parse_metadata(description)
            except MalformedAnswerError as error:
                raise RemoteError(f"{url}: expected a description of a model: {error}") from error

        metadata = self._transport.send("GET", url, read=read)
        if metadata.name != self.endpoint.model:
            self.notes.append(f"the server calls the model {metadata.name!r}")
        return metadata

    def _input_spec(self, input_name: str | None) -> TensorSpec:
        """Return the one input that takes images, or a guess where the server lists none."""
        url, inputs = self.endpoint.model_url, self._metadata.inputs
        if not inputs:
            self.notes.append("the server does not describe its input: taken for float32 images")
            return replace(_UNDESCRIBED_INPUT, name=input_name or _UNDESCRIBED_INPUT.name)
        if len(inputs) != 1 or input_name not in (None, inputs[0].name):
            raise ModelError(
                f"{url}: expected one input{'' if input_name is None else f' {input_name!r}'} that "
                f"takes images, got {'; '.join(map(str, inputs))}"
            )
        return inputs[0]

    def _output_spec(self, output_name: str | None, feedback: Feedback) -> TensorSpec | None:
        if not self._metadata.outputs:
            return None
        return choose_output(
            self._metadata.outputs,
            subject=self.endpoint.model_url,
            name=output_name,
            labels_only=feedback == "labels",
        )

    def _find_num_classes(
        self, output: TensorSpec | None, declared: int | None, fallback: int | None
    ) -> int:
        told = output.shape[1] if output is not None and len(output.shape) == 2 else None
        if output is not None and told == 1:
            one_score = output.dtype.startswith("float")  # whole numbers are labels
            told = 2 if one_score else None
            self.notes += [ONE_SCORE] if one_score else []
        if told is not None and declared not in (None, told):
            raise ModelError(
                f"{self.endpoint.model_url}: expected {declared} classes, got {output}; pass "
                f"num_classes={told}"
            )
        number = told or declared or fallback
        if number is None:
            raise ModelError(
                f"{self.endpoint.model_url}: does not say how many classes it has; pass num_classes"
            )
        return number

    def _choose_encoding(self, binary: bool | None) -> bool:
        """Return whether tensors travel as raw bytes."""
        if binary is not None:
            return binary
        # JSON numbers cannot be float16 in this protocol.
        return self.layout.dtype == "float16" or BINARY_EXTENSION in self._extensions()

    def _extensions(self) -> list[str]:
        def read(answer: Answer) -> list[str]:
            try:
                return [str(name) for name in parse_json(answer.body).get("extensions") or ()]
            except (AttributeError, TypeError, MalformedAnswerError):
                return []

        try:
            return self._transport.send("GET", self.endpoint.server_url, read=read)
        except (ModelError, RemoteError):
            # A gateway may pass on the model's own address only; JSON always works.
            return []


def _keys(chunks: Sequence[Tensor]) -> list[Key]:
    """Name each request's images by their bytes, and equal ones by how many came before.

    Equal images in one call are asked about, and paid for, as often as they occur.
    """
    seen: Counter[str] = Counter()
    keys = []
    for chunk in chunks:
        digest = hashlib.sha256(chunk.detach().cpu().contiguous().numpy().tobytes()).hexdigest()
        keys.append((digest, seen[digest]))
        seen[digest] += 1
    return keys


def _refuse_html(answer: Answer, url: str) -> None:
    start = answer.body[:200].lstrip().lower()
    if answer.content_type == "text/html" or start.startswith((b"<!doctype", b"<html")):
        raise RemoteError(
            f"{url}: expected JSON, got a web page (HTML); check the address: a login page, a "
            "proxy or another service answers there"
        )
