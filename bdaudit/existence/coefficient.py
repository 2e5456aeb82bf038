"""The backdoor existence coefficient: how much of the original's backdoor circuit is still there.

    BEC = mean over layers of (S_DA - S_CA) / (1 - S_CA)

S_DA is the linear CKA between the defended model and the original, over the channels of the
original that react most to the trigger, on triggered images; S_CA the same for a reference model
that never had the backdoor. 1: the circuit is all there; 0: no more alike than an innocent model;
below 0: less alike than that.

Source: Zhu, Liang, Wu, "Breaking the False Sense of Security in Backdoor Defense through
Re-Activation Attack" (NeurIPS 2024, arXiv 2405.16134). docs/bec.md says how this differs.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import chain, compress
from math import isfinite
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

from bdaudit.errors import ConfigError, DataError, ModelError, NumericsError
from bdaudit.existence.cka import Estimator, Side, cka, gram_stack, half_samples
from bdaudit.existence.layers import network_of, select_layers
from bdaudit.existence.passes import (
    MapShape,
    PassOptions,
    at_work,
    collect_features,
    find_shapes,
)
from bdaudit.existence.summary import LayerEvidence, combine_layers
from bdaudit.existence.tac import SPARE, count_kept, measure_tac, top_channels
from bdaudit.foundation.memory import free_on_card
from bdaudit.foundation.progress import Progress, Steps
from bdaudit.records import BecRecord

__all__ = ["ExistenceConfig", "existence_coefficient"]

MIN_SAMPLES = 4
"""The unbiased estimator divides by N - 3."""

_ON_A_PROCESSOR = 2**31
"""Bytes that kept maps and Gram matrices may take where `memory_mb` says nothing."""

_BUNDLE = 2**25
"""Bytes of Gram matrices that a card compares in one go; a processor compares one at a time."""

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class ExistenceConfig:
    """Settings of the backdoor existence coefficient.

    Attributes:
        top_share: Share of each layer's channels that is compared, those with the largest TAC;
            rounded down, at least one. In (0, 1].
        estimator: "plain" CKA as in the paper, or "debiased", which few images do not inflate.
        n_samples: Images used at most; more are drawn from at random. At least 4.
        n_bootstrap: Half-samples for the interval; 0 for no interval.
        confidence: Coverage of the interval, in (0, 1).
        batch_size: Images a forward pass.
        include: Shell patterns that choose layers instead of the default rule.
        exclude: Shell patterns of layers to leave out.
        precision: Of the forward passes; "bfloat16" pays on GPUs, not on most CPUs.
        channels_last: Run convolutions in channels-last memory order; same numbers up to rounding.
        memory_mb: Kept maps and Gram matrices held at once, in MiB; `None` is 2048 on a processor
            and half of what is free on a card. Layers that do not fit together are measured in
            groups, with more forward passes; a single layer may exceed it.

    Raises:
        ConfigError: A value is out of range.
    """

    top_share: float = 0.10
    estimator: Estimator = "plain"
    n_samples: int = 500
    n_bootstrap: int = 200
    confidence: float = 0.95
    batch_size: int = 64
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    precision: Literal["float32", "bfloat16"] = "float32"
    channels_last: bool = True
    memory_mb: int | None = None

    def __post_init__(self) -> None:
        for name, value, fine, expected in (
            ("top_share", self.top_share, 0 < self.top_share <= 1, "above 0 and at most 1"),
            ("estimator", self.estimator, self.estimator in ("plain", "debiased"),
             "'plain' or 'debiased'"),
            ("n_samples", self.n_samples, self.n_samples >= MIN_SAMPLES, "at least 4"),
            ("n_bootstrap", self.n_bootstrap, self.n_bootstrap == 0 or self.n_bootstrap >= 20,
             "0 (no interval) or at least 20"),
            ("confidence", self.confidence, 0 < self.confidence < 1, "between 0 and 1"),
            ("batch_size", self.batch_size, self.batch_size >= 1, "at least 1"),
            ("precision", self.precision, self.precision in ("float32", "bfloat16"),
             "'float32' or 'bfloat16'"),
            ("memory_mb", self.memory_mb, self.memory_mb is None or self.memory_mb >= 1,
             "at least 1, or None"),
        ):  # fmt: skip
            if not fine:
                raise ConfigError(f"{name}: expected {expected}, got {value!r}")


def existence_coefficient(
    original: nn.Module,
    defended: nn.Module,
    references: Sequence[tuple[str, nn.Module]],
    *,
    clean: Tensor,
    triggered: Tensor,
    config: ExistenceConfig | None = None,
    generator: torch.Generator,
    device: torch.device | None = None,
) -> Steps[tuple[BecRecord, ...]]:
    """Measure the backdoor existence coefficient of `defended` against every reference.

    The passes over `original` and `defended` are made once for all references, and a card is waited
    for once a model. All models are on the device meanwhile, and on a card the images too, where
    they fit easily; when it has too little memory nevertheless, the measurement begins again with
    half the batch and half the memory. Models are left as they were found: no hook stays, modes and
    devices are put back, no parameter gets a gradient.

    Args:
        original: The suspected backdoored model: a classifier of images in [0, 1].
        defended: What the defence made of it; has the layers of `original`, by name and size.
        references: Models without the backdoor, each with the name its record carries. Without
            any, nothing is measured.
        clean: Images (N, C, H, W) in [0, 1] whose true label is not the target.
        triggered: The same images, in the same order, with the trigger on them.
        config: Settings; the defaults when `None`.
        generator: Seeded CPU generator; draws the sample and the half-samples.
        device: Where to compute; that of `original` when `None`.

    Returns:
        A record for each reference, in order. Its value is higher the more of the backdoor circuit
        is left, and `None`, with a reason, where it is undefined: the reference has other layers,
        or is as similar to the original as the original itself in every layer. `elapsed_s` is
        the time of the whole measurement, all references together.

    Raises:
        ModelError: No layer fits the patterns, or `defended` lacks one.
        DataError: Fewer than 4 images, or images that do not pair up.
        NumericsError: A layer gave activations that are not finite.
    """
    if not references:
        return ()
    config = config or ExistenceConfig()
    started = time.perf_counter()
    clean, triggered = _draw_sample(clean, triggered, config.n_samples, generator)
    n_samples = len(clean)
    n_halves = config.n_bootstrap if n_samples >= 2 * MIN_SAMPLES else 0
    options = PassOptions(
        device=device or _device_of(original),
        batch_size=config.batch_size,
        precision=config.precision,
        channels_last=config.channels_last,
    )
    halves = half_samples(n_samples, n_halves, generator).to(options.device)
    with ExitStack() as stack:
        for model in (original, defended, *(model for _, model in references)):
            stack.enter_context(at_work(model, options.device))
        cast = _cast(original, defended, references, clean[:1], config, options)
        clean, triggered = _placed(clean, triggered, options)
        while True:
            steps = _compare(original, cast, clean, triggered, halves, config, options)
            try:
                findings = yield from steps
                break
            except torch.OutOfMemoryError:
                if options.batch_size == 1:
                    raise
            # Only here is what the larger batch held given back.
            torch.cuda.empty_cache()
            options = replace(options, batch_size=options.batch_size // 2)
            config = replace(config, memory_mb=max(1, _allowed(config, options.device) // 2**21))
    elapsed_s = time.perf_counter() - started
    records = []
    for index, (name, _) in enumerate(references):
        layers = tuple(_evidence(layer, index, cast, findings) for layer in cast.layers)
        result = combine_layers(layers if index in cast.others else (), config.confidence)
        reason = "undefined in every layer" if result.value is None else None
        records.append(
            BecRecord(
                reference=name,
                value=result.value,
                low=result.low,
                high=result.high,
                ratio_of_means=result.ratio_of_means,
                top_share=config.top_share,
                estimator=config.estimator,
                n_samples=n_samples,
                n_bootstrap=0 if result.low is None else n_halves,
                layers=tuple(layer.record() for layer in layers) if index in cast.others else (),
                reason=cast.refused.get(index, reason),
                elapsed_s=elapsed_s,
            )
        )
    return tuple(records)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Findings:
    """What the passes gave, on the CPU.

    Attributes:
        tac: Trigger-activated change (channels,) by layer.
        kept: Indices (k,) of the channels compared, by layer.
        similarities: CKA with the original (1 + B,), by index of the other model and layer; not
            there where the original's channels do not vary. The first is the estimate, on the whole
            sample; the rest are on the halves.
    """

    tac: Mapping[str, Tensor]
    kept: Mapping[str, Tensor]
    similarities: Mapping[tuple[int, str], Tensor]


def _compare(
    original: nn.Module,
    cast: _Cast,
    clean: Tensor,
    triggered: Tensor,
    halves: Tensor,
    config: ExistenceConfig,
    options: PassOptions,
) -> Steps[_Findings]:
    """Run every model through the images and compare its layers with the original's."""
    count = {
        layer: count_kept(shape.channels, config.top_share) for layer, shape in cast.shapes.items()
    }
    room = _Room(cast.shapes, count, len(clean), _allowed(config, options.device))
    groups = room.groups()
    # The original runs on clean and on triggered images; after that, every group of layers takes
    # everybody through the triggered images, but for the original's layers that were kept.
    tally = _Tally(total=len(clean) * (1 + len(groups) * (1 + len(cast.others))))
    shortlists = {layer: SPARE * count[layer] for layer in room.listed(groups[0])}
    unlisted = tuple(layer for layer in cast.shapes if layer not in shortlists)
    tac, stash = yield from tally.follow(
        "original", measure_tac(original, shortlists, unlisted, clean, triggered, options)
    )
    kept = {layer: top_channels(values, count[layer]) for layer, values in tac.items()}

    def features_of(name: str, model: nn.Module, layers: Iterable[str]) -> Steps[_Features]:
        channels = {layer: kept[layer] for layer in layers}
        return tally.follow(name, collect_features(model, channels, triggered, options))

    similarities: dict[tuple[int, str], Tensor] = {}
    for group in groups:
        own = _take_from_stash(stash, {layer: kept[layer] for layer in group})
        if missed := [layer for layer in group if layer not in own]:
            tally.total += len(clean) if group is groups[0] else 0
            own |= yield from features_of("original", original, missed)
        sides = _Sides.of(own, halves, config.estimator)
        for index, (name, model) in cast.others.items():
            theirs = yield from features_of(name, model, group)
            rows = sides.similarities(name, theirs)
            similarities |= {(index, layer): rows[layer] for layer in sides.varying}
    return _Findings(tac=tac, kept=kept, similarities=_on_cpu(similarities))


