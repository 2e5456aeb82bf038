"""Image classifiers of transformers, built from a folder's config alone.

The class is looked up in the library's own table by the model's type, never by what a folder
names, and gets weights that were read here. Nothing is downloaded and no code of a folder runs.
"""

from __future__ import annotations

import importlib
import re
import textwrap
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from bdaudit.errors import ModelError
from bdaudit.models.weight_sets import quote_names

__all__ = [
    "HubNetwork",
    "TransformersPlan",
    "gist",
    "import_transformers",
    "plan_classifier",
    "quiet_library",
]

# They take other inputs than pixels, give more than classes, or build what is not in the folder.
_OTHER_INPUTS = frozenset(
    {"dinat", "imagegpt", "perceiver", "shieldgemma2", "siglip2", "timm_wrapper"}
)
# How a model is run, which is decided here: some name code on the hub, or change the outputs.
_NOT_STRUCTURE = frozenset(
    {
        "architectures",
        "attn_implementation",
        "dtype",
        "experts_implementation",
        "is_decoder",
        "output_attentions",
        "output_hidden_states",
        "return_dict",
        "torch_dtype",
        "torchscript",
        "transformers_version",
        "use_cache",
        "use_kernels",
    }
)
_LARGEST = 10_000_000
_MOST_ENTRIES = 1_000_000
_REPEATED = re.compile(r"layer|depth|repeat|block")
_SLACK_BYTES = 64 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class TransformersPlan:
    """A class of transformers and what it is built with; it can be pickled and built anywhere.

    Attributes:
        source: The file it was read from.
        class_name: "ViTForImageClassification".
        model_type: "vit".
        config: What the class' config is made of.
    """

    source: Path
    class_name: str
    model_type: str
    config: dict[str, Any]

    @property
    def arch(self) -> str:
        """How records name it."""
        return f"transformers/{self.class_name}"

    def build(self) -> nn.Module:
        """Build the model on the CPU, with weights from torch's global generator.

        Raises:
            ModelError: transformers cannot build it.
        """
        model_class, config = self._parts()
        with self._failing(), quiet_library():
            model: nn.Module = model_class(config)
        return model

    def fill(self, tensors: Mapping[str, Tensor]) -> nn.Module:
        """Build the model around a checkpoint's tensors, renamed as the library does.

        Raises:
            ModelError: They are more or fewer than the model has, or of other shapes.
        """
        model_class, config = self._parts()
        self._demand_size(model_class, config, tensors)
        with self._failing(), quiet_library():
            model, info = model_class.from_pretrained(
                None,
                config=config,
                state_dict=dict(tensors),
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # refused below, with their names
                dtype=torch.float32,
            )
        for kind, names in (
            ("missing", info["missing_keys"]),
            ("unexpected", info["unexpected_keys"]),
            ("of another shape", info["mismatched_keys"]),
        ):
            if names:
                raise ModelError(
                    f"{self.source}: expected the weights of a {self.class_name}, got some "
                    f"{kind}: {quote_names(sorted(_name_of(name) for name in names))}"
                )
        filled: nn.Module = model
        return filled

    def _parts(self) -> tuple[Any, Any]:
        transformers = import_transformers(self.source)
        with self._failing(), quiet_library():
            config = transformers.AutoConfig.for_model(self.model_type, **self.config)
            config._attn_implementation = "eager"
            return getattr(transformers, self.class_name), config

    def _demand_size(self, model_class: Any, config: Any, tensors: Mapping[str, Tensor]) -> None:
        """Compare what the config asks for with what the file holds, before memory is taken."""
        for name, number in _repeats(self.config):
            if number > max(64, len(tensors)):
                raise ModelError(
                    f"{self.source}: expected a network of the {len(tensors)} tensors of the file, "
                    f"got {name} of {number}"
                )
        with self._failing(), quiet_library(), torch.device("meta"):
            shell = model_class(config)
        wanted = sum(t.numel() * 4 for t in [*shell.parameters(), *shell.buffers()])
        held = sum(t.numel() * 4 for t in tensors.values())
        if wanted > 2 * held + _SLACK_BYTES:
            raise ModelError(
                f"{self.source}: expected a network of the {held / 1e6:.0f} MB of the file, got a "
                f"config that asks for {wanted / 1e6:.0f} MB"
            )

    @contextmanager
    def _failing(self) -> Iterator[None]:
        try:
            yield
        except ModelError:
            raise
        except Exception as error:
            raise ModelError(
                f"{self.source}: transformers cannot build {self.class_name} from it: {gist(error)}"
            ) from error


