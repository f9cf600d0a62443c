"""The interfaces of trace backends, ``TraceReader`` and ``TraceWriter``, and their data types; no I/O.

The embedded store, Tempo and Jaeger implement them. The conformance suite in ``tests/conformance`` tests each of them.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from runspan.codec.fields import observed_time
from runspan.errors import QueryError
from runspan.model.document import LIVE_RUN_STATUSES, RUN_STATUSES, Run
from runspan.model.span import Span

DEFAULT_LIMIT = 50
MAX_LIMIT = 200

_NEVER_STUCK = tuple(status for status in RUN_STATUSES if status not in LIVE_RUN_STATUSES)


@dataclass(frozen=True, slots=True)
class Cursor:
    """The position after the last item of a page.

    The next page has only runs that sort after it, so runs that arrive meanwhile neither repeat nor hide a run.
    """

    time: int
    """The sort time of the last item in nanoseconds since 1970."""
    run_id: str
    """The run id of the last item."""

    def token(self) -> str:
        """Return the opaque text that a client sends back."""
        return base64.urlsafe_b64encode(f"{self.time}:{self.run_id}".encode()).decode().rstrip("=")

    @classmethod
    def parse(cls, token: str) -> Cursor:
        """Return the cursor of a token. Raises QueryError."""
        try:
            raw = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
            time, colon, run_id = raw.decode().partition(":")
            if colon and time.isascii() and time.isdigit() and len(time) <= 19 and run_id:
                return cls(int(time), run_id)
        except (binascii.Error, ValueError):
            pass
        raise QueryError(where="cursor", expected="meta.cursor of an earlier page", got=repr(token[:60]))


@dataclass(frozen=True, slots=True)
class RunQuery:
    """The filters of a list of runs. Filters that are None are not applied.

    Lists are sorted by descending sort time, which is ``startedAt``, else ``createdAt``, else 0. Runs with the same
    sort time are sorted by descending run id, by code point.
    """

    tenant: str = ""
    workflow_id: str | None = None
    status: str | None = None
    since: int | None = None
    """Only runs whose sort time is at or after it, in nanoseconds since 1970."""
    limit: int = DEFAULT_LIMIT
    cursor: Cursor | None = None
    stuck_before: int | None = None
    """Only pending and running runs that were last observed before it, in nanoseconds since 1970.

    A suspended run is never stuck. Raises QueryError together with another ``status``.
    """

    def __post_init__(self) -> None:
        if self.stuck_before is not None and self.status in _NEVER_STUCK:
            raise QueryError(
                where="status",
                expected=f"{' or '.join(LIVE_RUN_STATUSES)}, or none, in a list of stuck runs",
                got=repr(self.status),
                hint=f"a run that is {self.status} is not stuck: filter by the status alone",
            )

    @property
    def statuses(self) -> tuple[str, ...]:
        """The statuses of the runs in the list; empty for all statuses."""
        if self.status is not None:
            return (self.status,)
        return () if self.stuck_before is None else LIVE_RUN_STATUSES

    def matches(self, workflow_id: str | None, status: str | None, revision: int) -> bool:
        """Return whether a run's newest revision matches the filters other than time and tenant."""
        if self.workflow_id is not None and workflow_id != self.workflow_id:
            return False
        if self.statuses and status not in self.statuses:
            return False
        return self.stuck_before is None or (
            status in LIVE_RUN_STATUSES and observed_time(revision) < self.stuck_before
        )


@dataclass(frozen=True, slots=True)
class Page:
    """A page of a list. A page with a cursor is not the last one, even if it is shorter than the limit."""

    items: Sequence[bytes]
    """The JSON texts of ``Run.summary``."""
    cursor: Cursor | None = None
    """Where the next page begins; None on the last page."""
    partial: tuple[str, ...] = ()
    """What the backend could not search, one line each; empty if the page is complete."""


@dataclass(frozen=True, slots=True)
class Document:
    """The canonical text of a run document, verified by its digest."""

    text: bytes
    incomplete: tuple[str, ...] = ()
    """What is missing of newer revisions, one line each."""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """The optional capabilities of a backend. The default is the least capable backend."""

    durable_writes: bool = False
    """A write is on disk when it returns."""
    deletes: bool = False
    """Runs can be deleted by age."""
    foreign_spans: bool = False
    """Foreign spans of a run's trace are kept."""


@dataclass(frozen=True, slots=True)
class Rejection:
    """A run or span that was rejected."""

    what: str
    """A run id, or the hex ids of a span."""
    reason: str
    spans: int = 1
    """The number of rejected spans."""


@dataclass(frozen=True, slots=True)
class WriteResult:
    """The number of spans that a write accepted, and what it rejected."""

    accepted: int = 0
    rejected: tuple[Rejection, ...] = field(default=())


class TraceReader(Protocol):
    """Reads runs from one backend. Thread-safe.

    All methods raise BackendUnreachable, BackendRefused or BackendBusy. No method returns an empty result instead.
    """

    @property
    def capabilities(self) -> Capabilities: ...

    def document(self, run_id: str, tenant: str = "") -> Document:
        """Return the newest verified revision of a run.

        Raises NotFound if the backend has no span of the run and TraceIncomplete if no revision can be verified.
        """
        ...

    def spans(self, trace_id: bytes, tenant: str | None = None) -> list[Span]:
        """Return all spans of a trace as stored, including foreign spans, in any order. Raises NotFound.

        ``tenant``: only spans that this tenant sent, if the backend knows the sender; None for all senders.
        """
        ...

    def search(self, query: RunQuery) -> Page:
        """Return the first ``query.limit`` runs after ``query.cursor``, each once and at its newest revision.

        Filters apply to the newest revision only: a run that has ended does not match an earlier status. Strings are
        compared exactly, including quotes, braces and line breaks. Raises QueryUnsupported instead of approximating.
        """
        ...

    def check(self) -> None:
        """Return if the backend is available, else raise as the other methods do. Takes at most seconds."""
        ...

    def close(self) -> None:
        """Release connections and files. Idempotent."""
        ...


class TraceWriter(Protocol):
    """Writes runs to one backend."""

    def put(self, run: Run, *, tenant: str = "", observed_at: int) -> WriteResult:
        """Write a document as the newest revision of its run.

        Idempotent: writing an unchanged document only updates when an unfinished run was last observed.
        ``observed_at``: when the document was read, in nanoseconds since 1970.
        """
        ...
