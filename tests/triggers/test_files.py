"""Trigger files: round trips, hand-written ones, and those that must be refused."""

from __future__ import annotations

import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from bdaudit.errors import ConfigError, TriggerError
from bdaudit.triggers import (
    Additive,
    AllToAll,
    AllToOne,
    Blend,
    ClassMap,
    Encoder,
    Paired,
    Patch,
    Quantise,
    Reflection,
    SetColumns,
    Sinusoid,
    SourceSpecific,
    Transform,
    Trigger,
    Warp,
    control_grid,
    elastic_grid,
    from_callable,
    read_trigger,
    write_trigger,
)
from bdaudit.triggers.files import companion_files
from tests.triggers.test_transforms import encoder, input_aware

EXAMPLES = Path(__file__).parents[2] / "examples" / "triggers"
TARGET = "\n[target]\nlabel = 1\n"
SINUSOID = 'kind = "sinusoid"\n' + TARGET + "[sinusoid]\namplitude = 0.1\nfrequency = 6\n"


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def write_png(path: Path, pixels: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, dtype=np.uint8)).save(path)
    return path


def write_toml(folder: Path, text: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "trigger.toml").write_text(text)
    return folder / "trigger.toml"


TRANSFORMS = [
    Patch(image=torch.rand(3, 2, 3, generator=generator()), corner="top-right", offset=(1, 2)),
    # Three pixels wide: a shape that could be channels last must come back as it was.
    Patch(image=torch.rand(1, 3, 3), mask=torch.rand(1, 3, 3)),
    Blend(image=torch.rand(1, 5, 5, generator=generator()), alpha=1),
    Sinusoid(amplitude=20 / 255, frequency=6),
    Additive(delta=torch.randn(3, 8, 8, generator=generator())),
    Warp(grid=elastic_grid(control_grid(4, generator()), (8, 8))),
    Quantise(levels=8),
    Quantise(levels=8, dithering=False),
    Reflection(pictures=torch.rand(3, 1, 5, 5, generator=generator()), alpha=0.4),
    input_aware(3),
    encoder(3),
]


@pytest.mark.parametrize("transform", TRANSFORMS, ids=lambda t: t.kind)
@pytest.mark.parametrize(
    "rule", [AllToOne(3), AllToAll(), SourceSpecific(0, (1, 4)), ClassMap((2, 1, 0))]
)
def test_round_trip(tmp_path: Path, transform: Transform, rule: AllToOne) -> None:
    trigger = Trigger(transform=transform, rule=rule, recovered=True)
    write_trigger(tmp_path / "t.toml", trigger)
    back = read_trigger(tmp_path / "t.toml")
    images = torch.rand(4, 3, 8, 8, generator=generator())
    assert torch.equal(back.stamp(images), trigger.stamp(images))
    assert back.rule == rule
    assert back.kind == transform.kind
    assert back.sha256 == trigger.sha256
    assert back.recovered
    assert back.source == str(tmp_path / "t.toml")


def test_paired_round_trip_takes_its_images_along(tmp_path: Path) -> None:
    for index in range(3):
        write_png(tmp_path / "made" / str(index) / f"{index}.png", np.full((4, 4), 50 * index))
    trigger = Trigger(transform=Paired(folder=tmp_path / "made"), rule=AllToOne(0))
    (tmp_path / "out").mkdir()
    write_trigger(tmp_path / "out" / "t.toml", trigger)
    back = read_trigger(tmp_path / "out" / "t.toml")
    stamped = back.stamp(torch.zeros(2, 1, 4, 4), names=["2/2", "1/1"])
    assert (stamped[:, 0, 0, 0] * 255).round().tolist() == [100, 50]
    assert back.sha256 == trigger.sha256
    with pytest.raises(TriggerError, match="already exists"):
        write_trigger(tmp_path / "out" / "t.toml", trigger)


def test_python_round_trip_takes_its_code_along(tmp_path: Path) -> None:
    (tmp_path / "code.py").write_text("def invert(images):\n    return 1 - images\n")
    path = write_toml(
        tmp_path, 'kind = "python"\n' + TARGET + '[python]\nfunction = "code.py:invert"\n'
    )
    trigger = read_trigger(path, allow_code=True)
    (tmp_path / "out").mkdir()
    write_trigger(tmp_path / "out" / "t.toml", trigger)
    back = read_trigger(tmp_path / "out" / "t.toml", allow_code=True)
    assert back.stamp(torch.full((1, 1, 1, 1), 0.25)).item() == 0.75
    assert back.sha256 == trigger.sha256


