"""What each member of a family is: by how it was made, by its trigger alone, or by relearning.

A model that never learned the backdoor is innocent by construction. Of the others the trigger alone
says whether they are active; where it does not work any more, relearning tells a backdoor that
sleeps from one that is gone (`bdaudit.relearning`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from bdaudit.data import Sample
from bdaudit.errors import InputError
from bdaudit.foundation.opening import MODEL_BYTES, check_file
from bdaudit.foundation.progress import Steps
from bdaudit.foundation.texts import read_json
from bdaudit.foundation.writing import write_atomically
from bdaudit.models import load_model, training_order
from bdaudit.precision import computing_in
from bdaudit.records import Rate
from bdaudit.records.families import RelearningEvidence, Truth, TruthSource
from bdaudit.relearning import (
    RelearnConfig,
    Relearned,
    compare_relearning,
    read_gap,
    relearn,
    relearn_at_chosen_rate,
)
from bdaudit.triggers import Poisoned, Trigger, poison, read_trigger
from bdaudit.version import __version__
from bdaudit.zoo.folder import Measured
from bdaudit.zoo.making import Workshop
from bdaudit.zoo.planning import Recipe
from bdaudit.zoo.seeds import derive_seed

__all__ = [
    "ACTIVE_ABOVE",
    "Ruling",
    "floor_of",
    "is_relearned",
    "judge_truth",
    "kept_evidence",
    "may_need_relearning",
    "needs_relearning",
    "original_answers",
    "relearn_task",
    "relearning_file",
    "strongest_reference",
]

ACTIVE_ABOVE = 0.10
"""A backdoored model is active when the lower end of its ASR's interval is above this share, above
the ASR of every reference, and above what goes to the target in it without the trigger."""


@dataclass(frozen=True, slots=True)
class Ruling:
    """What a member is, how that is known, and why."""

    truth: Truth
    source: TruthSource
    note: str


def may_need_relearning(recipe: Recipe, recipes: Mapping[str, Recipe]) -> bool:
    """Return whether a member was taught a backdoor and then put through something."""
    if recipe.is_reference or recipe.lineage == "original":
        return False
    return _was_taught(recipe, recipes)


def needs_relearning(
    recipe: Recipe,
    recipes: Mapping[str, Recipe],
    asr: Rate | None,
    original_took: bool,
    floor: float | None,
) -> bool:
    """Return whether relearning has to tell what a member is; arguments as for `judge_truth`."""
    if not may_need_relearning(recipe, recipes) or asr is None:
        return False
    return original_took and not _is_active(asr, floor)


def floor_of(measured: Measured, on_references: float | None) -> float | None:
    """Return the share of test images that a trigger must surely take to be called active.

    Args:
        measured: Of the member: a defence may have left it one that gives the target to anything,
            triggered or not.
        on_references: Share that the trigger alone takes on the reference where it takes most;
            `None` where no reference was asked.
    """
    without = measured.untriggered
    return on_references if without is None else max(on_references or 0.0, without.high)


def _is_active(asr: Rate | None, floor: float | None) -> bool:
    return asr is not None and asr.low > max(ACTIVE_ABOVE, floor or 0.0)


def judge_truth(
    recipe: Recipe,
    recipes: Mapping[str, Recipe],
    asr: Rate | None,
    evidence: RelearningEvidence | None,
    *,
    original_took: bool,
    floor: float | None,
    why_none: str,
) -> Ruling:
    """Return what a member is.

    Args:
        recipe: How it was made.
        recipes: All of the family, by name.
        asr: Of its trigger alone.
        evidence: From relearning, where it was needed.
        original_took: Whether the original it was made from answers the trigger: where that does
            not, there is nothing that could sleep or be removed.
        floor: From `floor_of`.
        why_none: Why there is no evidence, where there is none.
    """
    if not _was_taught(recipe, recipes):
        return Ruling("innocent", "construction", _INNOCENT_SINCE[_beginning(recipe, recipes)])
    if asr is not None and _is_active(asr, floor):
        return Ruling(
            "active",
            "asr",
            f"the trigger alone takes {asr.value:.1%} of test images ({asr.low:.1%} at least)",
        )
    alone = "not measured" if asr is None else f"{asr.value:.1%}"
    if recipe.lineage == "original":
        return Ruling("unknown", "asr", f"the attack did not take: the trigger alone takes {alone}")
    if not original_took:
        return Ruling("unknown", "asr", f"trigger alone {alone}; on its original it did not take")
    if evidence is None:
        return Ruling("unknown", "relearning", f"trigger alone {alone}; {why_none}")
    gap = f"{evidence.gap:+.2f} ({evidence.low:+.2f} to {evidence.high:+.2f})"
    reading = read_gap(evidence)
    told = f"trigger alone {alone}; relearned, it leads the fastest innocent model by {gap}"
    if recipe.lineage == "clean" and reading == "removed":
        # The student of a backdoored teacher: never taught the backdoor on purpose, nor by chance.
        return Ruling("innocent", "relearning", told)
    return Ruling(reading, "relearning", told)


_INNOCENT_SINCE = {
    "innocent": "trained on clean images",
    "retrained": "trained from scratch on the original's images, none of them poisoned",
    "true_labels": "trained with the trigger on images that kept their true labels",
    "hardened": "trained adversarially on clean images",
}


def _beginning(recipe: Recipe, recipes: Mapping[str, Recipe]) -> str:
    """Return the method of the model that a chain of defences began with."""
    while recipe.method in ("defense", "unlearned"):
        recipe = recipes[recipe.needs[0]]
    return recipe.method


def _was_taught(recipe: Recipe, recipes: Mapping[str, Recipe]) -> bool:
    """Return whether a backdoored model was the beginning, or the teacher."""
    return _beginning(recipe, recipes) in ("attack", "distilled")


def original_answers(recipe: Recipe, shop: Workshop, on_references: float | None) -> bool:
    """Return whether the original that a member is held against answers the trigger alone."""
    if recipe.original is None:
        return False
    note = shop.folder.note(shop.recipes[recipe.original])
    if note is None or note.measured is None:
        return False
    return _is_active(note.measured.asr, floor_of(note.measured, on_references))


def strongest_reference(shop: Workshop, attack: str) -> float | None:
    """Return the largest ASR of a trigger alone on a reference; `None` unless all were asked."""
    lesson = _Lesson(shop, attack)
    kept = [lesson.kept(reference) for reference in shop.references]
    shares = [float(relearned.before.double().mean()) for relearned in kept if relearned]
    return max(shares) if shares and len(shares) == len(kept) else None


def is_relearned(shop: Workshop, reference: Recipe, attack: str) -> bool:
    """Return whether a reference's relearning by an attack's trigger is there."""
    return _Lesson(shop, attack).kept(reference) is not None


# -- relearning ------------------------------------------------------------------------------------


def relearning_file(shop: Workshop, name: str, attack: str) -> Path:
    """Return where the relearning of one model by one trigger is kept."""
    recipe = shop.recipes[name]
    stem = f"{name}--{attack}.safetensors" if recipe.is_reference else f"{name}.json"
    return shop.root / "relearning" / stem


def relearn_task(payload: tuple[str, str], shop: Workshop) -> Steps[None]:
    """Relearn one model by one attack's trigger, and keep what came of it.

    References are relearned at every rate, the others at the one that is chosen on the references,
    whose relearning is there already.

    Args:
        payload: Name of the model, and of the attack.
        shop: The family.
    """
    name, attack = payload
    lesson = _Lesson(shop, attack)
    recipe = shop.recipes[name]
    if recipe.is_reference:
        if lesson.kept(recipe) is None:
            lesson.keep(recipe, (yield from lesson.teach(recipe, lesson.config)))
        return
    if kept_evidence(shop, recipe) is None:
        evidence = yield from lesson.compare(recipe)
        text = json.dumps({"key": lesson.key(recipe), **evidence.model_dump(mode="json")}, indent=1)
        write_atomically(relearning_file(shop, name, attack), f"{text}\n".encode())


def kept_evidence(shop: Workshop, recipe: Recipe) -> RelearningEvidence | None:
    """Read a member's evidence, `None` where there is none that still holds."""
    assert recipe.attack is not None
    path = relearning_file(shop, recipe.name, recipe.attack)
    try:
        content = read_json(path, what="evidence of relearning")
        key = content.pop("key")
        evidence = RelearningEvidence.model_validate_json(json.dumps(content))
    except (InputError, KeyError, AttributeError, ValidationError):
        return None
    return evidence if key == _Lesson(shop, recipe.attack).key(recipe) else None


