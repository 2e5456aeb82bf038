"""`precision` reaches everything that attacks, scores an attack or trains, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

import bdaudit
from bdaudit.cases.opening import open_inputs
from bdaudit.cases.sources import Sources
from bdaudit.measuring.asking import ask
from bdaudit.measuring.compute import Compute
from bdaudit.settings import Precision, PrecisionChoice
from tests.auditing.test_audit import TRIGGER, another_innocent
from tests.cli.twin_files import write_twin_files
from tests.twins import TwinNet, dormant_twin, original_twin, removed_twin, twin_sample

FACTORY = f"{Path(__file__).parents[1] / 'cli' / 'twin_factory.py'}:twin"

Seen = set[tuple[bool, bool]]
"""Of every forward pass: whether under autocast, whether it will be differentiated."""


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    found: Seen = set()
    forward = TwinNet.forward

    def watched(self: TwinNet, images: Tensor) -> Tensor:
        found.add((torch.is_autocast_enabled("cpu"), torch.is_grad_enabled()))
        return forward(self, images)

    monkeypatch.setattr(TwinNet, "forward", watched)
    return found


def compute(precision: Precision) -> bdaudit.ComputeSettings:
    return bdaudit.ComputeSettings(device="cpu", precision=precision)


def audit(precision: Precision, **changes: object) -> None:
    settings = bdaudit.AuditSettings(
        eps=(0.05,),
        passes=2,
        controls=("noise",),
        stand_ins=0,
        compute=compute(precision),
        split=bdaudit.SplitSettings(craft=100),
        **changes,  # type: ignore[arg-type]
    )
    record = bdaudit.audit(
        dormant_twin(),
        original=original_twin(),
        data=twin_sample(400, seed=1),
        trigger=TRIGGER,
        reference=[another_innocent(1)],
        surrogate=[removed_twin()],
        settings=settings,
    )
    assert record.settings["compute"]["precision"] == precision


def white(precision: Precision, folder: Path) -> None:
    audit(precision, mode=("white",))


def transfer(precision: Precision, folder: Path) -> None:
    audit(precision, mode=("transfer",), bec=False)


def relearning(precision: Precision, folder: Path) -> None:
    bdaudit.relearn(
        dormant_twin(),
        data=twin_sample(400, seed=1),
        trigger=TRIGGER,
        reference=[another_innocent(1)],
        config=bdaudit.RelearnConfig(draws=1, steps=(2,)),
        stand_ins=0,
        compute=compute(precision),
    )


def score(precision: Precision, folder: Path) -> None:
    bdaudit.score(
        dormant_twin(),
        original=original_twin(),
        data=twin_sample(400, seed=1),
        trigger=TRIGGER,
        reference=[another_innocent(1)],
        compute=compute(precision),
    )


def defend(precision: Precision, folder: Path) -> None:
    write_twin_files(folder)
    record = bdaudit.defend(
        folder / "original.safetensors",
        data=folder / "clean.npz",
        folder=folder / "out",
        trigger=folder / "trigger.toml",
        reference=[folder / "innocent.safetensors"],
        settings=bdaudit.DefendSettings(
            methods=("finetune",),
            settings={"finetune": {"tuning.n_epochs": 1}},
            audit=bdaudit.AuditSettings(
                eps=(0.05,), passes=1, bec=False, stand_ins=0, compute=compute(precision)
            ),
        ),
        model_options=bdaudit.ModelSettings(arch=FACTORY),
    )
    assert [row.status for row in record.tried] == ["audited"]


@pytest.mark.parametrize("verb", [white, transfer, relearning, defend])
def test_every_gradient_is_taken_in_the_precision_asked_for(
    seen: Seen, verb: Callable[[Precision, Path], None], tmp_path: Path
) -> None:
    verb("bfloat16", tmp_path)
    assert (True, True) in seen
    assert (False, True) not in seen
    # Clean accuracy and the trigger alone.
    assert (False, False) in seen


@pytest.mark.parametrize("verb", [white, transfer, relearning, score, defend])
def test_nothing_is_autocast_unless_asked_for(
    seen: Seen, verb: Callable[[Precision, Path], None], tmp_path: Path
) -> None:
    verb("float32", tmp_path)
    assert not {autocast for autocast, _ in seen} & {True}


def test_the_coefficient_is_measured_in_the_precision_asked_for(seen: Seen, tmp_path: Path) -> None:
    score("bfloat16", tmp_path)
    assert {autocast for autocast, _ in seen} == {True, False}


class Coarse(nn.Module):
    """Scores that bfloat16 cannot tell apart: class 1 wins by a hair, or class 0 would by rank."""

    asked: ClassVar[list[tuple[bool, int]]] = []  # of all copies: a model is copied when opened

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(1, 4)

    def forward(self, images: Tensor) -> Tensor:
        autocast = torch.is_autocast_enabled("cpu")
        self.asked.append((autocast, len(images)))
        scores = torch.tensor([[8.0, 8.001, 0.0, 0.0], [9.0, 1.0, 0.0, 0.0]])
        # The brighter half of the images is a clear case of class 0.
        clear = (images.mean(dim=(1, 2, 3)) > 0.5).long()
        answers = scores[clear]
        return answers.bfloat16() if autocast else answers


def test_a_tie_that_rounding_made_is_asked_again_in_float32() -> None:
    network = Coarse()
    inputs = open_inputs(
        Sources.of(
            defended=network,
            data=twin_sample(40, seed=1),
            trigger=TRIGGER,
        ),
        split=bdaudit.SplitSettings(craft=20),
        seed=0,
        device=torch.device("cpu"),
    )
    (subject,) = inputs.with_role("defended")
    images = torch.cat([torch.zeros(3, 1, 8, 8), torch.ones(2, 1, 8, 8)])
    Coarse.asked.clear()
    run = Compute(torch.device("cpu"), 0, 8, "bfloat16")
    labels = ask(subject, images, run, delta=torch.zeros(1, 1, 8, 8))
    assert labels.tolist() == [1, 1, 1, 0, 0]
    assert Coarse.asked == [(True, 5), (False, 3)]


@pytest.mark.parametrize(
    ("precision", "device", "has_it", "expected"),
    [
        ("auto", "auto", True, "bfloat16"),
        ("auto", "cuda:0", False, "float32"),
        ("auto", "cpu", True, "float32"),
        ("float32", "cuda", True, "float32"),
        ("bfloat16", "cpu", False, "bfloat16"),
    ],
)
def test_auto_is_bfloat16_on_a_card_that_has_it(
    precision: PrecisionChoice,
    device: str,
    has_it: bool,
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_it)
    settings = bdaudit.ComputeSettings(precision=precision, device=device)
    assert settings.precision == expected
    assert settings.autocast == ("bf16" if expected == "bfloat16" else None)


def test_auto_without_a_card_is_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert bdaudit.ComputeSettings(precision="auto").precision == "float32"
