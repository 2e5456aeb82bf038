"""Build a network by the name of its architecture. Never downloads weights.

| name | network |
|---|---|
| `torchvision/<name>` | any classifier of `torchvision.models`, any of its box detectors |
| `timm/<name>` | any model of timm, where timm is installed |
| `open_clip/<name>` | a CLIP as a zero-shot classifier, see `clip`; only `load_model` builds it |
| `bdaudit/preactresnet18`, `bdaudit/preactresnet18_w<width>` | `preactresnet.PreActResNet` |
| `bdaudit/vgg19_bn_w<width>` | `small.SmallVgg` |
| `bdaudit/mobilenet_v2_w<width>` | `small.SmallMobileNet` |
| `bdaudit/vit_p4_w<width>` | `small.SmallViT` |
| `bdaudit/mlp_f<columns>_w<width>` | `mlp.Mlp`, of a table |
| `bdaudit/fcos_w<width>`, `retinanet`, `ssd`, `fasterrcnn` | a small detector, `detection.small` |
| `path/to/file.py:factory` | what the user's own function returns; runs that file |
| a bare name such as `resnet18` or `preactresnet18` | as BackdoorBench means it |

A detector is built as an `Asked`, which maps marked images (N, 4, H, W) to logits.
"""

from __future__ import annotations

import copy
import difflib
import inspect
import re
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from bdaudit.detection.asked import as_asked
from bdaudit.detection.marking import CHANNELS, PIXELS
from bdaudit.errors import ModelError
from bdaudit.foundation.usercode import failing_as, load_function
from bdaudit.models.mlp import Mlp
from bdaudit.models.preactresnet import preactresnet18
from bdaudit.models.small import SmallMobileNet, SmallVgg, SmallViT
from bdaudit.models.transformers_models import HubNetwork
from bdaudit.models.zeroshot import ZeroShotNetwork

__all__ = [
    "Blueprint",
    "blueprint",
    "blueprint_of",
    "build_network",
    "build_unfilled",
    "canonical_name",
    "from_backdoorbench_name",
    "is_clip",
    "is_detector_arch",
    "is_python_factory",
    "known_detectors",
    "known_torchvision",
    "native_input_size",
    "training_only_prefixes",
]

Shape = tuple[int, ...]

_PREACT = re.compile(r"bdaudit/preactresnet18(?:_w(\d{1,4}))?")
_SMALL = re.compile(r"bdaudit/(vgg19_bn|mobilenet_v2|vit_p4)_w([1-9]\d{0,3})")
_SMALL_NETWORKS = {"vgg19_bn": SmallVgg, "mobilenet_v2": SmallMobileNet, "vit_p4": SmallViT}
_MLP = re.compile(r"bdaudit/mlp_f([1-9]\d{0,4})_w([1-9]\d{0,3})")
_DETECTORS = ("fcos", "retinanet", "ssd", "fasterrcnn")
_DETECTOR = re.compile(rf"bdaudit/({'|'.join(_DETECTORS)})_w([1-9]\d{{0,3}})")
_OURS = (_PREACT, _SMALL, _MLP, _DETECTOR)
_FACTORY = re.compile(r"(?P<file>.+\.py):(?P<function>\w+)")

# Its constructor runs the backbone to count channels, which takes weights.
_RUN_WHILE_BUILT = frozenset({"torchvision/ssdlite320_mobilenet_v3_large"})

_FEW, _MORE = 7, 11  # classes that an architecture is built with to find its head

# Classifiers used in training only: neither built nor loaded.
_AUXILIARY_HEADS = {
    "torchvision/googlenet": ("aux1.", "aux2."),
    "torchvision/inception_v3": ("AuxLogits.",),
}


