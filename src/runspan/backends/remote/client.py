"""``RemoteHttp``: GET requests to a backend, bounded in time, size and number, every failure as an error of ours.

A run's document from spans that a backend hands over, read again while the backend has a short gap.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from threading import BoundedSemaphore
from typing import Final

import httpx

from runspan._version import __version__
from runspan.backends.remote.config import PREFIX, RemoteConfig
from runspan.codec.decode import VerifiedRun, verify_run
from runspan.contracts import Document
from runspan.errors import (
    BackendBusy,
    BackendError,
    BackendRefused,
    BackendTimeout,
    BackendUnreachable,
    NotFound,
    QueryError,
    SettingError,
    TraceIncomplete,
)
from runspan.http.retry import parse_retry_after
from runspan.http.transport import DeadlineTransport
from runspan.http.urls import MAX_WORDS, sanitize_message
from runspan.model.ids import run_ids
from runspan.model.span import Span

PAUSES: Final = (0.1, 0.1, 0.1)
"""Seconds before a trace that was not found is asked for again."""
LONG_PAUSES: Final = (0.1, 0.3, 0.5)
"""Seconds before a trace that was found incomplete is asked for again: its other spans may be on their way."""

Sleep = Callable[[float], None]


def trace_id_of(run_id: str, tenant: str) -> bytes:
    """The trace of a run. NotFound when no run can have this id."""
    try:
        return run_ids(run_id, tenant).trace_id
    except UnicodeEncodeError:
        raise NotFound("no such run", where=f"run {run_id!a}") from None


def fetch_with_retry(fetch: Callable[[], Sequence[Span]], sleep: Sleep, *, patient: bool) -> VerifiedRun:
    """The run of a trace; NotFound or TraceIncomplete only after it was asked for again.

    patient: whether an incomplete trace is waited for too.
    """
    gaps, waits = iter(PAUSES), iter(LONG_PAUSES if patient else ())
    while True:
        found: VerifiedRun | None = None
        try:
            found = verify_run(fetch())
            if not found.incomplete:
                return found
            pause = next(waits, None)
            if pause is None:
                return found
        except NotFound:
            pause = next(gaps, None)
            if pause is None:
                raise
        except TraceIncomplete:
            pause = next(waits, None)
            if pause is None:
                raise
        sleep(pause)


def document_of(decoded: VerifiedRun) -> Document:
    """The document of a run as read."""
    return Document(decoded.run.text, decoded.incomplete)


JSON: Final = "application/json"
PROTOBUF: Final = "application/protobuf"
Parameters = Mapping[str, str | int]

_SEARCHED: Final = 64 << 10
_NO_STATUSES: Final[frozenset[int]] = frozenset()


@dataclass(frozen=True, slots=True)
class Response:
    """A backend's answer: a success, or one of the statuses that the caller asked to have handed over."""

    status: int
    content: bytes
    content_type: str = ""

    def text(self) -> str:
        """The beginning of the content for people, on one line."""
        return " ".join(self.content[: 4 * MAX_WORDS].decode("utf-8", "replace").split())[:MAX_WORDS]


class ResponseTooLarge(BackendRefused):
    """The answer is over ``max_bytes``; less may be asked for at a time."""


