"""Where bytes come from: HTTP, a bucket by fsspec, or the Hugging Face hub."""

from __future__ import annotations

import logging
import os
import re
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

import httpx

from bdaudit.errors import FetchError
from bdaudit.fetching.urls import BUCKETS, HUB, Address, check_http
from bdaudit.foundation.time_limits import call_within

__all__ = ["BrokenStreamError", "Source", "Stream", "open_source"]

_TIMEOUT = httpx.Timeout(60.0, connect=30.0)
_CHUNK_BYTES = 1 << 20
_MAX_REDIRECTS = 10
_NUMBER = re.compile(r"[0-9]{1,15}")  # no file is larger, and int() takes no endless one
_PART = re.compile(r"bytes ([0-9]{1,15})-[0-9]{1,15}/([0-9]{1,15}|\*)")

HEADERS_TIME_LIMIT_S = 120.0
"""How long a server may take until it begins to send the file, in seconds."""


class BrokenStreamError(Exception):
    """The bytes stopped coming; asking again for the rest may help."""


@dataclass
class Stream:
    """Bytes on their way.

    Attributes:
        start: Offset of the first byte in the file.
        size: Of the whole file, `None` when the server does not say.
        tag: Changes when the file does (an ETag), `None` when there is none.
        chunks: The bytes.
    """

    start: int
    size: int | None
    tag: str | None
    chunks: Iterator[bytes]


class Source(Protocol):
    """A file somewhere else."""

    def tag(self) -> str | None:
        """Return what changes when the file does, `None` when it cannot be known."""

    @contextmanager
    def read(self, start: int, tag: str | None) -> Iterator[Stream]:
        """Open the file at `start` if it still has `tag`, else at its beginning.

        Raises:
            FetchError: It cannot be had.
            BrokenStreamError: It may be had later.
        """
        ...


def open_source(address: Address) -> Source:
    """Return where `address` is read from.

    Raises:
        FetchError: A library is missing, or the address is not complete.
    """
    if address.scheme == HUB:
        return _open_hub(address)
    if address.scheme in BUCKETS:
        return _BucketSource(address)
    parts = urlsplit(address.url)
    auth: httpx.Auth | None = None
    if parts.username is not None:
        auth = httpx.BasicAuth(unquote(parts.username), unquote(parts.password or ""))
    return _HttpSource(address.url, address.public, auth=auth)


# --- HTTP --------------------------------------------------------------------------------------


