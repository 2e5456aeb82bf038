"""Turn a whole pickled module into named tensors, with every class in it an inert record.

`torch.save(model)` writes the module's class by name and its `__dict__` as plain data: weights
stand in `_parameters` and `_buffers`, inner modules in `_modules`. That data is enough to name
every tensor as `state_dict()` would, without the classes. What the classes *do* is not in the file,
so a module whose answers hang on more than the architecture that is built for it (a hook, a forward
pass of its own, another activation) is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from bdaudit.errors import ModelError
from bdaudit.models.pickles import InertRecord

__all__ = ["ModuleFacts", "NamedModule", "demand_same_parts", "is_module", "name_tensors"]

_TORCH_LAYERS = "torch.nn.modules."
_PARTS = ("_parameters", "_buffers", "_modules")
_DEEPEST = 64
_MOST_MODULES = 20_000
_LONGEST_NAME = 1024
_LISTED = 5
# What runs in an evaluation beside the forward pass of the class. Hooks of backward passes and of
# state dicts do not.
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
# Pruning keeps weight and mask, and multiplies them before each forward pass; so do we.
_HARMLESS_HOOKS = "torch.nn.utils.prune."
# What only counts in training.
_TRAINING_ONLY = frozenset({"training", "momentum", "p", "inplace", "dropout", "aux_logits"})
# Of classes outside torch that are built here too; others may hold what hangs on the machine.
_COMPARED_CLASSES = ("torchvision.models.",)
_PLAIN = (bool, int, float, str, type(None))


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleFacts:
    """What a file says of one module beside its tensors.

    Attributes:
        class_name: Its class, "torch.nn.modules.conv.Conv2d".
        settings: Its plain attributes: numbers, texts, and tuples of them.
    """

    class_name: str
    settings: Mapping[str, Any]

    @property
    def layer(self) -> str | None:
        """The name of torch's own class, `None` of one that is not torch's."""
        if not self.class_name.startswith(_TORCH_LAYERS):
            return None
        return self.class_name.rpartition(".")[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedModule:
    """A pickled module, read.

    Attributes:
        tensors: By the names that `state_dict()` gives them.
        facts: Of every module inside, itself under "", by name.
        notes: What was left out, in words.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    facts: dict[str, ModuleFacts] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def is_module(value: Any) -> bool:
    """Whether a record of a pickle has the form of a `torch.nn.Module`."""
    state = value.state if isinstance(value, InertRecord) else None
    return isinstance(state, dict) and any(part in state for part in _PARTS)


def name_tensors(path: Path, module: InertRecord) -> NamedModule:
    """Name a module's tensors as its `state_dict()` would.

    Args:
        path: For messages.
        module: A record that `is_module`.

    Raises:
        ModelError: A tensor would have to be made by a call, a module is of another form than
            torch gives it, or something but the class decides what it answers.
    """
    tensors: dict[str, Tensor] = {}
    facts: dict[str, ModuleFacts] = {}
    beside: list[str] = []
    for name, record in _walk(path, module):
        if len(facts) >= _MOST_MODULES:
            raise ModelError(f"{path}: expected at most {_MOST_MODULES} modules in a network")
        facts[name] = _facts_of(record)
        _refuse_what_acts(path, name, record)
        for key, tensor in _tensors_in(path, name, record):
            full = f"{name}.{key}" if name else key
            tensors[full] = tensor
        beside += [f"{name}.{key}" if name else key for key in _beside(record.state)]
    notes = [
        f"read from a whole pickled module of class {module.class_name[:120]!r} without running "
        "anything in it: its tensors are the file's, and what is computed with them is the "
        "architecture's and not the code of that class"
    ]
    if beside:
        notes.append(
            "left out tensors and modules that are mere attributes, as a state_dict does: "
            f"{_quoted(beside)}"
        )
    return NamedModule(tensors=tensors, facts=facts, notes=tuple(notes))


def demand_same_parts(
    path: Path,
    arch: str,
    network: nn.Module,
    facts: Mapping[str, ModuleFacts],
    notes: list[str],
) -> None:
    """Hold the layers of a built network against what the file says of them.

    A `state_dict` holds no kinds of layers and no settings; a pickled module does, so that
    another activation, stride or epsilon than the architecture's is found here.

    Args:
        path: For messages.
        arch: The architecture's name.
        network: As it was built.
        facts: Of the file's modules, by name; wrappers may stand before all names.
        notes: Takes the file's layers that the architecture has no counterpart of.

    Raises:
        ModelError: A layer of torch is of another kind, or has another setting that counts when
            the network answers.
    """
    built = dict(network.named_modules())
    prefix = _prefix(facts, [name for name, module in built.items() if _holds_tensors(module)])
    wrong = []
    for name, module in built.items():
        told = facts.get(prefix + name if name else prefix.removesuffix("."))
        if told is None:
            continue
        here = f"{type(module).__module__}.{type(module).__qualname__}"
        if told.layer is None or not here.startswith(_TORCH_LAYERS):
            if told.class_name != here or not here.startswith(_COMPARED_CLASSES):
                continue
        elif type(module).__name__ != told.layer:
            wrong.append(f"{name!r}: {told.layer} in the file, {type(module).__name__} built")
            continue
        for key, value in told.settings.items():
            own = vars(module).get(key, value)
            if _comparable(own) and _as_tuple(own) != _as_tuple(value):
                wrong.append(f"{name!r}: {key} {value!r} in the file, {own!r} built"[:300])
    if wrong:
        raise ModelError(
            f"{path}: the pickled module is not {arch}, though its tensors fit: "
            f"{'; '.join(wrong[:_LISTED])}{'; ...' if len(wrong) > _LISTED else ''}. Build it with "
            "--arch FILE.py:FACTORY"
        )
    known = {prefix + name for name in built}
    extra = [
        f"{name} ({told.layer})"
        for name, told in facts.items()
        if told.layer is not None and name not in known and name + "." != prefix
    ]
    if extra:
        notes.append(
            f"the file also has layers that {arch} has under no such name: {_quoted(extra)}"
        )


