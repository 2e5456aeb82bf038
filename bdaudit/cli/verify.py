"""`bdaudit verify`: do a record's inputs and numbers still hold?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from bdaudit.cli import options
from bdaudit.cli.bundles import Only, taking_tables
from bdaudit.cli.exits import EXIT_FAILED, EXIT_INCONCLUSIVE, EXIT_PASSED, reporting_errors
from bdaudit.cli.output import JsonSink, check_writable, write_file
from bdaudit.cli.sign import Key, Signature
from bdaudit.cli.streams import say
from bdaudit.cli.watching import showing_progress
from bdaudit.errors import ConfigError, RecordError
from bdaudit.foundation.opening import demand_there, is_folder
from bdaudit.settings import Output

if TYPE_CHECKING:
    from bdaudit.records import Rate
    from bdaudit.records.ledger import LedgerRecord
    from bdaudit.records.verification import VerificationRecord

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command(name="verify")(verify)


@reporting_errors
@taking_tables
def verify(
    *,
    record: Annotated[
        Path,
        typer.Argument(
            help="Record of an audit (--json), or a folder of them.", show_default=False
        ),
    ],
    seed: Annotated[
        int, typer.Option(help="Seed that selects the eps and the control to repeat.", min=0)
    ] = 0,
    folder: Annotated[
        Path, typer.Option(help="Folder that relative paths in the record refer to.")
    ] = Path(),
    digests_only: Annotated[
        bool, typer.Option("--digests-only", help="Only hash the inputs; run nothing.")
    ] = False,
    trust_record: Annotated[
        bool,
        typer.Option(
            "--trust-record",
            help="Run Python files that the record names, and use the token's variable it names.",
        ),
    ] = False,
    device: Annotated[str | None, typer.Option(help="Device \\[default: as recorded].")] = None,
    policy: Annotated[
        Path | None,
        typer.Option(
            help="Of a folder: today's limits \\[default: the default ones].", show_default=False
        ),
    ] = None,
    report: Annotated[
        list[str] | None,
        typer.Option(
            help="Of a folder: also write the table as csv or html; may be repeated.",
            metavar="FORMAT=FILE",
            show_default=False,
        ),
    ] = None,
    key: Key = None,
    signature: Signature = None,
    output: Annotated[Output, Only("json")],
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Hash a record's inputs again and run a sampled part of the audit again.

    Of a folder of records: which files, limits and versions are still there, and which verdicts
    would change under today's limits; nothing is run.

    Exit code 0: nothing speaks against the record; 1: something does; 3, of a folder: files are
    gone; 4: it cannot be verified.
    """
    if is_folder(record):
        if signature is not None:
            raise ConfigError("--signature: a folder's records each have their own beside them")
        _verify_folder(record, output, policy, folder, key, report or [], quiet)
    if policy is not None or report:
        raise ConfigError(f"--policy and --report are of a folder of records; {record} is none")
    demand_there(record, what="the JSON that --json writes", error=RecordError)
    from bdaudit.records import to_json
    from bdaudit.records.signing import check_signature

    sink = JsonSink(output.json_, quiet=quiet)
    if key is not None:
        check_signature(record, public_key=key, signature=signature)
    elif signature is not None:
        raise ConfigError("--signature: pass the public key that checks it with --key")
    if digests_only:
        from bdaudit.ledger import verify_digests  # hashing needs no torch

        made = verify_digests(record, folder=folder)
    else:
        from bdaudit.auditing.verification import verify as run_verify

        with showing_progress(quiet) as listener:
            made = run_verify(
                record,
                seed=seed,
                folder=folder,
                allow_code=trust_record,
                device=device,
                listener=listener,
            )
    sink.write(to_json(made))
    if not sink.to_stdout:
        for line in _in_words(made, brief=quiet):
            say(line)
    raise typer.Exit(EXIT_PASSED if made.agrees else EXIT_FAILED)


def _verify_folder(
    records: Path,
    output: Output,
    policy: Path | None,
    base: Path,
    key: Path | None,
    report: list[str],
    quiet: bool,
) -> NoReturn:
    from bdaudit.ledger import read_ledger
    from bdaudit.records import to_json
    from bdaudit.report.ledger import LEDGER_FORMATS, render_ledger

    sink = JsonSink(output.json_, quiet=quiet)
    wanted = []
    for destination in report:
        name, separator, file = destination.partition("=")
        if not separator or not file or name not in LEDGER_FORMATS:
            raise ConfigError(
                f"--report: expected one of {', '.join(LEDGER_FORMATS)} as FORMAT=FILE of a "
                f"folder, got {destination!r}"
            )
        check_writable(Path(file))
        wanted.append((name, Path(file)))
    made = read_ledger(records, policy=policy, base=base, key=key)
    sink.write(to_json(made))
    if not sink.to_stdout:
        for line in _ledger_in_words(made, brief=quiet):
            say(line)
    for name, path in wanted:
        write_file(path, render_ledger(name, made))
    if any(entry.objections for entry in made.entries):
        raise typer.Exit(EXIT_FAILED)
    gone = any(entry.count("missing") for entry in made.entries)
    raise typer.Exit(EXIT_INCONCLUSIVE if gone else EXIT_PASSED)


def _ledger_in_words(made: LedgerRecord, *, brief: bool) -> list[str]:
    against = [entry for entry in made.entries if entry.objections]
    gone = [entry for entry in made.entries if entry.count("missing")]
    lines = [
        f"{len(made.entries)} records: {len(made.entries) - len(against)} hold, {len(against)} "
        f"do not, {len(gone)} name files that are gone; limits: {made.policy_source}"
    ]
    for entry in against:
        lines += [f"{entry.path}: {objection}" for objection in entry.objections]
    if brief:
        return lines
    for entry in made.entries:
        if entry.unreadable is not None:
            continue
        lines.append(
            f"{entry.path}: {entry.outcome} then, {entry.today} today; files there "
            f"{entry.count('there')}, changed {entry.count('changed')}, missing "
            f"{entry.count('missing')}; signature {entry.signature}"
        )
        lines += [f"  {version}" for version in entry.versions]
    return lines


def _in_words(made: VerificationRecord, *, brief: bool) -> list[str]:
    word = "AGREES" if made.agrees else "DISAGREES"
    n = made.files_checked
    hashed = (
        "1 file has its recorded digest" if n == 1 else f"{n} files have their recorded digests"
    )
    gist = f"{word}: {hashed}"
    if made.numbers:
        gist += (
            f", {sum(check.agrees for check in made.numbers)} of {len(made.numbers)} rates lie "
            "within the recorded intervals"
        )
    lines = [gist]
    lines += [f"  against it: {objection}" for objection in made.objections]
    lines += [f"  note: {note}" for note in made.notes]
    if made.part is not None and not brief:
        lines.append(f"run again: plain rates of all models; {made.part}")
        lines += [
            f"  {'ok ' if check.agrees else 'NO '} {check.name}: recorded "
            f"{_share(check.recorded)}, now {check.measured.value:.1%}"
            for check in made.numbers
        ]
    return lines


def _share(rate: Rate) -> str:
    return f"{rate.value:.1%} ({rate.low:.1%} to {rate.high:.1%})"
