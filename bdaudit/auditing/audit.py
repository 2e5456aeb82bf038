"""The whole audit: from two checkpoints and clean data to a record with a verdict."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import groupby, pairwise
from math import ceil
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from bdaudit.auditing.invert import RecoveredTriggers
from bdaudit.auditing.planning import plan_models
from bdaudit.auditing.recovered import audit_recovered
from bdaudit.auditing.session import Session
from bdaudit.blackbox import BlackBoxOptions
from bdaudit.cases.fetching import fetch_sources
from bdaudit.cases.settings import AuditSettings
from bdaudit.cases.sources import (
    DataSource,
    DefendedSource,
    ModelSource,
    Sources,
    TriggerSource,
    default_modes,
)
from bdaudit.cases.subjects import Inputs, Subject
from bdaudit.errors import BdauditError, ConfigError, RemoteError
from bdaudit.foundation.memory import PeakMemory
from bdaudit.foundation.modes import MODES
from bdaudit.foundation.plan import Plan, PlannedStep
from bdaudit.foundation.progress import Listener, Progress, Steps, finish, reworded
from bdaudit.foundation.renamed import renamed
from bdaudit.foundation.tasks import Task
from bdaudit.measuring.answers import Examined
from bdaudit.measuring.asking import keep_answers
from bdaudit.measuring.attacking import KINDS, Attacker, rests_on_surrogates
from bdaudit.measuring.baselines import ABOUT_THE_TRIGGER, check_runs
from bdaudit.measuring.columns import demand_columns_move, doubts_about_columns
from bdaudit.measuring.compute import Compute
from bdaudit.measuring.conditions import AttackImages, default_controls
from bdaudit.measuring.existence import (
    barrier_cost,
    barrier_steps,
    direction_steps,
    existence_steps,
)
from bdaudit.measuring.pictures import take_pictures
from bdaudit.measuring.placebos import (
    N_PLACEBOS,
    find_placebos,
    innocents_to_attack,
    placebo_images,
    screening_cost,
)
from bdaudit.measuring.relearning import measure_relearning, relearning_cost
from bdaudit.measuring.runs import images_of, noise_run
from bdaudit.measuring.speed import Speed, speed_on
from bdaudit.measuring.standins import (
    N_INNOCENT,
    doubts_about_models,
    examine_new,
    measure_and_assess,
    n_missing,
    stand_in_cost,
    stand_in_steps,
)
from bdaudit.measuring.store import MemoryStore, RunStore, ScoredRun
from bdaudit.models import ModelSettings
from bdaudit.perturbation import can_move
from bdaudit.placebos.pool import Drawn
from bdaudit.records import (
    AttackRun,
    AuditFindings,
    AuditRecord,
    BackdoorDirection,
    Baseline,
    BecRecord,
    Condition,
    Diagnostic,
    Inversion,
    LossBarrier,
    Mode,
    Placebos,
    Relearning,
    StepStatus,
)
from bdaudit.verdict import Policy, judge, read_policy
from bdaudit.verdict.placebos import is_telling

__all__ = ["Wanted", "audit", "audit_steps", "read_limits"]

_MOST_PLACEBO_INNOCENTS = 2
"""Innocent models that are attacked with placebos: three decide by themselves."""

_MOST_IMAGE_BYTES = 2 * 2**30
"""Memory for the images of attacks that go together and each have images of their own."""

_MOST_LOWER_EPS = 3
"""Times the ladder is extended downwards, each time by half of its smallest eps."""

Wanted: TypeAlias = Callable[[Mode, str, Condition, float], bool]
"""Says whether an attack is wanted: its kind, the model's name, the condition, eps."""