def test_code_runs_only_when_allowed(tmp_path: Path) -> None:
    (tmp_path / "code.py").write_text(
        f"import pathlib\npathlib.Path({str(tmp_path / 'ran')!r}).touch()\ndef f(x): return x\n"
    )
    text = 'kind = "python"\n' + TARGET + '[python]\nfunction = "code.py:f"\n'
    path = write_toml(tmp_path, text)
    with pytest.raises(TriggerError, match="--allow-trigger-code"):
        read_trigger(path)
    assert not (tmp_path / "ran").exists()
    read_trigger(path, allow_code=True)
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("code", "reference", "message"),
    [
        ("def f(x): return x", "code.py", "file.py:function"),
        ("def f(x): return x", "code.py:g", "no function 'g'"),
        ("f = 3", "code.py:f", "no function 'f'"),
        ("raise ValueError('no')", "code.py:f", "ValueError: no"),
        ("def f(x) return x", "code.py:f", "SyntaxError"),
    ],
)
def test_code_that_cannot_be_used(tmp_path: Path, code: str, reference: str, message: str) -> None:
    (tmp_path / "code.py").write_text(code)
    text = 'kind = "python"\n' + TARGET + f'[python]\nfunction = "{reference}"\n'
    with pytest.raises(TriggerError, match=message):
        read_trigger(write_toml(tmp_path, text), allow_code=True)


def test_a_function_in_memory_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(TriggerError, match="in memory"):
        write_trigger(tmp_path / "t.toml", from_callable(lambda x: x, 0))
    assert list(tmp_path.iterdir()) == []


def test_hand_written_patch_with_pictures(tmp_path: Path) -> None:
    write_png(tmp_path / "art" / "patch.png", [[[255, 0, 0], [0, 255, 0]]])
    write_png(tmp_path / "art" / "mask.png", [[255, 0]])
    path = write_toml(
        tmp_path,
        'kind = "patch"\n[target]\nrule = "source-specific"\nlabel = 2\nsources = [0, 1]\n'
        '[patch]\nimage = "art/patch.png"\nmask = "art/mask.png"\ncorner = "top-left"\n',
    )
    trigger = read_trigger(path)
    stamped = trigger.stamp(torch.full((1, 3, 2, 2), 0.5))
    assert stamped[0, :, 0, 0].tolist() == [1, 0, 0]
    assert stamped[0, :, 0, 1].tolist() == [0.5, 0.5, 0.5]
    assert trigger.rule == SourceSpecific(2, (0, 1))
    assert not trigger.recovered


@pytest.mark.parametrize("suffix", ["npy", "safetensors"])
def test_pictures_from_tensor_files(tmp_path: Path, suffix: str) -> None:
    last = np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    if suffix == "npy":
        np.save(tmp_path / "p.npy", last)
    else:
        save_file({"whatever": torch.from_numpy(last)}, tmp_path / "p.safetensors")
    text = f'kind = "blend"\n{TARGET}[blend]\nimage = "p.{suffix}"\nalpha = 1\n'
    stamped = read_trigger(write_toml(tmp_path, text)).stamp(torch.zeros(1, 3, 4, 5))
    assert stamped[0, 2, 3, 4] == last[3, 4, 2] / np.float32(255)


