"""What the perturbation that wakes a model is like: under noise, inside, elsewhere, by queries.

A re-activating perturbation is said to bring the old backdoor back, where a general one (a
universal perturbation made without the trigger) is something else that any model has. Then it
should stand random noise as the original's trigger does, look alike inside the network, carry over
to other models with that backdoor, and take fewer queries. Each of these is a table, in which
innocent models under the same trigger and the same attack stand beside: what they do as well says
nothing about a backdoor.

Source: Zhu, Liang, Wu (NeurIPS 2024, arXiv 2405.16134). docs/perturbations.md says how ours differ.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from bdaudit.cases.settings import AuditSettings
from bdaudit.cases.subjects import Inputs, Subject
from bdaudit.existence import ExistenceConfig
from bdaudit.existence.likeness import Onlooker, activation_likeness
from bdaudit.foundation.progress import Steps
from bdaudit.measuring.asking import ask
from bdaudit.measuring.attacking import KINDS, Attacker
from bdaudit.measuring.compute import Compute, derive_generator
from bdaudit.measuring.conditions import AttackImages
from bdaudit.measuring.runs import images_of
from bdaudit.measuring.store import RunStore, ScoredRun
from bdaudit.measuring.transfer import transfer_runs
from bdaudit.perturbation import apply_delta
from bdaudit.records import AttackRun, CurvePoint, Rate
from bdaudit.records.perturbations import (
    LayerLikeness,
    Likeness,
    Shown,
    TableName,
    Transferred,
    UnderNoise,
    UnderQueries,
)
from bdaudit.scoring import rate

__all__ = ["NOISE_RADII", "PerturbationTables", "measure_perturbations"]

NOISE_RADII = (0.0, 0.03, 0.06, 0.09)
"""Of the paper."""

_QUERY_SHARES = (0.05, 0.15, 0.35, 1.0)
"""Of the budget, at which success is looked at: the paper's 1,000 to 7,000 among the default's."""

_N_LIKENESS = 500


@dataclass(frozen=True)
class PerturbationTables:
    """The tables of one defended model; those not asked for are empty."""

    noise: tuple[UnderNoise, ...] = ()
    likeness: tuple[Likeness, ...] = ()
    transfer: tuple[Transferred, ...] = ()
    queries: tuple[UnderQueries, ...] = ()


def measure_perturbations(
    inputs: Inputs,
    compute: Compute,
    *,
    settings: AuditSettings,
    tables: Collection[TableName],
    store: RunStore,
    cache_dir: Path | None = None,
) -> Steps[PerturbationTables]:
    """Make the perturbations of one defended model and measure the tables that are asked for.

    Args:
        inputs: The defended model, its original, innocent models, and other models with the
            trigger as surrogates.
        compute: Device, batch size and seed.
        settings: Of the attacks; the first radius of its ladder is that of all perturbations.
        tables: Which.
        store: Finished attacks, found again by what determined them.
        cache_dir: Folder that keeps surrogates, where a query search starts from some.

    Raises:
        ConfigError: The defended model can only be queried.
        NumericsError: A model returned NaN or infinite scores.
    """
    bench = _Bench(inputs, compute, settings, Attacker(compute, store, cache_dir, settings.cold))
    shown: tuple[_Seen, ...] = ()
    if {"noise", "likeness"} & set(tables):
        shown = yield from bench.perturb()
    return PerturbationTables(
        noise=bench.under_noise(shown) if "noise" in tables else (),
        likeness=(yield from bench.likeness(shown)) if "likeness" in tables else (),
        transfer=(yield from bench.transfer()) if "transfer" in tables else (),
        queries=(yield from bench.queries()) if "queries" in tables else (),
    )


@dataclass(frozen=True)
class _Seen:
    """What a model is shown, on the held-out images (N, C, H, W)."""

    subject: Subject
    shown: Shown
    images: Tensor


@dataclass(frozen=True)
class _Bench:
    """One defended model with all that is measured on it."""

    inputs: Inputs
    compute: Compute
    settings: AuditSettings
    attacker: Attacker

    @property
    def eps(self) -> float:
        return self.settings.ladder[0]

    def perturb(self) -> Steps[tuple[_Seen, ...]]:
        """Make the perturbations by the white box, and list who is shown what."""
        (original,) = self.inputs.with_role("original")
        (defended,) = self.inputs.with_role("defended")
        triggered, clean = self._images("trigger"), self._images("no_trigger")
        bare, stamped = clean.held_out.images, triggered.held_out.images
        seen = [
            _Seen(original, "trigger", stamped),
            _Seen(original, "clean", bare),
            _Seen(defended, "trigger", stamped),
        ]
        for subject in (defended, *self.inputs.with_role("reference")):
            woken = yield from self._white(subject, triggered)
            seen.append(_Seen(subject, "reactivated", apply_delta(stamped, woken.delta)))
            if subject is defended:
                general = yield from self._white(subject, clean)
                seen.append(_Seen(subject, "general", apply_delta(bare, general.delta)))
            else:
                seen.append(_Seen(subject, "trigger", stamped))
            seen.append(_Seen(subject, "clean", bare))
        return tuple(seen)

    def under_noise(self, seen: Sequence[_Seen]) -> tuple[UnderNoise, ...]:
        """Add the same noise to all that is shown, and count again."""
        half, rows = self._images("trigger").held_out, []
        for radius in NOISE_RADII:
            generator = derive_generator(self.compute.seed, "noise on images", radius)
            noise = (2 * torch.rand(half.images.shape, generator=generator) - 1) * radius
            for each in seen:
                answers = ask(each.subject, (each.images + noise).clamp(0, 1), self.compute)
                wanted = half.labels if each.shown == "clean" else half.targets
                rows.append(
                    UnderNoise(
                        model=each.subject.name,
                        role=each.subject.role,
                        shown=each.shown,
                        radius=radius,
                        rate=_plain(rate(answers == wanted)),
                    )
                )
        return tuple(rows)

    def likeness(self, seen: Sequence[_Seen]) -> Steps[tuple[Likeness, ...]]:
        """Compare activations with those of the original on triggered images."""
        (original,) = self.inputs.with_role("original")
        half = self._images("trigger").held_out
        few = slice(_N_LIKENESS)
        others = [each for each in seen if (each.subject, each.shown) != (original, "trigger")]
        found = yield from activation_likeness(
            original.white.classifier,
            [Onlooker(e.subject.name, e.subject.white.classifier, e.images[few]) for e in others],
            clean=half.clean[few],
            triggered=half.images[few],
            config=ExistenceConfig(
                batch_size=self.compute.batch_size, precision=self.compute.precision
            ),
            device=self.compute.device,
        )
        return tuple(_likeness(each, layers) for each, layers in zip(others, found, strict=True))

    def transfer(self) -> Steps[tuple[Transferred, ...]]:
        """Make perturbations on other models, and show them to the defended one."""
        (defended,) = self.inputs.with_role("defended")
        images = self._images("trigger")
        own = yield from self._white(defended, images)
        rows = [_transferred(own.record, [defended])]
        config = KINDS["transfer"].configure(self.settings, self.eps)
        surrogates = self.inputs.with_role("surrogate")
        sources = [
            [subject]
            for subject in self.inputs.taking_part
            if subject is not defended and subject.model is not None
        ]
        if len(surrogates) > 1:
            sources.append(list(surrogates))
        for made_on in sources:
            # Shown to the others too, which makes it once for all of them when their turn comes.
            runs = yield from transfer_runs(
                [defended, *surrogates],
                images,
                config,
                surrogates=[subject.white for subject in made_on],
                compute=self.compute,
                store=self.attacker.store,
            )
            rows.append(_transferred(runs[0].record, made_on))
        return tuple(rows)

    def queries(self) -> Steps[tuple[UnderQueries, ...]]:
        """Look for the perturbations by asking alone, and see how far a search had come when."""
        (defended,) = self.inputs.with_role("defended")
        config = KINDS["query"].configure(self.settings, self.eps)
        if KINDS["query"].needs_surrogates(config, self.settings.cold):
            yield from self.attacker.prepare(replace(self.inputs, subjects=self._no_surrogates()))
        rows: list[UnderQueries] = []
        asked: list[tuple[Subject, Shown]] = [(defended, "reactivated"), (defended, "general")]
        asked += [(subject, "reactivated") for subject in self.inputs.with_role("reference")[:1]]
        for subject, shown in asked:
            images = self._images("trigger" if shown == "reactivated" else "no_trigger")
            (run,) = yield from self.attacker.attack(subject, images, config, self.inputs)
            for share in _QUERY_SHARES:
                wanted = round(share * self.settings.max_queries)
                point = _reached(run.record.query_curve, wanted)
                if point is None:
                    continue
                rows.append(
                    UnderQueries(
                        model=subject.name,
                        role=subject.role,
                        shown=shown,
                        queries=point.n_queries,
                        wanted=wanted,
                        asr=_plain(point.asr),
                    )
                )
        return tuple(rows)

    def _no_surrogates(self) -> tuple[Subject, ...]:
        """Everybody but the surrogates: a query search starts from what it can make itself."""
        return tuple(subject for subject in self.inputs.subjects if subject.role != "surrogate")

    def _white(self, subject: Subject, images: AttackImages) -> Steps[ScoredRun]:
        config = KINDS["white"].configure(self.settings, self.eps)
        (run,) = yield from self.attacker.attack(subject, images, config, self.inputs)
        return run

    def _images(self, condition: Literal["trigger", "no_trigger"]) -> AttackImages:
        return images_of(self.inputs, condition, self.compute)


def _plain(counted: Rate) -> Rate:
    """Return a rate without its bits, which no table compares image by image."""
    return counted.model_copy(update={"bits": None})


def _likeness(each: _Seen, layers: dict[str, float] | str) -> Likeness:
    reason = layers if isinstance(layers, str) else None
    alike = {} if isinstance(layers, str) else layers
    if not alike and reason is None:
        reason = "no layer of the original varies over these images"
    return Likeness(
        model=each.subject.name,
        role=each.subject.role,
        shown=each.shown,
        mean=sum(alike.values()) / len(alike) if alike else None,
        layers=tuple(LayerLikeness(layer=name, cka=value) for name, value in alike.items()),
        reason=reason,
    )


def _transferred(run: AttackRun, made_on: Sequence[Subject]) -> Transferred:
    return Transferred(
        made_on=tuple(subject.name for subject in made_on),
        archs=tuple(dict.fromkeys(subject.white.arch for subject in made_on)),
        role=made_on[0].role,
        asr=_plain(run.asr),
        delta_only=None if run.delta_only is None else _plain(run.delta_only),
    )


def _reached(curve: Sequence[CurvePoint], wanted: int) -> CurvePoint | None:
    """Return the last point of a curve at or below so many queries."""
    return max(
        (point for point in curve if point.n_queries <= wanted),
        key=lambda point: point.n_queries,
        default=None,
    )
