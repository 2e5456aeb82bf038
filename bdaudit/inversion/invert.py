"""One method of trigger inversion from start to end: race, scores, and triggers in full."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from bdaudit.errors import ConfigError
from bdaudit.foundation.progress import Progress, Steps, reworded, within
from bdaudit.inversion.anomaly import LEAST_SPREAD, Anomalies, residuals, score_arms
from bdaudit.inversion.arms import Arm, is_won, make_arms
from bdaudit.inversion.batching import Asker
from bdaudit.inversion.class_map import class_map_of
from bdaudit.inversion.config import NOMINATORS, InversionConfig, Method
from bdaudit.inversion.embedded import EmbeddedSearch
from bdaudit.inversion.feature_decoupling import decouple
from bdaudit.inversion.neural_cleanse import NeuralCleanseSearch
from bdaudit.inversion.neuron_noise import shake
from bdaudit.inversion.race import Race, run_race
from bdaudit.inversion.recovered import Recovered
from bdaudit.inversion.universal import UniversalSearch
from bdaudit.inversion.warp import WarpSearch

__all__ = [
    "Inverted",
    "ask_where",
    "demand_classifier",
    "invert_with",
    "log_odds_against",
    "make_search",
    "recover_in_full",
]

Search = UniversalSearch | WarpSearch | NeuralCleanseSearch | EmbeddedSearch

_NO_P_VALUES = (
    "{} looks at where answers go, and how much innocent models differ in that is not known, so "
    "its figures carry no p-value; run the methods of --method auto beside it"
)
_RACE_SHARE = 0.7  # of a method's time, for the progress bar


def demand_classifier(what: str, *, is_detector: bool) -> None:
    """Refuse to look for an unknown trigger in an object detector.

    No search knows that the fourth channel of a detector's images marks a box: it would move the
    box and call that a trigger.

    Args:
        what: What was to be done, for the message.
        is_detector: Whether the model is one, or its images are marked.

    Raises:
        ConfigError: It is.
    """
    if is_detector:
        raise ConfigError(
            f"{what}: expected a model of whole images, got a detector; give the trigger: looking "
            "for an unknown one in a detector is not supported"
        )


@dataclass(frozen=True, slots=True, eq=False)
class Inverted:
    """What one method found.

    Attributes:
        method: Which.
        unit: Of its sizes.
        race: How far every arm came.
        anomalies: Scores of the arms in `race.finished`, in that order.
        recovered: Triggers in full, the most suspicious target first.
        differentiated: Images that were differentiated, on all models.
        naive: The same had every arm gone as far as the recovered ones did.
        least_spread: What the scores took as the least spread.
    """

    method: Method
    unit: str
    race: Race
    anomalies: Anomalies
    recovered: tuple[Recovered, ...]
    differentiated: int
    naive: float
    least_spread: float = LEAST_SPREAD

    def p_value_without(self, left_out: Sequence[int], arm: int, *, n_tests: int) -> float | None:
        """Return the p-value of an arm had some of the innocent models not been there.

        Args:
            left_out: Which of them, the first being 0.
            arm: One that finished the race.
            n_tests: As for `invert_with`.
        """
        rows = [0, *(k for k in range(1, len(self.race.sizes)) if k - 1 not in left_out)]
        sizes = self.race.sizes[rows][:, self.race.finished]
        scored = score_arms(sizes, n_tests=n_tests, least_spread=self.least_spread)
        p_values = scored.p_values
        return None if p_values is None else p_values[self.race.finished.index(arm)]


def invert_with(
    method: Method,
    classifiers: Sequence[nn.Module],
    images: Tensor,
    labels: Tensor,
    arms: Sequence[Arm],
    *,
    config: InversionConfig,
    wanted: Sequence[int],
    n_tests: int,
    seed: int,
    batch_size: int,
    bf16: bool = False,
    least_spread: float = LEAST_SPREAD,
) -> Steps[Inverted]:
    """Look for triggers with one method.

    Args:
        method: Which.
        classifiers: The original, then the innocent models; each maps (n, C, H, W) in [0, 1] to
            logits (n, K), in eval mode, no parameter requiring a gradient.
        images: (N, C, H, W) craft images, where the models are.
        labels: (N,) their true labels, there too.
        arms: Hypotheses about the target.
        config: Settings.
        wanted: Arms whose trigger may be asked for; the others only show what chance does.
        n_tests: Comparisons in all methods together.
        seed: Every model meets the same random draws.
        batch_size: Most images in one forward pass.
        bf16: Run the passes under bfloat16 autocast.
        least_spread: As for `score_arms`.

    Raises:
        NumericsError: A gradient is not finite.
    """
    askers = [Asker(c, images, batch_size=batch_size, bf16=bf16) for c in classifiers]
    if method in NOMINATORS:
        return (yield from _nominate(method, askers, labels, arms, config, wanted, seed))
    searches = [make_search(method, asker, arms, config) for asker in askers]
    title = searches[0].title
    race = yield from reworded(
        run_race(
            searches,
            n_arms=len(arms),
            min_arms=config.min_arms,
            seed=seed,
            title=title,
            always=wanted if len(wanted) < len(arms) else (),
        ),
        within(0.0, _RACE_SHARE),
    )
    raced = sum(asker.differentiated for asker in askers)
    anomalies = score_arms(race.sizes[:, race.finished], n_tests=n_tests, least_spread=least_spread)
    chosen = _choose(race, anomalies, wanted, config)
    recovered = []
    for place, arm in enumerate(chosen):
        share = (1 - _RACE_SHARE) / len(chosen)
        steps = recover_in_full(searches, arm, labels.cpu(), config=config, seed=seed)
        part = within(_RACE_SHARE + place * share, share)
        recovered.append((yield from reworded(steps, part)))
    yield Progress(title, 1, 1)
    total = sum(asker.differentiated for asker in askers)
    return Inverted(
        method=method,
        unit=searches[0].unit,
        race=race,
        anomalies=anomalies,
        recovered=tuple(recovered),
        differentiated=total,
        naive=_naive_cost(race, searches[0].n_stages, raced, (total - raced) / len(chosen)),
        least_spread=least_spread,
    )


def recover_in_full(
    searches: Sequence[Search], arm: int, labels: Tensor, *, config: InversionConfig, seed: int
) -> Steps[Recovered]:
    """Make the trigger of one arm in full.

    Where it only has to take images away from their class, it is read from the original's answers
    on craft images where it takes them, and the trigger is made once more toward that.

    Args:
        searches: The original's first; each has gone through the race.
        arm: Which.
        labels: (N,) true labels of the craft images, on the CPU.
        config: Settings.
        seed: Of the mini-batches.
    """

    def recover() -> Steps[Recovered]:
        return searches[0].recover(
            arm,
            searches[1:],  # type: ignore[arg-type]
            n_passes=config.n_passes,
            seed=seed,
        )

    found = yield from recover()
    if searches[0].arms[arm].rule is not None:
        return found
    asker = searches[0].asker
    with torch.no_grad():
        parts = torch.split(asker.images, asker.batch_size)
        logits = torch.cat([asker.logits(found.transform.apply(part, None)) for part in parts])
    asker.forwarded += len(logits)
    rule = class_map_of(labels, logits.argmax(1).cpu(), logits.shape[1])
    (known,), _ = make_arms([rule], labels, logits.shape[1])
    for search in searches:
        search.arms = [*search.arms[:arm], known, *search.arms[arm + 1 :]]
    again = yield from recover()
    return replace(again, rule=rule)


def _nominate(
    method: Method,
    askers: Sequence[Asker],
    labels: Tensor,
    arms: Sequence[Arm],
    config: InversionConfig,
    wanted: Sequence[int],
    seed: int,
) -> Steps[Inverted]:
    """Ask a method that needs no hypothesis where it sends images, and make a trigger toward that.

    Sizes are log2 of the odds against an image of another class being sent to a class. On innocent
    models many images may go to one class as well, so these are no gains that a normal
    distribution describes, and there are no p-values.
    """
    answers, differentiated = [], 0
    for asker in askers:
        sent, cost = yield from ask_where(
            method,
            asker.classifier,
            asker.images,
            labels,
            config=config,
            generator=torch.Generator().manual_seed(seed),
        )
        answers.append(sent.cpu())
        differentiated += cost
    sizes = torch.stack([log_odds_against(sent, arms) for sent in answers])
    gains = residuals(sizes)
    arm = max((k for k in wanted if arms[k].rule), key=lambda k: float(gains[k]))
    searches = [UniversalSearch(asker, arms, config.universal) for asker in askers]
    for stage in range(searches[0].n_stages):
        for search in searches:
            yield Progress(search.title, stage, searches[0].n_stages)
            search.advance(stage, [arm], torch.Generator().manual_seed(seed + stage))
    recovered = yield from searches[0].recover(
        arm, searches[1:], n_passes=config.n_passes, seed=seed
    )
    total = differentiated + sum(asker.differentiated for asker in askers)
    return Inverted(
        method=method,
        unit="odds against",
        race=Race(sizes, (None,) * len(arms)),
        anomalies=Anomalies(gains, None, None, None, None, _NO_P_VALUES.format(method)),
        recovered=(recovered,),
        differentiated=total,
        naive=float(total),
    )


def ask_where(
    method: Method,
    classifier: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    config: InversionConfig,
    generator: torch.Generator,
) -> Steps[tuple[Tensor, int]]:
    """Ask one model where it sends images, by a method that needs no hypothesis about the target.

    Args:
        method: One of `NOMINATORS`.
        classifier: The model.
        images: (N, C, H, W) clean craft images, where the model is.
        labels: (N,) true labels, there too.
        config: Settings.
        generator: Seeded CPU generator.

    Returns:
        The answers (N,); images differentiated.
    """
    if method == "neuron-noise":
        settings = config.neuron_noise
        return (yield from shake(classifier, images, labels, config=settings, generator=generator))
    _, answers, cost = yield from decouple(
        classifier, images, labels, config=config.feature_decoupling, generator=generator
    )
    return answers, cost


def log_odds_against(answers: Tensor, arms: Sequence[Arm]) -> Tensor:
    """Return log2 of the odds (n,) against an arm's image being sent to its target."""
    odds = []
    for arm in arms:
        sent = is_won(answers[arm.indices], arm.targets).double().mean()
        least = 0.5 / len(arm)  # nothing counted is not nothing at all
        sent = sent.clamp(least, 1 - least)
        odds.append(((1 - sent) / sent).log2().float())
    return torch.stack(odds)


