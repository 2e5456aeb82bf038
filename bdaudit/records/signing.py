"""Signatures over records and attestations, made and checked with a key pair.

The digest in a record finds an edit; anyone can compute it anew. A signature cannot be made without
the private key. Of a record it is a sigstore bundle in a file beside it, made and checked by
OpenSSF's model-signing, whose own command can check it as well. Of an attestation it is such a
bundle around each statement, by the same keys.
"""

from __future__ import annotations

import base64
import hashlib
import importlib
import json
import os
import re
import tempfile
from pathlib import Path
from typing import Any, Literal

from bdaudit.errors import ConfigError, InputError, RecordError, reads
from bdaudit.foundation.opening import RECORD_BYTES, SETTINGS_BYTES, check_file, is_file
from bdaudit.foundation.writing import write_atomically
from bdaudit.records import read_record
from bdaudit.records.attestations import PAYLOAD, Attestation, is_attestation, read_attestation

__all__ = ["check_signature", "sign_record", "signature_of"]

_BUNDLE = "application/vnd.dev.sigstore.bundle.v0.3+json"


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
        record: What `--json` wrote, or `--report intoto`: then every statement is signed, and what
            is written holds the statements as well.
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
    statements = None
    if is_attestation(record):
        found = read_attestation(record)
        if found.bundles:
            raise RecordError(f"{record}: is signed already; sign what --report intoto wrote")
        statements = found.statements
    else:
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
            f"where it has one: {_instead(private_key, error, of='private')}"
        ) from error
    try:
        if statements is not None:
            secret = None if password is None else password.encode()
            lines = [_bundle(statement, private_key, secret) for statement in statements]
            write_atomically(target, "".join(f"{json.dumps(x)}\n" for x in lines).encode())
            return target
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
    attestation = read_attestation(record) if is_attestation(record) else None
    if attestation is not None and attestation.bundles:
        if signature is not None:
            raise RecordError(f"{record}: carries its own signatures; leave --signature out")
        _check_bundles(attestation, record, public_key)
        return record
    if not is_file(beside):
        raise RecordError(f"{record}: is not signed: there is no {beside}")
    check_file(beside, limit=RECORD_BYTES, what="a signature", error=RecordError)
    if attestation is not None:
        signed = read_attestation(beside)
        if signed.statements != attestation.statements:
            raise RecordError(f"{record}: {beside} signs other statements than these")
        _check_bundles(signed, beside, public_key)
        return beside
    verifying = _import("model_signing.verifying")
    try:
        config = verifying.Config().use_elliptic_key_verifier(public_key=public_key)
    except Exception as error:
        raise InputError(
            f"{public_key}: expected a public elliptic-curve key in PEM form: "
            f"{_instead(public_key, error, of='public')}"
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


def _instead(path: Path, failure: Exception, *, of: Literal["public", "private"]) -> str:
    """Say what came in place of a key, and what to do where it is the other half of the pair."""
    try:
        text = path.read_bytes()
    except OSError:
        text = b""
    if of == "public" and re.search(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----", text):
        return (
            "got a private key; `openssl ec -in KEY -pubout` writes its public half, which is all "
            "that whoever checks a signature should have"
        )
    if of == "private" and b"-----BEGIN PUBLIC KEY-----" in text:
        return "got a public key; signing takes the private one"
    return type(failure).__name__


def _pae(payload: bytes) -> bytes:
    """Return what DSSE signs: the payload with its type and both lengths before it."""
    return b"DSSEv1 %d %b %d %b" % (len(PAYLOAD), PAYLOAD.encode(), len(payload), payload)


def _bundle(statement: dict[str, Any], private_key: Path, password: bytes | None) -> dict[str, Any]:
    """Put a signed statement into a sigstore bundle, as model-signing does with its own."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    # model-signing has opened it before: it is an elliptic-curve key of a size it knows.
    key = serialization.load_pem_private_key(private_key.read_bytes(), password)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    payload = json.dumps(statement, allow_nan=False).encode()
    hint = _hint(key.public_key())
    signature = key.sign(_pae(payload), ec.ECDSA(_hash_of(key.public_key())))
    return {
        "mediaType": _BUNDLE,
        "verificationMaterial": {"publicKey": {"hint": hint}, "tlogEntries": []},
        "dsseEnvelope": {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": PAYLOAD,
            "signatures": [{"sig": base64.b64encode(signature).decode(), "keyid": hint}],
        },
    }


def _check_bundles(attestation: Attestation, path: Path, public_key: Path) -> None:
    """Check the signature of every statement.

    Raises:
        RecordError: One has none, more than one, another key's, or was changed.
        InputError: The key cannot be used.
        ConfigError: model-signing is not installed.
    """
    _import("model_signing.verifying")
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    try:
        key = serialization.load_pem_public_key(public_key.read_bytes())
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise TypeError("no elliptic-curve key")
        scheme = ec.ECDSA(_hash_of(key))
    except Exception as error:
        raise InputError(
            f"{public_key}: expected a public elliptic-curve key in PEM form: "
            f"{_instead(public_key, error, of='public')}"
        ) from error
    if not attestation.bundles:
        raise RecordError(f"{path}: is not signed")
    for bundle, payload in zip(attestation.bundles, attestation.payloads, strict=True):
        try:
            (signature,) = bundle["dsseEnvelope"]["signatures"]
            key.verify(base64.b64decode(signature["sig"], validate=True), _pae(payload), scheme)
        except (InvalidSignature, KeyError, TypeError, ValueError) as error:
            raise RecordError(
                f"{path}: a statement in it has no valid signature by {public_key}: it was changed "
                f"since it was signed, or signed by another key ({type(error).__name__})"
            ) from error


def _hash_of(key: Any) -> Any:
    """Return the hash that sigstore pairs with a curve.

    Raises:
        ValueError: The curve is none of its three.
    """
    from cryptography.hazmat.primitives import hashes

    match key.curve.name:
        case "secp256r1":
            return hashes.SHA256()
        case "secp384r1":
            return hashes.SHA384()
        case "secp521r1":
            return hashes.SHA512()
    raise ValueError(f"unsupported curve {key.curve.name}")


def _hint(key: Any) -> str:
    """Name a public key by its digest, as model-signing does."""
    from cryptography.hazmat.primitives import serialization

    pem: bytes = key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return hashlib.sha256(pem).hexdigest()


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError("signatures need model-signing; pip install 'bdaudit[sign]'") from error
