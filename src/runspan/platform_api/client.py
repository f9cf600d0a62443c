"""``ApiClient``: one request in the platform's REST dialect. ``PlatformClient``: many, rate-limited and retried."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping
from itertools import count
from typing import Final, TypeVar
from urllib.parse import quote

from runspan.contracts import MAX_LIMIT, Document
from runspan.errors import (
    ERROR_STATUSES,
    AccessError,
    BackendBusy,
    BackendError,
    BackendRefused,
    BackendTimeout,
    BackendUnreachable,
    ConfigError,
    Forbidden,
    NotFound,
    QueryError,
    QueryUnsupported,
    RateLimited,
    RunspanError,
    StoreError,
    TraceIncomplete,
    Unauthorized,
)
from runspan.http.client import NO_HINTS, ErrorHints, HttpClient, Response, ResponseTooLarge
from runspan.http.retry import RateLimiter, RetryPolicy, describe_delay, parse_retry_after
from runspan.http.urls import parse_base_url, sanitize_message
from runspan.platform_api.schema import MalformedResponse, RunListPage, read_data, read_error, read_page

API_PATH: Final = "/api/v1"
TIMEOUT: Final = 30.0
MAX_RESPONSE_BYTES: Final = 256 << 20
SMALL_LIMIT: Final = 100
"""Items in a page where the platform refuses ``MAX_LIMIT``: one page of its documentation gives this maximum."""

DEFAULT_RETRY_AFTER: Final = 10.0
"""Seconds after a 429 that does not say how long to wait."""

RETRY: Final = RetryPolicy(max_time=math.inf, max_attempts=5, max_delay=20.0)
NOT_MODIFIED: Final = 304
RETRYABLE_STATUSES: Final = frozenset({408, 425, 500, 502, 503, 504})

_CLASSES: Final[dict[str, type[RunspanError]]] = {
    ERROR_STATUSES[kind].code: kind
    for kind in (
        NotFound,
        Unauthorized,
        Forbidden,
        QueryError,
        QueryUnsupported,
        TraceIncomplete,
        StoreError,
        BackendUnreachable,
        BackendTimeout,
        BackendBusy,
    )
}
_CLASSES_BY_STATUS: Final[dict[int, type[RunspanError]]] = {400: QueryError, 401: Unauthorized, 403: Forbidden}
"""For codes that are not in the table above."""

T = TypeVar("T")


def parse_api_url(where: str, text: str, *, key_variable: str) -> str:
    """Return the base URL without ``/api/v1``. ConfigError if it is none, or contains a secret.

    where: The option that holds the URL, for errors.
    key_variable: The variable for the API key, for errors.
    """
    hint = f"put the API key in {key_variable}: a command line is seen by others"
    return parse_base_url(where, text, "http://HOST:PORT or https://HOST", login_hint=hint).removesuffix(API_PATH)


def run_path(run_id: str) -> str:
    """Return the path of a run. Dots are encoded as well, because clients resolve ``..``."""
    return f"{API_PATH}/runs/{quote(run_id, safe='').replace('.', '%2E')}"


def read_run(response: Response) -> Document:
    """Return the run document of a response, verbatim."""
    incomplete = response.headers.get("x-runspan-incomplete", "")
    conflict = response.headers.get("x-runspan-conflict", "")
    text = read_data(response.content, "{")[0]
    return Document(text, (incomplete,) if incomplete else (), tuple(conflict.split("; ")) if conflict else ())


class ApiClient:
    """Send single requests in the platform's REST dialect, and turn failures into errors. Thread-safe.

    base: See ``parse_api_url``.
    key_hint: How to configure the API key, for errors.
    timeout: Seconds for a request, from the connection to the last byte.
    """

    def __init__(
        self,
        base: str,
        *,
        key_hint: str,
        hints: ErrorHints = NO_HINTS,
        timeout: float = TIMEOUT,
        connections: int = 8,
        max_response_bytes: int = MAX_RESPONSE_BYTES,
    ) -> None:
        self.base = base
        self._key_hint = key_hint
        self._timeout = timeout
        self._client = HttpClient(
            base,
            headers={"accept": "application/json"},
            connections=connections,
            max_bytes=max_response_bytes,
            hints=hints,
        )

    def get(self, path: str, parameters: Mapping[str, str | int], key: str | None, known: str = "") -> Response:
        """Return the response to one request; see ``HttpClient.get``.

        key: Sent as ``x-api-key``. known: An entity tag, sent as ``If-None-Match``.
        """
        headers = {"x-api-key": key} if key else {}
        if known:
            headers["if-none-match"] = known
        secrets = (key,) if key else ()
        return self._client.get(path, parameters, headers=headers, timeout=self._timeout, secrets=secrets)

    def read(self, response: Response, read: Callable[[Response], T]) -> T:
        """Return what ``read`` makes of a success, or of a 304.

        Raises the error of any other response, and MalformedResponse if ``read`` does.
        """
        if not response.is_success and response.status != NOT_MODIFIED:
            raise self._error(response)
        try:
            return read(response)
        except MalformedResponse as error:
            got = sanitize_message(error.got, response.secrets)
            raise self.refused("the platform's API", got, MalformedResponse) from None

    def refused(self, expected: str, got: str, kind: type[BackendRefused] = BackendRefused) -> BackendRefused:
        """Return the error for a response that is not the platform's."""
        hint = "is this a runspan server, or the base URL of the platform's API?"
        return kind(where=self.base, expected=expected, got=got, hint=hint)

    def describe(self, response: Response) -> str:
        """Return the status and the error of a response on one line."""
        error = read_error(response.content)
        status = f"HTTP {response.status} {error.code}".rstrip()
        return sanitize_message(f"{status}: {error.message}" if error.message else status, response.secrets)

    def _error(self, response: Response) -> RunspanError:
        error = read_error(response.content)
        message = sanitize_message(error.message, response.secrets)
        if response.status == 429:
            seconds = _requested_delay(response) or 0.0
            hint = f"retry in {seconds:.15g} seconds"
            return RateLimited(f"{self.base}: {message}", retry_after=seconds, hint=hint)
        kind = _CLASSES.get(error.code) or (_CLASSES_BY_STATUS.get(response.status) if error.code else None)
        # A gateway before the platform responds with 404 as well, in its own form, and says nothing about the run.
        if kind is not None and not (kind is NotFound and error.success is not False):
            hint = "the API key needs the permission runs:read" if kind is Forbidden else ""
            hint = self._key_hint if kind is Unauthorized else hint
            return kind(message or self.describe(response), where=self.base, hint=hint)
        return self.refused("the platform's API", self.describe(response))

    def close(self) -> None:
        """Close the connections. Idempotent."""
        self._client.close()


