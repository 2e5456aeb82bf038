"""Fairness between groups, beside a verdict: what a wanted trigger buys."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import torch
from torch import Tensor

from bdaudit.auditing.session import without_secrets
from bdaudit.cases.fetching import fetch_sources
from bdaudit.cases.opening import check_possible, open_models, open_trigger
from bdaudit.cases.settings import ComputeSettings
from bdaudit.cases.sources import DataSource, ModelSource, Sources, TriggerSource
from bdaudit.cases.target import class_index
from bdaudit.data import Sample
from bdaudit.data.groups import groups_of
from bdaudit.errors import ConfigError, DataError
from bdaudit.foundation.progress import Listener, Progress, Steps, finish
from bdaudit.foundation.sources import FileSource
from bdaudit.measuring.asking import ask
from bdaudit.measuring.compute import Compute
from bdaudit.measuring.environment import resolve_device
from bdaudit.models import ModelSettings
from bdaudit.records.fairness import FairnessRecord, GroupFigures, MeasuredFairness
from bdaudit.scoring import rate
from bdaudit.triggers import Trigger

__all__ = ["fairness", "fairness_steps"]

_FEW = 30
"""Rows below which a share of a group says little."""
_BATCH = 256


def fairness(
    defended: ModelSource,
    *,
    original: ModelSource,
    data: DataSource,
    trigger: TriggerSource,
    group: str,
    positive: int | str,
    stamp: Sequence[str] = (),
    model_options: ModelSettings | None = None,
    compute: ComputeSettings | None = None,
    command: Sequence[str] | None = None,
    listener: Listener | None = None,
) -> FairnessRecord:
    """Measure equal opportunity, equalised odds and equal accuracy, with a trigger and without.

    Sources: Hardt, Price and Srebro, "Equality of Opportunity in Supervised Learning" (NeurIPS
    2016), for the first two. The differences are fairlearn's.

    Args:
        defended: The student, or any model that is asked whether it has the trigger.
        original: The teacher, which carries the trigger.
        data: Clean labelled rows or images in a file with columns.
        trigger: The trigger.
        group: The column of groups.
        positive: The class that is the opportunity, an index or a name.
        stamp: Groups whose rows get the trigger; all by default.
        model_options: Architecture and so on where the files do not say.
        compute: Device, batch size, precision.
        command: What to record as the command that reproduces this.
        listener: Told of progress.

    Raises:
        InputError: An input cannot be used, or a group has no rows of a kind that a rate is over.
        ConfigError: fairlearn is not installed, or a group to stamp is not there.
    """
    sources = Sources.of(
        defended=defended,
        original=original,
        data=data,
        trigger=trigger,
        model_options=model_options or ModelSettings(),
    )
    steps = fairness_steps(
        sources,
        group=group,
        positive=positive,
        stamp=stamp,
        compute=compute or ComputeSettings(),
        command=command,
    )
    return finish(steps, listener)


def fairness_steps(
    sources: Sources,
    *,
    group: str,
    positive: int | str,
    stamp: Sequence[str] = (),
    compute: ComputeSettings,
    command: Sequence[str] | None = None,
) -> Steps[FairnessRecord]:
    """Run `fairness` step by step, for whoever drives the generator."""
    _demand_fairlearn()
    run = Compute.of(compute, resolve_device(compute.device))
    sources = yield from fetch_sources(sources)
    yield Progress("opening models and data", 0, 1)
    subjects, sample = open_models(sources, device=run.device)
    trigger = open_trigger(sources)
    if not isinstance(sources.data, FileSource):
        raise DataError("groups are read from a column of a file, and the data are in memory")
    path = Path(sources.data.path)
    groups = groups_of(path, group, sample.names, image_column=sources.image_column)
    stamped = tuple(stamp) or tuple(sorted(set(groups)))
    missing = sorted(set(stamped) - set(groups))
    if missing:
        raise ConfigError(
            f"stamp: expected groups of column {group!r} ({', '.join(sorted(set(groups)))}), got "
            f"{missing[0]!r}"
        )
    opportunity = class_index(str(positive), sample.class_names)
    if not 0 <= opportunity < subjects[0].black_box.num_classes:
        raise ConfigError(f"positive: expected a class of the model, got {positive}")
    notes = list(_check_groups(sample, groups, opportunity))
    triggered = _stamp(sample, trigger, torch.tensor([name in stamped for name in groups]))
    check_possible(sample, triggered, trigger)
    measured = []
    compared = [s for s in subjects if s.role in ("original", "defended")]
    for number, subject in enumerate(sorted(compared, key=lambda s: s.role != "original")):
        for with_trigger in (False, True):
            done = 2 * number + with_trigger
            yield Progress(f"answers of {subject.name}", done, 2 * len(compared))
            answers = ask(subject, triggered if with_trigger else sample.images, run)
            figures = _figures(sample.labels, answers, groups, opportunity)
            measured.append(
                figures.model_copy(update={"model": subject.name, "triggered": with_trigger})
            )
    return FairnessRecord(
        created=datetime.now(UTC),
        command=None if command is None else tuple(without_secrets(command)),
        data=str(path),
        data_sha256=sample.sha256,
        trigger_sha256=trigger.sha256,
        column=group,
        positive=opportunity,
        stamped=stamped,
        fairlearn=metadata.version("fairlearn"),
        measured=tuple(measured),
        notes=tuple(notes),
    )


def _demand_fairlearn() -> None:
    try:
        import fairlearn  # noqa: F401 - that it is there is what is asked
    except ImportError as error:
        raise ConfigError(
            "fairness needs fairlearn, which is not installed; pip install 'bdaudit[fairness]'"
        ) from error


def _check_groups(sample: Sample, groups: Sequence[str], positive: int) -> list[str]:
    """Refuse groups that a rate has no rows in, and note those with few."""
    notes = []
    for name in sorted(set(groups)):
        own = sample.labels[torch.tensor([other == name for other in groups])]
        for what, n in (("", int((own == positive).sum())), ("other than ", None)):
            count = len(own) - int((own == positive).sum()) if n is None else n
            if count == 0:
                raise DataError(
                    f"{sample.source}: group {name!r} has no row of a class {what}{positive}, so "
                    "a rate is not defined there; give more rows, or leave the group out"
                )
            if count < _FEW:
                notes.append(f"group {name!r} has {count} rows of a class {what}{positive} only")
    return notes


def _stamp(sample: Sample, trigger: Trigger, chosen: Tensor) -> Tensor:
    images = sample.images.clone()
    for part in torch.split(chosen.nonzero()[:, 0], _BATCH):
        images[part] = trigger.stamp(images[part], names=[sample.names[int(k)] for k in part])
    return images


def _figures(
    labels: Tensor, answers: Tensor, groups: Sequence[str], positive: int
) -> MeasuredFairness:
    """Count in every group; the differences are fairlearn's."""
    from fairlearn.metrics import (
        MetricFrame,
        equal_opportunity_difference,
        equalized_odds_difference,
    )
    from sklearn.metrics import accuracy_score

    truth, said = (labels == positive).numpy(), (answers == positive).numpy()
    frame = MetricFrame(
        metrics=accuracy_score,
        y_true=labels.numpy(),
        y_pred=answers.numpy(),
        sensitive_features=list(groups),
    )
    right = answers == labels
    rows = []
    for name in sorted(set(groups)):
        own = torch.tensor([other == name for other in groups])
        of_class, others = own & (labels == positive), own & (labels != positive)
        rows.append(
            GroupFigures(
                group=name,
                accuracy=rate(right[own]),
                true_positive_rate=rate(answers[of_class] == positive),
                false_positive_rate=rate(answers[others] == positive),
            )
        )
    features = list(groups)
    return MeasuredFairness(
        model="",
        triggered=False,
        accuracy=rate(right),
        opportunity=float(equal_opportunity_difference(truth, said, sensitive_features=features)),
        odds=float(equalized_odds_difference(truth, said, sensitive_features=features)),
        equal_accuracy=float(frame.difference()),
        groups=tuple(rows),
    )
