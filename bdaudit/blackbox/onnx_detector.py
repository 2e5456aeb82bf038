"""A detector in an ONNX file as a black box, run by onnxruntime."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from bdaudit.blackbox.base import BlackBox, Feedback, Identity
from bdaudit.blackbox.detections import Asking, read_detections
from bdaudit.blackbox.layout import place_images
from bdaudit.blackbox.onnx_model import (
    digest_together,
    import_onnx,
    only_input,
    open_session,
    run_within,
    side_files,
    spec_of,
)
from bdaudit.blackbox.options import BlackBoxOptions
from bdaudit.blackbox.scale import ScoreScale
from bdaudit.detection import CHANNELS, PIXELS, pixels_of
from bdaudit.errors import ConfigError

__all__ = ["OnnxDetector"]


class OnnxDetector(BlackBox):
    """A detector in an ONNX file, asked about the box that each marked image names.

    The file runs as it is, as `OnnxBlackBox` runs a classifier's: no custom operators, weights from
    its own folder only. It takes pictures (3, H, W), one at a time, or (N, 3, H, W), and gives
    boxes as `read_detections` knows them.

    Args:
        path: The `.onnx` file.
        name: How records refer to the model.
        asking: How its detections become answers.
        feedback: What `ask` gives back.
        options: What is known about it: normalisation, the order of its dimensions.
        image_shape: (4, H, W) of the marked images.
        device: Where to run.

    Raises:
        ModelError: As for `OnnxBlackBox`, or it gives no boxes.
    """

    computes_here = True

    def __init__(
        self,
        path: Path | str,
        *,
        name: str,
        asking: Asking,
        feedback: Feedback = "scores",
        options: BlackBoxOptions | None = None,
        image_shape: tuple[int, int, int],
        device: torch.device | str = "cpu",
    ) -> None:
        options = options or BlackBoxOptions()
        self.path, self.asking = Path(path), asking
        self.notes: list[str] = []
        subject = f"{name} ({self.path})"
        runtime, onnx = import_onnx(subject)
        self.files = (self.path, *side_files(self.path, onnx, subject))
        self._sha256 = digest_together(self.files)
        self._session = open_session(
            runtime, str(self.path), subject, device=torch.device(device), notes=self.notes
        )
        spec = only_input(self._session, subject)
        self._alone = len(spec.shape) == 3  # one picture, without a dimension for several
        if self._alone:
            spec = replace(spec, shape=(1, *spec.shape))
        self._input_name = spec.name
        self._outputs = [spec_of(output).name for output in self._session.get_outputs()]
        self.layout = place_images(
            spec,
            subject=subject,
            settings=replace(options.settings, image_shape=(PIXELS, *image_shape[1:])),
            order=options.layout,
        )
        # One at a time unless told: what an export gives of several differs between exporters.
        self.batch_size = self.layout.batch or options.request_size or 1
        if options.known_scale is not None:
            raise ConfigError("outputs: means nothing for detectors, whose scores are of boxes")
        super().__init__(
            name=name,
            num_classes=asking.num_classes,
            image_shape=(CHANNELS, *image_shape[1:]),
            feedback=feedback,
            grid=self.layout.grid or options.grid,
            scale=ScoreScale(kind="logits"),
            notes=self.notes,
        )
        self._run(torch.full((1, *self.image_shape), 0.5))  # no query: are there boxes at all?

    def identity(self) -> Identity:
        """Digest the file together with its side files."""
        return Identity(
            kind="onnx",
            source=str(self.path),
            sha256=self._sha256,
            details={
                **self.layout.describe(),
                "grid": str(self.grid),
                **self.asking.describe(),
            },
        )

    def _answer(self, images: Tensor) -> Tensor:
        answers = []
        for batch in torch.split(images, self.batch_size):
            answers.append(self._run(batch))
            self._count(len(batch))
        return torch.cat(answers)

    def _run(self, images: Tensor) -> Tensor:
        sent = self.layout.encode(pixels_of(images))
        given = run_within(
            self._session,
            self._outputs,
            self._input_name,
            sent[0] if self._alone else sent,
            path=self.path,
        )
        subject = f"{self.name} ({self.path})"
        found = read_detections(dict(zip(self._outputs, given, strict=True)), len(sent), subject)
        return self.asking.answers(found[: len(images)], images, subject)