def _requested_delay(response: Response) -> float | None:
    """Return the seconds to wait after a 429, or a 503 that says so; None after any other response."""
    if response.status not in (429, 503):
        return None
    seconds = parse_retry_after(response.headers)
    return DEFAULT_RETRY_AFTER if seconds is None and response.status == 429 else seconds


class PlatformClient:
    """Read lists and documents for hours: at a bounded rate, with retries, and with keys that are rotated. Thread-safe.

    Raises BackendUnreachable, BackendTimeout or BackendBusy for what may be over later; BackendRefused for a response
    that is not the platform's: a wrong address, or a gateway in trouble; Unauthorized, Forbidden, NotFound, QueryError
    and ResponseTooLarge for the platform's own.

    key: Returns the API key. Called again when the platform refuses the key.
    rate_limiter: Of all requests, retries included. A 429 pauses it, and uses up no attempt.
    sleep: Waits for so many seconds, or less once halted.
    halted: Whether to send nothing any more; a request that waits then raises BackendUnreachable.
    """

    def __init__(
        self,
        api: ApiClient,
        *,
        key: Callable[[], str | None],
        rate_limiter: RateLimiter,
        sleep: Callable[[float], object],
        halted: Callable[[], bool],
        retry: RetryPolicy = RETRY,
    ) -> None:
        self.base = api.base
        self.rate_limiter = rate_limiter
        self._api = api
        self._read_key = key
        self._key = key()
        self._sleep = sleep
        self._halted = halted
        self._retry = retry
        self._lock = threading.Lock()
        self._limit = MAX_LIMIT
        self._requests = self._retries = self._limited = 0
        self._last_error = ""
        self._failing_since: float | None = None

    @property
    def requests(self) -> tuple[int, int, int]:
        """The attempts so far, the retries among them, and the responses with status 429."""
        with self._lock:
            return self._requests, self._retries, self._limited

    @property
    def last_error(self) -> str:
        """Why the last request that ended is retried, or ""."""
        return self._last_error

    @property
    def unanswered_for(self) -> float:
        """Seconds since the first failure after the last usable response; 0 if there was none."""
        since = self._failing_since
        return 0.0 if since is None else time.monotonic() - since

    def runs(
        self,
        *,
        workflow_id: str | None = None,
        status: str | None = None,
        since: str | None = None,
        cursor: str | None = None,
    ) -> RunListPage:
        """Return a page of the list, newest first. since: ``1h``, ``24h``, ``7d`` or ``30d``."""
        filters = {"workflowId": workflow_id, "status": status, "since": since, "cursor": cursor}
        parameters = {name: value for name, value in filters.items() if value is not None}
        limit = self._limit
        try:
            return self._get(
                f"{API_PATH}/runs", {"limit": str(limit), **parameters}, lambda response: read_page(response.content)
            )
        except QueryError as error:
            if limit == SMALL_LIMIT or "limit" not in str(error):
                raise
            self._limit = SMALL_LIMIT
        return self.runs(workflow_id=workflow_id, status=status, since=since, cursor=cursor)

    def document(self, run_id: str, known: bytes = b"") -> Document | None:
        """Return a run document, verbatim; None if it is still the known one.

        known: The first 16 bytes of the SHA-256 of a document. A runspan server has them as its entity tag; the tags
        of other servers differ, so they return the document.
        """

        def read(response: Response) -> Document | None:
            return None if known and response.status == NOT_MODIFIED else read_run(response)

        # The id comes from the list, so the address is right: any other response is from a gateway in trouble.
        tag = f'"{known.hex()}"' if known else ""
        return self._get(run_path(run_id), {}, read, retry_refused=True, known=tag)

    def close(self) -> None:
        """Close the connections. Idempotent."""
        self._api.close()

    def _get(
        self,
        path: str,
        parameters: Mapping[str, str],
        read: Callable[[Response], T],
        *,
        retry_refused: bool = False,
        known: str = "",
    ) -> T:
        """Send a request, and retry it while that may help.

        retry_refused: Retry BackendRefused as well. known: See ``ApiClient.get``.
        """
        retryable = (BackendUnreachable, BackendBusy, BackendRefused if retry_refused else MalformedResponse)
        attempts = count()

        def attempt() -> T | RunspanError:
            with self._lock:
                self._retries += next(attempts) > 0
            try:
                response = self._response(path, parameters, known)
                if response.status in RETRYABLE_STATUSES:
                    raise BackendBusy(self._api.describe(response), where=self.base)
                result = self._api.read(response, read)
            except (AccessError, BackendError, QueryError) as error:
                if not self._halted():
                    self._note_failure(str(error))
                if isinstance(error, retryable) and not isinstance(error, ResponseTooLarge):
                    return error
                raise
            except NotFound:
                self._note_success()
                raise
            self._note_success()
            return result

        result = self._retry.run(
            attempt,
            lambda result: 0.0 if isinstance(result, RunspanError) else None,
            sleep=self._sleep,
            halted=self._halted,
        )
        if isinstance(result, RunspanError):
            raise result
        return result

    def _response(self, path: str, parameters: Mapping[str, str], known: str) -> Response:
        """Return the first response that neither asks to wait nor refuses a key that has been replaced."""
        key = self._key
        while True:
            if not self.rate_limiter.acquire(self._halted):
                raise BackendUnreachable("sending has stopped", where=self.base)
            with self._lock:
                self._requests += 1
            response = self._api.get(path, parameters, key, known)
            if response.status == 401 and self._has_new_key(key):
                key = self._key
            elif (seconds := _requested_delay(response)) is not None:
                self._note_failure(f"HTTP {response.status}, {describe_delay(seconds)}")
                self.rate_limiter.pause(seconds)
                with self._lock:
                    self._limited += response.status == 429
            else:
                return response

    def _has_new_key(self, refused: str | None) -> bool:
        """Read the key again. Return True if it is another one than the one that was refused."""
        try:
            key = self._read_key()
        except ConfigError:
            return False  # its file is being replaced, or gone: the platform's refusal says more
        if key is None or key == refused:
            return False
        self._key = key
        return True

    def _note_success(self) -> None:
        with self._lock:
            self._failing_since, self._last_error = None, ""

    def _note_failure(self, error: str) -> None:
        with self._lock:
            self._failing_since = time.monotonic() if self._failing_since is None else self._failing_since
            self._last_error = error
