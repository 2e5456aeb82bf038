"""Placebo triggers as a step of an audit: found by asking, then attacked as the true trigger is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from bdaudit.cases.subjects import Inputs, Subject
from bdaudit.detection import is_marked, unmarked, with_pixels
from bdaudit.foundation.progress import Progress, Steps
from bdaudit.measuring.compute import Compute, derive_generator
from bdaudit.measuring.conditions import AttackImages, attack_images
from bdaudit.measuring.pictures import can_be_drawn, encode_png
from bdaudit.models import LoadedModel
from bdaudit.placebos.making import make
from bdaudit.placebos.pool import Drawn, draw
from bdaudit.placebos.screening import ANSWERS, Asked, Candidate, Screening, screen
from bdaudit.records import Placebo, Placebos
from bdaudit.scoring import evaluating, predict_logits
from bdaudit.triggers import Poisoned, TargetRule, Trigger, footprint
from bdaudit.verdict.placebos import FEWEST_PLACEBOS

__all__ = [
    "N_PLACEBOS",
    "FoundPlacebos",
    "find_placebos",
    "innocents_to_attack",
    "placebo_images",
    "screening_cost",
]

N_PLACEBOS = 8
"""Placebos in an audit that is given some of the user's own, and not told how many."""

_DRAWN_AT_MOST = 12
"""Patterns drawn for each placebo wanted, before it is given up."""

_SCREENED_ON = 300
_LIMIT = 0.06
_NONE = Screening((), (), None)


@dataclass(frozen=True)
class FoundPlacebos:
    """What became of the search for placebos.

    Attributes:
        patterns: Those kept, in the order of `record.kept`.
        record: For the audit's record, attacks still lacking.
    """

    patterns: tuple[Drawn, ...]
    record: Placebos


def find_placebos(
    inputs: Inputs,
    compute: Compute,
    *,
    wanted: int,
    given: Sequence[Trigger] = (),
    pictures: bool = True,
) -> Steps[FoundPlacebos]:
    """Draw patterns as strong as the trigger and keep those that the original ignores.

    Args:
        inputs: Models, images, trigger. Craft images alone are used.
        compute: Device, batch size, seed.
        wanted: Placebos to keep.
        given: Those that a user gives; looked at first, and screened like any.
        pictures: Whether to keep a picture of each.
    """
    yield Progress("placebos: drawing and screening", 0, 1)
    (original,) = inputs.with_role("original")
    innocents = [s for s in inputs.with_role("reference") if s.model is not None]
    craft = _first(inputs.craft_poisoned, _SCREENED_ON)
    models = [s.white for s in (original, *innocents)]
    asked = [_asking(model, compute) for model in models]

    def screening(pool: Iterator[Drawn], wanted: int, at_most: int) -> Screening:
        return screen(
            pool,
            craft,
            original=asked[0],
            innocents=asked[1:],
            wanted=wanted,
            at_most=at_most,
            limit=_LIMIT,
        )

    with evaluating(*(model.classifier for model in models)):
        pool = draw(
            craft,
            derive_generator(compute.seed, "placebos"),
            transform=inputs.trigger.transform,
            given=given,
        )
        screened = screening(pool, wanted, len(given) + _DRAWN_AT_MOST * wanted)
        lacking = wanted - len(screened.kept)
        starts = [c.drawn for c in screened.refused if c.why_not == ANSWERS][: 2 * lacking]
        patterns: tuple[Drawn, ...] = ()
        if starts:
            patterns = yield from make(
                starts,
                craft,
                original=models[0].classifier,
                innocents=[model.classifier for model in models[1:]],
                generator=derive_generator(compute.seed, "placebos", "made"),
            )
        made = screening(iter(patterns), lacking, len(patterns)) if patterns else _NONE
    kept, refused = (*screened.kept, *made.kept), (*screened.refused, *made.refused)
    rule = inputs.trigger.rule
    missing = None
    if len(kept) < FEWEST_PLACEBOS:
        missing = (
            f"of {len(kept) + len(refused)} patterns as strong as the trigger the "
            f"original ignores {len(kept)}, and fewer than {FEWEST_PLACEBOS} are no null; give "
            "your own with --placebo, or three innocent models with --reference"
        )
    record = Placebos(
        kept=tuple(_describe(c, craft.clean, rule, picture=pictures) for c in kept),
        refused=tuple(_describe(c, craft.clean, rule, picture=False) for c in refused),
        l2=footprint(craft).mean_l2,
        shift=screened.shift,
        missing=missing,
    )
    return FoundPlacebos(tuple(c.drawn for c in kept), record)


def placebo_images(pattern: Drawn, inputs: Inputs, compute: Compute) -> AttackImages:
    """Arrange the images of an attack with a placebo in the trigger's place."""
    return attack_images(
        "placebo",
        _stamped(inputs.craft_poisoned, pattern),
        _stamped(inputs.held_out_poisoned, pattern),
        num_classes=inputs.num_classes,
        generator=derive_generator(compute.seed, "images", "placebo"),
    )


def screening_cost(inputs: Inputs, wanted: int) -> float:
    """Return images forwarded when about half of what is drawn serves."""
    n_models = 1 + len(inputs.with_role("reference"))
    n_images = min(_SCREENED_ON, len(inputs.craft_poisoned))
    return float(n_models * n_images * 4 * wanted)


def _asking(model: LoadedModel, compute: Compute) -> Asked:
    def ask(images: Tensor) -> Tensor:
        return predict_logits(
            model.classifier, images, batch_size=compute.batch_size, device=compute.device
        )

    return ask


def _first(poisoned: Poisoned, n: int) -> Poisoned:
    return replace(poisoned, **{f.name: getattr(poisoned, f.name)[:n] for f in fields(poisoned)})


def _stamped(poisoned: Poisoned, pattern: Drawn) -> Poisoned:
    return replace(poisoned, triggered=pattern.transform.stamp(poisoned.clean))


def _describe(candidate: Candidate, clean: Tensor, rule: TargetRule, *, picture: bool) -> Placebo:
    transform = candidate.drawn.transform
    png = None
    if picture and can_be_drawn(clean):
        first = clean[:1]
        grey = torch.full_like(unmarked(first), 0.5)
        grey = with_pixels(first, grey) if is_marked(first) else grey
        png = encode_png(transform.stamp(grey)[0])
    return Placebo(
        kind=candidate.drawn.kind,
        sha256=Trigger(transform=transform, rule=rule).sha256,
        l2=candidate.drawn.l2,
        original=candidate.original,
        innocent=candidate.innocent,
        shift=candidate.shift,
        why_not=candidate.why_not,
        png=png,
    )


def innocents_to_attack(inputs: Inputs, most: int) -> tuple[Subject, ...]:
    """Return the innocent models that are attacked with placebos too, given ones first."""
    found = inputs.with_role("reference")
    return tuple(sorted(found, key=lambda s: s.stand_in))[:most]
