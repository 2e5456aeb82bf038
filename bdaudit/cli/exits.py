"""Exit codes, and how an exception becomes one."""

from __future__ import annotations

import functools
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn, ParamSpec, TypeVar

import typer

from bdaudit.errors import BdauditError, ConfigError, InputError, RemoteError

if TYPE_CHECKING:
    from bdaudit.results import Verdict
    from bdaudit.sweep_results import SweepRecord

__all__ = [
    "EXIT_FAILED",
    "EXIT_INCONCLUSIVE",
    "EXIT_INPUT",
    "EXIT_INTERNAL",
    "EXIT_INTERRUPTED",
    "EXIT_OF_INVERSION",
    "EXIT_OF_RELEASE",
    "EXIT_USAGE",
    "exit_by",
    "exit_of_sweep",
    "reporting_errors",
]

EXIT_PASSED = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INCONCLUSIVE = 3
EXIT_INPUT = 4
EXIT_INTERNAL = 70
EXIT_INTERRUPTED = 130

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
        typer.echo(f"bdaudit: not to be released: {reason}", err=True)
    for warning in verdict.warnings:
        typer.echo(f"bdaudit: WARNING: {warning}", err=True)
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


Parameters = ParamSpec("Parameters")
Returned = TypeVar("Returned")


def reporting_errors(command: Callable[Parameters, Returned]) -> Callable[Parameters, Returned]:
    """Turn an exception of `command` into one line on stderr and an exit code.

    The traceback follows under `--debug`.
    """

    @functools.wraps(command)
    def wrapped(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Returned:
        try:
            return command(*args, **kwargs)
        except (typer.Exit, typer.Abort, typer.BadParameter):
            raise
        except KeyboardInterrupt:
            _say("interrupted; no result was written", None)
            raise typer.Exit(EXIT_INTERRUPTED) from None
        except BrokenPipeError:
            # The reader of our output went away (`| head`): nothing is wrong with the input.
            raise typer.Exit(EXIT_INTERNAL) from None
        except Exception as error:
            line, code = _describe(error)
            _say(line, error if kwargs.get("debug") else None)
            raise typer.Exit(code) from None

    return wrapped


def _describe(error: Exception) -> tuple[str, int]:
    if isinstance(error, ConfigError):
        return f"usage: {error}", EXIT_USAGE
    if isinstance(error, InputError):
        return f"unusable input: {error}", EXIT_INPUT
    if isinstance(error, RemoteError):
        return f"cannot be asked: {error}", EXIT_INPUT
    if isinstance(error, BdauditError):
        return f"failed: {error}", EXIT_INTERNAL
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return "out of memory: try a smaller --batch-size or --craft", EXIT_INTERNAL
    first = str(error).strip().splitlines()
    gist = f"{type(error).__name__}: {first[0]}" if first else type(error).__name__
    return f"internal error: {gist} (--debug shows where)", EXIT_INTERNAL


def _say(line: str, error: Exception | None) -> None:
    if error is not None:
        typer.echo("".join(traceback.format_exception(error)), err=True)
    typer.echo(f"bdaudit: {line}", err=True)