def _evidence(layer: str, index: int, cast: _Cast, findings: _Findings) -> LayerEvidence:
    """Gather what was found of one layer for the reference at `index`."""
    if layer not in cast.shapes:
        return LayerEvidence(layer=layer, reason="never runs in a forward pass of the original")
    reference = findings.similarities.get((index, layer))
    return LayerEvidence(
        layer=layer,
        tac=findings.tac[layer],
        kept=findings.kept[layer],
        defended=findings.similarities.get((_DEFENDED, layer)),
        reference=reference,
        reason="the original's channels do not vary over these images"
        if reference is None
        else None,
    )


_DEFENDED = -1
"""Where the defended model stands among the `others`, before the references from 0 on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cast:
    """Who takes part, and with which layers.

    Attributes:
        layers: All layers chosen.
        shapes: Size of the maps of those that run in the original.
        others: The models compared with the original, by index, with their names.
        refused: Why a reference, by index, cannot be compared.
    """

    layers: tuple[str, ...]
    shapes: Mapping[str, MapShape]
    others: Mapping[int, tuple[str, nn.Module]]
    refused: Mapping[int, str]


def _cast(
    original: nn.Module,
    defended: nn.Module,
    references: Sequence[tuple[str, nn.Module]],
    image: Tensor,
    config: ExistenceConfig,
    options: PassOptions,
) -> _Cast:
    """Run one image through every model, so that a misfit shows before the long passes."""
    network = network_of(original)
    layers = select_layers(network, include=config.include, exclude=config.exclude)
    shapes = find_shapes(original, layers, image, options)
    if not shapes:
        raise ModelError(f"original: none of the layers {', '.join(layers)} ever runs")
    others: dict[int, tuple[str, nn.Module]] = {}
    refused: dict[int, str] = {}
    for index, (name, model) in enumerate([("defended", defended), *references], _DEFENDED):
        try:
            _check_layers(shapes, find_shapes(model, shapes, image, options))
        except ModelError as error:
            if index == _DEFENDED:
                raise ModelError(f"{name}: {error}") from error
            refused[index] = str(error)
        else:
            others[index] = (name, model)
    return _Cast(layers=layers, shapes=shapes, others=others, refused=refused)


def _check_layers(expected: Mapping[str, MapShape], found: Mapping[str, MapShape]) -> None:
    """Raise `ModelError` at the first layer of another size than the original's."""
    for layer, shape in expected.items():
        if found.get(layer) != shape:
            raise ModelError(
                f"layer {layer}: expected maps of {shape} as in the original, got "
                f"{found.get(layer, 'none')}; layers are matched by name, so the model must be of "
                "the original's architecture"
            )


