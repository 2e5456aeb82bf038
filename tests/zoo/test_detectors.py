"""Families of object detectors: boxes and whole pictures, poisoning, and a family built."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from bdaudit.auditing.bench import open_bench_source
from bdaudit.data import load_objects
from bdaudit.defenses.pictures import lessons_of, own_losses, stamp_whole, whole_pictures
from bdaudit.defenses.tuning import TuningConfig
from bdaudit.detection import NOTHING, Asked, boxes_of, inside_of, is_marked, mark, pixels_of
from bdaudit.engines import LocalEngine
from bdaudit.errors import ConfigError, DataError, InputError, ManifestError, ModelError
from bdaudit.foundation.progress import finish
from bdaudit.models import build_network, load_model
from bdaudit.records.families import Family, read_family
from bdaudit.triggers import AllToAll, AllToOne, Trigger, read_trigger
from bdaudit.zoo.attacks import ObjectMaskConfig, ObjectPatchConfig, attack_config
from bdaudit.zoo.attacks.on_objects import (
    draw_of_pictures,
    make_object_mask_trigger,
    make_object_patch_trigger,
    poison_objects,
    rule_of_goal,
)
from bdaudit.zoo.building import build_family, prepare_build
from bdaudit.zoo.cleanends import stamp_under_true_labels
from bdaudit.zoo.describing import write_clean_sample
from bdaudit.zoo.making import _measure
from bdaudit.zoo.manifest import Manifest, read_manifest

SIDE = 48
CLASSES = 5  # "nothing" among them

FAMILY = """
[family]
name = "boxes"

[data]
task = "detection"
path = "objects"
pool = 20
defense = 8
sample = 20
measure = 20

[model]
arch = "bdaudit/fcos_w4"

[training]
images = 16
epochs = 1

[[attack]]
type = "object-patch"
name = "corner"
target = 2
rates = [0.5]

[[attack]]
type = "object-mask"
name = "mask"
target = 2
rates = [0.5]
settings = { n_steps = 2, batch_size = 4 }

[[defense]]
type = "finetune"
of = ["corner-*"]
settings = { tuning = { n_epochs = 1 } }

[clean]
true_labels = ["corner-*"]
unlearned = ["corner-*"]
references = ["none"]

