"""The exceptions of runspan, each with place, expected and actual value and a hint; no I/O.

::

    RunspanError
    ├── DocumentError          a run document cannot be carried exactly
    ├── TraceIncomplete        spans of a run are missing, cut or changed
    ├── NotFound               no such run, trace or API key
    ├── QueryError             a query parameter is invalid
    │   └── QueryUnsupported   this backend cannot answer the query exactly
    ├── AccessError            access was denied
    │   ├── Unauthorized       no API key, or an unknown or expired one
    │   ├── Forbidden          the API key lacks the permission
    │   └── RateLimited        too many requests; carries ``retry_after`` seconds
    ├── PayloadError           a request body cannot be read
    │   ├── PayloadTooLarge    the body exceeds a limit
    │   ├── PayloadTimeout     the body did not arrive in time
    │   └── PayloadUnsupported its content type or encoding is unknown
    ├── BackendError           a backend failed
    │   ├── BackendUnreachable no response
    │   │   └── BackendTimeout no response in time
    │   ├── BackendRefused     a permanent error response
    │   └── BackendBusy        a temporary error response; carries ``retry_after`` seconds
    ├── ServerBusy             this server has no room for the request; carries ``retry_after`` seconds
    ├── StoreError             a file of runspan's own, such as the embedded store, cannot be opened, read or written
    │   ├── StoreFull          no space is left for it
    │   └── StateUnreachable   a database that processes share does not answer; carries ``retry_after`` seconds
    └── ConfigError            an option, variable or URL is wrong
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Any, Final, NamedTuple

PARSE_ERRORS: Final = (ValueError, RecursionError)
"""What parsers of JSON raise for any text that they cannot read; text that is nested too deep is no ValueError."""


@dataclass(eq=False, repr=False)
class RunspanError(Exception):
    """The base class of all exceptions of runspan."""

    message: str = ""
    _: KW_ONLY
    where: str = ""
    """The place, for example ``runs.ndjson:12 steps[2].startedAt``."""
    expected: str = ""
    got: str = ""
    """The expected and the actual value, each short enough for one line."""
    hint: str = ""
    """What to do next."""
    retry_after: float | None = None
    """Seconds after which to try again; None if that is unknown, or of no use."""

    def __str__(self) -> str:
        expected = self.expected and f"expected {self.expected}"
        got = self.got and f"got {self.got}"
        text = ", ".join(filter(None, (self.message, expected, got)))
        if self.where:
            text = f"{self.where}: {text}"
        return f"{text} ({self.hint})" if self.hint else text


class DocumentError(RunspanError):
    """A run document cannot be carried exactly, so it is refused."""


@dataclass(eq=False, repr=False, kw_only=True)
class TraceIncomplete(RunspanError):
    """The newest revision of the run cannot be verified from its spans."""

    missing: tuple[str, ...] = ()
    """What is missing or damaged, one line each."""
    fallback: Any = None
    """The ``Run`` of the newest older revision that could be verified, or None."""

    def __post_init__(self) -> None:
        self.got = "; ".join(self.missing[:5])


class NotFound(RunspanError):
    """No such run, trace or API key."""


class QueryError(RunspanError):
    """A query parameter is invalid."""


class QueryUnsupported(QueryError):
    """The backend cannot answer this query exactly."""


class AccessError(RunspanError):
    """Access was denied."""


class Unauthorized(AccessError):
    """The request has no API key, or an unknown or expired one."""


class Forbidden(AccessError):
    """The API key lacks the permission, or a server without API keys refuses the request of a browser."""


class RateLimited(AccessError):
    """Too many requests in the rate limit window of an API key; carries ``retry_after``."""


class PayloadError(RunspanError):
    """A request body cannot be read."""


class PayloadTooLarge(PayloadError):
    """A request body exceeds a limit."""


class PayloadTimeout(PayloadError):
    """A request body did not arrive in time."""


class PayloadUnsupported(PayloadError):
    """A request body's content type or encoding is unknown."""


class BackendError(RunspanError):
    """A trace backend failed."""


class BackendUnreachable(BackendError):
    """The backend sent no response."""


class BackendTimeout(BackendUnreachable):
    """The backend sent no response in time."""