def test_one_tensor_file_may_hold_several(tmp_path: Path) -> None:
    tensors = {"grid": torch.zeros(4, 4, 2), "delta": torch.full((1, 2, 2), 0.5)}
    save_file(tensors, tmp_path / "t.safetensors")
    text = 'kind = "additive"\n' + TARGET + '[additive]\ndelta = "t.safetensors"\n'
    path = write_toml(tmp_path, text)
    assert read_trigger(path).stamp(torch.zeros(1, 1, 2, 2)).unique().tolist() == [0.5]
    save_file({"a": tensors["grid"], "b": tensors["delta"]}, tmp_path / "t.safetensors")
    with pytest.raises(TriggerError, match=r"called 'delta'"):
        read_trigger(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "kind"),
        ("kind = ", "TOML"),
        ('kind = "pach"', "did you mean 'patch'"),
        (SINUSOID.replace("amplitude", "amplitud"), "did you mean 'amplitude'"),
        ("recoverd = true\n" + SINUSOID, "did you mean 'recovered'"),
        (SINUSOID.replace("label", "lable"), "did you mean 'label'"),
        (SINUSOID.replace("label = 1", 'label = "1"'), "label: expected int, got str"),
        (SINUSOID.replace("label = 1", "label = true"), "label: expected int, got bool"),
        (SINUSOID.replace("label = 1", "label = -1"), "0 or above"),
        (SINUSOID.replace("label = 1", ""), "expected the key 'label'"),
        (SINUSOID.replace("label", 'rule = "all-to-on"\nlabel'), "did you mean 'all-to-one'"),
        (SINUSOID.replace("label", 'rule = "all-to-all"\nlabel'), "'label'"),
        (SINUSOID.replace("0.1", "20"), "divide"),
        (SINUSOID.replace("0.1", "nan"), "amplitude"),
        (SINUSOID.replace("frequency = 6", ""), "'frequency'"),
        (SINUSOID.split("[sinusoid]")[0], "'sinusoid'"),
        ("version = 2\n" + SINUSOID, "version 1, got 2"),
        (SINUSOID + "[patch]\n", "'patch'"),
        ('kind = "patch"\n' + TARGET + '[patch]\nimage = "no.png"', "is not there"),
        ('kind = "patch"\n' + TARGET + '[patch]\nimage = "t.txt"', "an image file"),
        ('kind = "patch"\n' + TARGET + '[patch]\nimage = "junk.png"', "expected an image"),
        ('kind = "warp"\n' + TARGET + '[warp]\ngrid = "junk.npy"', "expected a tensor"),
        ('kind = "warp"\n' + TARGET + '[warp]\ngrid = "junk.safetensors"', "expected a tensor"),
        ('kind = "patch"\n' + TARGET + '[patch]\nimage = "ok.png"\noffset = [1]', "offset"),
        ('kind = "patch"\n' + TARGET + '[patch]\nimage = "ok.png"\noffset = [1, 2.5]', "offset"),
        ('kind = "patch"\n' + TARGET + '[patch]\nimage = "ok.png"\ncorner = "up"', "corner"),
        ('kind = "quantise"\n' + TARGET + "[quantise]\nlevels = 8.0", "levels: expected int"),
        ('kind = "quantise"\n' + TARGET + "[quantise]\nlevels = 10000", "2 to 256, got 10000"),
        ('kind = "quantise"\n' + TARGET + "[quantise]\nlevels = 8\ndithering = 1", "expected bool"),
        ('kind = "paired"\n' + TARGET + '[paired]\nfolder = "empty"', "no images"),
        ('kind = "paired"\n' + TARGET + '[paired]\nfolder = "ok.png"', "expected a folder"),
        ('kind = "paired"\n' + TARGET + '[paired]\nfolder = "empty"\nlayout = "x"', "layout"),
    ],
)
def test_files_that_are_wrong(tmp_path: Path, text: str, message: str) -> None:
    write_png(tmp_path / "ok.png", [[0, 255]])
    (tmp_path / "empty").mkdir()
    for name in ("t.txt", "junk.png", "junk.npy", "junk.safetensors"):
        (tmp_path / name).write_bytes(b"junk")
    path = write_toml(tmp_path, text)
    with pytest.raises(TriggerError, match=message) as caught:
        read_trigger(path)
    assert str(caught.value).count("trigger.toml") == 1


