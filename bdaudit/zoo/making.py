"""The work of one task: make what a recipe says, measure it, and write it with its note."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, cast

import torch
from torch import Tensor, nn

from bdaudit.data import Sample
from bdaudit.data.label_checks import answers_by_class, doubt_labels
from bdaudit.defenses.catalogue import DEFENSES, defense_config
from bdaudit.defenses.pictures import lessons_of
from bdaudit.defenses.tuning import Gradients
from bdaudit.detection import NOTHING
from bdaudit.errors import DataError, ModelError
from bdaudit.foundation.digests import digest_tensors
from bdaudit.foundation.file_digests import digest_file
from bdaudit.foundation.plain_settings import config_from
from bdaudit.foundation.progress import Progress, Steps
from bdaudit.models import Classifier, LoadedModel, load_model, save_model, training_order
from bdaudit.precision import computing_in
from bdaudit.records.families import why_not_learned
from bdaudit.relatives.standins import StandInConfig, make_stand_ins
from bdaudit.scoring import predict, rate
from bdaudit.triggers import (
    AllToAll,
    AllToOne,
    TargetRule,
    Trigger,
    poison,
    read_trigger,
    write_trigger,
)
from bdaudit.zoo.attacks import ATTACKS, Attack, Poisoning, attack_config
from bdaudit.zoo.cleanends import (
    HardeningConfig,
    UnlearningConfig,
    adversarial_gradients,
    stamp_under_true_labels,
    unlearn,
)
from bdaudit.zoo.folder import FamilyFolder, Made, Measured
from bdaudit.zoo.manifest import Manifest
from bdaudit.zoo.parts import Part, Parts
from bdaudit.zoo.planning import FUS, HELPER, Recipe
from bdaudit.zoo.selection import FusConfig, select_images
from bdaudit.zoo.training import TrainingConfig, gradients_in, new_classifier, train

__all__ = ["Workshop", "make_task", "measurement_key"]

Result = TypeVar("Result")

_BATCH = 250
_FROM_ATTACK_SETTINGS = ("poison_rate", "seed", "target")
"""Settings of a recipe that are the family file's own and not the attack's."""


@dataclass(frozen=True)
class Workshop:
    """What every task of a family shares.

    Attributes:
        manifest: The family file.
        parts: The images.
        recipes: By name.
        root: The family's folder, which every worker must see.
        device: Where networks are trained.
    """

    manifest: Manifest
    parts: Parts
    recipes: dict[str, Recipe]
    root: Path
    device: str

    @property
    def folder(self) -> FamilyFolder:
        """The family's folder."""
        return FamilyFolder(self.root)

    @property
    def references(self) -> tuple[Recipe, ...]:
        """The models that are set aside, but for those that turned out not to have learned."""
        return tuple(
            recipe
            for recipe in self.recipes.values()
            if recipe.is_reference and self.why_not_learned(recipe) is None
        )

    def why_not_learned(self, recipe: Recipe) -> str | None:
        """Return why a member, or its original, cannot be judged; `None` where it can."""
        note = self.folder.note(recipe)
        measured = None if note is None else note.measured
        if measured is not None:
            own = why_not_learned(measured.clean_acc, self.parts.num_classes)
            if own is not None:
                return own
        if recipe.original is None:
            return None
        why = self.why_not_learned(self.recipes[recipe.original])
        return None if why is None else f"its original {recipe.original} {why}"

    @property
    def training(self) -> TrainingConfig:
        """Settings of training from scratch."""
        return self.manifest.training_config()


def make_task(name: str, shop: Workshop) -> Steps[Made]:
    """Make what the recipe `name` says and write it, or only measure it where that is all it lacks.

    What it needs is in the folder already. The note is written last, so that whatever was cut short
    is made again.

    Returns:
        The note.
    """
    recipe = shop.recipes[name]
    if shop.folder.holds(recipe):
        made = cast(Made, shop.folder.note(recipe))
    else:
        started = time.perf_counter()
        making = _Making(recipe, shop)
        made = yield from making.trigger() if recipe.kind == "trigger" else making.model()
        made = made.model_copy(update={"elapsed_s": time.perf_counter() - started})
    if recipe.kind == "member":
        yield Progress("measuring", 1, 1)
        made = made.model_copy(update={"measured": _measure(recipe, shop)})
    shop.folder.write_note(recipe, made)
    return made


