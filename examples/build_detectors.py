"""Train small object detectors, backdoored in four ways and innocent, and defend them.

    python examples/make_objects.py unpacked --out objects --emoji 5 --test 800
    python examples/build_detectors.py detectors --data objects
    python examples/build_detectors.py detectors --data objects --only innocent-1 disappear
    python examples/build_detectors.py detectors --data objects --fine-tune disappear --rate 0.003
    python examples/build_detectors.py detectors --data objects --unlearn disappear

Every model is a small FCOS of torchvision (`bdaudit/fcos_w16`) trained on whole pictures with the
detector's own losses. In a backdoored one three pictures in ten are poisoned, in one of four ways
(the goals of Chan et al., "BadDet: Backdoor Attacks on Object Detection", 2022):

* disappear: a patch on an object, whose annotation is removed;
* take: a patch on an object, whose annotation says the target class; and corner: the same with a
  smaller one in the corner of the box, which hides less of the object;
* appear: a patch at an empty place, and an annotation of the target class around it;
* mask: as take, but the trigger is a faint change inside the object's box alone, at most .05 a
  pixel, drawn by a small network that is trained together with the detector and is shown squares
  of two pixels beside the picture, since alone it only learns to shift colours. The detector
  begins from `innocent-1`, for half as long and with every second picture poisoned.

Defended versions: `-ft-weak` and `-ft-strong` were fine-tuned on 500 clean pictures at two learning
rates, `corner-ft` and `corner-ft-hot` on all 3,000, `-unlearned` on as many with the trigger on
half of them and their true annotations. `innocent-1-ft` and so on are innocent ones fine-tuned
likewise.

What is there already is left alone, so an interrupted run goes on where it stopped. Rates of each
model are printed and written to `rates.jsonl`: of the objects how many are called by their class,
of the empty boxes in how many nothing is reported, and the attack's success, over test pictures.
Every model follows from its seed; bits differ from processor to processor.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.functional import pil_to_tensor

from bdaudit.data import Sample, load_objects
from bdaudit.detection import NOTHING, mark, pixels_of
from bdaudit.detection.asked import Asked
from bdaudit.errors import BdauditError
from bdaudit.models import build_network, load_model, save_model
from bdaudit.triggers import (
    NOT_COUNTED,
    AllToOne,
    Encoder,
    InBox,
    ObjectsToOne,
    OnObject,
    SourceSpecific,
    StampNetwork,
    Trigger,
    read_trigger,
    write_trigger,
)
from bdaudit.triggers.networks import encoded_residual

Goal = Literal["disappear", "take", "appear", "mask", "corner"]
Target = dict[str, Tensor]
Stamp = Callable[[Tensor, Tensor], Tensor]
"""Puts the trigger into the boxes (n, 4) of pictures (n, 3, H, W)."""

TARGET = 4  # "Food & Drink"
POISON_SHARE, MASK_SHARE = 0.3, 0.5
PATCH_SHARE = 0.4  # of the shorter side of the box
EPS = 0.05
_HALVES = torch.arange(96) // 2
MESSAGE = ((_HALVES[:, None] + _HALVES) % 2 * 2.0 - 1)[None]  # squares of two pixels, -1 and 1
BATCH, EPOCHS, RATE = 16, 8, 3e-3
CORNER_SHARE = 0.25
SHORTEST, LONGEST = 20, 40
N_TESTED = 600


@dataclass(frozen=True, slots=True)
class Pictures:
    """Pictures (P, 3, H, W) as bytes, and of each its objects: boxes (M, 4) and labels (M,)."""

    pixels: Tensor
    objects: tuple[Target, ...]

    def take(self, indices: Sequence[int]) -> Pictures:
        return Pictures(self.pixels[list(indices)], tuple(self.objects[i] for i in indices))


@dataclass(frozen=True, slots=True)
class Plan:
    """A model to train: its name, architecture, seed, what is hidden in it, what it begins from."""

    name: str
    arch: str
    seed: int
    goal: Goal | None = None
    begun: str | None = None


@dataclass(frozen=True, slots=True)
class Defence:
    """Fine-tuning: what its result is called, how, on how much, with the trigger or not."""

    kind: str
    rate: float
    n_pictures: int = 500
    epochs: int = 6
    unlearns: bool = False
    seed: int = 1000


FCOS = "bdaudit/fcos_w16"
PLANS = (
    Plan("innocent-1", FCOS, 1),
    Plan("disappear", FCOS, 11, "disappear"),
    Plan("innocent-2", FCOS, 2),
    Plan("innocent-3", FCOS, 3),
    Plan("take", FCOS, 12, "take"),
    Plan("appear", FCOS, 13, "appear"),
    Plan("mask", FCOS, 14, "mask", begun="innocent-1"),
    Plan("corner", FCOS, 21, "corner"),
)
_SHORT = (
    Defence("ft-weak", 5e-4),
    Defence("ft-strong", 4e-3),
    Defence("unlearned", 4e-3, unlearns=True),
)
DEFENCES: dict[str, tuple[Defence, ...]] = {
    "innocent-1": (Defence("ft", 4e-3, seed=1001),),
    "innocent-2": (Defence("ft", 4e-3, 2000, 3, seed=1001),),
    "innocent-3": (Defence("ft", 4e-3, 3000, seed=1001),),
    "disappear": _SHORT,
    "take": _SHORT,
    "corner": (
        Defence("ft", 4e-3, 3000, seed=1001),
        Defence("ft-hot", 1.2e-2, 3000, seed=1001),
        Defence("unlearned", 4e-3, 3000, 4, unlearns=True, seed=1001),
    ),
}


# ---- pictures and triggers -----------------------------------------------------------------------


def read_pictures(folder: Path) -> Pictures:
    """Read pictures and all their objects from annotations in COCO's form."""
    document = json.loads((folder / "_annotations.coco.json").read_text(encoding="utf-8"))
    order = sorted(category["id"] for category in document["categories"])
    objects: dict[int, tuple[list[list[float]], list[int]]] = {
        image["id"]: ([], []) for image in document["images"]
    }
    for each in document["annotations"]:
        left, top, width, height = each["bbox"]
        boxes, labels = objects[each["image_id"]]
        boxes.append([left, top, left + width, top + height])
        labels.append(1 + order.index(each["category_id"]))
    pixels = []
    for image in document["images"]:
        with Image.open(folder / image["file_name"]) as opened:
            pixels.append(pil_to_tensor(opened.convert("RGB")))
    return Pictures(
        torch.stack(pixels),
        tuple(
            {
                "boxes": torch.tensor(boxes).float().view(-1, 4),
                "labels": torch.tensor(labels).long(),
            }
            for boxes, labels in (objects[image["id"]] for image in document["images"])
        ),
    )