class RemoteClient:
    """The HTTP client of one backend. All methods may be called from several threads.

    Never more than ``settings.concurrency`` requests are under way; a caller that gets no place within
    ``settings.timeout`` hears BackendBusy. Redirects are not followed, since they would carry the login elsewhere.
    SettingError when a TLS file cannot be read.
    """

    def __init__(self, settings: RemoteConfig) -> None:
        self.settings = settings
        self._places = BoundedSemaphore(settings.concurrency)
        self._client = httpx.Client(
            headers={"user-agent": f"runspan/{__version__}", **dict(settings.headers)},
            transport=DeadlineTransport(settings.base, tls=_tls(settings), connections=settings.concurrency),
            # Proxies and logins of the environment would be settings that nobody passed in.
            trust_env=False,
        )

    @property
    def name(self) -> str:
        """The backend as errors show it."""
        return self.settings.name

    def get(
        self,
        path: str,
        parameters: Parameters | None = None,
        *,
        accept: str = JSON,
        hand_over: Container[int] = _NO_STATUSES,
        timeout: float | None = None,
    ) -> Response:
        """What the backend answers at a path below the base.

        hand_over: statuses above 299 that are an answer to this request, and no failure. timeout: seconds, when they
        are to be fewer than the settings'. Raises BackendUnreachable, BackendBusy or BackendRefused; QueryError when
        the parameters are too long for a URL.
        """
        seconds = min(timeout or self.settings.timeout, self.settings.timeout)
        deadline = time.monotonic() + seconds
        if not self._places.acquire(timeout=seconds):
            raise BackendBusy(
                f"all {self.settings.concurrency} places for requests are taken",
                where=self.name,
                retry_after=1,
                hint=f"ask again, or raise {PREFIX}CONCURRENCY",
            )
        try:
            return self._get(path, parameters, accept, hand_over, max(deadline - time.monotonic(), 0.01))
        except httpx.InvalidURL:
            raise too_long(self.name) from None
        except httpx.TimeoutException as error:
            raise self._late(seconds) from error
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error
        finally:
            self._places.release()

    def close(self) -> None:
        """Closes the connections. Calling it twice is allowed."""
        self._client.close()

    def refused(self, answer: Response, hint: str = "") -> BackendRefused:
        """The error for an answer that cannot be what was asked for."""
        return BackendRefused(
            where=self.name,
            expected="an answer to the query",
            got=f"HTTP {answer.status}: {self._tidy(answer) or 'nothing'}",
            hint=hint,
        )

    def _get(
        self, path: str, parameters: Parameters | None, accept: str, hand_over: Container[int], seconds: float
    ) -> Response:
        with self._client.stream(
            "GET",
            self.settings.base + path,
            params=None if parameters is None else dict(parameters),
            headers={"accept": accept},
            timeout=seconds,
        ) as response:
            chunks, size = [], 0
            for chunk in response.iter_bytes():
                chunks.append(chunk)
                size += len(chunk)
                if size > self.settings.max_bytes:
                    raise self._too_large()
            answer = Response(response.status_code, b"".join(chunks), response.headers.get("content-type", ""))
            if response.is_success or response.status_code in hand_over:
                return answer
            raise self._failure(answer, parse_retry_after(response.headers))

    def _failure(self, answer: Response, wait: float | None) -> BackendError:
        status = answer.status
        if status in (401, 403):
            hint = f"check the login in {PREFIX}USER and {PREFIX}PASSWORD, or {PREFIX}TOKEN, and {PREFIX}TENANT"
            return self.refused(answer, hint)
        if status in (429, 503):
            words = f"HTTP {status}: {self._tidy(answer)}".rstrip(": ")
            return BackendBusy(
                words, where=self.name, retry_after=wait, hint="it asks to be asked again later; is it starting?"
            )
        if status in (502, 504):
            return BackendUnreachable(
                where=self.name,
                expected="an answer",
                got=f"HTTP {status} of a gateway: {self._tidy(answer)}".rstrip(": "),
                hint="the gateway is up, the backend behind it is not",
            )
        if 300 <= status < 400 or status in (404, 405):
            return self.refused(answer, "check host, port and path of the backend's URL")
        return self.refused(answer)

    def _late(self, seconds: float) -> BackendTimeout:
        return BackendTimeout(
            where=self.name,
            expected=f"a whole answer within {seconds:.3g} seconds",
            got="none",
            hint=f"the backend is slow or stuck; {PREFIX}TIMEOUT gives it longer",
        )

    def _unreachable(self, error: httpx.HTTPError) -> BackendUnreachable:
        return BackendUnreachable(
            where=self.name,
            expected="an answer",
            got=sanitize_message(str(error), self.settings.secrets) or type(error).__name__,
            hint="is it running, and is the URL right?",
        )

    def _too_large(self) -> ResponseTooLarge:
        return ResponseTooLarge(
            where=self.name,
            expected=f"an answer of at most {self.settings.max_bytes} bytes",
            got="a larger one",
            hint=f"raise {PREFIX}MAX_BYTES when there is memory for it",
        )

    def _tidy(self, answer: Response) -> str:
        """Its words without secrets: some gateways repeat what they were sent. Taken from enough of them that no secret
        is cut in two, which would hide it from the search."""
        return sanitize_message(answer.content[:_SEARCHED].decode("utf-8", "replace"), self.settings.secrets)


def too_long(where: str) -> QueryError:
    """The error for a question that httpx makes no URL of. It takes up to 64 KiB, and encodes whatever else is odd."""
    return QueryError(
        where=where,
        expected="filters, ids and a tenant that fit into a URL",
        got="more than 64 KiB of them",
        hint="ask with shorter ones",
    )


def _tls(settings: RemoteConfig) -> ssl.SSLContext | None:
    if not settings.base.startswith("https:"):
        return None
    try:
        context = ssl.create_default_context(cafile=settings.certificate)
        if settings.client_certificate is not None:
            context.load_cert_chain(settings.client_certificate, settings.client_key)
    except (OSError, ssl.SSLError) as error:
        names = (settings.certificate, settings.client_certificate, settings.client_key)
        shown = ", ".join(name for name in names if name)
        got = error.strerror or str(error)
        raise SettingError(where=f"TLS files of the backend: {shown}", expected="PEM files", got=got) from None
    return context
