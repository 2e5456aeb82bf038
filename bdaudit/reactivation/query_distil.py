"""A student of the model that can only be queried, and the perturbation made on it.

The model under audit was made from the suspected original by some defence. So a surrogate, the
original itself or the original put through a defence, is a few hundred answers away from it: fine-
tuned on what the model answers around the triggered images, it becomes a local model of it, whose
gradients cost no queries. Each round asks about images that carry the latest delta and variants of
it, refits the student on all answers so far, and makes delta anew on the student, white-box.

Source: ours, after Papernot et al., "Practical Black-Box Attacks against Machine Learning", ASIA
CCS 2017, who train a substitute from scratch on synthetic inputs; here it starts from a relative
of the model, and is asked to be right only where the next delta will be made.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite

import torch
from torch import Tensor, nn
from torch.nn import functional

from bdaudit.foundation.progress import finish
from bdaudit.models import training_order
from bdaudit.perturbation import apply_delta
from bdaudit.reactivation.config import WhiteboxConfig
from bdaudit.reactivation.objective import CraftSet, ask
from bdaudit.reactivation.query_config import QueryConfig
from bdaudit.reactivation.query_search import success_flags
from bdaudit.reactivation.transfer import TransferConfig, reactivate_transfer
from bdaudit.reactivation.whitebox import reactivate_whitebox
from bdaudit.scoring import evaluating

__all__ = ["DistilSearch"]

_MINI_BATCH = 64
_FIT_STEPS = 30
_FIRST_FIT_STEPS = 100
_LEARNING_RATE = 1e-3
_CRAFT_PASSES = 6
_STALLED_AFTER = 4  # rounds, compared with as many before them


@dataclass(frozen=True, slots=True, eq=False)
class _Round:
    """What was asked in one round, small enough to be kept: the images are drawn again from seed.

    Attributes:
        delta: (1, C, H, W) that the images carried, or variants of it.
        seed: Of everything random about the images.
        answers: Scores (n, K) or labels (n,).
    """

    delta: Tensor
    seed: int
    answers: Tensor


class DistilSearch:
    """Ask, refit the student, make delta anew on it.

    Args:
        craft: Images and targets, on the CPU.
        surrogates: One or more; left as they are. The student is a copy of the one that agrees
            best with the first answers.
        config: Radius, norm, feedback, most rounds and most images a round.
        start: (1, C, H, W), asked about in the first round; `None` makes it on the surrogates.
        budget: Images this part may ask about.
    """

    name = "student"

    def __init__(
        self,
        craft: CraftSet,
        surrogates: Sequence[nn.Module],
        config: QueryConfig,
        *,
        start: Tensor | None,
        budget: int,
    ) -> None:
        self._craft = craft
        self._surrogates = surrogates
        self._config = config
        self._bf16 = config.autocast == "bf16"
        self._start = start
        self._n_images = min(config.batch_size, len(craft), max(1, budget // 4))
        self._rounds: list[_Round] = []
        self._successes: list[float] = []
        self._student: nn.Module | None = None
        self._chosen = -1  # which surrogate the student was copied from
        self._learning_rate = _LEARNING_RATE
        self._n_fits = 0
        self._n_refused = 0
        self._delta = torch.zeros_like(craft.images[:1])
        self._pending: tuple[int, Tensor] | None = None

    @property
    def delta(self) -> Tensor:
        """The perturbation made on the latest student; in the end that of the best round."""
        return self._delta

    @property
    def tried_and_accepted(self) -> tuple[int, int]:
        """Refits of the student so far, and those that brought it nearer to the answers."""
        return self._n_fits, self._n_fits - self._n_refused

    def propose(self, limit: int, generator: torch.Generator) -> Tensor:
        """Refit the student on all answers, make delta on it, and show craft images with it."""
        n_images = min(self._n_images, limit)
        if n_images == 0 or len(self._rounds) == self._config.distil_rounds or self._stalled():
            self._delta = self._best_delta()
            return self._craft.images[:0]
        if self._rounds:
            self._refit(generator)
            assert self._student is not None
            self._delta = self._make_delta(self._student, generator)
        elif self._start is not None:
            self._delta = self._start
        else:
            self._delta = self._transferred(generator)
        seed = int(torch.randint(2**62, (), generator=generator))
        indices, images = self._show(self._delta, seed, n_images)
        self._pending = seed, self._craft.targets[indices]
        return images

    def absorb(self, answers: Tensor) -> float:
        """Keep the answers for the next refit."""
        assert self._pending is not None
        seed, targets = self._pending
        self._rounds.append(_Round(self._delta, seed, answers))
        plain = success_flags(answers, targets)[: _n_plain(len(answers))]
        self._successes.append(float(plain.double().mean()))
        return self._successes[-1]

    def memory(self) -> dict[str, Tensor]:
        """Return the student's weights and every answer."""
        memory = {
            "delta": self._delta,
            "chosen": torch.tensor(self._chosen),
            "fits": torch.tensor((self._n_fits, self._n_refused)),
            "learning_rate": torch.tensor(self._learning_rate, dtype=torch.float64),
            "successes": torch.tensor(self._successes, dtype=torch.float64),
            "seeds": torch.tensor([past.seed for past in self._rounds], dtype=torch.int64),
        }
        for k, past in enumerate(self._rounds):
            memory[f"round {k} delta"] = past.delta
            memory[f"round {k} answers"] = past.answers
        if self._student is not None:
            for name, tensor in self._student.state_dict().items():
                memory[f"student {name}"] = tensor.detach().cpu().clone()
        return memory

    def recall(self, memory: Mapping[str, Tensor]) -> None:
        """Go back to where `memory` was taken."""
        self._delta = memory["delta"]
        self._chosen = int(memory["chosen"])
        self._n_fits, self._n_refused = memory["fits"].tolist()
        self._learning_rate = float(memory["learning_rate"])
        self._successes = memory["successes"].tolist()
        self._rounds = [
            _Round(memory[f"round {k} delta"], seed, memory[f"round {k} answers"])
            for k, seed in enumerate(memory["seeds"].tolist())
        ]
        self._student = None
        if self._chosen >= 0:
            self._student = self._copy_of_chosen()
            names = self._student.state_dict()
            self._student.load_state_dict({name: memory[f"student {name}"] for name in names})

    def _best_delta(self) -> Tensor:
        """Return what took most images to their targets in its round, the latest of equals."""
        if not self._rounds:
            return self._delta
        best = max(range(len(self._rounds)), key=lambda k: (self._successes[k], k))
        return self._rounds[best].delta

    def _stalled(self) -> bool:
        """Whether the latest rounds did no better than as many before them."""
        if len(self._successes) < 2 * _STALLED_AFTER:
            return False
        late, early = self._successes[-_STALLED_AFTER:], self._successes[-2 * _STALLED_AFTER :]
        return sum(late) <= sum(early[:_STALLED_AFTER])

    def _show(self, delta: Tensor, seed: int, n_images: int) -> tuple[Tensor, Tensor]:
        """Return craft indices (n,) and images (n, C, H, W): first with delta, then variants.

        A variant leaves out delta in random squares, half of them, or turns it round there: the
        student learns what each part of delta does, where noise all over it would cancel out.
        """
        draw = torch.Generator().manual_seed(seed)
        indices = torch.randperm(len(self._craft), generator=draw)[:n_images]
        shifts = delta.repeat(n_images, 1, 1, 1)
        for k in range(_n_plain(n_images), n_images):
            kept = _random_squares(delta.shape[-2:], draw)
            turned = bool(torch.rand((), generator=draw) < 0.5)
            shifts[k] *= 2 * kept - 1 if turned else kept
        return indices, apply_delta(self._craft.images[indices], shifts)

    def _transferred(self, generator: torch.Generator) -> Tensor:
        """Make the first delta on all surrogates."""
        config = self._config
        device = _device_of(self._surrogates[0])
        with torch.autocast(device.type, torch.bfloat16, enabled=self._bf16):
            found = finish(
                reactivate_transfer(
                    self._surrogates,
                    self._craft.images,
                    self._craft.targets,
                    config=TransferConfig(
                        eps=config.eps,
                        norm=config.norm,
                        n_passes=_CRAFT_PASSES,
                        steps=config.steps,
                        marked=config.marked,
                    ),
                    generator=generator,
                )
            )
        return found.delta

    def _make_delta(self, student: nn.Module, generator: torch.Generator) -> Tensor:
        """Make delta on the student as on any model that can be differentiated."""
        config = self._config
        found = finish(
            reactivate_whitebox(
                student,
                self._craft.images,
                self._craft.targets,
                config=WhiteboxConfig(
                    eps=config.eps,
                    norm=config.norm,
                    n_passes=_CRAFT_PASSES,
                    autocast=config.autocast,
                    steps=config.steps,
                    marked=config.marked,
                    # Without it bfloat16 convolutions on a CPU are slower than float32 ones.
                    channels_last=True if self._bf16 else None,
                ),
                generator=generator,
            )
        )
        return found.delta

    def _refit(self, generator: torch.Generator) -> None:
        """Bring the student nearer to the answers, or leave it and learn more slowly."""
        newest = self._rounds[-1]
        if self._student is None:
            losses = [self._misfit(model, newest) for model in self._surrogates]
            self._chosen = losses.index(min(losses))
            self._student = self._copy_of_chosen()
        refitted = copy.deepcopy(self._student)
        n_steps = _FIRST_FIT_STEPS if len(self._rounds) == 1 else _FIT_STEPS
        with evaluating(refitted):
            self._descend(refitted, n_steps, generator)
        before, after = self._misfit(self._student, newest), self._misfit(refitted, newest)
        self._n_fits += 1
        if isfinite(after) and after <= before:
            self._student = refitted
        else:
            self._n_refused += 1
            self._learning_rate /= 2

    def _copy_of_chosen(self) -> nn.Module:
        student = copy.deepcopy(self._surrogates[self._chosen])
        return student.to(memory_format=self._order(student)) if self._bf16 else student

    def _order(self, model: nn.Module) -> torch.memory_format:
        return training_order(model, _device_of(model))

    def _descend(self, student: nn.Module, n_steps: int, generator: torch.Generator) -> None:
        """Take `n_steps` of Adam, on mini-batches half from the newest round, half from others."""
        parameters = [p.requires_grad_() for p in student.parameters()]
        optimizer = torch.optim.Adam(parameters, lr=self._learning_rate)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.03, n_steps)
        newest = self._shown(self._rounds[-1])
        device = _device_of(student)
        for _ in range(n_steps):
            sources = [newest]
            if len(self._rounds) > 1:
                older = int(torch.randint(len(self._rounds) - 1, (), generator=generator))
                sources.append(self._shown(self._rounds[older]))
            each = _MINI_BATCH // len(sources)
            drawn = [
                (images[chosen], answers[chosen])
                for images, answers in sources
                for chosen in [torch.randint(len(images), (each,), generator=generator)]
            ]
            images, answers = (torch.cat(part).to(device) for part in zip(*drawn, strict=True))
            optimizer.zero_grad()
            torch.autograd.backward(_divergence(self._run(student, images), answers))
            optimizer.step()
            schedule.step()
        for parameter in parameters:
            parameter.requires_grad_(False)

    def _shown(self, past: _Round) -> tuple[Tensor, Tensor]:
        return self._show(past.delta, past.seed, len(past.answers))[1], past.answers

    def _misfit(self, model: nn.Module, past: _Round) -> float:
        images, answers = self._shown(past)
        device = _device_of(model)
        with evaluating(model), torch.inference_mode():
            outputs = torch.cat(
                [self._run(model, part.to(device)) for part in torch.split(images, _MINI_BATCH)]
            )
            return float(_divergence(outputs, answers.to(device)))

    def _run(self, model: nn.Module, images: Tensor) -> Tensor:
        """Return a local model's logits (n, K), float32."""
        if self._bf16:
            images = images.contiguous(memory_format=self._order(model))
        return ask(model, images, bf16=self._bf16)


def _divergence(outputs: Tensor, answers: Tensor) -> Tensor:
    """Return the mean divergence of a student's logits from the model's scores or labels."""
    if answers.ndim == 1:
        return functional.cross_entropy(outputs, answers)
    return functional.kl_div(
        functional.log_softmax(outputs, dim=1),
        functional.log_softmax(answers, dim=1),
        log_target=True,
        reduction="batchmean",
    )


def _random_squares(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Return (H, W) of ones and zeros, constant on squares of 2 to 8 pixels, each a toss."""
    height, width = shape
    side = int(torch.randint(2, 9, (), generator=generator))
    tosses = torch.randint(2, (-(-height // side), -(-width // side)), generator=generator)
    return tosses.float().repeat_interleave(side, 0).repeat_interleave(side, 1)[:height, :width]


def _n_plain(n_images: int) -> int:
    """Return how many images of a round carry delta itself; the rest carry variants."""
    return (n_images + 1) // 2


def _device_of(module: nn.Module) -> torch.device:
    return next((p.device for p in module.parameters()), torch.device("cpu"))