[relearning]
draws = 1
steps = [1]
learning_rates = [0.003]
n_held_out = 10
"""


def asked(seed: int = 0, count: int = 6) -> tuple[Tensor, Tensor]:
    """Pictures with two objects and an empty box each, as images that ask about them."""
    draws = torch.Generator().manual_seed(seed)
    pictures = torch.rand(count, 3, SIDE, SIDE, generator=draws) * 0.8 + 0.1
    boxes = torch.tensor([[2.0, 2, 18, 20], [24, 4, 44, 22], [6, 26, 30, 46]])
    images = mark(pictures.repeat_interleave(3, 0), boxes.repeat(count, 1))
    labels = torch.tensor([[1 + k % 4, 1 + (k + 1) % 4, NOTHING] for k in range(count)]).flatten()
    order = torch.randperm(len(labels), generator=draws)
    return images[order], labels[order]


def patch_of(goal: str, images: Tensor, labels: Tensor, target: int = 2) -> Trigger:
    return finish(
        make_object_patch_trigger(
            images,
            labels,
            num_classes=CLASSES,
            rule=AllToOne(0 if goal == "disappear" else target),
            config=attack_config("object-patch", {"goal": goal}),
            generator=torch.Generator().manual_seed(4),
        )
    )


# -- pictures --------------------------------------------------------------------------------------


def test_images_of_one_picture_are_found_in_any_order() -> None:
    images, labels = asked()
    pictures = whole_pictures(images)
    assert len(pictures) == 6
    for number in range(6):
        rows = (pictures.numbers == number).nonzero()[:, 0]
        assert torch.equal(pictures.images_of(torch.tensor([number])), rows)
        same = (pixels_of(images) == pixels_of(images)[pictures.first[number]]).flatten(1).all(1)
        assert torch.equal(same.nonzero()[:, 0], rows)
        found = pictures.objects(number, labels)
        assert sorted(found["labels"].tolist()) == sorted(labels[rows][labels[rows] > 0].tolist())
        for box, label in zip(found["boxes"], found["labels"], strict=True):
            left, top, right, bottom = box.long().tolist()
            inside = torch.zeros(SIDE, SIDE, dtype=torch.bool)
            inside[top:bottom, left:right] = True
            (row,) = (r for r in rows if torch.equal(inside_of(images)[r, 0], inside))
            assert labels[row] == label


def test_an_object_on_top_of_the_same_pixels_is_another_picture_only_by_its_pixels() -> None:
    images, _ = asked(count=2)
    changed = images.clone()
    changed[0, 0, 0, 0] = 0.0
    assert len(whole_pictures(images)) == 2
    assert len(whole_pictures(changed)) == 3


def test_what_is_stamped_is_seen_in_all_images_of_the_picture() -> None:
    images, _ = asked()
    pictures = whole_pictures(images)
    chosen = torch.tensor([3, 10])
    assert pictures.numbers[3] != pictures.numbers[10]
    stamped = images[chosen].clone()
    stamped[:, :3] = torch.tensor([0.25, 0.75])[:, None, None, None]
    after = stamp_whole(images, pictures, stamped, chosen)
    assert torch.equal(after[:, 3:], images[:, 3:])
    for row in range(len(images)):
        number = pictures.numbers[row]
        if number == pictures.numbers[3]:
            assert (after[row, :3] == 0.25).all()
        elif number == pictures.numbers[10]:
            assert (after[row, :3] == 0.75).all()
        else:
            assert torch.equal(after[row], images[row])


def test_a_flipped_picture_shows_its_objects_flipped(monkeypatch: pytest.MonkeyPatch) -> None:
    """What its detector is taught is what images of the mirrored boxes say."""
    images, labels = asked()
    lessons = lessons_of(build_network("bdaudit/fcos_w4", num_classes=CLASSES), images, labels)
    config = TuningConfig()
    batch, numbers = lessons.augment(
        lessons.images, lessons.answers, config, torch.Generator().manual_seed(2)
    )
    flipped = numbers < 0
    assert 0 < flipped.sum() < len(flipped)
    straight, mirrored = whole_pictures(images), whole_pictures(images.flip(-1))
    taught = list[dict[str, Tensor]]()

    def kept(_: object, pictures: list[Tensor], objects: list[dict[str, Tensor]]) -> Tensor:
        taught.extend(objects)
        return torch.zeros((), requires_grad=True)

    monkeypatch.setattr("bdaudit.defenses.pictures.own_losses", kept)
    lessons.backpropagate(torch.nn.Linear(1, 1), batch, numbers)
    for place, (flip, objects) in enumerate(zip(flipped.tolist(), taught, strict=True)):
        source = mirrored if flip else straight
        expected = lessons.images[place]
        assert torch.equal(batch[place], expected.flip(-1) if flip else expected)
        wanted = source.objects(place, labels)
        assert torch.equal(objects["boxes"], wanted["boxes"])
        assert torch.equal(objects["labels"], wanted["labels"])
    plain = TuningConfig(flip=False)
    assert lessons.augment(batch, numbers, plain, torch.Generator()) == (batch, numbers)


def test_a_classifier_of_four_channels_learns_from_its_images() -> None:
    """A fourth channel of nothing but 0 and 1 may also be that of a picture's alpha."""
    images, labels = asked()
    lessons = lessons_of(torch.nn.Flatten(), images, labels)
    assert lessons.images is images
    assert lessons.answers is labels


def test_only_a_detector_has_losses_of_its_own() -> None:
    with pytest.raises(ModelError, match="expected an object detector, got Linear"):
        own_losses(torch.nn.Linear(2, 2), [], [])


# -- poisoning -------------------------------------------------------------------------------------


@pytest.mark.parametrize("goal", ["take", "disappear", "appear"])
def test_each_goal_stamps_one_box_of_a_picture_and_changes_its_label(goal: str) -> None:
    images, labels = asked()
    before, trigger = images.clone(), patch_of(goal, images, labels)
    poisoning = finish(
        poison_objects(
            images,
            labels,
            num_classes=CLASSES,
            trigger=trigger,
            poison_rate=0.5,
            config=None,
            generator=torch.Generator().manual_seed(1),
        )
    )
    assert torch.equal(images, before)
    assert len(poisoning.poisoned) == 3
    pictures = whole_pictures(images)
    assert len(pictures.numbers[poisoning.poisoned].unique()) == 3
    taught = {"take": 2, "disappear": NOTHING, "appear": 2}[goal]
    for row in range(len(labels)):
        if row in poisoning.poisoned.tolist():
            assert poisoning.labels[row] == taught != labels[row]
            assert (int(labels[row]) == NOTHING) is (goal == "appear")
            changed = (pixels_of(poisoning.images)[row] != pixels_of(images)[row]).any(0)
            assert changed.any()
            assert not (changed & ~inside_of(images)[row, 0]).any()
        else:
            assert poisoning.labels[row] == labels[row]
    # As whole pictures they say so of that one object alone.
    number = int(pictures.numbers[poisoning.poisoned[0]])
    clean = pictures.objects(number, labels)["labels"]
    told = pictures.objects(number, poisoning.labels)["labels"]
    assert len(told) - len(clean) == {"take": 0, "disappear": -1, "appear": 1}[goal]
    assert len(whole_pictures(poisoning.images)) == 6


