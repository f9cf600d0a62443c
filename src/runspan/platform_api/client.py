"""``Platform``: the REST API's lists and documents over HTTP, at a bounded rate, every failure as an error of ours.

``Pace``: how fast requests may go out, on all threads together, and until when nothing may.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, TypeVar
from urllib.parse import quote

import httpx
from limits import RateLimitItem, RateLimitItemPerMinute, RateLimitItemPerSecond
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception_type,
    retry_if_not_exception_type,
    stop_after_attempt,
    wait_random_exponential,
)

from runspan._version import __version__
from runspan.contracts import MAX_LIMIT, Document
from runspan.errors import (
    BackendBusy,
    BackendRefused,
    BackendTimeout,
    BackendUnreachable,
    Forbidden,
    NotFound,
    QueryError,
    RunspanError,
    SettingError,
    Unauthorized,
)
from runspan.http.retry import parse_retry_after
from runspan.http.transport import DeadlineTransport
from runspan.http.urls import redact_url, sanitize_message, validate_host
from runspan.platform_api.schema import (
    MalformedResponse,
    ResponseTooLong,
    RunListPage,
    is_not_found,
    read_document,
    read_failure,
    read_page,
)

_PARTS: Final = 6
_SHORTEST: Final = 0.005
_LONGEST: Final = 60.0
"""Seconds of one wait. A longer one is slept in parts, so that no caller's sleep has to take any number."""


