"""Put a checkpoint's tensors into the architecture they were trained in."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from bdaudit.detection.asked import Asked
from bdaudit.detection.marking import CHANNELS
from bdaudit.errors import ModelError
from bdaudit.models.architectures import (
    Blueprint,
    blueprint,
    blueprint_of,
    build_network,
    build_unfilled,
    canonical_name,
    is_clip,
    is_python_factory,
    training_only_prefixes,
)
from bdaudit.models.checkpoint import Checkpoint, ReadFile
from bdaudit.models.clamps import put_clamps, without_clamps
from bdaudit.models.clip import (
    ClipPlan,
    as_zero_shot,
    open_pretrained,
    plan_clip,
    preprocessing_of,
    rename_clip_tensors,
    tensors_and_prompts,
    tokenizer_of,
)
from bdaudit.models.clip_fingerprint import clip_shape, matching_configs
from bdaudit.models.clip_settings import ClipSettings
from bdaudit.models.fingerprint import (
    Match,
    closest_architectures,
    drop_wrapper_prefix,
    match_blueprint,
)
from bdaudit.models.pickled_modules import demand_same_parts
from bdaudit.models.settings import ModelSettings
from bdaudit.models.weight_sets import quote_names

__all__ = ["Fitted", "build_and_fill", "note_casts"]

_MISMATCHES_SHOWN = 5
_OLD_RPN = re.compile(r"(rpn\.head\.conv)\.(weight|bias)")
_OLD_PYRAMID = re.compile(r"(backbone\.fpn\.(?:inner|layer)_blocks\.\d{1,2})\.(weight|bias)")
_OLD_RETINANET = re.compile(
    r"(head\.(?:classification|regression)_head\.conv)\.(\d{1,2})\.(weight|bias)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """A network that holds a checkpoint's weights.

    Attributes:
        network: In float32 on the CPU.
        arch: Its architecture, in full.
        num_classes: Length of its logits, `None` where only running it tells.
        in_channels: Channels it takes, `None` where only running it tells.
        defaults: What the architecture implies where no other source says anything.
        origin: What determines it, where that is more than its own tensors.
        files: What else was read to make it.
    """

    network: nn.Module
    arch: str
    num_classes: int | None = None
    in_channels: int | None = None
    defaults: ModelSettings = field(default_factory=ModelSettings)
    origin: Mapping[str, Tensor] | None = None
    files: tuple[ReadFile, ...] = ()


def build_and_fill(
    checkpoint: Checkpoint,
    settings: ModelSettings,
    notes: list[str],
    *,
    device: torch.device | str = "cpu",
) -> Fitted:
    """Build the architecture that is named, or recognised, and give it the checkpoint's weights.

    Bounds on the outputs of its layers are put where the file names them (`clamps`). Shapes are
    compared before memory is taken, so that a file cannot ask for more than it holds.

    Args:
        checkpoint: The tensors.
        settings: `arch` and `num_classes` where they are known; `image_shape` tells a Python
            factory how many channels to build for; `clip` makes a classifier of a CLIP.
        notes: Takes what was done, in words.
        device: Where a CLIP's text tower runs.

    Raises:
        ModelError: No architecture fits, or the one named does not; the message lists the first
            differences and the closest known architecture.
    """
    if is_clip(settings.arch):
        return _fill_clip(checkpoint, settings, notes, device)
    tensors, bounds = without_clamps(checkpoint.tensors)
    plain = replace(checkpoint, tensors=tensors)
    if settings.arch is not None and is_python_factory(settings.arch):
        fitted = _fill_from_factory(plain, settings.arch, settings, notes)
    else:
        fitted = _fill_named(plain, settings, notes)
    put_clamps(fitted.network, bounds, checkpoint.path, notes)
    return fitted


def _fill_named(checkpoint: Checkpoint, settings: ModelSettings, notes: list[str]) -> Fitted:
    path = checkpoint.path
    arch, match, tensors = _settle_architecture(path, settings.arch, checkpoint.tensors, notes)
    if match.num_classes is None or match.in_channels is None:
        raise ModelError(f"{path}: cannot tell the classes and channels of {arch} by its tensors")
    if match.num_classes < 1 or match.in_channels < 1:
        raise ModelError(f"{path}: expected weights, got a head or stem without a single number")
    one_score = match.num_classes == 1 and settings.num_classes == 2
    if settings.num_classes not in (None, match.num_classes) and not one_score:
        raise ModelError(
            f"{path}: expected a head of {settings.num_classes} classes, got one of "
            f"{match.num_classes}; pass num_classes={match.num_classes} or leave it out"
        )
    network = build_unfilled(arch, num_classes=match.num_classes, in_channels=match.in_channels)
    auxiliary = training_only_prefixes(arch)
    kept = {name: t for name, t in tensors.items() if not name.startswith(auxiliary)}
    if len(kept) < len(tensors):
        notes.append(f"left out {len(tensors) - len(kept)} tensors of heads that only train")
    _fill(path, network, kept, notes)
    _hold_against_module(checkpoint, arch, network, notes)
    marked = isinstance(network, Asked)
    return Fitted(
        network=network,
        arch=arch,
        num_classes=match.num_classes,
        in_channels=CHANNELS if marked else match.in_channels,
    )


def _fill_from_factory(
    checkpoint: Checkpoint, arch: str, settings: ModelSettings, notes: list[str]
) -> Fitted:
    in_channels = settings.image_shape[0] if settings.image_shape else 3
    network = build_network(arch, num_classes=settings.num_classes, in_channels=in_channels)
    plan = blueprint_of(network, arch)
    tensors = _fit_names(checkpoint.tensors, set(plan.shapes), notes)
    _demand_fit(checkpoint.path, match_blueprint(plan, tensors), tensors)
    _fill(checkpoint.path, network, tensors, notes)
    _hold_against_module(checkpoint, arch, network, notes)
    return Fitted(network=network, arch=arch)


def _fill_clip(
    checkpoint: Checkpoint, settings: ModelSettings, notes: list[str], device: torch.device | str
) -> Fitted:
    arch, prompting = settings.arch, settings.clip
    assert arch is not None
    if prompting is None:
        raise ModelError(
            f"{checkpoint.path}: {arch} is a classifier by its class names; give them, one per "
            f"line, in order of index (--classnames FILE)"
        )
    plan = plan_clip(arch, prompting)
    mean, std = preprocessing_of(plan, prompting, notes)
    tensors = _fit_names(checkpoint.tensors, set(plan.shapes), notes)
    tensors = rename_clip_tensors(tensors, plan.shapes, notes)
    tensors = _with_text_tower(checkpoint.path, tensors, plan, prompting, notes)
    _demand_fit(checkpoint.path, match_blueprint(_blueprint_of_clip(plan), tensors), tensors)
    clip = plan.build()
    _fill(checkpoint.path, clip, tensors, notes)
    _hold_against_module(checkpoint, arch, clip, notes)
    tokenizer = tokenizer_of(plan, prompting)
    notes.append(
        f"zero-shot: {len(prompting.class_names)} classes, {len(prompting.templates)} template"
        f"{'' if len(prompting.templates) == 1 else 's'}; text embeddings computed once"
    )
    return Fitted(
        network=as_zero_shot(clip, plan, prompting, tokenizer, device=device),
        arch=arch,
        num_classes=len(prompting.class_names),
        in_channels=3,
        defaults=ModelSettings(mean=mean, std=std, interpolation="bicubic"),
        origin=tensors_and_prompts(clip, prompting),
        files=(
            *getattr(tokenizer, "files", ()),
            *(() if plan.text_tower is None else (plan.text_tower.file,)),
        ),
    )


def _with_text_tower(
    path: Path,
    tensors: dict[str, Tensor],
    plan: ClipPlan,
    settings: ClipSettings,
    notes: list[str],
) -> dict[str, Tensor]:
    """Take what an image tower lacks from the pretrained weights, where it is saved alone."""
    image_tower = {name for name in plan.shapes if name.startswith("visual.")}
    if set(tensors) != image_tower:
        return tensors
    if settings.pretrained is None:
        raise ModelError(
            f"{path}: expected a CLIP, got its image tower alone, and class names need the text "
            "tower; give the weights that training started from, a tag of open_clip or a local "
            "file (--pretrained TAG or FILE)"
        )
    base = open_pretrained(plan, settings)
    renamed = rename_clip_tensors(base.tensors, plan.shapes, [])
    _demand_fit(base.path, match_blueprint(_blueprint_of_clip(plan), renamed), renamed)
    notes.append(f"the text tower is that of {settings.pretrained}")
    return {**renamed, **tensors}


def _blueprint_of_clip(plan: ClipPlan) -> Blueprint:
    return Blueprint(arch=plan.arch, shapes=plan.shapes, head={}, stem=None)


def _hold_against_module(
    checkpoint: Checkpoint, arch: str, network: nn.Module, notes: list[str]
) -> None:
    if checkpoint.modules:
        demand_same_parts(checkpoint.path, arch, network, checkpoint.modules, notes)


def _fill(path: Path, network: nn.Module, tensors: Mapping[str, Tensor], notes: list[str]) -> None:
    """Put tensors into a network of the same names and shapes."""
    wanted = network.state_dict()
    whole = [
        name
        for name, tensor in tensors.items()
        if not tensor.is_floating_point() and wanted[name].is_floating_point()
    ]
    if whole:
        kinds = ", ".join(sorted({str(tensors[n].dtype).removeprefix("torch.") for n in whole}))
        raise ModelError(
            f"{path}: expected floating-point weights, got {kinds} in {quote_names(whole)}: whole "
            "numbers without the scale that belongs to them. Give the model as it was before it "
            "was quantised, or export it to ONNX and audit it with --mode query"
        )
    filling = _in_float32(tensors, notes)
    for name, tensor in filling.items():
        if tensor.is_floating_point() and not wanted[name].is_floating_point():
            filling[name] = tensor.to(wanted[name].dtype)
            if not torch.equal(filling[name].float(), tensor):
                raise ModelError(
                    f"{path}: expected whole numbers in {name[:80]!r}, got fractions; the file is "
                    "damaged or of another network"
                )
    try:
        # Not strict, for the batch counters that old files lack.
        network.load_state_dict(filling, strict=False, assign=True)
    except RuntimeError as error:
        raise ModelError(
            f"{path}: does not fit the network: {str(error).splitlines()[0][:300]}"
        ) from error


def _settle_architecture(
    path: Path, arch: str | None, tensors: dict[str, Tensor], notes: list[str]
) -> tuple[str, Match, dict[str, Tensor]]:
    """Return the architecture, how it fits, and the tensors under its names."""
    if arch is None:
        unwrapped = drop_wrapper_prefix(tensors)
        for candidate in [tensors, *([unwrapped[0]] if unwrapped else [])]:
            matches = closest_architectures(candidate)
            if matches and matches[0].fits:
                arch = matches[0].arch
                notes.append(f"recognised {arch} by its tensors")
                return arch, matches[0], _fit_names(tensors, set(candidate), notes)
        raise ModelError(
            f"{path}: no architecture given, and the tensors fit none exactly; pass "
            f"arch.{_closest(tensors)}"
        )
    arch = canonical_name(arch)
    plan = blueprint(arch)
    tensors = _fit_names(tensors, set(plan.shapes), notes)
    tensors = _under_new_names(tensors, set(plan.shapes), notes)
    match = match_blueprint(plan, tensors)
    _demand_fit(path, match, tensors)
    return arch, match, tensors


def _demand_fit(path: Path, match: Match, tensors: Mapping[str, Tensor]) -> None:
    """Raise a ModelError that says what differs, unless the match fits."""
    if not match.fits:
        raise ModelError(f"{path}: does not fit {match.arch}:{_explain(match)}{_closest(tensors)}")


def _fit_names(tensors: dict[str, Tensor], wanted: set[str], notes: list[str]) -> dict[str, Tensor]:
    """Drop a wrapper's prefix where only then the names are the wanted ones."""
    unwrapped = drop_wrapper_prefix(tensors)
    if unwrapped is None or not wanted.isdisjoint(tensors):
        return tensors
    inner, prefix = unwrapped
    if wanted.isdisjoint(inner):
        return tensors
    notes.append(
        f"stripped {prefix!r}"
        + (
            ": saved as a Sequential whose first part, the preprocessing, is not in the file"
            if prefix == "1."
            else ""
        )
    )
    return inner