def _walk(path: Path, module: InertRecord) -> Iterator[tuple[str, InertRecord]]:
    """Yield modules by name in torch's order: each before what is inside it."""
    pending: list[tuple[str, int, Any]] = [("", 0, module)]
    while pending:
        name, depth, record = pending.pop()
        if not isinstance(record, InertRecord) or not is_module(record):
            raise _of_another_form(path, name, record)
        if depth > _DEEPEST or len(name) > _LONGEST_NAME:
            raise ModelError(f"{path}: expected a network, got modules nested {depth} deep")
        yield name, record
        inner = _part(path, name, record, "_modules")
        for key, value in reversed(inner.items()):
            if value is not None:
                pending.append((f"{name}.{key}" if name else key, depth + 1, value))


def _part(path: Path, name: str, record: InertRecord, part: str) -> dict[str, Any]:
    entries = record.state.get(part, {})
    # Through the class: a pickle may give an OrderedDict attributes that hide its methods.
    plain = dict(dict.items(entries)) if isinstance(entries, dict) else None
    if plain is None or not all(
        isinstance(key, str) and key and "." not in key and len(key) <= _LONGEST_NAME
        for key in plain
    ):
        raise _of_another_form(path, name, record)
    return plain


def _tensors_in(path: Path, name: str, record: InertRecord) -> Iterator[tuple[str, Tensor]]:
    skipped = record.state.get("_non_persistent_buffers_set", ())
    parameters = _part(path, name, record, "_parameters")
    buffers = _part(path, name, record, "_buffers")
    if parameters.keys() & buffers.keys():
        raise _of_another_form(path, name, record)
    for key, value in [*parameters.items(), *buffers.items()]:
        if value is None or (key in buffers and isinstance(skipped, set) and key in skipped):
            continue
        if not isinstance(value, Tensor):
            raise _of_another_form(path, f"{name}.{key}" if name else key, value)
        yield key, value


def _refuse_what_acts(path: Path, name: str, record: InertRecord) -> None:
    """Refuse a module whose answers depend on more than its class and its tensors."""
    where = repr(name[:80]) if name else "the module"
    for part in _HOOKS:
        hooks = record.state.get(part)
        values = list(dict.values(hooks)) if isinstance(hooks, dict) else [hooks] * bool(hooks)
        strange = [v for v in values if not _class_of(v).startswith(_HARMLESS_HOOKS)]
        if strange:
            raise ModelError(
                f"{path}: {where} has a hook ({_class_of(strange[0])[:120]}) that changes what it "
                "answers, which only the file's own code could do; have its author export the "
                "model to ONNX, and audit that with --mode query"
            )
    if "forward" in record.state or "__call__" in record.state:
        raise ModelError(
            f"{path}: {where} has a forward pass of its own in the file, which would have to be "
            "run; have its author export the model to ONNX, and audit that with --mode query"
        )


def _beside(state: Mapping[Any, Any]) -> Iterator[str]:
    """Name attributes that are tensors or modules, and no part of the state dict."""
    for key, value in state.items():
        if not isinstance(key, str) or key in _PARTS:
            continue
        inside = list(dict.values(value)) if isinstance(value, dict) else value
        several = inside if isinstance(inside, list | tuple) else [value]
        if any(isinstance(each, Tensor) or is_module(each) for each in several):
            yield key[:80]


def _facts_of(record: InertRecord) -> ModuleFacts:
    settings = {
        key: value
        for key, value in record.state.items()
        if isinstance(key, str)
        and not key.startswith("_")
        and key not in _TRAINING_ONLY
        and _comparable(value)
    }
    return ModuleFacts(class_name=record.class_name, settings=settings)


def _comparable(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return len(value) <= 16 and all(isinstance(each, _PLAIN) for each in value)
    return isinstance(value, _PLAIN)


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list | tuple) else value


def _holds_tensors(module: nn.Module) -> bool:
    return bool(module._parameters or module._buffers)


def _prefix(facts: Mapping[str, ModuleFacts], names: Sequence[str]) -> str:
    """Return what stands before all names in the file: "module." of DataParallel."""
    wanted = [name for name in names if name]
    for candidate in ("", *(f"{name}." for name in facts if name)):
        if all(candidate + name in facts for name in wanted):
            return candidate
    return ""


def _class_of(value: Any) -> str:
    if isinstance(value, InertRecord):
        return value.class_name
    if isinstance(value, type) and issubclass(value, InertRecord):
        return value.class_name
    return type(value).__name__


def _of_another_form(path: Path, name: str, value: Any) -> ModelError:
    return ModelError(
        f"{path}: expected modules as torch pickles them, got {name[:80]!r} as "
        f"{_class_of(value)[:120]!r}, which only running the file's own code could turn into "
        "tensors; have its author save model.state_dict()"
    )


def _quoted(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name[:80]) for name in names[:_LISTED])
    return shown if len(names) <= _LISTED else f"{shown} and {len(names) - _LISTED} more"