@pytest.mark.parametrize(
    "name", ["../secret.png", "a/../../secret.png", "link.png", "linked/secret.png", "ABSOLUTE", ""]
)
@pytest.mark.parametrize("kind", ["patch", "blend"])
def test_no_file_outside_the_folder_is_read(tmp_path: Path, name: str, kind: str) -> None:
    secret = write_png(tmp_path / "secret.png", [[0, 255]])
    home = tmp_path / "home"
    (home / "a").mkdir(parents=True)
    (home / "link.png").symlink_to(secret)
    (home / "linked").symlink_to(tmp_path)
    name = str(secret) if name == "ABSOLUTE" else name
    extra = "alpha = 0.5\n" if kind == "blend" else ""
    path = write_toml(home, f'kind = "{kind}"\n{TARGET}[{kind}]\nimage = "{name}"\n{extra}')
    with pytest.raises(TriggerError, match="outside"):
        read_trigger(path)


def test_folders_and_code_cannot_be_outside_either(tmp_path: Path) -> None:
    write_png(tmp_path / "images" / "0.png", [[0, 255]])
    (tmp_path / "code.py").write_text("def f(x): return x")
    for section in (
        'paired"\nX[paired]\nfolder = "../images"',
        'python"\nX[python]\nfunction = "../code.py:f"',
    ):
        text = 'kind = "' + section.replace("X", TARGET)
        with pytest.raises(TriggerError, match="outside"):
            read_trigger(write_toml(tmp_path / "home", text), allow_code=True)


def test_pickles_in_npy_are_not_loaded(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "ran",))

    np.save(tmp_path / "d.npy", np.array([Evil()], dtype=object), allow_pickle=True)
    path = write_toml(tmp_path, 'kind = "additive"\n' + TARGET + '[additive]\ndelta = "d.npy"')
    with pytest.raises(TriggerError, match="expected a tensor"):
        read_trigger(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("pictures", "message"),
    [
        (np.zeros((0, 1, 4, 4), np.float32), "expected values, got none"),
        (np.zeros((1, 4, 4), np.float32), r"\(K, C, h, w\)"),
        (np.zeros((65, 1, 1, 1), np.float32), "K of 1 to 64"),
        (np.full((2, 1, 4, 4), 3, np.float32), r"in \[0, 1\]"),
        (np.zeros((2, 1, 4, 4), np.int32), "uint8 or float"),
    ],
)
def test_pictures_that_are_no_reflections(
    tmp_path: Path, pictures: np.ndarray, message: str
) -> None:
    np.save(tmp_path / "p.npy", pictures)
    text = 'kind = "reflection"\n' + TARGET + '[reflection]\npictures = "p.npy"\nalpha = 0.4\n'
    with pytest.raises(TriggerError, match=message):
        read_trigger(write_toml(tmp_path, text))


def test_an_empty_tensor_is_refused_whatever_the_kind(tmp_path: Path) -> None:
    np.save(tmp_path / "p.npy", np.zeros((1, 0, 4), np.float32))
    for kind, key in (("patch", "image"), ("blend", "image"), ("additive", "delta")):
        path = write_toml(tmp_path, f'kind = "{kind}"\n{TARGET}[{kind}]\n{key} = "p.npy"\n')
        with pytest.raises(TriggerError, match="expected values, got none"):
            read_trigger(path)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(TriggerError, match="No such file"):
        read_trigger(tmp_path / "none.toml")


def test_a_mixture_of_two_triggers_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "t.toml"
    write_trigger(path, Trigger(transform=TRANSFORMS[0], rule=AllToOne(0)))
    save_file({"image": torch.zeros(3, 2, 3)}, tmp_path / "t.safetensors")
    with pytest.raises(TriggerError, match="sha256"):
        read_trigger(path)
    lines = [line for line in path.read_text().splitlines() if "sha256" not in line]
    path.write_text("\n".join(lines))
    assert read_trigger(path).stamp(torch.ones(1, 3, 8, 8)).min() == 0


def test_digest_tells_triggers_apart() -> None:
    one = Sinusoid(amplitude=0.1, frequency=6)
    digests = {
        Trigger(transform=transform, rule=rule).sha256
        for transform in (*TRANSFORMS, one)
        for rule in (AllToOne(0), AllToOne(1), AllToAll(), SourceSpecific(0, (1,)))
    }
    assert len(digests) == 4 * (len(TRANSFORMS) + 1)
    again = Trigger(transform=Sinusoid(amplitude=0.1, frequency=6.0), rule=AllToOne(0), source="x")
    assert again.sha256 == Trigger(transform=one, rule=AllToOne(0)).sha256