def build_network(
    arch: str,
    *,
    num_classes: int | None,
    in_channels: int = 3,
    generator: torch.Generator | None = None,
) -> nn.Module:
    """Build a network with fresh weights on the CPU, in training mode.

    The classification head takes its size from the architecture's own argument. For
    `in_channels` other than 3, torchvision's networks, which have no such argument, get a stem
    convolution that differs from theirs in its input channels only; timm's and ours have one.

    Args:
        arch: Name as in the table of this module.
        num_classes: Length of the logits; `None` leaves it to the default of a Python factory.
        in_channels: Channels of the images; of a detector, which takes pictures of 3, also 4.
        generator: Seeds the initial weights, and torch's global generator is left as it was;
            without it they come from the global one, as any torch constructor's do.

    Returns:
        A network from normalised images (N, in_channels, H, W) to logits (N, num_classes).

    Raises:
        ModelError: The name is unknown (the message names similar ones), timm is missing, or the
            factory failed.
    """
    arch = canonical_name(arch)
    if generator is None:
        return _build(arch, num_classes, in_channels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
        return _build(arch, num_classes, in_channels)


def build_unfilled(arch: str, *, num_classes: int, in_channels: int) -> nn.Module:
    """Build a named network whose tensors are all to be assigned from a checkpoint.

    Where it can, it skips allocating and drawing initial weights, which takes seconds for a VGG.
    Some of timm's networks compute buffers that are not in a checkpoint; those are built in full.
    """
    with _weightless(arch), torch.random.fork_rng(devices=[]):
        network = _build(arch, num_classes, in_channels)
    stored = network.state_dict().keys()
    if any(buffer.is_meta for name, buffer in network.named_buffers() if name not in stored):
        with torch.random.fork_rng(devices=[]):
            network = _build(arch, num_classes, in_channels)
    return network


def canonical_name(arch: str) -> str:
    """Spell an architecture in full: `resnet18` is `torchvision/resnet18`.

    Raises:
        ModelError: The name is unknown; the message names similar ones.
    """
    if is_python_factory(arch) or any(p.fullmatch(arch) for p in _OURS):
        return arch
    library, _, name = arch.partition("/")
    if library == "torchvision" and name in (*known_torchvision(), *known_detectors()):
        return arch
    if library in ("timm", "open_clip") and name:
        return arch
    full = from_backdoorbench_name(arch)
    if full is None:
        ours = (
            "preactresnet18",
            *(f"{name}_w8" for name in _SMALL_NETWORKS),
            "mlp_f30_w64",
            *(f"{name}_w8" for name in _DETECTORS),
        )
        known = [
            *(f"bdaudit/{name}" for name in ours),
            *(f"torchvision/{n}" for n in (*known_torchvision(), *known_detectors())),
        ]
        near = difflib.get_close_matches(arch, known, n=3, cutoff=0.5)
        raise ModelError(
            f"arch: unknown architecture {arch!r}"
            + (f"; did you mean {' or '.join(near)}?" if near else "")
            + " Known are torchvision/<name>, timm/<name>, open_clip/<name>, "
            "bdaudit/preactresnet18[_w<width>], bdaudit/vgg19_bn_w<width>, "
            "bdaudit/mobilenet_v2_w<width>, bdaudit/vit_p4_w<width>, "
            "bdaudit/mlp_f<columns>_w<width>, bdaudit/{fcos,retinanet,ssd,fasterrcnn}_w<width> and "
            "path/to/file.py:factory"
        )
    return full


def from_backdoorbench_name(name: str) -> str | None:
    """Return the full name of what BackdoorBench calls `name`, or `None` if it is not here."""
    if re.fullmatch(r"preactresnet18(_w\d{1,4})?", name):
        return f"bdaudit/{name}"
    return f"torchvision/{name}" if name in known_torchvision() else None


def is_detector_arch(arch: str) -> bool:
    """Whether an architecture, by the name `build_network` takes, is an object detector's."""
    library, _, name = arch.partition("/")
    return _DETECTOR.fullmatch(arch) is not None or (
        library == "torchvision" and name in known_detectors()
    )


def is_python_factory(arch: str | None) -> bool:
    """Whether `arch` names a function in a Python file, which building would run."""
    return arch is not None and ".py:" in arch


def is_clip(arch: str | None) -> bool:
    """Whether `arch` names a CLIP of open_clip, a classifier only together with class names."""
    return arch is not None and arch.startswith("open_clip/")


def training_only_prefixes(arch: str) -> tuple[str, ...]:
    """Return the name prefixes of tensors that `arch` has while training and not here."""
    return _AUXILIARY_HEADS.get(arch, ())


def native_input_size(network: nn.Module) -> tuple[int, int] | None:
    """Return (H, W) for a network that takes one size only, `None` for one that takes any."""
    if isinstance(network, ZeroShotNetwork | HubNetwork):
        return network.image_size
    if isinstance(network, Mlp):
        return 1, network.columns
    if type(network).__module__.startswith("torchvision."):
        if type(network).__name__ == "MaxVit":
            return 224, 224
        side = getattr(network, "image_size", None)  # of vision transformers
        return (side, side) if isinstance(side, int) else None
    settings = getattr(network, "default_cfg", None)  # timm
    if isinstance(settings, dict) and settings.get("fixed_input_size"):
        _, height, width = settings["input_size"]
        return int(height), int(width)
    return None


@dataclass(frozen=True, slots=True)
class Blueprint:
    """Names and shapes of an architecture's tensors, with what may vary left open.

    Attributes:
        arch: The architecture.
        shapes: Shape by name, in the network's order.
        head: Names whose first side grows with the number of classes, and by how much each: 1 of
            a classifier's head, as many as it has boxes a place of a detector's.
        stem: Name whose second side is the number of input channels, `None` if not found.
    """

    arch: str
    shapes: dict[str, Shape]
    head: Mapping[str, int]
    stem: str | None


@cache
def blueprint(arch: str) -> Blueprint:
    """Describe a named architecture without allocating its weights.

    The head is found by building twice with different class counts: what changed is the head.

    Raises:
        ModelError: The architecture is unknown, or a Python factory (which is only run to load).
    """
    if is_python_factory(arch):
        raise ModelError(f"arch: {arch!r} has no blueprint; it is known once it is built")
    with _weightless(arch), torch.random.fork_rng(devices=[]):
        network = _build(arch, _FEW, 3)
        other = _build(arch, _MORE, 3)
    shapes = _shapes(network)
    return Blueprint(
        arch=arch,
        shapes=shapes,
        head={
            name: (shape[0] - shapes[name][0]) // (_MORE - _FEW)
            for name, shape in _shapes(other).items()
            if shapes[name] != shape
        },
        stem=next(
            (f"{n}.weight" for n, m in network.named_modules() if isinstance(m, nn.Conv2d)), None
        ),
    )


def blueprint_of(network: nn.Module, arch: str) -> Blueprint:
    """Describe a network that is built already; nothing in it is left open."""
    return Blueprint(arch=arch, shapes=_shapes(network), head={}, stem=None)


def _weightless(arch: str) -> AbstractContextManager[object]:
    return nullcontext() if arch in _RUN_WHILE_BUILT else _WeightsOnMeta()


class _WeightsOnMeta(TorchFunctionMode):
    """Make what `torch.empty` makes, and so all large weights, without memory.

    Unlike `torch.device("meta")` it leaves alone what constructors compute their layout from.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.empty:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


def _shapes(network: nn.Module) -> dict[str, Shape]:
    # A state_dict may also hold a module's "extra state", which can be anything.
    return {
        name: tuple(tensor.shape)
        for name, tensor in network.state_dict().items()
        if isinstance(tensor, Tensor)
    }


def _build(arch: str, num_classes: int | None, in_channels: int) -> nn.Module:
    if is_python_factory(arch):
        return _call_factory(arch, num_classes, in_channels)
    if is_clip(arch):
        raise ModelError(
            f"{arch}: a CLIP is a classifier by its text embeddings alone; open a checkpoint of it "
            "with class names, there is nothing to build without"
        )
    if num_classes is None:
        raise ModelError(f"{arch}: expected the number of classes; pass num_classes")
    preact = _PREACT.fullmatch(arch)
    if preact:
        width = int(preact[1] or 64)
        if width == 0:
            raise ModelError(f"arch: expected a width of 1 or more, got {arch!r}")
        return preactresnet18(num_classes, width=width, in_channels=in_channels)
    small = _SMALL.fullmatch(arch)
    if small:
        return _build_small(small[1], int(small[2]), num_classes, in_channels)
    mlp = _MLP.fullmatch(arch)
    if mlp:
        return Mlp(num_classes, int(mlp[2]), in_channels, int(mlp[1]))
    library, _, name = arch.partition("/")
    if is_detector_arch(arch):
        return _build_detector(arch, num_classes, in_channels)
    if library == "timm":
        return _build_timm(name, num_classes, in_channels)
    return _build_torchvision(name, num_classes, in_channels)


def _build_small(name: str, width: int, num_classes: int, in_channels: int) -> nn.Module:
    if name == "vit_p4" and width % 16:
        raise ModelError(f"arch: expected a width that is a multiple of 16 for vit_p4, got {width}")
    return _SMALL_NETWORKS[name](num_classes, width, in_channels)


@cache
def known_torchvision() -> tuple[str, ...]:
    """Return the names of torchvision's classifiers, without the library's prefix."""
    from torchvision import models

    return tuple(models.list_models(module=models))


@cache
def known_detectors() -> tuple[str, ...]:
    """Return the names of torchvision's detectors of boxes, without the library's prefix."""
    from torchvision import models

    names = models.list_models(module=models.detection)
    return tuple(n for n in names if not n.startswith(("maskrcnn", "keypointrcnn")))


def _build_detector(arch: str, num_classes: int, in_channels: int) -> nn.Module:
    if in_channels not in (PIXELS, CHANNELS):
        raise ModelError(
            f"{arch}: expected pictures of {PIXELS} channels, with the box that is asked about "
            f"{CHANNELS}, got {in_channels}"
        )
    small = _DETECTOR.fullmatch(arch)
    if small:
        from bdaudit.detection.small import small_detector

        return small_detector(small[1], int(small[2]), num_classes)
    from torchvision import models

    return as_asked(
        models.get_model(
            arch.partition("/")[2], weights=None, weights_backbone=None, num_classes=num_classes
        )
    )


def _build_torchvision(name: str, num_classes: int, in_channels: int) -> nn.Module:
    from torchvision import models

    options: dict[str, Any] = {}
    if f"torchvision/{name}" in _AUXILIARY_HEADS:
        # Their own initialisation takes minutes, and the auxiliary heads only serve training.
        options = {"init_weights": False, "aux_logits": False}
    network: nn.Module = models.get_model(name, weights=None, num_classes=num_classes, **options)
    if in_channels != 3:
        _replace_stem(network, in_channels)
    return network


def _replace_stem(network: nn.Module, in_channels: int) -> None:
    """Put a convolution from `in_channels` in the place of the first one."""
    name, stem = next((n, m) for n, m in network.named_modules() if isinstance(m, nn.Conv2d))
    parent, _, attribute = name.rpartition(".")
    replacement = nn.Conv2d(
        in_channels,
        stem.out_channels,
        stem.kernel_size,  # type: ignore[arg-type]
        stride=stem.stride,  # type: ignore[arg-type]
        padding=stem.padding,  # type: ignore[arg-type]
        dilation=stem.dilation,  # type: ignore[arg-type]
        bias=stem.bias is not None,
    )
    setattr(network.get_submodule(parent), attribute, replacement)


def _build_timm(name: str, num_classes: int, in_channels: int) -> nn.Module:
    try:
        import timm
    except ImportError as error:
        raise ModelError(
            f"arch: timm/{name} needs timm, which is not installed; pip install 'bdaudit[timm]'"
        ) from error
    # Also keeps out "hf-hub:..." names, which would be fetched.
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        raise ModelError(
            f"arch: timm {timm.__version__} has no model {name!r}"
            + (f"; did you mean timm/{' or timm/'.join(near)}?" if near else "")
        )
    try:
        network: nn.Module = timm.create_model(
            name, pretrained=False, num_classes=num_classes, in_chans=in_channels
        )
    except Exception as error:
        raise ModelError(f"arch: timm could not build {name!r}: {error}") from error
    return network


def _call_factory(arch: str, num_classes: int | None, in_channels: int) -> nn.Module:
    """Run the user's own function, giving it those of our two arguments that it has."""
    match = _FACTORY.fullmatch(arch)
    if match is None:
        raise ModelError(f"arch: expected path/to/file.py:function, got {arch!r}")
    function = load_function(Path(match["file"]), match["function"], error=ModelError)
    offered = {"in_channels": in_channels}
    if num_classes is not None:
        offered["num_classes"] = num_classes
    with failing_as(ModelError, f"arch: {arch} failed"):
        parameters = inspect.signature(function).parameters
        arguments = {key: value for key, value in offered.items() if key in parameters}
        network = function(**arguments)
    if not isinstance(network, nn.Module):
        raise ModelError(
            f"arch: expected {arch} to return a torch.nn.Module, got {type(network).__name__}"
        )
    return copy.deepcopy(network)
