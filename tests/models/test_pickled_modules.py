"""Whole pickled modules: their tensors are taken, and nothing of them runs."""

from __future__ import annotations

import io
import os
import pickle
import sys
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from bdaudit.errors import ModelError
from bdaudit.models import inspect_checkpoint, load_model, open_checkpoint
from tests.models import yolo_like
from tests.models.checkpoints import (
    ARCH,
    IMAGE_SHAPE,
    RunsACommand,
    same_tensors,
    tiny_network,
)
from tests.models.test_archive import Part, write
from tests.models.test_hostile_pickles import Call, archive

FACTORY = f"{Path(yolo_like.__file__)}:make"


def save(path: Path, content: object, **options: Any) -> Path:
    torch.save(content, path, **options)
    return path


def opened(path: Path, **options: Any) -> Any:
    return load_model(path, name="m", image_shape=IMAGE_SHAPE, read_pickled_module=True, **options)


def answers(network: Callable[[Tensor], Tensor]) -> Tensor:
    images = torch.linspace(0, 1, 2 * 3 * 8 * 8).reshape(2, *IMAGE_SHAPE)
    with torch.no_grad():
        return network(images)


@pytest.mark.parametrize("key", [None, "model"])
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_whole_module_answers_as_it_did(tmp_path: Path, key: str | None, wrapped: bool) -> None:
    network = tiny_network().eval()
    module = nn.DataParallel(network) if wrapped else network
    path = save(tmp_path / "m.pt", module if key is None else {key: module, "epoch": 3})
    checkpoint = open_checkpoint(path, read_pickled_module=True)
    assert same_tensors(checkpoint.tensors, dict(network.state_dict()))
    assert "pickled module" in checkpoint.container
    model = opened(path)
    assert torch.equal(answers(model.classifier), answers(network))
    assert model.arch == ARCH
    assert any("whole pickled module" in note and "architecture's" in note for note in model.notes)


def test_torchvisions_own(tmp_path: Path) -> None:
    from torchvision import models

    network = models.squeezenet1_1(num_classes=3).eval()
    model = load_model(
        save(tmp_path / "m.pt", network),
        name="m",
        arch="torchvision/squeezenet1_1",
        image_shape=(3, 32, 32),
        read_pickled_module=True,
    )
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(model.classifier(images), network(images))


def test_without_the_option_it_is_refused_and_the_option_named(tmp_path: Path) -> None:
    path = save(tmp_path / "m.pt", tiny_network())
    with pytest.raises(ModelError, match=r"bdaudit\.models.*was not loaded"):
        open_checkpoint(path)
    with pytest.raises(ModelError, match=r"whole pickled module.*--read-pickled-module"):
        open_checkpoint(save(tmp_path / "n.pt", nn.Linear(2, 2)))


def test_a_yolo_classifier_in_half_precision(tmp_path: Path) -> None:
    model = yolo_like.trained()
    expected = {name: t.clone() for name, t in model.half().state_dict().items()}
    path = yolo_like.save(tmp_path / "best-cls.pt", model=None, ema=model)
    checkpoint = open_checkpoint(path, read_pickled_module=True)
    assert same_tensors(checkpoint.tensors, expected)
    assert checkpoint.key == "ema"
    assert any("'stride'" in note for note in checkpoint.notes)  # a tensor that is no buffer
    loaded = opened(path, arch=FACTORY, num_classes=4)
    assert torch.allclose(answers(loaded.classifier), answers(model.float()), atol=1e-6)
    assert any("float16" in note for note in loaded.notes)


def test_model_and_average_that_differ_are_not_chosen_between(tmp_path: Path) -> None:
    path = yolo_like.save(
        tmp_path / "last.pt", model=yolo_like.trained(0), ema=yolo_like.trained(1)
    )
    with pytest.raises(ModelError, match=r"several that differ: 'model' .*'ema'"):
        open_checkpoint(path, read_pickled_module=True)
    checkpoint = open_checkpoint(path, weights="ema", read_pickled_module=True)
    assert same_tensors(checkpoint.tensors, dict(yolo_like.trained(1).half().state_dict()))
    assert checkpoint.others == ("model",)


