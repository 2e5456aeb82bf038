"""Exit codes, and how an exception becomes one."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple, NoReturn, ParamSpec, TypeVar

import typer

from bdaudit.cli.streams import tell, tell_traceback
from bdaudit.errors import (
    BdauditError,
    ClosedOutputError,
    ConfigError,
    InputError,
    OutputError,
    RemoteError,
)

if TYPE_CHECKING:
    from bdaudit.records import Verdict
    from bdaudit.records.sweeps import SweepRecord

__all__ = [
    "EXIT_FAILED",
    "EXIT_INCONCLUSIVE",
    "EXIT_INPUT",
    "EXIT_INTERNAL",
    "EXIT_INTERRUPTED",
    "EXIT_OF_INVERSION",
    "EXIT_OF_RELEASE",
    "EXIT_OF_SCREENING",
    "EXIT_OUTPUT",
    "EXIT_OUTPUT_CLOSED",
    "EXIT_USAGE",
    "OUTCOMES",
    "exit_by",
    "exit_of",
    "exit_of_sweep",
    "reporting_errors",
]

EXIT_PASSED = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INCONCLUSIVE = 3
EXIT_INPUT = 4
EXIT_INTERNAL = 70
EXIT_OUTPUT = 74
EXIT_INTERRUPTED = 130
EXIT_OUTPUT_CLOSED = 141

EXIT_OF_RELEASE = {
    "pass": EXIT_PASSED,
    "fail": EXIT_FAILED,
    "inconclusive": EXIT_INCONCLUSIVE,
}
EXIT_OF_INVERSION = {
    "none": EXIT_PASSED,
    "found": EXIT_FAILED,
    "unsure": EXIT_INCONCLUSIVE,
}
EXIT_OF_SCREENING = {
    "nothing found": EXIT_PASSED,
    "suspicious": EXIT_FAILED,
    "unknown": EXIT_INCONCLUSIVE,
}
_RELEASE_OF_OUTCOME = {
    "removed": "pass",
    "dormant": "fail",
    "active": "fail",
    "inconclusive": "inconclusive",
}


def exit_by(verdict: Verdict) -> NoReturn:
    """Leave with the exit code of a verdict; what it warns of goes to stderr first.

    A warning is said even under `--quiet`: a release that passes with one must not look like one
    that passes without.
    """
    for reason in verdict.release_reasons:
        tell(f"bdaudit: not to be released: {reason}")
    for warning in verdict.warnings:
        tell(f"bdaudit: WARNING: {warning}")
    release = verdict.release or _RELEASE_OF_OUTCOME[verdict.outcome]
    raise typer.Exit(EXIT_OF_RELEASE[release])


def exit_of_sweep(made: SweepRecord) -> int:
    """Return the exit code of the worst audit: 1 over 70 over 4 over 3 over 0.

    What was found stands whatever else failed. An audit that failed might have found anything, so
    it is worse than one that cannot tell: who lets the inconclusive pass must not let it pass.
    """
    codes = set()
    for audit in made.audits:
        if audit.outcome is None:
            codes.add(EXIT_INPUT if audit.failed_of == "input" else EXIT_INTERNAL)
        else:
            codes.add(EXIT_OF_RELEASE[audit.release or _RELEASE_OF_OUTCOME[audit.outcome]])
    ranked = (EXIT_FAILED, EXIT_INTERNAL, EXIT_INPUT, EXIT_INCONCLUSIVE)
    return next((code for code in ranked if code in codes), EXIT_PASSED)


class Outcome(NamedTuple):
    """What becomes of an exception.

    Attributes:
        code: The exit code.
        line: What is said on stderr, with the exception's text for `{}`; `None` for nothing.
    """

    code: int
    line: str | None


OUTCOMES: dict[type[BaseException], Outcome] = {
    ClosedOutputError: Outcome(EXIT_OUTPUT_CLOSED, None),
    OutputError: Outcome(EXIT_OUTPUT, "cannot be written: {}"),
    ConfigError: Outcome(EXIT_USAGE, "usage: {}"),
    InputError: Outcome(EXIT_INPUT, "unusable input: {}"),
    RemoteError: Outcome(EXIT_INPUT, "cannot be queried: {}"),
    BdauditError: Outcome(EXIT_INTERNAL, "failed: {}"),
    KeyboardInterrupt: Outcome(EXIT_INTERRUPTED, "interrupted; no result was written"),
    MemoryError: Outcome(EXIT_INTERNAL, "out of memory: try a smaller --batch-size or --craft"),
    # Also of a SystemExit that is not ours: a library that leaves with 0 must not mean "removed".
    BaseException: Outcome(EXIT_INTERNAL, "internal error: {} (--debug shows where)"),
}
"""The one table from an exception to an exit code; the first row that fits holds.

None of its codes is 0, 1 or 3, which are verdicts.
"""

Parameters = ParamSpec("Parameters")
Returned = TypeVar("Returned")


def reporting_errors(command: Callable[Parameters, Returned]) -> Callable[Parameters, Returned]:
    """Turn an exception of `command` into one line on stderr and an exit code.

    The traceback follows under `--debug`.
    """

    @functools.wraps(command)
    def wrapped(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Returned:
        try:
            _check_numbers(kwargs)
            return command(*args, **kwargs)
        except (typer.Exit, typer.Abort, typer.BadParameter):
            raise
        except BaseException as error:
            raise typer.Exit(exit_of(error, debug=bool(kwargs.get("debug")))) from None

    return wrapped


def _check_numbers(options: Mapping[str, object]) -> None:
    """Refuse numbers that no computation takes, which ranges let through or do not know.

    Raises:
        ConfigError: One is NaN, infinite, or beyond 64 bits.
    """
    for name, value in options.items():
        for number in value if isinstance(value, list | tuple) else (value,):
            if isinstance(number, float) and not math.isfinite(number):
                raise ConfigError(f"{_option(name)}: expected a finite number, got {number}")
            if isinstance(number, int) and abs(number) >= 1 << 63:
                raise ConfigError(f"{_option(name)}: expected a number that fits in 64 bits")


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def exit_of(error: BaseException, *, debug: bool = False) -> int:
    """Print what happened on stderr, and return its exit code.

    Args:
        error: The exception.
        debug: Whether its traceback is shown.
    """
    found = type(error)
    if found.__name__ == "OutOfMemoryError":  # torch's, of a GPU
        found = MemoryError
    outcome = next(known for kind, known in OUTCOMES.items() if issubclass(found, kind))
    if debug and outcome.line is not None and not isinstance(error, KeyboardInterrupt):
        tell_traceback(error)
    if outcome.line is not None:
        text = str(error).strip()
        if not isinstance(error, BdauditError):
            first = text.splitlines()
            text = f"{type(error).__name__}: {first[0]}" if first else type(error).__name__
        tell(f"bdaudit: {outcome.line.replace('{}', text)}")
    return outcome.code