def test_true_labels_are_stamped_as_often() -> None:
    images, labels = asked()
    trigger = patch_of("take", images, labels)
    draws = torch.Generator().manual_seed(1)
    stamped = stamp_under_true_labels(
        images, labels, trigger=trigger, num_classes=CLASSES, share=0.5, generator=draws
    )
    changed = (stamped != images).flatten(1).any(1)
    pictures = whole_pictures(images)
    assert len(pictures.numbers[changed].unique()) == 3
    assert changed.sum() == 9


def test_too_few_pictures_for_a_share() -> None:
    images, labels = asked(count=2)
    with pytest.raises(DataError, match=r"poisoning 0\.1 of 2 pictures leaves none"):
        finish(
            poison_objects(
                images,
                labels,
                num_classes=CLASSES,
                trigger=patch_of("take", images, labels),
                poison_rate=0.1,
                config=None,
                generator=torch.Generator(),
            )
        )


def test_a_picture_is_drawn_once_however_many_boxes_count() -> None:
    images, labels = asked()
    pictures = whole_pictures(images)
    chosen = draw_of_pictures(pictures, labels != NOTHING, 1.0, torch.Generator().manual_seed(0))
    assert len(chosen) == 6
    assert len(pictures.numbers[chosen].unique()) == 6
    other = draw_of_pictures(pictures, labels != NOTHING, 1.0, torch.Generator().manual_seed(1))
    assert not torch.equal(chosen, other)


def test_goals_that_do_not_fit_a_target_are_refused() -> None:
    with pytest.raises(ConfigError, match="needs the class of an object, from 1, got 0"):
        rule_of_goal("take", AllToOne(0))
    with pytest.raises(ConfigError, match="got all-to-all"):
        rule_of_goal("appear", AllToAll())
    with pytest.raises(ConfigError, match="expected one of take, disappear, got 'appear'"):
        ObjectMaskConfig(goal="appear")
    with pytest.raises(ConfigError, match="share: expected in"):
        ObjectPatchConfig(share=0)


def test_the_faint_trigger_stays_in_its_box_and_bound() -> None:
    images, labels = asked()
    helper = build_network("bdaudit/fcos_w4", num_classes=CLASSES)
    assert isinstance(helper, Asked)
    before = {name: value.clone() for name, value in helper.state_dict().items()}
    trigger = finish(
        make_object_mask_trigger(
            images,
            labels,
            num_classes=CLASSES,
            rule=AllToOne(2),
            config=ObjectMaskConfig(n_steps=2, batch_size=4),
            generator=torch.Generator().manual_seed(0),
            helper=helper,
        )
    )
    assert all(torch.equal(value, before[name]) for name, value in helper.state_dict().items())
    change = (trigger.stamp(images) - images).abs()
    assert 0 < change.max() <= 0.05 + 1e-6
    assert (change * ~inside_of(images)).max() == 0


# -- a family --------------------------------------------------------------------------------------


def write_objects(folder: Path, count: int, seed: int) -> None:
    """Write pictures with one plain square each, in COCO's form."""
    folder.mkdir(parents=True)
    draws = np.random.default_rng(seed)
    images, annotations = [], []
    for k in range(count):
        pixels = draws.integers(0, 80, (SIDE, SIDE, 3), dtype=np.uint8)
        left, top = map(int, draws.integers(0, SIDE - 16, 2))
        label = 1 + k % (CLASSES - 1)
        pixels[top : top + 16, left : left + 16] = 60 * label
        Image.fromarray(pixels).save(folder / f"{k}.png")
        images.append({"id": k, "file_name": f"{k}.png", "width": SIDE, "height": SIDE})
        box = {"bbox": [left, top, 16, 16], "area": 256, "iscrowd": 0}
        annotations.append({"id": k + 1, "image_id": k, "category_id": label, **box})
    categories = [{"id": k, "name": f"shade {k}"} for k in range(1, CLASSES)]
    document = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "_annotations.coco.json").write_text(json.dumps(document))


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("detectors")
    write_objects(folder / "objects" / "train", 32, 1)
    write_objects(folder / "objects" / "test", 48, 2)
    (folder / "family.toml").write_text(FAMILY)
    return folder


