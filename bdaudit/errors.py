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
  - OutputError       what was found cannot be written
      · ClosedOutputError

`reading` turns whatever a parser raises on a user's file into an `InputError`. A message says what
was expected, what came, from which file, and what to try.
"""

from __future__ import annotations

import difflib
import functools
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

from bdaudit.plain_text import shortened

__all__ = [
    "BdauditError",
    "BudgetError",
    "ClosedOutputError",
    "ConfigError",
    "DataError",
    "EngineError",
    "FetchError",
    "InputError",
    "ManifestError",
    "ModelError",
    "NumericsError",
    "OutputError",
    "PolicyError",
    "ProjectError",
    "RecordError",
    "RemoteError",
    "ResourceError",
    "TriggerError",
    "reading",
    "reads",
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


class OutputError(BdauditError):
    """What was found cannot be written: the disk is full, or the output is closed."""


class ClosedOutputError(OutputError):
    """The reader of the output went away, as `| head` does."""


Parameters = ParamSpec("Parameters")
Returned = TypeVar("Returned")


@contextmanager
def reading(source: object, error: type[InputError] = InputError) -> Iterator[None]:
    """Turn whatever is raised while a user's input is read into an `InputError` that names it.

    A parser may answer bytes it was not made for with any exception: a `RecursionError` for deep
    nesting, a `MemoryError` for a length it believed, an `AttributeError` for an object that is no
    tensor. None of these is a fault of bdaudit's that a user should report. Wrap what reads, and
    nothing else: outside of it such an exception is one.

    Args:
        source: The file, address or option that is read, as it may be shown.
        error: What to raise.

    Raises:
        InputError: Of the class `error`. Errors of bdaudit's own and a full GPU pass unchanged.
    """
    try:
        yield
    except BdauditError:
        raise
    except Exception as failure:
        if type(failure).__name__ == "OutOfMemoryError":  # torch's, of a GPU
            raise
        raise error(f"{shortened(str(source))}: {_reason(failure)}") from failure


def reads(
    error: type[InputError] = InputError,
) -> Callable[[Callable[Parameters, Returned]], Callable[Parameters, Returned]]:
    """Decorate a function whose first argument is the file it reads: `reading`, whole.

    Args:
        error: What it raises when the file cannot be read.
    """

    def decorate(function: Callable[Parameters, Returned]) -> Callable[Parameters, Returned]:
        @functools.wraps(function)
        def wrapped(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Returned:
            source = next(iter((*args, *kwargs.values())), None)
            named = isinstance(source, str | os.PathLike)
            with reading(source if named else type(source).__name__, error):
                return function(*args, **kwargs)

        return wrapped

    return decorate


def _reason(failure: Exception) -> str:
    """Return in one line what a parser raised."""
    if isinstance(failure, RecursionError):
        return "nested too deeply to be read"
    if isinstance(failure, MemoryError):
        return "needs more memory than is available"
    if isinstance(failure, OSError) and failure.strerror:
        return failure.strerror
    if isinstance(failure, UnicodeDecodeError):
        return f"expected text in UTF-8, got byte 0x{failure.object[failure.start]:02x} at " + (
            f"offset {failure.start}"
        )
    first = next((line for line in str(failure).splitlines() if line.strip()), "")
    gist = f"{type(failure).__name__}: {shortened(first)}" if first else type(failure).__name__
    return f"cannot be read ({gist})"


def unknown_key(key: str, known: Iterable[str]) -> str:
    """Return the message for an unknown `key`, with the one that was probably meant."""
    names = list(known)
    nearest = difflib.get_close_matches(key, names, n=1)
    hint = f"did you mean {nearest[0]!r}?" if nearest else f"known: {', '.join(names)}"
    return f"unknown key {key!r}; {hint}"
