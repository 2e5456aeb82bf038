"""From a project file to an audit that is asked for, as `bdaudit audit` would read it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bdaudit.auditing.inputs import Sources
from bdaudit.auditing.requests import AuditRequest
from bdaudit.auditing.settings import AuditSettings, ComputeSettings, SplitSettings
from bdaudit.blackbox import BlackBoxOptions, TransportSettings
from bdaudit.errors import ProjectError
from bdaudit.models import ClipSettings, ModelSettings
from bdaudit.number_texts import read_numbers, read_size
from bdaudit.project import Project
from bdaudit.relearning import RelearnConfig
from bdaudit.standins import StandInConfig
from bdaudit.verdict import Policy

__all__ = ["request_from_project"]


def request_from_project(key: str, project: Project) -> AuditRequest:
    """Return the audit that a project file describes; what it leaves out keeps its default.

    Args:
        key: Name of the audit.
        project: The file, whose paths are relative to it. Whether it may run code is for the
            caller to decide (`Project.needs_trust`).

    Raises:
        ProjectError: It names no candidate, original or data.
        ConfigError: A value is out of range or contradicts another.
        ModelError: Class names or prompts cannot be read.
    """
    file, located = project.file, project.options()
    candidates = [located[name] for name in ("defended", "endpoint") if name in located]
    if len(candidates) != 1:
        raise ProjectError(
            f"{project.path}: {key}: expected inputs.defended or inputs.endpoint, one of them"
        )
    for name in ("original", "data"):
        if name not in located:
            raise ProjectError(f"{project.path}: {key}: expected inputs.{name}")
    settings = _settings(project)
    policy = file.policy if isinstance(file.policy, Policy) else located.get("policy")
    sources = Sources(
        defended=candidates[0],
        original=located["original"],
        references=tuple(located.get("reference", ())),
        surrogates=tuple(located.get("surrogate", ())),
        data=located["data"],
        trigger=located.get("trigger"),
        policy=policy,
        classes=_path(located.get("classes")),
        model_options=_model_options(project, located),
        black_box=_black_box(project, located),
        feedback=settings.feedback,
        target_label=None if file.inputs.target is None else str(file.inputs.target),
        allow_trigger_code=bool(file.inputs.allow_trigger_code),
        project=project.path,
    )
    return AuditRequest(key=key, sources=sources, settings=settings)


def _settings(project: Project) -> AuditSettings:
    file, located = project.file, project.options()
    attack, query, compute = file.attack, file.query, file.compute
    surrogates = file.surrogates
    return AuditSettings(
        **_given(
            modes=None if attack.mode is None else tuple(dict.fromkeys(attack.mode)),
            eps=read_numbers(",".join(located["eps"]), "attack.eps") if "eps" in located else None,
            norm=attack.norm,
            n_passes=attack.passes,
            restarts=attack.restarts,
            objective=attack.objective,
            measure_bec=attack.bec,
            relearn=RelearnConfig() if attack.relearn else None,
            max_queries=query.max_queries,
            feedback=query.feedback,
            schedule=query.schedule,
            warm=None if query.cold is None else not query.cold,
            strategy=surrogates.strategy,
            input_diversity=surrogates.input_diversity,
            pictures=file.output.pictures,
            stand_ins=file.inputs.stand_ins,
        ),
        stand_in=StandInConfig(**_given(n_images=file.inputs.stand_in_images)),
        compute=ComputeSettings(
            **_given(
                device=compute.device,
                seed=compute.seed,
                batch_size=compute.batch_size,
                bf16=compute.bf16,
            )
        ),
        split=SplitSettings(**_given(n_craft=compute.craft, n_held_out=compute.held_out)),
    )


def _model_options(project: Project, located: dict[str, Any]) -> ModelSettings:
    models = project.file.models
    clip = None
    if "classnames" in located:
        clip = ClipSettings.from_files(
            Path(located["classnames"]),
            templates=_path(located.get("templates")),
            config_folder=_path(located.get("clip_config")),
            pretrained=located.get("pretrained"),
        )
    elif any(name in located for name in ("templates", "pretrained", "clip_config")):
        raise ProjectError(f"{project.path}: clip: expected clip.classnames with the others")
    return ModelSettings(
        arch=located.get("arch"),
        num_classes=models.num_classes,
        input_size=read_size(located.get("input_size"), "models.input_size"),
        mean=read_numbers(located.get("mean"), "models.mean"),
        std=read_numbers(located.get("std"), "models.std"),
        outputs=models.outputs,
        clip=clip,
    )


def _black_box(project: Project, located: dict[str, Any]) -> BlackBoxOptions:
    query = project.file.query
    return BlackBoxOptions(
        **_given(
            order=query.layout,
            input_name=query.input_name,
            output_name=query.output_name,
            binary=query.binary,
            grid=query.grid,
            batch_size=query.request_size,
        ),
        transport=TransportSettings(
            **_given(
                timeout_s=query.timeout,
                max_retries=query.retries,
                qps=query.qps,
                concurrency=query.concurrency,
                token_env=query.token_env,
                ca_file=located.get("ca_file"),
            )
        ),
    )


def _given(**values: Any) -> dict[str, Any]:
    """Leave out what is not set, so that it keeps its default."""
    return {name: value for name, value in values.items() if value is not None}


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text)
