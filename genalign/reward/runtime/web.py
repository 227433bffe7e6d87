"""Requests to a server that may be slow, full or broken: bounded in tries, time and bytes; no message shows a key."""

from __future__ import annotations

import contextlib
import inspect
import ipaddress
import json
import logging
import os
import random
import time
from collections.abc import Iterable, Mapping
from email.utils import parsedate_to_datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from genalign.reward.base import ScoringError, first_missing
from genalign.types import UsageError, nearest

if TYPE_CHECKING:
    import httpx

log = logging.getLogger(__name__)
_announced: set[tuple[str, str]] = set()  # keys and addresses, once a process
AGAIN = (408, 409, 425, 429)  # and 5xx: about the server's state, not about the request


class _TryAgainError(Exception):
    """A failure that another try may mend. `wait`: seconds until then, as the server's Retry-After has it."""

    def __init__(self, message: str, wait: float = 0.0) -> None:
        super().__init__(message)
        self.wait = wait


class Web:
    """One server. Every way in which it may fail ends in a ScoringError of one sentence.

    url: http(s)://host[:port][/path], without user, password or query. key: name of the environment variable that holds
    the bearer token; only the name is kept here, the log says once where the token goes, and it is cut out of every
    message. A redirect is a failure, so the token goes nowhere else. timeout: seconds of one
    try, from the first byte sent to the last one read. retries: further tries after a transport error, a time-out, 408,
    409, 425, 429 or 5xx; never after another status. pause: seconds before the first of them, doubled each time, with
    jitter; a longer Retry-After is kept. longest_wait: a server that wants more is given up. limit: bytes of an answer.

    Raises:
        UsageError: httpx is not installed, a url of another form, an environment variable that is not set.
    """

    def __init__(
        self,
        url: str,
        *,
        key: str | None = None,
        timeout: float = 60.0,
        retries: int = 3,
        pause: float = 0.5,
        longest_wait: float = 60.0,
        limit: int = 64 << 20,
    ) -> None:
        parts = urlsplit(str(url))
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or "@" in parts.netloc:
            raise UsageError(
                f"a server's address is http(s)://host:port/path; put a key into an environment variable and name "
                f"that; it has no place in the address {parts.scheme}://{parts.hostname or '?'}"
            )
        if key is not None and not os.environ.get(key):
            raise UsageError(f"the environment variable {key}, which holds the key of {url}, is not set; export it")
        for what, number, least in (("timeout", timeout, 0), ("retries", retries, -1), ("pause", pause, -1)):
            if isinstance(number, bool) or not isinstance(number, int | float) or number <= least:
                raise UsageError(f"{what} of {url} is {number!r}; it must be a number above {max(least, 0)}")
        try:
            import httpx  # noqa: F401
        except ImportError as error:
            raise UsageError("asking a server needs httpx; pip install 'genalign[judge]'") from error
        self.url, self.key, self.timeout, self.retries = str(url).rstrip("/"), key, float(timeout), int(retries)
        self.pause, self.longest_wait, self.limit = float(pause), float(longest_wait), limit
        if key is not None and (key, self.url) not in _announced:
            _announced.add((key, self.url))
            log.warning("the key in the environment variable %s goes to %s", key, self.url)

    @cached_property
    def _client(self) -> httpx.Client:
        import httpx

        near = _near(urlsplit(self.url).hostname or "")
        return httpx.Client(timeout=self.timeout, trust_env=not near, follow_redirects=False)

    @staticmethod
    def check_settings(what: str, given: Iterable[str], beside: Iterable[str] = ()) -> None:
        """Refuse a setting that neither `Web` takes nor is among those `beside` it.

        Raises:
            UsageError: naming the nearest.
        """
        known = {*inspect.signature(Web).parameters, *beside}
        unknown = first_missing(given, known)
        if unknown is not None:
            raise UsageError(f"{what} has no setting {unknown!r}{nearest(unknown, known)}")

    def request(self, method: str, path: str, content: bytes = b"", headers: Mapping[str, str] | None = None) -> bytes:
        """The body of a 2xx answer.

        Raises:
            ScoringError: no such answer within the tries and times allowed.
        """
        for attempt in range(self.retries + 1):
            try:
                return self._once(method, path, content, headers or {})
            except _TryAgainError as error:
                wait = max(error.wait, self.pause * 2**attempt * (1 + random.random() / 4))
                if attempt == self.retries or error.wait > self.longest_wait:
                    longer = f", and asks to wait {error.wait:g} s" if error.wait > self.longest_wait else ""
                    raise ScoringError(f"{self.url} {error}{longer} (try {attempt + 1})") from None
                time.sleep(min(wait, self.longest_wait))
        raise AssertionError("unreachable")

    def without_key(self, text: str) -> str:
        key = os.environ.get(self.key, "") if self.key else ""
        return text.replace(key, "***") if key else text

    def _once(self, method: str, path: str, content: bytes, headers: Mapping[str, str]) -> bytes:
        import httpx

        key = os.environ.get(self.key, "") if self.key else ""
        sent = {**headers, "authorization": f"Bearer {key}"} if key else dict(headers)
        deadline = time.monotonic() + self.timeout
        body = bytearray()
        try:
            with self._client.stream(method, f"{self.url}{path}", content=content or None, headers=sent) as reply:
                for piece in reply.iter_bytes():
                    body += piece
                    if len(body) > self.limit:
                        raise ScoringError(f"{self.url} answered with more than {self.limit} bytes")
                    if time.monotonic() > deadline:  # a trickle of bytes outlives every read time-out
                        raise _TryAgainError(f"gave no whole answer within {self.timeout:g} s")
        except httpx.TimeoutException:
            raise _TryAgainError(f"gave no answer within {self.timeout:g} s") from None
        except httpx.HTTPError as error:
            raise _TryAgainError(
                f"cannot be reached: {type(error).__name__} {_line(str(error), key)}".rstrip()
            ) from None
        if reply.is_success:
            return bytes(body)
        words = server_message(bytes(body)) or body.decode(errors="replace")
        message = f"answered {reply.status_code}: {_line(words, key)}"
        if reply.status_code in AGAIN or reply.status_code >= 500:
            raise _TryAgainError(message, _wait_of(reply.headers))
        raise ScoringError(f"{self.url} {message}")


