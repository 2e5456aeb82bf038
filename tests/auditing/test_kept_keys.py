"""The names under which finished work is kept do not change when the code around them does.

A run, a stand-in or a surrogate is found again by a digest of everything that determines it. If
the digest changed without anything it stands for, every interrupted audit would start over.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import bdaudit
from bdaudit.cases.files import FileDigests, request_digests, shared_by
from bdaudit.cases.opening import open_inputs
from bdaudit.cases.request import AuditRequest
from bdaudit.cases.settings import AuditSettings, ComputeSettings, SplitSettings
from bdaudit.cases.sources import Sources
from bdaudit.cases.subjects import Inputs
from bdaudit.data import from_arrays
from bdaudit.foundation.progress import finish
from bdaudit.measuring import runs, surrogates
from bdaudit.measuring.compute import Compute
from bdaudit.measuring.conditions import AttackImages, attack_images
from bdaudit.measuring.query import query_run
from bdaudit.measuring.standins import make_models
from bdaudit.measuring.store import MemoryStore, ScoredRun
from bdaudit.measuring.transfer import transfer_runs
from bdaudit.measuring.white import whitebox_run
from bdaudit.models import keeping
from bdaudit.reactivation import WhiteboxConfig
from bdaudit.reactivation.query_config import QueryConfig
from bdaudit.reactivation.transfer import TransferConfig
from bdaudit.relatives.standins import StandInConfig
from tests.twins import TARGET, innocent_twin, original_twin, removed_twin


class AskedError(Exception):
    """Says what was looked for."""


class Watched(MemoryStore):
    """A store that stops at the first key it is asked for."""

    def find(self, key: str) -> ScoredRun | None:
        raise AskedError(key)


def trigger(images: torch.Tensor) -> torch.Tensor:
    stamped = images.clone()
    stamped[..., 7, 7] = 0.75
    return stamped


@pytest.fixture
def inputs() -> Inputs:
    """Twins and images that are the same to the last bit on any processor."""
    images = torch.full((40, 1, 8, 8), 0.25)
    labels = torch.arange(40) % 4
    images[torch.arange(40), 0, labels, labels] = 0.5
    sources = Sources.of(
        defended=removed_twin(),
        original=original_twin(),
        references=[innocent_twin()],
        surrogates=[removed_twin()],
        data=from_arrays(images, labels),
        trigger=bdaudit.from_callable(trigger, TARGET),
    )
    return open_inputs(sources, split=SplitSettings(craft=20), seed=7, device=torch.device("cpu"))


@pytest.fixture
def images(inputs: Inputs) -> AttackImages:
    return attack_images(
        "trigger",
        inputs.craft_poisoned,
        inputs.held_out_poisoned,
        num_classes=4,
        generator=torch.Generator().manual_seed(0),
    )


@pytest.fixture(autouse=True)
def _same_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "__version__", "0")
    monkeypatch.setattr(keeping, "__version__", "0")
    monkeypatch.setattr("bdaudit.cases.files.__version__", "0")


def key_of(started: Callable[[], object]) -> str:
    with pytest.raises(AskedError) as asked:
        started()
    return str(asked.value)[:16]


COMPUTE = Compute(torch.device("cpu"), 7, 32)


@pytest.mark.parametrize(
    ("config", "key"),
    [
        (WhiteboxConfig(eps=0.02), "4a63a4c32d8fc41f"),
        (WhiteboxConfig(eps=0.02, autocast="bf16"), "e31c056595562323"),
        (WhiteboxConfig(eps=0.5, norm="l2", n_passes=5, restarts=2), "127016d056533698"),
    ],
)
def test_white_box(inputs: Inputs, images: AttackImages, config: WhiteboxConfig, key: str) -> None:
    (subject,) = inputs.with_role("defended")
    steps = whitebox_run(subject, images, config, compute=COMPUTE, store=Watched())
    assert key_of(lambda: finish(steps)) == key


@pytest.mark.parametrize(
    ("config", "key"),
    [
        (QueryConfig(eps=0.02), "b0ca0b11dc743035"),
        (QueryConfig(eps=0.02, max_queries=500, feedback="labels"), "8e556b5e5e7517f5"),
    ],
)
def test_query(inputs: Inputs, images: AttackImages, config: QueryConfig, key: str) -> None:
    (subject,) = inputs.with_role("defended")
    steps = query_run(
        subject,
        images,
        config,
        compute=COMPUTE,
        store=Watched(),
        surrogates=[s.white for s in inputs.with_role("original")],
    )
    assert key_of(lambda: finish(steps)) == key


@pytest.mark.parametrize(
    ("config", "key"),
    [
        (TransferConfig(eps=0.02), "c0e3f354373a9590"),
        (TransferConfig(eps=0.02, strategy="momentum", input_diversity=0.5), "0ee873ab060ee962"),
    ],
)
def test_transfer(inputs: Inputs, images: AttackImages, config: TransferConfig, key: str) -> None:
    steps = transfer_runs(
        inputs.with_role("defended"),
        images,
        config,
        surrogates=[s.white for s in inputs.with_role("surrogate")],
        compute=COMPUTE,
        store=Watched(),
    )
    assert key_of(lambda: finish(steps)) == key


@pytest.fixture
def _stop_at_kept_models(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(self: object, key: str, like: object) -> None:
        raise AskedError(key)

    monkeypatch.setattr(keeping.KeptClassifiers, "read", stop)


@pytest.mark.usefixtures("_stop_at_kept_models")
@pytest.mark.parametrize(
    ("config", "key"),
    [
        (StandInConfig(), "af3121a9ec7b7a9b"),
        (StandInConfig(n_images=1000, lessons="labels", autocast="bf16"), "afc9c3f3cc81b8dd"),
    ],
)
def test_stand_ins(inputs: Inputs, config: StandInConfig, key: str) -> None:
    (subject,) = inputs.with_role("defended")
    steps = make_models(subject.white, inputs.craft, COMPUTE, count=1, config=config)
    assert key_of(lambda: finish(steps)) == key


@pytest.mark.usefixtures("_stop_at_kept_models")
def test_surrogates(inputs: Inputs) -> None:
    (subject,) = inputs.with_role("original")
    steps = surrogates.relative_steps(subject, inputs, COMPUTE, None)
    assert key_of(lambda: finish(steps)) == "6deaa91ff7cb21e7"


@pytest.mark.parametrize(
    ("settings", "settings_key", "case_key"),
    [
        (AuditSettings(relearn=None), "2b61b642891b670a", "b6468800d47a3f10"),
        (
            AuditSettings(
                passes=5,
                eps=(0.02,),
                mode=("query",),
                cold=True,
                bec=False,
                relearn=None,
                compute=ComputeSettings(device="cpu", seed=3),
                split=SplitSettings(craft=20),
            ),
            "14618407ba752a3e",
            "ad635dc79d27a292",
        ),
    ],
)
def test_records_of_a_sweep(
    tmp_path: Path, settings: AuditSettings, settings_key: str, case_key: str
) -> None:
    for name in ("defended.pt", "original.pt", "data.npz", "trigger.toml"):
        (tmp_path / name).write_text(f'kind = "{name}"')
    sources = Sources.of(
        defended=tmp_path / "defended.pt",
        original=tmp_path / "original.pt",
        data=tmp_path / "data.npz",
        trigger=tmp_path / "trigger.toml",
    )
    request = AuditRequest(key="one", sources=sources, settings=settings)
    digests = request_digests(request, FileDigests())
    assert digests is not None
    said = f"{digests['settings']}\n{digests['options']}"
    assert hashlib.sha256(said.encode()).hexdigest()[:16] == settings_key
    # Where runs on originals and references are shared by several audits.
    assert hashlib.sha256(str(shared_by(digests)).encode()).hexdigest()[:16] == case_key
