"""Screen a model that comes alone: no images, no original, no innocent model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from bdaudit.auditing.session import Session
from bdaudit.cases.fetching import naming_origins
from bdaudit.cases.opening import open_model
from bdaudit.cases.settings import ComputeSettings, SplitSettings
from bdaudit.cases.sources import ModelSource, Sources, can_only_be_asked
from bdaudit.cases.subjects import Subject
from bdaudit.data.loading import name_classes
from bdaudit.detection.asked import Asked
from bdaudit.errors import DataError, ModelError
from bdaudit.foundation.progress import Listener, Steps, finish
from bdaudit.inversion import MaximumMarginConfig, demand_classifier
from bdaudit.measuring.screening import screening_steps
from bdaudit.models import ModelSettings
from bdaudit.records import ScreenFindings, ScreenRecord

__all__ = ["screen", "screen_steps"]


def screen(
    model: ModelSource,
    *,
    config: MaximumMarginConfig | None = None,
    limit: float = 0.05,
    compute: ComputeSettings | None = None,
    classes: Sequence[str] | Path | None = None,
    model_options: ModelSettings | None = None,
    command: Sequence[str] | None = None,
    listener: Listener | None = None,
) -> ScreenRecord:
    """Look for a backdoor in a model that comes with nothing else (MM-BD).

    Random images are driven toward every class; a class that can be driven out of all proportion
    to the others is suspected. It says little either way: see docs/screen.md for how often it is
    wrong.

    Args:
        model: A checkpoint's path, or a module in memory; its weights are needed.
        config: Settings of the search.
        limit: The p-value from which on a class is suspicious, in [0, 1].
        compute: Device, seed, batch size. All is computed in float32.
        classes: Class names in order of index, or a file with one a line.
        model_options: Architecture, normalisation and so on where the file does not say;
            `image_shape` is needed for a module.
        command: What to record as the command that reproduces this.
        listener: Told of progress.

    Returns:
        The record; `record.screening.outcome` is `suspicious`, `nothing found` or `unknown`.

    Raises:
        InputError: The model cannot be opened, or only be asked.
        ConfigError: A setting is out of range, or a module's image shape is missing.
        NumericsError: A logit or a gradient was NaN or infinite.
    """
    sources = Sources.of(
        defended=None,
        original=model,
        data=None,
        trigger=None,
        classes=classes,
        model_options=model_options or ModelSettings(),
    )
    steps = screen_steps(
        sources,
        config=config or MaximumMarginConfig(),
        limit=limit,
        compute=compute or ComputeSettings(),
        command=command,
    )
    return finish(steps, listener)


def screen_steps(
    sources: Sources,
    *,
    config: MaximumMarginConfig,
    limit: float = 0.05,
    compute: ComputeSettings,
    command: Sequence[str] | None = None,
) -> Steps[ScreenRecord]:
    """Run `screen` step by step, for whoever drives the generator; as `screen` otherwise.

    The model is the original of `sources`.
    """
    assert sources.original is not None
    if can_only_be_asked(sources.original):
        raise ModelError(
            f"{sources.original}: expected a checkpoint, got a black-box model (predictions only): "
            "a screening follows gradients, for which it needs the weights"
        )
    session = yield from Session.begin(
        sources, compute=compute, split=SplitSettings(), command=command
    )
    sources, run = session.sources, session.compute
    with naming_origins(sources.origins):
        subject = open_model(sources, device=run.device, seed=compute.seed)
        network = subject.white.classifier.network
        demand_classifier("screening", is_detector=isinstance(network, Asked))
        names = _class_names(sources, subject)
    screening, doubts = yield from screening_steps(
        subject.white, run, config=config, limit=limit, class_names=names
    )
    return session.seal_model(
        ScreenRecord,
        ScreenFindings(screening=screening),
        subject=subject,
        settings={"screening": {**asdict(config), "limit": limit}},
        diagnostics=doubts,
    )


def _class_names(sources: Sources, subject: Subject) -> tuple[str, ...] | None:
    """Return the names of the model's classes: those given, or else its own files'.

    Raises:
        DataError: They cannot be read, or are not as many as the model has classes.
    """
    names, given_by = name_classes(sources.class_names)
    if names is None:
        return subject.white.class_names
    if len(names) != subject.white.num_classes:
        raise DataError(
            f"{given_by}: expected {subject.white.num_classes} class names, as many as the model "
            f"has classes, got {len(names)}"
        )
    return names