class HubNetwork(nn.Module):
    """A classifier of transformers as a network: normalised images to logits.

    Args:
        model: Maps `pixel_values` to an output with `logits`.
        plan: What it was built from.
        flips_channels: Whether it takes blue, green, red.
        image_size: (H, W) it was configured for, `None` where any will do.
    """

    def __init__(
        self,
        model: nn.Module,
        plan: TransformersPlan,
        *,
        flips_channels: bool = False,
        image_size: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.plan = plan
        self.flips_channels = flips_channels
        self.image_size = image_size

    def forward(self, images: Tensor) -> Tensor:
        """Map normalised images (N, C, H, W) to logits (N, K)."""
        if self.flips_channels:
            images = images.flip(1)
        logits: Tensor = self.model(pixel_values=images).logits
        return logits


def plan_classifier(source: Path, config: Mapping[str, Any]) -> TransformersPlan:
    """Find the class that a `config.json` describes.

    Args:
        source: The file, for messages.
        config: What it holds.

    Raises:
        ModelError: transformers is missing, has no image classifier of this type, or the config
            asks for what is not in the folder.
    """
    import_transformers(source)
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES as KNOWN,
    )

    model_type, named = config.get("model_type"), config.get("architectures") or []
    if not isinstance(model_type, str) or not isinstance(named, list):
        raise ModelError(
            f"{source}: expected a config of transformers, with model_type and architectures, or "
            "of timm, with architecture and pretrained_cfg"
        )
    known = KNOWN.get(model_type, ())
    classes = (known,) if isinstance(known, str) else tuple(known)
    chosen = [name for name in named if name in classes]
    if not chosen or model_type in _OTHER_INPUTS:
        raise ModelError(
            f"{source}: expected an image classifier of transformers, got "
            f"{quote_names([str(name) for name in named]) or 'none'} of type {model_type[:80]!r}"
            + (f"; a model with its head is {' or '.join(classes)}" if classes else "")
        )
    if config.get("problem_type") in ("regression", "multi_label_classification"):
        raise ModelError(f"{source}: expected one class an image, got {config['problem_type']!r}")
    return TransformersPlan(
        source=source,
        class_name=chosen[0],
        model_type=model_type,
        config=structure_of(source, config),
    )


def structure_of(source: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of a config says how a network is built.

    Raises:
        ModelError: It asks for what is not in the folder, or holds numbers that no network has.
    """
    for key in ("quantization_config", "use_timm_backbone", "backbone"):
        if config.get(key):
            raise ModelError(
                f"{source}: expected a network of its own weights, got {key!r}, which takes other "
                "code or other weights; save the plain float model"
            )
    if sum(1 for _ in _numbers(config)) > _MOST_ENTRIES or any(
        abs(number) > _LARGEST for number in _numbers(config)
    ):
        raise ModelError(f"{source}: expected the sizes of a network, got numbers beyond any")
    kept = {
        key: value
        for key, value in config.items()
        if not key.startswith("_") and key not in _NOT_STRUCTURE and key != "model_type"
    }
    # JSON's keys are texts.
    labels = kept.get("id2label")
    if isinstance(labels, dict):
        kept["id2label"] = {int(k): str(v) for k, v in labels.items() if str(k).isdecimal()}
        kept["label2id"] = {v: k for k, v in kept["id2label"].items()}
    return kept


def import_transformers(source: Path) -> ModuleType:
    """Import transformers.

    Raises:
        ModelError: It is not installed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import transformers
    except ImportError as error:
        raise ModelError(
            f"{source}: a model of transformers needs transformers, which is not installed; pip "
            "install 'bdaudit[hf]'"
        ) from error
    return transformers


@contextmanager
def quiet_library() -> Iterator[None]:
    """Keep transformers from writing progress and advice on the terminal."""
    logging: Any = importlib.import_module("transformers.utils.logging")
    level, shown = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()


def gist(error: Exception) -> str:
    """Say in a line what a library says in many."""
    text = str(error).strip()
    return textwrap.shorten(text, 200, placeholder=" ...") if text else type(error).__name__


def _name_of(key: Any) -> str:
    """Name a tensor, which of another shape comes with both shapes."""
    return str(key[0]) if isinstance(key, tuple) else str(key)


def _numbers(value: Any) -> Iterator[float]:
    pending = [value]
    while pending:
        each = pending.pop()
        if isinstance(each, dict):
            pending += each.values()
        elif isinstance(each, list | tuple):
            pending += each
        elif isinstance(each, int | float):
            yield each


def _repeats(config: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Yield the settings that say how often something is repeated, which takes time to build."""
    for key, value in config.items():
        if isinstance(value, dict) and key not in ("id2label", "label2id"):
            yield from _repeats(value)
        elif _REPEATED.search(key):
            for number in _numbers(value):
                yield key, number