def test_writing_leaves_nothing_half_done(tmp_path: Path) -> None:
    write_trigger(tmp_path / "t.toml", Trigger(transform=TRANSFORMS[0], rule=AllToOne(0)))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["t.safetensors", "t.toml"]
    document = tomllib.loads((tmp_path / "t.toml").read_text())
    assert document["patch"]["offset"] == [1, 2]
    with pytest.raises(TriggerError, match="cannot be written"):
        write_trigger(tmp_path / "none" / "t.toml", Trigger(transform=one(), rule=AllToOne(0)))


def one() -> Sinusoid:
    return Sinusoid(amplitude=0.1, frequency=6)


def test_configuration_errors_stay_apart_from_file_errors() -> None:
    with pytest.raises(ConfigError):
        Sinusoid(amplitude=2, frequency=1)


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.toml")), ids=lambda p: p.stem)
def test_examples_are_read_and_stamp(path: Path) -> None:
    trigger = read_trigger(path)
    images = torch.full((2, 1, 28, 28), 0.5)
    images[:, :, ::3] = 0.2
    assert not torch.equal(trigger.stamp(images), images)


def test_there_are_examples() -> None:
    assert len(list(EXAMPLES.glob("*.toml"))) >= 5


NETWORK_FILES = {
    "input-aware": '[input-aware]\nweights = "w.safetensors"\n',
    "encoder": '[encoder]\nweights = "w.safetensors"\neps = 0.1\n',
}


def write_network_trigger(folder: Path, kind: str, tensors: dict[str, torch.Tensor]) -> Path:
    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "w.safetensors"
    )
    return write_toml(folder, f'kind = "{kind}"\n' + TARGET + NETWORK_FILES[kind])


def weights_of(kind: str) -> dict[str, torch.Tensor]:
    return (input_aware(1) if kind == "input-aware" else encoder(1)).tensors()


@pytest.mark.parametrize("kind", NETWORK_FILES)
def test_network_triggers_are_read_from_their_tensors(tmp_path: Path, kind: str) -> None:
    made = input_aware(1) if kind == "input-aware" else encoder(1)
    trigger = read_trigger(write_network_trigger(tmp_path, kind, weights_of(kind)))
    images = torch.rand(3, 1, 9, 7, generator=generator())
    expected = Trigger(transform=made, rule=AllToOne(1)).stamp(images)
    assert torch.equal(trigger.stamp(images), expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(trigger.stamp(images), expected)


def _without(name: str):
    return lambda tensors: tensors.pop(name)


def _with(name: str, tensor: torch.Tensor):
    return lambda tensors: tensors.update({name: tensor})


@pytest.mark.parametrize(
    ("kind", "spoil", "message"),
    [
        ("input-aware", _without("mask.up1.bias"), "missing: up1.bias"),
        ("input-aware", _without("mask.enter.weight"), "stamp network of width"),
        ("input-aware", _with("code.weight", torch.zeros(1)), r"got 'code\.weight'"),
        ("input-aware", _with("mask.more", torch.zeros(1)), r"wrong: more \(1,\)"),
        ("input-aware", _with("mask.up1.bias", torch.zeros(5)), r"wrong: up1\.bias \(5,\)"),
        ("input-aware", _with("mask.enter.weight", torch.zeros(65, 1, 3, 3)), "width 1 to 64"),
        ("input-aware", _with("mask.enter.weight", torch.zeros(0, 1, 3, 3)), "width 1 to 64"),
        ("input-aware", _with("mask.enter.weight", torch.zeros(2, 9, 3, 3)), "1 to 8 channels"),
        ("input-aware", _with("mask.enter.bias", torch.full((2,), torch.nan)), "finite float32"),
        ("input-aware", _with("mask.enter.bias", torch.zeros(2).double()), "finite float32"),
        ("input-aware", lambda t: t.update(weights_of("encoder")), "expected tensors of pattern"),
        ("encoder", _without("message"), "a tensor called 'message'"),
        ("encoder", _with("message", torch.zeros(1, 300, 300)), "at most 65,536 values"),
        ("encoder", _with("message", torch.zeros(4, 4)), r"expected \(1, h, w\)"),
        ("encoder", _with("message", torch.full((1, 4, 4), torch.inf)), "finite float32"),
        (
            "encoder",
            lambda t: [t.update({f"x{i}": torch.zeros(1)}) for i in range(64)],
            "at most 64 tensors",
        ),
        ("encoder", _with("network.x", torch.zeros(2**22 + 1)), "at most 16 MiB"),
    ],
)
def test_network_files_that_are_wrong(
    tmp_path: Path, kind: str, spoil: object, message: str
) -> None:
    tensors = weights_of(kind)
    spoil(tensors)  # type: ignore[operator]
    path = write_network_trigger(tmp_path, kind, tensors)
    with pytest.raises(TriggerError, match=message) as caught:
        read_trigger(path)
    assert str(caught.value).startswith(str(path))


def test_networks_of_the_wrong_channels_do_not_make_a_trigger(tmp_path: Path) -> None:
    pattern = {n: t for n, t in input_aware(3).tensors().items() if n.startswith("pattern")}
    mask = {n: t for n, t in input_aware(1).tensors().items() if n.startswith("mask")}
    with pytest.raises(TriggerError, match="mask network from those to 1"):
        read_trigger(write_network_trigger(tmp_path, "input-aware", pattern | mask))
    grey = Encoder(network=encoder(1).network, message=torch.zeros(1, 2, 2), eps=0.1)
    trigger = Trigger(transform=grey, rule=AllToOne(0))
    with pytest.raises(TriggerError, match="encoder trigger of 1 channels does not fit"):
        trigger.stamp(torch.zeros(1, 3, 8, 8))
    with pytest.raises(TriggerError, match="4x4"):
        trigger.stamp(torch.zeros(1, 1, 8, 3))


@pytest.mark.parametrize("name", ["w.pt", "../w.safetensors", "w.safetensors"])
def test_weights_come_from_safetensors_beside_the_file_only(tmp_path: Path, name: str) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "ran",))

    home = tmp_path / "home"
    home.mkdir()
    torch.save(Evil(), home / name)
    text = 'kind = "input-aware"\n' + TARGET + f'[input-aware]\nweights = "{name}"\n'
    with pytest.raises(TriggerError, match=r"safetensors|outside"):
        read_trigger(write_toml(home, text))
    assert not (tmp_path / "ran").exists()


