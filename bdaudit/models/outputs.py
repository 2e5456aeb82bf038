"""Look at what a classifier answers before any number is made of it."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from bdaudit.errors import ModelError
from bdaudit.models.classifier import Classifier, LoadedModel
from bdaudit.models.settings import Outputs

__all__ = ["ONE_SCORE", "ask", "check_outputs"]

ONE_SCORE = "the network returns one score an image: taken as two classes, class 1 where it is high"
_ROW_SUM_TOLERANCE = 1e-3


@torch.no_grad()
def check_outputs(
    model: LoadedModel, images: Tensor, *, outputs: Outputs | None = None
) -> LoadedModel:
    """Look at a model's answers to real images, and take logs where they are probabilities.

    Args:
        model: As loaded.
        images: A few images (N, C, H, W) in [0, 1]; two or more, or chance could mislead.
        outputs: What the user declared; "logits" is believed, `None` asks to detect.

    Returns:
        The model itself, or one that takes logs of its probabilities and says so in its notes.

    Raises:
        ModelError: The answers are not (N, num_classes), not finite, or were declared
            probabilities and are not.
    """
    device = next((t.device for t in model.classifier.state_dict().values()), images.device)
    answers = ask(model.classifier, images.to(device), model.name)
    if answers.shape[1] != model.num_classes:
        raise ModelError(
            f"{model.name}: expected logits ({len(images)}, {model.num_classes}), got "
            f"{tuple(answers.shape)}; pass num_classes={answers.shape[1]}"
        )
    classifier = model.classifier
    if isinstance(classifier, Classifier) and classifier.outputs == "probabilities":
        if not _are_probabilities(answers.exp()):  # of one score, only outside [0, 1] fails
            raise ModelError(
                f"{model.name}: outputs were declared probabilities, but they are not in [0, 1] "
                "with rows that sum to 1; declare outputs='logits'"
            )
        return model
    if not isinstance(classifier, Classifier):
        classifier = Classifier(classifier).eval()
    if classifier.one_score:  # its logits are (0, z), and z could be a probability
        found = bool(((answers[:, 1] >= 0) & (answers[:, 1] <= 1)).all())
    else:
        found = _are_probabilities(answers)
    if outputs == "logits" or not found:
        return model
    logarithmic = classifier.with_outputs("probabilities")
    note = "took logs: the outputs are probabilities"
    return dataclasses.replace(
        model, classifier=logarithmic.to(device).eval(), notes=(*model.notes, note)
    )


def _are_probabilities(scores: Tensor) -> bool:
    inside = bool(((scores >= 0) & (scores <= 1 + _ROW_SUM_TOLERANCE)).all())
    return inside and bool(((scores.sum(dim=1) - 1).abs() <= _ROW_SUM_TOLERANCE).all())


def ask(classifier: nn.Module, images: Tensor, subject: str) -> Tensor:
    """Run a classifier on images and check the form of its answer.

    Raises:
        ModelError: It failed, or did not return finite scores (N, K).
    """
    try:
        answers = classifier(images)
    except Exception as error:
        reason = str(error).splitlines()[0][:300] if str(error) else type(error).__name__
        raise ModelError(
            f"{subject}: cannot take images of shape {tuple(images.shape[1:])}: {reason}; pass the "
            "right image_shape, or an input_size to resize to"
        ) from error
    if not isinstance(answers, Tensor) or answers.ndim != 2 or len(answers) != len(images):
        got = tuple(answers.shape) if isinstance(answers, Tensor) else type(answers).__name__
        raise ModelError(f"{subject}: expected logits ({len(images)}, classes), got {got}")
    if not bool(torch.isfinite(answers).all()):
        raise ModelError(
            f"{subject}: expected finite logits, got NaN or infinity; the weights overflow, or the "
            "normalisation does not match the model"
        )
    return answers