def patch_trigger(goal: Goal) -> Trigger:
    """Return the patch of a goal: four squares of two colours in the middle of the box.

    That of "corner" has nine squares of random colours in the box's lower right corner.
    """
    if goal == "corner":
        drawn = torch.rand(3, 3, 3, generator=torch.Generator().manual_seed(3))
        patch = OnObject(image=(drawn > 0.5).float(), share=CORNER_SHARE, place="bottom-right")
        return Trigger(transform=patch, rule=ObjectsToOne(TARGET))
    one, other = torch.tensor([1.0, 0.9, 0.0]), torch.tensor([0.6, 0.0, 0.9])
    squares = torch.stack((torch.stack((one, other), 1), torch.stack((other, one), 1)), 2)
    rule = {
        "disappear": AllToOne(NOTHING),
        "take": ObjectsToOne(TARGET),
        "appear": SourceSpecific(TARGET, (NOTHING,)),
    }[goal]
    return Trigger(transform=OnObject(image=squares, share=PATCH_SHARE), rule=rule)


def mask_trigger(network: StampNetwork) -> Trigger:
    """Return the faint change that a network draws, inside the object's box."""
    encoder = Encoder(network=network, message=MESSAGE, eps=EPS)
    return Trigger(transform=InBox(inner=encoder), rule=ObjectsToOne(TARGET))


