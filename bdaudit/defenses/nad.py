"""Neural attention distillation: a fine-tuned copy teaches where to look."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from math import isfinite

import torch
from torch import Tensor, nn
from torch.nn import functional

from bdaudit.defenses.pictures import lessons_of
from bdaudit.defenses.tuning import TuningConfig, device_of, trainable_copy, tune
from bdaudit.errors import ConfigError, ModelError
from bdaudit.foundation.progress import Steps
from bdaudit.scoring import evaluating

__all__ = ["NadConfig", "attention_layers", "distil_attention"]


@dataclass(frozen=True, slots=True, kw_only=True)
class NadConfig:
    """Settings of `distil_attention`.

    Attributes:
        betas: Weight of the distance between attention maps, one a group of layers, the deepest
            last. As many of the network's deepest groups are compared.
        power: Exponent of the activations in an attention map.
        teacher: How the teacher is fine-tuned.
        tuning: How the student trains.

    Raises:
        ConfigError: A setting is out of range.
    """

    betas: tuple[float, ...] = (50.0, 100.0, 100.0)
    power: float = 2.0
    teacher: TuningConfig = field(default_factory=lambda: TuningConfig(learning_rate=0.1))
    tuning: TuningConfig = field(default_factory=lambda: TuningConfig(learning_rate=0.1))

    def __post_init__(self) -> None:
        if not self.betas or not all(isfinite(beta) and beta >= 0 for beta in self.betas):
            raise ConfigError(
                f"betas: expected one or more finite numbers of at least 0, got {self.betas}"
            )
        if not (isfinite(self.power) and self.power >= 1):
            raise ConfigError(f"power: expected a finite number of at least 1, got {self.power}")


def distil_attention(
    classifier: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    config: NadConfig,
    generator: torch.Generator,
) -> Steps[nn.Module]:
    """Fine-tune a copy of `classifier` while its attention follows that of a fine-tuned teacher.

    The teacher is another copy, fine-tuned on the same images. The student's loss is cross-entropy
    plus, over groups of layers, beta times the mean squared difference between the two networks'
    attention maps: the sum over channels of |activation|^power, brought to length 1.

    Args:
        classifier: Maps (n, C, H, W) in [0, 1] to logits (n, K); left as it is, on its device.
        images: (N, C, H, W) clean images in [0, 1].
        labels: (N,) true labels.
        config: Settings.
        generator: Seeded CPU generator.

    Returns:
        The student, in eval mode, no parameter requiring a gradient.

    Raises:
        ModelError: The network has no feature maps larger than one pixel and no chain of blocks
            over tokens.
        DataError: Images and labels do not fit each other.
        NumericsError: Training diverged.

    Source: Li et al., "Neural Attention Distillation: Erasing Backdoor Triggers from Deep Neural
    Networks", ICLR 2021: 5 % of the training set, teacher fine-tuned for 10 epochs and student for
    20 by SGD from 0.1, divided by 10 as they go; the three residual groups of a WRN-16-1, power 2
    and betas that they pick for each attack; BackdoorBench (Wu et al., NeurIPS 2022) sets 500,
    1000 and 1000. We train both for fewer epochs on a one-cycle schedule, with a tenth
    of these betas, since at theirs a few hundred images lost much accuracy; find the groups by the
    size of the feature maps, whatever the architecture (`attention_layers`); and in a transformer
    take the map over tokens. A backdoor that survives in the teacher survives here.
    """
    tuned = trainable_copy(classifier)
    names = attention_layers(tuned, images[:2])[-len(config.betas) :]
    betas = config.betas[-len(names) :]
    teacher = trainable_copy(classifier)
    yield from lessons_of(teacher, images, labels).tune(
        teacher,
        config=config.teacher,
        generator=generator,
        title="NAD, the teacher",
    )
    with ExitStack() as watching:
        own = watching.enter_context(_outputs_of(tuned, names))
        taught = watching.enter_context(_outputs_of(teacher, names))

        def gradients(model: nn.Module, batch: Tensor, answers: Tensor) -> Tensor:
            with torch.no_grad():
                teacher(batch)
            loss = functional.cross_entropy(model(batch).float(), answers)
            for name, beta in zip(names, betas, strict=True):
                wanted = attention_map(taught[name], config.power)
                here = attention_map(own[name], config.power)
                loss = loss + beta * functional.mse_loss(here, wanted)
            loss.backward()  # type: ignore[no-untyped-call]
            own.clear()  # what they hang on would keep a step from being recorded
            return loss.detach()

        yield from tune(
            tuned,
            images,
            labels,
            config=config.tuning,
            generator=generator,
            title="NAD, the student",
            gradients=gradients,
            replayed=True,
        )
    return tuned


def attention_layers(classifier: nn.Module, images: Tensor) -> list[str]:
    """Name the layers whose outputs show where a network looks, from shallow to deep.

    One for each size of the feature maps above one pixel: the part of the network with the most
    parameters among those that put out maps of this size, the last of equals. That is a stage of a
    residual network, a convolution of a VGG. In a transformer, the blocks of its longest chain.

    Args:
        classifier: Maps images to logits.
        images: A few images it takes, on any device.

    Raises:
        ModelError: There is none.
    """
    shapes = _output_shapes(classifier, images)
    groups: dict[tuple[int, ...], tuple[int, str]] = {}
    for name, shape in shapes.items():
        if len(shape) == 4 and shape[2] * shape[3] > 1:
            n_parameters = sum(p.numel() for p in classifier.get_submodule(name).parameters())
            best = groups.get(shape[2:], (0, ""))
            if n_parameters and n_parameters >= best[0]:
                groups[shape[2:]] = (n_parameters, name)
    chain = _longest_chain(classifier, shapes)
    # A transformer's only feature map is that of its patches.
    found = [name for _, name in groups.values()] if len(groups) > 1 or not chain else chain
    if not found:
        raise ModelError(
            "NAD: expected a network with feature maps larger than one pixel or with a chain of "
            "blocks over tokens, found neither; use a defence that needs none, such as fine-tuning"
        )
    return found


def _output_shapes(classifier: nn.Module, images: Tensor) -> dict[str, tuple[int, ...]]:
    """Return the shape of each part's output, in the order in which the parts end."""
    shapes: dict[str, tuple[int, ...]] = {}
    handles = []
    for name, part in classifier.named_modules():

        def note(_part: nn.Module, _inputs: object, output: object, name: str = name) -> None:
            if isinstance(output, Tensor):
                shapes.pop(name, None)
                shapes[name] = tuple(output.shape)

        handles.append(part.register_forward_hook(note))
    try:
        with evaluating(classifier), torch.no_grad():
            classifier(images.to(device=device_of(classifier), dtype=torch.float32))
    finally:
        for handle in handles:
            handle.remove()
    return shapes


