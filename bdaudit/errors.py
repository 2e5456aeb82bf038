"""Everything bdaudit raises on purpose.

* BdauditError
  - InputError        a file, model, data set, trigger or record cannot be used
      · ModelError
      · DataError
      · TriggerError
      · RecordError
      · PolicyError
      · ProjectError
      · ManifestError
      · FetchError
  - ConfigError       a setting is out of range or contradicts another
  - BudgetError       a query budget would be exceeded
  - NumericsError     a computation gave a non-finite or meaningless number
  - RemoteError       a served model could not be asked
  - EngineError       a task was not done by the engine it was given to
      · ResourceError

A message says what was expected, what came, from which file, and what to try.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "BdauditError",
    "BudgetError",
    "ConfigError",
    "DataError",
    "EngineError",
    "FetchError",
    "InputError",
    "ManifestError",
    "ModelError",
    "NumericsError",
    "PolicyError",
    "ProjectError",
    "RecordError",
    "RemoteError",
    "ResourceError",
    "TriggerError",
    "unknown_key",
]


class BdauditError(Exception):
    """Base of every error that bdaudit raises on purpose."""


class InputError(BdauditError):
    """An input cannot be used as it is."""


class ModelError(InputError):
    """A checkpoint cannot be opened safely, or does not fit its architecture or the data."""


class DataError(InputError):
    """Images or labels cannot be read, or do not fit the model."""


class TriggerError(InputError):
    """A trigger file cannot be read, or the trigger cannot be stamped on these images."""


class RecordError(InputError):
    """A result record cannot be read, or was changed since it was written."""


class PolicyError(InputError):
    """A policy file cannot be read or contradicts itself."""


class ProjectError(InputError):
    """A project file cannot be read, or asks for what it may not ask for."""


class ManifestError(InputError):
    """A file that lists what is to be made cannot be read, or asks for the impossible."""


class FetchError(InputError):
    """A file at a URL cannot be had, or is not what its digest says."""


class ConfigError(BdauditError, ValueError):
    """A setting is out of range or contradicts another."""


class BudgetError(BdauditError):
    """A query budget would be exceeded."""


class NumericsError(BdauditError):
    """A computation gave a non-finite or meaningless number."""


class RemoteError(BdauditError):
    """A served model could not be asked."""


class EngineError(BdauditError):
    """A task was not done by the engine it was given to: its worker died, or it cannot start."""


class ResourceError(EngineError):
    """No worker, processor or GPU was free within the time to wait for one."""


def unknown_key(key: str, known: Iterable[str]) -> str:
    """Say that `key` is not known, and which one was probably meant."""
    names = list(known)
    nearest = difflib.get_close_matches(key, names, n=1)
    hint = f"did you mean {nearest[0]!r}?" if nearest else f"known: {', '.join(names)}"
    return f"unknown key {key!r}; {hint}"
