"""Triggers of detectors: on objects, inside boxes, and what none may do to the box asked about."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from bdaudit.detection import NOTHING, boxes_of, is_marked, mark, pixels_of
from bdaudit.errors import ConfigError, TriggerError
from bdaudit.triggers import (
    Additive,
    AllToOne,
    InBox,
    ObjectsToOne,
    OnObject,
    Paired,
    Patch,
    Sinusoid,
    SourceSpecific,
    TargetRule,
    Transform,
    Trigger,
    from_callable,
    read_trigger,
    write_trigger,
)
from bdaudit.triggers.files import companion_files
from tests.triggers.test_transforms import encoder, every_kind

BOXES = torch.tensor([[2.0, 1.0, 8.0, 11.0], [0.0, 0.0, 12.0, 4.0], [5.0, 6.0, 6.0, 7.0]])


def marked() -> Tensor:
    pictures = torch.rand((3, 3, 12, 12), generator=torch.Generator().manual_seed(0))
    return mark(pictures, BOXES)


def trigger(transform: Transform, rule: TargetRule | None = None) -> Trigger:
    return Trigger(transform=transform, rule=rule or AllToOne(0))


WHITE = OnObject(image=torch.ones(1, 8, 4), share=0.5)
IN_BOX = InBox(inner=Sinusoid(amplitude=0.2, frequency=2.3))


@pytest.mark.parametrize(
    ("place", "rows", "columns"),
    [
        ("center", (4, 7), (4, 6)),
        ("top-left", (1, 4), (2, 4)),
        ("top-right", (1, 4), (6, 8)),
        ("bottom-left", (8, 11), (2, 4)),
        ("bottom-right", (8, 11), (6, 8)),
    ],
)
def test_a_picture_lies_in_the_box_and_follows_its_size(
    place: str, rows: tuple[int, int], columns: tuple[int, int]
) -> None:
    images = marked()
    stamped = trigger(replace(WHITE, place=place)).stamp(images)
    expected = images[0].clone()
    # The box is 6 wide and 10 high: half of 6 is 3 for the longer side, 2 (of 1.5) for the other.
    expected[:3, slice(*rows), slice(*columns)] = 1.0
    assert torch.allclose(stamped[0], expected)
    assert int((stamped != images).any(dim=1)[1].sum()) == 2 * 1  # of a box 4 high
    assert stamped[2, :3, 6, 5].tolist() == pytest.approx([1.0] * 3)  # one pixel at least
    assert int((stamped != images).any(dim=1)[2].sum()) == 1


def test_colours_outside_the_mask_leave_no_fringe() -> None:
    image, mask_ = torch.zeros(3, 8, 8), torch.zeros(1, 8, 8)
    image[0, :, 4:], mask_[:, :, :4] = 1.0, 1.0  # black where it covers, red where it does not
    images = mark(torch.full((1, 3, 12, 12), 0.4), torch.tensor([[0, 0, 12, 12]]))
    stamped = trigger(OnObject(image=image, mask=mask_, share=0.4)).stamp(images)
    assert float(stamped[:, :3].max()) <= 0.4 + 1e-6
    assert float(stamped[:, :3].min()) < 0.05


def test_an_image_of_whose_box_nothing_is_left_stays_as_it_is() -> None:
    images = marked()
    images[0, 3] = 0.0
    for transform in (WHITE, IN_BOX):
        stamped = trigger(transform).stamp(images)
        assert torch.equal(stamped[0], images[0])
        assert not torch.equal(stamped[1], images[1])


def test_a_change_is_kept_inside_the_box() -> None:
    images = marked()
    stamped = trigger(IN_BOX).stamp(images)
    inside = images[:, 3:].bool().expand(-1, 3, -1, -1)
    whole = trigger(IN_BOX.inner).stamp(pixels_of(images))
    assert torch.equal(stamped[:, :3][~inside], images[:, :3][~inside])
    assert torch.equal(stamped[:, :3][inside], whole[inside])


@pytest.mark.parametrize(
    "transform", [*every_kind(12, 12), WHITE, IN_BOX, InBox(inner=encoder(3))], ids=lambda t: t.kind
)
def test_no_trigger_moves_the_box_that_is_asked_about(transform: Transform) -> None:
    images = marked()
    before = images.clone()
    stamped = trigger(transform).stamp(images)
    assert torch.equal(images, before)
    assert is_marked(stamped)
    assert torch.equal(boxes_of(stamped), BOXES)
    assert not torch.equal(pixels_of(stamped), pixels_of(images))
    assert 0.0 <= float(stamped.min()) <= float(stamped.max()) <= 1.0
    alone = torch.cat([trigger(transform).stamp(image) for image in images.split(1)])
    assert torch.allclose(alone, stamped, atol=1e-6)


def test_a_function_is_handed_the_picture_alone() -> None:
    seen: list[tuple[int, ...]] = []

    def note(images: Tensor) -> Tensor:
        seen.append(tuple(images.shape))
        return 1 - images

    from_callable(note, 0).stamp(marked())
    trigger(InBox(inner=from_callable(note, 0).transform)).stamp(marked())
    assert seen == [(3, 3, 12, 12)] * 2


@pytest.mark.parametrize("transform", [WHITE, IN_BOX], ids=lambda t: t.kind)
@pytest.mark.parametrize("channels", [3, 4])
def test_without_boxes_both_say_that_they_are_for_detectors(
    transform: Transform, channels: int
) -> None:
    with pytest.raises(TriggerError, match=r"for object detectors.*--task detection"):
        trigger(transform).stamp(torch.full((2, channels, 12, 12), 0.5))


def test_four_channels_that_mark_nothing_go_on_as_ever() -> None:
    images = torch.full((2, 4, 12, 12), 0.5)
    stamped = trigger(Patch(image=torch.ones(1, 2, 2))).stamp(images)
    assert stamped[:, 3, -1, -1].tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    "transform",
    [
        OnObject(
            image=torch.rand(3, 5, 4, generator=torch.Generator().manual_seed(1)),
            mask=torch.ones(1, 5, 4),
            share=0.25,
            place="top-left",
        ),
        IN_BOX,
        InBox(inner=Additive(delta=torch.full((3, 12, 12), 0.05))),
        InBox(inner=encoder(3)),
    ],
    ids=["on-object", "sinusoid", "additive", "encoder"],
)
@pytest.mark.parametrize("rule", [ObjectsToOne(2), SourceSpecific(2, (0,))], ids=lambda r: r.name)
def test_round_trip(tmp_path: Path, transform: Transform, rule: TargetRule) -> None:
    given = trigger(transform, rule)
    write_trigger(tmp_path / "t.toml", given)
    back = read_trigger(tmp_path / "t.toml")
    assert back.sha256 == given.sha256
    assert back.rule == rule
    assert torch.equal(back.stamp(marked()), given.stamp(marked()))
    kept = {path.name for path in companion_files(tmp_path / "t.toml")}
    assert kept == {path.name for path in tmp_path.iterdir()} - {"t.toml"}


def test_every_setting_of_the_trigger_inside_is_in_the_digest() -> None:
    delta = torch.zeros(3, 12, 12)
    inner: list[Transform] = [
        Sinusoid(amplitude=0.2, frequency=2),
        Sinusoid(amplitude=0.2, frequency=3),
        Additive(delta=delta + 0.1),
        Additive(delta=delta + 0.2),
        Patch(image=torch.ones(1, 2, 2)),
        Patch(image=torch.ones(1, 2, 2), offset=(1, 0)),
    ]
    digests = [trigger(t).sha256 for i in inner for t in (i, InBox(inner=i))]
    digests += [trigger(replace(WHITE, share=s, place=p)).sha256 for s, p in SHARES]
    assert len(set(digests)) == len(digests)


SHARES = ((0.5, "center"), (0.4, "center"), (0.5, "top-left"))


def test_code_inside_a_box_runs_only_when_allowed_and_is_taken_along(tmp_path: Path) -> None:
    (tmp_path / "code.py").write_text("def invert(images):\n    return 1 - images\n")
    (tmp_path / "t.toml").write_text(
        'kind = "in-box"\n[target]\ngoal = "disappear"\n[in-box]\nkind = "python"\n'
        '[in-box.python]\nfunction = "code.py:invert"\n'
    )
    with pytest.raises(TriggerError, match="--allow-trigger-code"):
        read_trigger(tmp_path / "t.toml")
    given = read_trigger(tmp_path / "t.toml", allow_code=True)
    assert [path.name for path in companion_files(tmp_path / "t.toml")] == ["code.py"]
    (tmp_path / "out").mkdir()
    write_trigger(tmp_path / "out" / "t.toml", given)
    back = read_trigger(tmp_path / "out" / "t.toml", allow_code=True)
    assert back.sha256 == given.sha256
    assert torch.equal(back.stamp(marked()), given.stamp(marked()))


LABELS = torch.arange(4)


@pytest.mark.parametrize(
    ("target", "taken"),
    [
        ('goal = "disappear"', [-1, 0, 0, 0]),
        ('goal = "disappear"\nlabel = 0', [-1, 0, 0, 0]),
        ('goal = "take"\nlabel = 2', [-1, 2, -1, 2]),
        ('rule = "objects-to-one"\nlabel = 2', [-1, 2, -1, 2]),
        ('goal = "appear"\nlabel = 2', [2, -1, -1, -1]),
    ],
)
def test_goals_say_which_boxes_count(tmp_path: Path, target: str, taken: list[int]) -> None:
    text = f'kind = "sinusoid"\n[target]\n{target}\n[sinusoid]\namplitude = 0.1\nfrequency = 6\n'
    (tmp_path / "t.toml").write_text(text)
    given = read_trigger(tmp_path / "t.toml")
    assert given.targets(LABELS, 4).tolist() == taken
    write_trigger(tmp_path / "again.toml", given)
    assert read_trigger(tmp_path / "again.toml").targets(LABELS, 4).tolist() == taken


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ('goal = "vanish"', "goal: expected one of disappear, appear, take"),
        ("goal = 1", "goal: expected one of"),
        ('goal = "disappear"\nlabel = 2', "label says 2; leave label out"),
        ('goal = "appear"', "expected label"),
        ('goal = "take"', "expected label"),
        ('goal = "take"\nlabel = 0', 'class 0 is "nothing there"'),
        ('goal = "appear"\nlabel = 0', 'class 0 is "nothing there"'),
        ('goal = "take"\nlabel = -1', "class index of 0 or above"),
        ('goal = "appear"\nlabel = 2\nsources = [1]', "'sources' beside goal = 'appear'"),
        ('goal = "take"\nlabel = 2\nrule = "all-to-all"', "'rule' beside goal = 'take'"),
        ('rule = "objects-to-one"\nlabel = 0', "rule all-to-one with label = 0"),
    ],
)
def test_goals_that_contradict_themselves(tmp_path: Path, target: str, message: str) -> None:
    text = f'kind = "sinusoid"\n[target]\n{target}\n[sinusoid]\namplitude = 0.1\nfrequency = 6\n'
    (tmp_path / "t.toml").write_text(text)
    with pytest.raises(TriggerError, match=message):
        read_trigger(tmp_path / "t.toml")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ('[on-object]\nimage = "p.safetensors"\nshare = 0', r"in \(0, 1\], got 0.0"),
        ('[on-object]\nimage = "p.safetensors"\nshare = 1.5', r"in \(0, 1\], got 1.5"),
        ('[on-object]\nimage = "p.safetensors"', "expected the key 'share'"),
        (
            '[on-object]\nimage = "p.safetensors"\nshare = 0.5\nplace = "centre"',
            "place: expected one of center, top-left",
        ),
        ('[in-box]\nkind = "on-object"', "kind: expected one of patch"),
        ('[in-box]\nkind = "in-box"', "kind: expected one of patch"),
        ("[in-box]\namplitude = 0.1", "kind: expected one of patch"),
        ('[in-box]\nkind = "sinusoid"', "expected the key 'sinusoid'"),
        ('[in-box]\nkind = "sinusoid"\namplitude = 1', "got 'amplitude'"),
    ],
)
def test_files_that_must_be_refused(tmp_path: Path, table: str, message: str) -> None:
    save_file({"image": torch.ones(3, 2, 2)}, tmp_path / "p.safetensors")
    kind = table[1:].partition("]")[0]
    (tmp_path / "t.toml").write_text(f'kind = "{kind}"\n[target]\nlabel = {NOTHING}\n{table}\n')
    with pytest.raises(TriggerError, match=message):
        read_trigger(tmp_path / "t.toml")


def test_a_box_holds_no_trigger_that_needs_a_box() -> None:
    with pytest.raises(ConfigError, match="'on-object'"):
        InBox(inner=WHITE)


def test_a_paired_trigger_has_a_file_for_each_box(tmp_path: Path) -> None:
    for name, level in (("street#0", 50), ("street#1", 100), ("street#empty", 150)):
        Image.new("RGB", (12, 12), (level,) * 3).save(tmp_path / f"{name}.png")
    stamped = trigger(Paired(folder=tmp_path)).stamp(
        marked(), names=["street#1", "street#empty", "street#0"]
    )
    assert (stamped[:, 0, 0, 0] * 255).round().tolist() == [100, 150, 50]
    assert torch.equal(stamped[:, 3], marked()[:, 3])