def _under_new_names(
    tensors: dict[str, Tensor], wanted: set[str], notes: list[str]
) -> dict[str, Tensor]:
    """Rename convolutions of torchvision's detectors that were saved before its version 0.13.

    They stood alone where each is now in one part with its norm and activation.
    """
    new = {name: _new_name(name) for name in tensors.keys() - wanted}
    renamed = {old: name for old, name in new.items() if name in wanted - tensors.keys()}
    if not renamed:
        return tensors
    notes.append(f"renamed {len(renamed)} tensors that an older torchvision wrote")
    return {renamed.get(name, name): tensor for name, tensor in tensors.items()}


def _new_name(name: str) -> str | None:
    if match := _OLD_RPN.fullmatch(name):
        return f"{match[1]}.0.0.{match[2]}"
    if match := _OLD_PYRAMID.fullmatch(name):
        return f"{match[1]}.0.{match[2]}"
    if match := _OLD_RETINANET.fullmatch(name):  # an activation followed each, and was counted
        return f"{match[1]}.{int(match[2]) // 2}.0.{match[3]}"
    return None


def _explain(match: Match) -> str:
    """List the first differences, one a line."""
    lines = [
        f"{name!r}: expected {expected}, got {got}"
        for name, expected, got in match.wrong_shapes[:_MISMATCHES_SHOWN]
    ]
    for kind, names in (("missing", match.missing), ("unexpected", match.unexpected)):
        if names:
            shown = ", ".join(repr(name[:80]) for name in names[:_MISMATCHES_SHOWN])
            lines.append(f"{kind} {len(names)}: {shown}{', ...' if len(names) > 5 else ''}")
    return "".join(f"\n  {line}" for line in lines)


