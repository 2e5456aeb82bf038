"""Find every set of weights that a checkpoint holds, and settle which one is meant.

Training scripts keep more than one network in a file: a moving average beside the network, a
teacher beside the student, a trigger generator beside the classifier. Which of them is deployed is
not written in the file, so a file with several different ones is refused until somebody says.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bdaudit.errors import ModelError
from bdaudit.models.pickled_modules import ModuleFacts, is_module, name_tensors
from bdaudit.models.pickles import InertObject, InertRecord
from bdaudit.models.quantised import unpack_layers
from bdaudit.models.wrappers import strip_wrappers

__all__ = ["TOP", "Chosen", "WeightSet", "choose_set", "find_sets", "quote_names"]

TOP = "."
"""The key of the weights that stand at the top of a file, under no key."""

# Helper tensors (grids, counters, best accuracies) come in ones and twos; a network whose tensors
# have none of the usual names has at least this many matrices or kernels.
_OF_MODULES = "_metadata"  # versions of the modules, which torch hangs on a state_dict
_FEWEST_UNNAMED = 4
_USUAL_PARTS = ("weight", "kernel", "bias")
_LISTED = 8
_DEEPEST = 32


_MAY_HOLD_TENSORS = (Tensor, dict, list, tuple, set, frozenset, InertObject)


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightSet:
    """Named tensors under one key of a file.

    Attributes:
        key: The keys that lead to them, joined by `/`; `TOP` at the top.
        tensors: By name.
        left_out: Names of what lies among them and is no tensor.
        modules: What the file says of the modules they stand in, where it holds a whole module.
        notes: What was done to read them, in words.
    """

    key: str
    tensors: dict[str, Tensor]
    left_out: tuple[str, ...] = ()
    modules: Mapping[str, ModuleFacts] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def describe(self) -> str:
        """Name it for a message, with its size."""
        n = len(self.tensors)
        return f"{self.key[:120]!r} ({n} tensor{'' if n == 1 else 's'})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """The set that is meant.

    Attributes:
        tensors: Its tensors.
        key: Its key.
        was_named: Whether it was taken because somebody named it.
        others: Keys of the file's other sets, whose weights differ.
        notes: What was skipped, in words.
        modules: What the file says of the modules they stand in, where it holds a whole module.
    """

    tensors: dict[str, Tensor]
    key: str
    was_named: bool
    others: tuple[str, ...]
    notes: tuple[str, ...]
    modules: Mapping[str, ModuleFacts] = field(default_factory=dict)


def find_sets(path: Path, content: Any) -> tuple[list[WeightSet], list[str]]:
    """Return every mapping with named tensors anywhere in `content`, and what was skipped.

    Optimisers' states, whose tensors are shaped like weights, are told by their structure and
    skipped.

    Args:
        path: For messages.
        content: What the file's pickle gave.

    Raises:
        ModelError: Containers are nested too deeply, or a tensor cannot be read.
    """
    sets, passed_over = [], []
    # Shared and circular parts are looked at once.
    seen: set[int] = set()
    pending: list[tuple[tuple[str, ...], Any]] = [((), content)]
    while pending:
        keys, value = pending.pop()
        entries = _entries_of(value)
        if entries is None or id(value) in seen:
            continue
        if len(keys) > _DEEPEST:
            raise ModelError(f"{path}: expected weights, got containers nested {len(keys)} deep")
        seen.add(id(value))
        key = "/".join(keys) or TOP
        if is_module(value):
            sets.append(_as_set(path, key, value))
            continue
        if isinstance(value, InertRecord) and value.was_called:
            _refuse_made_tensors(path, key, value)
            continue
        if _is_optimiser(entries):
            passed_over.append(f"{key!r}, an optimiser's state")
            continue
        tensors = {
            name: _plain_tensor(path, entry, name)
            for name, entry in {**entries, **unpack_layers(entries)}.items()
            if isinstance(name, str) and isinstance(entry, Tensor)
        }
        # Tensors without names can be loaded into nothing here, but could be a whole network.
        if tensors and (isinstance(value, dict | InertObject) or _could_be_network(tensors)):
            others = tuple(
                _as_text(name) for name in entries if name not in tensors and name != _OF_MODULES
            )
            sets.append(WeightSet(key=key, tensors=tensors, left_out=others))
        # Reversed, so that sets come in the order of the file.
        for name, entry in reversed(entries.items()):
            if not isinstance(entry, Tensor):
                pending.append(((*keys, _as_text(name)), entry))
    return sets, passed_over


def choose_set(
    path: Path,
    sets: Sequence[WeightSet],
    *,
    wanted: str | None,
    preferred: str | None = None,
    passed_over: Sequence[str] = (),
) -> Chosen:
    """Settle which set of weights is meant.

    Args:
        path: For messages.
        sets: All that the file holds; at least one.
        wanted: The key that somebody named, which must be there. Also the first part that some of
            the names in the only set have in common ("student" of "student.conv1.weight").
        preferred: Likewise, but taken only where it is there, and then before `wanted`.
        passed_over: What `find_sets` skipped.

    Raises:
        ModelError: Several different sets could be the network and none was named, or the one
            named is not there; all are listed.
    """
    networks = [s for s in sets if _could_be_network(s.tensors)] or list(sets)
    for key in (preferred, wanted):
        found = None if key is None else _under(path, key, sets, networks)
        if found is not None:
            chosen, networks = found
            wanted = key
            break
    else:
        if wanted is not None:
            raise ModelError(
                f"{path}: expected weights under {wanted!r}, found {_listed(networks)}; name one "
                "of them with --weights, or leave it out"
            )
        chosen = networks[0]
    different = [s for s in networks if s is not chosen and not _same(s, chosen)]
    if different and wanted is None:
        missed = "" if preferred is None else f" There is none under {preferred!r}."
        raise ModelError(
            f"{path}: expected one set of weights, found several that differ: "
            f"{_listed([chosen, *different])}. Only one of them is what is deployed, and the file "
            f"does not say which: name it with --weights KEY, or with weights = "
            f'"KEY" in {path.with_suffix(".toml").name} beside the file.{missed}'
        )
    return Chosen(
        tensors=chosen.tensors,
        key=chosen.key,
        was_named=wanted is not None,
        others=tuple(s.key for s in different),
        notes=tuple(_notes(chosen, sets, networks, different, passed_over)),
        modules=chosen.modules,
    )


def quote_names(names: Sequence[str], limit: int = 5) -> str:
    """Quote names from a file, which may hold anything, for a message."""
    shown = ", ".join(repr(name[:80]) for name in names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"


def _notes(
    chosen: WeightSet,
    sets: Sequence[WeightSet],
    networks: Sequence[WeightSet],
    different: Sequence[WeightSet],
    passed_over: Sequence[str],
) -> Iterator[str]:
    if chosen.key != TOP:
        yield f"took the weights under {chosen.key!r}"
    yield from chosen.notes
    equal = [s.key for s in networks if s is not chosen and s not in different]
    if equal:
        yield f"the file holds the same weights again under {quote_names(equal)}"
    if different:
        yield f"NOT examined: other weights under {quote_names([s.key for s in different])}"
    helpers = [
        name if s.key == TOP else f"{s.key}/{name}"
        for s in sets
        if s is not chosen and s not in networks
        for name in s.tensors
    ]
    if helpers:
        yield f"left out tensors that are no network's: {quote_names(helpers)}"
    if passed_over:
        yield f"left out {', '.join(passed_over[:3])}"
    if chosen.left_out:
        yield f"left out entries that are not tensors: {quote_names(list(chosen.left_out))}"


def _as_set(path: Path, key: str, module: InertRecord) -> WeightSet:
    named = name_tensors(path, module)
    tensors = {
        name: _plain_tensor(path, tensor, name)
        for name, tensor in {**named.tensors, **unpack_layers(named.tensors)}.items()
    }
    return WeightSet(key=key, tensors=tensors, modules=named.facts, notes=named.notes)


def _refuse_made_tensors(path: Path, key: str, made: InertRecord) -> None:
    """Refuse what a call would have made of tensors: without the call nobody knows what it is."""
    seen: set[int] = set()
    pending: list[Any] = [made.arguments, made.state]
    while pending:
        value = pending.pop()
        if isinstance(value, Tensor) or is_module(value):
            raise ModelError(
                f"{path}: {key[:80]!r} holds tensors that a call of {made.class_name[:120]!r} "
                "would have to make something of, which only running the file's own code could do; "
                "have its author save model.state_dict()"
            )
        entries = _entries_of(value)
        if entries is not None and id(value) not in seen:
            seen.add(id(value))
            pending += entries.values()


def _entries_of(value: Any) -> dict[Any, Any] | None:
    """Return what a container holds by key, read so that nothing in the file can interfere.

    A pickle may give a container attributes that hide its methods, so none of them is looked up
    on the object itself.
    """
    if isinstance(value, dict):
        entries = dict(dict.items(value))
        if isinstance(value, OrderedDict):
            hidden = object.__getattribute__(value, "__dict__")
            entries.update((name, v) for name, v in hidden.items() if name not in entries)
        return entries
    if isinstance(value, list | tuple | set | frozenset):
        # A list may be long, and only what can hold tensors matters.
        return {
            str(number): entry
            for number, entry in enumerate(value)
            if isinstance(entry, _MAY_HOLD_TENSORS)
        }
    if isinstance(value, InertObject):
        state = value.state
        inside = dict(state) if isinstance(state, dict) else {"state": state}
        return {**inside, "arguments": value.arguments}
    return None


def _plain_tensor(path: Path, tensor: Tensor, name: str) -> Tensor:
    """Return the tensor without whatever attributes a file gave it."""
    try:
        # Through the class: attributes of the object may hide its methods.
        return torch.Tensor.detach(tensor).as_subclass(Tensor)
    except Exception as error:
        raise ModelError(
            f"{path}: expected dense real tensors, got {name[:80]!r}, which cannot be read; save "
            "model.state_dict() with torch.save"
        ) from error


def _is_optimiser(entries: Mapping[Any, Any]) -> bool:
    """Whether it is what `torch.optim.Optimizer.state_dict` gives."""
    state, groups = entries.get("state"), entries.get("param_groups")
    return (
        isinstance(state, dict)
        and isinstance(groups, list)
        and all(isinstance(key, int) for key in dict.keys(state))
    )


def _could_be_network(tensors: Mapping[str, Tensor]) -> bool:
    matrices = [name for name, t in tensors.items() if t.dim() > 1 and not t.is_complex()]
    if any("." in name or name.endswith(_USUAL_PARTS) for name in matrices):
        return True
    return len(matrices) >= _FEWEST_UNNAMED


def _under(
    path: Path, key: str, sets: Sequence[WeightSet], networks: Sequence[WeightSet]
) -> tuple[WeightSet, list[WeightSet]] | None:
    """Return the set under `key` and all that could be meant instead; `None` without one."""
    named = [s for s in sets if s.key == key]
    if len(named) > 1:
        raise ModelError(f"{path}: {key!r} leads to two sets of weights; re-save the one meant")
    if named:
        return named[0], list(networks)
    parts = _by_first_part(networks[0]) if len(networks) == 1 else []
    part = next((part for part in parts if part.key == key), None)
    return None if part is None else (part, parts)


def _by_first_part(whole: WeightSet) -> list[WeightSet]:
    """Part a set by the first part of its names, "student.conv1.weight" under "student"."""
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in whole.tensors.items():
        first, _, rest = name.partition(".")
        parts.setdefault(first if rest else TOP, {})[rest or name] = tensor
    return [
        WeightSet(
            key=key,
            tensors=tensors,
            modules={
                name.removeprefix(f"{key}."): facts
                for name, facts in whole.modules.items()
                if name.startswith(f"{key}.")
            },
            notes=whole.notes,
        )
        for key, tensors in parts.items()
    ]


def _same(first: WeightSet, second: WeightSet) -> bool:
    """Whether two sets hold the same tensors, whatever wrapper they were saved in."""
    one, other = (strip_wrappers(s.tensors, []) for s in (first, second))
    if one.keys() != other.keys():
        return False
    try:
        return all(
            tensor.dtype == other[name].dtype and torch.equal(tensor, other[name])
            for name, tensor in one.items()
        )
    except RuntimeError:  # sparse and nested tensors cannot be compared
        return False


def _listed(sets: Sequence[WeightSet]) -> str:
    shown = ", ".join(s.describe() for s in sets[:_LISTED])
    return shown if len(sets) <= _LISTED else f"{shown} and {len(sets) - _LISTED} more"


def _as_text(key: Any) -> str:
    """Write a key, which may be anything that hashes, in few words."""
    if isinstance(key, str):
        return key
    if isinstance(key, int) and abs(key) < 10**9:
        return str(key)
    return f"<{type(key).__name__}>"
