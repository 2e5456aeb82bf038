"""What the tests of all defences share."""

import pytest

from tests.defenses.digits import Backdoored, backdoored


@pytest.fixture(scope="session")
def victim() -> Backdoored:
    """A real backdoored classifier, trained once; no test may change it."""
    trained = backdoored()
    # Else tests that compare with it say little.
    assert trained.accuracy(trained.classifier) > 0.94
    assert trained.asr(trained.classifier) > 0.95
    return trained
