"""A served detector as a black box, over the Open Inference Protocol v2 REST."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from numpy.typing import NDArray
from torch import Tensor

from bdaudit.blackbox.base import Feedback, Identity
from bdaudit.blackbox.detections import Asking, read_detections
from bdaudit.blackbox.layout import TensorSpec
from bdaudit.blackbox.options import BlackBoxOptions
from bdaudit.blackbox.protocol import decode_outputs
from bdaudit.blackbox.scale import ScoreScale
from bdaudit.blackbox.served import ServedBlackBox
from bdaudit.blackbox.transport import Answer
from bdaudit.detection import CHANNELS, PIXELS, pixels_of

__all__ = ["ServedDetector"]


class ServedDetector(ServedBlackBox):
    """A detector behind an address, asked about the box that each marked image names.

    Pictures go out, and boxes come back as `read_detections` knows them; which box was asked about
    stays here.

    Args:
        url: The model's address.
        name: How records refer to the model.
        asking: How its detections become answers.
        feedback: What `ask` gives back.
        options: What is known about it, as for `ServedBlackBox`; one picture a request where
            nothing else is said.
        image_shape: (4, H, W) of the marked images.

    Raises:
        ConfigError: The address or an argument is wrong.
        RemoteError: As for `ServedBlackBox`.
        ModelError: The server has no such model, or it does not take pictures.
    """

    def __init__(
        self,
        url: str,
        *,
        name: str,
        asking: Asking,
        feedback: Feedback = "scores",
        options: BlackBoxOptions | None = None,
        image_shape: tuple[int, int, int],
    ) -> None:
        options = options or BlackBoxOptions()
        self.asking = asking
        super().__init__(
            url,
            name=name,
            feedback=feedback,
            options=replace(
                options,
                settings=replace(
                    options.settings,
                    image_shape=(PIXELS, *image_shape[1:]),
                    num_classes=asking.num_classes,
                ),
                scale=ScoreScale(kind="logits"),
                request_size=options.request_size or 1,
            ),
        )

    def identity(self) -> Identity:
        """Return where the model is, and what decides how its boxes are read."""
        known = super().identity()
        return replace(known, details={**known.details, **self.asking.describe()})

    def _image_shape(self) -> tuple[int, int, int]:
        return (CHANNELS, *self.layout.image_shape[1:])

    def _output_spec(self, output_name: str | None, feedback: Feedback) -> TensorSpec | None:
        return None  # all of them are read

    def _encode(self, chunk: Tensor) -> NDArray[Any]:
        return self.layout.encode(pixels_of(chunk))

    def _decode(self, answer: Answer) -> dict[str, NDArray[Any]]:
        return decode_outputs(answer.body, answer.headers)

    def _rows_of(self, answer: Any, chunk: Tensor, n_images: int, url: str) -> NDArray[Any]:
        found = read_detections(answer, n_images, url)
        rows: NDArray[Any] = self.asking.answers(found[: len(chunk)], chunk, url).numpy()
        return rows