def test_buffers_that_are_not_kept_and_pruning(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    network[0].register_buffer("scratch", torch.ones(2), persistent=False)
    prune.l1_unstructured(network[2], "weight", amount=0.5)
    checkpoint = open_checkpoint(save(tmp_path / "m.pt", network), read_pickled_module=True)
    prune.remove(network[2], "weight")  # the oracle: torch's own merge
    assert same_tensors(checkpoint.tensors, dict(network.state_dict()))


# --- nothing runs, and a careless reader would have run it ----------------------------------------


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[types.SimpleNamespace]:
    """A package of the author's, which leaves a witness whenever something of it runs."""
    source = """
import pathlib
from torch import nn

WITNESS = pathlib.Path({witness!r})
WITNESS.with_name("imported").touch()


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 2)

    def __setstate__(self, state):
        WITNESS.with_name("setstate").touch()
        super().__setstate__(state)

    def __new__(cls, *arguments):
        WITNESS.with_name("new").touch()
        return super().__new__(cls)

    def forward(self, x):
        return self.fc(x)


def rebuild(*arguments):
    WITNESS.with_name("called").touch()
    return Net()


class Made:
    def __init__(self, arguments=()):
        self.arguments = arguments

    def __reduce__(self):
        return rebuild, tuple(self.arguments)
"""
    folder = tmp_path / "author"
    folder.mkdir()
    witnesses = tmp_path / "witnesses"
    witnesses.mkdir()
    (folder / "authors_code.py").write_text(source.format(witness=str(witnesses / "x")))
    monkeypatch.syspath_prepend(folder)
    import authors_code  # type: ignore[import-not-found]

    def forget() -> None:
        sys.modules.pop("authors_code", None)
        for witness in witnesses.iterdir():
            witness.unlink()

    def seen() -> set[str]:
        return {witness.name for witness in witnesses.iterdir()}

    yield types.SimpleNamespace(code=authors_code, forget=forget, seen=seen)
    forget()


@pytest.mark.parametrize("protocol_form", ["zip", "legacy"])
def test_the_authors_code_is_not_even_imported(
    tmp_path: Path, package: types.SimpleNamespace, protocol_form: str
) -> None:
    content = {"model": package.code.Net(), "log": package.code.Made(("a", 3))}
    expected = dict(content["model"].state_dict())
    path = tmp_path / "m.pt"
    if protocol_form == "zip":
        save(path, content)
    else:
        del content["model"]  # torch's older form keeps source code of modules; see below
        save(path, {**content, "weights": expected}, _use_new_zipfile_serialization=False)
    package.forget()
    checkpoint = open_checkpoint(path, read_pickled_module=True)
    inspect_checkpoint(path, read_pickled_module=True)
    assert same_tensors(checkpoint.tensors, expected)
    assert package.seen() == set()
    assert "authors_code" not in sys.modules
    torch.load(path, weights_only=False)  # the control: what a careless reader runs
    assert {"imported", "called"} <= package.seen()
    assert protocol_form == "legacy" or {"setstate", "new"} <= package.seen()


class Evaluates:
    def __init__(self, code: str) -> None:
        self.code = code

    def __reduce__(self) -> tuple[Any, ...]:
        return eval, (self.code,)


class Imports:
    def __reduce__(self) -> tuple[Any, ...]:
        return __import__, ("this_module_must_not_be_imported",)


@pytest.mark.parametrize("place", ["beside", "as an attribute", "as a parameter", "as a layer"])
@pytest.mark.parametrize("kind", ["system", "eval", "import"])
def test_what_runs_programs_is_refused_wherever_it_stands(
    tmp_path: Path, place: str, kind: str
) -> None:
    witness = tmp_path / "ran"
    evil: Any = {
        "system": RunsACommand(witness),
        "eval": Evaluates(f"open({str(witness)!r}, 'w').close()"),
        "import": Imports(),
    }[kind]
    network = tiny_network()
    content: Any = network
    if place == "beside":
        content = {"model": network, "extra": evil}
    elif place == "as an attribute":
        network.extra = evil
    elif place == "as a parameter":
        network._parameters["extra"] = evil
    else:
        network._modules["extra"] = evil
    path = save(tmp_path / "m.pt", content)
    with pytest.raises(ModelError, match=r"refused: its pickle wants.*nothing was run"):
        open_checkpoint(path, read_pickled_module=True)
    assert not witness.exists()
    if kind == "import":
        with pytest.raises(ModuleNotFoundError, match="must_not_be_imported"):
            torch.load(path, weights_only=False)
    else:
        torch.load(path, weights_only=False)
        assert witness.exists()


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (os.system, "system"),
        (os.popen, "popen"),
        (exec, "exec"),
        (getattr, "getattr"),
        (open, "open"),
        (pickle.loads, "loads"),
    ],
)
def test_more_that_no_network_needs(tmp_path: Path, function: Any, name: str) -> None:
    raw = archive({"model": {"fc.weight": torch.ones(2, 3)}, "x": Call(function, "a")})
    path = tmp_path / "m.pt"
    path.write_bytes(raw)
    with pytest.raises(ModelError, match=rf"refused.*{name}"):
        open_checkpoint(path, read_pickled_module=True)


