"""The target class, by index or name, and a trigger aimed at another."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import replace

import torch

from bdaudit.detection import NOTHING
from bdaudit.errors import TriggerError
from bdaudit.triggers import NOT_COUNTED, AllToOne, Trigger

__all__ = ["class_index", "demand_goal", "with_target"]

_N_NAMED = 10  # class names listed in an error


def with_target(trigger: Trigger, target_label: int) -> Trigger:
    """Aim a trigger at another class.

    Raises:
        TriggerError: Its rule has no single target to replace.
    """
    if trigger.rule.target_label is None:
        raise TriggerError(
            f"{trigger.source}: a target label was given, but the rule of this trigger is "
            f"{trigger.rule.name}, which has no single target"
        )
    rule = replace(trigger.rule, label=target_label)  # type: ignore[type-var]
    return replace(trigger, rule=rule)


def demand_goal(trigger: Trigger, num_classes: int) -> None:
    """Refuse a rule that would count objects and empty boxes of a detector alike.

    No detector's backdoor takes both to a class: of images that it was never meant to take there is
    a share that looks like a backdoor that went.

    Raises:
        TriggerError: It is such a rule.
    """
    rule = trigger.rule
    counted = rule.targets(torch.arange(num_classes), num_classes) != NOT_COUNTED
    if not (bool(counted[NOTHING]) and bool(counted[NOTHING + 1 :].any())):
        return
    if isinstance(rule, AllToOne):
        raise TriggerError(
            f"{trigger.source}: rule {rule.name} to class {rule.label} counts objects and empty "
            f"boxes of a detector alike; say which: goal = 'take' (objects of other classes) or "
            f"'appear' (empty boxes), with label = {rule.label}; in Python ObjectsToOne"
            f"({rule.label}) or SourceSpecific({rule.label}, (0,))"
        )
    raise TriggerError(
        f"{trigger.source}: rule {rule.name} counts objects and empty boxes of a detector alike; "
        "leave class 0, where nothing is, out of its sources"
    )


def class_index(target: int | str, class_names: Sequence[str] | None) -> int:
    """Return the index of a class that was given as an index or by its name.

    A name is compared as it is written, then without regard to case.

    Raises:
        TriggerError: It is no index and not among the names, or a number that is also the name of
            another class.
    """
    text = str(target).strip()
    names = list(class_names or ())
    folded = [name.casefold() for name in names]
    for wanted, known in ((text, names), (text.casefold(), folded)):
        if known.count(wanted) == 1 and not isinstance(target, int):
            index = known.index(wanted)
            if text.isdecimal() and int(text) != index:
                raise TriggerError(
                    f"target {text!r}: is class {index} by its name and class {int(text)} by its "
                    "index; give the index in Python, or another name by --classes"
                )
            return index
    if isinstance(target, int) or text.isdecimal():
        return int(target)
    near = difflib.get_close_matches(text.casefold(), folded, n=1)
    if near:
        hint = f"did you mean {names[folded.index(near[0])]!r}?"
    elif names:
        more = ", ..." if len(names) > _N_NAMED else ""
        hint = f"the classes are {', '.join(names[:_N_NAMED])}{more}"
    else:
        hint = "class names are not known, give them with --classes"
    raise TriggerError(
        f"target {text!r}: expected the index of a class or the name of one, got neither; {hint}"
    )