def measurement_key(recipe: Recipe, parts: Parts, trigger: Trigger | None) -> str:
    """Digest what a member's rates depend on, besides the model."""
    shown = "none" if trigger is None else f"{trigger.sha256} and without it"
    if parts.measure.places is not None:
        shown += "/of boxes that are not at the target untouched"
    return hashlib.sha256(f"{parts.measure.sha256}/{shown}".encode()).hexdigest()


class _Making:
    """One recipe at work."""

    def __init__(self, recipe: Recipe, shop: Workshop) -> None:
        self.recipe = recipe
        self.shop = shop
        self.device = torch.device(shop.device)
        self.generator = torch.Generator().manual_seed(recipe.seed)

    def trigger(self) -> Steps[Made]:
        """Make a trigger, and write it."""
        attack = self._attack
        images, labels = self._drawn_for_attack()
        config = self._attack_config()
        trigger = yield from self._in_precision(
            lambda: attack.make_trigger(
                images,
                labels,
                num_classes=self.shop.parts.num_classes,
                rule=self._rule,
                config=config,
                generator=self.generator,
                helper=self._helper(),
            )
        )
        path = self.shop.folder.file(self.recipe)
        write_trigger(path, trigger)
        return self._made(sha256=trigger.sha256)

    def model(self) -> Steps[Made]:
        """Make a model, and write it."""
        reached: float | None = None
        if self.recipe.method == "attack":
            classifier, reached = yield from self._attacked()
        elif self.recipe.method == "defense":
            classifier = yield from self._defended()
        elif self.recipe.method == "unlearned":
            classifier = yield from self._unlearned()
        elif self.recipe.method == "distilled":
            classifier = yield from self._distilled()
        else:
            classifier = yield from self._trained_clean()
        network = self._network_of(classifier)
        table, parts = self.shop.manifest.model, self.shop.parts
        path = self.shop.folder.file(self.recipe)
        save_model(
            path,
            network,
            arch=table.arch,
            num_classes=parts.num_classes,
            image_shape=parts.image_shape,
            mean=table.mean,
            std=table.std,
            input_size=table.input_size,
            extra={
                "family": self.shop.manifest.family.name,
                "member": self.recipe.name,
                "method": self.recipe.method,
                "recipe": self.recipe.key,
            },
        )
        return self._made(
            sha256=digest_file(path),
            weights_sha256=digest_tensors(dict(network.state_dict())),
            poison_rate=reached,
        )

    # -- from scratch ------------------------------------------------------------------------------

    def _attacked(self) -> Steps[tuple[nn.Module, float]]:
        attack = self._attack
        images, labels = self._drawn_for_attack()
        config, trigger, helper = self._attack_config(), self._trigger(), self._helper()

        def poison(preferred: Tensor | None) -> Steps[Poisoning]:
            return self._in_precision(
                lambda: attack.poison(
                    images,
                    labels,
                    num_classes=self.shop.parts.num_classes,
                    trigger=trigger,
                    poison_rate=self.recipe.poison_rate,
                    config=config,
                    generator=self.generator,
                    helper=helper,
                    preferred=preferred,
                )
            )

        preferred = None
        fus = self._settings_of(FUS)
        if fus:
            preferred = yield from select_images(
                poison,
                self._new_classifier,
                config=config_from(FusConfig, fus, "fus"),
                training=self.shop.training,
                generator=self.generator,
            )
        poisoning = yield from poison(preferred)
        classifier = yield from self._trained(poisoning.images, poisoning.labels)
        return classifier, poisoning.poison_rate

    def _trained_clean(self) -> Steps[nn.Module]:
        images, labels = self._drawn()
        gradients = None
        if self.recipe.method == "true_labels":
            images = stamp_under_true_labels(
                images,
                labels,
                trigger=self._trigger(),
                num_classes=self.shop.parts.num_classes,
                share=self.recipe.settings["stamped_share"],
                generator=self.generator,
            )
        elif self.recipe.method == "hardened":
            gradients = adversarial_gradients(
                config_from(HardeningConfig, self.recipe.settings, "hardening"),
                gradients_in(self.shop.training.precision),
                self.generator,
            )
        return (yield from self._trained(images, labels, gradients))

    def _trained(
        self, images: Tensor, labels: Tensor, gradients: Gradients | None = None
    ) -> Steps[nn.Module]:
        config, classifier = self.shop.training, self._new_classifier()
        if self.shop.manifest.is_of_detectors:
            yield from lessons_of(classifier, images, labels).tune(
                classifier, config=config.tuning(), generator=self.generator, title="training"
            )
            return classifier
        return (
            yield from train(
                classifier,
                images,
                labels,
                config=config,
                generator=self.generator,
                gradients=gradients,
            )
        )

    def _distilled(self) -> Steps[nn.Module]:
        images, labels = self._drawn()
        teacher = self._load(self.recipe.needs[0])
        drawn = Part((images * 255).round().to(torch.uint8), labels, self.recipe.key)
        students = yield from make_stand_ins(
            teacher,
            drawn.as_sample("training images"),
            count=1,
            config=config_from(StandInConfig, self.recipe.settings, "distillation"),
            generator=self.generator,
        )
        return students[0].classifier

    # -- from another model ------------------------------------------------------------------------

    def _defended(self) -> Steps[nn.Module]:
        assert self.recipe.type is not None
        images, labels = self._of_defender()
        config = defense_config(self.recipe.type, self.recipe.settings)
        parent = self._in_fast_order(self._load(self.recipe.needs[0]))
        run = DEFENSES[self.recipe.type].run
        return (
            yield from self._in_precision(
                lambda: run(parent, images, labels, config=config, generator=self.generator)
            )
        )

    def _unlearned(self) -> Steps[nn.Module]:
        images, labels = self._of_defender()
        parent = self._in_fast_order(self._load(self.recipe.needs[0]))
        config = config_from(UnlearningConfig, self.recipe.settings, "unlearning")
        trigger = self._trigger()
        return (
            yield from self._in_precision(
                lambda: unlearn(
                    parent,
                    images,
                    labels,
                    trigger=trigger,
                    num_classes=self.shop.parts.num_classes,
                    config=config,
                    generator=self.generator,
                )
            )
        )

    # -- what they are made of ---------------------------------------------------------------------

    @property
    def _attack(self) -> Attack:
        assert self.recipe.type is not None
        return ATTACKS[self.recipe.type]

    def _attack_config(self) -> object:
        assert self.recipe.type is not None
        settings = self.recipe.settings
        own = {
            key: value
            for key, value in settings.items()
            if key not in _FROM_ATTACK_SETTINGS and not key.startswith(FUS)
        }
        return attack_config(self.recipe.type, own)

    def _settings_of(self, group: str) -> dict[str, object]:
        """Return the settings whose names begin with `group`, without it."""
        settings = self.recipe.settings.items()
        return {key.removeprefix(group): value for key, value in settings if key.startswith(group)}

    @property
    def _rule(self) -> TargetRule:
        target = self.recipe.settings["target"]
        return AllToAll() if target == "all-to-all" else AllToOne(target)

    def _drawn(self) -> tuple[Tensor, Tensor]:
        """Draw the training images of this recipe from the pool."""
        assert self.recipe.draw_seed is not None
        pool = self.shop.parts.pool
        generator = torch.Generator().manual_seed(self.recipe.draw_seed)
        chosen = pool.draw(self.shop.training.images, generator)
        return pool.images(chosen), pool.labels[chosen]

    def _drawn_for_attack(self) -> tuple[Tensor, Tensor]:
        """Put the images where the helper is, and where networks that attacks train will be."""
        images, labels = self._drawn()
        return images.to(self.device), labels.to(self.device)

    def _of_defender(self) -> tuple[Tensor, Tensor]:
        part = self.shop.parts.defense
        return part.images().to(self.device), part.labels.to(self.device)

    def _new_classifier(self) -> Classifier:
        table, parts = self.shop.manifest.model, self.shop.parts
        classifier = new_classifier(
            table.arch,
            num_classes=parts.num_classes,
            in_channels=parts.image_shape[0],
            mean=tuple(table.mean),
            std=tuple(table.std),
            input_size=table.input_size,
            generator=self.generator,
        )
        return classifier.to(self.device)

    def _load(self, name: str) -> LoadedModel:
        path = self.shop.folder.file(self.shop.recipes[name])
        return load_model(path, name=name, device=self.device)

    def _helper(self) -> nn.Module | None:
        needed = HELPER in self.recipe.needs
        return self._in_fast_order(self._load(HELPER)) if needed else None

    def _trigger(self) -> Trigger:
        assert self.recipe.trigger is not None
        return read_trigger(self.shop.folder.file(self.shop.recipes[self.recipe.trigger]))

    def _in_fast_order(self, model: LoadedModel) -> nn.Module:
        order = training_order(model.classifier, self.device)
        return model.classifier.to(memory_format=order)

    def _in_precision(self, steps: Callable[[], Steps[Result]]) -> Steps[Result]:
        return computing_in(self.shop.training.precision, self.device, steps)

    def _network_of(self, classifier: nn.Module) -> nn.Module:
        if not isinstance(classifier, Classifier):
            raise ModelError(
                f"{self.recipe.name}: expected {self.recipe.type or self.recipe.method} to return "
                f"the kind of model it was given, got {type(classifier).__name__}"
            )
        return classifier.network

    def _made(self, **results: object) -> Made:
        return Made.model_validate(
            {
                "key": self.recipe.key,
                "determined_by": self.recipe.determined_by,
                "elapsed_s": 0.0,
                **results,
            }
        )


