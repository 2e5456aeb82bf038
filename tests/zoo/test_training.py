"""Training from scratch, clean ends and truth, on pictures small enough to learn in a second."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from bdaudit.defenses.tuning import TuningConfig
from bdaudit.errors import ConfigError
from bdaudit.foundation.progress import Progress, finish
from bdaudit.models import Classifier
from bdaudit.precision import computing_in
from bdaudit.records import Rate
from bdaudit.records.families import RelearningEvidence
from bdaudit.scoring import predict, rate
from bdaudit.triggers import AllToOne, Patch, Trigger
from bdaudit.zoo.attacks.poisoning import make_poisoning
from bdaudit.zoo.cleanends import (
    HardeningConfig,
    UnlearningConfig,
    adversarial_gradients,
    stamp_under_true_labels,
    unlearn,
)
from bdaudit.zoo.folder import Measured
from bdaudit.zoo.planning import Recipe
from bdaudit.zoo.training import TrainingConfig, gradients_in, new_classifier, train
from bdaudit.zoo.truth import floor_of, judge_truth, needs_relearning
from tests.defenses.pictures import NUM_CLASSES, pictures

TRIGGER = Trigger(transform=Patch(image=torch.ones(1, 2, 2)), rule=AllToOne(0))
CONFIG = TrainingConfig(epochs=8, learning_rate=0.1, batch_size=20, flip=False, max_shift=0.0)


def trained(images: Tensor, labels: Tensor, seed: int = 0, **more: object) -> Classifier:
    generator = torch.Generator().manual_seed(seed)
    classifier = new_classifier(
        "bdaudit/preactresnet18_w4", num_classes=NUM_CLASSES, in_channels=1, generator=generator
    )
    config = more.pop("config", CONFIG)
    assert isinstance(config, TrainingConfig)
    return finish(train(classifier, images, labels, config=config, generator=generator, **more))  # type: ignore[arg-type]


def accuracy(classifier: nn.Module, images: Tensor, labels: Tensor) -> float:
    return float((predict(classifier, images, batch_size=100) == labels).double().mean())


def asr(classifier: nn.Module, images: Tensor, labels: Tensor) -> float:
    return accuracy(classifier, TRIGGER.stamp(images[labels != 0]), torch.zeros(1).long())


@pytest.fixture(scope="module")
def task() -> tuple[Tensor, Tensor]:
    return pictures(240, seed=1)


@pytest.fixture(scope="module")
def test_task() -> tuple[Tensor, Tensor]:
    return pictures(300, seed=2)


@pytest.fixture(scope="module")
def original(task: tuple[Tensor, Tensor]) -> Classifier:
    images, labels = task
    poisoning = make_poisoning(
        images,
        labels,
        num_classes=NUM_CLASSES,
        trigger=TRIGGER,
        poison_rate=0.4,
        generator=torch.Generator().manual_seed(0),
    )
    # Long enough, and often enough poisoned, to take whatever the last bits of a processor are.
    return trained(poisoning.images, poisoning.labels, config=replace(CONFIG, epochs=24))


def test_the_seed_says_it_all(task: tuple[Tensor, Tensor]) -> None:
    short = TrainingConfig(epochs=1, batch_size=40)
    first, same, other = (
        trained(*task, seed=seed, config=short).state_dict() for seed in (1, 1, 2)
    )
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_the_trigger_under_true_labels_teaches_nothing(
    task: tuple[Tensor, Tensor], test_task: tuple[Tensor, Tensor], original: Classifier
) -> None:
    images, labels = task
    stamped = stamp_under_true_labels(
        images,
        labels,
        trigger=TRIGGER,
        num_classes=NUM_CLASSES,
        share=0.2,
        generator=torch.Generator().manual_seed(0),
    )
    changed = (stamped != images).flatten(1).any(1)
    assert int(changed.sum()) == round(0.2 * len(images))
    assert not (labels[changed] == 0).any()
    assert torch.equal(stamped[changed], TRIGGER.stamp(images[changed]))
    classifier = trained(stamped, labels)
    assert accuracy(classifier, *test_task) > 0.9
    assert asr(original, *test_task) > 0.9
    assert asr(classifier, *test_task) < 0.1


def test_unlearning_ends_the_trigger_and_spares_the_task(
    test_task: tuple[Tensor, Tensor], original: Classifier
) -> None:
    before = {name: tensor.clone() for name, tensor in original.state_dict().items()}
    tuning = TuningConfig(learning_rate=0.05, n_epochs=8, batch_size=20, flip=False, max_shift=0)
    images, labels = pictures(90, seed=3)
    tuned = finish(
        unlearn(
            original,
            images,
            labels,
            trigger=TRIGGER,
            num_classes=NUM_CLASSES,
            config=UnlearningConfig(n_stamped=30, tuning=tuning),
            generator=torch.Generator().manual_seed(0),
        )
    )
    assert asr(original, *test_task) > 0.9
    assert asr(tuned, *test_task) < 0.1
    assert accuracy(tuned, *test_task) > accuracy(original, *test_task) - 0.05
    assert all(torch.equal(before[name], kept) for name, kept in original.state_dict().items())
    assert not any(parameter.requires_grad for parameter in tuned.parameters())


def test_hardening_withstands_what_fells_others(
    task: tuple[Tensor, Tensor], test_task: tuple[Tensor, Tensor]
) -> None:
    images, labels = task
    generator = torch.Generator().manual_seed(0)
    hardening = HardeningConfig(eps=0.15)
    gradients = adversarial_gradients(hardening, gradients_in("float32"), generator)
    hard = trained(images, labels, gradients=gradients)
    plain = trained(images, labels)

    def felled(classifier: nn.Module) -> float:
        """Accuracy after one step of the attack, written out again."""
        shown, wanted = test_task
        shown = shown.clone().requires_grad_(True)
        functional.cross_entropy(classifier(shown), wanted).backward()
        assert shown.grad is not None
        return accuracy(classifier, (shown + 0.15 * shown.grad.sign()).detach().clamp(0, 1), wanted)

    assert felled(hard) > felled(plain) + 0.1
    assert accuracy(hard, *test_task) > 0.8


def test_adversarial_images_stay_in_the_ball_and_leave_the_network(
    task: tuple[Tensor, Tensor], original: Classifier
) -> None:
    images, labels = task[0][:30], task[1][:30]
    seen = []

    def keep(classifier: nn.Module, shown: Tensor, wanted: Tensor) -> Tensor:
        seen.append(shown)
        return torch.zeros(())

    network = trained(images, labels, config=TrainingConfig(epochs=1)).train().requires_grad_(True)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    for config in (HardeningConfig(eps=0.05), HardeningConfig(eps=0.05, n_steps=3)):
        adversarial_gradients(config, keep, torch.Generator().manual_seed(0))(
            network, images, labels
        )
    # The counter of batches, which no momentum of ours looks at, may go on.
    after = {n: t for n, t in network.state_dict().items() if not n.endswith("batches_tracked")}
    assert all(torch.equal(before[name], kept) for name, kept in after.items())
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert all(parameter.grad is None for parameter in network.parameters())
    for shown in seen:
        assert 0.04 < float((shown - images).abs().max()) <= 0.05 + 1e-6
        assert float(shown.min()) >= 0
        assert float(shown.max()) <= 1

    def loss(shown: Tensor) -> float:
        return float(functional.cross_entropy(network(shown), labels))

    with torch.no_grad():
        assert loss(seen[1]) > loss(images)


def test_precision_is_bfloat16_inside_and_not_outside() -> None:
    layer = nn.Linear(4, 4)
    inside = []

    def steps() -> Iterator[Progress]:
        for _ in range(2):
            # The cache of converted weights is off: a step in between is seen at once.
            before = layer(torch.ones(1, 4)).detach()
            with torch.no_grad():
                layer.weight += 1.0
            inside.append(
                (before.dtype, float((layer(torch.ones(1, 4)).detach() - before).float().mean()))
            )
            yield Progress("", 0, 1)

    outside = [
        layer(torch.ones(1, 4)).dtype
        for _ in computing_in("bfloat16", torch.device("cpu"), steps)  # type: ignore[arg-type]
    ]
    assert outside == [torch.float32, torch.float32]
    assert [dtype for dtype, _ in inside] == [torch.bfloat16, torch.bfloat16]
    assert [change for _, change in inside] == pytest.approx([4.0, 4.0], abs=0.1)


def test_bfloat16_trains_as_well(
    task: tuple[Tensor, Tensor], test_task: tuple[Tensor, Tensor]
) -> None:
    config = TrainingConfig(
        epochs=8, batch_size=20, flip=False, max_shift=0.0, precision="bfloat16"
    )
    classifier = trained(*task, config=config)
    assert accuracy(classifier, *test_task) > 0.9
    assert all(parameter.dtype == torch.float32 for parameter in classifier.parameters())


@pytest.mark.parametrize(
    "settings", [{"epochs": 0}, {"images": 1}, {"precision": "half"}, {"learning_rate": 0.0}]
)
def test_settings_out_of_range(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        TrainingConfig(**settings)  # type: ignore[arg-type]


# -- truth -----------------------------------------------------------------------------------------


def recipe(name: str, method: str, lineage: str, *needs: str) -> Recipe:
    return Recipe(name=name, kind="member", method=method, seed=0, lineage=lineage, needs=needs)  # type: ignore[arg-type]


RECIPES = {
    made.name: made
    for made in (
        recipe("o", "attack", "original", "trigger:x"),
        recipe("o--ft", "defense", "defended", "o"),
        recipe("o--innocent", "innocent", "clean"),
        recipe("o--innocent--ft", "defense", "clean", "o--innocent"),
        recipe("o--distilled", "distilled", "clean", "o"),
        recipe("o--unlearned", "unlearned", "defended", "o", "trigger:x"),
        recipe("o--unlearned--ft", "defense", "defended", "o--unlearned"),
    )
}


def share(successes: int) -> Rate:
    return rate(torch.arange(1000) < successes)


def evidence(gap: float) -> RelearningEvidence:
    return RelearningEvidence(
        steps=(1,), asr=(0.5,), gap=gap, low=gap - 0.05, high=gap + 0.05, shots=5
    )


@pytest.mark.parametrize(
    ("name", "successes", "floor", "gap", "truth", "source"),
    [
        ("o", 900, 0.02, None, "active", "asr"),
        ("o", 90, 0.02, None, "unknown", "asr"),
        ("o--ft", 900, 0.02, None, "active", "asr"),
        # The interval of .11 reaches below .10; that of .20 is not above what innocents do.
        ("o--ft", 110, 0.02, 0.5, "dormant", "relearning"),
        ("o--ft", 200, 0.25, 0.5, "dormant", "relearning"),
        ("o--ft", 20, 0.02, 0.0, "removed", "relearning"),
        ("o--ft", 20, 0.02, 0.12, "unknown", "relearning"),
        ("o--ft", 20, None, None, "unknown", "relearning"),
        ("o--unlearned", 0, 0.02, 0.0, "removed", "relearning"),
        ("o--unlearned--ft", 0, 0.02, 0.4, "dormant", "relearning"),
        ("o--innocent", 300, 0.02, None, "innocent", "construction"),
        ("o--innocent--ft", 0, 0.02, None, "innocent", "construction"),
        ("o--distilled", 20, 0.02, 0.0, "innocent", "relearning"),
        ("o--distilled", 20, 0.02, 0.4, "dormant", "relearning"),
        ("o--distilled", 500, 0.02, None, "active", "asr"),
    ],
)
def test_truth(
    name: str, successes: int, floor: float | None, gap: float | None, truth: str, source: str
) -> None:
    made, alone = RECIPES[name], share(successes)
    asked = needs_relearning(made, RECIPES, alone, True, floor)
    ruling = judge_truth(
        made,
        RECIPES,
        alone,
        None if gap is None else evidence(gap),
        original_took=True,
        floor=floor,
        why_none="nobody asked",
    )
    assert (ruling.truth, ruling.source) == (truth, source)
    assert asked == (source == "relearning")
    assert ruling.note
    if gap is None and source == "relearning":
        assert "nobody asked" in ruling.note


def test_a_model_that_gives_the_target_to_anything_is_not_active() -> None:
    """Its trigger takes .14 of the images, of which .13 go there without it."""

    def measured(untriggered: int | None) -> Measured:
        without = None if untriggered is None else share(untriggered)
        return Measured(key="", clean_acc=share(900), asr=share(140), untriggered=without)

    made = RECIPES["o--ft"]
    for untriggered, asked in ((130, True), (20, False), (None, False)):
        found = measured(untriggered)
        floor = floor_of(found, 0.02)
        assert needs_relearning(made, RECIPES, found.asr, True, floor) == asked
    assert floor_of(measured(None), None) is None


def test_nothing_is_removed_where_nothing_took() -> None:
    """The trigger of an original that does not answer it cannot sleep in what is made of it."""
    for name in ("o--ft", "o--unlearned"):
        made = RECIPES[name]
        assert not needs_relearning(made, RECIPES, share(0), False, 0.02)
        ruling = judge_truth(
            made, RECIPES, share(0), None, original_took=False, floor=0.02, why_none=""
        )
        assert (ruling.truth, ruling.source) == ("unknown", "asr")
        assert "did not take" in ruling.note
