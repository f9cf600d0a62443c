"""``RemoteClient``: GET requests to a backend, bounded in time, size and number; and its runs, read with retries."""

from __future__ import annotations

import time
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from copy import copy
from threading import BoundedSemaphore
from typing import Final

from runspan.backends.remote.config import PREFIX, RemoteConfig
from runspan.codec.decode import VerifiedRun, verify_run
from runspan.contracts import Document, live_observed_time
from runspan.errors import BackendBusy, BackendError, BackendRefused, BackendUnreachable, NotFound, TraceIncomplete
from runspan.http.client import ErrorHints, HttpClient, Response
from runspan.http.retry import parse_retry_after
from runspan.model.span import Span, run_ids
from runspan.otlp.env import Headers

JSON: Final = "application/json"
PROTOBUF: Final = "application/protobuf"
Parameters = Mapping[str, str | int]
Sleep = Callable[[float], None]

MISSING_DELAYS: Final = (0.1, 0.1, 0.1)
"""Seconds before each retry of a trace that was not found."""

INCOMPLETE_DELAYS: Final = (0.1, 0.3, 0.5)
"""Seconds before each retry of a trace that was incomplete: its other spans may be on their way."""

_HINTS: Final = ErrorHints(
    unreachable="is it running, and is the URL right?",
    timeout=f"the backend is slow or stuck; {PREFIX}TIMEOUT extends the time",
    interrupted="it, or a proxy, ends slow responses: raise that limit, which is server.http_server_write_timeout of "
    "Tempo, or ask for less",
    too_large=f"raise {PREFIX}MAX_BYTES if there is memory for it",
)
_NO_STATUSES: Final[frozenset[int]] = frozenset()


class RemoteClient:
    """The HTTP client of one backend. Thread-safe.

    At most ``config.concurrency`` requests are in flight; a caller that waits longer than ``config.timeout`` gets
    BackendBusy. Redirects are not followed. ConfigError if a TLS file cannot be read.
    """

    def __init__(self, config: RemoteConfig) -> None:
        self.config = config
        self._secrets = config.secrets
        self._headers: Headers = ()
        self._in_flight = BoundedSemaphore(config.concurrency)
        self._client = HttpClient(
            config.base,
            name=config.name,
            headers=dict(config.headers),
            tls=config.tls,
            connections=config.concurrency,
            max_bytes=config.max_bytes,
            hints=_HINTS,
        )

    def with_headers(self, headers: Headers) -> RemoteClient:
        """Return a client that sends further headers over the same connections, within the same limits."""
        other = copy(self)
        other._headers = headers
        return other

    @property
    def name(self) -> str:
        """The backend as errors show it."""
        return self.config.name

    def get(
        self,
        path: str,
        parameters: Parameters | None = None,
        *,
        accept: str = JSON,
        accept_statuses: Container[int] = _NO_STATUSES,
        timeout: float | None = None,
    ) -> Response:
        """Return the response for a path below the base.

        accept_statuses: Statuses above 299 that are no failure of this request.
        timeout: Seconds, if fewer than the config's.

        Raises BackendUnreachable, BackendTimeout, BackendBusy or BackendRefused; QueryError if the parameters are too
        long for a URL.
        """
        seconds = min(timeout or self.config.timeout, self.config.timeout)
        deadline = time.monotonic() + seconds
        if not self._in_flight.acquire(timeout=seconds):
            raise BackendBusy(
                f"all {self.config.concurrency} places for requests are taken",
                where=self.name,
                retry_after=1,
                hint=f"retry, or raise {PREFIX}CONCURRENCY",
            )
        try:
            response = self._client.get(
                path,
                parameters,
                headers={"accept": accept, **dict(self._headers)},
                timeout=max(deadline - time.monotonic(), 0.01),
                secrets=self._secrets,
            )
        finally:
            self._in_flight.release()
        if response.is_success or response.status in accept_statuses:
            return response
        raise self._error(response)

    def close(self) -> None:
        """Close the connections. Idempotent."""
        self._client.close()

    def refused(self, response: Response, hint: str = "") -> BackendRefused:
        """Return the error for a response that does not fit the query."""
        got = f"HTTP {response.status}: {response.text() or 'nothing'}"
        return BackendRefused(where=self.name, expected="a response to the query", got=got, hint=hint)

    def _error(self, response: Response) -> BackendError:
        status = response.status
        got = f"HTTP {status}: {response.text()}".rstrip(": ")
        if status in (401, 403):
            hint = f"check the login in {PREFIX}USER and {PREFIX}PASSWORD, or {PREFIX}TOKEN, and {PREFIX}TENANT"
            return self.refused(response, hint)
        if status in (429, 503):
            hint = "the backend is busy or still starting; retry later"
            return BackendBusy(got, where=self.name, retry_after=parse_retry_after(response.headers), hint=hint)
        if status in (502, 504):
            hint = "the gateway is up, the backend behind it is not"
            return BackendUnreachable(where=self.name, expected="a response", got=f"{got} (a gateway)", hint=hint)
        if 300 <= status < 400 or status in (404, 405):
            return self.refused(response, "check host, port and path of the backend's URL")
        return self.refused(response)


def trace_id_of(run_id: str, tenant: str) -> bytes:
    """Return the trace id of a run. NotFound if no run can have this id."""
    try:
        return run_ids(run_id, tenant).trace_id
    except UnicodeEncodeError:
        raise NotFound("no such run", where=f"run {run_id!a}") from None


def fetch_with_retry(
    fetch: Callable[[], Sequence[Span]], sleep: Sleep, is_late: Callable[[], bool] = lambda: False
) -> VerifiedRun:
    """Return the run of a trace; raise NotFound or TraceIncomplete only after retries.

    is_late: whether the last response counts, since there is no time for another.
    """
    missing_delays, incomplete_delays = iter(MISSING_DELAYS), iter(INCOMPLETE_DELAYS)

    def next_delay(delays: Iterator[float]) -> float | None:
        return None if is_late() else next(delays, None)

    while True:
        try:
            found = verify_run(fetch())
            delay = next_delay(incomplete_delays) if found.incomplete else None
            if delay is None:
                return found
        except NotFound:
            delay = next_delay(missing_delays)
            if delay is None:
                raise
        except TraceIncomplete:
            delay = next_delay(incomplete_delays)
            if delay is None:
                raise
        sleep(delay)


def document_of(verified: VerifiedRun) -> Document:
    """Return the document of a verified run."""
    seen = live_observed_time(verified.revision)
    return Document(verified.run.text, verified.incomplete, verified.conflict, observed_at=seen)
