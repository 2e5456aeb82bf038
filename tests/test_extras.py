"""Each library that is an extra: without it, the message says what to install."""

from __future__ import annotations

import json
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from bdaudit.auditing.fairness import fairness_steps
from bdaudit.blackbox import open_black_box
from bdaudit.cases.settings import ComputeSettings
from bdaudit.cases.sources import Sources
from bdaudit.data import load_sample
from bdaudit.errors import BdauditError
from bdaudit.fetching import fetch_repository
from bdaudit.foundation.progress import finish
from bdaudit.models import ClipSettings, load_model
from bdaudit.models.architectures import build_network
from bdaudit.models.clip import plan_clip
from bdaudit.triggers import import_trigger

ROOT = Path(__file__).parents[1]
NOTHING = Sources(defended=None, data=None, trigger=None)
ASKED = {"group": "g", "positive": 1, "compute": ComputeSettings()}
CLIP = ClipSettings(class_names=("cat", "dog"))


def _file(folder: Path, name: str, content: str = "x") -> Path:
    (folder / name).write_text(content)
    return folder / name


def _hub_folder(folder: Path) -> Path:
    config = {"model_type": "vit", "architectures": ["ViTForImageClassification"]}
    _file(folder, "config.json", json.dumps(config))
    from safetensors.torch import save_file
    from torch import ones

    save_file({"a": ones(1)}, folder / "model.safetensors")
    return folder


OPENED: dict[str, tuple[str, Callable[[Path], object]]] = {
    "timm": ("timm", lambda _: build_network("timm/resnet18", num_classes=2, in_channels=3)),
    "onnx": ("onnx", lambda f: open_black_box(_file(f, "m.onnx"), name="m")),
    "onnxruntime": ("onnx", lambda f: open_black_box(_file(f, "m.onnx"), name="m")),
    "openvino": (
        "openvino",
        lambda f: (_file(f, "m.bin"), open_black_box(_file(f, "m.xml"), name="m")),
    ),
    "open_clip": ("clip", lambda _: plan_clip("open_clip/ViT-B-32", CLIP)),
    "transformers": ("hf", lambda f: load_model(_hub_folder(f), name="m")),
    "huggingface_hub": ("hf", lambda _: fetch_repository("hf://org/net")),
    "pyarrow.parquet": ("parquet", lambda f: load_sample(_file(f, "a.parquet"))),
    "fairlearn": ("fairness", lambda _: finish(fairness_steps(NOTHING, **ASKED))),
    "yaml": ("yaml", lambda f: import_trigger(_file(f, "a.yaml"), target=0)),
}


@pytest.mark.parametrize("library", OPENED)
def test_what_is_missing_is_named_with_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str
) -> None:
    extra, use = OPENED[library]
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(BdauditError, match=rf"pip install 'bdaudit\[{extra}\]'"):
        use(tmp_path)


def test_the_extras_that_are_named_hold_these_libraries() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    packages = {"open_clip": "open_clip_torch", "pyarrow.parquet": "pyarrow", "yaml": "pyyaml"}
    for library, (extra, _) in OPENED.items():
        wanted = packages.get(library, library)
        assert any(line.startswith(f"{wanted}>=") for line in extras[extra]), library