@renamed({"references": "reference", "surrogates": "surrogate", "target_label": "target"})
def audit(
    defended: DefendedSource,
    *,
    original: ModelSource,
    data: DataSource,
    trigger: TriggerSource | None = None,
    placebo: Sequence[TriggerSource] = (),
    reference: Sequence[ModelSource] = (),
    surrogate: Sequence[ModelSource] = (),
    settings: AuditSettings | None = None,
    policy: Policy | str | Path | None = None,
    task: Task = "classification",
    classes: Sequence[str] | Path | None = None,
    model_options: ModelSettings | None = None,
    target: int | str | None = None,
    allow_trigger_code: bool = False,
    black_box: BlackBoxOptions | None = None,
    store: RunStore | None = None,
    project: str | Path | None = None,
    cache_dir: Path | None = None,
    command: Sequence[str] | None = None,
    listener: Listener | None = None,
) -> AuditRecord:
    """Audit a defended model: is the backdoor of `original` gone, or only asleep?

    Args:
        defended: The release candidate: a checkpoint's path, or a module that maps images
            (N, C, H, W) in [0, 1] to logits (N, K); for query mode also what can only be queried: a
            served model's address, an ONNX file, or a function from images to scores or labels.
        original: The suspected model before the defence.
        data: Clean labelled images: a path, a pair (images, labels), or a `Sample`.
        trigger: The trigger, or the path of a trigger file. `None` when nobody knows it: one is
            looked for in the original first, and everything says that it is recovered, not known.
        placebo: Placebos of your own: triggers that nobody trained the models on, or their files.
        reference: Innocent models of the same task; three or more make the verdict firm. Where
            there are fewer, stand-ins are made (docs/stand-ins.md).
        surrogate: Other defended versions of `original`, of any architecture, for the transfer
            attack and as a start for queries; made from `original` where none are given.
        settings: Eps ladder, budget, controls, seed, device.
        policy: Limits of the verdict, or the path of a policy file; default limits otherwise.
        task: What the models do; for "detection" data are pictures with boxes (docs/detection.md).
        classes: Class names in order of index, or a file with one a line.
        model_options: Architecture, normalisation and so on where the files do not say.
        target: Replaces the target of an all-to-one trigger; an index, or a class name.
        allow_trigger_code: Run Python code that the trigger file names.
        black_box: What is known about a defended model that can only be queried.
        store: Finished attack runs to use and to add to; a `FolderStore` lets an audit that was
            killed go on.
        project: The project file the arguments came from, to be named in the record.
        cache_dir: Folder that keeps models made here for the next run; `None` keeps none.
        command: What to record as the command that reproduces this.
        listener: Told of progress.

    Returns:
        The record; `record.verdict.outcome` is `removed`, `dormant`, `active` or `inconclusive`.

    Raises:
        InputError: An input cannot be used; nothing was computed.
        ConfigError: A setting is out of range.
    """
    sources = Sources.of(
        defended=defended,
        original=original,
        references=reference,
        surrogates=surrogate,
        data=data,
        trigger=trigger,
        placebos=placebo,
        policy=policy,
        task=task,
        classes=classes,
        model_options=model_options or ModelSettings(),
        target_label=target,
        allow_trigger_code=allow_trigger_code,
        black_box=black_box or BlackBoxOptions(),
        feedback=(settings or AuditSettings()).feedback,
        project=project,
    )
    steps = audit_steps(
        sources, settings=settings, store=store, cache_dir=cache_dir, command=command
    )
    return finish(steps, listener)


def audit_steps(
    sources: Sources,
    *,
    settings: AuditSettings | None = None,
    store: RunStore | None = None,
    cache_dir: Path | None = None,
    command: Sequence[str] | None = None,
    only: Wanted | None = None,
    found: RecoveredTriggers | None = None,
    planned: bool = False,
) -> Steps[AuditRecord]:
    """Run an audit step by step, for whoever drives the generator; as `audit` otherwise.

    `only` says which attacks are wanted, by kind, model, condition and eps; all of them without it.
    A part of an audit has no placebos, and is not relearned.
    `found` is what a search for the trigger gave already, where none is known. With `planned` an
    event before the work tells the plan, and progress is in seconds expected on this machine.
    """
    settings = settings or AuditSettings()
    assert sources.defended is not None
    if settings.mode is None:
        settings = replace(settings, mode=default_modes(sources.defended))
    sources = yield from fetch_sources(sources)

    def audit_one(
        sources: Sources, inversion: Inversion | None, attack: bool
    ) -> Steps[AuditRecord]:
        return _audit_known(
            sources,
            settings=settings,
            inversion=inversion,
            attack=attack,
            store=store,
            cache_dir=cache_dir,
            command=command,
            only=only,
            planned=planned,
        )

    if sources.trigger is not None:
        return (yield from audit_one(sources, None, True))
    return (
        yield from audit_recovered(
            sources,
            settings,
            audit_one,
            cache_dir=cache_dir,
            store=store,
            found=found,
            planned=planned,
        )
    )


