"""From the tables of settings to what the verbs take: the one place where they are put together.

The command line, a project file and a manifest all end here, so a setting means the same wherever
it was written.
"""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from bdaudit.blackbox import BlackBoxOptions, TransportSettings
from bdaudit.blackbox.protocol import parse_endpoint
from bdaudit.cases.request import AuditRequest
from bdaudit.cases.settings import AuditSettings, ComputeSettings, SplitSettings
from bdaudit.cases.sources import Sources, default_modes
from bdaudit.errors import ConfigError, ProjectError
from bdaudit.existence import ExistenceConfig
from bdaudit.foundation.cache import cache_folder
from bdaudit.foundation.sources import parse_model
from bdaudit.inversion import InversionConfig
from bdaudit.models import ClipSettings, ModelSettings
from bdaudit.precision import settled
from bdaudit.project import Project, ProjectFile
from bdaudit.records import Mode
from bdaudit.relatives.standins import StandInConfig
from bdaudit.relearning import RelearnConfig
from bdaudit.settings import (
    Clip,
    Compute,
    Existence,
    Inputs,
    Inversion,
    Models,
    Query,
    Relearning,
    Surrogates,
    Table,
    declared,
)

__all__ = [
    "audit_settings",
    "black_box_options",
    "compute_settings",
    "defended_source",
    "existence_config",
    "inversion_config",
    "model_cache",
    "model_settings",
    "modes_of",
    "path_of",
    "relearn_config",
    "request_from_project",
    "single_attack",
    "sources",
    "split_settings",
    "stand_in_config",
]


def request_from_project(key: str, project: Project) -> AuditRequest:
    """Return the audit that a project file describes; what it leaves out keeps its default.

    Args:
        key: Name of the audit.
        project: The file, whose paths are relative to it. Whether it may run code is for the
            caller to decide (`Project.needs_trust`).

    Raises:
        ProjectError: It names no candidate, original or data; or a value is out of range or
            contradicts another.
        ModelError: Class names or prompts cannot be read.
    """
    said = project.located()
    if (said.inputs.defended is None) == (said.inputs.endpoint is None):
        raise ProjectError(
            f"{project.path}: {key}: expected exactly one of inputs.defended and inputs.endpoint"
        )
    for name in ("original", "data"):
        if getattr(said.inputs, name) is None:
            raise ProjectError(f"{project.path}: {key}: expected inputs.{name}")
    try:
        return AuditRequest(
            key=key,
            sources=sources(said, defended=defended_source(said.inputs), project=project.path),
            settings=audit_settings(said),
        )
    except ConfigError as error:
        raise ProjectError(f"{project.path}: {key}: {error}") from error


def sources(said: ProjectFile, *, defended: str | None, project: Path | None = None) -> Sources:
    """Return where the inputs come from.

    Args:
        said: All tables.
        defended: The one thing to be audited (`defended_source`); `None` where there is none.
        project: The project file some of it came from, to be named in the record.

    Raises:
        ConfigError: A setting contradicts another.
        ModelError: Class names or prompts cannot be read.
    """
    inputs = said.inputs
    return Sources.of(
        defended=defended,
        original=inputs.original,
        references=inputs.reference,
        surrogates=said.surrogates.surrogate,
        data=_given(inputs.data, "data"),
        trigger=inputs.trigger,
        task=inputs.task,
        placebos=inputs.placebo,
        policy=said.policy,
        classes=path_of(inputs.classes),
        image_column=inputs.image_column,
        label_column=inputs.label_column,
        model_options=model_settings(said.models, said.clip),
        black_box=black_box_options(said.query),
        feedback=said.query.feedback,
        target_label=None if inputs.target is None else str(inputs.target),
        allow_trigger_code=inputs.allow_trigger_code,
        project=project,
    )


def audit_settings(said: ProjectFile) -> AuditSettings:
    """Return how an audit is run.

    Raises:
        ConfigError: A setting contradicts another.
    """
    tables = (said.inputs, said.attack, said.query, said.surrogates, said.output)
    return AuditSettings(
        **{
            **_shared(AuditSettings, *tables),
            "mode": tuple(dict.fromkeys(said.attack.mode)) or None,
            "relearn": relearn_config(said.relearning) if said.attack.relearn else None,
        },
        inversion=inversion_config(said.inversion),
        stand_in=stand_in_config(said.inputs),
        compute=compute_settings(said.compute),
        split=split_settings(said.compute),
    )


def modes_of(said: ProjectFile, defended: str) -> tuple[Mode, ...]:
    """Return the kinds of attack that were asked for, or what `defended` allows."""
    return tuple(dict.fromkeys(said.attack.mode)) or default_modes(parse_model(defended))


