"""Query-based re-activation: one small delta, found by asking alone.

The attack is handed something that answers, never a model: scores or top labels for images, every
image counted. It is the same attack whatever images it is given, so that it can be its own control
(see `bdaudit.measuring.conditions`).

Source: the query-based attack of Zhu, Liang, Wu, "Breaking the False Sense of Security in Backdoor
Defense through Re-Activation Attack", NeurIPS 2024. Their search is kept as `schedule="research"`;
ours is described in docs/query.md, and measured against it in docs/query-evidence.md.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from bdaudit.errors import DataError, ModelError, NumericsError
from bdaudit.foundation.digests import digest_tensors
from bdaudit.foundation.progress import Progress, Steps
from bdaudit.reactivation.doubts import nothing_changed
from bdaudit.reactivation.objective import CraftSet
from bdaudit.reactivation.query_config import QueryConfig
from bdaudit.reactivation.query_distil import DistilSearch
from bdaudit.reactivation.query_probes import ProbeSearch
from bdaudit.reactivation.query_race import RaceSearch
from bdaudit.reactivation.query_repeat import RepeatSearch
from bdaudit.reactivation.query_search import QuerySearch
from bdaudit.reactivation.query_square import SquareSearch
from bdaudit.reactivation.query_state import Milestone, QueryPoint, QueryState
from bdaudit.records import Diagnostic

__all__ = ["Ask", "QueryResult", "reactivate_query"]

Ask = Callable[[Tensor], Tensor]
"""Images (n, C, H, W) in [0, 1] to log-scale scores (n, K) or top labels (n,), on any device."""

_N_REPEATED = 8
_RACE_SHARE = 0.1  # of the budget, at most, for choosing among finished perturbations
_MILESTONE_GROWTH = 1.25


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class QueryResult:
    """What a query search found.

    Attributes:
        delta: (1, C, H, W) float32 on the CPU; its norm never exceeds `config.eps`.
        config: The settings it was found with.
        seed: Initial seed of the generator that was passed in.
        n_queries: Images asked about, never above `config.max_queries`.
        trace: One point a question.
        milestones: The perturbation the search would have given after fewer queries; scored on
            held-out images they make the curve of ASR against queries.
        craft_success: Share of the craft images asked about in the closing race that delta took
            to their targets: optimistic, since it was made on them. `None` without a race.
        n_tried: Candidates put to a test: squares, refits of the student, finalists.
        n_accepted: Those that passed it.
        delta_norm: Norm of delta in pixel units.
        state: Where the search ended, which is where it may be read again.
        diagnostics: What makes the search doubtful; see docs/query.md.
    """

    delta: Tensor
    config: QueryConfig
    seed: int
    n_queries: int
    trace: tuple[QueryPoint, ...]
    milestones: tuple[Milestone, ...]
    craft_success: float | None
    n_tried: int
    n_accepted: int
    delta_norm: float
    state: QueryState
    diagnostics: tuple[Diagnostic, ...]


def reactivate_query(
    ask: Ask,
    triggered: Tensor,
    targets: Tensor,
    *,
    config: QueryConfig,
    generator: torch.Generator,
    surrogates: Sequence[nn.Module] = (),
    start: Tensor | None = None,
    state: QueryState | None = None,
    checkpoint: Callable[[QueryState], None] | None = None,
    identity: Mapping[str, str] | None = None,
) -> Steps[QueryResult]:
    """Search one delta, no longer than eps, that takes craft images to their targets.

    Args:
        ask: Answers; each image in a call is one query. Whatever it raises ends the search, which
            can be resumed from its last checkpoint.
        triggered: (N, C, H, W) craft images in [0, 1] with the trigger on them (without it for a
            control). Left as they are.
        targets: (N,) int64, the class each image should be taken to; no -1 among them.
        config: Settings.
        generator: Seeded CPU generator, the only source of randomness.
        surrogates: Classifiers that can be differentiated and may resemble the one asked: the
            suspected original, the original put through a defence. Their tensors are left as they
            are. None for a cold search. The research schedule has no use for them.
        start: (1, C, H, W) to start from; `None` takes the surrogates' delta, or zero.
        state: Where to go on; `None` starts afresh.
        checkpoint: Given the state right after every answer that was paid for.
        identity: The model asked, by name (a digest, an address); compared with that of `state`.

    Yields:
        One `Progress` a question.

    Returns:
        The best delta found. Its success must be measured on held-out images.

    Raises:
        ConfigError: The state belongs to another search; the message says what changed.
        DataError: Images and targets do not fit each other.
        ModelError: The answers do not have the form that `config.feedback` promises.
        NumericsError: A score is NaN or infinite.
    """
    craft = _place(triggered, targets)
    fingerprint = _fingerprint(config, craft, surrogates, start, generator, identity)
    run = _Run(config, craft, surrogates, start, generator, fingerprint)
    if state is not None:
        state.check_same(fingerprint)
        run.resume(state)
    while config.eps > 0:
        images = run.propose()
        if len(images) == 0:
            break
        answers = _checked(ask(images), len(images), config, craft)
        run.absorb(answers)
        if checkpoint is not None:
            checkpoint(run.state())
        yield run.progress()
    return run.result()


class _Run:
    """The parts of a search in their order, and what they share."""

    def __init__(
        self,
        config: QueryConfig,
        craft: CraftSet,
        surrogates: Sequence[nn.Module],
        start: Tensor | None,
        generator: torch.Generator,
        fingerprint: Mapping[str, str],
    ) -> None:
        self.config = config
        self.craft = craft
        self.surrogates = surrogates
        self.generator = generator
        self.fingerprint = fingerprint
        self.start = None if start is None else _inside(start, craft, config)
        zero = torch.zeros_like(craft.images[:1])
        self.finalists = [zero if self.start is None else self.start]
        self.plan = _plan(config, has_surrogates=bool(surrogates))
        self.phase, self.phase_start = 0, 0
        self.n_queries = 0
        self.trace: list[QueryPoint] = []
        self.milestones: list[Milestone] = []
        self.accepted = (0, 0)  # in finished parts
        self.suspicions: list[str] = []
        self.search = self._build()

    def resume(self, state: QueryState) -> None:
        """Go back to where `state` was taken."""
        self.generator.set_state(state.generator)
        self.finalists = list(state.finalists)
        self.phase, self.phase_start = state.phase, state.phase_start
        self.n_queries = state.n_queries
        self.trace, self.milestones = list(state.trace), list(state.milestones)
        self.accepted = state.accepted
        self.suspicions = list(state.suspicions)
        self.search = self._build()
        self.search.recall(state.memory)

    def state(self) -> QueryState:
        """Return where the search stands."""
        return QueryState(
            fingerprint=self.fingerprint,
            n_queries=self.n_queries,
            phase=self.phase,
            phase_start=self.phase_start,
            generator=self.generator.get_state(),
            memory=self.search.memory(),
            finalists=tuple(self.finalists),
            delta=self.search.delta,
            trace=tuple(self.trace),
            milestones=tuple(self.milestones),
            accepted=self.accepted,
            suspicions=tuple(self.suspicions),
        )

    def propose(self) -> Tensor:
        """Return what to ask next; nothing when the last part of the search is done."""
        while True:
            limit = self.phase_start + self._budget(self.phase) - self.n_queries
            images = self.search.propose(limit, self.generator)
            if len(images) > 0 or self.phase == len(self.plan) - 1:
                return images
            self._next_phase()

    def absorb(self, answers: Tensor) -> None:
        """Take in the answers to what was just proposed."""
        success = self.search.absorb(answers)
        self.n_queries += len(answers)
        self.trace.append(QueryPoint(self.n_queries, self.search.name, success))
        due = self.milestones[-1].n_queries * _MILESTONE_GROWTH if self.milestones else 0
        if self.n_queries >= due:
            self.milestones.append(Milestone(self.n_queries, self.search.delta))
        if isinstance(self.search, RepeatSearch) and self.search.changed:
            self.suspicions.append("answers_change")

    def progress(self) -> Progress:
        """Return how far the search is."""
        config = self.config
        return Progress(
            step=f"query search, {config.norm} eps {config.eps:g}",
            done=self.n_queries,
            total=config.max_queries,
            note=f"{self.search.name}: {self.trace[-1].craft_success:.0%} of craft images",
        )

    def result(self) -> QueryResult:
        """Close the search."""
        delta = self.search.delta.contiguous()
        tried, accepted = self._counts()
        race = self.search if isinstance(self.search, RaceSearch) else None
        success = None if race is None else race.success
        return QueryResult(
            delta=delta,
            config=self.config,
            seed=self.generator.initial_seed(),
            n_queries=self.n_queries,
            trace=tuple(self.trace),
            milestones=(*self.milestones, Milestone(self.n_queries, delta)),
            craft_success=None if success is None else success[0] / success[1],
            n_tried=tried,
            n_accepted=accepted,
            delta_norm=float(self.config.ball.norm(delta)),
            state=self.state(),
            diagnostics=tuple(self._doubts()),
        )

    def _doubts(self) -> list[Diagnostic]:
        found = []
        if "answers_change" in self.suspicions:
            found.append(
                _doubt(
                    "answers_change",
                    "error",
                    "the same images got different answers when asked about twice; the model "
                    "draws random numbers, answers depend on the batch, or different models "
                    "answer in turn",
                )
            )
        judges = (RaceSearch, SquareSearch)
        gained = isinstance(self.search, judges) and self.search.gained
        # Rounding to steps can hold a table where it starts, which nothing does to an image.
        still = bool(self.config.steps) and not bool(self.search.delta.any())
        if self.config.eps > 0 and still and not self._all_won():
            found.append(nothing_changed("query search"))
        elif self.config.eps > 0 and not gained:
            found.append(
                _doubt(
                    "no_progress",
                    "warning",
                    f"after {self.n_queries} queries the delta found does no better on the craft "
                    "images than the start; a search that never got going is weak evidence: try "
                    "more queries or surrogates",
                )
            )
        return found

    def _all_won(self) -> bool:
        """Whether nothing was left to win, as far as it was looked at last."""
        if isinstance(self.search, RaceSearch) and self.search.success is not None:
            won, asked = self.search.success
            return won == asked
        return bool(self.trace) and self.trace[-1].craft_success == 1.0

    def _next_phase(self) -> None:
        self.accepted = self._counts()
        if not isinstance(self.search, RepeatSearch):
            self.finalists.append(self.search.delta)
        self.phase += 1
        self.phase_start = self.n_queries
        self.search = self._build()

    def _counts(self) -> tuple[int, int]:
        tried, accepted = self.search.tried_and_accepted
        return self.accepted[0] + tried, self.accepted[1] + accepted

    def _budget(self, phase: int) -> int:
        """Return the images that part `phase` may ask about, given where it starts."""
        left = self.config.max_queries - self.phase_start
        reserve = 0
        if "race" in self.plan[phase + 1 :]:
            share = int(_RACE_SHARE * self.config.max_queries)
            reserve = min(share, len(self.plan) * len(self.craft))
        if self.plan[phase] == "student":
            return min(left - reserve, int(self.config.distil_share * self.config.max_queries))
        return max(0, left - reserve)

    def _build(self) -> QuerySearch:
        """Make the running part from what the parts before it left behind."""
        config, craft, part = self.config, self.craft, self.plan[self.phase]
        budget = self._budget(self.phase)
        latest = self.finalists[-1]
        if part == "repeat":
            n_images = min(_N_REPEATED, len(craft), config.max_queries // 100)
            return RepeatSearch(craft, latest, n_images=n_images)
        if part == "student":
            return DistilSearch(craft, self.surrogates, config, start=self.start, budget=budget)
        if part == "probes":
            return ProbeSearch(
                craft,
                config.ball,
                latest,
                budget=budget,
                batch_size=config.batch_size,
                scale=config.probe_scale,
            )
        if part == "squares":
            return SquareSearch(craft, config.ball, self.start)
        return RaceSearch(craft, self.finalists, batch_size=config.batch_size)


def _plan(config: QueryConfig, *, has_surrogates: bool) -> tuple[str, ...]:
    if config.schedule == "research":
        return ("repeat", "squares")
    student = ("student",) if has_surrogates else ()
    return ("repeat", *student, "probes", "race")


def _place(triggered: Tensor, targets: Tensor) -> CraftSet:
    if triggered.ndim != 4 or targets.shape != triggered.shape[:1] or len(targets) == 0:
        raise DataError(
            "query search: expected images (N, C, H, W) and targets (N,) with N of at least 1, "
            f"got {tuple(triggered.shape)} and {tuple(targets.shape)}"
        )
    if int(targets.min()) < 0:
        raise DataError(
            "query search: a target of -1 marks an image that does not count; leave those out"
        )
    return CraftSet(triggered.detach().float().cpu(), targets.cpu())


def _inside(start: Tensor, craft: CraftSet, config: QueryConfig) -> Tensor:
    if start.shape != craft.images[:1].shape:
        raise DataError(
            f"query search: expected a start of shape {tuple(craft.images[:1].shape)}, got "
            f"{tuple(start.shape)}"
        )
    return config.ball.project(start.detach().float().cpu())


def _checked(answers: Tensor, n_images: int, config: QueryConfig, craft: CraftSet) -> Tensor:
    """Return answers on the CPU in the form that `config.feedback` promises.

    Raises:
        ModelError: They have another form.
        NumericsError: A score is NaN or infinite.
    """
    answers = answers.detach().cpu()
    if config.feedback == "labels" and answers.shape == (n_images,):
        return answers.to(torch.int64)
    if answers.ndim != 2 or len(answers) != n_images:
        wanted = f"({n_images}, K)" if config.feedback == "scores" else f"({n_images},)"
        raise ModelError(
            f"query search: expected {config.feedback} {wanted}, got {tuple(answers.shape)}; "
            "is feedback set to what the model gives?"
        )
    if int(craft.targets.max()) >= answers.shape[1]:
        raise DataError(
            f"query search: target {int(craft.targets.max())}, but the model has classes 0 to "
            f"{answers.shape[1] - 1}"
        )
    if not bool(answers.isfinite().all()):
        raise NumericsError("query search: the model answered NaN or infinite scores")
    return answers.float() if config.feedback == "scores" else answers.argmax(dim=1)


def _fingerprint(
    config: QueryConfig,
    craft: CraftSet,
    surrogates: Sequence[nn.Module],
    start: Tensor | None,
    generator: torch.Generator,
    identity: Mapping[str, str] | None,
) -> dict[str, str]:
    """Return in short form what a search depends on, by name."""
    found = {name: repr(value) for name, value in asdict(config).items()}
    images = {"images": craft.images, "targets": craft.targets}
    found["craft images"] = digest_tensors(images)[:16]
    found["start"] = "none" if start is None else digest_tensors({"start": start})[:16]
    found["seed"] = str(generator.initial_seed())
    digests = "".join(digest_tensors(surrogate.state_dict()) for surrogate in surrogates)
    found["surrogates"] = (
        f"{len(surrogates)}, {hashlib.sha256(digests.encode()).hexdigest()[:16]}"
        if surrogates
        else "none"
    )
    return found | {f"model {name}": value for name, value in (identity or {}).items()}


def _doubt(code: str, severity: Literal["error", "warning"], message: str) -> Diagnostic:
    return Diagnostic(code=code, severity=severity, message=message, subject="query search")
