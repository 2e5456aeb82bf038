"""Triggers of other toolboxes as trigger files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torchvision import transforms

from bdaudit.errors import InputError, TriggerError
from bdaudit.triggers import import_trigger, read_trigger
from tests.models.checkpoints import RunsACommand

IMAGES = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def backdoorbox() -> tuple[torch.Tensor, torch.Tensor]:
    """Pattern and weight as the toolbox's own examples make them."""
    pattern = torch.zeros((3, 8, 8), dtype=torch.uint8)
    pattern[:, -3:, -3:] = 255
    weight = torch.zeros((1, 8, 8), dtype=torch.float32)
    weight[:, -3:, -3:] = 0.5
    return pattern, weight


def save(path: Path, values: torch.Tensor) -> Path:
    if path.suffix == ".npy":
        np.save(path, values.numpy())
    else:
        torch.save(values, path)
    return path


@pytest.mark.parametrize("suffix", [".pt", ".npy"])
@pytest.mark.parametrize("whole", [False, True])
def test_pattern_and_weight_of_backdoorbox(tmp_path: Path, suffix: str, whole: bool) -> None:
    pattern, weight = backdoorbox()
    if whole:
        weight = (weight > 0).to(torch.uint8)  # a mask of 0 and 1, not of 255
    files = [save(tmp_path / f"{name}{suffix}", t) for name, t in (("p", pattern), ("w", weight))]
    out = import_trigger(files[0], target=2, weight=files[1])
    assert out == tmp_path / "trigger.toml"
    trigger = read_trigger(out)
    expected = weight * (pattern / 255) + (1 - weight.float()) * IMAGES
    torch.testing.assert_close(trigger.stamp(IMAGES), expected)
    assert trigger.target_label == 2


def test_a_picture_and_its_mask(tmp_path: Path) -> None:
    pattern, _ = backdoorbox()
    Image.fromarray(pattern.permute(1, 2, 0).numpy()).save(tmp_path / "p.png")
    Image.fromarray(pattern[0].numpy()).save(tmp_path / "w.png")
    out = import_trigger(
        tmp_path / "p.png", target=0, weight=tmp_path / "w.png", out=tmp_path / "t.toml"
    )
    stamped = read_trigger(out).stamp(IMAGES)
    assert float(stamped[..., -3:, -3:].min()) == 1.0
    assert torch.equal(stamped[..., :5, :], IMAGES[..., :5, :])


def tree(folder: Path) -> Path:
    for index, label in ((0, 1), (3, 2)):
        place = folder / "bd_test_dataset" / str(label)
        place.mkdir(parents=True)
        Image.fromarray(np.zeros((4, 4, 3), dtype=np.uint8)).save(place / f"{index}.png")
    return folder


def test_a_record_of_backdoorbench(tmp_path: Path) -> None:
    out = import_trigger(tree(tmp_path / "record"), target=7)
    assert out == tmp_path / "record" / "trigger.toml"
    trigger = read_trigger(out)
    assert (trigger.kind, trigger.target_label) == ("paired", 7)
    other = import_trigger(tmp_path / "record" / "bd_test_dataset", target=7)
    assert other == out