def test_old_names_of_python_2_are_the_same_names(tmp_path: Path) -> None:
    pickled = b"\x80\x02c__builtin__\neval\nX\x03\x00\x00\x001/0\x85R."
    path = tmp_path / "m.pt"
    entries = [Part("m/data.pkl", pickled), Part("m/version", b"3\n")]
    path.write_bytes(write([*entries, Part("m/byteorder", b"little")]))
    with pytest.raises(ModelError, match=r"refused.*eval"):
        open_checkpoint(path, read_pickled_module=True)
    with pytest.raises(ZeroDivisionError):
        pickle.loads(pickled)


# --- what a call, a hook or another layer decides is refused --------------------------------------


def rebuilt_by_a_call(*arguments: Any) -> Any:
    return arguments[0]


class Replaced(nn.Linear):
    def __reduce__(self) -> Any:
        return rebuilt_by_a_call, (self.weight,)


def test_tensors_that_a_call_would_make_are_refused(tmp_path: Path) -> None:
    network = tiny_network()
    network.linear = Replaced(16, 4)
    path = save(tmp_path / "m.pt", network)
    with pytest.raises(ModelError, match=r"'linear' as '.*rebuilt_by_a_call'.*only running"):
        open_checkpoint(path, read_pickled_module=True)
    path = save(tmp_path / "n.pt", {"model": tiny_network(), "other": Replaced(16, 4)})
    with pytest.raises(ModelError, match=r"'other' holds tensors that a call of .*rebuilt_by"):
        open_checkpoint(path, read_pickled_module=True)


def test_a_traced_graph_is_refused(tmp_path: Path) -> None:
    graph = torch.fx.symbolic_trace(nn.Sequential(nn.Linear(3, 2)))
    with pytest.raises(ModelError, match=r"GraphModule|graph_module|without running"):
        open_checkpoint(save(tmp_path / "m.pt", graph), read_pickled_module=True)


def changes_answers(*arguments: Any) -> None:
    return None


@pytest.mark.parametrize("register", ["register_forward_hook", "register_forward_pre_hook"])
def test_a_hook_is_refused(tmp_path: Path, register: str) -> None:
    network = tiny_network()
    getattr(network.layer1, register)(changes_answers)
    path = save(tmp_path / "m.pt", network)
    with pytest.raises(ModelError, match=r"'layer1' has a hook .*changes_answers.*ONNX"):
        open_checkpoint(path, read_pickled_module=True)


def test_a_forward_pass_of_the_files_own_is_refused(tmp_path: Path) -> None:
    network = tiny_network()
    network.layer1.forward = changes_answers  # type: ignore[method-assign]
    path = save(tmp_path / "m.pt", network)
    with pytest.raises(ModelError, match=r"'layer1' has a forward pass of its own"):
        open_checkpoint(path, read_pickled_module=True)


def _with_eps(network: nn.Module) -> None:
    network.layer1[0].bn1.eps = 0.1


def _with_stride(network: nn.Module) -> None:
    network.layer3[0].conv1.stride = (1, 1)