def _allowed(config: ExistenceConfig, device: torch.device) -> int:
    """Return the bytes that kept maps and Gram matrices may take."""
    if config.memory_mb is not None:
        return config.memory_mb * 2**20
    return free_on_card(device) // 2 if device.type == "cuda" else _ON_A_PROCESSOR


class _Room:
    """How many layers can be measured at once in the memory allowed.

    Args:
        shapes: Size of the maps by layer, in the order of the network.
        count: Channels kept by layer.
        n_samples: Images.
        allowed: Bytes.
    """

    def __init__(
        self,
        shapes: Mapping[str, MapShape],
        count: Mapping[str, int],
        n_samples: int,
        allowed: int,
    ) -> None:
        self.allowed = allowed
        self.maps = {
            layer: 4 * n_samples * shape.positions * count[layer] for layer, shape in shapes.items()
        }
        self.matrix = 4 * n_samples**2

    def groups(self) -> list[tuple[str, ...]]:
        """Cut the layers, in order, into groups whose maps of one model fit, with the matrices."""
        groups: list[tuple[str, ...]] = []
        used = self.allowed
        for layer, maps in self.maps.items():
            if not groups or used + maps + self.matrix > self.allowed:
                groups.append(())
                used = 0
            groups[-1] = (*groups[-1], layer)
            used += maps + self.matrix
        return groups

    def listed(self, group: tuple[str, ...]) -> tuple[str, ...]:
        """Name the last layers of a group whose shortlists fit, in order.

        The last, since whatever is run again later then ends at a layer near the images.
        """
        used = 0
        for place in reversed(range(len(group))):
            used += SPARE * self.maps[group[place]] + self.matrix
            if used > self.allowed:
                return group[place + 1 :]
        return group


