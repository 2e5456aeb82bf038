"""`bdaudit sign`: put a signature beside a record."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bdaudit.cli import options
from bdaudit.cli.exits import reporting_errors
from bdaudit.cli.output import check_writable
from bdaudit.cli.streams import say

__all__ = ["Key", "Signature", "register"]

Key = Annotated[
    Path | None,
    typer.Option(
        "--key", help="Public key (PEM): the record must carry its signature.", show_default=False
    ),
]
Signature = Annotated[
    Path | None,
    typer.Option(help="The signature \\[default: the record's name + .sig].", show_default=False),
]


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command(name="sign")(sign)


@reporting_errors
def sign(
    record: Annotated[
        Path,
        typer.Argument(help="What --json or --report intoto wrote.", show_default=False),
    ],
    key: Annotated[
        Path,
        typer.Option(help="Private elliptic-curve key (PEM).", show_default=False),
    ],
    password_env: Annotated[
        str | None,
        typer.Option(help="Environment variable with the key's password.", show_default=False),
    ] = None,
    signature: Signature = None,
    debug: options.Debug = False,
) -> None:
    """Sign a record or attestation with a key, for the `--key` of `bdaudit gate` and `verify`."""
    from bdaudit.records.signing import sign_record, signature_of

    target = signature_of(record) if signature is None else signature
    check_writable(target)
    made = sign_record(record, private_key=key, password_env=password_env, signature=target)
    say(f"wrote {made}")
