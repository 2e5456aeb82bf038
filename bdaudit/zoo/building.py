"""Build a family: what is missing or no longer as its file asks for, and nothing else."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from bdaudit.engines import Engine, Event, Failed, Task
from bdaudit.errors import ConfigError
from bdaudit.foundation.writing import write_atomically
from bdaudit.records.families import Family, write_family
from bdaudit.triggers import Trigger, read_trigger
from bdaudit.zoo.describing import describe_family, family_readme, write_clean_sample
from bdaudit.zoo.folder import Made, changes_between
from bdaudit.zoo.making import Workshop, make_task, measurement_key
from bdaudit.zoo.manifest import Manifest
from bdaudit.zoo.parts import load_parts
from bdaudit.zoo.planning import Recipe, plan_family
from bdaudit.zoo.truth import (
    floor_of,
    is_relearned,
    kept_evidence,
    may_need_relearning,
    needs_relearning,
    original_answers,
    relearn_task,
    strongest_reference,
)

__all__ = ["Build", "Built", "build_family", "prepare_build"]


@dataclass(frozen=True)
class Build:
    """What is to be done, before anything is.

    Attributes:
        shop: What every task shares.
        wanted: Recipes asked for, with all that they need, in an order that works.
        missing: Those of them that have to be made, or measured, by name.
        stale: What was made of another recipe and will be made again, with what changed.
        strangers: Models in the folder that the family file does not know; they are left alone.
    """

    shop: Workshop
    wanted: tuple[Recipe, ...]
    missing: frozenset[str]
    stale: dict[str, tuple[str, ...]]
    strangers: tuple[str, ...]


@dataclass(frozen=True)
class Built:
    """What came of a build.

    Attributes:
        family: As `family.json` has it: all members that are there and as the file asks for.
        failed: What could not be made, with the reason.
    """

    family: Family
    failed: dict[str, Exception] = field(default_factory=dict)


def prepare_build(
    manifest: Manifest, out: Path, *, only: Sequence[str] = (), device: str = "cpu"
) -> Build:
    """Read the images and find out what is left to do.

    Args:
        manifest: The family file.
        out: The family's folder, which may not exist yet; nothing is written to it.
        only: Patterns of members, as a shell's; a member that matches any is made, none takes all.
        device: Where networks are trained.

    Raises:
        DataError: The data set cannot be used.
        ConfigError: A pattern of `only` matches no member, or the data lack a target class.
    """
    parts = load_parts(manifest.data, seed=manifest.family.seed)
    for entry in manifest.attack:
        if isinstance(entry.target, int) and entry.target >= parts.num_classes:
            raise ConfigError(
                f"attack {entry.name}: target: expected a class below {parts.num_classes}, got "
                f"{entry.target}"
            )
    recipes = plan_family(manifest, parts)
    by_name = {recipe.name: recipe for recipe in recipes}
    # Workers may have another working folder.
    root = out.resolve()
    shop = Workshop(manifest=manifest, parts=parts, recipes=by_name, root=root, device=device)
    wanted = _closure(recipes, only)
    missing, stale = set[str](), dict[str, tuple[str, ...]]()
    for recipe in wanted:
        note = shop.folder.note(recipe)
        if not shop.folder.holds(recipe):
            missing.add(recipe.name)
            if note is not None:
                changes = changes_between(note.determined_by, recipe.determined_by)
                stale[recipe.name] = tuple(changes) or ("its file was changed or is gone",)
        elif recipe.kind == "member" and not _is_measured(recipe, note, shop, missing):
            missing.add(recipe.name)
    return Build(
        shop=shop,
        wanted=wanted,
        missing=frozenset(missing),
        stale=stale,
        strangers=tuple(shop.folder.strangers(iter(recipes))),
    )


def build_family(build: Build, engine: Engine) -> Generator[Event, None, Built]:
    """Make what is missing, settle the truth, and write `family.json`.

    Everything that was made survives whatever happens afterwards. A member that fails leaves those
    that do not need it as they are.

    Args:
        build: What is to be done.
        engine: Who does it.

    Yields:
        Events of the engine: a task is named after what it makes, or
        `relearning MODEL by ATTACK`.

    Returns:
        The family as it is now.

    Raises:
        ConfigError: The folder cannot be written to.
    """
    shop = build.shop
    shop.folder.prepare()
    failed: dict[str, Exception] = {}
    write_clean_sample(shop)
    yield from _run(engine, make_task, _making(build), shop, failed)
    yield from _run(engine, relearn_task, _of_references(shop), shop, failed)
    yield from _run(engine, relearn_task, _of_members(shop), shop, failed)
    family = describe_family(shop, _present(shop), _floors(shop), failed)
    write_family(shop.root, family)
    write_atomically(shop.root / "README.md", family_readme(family, shop).encode())
    return Built(family, failed)


def _closure(recipes: Iterable[Recipe], only: Sequence[str]) -> tuple[Recipe, ...]:
    """Return the recipes that were asked for, with all they need, in order."""
    recipes = tuple(recipes)
    if not only:
        return recipes
    by_name = {recipe.name: recipe for recipe in recipes}
    members = [recipe.name for recipe in recipes if recipe.kind == "member"]
    for pattern in only:
        if not any(fnmatchcase(name, pattern) for name in members):
            raise ConfigError(f"--only: {pattern!r} matches none of {', '.join(members)}")
    pending = [n for n in members if any(fnmatchcase(n, pattern) for pattern in only)]
    wanted = set[str]()
    while pending:
        recipe = by_name[pending.pop()]
        if recipe.name not in wanted:
            wanted.add(recipe.name)
            pending += [*recipe.needs, *filter(None, (recipe.original, recipe.trigger))]
    return tuple(recipe for recipe in recipes if recipe.name in wanted)


def _is_measured(recipe: Recipe, note: Made | None, shop: Workshop, missing: set[str]) -> bool:
    if note is None or note.measured is None or recipe.trigger in missing:
        return False
    return note.measured.key == measurement_key(recipe, shop.parts, _trigger(recipe, shop))


def _trigger(recipe: Recipe, shop: Workshop) -> Trigger | None:
    if recipe.trigger is None:
        return None
    return read_trigger(shop.folder.file(shop.recipes[recipe.trigger]))


# -- tasks -----------------------------------------------------------------------------------------


def _run(
    engine: Engine,
    work: Callable[..., Any],
    tasks: list[Task],
    shop: Workshop,
    failed: dict[str, Exception],
) -> Iterator[Event]:
    if not tasks:
        return
    with contextlib.closing(engine.run(work, tasks, shop)) as events:
        for event in events:
            if isinstance(event, Failed):
                failed[event.key] = event.error
            yield event


def _making(build: Build) -> list[Task]:
    tasks = []
    for recipe in build.wanted:
        if recipe.name in build.missing:
            needs = dict.fromkeys([*recipe.needs, *filter(None, [recipe.trigger])])
            after = tuple(n for n in needs if n in build.missing and n != recipe.name)
            tasks.append(Task(recipe.name, recipe.name, after=after))
    return tasks


def _of_references(shop: Workshop) -> list[Task]:
    """Relearn every reference by the trigger of every member that was taught a backdoor."""
    present = [recipe for recipe, _ in _present(shop)]
    attacks = dict.fromkeys(r.attack for r in present if may_need_relearning(r, shop.recipes))
    if not _has_references(shop):
        return []
    return [
        Task(f"relearning {reference.name} by {attack}", (reference.name, attack))
        for attack in attacks
        for reference in shop.references
        if attack is not None and not is_relearned(shop, reference, attack)
    ]


def _of_members(shop: Workshop) -> list[Task]:
    """Relearn every member whose truth hangs on it, where all references were relearned."""
    floors = _floors(shop)
    return [
        Task(f"relearning {recipe.name} by {recipe.attack}", (recipe.name, recipe.attack))
        for recipe, note in _present(shop)
        if note.measured is not None
        and (reference := floors.get(recipe.attack or "")) is not None
        and needs_relearning(
            recipe,
            shop.recipes,
            note.measured.asr,
            original_answers(recipe, shop, reference),
            floor_of(note.measured, reference),
        )
        and kept_evidence(shop, recipe) is None
    ]


def _floors(shop: Workshop) -> dict[str, float]:
    """Return the largest ASR of each trigger alone on a reference, where all were asked."""
    attacks = dict.fromkeys(recipe.attack for recipe, _ in _present(shop))
    if not _has_references(shop):
        return {}
    return {
        attack: floor
        for attack in attacks
        if attack is not None and (floor := strongest_reference(shop, attack)) is not None
    }


def _has_references(shop: Workshop) -> bool:
    """Return whether references are there, all of them: in a part of a family they may not be."""
    return bool(shop.references) and all(map(shop.folder.holds, shop.references))


def _present(shop: Workshop) -> list[tuple[Recipe, Made]]:
    """List the members that are there and as the family file asks for."""
    return [
        (recipe, note)
        for recipe in shop.recipes.values()
        if recipe.kind == "member"
        and (note := shop.folder.note(recipe)) is not None
        and note.measured is not None
        and shop.folder.holds(recipe)
        and (recipe.original is None or shop.folder.holds(shop.recipes[recipe.original]))
    ]
