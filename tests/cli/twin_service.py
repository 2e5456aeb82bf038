"""A model behind a user's own Python function, as `twin_service.py:scores` names it."""

import time

from torch import Tensor

from tests.twins import dormant_twin

_MODEL = dormant_twin()


def scores(images: Tensor) -> Tensor:
    return _MODEL(images)


def labels(images: Tensor) -> Tensor:
    return _MODEL(images).argmax(dim=1)


def slow_scores(images: Tensor) -> Tensor:
    time.sleep(0.05)
    return _MODEL(images)