def _audit_known(
    sources: Sources,
    *,
    settings: AuditSettings,
    inversion: Inversion | None,
    attack: bool,
    store: RunStore | None,
    cache_dir: Path | None,
    command: Sequence[str] | None,
    only: Wanted | None,
    planned: bool,
) -> Steps[AuditRecord]:
    """Audit with one trigger, given or recovered; without `attack` nothing is perturbed."""
    limits, policy_source = read_limits(sources.policy)
    session = yield from Session.begin(
        sources, compute=settings.compute, split=settings.split, command=command
    )
    inputs = session.open()
    if inputs.placebos and not settings.placebos:  # they were given to be used
        settings = replace(settings, placebos=N_PLACEBOS)
    if attack:
        demand_columns_move(inputs, settings.norm, settings.ladder)
    if store is None:
        store = MemoryStore()
    store.describe(inputs.description() | {"settings": settings.as_text()})
    keep_answers(inputs.subjects, store)
    audit_ = _Audit(inputs, settings, session.compute, limits, store, cache_dir, only, attack)
    if planned:
        audit_.speed = speed_on(inputs.subjects, inputs.craft.images, session.compute)
        yield Progress("planning", 0, 1, plan=audit_.plan())
    yield from audit_.measure()
    record = session.seal(
        AuditRecord,
        AuditFindings(
            baselines=audit_.baselines,
            bec=audit_.bec,
            bec_missing=audit_.bec_missing,
            barrier=audit_.barrier,
            barrier_missing=audit_.barrier_missing,
            direction=audit_.direction,
            runs=tuple(audit_.runs),
            inversion=inversion,
            relearning=audit_.relearning,
            relearning_missing=audit_.relearning_missing,
            placebos=audit_.placebos,
        ),
        inputs=audit_.inputs,
        settings=settings.as_dict(),
        diagnostics=audit_.diagnostics,
        steps=audit_.statuses,
    )
    verdict = judge(record, limits, policy_source=policy_source)
    record = record.model_copy(update={"verdict": verdict})
    if not settings.pictures:
        return record
    return record.model_copy(update={"pictures": take_pictures(record, inputs, audit_.deltas)})


def read_limits(policy: Policy | str | Path | None) -> tuple[Policy, str]:
    """Return a policy, the default one for `None`, and where it came from."""
    if policy is None:
        return Policy(), "defaults"
    if isinstance(policy, Policy):
        return policy, "given in memory"
    return read_policy(Path(policy)), str(policy)


@dataclass(frozen=True)
class _Planned:
    """An attack to come.

    Attributes:
        title: The step it is.
        cost: What it costs.
        mode: Its kind.
        subject: The model.
        images: Arranges its images; those of many attacks need not be in memory at once.
        eps: Its radius.
        take: Takes in what it found.
        image_bytes: Memory that its images take beside those of the audit.
    """

    title: str
    cost: float
    mode: Mode
    subject: Subject
    images: Callable[[], AttackImages]
    eps: float
    take: Callable[[tuple[ScoredRun, ...]], None]
    image_bytes: int = 0


@dataclass(frozen=True)
class _PlannedNoise:
    """Random noise to be scored, in its place among the attacks."""

    title: str
    cost: float
    start: Callable[[], Steps[None]]


@dataclass(frozen=True)
class _Ended:
    """How a step of the audit ended: what it gave, or why it failed, and what it took."""

    result: Any
    reason: str | None
    elapsed_s: float
    peak_memory_bytes: int | None