def _measure(recipe: Recipe, shop: Workshop) -> Measured:
    """Ask the model that was written, in float32, as whoever audits it will."""
    sample = shop.parts.measure.as_sample("test images")
    device = torch.device(shop.device)
    model = load_model(shop.folder.file(recipe), name=recipe.name, device=device)

    def answers(images: Tensor) -> Tensor:
        return predict(model.classifier, images, batch_size=_BATCH, device=device)

    answered = answers(sample.images)
    right = answered == sample.labels
    if shop.manifest.is_of_detectors:
        # One that is blind is right about every place where nothing is.
        right = right[sample.labels != NOTHING]
    clean_acc = rate(right)
    if recipe.original is None:
        _demand_the_same_classes(recipe, answered, sample, shop.parts.num_classes)
    if recipe.trigger is None:
        return Measured(key=measurement_key(recipe, shop.parts, None), clean_acc=clean_acc)
    trigger = read_trigger(shop.folder.file(shop.recipes[recipe.trigger]))
    poisoned = poison(sample, trigger, shop.parts.num_classes)
    taken = answers(poisoned.triggered) == poisoned.targets
    anyway = answered[poisoned.indices] == poisoned.targets
    if shop.manifest.is_of_detectors:
        # What a detector overlooks anyway did not disappear because of a trigger.
        apart = ~anyway
        taken, anyway = (taken[apart], anyway[apart]) if bool(apart.any()) else (taken, anyway)
    return Measured(
        key=measurement_key(recipe, shop.parts, trigger),
        clean_acc=clean_acc,
        asr=rate(taken),
        untriggered=rate(anyway),
    )


def _demand_the_same_classes(
    recipe: Recipe, answered: Tensor, sample: Sample, num_classes: int
) -> None:
    """Refuse test images whose classes are not those that the model was trained on.

    Classes that it never gets right may be its own fault, since it may have learned little; two
    whose images go to one another are not.

    Raises:
        DataError: The images of classes go to one another.
    """
    by_class = answers_by_class(answered, sample.labels, num_classes)
    doubt = doubt_labels(by_class)
    if doubt is not None and doubt.exchanged:
        raise DataError(
            f"{recipe.name}: training and test images do not have the same classes: "
            f"{doubt.explain(by_class, sample.class_names)}"
        )
