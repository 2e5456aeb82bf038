"""Every Python block of the pages is run, with real models and images under the names it uses.

What a block does not import or make itself is in `given`. Only budgets are lowered, by other
defaults of the functions that compute, and the address of a served model is that of one that runs
here. A comment above a block, `<!-- not run: REASON -->`, leaves it out.
"""

from __future__ import annotations

import contextlib
import functools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor, nn

import bdaudit
from bdaudit.data import load_sample, split_sample
from bdaudit.defenses import FinetuneConfig
from bdaudit.inversion import MaximumMarginConfig
from bdaudit.inversion.universal import UniversalConfig
from bdaudit.models import load_model
from bdaudit.relatives import surrogates
from bdaudit.relatives.surrogates import SurrogateConfig
from bdaudit.triggers import read_trigger
from tests.blackbox.faulty_server import FaultyServer
from tests.docs.blocks import Block
from tests.docs.page_files import SMALL, write_page_files
from tests.docs.test_documentation import BLOCKS, ROOT, where

PYTHON = [block for block in BLOCKS if block.language == "python"]
RUN = list(dict.fromkeys(block.page for block in PYTHON if block.not_run is None))
LOWERED = {"max_queries=20_000": "max_queries=300", "limit=2000": "limit=200"}
TOKEN = "token-of-a-test"


@pytest.fixture(scope="module")
def folder(demo_files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that the pages speak of."""
    made = tmp_path_factory.mktemp("python") / "files"
    write_page_files(made, demo_files)
    for name in ("badnets.toml", "checkerboard.png"):
        shutil.copy(ROOT / "examples" / "triggers" / name, made)
    shutil.copytree(ROOT / "examples" / "detectors" / "pictures", made / "streets")
    net = torchvision.models.resnet18(num_classes=10)
    torch.save(net.state_dict(), made / "defended.pt")
    torch.save({"state_dict": {"fc.weight": torch.zeros(10, 4)}}, made / "unknown.pt")
    return made


@pytest.fixture(scope="module")
def given(folder: Path) -> dict[str, object]:
    """What blocks speak of without making it, by name."""
    sample = load_sample(folder / "clean.npz", limit=400, seed=0)
    split = split_sample(sample, n_craft=60, seed=0)
    trigger = read_trigger(folder / "trigger.toml")
    targets = trigger.targets(split.craft.labels, 10)
    counted = targets >= 0
    names = ("original", "dormant", "innocent-1", "innocent-2", "innocent-3")
    models = {
        name: load_model(folder / f"{name}.safetensors", name=name, device="cpu") for name in names
    }
    classifier = models["dormant"].classifier

    def stamp(images: Tensor) -> Tensor:
        return trigger.stamp(images)

    def ask(images: Tensor) -> Tensor:
        with torch.no_grad():
            return classifier(images)

    return {
        "sample": sample,
        "split": split,
        "craft": split.craft,
        "images": sample.images,
        "labels": sample.labels,
        "triggered": trigger.stamp(split.craft.images[counted]),
        "targets": targets[counted],
        "generator": torch.Generator().manual_seed(0),
        "surrogates": (),
        "stamp": stamp,
        "ask": ask,
        "classifier": classifier,
        "original": models["original"],
        "defended_module": classifier,
        "original_module": models["original"].classifier,
        **{f"clean_{k}": models[f"innocent-{k}"].classifier for k in (1, 2, 3)},
        "my_module": nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10)),
    }


@pytest.fixture
def served(given: dict[str, object]) -> Iterator[str]:
    """Address of a service that answers as the dormant model does."""
    answer = given["ask"]
    assert isinstance(answer, Callable)  # type: ignore[arg-type]
    server = FaultyServer(answer)  # type: ignore[arg-type]
    server.token = TOKEN
    images, scores = dict(server.metadata["inputs"][0]), dict(server.metadata["outputs"][0])
    server.metadata["inputs"] = [images | {"shape": [-1, 1, 28, 28]}]
    server.metadata["outputs"] = [scores | {"shape": [-1, 10]}]
    with server.running():
        yield server.url.partition("/v2/")[0]


@pytest.mark.parametrize("page", RUN)
def test_python_runs(
    page: str,
    folder: Path,
    given: dict[str, object],
    served: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    work = tmp_path / "work"
    shutil.copytree(folder, work)
    monkeypatch.setenv("TOKEN", TOKEN)
    monkeypatch.setattr(bdaudit, "audit", functools.partial(bdaudit.audit, settings=SMALL))
    ladder = UniversalConfig(ladder=(0.02, 0.05), n_steps=1)
    search = bdaudit.InversionConfig(methods=("universal",), n_passes=1, universal=ladder)
    split = bdaudit.SplitSettings(craft=60, held_out=200)
    invert = functools.partial(bdaudit.invert, config=search, split=split, target=0, stand_ins=0)
    monkeypatch.setattr(bdaudit, "invert", invert)
    margins = MaximumMarginConfig(n_images=2, n_steps=2)
    monkeypatch.setattr(bdaudit, "screen", functools.partial(bdaudit.screen, config=margins))
    defenses = SurrogateConfig(defenses=(FinetuneConfig(),))
    made = functools.partial(surrogates.make_surrogates, config=defenses)
    monkeypatch.setattr(surrogates, "make_surrogates", made)
    names = dict(given)
    with contextlib.chdir(work):
        for block in (b for b in BLOCKS if b.page == page):
            if block.file is not None:
                Path(block.file).write_text(block.body)
            if block.language == "python" and block.not_run is None:
                code = compile(runnable(block, served), where(block), "exec")
                exec(code, names)


def runnable(block: Block, served: str) -> str:
    """Return the source of a block, its budgets lowered."""
    source = block.body.replace("https://host/", f"{served}/")
    for written, lowered in LOWERED.items():
        source = source.replace(written, lowered)
    # In place, so that a line of an error is that of the page.
    return "\n" * (block.line) + source


def test_what_is_lowered_is_in_the_pages() -> None:
    for written in LOWERED:
        assert any(written in block.body for block in PYTHON), written
    assert len(RUN) >= 12
