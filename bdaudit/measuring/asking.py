"""Ask any model for its answers, loaded or behind an address, every question counted."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from torch import Tensor

from bdaudit.cases.subjects import Subject
from bdaudit.measuring.compute import Compute
from bdaudit.measuring.store import RunStore
from bdaudit.precision import autocasting
from bdaudit.scoring import predict, predict_logits

__all__ = ["ask", "keep_answers"]


def keep_answers(subjects: Iterable[Subject], store: RunStore) -> None:
    """Have everything that is answered by models that can only be queried kept in `store`."""
    for subject in subjects:
        if subject.model is None:
            subject.black_box.journal = store.journal("audit")


def ask(
    subject: Subject, images: Tensor, compute: Compute, *, delta: Tensor | None = None
) -> Tensor:
    """Return the top labels (N,) of `images`, perturbed by `delta` where one is given.

    A loaded model is run as it is; one that can only be queried is asked, and counts it. With a
    delta, which is the scoring of an attack, a loaded model computes in the precision of
    `compute`, otherwise in float32.
    """
    if subject.model is None:
        return predict(subject.black_box.ask, images, batch_size=compute.batch_size, delta=delta)
    if delta is not None:  # as one of many deltas on the same images
        images = compute.sent(images)
    ask_model = partial(
        predict,
        subject.model.classifier,
        batch_size=compute.batch_size,
        device=compute.device,
        delta=delta,
    )
    if delta is None or compute.precision == "float32":
        return ask_model(images)
    with autocasting(compute.device, compute.precision):
        scores = predict_logits(
            subject.model.classifier,
            images,
            batch_size=compute.batch_size,
            device=compute.device,
            delta=delta,
        )
    labels, best = scores.argmax(dim=1), scores.topk(2).values
    # Rounded scores may tie, and the lower class would win every tie: the target often is class 0.
    tied = best[:, 0] == best[:, 1]
    if tied.any():
        labels[tied] = ask_model(images[tied.to(images.device)])
    return labels