def make_search(
    method: Method, asker: Asker, arms: Sequence[Arm], config: InversionConfig
) -> Search:
    """Return the search of a method on one model, at its start."""
    if method == "universal":
        return UniversalSearch(asker, arms, config.universal)
    if method == "warp":
        return WarpSearch(asker, arms, config.warp)
    if method == "embedded":
        return EmbeddedSearch(
            asker,
            arms,
            config.embedded,
            universal=config.universal,
            neural_cleanse=config.neural_cleanse,
        )
    return NeuralCleanseSearch(asker, arms, config.neural_cleanse)


def _choose(
    race: Race, anomalies: Anomalies, wanted: Sequence[int], config: InversionConfig
) -> list[int]:
    """Pick the arms to be made in full: the first in any case, others where they stand out too."""
    ranked = sorted(
        (-float(gain), arm)
        for gain, arm in zip(anomalies.gains, race.finished, strict=True)
        if arm in wanted
    )
    p_values = dict(zip(race.finished, anomalies.p_values or (), strict=False))
    return [
        arm
        for place, (_, arm) in enumerate(ranked[: config.n_candidates])
        if place == 0 or p_values.get(arm, 1.0) <= config.unsure_p
    ]


def _naive_cost(race: Race, n_stages: int, raced: int, one_in_full: float) -> float:
    """Count images differentiated if all arms had gone all the way and been made in full."""
    ran = [n_stages if stage is None else stage + 1 for stage in race.dropped_after]
    return len(ran) * (raced * n_stages / sum(ran) + one_in_full)
