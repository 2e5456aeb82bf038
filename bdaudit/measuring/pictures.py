"""A few held-out images for the report: clean, triggered, perturbed, and the perturbation."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping

from PIL import Image
from torch import Tensor

from bdaudit.cases.subjects import Inputs
from bdaudit.detection import is_marked, unmarked
from bdaudit.detection.outlining import outlined, to_bytes
from bdaudit.perturbation import apply_delta
from bdaudit.records import Answer, AttackRun, AuditRecord, PictureColumn, Pictures, Rate, Thumbnail
from bdaudit.triggers import Poisoned

__all__ = ["can_be_drawn", "encode_png", "take_pictures"]

_N_COLUMNS = 6
_LARGEST_SIDE = 96
_GAIN = 10.0


def take_pictures(
    record: AuditRecord, inputs: Inputs, deltas: Mapping[str, Tensor]
) -> Pictures | None:
    """Draw what the defended model was shown by the attack that mattered most.

    No model is asked: its answers are read from the outcomes in `record`.

    Args:
        record: A judged audit.
        inputs: What it was measured on.
        deltas: Perturbations (1, C, H, W) by the digest that the attack runs give.

    Returns:
        The pictures; `None` where there was no attack on the defended model, its outcomes were
        not kept, or images are neither grey nor in colour. On those of a detector the box is
        outlined that it was asked about.
    """
    run = _telling_run(record)
    baseline = None if run is None else record.baseline_of(run.model)
    if run is None or baseline is None or run.delta_sha256 not in deltas:
        return None
    half = inputs.held_out_poisoned
    if not can_be_drawn(half.clean) or run.true_label_acc is None:
        return None
    delta = deltas[run.delta_sha256].detach().cpu().float()
    added = delta[:, : unmarked(half.clean[:1]).shape[1]]  # of a box nothing is changed
    clean_right = baseline.clean_acc.outcomes()
    unperturbed = _answers(baseline.asr, baseline.true_label_acc)
    perturbed = _answers(run.asr, run.true_label_acc)
    to_target = baseline.clean_target_rate.outcomes()
    columns = []
    for k in _chosen(half):
        triggered = half.triggered[k]
        right = clean_right[int(half.indices[k])]
        columns.append(
            PictureColumn(
                true_label=int(half.labels[k]),
                target_label=int(half.targets[k]),
                clean=Thumbnail(png=encode_png(half.clean[k]), answer=_answer(to_target[k], right)),
                triggered=Thumbnail(png=encode_png(triggered), answer=unperturbed[k]),
                perturbed=Thumbnail(
                    png=encode_png(apply_delta(triggered.cpu()[None], delta)[0]),
                    answer=perturbed[k],
                ),
            )
        )
    return Pictures(
        model=run.model,
        mode=run.mode,
        norm=run.norm,
        eps=run.eps,
        delta_sha256=run.delta_sha256,
        perturbation=encode_png((0.5 + _GAIN * added[0]).clamp(0.0, 1.0)),
        gain=_GAIN,
        columns=tuple(columns),
    )


def _telling_run(record: AuditRecord) -> AttackRun | None:
    """Choose the attack that decided, or else the one with the largest lift over its nulls."""
    runs = record.runs_of(role="defended", condition="trigger")
    if not runs:
        return None
    verdict = record.verdict
    if verdict is not None and verdict.outcome == "dormant":
        decided = {(c.kind, c.eps) for c in verdict.deciding}
        runs = tuple(r for r in runs if (f"lift ({r.mode})", r.eps) in decided) or runs

    def lift(run: AttackRun) -> float:
        lifts = () if verdict is None else verdict.over_controls(run.mode)
        return min((c.value for c in lifts if c.eps == run.eps), default=-1.0)

    return max(runs, key=lift)


def _answers(to_target: Rate, right: Rate) -> list[Answer]:
    pairs = zip(to_target.outcomes(), right.outcomes(), strict=True)
    return [_answer(target, true) for target, true in pairs]


def _answer(to_target: bool, right: bool) -> Answer:
    if to_target:
        return "target"
    return "true_label" if right else "other"


def _chosen(half: Poisoned) -> list[int]:
    """Choose the first image of every class, in the sample's order.

    Of a detector, whose images may all be of one class (empty boxes), more follow where classes are
    few.
    """
    first: dict[int, int] = {}
    for position, label in enumerate(half.labels.tolist()):
        first.setdefault(label, position)
    chosen = list(first.values())
    if is_marked(half.clean):
        chosen += [k for k in range(len(half)) if k not in chosen]
    return chosen[:_N_COLUMNS]


def can_be_drawn(images: Tensor) -> bool:
    """Whether images (N, C, H, W) are grey or in colour, marked or not."""
    return unmarked(images).shape[1] in (1, 3)


def encode_png(image: Tensor) -> str:
    """Encode an image (C, H, W) in [0, 1], smaller where a side is over the limit.

    The box that a marked image asks about is outlined.
    """
    pixels = to_bytes(image).numpy()
    picture = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    picture.thumbnail((_LARGEST_SIDE, _LARGEST_SIDE), Image.Resampling.LANCZOS)
    picture = outlined(picture, image)
    stream = io.BytesIO()
    picture.save(stream, format="PNG", optimize=True)
    return base64.b64encode(stream.getvalue()).decode("ascii")
