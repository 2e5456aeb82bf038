"""Trigger files: a small TOML, and the tensors, images or code that lie beside it.

A trigger file may come from anywhere. It can name no file outside its own folder, and the one kind
that runs code is refused unless the caller says that the code is trusted.
"""

from __future__ import annotations

import difflib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from bdaudit.data.arrays import read_npy, unit_range
from bdaudit.data.backdoorbench import POISONED_TREE
from bdaudit.data.images import EXTENSIONS, decode_image
from bdaudit.detection import NOTHING
from bdaudit.errors import ConfigError, InputError, TriggerError, reads
from bdaudit.foundation.opening import (
    SOURCE_BYTES,
    TENSOR_BYTES,
    check_file,
    is_file,
    is_folder,
    open_file,
    path_inside,
    read_bytes,
)
from bdaudit.foundation.texts import read_toml
from bdaudit.foundation.usercode import split_reference
from bdaudit.foundation.writing import write_atomically
from bdaudit.triggers.columns import SetColumns
from bdaudit.triggers.function import Function, load_function
from bdaudit.triggers.networks import Encoder, InputAware, NetworkTransform
from bdaudit.triggers.objects import InBox, OnObject
from bdaudit.triggers.paired import Paired
from bdaudit.triggers.quantise import Quantise
from bdaudit.triggers.reflection import Reflection
from bdaudit.triggers.rules import (
    AllToAll,
    AllToOne,
    ClassMap,
    ObjectsToOne,
    SourceSpecific,
    TargetRule,
)
from bdaudit.triggers.transforms import Additive, Blend, Patch, Sinusoid, Transform, Warp
from bdaudit.triggers.trigger import Trigger

__all__ = ["companion_files", "companion_names", "read_trigger", "write_trigger"]

_VERSION = 1
_MOST_WEIGHTS = 16 * 2**20  # bytes; two networks of the greatest width take 12 MiB
_MOST_TENSORS = 64
_REQUIRED = object()
Value = TypeVar("Value")


@reads(TriggerError)
def read_trigger(path: str | Path, *, allow_code: bool = False) -> Trigger:
    """Read a trigger file.

    Args:
        path: A TOML file as docs/triggers.md describes it.
        allow_code: Whether a trigger of kind "python" may run the code it names.

    Raises:
        TriggerError: The file is missing or not TOML, has an unknown or a missing key or a value
            out of range, names a file that is missing, damaged or outside its folder, wants to run
            code that was not allowed, or is not what its own `sha256` says.
    """
    path = Path(path)
    document = read_toml(path, what="a TOML trigger file", error=TriggerError)
    try:
        return _parse(document, path, allow_code=allow_code)
    except (ConfigError, InputError) as error:
        raise TriggerError(f"{path}: {error}") from error


def _parse(document: Mapping[str, Any], path: Path, *, allow_code: bool) -> Trigger:
    kind = _kind(document, list(_READERS))
    top = _Table(document, path, known=("version", "kind", "recovered", "sha256", "target", kind))
    if top.value("version", int, _VERSION) != _VERSION:
        raise TriggerError(f"expected version {_VERSION}, got {document['version']!r}")
    section = top.value(kind, dict)
    transform = _READERS[kind](section, path, allow_code)
    trigger = Trigger(
        transform=transform,
        rule=_read_rule(top.value("target", dict), path),
        source=str(path),
        recovered=top.value("recovered", bool, False),
    )
    stated = top.value("sha256", str, trigger.sha256)
    if stated != trigger.sha256:
        raise TriggerError(
            "its sha256 line does not match its content; the file or one beside it was "
            "changed since it was written. Remove the line if that was intended"
        )
    return trigger


# --- reading -----------------------------------------------------------------------------------


def _kind(values: Mapping[str, Any], known: Sequence[str]) -> str:
    kind = values.get("kind")
    if not isinstance(kind, str) or kind not in known:
        raise TriggerError("kind: " + _unknown(str(kind), known))
    return kind