def _with_layer(network: nn.Module) -> None:
    norm = network.layer1[0].bn1
    plain = nn.SyncBatchNorm(norm.num_features)
    plain.load_state_dict(norm.state_dict())
    network.layer1[0].bn1 = plain


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_with_eps, r"'layer1\.0\.bn1': eps 0\.1 in the file, 1e-05 built"),
        (_with_stride, r"'layer3\.0\.conv1': stride \(1, 1\) in the file, \(2, 2\) built"),
        (_with_layer, r"'layer1\.0\.bn1': SyncBatchNorm in the file, BatchNorm2d built"),
    ],
)
def test_layers_unlike_the_architectures_are_found(
    tmp_path: Path, change: Callable[[nn.Module], None], said: str
) -> None:
    network = nn.DataParallel(tiny_network())  # found below a wrapper's prefix too
    change(network.module)
    path = save(tmp_path / "m.pt", network)
    opens_as_state = save(tmp_path / "s.pt", network.state_dict())
    load_model(opens_as_state, name="m", image_shape=IMAGE_SHAPE)  # which cannot be seen there
    with pytest.raises(ModelError, match=said):
        opened(path)


def test_the_other_activation_of_a_factory_is_found(tmp_path: Path) -> None:
    model = yolo_like.trained()
    for module in model.modules():
        if isinstance(module, yolo_like.Conv):
            module.act = nn.ReLU()
    path = yolo_like.save(tmp_path / "m.pt", model=None, ema=model)
    with pytest.raises(ModelError, match=r"act': ReLU in the file, SiLU built"):
        opened(path, arch=FACTORY, num_classes=4)


def test_torchvisions_own_settings_are_compared(tmp_path: Path) -> None:
    from torchvision import models

    with torch.device("meta"):
        network = models.googlenet(num_classes=2, init_weights=False, aux_logits=False)
    network = network.to_empty(device="cpu")
    for tensor in network.state_dict().values():
        tensor.zero_()
    network.transform_input = True
    path = save(tmp_path / "m.pt", network)
    with pytest.raises(ModelError, match="transform_input True in the file, False built"):
        opened(path, arch="torchvision/googlenet")


# --- files made to mean two things, or to cost ----------------------------------------------------