class _Tally:
    """Counts images through the networks, and turns batches into progress events."""

    def __init__(self, total: int) -> None:
        self.done = 0
        self.total = total

    def follow(self, name: str, batches: Generator[int, None, Result]) -> Steps[Result]:
        """Run `batches` to the end, give back its result, and tell of every batch."""
        try:
            while True:
                try:
                    self.done += next(batches)
                except StopIteration as stop:
                    return stop.value  # type: ignore[no-any-return]
                yield Progress(f"existence: activations of {name}", self.done, self.total)
        finally:
            batches.close()


@torch.inference_mode()
def _take_from_stash(
    stash: dict[str, tuple[Tensor, Tensor]], wanted: Mapping[str, Tensor]
) -> _Features:
    """Move out of `stash` the maps of the layers whose wanted channels are all there."""
    found = {}
    for layer, channels in wanted.items():
        if layer not in stash:
            continue
        listed, maps = stash.pop(layer)
        place = listed == channels[:, None]  # (wanted, listed)
        if bool(place.any(1).all()):
            found[layer] = maps[:, :, place.int().argmax(1).to(maps.device)]
    return found


_Features = dict[str, Tensor]
"""Kept channels (N, positions, k) by layer; emptied by whoever is given them."""


@dataclass(frozen=True, slots=True)
class _Sides:
    """The original's layers, ready to be compared with those of other models.

    Many layers are compared in one go: alone they are too small to keep a card busy.

    Attributes:
        bundles: Layers, and their Gram matrices over the half-samples.
        varying: The layers whose kept channels vary over the images.
    """

    bundles: tuple[tuple[tuple[str, ...], Side], ...]
    varying: tuple[str, ...]

    @classmethod
    @torch.inference_mode()
    def of(cls, features: _Features, halves: Tensor, estimator: Estimator) -> _Sides:
        bundles, varying = [], list[str]()
        for layers in _bundled(features):
            matrices = gram_stack({layer: features.pop(layer) for layer in layers})
            varying += compress(layers, _demand_finite("original", layers, matrices))
            bundles.append((layers, Side(matrices, halves, estimator)))
        return cls(tuple(bundles), tuple(varying))

    @torch.inference_mode()
    def similarities(self, name: str, features: _Features) -> dict[str, Tensor]:
        """CKA of a model's layers with the original's, (1 + B,) float64 on the device, by layer."""
        rows: dict[str, Tensor] = {}
        for layers, own in self.bundles:
            matrices = gram_stack({layer: features.pop(layer) for layer in layers})
            _demand_finite(name, layers, matrices)
            # The estimate is made in float64; the halves only give its spread.
            whole = cka(
                Side(matrices.double(), None, own.estimator),
                Side(own.matrix.double(), None, own.estimator),
            )
            spread = cka(Side(matrices, own.weights, own.estimator), own)
            found = torch.cat([whole, spread.double()], dim=1)
            rows |= dict(zip(layers, found, strict=True))
        return rows


