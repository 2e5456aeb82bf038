"""`bdaudit gate`: may this be released? Nothing is computed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bdaudit.cli import options
from bdaudit.cli.exits import EXIT_OF_RELEASE, reporting_errors
from bdaudit.cli.output import JsonSink
from bdaudit.cli.project import Config
from bdaudit.cli.sign import Key, Signature
from bdaudit.cli.streams import say, tell
from bdaudit.errors import ConfigError

if TYPE_CHECKING:
    from bdaudit.verdict import GateRecord

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command(name="gate")(gate)


@reporting_errors
def gate(
    record: Annotated[
        Path,
        typer.Argument(help="Record of an audit (--json), or its attestation.", show_default=False),
    ],
    files: Annotated[
        list[Path] | None,
        typer.Argument(
            help="The files to be released: all files of the audited candidate.", show_default=False
        ),
    ] = None,
    policy: Annotated[
        Path | None,
        typer.Option(
            help="Limits of the verdict: a policy or project file \\[default: the project file's, "
            "else those the record was judged by].",
            show_default=False,
        ),
    ] = None,
    key: Key = None,
    signature: Signature = None,
    decision: Annotated[
        str | None,
        typer.Option(
            "--json",
            help="Write the decision as JSON to this file, or to stdout with '-'.",
            metavar="FILE|-",
        ),
    ] = None,
    quiet: options.Quiet = False,
    config: Config = None,
    debug: options.Debug = False,
) -> None:
    """Judge a record again and decide on a release, without computing anything.

    Exit code 0: pass; 1: fail; 3: inconclusive; 4: record, policy or a file cannot be used.
    """
    from bdaudit.records import to_json
    from bdaudit.records.attestations import is_signed
    from bdaudit.records.signing import check_signature
    from bdaudit.verdict import gate as judge_release

    sink = JsonSink(decision, quiet=quiet)
    if key is not None:
        check_signature(record, public_key=key, signature=signature)
    elif signature is not None:
        raise ConfigError("--signature: pass the public key that checks it with --key")
    made = judge_release(record, policy=policy, files=files or ())
    sink.write(to_json(made))
    if not sink.to_stdout:
        for line in _in_words(made, brief=quiet, signed_by=key):
            say(line)
    if key is None and is_signed(record):
        tell("bdaudit: WARNING: the attestation's signature was not checked; pass --key")
    for warning in made.warnings:
        tell(f"bdaudit: WARNING: {warning}")
    raise typer.Exit(EXIT_OF_RELEASE[made.release])


def _in_words(made: GateRecord, *, brief: bool, signed_by: Path | None) -> list[str]:
    word = {"pass": "PASS", "fail": "FAIL", "inconclusive": "INCONCLUSIVE"}[made.release]
    expected = " (the policy expects active)" if made.verdict.wanted else ""
    verdict = f"{made.verdict.outcome}{expected}. {made.verdict.why}"
    if made.reasons:
        lines = [f"{word}: {made.reasons[0]}", *(f"  and: {r}" for r in made.reasons[1:])]
        lines.append(f"verdict: {verdict}")
    else:
        lines = [f"{word}: {verdict}"]
    if not brief:
        lines += [f"what now: {line}" for line in made.verdict.advice]
        if signed_by is not None:
            lines.append(f"signed by: {signed_by}")
        lines += [f"note: {note}" for note in made.notes]
        lines.append(f"limits: {made.verdict.policy_source}{_changed(made)}")
        lines += [f"file checked: {f.path} sha256 {f.sha256}" for f in made.files]
        lines.append(f"record: {made.record} sha256 {made.record_sha256}")
    return lines


def _changed(made: GateRecord) -> str:
    """List the limits that are not the default ones."""
    policy = made.verdict.policy
    changed = [
        f"{key} {len(policy[key]) if key == 'waivers' else policy[key]}"
        for key in made.verdict.policy_changed or ()
    ]
    return f"; not the default: {', '.join(changed)}" if changed else ", all the default ones"
