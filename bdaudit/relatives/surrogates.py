"""Models that resemble the defended one, made from the suspected original.

An attacker who cannot see inside the defended model may hold the original and a few clean images.
Put through defences of his own, the original gives models in which the backdoor sleeps much as it
may in the defended one; perturbations made on them often carry over (`reactivation.transfer`), and
give a query search a start.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeAlias

import torch
from torch import nn

from bdaudit.data import Sample
from bdaudit.defenses import (
    FinePruningConfig,
    FinetuneConfig,
    FstConfig,
    FtSamConfig,
    suited_tuning,
)
from bdaudit.defenses.catalogue import defense_of
from bdaudit.defenses.tuning import device_of
from bdaudit.errors import ConfigError, ModelError
from bdaudit.foundation.digests import digest_tensors
from bdaudit.foundation.plain_settings import keyed_settings
from bdaudit.foundation.progress import Progress, Steps, reworded
from bdaudit.models import KeptClassifiers, LoadedModel, describe_classifier
from bdaudit.precision import computing_in
from bdaudit.settings import Precision

__all__ = ["DefenseConfig", "SurrogateConfig", "make_surrogates"]

DefenseConfig: TypeAlias = FinetuneConfig | FtSamConfig | FinePruningConfig | FstConfig
"""Settings of a defence; their type says which defence it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SurrogateConfig:
    """Which surrogates are made.

    Attributes:
        defenses: One surrogate for each, made by that defence with these settings. `None` makes
            one by each of fine-tuning, FT-SAM, fine-pruning and FST, tuned as suits the original's
            architecture (`defenses.suited_tuning`; measured in docs/transfer.md).
        precision: What the defences train in.

    Raises:
        ConfigError: There is none.
    """

    defenses: tuple[DefenseConfig, ...] | None = None
    precision: Precision = "float32"

    def __post_init__(self) -> None:
        if self.defenses is not None and not self.defenses:
            raise ConfigError("surrogates: expected one defence or more, got none")

    def defenses_of(self, classifier: nn.Module) -> tuple[DefenseConfig, ...]:
        """Return the defences that surrogates of `classifier` are made by."""
        if self.defenses is not None:
            return self.defenses
        tuning = suited_tuning(classifier)
        return (
            FinetuneConfig(tuning=tuning),
            FtSamConfig(tuning=tuning),
            FinePruningConfig(tuning=tuning),
            FstConfig(tuning=tuning),
        )


def make_surrogates(
    original: LoadedModel,
    craft: Sample,
    *,
    config: SurrogateConfig | None = None,
    generator: torch.Generator,
    cache_dir: Path | None = None,
) -> Steps[tuple[LoadedModel, ...]]:
    """Defend the original in several ways, each of which gives a surrogate.

    Args:
        original: The suspected model before its defence; left as it is. The surrogates are made
            and put on its device.
        craft: Clean labelled images; none of those that rates are reported on.
        config: Which defences; `None` takes the defaults.
        generator: Seeded CPU generator. One number is drawn for each surrogate, whether it comes
            from the cache or not, so what is drawn afterwards does not depend on the cache.
        cache_dir: Folder, made when missing, in which finished surrogates are kept by the digest
            of all that determines them; `None` keeps none. Deleting it is always safe.

    Yields:
        `Progress` of the training, in surrogates.

    Returns:
        The surrogates in the order of the defences: eval mode, no parameter requiring a
        gradient. A defence that does not apply to this architecture is left out, and the notes of
        the others say so.

    Raises:
        ModelError: No defence applies to this architecture.
        DataError: Too few craft images.
        NumericsError: Training diverged.
        ConfigError: `cache_dir` cannot be written to.
    """
    config = config or SurrogateConfig()
    defenses = config.defenses_of(original.classifier)
    device = device_of(original.classifier)
    total = len(defenses)
    images = digest_tensors({"images": craft.images, "labels": craft.labels})
    kept = KeptClassifiers(cache_dir, "surrogate")
    surrogates, left_out = [], list[str]()
    for number, defense in enumerate(defenses):
        seed = int(torch.randint(2**62, (), generator=generator))
        title = f"surrogate {number + 1} of {total}, {defense_of(defense).title}"
        key = kept.key(
            {
                **describe_classifier(original),
                "images": images,
                "defense": [type(defense).__name__, keyed_settings(defense)],
                "seed": seed,
                **({} if config.precision == "float32" else {"precision": config.precision}),
            }
        )
        classifier = kept.read(key, original.classifier)
        if classifier is None:
            begin = partial(
                defense_of(defense).run,
                original.classifier,
                craft.images,
                craft.labels,
                config=defense,
                generator=torch.Generator().manual_seed(seed),
            )
            steps = computing_in(config.precision, device, begin)
            try:
                classifier = yield from _as_part(steps, title, number, total)
            except ModelError as error:
                # The defence does not suit the architecture; the others may.
                left_out.append(f"left out {defense_of(defense).title}: {error}")
                yield Progress(title, number + 1, total, left_out[-1])
                continue
            kept.write(key, classifier)
        yield Progress(title, number + 1, total)
        surrogates.append(_loaded(original, classifier, number + 1, defense))
    if not surrogates:
        raise ModelError(f"{original.name}: no surrogate can be made: {'; '.join(left_out)}")
    return tuple(replace(model, notes=(*model.notes, *left_out)) for model in surrogates)


def _loaded(
    original: LoadedModel, classifier: nn.Module, number: int, defense: DefenseConfig
) -> LoadedModel:
    name = defense_of(defense).title
    model = replace(
        original,
        name=f"surrogate {number} ({name})",
        classifier=classifier,
        path=None,
        notes=(f"made from {original.name} by {name} on the craft images",),
    )
    return replace(model, weights_sha256=digest_tensors(model.network.state_dict()))


def _as_part(steps: Steps[nn.Module], title: str, number: int, total: int) -> Steps[nn.Module]:
    """Scale the progress of one surrogate to its part of all."""

    def scaled(event: Progress) -> Progress:
        return Progress(title, number + event.done / event.total, total, event.note)

    return reworded(steps, scaled)
