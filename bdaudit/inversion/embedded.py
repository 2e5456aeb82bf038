"""Embedded perturbations: how small a shift of inner features, common to all images, will do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from bdaudit.errors import ConfigError, ModelError, NumericsError
from bdaudit.foundation.progress import Progress, Steps, reworded, within
from bdaudit.inversion.arms import Arm, as_rivals, draw_batches, is_won
from bdaudit.inversion.batching import Asker
from bdaudit.inversion.neural_cleanse import NeuralCleanseConfig, NeuralCleanseSearch
from bdaudit.inversion.recovered import Recovered
from bdaudit.inversion.universal import UniversalConfig, UniversalSearch
from bdaudit.perturbation import margin
from bdaudit.triggers import Transform

__all__ = ["EmbeddedConfig", "EmbeddedSearch", "find_feature_layer"]

_LEAST_SPREAD = 0.1  # of one feature over clean images, in shares of the whole layer's
_MARGIN = 1.0  # in logits, beyond which nothing pulls at an image
_BETAS = (0.9, 0.999)


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddedConfig:
    """Settings of the search for embedded perturbations.

    Attributes:
        layer: Name of the module whose output is perturbed; `None` takes the last block's, or the
            last but one where features are tokens, of which the head may read one alone.
        n_images: Images of other classes that each class is tried on, each with its own delta.
        n_steps: Adam steps in one stage of the race.
        n_stages: Stages.
        pixel_rate: Learning rate of Adam on the pixels of the deltas.
        feature_rate: The same on the common perturbation, in spreads of each feature.
        input_weight: Weight of the squared L2 norm of an image's delta, against the margins by
            which images miss the class.
        consensus_weight: Weight of the mean squared distance, in spreads, between what a delta
            does to an image's features and the common perturbation.

    Raises:
        ConfigError: A setting is out of range.
    """

    layer: str | None = None
    n_images: int = 20
    n_steps: int = 8
    n_stages: int = 5
    pixel_rate: float = 0.02
    feature_rate: float = 0.1
    input_weight: float = 0.2
    consensus_weight: float = 12.0

    def __post_init__(self) -> None:
        if min(self.n_images, self.n_steps, self.n_stages) < 1:
            raise ConfigError("embedded perturbations: counts must be 1 or more")
        if min(self.pixel_rate, self.feature_rate) <= 0:
            raise ConfigError("embedded perturbations: learning rates must be above 0")
        if min(self.input_weight, self.consensus_weight) < 0:
            raise ConfigError("embedded perturbations: weights must be 0 or more")


class EmbeddedSearch:
    """Optimises, for every class, a small delta of each image and one common shift of features.

    Of an image x of another class, its delta d and the class's common perturbation v of an inner
    layer f, both x + d, and x with f(x) + v in place of f(x), should go to the class, while d stays
    small and f(x + d) - f(x) stays near v. On a backdoored model the target's images can agree on
    one large shift that small deltas bring about: that of the trigger. Three statistics say so, all
    smaller where a class is suspicious: the norm of the deltas; the same over the norm of v; and
    how far apart images are in what their deltas do to features, over the norm of v. The size of an
    arm is log2 of their product, plus the shares of images that x + d and f(x) + v do not take to
    the class.

    Source: Yang, Li, Wang, Miller and Kesidis, "CEPA: Consensus Embedded Perturbation for Agnostic
    Detection and Inversion of Backdoors", arXiv 2402.02034. docs/inversion-evidence.md says where
    we differ.
    """

    method = "embedded"
    title = "embedded perturbations"
    unit = "product of three norms"
    first_drop = 2

    def __init__(
        self,
        asker: Asker,
        arms: Sequence[Arm],
        config: EmbeddedConfig,
        *,
        universal: UniversalConfig,
        neural_cleanse: NeuralCleanseConfig,
    ) -> None:
        self.asker = asker
        self.arms = arms
        self.config = config
        self.inverters = (universal, neural_cleanse)
        self.n_stages = config.n_stages
        self.layer = find_feature_layer(asker.classifier, asker.images[:2], config.layer)
        device, n = asker.images.device, len(arms)
        with torch.no_grad():
            parts = torch.split(asker.images, asker.batch_size)
            self.clean = torch.cat([self._forward(part)[1] for part in parts])
        asker.forwarded += len(self.clean)
        spread = self.clean.std(0)
        self.spread = spread + _LEAST_SPREAD * self.clean.std() + torch.finfo(spread.dtype).tiny
        self.chosen: tuple[Tensor, Tensor] | None = None
        self.state = [
            torch.zeros((n, *self._n_deltas(), *asker.images.shape[1:]), device=device),
            torch.zeros((n, *self.spread.shape), device=device),
        ]
        self.momentum = [torch.zeros_like(s) for s in self.state]
        self.square = [torch.zeros_like(s) for s in self.state]
        self.statistics = torch.full((n, 3), float("nan"))
        """(n, 3) log2 of: the deltas' mean L2 norm, that over v's norm, disagreement over it."""
        self.missed = torch.full((n, 2), 1.0)
        """(n, 2) shares of images not taken to the class: by their deltas, and by v."""

    def _n_deltas(self) -> tuple[int]:
        return (min([self.config.n_images, *(len(arm) for arm in self.arms)]),)

    def advance(self, stage: int, active: Sequence[int], generator: torch.Generator) -> None:
        """Take `n_steps` steps with the active arms, always over the same images."""
        if self.chosen is None:
            (self.chosen,) = draw_batches(self.arms, self.config.n_images, 1, generator)
        n_images = self.chosen[0].shape[1]
        per_part = max(1, self.asker.batch_size // n_images)
        for first in range(0, len(active), per_part):
            pick = torch.tensor(active[first : first + per_part])
            for step in range(self.config.n_steps):
                self._step(pick, stage * self.config.n_steps + step + 1)
            self._measure(pick)

    def sizes(self, stage: int) -> Tensor:
        """Return log2 of each arm's size (n,)."""
        return self.statistics.sum(1) + self.missed.sum(1)

    def standings(self, stage: int) -> Tensor:
        """Return the same."""
        return self.sizes(stage)

    def recover(
        self,
        arm: int,
        others: Sequence[EmbeddedSearch],
        *,
        n_passes: int,
        seed: int,
    ) -> Steps[Recovered]:
        """Invert a trigger toward one arm, in the form that sets the original apart more.

        Deltas differ from image to image and v lives in the features, so that neither is a
        trigger. A universal perturbation and a mask with its pattern are searched for; what is kept
        is the one whose success on the craft images exceeds that on the innocent models by more.

        Args:
            arm: Which.
            others: The searches on the innocent models.
            n_passes: Passes over the arm's craft images.
            seed: All models meet the same random draws.
        """
        universal, neural_cleanse = self.inverters
        perturb = [UniversalSearch(s.asker, s.arms, universal) for s in (self, *others)]
        # A mask is made on the original alone: every model has one that wins enough.
        mask = [NeuralCleanseSearch(self.asker, self.arms, neural_cleanse)]
        forms: tuple[list[UniversalSearch] | list[NeuralCleanseSearch], ...] = (perturb, mask)
        found = []
        for number, searches in enumerate(forms):
            steps = _raced_alone(searches, arm, n_passes=n_passes, seed=seed)
            recovered = yield from reworded(steps, within(number / 2, 1 / 2))
            found.append(replace(recovered, unit=searches[0].unit))
        return max(found, key=lambda one: self._gap(one, others))

    def _gap(self, recovered: Recovered, others: Sequence[EmbeddedSearch]) -> float:
        """Return by how much a trigger wins more on the original than on any innocent model."""
        arm = self.arms[recovered.arm]

        def success(search: EmbeddedSearch, transform: Transform) -> float:
            won = []
            for part in torch.split(torch.arange(len(arm)), search.asker.batch_size):
                images = search.asker.images[arm.indices[part]]
                with torch.no_grad():
                    logits = search.asker.logits(transform.apply(images, None))
                won.append(is_won(logits.argmax(1).cpu(), arm.targets[part]))
            search.asker.forwarded += len(arm)
            return float(torch.cat(won).double().mean())

        elsewhere = [success(other, recovered.transform) for other in others]
        elsewhere += [
            success(other, own) for other, own in zip(others, recovered.own or (), strict=False)
        ]
        return success(self, recovered.transform) - max(elsewhere, default=0.0)

    def _step(self, pick: Tensor, count: int) -> None:
        """One step of Adam on the deltas and the common perturbations of some arms."""
        leaves = [s[pick].detach().requires_grad_() for s in self.state]
        with torch.enable_grad():
            embedded = self._embed(pick, leaves)
            total = (
                self._loss(embedded.by_delta, pick)
                + self._loss(embedded.by_shift, pick)
                + self.config.input_weight * embedded.moved.square().sum((2, 3, 4)).mean(1)
                + self.config.consensus_weight * embedded.apart.square().flatten(1).mean(1)
            ).sum()
            gradients = torch.autograd.grad(total, leaves)
        self.asker.differentiated += 2 * pick.numel() * self._n_deltas()[0]
        if not all(bool(g.isfinite().all()) for g in gradients):
            raise NumericsError(
                "trigger inversion: a gradient was not finite; look for NaN or huge values in the "
                "weights, or try without bf16"
            )
        rates = (self.config.pixel_rate, self.config.feature_rate)
        first_beta, second_beta = _BETAS
        for state, first, second, gradient, rate in zip(
            self.state, self.momentum, self.square, gradients, rates, strict=True
        ):
            first[pick] = first_beta * first[pick] + (1 - first_beta) * gradient
            second[pick] = second_beta * second[pick] + (1 - second_beta) * gradient**2
            mean = first[pick] / (1 - first_beta**count)
            root = (second[pick] / (1 - second_beta**count)).sqrt()
            state[pick] -= rate * mean / (root + torch.finfo(root.dtype).tiny ** 0.5)

    @torch.no_grad()
    def _measure(self, pick: Tensor) -> None:
        """Take down the statistics of some arms."""
        embedded = self._embed(pick, [s[pick] for s in self.state])
        self.asker.forwarded += 2 * pick.numel() * self._n_deltas()[0]
        tiny = torch.finfo(torch.float32).tiny
        shift = self.state[1][pick].flatten(1).norm(dim=1)
        apart = embedded.apart.flatten(2).norm(dim=2).mean(1)
        moved = embedded.moved.flatten(2).norm(dim=2).mean(1)
        norms = torch.stack([moved, moved / (shift + tiny), apart / (shift + tiny)], dim=1)
        self.statistics[pick] = (norms + tiny).log2().cpu()
        targets = self._targets(pick)
        self.missed[pick] = torch.stack(
            [
                1 - is_won(logits.argmax(2), targets).float().mean(1)
                for logits in (embedded.by_delta, embedded.by_shift)
            ],
            dim=1,
        ).cpu()

    def _embed(self, pick: Tensor, state: Sequence[Tensor]) -> _Embedded:
        assert self.chosen is not None
        indices = self.chosen[0][pick]
        images, clean = self.asker.images[indices], self.clean[indices]
        deltas, shift = state[0], state[1]
        shifted = images + deltas
        # Clamped without losing the gradient of pixels on the bounds.
        shifted = shifted + (shifted.clamp(0, 1) - shifted).detach()
        logits, features = self._forward(shifted.flatten(0, 1))
        common = (clean + (shift * self.spread)[:, None]).flatten(0, 1)
        by_shift, _ = self._forward(images.flatten(0, 1), common)
        moved = (features.view_as(clean) - clean) / self.spread
        return _Embedded(
            by_delta=logits.view(*indices.shape, -1),
            by_shift=by_shift.view(*indices.shape, -1),
            moved=shifted - images,
            apart=moved - shift[:, None],
        )

    def _targets(self, pick: Tensor) -> Tensor:
        assert self.chosen is not None
        return self.chosen[1][pick].to(self.asker.images.device)

    def _loss(self, logits: Tensor, pick: Tensor) -> Tensor:
        """Return by how much images miss a margin of 1 toward each arm's class, on average (k,).

        It is flat where that is reached, so that norms can shrink to what is needed.
        """
        return torch.stack(
            [
                (margin(*as_rivals(one, goal)) + _MARGIN).relu().mean()
                for one, goal in zip(logits, self._targets(pick), strict=True)
            ]
        )

    def _forward(self, images: Tensor, replaced: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return logits and the layer's features of images, with others in their place if given."""
        seen: list[Tensor] = []

        def at_layer(_: nn.Module, __: object, output: Tensor) -> Tensor | None:
            seen.append(output.float())
            return None if replaced is None else replaced.to(output.dtype)

        handle = self.layer.register_forward_hook(at_layer)
        try:
            logits = self.asker.logits(images)
        finally:
            handle.remove()
        return logits, seen[-1]


@dataclass(frozen=True, slots=True, eq=False)
class _Embedded:
    """What the deltas and the common perturbations of k arms do to n images each.

    Attributes:
        by_delta: (k, n, K) logits of the images with their deltas.
        by_shift: (k, n, K) logits of the images with the common perturbation.
        moved: (k, n, C, H, W) how far the pixels moved.
        apart: (k, n, ...) what the deltas do to the features less the common perturbation, in
            spreads.
    """

    by_delta: Tensor
    by_shift: Tensor
    moved: Tensor
    apart: Tensor


def find_feature_layer(classifier: nn.Module, images: Tensor, name: str | None) -> nn.Module:
    """Return the module whose output is perturbed.

    Args:
        classifier: Maps images to logits.
        images: A few of them, to run it on.
        name: Of a module, or its end (`layer4` for `network.layer4`); `None` looks for the last
            block: the last module to answer among the members of sequences (nn.Sequential,
            nn.ModuleList) that have parts of their own, or without such the last member, or
            without sequences the last module, of those that give one tensor with a batch, features
            and more than one place. Where these are tokens (n, T, F) it is the last but one.

    Raises:
        ModelError: There is none.
    """
    modules: dict[str, nn.Module] = dict(classifier.named_modules())
    answered: list[tuple[str, Tensor]] = []

    def watch(label: str) -> Callable[[nn.Module, object, object], None]:
        def seen(_: nn.Module, __: object, output: object) -> None:
            if isinstance(output, Tensor) and output.shape[:1] == images.shape[:1]:
                answered.append((label, output))

        return seen

    handles = [
        module.register_forward_hook(watch(label)) for label, module in modules.items() if label
    ]
    try:
        with torch.no_grad():
            classifier(images)
    finally:
        for handle in handles:
            handle.remove()
    once = [label for label, _ in answered]
    usable = {label: out for label, out in answered if once.count(label) == 1}
    if name is not None:
        named = [label for label in usable if label == name or label.endswith(f".{name}")]
        if len(named) != 1:
            raise ModelError(
                f"embedded perturbations: expected one module named {name!r} that is called once "
                f"and gives a tensor, got {', '.join(named) or 'none'}; there are "
                f"{', '.join(list(usable)[-6:])}"
            )
        return modules[named[0]]
    inner = [label for label, out in usable.items() if out.ndim >= 3 and out[0, 0].numel() > 1]
    members = [
        label
        for label in inner
        if isinstance(modules[label.rpartition(".")[0]], nn.Sequential | nn.ModuleList)
    ]
    blocks = [label for label in members if any(modules[label].children())]
    candidates = blocks or members or inner
    if not candidates:
        raise ModelError(
            "embedded perturbations: expected a network with feature maps or tokens, got none "
            "before its logits; use --method universal, warp or neural-cleanse"
        )
    tokens = usable[candidates[-1]].ndim == 3
    return modules[candidates[-2 if tokens and len(candidates) > 1 else -1]]


def _raced_alone(
    searches: Sequence[UniversalSearch] | Sequence[NeuralCleanseSearch],
    arm: int,
    *,
    n_passes: int,
    seed: int,
) -> Steps[Recovered]:
    """Take one arm through all stages of another method, and make its trigger in full."""
    for stage in range(searches[0].n_stages):
        for search in searches:
            yield Progress(search.title, stage, searches[0].n_stages)
            search.advance(stage, [arm], torch.Generator().manual_seed(seed + stage))
    recovered: Recovered = yield from searches[0].recover(
        arm,
        searches[1:],  # type: ignore[arg-type]
        n_passes=n_passes,
        seed=seed,
    )
    return recovered