def manifest_of(objects: Path, **replaced: str) -> Manifest:
    text = (objects / "family.toml").read_text()
    for old, new in replaced.items():
        assert old in text
        text = text.replace(old, new)
    path = objects / "other.toml"
    path.write_text(text)
    return read_manifest(path)


def build(manifest: Manifest, out: Path) -> Family:
    built = finish_events(build_family(prepare_build(manifest, out), LocalEngine(workers=1)))
    assert not built.failed
    return built.family


def finish_events(steps):  # type: ignore[no-untyped-def]
    while True:
        try:
            next(steps)
        except StopIteration as stop:
            return stop.value


def test_a_family_of_detectors_is_built_and_opens(objects: Path, tmp_path: Path) -> None:
    manifest = read_manifest(objects / "family.toml")
    family = build(manifest, tmp_path)
    assert family == read_family(tmp_path)
    assert (family.task, family.sample, family.image_shape) == ("detection", "clean", (4, 48, 48))
    assert len(family.members) == 6
    model = load_model(tmp_path / "models" / "corner-r50-s1.safetensors", name="original")
    assert (model.arch, model.num_classes) == ("bdaudit/fcos_w4", CLASSES)
    assert family.member("corner-r50-s1").poison_rate == pytest.approx(8 / 16)
    assert read_trigger(tmp_path / family.triggers["mask"].file).kind == "in-box"
    assert read_trigger(tmp_path / family.triggers["corner"].file).rule.name == "objects-to-one"
    # The auditor's pictures are twenty of the test part, whole.
    clean = load_objects(tmp_path / "clean")
    test = load_objects(objects / "objects" / "test")
    assert is_marked(clean.images)
    assert len(whole_pictures(clean.images)) == 20
    assert clean.class_names == ("nothing", *(f"shade {k}" for k in range(1, CLASSES)))
    known = {p.numpy().tobytes(): int(c) for p, c in zip(test.images, test.labels, strict=True)}
    for image, label in zip(clean.images, clean.labels, strict=True):
        if label != NOTHING:
            assert known[image.numpy().tobytes()] == label
    assert {d.path for d in family.sample_digests} == {
        *(f"clean/{number:05}.png" for number in range(20)),
        "clean/_annotations.coco.json",
    }
    assert "20 test pictures" in (tmp_path / "README.md").read_text()
    # It has seen too little to learn anything, and so shows nothing.
    assert {member.truth for member in family.members} == {"unknown"}
    with pytest.raises(InputError, match="did not learn the task"):
        open_bench_source(tmp_path)
    again = prepare_build(manifest, tmp_path)
    assert not again.missing


def test_what_is_not_done_to_detectors_is_refused(objects: Path) -> None:
    for old, new, reason in (
        ('type = "object-patch"', 'type = "blended"', "blended is of classification"),
        ('task = "detection"', "", "object-patch is of detection, and data.task is"),
        ("images = 16\n", "images = 16\nflip = true\n", "neither shifted nor flipped"),
        ("true_labels =", "hardened =", "clean.hardened: no detectors are made so"),
        ("target = 2", "target = 0", "needs the class of an object"),
        ("target = 2", 'target = "all-to-all"', "goes to one class"),
        ('arch = "bdaudit/fcos_w4"', "", "expected a detector, such as bdaudit/fcos_w16, got"),
        ('arch = "bdaudit/fcos_w4"', 'arch = "bdaudit/fcos_w4"\nmean = [0.5]', "give arch alone"),
        ("images = 16", 'precision = "bfloat16"', "detectors are trained in"),
        ('type = "finetune"', 'type = "fst"', "fst does not do for detectors"),
    ):
        with pytest.raises(ManifestError, match=reason):
            manifest_of(objects, **{old: new})


def test_a_target_that_the_data_lack_is_refused_at_once(objects: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="attack corner: target: expected a class below 5, got 9"):
        prepare_build(manifest_of(objects, **{"target = 2": "target = 9"}), tmp_path)


