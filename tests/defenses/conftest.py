"""What the tests of all defences share."""

import pytest

from bdaudit.defenses import FinetuneConfig, finetune
from tests.defenses.digits import SEEDS, TUNING, Backdoored, kept


def _checked(width: int) -> Backdoored:
    victim = kept(width)
    # Else tests that compare with it say little.
    assert victim.accuracy(victim.classifier) > 0.94
    assert victim.asr(victim.classifier) > 0.95
    return victim


@pytest.fixture(scope="session")
def victim() -> Backdoored:
    """A real backdoored classifier, read from its file; no test may change it."""
    return _checked(4)


@pytest.fixture(scope="session")
def wide() -> Backdoored:
    """A victim with neurons enough that some carry the trigger alone."""
    return _checked(8)


@pytest.fixture(scope="session")
def plain_asrs(victim: Backdoored) -> tuple[float, ...]:
    """The victim's ASR after plain fine-tuning, by seed: what a defence is held against.

    The last bits of a processor's arithmetic decide where a training ends as a seed does. So
    tests ask for distances from these figures that are wide beside the spread between seeds.
    """
    asrs = []
    for seed in SEEDS:
        tuned = victim.defend(finetune, FinetuneConfig(tuning=TUNING), seed=seed)
        asrs.append(victim.asr(tuned))
    assert min(asrs) > 0.3  # else they leave a defence nothing to show
    return tuple(asrs)
