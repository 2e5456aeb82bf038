"""Find the trigger and the target in the suspected original, when nobody knows them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from io import BytesIO
from pathlib import Path

from bdaudit.auditing.planning import plan_stand_ins
from bdaudit.auditing.session import Session
from bdaudit.cases.description import describe_sources
from bdaudit.cases.files import digest_inputs
from bdaudit.cases.opening import open_models
from bdaudit.cases.settings import ComputeSettings, SplitSettings
from bdaudit.cases.sources import DataSource, ModelSource, Sources
from bdaudit.cases.subjects import Inputs, as_stand_ins
from bdaudit.cases.target import class_index
from bdaudit.data import Sample, split_sample
from bdaudit.detection import is_marked
from bdaudit.errors import InputError
from bdaudit.foundation.plan import Plan, PlannedStep
from bdaudit.foundation.progress import Listener, Progress, Steps, finish, reworded, within
from bdaudit.foundation.renamed import renamed
from bdaudit.foundation.writing import write_atomically
from bdaudit.inversion import InversionConfig, demand_classifier
from bdaudit.measuring.answers import examine_answers
from bdaudit.measuring.baselines import demand_matching_labels, learned_less, near_chance
from bdaudit.measuring.innocents import left_out_diagnostic
from bdaudit.measuring.inversion import _SHOWN, _clean_acc, lacking_accuracy, recover_steps
from bdaudit.measuring.speed import speed_on
from bdaudit.measuring.standins import MadeStandIns, make_models, n_missing
from bdaudit.models import ModelSettings
from bdaudit.records import InversionFindings, InversionRecord
from bdaudit.relatives.standins import StandInConfig
from bdaudit.triggers import Trigger, poison, preview_strip, write_trigger

__all__ = ["RecoveredTriggers", "invert", "invert_steps", "save_recovered"]

_STAND_IN_SHARE = 0.5  # of the time where stand-ins are made, for the progress bar


@dataclass(frozen=True)
class RecoveredTriggers:
    """A record with the triggers it is about.

    Attributes:
        record: The record.
        triggers: One a candidate of `record.inversion`, in that order.
        sample: The held-out images.
    """

    record: InversionRecord
    triggers: tuple[Trigger, ...]
    sample: Sample


@renamed({"references": "reference", "target_label": "target"})
def invert(
    original: ModelSource,
    *,
    data: DataSource,
    reference: Sequence[ModelSource] = (),
    target: int | str | None = None,
    config: InversionConfig | None = None,
    compute: ComputeSettings | None = None,
    split: SplitSettings | None = None,
    classes: Sequence[str] | Path | None = None,
    model_options: ModelSettings | None = None,
    stand_ins: int | None = None,
    stand_in: StandInConfig | None = None,
    cache_dir: Path | None = None,
    command: Sequence[str] | None = None,
    listener: Listener | None = None,
) -> RecoveredTriggers:
    """Find the trigger and the target class in a suspected model.

    Args:
        original: The suspected model: a checkpoint's path, or a module in memory.
        data: Clean labelled images.
        reference: Innocent models of the same task, with which it is compared class by class.
            Without one, given or made, the outcome is never "found".
        target: Only this class is suspected, by index or name; `None` tries all.
        config: Methods, their settings, and when a backdoor counts as found.
        compute: Device, seed, batch size, precision.
        split: Sizes of the halves: triggers are made on one and scored on the other.
        classes: Class names in order of index, or a file with one a line.
        model_options: Architecture, normalisation and so on where the files do not say.
        stand_ins: Innocent models to make from the labels of the clean images; `None` makes what
            the references lack to three.
        stand_in: How they are made.
        cache_dir: Folder that keeps models made here for the next run; `None` keeps none.
        command: What to record as the command that reproduces this.
        listener: Told of progress.

    Returns:
        The record and the recovered triggers, the one to go on with first. There always is one,
        also when `record.inversion.outcome` says that nothing was found.

    Raises:
        InputError: An input cannot be used.
        ConfigError: The target is no class of the model, or the model is a detector.
        NumericsError: A model returned NaN.
    """
    sources = Sources.of(
        defended=None,
        original=original,
        references=reference,
        data=data,
        trigger=None,
        classes=classes,
        model_options=model_options or ModelSettings(),
        target_label=target,
    )
    steps = invert_steps(
        sources,
        config=config or InversionConfig(),
        compute=compute or ComputeSettings(),
        split=split or SplitSettings(),
        stand_ins=stand_ins,
        stand_in=stand_in or StandInConfig(),
        cache_dir=cache_dir,
        command=command,
    )
    return finish(steps, listener)


def invert_steps(
    sources: Sources,
    *,
    config: InversionConfig,
    compute: ComputeSettings,
    split: SplitSettings,
    stand_ins: int | None,
    stand_in: StandInConfig,
    cache_dir: Path | None = None,
    command: Sequence[str] | None = None,
    planned: bool = False,
) -> Steps[RecoveredTriggers]:
    """Run `invert` step by step, for whoever drives the generator.

    With `planned` an event before the work tells the plan.

    Stand-ins for the search learn from labels and not from a model's answers: a student of a
    backdoored model's answers is pushed toward the target as easily as its teacher, although the
    trigger does nothing to it, and would hide the backdoor (docs/inversion-evidence.md).
    """
    session = yield from Session.begin(sources, compute=compute, split=split, command=command)
    sources, run = session.sources, session.compute
    subjects, sample = open_models(sources, device=run.device)
    demand_classifier("the search for a trigger", is_detector=is_marked(sample.images))
    halves = split_sample(
        sample,
        n_craft=split.craft_of(len(sample)),
        n_held_out=split.held_out,
        seed=compute.seed,
    )
    demand_matching_labels(
        next(subject for subject in subjects if subject.role == "original"), halves.craft, run
    )
    target_label = (
        None
        if sources.target_label is None
        else class_index(sources.target_label, sample.class_names)
    )
    (original,) = (s for s in subjects if s.role == "original")
    known = _clean_acc(original, halves.held_out, run)
    examined = examine_answers(subjects, halves.craft)
    given = [s for s in subjects if s.role == "reference"]
    accuracies = {s.name: _clean_acc(s, halves.held_out, run) for s in given}
    unfit = lacking_accuracy(accuracies, known) | examined.unfit
    doubts = [
        *examined.diagnostics,
        *near_chance(original.name, known, original.white.num_classes),
        *learned_less(
            original.name, known, {n: a for n, a in accuracies.items() if n not in unfit}
        ),
    ]
    count = n_missing([s for s in subjects if s.name not in unfit], stand_ins)
    if planned:
        speed = speed_on(subjects, halves.craft.images, run)
        plan = plan_stand_ins(
            original.white,
            halves.craft,
            run,
            count=count,
            config=replace(stand_in, lessons="labels"),
            cache_dir=cache_dir,
            speed=speed,
        )
        methods = ", ".join(config.methods)
        plan.append(PlannedStep(f"the search for a trigger ({methods})", None))
        yield Progress("planning", 0, 1, plan=Plan(plan, str(run.device)))
    made = MadeStandIns()
    if count:
        making = make_models(
            original.white,
            halves.craft,
            run,
            count=count,
            config=replace(stand_in, lessons="labels"),
            cache_dir=cache_dir,
        )
        made = yield from reworded(making, within(0.0, _STAND_IN_SHARE))
        made_here = as_stand_ins(made.models, subjects[0].black_box)
        subjects = (*subjects, *made_here)
        unfit |= lacking_accuracy(
            {s.name: _clean_acc(s, halves.held_out, run) for s in made_here}, known
        )
    searching = recover_steps(
        [s for s in subjects if s.name not in unfit],
        halves,
        target_label=target_label,
        config=config,
        compute=run,
    )
    first = _STAND_IN_SHARE if count else 0.0
    inversion, triggers = yield from reworded(searching, within(first, 1.0 - first))
    inversion = inversion.model_copy(
        update={
            "elapsed_s": session.elapsed_s,
            "made": tuple(s.describe() for s in subjects if s.stand_in),
            "left_out": unfit,
        }
    )
    num_classes = subjects[0].black_box.num_classes
    files = digest_inputs(subjects, sources)
    inputs = Inputs(
        subjects=subjects,
        craft=halves.craft,
        held_out=halves.held_out,
        craft_poisoned=poison(halves.craft, triggers[0], num_classes),
        held_out_poisoned=poison(halves.held_out, triggers[0], num_classes),
        trigger=triggers[0],
        num_classes=num_classes,
        files=files,
        sources=describe_sources(sources, files),
        origins=sources.origins,
        left_out=frozenset(unfit),
    )
    record = session.seal(
        InversionRecord,
        InversionFindings(inversion=inversion),
        inputs=inputs,
        settings={
            "inversion": asdict(config),
            "target_label": target_label,
            "stand_ins": stand_ins,
            "stand_in": asdict(stand_in),
        },
        diagnostics=(
            *doubts,
            *([made.failure] if made.failure else ()),
            *(
                left_out_diagnostic(s.name, unfit[s.name], stand_in=s.stand_in)
                for s in subjects
                if s.name in unfit
            ),
        ),
    )
    return RecoveredTriggers(record, triggers, halves.held_out)


def save_recovered(path: Path, recovered: RecoveredTriggers) -> None:
    """Write the first candidate's trigger file, and a picture of it beside it (.png).

    Raises:
        TriggerError: The trigger cannot be written.
    """
    trigger = recovered.triggers[0]
    write_trigger(path, trigger)
    png = BytesIO()
    preview_strip(recovered.sample, trigger, n=_SHOWN).save(png, format="PNG")
    try:
        write_atomically(path.with_suffix(".png"), png.getvalue())
    except OSError as error:
        raise InputError(f"{path.with_suffix('.png')}: {error.strerror or error}") from error
