"""Steps that are recorded and replayed, on a card and on a pretended one."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, nullcontext

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import bdaudit
from bdaudit.data import from_arrays, split_sample
from bdaudit.defenses.momentum import Momentum
from bdaudit.defenses.tuning import TuningConfig, tune
from bdaudit.foundation import recording
from bdaudit.foundation.progress import finish
from bdaudit.foundation.recording import Answers, Replayed
from bdaudit.models import wrap_module
from bdaudit.reactivation.objective import standard_objective
from bdaudit.reactivation.recipes import RECIPES
from bdaudit.reactivation.stepping import N_SUMS, Stepper
from bdaudit.relatives.standins import StandInConfig, make_stand_ins
from bdaudit.relearning import RelearnConfig, Relearned, Teaching, relearn
from bdaudit.scoring import predict
from bdaudit.triggers import poison
from tests.defenses.pictures import pictures, small_net
from tests.pretend import pretended_card, pretended_graphs
from tests.twins import TARGET, dormant_twin, twin_sample, twin_trigger

REAL = torch.cuda.is_available()
pytestmark = [pytest.mark.cuda] if REAL else []


@pytest.fixture
def card() -> Iterator[torch.device]:
    """A card on which graphs can be recorded, pretended where there is none."""
    with ExitStack() as stack:
        if REAL:
            yield torch.device("cuda")
        else:
            device = stack.enter_context(pretended_card())
            stack.enter_context(pretended_graphs())
            yield device


def counting(step: Callable[..., None]) -> tuple[Callable[..., None], list[int]]:
    """The step, and how often Python took it."""
    calls = [0]

    def counted(*inputs: Tensor) -> None:
        calls[0] += 1
        step(*inputs)

    return counted, calls


def test_a_replayed_step_does_what_the_step_does(card: torch.device) -> None:
    sums = torch.zeros(3, device=card)
    step, calls = counting(lambda values: sums.add_(values.square()))
    replayed = Replayed(step, lambda: (sums,), lambda: ((sums,),))
    for number in range(20):
        replayed(torch.full((3,), float(number), device=card))
    assert sums.cpu().tolist() == [sum(n * n for n in range(20))] * 3
    assert replayed.may_replay
    assert calls[0] == 3 + 2  # taken, judged, recorded; and never again


def test_every_shape_is_recorded_by_itself(card: torch.device) -> None:
    total = torch.zeros((), device=card)
    step, calls = counting(lambda values: total.add_(values.sum()))
    replayed = Replayed(step, lambda: (total,), lambda: ((total,),))
    for number in range(12):
        replayed(torch.ones(3 + number % 2, device=card))
    assert float(total) == 6 * 3 + 6 * 4
    assert calls[0] == 2 * (3 + 2)


@pytest.mark.parametrize("kind", ["waits", "counts", "nothing moves"])
def test_what_cannot_be_replayed_is_taken_as_it_is(kind: str, card: torch.device) -> None:
    total = torch.zeros((), device=card)
    calls = [0]

    def step(values: Tensor) -> None:
        calls[0] += 1
        if kind == "waits":
            total.add_(float(values.sum().cpu()))
        elif kind == "counts":
            total.add_(values.sum() * (calls[0] % 3))

    replayed = Replayed(step, lambda: (total,), lambda: ((total,),))
    for _ in range(9):
        replayed(torch.ones(2, device=card))
    assert not replayed.may_replay or kind == "nothing moves"
    if kind == "waits":
        assert float(total) == 18.0


def test_a_recording_that_fails_leaves_the_state_as_it_was(
    card: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory runs out once the step was taken to be held against its replay."""
    total, copies = torch.zeros((), device=card), []
    copied = recording._copied

    def few(tensors: Sequence[Tensor]) -> list[Tensor]:
        copies.append(1)
        if len(copies) == 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return copied(tensors)

    monkeypatch.setattr(recording, "_copied", few)
    replayed = Replayed(
        lambda values: total.add_(values.sum()), lambda: (total,), lambda: ((total,),)
    )
    ones = torch.ones(1, device=card)
    for _ in range(6):
        replayed(ones)
    assert replayed.why_not == "too little memory"
    assert float(total) == 6.0
    must_fit = Replayed(lambda values: None, lambda: (total,), lambda: ((total,),), must_fit=True)
    copies.clear()
    for _ in range(3):
        must_fit(ones)
    with pytest.raises(torch.OutOfMemoryError):
        must_fit(ones)