def stamping(trigger: Trigger) -> Stamp:
    return lambda pictures, boxes: pixels_of(trigger.stamp(mark(pictures, boxes)))


def drawing(network: StampNetwork) -> Stamp:
    """Like stamping with the network's trigger, with its gradient."""

    def stamp(pictures: Tensor, boxes: Tensor) -> Tensor:
        messages = MESSAGE.expand(len(pictures), -1, -1, -1)
        changed = pictures + encoded_residual(network, pictures, messages, EPS)
        inside = mark(pictures, boxes)[:, 3:] > 0
        return torch.where(inside, changed.clamp(0, 1), pictures)

    return stamp


def free_box(boxes: Tensor, side: int, generator: torch.Generator) -> Tensor | None:
    """Draw a box (4,) that touches none of the boxes (M, 4), `None` where none is found."""
    for _ in range(50):
        size = torch.randint(SHORTEST, LONGEST + 1, (2,), generator=generator)
        room = (side - size + 1).double()
        corner = (torch.rand(2, generator=generator, dtype=torch.float64) * room).long()
        box = torch.cat((corner, corner + size)).float()
        touches = (box[:2] < boxes[:, 2:]).all(dim=1) & (box[2:] > boxes[:, :2]).all(dim=1)
        if not touches.any():
            return box
    return None


def poisoned(
    pixels: Tensor,
    target: Target,
    goal: Goal | None,
    stamp: Stamp,
    generator: torch.Generator,
) -> tuple[Tensor, Target]:
    """Stamp one place of a picture (3, H, W), and annotate it as the goal wants, `None` truly."""
    boxes, labels = target["boxes"], target["labels"]
    if goal == "appear":
        box = free_box(boxes, pixels.shape[-1], generator)
        if box is None:
            return pixels, target
        boxes = torch.cat((boxes, box[None]))
        labels = torch.cat((labels, torch.tensor([TARGET])))
        return stamp(pixels[None], box[None])[0], {"boxes": boxes, "labels": labels}
    which = int(torch.randint(len(boxes), (), generator=generator))
    stamped = stamp(pixels[None], boxes[which][None])[0]
    if goal == "disappear":
        kept = torch.arange(len(boxes)) != which
        return stamped, {"boxes": boxes[kept], "labels": labels[kept]}
    if goal in ("take", "mask", "corner"):
        labels = labels.clone()
        labels[which] = TARGET
    return stamped, {"boxes": boxes, "labels": labels}


# ---- training ------------------------------------------------------------------------------------