class BackendRefused(BackendError):
    """The backend sent a permanent error response. Do not retry."""


class BackendBusy(BackendError):
    """The backend sent a temporary error response; carries ``retry_after`` if that says when to retry."""


class ServerBusy(RunspanError):
    """This server has no room for the request now; carries ``retry_after``."""


class StoreError(RunspanError):
    """A file of runspan's own, such as the embedded store, cannot be opened, read or written.

    ``where`` is its path.
    """


class StoreFull(StoreError):
    """No space is left for the file."""


class StateUnreachable(StoreError):
    """The database in which several processes share a state does not answer; carries ``retry_after``.

    ``where`` is its address, without a password. ``got`` is what its client library says, which is for the log.
    """


class ConfigError(RunspanError):
    """A command line option, an environment variable or a URL is wrong."""


def item_error(error: Exception, where: str) -> RunspanError:
    """Return an exception as the error of one item, so that a service can go on with the others.

    An error of this tree is returned as it is, any other with the line that raised it.

    where: The item, for example ``run run_abc123``.
    """
    if isinstance(error, RunspanError):
        return error
    raised, place = error.__traceback__, ""
    while raised is not None:
        place = f" at {raised.tb_frame.f_code.co_filename.rpartition('/')[2]}:{raised.tb_lineno}"
        raised = raised.tb_next
    text = " ".join(f"{type(error).__name__}: {error}".split()).removesuffix(":")[:_MAX_TEXT]
    return RunspanError(f"internal error{place}: {text}", where=where, hint="please report it with this line")


_MAX_TEXT: Final = 200
"""Characters of an exception that is not of this tree."""


class ErrorStatus(NamedTuple):
    """How an error is reported: the error code and HTTP status of the REST API, and the exit code of a command."""

    code: str
    http_status: int
    exit_code: int


ERROR_STATUSES: dict[type[RunspanError], ErrorStatus] = {
    DocumentError: ErrorStatus("VALIDATION_ERROR", 400, 3),
    TraceIncomplete: ErrorStatus("TRACE_INCOMPLETE", 503, 4),
    NotFound: ErrorStatus("NOT_FOUND", 404, 5),
    QueryUnsupported: ErrorStatus("QUERY_UNSUPPORTED", 400, 6),
    QueryError: ErrorStatus("VALIDATION_ERROR", 400, 2),
    Unauthorized: ErrorStatus("UNAUTHORIZED", 401, 7),
    Forbidden: ErrorStatus("FORBIDDEN", 403, 7),
    RateLimited: ErrorStatus("RATE_LIMITED", 429, 8),
    PayloadTooLarge: ErrorStatus("PAYLOAD_TOO_LARGE", 413, 3),
    PayloadTimeout: ErrorStatus("REQUEST_TIMEOUT", 408, 3),
    PayloadUnsupported: ErrorStatus("UNSUPPORTED_MEDIA_TYPE", 415, 3),
    PayloadError: ErrorStatus("VALIDATION_ERROR", 400, 3),
    BackendTimeout: ErrorStatus("BACKEND_TIMEOUT", 504, 9),
    BackendUnreachable: ErrorStatus("BACKEND_UNREACHABLE", 503, 9),
    BackendBusy: ErrorStatus("BACKEND_BUSY", 503, 9),
    BackendRefused: ErrorStatus("BACKEND_REFUSED", 502, 9),
    ServerBusy: ErrorStatus("SERVER_BUSY", 503, 9),
    StoreFull: ErrorStatus("STORE_FULL", 507, 10),
    StateUnreachable: ErrorStatus("STATE_UNREACHABLE", 503, 10),
    StoreError: ErrorStatus("STORE_ERROR", 503, 10),
    ConfigError: ErrorStatus("CONFIG_ERROR", 500, 2),
    RunspanError: ErrorStatus("INTERNAL_ERROR", 500, 1),
}
"""The platform documents UNAUTHORIZED to RATE_LIMITED; the other codes are runspan's own."""


def error_status(error: RunspanError) -> ErrorStatus:
    """Return the status of the error's class, or of its nearest base class that has one."""
    return next(ERROR_STATUSES[kind] for kind in type(error).__mro__ if kind in ERROR_STATUSES)
