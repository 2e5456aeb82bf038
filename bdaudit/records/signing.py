"""Signatures over records, made and checked by OpenSSF's model-signing with a key pair.

The digest in a record finds an edit; anyone can compute it anew. A signature cannot be made without
the private key. It is a sigstore bundle in a file beside the record, which model-signing's own
command can check as well.
"""

from __future__ import annotations

import importlib
import os
import tempfile
from pathlib import Path
from typing import Any

from bdaudit.errors import ConfigError, InputError, RecordError, reads
from bdaudit.foundation.opening import RECORD_BYTES, SETTINGS_BYTES, check_file, is_file
from bdaudit.foundation.writing import write_atomically
from bdaudit.records import read_record

__all__ = ["check_signature", "sign_record", "signature_of"]


def signature_of(record: Path) -> Path:
    """Return where the signature of `record` lies when nobody says otherwise."""
    return record.with_name(f"{record.name}.sig")


def sign_record(
    record: Path,
    *,
    private_key: Path,
    password_env: str | None = None,
    signature: Path | None = None,
) -> Path:
    """Sign a record that is whole.

    Args:
        record: What `--json` wrote.
        private_key: Elliptic-curve key in PEM form.
        password_env: Environment variable with the key's password.
        signature: Where the signature is written; `<record>.sig` by default.

    Returns:
        Where it was written.

    Raises:
        RecordError: The record cannot be read or was edited: such a one is not signed.
        InputError: The key cannot be used, or the signature cannot be written.
        ConfigError: The password's variable is not set, or model-signing is not installed.
    """
    read_record(record)
    target = signature_of(record) if signature is None else signature
    password = None
    if password_env is not None:
        password = os.environ.get(password_env)
        if password is None:
            raise ConfigError(f"${password_env} is not set; it should hold the key's password")
    signing = _import("model_signing.signing")
    check_file(private_key, limit=SETTINGS_BYTES, what="a private key")
    try:
        # Its annotation says text, and what it hands the password to takes bytes.
        config = signing.Config().use_elliptic_key_signer(
            private_key=private_key, password=None if password is None else password.encode()
        )
    except Exception as error:
        raise InputError(
            f"{private_key}: expected a private elliptic-curve key in PEM form, and its password "
            f"where it has one: {type(error).__name__}"
        ) from error
    try:
        with tempfile.TemporaryDirectory() as folder:
            made = Path(folder) / "signature"
            config.sign(record, made)
            write_atomically(target, made.read_bytes())
    except OSError as error:
        raise InputError(f"{target}: {error.strerror or error}") from error
    return target


@reads(InputError)
def check_signature(record: Path, *, public_key: Path, signature: Path | None = None) -> Path:
    """Make sure that `record` is what the owner of a key signed.

    Args:
        record: The record, under any name.
        public_key: The key's public half in PEM form.
        signature: `<record>.sig` by default.

    Returns:
        The signature that was checked.

    Raises:
        RecordError: There is no signature, it is another key's, or the record was changed since.
        InputError: The key cannot be used.
        ConfigError: model-signing is not installed.
    """
    beside = signature_of(record) if signature is None else signature
    check_file(public_key, limit=SETTINGS_BYTES, what="a public key")
    check_file(record, limit=RECORD_BYTES, what="a record", error=RecordError)
    if not is_file(beside):
        raise RecordError(f"{record}: is not signed: there is no {beside}")
    check_file(beside, limit=RECORD_BYTES, what="a signature", error=RecordError)
    verifying = _import("model_signing.verifying")
    try:
        config = verifying.Config().use_elliptic_key_verifier(public_key=public_key)
    except Exception as error:
        raise InputError(
            f"{public_key}: expected a public elliptic-curve key in PEM form: "
            f"{type(error).__name__}"
        ) from error
    try:
        config.verify(record, beside)
    except Exception as error:
        raise RecordError(
            f"{record}: {beside} is not a valid signature of it by {public_key}: it was changed "
            f"since it "
            f"was signed, or signed by another key ({type(error).__name__})"
        ) from error
    return beside


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError("signatures need model-signing; pip install 'bdaudit[sign]'") from error