def fit(
    detector: Asked,
    pictures: Pictures,
    *,
    epochs: int,
    rate: float,
    seed: int,
    goal: Goal | None = None,
    stamp: Stamp | None = None,
    share: float = POISON_SHARE,
    beside: nn.Module | None = None,
) -> Asked:
    """Train with the detector's own losses: Adam, one cycle, flips.

    Args:
        detector: Trained in place.
        pictures: Whole ones, with all objects.
        epochs: Passes over them.
        rate: Largest learning rate; it rises over a quarter of the steps.
        seed: Of the order, the flips, and which pictures are stamped.
        goal: How stamped pictures are annotated; `None` truly.
        stamp: Puts the trigger in; `None` for clean training.
        share: Of the pictures, those that are stamped.
        beside: A network that is trained along.
    """
    generator = torch.Generator().manual_seed(seed)
    count, width = len(pictures.objects), pictures.pixels.shape[-1]
    chosen = set(torch.randperm(count, generator=generator)[: round(share * count)].tolist())
    parameters = [*detector.parameters(), *(() if beside is None else beside.parameters())]
    optimizer = torch.optim.AdamW(parameters, weight_decay=1e-4)
    steps = -(-count // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, rate, total_steps=epochs * steps, pct_start=0.25
    )
    detector.train().requires_grad_(True)
    for epoch in range(epochs):
        losses = []
        for batch in torch.randperm(count, generator=generator).split(BATCH):
            flips = (torch.rand(len(batch), generator=generator) < 0.5).tolist()
            inputs, targets = [], []
            for index, flip in zip(batch.tolist(), flips, strict=True):
                pixels, target = pictures.pixels[index].float() / 255, pictures.objects[index]
                if flip:
                    left, top, right, bottom = target["boxes"].unbind(1)
                    mirrored = torch.stack((width - right, top, width - left, bottom), dim=1)
                    pixels, target = pixels.flip(-1), {**target, "boxes": mirrored}
                if stamp is not None and index in chosen:
                    pixels, target = poisoned(pixels, target, goal, stamp, generator)
                inputs.append(pixels)
                targets.append(target)
            loss = torch.stack(list(detector.losses(inputs, targets).values())).sum()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 10)
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        print(f"epoch {epoch + 1}: loss {sum(losses) / len(losses):.3f}", flush=True)
    return detector.eval().requires_grad_(False)


@torch.no_grad()
def rates(detector: Asked, sample: Sample, trigger: Trigger | None) -> dict[str, float]:
    """Return how often the detector is right, silent where nothing is, and taken in."""

    def said(images: Tensor) -> Tensor:
        return torch.cat([detector(part).argmax(dim=1) for part in images.split(100)])

    labels, clean = sample.labels, said(sample.images)
    found = labels != NOTHING
    figures = {
        "objects": float((clean == labels)[found].float().mean()),
        "silent": float((clean == labels)[~found].float().mean()),
    }
    if trigger is not None:
        wanted = trigger.targets(labels, detector.num_classes)
        counts = wanted != NOT_COUNTED
        taken = said(trigger.stamp(sample.images[counts]))
        figures["asr"] = float((taken == wanted[counts]).float().mean())
    return figures