def _longest_chain(classifier: nn.Module, shapes: dict[str, tuple[int, ...]]) -> list[str]:
    """Name the blocks that follow one another with tokens (n, T, D) of one shape between them."""
    chains: list[list[str]] = [[]]
    for name, part in classifier.named_modules():
        if isinstance(part, nn.Sequential | nn.ModuleList):
            links = [f"{name}.{key}" for key, _ in part.named_children()]
            found = {shapes.get(link, ()) for link in links}
            if len(links) > 1 and len(found) == 1 and len(found.pop()) == 3:
                chains.append(links)
    return max(chains, key=len)


@contextmanager
def _outputs_of(classifier: nn.Module, names: list[str]) -> Iterator[dict[str, Tensor]]:
    """Keep what the named layers put out in the last forward pass."""
    kept: dict[str, Tensor] = {}
    handles = []
    for name in names:

        def keep(_part: nn.Module, _inputs: object, output: Tensor, name: str = name) -> None:
            kept[name] = output

        handles.append(classifier.get_submodule(name).register_forward_hook(keep))
    try:
        yield kept
    finally:
        for handle in handles:
            handle.remove()


def attention_map(activations: Tensor, power: float) -> Tensor:
    """Turn maps (n, C, H, W) or tokens (n, T, D) into attention (n, H * W) or (n, T)."""
    channels = 1 if activations.ndim == 4 else 2
    summed = activations.float().abs().pow(power).sum(channels).flatten(1)
    return functional.normalize(summed, dim=1)