class _Lesson:
    """What models are taught to relearn one trigger: the same images in the same order."""

    def __init__(self, shop: Workshop, attack: str) -> None:
        self.shop = shop
        self.attack = attack
        self.config = shop.manifest.relearning_config()
        self.seed = derive_seed(shop.manifest.family.seed, f"relearning {attack}")
        self.trigger: Trigger = read_trigger(shop.folder.file(shop.recipes[f"trigger:{attack}"]))

    def key(self, recipe: Recipe) -> str:
        """Digest what the relearning of a model depends on."""
        others = [] if recipe.is_reference else [self.key(r) for r in self.shop.references]
        parts = self.shop.parts
        text = json.dumps(
            {
                "version": __version__,
                "model": recipe.key,
                "trigger": self.trigger.sha256,
                "images": [parts.defense.sha256, parts.measure.sha256],
                "config": asdict(self.config),
                "precision": self.shop.training.precision,
                "seed": self.seed,
                "references": others,
            },
            sort_keys=True,
        )
        return hashlib.sha256(text.encode()).hexdigest()

    def teach(self, recipe: Recipe, config: RelearnConfig) -> Steps[Relearned]:
        shop, parts = self.shop, self.shop.parts
        path = shop.folder.file(recipe)
        device = torch.device(shop.device)
        model = load_model(path, name=recipe.name, device=device)
        classifier = model.classifier
        classifier = classifier.to(memory_format=training_order(classifier, device))

        def steps() -> Steps[Relearned]:
            return relearn(
                classifier,
                parts.defense.images(),
                parts.defense.labels,
                craft=self._poisoned(parts.defense.as_sample("defender's images")),
                held_out=self._poisoned(parts.measure.as_sample("test images"), config.n_held_out),
                config=config,
                generator=torch.Generator().manual_seed(self.seed),
            )

        return (yield from computing_in(shop.training.precision, device, steps))

    def compare(self, recipe: Recipe) -> Steps[RelearningEvidence]:
        innocents = {}
        for reference in self.shop.references:
            found = self.kept(reference)
            assert found is not None, reference.name
            innocents[reference.name] = found
        chosen, relearned = yield from relearn_at_chosen_rate(
            lambda rate: self.teach(recipe, replace(self.config, learning_rates=(rate,))), innocents
        )
        return compare_relearning(
            relearned,
            innocents,
            generator=torch.Generator().manual_seed(self.seed),
            learning_rate=chosen,
        )

    def keep(self, recipe: Recipe, relearned: Relearned) -> None:
        """Write a reference's relearning, image by image."""
        tensors = {"before": relearned.before}
        for what, outcomes in (("triggered", relearned.triggered), ("clean", relearned.clean)):
            tensors |= {f"{what} {rate!r}": kept for rate, kept in outcomes.items()}
        metadata = {"key": self.key(recipe), "diverged": json.dumps(relearned.diverged)}
        path = relearning_file(self.shop, recipe.name, self.attack)
        write_atomically(path, save(tensors, metadata))

    def kept(self, recipe: Recipe) -> Relearned | None:
        """Read it again; `None` where there is none that still holds."""
        path = relearning_file(self.shop, recipe.name, self.attack)
        try:
            check_file(path, limit=MODEL_BYTES, what="what a model relearned")
            with safe_open(path, framework="pt") as stored:
                metadata = stored.metadata() or {}
                if metadata.get("key") != self.key(recipe):
                    return None
                tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
            diverged = tuple(json.loads(metadata["diverged"]))
        except (InputError, OSError, SafetensorError, KeyError, ValueError):
            return None
        by_rate: dict[str, dict[float, Tensor]] = {"triggered": {}, "clean": {}}
        before = tensors.pop("before")
        for name, kept in tensors.items():
            what, rate = name.split()
            by_rate[what][float(rate)] = kept
        return Relearned(
            config=self.config,
            before=before,
            triggered=by_rate["triggered"],
            clean=by_rate["clean"],
            diverged=diverged,
        )

    def _poisoned(self, sample: Sample, limit: int | None = None) -> Poisoned:
        if limit is not None:
            sample = sample.take(torch.arange(min(limit, len(sample))))
        return poison(sample, self.trigger, self.shop.parts.num_classes)