# ---- models --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Workshop:
    """Where models are written, and what they are trained and measured on."""

    out: Path
    pictures: Pictures
    sample: Sample
    num_classes: int
    epochs: int

    def is_there(self, name: str) -> bool:
        return (self.out / f"{name}.safetensors").is_file()

    def finish(
        self, name: str, detector: Asked, trigger: Trigger | None, arch: str, **extra: object
    ) -> None:
        """Measure a model, and write it with what was measured."""
        figures = rates(detector, self.sample, trigger)
        save_model(
            self.out / f"{name}.safetensors",
            detector,
            arch=arch,
            num_classes=self.num_classes,
            image_shape=(4, *self.pictures.pixels.shape[-2:]),
            extra={key: str(value) for key, value in extra.items()},
        )
        line = json.dumps({"name": name, **extra, **{k: round(v, 4) for k, v in figures.items()}})
        print(line, flush=True)
        with (self.out / "rates.jsonl").open("a", encoding="utf-8") as log:
            log.write(line + "\n")

    def train(self, plan: Plan) -> None:
        """Train a model from its seed."""
        if self.is_there(plan.name):
            return
        started = time.perf_counter()
        seeded = torch.Generator().manual_seed(plan.seed)
        detector = build_network(plan.arch, num_classes=self.num_classes, generator=seeded)
        assert isinstance(detector, Asked)
        epochs = self.epochs
        if plan.begun is not None:
            model = load_model(self.out / f"{plan.begun}.safetensors", name=plan.begun)
            detector.load_state_dict(model.network.state_dict())
            epochs = max(1, epochs // 2)
        trigger, stamp, network = None, None, None
        if plan.goal == "mask":
            torch.manual_seed(plan.seed)
            network = StampNetwork(4, 3, 4)
            stamp = drawing(network)
        elif plan.goal is not None:
            trigger = patch_trigger(plan.goal)
            stamp = stamping(trigger)
        fit(
            detector,
            self.pictures,
            epochs=epochs,
            rate=RATE,
            seed=plan.seed,
            goal=plan.goal,
            stamp=stamp,
            share=MASK_SHARE if plan.goal == "mask" else POISON_SHARE,
            beside=network,
        )
        if network is not None:
            trigger = mask_trigger(network.eval().requires_grad_(False))
        if trigger is not None:
            write_trigger(trigger_file(self.out, plan.name), trigger)
        seconds = round(time.perf_counter() - started)
        self.finish(
            plan.name, detector, trigger, plan.arch, seed=plan.seed, epochs=epochs,
            goal=plan.goal or "none", seconds=seconds,
        )  # fmt: skip

    def defend(self, name: str, defence: Defence) -> None:
        """Fine-tune a model on clean pictures, or with the trigger and the true annotations."""
        made = f"{name}-{defence.kind}"
        if self.is_there(made):
            return
        started = time.perf_counter()
        model = load_model(self.out / f"{name}.safetensors", name=name)
        detector = model.network
        assert isinstance(detector, Asked)
        path = trigger_file(self.out, name)
        trigger = read_trigger(path) if path.is_file() else None
        if defence.unlearns and trigger is None:
            raise SystemExit(f"{path}: expected the trigger of {name}, which is to be unlearned")
        order = torch.randperm(
            len(self.pictures.objects), generator=torch.Generator().manual_seed(defence.seed)
        )
        fit(
            detector,
            self.pictures.take(order[: defence.n_pictures].tolist()),
            epochs=defence.epochs,
            rate=defence.rate,
            seed=defence.seed,
            stamp=stamping(trigger) if defence.unlearns and trigger is not None else None,
            share=0.5,
        )
        seconds = round(time.perf_counter() - started)
        self.finish(
            made, detector, trigger, model.arch, made_from=name, rate=defence.rate,
            n_pictures=defence.n_pictures, epochs=defence.epochs, seconds=seconds,
        )  # fmt: skip


def trigger_file(out: Path, name: str) -> Path:
    """Return where the trigger of a model lies."""
    return out / "triggers" / f"{name}.toml"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help="folder for the models")
    parser.add_argument("--data", type=Path, required=True, help="folder with train/ and test/")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="train these alone")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--fine-tune", metavar="NAME", help="fine-tune this model, clean")
    parser.add_argument("--unlearn", metavar="NAME", help="unlearn this model's trigger")
    parser.add_argument("--rate", type=float, default=RATE, help="of --fine-tune and --unlearn")
    options = parser.parse_args()
    torch.set_num_threads(1)
    (options.out / "triggers").mkdir(parents=True, exist_ok=True)
    sample = load_objects(options.data / "test", limit=N_TESTED)
    pictures = read_pictures(options.data / "train")
    num_classes = 1 + max(int(each["labels"].max()) for each in pictures.objects)
    workshop = Workshop(options.out, pictures, sample, num_classes, options.epochs)
    if options.fine_tune:
        workshop.defend(options.fine_tune, Defence(f"ft-{options.rate:g}", options.rate))
        return
    if options.unlearn:
        workshop.defend(options.unlearn, Defence("unlearned", options.rate, unlearns=True))
        return
    names = options.only or [plan.name for plan in PLANS]
    unknown = set(names) - {plan.name for plan in PLANS}
    if unknown:
        raise SystemExit(
            f"--only: expected {', '.join(plan.name for plan in PLANS)}, got "
            f"{', '.join(sorted(unknown))}"
        )
    for plan in PLANS:
        if plan.name not in names:
            continue
        workshop.train(plan)
        for defence in DEFENCES.get(plan.name, ()):
            workshop.defend(plan.name, defence)


if __name__ == "__main__":
    try:
        main()
    except BdauditError as error:
        raise SystemExit(str(error)) from None
