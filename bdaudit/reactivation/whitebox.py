"""White-box re-activation: small deltas that each send triggered images to their targets.

The attack is the same whatever images it is given. Handed images without the trigger, or another
model, it is a control (see `bdaudit.measuring.conditions`).

Source: the white-box attack of Zhu, Liang, Wu, "Breaking the False Sense of Security in Backdoor
Defense through Re-Activation Attack", NeurIPS 2024. We differ in the optimiser (theirs is kept as
`optimizer="research"`) and add the *specific* objective and the diagnostics.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from math import ceil, inf

import torch
from torch import Tensor, nn

from bdaudit.errors import BdauditError, ConfigError, DataError
from bdaudit.foundation.memory import free_on_card
from bdaudit.foundation.progress import Progress, Steps, reworded, within
from bdaudit.perturbation import cross_entropy
from bdaudit.reactivation.config import WhiteboxConfig
from bdaudit.reactivation.descent import Descent, descend
from bdaudit.reactivation.doubts import doubts_about_model, doubts_about_search, not_replayed
from bdaudit.reactivation.objective import (
    CraftSet,
    Objective,
    SpecificTerms,
    bytes_held,
    specific_objective,
    standard_objective,
)
from bdaudit.reactivation.recipes import RECIPES
from bdaudit.records import Diagnostic
from bdaudit.scoring import evaluating, predict_logits

__all__ = [
    "Search",
    "WhiteboxResult",
    "most_together",
    "reactivate_together",
    "reactivate_whitebox",
]

_FEW = 8
"""Images on which it is tried how much a pass holds."""

_MOST_IMAGES_ON_CARD = 1024
"""Images in one pass on a card; more fill none any better."""

_JUDGED_ON_CARD = 256
"""Images in one forward pass there, at least."""

_MOST_IMAGES, _MOST_BYTES = 200, 64 * 2**20
"""Images in one pass on a processor, and what it may hold of them for the way back."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class WhiteboxResult:
    """What a white-box search found.

    Attributes:
        delta: (1, C, H, W) float32 on the CPU; its norm never exceeds `config.eps`.
        config: The settings it was found with.
        seed: Initial seed of the generator that was passed in.
        loss_trace: Mean craft loss of each pass, measured on the way (delta moves meanwhile).
        craft_success: Share of craft images + delta classified as their target: optimistic, since
            delta was made on them.
        gradient_passes: Images differentiated, through whichever model, over craft images, all
            restarts together.
        delta_norm: Norm of delta in pixel units.
        diagnostics: What makes the search doubtful; see docs/reactivation.md.
    """

    delta: Tensor
    config: WhiteboxConfig
    seed: int
    loss_trace: tuple[float, ...]
    craft_success: float
    gradient_passes: float
    delta_norm: float
    diagnostics: tuple[Diagnostic, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Search:
    """One search among many on the same model.

    Attributes:
        triggered: (N, C, H, W) craft images in [0, 1] with the trigger on them (without it for a
            control). Left as they are; moved to the classifier's device, once where several
            searches have the same.
        targets: (N,) int64, the class each image should be taken to; no -1 among them.
        config: Settings. Those of searches that are made together differ in eps alone.
        generator: Seeded CPU generator, the only source of randomness; one of its own.
        specific: What to hold still, for the specific objective.
    """

    triggered: Tensor
    targets: Tensor
    config: WhiteboxConfig
    generator: torch.Generator
    specific: SpecificTerms | None = None


def reactivate_whitebox(
    classifier: nn.Module,
    triggered: Tensor,
    targets: Tensor,
    *,
    config: WhiteboxConfig,
    generator: torch.Generator,
    specific: SpecificTerms | None = None,
) -> Steps[WhiteboxResult]:
    """Search one delta, no longer than eps, that takes craft images to their targets.

    Args:
        classifier: Maps images (N, C, H, W) in [0, 1] to logits (N, K). Its mode, parameters and
            their `requires_grad` are left as they were, also on failure.
        triggered: As in `Search`.
        targets: As in `Search`.
        config: Settings.
        generator: Seeded CPU generator, the only source of randomness.
        specific: What to hold still, for the specific objective.

    Yields:
        One `Progress` a pass.

    Returns:
        The best delta found. Its success must be measured on held-out images.

    Raises:
        ConfigError: The objective and `specific` do not agree.
        DataError: Images and targets do not fit each other or the model's classes.
        ModelError: The model's answers cannot be differentiated, or are not (N, K).
        NumericsError: Not one step had a finite loss and gradient.
    """
    search = Search(
        triggered=triggered,
        targets=targets,
        config=config,
        generator=generator,
        specific=specific,
    )
    (outcome,) = yield from reactivate_together(classifier, [search])
    if isinstance(outcome, BdauditError):
        raise outcome
    return outcome


def reactivate_together(
    classifier: nn.Module, searches: Sequence[Search]
) -> Steps[tuple[WhiteboxResult | BdauditError, ...]]:
    """Search many deltas on one model at once, all mini-batches of a step in one pass.

    Every search takes the mini-batches that it would take alone, and what the others do changes
    its figures by rounding only. Where a card has too little memory for all, halves follow one
    another.

    Args:
        classifier: As for `reactivate_whitebox`.
        searches: One or more.

    Yields:
        Progress, pass by pass, of all together.

    Returns:
        What each search found, or why it failed; one that fails does not stop the others.

    Raises:
        ConfigError: Searches differ in more than eps.
    """
    _check_alike(searches)
    states = [search.generator.get_state() for search in searches]
    total = sum(search.config.restarts * search.config.n_passes for search in searches)
    try:
        return (yield from _Together(classifier, searches).run())
    except torch.OutOfMemoryError:
        if len(searches) == 1:
            raise
    # Only here is what the larger batch held given back.
    torch.cuda.empty_cache()
    for search, state in zip(searches, states, strict=True):
        search.generator.set_state(state)
    found: tuple[WhiteboxResult | BdauditError, ...] = ()
    half = ceil(len(searches) / 2)
    for part in (searches[:half], searches[half:]):
        share = sum(s.config.restarts * s.config.n_passes for s in part) / total
        steps = reactivate_together(classifier, part)
        found += yield from reworded(steps, within(1.0 - share if found else 0.0, share))
    return found


def most_together(classifier: nn.Module, images: Tensor, config: WhiteboxConfig) -> int:
    """Return how many searches on a model should go together.

    On a card as many as half of the memory that is free holds, on a processor as many as still
    fit where it computes fast: large mini-batches gain nothing there.

    Args:
        classifier: Maps (n, C, H, W) in [0, 1] to logits (n, K).
        images: (N, C, H, W), the craft images of one search.
        config: Settings of the searches.
    """
    size = min(config.batch_size, len(images))
    few, fewer = min(_FEW, size), min(_FEW, size) // 2
    craft = _Placing(classifier, config).place(images[:few], torch.zeros(few, dtype=torch.int64))
    with evaluating(classifier), _frozen(classifier):
        # What does not grow with the images, as weights that were cast, is in both.
        held, less = (
            bytes_held(classifier, craft.images[:n], bf16=config.autocast == "bf16") if n else 0
            for n in (few, fewer)
        )
    a_search = max(1, (held - less) * size // (few - fewer))
    device = craft.images.device
    if device.type == "cuda":
        return max(1, min(free_on_card(device) // 2 // a_search, _MOST_IMAGES_ON_CARD // size))
    return max(1, min(_MOST_BYTES // a_search, _MOST_IMAGES // size))


class _Together:
    """Searches on one model, from their checks to their results."""

    def __init__(self, classifier: nn.Module, searches: Sequence[Search]) -> None:
        self.classifier = classifier
        self.searches = searches
        self.config = searches[0].config
        self.specific = searches[0].specific
        self.objective = self._objective()
        self.outcomes: list[WhiteboxResult | BdauditError | None] = [None] * len(searches)
        self.kept: list[_Kept] = []
        self.doubts: list[Diagnostic] = []
        self._looked_at: dict[tuple[int, int], tuple[list[Diagnostic], float, float]] = {}

    def run(self) -> Steps[tuple[WhiteboxResult | BdauditError, ...]]:
        models = [self.classifier]
        if self.specific is not None and self.specific.reference is not None:
            models.append(self.specific.reference)
        with evaluating(*models), _frozen(*models):
            self._begin()
            by_descent = {id(kept.descent): kept for kept in self.kept}

            def ended(descent: Descent) -> Descent | None:
                kept = by_descent.pop(id(descent))
                following = self._close(kept)
                if following is not None:
                    by_descent[id(following)] = kept
                return following

            if self.kept:
                device = self.kept[0].descent.craft.images.device
                for _ in descend(
                    [kept.descent for kept in self.kept],
                    self.objective,
                    ended,
                    # Steps of columns come from Python anew at every projection.
                    record=self.config.graph
                    and device.type == "cuda"
                    and not (self.config.steps or self.config.marked),
                    noted=self._note,
                ):
                    yield self._progress()
            for kept in self.kept:
                if self.outcomes[kept.number] is None:
                    self.outcomes[kept.number] = self._result(kept)
        yield self._progress(over=True)
        assert None not in self.outcomes
        return tuple(outcome for outcome in self.outcomes if outcome is not None)

    def _begin(self) -> None:
        """Check every search, and start those that can be made."""
        placing = _Placing(self.classifier, self.config)
        for number, search in enumerate(self.searches):
            try:
                _check_inputs(search.triggered, search.targets, search.config, search.specific)
                craft = placing.place(search.triggered, search.targets, search.specific)
                doubts, success, loss = self._look_at(craft)
            except BdauditError as error:
                self.outcomes[number] = error
                continue
            seed = search.generator.initial_seed()
            descent = self._descent(search, craft)
            self.kept.append(_Kept(number, search, seed, descent, doubts, success, loss))

    def _look_at(self, craft: CraftSet) -> tuple[list[Diagnostic], float, float]:
        """Return doubts about the model, and how craft images fare without a delta.

        Once for each set of craft images.
        """
        key = (id(craft.images), id(craft.targets))
        if key not in self._looked_at:
            doubts = doubts_about_model(self.classifier, craft, self.config)
            nothing = torch.zeros_like(craft.images[:1])
            self._looked_at[key] = (doubts, *_judge(self.classifier, craft, nothing, self.config))
        return self._looked_at[key]

    def _descent(self, search: Search, craft: CraftSet) -> Descent:
        start = _start(craft, search.config, search.generator)
        return Descent(craft, search.config, search.generator, start)

    def _close(self, kept: _Kept) -> Descent | None:
        """Judge a descent that has ended; give the next one where another was asked for."""
        descent = kept.descent
        if descent.error is not None:
            self.outcomes[kept.number] = descent.error
            return None
        kept.n_images += descent.images
        try:
            success, loss = _judge(self.classifier, descent.craft, descent.delta, self.config)
        except BdauditError as error:
            self.outcomes[kept.number] = error
            return None
        if success > kept.best_success:
            kept.best, kept.best_success, kept.best_loss = descent, success, loss
        kept.restart += 1
        if kept.restart == self.config.restarts:
            return None
        kept.descent = self._descent(kept.search, descent.craft)
        return kept.descent

    def _result(self, kept: _Kept) -> WhiteboxResult:
        best, config = kept.best, kept.search.config
        assert best is not None
        gained = kept.best_success > kept.success_without or kept.best_loss < kept.loss_without
        delta = best.delta.cpu().contiguous()
        return WhiteboxResult(
            delta=delta,
            config=config,
            seed=kept.seed,
            loss_trace=tuple(best.loss_trace),
            craft_success=kept.best_success,
            gradient_passes=kept.n_images * self.objective.models_per_image / len(best.craft),
            delta_norm=float(config.ball.norm(delta)),
            diagnostics=(
                *kept.doubts,
                *(self.doubts if kept is self.kept[0] else ()),
                *doubts_about_search(best, eps=config.eps, gained=gained),
            ),
        )

    def _note(self, why: str) -> None:
        self.doubts.append(not_replayed(why))

    def _objective(self) -> Objective:
        loss, bf16 = RECIPES[self.config.optimizer].loss, self.config.autocast == "bf16"
        if self.specific is None:
            return standard_objective(self.classifier, loss, bf16=bf16)
        return specific_objective(self.classifier, loss, self.specific, bf16=bf16)

    def _progress(self, *, over: bool = False) -> Progress:
        a_search = self.config.restarts * self.config.n_passes
        total = a_search * len(self.searches)
        running = [kept for kept in self.kept if kept.restart < self.config.restarts]
        done = total - sum(
            a_search - kept.restart * self.config.n_passes - kept.descent.passes
            for kept in running
            if self.outcomes[kept.number] is None
        )
        radii = [search.config.eps for search in self.searches]
        eps = f"{radii[0]:g}" if len(set(radii)) == 1 else f"{min(radii):g} to {max(radii):g}"
        won = [kept.success for kept in self.kept]
        note = ""
        if won:
            low, high = min(won), max(won)
            note = f"{low:.0%} of craft images"
            if len(won) > 1:
                note = f"{low:.0%} to {high:.0%} of craft images, {len(running)} still searching"
        return Progress(
            step=f"white box, {self.config.norm} eps {eps}",
            done=total if over else done,
            total=total,
            note=note,
        )


@dataclass(slots=True, eq=False)
class _Kept:
    """A search on its way: its number among all, its running descent, and the best so far."""

    number: int
    search: Search
    seed: int
    descent: Descent
    doubts: list[Diagnostic]
    success_without: float
    loss_without: float
    restart: int = 0
    n_images: int = 0
    best: Descent | None = None
    best_success: float = -1.0
    best_loss: float = inf

    @property
    def success(self) -> float:
        """Share of craft images won, as far as is known now."""
        return self.best_success if self.best is not None else self.descent.success


def _start(craft: CraftSet, config: WhiteboxConfig, generator: torch.Generator) -> Tensor:
    shape = (1, *craft.images.shape[1:])
    start = RECIPES[config.optimizer].start(shape, config.ball, generator)
    return start.to(craft.images.device)


def _judge(
    classifier: nn.Module, craft: CraftSet, delta: Tensor, config: WhiteboxConfig
) -> tuple[float, float]:
    """Return the share of craft images + delta at their targets, and their mean cross-entropy."""
    device = craft.images.device
    logits = predict_logits(
        classifier,
        craft.images,
        batch_size=max(config.batch_size, _JUDGED_ON_CARD)
        if device.type == "cuda"
        else config.batch_size,
        device=device,
        delta=delta,
    )
    targets = craft.targets.cpu()
    success = float((logits.argmax(1) == targets).float().mean())
    return success, float(cross_entropy(logits, targets).mean())


class _Placing:
    """Brings images to where a model is, in the memory format to be used there, each once."""

    def __init__(self, classifier: nn.Module, config: WhiteboxConfig) -> None:
        tensors = chain(classifier.parameters(), classifier.buffers())
        self.device = next((tensor.device for tensor in tensors), torch.device("cpu"))
        wanted = (
            self.device.type == "cuda" if config.channels_last is None else config.channels_last
        )
        self.layout = torch.channels_last if wanted else torch.contiguous_format
        self._placed: dict[int, tuple[Tensor, Tensor]] = {}
        self._sets: dict[tuple[int, ...], CraftSet] = {}

    def place(
        self, images: Tensor, targets: Tensor, specific: SpecificTerms | None = None
    ) -> CraftSet:
        """Return the craft images of one search; the same object where all of it is the same."""
        held = [self._images(images), self._targets(targets)]
        if specific is not None:
            held += [self._images(specific.clean), self._targets(specific.labels)]
        key = tuple(id(tensor) for tensor in held)
        return self._sets.setdefault(key, CraftSet(*held))

    def _images(self, images: Tensor) -> Tensor:
        return self._once(
            images,
            lambda: images.detach().to(
                device=self.device, dtype=torch.float32, memory_format=self.layout
            ),
        )

    def _targets(self, targets: Tensor) -> Tensor:
        return self._once(targets, lambda: targets.to(self.device))

    def _once(self, tensor: Tensor, place: Callable[[], Tensor]) -> Tensor:
        # What was given is held too, so that no other gets its id meanwhile.
        if id(tensor) not in self._placed:
            self._placed[id(tensor)] = (tensor, place())
        return self._placed[id(tensor)][1]


@contextmanager
def _frozen(*modules: nn.Module) -> Iterator[None]:
    """Let no parameter require a gradient meanwhile, then put the flags back.

    A gradient with respect to delta alone would leave `.grad` untouched anyway, but autograd
    would keep every activation that a weight's gradient needs.
    """
    thawed = [p for module in modules for p in module.parameters() if p.requires_grad]
    for parameter in thawed:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in thawed:
            parameter.requires_grad_(True)


def _check_alike(searches: Sequence[Search]) -> None:
    if not searches:
        raise ConfigError("white box: expected one search or more, got none")
    first = searches[0]
    for search in searches[1:]:
        if replace(search.config, eps=first.config.eps) != first.config:
            raise ConfigError("white box: searches made together may differ in eps alone")
        if _held_still(search.specific) != _held_still(first.specific):
            raise ConfigError(
                "white box: searches made together need one reference, and the same weights"
            )
        if search.triggered.shape[1:] != first.triggered.shape[1:]:
            raise DataError(
                "white box: searches made together need images of one shape, got "
                f"{tuple(first.triggered.shape[1:])} and {tuple(search.triggered.shape[1:])}"
            )


def _held_still(specific: SpecificTerms | None) -> tuple[int, float, float] | None:
    if specific is None:
        return None
    return id(specific.reference), specific.clean_weight, specific.reference_weight


def _check_inputs(
    triggered: Tensor, targets: Tensor, config: WhiteboxConfig, specific: SpecificTerms | None
) -> None:
    if triggered.ndim != 4 or targets.shape != triggered.shape[:1] or len(targets) == 0:
        raise DataError(
            "white box: expected images (N, C, H, W) and targets (N,) with N of at least 1, "
            f"got {tuple(triggered.shape)} and {tuple(targets.shape)}"
        )
    if int(targets.min()) < 0:
        raise DataError(
            "white box: a target of -1 marks an image that does not count; leave those out"
        )
    if (config.objective == "specific") != (specific is not None):
        raise ConfigError(
            'white box: objective "specific" needs SpecificTerms, and only it; got '
            f"objective {config.objective!r} with specific={'none' if specific is None else 'set'}"
        )
    if specific is not None and specific.clean.shape != triggered.shape:
        raise DataError(
            "white box: the specific objective needs the clean craft images row by row; "
            f"got {tuple(specific.clean.shape)} for {tuple(triggered.shape)} triggered ones"
        )
