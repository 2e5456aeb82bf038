"""What a kind of attack is: all that the verbs ask of one, and what it is given to work with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import Field, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeAlias, TypeVar

from torch import Tensor

from bdaudit.blackbox import Feedback
from bdaudit.cases.settings import AuditSettings
from bdaudit.cases.subjects import Inputs, Subject
from bdaudit.errors import BdauditError
from bdaudit.foundation.progress import Steps
from bdaudit.measuring.compute import Compute
from bdaudit.measuring.conditions import AttackImages
from bdaudit.measuring.store import RunStore, ScoredRun
from bdaudit.measuring.surrogates import relative_steps, surrogate_steps
from bdaudit.models import LoadedModel
from bdaudit.perturbation import Norm

__all__ = ["AttackConfig", "AttackKind", "AttackResult", "Runner", "Together", "Workshop"]


class AttackConfig(Protocol):
    """Settings of one attack, a frozen dataclass of a class that no other kind has."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    @property
    def eps(self) -> float:
        """Radius of the ball in pixel units."""

    @property
    def norm(self) -> Norm:
        """Norm of the ball."""


class AttackResult(Protocol):
    """What the search of any kind of attack gives back."""

    @property
    def delta(self) -> Tensor:
        """The perturbation, (1, C, H, W) float32 on the CPU."""

    @property
    def delta_norm(self) -> float:
        """Its norm, never above eps."""


@dataclass
class Workshop:
    """What attacks are made with, and what several of them share.

    Attributes:
        compute: Device, batch size and seed.
        store: Finished runs, and searches that have begun.
        cache_dir: Folder that keeps surrogates for the next run; `None` keeps none.
        cold: Whether a query search starts without surrogates.
        surrogates: Descendants of the original, once `prepare` has got them.
    """

    compute: Compute
    store: RunStore
    cache_dir: Path | None
    cold: bool = False
    surrogates: tuple[LoadedModel, ...] = ()
    _relatives: dict[str, tuple[LoadedModel, ...]] = field(default_factory=dict, init=False)

    def prepare(self, inputs: Inputs) -> Steps[None]:
        """Take the surrogates that were given, or make some from the original, if there is one."""
        self.surrogates = yield from surrogate_steps(inputs, self.compute, self.cache_dir)

    def relatives_of(self, subject: Subject, inputs: Inputs) -> Steps[tuple[LoadedModel, ...]]:
        """Return descendants of `subject`, made the first time they are asked for."""
        if subject.name not in self._relatives:
            self._relatives[subject.name] = yield from relative_steps(
                subject, inputs, self.compute, self.cache_dir
            )
        return self._relatives[subject.name]


Config = TypeVar("Config", bound=AttackConfig)

Runner: TypeAlias = Callable[
    [Subject, AttackImages, Config, Inputs, Workshop], Steps[tuple[ScoredRun, ...]]
]
"""Attacks the subject under one condition; the other models of the audit may lend a hand or be
shown the result. Returns the run on the subject first, then those on models that were shown it."""


TogetherRunner: TypeAlias = Callable[
    [Subject, Sequence[tuple[AttackImages, Config]], Inputs, Workshop],
    Steps[tuple[tuple[ScoredRun, ...] | BdauditError, ...]],
]
"""Attacks one subject several times at once, each time under its condition and with its settings,
which differ in eps alone. Returns of each attack what a `Runner` would, or why it failed."""


@dataclass(frozen=True, kw_only=True)
class Together(Generic[Config]):
    """How attacks of one kind on one model are run at once.

    Attributes:
        most: How many go together, from the model, craft images of one attack and its settings.
        run: Makes and scores them.
    """

    most: Callable[[Subject, Tensor, Config], int]
    run: TogetherRunner[Config]


@dataclass(frozen=True, kw_only=True)
class AttackKind(Generic[Config]):
    """A kind of attack, by which the verbs plan and run it.

    Attributes:
        config: The class of its settings, which tells it from other kinds.
        configure: Gives its settings at one eps, from those of an audit.
        cost: Images forwarded while one perturbation is searched, scoring left out; a backward
            pass is taken as twice a forward one.
        run: Makes and scores one.
        needs_surrogates: Whether it rests on surrogates; the second argument says whether query
            searches start cold.
        shown_around: Whether what is made for the defended model is shown to the original and to
            the surrogates, which then have no attack of their own.
        feedback: What the model under attack is expected to answer with.
        together: How several are run at once on one model, where that saves anything.
    """

    config: type[Config]
    configure: Callable[[AuditSettings, float], Config]
    cost: Callable[[AuditSettings, Inputs], float]
    run: Runner[Config]
    needs_surrogates: Callable[[Config, bool], bool] = lambda config, cold: False
    shown_around: bool = False
    feedback: Callable[[Config], Feedback] = lambda config: "scores"
    together: Together[Config] | None = None
