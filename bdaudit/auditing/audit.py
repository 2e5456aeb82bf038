"""The whole audit: from two checkpoints and clean data to a record with a verdict."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bdaudit.auditing.baselines import check_baselines, check_inputs, measure_baselines
from bdaudit.auditing.documents import document_fields
from bdaudit.auditing.environment import resolve_device
from bdaudit.auditing.existence import existence_steps
from bdaudit.auditing.inputs import (
    DataSource,
    Inputs,
    ModelOptions,
    ModelSource,
    Sources,
    Subject,
    TriggerSource,
    open_inputs,
)
from bdaudit.auditing.runs import (
    Compute,
    RunCache,
    ScoredRun,
    derive_generator,
    noise_run,
    whitebox_run,
)
from bdaudit.auditing.settings import AuditSettings
from bdaudit.controls import AttackImages, attack_images, default_controls
from bdaudit.errors import BdauditError
from bdaudit.progress import Listener, Progress, Steps, finish
from bdaudit.reactivation import WhiteboxConfig
from bdaudit.results import (
    AttackRun,
    AuditRecord,
    Baseline,
    BecRecord,
    Condition,
    Diagnostic,
    StepStatus,
)
from bdaudit.verdict import Policy, judge, read_policy

__all__ = ["audit", "audit_steps"]


def audit(
    defended: ModelSource,
    *,
    original: ModelSource,
    data: DataSource,
    trigger: TriggerSource,
    references: Sequence[ModelSource] = (),
    settings: AuditSettings | None = None,
    policy: Policy | str | Path | None = None,
    classes: Sequence[str] | Path | None = None,
    model_options: ModelOptions | None = None,
    target_label: int | None = None,
    allow_trigger_code: bool = False,
    cache: RunCache | None = None,
    command: Sequence[str] | None = None,
    listener: Listener | None = None,
) -> AuditRecord:
    """Audit a defended model: is the backdoor of `original` gone, or only asleep?

    Args:
        defended: The release candidate: a checkpoint's path, or a module that maps images
            (N, C, H, W) in [0, 1] to logits (N, K).
        original: The suspected model before the defence.
        data: Clean labelled images: a path, a pair (images, labels), or a `Sample`.
        trigger: The trigger, or the path of a trigger file.
        references: Innocent models of the same task; three or more make the verdict firm.
        settings: Eps ladder, budget, controls, seed, device.
        policy: Limits of the verdict, or the path of a policy file; default limits otherwise.
        classes: Class names in order of index, or a file with one a line.
        model_options: Architecture, normalisation and so on where the files do not say.
        target_label: Replaces the target of an all-to-one trigger.
        allow_trigger_code: Run Python code that the trigger file names.
        cache: Finished attack runs to use and to add to.
        command: What to record as the command that reproduces this.
        listener: Told of progress.

    Returns:
        The record; `record.verdict.outcome` is `removed`, `dormant`, `active` or `inconclusive`.

    Raises:
        InputError: An input cannot be used; nothing was computed.
        ConfigError: A setting is out of range.
    """
    sources = Sources(
        defended=defended,
        original=original,
        references=references,
        data=data,
        trigger=trigger,
        policy=policy,
        classes=classes,
        model_options=model_options or ModelOptions(),
        target_label=target_label,
        allow_trigger_code=allow_trigger_code,
    )
    steps = audit_steps(sources, settings=settings, cache=cache, command=command)
    return finish(steps, listener)


def audit_steps(
    sources: Sources,
    *,
    settings: AuditSettings | None = None,
    cache: RunCache | None = None,
    command: Sequence[str] | None = None,
) -> Steps[AuditRecord]:
    """Run an audit step by step, for whoever drives the generator; as `audit` otherwise."""
    started = time.perf_counter()
    settings = settings or AuditSettings()
    limits, policy_source = _limits(sources.policy)
    device = resolve_device(settings.compute.device)
    yield Progress("opening models and data", 0, 1)
    inputs = open_inputs(sources, split=settings.split, seed=settings.compute.seed, device=device)
    compute = Compute(device, settings.compute.seed, settings.compute.batch_size)
    audit_ = _Audit(inputs, settings, compute, limits, {} if cache is None else cache)
    yield from audit_.measure()
    record = AuditRecord(
        **document_fields(
            inputs,
            compute,
            settings=settings.as_dict(),
            diagnostics=audit_.diagnostics,
            steps=audit_.statuses,
            command=command,
            started=started,
        ),
        baselines=audit_.baselines,
        bec=audit_.bec,
        bec_missing=audit_.bec_missing,
        runs=tuple(audit_.runs),
    )
    verdict = judge(record, limits, policy_source=policy_source)
    return record.model_copy(update={"verdict": verdict})


def _limits(policy: Policy | str | Path | None) -> tuple[Policy, str]:
    if policy is None:
        return Policy(), "defaults"
    if isinstance(policy, Policy):
        return policy, "given in memory"
    return read_policy(Path(policy)), str(policy)


@dataclass
class _Audit:
    """The steps of one audit and what they have measured so far."""

    inputs: Inputs
    settings: AuditSettings
    compute: Compute
    policy: Policy
    cache: RunCache
    baselines: tuple[Baseline, ...] = ()
    bec: tuple[BecRecord, ...] = ()
    bec_missing: str | None = None
    runs: list[AttackRun] = field(default_factory=list)
    diagnostics: list[Diagnostic] = field(default_factory=list)
    statuses: list[StepStatus] = field(default_factory=list)
    _spent: float = 0.0

    def measure(self) -> Steps[None]:
        """Run every step; one that fails is noted, and the others go on."""
        self.diagnostics += check_inputs(self.inputs)
        yield from self._step("baselines", self._baselines(), self._baseline_cost())
        if self.settings.measure_bec:
            yield from self._step("existence", self._existence(), self._existence_cost())
        else:
            self.bec_missing = "not measured: switched off"
        for run_name, subject, images, eps in self._plan():
            yield from self._step(run_name, self._run(subject, images, eps), self._run_cost())
        self.statuses = _merged(self.statuses)

    # -- steps ---------------------------------------------------------------------------------

    def _baselines(self) -> Steps[None]:
        self.baselines = yield from measure_baselines(self.inputs, self.compute)
        self.diagnostics += check_baselines(
            self.baselines,
            self.inputs.num_classes,
            max_clean_acc_loss=self.policy.max_clean_acc_loss,
        )

    def _existence(self) -> Steps[None]:
        if not self.inputs.with_role("reference"):
            self.bec_missing = "not measured: it needs an innocent model, pass --reference"
            return
        self.bec, self.bec_missing = yield from existence_steps(self.inputs, self.compute)

    def _run(self, subject: Subject, images: AttackImages, eps: float) -> Steps[None]:
        if images.condition == "noise":
            yield Progress(f"random noise on {subject.name}, eps {eps:g}", 0, 1)
            self.runs.append(
                noise_run(subject, images, norm=self.settings.norm, eps=eps, compute=self.compute)
            )
            return
        scored: ScoredRun = yield from whitebox_run(
            subject,
            images,
            self._config(eps),
            compute=self.compute,
            innocent=self.inputs.innocent_other_than(subject),
            cache=self.cache,
        )
        self.runs.append(scored.record)
        self.diagnostics += scored.record.diagnostics

    def _plan(self) -> list[tuple[str, Subject, AttackImages, float]]:
        """List every run: the trigger on all models, the controls on the defended one."""
        controls = self.settings.controls
        if controls is None:
            controls = tuple(default_controls(self.inputs.num_classes))
        arranged = [self._images(condition) for condition in ("trigger", *controls)]
        plan = []
        for subject in self.inputs.subjects:
            for images in arranged if subject.role == "defended" else arranged[:1]:
                title = f"re-activation of {subject.name}, {images.condition}"
                plan += [(title, subject, images, eps) for eps in self.settings.ladder]
        return plan

    def _images(self, condition: Condition) -> AttackImages:
        return attack_images(
            condition,
            self.inputs.craft_poisoned,
            self.inputs.held_out_poisoned,
            num_classes=self.inputs.num_classes,
            generator=derive_generator(self.compute.seed, "images", condition),
        )

    def _config(self, eps: float) -> WhiteboxConfig:
        return WhiteboxConfig(
            eps=eps,
            norm=self.settings.norm,
            n_passes=self.settings.n_passes,
            restarts=self.settings.restarts,
            objective=self.settings.objective,
            autocast="bf16" if self.settings.compute.bf16 else None,
        )

    # -- order, cost and failures --------------------------------------------------------------

    def _step(self, name: str, steps: Steps[None], cost: float) -> Steps[None]:
        """Run one step inside the progress of the whole audit; note how it ended."""
        started, total = time.perf_counter(), self._total_cost()
        reason = None
        try:
            for event in steps:
                share = event.done / event.total if event.total else 1.0
                yield Progress(event.step, self._spent + cost * share, total, event.note)
        except BdauditError as error:
            reason = str(error)
        finally:
            steps.close()
        self._spent += cost
        if name == "existence" and reason is not None:
            self.bec_missing = f"not measured: {reason}"
        self.statuses.append(
            StepStatus(
                name=name,
                status="done" if reason is None else "failed",
                elapsed_s=time.perf_counter() - started,
                reason=reason,
            )
        )

    def _total_cost(self) -> float:
        runs = len(self.settings.ladder) * (
            len(self.inputs.subjects) + len(self.settings.controls or (1, 2, 3))
        )
        existence = self._existence_cost() if self.settings.measure_bec else 0.0
        return self._baseline_cost() + existence + runs * self._run_cost()

    def _baseline_cost(self) -> float:
        """Count images forwarded; a backward pass is taken as twice a forward one."""
        return 2.0 * len(self.inputs.subjects) * len(self.inputs.held_out)

    def _existence_cost(self) -> float:
        references = len(self.inputs.with_role("reference"))
        return (3.0 + references) * len(self.inputs.held_out_poisoned)

    def _run_cost(self) -> float:
        passes = self.settings.n_passes * self.settings.restarts
        return 3.0 * passes * len(self.inputs.craft_poisoned) + 2.0 * len(self.inputs.held_out)


def _merged(statuses: Sequence[StepStatus]) -> list[StepStatus]:
    """Join the statuses of steps with one name: failed when any of them failed."""
    merged: dict[str, StepStatus] = {}
    for status in statuses:
        before = merged.get(status.name)
        if before is None:
            merged[status.name] = status
            continue
        failed = before if before.status == "failed" else status
        merged[status.name] = failed.model_copy(
            update={"elapsed_s": before.elapsed_s + status.elapsed_s}
        )
    return list(merged.values())