class _HttpSource:
    """A file over HTTP.

    Credentials are the address's own user, or those of `~/.netrc`; a redirect to another host does
    not get them.
    """

    def __init__(
        self,
        url: str,
        public: str,
        *,
        auth: httpx.Auth | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        self._url, self._public, self._auth = url, public, auth
        self._headers = {"Accept-Encoding": "identity", **(headers or {})}

    def tag(self) -> str | None:
        with self._client() as client:
            try:
                response = self._send(client, "HEAD", {})
            except BrokenStreamError as error:
                raise FetchError(f"{self._public}: {error}") from error
            response.close()
            if response.status_code in (405, 501):
                return None
            self._check(response)
            return _tag_of(response)

    @contextmanager
    def read(self, start: int, tag: str | None) -> Iterator[Stream]:
        headers = {}
        if start and tag is not None:
            headers = {"Range": f"bytes={start}-", "If-Range": tag}
        with self._client() as client:
            response = self._send(client, "GET", headers)
            try:
                self._check(response)
                begin, size = _extent(response)
                if begin not in (0, start):
                    raise FetchError(
                        f"{self._public}: answers with another part than was asked for"
                    )
                yield Stream(begin, size, _tag_of(response), self._chunks(response))
            finally:
                response.close()

    def _client(self) -> httpx.Client:
        trusted = os.environ.get("SSL_CERT_FILE")
        verify: Any = ssl.create_default_context(cafile=trusted) if trusted else True
        return httpx.Client(timeout=_TIMEOUT, headers=self._headers, verify=verify)

    def _send(self, client: httpx.Client, method: str, headers: dict[str, str]) -> httpx.Response:
        """Follow redirects ourselves: none may lead from https to http."""
        url = first = httpx.URL(self._url)
        auth = self._auth or _netrc()
        for _ in range(_MAX_REDIRECTS + 1):
            request = client.build_request(method, url, headers=headers)
            at_home = (url.scheme, url.host, url.port) == (first.scheme, first.host, first.port)
            if not at_home:
                request.headers.pop("Authorization", None)
            try:
                with _unlogged():
                    response = call_within(
                        HEADERS_TIME_LIMIT_S,
                        partial(client.send, request, stream=True, auth=auth if at_home else None),
                    )
            except (httpx.HTTPError, httpx.InvalidURL, TimeoutError, OSError, ValueError) as error:
                raise BrokenStreamError(type(error).__name__) from error
            if not response.has_redirect_location:
                return response
            response.close()
            try:
                following = url.join(response.headers["Location"])
                if following.scheme not in ("http", "https"):
                    raise FetchError(f"{self._public}: leads to something that is not HTTP")
                check_http(following)
            except (httpx.InvalidURL, ValueError) as error:
                raise FetchError(
                    f"{self._public}: leads to something that is no address"
                ) from error
            if url.scheme == "https" and following.scheme == "http":
                raise FetchError(f"{self._public}: leads from https to http; nothing was fetched")
            url = following
        raise FetchError(f"{self._public}: leads in circles ({_MAX_REDIRECTS} redirects)")

    def _check(self, response: httpx.Response) -> None:
        status = response.status_code
        if status in (200, 206):
            return
        if status in (408, 429) or status >= 500:
            raise BrokenStreamError(f"status {status}")
        hints = {
            401: "it wants credentials: put them in ~/.netrc, or log in",
            403: "it refuses the credentials, or a signed address has expired",
            404: "there is no such file",
            416: "it changed while it was fetched; try again",
        }
        hint = hints.get(status, response.reason_phrase)
        raise FetchError(f"{self._public}: status {status}: {hint}")

    def _chunks(self, response: httpx.Response) -> Iterator[bytes]:
        try:
            # As they arrive: with a chunk size, httpx drops what it holds when the line breaks.
            yield from response.iter_raw()
        except httpx.TransportError as error:
            raise BrokenStreamError(type(error).__name__) from error


def _extent(response: httpx.Response) -> tuple[int, int | None]:
    """Return the first byte's offset and the size of the whole file."""
    if response.status_code == 206:
        match = _PART.fullmatch(response.headers.get("Content-Range", ""))
        if match is None:
            raise BrokenStreamError("a part without saying which")
        return int(match[1]), None if match[2] == "*" else int(match[2])
    length = response.headers.get("Content-Length", "")
    return 0, int(length) if _NUMBER.fullmatch(length) else None


def _tag_of(response: httpx.Response) -> str | None:
    """Return a strong ETag or the time of change: what `If-Range` may be asked with."""
    tag: str | None = response.headers.get("ETag")
    if tag is None or tag.startswith("W/"):
        tag = response.headers.get("Last-Modified")
    return tag


def _netrc() -> httpx.Auth | None:
    try:
        return httpx.NetRCAuth(os.environ.get("NETRC"))
    except (OSError, SyntaxError):
        return None


@contextmanager
def _unlogged() -> Iterator[None]:
    """Keep httpx from logging addresses, whose queries may be signed."""
    logger = logging.getLogger("httpx")

    def drop(_: logging.LogRecord) -> bool:
        return False

    logger.addFilter(drop)
    try:
        yield
    finally:
        logger.removeFilter(drop)


# --- the Hugging Face hub ----------------------------------------------------------------------


def _open_hub(address: Address) -> Source:
    """Read `hf://org/repo/file@revision` (or `org/repo@revision/file`) from the hub.

    The token is the one that huggingface_hub finds: $HF_TOKEN, or `hf auth login`.
    """
    try:
        import huggingface_hub
    except ImportError as error:
        raise _missing(address, "huggingface_hub") from error
    repo, file, revision, kind = _hub_parts(address)
    url = huggingface_hub.hf_hub_url(repo, file, revision=revision, repo_type=kind)
    token = huggingface_hub.get_token()
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    return _HttpSource(url, address.public, headers=headers)


def _hub_parts(address: Address) -> tuple[str, str, str | None, str | None]:
    path = address.url.partition("://")[2]
    kind = None
    for prefix, name in (("datasets/", "dataset"), ("spaces/", "space")):
        if path.startswith(prefix):
            path, kind = path.removeprefix(prefix), name
    organisation, _, rest = path.partition("/")
    repo, _, file = rest.partition("/")
    revision = None
    if "@" in repo:
        repo, _, revision = repo.partition("@")
    elif "@" in file:
        file, _, revision = file.partition("@")
    if not (organisation and repo and file) or "@" in f"{organisation}{repo}{file}{revision}":
        raise FetchError(f"{address.public}: expected hf://ORGANISATION/REPOSITORY/FILE@REVISION")
    return f"{organisation}/{repo}", file, revision, kind


# --- buckets -----------------------------------------------------------------------------------


class _BucketSource:
    """A file that fsspec opens, with the credentials that its library finds by itself."""

    def __init__(self, address: Address) -> None:
        try:
            import fsspec
        except ImportError as error:
            raise _missing(address, "fsspec") from error
        self._address = address
        try:
            # No listings kept: another run must see that a file changed.
            self._files, self._path = fsspec.core.url_to_fs(
                address.url, skip_instance_cache=True, use_listings_cache=False
            )
        except ImportError as error:
            package = {"s3": "s3fs", "gs": "gcsfs"}.get(address.scheme, "")
            raise _missing(address, package) from error
        except Exception as error:
            raise FetchError(self._say(error)) from error

    def tag(self) -> str | None:
        return _tag_of_info(self._info())

    @contextmanager
    def read(self, start: int, tag: str | None) -> Iterator[Stream]:
        info = self._info()
        now = _tag_of_info(info)
        begin = start if tag is not None and tag == now else 0
        try:
            stream = self._files.open(self._path, "rb", block_size=8 * _CHUNK_BYTES)
        except Exception as error:
            raise FetchError(self._say(error)) from error
        with stream:
            stream.seek(begin)
            yield Stream(begin, info.get("size"), now, self._chunks(stream))

    def _info(self) -> dict[str, Any]:
        try:
            info: dict[str, Any] = self._files.info(self._path)
        except FileNotFoundError as error:
            raise FetchError(f"{self._address.public}: there is no such file") from error
        except Exception as error:
            raise FetchError(self._say(error)) from error
        if info.get("type") == "directory":
            raise FetchError(f"{self._address.public}: is a folder; pack it into one file")
        return info

    def _chunks(self, stream: Any) -> Iterator[bytes]:
        try:
            while chunk := stream.read(_CHUNK_BYTES):
                yield chunk
        except Exception as error:
            raise BrokenStreamError(type(error).__name__) from error

    def _say(self, error: Exception) -> str:
        """Name the kind of trouble; a library's own words may hold what signs a request."""
        hint = ""
        if isinstance(error, PermissionError) or "Credentials" in type(error).__name__:
            hint = "; credentials are taken from where its library looks (environment, ~/.aws, ...)"
        return f"{self._address.public}: {type(error).__name__}{hint}"


def _tag_of_info(info: dict[str, Any]) -> str | None:
    for name in ("ETag", "etag", "VersionId", "generation", "mtime", "LastModified"):
        if info.get(name):
            return str(info[name])
    return None


def _missing(address: Address, package: str) -> FetchError:
    what = f"needs {package}; " if package else ""
    return FetchError(f"{address.public}: {what}pip install 'bdaudit[remote]'")