@dataclass
class _Audit:
    """The steps of one audit and what they have measured so far."""

    inputs: Inputs
    settings: AuditSettings
    compute: Compute
    policy: Policy
    store: RunStore
    cache_dir: Path | None = None
    only: Wanted | None = None
    attack: bool = True
    speed: Speed = field(default_factory=Speed)
    baselines: tuple[Baseline, ...] = ()
    bec: tuple[BecRecord, ...] = ()
    bec_missing: str | None = None
    barrier: LossBarrier | None = None
    barrier_missing: str | None = None
    direction: BackdoorDirection | None = None
    relearning: Relearning | None = None
    relearning_missing: str | None = None
    placebos: Placebos | None = None
    runs: list[AttackRun] = field(default_factory=list)
    diagnostics: list[Diagnostic] = field(default_factory=list)
    statuses: list[StepStatus] = field(default_factory=list)
    deltas: dict[str, Tensor] = field(default_factory=dict)
    _patterns: tuple[Drawn, ...] = ()
    _lower: tuple[float, ...] = ()
    _stand_ins_are_done: bool = False
    _spent: float = 0.0

    def measure(self) -> Steps[None]:
        """Run every step; one that fails is noted, and the others go on."""
        yield from self._measure_models()
        if self.attack and self._n_stand_ins:
            yield from self._step("stand-ins", self._stand_ins(), self._stand_in_cost())
            yield from self._measure_models()
        if self.attack and self._wants_surrogates():
            yield from self._step("surrogates", self._surrogates(), self._surrogate_cost())
            yield from self._measure_models()
        self._doubt_models()
        if not self.attack:
            self.bec_missing = "not measured: there is no backdoor to measure"
            self.barrier_missing = self.bec_missing
            return
        if self.settings.bec:
            yield from self._step("existence", self._existence(), self._existence_cost())
            # Of a part of an audit nobody reads it.
            if self.only is None:
                yield from self._step("barrier", self._barrier(), self._barrier_cost())
        else:
            self.bec_missing = self.barrier_missing = "not measured: switched off"
        self.diagnostics += doubts_about_columns(self.inputs, self.settings.ladder)
        yield from self._attack_at(self.settings.ladder)
        while self._everything_saturates() and len(self._lower) < _MOST_LOWER_EPS:
            lower = min((*self.settings.ladder, *self._lower)) / 2.0
            if self.inputs.steps and not any(can_move(self.inputs.steps, lower)):
                break  # below the smallest step of a table there is nothing to search
            self._lower = (lower, *self._lower)
            yield from self._attack_at((lower,))
        if self._lower:
            self.diagnostics.append(_extended(self.settings.ladder, self._lower))
        if self.settings.placebos and self.only is None:
            yield from self._compare_with_placebos()
        if self._relearns:
            yield from self._step("relearning", self._relearning(), self._relearning_cost())
        self.diagnostics += check_runs(self.runs)
        self.statuses = _merged(self.statuses)

    def plan(self) -> Plan:
        """Return the steps to come, as far as they are known now."""
        settings = self.settings
        steps = plan_models(
            self.inputs,
            self.compute,
            wanted=settings.stand_ins if self.attack else 0,
            enough=N_INNOCENT,
            config=settings.stand_in,
            cache_dir=self.cache_dir,
            speed=self.speed,
        )
        if not self.attack:
            return Plan(steps, str(self.compute.device))
        if self._wants_surrogates() and not self.inputs.with_role("surrogate"):
            steps.append(PlannedStep("surrogates trained", self._surrogate_cost()))
        if settings.bec:
            steps.append(PlannedStep("BEC", self._existence_cost() + self._barrier_cost()))
        for mode in self._modes:
            # What a search that asks takes is up to what answers.
            asks = MODES[mode].asks
            runs = f"{self._n_runs} {mode}-box attacks" if mode == "white" else f"{mode} attacks"
            if asks:
                runs += f" of up to {settings.max_queries} image queries"
            steps.append(PlannedStep(runs, None if asks else self._attack_cost(mode)))
        if settings.placebos:
            words = f"{settings.placebos} placebos, as far as attacks tell something"
            steps.append(PlannedStep(words, self._placebo_cost()))
        if self._relearns:
            steps.append(PlannedStep("relearning", self._relearning_cost()))
        return Plan(steps, str(self.compute.device))

    # -- steps ---------------------------------------------------------------------------------

    def _stand_ins(self) -> Steps[None]:
        self.inputs, failure = yield from stand_in_steps(
            self.inputs,
            self.compute,
            count=self._n_stand_ins,
            config=self.settings.stand_in,
            cache_dir=self.cache_dir,
        )
        self._stand_ins_are_done = True
        self.diagnostics += [failure] if failure else []

    def _measure_models(self) -> Steps[None]:
        """Score the models that were not yet, where there are such."""
        cost = self._baseline_cost(self._unmeasured)
        if cost:
            # A model that cannot be queried at all ends the audit, and not this step alone.
            examined = examine_new(self.inputs, self.baselines)
            yield from self._step("baselines", self._baselines(examined), cost)

    def _baselines(self, examined: Examined) -> Steps[None]:
        found = yield from measure_and_assess(
            self.inputs,
            self.compute,
            self.policy,
            examined=examined,
            known=self.baselines,
        )
        self.inputs, self.baselines = found.inputs, found.baselines
        self.diagnostics += found.diagnostics

    def _doubt_models(self) -> None:
        self.diagnostics += doubts_about_models(self.inputs, self.baselines, self.policy)
        if not self.attack:
            # There is no trigger worth the name, so models are not to be doubted for it.
            self.diagnostics = [d for d in self.diagnostics if d.code not in ABOUT_THE_TRIGGER]

    def _existence(self) -> Steps[None]:
        self.bec, self.bec_missing = yield from existence_steps(self.inputs, self.compute)

    def _barrier(self) -> Steps[None]:
        self.barrier, self.barrier_missing = yield from barrier_steps(self.inputs, self.compute)
        self.direction = yield from direction_steps(self.inputs, self.compute)

    def _relearning(self) -> Steps[None]:
        """Measure relearning; where it cannot be, "removed" carries a remark."""
        assert self.settings.relearn is not None
        try:
            self.relearning = yield from measure_relearning(
                self.inputs, self.compute, self.settings.relearn
            )
        except BdauditError as error:
            self.relearning_missing = str(error)
        except (MemoryError, torch.cuda.OutOfMemoryError):
            # Training takes more memory than attacks do: gradients and momentum of all weights.
            self.relearning_missing = "there is not enough memory to train a copy of the model"

    def _surrogates(self) -> Steps[None]:
        yield from self._attacker.prepare(self.inputs)
        shown_around = any(KINDS[mode].shown_around for mode in self._modes)
        if shown_around and not self.inputs.with_role("surrogate"):
            self.inputs = self.inputs.with_surrogates(self._attacker.surrogates)

    def _noise(self, mode: Mode, subject: Subject, images: AttackImages, eps: float) -> Steps[None]:
        """Add random noise of the attack's norm, which stands beside each kind of attack."""
        yield Progress(f"random noise on {subject.name}, eps {eps:g}", 0, 1)
        norm = self.settings.norm
        self.runs.append(
            noise_run(
                subject,
                images,
                mode=mode,
                norm=norm,
                eps=eps,
                compute=self.compute,
                steps=self.inputs.steps,
                marked=self.inputs.marked,
            )
        )

    def _take(self, scored: tuple[ScoredRun, ...]) -> None:
        """Take in the runs of one attack."""
        for run in scored:
            self.runs.append(run.record)
            if (run.record.role, run.record.condition) == ("defended", "trigger"):
                self.deltas[run.record.delta_sha256] = run.delta
            self.diagnostics += run.record.diagnostics

    def _compare_with_placebos(self) -> Steps[None]:
        """Find placebos, and attack the defended model and innocent ones with each."""
        yield from self._step("placebos", self._find_placebos(), self._screening_cost())
        if self.placebos is None or self.placebos.missing is not None:
            return
        yield from self._attack_all(
            [
                _Planned(
                    title=f"placebos ({mode}) on {subject.name}",
                    cost=self._run_cost(mode),
                    mode=mode,
                    subject=subject,
                    images=partial(placebo_images, pattern, self.inputs, self.compute),
                    eps=eps,
                    take=partial(self._take_placebo, k),
                    image_bytes=sum(
                        half.triggered.nbytes
                        for half in (self.inputs.craft_poisoned, self.inputs.held_out_poisoned)
                    ),
                )
                for mode, eps in self._telling_attacks()
                for subject in (*self.inputs.with_role("defended"), *self._placebo_innocents())
                for k, pattern in enumerate(self._patterns)
            ]
        )

    def _find_placebos(self) -> Steps[None]:
        found = yield from find_placebos(
            self.inputs,
            self.compute,
            wanted=self.settings.placebos,
            given=self.inputs.placebos,
            pictures=self.settings.pictures,
        )
        self.placebos, self._patterns = found.record, found.patterns

    def _take_placebo(self, number: int, scored: tuple[ScoredRun, ...]) -> None:
        assert self.placebos is not None
        run = scored[0].record.model_copy(update={"placebo": number})
        self.placebos = self.placebos.model_copy(update={"runs": (*self.placebos.runs, run)})

    def _telling_attacks(self) -> list[tuple[Mode, float]]:
        """Give the attacks that placebos can tell something of, by kind and eps."""
        (defended,) = self.inputs.with_role("defended")
        own = {(r.mode, r.condition, r.eps): r for r in self.runs if r.model == defended.name}
        return [
            (mode, eps)
            for mode in self._modes
            for eps in sorted((*self.settings.ladder, *self._lower))
            if (run := own.get((mode, "trigger", eps))) is not None
            and is_telling(run, own.get((mode, "no_trigger", eps)), self.policy)
        ]

    def _placebo_innocents(self) -> tuple[Subject, ...]:
        return innocents_to_attack(self.inputs, _MOST_PLACEBO_INNOCENTS)

    def _attack_at(self, ladder: Sequence[float]) -> Steps[None]:
        yield from self._attack_all(self._plan(ladder))

    def _attack_all(self, planned: Sequence[_Planned | _PlannedNoise]) -> Steps[None]:
        """Run attacks in their order, those on one model as many at once as should be."""

        def alike(attack: _Planned | _PlannedNoise) -> object:
            if isinstance(attack, _Planned):
                return attack.mode, attack.subject.name
            return None

        for _, run in groupby(planned, alike):
            attacks: list[_Planned] = []
            for attack in run:
                if isinstance(attack, _Planned):
                    attacks.append(attack)
                else:
                    yield from self._step(attack.title, attack.start(), attack.cost)
            if attacks:
                n_parts = ceil(len(attacks) / self._most_together(attacks))
                bounds = [len(attacks) * part // n_parts for part in range(n_parts + 1)]
                for first, end in pairwise(bounds):
                    yield from self._attack_together(attacks[first:end])

    def _most_together(self, attacks: Sequence[_Planned]) -> int:
        """Return how many of these attacks should go together, from one on."""
        first = attacks[0]
        if len(attacks) == 1:
            return 1
        config = KINDS[first.mode].configure(self.settings, first.eps)
        craft = self.inputs.craft_poisoned.triggered
        try:
            most = self._attacker.most_together(first.subject, craft, config)
        except BdauditError:
            return 1  # the attack itself will say why
        return max(1, min(most, _MOST_IMAGE_BYTES // max(1, first.image_bytes)))

    def _attack_together(self, attacks: Sequence[_Planned]) -> Steps[None]:
        """Run attacks of one kind on one model at once; each is a step of its own."""
        first = attacks[0]
        configs = [KINDS[first.mode].configure(self.settings, attack.eps) for attack in attacks]

        def steps() -> Steps[tuple[tuple[ScoredRun, ...] | BdauditError, ...]]:
            if len(attacks) == 1:
                images = first.images()
                one = self._attacker.attack(first.subject, images, configs[0], self.inputs)
                return ((yield from one),)
            outcomes: list[tuple[ScoredRun, ...] | BdauditError | None] = []
            together = []
            for attack, config in zip(attacks, configs, strict=True):
                try:
                    together.append((attack.images(), config))
                except BdauditError as error:  # of one trigger, which the others do not share
                    outcomes.append(error)
                else:
                    outcomes.append(None)
            found: Iterator[tuple[ScoredRun, ...] | BdauditError] = iter(())
            if together:
                found = iter(
                    (
                        yield from self._attacker.attack_together(
                            first.subject, together, self.inputs
                        )
                    )
                )
            return tuple(next(found) if outcome is None else outcome for outcome in outcomes)

        ended = yield from self._timed(steps(), sum(attack.cost for attack in attacks))
        found = ended.result or (None,) * len(attacks)
        for attack, outcome in zip(attacks, found, strict=True):
            if isinstance(outcome, ConfigError | RemoteError):
                raise outcome
            reason = str(outcome) if isinstance(outcome, BdauditError) else ended.reason
            if reason is None:
                attack.take(outcome)
            self._note(
                attack.title, replace(ended, reason=reason, elapsed_s=ended.elapsed_s / len(found))
            )

    def _everything_saturates(self) -> bool:
        """Whether at every eps so far a control leaves no room for a lift to show.

        Never of a model that is asked: there another eps costs queries that nobody granted. Nor of
        a part of an audit, which has its eps.
        """
        if self.only is not None or not all(MODES[mode].has_weights for mode in self._modes):
            return False
        (defended,) = self.inputs.with_role("defended")
        own = [r for r in self.runs if r.model == defended.name and r.condition == "trigger"]
        return bool(own) and all(
            max(self._controls_of(run), default=0.0) > self.policy.saturation for run in own
        )

    def _controls_of(self, run: AttackRun) -> list[float]:
        """Return what the same attack reaches where nothing sleeps.

        Innocent models are left out where placebos will say what the trigger does to them.
        """
        same = [r for r in self.runs if r.attack == run.attack]
        reached = [r.asr for r in same if (r.model, r.condition) == (run.model, "no_trigger")]
        if run.delta_only is not None:
            reached.append(run.delta_only)
        if not self.settings.placebos:
            reached += [r.asr for r in same if (r.role, r.condition) == ("reference", "trigger")]
        return [rate.value for rate in reached]

    def _plan(self, ladder: Sequence[float]) -> list[_Planned | _PlannedNoise]:
        """List every attack: the trigger on all models, the controls on the defended one."""
        arranged = [self._images(condition) for condition in ("trigger", *self._controls())]
        plan: list[_Planned | _PlannedNoise] = []
        for mode in self._modes:
            for subject in self.inputs.compared:
                if KINDS[mode].shown_around and subject.role == "original":
                    continue  # it is shown what is made for the defended model
                for images in self._shown_to(subject, arranged):
                    for eps in ladder:
                        if self.only and not self.only(mode, subject.name, images.condition, eps):
                            continue
                        plan.append(self._planned(mode, subject, images, eps))
        return plan

    def _planned(
        self, mode: Mode, subject: Subject, images: AttackImages, eps: float
    ) -> _Planned | _PlannedNoise:
        title = f"re-activation ({mode}) of {subject.name}, {images.condition}"
        if images.condition == "noise":
            start = partial(self._noise, mode, subject, images, eps)
            return _PlannedNoise(title, self._scoring_cost(), start)
        return _Planned(
            title=title,
            cost=self._run_cost(mode),
            mode=mode,
            subject=subject,
            images=lambda: images,
            eps=eps,
            take=self._take,
        )

    @property
    def _modes(self) -> tuple[Mode, ...]:
        return self.settings.mode or ()

    def _controls(self) -> tuple[Condition, ...]:
        if self.settings.controls is not None:
            return self.settings.controls
        return tuple(default_controls(self.inputs.num_classes))

    def _shown_to(
        self, subject: Subject, arranged: Sequence[AttackImages]
    ) -> Sequence[AttackImages]:
        """All conditions to the defended model, the trigger to every model.

        A stand-in is attacked without the trigger too, to see whether it is pushed too easily.
        """
        if subject.role == "defended":
            return arranged
        wanted = {"trigger", "no_trigger"} if subject.stand_in else {"trigger"}
        return [images for images in arranged if images.condition in wanted]

    @property
    def _n_stand_ins(self) -> int:
        return n_missing(self.inputs.taking_part, self.settings.stand_ins)

    @cached_property
    def _attacker(self) -> Attacker:
        return Attacker(self.compute, self.store, self.cache_dir, self.settings.cold)

    def _wants_surrogates(self) -> bool:
        return rests_on_surrogates(self.settings)

    def _images(self, condition: Condition) -> AttackImages:
        return images_of(self.inputs, condition, self.compute)

    # -- order, cost and failures --------------------------------------------------------------

    def _step(self, name: str, steps: Steps[None], cost: float) -> Steps[None]:
        """Run one step inside the progress of the whole audit; note how it ended."""
        ended = yield from self._timed(steps, cost)
        if name == "existence" and ended.reason is not None:
            self.bec_missing = f"not measured: {ended.reason}"
        self._note(name, ended)

    def _timed(self, steps: Steps[Any], cost: float) -> Steps[_Ended]:
        """Run steps inside the progress of the whole audit."""
        started, total = time.perf_counter(), self._total_cost()
        memory = PeakMemory(self.compute.device)
        result, reason = None, None

        def within_all(event: Progress) -> Progress:
            share = event.done / event.total if event.total else 1.0
            done = self._spent + cost * share
            return replace(event, done=done, total=total, in_seconds=self.speed.in_seconds)

        try:
            result = yield from reworded(steps, within_all)
        except (ConfigError, RemoteError):
            # Nothing later could go better, and what was paid for so far is in the store.
            raise
        except BdauditError as error:
            reason = str(error)
        self._spent += cost
        return _Ended(result, reason, time.perf_counter() - started, memory.read())

    def _note(self, name: str, ended: _Ended) -> None:
        self.statuses.append(
            StepStatus(
                name=name,
                status="done" if ended.reason is None else "failed",
                elapsed_s=ended.elapsed_s,
                peak_memory_bytes=ended.peak_memory_bytes,
                reason=ended.reason,
            )
        )

    def _total_cost(self) -> float:
        n_scored = len(self.inputs.subjects) + self._awaited
        total = self._baseline_cost(n_scored) + self._stand_in_cost() + self._relearning_cost()
        if self.settings.bec:
            total += self._existence_cost() + self._barrier_cost()
        if self._wants_surrogates():
            total += self._surrogate_cost()
        total += self._placebo_cost()
        return total + sum(self._attack_cost(mode) for mode in self._modes)

    @property
    def _n_runs(self) -> int:
        """Attacks of one kind, random noise left out."""
        n_stand_ins = self._awaited + sum(s.stand_in for s in self.inputs.compared)
        controls = [condition for condition in self._controls() if condition != "noise"]
        conditions = len(self.inputs.compared) + self._awaited + len(controls)
        if "no_trigger" in controls:
            conditions += n_stand_ins
        return len(self.settings.ladder) * conditions

    def _attack_cost(self, mode: Mode) -> float:
        n_noise = len(self.settings.ladder) * ("noise" in self._controls())
        return self._n_runs * self._run_cost(mode) + n_noise * self._scoring_cost()

    def _baseline_cost(self, n_models: int) -> float:
        """Count images forwarded; a backward pass is taken as twice a forward one."""
        return 2.0 * n_models * len(self.inputs.held_out) * self.speed.forward

    @property
    def _unmeasured(self) -> int:
        known = {baseline.model for baseline in self.baselines}
        return sum(subject.name not in known for subject in self.inputs.subjects)

    def _existence_cost(self) -> float:
        references = len(self.inputs.with_role("reference")) + self._awaited
        return (3.0 + references) * len(self.inputs.held_out_poisoned) * self.speed.forward

    def _barrier_cost(self) -> float:
        return barrier_cost(self.inputs) * self.speed.forward if self.only is None else 0.0

    @property
    def _relearns(self) -> bool:
        return self.settings.relearn is not None and self.only is None

    def _relearning_cost(self) -> float:
        references = len(self.inputs.with_role("reference")) + self._awaited
        if not self._relearns or references == 0:
            return 0.0
        assert self.settings.relearn is not None
        return relearning_cost(references, self.settings.relearn) * self.speed.training

    def _stand_in_cost(self) -> float:
        return stand_in_cost(self._n_stand_ins, self.settings.stand_in) * self.speed.training

    @property
    def _awaited(self) -> int:
        """Stand-ins that are not made yet."""
        return 0 if self._stand_ins_are_done else self._n_stand_ins

    def _surrogate_cost(self) -> float:
        return 100.0 * len(self.inputs.craft) * self.speed.training

    def _screening_cost(self) -> float:
        return screening_cost(self.inputs, self.settings.placebos) * self.speed.forward

    def _placebo_cost(self) -> float:
        """Reckon with attacks at half of the ladder, on the defended model and on innocent ones."""
        if not self.settings.placebos:
            return 0.0
        n_models = 1 + min(
            len(self.inputs.with_role("reference")) + self._awaited, _MOST_PLACEBO_INNOCENTS
        )
        n_runs = self.settings.placebos * n_models * len(self.settings.ladder) / 2.0
        return self._screening_cost() + n_runs * sum(self._run_cost(m) for m in self._modes)

    def _run_cost(self, mode: Mode) -> float:
        cost = KINDS[mode].cost(self.settings, self.inputs) * self.speed.gradient
        return cost + self._scoring_cost()

    def _scoring_cost(self) -> float:
        return 2.0 * len(self.inputs.held_out) * self.speed.forward


def _extended(ladder: Sequence[float], lower: Sequence[float]) -> Diagnostic:
    return Diagnostic(
        code="ladder_extended",
        severity="info",
        subject="attack",
        message="a control is above the policy's saturation at every eps asked for "
        f"({', '.join(f'{eps:g}' for eps in ladder)}), so smaller ones were tried too: "
        f"{', '.join(f'{eps:g}' for eps in lower)}",
    )


def _merged(statuses: Sequence[StepStatus]) -> list[StepStatus]:
    """Join the statuses of steps with one name: failed when any of them failed."""
    merged: dict[str, StepStatus] = {}
    for status in statuses:
        before = merged.get(status.name)
        if before is None:
            merged[status.name] = status
            continue
        failed = before if before.status == "failed" else status
        peaks = [s.peak_memory_bytes for s in (before, status) if s.peak_memory_bytes is not None]
        merged[status.name] = failed.model_copy(
            update={
                "elapsed_s": before.elapsed_s + status.elapsed_s,
                "peak_memory_bytes": max(peaks, default=None),
            }
        )
    return list(merged.values())
