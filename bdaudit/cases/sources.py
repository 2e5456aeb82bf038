"""Where the inputs of a verb come from, before anything is opened."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TypeAlias

from numpy.typing import NDArray
from torch import Tensor, nn

from bdaudit.blackbox import BlackBox, BlackBoxOptions, Feedback
from bdaudit.data import Sample
from bdaudit.foundation.modes import Mode, mode_for
from bdaudit.foundation.sources import (
    FileSource,
    InMemory,
    OnnxFile,
    OpenVinoFile,
    PythonFunction,
    RemoteFile,
    ServedModel,
    Source,
    parse_file,
    parse_model,
)
from bdaudit.foundation.tasks import Task
from bdaudit.models import LoadedModel, ModelSettings
from bdaudit.records import Role
from bdaudit.triggers import Trigger
from bdaudit.verdict import Policy

__all__ = [
    "DataSource",
    "DefendedSource",
    "FileLike",
    "ModelSource",
    "Sources",
    "TriggerSource",
    "can_only_be_asked",
    "default_modes",
]

ModelSource: TypeAlias = LoadedModel | nn.Module | str | Path
"""A model: loaded, a module in memory (images in [0, 1] to logits), or a checkpoint's path."""


DefendedSource: TypeAlias = ModelSource | BlackBox | Callable[[Tensor], Any]
"""A model, or something that can only be queried: a black box, a function from images to scores or
labels, the path of an ONNX file, `file.py:function`, or a served model's address."""


DataSource: TypeAlias = (
    Sample | tuple[Tensor | NDArray[Any], Tensor | NDArray[Any] | Sequence[int]] | str | Path
)
"""Clean images: a sample, a pair (images, labels), or a path that `load_sample` reads."""


TriggerSource: TypeAlias = Trigger | str | Path
"""A trigger or the path of a trigger file."""

FileLike: TypeAlias = FileSource | RemoteFile | InMemory
"""What images or a trigger are named by, once that is parsed."""


@dataclass(frozen=True, kw_only=True)
class Sources:
    """Where the inputs of a verb come from, parsed and before anything is opened.

    `Sources.of` parses what a user gives. Nothing later asks a text what it is.

    Attributes:
        defended: The release candidate; `None` where only the original is looked at.
        original: The suspected model before the defence, where the verb needs it.
        references: Innocent models of the same task.
        surrogates: Models that resemble the defended one: other defended versions of `original`.
            What their files do not say is taken from `model_options`, which other models' files
            do not override, so their architecture may be another one.
        data: Clean labelled images; `None` for a verb that needs none.
        trigger: The trigger, `None` when nobody knows it.
        placebos: Triggers that nobody trained the models on, to compare it with.
        policy: Limits of the verdict, or a policy file; `None` for the defaults.
        task: What the models do. For "detection" data are pictures with boxes, and models
            detectors.
        classes: Class names in order of index, or a file with one a line.
        image_column: Of data in a table: the column of images or of their paths; `None` for one
            whose name says so.
        label_column: Likewise the column of labels.
        model_options: What the user says about all the checkpoints.
        black_box: What the user says about a defended model that can only be queried.
        feedback: What a query search is given.
        target_label: Replaces the target of the trigger's rule; an index, or a class name.
        allow_trigger_code: Whether a trigger file may name Python code to run.
        project: The project file that said all this, `None` when none did.
        origins: Where files came from that were fetched, by path; see `fetch_sources`.
    """

    defended: Source | None
    original: Source | None = None
    references: tuple[Source, ...] = ()
    surrogates: tuple[Source, ...] = ()
    data: FileLike | None
    trigger: FileLike | None
    placebos: tuple[FileLike, ...] = ()
    policy: Policy | str | Path | None = None
    task: Task = "classification"
    classes: Sequence[str] | Path | None = None
    image_column: str | None = None
    label_column: str | None = None
    model_options: ModelSettings = field(default_factory=ModelSettings)
    black_box: BlackBoxOptions = field(default_factory=BlackBoxOptions)
    feedback: Feedback = "scores"
    target_label: int | str | None = None
    allow_trigger_code: bool = False
    project: str | Path | None = None
    origins: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        *,
        defended: DefendedSource | Source | None,
        original: ModelSource | Source | None = None,
        references: Sequence[ModelSource | Source] = (),
        surrogates: Sequence[ModelSource | Source] = (),
        data: DataSource | FileLike | None,
        trigger: TriggerSource | FileLike | None,
        placebos: Sequence[TriggerSource | FileLike] = (),
        **others: Any,
    ) -> Self:
        """Parse what a user gives: paths, addresses, code or objects; `others` as they are."""
        return cls(
            defended=None if defended is None else parse_model(defended),
            original=None if original is None else parse_model(original),
            references=tuple(parse_model(model) for model in references),
            surrogates=tuple(parse_model(model) for model in surrogates),
            data=None if data is None else parse_file(data),
            trigger=None if trigger is None else parse_file(trigger),
            placebos=tuple(parse_file(placebo) for placebo in placebos),
            **others,
        )

    @property
    def class_names(self) -> Sequence[str] | Path | None:
        """Names for the data's classes: those given for it, or else a CLIP's."""
        if self.classes is not None or self.model_options.clip is None:
            return self.classes
        return self.model_options.clip.class_names

    def named_models(self) -> list[tuple[Role, str, Source]]:
        """Give the models that are opened as files or modules their role and name.

        The defended one comes first, unless it can only be queried.
        """
        named: list[tuple[Role, str, Source]] = []
        if self.defended is not None and not can_only_be_asked(self.defended):
            named.append(("defended", "defended", self.defended))
        if self.original is not None:
            named.append(("original", "original", self.original))
        for number, reference in enumerate(self.references, start=1):
            name = "reference" if len(self.references) == 1 else f"reference {number}"
            named.append(("reference", name, reference))
        for number, surrogate in enumerate(self.surrogates, start=1):
            named.append(("surrogate", f"surrogate {number}", surrogate))
        return named


def can_only_be_asked(source: Source) -> bool:
    """Return whether a source is something without weights to look into."""
    match source:
        case OnnxFile() | OpenVinoFile() | PythonFunction() | ServedModel():
            return True
        case RemoteFile():
            return source.is_onnx
        case InMemory():
            return not isinstance(source.value, LoadedModel | nn.Module)
        case FileSource():
            return False


def default_modes(source: Source) -> tuple[Mode, ...]:
    """Return the kinds of attack that suit a source when the user names none."""
    return (mode_for(only_asked=can_only_be_asked(source)),)
