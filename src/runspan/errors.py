"""One tree of errors, each saying where, what was expected, what was got and what to do next; no I/O.

::

    RunspanError
    ├── DocumentError          a run document cannot be carried exactly
    ├── TraceIncomplete        spans of a run are missing, cut or changed
    ├── NotFound               no such run, trace or key
    ├── QueryError             a query parameter has no meaning
    │   └── QueryUnsupported   it has one, but this backend cannot answer it exactly
    ├── AccessError            the caller may not do this
    │   ├── Unauthorized       no key, or an unknown or expired one
    │   ├── Forbidden          the key lacks the permission
    │   └── RateLimited        too many requests; carries ``retry_after`` seconds
    ├── PayloadError           a request body cannot be read
    │   ├── PayloadTooLarge    it is over the bound
    │   └── PayloadUnsupported its content type or encoding is unknown
    ├── BackendError
    │   ├── BackendUnreachable it did not answer
    │   │   └── BackendTimeout it did not answer in time
    │   ├── BackendRefused     it answered that it will not do it
    │   └── BackendBusy        it asks to be asked again later; carries ``retry_after`` seconds
    ├── StoreError             the embedded store cannot be opened or written
    └── SettingError           a flag, variable or URL is wrong
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from runspan.model.run import Run


class RunspanError(Exception):
    """The root of the tree.

    where: the place, for example ``runs.ndjson:12 steps[2].startedAt``.
    expected, got: the two sides of the disagreement, each short enough for one line.
    hint: what to do next.
    """

    def __init__(
        self,
        message: str = "",
        *,
        where: str = "",
        expected: str = "",
        got: str = "",
        hint: str = "",
    ) -> None:
        self.message = message
        self.where = where
        self.expected = expected
        self.got = got
        self.hint = hint
        super().__init__(message)

    def __str__(self) -> str:
        parts = []
        if self.message:
            parts.append(self.message)
        if self.expected:
            parts.append(f"expected {self.expected}")
        if self.got:
            parts.append(f"got {self.got}")
        text = ", ".join(parts)
        if self.where:
            text = f"{self.where}: {text}"
        return f"{text} ({self.hint})" if self.hint else text


class DocumentError(RunspanError):
    """A run document cannot be carried exactly, so it is refused."""


class TraceIncomplete(RunspanError):
    """The spans at hand do not prove the run's newest revision.

    missing: what is missing or damaged, one line each.
    fallback: the newest older revision that is proved, or None.
    """

    def __init__(
        self,
        message: str = "",
        *,
        missing: tuple[str, ...] = (),
        fallback: Run | None = None,
        where: str = "",
        hint: str = "",
    ) -> None:
        super().__init__(message, where=where, got="; ".join(missing[:5]), hint=hint)
        self.missing = missing
        self.fallback = fallback


class NotFound(RunspanError):
    """No such run, trace or key."""


class QueryError(RunspanError):
    """A query parameter has no meaning."""


class QueryUnsupported(QueryError):
    """The backend cannot answer this query exactly, so it does not answer it."""


class AccessError(RunspanError):
    """The caller may not do this."""


class Unauthorized(AccessError):
    """No key came with the request, or an unknown or expired one."""


class Forbidden(AccessError):
    """The key lacks the permission, or a server without keys does not take this from a browser."""


class RateLimited(AccessError):
    """Too many requests in the key's window."""

    def __init__(self, message: str = "", *, retry_after: float, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.retry_after = retry_after


class PayloadError(RunspanError):
    """A request body cannot be read."""


class PayloadTooLarge(PayloadError):
    """A request body is over the bound."""


class PayloadUnsupported(PayloadError):
    """A request body's content type or encoding is unknown."""


class BackendError(RunspanError):
    """A trace backend did not do what was asked."""


class BackendUnreachable(BackendError):
    """It did not answer."""


class BackendTimeout(BackendUnreachable):
    """It did not answer in time."""


class BackendRefused(BackendError):
    """It answered that it will not do it; asking again will not help."""


class BackendBusy(BackendError):
    """It asks to be asked again later."""

    def __init__(self, message: str = "", *, where: str = "", retry_after: float | None = None, hint: str = "") -> None:
        super().__init__(message, where=where, hint=hint)
        self.retry_after = retry_after


class StoreError(RunspanError):
    """The embedded store cannot be opened or written."""


class SettingError(RunspanError):
    """A flag, an environment variable or a URL is wrong."""


class Outcome(NamedTuple):
    """How an error is told to a caller: the REST code and HTTP status, and a command's exit code."""

    code: str
    status: int
    exit: int


OUTCOMES: dict[type[RunspanError], Outcome] = {
    DocumentError: Outcome("VALIDATION_ERROR", 400, 3),
    TraceIncomplete: Outcome("TRACE_INCOMPLETE", 503, 4),
    NotFound: Outcome("NOT_FOUND", 404, 5),
    QueryUnsupported: Outcome("QUERY_UNSUPPORTED", 400, 6),
    QueryError: Outcome("VALIDATION_ERROR", 400, 2),
    Unauthorized: Outcome("UNAUTHORIZED", 401, 7),
    Forbidden: Outcome("FORBIDDEN", 403, 7),
    RateLimited: Outcome("RATE_LIMITED", 429, 8),
    PayloadTooLarge: Outcome("PAYLOAD_TOO_LARGE", 413, 3),
    PayloadUnsupported: Outcome("UNSUPPORTED_MEDIA_TYPE", 415, 3),
    PayloadError: Outcome("VALIDATION_ERROR", 400, 3),
    BackendTimeout: Outcome("BACKEND_TIMEOUT", 504, 9),
    BackendUnreachable: Outcome("BACKEND_UNREACHABLE", 503, 9),
    BackendBusy: Outcome("BACKEND_BUSY", 503, 9),
    BackendRefused: Outcome("BACKEND_REFUSED", 502, 9),
    StoreError: Outcome("STORE_ERROR", 500, 10),
    SettingError: Outcome("SETTING_ERROR", 500, 2),
    RunspanError: Outcome("INTERNAL_ERROR", 500, 1),
}
"""The platform documents UNAUTHORIZED to RATE_LIMITED; the others are ours. Subclasses stand first."""


def outcome(error: RunspanError) -> Outcome:
    """The row of the nearest class in the error's own line of descent."""
    for kind in type(error).__mro__:
        if kind in OUTCOMES:
            return OUTCOMES[kind]
    raise TypeError(f"{type(error).__name__} has no outcome")
