"""From a family file to recipes: one for every trigger, helper and model, each saying all it takes.

A recipe's key is the digest of everything that determines what comes of it, the keys of what it is
made from included. It is known before anything is made; so is what of an earlier run still holds.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from bdaudit.foundation.plain_settings import flat_settings
from bdaudit.records.families import Lineage
from bdaudit.version import __version__
from bdaudit.zoo.attacks import ATTACKS
from bdaudit.zoo.manifest import UNDEFENDED, AttackEntry, Manifest
from bdaudit.zoo.parts import Parts
from bdaudit.zoo.seeds import derive_seed

__all__ = ["FUS", "HELPER", "Kind", "Recipe", "plan_family"]

HELPER = "helper:attacks"
"""The clean model that some triggers are made with."""

FUS = "fus."
"""Before the names of settings of the selection of images, among those of an original."""

Kind = Literal["trigger", "helper", "member"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How one thing of a family is made.

    Attributes:
        name: Of the thing: a member's own, `trigger:NAME` or `helper:NAME`.
        kind: A trigger, a model that others are made with, or a member.
        method: What is done.
        determined_by: Everything that determines the result, as plain data.
        seed: Of everything that is drawn, but the images of `draw_seed`.
        draw_seed: Of the choice of training images; `None` where none are chosen.
        needs: Names of what must be there first; the first one is what a defence is run on.
        type: Name of the attack or defence, by its catalogue.
        settings: Of the method, all of them, flat.
        lineage: Of a member.
        original: Whose trigger it is asked about, and which it is held against.
        attack: Name of the trigger that is stamped, or asked about.
        poison_rate: Share of training images that is to be stamped.
        defense: What it went through, for the record.
        is_reference: Whether it is set aside.
    """

    name: str
    kind: Kind
    method: str
    determined_by: dict[str, Any] = field(default_factory=dict)
    seed: int
    draw_seed: int | None = None
    needs: tuple[str, ...] = ()
    type: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    lineage: Lineage | None = None
    original: str | None = None
    attack: str | None = None
    poison_rate: float | None = None
    defense: str | None = None
    is_reference: bool = False

    @property
    def key(self) -> str:
        """Digest of everything that determines the result."""
        text = json.dumps(self.determined_by, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def trigger(self) -> str | None:
        """Name of the recipe of the trigger it is measured with."""
        return None if self.attack is None else f"trigger:{self.attack}"


def plan_family(manifest: Manifest, parts: Parts) -> tuple[Recipe, ...]:
    """Write a recipe for everything that a family file asks for.

    Returns:
        Recipes, each after all that it needs.
    """
    return _Planner(manifest, parts).recipes()


class _Planner:
    """Writes recipes in order, and knows those written so far."""

    def __init__(self, manifest: Manifest, parts: Parts) -> None:
        self._manifest = manifest
        self._parts = parts
        self._written: dict[str, Recipe] = {}

    def recipes(self) -> tuple[Recipe, ...]:
        manifest = self._manifest
        for entry in manifest.attack:
            self._add_trigger(entry)
        for name, entry in manifest.originals().items():
            rate, seed = entry.originals()[name]
            self._add(
                name=name,
                kind="member",
                method="attack",
                seed=self._seed(name),
                draw_seed=self._seed(f"{name} images"),
                needs=self._of_attack(entry),
                type=entry.type,
                settings={
                    **_said(entry.config()),
                    "poison_rate": rate,
                    "seed": seed,
                    **self._of_selection(entry),
                },
                lineage="original",
                attack=entry.name,
                poison_rate=rate,
            )
        for name, (end, original) in manifest.clean_ends().items():
            self._add_clean_end(name, end, original)
        for name, (defense, parent) in manifest.defended().items():
            self._add_defended(name, defense.name, self._written[parent])
        for place, defense_name in enumerate(manifest.clean.references):
            earlier = manifest.clean.references[:place].count(defense_name)
            name = f"reference-{defense_name}" + (f"-{earlier + 1}" if earlier else "")
            self._add_reference(name, defense_name)
        return tuple(self._written.values())

    def _seed(self, name: str) -> int:
        return derive_seed(self._manifest.family.seed, name)

    def _of_attack(self, entry: AttackEntry) -> tuple[str, ...]:
        """What poisoning needs: the trigger, and the helper where the attack wants one."""
        trigger = f"trigger:{entry.name}"
        return (trigger, HELPER) if ATTACKS[entry.type].needs_helper else (trigger,)

    def _of_selection(self, entry: AttackEntry) -> dict[str, Any]:
        """Say how images are selected; nothing where it is by chance, as it always was."""
        if entry.selection == "random":
            return {}
        fus = _said(self._manifest.fus_config())
        return {f"{FUS}{key}": value for key, value in fus.items()}

    def _add_trigger(self, entry: AttackEntry) -> None:
        needs = self._of_attack(entry)[1:]
        if needs and HELPER not in self._written:
            self._add_from_scratch(HELPER, kind="helper", method="innocent")
        name = f"trigger:{entry.name}"
        self._add(
            name=name,
            kind="trigger",
            method="trigger",
            seed=self._seed(name),
            draw_seed=self._seed(f"{name} images"),
            needs=needs,
            type=entry.type,
            settings={**_said(entry.config()), "target": entry.target},
            attack=entry.name,
        )

    def _add_clean_end(self, name: str, end: str, original: str) -> None:
        source = self._written[original]
        assert source.attack is not None
        common: dict[str, Any] = {
            "original": original,
            "attack": source.attack,
            "defense": end.replace("_", "-"),
        }
        trigger = f"trigger:{source.attack}"
        if end == "innocent":
            self._add_from_scratch(name, method=end, **{**common, "defense": None})
        elif end == "retrained":
            self._add_from_scratch(name, method=end, draw_seed=source.draw_seed, **common)
        elif end == "true_labels":
            self._add_from_scratch(
                name,
                method=end,
                draw_seed=source.draw_seed,
                needs=(trigger,),
                settings={"stamped_share": source.poison_rate},
                **common,
            )
        elif end == "distilled":
            self._add_from_scratch(
                name,
                method=end,
                draw_seed=source.draw_seed,
                needs=(original,),
                settings=_said(self._manifest.distillation_config()),
                **common,
            )
        elif end == "hardened":
            settings = _said(self._manifest.hardening_config())
            self._add_from_scratch(name, method=end, settings=settings, **common)
        else:
            self._add(
                name=name,
                kind="member",
                method="unlearned",
                seed=self._seed(name),
                needs=(original, trigger),
                settings=_said(self._manifest.unlearning_config()),
                lineage="defended",
                **common,
            )

    def _add_from_scratch(self, name: str, *, kind: Kind = "member", **more: Any) -> None:
        self._add(
            name=name,
            kind=kind,
            seed=self._seed(name),
            **{
                "draw_seed": self._seed(f"{name} images"),
                "lineage": "clean" if kind == "member" else None,
                **more,
            },
        )

    def _add_defended(self, name: str, defense: str, parent: Recipe) -> None:
        entry = self._manifest.defense_named(defense)
        backdoored = parent.lineage in ("original", "defended")
        before = "" if parent.defense is None else f"{parent.defense}, "
        self._add(
            name=name,
            kind="member",
            method="defense",
            seed=self._seed(name),
            needs=(parent.name,),
            type=entry.type,
            settings=_said(entry.config()),
            lineage="defended" if backdoored else "clean",
            original=parent.original or parent.name,
            attack=parent.attack,
            defense=f"{before}{defense}",
        )

    def _add_reference(self, name: str, defense: str) -> None:
        if defense == UNDEFENDED:
            self._add_from_scratch(name, method="innocent", is_reference=True)
            return
        entry = self._manifest.defense_named(defense)
        base = f"helper:{name}"
        self._add_from_scratch(base, kind="helper", method="innocent")
        self._add(
            name=name,
            kind="member",
            method="defense",
            seed=self._seed(name),
            needs=(base,),
            type=entry.type,
            settings=_said(entry.config()),
            lineage="clean",
            defense=defense,
            is_reference=True,
        )

    def _add(self, **fields: Any) -> None:
        recipe = Recipe(**fields)
        assert recipe.name not in self._written
        determined_by = self._determined_by(recipe)
        self._written[recipe.name] = replace(recipe, determined_by=determined_by)

    def _determined_by(self, recipe: Recipe) -> dict[str, Any]:
        """Gather what determines the result: not its name, and not what is said of it."""
        manifest, parts = self._manifest, self._parts
        training = manifest.training_config()
        of_pool = recipe.draw_seed is not None
        return {
            "version": __version__,
            "model": manifest.model.model_dump(mode="json"),
            "num_classes": parts.num_classes,
            "image_shape": list(parts.image_shape),
            "method": recipe.method,
            "type": recipe.type,
            "settings": recipe.settings,
            "seeds": [recipe.seed, recipe.draw_seed],
            "needs": {name: self._written[name].key for name in recipe.needs},
            "images": parts.pool.sha256 if of_pool else parts.defense.sha256,
            "training": _said(training) if of_pool else {"precision": training.precision},
        }


def _said(config: object) -> dict[str, Any]:
    """List settings as a recipe's key has them: later ones only where they differ."""
    return flat_settings(config, unsaid=False)
