"""Pickles that torch's weights-only reader accepts, made to trip whoever uses what they hold."""

from __future__ import annotations

import contextlib
import io
import pickle
import resource
import struct
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch

from bdaudit.errors import ModelError
from bdaudit.models import inspect_checkpoint, load_model, open_checkpoint
from tests.models.checkpoints import same_tensors
from tests.models.test_archive import Part, part, parts_of, saved, write

STATE = {"fc.weight": torch.arange(6.0).reshape(2, 3), "fc.bias": torch.tensor([1.0, -1.0])}


class Call:
    """Pickled as a call of `function(*arguments)`, then given `state`."""

    def __init__(self, function: Any, *arguments: Any, state: Any = None) -> None:
        self.reduced = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.reduced


class WithTensors(pickle.Pickler):
    """Writes storages as torch does, into entries of the archive."""

    def __init__(self, stream: io.BytesIO) -> None:
        super().__init__(stream, protocol=2)
        self.storages: dict[str, bytes] = {}

    def persistent_id(self, value: Any) -> Any:
        if isinstance(value, torch.storage.TypedStorage):
            key, raw = str(len(self.storages)), bytes(value._untyped_storage)
            self.storages[key] = raw
            kind = {torch.float32: torch.FloatStorage, torch.int64: torch.LongStorage}[value.dtype]
            return ("storage", kind, key, "cpu", len(raw) // value.dtype.itemsize)
        return None


def archive(content: Any) -> bytes:
    stream = io.BytesIO()
    pickler = WithTensors(stream)
    pickler.dump(content)
    entries = [Part("m/data.pkl", stream.getvalue())]
    entries += [Part(f"m/data/{key}", data) for key, data in pickler.storages.items()]
    return write([*entries, Part("m/byteorder", b"little"), Part("m/version", b"3\n")])


def parameter(state: Any) -> Call:
    """A parameter with attributes of its own, such as a `detach` that is none."""
    return Call(
        torch._utils._rebuild_parameter_with_state, torch.ones(2, 3), True, OrderedDict(), state
    )


METHODS = ("detach", "numel", "float", "is_floating_point", "dim", "to", "items")
DICT_METHODS = ("get", "items", "keys", "values", "pop", "copy")

ABUSED: dict[str, Any] = {
    **{
        f"a parameter whose {name} is {value!r}": {"fc.weight": parameter({name: value})}
        for name in METHODS
        for value in (1, "x", {1}, OrderedDict())
    },
    **{
        f"a container whose {name} is {value!r}": Call(OrderedDict, state={name: value})
        for name in DICT_METHODS
        for value in (1, "x", [2])
    },
    "a nested tensor": {
        "fc.weight": Call(
            torch._utils._rebuild_nested_tensor,
            torch.arange(6.0),
            torch.tensor([[2, 3]]),
            torch.tensor([[3, 1]]),
            torch.tensor([0]),
        )
    },
    "a tensor of no memory": {
        "fc.weight": Call(
            torch._utils._rebuild_meta_tensor_no_storage, torch.float32, (2, 3), (3, 1), False
        )
    },
    "a state of another kind": {
        "fc.weight": Call(
            torch._tensor._rebuild_from_type_v2,
            torch._utils._rebuild_parameter,
            torch.nn.Parameter,
            (torch.ones(2, 3), True, OrderedDict()),
            5,
        )
    },
    "a number for a name": {5: torch.ones(2, 3)},
}


@pytest.mark.parametrize("kind", ABUSED)
def test_it_opens_as_it_is_or_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "m.pt"
    path.write_bytes(archive(ABUSED[kind]))
    with contextlib.suppress(ModelError):
        assert all(type(t) is torch.Tensor for t in open_checkpoint(path).tensors.values())
    with pytest.raises(ModelError, match=r"m\.pt") as caught:  # no network has these tensors
        load_model(path, name="m", image_shape=(3, 8, 8))
    assert "weights_only" not in str(caught.value)
    inspect_checkpoint(path)


def test_attributes_do_not_hide_what_a_container_holds(tmp_path: Path) -> None:
    state = Call(OrderedDict)
    hiding = dict.fromkeys(DICT_METHODS, 3)
    state.reduced = (OrderedDict, (), hiding, None, iter(STATE.items()))  # type: ignore[assignment]
    path = tmp_path / "m.pt"
    path.write_bytes(archive({"model": state}))
    assert same_tensors(open_checkpoint(path).tensors, STATE)


def test_attributes_do_not_hide_what_a_parameter_holds(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    path.write_bytes(archive({"fc.weight": parameter({"detach": 3, "numel": 4})}))
    assert torch.equal(open_checkpoint(path).tensors["fc.weight"], torch.ones(2, 3))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_bytearray_of_gigabytes_is_never_made(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "m.pt"
    body = b"\x80\x02}(X\x01\x00\x00\x00ac__builtin__\nbytearray\nJ" + struct.pack("<i", 2**31 - 1)
    body += b"\x85RX\x01\x00\x00\x00bK\x01u."
    parts = parts_of(saved(STATE))
    part(parts, "data.pkl").data = body
    legacy = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + pickle.dumps({}, 2)
    path.write_bytes(write(parts) if zipped else legacy + body)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ModelError, match=r"builtins\.bytearray"):
        open_checkpoint(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < before + 500_000  # KiB


@pytest.mark.parametrize(
    "name", ["module." * 150_000, "a" * 2000, "_orig_mod." * 100_000, "a." * 60_000]
)
def test_a_name_of_a_megabyte_takes_no_time(tmp_path: Path, name: str) -> None:
    path = tmp_path / "m.pt"
    torch.save({name + "weight": torch.ones(2, 3)}, path)
    started = time.process_time()
    with pytest.raises(ModelError, match="names of at most 1024 characters"):
        open_checkpoint(path)
    inspect_checkpoint(path)
    assert time.process_time() - started < 10


def test_very_many_names_take_little_time(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    stream = io.BytesIO()
    pickler = WithTensors(stream)
    shared = torch.ones(1)
    pickler.dump({f"module.layer{k}.weight": shared for k in range(150_000)})
    entries = [Part("m/data.pkl", stream.getvalue())]
    entries += [Part(f"m/data/{key}", data) for key, data in pickler.storages.items()]
    path.write_bytes(write([*entries, Part("m/version", b"3\n")]))
    started = time.process_time()
    assert inspect_checkpoint(path).problem is None
    assert time.process_time() - started < 30


def nested(depth: int, inner: Any, *, as_tuple: bool) -> bytes:
    """Pickle `inner` in `depth` containers, written by hand: pickle itself is recursive."""
    opening, closing = (b"", b"\x85") if as_tuple else (b"](", b"e")
    return b"\x80\x02" + opening * depth + pickle.dumps(inner, 2)[2:-1] + closing * depth + b"."


@pytest.mark.parametrize("as_tuple", [True, False])
def test_containers_within_containers_are_refused(tmp_path: Path, as_tuple: bool) -> None:
    parts = parts_of(saved(STATE))
    part(parts, "data.pkl").data = nested(5000, 1, as_tuple=as_tuple)
    (tmp_path / "m.pt").write_bytes(write(parts))
    with pytest.raises(ModelError, match="deep"):
        open_checkpoint(tmp_path / "m.pt")


def test_a_deep_key_is_refused(tmp_path: Path) -> None:
    key = nested(5000, 1, as_tuple=True)[2:-1]
    parts = parts_of(saved(STATE))
    part(parts, "data.pkl").data = b"\x80\x02}(" + key + b"K\x01u."
    (tmp_path / "m.pt").write_bytes(write(parts))
    with pytest.raises(ModelError):
        open_checkpoint(tmp_path / "m.pt")
    assert inspect_checkpoint(tmp_path / "m.pt").problem


def test_a_list_that_doubles_at_every_level_is_looked_at_once(tmp_path: Path) -> None:
    doubled: list[Any] = [1]
    for _ in range(25):
        doubled = [doubled, doubled]
    path = tmp_path / "m.pt"
    torch.save({"model": STATE, "x": doubled, ("key", tuple_of(10)): 1}, path)
    assert same_tensors(open_checkpoint(path).tensors, STATE)


def tuple_of(levels: int) -> tuple[Any, ...]:
    made: tuple[Any, ...] = (1,)
    for _ in range(levels):
        made = (made, made)
    return made