@pytest.mark.skipif(REAL, reason="a real one records on its own device")
def test_a_step_that_was_taken_instead_of_recorded_is_seen(
    card: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where another device records than the one the step is on: its graph is empty."""
    monkeypatch.setattr(torch.cuda, "graph", lambda graph, stream=None: nullcontext())
    total = torch.zeros((), device=card)
    replayed = Replayed(
        lambda values: total.add_(values.sum()), lambda: (total,), lambda: ((total,),)
    )
    for _ in range(8):
        replayed(torch.ones(2, device=card))
    assert replayed.why_not == "the step was taken and not recorded"
    assert float(total) == 16.0


def test_a_replay_that_moves_no_weights_is_seen(card: torch.device) -> None:
    """However much else of the state moves: a small learning rate moves weights by little."""
    weights, sums = torch.ones(4, device=card), torch.zeros(4, device=card)
    calls = [0]

    def step(values: Tensor) -> None:
        calls[0] += 1
        sums.add_(values)
        if calls[0] <= 4:  # and not when it is recorded
            weights.sub_(1e-4 * values)

    replayed = Replayed(step, lambda: (weights, sums), lambda: ((weights,), (sums,)))
    for _ in range(5):
        replayed(torch.ones(4, device=card))
    assert not replayed.may_replay


def test_what_was_recorded_goes_with_what_it_was_for() -> None:
    """At once, and not when Python looks for cycles: it holds the memory of a card."""
    sample = twin_sample(60, seed=1)
    poisoned = poison(sample, bdaudit.from_callable(twin_trigger, TARGET), 4)
    teaching = Teaching(
        dormant_twin(),
        sample.images,
        sample.labels,
        craft=poisoned,
        held_out=poisoned,
        config=RelearnConfig(draws=1),
        generator=torch.Generator().manual_seed(0),
    )
    stepper = Stepper(
        standard_objective(dormant_twin(), RECIPES["default"].loss, bf16=False),
        [],
        deltas=torch.zeros(1, 1, 8, 8),
        sums=torch.zeros(1, N_SUMS),
    )
    net = small_net().eval()
    answers = Answers(net)
    answers(pictures(4, seed=0)[0])
    left = [weakref.ref(part) for part in (teaching._pupil._model, stepper.deltas, answers)]
    gc.disable()
    try:
        del teaching, stepper, answers
        assert [gone() for gone in left] == [None, None, None]
    finally:
        gc.enable()


def test_a_classifier_is_asked_by_replays_after_its_weights_moved(card: torch.device) -> None:
    net = small_net().eval().to(card)
    answers = Answers(net)
    images = pictures(40, seed=3)[0].to(card)
    for number in range(8):
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.mul_(1.0 + 0.01 * number)
            expected = net(images).cpu()
        torch.testing.assert_close(answers(images).cpu(), expected, rtol=1e-4, atol=1e-4)


def test_the_same_step_as_torch_takes() -> None:
    """To the last bit: what is trained on a processor stays what it was."""
    draw = torch.Generator().manual_seed(0)
    ours, theirs, fused = (copy.deepcopy(small_net().requires_grad_(True)) for _ in range(3))
    mine = Momentum(ours.parameters(), momentum=0.9, weight_decay=5e-4)
    recorded = Momentum(fused.parameters(), momentum=0.9, weight_decay=5e-4)
    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    images, labels = pictures(40, seed=2)
    for rate in torch.rand(6, generator=draw).tolist():
        optimizer.param_groups[0]["lr"] = rate
        for net in (ours, theirs, fused):
            net.zero_grad(set_to_none=True)
            functional.cross_entropy(net(images), labels).backward()  # type: ignore[no-untyped-call]
        mine.step(rate)
        recorded.step(torch.tensor(rate))
        optimizer.step()
    for one, other, third in zip(
        ours.parameters(), theirs.parameters(), fused.parameters(), strict=True
    ):
        assert torch.equal(one, other)
        torch.testing.assert_close(third, other, rtol=1e-4, atol=1e-5)


def test_training_by_replays_is_training(card: torch.device) -> None:
    """Mini-batches of two sizes, shifted and flipped; batch norm's statistics move too."""
    images, labels = pictures(108, seed=2)

    def trained(where: torch.device | str, *, replayed: bool) -> tuple[nn.Module, int]:
        net = small_net().requires_grad_(True).to(where)
        calls = [0]

        def gradients(model: nn.Module, batch: Tensor, answers: Tensor) -> Tensor:
            calls[0] += 1
            loss = functional.cross_entropy(model(batch), answers)
            loss.backward()  # type: ignore[no-untyped-call]
            return loss.detach()

        steps = tune(
            net,
            images,
            labels,
            config=TuningConfig(n_epochs=6, batch_size=25),
            generator=torch.Generator().manual_seed(0),
            title="training",
            gradients=gradients,
            replayed=replayed,
        )
        finish(steps)
        return net.cpu(), calls[0]

    expected, n_steps = trained("cpu", replayed=True)
    found, n_taken = trained(card, replayed=True)
    assert n_steps == 30
    assert n_taken < n_steps
    for name, tensor in expected.state_dict().items():
        torch.testing.assert_close(
            found.state_dict()[name].cpu(), tensor, rtol=2e-2, atol=2e-2, msg=name
        )


def test_relearning_by_replays_is_relearning(card: torch.device) -> None:
    halves = split_sample(twin_sample(300, seed=1), n_craft=80, n_held_out=None, seed=0)
    trigger = bdaudit.from_callable(twin_trigger, TARGET)
    craft, held_out = (poison(half, trigger, 4) for half in (halves.craft, halves.held_out))

    taught: list[int] = []

    class Counted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = dormant_twin()

        def forward(self, images: Tensor) -> Tensor:
            taught.append(len(images))
            answers: Tensor = self.net(images)
            return answers

    def found(where: torch.device | str) -> Relearned:
        taught.clear()
        steps = relearn(
            Counted().to(where),
            halves.craft.images,
            halves.craft.labels,
            craft=craft,
            held_out=held_out,
            config=RelearnConfig(learning_rates=(1e-3, 1e-2), draws=2),
            generator=torch.Generator().manual_seed(0),
        )
        return finish(steps)

    expected, n_calls = found("cpu"), len(taught)
    replayed = found(card)
    assert len(taught) < n_calls / 4
    for rate in (1e-3, 1e-2):
        for name in ("triggered", "clean"):
            same = getattr(replayed, name)[rate] == getattr(expected, name)[rate]
            assert same.double().mean() > 0.97


@pytest.mark.parametrize("lessons", ["answers", "labels"])
def test_a_stand_in_taught_by_replays_learns_the_task(lessons: str, card: torch.device) -> None:
    taught = wrap_module(small_net(), name="defended", image_shape=(1, 8, 8), device=card)
    steps = make_stand_ins(
        taught,
        from_arrays(*pictures(90, seed=11)),
        count=1,
        config=StandInConfig(n_images=3_000, batch_size=30, max_shift=0.0, lessons=lessons),  # type: ignore[arg-type]
        generator=torch.Generator().manual_seed(0),
    )
    calls = [0]
    taught.classifier.register_forward_hook(lambda *_: calls.__setitem__(0, calls[0] + 1))
    (made,) = finish(steps)
    assert calls[0] < 20  # its fresh copies count too; there are 100 steps
    images, labels = pictures(300, seed=12)
    answers = predict(made.classifier, images, batch_size=100, device=card)
    assert (answers == labels).double().mean() > 0.8
