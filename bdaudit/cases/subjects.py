"""Models with the part they play, and everything a case is measured on, opened."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bdaudit.blackbox import BlackBox, TorchBlackBox
from bdaudit.data import Sample
from bdaudit.detection import Asked
from bdaudit.errors import ConfigError
from bdaudit.models import Classifier, LoadedModel
from bdaudit.records import DataInfo, FileDigest, ModelInfo, Role, TriggerInfo
from bdaudit.triggers import Poisoned, Trigger, footprint

__all__ = ["Inputs", "Subject", "as_stand_ins", "describe_trigger", "shape_of"]


@dataclass(frozen=True)
class Subject:
    """A model with the part it plays.

    Attributes:
        role: Its part.
        name: How the record refers to it.
        model: What can be looked into and differentiated; `None` when it can only be queried.
        black_box: What is asked in query mode. Of a loaded model it is the same model.
        stand_in: Whether it was made here, to stand for an innocent model.
    """

    role: Role
    name: str
    model: LoadedModel | None
    black_box: BlackBox
    stand_in: bool = False

    @property
    def white(self) -> LoadedModel:
        """The model, for steps that need to look into it.

        Raises:
            ConfigError: It can only be queried.
        """
        if self.model is None:
            raise ConfigError(
                f"{self.name} is a black-box model (predictions only), and this step needs its "
                f"weights: use --mode query"
            )
        return self.model

    @property
    def weights_sha256(self) -> str | None:
        """Digest of its weights or files, `None` where nobody can know it."""
        return self.black_box.identity().sha256

    def what_answers(self) -> dict[str, str]:
        """Return what determines the answers, by name; equal for the same model elsewhere."""
        identity = self.black_box.identity()
        subject = {"weights": identity.sha256} if identity.sha256 else {"source": identity.source}
        decisive = subject | dict(identity.details)
        classifier = None if self.model is None else self.model.classifier
        if isinstance(classifier, Classifier):
            decisive |= {
                "mean": str(classifier.mean.flatten().tolist()),
                "std": str(classifier.std.flatten().tolist()),
                "input size": str(classifier.input_size),
                "outputs": classifier.outputs,
            }
            if isinstance(classifier.network, Asked):
                decisive["score threshold"] = f"{classifier.network.score_threshold:g}"
        return decisive

    def describe(self) -> ModelInfo:
        """Describe it for the record."""
        identity = self.black_box.identity()
        if self.model is None:
            return ModelInfo(
                name=self.name,
                role=self.role,
                arch=identity.kind,
                num_classes=self.black_box.num_classes,
                image_shape=self.black_box.image_shape,
                weights_sha256=identity.sha256,
                access="black",
                path=identity.source,
                notes=(
                    *self.black_box.notes,
                    *(f"{key} {value}" for key, value in identity.details.items()),
                ),
            )
        return ModelInfo(
            name=self.name,
            role=self.role,
            arch=self.model.arch,
            num_classes=self.model.num_classes,
            image_shape=self.model.image_shape,
            weights_sha256=self.model.weights_sha256,
            stand_in=self.stand_in,
            path=None if self.model.path is None else str(self.model.path),
            notes=self.model.notes,
            weights=self.model.weights,
            unaudited=self.model.unaudited,
        )


@dataclass(frozen=True)
class Inputs:
    """Everything an audit measures on, checked to fit together.

    Attributes:
        subjects: The models: defended first, then the original, references, and surrogates.
        craft, held_out: The two halves of the clean sample.
        craft_poisoned, held_out_poisoned: Their images that the trigger's rule applies to.
        files: Every file that was read, by digest.
        sources: How all of it was named, for the record.
        origins: Where files came from that were fetched, by path.
        placebos: Triggers that a user gives to compare the true one with.
        left_out: Names of innocent models that are described and play no part.
    """

    subjects: tuple[Subject, ...]
    craft: Sample
    held_out: Sample
    craft_poisoned: Poisoned
    held_out_poisoned: Poisoned
    trigger: Trigger
    num_classes: int
    files: tuple[FileDigest, ...]
    sources: Mapping[str, Any]
    origins: Mapping[str, str]
    placebos: tuple[Trigger, ...] = ()
    left_out: frozenset[str] = frozenset()

    def with_role(self, role: Role) -> tuple[Subject, ...]:
        """Return the subjects that play `role`."""
        return tuple(subject for subject in self.taking_part if subject.role == role)

    @property
    def taking_part(self) -> tuple[Subject, ...]:
        """The subjects but for those left out."""
        return tuple(subject for subject in self.subjects if subject.name not in self.left_out)

    @property
    def steps(self) -> tuple[float, ...]:
        """What the columns of a table move by; empty where any change of them is possible."""
        columns = self.held_out.columns
        return columns.steps if columns is not None and columns.bound else ()

    @property
    def marked(self) -> bool:
        """Whether images are marked with the box that a detector is asked about."""
        return self.held_out.places is not None

    def with_stand_ins(self, models: Sequence[LoadedModel]) -> Inputs:
        """Return the same inputs with innocent models that were made here after the references."""
        made = as_stand_ins(models, self.subjects[0].black_box)
        last = max(k for k, s in enumerate(self.subjects) if s.role != "surrogate") + 1
        return replace(self, subjects=(*self.subjects[:last], *made, *self.subjects[last:]))

    @property
    def compared(self) -> tuple[Subject, ...]:
        """The models under comparison: all but surrogates, which only serve an attack."""
        return tuple(subject for subject in self.taking_part if subject.role != "surrogate")

    def with_surrogates(self, models: Sequence[LoadedModel]) -> Inputs:
        """Return the same inputs with models made for an attack among the subjects."""
        made = (Subject("surrogate", model.name, model, TorchBlackBox(model)) for model in models)
        return replace(self, subjects=(*self.subjects, *made))

    def innocent_other_than(self, subject: Subject) -> Subject | None:
        """Return a reference that is not `subject` itself, or `None`."""
        return next((s for s in self.with_role("reference") if s is not subject), None)

    def description(self) -> dict[str, str]:
        """Return digests of all that is measured on, which a resumed run is compared with."""
        models = {
            f"{subject.name} {name}": value
            for subject in self.subjects
            for name, value in subject.what_answers().items()
        }
        return models | {
            "data": self.held_out.sha256,
            "trigger": self.trigger.sha256,
            "split": f"{len(self.craft)} craft, {len(self.held_out)} held out",
        }

    def data_info(self) -> DataInfo:
        """Describe the sample for the record."""
        return DataInfo(
            source=self.held_out.source,
            sha256=self.held_out.sha256,
            image_shape=shape_of(self.held_out),
            num_classes=self.num_classes,
            class_names=self.held_out.class_names,
            n_images=len(self.craft) + len(self.held_out),
            n_craft=len(self.craft),
            n_held_out=len(self.held_out),
            n_craft_poisonable=len(self.craft_poisoned),
            n_held_out_poisonable=len(self.held_out_poisoned),
            notes=self.held_out.notes,
        )

    def trigger_info(self) -> TriggerInfo:
        """Describe the trigger and what it does to the held-out images."""
        return describe_trigger(self.trigger, self.held_out_poisoned)

    def model_infos(self) -> tuple[ModelInfo, ...]:
        """Describe the models for the record."""
        return tuple(subject.describe() for subject in self.subjects)


def as_stand_ins(models: Sequence[LoadedModel], like: BlackBox) -> tuple[Subject, ...]:
    """Give innocent models that were made here their part; they are asked as `like` is."""
    return tuple(
        Subject(
            "reference",
            model.name,
            model,
            TorchBlackBox(model, feedback=like.feedback, grid=like.grid),
            stand_in=True,
        )
        for model in models
    )


def describe_trigger(trigger: Trigger, held_out: Poisoned) -> TriggerInfo:
    """Describe a trigger and what it does to held-out images, for the record."""
    changed = footprint(held_out)
    return TriggerInfo(
        kind=trigger.kind,
        target_rule=trigger.rule.name,
        target_label=trigger.target_label,
        source=trigger.source,
        sha256=trigger.sha256,
        footprint=changed.share_changed,
        mean_linf=changed.mean_linf,
        mean_l2=changed.mean_l2,
        wide=changed.wide,
        recovered=trigger.recovered,
    )


def shape_of(sample: Sample) -> tuple[int, int, int]:
    """Return (C, H, W) of a sample's images."""
    channels, height, width = sample.images.shape[1:]
    return channels, height, width
