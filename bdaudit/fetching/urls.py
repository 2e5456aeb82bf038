"""What a URL names, and what of it may be shown."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit, urlunsplit

import httpx

from bdaudit.errors import FetchError
from bdaudit.foundation.opening import shown as shortened
from bdaudit.foundation.sources import is_url

__all__ = ["Address", "check_http", "parse_url", "public_url"]

_SHA256 = re.compile(r"sha256=([0-9a-fA-F]{64})")
_LONGEST = 8192
_LONGEST_HOST = 253
_LONGEST_NAME = 50  # characters, of at most four bytes, beside what is added to them
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})

HTTP = frozenset({"http", "https"})
HUB = "hf"
BUCKETS = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "oss"})
"""Protocols that fsspec opens. Others it knows reach local files or chain, and are refused."""

# Parts of a query that sign or authorise a request: they change from one to the next, and whoever
# reads them can fetch the file.
_SIGNATURE = re.compile(
    r"(?i)x-(amz|goog|ms|oss)-.*|signature|sig|expires|key-pair-id|policy|awsaccesskeyid"
    r"|googleaccessid|ossaccesskeyid|security-token|se|sp|sr|st|sv|spr|skoid|sktid|skt|ske|sks|skv"
    r"|.*token.*|.*secret.*|.*password.*|api[-_]?key|auth.*"
)


@dataclass(frozen=True)
class Address:
    """A URL taken apart.

    Attributes:
        url: What is asked for: without the fragment, secrets included.
        scheme: In lower case.
        name: The file's own name.
        public: What may be shown, recorded and logged: no user, no query.
        key: The same file by another signature has the same key.
        sha256: The digest that the fragment demands, `None` when it demands none.
    """

    url: str
    scheme: str
    name: str
    public: str
    key: str
    sha256: str | None

    @property
    def shown(self) -> str:
        """The public URL with the digest it is pinned to, by which it can be fetched again."""
        return self.public if self.sha256 is None else f"{self.public}#sha256={self.sha256}"


def public_url(text: str) -> str:
    """Return `text` without what must not be shown: user, password and query.

    A fragment stays only where it is a digest. Whatever is no URL is returned as it is.
    """
    if not is_url(text):
        return text
    try:
        parts = urlsplit(text)
        host = parts.netloc.rpartition("@")[2]
    except ValueError:
        return f"{text.partition('://')[0]}://..."
    fragment = parts.fragment if _SHA256.fullmatch(parts.fragment) else ""
    return urlunsplit((parts.scheme, host, parts.path, "", fragment))


def check_http(url: str | httpx.URL) -> httpx.URL:
    """Return an HTTP address that can be asked, its host's name and port included.

    Raises:
        ValueError: It is none: a port that no host has, a name that no domain can have.
    """
    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, TypeError) as error:
        raise ValueError(f"not an address: {error}") from error
    # A host's name is written anew by IDNA, which knows more of what cannot be.
    host = parsed.raw_host.decode("ascii")
    if not host or len(host) > _LONGEST_HOST or any(len(part) > 63 for part in host.split(".")):
        raise ValueError("not the name of a host")
    if parsed.port is not None and not 0 < parsed.port < 1 << 16:
        raise ValueError(f"no port: {parsed.port}")
    return parsed


def parse_url(text: str) -> Address:
    """Take a URL of a file apart.

    Raises:
        FetchError: It cannot be fetched by bdaudit: an unknown protocol, no file, a fragment that
            is no sha256, or `http://` to another machine without a digest.
    """
    shown = shortened(public_url(text))
    if len(text) > _LONGEST:
        raise FetchError(f"{shown}: expected an address of at most {_LONGEST} characters")
    try:
        text.encode("utf-8")  # a lone surrogate cannot be sent, nor be part of a file's name
        parts = urlsplit(text)
        host = parts.hostname or ""
        if parts.scheme.lower() in HTTP:
            check_http(text)
    except ValueError as error:
        raise FetchError(f"{shown}: not a URL") from error
    scheme = parts.scheme.lower()
    if scheme not in HTTP | BUCKETS | {HUB}:
        known = ", ".join(sorted(HTTP | BUCKETS | {HUB}))
        raise FetchError(f"{shown}: expected one of the protocols {known}, got {scheme!r}")
    sha256 = None
    if parts.fragment:
        match = _SHA256.fullmatch(parts.fragment)
        if match is None:
            raise FetchError(f"{shown}: expected #sha256= and 64 hex digits after the address")
        sha256 = match[1].lower()
    name = _file_name(parts.path, scheme)
    if not name:
        raise FetchError(
            f"{shown}: names no file; a folder cannot be fetched: pack the data into one .npz or "
            ".safetensors file"
        )
    if scheme == "http" and sha256 is None and host not in _LOOPBACK:
        raise FetchError(
            f"{shown}: anyone on the way could change what comes over http://; use https://, or "
            "pin it with #sha256=..."
        )
    query = urlencode([(k, v) for k, v in parse_qsl(parts.query) if not _SIGNATURE.fullmatch(k)])
    netloc = parts.netloc.rpartition("@")[2]
    return Address(
        url=urlunsplit((scheme, parts.netloc, parts.path, parts.query, "")),
        scheme=scheme,
        name=name,
        public=urlunsplit((scheme, netloc, parts.path, "", "")),
        key=urlunsplit((scheme, netloc, parts.path, query, "")),
        sha256=sha256,
    )


def _file_name(path: str, scheme: str) -> str:
    if path.endswith("/"):
        return ""
    if scheme == HUB and "@" in path:
        # FILE@REVISION, where a revision may hold slashes, or REPOSITORY@REVISION/FILE.
        before, _, after = path.partition("@")
        path = before if before.count("/") > 1 else after
    name = PurePosixPath(unquote(path)).name
    # It becomes a file's name here, and so do names made of it; its end tells the kind.
    return re.sub(r"[^\w.+ -]", "_", name).lstrip(".")[-_LONGEST_NAME:].lstrip(".")