def server_message(body: bytes) -> str | None:
    """What a server says in an error of JSON: {"error": {"message": ...}} of OpenAI, {"message": ...} of vLLM before
    0.10, {"detail": ...} of FastAPI; None in any other form."""
    try:
        found: Any = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if (
        isinstance(found, dict)
        and isinstance(found.get("choices"), list)
        and found["choices"]
        and not found.get("error")
    ):
        found = found["choices"][0]
    for key in ("error", "message", "detail", "msg"):
        found = found[0] if isinstance(found, list) and found else found
        found = found[key] if isinstance(found, dict) and found.get(key) else found
    return found if isinstance(found, str) else None


def _line(text: str, key: str) -> str:
    """One short line that does not hold the key."""
    return " ".join((text.replace(key, "***") if key else text).split())[:400]


def _wait_of(headers: Mapping[str, str]) -> float:
    """Seconds that a server wants: of retry-after-ms, as OpenAI's and Azure's send it, else of Retry-After."""
    with contextlib.suppress(KeyError, ValueError):
        return max(0.0, float(headers["retry-after-ms"]) / 1000)
    return _retry_after(headers.get("retry-after"))


def _retry_after(value: str | None) -> float:
    """Seconds of a Retry-After header: a number or a date (RFC 9110, 10.2.3); 0 where neither can be read."""
    with contextlib.suppress(ValueError, TypeError):
        return max(0.0, float(value or 0))
    with contextlib.suppress(ValueError, TypeError):
        return max(0.0, parsedate_to_datetime(str(value)).timestamp() - time.time())
    return 0.0


def _near(host: str) -> bool:
    """Whether a host is of this machine or network: no proxy of the environment stands before it."""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_private
    return host == "localhost" or "." not in host