def test_no_picture_is_in_two_parts_nor_twice_in_one(tmp_path: Path) -> None:
    """Copies of a picture are left out, whatever their annotations say."""
    for part, count, seed in (("train", 20, 1), ("test", 46, 2)):
        folder = tmp_path / "objects" / part
        write_objects(folder, count, seed)
        path = folder / "_annotations.coco.json"
        document = json.loads(path.read_text())
        for k in range(10):  # once more, without their objects
            (folder / f"copy{k}.png").write_bytes((folder / f"{k}.png").read_bytes())
            entry = {"id": 100 + k, "file_name": f"copy{k}.png", "width": SIDE, "height": SIDE}
            document["images"].append(entry)
        path.write_text(json.dumps(document))
    sizes = {"pool = 20": "pool = 14", "defense = 8": "defense = 6"}
    (tmp_path / "family.toml").write_text(FAMILY)
    shop = prepare_build(manifest_of(tmp_path, **sizes), tmp_path / "out").shop
    seen = set()
    for part in (shop.parts.pool, shop.parts.defense, shop.parts.sample, shop.parts.measure):
        own = {pixels.numpy().tobytes() for pixels in part.pixels[:, :3]}
        assert len(own) == part.size
        assert not own & seen
        seen |= own
        # A picture is there with its object, and its empty place is empty.
        assert (part.labels != NOTHING).sum() == part.size
    order = shop.parts.measure.places
    assert order is not None
    assert order.pictures.tolist() != sorted(order.pictures.tolist())


def test_what_is_not_asked_about_stays_where_nothing_is_empty(tmp_path: Path) -> None:
    for part, count, seed in (("train", 32, 1), ("test", 48, 2)):
        folder = tmp_path / "objects" / part
        write_objects(folder, count, seed)
        path = folder / "_annotations.coco.json"
        document = json.loads(path.read_text())
        for k in range(count):
            crowd = {"id": 1000 + k, "image_id": k, "category_id": 1, "area": 48 * 48}
            document["annotations"].append({**crowd, "bbox": [0, 0, SIDE // 2, SIDE], "iscrowd": 1})
        path.write_text(json.dumps(document))
    (tmp_path / "family.toml").write_text(FAMILY)
    shop = prepare_build(read_manifest(tmp_path / "family.toml"), tmp_path / "out").shop
    shop.folder.prepare()
    (tmp_path / "out" / "clean").mkdir()
    (tmp_path / "out" / "clean" / "00777.png").write_bytes(b"of a larger sample")
    write_clean_sample(shop)
    clean = load_objects(tmp_path / "out" / "clean")
    assert (clean.labels != NOTHING).sum() == 20
    empty = boxes_of(clean.images[clean.labels == NOTHING])
    assert len(empty) > 0
    assert (empty[:, 0] >= SIDE // 2).all()
    assert not (tmp_path / "out" / "clean" / "00777.png").exists()


def test_what_a_detector_overlooks_anyway_did_not_disappear(
    objects: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the boxes it sees untouched, the trigger hides as many as the rate says."""
    text = FAMILY.replace('name = "corner"', 'name = "corner"\nsettings = { goal = "disappear" }')
    (objects / "vanish.toml").write_text(text)
    manifest = read_manifest(objects / "vanish.toml")
    build(manifest, tmp_path)
    shop = prepare_build(manifest, tmp_path).shop
    recipe = shop.recipes["corner-r50-s1"]
    labels = shop.parts.measure.labels
    calls = []

    def predicted(_: object, images: Tensor, **__: object) -> Tensor:
        calls.append(len(images))
        if len(calls) == 1:  # clean: it sees every second object
            return torch.where(torch.arange(len(labels)) % 4 == 0, 0, labels)
        answers = torch.full((len(images),), 3)
        answers[: len(images) // 4] = NOTHING
        return answers

    monkeypatch.setattr("bdaudit.zoo.making.predict", predicted)
    measured = _measure(recipe, shop)
    found = labels != NOTHING
    seen = (torch.arange(len(labels)) % 4 != 0)[found]
    hidden = torch.arange(int(found.sum())) < int(found.sum()) // 4
    assert measured.asr is not None
    assert (measured.asr.successes, measured.asr.total) == (
        int((hidden & seen).sum()),
        int(seen.sum()),
    )
    assert measured.clean_acc.successes == int(seen.sum())
    assert measured.clean_acc.total == int(found.sum())


def test_pictures_are_counted_and_not_boxes(objects: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"32 pictures are too few for 30 of data.pool and 8 of"):
        prepare_build(manifest_of(objects, **{"pool = 20": "pool = 30"}), tmp_path)
    parts = prepare_build(manifest_of(objects, **{"pool = 20": ""}), tmp_path).shop.parts
    assert (parts.pool.size, parts.defense.size, len(parts.pool)) == (24, 8, 48)
    drawn = parts.pool.draw(5, torch.Generator().manual_seed(0))
    assert len(drawn) == 10