class _Table:
    """One table of the document: typed look-ups, and unknown keys are errors."""

    def __init__(self, values: Mapping[str, Any], path: Path, *, known: Sequence[str]) -> None:
        self.values = values
        self.path = path
        for key in values:
            if key not in known:
                raise TriggerError(_unknown(key, known))

    def value(self, key: str, kind: type[Value], default: object = _REQUIRED) -> Value:
        if key not in self.values:
            if default is _REQUIRED:
                raise TriggerError(f"expected the key {key!r}")
            return default  # type: ignore[return-value]
        value = self.values[key]
        # A whole number will do for a float; true and false are not numbers.
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind:
            raise TriggerError(f"{key}: expected {kind.__name__}, got {type(value).__name__}")
        return value

    def integers(self, key: str, default: object = _REQUIRED) -> tuple[int, ...]:
        values = self.value(key, list, default)
        if not all(type(value) is int for value in values):
            raise TriggerError(f"{key}: expected whole numbers, got {values}")
        return tuple(values)

    def file(self, key: str) -> Path:
        return _beside(self.path, self.value(key, str))


def _unknown(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"expected one of {', '.join(known)}, got {name!r}{hint}"


def _beside(toml: Path, name: str) -> Path:
    """Resolve a path written in a trigger file; it may not leave the file's folder."""
    found = path_inside(toml.parent, name, what="what the trigger needs", error=TriggerError)
    if not (is_file(found) or is_folder(found)):
        raise TriggerError(f"{name!r} is not there, or is no file ({found})")
    return found


def _read_rule(values: Mapping[str, Any], path: Path) -> TargetRule:
    if "goal" in values:
        return _read_goal(values, path)
    rules = {
        rule.name: rule for rule in (AllToOne, AllToAll, SourceSpecific, ObjectsToOne, ClassMap)
    }
    name = values.get("rule", AllToOne.name)
    if not isinstance(name, str) or name not in rules:
        raise TriggerError("target rule: " + _unknown(str(name), list(rules)))
    keys = {
        AllToOne.name: ("label",),
        AllToAll.name: (),
        SourceSpecific.name: ("label", "sources"),
        ObjectsToOne.name: ("label",),
        ClassMap.name: ("classes",),
    }[name]
    table = _Table(values, path, known=("rule", *keys))
    if name == AllToAll.name:
        return AllToAll()
    if name == ClassMap.name:
        return ClassMap(table.integers("classes"))
    label = table.value("label", int)
    if name == AllToOne.name:
        return AllToOne(label)
    if name == ObjectsToOne.name:
        return ObjectsToOne(label)
    return SourceSpecific(label, table.integers("sources"))


_GOALS = ("disappear", "appear", "take")


def _read_goal(values: Mapping[str, Any], path: Path) -> TargetRule:
    """Read what a trigger does to a detector; it is kept, digested and written as a rule."""
    goal = values["goal"]
    if goal not in _GOALS:
        raise TriggerError("goal: " + _unknown(str(goal), _GOALS))
    for key in ("rule", "sources", "classes"):
        if key in values:
            raise TriggerError(
                f"[target]: a goal says which boxes count, so {key!r} beside goal = {goal!r} "
                "contradicts it or says nothing; take one of the two out"
            )
    table = _Table(values, path, known=("goal", "label"))
    if goal == "disappear":
        label = table.value("label", int, NOTHING)
        if label != NOTHING:
            raise TriggerError(
                f"goal = 'disappear' takes objects to class {NOTHING}, \"nothing there\", and "
                f"label says {label}; leave label out, or write goal = 'take'"
            )
        return AllToOne(NOTHING)
    if "label" not in values:
        raise TriggerError(
            f"goal = {goal!r}: expected label, the class of the object that the detector reports"
        )
    label = table.value("label", int)
    if label == NOTHING:
        raise TriggerError(
            f'goal = {goal!r}: class {NOTHING} is "nothing there"; give the class of an object '
            "as label (1 and above), or write goal = 'disappear' without a label"
        )
    return SourceSpecific(label, (NOTHING,)) if goal == "appear" else ObjectsToOne(label)


def _read_patch(values: Mapping[str, Any], path: Path, allow_code: bool) -> Transform:
    table = _Table(values, path, known=("image", "mask", "corner", "offset"))
    offset = table.integers("offset", [0, 0])
    if len(offset) != 2:
        raise TriggerError(f"offset: expected [rows, columns], got {list(offset)}")
    return Patch(
        image=read_picture(table.file("image"), "image"),
        mask=read_picture(table.file("mask"), "mask") if "mask" in values else None,
        corner=table.value("corner", str, "bottom-right"),  # type: ignore[arg-type]
        offset=(offset[0], offset[1]),
    )


def _read_blend(values: Mapping[str, Any], path: Path, allow_code: bool) -> Transform:
    table = _Table(values, path, known=("image", "alpha"))
    return Blend(
        image=read_picture(table.file("image"), "image"), alpha=table.value("alpha", float)
    )


def _read_sinusoid(values: Mapping[str, Any], path: Path, allow_code: bool) -> Transform:
    table = _Table(values, path, known=("amplitude", "frequency"))
    return Sinusoid(
        amplitude=table.value("amplitude", float), frequency=table.value("frequency", float)
    )


def _read_additive(values: Mapping[str, Any], path: Path, allow_code: bool) -> Transform:
    table = _Table(values, path, known=("delta",))
    delta = _read_floats(table.file("delta"), "delta")
    # A perturbation saved by an attack has a leading dimension of 1, for broadcasting.
    return Additive(delta=delta[0] if delta.ndim == 4 and delta.shape[0] == 1 else delta)


def _read_warp(values: Mapping[str, Any], path: Path, allow_code: bool) -> Transform:
    table = _Table(values, path, known=("grid",))
    return Warp(grid=_read_floats(table.file("grid"), "grid"))


def _read_columns(values: Mapping[str, Any], path: Path, allow_code: bool) -> Transform:
    table = _Table(values, path, known=("index", "value"))
    found = table.value("value", list)
    if not all(type(value) in (int, float) for value in found):
        raise TriggerError(f"value: expected numbers, got {found}")
    return SetColumns(index=table.integers("index"), value=tuple(map(float, found)))


def _read_quantise(values: Mapping[str, Any], path: Path, allow_code: bool) -> Transform:
    table = _Table(values, path, known=("levels", "dithering"))
    return Quantise(
        levels=table.value("levels", int), dithering=table.value("dithering", bool, True)
    )


def _read_reflection(values: Mapping[str, Any], path: Path, allow_code: bool) -> Transform:
    table = _Table(values, path, known=("pictures", "alpha"))
    file = table.file("pictures")
    return Reflection(
        pictures=unit_range(read_tensor(file, "pictures"), str(file)),
        alpha=table.value("alpha", float),
    )


def _read_input_aware(values: Mapping[str, Any], path: Path, allow_code: bool) -> Transform:
    table = _Table(values, path, known=("weights",))
    return InputAware.from_tensors(_read_weights(table.file("weights")))


def _read_encoder(values: Mapping[str, Any], path: Path, allow_code: bool) -> Transform:
    table = _Table(values, path, known=("weights", "eps"))
    return Encoder.from_tensors(_read_weights(table.file("weights")), eps=table.value("eps", float))


def _read_paired(values: Mapping[str, Any], path: Path, allow_code: bool) -> Transform:
    table = _Table(values, path, known=("folder", "layout"))
    folder = table.file("folder")
    usual = "backdoorbench" if folder.name == POISONED_TREE else "names"
    return Paired(folder=folder, layout=table.value("layout", str, usual))  # type: ignore[arg-type]


def _read_python(values: Mapping[str, Any], path: Path, allow_code: bool) -> Transform:
    table = _Table(values, path, known=("function",))
    reference = table.value("function", str)
    file, _, name = reference.partition(":")
    if not name.isidentifier():
        raise TriggerError(f"function: expected 'file.py:function', got {reference!r}")
    code = _beside(path, file)
    if not allow_code:
        raise TriggerError(
            f"this trigger runs the Python code of {code}; read that file, and if you "
            "trust it pass --allow-trigger-code (allow_code=True)"
        )
    return load_function(code, name)


def _read_on_object(values: Mapping[str, Any], path: Path, allow_code: bool) -> Transform:
    table = _Table(values, path, known=("image", "mask", "share", "place"))
    return OnObject(
        image=read_picture(table.file("image"), "image"),
        mask=read_picture(table.file("mask"), "mask") if "mask" in values else None,
        share=table.value("share", float),
        place=table.value("place", str, "center"),  # type: ignore[arg-type]
    )


def _read_in_box(values: Mapping[str, Any], path: Path, allow_code: bool) -> Transform:
    kind = _kind(values, [name for name in _READERS if name not in _NOT_INSIDE])
    table = _Table(values, path, known=("kind", kind))
    return InBox(inner=_READERS[kind](table.value(kind, dict), path, allow_code))


_NOT_INSIDE = (OnObject.kind, InBox.kind, Paired.kind, SetColumns.kind)
"""Kinds that `InBox` does not take."""

_READERS: dict[str, Callable[[Mapping[str, Any], Path, bool], Transform]] = {
    Patch.kind: _read_patch,
    Blend.kind: _read_blend,
    Sinusoid.kind: _read_sinusoid,
    Additive.kind: _read_additive,
    Warp.kind: _read_warp,
    Quantise.kind: _read_quantise,
    SetColumns.kind: _read_columns,
    Reflection.kind: _read_reflection,
    InputAware.kind: _read_input_aware,
    Encoder.kind: _read_encoder,
    Paired.kind: _read_paired,
    Function.kind: _read_python,
    OnObject.kind: _read_on_object,
    InBox.kind: _read_in_box,
}


def read_picture(path: Path, key: str) -> Tensor:
    """Read a picture or mask (C, h, w) in [0, 1] from an image or tensor file.

    Tensors are channels first; one that can only be channels last is turned round.
    """
    if path.suffix.lower() in EXTENSIONS:
        picture, oddities = decode_image(path, within=path.parent)
        if oddities:
            raise TriggerError(
                f"{path}: it is one of those that {oddities[0]}; of a trigger nothing may be "
                "left out: save it as a plain picture (and where it is stamped as the mask)"
            )
        return picture
    values = read_tensor(path, key)
    if values.ndim == 2:
        values = values[None]
    if values.ndim != 3:
        raise TriggerError(f"{path}: expected an image (C, h, w), got {tuple(values.shape)}")
    if values.shape[0] not in (1, 3) and values.shape[2] in (1, 3):
        values = values.permute(2, 0, 1)
    return unit_range(values, str(path))


def _read_floats(path: Path, key: str) -> Tensor:
    return read_tensor(path, key).float()


def read_tensor(path: Path, key: str) -> Tensor:
    """Read a `.npy` file, or the tensor called `key` (or the only one) of a `.safetensors`."""
    tensor = _read_tensor(path, key)
    if tensor.numel() == 0:
        raise TriggerError(f"{path}: expected values, got none: {tuple(tensor.shape)}")
    return tensor


def _read_tensor(path: Path, key: str) -> Tensor:
    try:
        if path.suffix.lower() == ".npy":
            with open_file(
                path, limit=TENSOR_BYTES, what="a tensor", error=TriggerError, within=path.parent
            ) as stream:
                array = read_npy(stream, os.fstat(stream.fileno()).st_size)
                return torch.from_numpy(array.copy())
        if path.suffix.lower() == ".safetensors":
            check_file(
                path, limit=TENSOR_BYTES, what="tensors", error=TriggerError, within=path.parent
            )
            with safe_open(path, framework="pt") as content:
                names = list(content.keys())
                name = names[0] if len(names) == 1 else key
                if name not in names:
                    raise TriggerError(f"{path}: expected a tensor called {key!r}, found {names}")
                return content.get_tensor(name)  # type: ignore[no-any-return]
    except TriggerError:
        raise
    # numpy reads a header as Python source, and safetensors knows types that torch does not:
    # on a damaged file either raises about anything.
    except Exception as error:
        raise TriggerError(f"{path}: expected a tensor: {_gist(error)}") from error
    raise TriggerError(f"{path}: expected .npy, .safetensors or, for pictures, an image file")


def _read_weights(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a trigger's networks; they are looked at before they are used."""
    try:
        what = "the weights of a trigger's networks, a .safetensors file"
        if path.suffix.lower() != ".safetensors":
            raise TriggerError(f"{path}: expected {what}")
        check_file(path, limit=_MOST_WEIGHTS, what=what, error=TriggerError, within=path.parent)
        with safe_open(path, framework="pt") as content:
            names = list(content.keys())
            if len(names) > _MOST_TENSORS:
                raise TriggerError(
                    f"{path}: expected at most {_MOST_TENSORS} tensors, got {len(names)}"
                )
            return {name: content.get_tensor(name) for name in names}
    except TriggerError:
        raise
    except Exception as error:  # as above
        raise TriggerError(f"{path}: expected tensors: {_gist(error)}") from error


def _gist(error: Exception) -> str:
    """Return what another library complains of, in one line of its kind and first words."""
    words = str(error).strip().splitlines()
    return f"{type(error).__name__}: {words[0][:200]}" if words else type(error).__name__


def companion_files(path: Path) -> tuple[Path, ...]:
    """List the files that a trigger file which was read names beside itself."""
    document = read_toml(path, what="a TOML trigger file", error=TriggerError)
    beside = [path.parent / name for name in companion_names(document)]
    return tuple(found for found in beside if is_file(found))


def companion_names(document: Mapping[str, Any]) -> tuple[str, ...]:
    """List what a trigger's document names as files, relative to its own folder."""
    kind = str(document.get("kind"))
    section = document.get(kind, {})
    if not isinstance(section, Mapping):
        return ()
    if kind == InBox.kind and section.get("kind") != kind:
        return companion_names(section)
    named = [section[key] for key in _FILE_KEYS if isinstance(section.get(key), str)]
    return tuple((split_reference(name) or (Path(name),))[0].as_posix() for name in named)


_FILE_KEYS = ("image", "mask", "delta", "grid", "pictures", "weights", "function")
"""Keys, of whatever kind of trigger, that name a file."""


# --- writing -----------------------------------------------------------------------------------


def write_trigger(path: str | Path, trigger: Trigger) -> None:
    """Write a trigger file, and beside it whatever the trigger needs.

    Tensors go to `<stem>.safetensors`, the images of a paired trigger to `<stem>_images/` and the
    code of a Python one to `<stem>.py`. Every file appears whole or not at all and the TOML comes
    last; it states the digest of the whole, so that a mixture of an old and a new trigger is
    noticed when it is read.

    Args:
        path: The TOML file; its folder exists.
        trigger: What is written.

    Raises:
        TriggerError: The folder cannot be written to, or the trigger is a function that was handed
            over in memory.
    """
    path = Path(path)
    try:
        document: dict[str, Any] = {
            "version": _VERSION,
            "kind": trigger.kind,
            "recovered": trigger.recovered,
            "sha256": trigger.sha256,
            "target": {"rule": trigger.rule.name, **trigger.rule.settings()},
            trigger.kind: _section(path, trigger.transform),
        }
        write_atomically(path, _to_toml(document).encode())
    except OSError as error:
        raise TriggerError(f"{path}: cannot be written: {error.strerror or error}") from error


def _section(path: Path, transform: Transform) -> dict[str, Any]:
    """Write what goes with the TOML, and return the kind's own table."""
    if isinstance(transform, InBox):
        inner = transform.inner
        return {"kind": inner.kind, inner.kind: _section(path, inner)}
    return {**transform.settings(), **_write_companions(path, transform)}


def _write_companions(path: Path, transform: Transform) -> dict[str, str]:
    """Write the files that go with the TOML; return the keys that name them."""
    if isinstance(transform, Function):
        if transform.path is None:
            raise TriggerError(
                f"{path}: a function handed over in memory cannot be written; put it in a Python "
                "file and load it from there"
            )
        beside = path.with_suffix(".py")
        source = read_bytes(transform.path, limit=SOURCE_BYTES, what="the trigger's code")
        write_atomically(beside, source)
        return {"function": f"{beside.name}:{transform.settings()['function']}"}
    if isinstance(transform, Paired):
        beside = path.with_name(f"{path.stem}_images")
        if beside.resolve() != transform.folder.resolve():
            _copy_folder_atomically(transform.folder, beside)
        return {"folder": beside.name}
    tensors = transform.tensors()
    if not tensors:
        return {}
    beside = path.with_suffix(".safetensors")
    packed = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_atomically(beside, save(packed))
    if isinstance(transform, NetworkTransform):
        return {"weights": beside.name}
    return dict.fromkeys(tensors, beside.name)


def _copy_folder_atomically(source: Path, target: Path) -> None:
    if target.exists():
        raise TriggerError(f"{target}: already exists; remove it or choose another name")
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as staging:
        shutil.copytree(source, Path(staging) / "images")
        (Path(staging) / "images").rename(target)


def _to_toml(document: Mapping[str, Any]) -> str:
    """Write plain values first, then one table for every mapping, and the tables inside it."""
    return "\n".join(_toml_lines(document, "")) + "\n"


def _toml_lines(table: Mapping[str, Any], within: str) -> list[str]:
    lines = [f"{k} = {_literal(v)}" for k, v in table.items() if not isinstance(v, Mapping)]
    for key, inner in table.items():
        if isinstance(inner, Mapping):
            lines += ["", f"[{within}{key}]", *_toml_lines(inner, f"{within}{key}.")]
    return lines


def _literal(value: Any) -> str:
    """Write text, booleans, numbers and lists of them, whose JSON form is valid TOML too."""
    return json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)