def single_attack(said: ProjectFile, mode: Mode) -> tuple[AuditSettings, float]:
    """Return how a single attack is run, and its radius.

    Raises:
        ConfigError: Not exactly one radius was given, or a setting contradicts the mode.
    """
    eps = said.attack.eps
    if eps is None or len(eps) != 1:
        raise ConfigError(f"eps: expected one radius, got {eps}; `bdaudit audit` takes several")
    # An audit's ladder begins above 0; a single attack of eps 0 shows what no attack does.
    one = replace(said, attack=replace(said.attack, mode=(mode,), eps=None))
    return audit_settings(one), eps[0]


def defended_source(inputs: Inputs) -> str:
    """Return the one thing to be audited.

    Raises:
        ConfigError: None was given, or two; or the address is none of a served model.
    """
    if inputs.endpoint is not None:
        if inputs.defended is not None:
            raise ConfigError("expected either DEFENDED or --endpoint, got both")
        parse_endpoint(inputs.endpoint)
        return inputs.endpoint
    if inputs.defended is None:
        raise ConfigError(
            "expected DEFENDED or --endpoint, in a project file inputs.defended or "
            "inputs.endpoint, got neither"
        )
    return inputs.defended


def model_settings(models: Models, clip: Clip | None = None) -> ModelSettings:
    """Return what is said about the checkpoints.

    Raises:
        ConfigError: A setting of a CLIP without the others.
        ModelError: Class names or templates cannot be used.
    """
    settings = {
        **_shared(ModelSettings, models),
        "weights": models.weights or None,
        "read_pickled_module": models.read_pickled_module or None,
    }
    return ModelSettings(
        **settings, clip=None if clip is None else _clip_settings(clip, models.arch)
    )


def _clip_settings(clip: Clip, arch: str | None) -> ClipSettings | None:
    if clip.classnames is None:
        if clip != Clip():
            raise ConfigError("templates, pretrained, clip_config: these need classnames as well")
        return None
    if arch is not None and not arch.startswith("open_clip/"):
        raise ConfigError(f"classnames: only for a model of arch open_clip/NAME, got {arch}")
    return ClipSettings.from_files(
        Path(clip.classnames),
        templates=path_of(clip.templates),
        config_folder=path_of(clip.clip_config),
        pretrained=clip.pretrained,
    )


def black_box_options(query: Query) -> BlackBoxOptions:
    """Return what is said about a model that can only be queried."""
    return BlackBoxOptions(
        **_shared(BlackBoxOptions, query),
        transport=TransportSettings(**_shared(TransportSettings, query)),
    )


def compute_settings(compute: Compute) -> ComputeSettings:
    """Return where and how to compute."""
    return ComputeSettings(**_shared(ComputeSettings, compute))


def split_settings(compute: Compute) -> SplitSettings:
    """Return the sizes of the halves."""
    return SplitSettings(**_shared(SplitSettings, compute))


def stand_in_config(inputs: Inputs) -> StandInConfig:
    """Return how stand-ins are made."""
    return StandInConfig(n_images=inputs.stand_in_images)


def existence_config(existence: Existence, compute: Compute) -> ExistenceConfig:
    """Return how the coefficient is measured by itself."""
    return ExistenceConfig(
        top_share=existence.top_share,
        estimator=existence.estimator,
        n_samples=existence.samples,
        n_bootstrap=existence.bootstrap,
        batch_size=compute.batch_size,
        precision=settled(compute.precision, compute.device),
        include=existence.layer,
    )


def relearn_config(relearning: Relearning) -> RelearnConfig:
    """Return how the trigger is taught."""
    return RelearnConfig(**_shared(RelearnConfig, relearning))


def inversion_config(inversion: Inversion) -> InversionConfig:
    """Return how a trigger is looked for."""
    chosen = tuple(dict.fromkeys(m for m in inversion.method if m != "auto"))
    if chosen and "auto" in inversion.method:
        raise ConfigError(
            "--method: auto already runs the standard methods; pass it alone, or "
            "list methods without it"
        )
    if not chosen:
        return InversionConfig(n_passes=inversion.passes)
    return InversionConfig(methods=chosen, n_passes=inversion.passes)


def model_cache(surrogates: Surrogates) -> Path | None:
    """Return the folder that keeps models made here, `None` for none.

    Raises:
        ConfigError: A folder was named, and none wanted.
    """
    if surrogates.no_cache:
        if surrogates.cache is not None:
            raise ConfigError("give --cache or --no-cache, not both")
        return None
    return (cache_folder() if surrogates.cache is None else Path(surrogates.cache)) / "models"


def _shared(settings: type, *tables: Table) -> dict[str, Any]:
    """Return what tables say of settings, where both use the same name."""
    names = {each.name for each in fields(settings)}
    return {
        each.attribute: getattr(table, each.attribute)
        for table in tables
        for each in declared(type(table))
        if each.attribute in names and each.option.now is None
    }


def _given(value: str | None, name: str) -> str:
    if value is None:
        raise ConfigError(f"{name}: expected one")
    return value


def path_of(text: str | None) -> Path | None:
    """Return a setting that names a file or folder as a path."""
    return None if text is None else Path(text)