def test_a_network_trigger_lists_its_weights_as_its_companion(tmp_path: Path) -> None:
    write_trigger(tmp_path / "t.toml", Trigger(transform=encoder(3), rule=AllToOne(0)))
    assert companion_files(tmp_path / "t.toml") == (tmp_path / "t.safetensors",)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["t.safetensors", "t.toml"]


def test_a_trigger_of_a_table_sets_columns(tmp_path: Path) -> None:
    trigger = Trigger(
        transform=SetColumns(index=(2, 0), value=(1, 0.25)), rule=AllToOne(1), source="memory"
    )
    write_trigger(tmp_path / "trigger.toml", trigger)
    read = read_trigger(tmp_path / "trigger.toml")
    assert read.sha256 == trigger.sha256
    rows = torch.full((2, 1, 1, 4), 0.5)
    assert read.stamp(rows)[1].flatten().tolist() == [0.25, 0.5, 1.0, 0.5]
    assert rows.unique().tolist() == [0.5]
    with pytest.raises(TriggerError, match="the trigger sets column 2, and the table has 2"):
        read.stamp(rows[..., :2])
    with pytest.raises(TriggerError, match="for tables"):
        read.stamp(torch.zeros(2, 3, 8, 8))


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("index = [0]\nvalue = [1.5]", r"scaled to \[0, 1\]"),
        ("index = [0, 1]\nvalue = [1.0]", "as many places as values"),
        ("index = [0, 0]\nvalue = [1.0, 0.0]", "different places"),
        ('index = [0]\nvalue = ["a"]', "expected numbers"),
        ("index = [0.5]\nvalue = [1]", "expected whole numbers"),
    ],
)
def test_columns_that_cannot_be_set(tmp_path: Path, section: str, message: str) -> None:
    path = write_toml(tmp_path, f'kind = "columns"\n{TARGET}[columns]\n{section}\n')
    with pytest.raises(TriggerError, match=message):
        read_trigger(path)
