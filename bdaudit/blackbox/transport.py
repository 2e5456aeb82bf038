"""HTTP that outlives a bad day: timeouts, retries with backoff, a rate limit, a size limit."""

from __future__ import annotations

import datetime
import email.utils
import os
import ssl
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import TypeVar

import httpx
import numpy as np

from bdaudit.errors import BdauditError, ConfigError, ModelError, RemoteError
from bdaudit.foundation.renamed import renamed
from bdaudit.foundation.time_limits import call_within

__all__ = ["Answer", "LostAnswerError", "RateLimit", "Transport", "TransportSettings"]

Read = TypeVar("Read")

_TOO_MANY_REQUESTS = 429
_LONGEST_HEADER = 100
_SHOWN = 300  # characters of a server's own words in a message


@renamed({"timeout_s": "timeout", "max_retries": "retries"})
@dataclass(frozen=True, kw_only=True)
class TransportSettings:
    """How patiently and how fast a server is asked.

    Attributes:
        timeout: Seconds to wait for a connection, and for each next part of an answer.
        deadline_s: Seconds after which one whole answer, however slowly it drips in, is given up.
        retries: Times a request is sent again after a lost connection, a timeout, 429 or 5xx.
        backoff_s: Wait before the first retry; doubled for each next one, and shortened at random
            by up to half so that many clients do not come back together.
        max_wait_s: Longest wait before a retry. A server that asks for more by `Retry-After` is
            given up.
        qps: Queries a second at most, a query being an image, as everywhere in bdaudit; `None` for
            no limit. Images sent again count again, since the server works again.
        concurrency: Requests in flight at once.
        max_response_bytes: Largest answer read.
        token_env: Environment variable with a bearer token; `None` sends none.
        ca_file: Certificates to trust instead of the system's. Verification is always on.
        seed: Of the random part of the waits.

    Raises:
        ConfigError: A setting is out of range.
    """

    timeout: float = 30.0
    deadline_s: float = 300.0
    retries: int = 5
    backoff_s: float = 0.5
    max_wait_s: float = 60.0
    qps: float | None = None
    concurrency: int = 1
    max_response_bytes: int = 64 * 1024 * 1024
    token_env: str | None = None
    ca_file: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("timeout", "deadline_s", "backoff_s", "max_wait_s", "qps"):
            value = getattr(self, name)
            # Written so that NaN fails.
            if value is not None and not value > 0:
                raise ConfigError(f"{name}: expected a number above 0, got {value}")
        for name, least in (("retries", 0), ("concurrency", 1), ("max_response_bytes", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name}: expected {least} or more, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A whole answer of a server, status 200."""

    body: bytes
    headers: Mapping[str, str]

    @property
    def content_type(self) -> str:
        """The media type, without parameters, in lower case."""
        return self.headers.get("Content-Type", "").partition(";")[0].strip().lower()


class RateLimit:
    """Lets `n` images through no sooner than the images before them allow; shared by threads."""

    def __init__(self, per_second: float | None) -> None:
        self._seconds_each = 0.0 if per_second is None else 1.0 / per_second
        self._free_at = time.monotonic()
        self._lock = threading.Lock()

    def wait(self, n_images: int, cancelled: threading.Event) -> None:
        """Sleep until `n_images` may be sent, or until nothing is to be sent any more."""
        while not cancelled.is_set():
            with self._lock:
                now = time.monotonic()
                if now >= self._free_at:
                    self._free_at = now + n_images * self._seconds_each
                    return
                early = self._free_at - now
            # Looked at again afterwards: meanwhile the server may have asked all to hold.
            cancelled.wait(early)

    def hold(self, seconds: float) -> None:
        """Let nobody through for `seconds`: the server asked for it."""
        with self._lock:
            self._free_at = max(self._free_at, time.monotonic() + seconds)


class LostAnswerError(Exception):
    """No usable answer arrived, and asking again may help.

    Attributes:
        after_s: What the server asked to wait before that, `None` where it did not say.
    """

    def __init__(self, reason: str, *, after_s: float | None = None) -> None:
        super().__init__(reason)
        self.after_s = after_s


class Transport:
    """A client of one server; safe to use from several threads; to be closed.

    The token is read once, is sent to this server alone, since redirects are not followed, and is
    cut out of whatever the server says that is shown.

    Args:
        settings: Patience and speed.

    Raises:
        ConfigError: The token's variable is not set, or the certificates cannot be read.
    """

    def __init__(self, settings: TransportSettings) -> None:
        self.settings = settings
        self._token = _read_token(settings.token_env)
        self._limit = RateLimit(settings.qps)
        self._jitter = np.random.default_rng(settings.seed)
        self._jitter_lock = threading.Lock()
        self._client = httpx.Client(
            # "identity" saves a small answer from unpacking into a giant one.
            headers={"Accept": "application/json", "Accept-Encoding": "identity"}
            | ({} if self._token is None else {"Authorization": f"Bearer {self._token}"}),
            timeout=settings.timeout,
            limits=httpx.Limits(max_connections=settings.concurrency),
            verify=_trusted(settings.ca_file),
            follow_redirects=False,
        )
        # Whoever opened a model by its address alone has nothing to close.
        self._close = weakref.finalize(self, self._client.close)

    def close(self) -> None:
        """Close the connections; done anyway once nobody refers to this any more."""
        self._close()

    def send(
        self,
        method: str,
        url: str,
        *,
        read: Callable[[Answer], Read],
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        n_images: int = 0,
        cancelled: threading.Event | None = None,
    ) -> Read:
        """Send a request until its answer can be read, or until patience ends.

        Args:
            method: GET or POST.
            url: Whole.
            read: Makes something of an answer; raises `LostAnswerError` for one cut short.
            body: What is sent.
            headers: Beside the usual ones.
            n_images: Images in it, for the rate limit.
            cancelled: Set by another thread when no answer is wanted any more: ends all waiting.

        Returns:
            What `read` made of the answer.

        Raises:
            RemoteError: No usable answer after all retries, one too large, a redirect, a refused
                token, or a certificate that is not trusted.
            ModelError: The server says that the model or the request is wrong (other 4xx).
        """
        cancelled = cancelled or threading.Event()
        for attempt in range(self.settings.retries + 1):
            self._limit.wait(n_images, cancelled)
            if cancelled.is_set():
                raise RemoteError(f"{url}: not sent, since another request failed")
            try:
                return read(self._try(method, url, body, headers or {}))
            except LostAnswerError as lost:
                self._wait_or_give_up(lost, attempt, url, cancelled)
            except BdauditError:
                raise
            except Exception as error:
                # A host that is no host, a length of a million digits: the server's, or the
                # address's fault, whatever a parser makes of it.
                reason = self._clean(f"{type(error).__name__}: {error}")
                raise RemoteError(f"{url}: cannot be queried: {reason}") from error
        raise AssertionError("the last attempt either returns or gives up")

    def _try(self, method: str, url: str, body: bytes | None, headers: Mapping[str, str]) -> Answer:
        give_up_at = time.monotonic() + self.settings.deadline_s
        try:
            request = self._client.build_request(method, url, content=body, headers=dict(headers))
            # The client's own timeout is for the next byte of the head, not for the whole of it.
            response = call_within(
                self.settings.deadline_s, lambda: self._client.send(request, stream=True)
            )
            with closing(response):
                content = self._receive(response, url, give_up_at)
        except TimeoutError as error:
            raise LostAnswerError(
                f"no answer began within {self.settings.deadline_s:g} s"
            ) from error
        except httpx.TransportError as error:
            reason = self._clean(f"{type(error).__name__}: {error}")
            if "CERTIFICATE_VERIFY_FAILED" in reason:
                raise RemoteError(
                    f"{url}: its certificate is not trusted: {reason}; pass ca_file with the "
                    "certificate of its authority"
                ) from error
            raise LostAnswerError(reason) from error
        except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
            raise RemoteError(f"{url}: {self._clean(str(error))}") from error
        if response.status_code == httpx.codes.OK:
            return Answer(body=content, headers=response.headers)
        raise self._refusal(response, content, url)

    def _receive(self, response: httpx.Response, url: str, give_up_at: float) -> bytes:
        """Read a body part by part, so that neither its size nor its slowness is without limit."""
        limit = self.settings.max_response_bytes
        content = bytearray()
        for part in response.iter_bytes():
            content += part
            if len(content) > limit:
                raise RemoteError(
                    f"{url}: expected an answer of at most {limit} bytes, got more; raise "
                    "max_response_bytes, or ask about fewer images at once"
                )
            if time.monotonic() > give_up_at:
                raise LostAnswerError(f"not all arrived within {self.settings.deadline_s:g} s")
        return bytes(content)

    def _refusal(self, response: httpx.Response, content: bytes, url: str) -> Exception:
        """Return what a status other than 200 means."""
        status = response.status_code
        said = self._clean(content.decode("utf-8", "replace"))
        if status == _TOO_MANY_REQUESTS or response.is_server_error:
            after_s = _retry_after(response.headers.get("Retry-After"))
            return LostAnswerError(f"status {status}: {said}", after_s=after_s)
        if status in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
            sent = "no token was sent" if self._token is None else "a token was sent"
            return RemoteError(
                f"{url}: access refused (status {status}; {sent}): {said}; name the environment "
                "variable that holds the right token by token_env"
            )
        if status == httpx.codes.NOT_FOUND:
            return ModelError(
                f"{url}: expected a model there, got status 404: {said}; check name and version"
            )
        if status == httpx.codes.REQUEST_ENTITY_TOO_LARGE:
            return ModelError(
                f"{url}: the request is too large (status 413): {said}; ask about fewer images at "
                "once (request_size)"
            )
        if response.is_client_error:
            return ModelError(f"{url}: the request was refused (status {status}): {said}")
        if response.is_redirect:
            to = self._clean(response.headers.get("Location", "nowhere"))
            return RemoteError(
                f"{url}: redirects to {to}, which is not followed; give that address if you trust "
                "it"
            )
        return RemoteError(f"{url}: expected status 200, got {status}: {said}")

    def _wait_or_give_up(
        self, lost: LostAnswerError, attempt: int, url: str, cancelled: threading.Event
    ) -> None:
        settings = self.settings
        if attempt == settings.retries:
            raise RemoteError(
                f"{url}: no usable answer, asked {attempt + 1} times; last: {lost}; check that the "
                "server is up, or allow a longer timeout or more retries"
            ) from lost
        if lost.after_s is not None and lost.after_s > settings.max_wait_s:
            raise RemoteError(
                f"{url}: the server asks to wait {lost.after_s:g} s, expected at most "
                f"{settings.max_wait_s:g}: {lost}; come back later, or raise max_wait_s"
            ) from lost
        if lost.after_s is not None:
            # It counts our requests, not our threads: all of them wait.
            self._limit.hold(lost.after_s)
            return
        with self._jitter_lock:
            shortened = self._jitter.uniform(0.5, 1.0)
        cancelled.wait(min(settings.backoff_s * 2.0**attempt, settings.max_wait_s) * shortened)

    def _clean(self, text: str) -> str:
        """Return text in one short line, without the token."""
        if self._token is not None:
            text = text.replace(self._token, "[token]")
        text = " ".join(text.split())
        if len(text) > _SHOWN:
            # The cause stands at the end of a traceback and at the start of most else.
            text = f"{text[: _SHOWN // 2]} ... {text[-_SHOWN // 2 :]}"
        return text or "nothing"


def _read_token(variable: str | None) -> str | None:
    if variable is None:
        return None
    token = os.environ.get(variable, "").strip()
    if not token:
        raise ConfigError(f"token_env: expected a token in the variable {variable}, got none")
    if not (token.isascii() and token.isprintable()) or " " in token:
        raise ConfigError(f"token_env: {variable} holds characters that no header may carry")
    return token


def _trusted(ca_file: str | None) -> ssl.SSLContext | bool:
    if ca_file is None:
        return True
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as error:
        raise ConfigError(f"ca_file: cannot read certificates from {ca_file}: {error}") from error


def _retry_after(header: str | None) -> float | None:
    """Read `Retry-After`, seconds or a date; `None` where it is missing or neither."""
    if header is None:
        return None
    if header.strip().isdecimal():
        return float(header[:_LONGEST_HEADER])
    try:
        date = email.utils.parsedate_to_datetime(header[:_LONGEST_HEADER])
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    if date.tzinfo is None:
        date = date.replace(tzinfo=datetime.UTC)
    return max(0.0, (date - datetime.datetime.now(datetime.UTC)).total_seconds())