class RateLimiter:
    """At most ``per_minute`` requests in any 60 seconds, whenever they begin; 0: no limit.

    From 60 a minute on, the limit is kept in every ten seconds, so that a long backlog flows evenly and does not stop
    for most of each minute. sleep: waits so many seconds, or less once nobody wants to send any more.
    """

    def __init__(
        self, per_minute: int, *, sleep: Callable[[float], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.per_minute = per_minute
        self._sleep = sleep
        self._clock = clock
        self._lock = threading.Lock()
        self._held_until = float("-inf")
        self._limit: RateLimitItem | None = None
        self._window: MovingWindowRateLimiter | None = None
        if per_minute:
            self._limit = RateLimitItemPerMinute(per_minute)
            if per_minute >= 60:
                self._limit = RateLimitItemPerSecond(per_minute // _PARTS, 60 // _PARTS)
            self._window = MovingWindowRateLimiter(MemoryStorage())

    @property
    def paused_for(self) -> float:
        """Seconds for which nothing is sent, because the platform asked for it; 0 when it did not."""
        with self._lock:
            return max(0.0, self._held_until - self._clock())

    def pause(self, seconds: float) -> None:
        """Nothing is sent for so long. A shorter wait asked for later does not cut it."""
        with self._lock:
            self._held_until = max(self._held_until, self._clock() + seconds)

    def acquire(self, halted: Callable[[], bool]) -> bool:
        """Returns True when a request may go out now, which counts it; False once ``halted()`` is true."""
        while not halted():
            pause = self._pause()
            if not pause:
                return True
            self._sleep(min(pause, _LONGEST))
        return False

    def _pause(self) -> float:
        """0 and the request is counted, or the seconds after which to ask again."""
        with self._lock:
            held = self._held_until - self._clock()
            if held > 0:
                return held
            if self._window is None or self._limit is None or self._window.hit(self._limit):
                return 0.0
            reset = self._window.get_window_stats(self._limit).reset_time - time.time()
            length = float(self._limit.get_expiry())
            if reset > length + 1:
                # The library counts on the wall clock, which was set back: the window's own end may be hours away.
                self._window.clear(self._limit)
                self._held_until = self._clock() + length
                return length
            return max(reset, _SHORTEST)


T = TypeVar("T")
Read = Callable[[bytes, httpx.Headers], T]

PATH: Final = "/api/v1"
MAX_RESPONSE_BYTES: Final = 256 << 20
SMALL_LIMIT: Final = 100
"""Items in a page where the platform refuses ``MAX_LIMIT``: one of its pages documents this one."""

DEFAULT_RETRY_AFTER: Final = 10.0
"""Seconds after a 429 that does not say how long to wait."""

_AGAIN: Final = frozenset({408, 425, 500, 502, 503, 504})
_HINT: Final = "is this the base URL of the platform, or of a runspan server?"


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """attempts: for one request, those that the platform answers with 429 not counted. timeout: seconds for one
    attempt, from the request to the last byte. first, longest: seconds, bounds of the backoff between attempts."""

    attempts: int = 5
    timeout: float = 30.0
    first: float = 0.5
    longest: float = 20.0


class _RetryableFailure(Exception):
    """What went wrong may be over soon. error: what to raise if it is not."""

    def __init__(self, error: RunspanError) -> None:
        super().__init__(str(error))
        self.error = error


class PlatformClient:
    """The runs below ``base/api/v1``. All methods may be called from several threads.

    key: the API key to send, asked for again when the platform refuses it: keys are rotated while a sync runs.
    pace: how fast requests go out, attempts after failures included. halted: whether nothing is to be sent any more;
    a request that waits then raises BackendUnreachable. sleep: waits, and returns early once halted.

    Raises BackendUnreachable, BackendTimeout or BackendBusy for what may be over later; BackendRefused for an answer
    that is not the platform's: a wrong address, or a gateway before it that is in trouble; Unauthorized, Forbidden,
    NotFound, QueryError and AnswerTooLong for what the platform says.
    """

    def __init__(
        self,
        base: str,
        *,
        key: Callable[[], str | None],
        pace: RateLimiter,
        sleep: Callable[[float], None],
        halted: Callable[[], bool],
        patience: RetryPolicy | None = None,
        connections: int = 8,
        max_answer: int = MAX_RESPONSE_BYTES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.base = base_url(base)
        self.pace = pace
        self._ask_key = key
        self._key = key()
        self._sleep = sleep
        self._halted = halted
        self._patience = patience or RetryPolicy()
        self._max_answer = max_answer
        self._clock = clock
        self._lock = threading.Lock()
        self._limit = MAX_LIMIT
        self._requests = self._retries = self._limited = 0
        self._trouble = ""
        self._failing_since: float | None = None
        self._client = httpx.Client(
            headers={"user-agent": f"runspan/{__version__}", "accept": "application/json"},
            transport=DeadlineTransport(self.base, connections=connections),
            # Proxies and logins of the environment would be settings that nobody passed in.
            trust_env=False,
        )

    @property
    def requests(self) -> tuple[int, int, int]:
        """Attempts so far; how many were sent again after a failure; how many were answered with 429."""
        with self._lock:
            return self._requests, self._retries, self._limited

    @property
    def last_error(self) -> str:
        """Why the last request that ended is sent again, or ""."""
        return self._trouble

    @property
    def unanswered_for(self) -> float:
        """Seconds since the first request that came to nothing, while none since was answered; else 0."""
        since = self._failing_since
        return 0.0 if since is None else self._clock() - since

    def runs(
        self,
        *,
        workflow_id: str | None = None,
        status: str | None = None,
        since: str | None = None,
        cursor: str | None = None,
    ) -> RunListPage:
        """A page of the list, newest first. since: ``1h``, ``24h``, ``7d`` or ``30d``."""
        wanted = {"workflowId": workflow_id, "status": status, "since": since, "cursor": cursor}
        parameters = {name: value for name, value in wanted.items() if value is not None}
        limit = self._limit
        try:
            return self._ask("/runs", {"limit": str(limit), **parameters}, lambda body, _: read_page(body))
        except QueryError as error:
            if limit == SMALL_LIMIT or "limit" not in str(error):
                raise
            self._limit = SMALL_LIMIT
        return self.runs(workflow_id=workflow_id, status=status, since=since, cursor=cursor)

    def document(self, run_id: str) -> Document:
        """The text of a run document, as it stands in the answer."""
        # Dots are encoded as well: clients take ".." for the folder above.
        path = "/runs/" + quote(run_id, safe="").replace(".", "%2E")
        # The list gave the id, so the address is right: whoever refuses in other words stands before the platform.
        return self._ask(path, {}, _document, again=(BackendRefused,))

    def close(self) -> None:
        """Closes the connections. Calling it twice is allowed."""
        self._client.close()

    def _ask(
        self,
        path: str,
        parameters: Mapping[str, str],
        read: Read[T],
        *,
        again: tuple[type[RunspanError], ...] = (),
    ) -> T:
        """One question, asked again while that may help. again: errors that may be over soon here."""
        retrying = Retrying(
            retry=retry_if_exception_type((_RetryableFailure, *again)) & retry_if_not_exception_type(ResponseTooLong),
            stop=lambda state: self._halted() or stop_after_attempt(self._patience.attempts)(state),
            wait=wait_random_exponential(multiplier=self._patience.first, max=self._patience.longest),
            sleep=self._sleep,
            before_sleep=self._note_retry,
            reraise=True,
        )
        try:
            answer: T = retrying(self._noted, path, parameters, read)
            return answer
        except _RetryableFailure as failure:
            raise failure.error from None

    def _noted(self, path: str, parameters: Mapping[str, str], read: Read[T]) -> T:
        try:
            return self._attempt(path, parameters, read)
        except (_RetryableFailure, BackendRefused, QueryError) as failure:
            self._failed(str(failure))
            raise

    def _attempt(self, path: str, parameters: Mapping[str, str], read: Read[T]) -> T:
        key = self._key
        while True:
            if not self.pace.acquire(self._halted):
                raise BackendUnreachable("sending has stopped", where=self.base)
            status, headers, body = self._send(path, parameters, key)
            if status == 401 and self._renewed(key):
                key = self._key
                continue
            wait = _asked_wait(status, headers)
            if wait is None:
                break
            self._failed(f"HTTP {status}, asks to wait {wait:g} s")
            self.pace.pause(wait)
            with self._lock:
                self._limited += status == 429
        try:
            self._refuse(status, body, key)
            answer = read(body, headers)
        except NotFound:
            self._answered()
            raise
        except MalformedResponse as damage:
            got = self._tidy(str(damage), key)
            error = BackendRefused(where=self.base, expected="the platform's API", got=got, hint=_HINT)
            raise _RetryableFailure(error) from None
        self._answered()
        return answer

    def _send(self, path: str, parameters: Mapping[str, str], key: str | None) -> tuple[int, httpx.Headers, bytes]:
        """Status, headers and the whole body of one attempt."""
        with self._lock:
            self._requests += 1
        seconds = self._patience.timeout
        try:
            with self._client.stream(
                "GET",
                self.base + PATH + path,
                params=dict(parameters) or None,
                headers={"x-api-key": key} if key else {},
                timeout=seconds,
            ) as response:
                pieces, size = [], 0
                for piece in response.iter_bytes():
                    pieces.append(piece)
                    size += len(piece)
                    if size > self._max_answer:
                        raise ResponseTooLong(
                            where=self.base, expected=f"at most {self._max_answer} bytes", got="a longer answer"
                        )
                return response.status_code, response.headers, b"".join(pieces)
        except httpx.TimeoutException as error:
            got = f"none in {seconds:g} s ({type(error).__name__})"
            raise _RetryableFailure(BackendTimeout(where=self.base, expected="an answer", got=got)) from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            words = self._tidy(str(error), key)
            got = f"{type(error).__name__}: {words}" if words else type(error).__name__
            raise _RetryableFailure(BackendUnreachable(where=self.base, expected="an answer", got=got)) from None

    def _tidy(self, words: str, key: str | None) -> str:
        """Words of the platform for an error, without the key that was sent, should it repeat it."""
        return sanitize_message(words, (key,) if key else ())

    def _refuse(self, status: int, body: bytes, key: str | None) -> None:
        """Raises what a status other than 200 means."""
        if 200 <= status < 300:
            return
        code, message = read_failure(body)
        words = self._tidy(message, key)
        got = f"HTTP {status} {self._tidy(code, key)}".rstrip()
        if status in _AGAIN:
            raise _RetryableFailure(BackendBusy(f"{got}: {words}".rstrip(": "), where=self.base))
        if status == 401 and code:
            raise Unauthorized(
                words, where=self.base, got=got, hint="set RUNSPAN_PLATFORM_API_KEY, or --platform-key-file"
            )
        if status == 403 and code:
            raise Forbidden(words, where=self.base, got=got, hint="the API key needs the permission runs:read")
        if status == 404 and is_not_found(body):
            raise NotFound(words, where=self.base, got=got)
        if status == 400 and code:
            raise QueryError(words, where=self.base, got=got)
        if 300 <= status < 400:
            hint = "a redirect is not followed, since it would carry the key elsewhere: name the final URL"
            raise BackendRefused(where=self.base, expected="the platform's API", got=got, hint=hint)
        if status in (401, 403):
            hint = "not in the platform's words: does something before it want a login, or is the API key missing?"
            raise BackendRefused(where=self.base, expected="the platform's API", got=got, hint=hint)
        raise BackendRefused(words, where=self.base, expected="the platform's API", got=got, hint=_HINT)

    def _renewed(self, refused: str | None) -> bool:
        """Whether there is another key than the one that was refused."""
        try:
            key = self._ask_key()
        except SettingError:
            return False  # the file is being replaced at this moment, or gone: the refusal says more
        if key is None or key == refused:
            return False
        self._key = key
        return True

    def _answered(self) -> None:
        with self._lock:
            self._failing_since, self._trouble = None, ""

    def _failed(self, trouble: str) -> None:
        with self._lock:
            self._failing_since = self._clock() if self._failing_since is None else self._failing_since
            self._trouble = trouble

    def _note_retry(self, state: RetryCallState) -> None:
        with self._lock:
            self._retries += 1


def _document(body: bytes, headers: httpx.Headers) -> Document:
    incomplete = headers.get("x-runspan-incomplete", "")
    return Document(read_document(body), (incomplete,) if incomplete else ())


def base_url(text: str) -> str:
    """The base URL without what the API's own paths add. SettingError when it is none, or holds a secret."""
    try:
        url = httpx.URL(text)
    except (httpx.InvalidURL, ValueError):
        raise SettingError(where="URL", expected="http(s)://HOST", got="a URL that cannot be read") from None
    if url.userinfo:
        raise SettingError(
            where="URL",
            expected="a URL without a login",
            got="one with it",
            hint="put the API key in RUNSPAN_PLATFORM_API_KEY: a command line is seen by others",
        )
    expected = "http(s)://HOST of the platform's API"
    if url.query or url.fragment:
        raise SettingError(where="URL", expected=expected, got=f"{redact_url(text)!r} with a query or fragment")
    if url.scheme not in ("http", "https") or not url.raw_host:
        raise SettingError(where="URL", expected=expected, got=repr(redact_url(text)))
    validate_host("URL", text)
    return str(url).rstrip("/").removesuffix(PATH)


def _asked_wait(status: int, headers: httpx.Headers) -> float | None:
    """Seconds to wait after a 429, or after a 503 that names a time; None for every other answer."""
    if status not in (429, 503):
        return None
    asked = parse_retry_after(headers)
    return DEFAULT_RETRY_AFTER if asked is None and status == 429 else asked
