"""A classifier that can only be queried.

Whatever stands behind it (a torch model, an ONNX file, a served model, a Python function), it is
asked in one way: images in [0, 1] go in, scores or top labels come out, and every image answered
is counted once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Self, TypeAlias

import torch
from torch import Tensor

from bdaudit.blackbox.journal import AnswerJournal
from bdaudit.blackbox.scale import ScoreKind, ScoreScale, detect_scale, spread_one_score
from bdaudit.errors import ConfigError, DataError, ModelError
from bdaudit.models import ONE_SCORE

__all__ = ["BlackBox", "Feedback", "Identity", "join_answers", "top_labels"]

Feedback: TypeAlias = Literal["scores", "labels"]


@dataclass(frozen=True, kw_only=True)
class Identity:
    """Which model answers, for the record and for the check before a search is resumed.

    Attributes:
        kind: What sort of thing is asked: "torch", "onnx", "openvino", "served" or
            "function".
        source: Where it is: a path or a URL, without any secret.
        sha256: Digest of the weights or of the files, `None` where nobody can know it.
        details: Whatever else decides the answers: model name, version, layout, grid.
    """

    kind: Literal["torch", "onnx", "openvino", "served", "function"]
    source: str
    sha256: str | None = None
    details: Mapping[str, str] = field(default_factory=dict)

    def changes(self, now: Identity) -> list[str]:
        """Return in words what differs between this identity and `now`; empty when nothing does.

        A file that only moved is the same model; an endpoint at another address is not known to be.
        """
        old, new = self._decisive(), now._decisive()
        return [
            f"{name}: was {old.get(name, 'not set')}, is {new.get(name, 'not set')}"
            for name in sorted(old.keys() | new.keys())
            if old.get(name) != new.get(name)
        ]

    def _decisive(self) -> dict[str, str]:
        subject = {"sha256": self.sha256} if self.sha256 is not None else {"source": self.source}
        return {"kind": self.kind, **subject, **self.details}


class BlackBox(ABC):
    """Images in, scores or labels out, every answered image counted once.

    Subclasses implement `_answer` and `identity`. Of a model of two classes `_answer` may give one
    score an image, (N, 1): a logit or a probability of class 1.

    Attributes:
        journal: Where answers are kept as they arrive, and found again by a run that is resumed;
            `None` for nowhere. An answer found there counts as it did when it was paid for.
        request_size: Images answered together; `None` when all of a question are.
        requests_at_once: How many such portions are asked about together.

    Args:
        name: How records refer to the model.
        num_classes: K.
        image_shape: (C, H, W) of the images it takes.
        feedback: What `ask` gives back. "labels" throws scores away even where there are any.
        grid: Steps an image value can take between 0 and 1: 255 where images travel as 8-bit
            values. Images are rounded to it before they are sent, so that what was asked about is
            known. `None` for no grid.
        scale: What the scores are on; `None` looks at the first answers.
        notes: What was done to open the model, in words, for the record.

    Raises:
        ConfigError: A setting is out of range.
    """

    files: tuple[Path, ...] = ()
    """The files it is made of, where it is made of files."""

    computes_here = False
    """Whether a batch is computed here as it was given: nobody else's images can be in it."""

    def __init__(
        self,
        *,
        name: str,
        num_classes: int,
        image_shape: tuple[int, int, int],
        feedback: Feedback = "scores",
        grid: int | None = None,
        scale: ScoreScale | None = None,
        notes: Sequence[str] = (),
    ) -> None:
        if feedback not in ("scores", "labels"):
            raise ConfigError(f"feedback: expected scores or labels, got {feedback!r}")
        if num_classes < 2:
            raise ConfigError(f"num_classes: expected 2 or more, got {num_classes}")
        if grid is not None and grid < 1:
            raise ConfigError(f"grid: expected 1 or more steps, got {grid}")
        self.name = name
        self.num_classes = num_classes
        self.image_shape = image_shape
        self.feedback: Feedback = feedback
        self.grid = grid
        self.notes = list(notes)
        self._scale = scale
        self._n_queries = 0
        self.journal: AnswerJournal | None = None
        self.request_size: int | None = None
        self.requests_at_once = 1

    @property
    def n_queries(self) -> int:
        """Images answered so far. One sent again after a lost answer counts once."""
        return self._n_queries

    @property
    def scale(self) -> ScoreScale | None:
        """What the scores are on; `None` before the first answer, and where labels are given."""
        return self._scale if self.feedback == "scores" else None

    @property
    def score_kind(self) -> ScoreKind | None:
        """Whether the model gives logits or probabilities; `None` as for `scale`."""
        return None if self.scale is None else self.scale.kind

    def ask(self, images: Tensor) -> Tensor:
        """Ask about images.

        Args:
            images: (N, C, H, W) in [0, 1], on any device; left as they are.

        Returns:
            On the CPU, in the order of `images`: log-scale scores (N, K), float32 (logits, or logs
            of probabilities), or top labels (N,), int64.

        Raises:
            DataError: The images do not have the model's shape, or leave [0, 1].
            ModelError: The answer has the wrong shape, is not finite or changed its scale.
            RemoteError: A served model could not be asked. What it had answered stays counted.
        """
        self._check_images(images)
        if len(images) == 0:
            empty = torch.empty(0, dtype=torch.int64)
            return empty if self.feedback == "labels" else torch.empty(0, self.num_classes)
        sent = self.to_grid(images)
        answers = self._answer(sent) if self.journal is None else self._recall(sent, self.journal)
        if answers.ndim == 1:
            return self._labels(answers, len(images))
        return self._scores(answers, len(images))

    def to_grid(self, images: Tensor) -> Tensor:
        """Round images to the values that are really sent."""
        return images if self.grid is None else (images * self.grid).round() / self.grid

    def n_unpaid(self, images: Tensor) -> int:
        """Return how many of these images would be paid for if `ask` were called now.

        All of them, but where answers were kept from a call that failed half way.
        """
        return len(images)

    def close(self) -> None:  # noqa: B027 - most have nothing to close
        """Let go of connections."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: object) -> None:
        self.close()

    @abstractmethod
    def identity(self) -> Identity:
        """Return which model answers."""

    @abstractmethod
    def _answer(self, images: Tensor) -> Tensor:
        """Answer for images (N, C, H, W) on the grid: raw scores (N, K), or labels (N,).

        Calls `_count` as answers arrive, so that a failure half way leaves the count right.
        """

    def _recall(self, images: Tensor, journal: AnswerJournal) -> Tensor:
        """Answer from the journal what it holds, and keep there what it does not."""
        parts = torch.split(images, self.request_size or len(images))
        answers = [journal.recall(part) for part in parts]
        self._count(sum(len(part) for part, a in zip(parts, answers, strict=True) if a is not None))
        missing = [k for k, answer in enumerate(answers) if answer is None]
        for first in range(0, len(missing), self.requests_at_once):
            group = missing[first : first + self.requests_at_once]
            asked = [parts[k] for k in group]
            try:
                found = torch.split(self._answer(torch.cat(asked)), [len(part) for part in asked])
            except BaseException:
                for part, answer in zip(asked, self._answered_of(asked), strict=True):
                    if answer is not None:
                        journal.keep(part, answer)
                raise
            for k, answer in zip(group, found, strict=True):
                journal.keep(parts[k], answer)
                answers[k] = answer
        return join_answers([answer for answer in answers if answer is not None], self.name)

    def _answered_of(self, parts: Sequence[Tensor]) -> list[Tensor | None]:
        """Return what was answered of a group of requests before one of them failed."""
        return [None] * len(parts)

    def _count(self, n_images: int) -> None:
        self._n_queries += n_images

    def _check_images(self, images: Tensor) -> None:
        if images.ndim != 4 or tuple(images.shape[1:]) != self.image_shape:
            raise DataError(
                f"{self.name}: expected images (N, {', '.join(map(str, self.image_shape))}), got "
                f"{tuple(images.shape)}"
            )
        # NaN fails the comparison too.
        if not bool(((images >= 0) & (images <= 1)).all()):
            raise DataError(f"{self.name}: expected images in [0, 1], got values outside")

    def _labels(self, labels: Tensor, n_images: int) -> Tensor:
        if self.feedback == "scores":
            raise ModelError(
                f"{self.name}: expected scores ({n_images}, {self.num_classes}), got labels only; "
                "ask with feedback='labels'"
            )
        labels = labels.to("cpu", torch.int64)
        if len(labels) != n_images:
            raise ModelError(f"{self.name}: expected {n_images} labels, got {len(labels)}")
        if not bool(((labels >= 0) & (labels < self.num_classes)).all()):
            raise ModelError(
                f"{self.name}: expected labels from 0 to {self.num_classes - 1}, got "
                f"{int(labels.min())} to {int(labels.max())}; pass the right num_classes"
            )
        return labels

    def _scores(self, scores: Tensor, n_images: int) -> Tensor:
        one_score = self.num_classes == 2 and tuple(scores.shape) == (n_images, 1)
        if not one_score and tuple(scores.shape) != (n_images, self.num_classes):
            raise ModelError(
                f"{self.name}: expected scores ({n_images}, {self.num_classes}), got "
                f"{tuple(scores.shape)}; pass the right num_classes"
            )
        scores = scores.detach().to("cpu", torch.float32)
        if not bool(torch.isfinite(scores).all()):
            raise ModelError(f"{self.name}: expected finite scores, got NaN or infinity")
        if one_score:
            return self._two_classes(scores)
        if self.feedback == "labels":
            return scores.argmax(dim=1)
        return self._on_log_scale(scores)

    def _two_classes(self, scores: Tensor) -> Tensor:
        """Take one score an image (N, 1) as two classes; what it is decides even the labels."""
        if ONE_SCORE not in self.notes:
            self.notes.append(ONE_SCORE)
        if self._scale is None:
            self._scale = detect_scale(scores)
        answers = self._on_log_scale(spread_one_score(scores, self._scale.kind))
        return answers.argmax(dim=1) if self.feedback == "labels" else answers

    def _on_log_scale(self, scores: Tensor) -> Tensor:
        if self._scale is None:
            self._scale = detect_scale(scores)
        if not self._scale.admits(scores):
            raise ModelError(
                f"{self.name}: its first answers were {self._scale.kind}, these are not: rows are "
                "outside [0, 1] or do not sum to 1; declare outputs='logits'"
            )
        return self._scale.to_log_scale(scores)


def join_answers(answers: Sequence[Tensor], subject: str) -> Tensor:
    """Join the answers to parts of a question, all labels (n,) or all scores (n, K).

    Raises:
        ModelError: They differ in form.
    """
    forms = {tuple(answer.shape[1:]) for answer in answers}
    if len(forms) > 1:
        shown = " and ".join(str(("n", *form)).replace("'", "") for form in sorted(forms))
        raise ModelError(
            f"{subject}: expected answers of one form, got {shown} from one call to the next; "
            "different models answer in turn, or some of it is no answer"
        )
    return torch.cat(list(answers))


def top_labels(answers: Tensor) -> Tensor:
    """Return the labels (N,) in what `BlackBox.ask` gave, scores (N, K) or labels (N,)."""
    return answers if answers.ndim == 1 else answers.argmax(dim=1)