REFUSED: dict[str, tuple[Any, Any, str]] = {
    "no weight": (torch.zeros(3, 8, 8), None, "expected its weight too"),
    "another size": (torch.zeros(3, 8, 8), torch.zeros(1, 4, 4), "like the pattern"),
    "not an image": (torch.zeros(8), torch.zeros(1, 8, 8), r"expected \(C, H, W\)"),
    "a weight above 1": (torch.zeros(3, 8, 8), torch.full((1, 8, 8), 2.0), "mask"),
    "a mapping": ({"pattern": torch.zeros(3, 8, 8)}, torch.zeros(1, 8, 8), "expected one tensor"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_imported(tmp_path: Path, what: str) -> None:
    pattern, weight, said = REFUSED[what]
    torch.save(pattern, tmp_path / "p.pt")
    if weight is not None:
        torch.save(weight, tmp_path / "w.pt")
    with pytest.raises(TriggerError, match=said):
        import_trigger(
            tmp_path / "p.pt", target=0, weight=None if weight is None else tmp_path / "w.pt"
        )
    assert not (tmp_path / "trigger.toml").exists()


# -- attack settings of BackdoorBench -----------------------------------------------------------


def repository(folder: Path, attack: str, **settings: Any) -> Path:
    """Settings where BackdoorBench keeps them, written by the library that it reads them with."""
    place = folder / "config" / "attack" / attack
    place.mkdir(parents=True, exist_ok=True)
    content = {"attack_label_trans": "all2one", "attack_target": 3, "pratio": 0.1, **settings}
    (place / "default.yaml").write_text(yaml.safe_dump({**content, "attack": attack}))
    return place / "default.yaml"


def as_bytes(images: torch.Tensor) -> np.ndarray:
    return (images * 255).round().permute(0, 2, 3, 1).numpy().astype(np.uint8)


def close_to(stamped: torch.Tensor, expected: np.ndarray) -> None:
    """Equal but for the bytes that BackdoorBench cuts its images to."""
    theirs = torch.tensor(np.clip(expected, 0, 255)).permute(0, 3, 1, 2).float() / 255
    torch.testing.assert_close(stamped, theirs, atol=1.01 / 255, rtol=0)


BYTES = (IMAGES * 255).round() / 255


def test_settings_of_a_patch(tmp_path: Path) -> None:
    picture = np.zeros((8, 8, 3), dtype=np.uint8)
    picture[5:, 5:] = (255, 0, 9)  # 0 in a channel leaves that channel of the image
    place = tmp_path / "resource" / "badnet"
    place.mkdir(parents=True)
    Image.fromarray(picture).save(place / "t.png")
    config = repository(tmp_path, "badnet", patch_mask_path="./resource/badnet/t.png")
    out = import_trigger(config, out=tmp_path / "t.toml")
    trigger = read_trigger(out)
    assert (trigger.kind, trigger.target_label) == ("patch", 3)
    clean = as_bytes(BYTES)
    close_to(trigger.stamp(BYTES), clean * (picture == 0) + picture * (picture > 0))


def test_settings_of_a_blend_and_of_stripes(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "kitty.png")
    blended = repository(
        tmp_path, "blended", attack_trigger_img_path="kitty.png", attack_test_blended_alpha=0.2
    )
    stamped = read_trigger(import_trigger(blended)).stamp(BYTES)
    close_to(stamped, 0.8 * as_bytes(BYTES) + 0.2 * picture)

    sig = import_trigger(repository(tmp_path, "sig", sig_delta=40, sig_f=6))
    stripes = 40 * np.sin(2 * np.pi * np.arange(8) * 6 / 8)
    close_to(read_trigger(sig).stamp(BYTES), as_bytes(BYTES) + stripes[None, None, :, None])


def test_settings_of_a_quantisation(tmp_path: Path) -> None:
    trigger = read_trigger(import_trigger(repository(tmp_path, "bpp", squeeze_num=8)))
    close_to(trigger.stamp(BYTES), np.round(as_bytes(BYTES) / 255 * 7) / 7 * 255)
    dithered = read_trigger(
        import_trigger(repository(tmp_path, "bpp", squeeze_num=8, dithering=True))
    )
    assert dithered.transform.settings() == {"levels": 8, "dithering": True}
    with pytest.raises(TriggerError, match="2 to 256, got 1000"):
        import_trigger(repository(tmp_path, "bpp", squeeze_num=1000))
    with pytest.raises(TriggerError, match="squeeze_num"):
        import_trigger(repository(tmp_path, "bpp", squeeze_num="many"))


@pytest.mark.parametrize("shape", [(8, 8), (8, 8, 3), (2, 8, 8, 3)])
def test_settings_of_a_low_frequency_pattern(tmp_path: Path, shape: tuple[int, ...]) -> None:
    pattern = np.random.default_rng(0).integers(-20, 20, shape).astype(np.float32)
    np.save(tmp_path / "lf.npy", pattern)
    config = repository(tmp_path, "lowFrequency", lowFrequencyPatternPath="lf.npy")
    first = pattern[0] if pattern.ndim == 4 else pattern
    added = first if first.ndim == 3 else first[:, :, None]
    close_to(read_trigger(import_trigger(config)).stamp(BYTES), as_bytes(BYTES) + added)


def test_a_picture_of_another_size_is_brought_to_the_data_sets(tmp_path: Path) -> None:
    picture = np.zeros((16, 16, 3), dtype=np.uint8)
    picture[8:, 8:] = 255
    Image.fromarray(picture).save(tmp_path / "t.png")
    config = repository(tmp_path, "badnet", patch_mask_path="t.png", img_size=[8, 8, 3])
    trigger = read_trigger(import_trigger(config))
    small = np.asarray(transforms.Resize((8, 8))(Image.fromarray(picture)))
    clean = as_bytes(BYTES)
    close_to(trigger.stamp(BYTES), clean * (small == 0) + small * (small > 0))


def test_a_record_says_its_target_itself(tmp_path: Path) -> None:
    record = tree(tmp_path / "record" / "x")
    settings = {"attack": "wanet", "attack_target": 5, "terminal_info": ["a.py"], "lr": 0.1}
    torch.save(settings, record / "info.pickle")
    assert read_trigger(import_trigger(record)).target_label == 5
    with pytest.raises(TriggerError, match="attack_target is 5"):
        import_trigger(record, target=4)
    torch.save({**settings, "attack_label_trans": "all2all"}, record / "info.pickle")
    assert read_trigger(import_trigger(record)).rule.name == "all-to-all"
    (record / "info.pickle").unlink()
    with pytest.raises(TriggerError, match="--target N"):
        import_trigger(record)
    torch.save(
        {"attack": "sig", "attack_target": 1, "sig_delta": 20, "sig_f": 6}, record / "i.pickle"
    )
    assert read_trigger(import_trigger(record / "i.pickle")).kind == "sinusoid"


UNREADABLE = {
    "attack: wanet\nattack_target: 0\n": "bd_test_dataset",
    "attack: sig\nsig_delta: 40\nattack_target: 0\n": "number for sig_f",
    "attack: sig\nsig_delta: 40\nsig_f: 6\n": "give --target",
    "attack: sig\nsig_delta: 4000\nsig_f: 6\nattack_target: 0\n": "amplitude",
    "attack: badnet\nattack_target: 0\n": "patch_mask_path",
    "attack: badnet\nattack_target: 0\npatch_mask_path: ../x.png\n": r"without '\.\.'",
    "attack: badnet\nattack_target: 0\npatch_mask_path: /etc/x.png\n": "outside the folder",
    "attack: badnet\nattack_target: 0\npatch_mask_path: no.png\n": "not in",
    "a: &a [1]\nb: *a\n": "aliases",
    "!!python/object/apply:os.system ['true']\n": "in YAML",
    "- sig\n": "got a list",
    "attack: sig\nattack_label_trans: all2all\nattack_label_shift_amount: 2\n": "not read here",
}


@pytest.mark.parametrize("text", UNREADABLE)
def test_settings_that_cannot_be_read(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(TriggerError, match=UNREADABLE[text]):
        import_trigger(tmp_path / "a.yaml")
    assert not (tmp_path / "trigger.toml").exists()


# -- TrojanZoo and TrojAI -----------------------------------------------------------------------


def mark(folder: Path, name: str = "square_white_tar4_alpha0.50_mark(3,2).npy") -> Path:
    values = torch.rand(4, 3, 2, generator=torch.Generator().manual_seed(2))
    np.save(folder / name, values.numpy())
    return folder / name


def test_a_mark_of_trojanzoo(tmp_path: Path) -> None:
    path = mark(tmp_path)
    trigger = read_trigger(import_trigger(path, offset=(1, 4)))
    values = torch.from_numpy(np.load(path))
    expected = IMAGES.clone()
    under = IMAGES[..., 1:4, 4:6]
    expected[..., 1:4, 4:6] = under + 0.5 * values[-1] * (values[:-1] - under)
    torch.testing.assert_close(trigger.stamp(IMAGES), expected)
    assert trigger.target_label == 4
    with pytest.raises(TriggerError, match="--offset ROWS,COLUMNS"):
        import_trigger(path)
    with pytest.raises(TriggerError, match="target 4"):
        import_trigger(path, offset=(0, 0), target=1)
    with pytest.raises(TriggerError, match="random place"):
        import_trigger(mark(tmp_path, "randompos_a_tar4_alpha1.00_mark(3,2).npy"), offset=(0, 0))
    with pytest.raises(TriggerError, match="cannot be seen at all"):
        import_trigger(mark(tmp_path, "a_tar4_alpha0.00_mark(3,2).npy"), offset=(0, 0))
    with pytest.raises(TriggerError, match="mark of 9x9"):
        import_trigger(mark(tmp_path, "a_tar4_alpha1.00_mark(9,9).npy"), offset=(0, 0))


def test_trojai_is_refused_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"TRIGGERS": [{"type": "polygon"}], "POISONED": true}')
    for given in (tmp_path, tmp_path / "config.json"):
        with pytest.raises(TriggerError, match="TrojAI"):
            import_trigger(given, target=0)
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(TriggerError, match="some other JSON"):
        import_trigger(tmp_path / "config.json", target=0)


def test_a_pickle_that_runs_something(tmp_path: Path) -> None:
    torch.save(RunsACommand(tmp_path / "ran"), tmp_path / "p.pt")
    torch.save(torch.zeros(1, 8, 8), tmp_path / "w.pt")
    with pytest.raises(InputError, match="nothing was run"):
        import_trigger(tmp_path / "p.pt", target=0, weight=tmp_path / "w.pt")
    assert not (tmp_path / "ran").exists()


def test_settings_that_run_something(tmp_path: Path) -> None:
    record = tree(tmp_path / "record")
    torch.save({"attack_target": RunsACommand(tmp_path / "ran")}, record / "info.pickle")
    with pytest.raises(InputError, match="nothing was run"):
        import_trigger(record)
    assert not (tmp_path / "ran").exists()


def test_folders_that_are_no_record(tmp_path: Path) -> None:
    with pytest.raises(TriggerError, match="expected a BackdoorBench record folder"):
        import_trigger(tmp_path, target=0)
    record = tree(tmp_path / "record")
    with pytest.raises(TriggerError, match="expected a file beside"):
        import_trigger(record, target=0, out=tmp_path / "t.toml")
    with pytest.raises(TriggerError, match="index of a class"):
        import_trigger(record, target=-1)
