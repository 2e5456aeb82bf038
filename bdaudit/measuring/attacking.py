"""Every kind of attack, done alike to all models that are compared."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from bdaudit.cases.subjects import Inputs, Subject
from bdaudit.errors import ModelError
from bdaudit.foundation.progress import Steps
from bdaudit.measuring.compute import Compute
from bdaudit.measuring.conditions import AttackImages
from bdaudit.measuring.query import query_run
from bdaudit.measuring.store import RunStore, ScoredRun
from bdaudit.measuring.surrogates import relative_steps, surrogate_steps
from bdaudit.measuring.transfer import transfer_runs
from bdaudit.measuring.white import whitebox_run
from bdaudit.models import LoadedModel
from bdaudit.reactivation import WhiteboxConfig
from bdaudit.reactivation.modes import AttackConfig, needs_surrogates
from bdaudit.reactivation.query_config import QueryConfig
from bdaudit.reactivation.transfer import TransferConfig

__all__ = ["Attacker"]


@dataclass
class Attacker:
    """Attacks model after model, and keeps what several attacks share.

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

    def attack(
        self, subject: Subject, images: AttackImages, config: AttackConfig, inputs: Inputs
    ) -> Steps[tuple[ScoredRun, ...]]:
        """Attack `subject`.

        Args:
            subject: The model; for a transfer attack the defended one or an innocent one.
            images: A condition's craft and held-out halves.
            config: Kind and settings of the attack, the same for every model under comparison.
            inputs: All models of the audit, of which some lend a hand or are shown the result.

        Returns:
            The run on `subject`, first; after it those on other models that were shown the same
            perturbation.

        Raises:
            ModelError: A transfer attack has no surrogate.
            NumericsError: A model returned NaN or infinite scores.
            RemoteError: A served model could not be asked.
        """
        if isinstance(config, WhiteboxConfig):
            run = yield from whitebox_run(
                subject,
                images,
                config,
                compute=self.compute,
                store=self.store,
                innocent=inputs.innocent_other_than(subject),
            )
            return (run,)
        if isinstance(config, QueryConfig):
            run = yield from query_run(
                subject,
                images,
                config,
                compute=self.compute,
                store=self.store,
                surrogates=self._start_of_queries(config, inputs),
            )
            return (run,)
        return (yield from self._transfer(subject, images, config, inputs))

    def _start_of_queries(self, config: QueryConfig, inputs: Inputs) -> tuple[LoadedModel, ...]:
        if not needs_surrogates(config, cold=self.cold):
            return ()
        return (*(s.white for s in inputs.with_role("original")), *self.surrogates)

    def _transfer(
        self, subject: Subject, images: AttackImages, config: TransferConfig, inputs: Inputs
    ) -> Steps[tuple[ScoredRun, ...]]:
        """Make delta on relatives of `subject`, and score it there.

        A perturbation carries over more readily between relatives, backdoor or not. Showing an
        innocent model what was made on the original's descendants would be too weak a null, so it
        meets what was made on its own. What is made on the original's descendants for the
        defended model is shown to all of them.
        """
        surrogates, shown = self.surrogates, [subject]
        if subject.role == "reference":
            if subject.name not in self._relatives:
                self._relatives[subject.name] = yield from relative_steps(
                    subject, inputs, self.compute, self.cache_dir
                )
            surrogates = self._relatives[subject.name]
        elif images.condition == "trigger":
            shown += [*inputs.with_role("original"), *inputs.with_role("surrogate")]
        if not surrogates:
            raise ModelError("there is no surrogate to make a perturbation on")
        runs = yield from transfer_runs(
            shown, images, config, surrogates=surrogates, compute=self.compute, store=self.store
        )
        return tuple(runs)