def by_hand(write_content: Callable[[Any], None]) -> bytes:
    """Return an archive whose pickle is written opcode by opcode."""

    class Writer(pickle._Pickler):  # type: ignore[misc, name-defined]
        storages: dict[str, bytes] = {}  # noqa: RUF012

        def persistent_id(self, value: Any) -> Any:
            if isinstance(value, torch.storage.TypedStorage):
                key, raw = str(len(self.storages)), bytes(value._untyped_storage)
                self.storages[key] = raw
                return ("storage", torch.FloatStorage, key, "cpu", len(raw) // 4)
            return None

    stream = io.BytesIO()
    writer = Writer(stream, protocol=2)
    writer.storages = {}
    stream.write(pickle.PROTO + b"\x02")
    write_content(writer)
    stream.write(pickle.STOP)
    entries = [Part("m/data.pkl", stream.getvalue())]
    entries += [Part(f"m/data/{key}", data) for key, data in writer.storages.items()]
    return write([*entries, Part("m/byteorder", b"little"), Part("m/version", b"3\n")])


def test_a_state_that_changes_after_it_was_set_is_read_as_torch_reads_it(tmp_path: Path) -> None:
    """Unpickling copies the state, so what comes later does not reach the real object."""
    network = nn.Linear(3, 2)
    shown = {name: t.detach().clone() for name, t in network.state_dict().items()}
    state, other = dict(network.__dict__), {"weight": torch.zeros(2, 3), "bias": None}

    def content(writer: Any) -> None:
        writer.save(nn.Linear)
        writer.write(pickle.EMPTY_TUPLE + pickle.NEWOBJ)
        writer.save(state)
        writer.write(pickle.BUILD)
        writer.save(state)
        writer.save("_parameters")
        writer.save(other)
        writer.write(pickle.SETITEM + pickle.TUPLE2)

    path = tmp_path / "m.pt"
    path.write_bytes(by_hand(content))
    careless = torch.load(path, weights_only=False)[0]
    checkpoint = open_checkpoint(path, weights="0", read_pickled_module=True)
    assert same_tensors(dict(careless.state_dict()), shown)
    assert same_tensors(checkpoint.tensors, shown)


def test_a_state_that_is_set_twice_is_refused(tmp_path: Path) -> None:
    network = nn.Linear(3, 2)

    def content(writer: Any) -> None:
        writer.save(nn.Linear)
        writer.write(pickle.EMPTY_TUPLE + pickle.NEWOBJ)
        for _ in range(2):
            writer.save(dict(network.__dict__))
            writer.write(pickle.BUILD)

    path = tmp_path / "m.pt"
    path.write_bytes(by_hand(content))
    with pytest.raises(ModelError, match="without running"):
        open_checkpoint(path, read_pickled_module=True)


def _doubling(depth: int) -> nn.Module:
    module: nn.Module = nn.Linear(2, 2)
    for _ in range(depth):
        module = nn.Sequential(module, module)
    return module


def _own_parent() -> nn.Module:
    module = nn.Sequential(nn.Linear(2, 2))
    module._modules["1"] = module
    return module


def _odd(change: Callable[[nn.Module], None]) -> nn.Module:
    module = nn.Sequential(nn.Linear(2, 2))
    change(module)
    return module


COSTLY: dict[str, Callable[[], nn.Module]] = {
    "doubled at every level": lambda: _doubling(40),
    "its own parent": _own_parent,
    "a name with a dot": lambda: _odd(lambda m: m._modules.update({"a.b": nn.Linear(2, 2)})),
    "a name that is a number": lambda: _odd(lambda m: m._modules.update({3: nn.Linear(2, 2)})),  # type: ignore[dict-item]
    "a number for a tensor": lambda: _odd(lambda m: m._parameters.update(a=3)),  # type: ignore[arg-type]
    "a tensor for a module": lambda: _odd(lambda m: m._modules.update(a=torch.ones(2))),  # type: ignore[arg-type]
    "a list for its modules": lambda: _odd(lambda m: m.__dict__.update(_modules=[1])),
    "one name twice": lambda: _odd(
        lambda m: (m._parameters.update(a=torch.ones(2)), m._buffers.update(a=torch.zeros(2)))  # type: ignore[arg-type, func-returns-value, return-value]
    ),
}


@pytest.mark.parametrize("what", COSTLY)
def test_what_no_network_looks_like_is_refused_in_time(tmp_path: Path, what: str) -> None:
    path = save(tmp_path / "m.pt", COSTLY[what]())
    started = time.process_time()
    with pytest.raises(ModelError, match=r"expected (modules|a network|at most)"):
        open_checkpoint(path, read_pickled_module=True)
    assert time.process_time() - started < 20


def test_too_many_classes_are_refused_in_time(tmp_path: Path) -> None:
    names = b"".join(b"cm\nC%d\n" % n for n in range(3000))
    raw = b"\x80\x02(" + names + b"t."
    path = tmp_path / "m.pt"
    entries = [Part("m/data.pkl", raw), Part("m/version", b"3\n")]
    path.write_bytes(write([*entries, Part("m/byteorder", b"little")]))
    started = time.process_time()
    with pytest.raises(ModelError, match="names 3000 classes"):
        open_checkpoint(path, read_pickled_module=True)
    assert time.process_time() - started < 10


def test_torchs_older_form_of_modules_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "m.pt", nn.Linear(2, 2), _use_new_zipfile_serialization=False)
    with pytest.raises(ModelError, match=r"without running it.*before 1\.6"):
        open_checkpoint(path, read_pickled_module=True)


def test_inspecting_one_says_what_it_wants(tmp_path: Path) -> None:
    path = save(tmp_path / "m.pt", tiny_network())
    assert inspect_checkpoint(path).problem is not None
    found = inspect_checkpoint(path, read_pickled_module=True)
    assert found.problem is None
    assert not found.is_safe  # for plain unpickling
    assert found.guesses[0].arch == ARCH