def _bundled(features: _Features) -> list[tuple[str, ...]]:
    """Say which layers are compared together."""
    layers = tuple(features)
    if not layers:
        return []
    first = features[layers[0]]
    each = max(1, _BUNDLE // (4 * len(first) ** 2)) if first.device.type == "cuda" else 1
    return [layers[start : start + each] for start in range(0, len(layers), each)]


def _demand_finite(name: str, layers: Sequence[str], matrices: Tensor) -> list[bool]:
    """Return which of the layers vary, by their Gram matrices (L, N, N); one wait for a card."""
    # One number that is not finite spoils the mean of its feature, and so the whole matrix.
    traces = matrices.diagonal(dim1=-2, dim2=-1).sum(-1).tolist()
    for layer, trace in zip(layers, traces, strict=True):
        if not isfinite(trace):
            raise NumericsError(
                f"{name}: layer {layer} gave activations that are not finite; check the weights "
                "and the preprocessing"
            )
    return [trace > 0.0 for trace in traces]


def _on_cpu(rows: Mapping[tuple[int, str], Tensor]) -> dict[tuple[int, str], Tensor]:
    """Bring all similarities over in one copy."""
    return dict(zip(rows, torch.stack(list(rows.values())).cpu(), strict=True)) if rows else {}


def _placed(clean: Tensor, triggered: Tensor, options: PassOptions) -> tuple[Tensor, Tensor]:
    """Bring the images to a card once for all passes, if a quarter of what is free holds them."""
    needed = clean.nbytes + triggered.nbytes
    if options.device.type != "cuda" or needed > free_on_card(options.device) // 4:
        return clean, triggered
    return options.place(clean), options.place(triggered)


def _draw_sample(
    clean: Tensor, triggered: Tensor, n_samples: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Draw the same `n_samples` images of both, or take all where there are no more."""
    if clean.ndim != 4 or clean.shape != triggered.shape:
        raise DataError(
            "clean and triggered images: expected two tensors (N, C, H, W) of the same images, "
            f"got {tuple(clean.shape)} and {tuple(triggered.shape)}"
        )
    if len(clean) < MIN_SAMPLES:
        raise DataError(
            f"the backdoor existence coefficient needs at least {MIN_SAMPLES} images whose true "
            f"label is not the target, got {len(clean)}"
        )
    if len(clean) <= n_samples:
        return clean, triggered
    chosen = torch.randperm(len(clean), generator=generator)[:n_samples].sort().values
    return clean[chosen], triggered[chosen]


def _device_of(model: nn.Module) -> torch.device:
    tensor = next(chain(model.parameters(), model.buffers()), None)
    return torch.device("cpu") if tensor is None else tensor.device