def _closest(tensors: Mapping[str, Tensor]) -> str:
    shape = clip_shape(tensors)
    if shape is not None:
        fitting = " or ".join(matching_configs(shape)[:4]) or "open_clip/NAME with --clip-config"
        return f"\n  The file holds {shape.describe()}; its architecture is {fitting}"
    matches = closest_architectures(tensors, limit=1)
    if not matches:
        return "\n  No known architecture resembles it; write file.py:factory that builds yours"
    best = matches[0]
    return f"\n  The closest known architecture is {best.arch} ({best.score:.0%} of tensors agree)"


def note_casts(tensors: Mapping[str, Tensor], notes: list[str]) -> None:
    """Note which kinds of numbers become float32."""
    cast = sorted(
        {
            str(tensor.dtype).removeprefix("torch.")
            for tensor in tensors.values()
            if tensor.is_floating_point() and tensor.dtype != torch.float32
        }
    )
    if cast:
        notes.append(f"cast {', '.join(cast)} weights to float32")


def _in_float32(tensors: Mapping[str, Tensor], notes: list[str]) -> dict[str, Tensor]:
    note_casts(tensors, notes)
    # Copied, so that the network does not hang on the mapped file.
    return {
        name: tensor.to(torch.float32 if tensor.is_floating_point() else tensor.dtype, copy=True)
        for name, tensor in tensors.items()
    }
