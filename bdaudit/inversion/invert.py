"""One method of trigger inversion from start to end: race, scores, and triggers in full."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import Tensor, nn

from bdaudit.inversion.anomaly import Anomalies, score_arms
from bdaudit.inversion.arms import Arm
from bdaudit.inversion.batching import Asker
from bdaudit.inversion.config import InversionConfig, Method
from bdaudit.inversion.neural_cleanse import NeuralCleanseSearch
from bdaudit.inversion.race import Race, run_race
from bdaudit.inversion.recovered import Recovered
from bdaudit.inversion.universal import UniversalSearch
from bdaudit.progress import Progress, Steps, reworded

__all__ = ["Inverted", "invert_with", "make_search"]

Search = UniversalSearch | NeuralCleanseSearch

_RACE_SHARE = 0.7  # of a method's time, for the progress bar


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
    """

    method: Method
    unit: str
    race: Race
    anomalies: Anomalies
    recovered: tuple[Recovered, ...]
    differentiated: int
    naive: float


def invert_with(
    method: Method,
    classifiers: Sequence[nn.Module],
    images: Tensor,
    arms: Sequence[Arm],
    *,
    config: InversionConfig,
    wanted: Sequence[int],
    n_tests: int,
    seed: int,
    batch_size: int,
    bf16: bool = False,
) -> Steps[Inverted]:
    """Look for triggers with one method.

    Args:
        method: Which.
        classifiers: The original, then the innocent models; each maps (n, C, H, W) in [0, 1] to
            logits (n, K), in eval mode, no parameter requiring a gradient.
        images: (N, C, H, W) craft images, where the models are.
        arms: Hypotheses about the target.
        config: Settings.
        wanted: Arms whose trigger may be asked for; the others only show what chance does.
        n_tests: Comparisons in all methods together.
        seed: Every model meets the same random draws.
        batch_size: Most images in one forward pass.
        bf16: Run the passes under bfloat16 autocast.

    Raises:
        NumericsError: A gradient is not finite.
    """
    askers = [Asker(c, images, batch_size=batch_size, bf16=bf16) for c in classifiers]
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
        _within(0.0, _RACE_SHARE),
    )
    raced = sum(asker.differentiated for asker in askers)
    anomalies = score_arms(race.sizes[:, race.finished], n_tests=n_tests)
    chosen = _choose(race, anomalies, wanted, config)
    recovered = []
    for place, arm in enumerate(chosen):
        steps = searches[0].recover(
            arm,
            searches[1:],  # type: ignore[arg-type]
            n_passes=config.n_passes,
            seed=seed,
        )
        share = (1 - _RACE_SHARE) / len(chosen)
        recovered.append((yield from reworded(steps, _within(_RACE_SHARE + place * share, share))))
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
    )


def make_search(
    method: Method, asker: Asker, arms: Sequence[Arm], config: InversionConfig
) -> Search:
    """Return the search of a method on one model, at its start."""
    if method == "universal":
        return UniversalSearch(asker, arms, config.universal)
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


def _within(first: float, share: float) -> Callable[[Progress], Progress]:
    def change(event: Progress) -> Progress:
        done = event.done / event.total if event.total else 1.0
        return replace(event, done=first + share * done, total=1.0)

    return change
