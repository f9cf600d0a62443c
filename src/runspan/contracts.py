"""What a trace backend promises: ``TraceReader`` and ``TraceWriter``, with the edge cases every one must meet; no I/O.

The embedded store, Tempo and Jaeger implement them; one conformance suite in ``tests/conformance`` holds them to it.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from runspan.codec.fields import observed_time
from runspan.errors import QueryError
from runspan.model.document import LIVE_RUN_STATUSES, RUN_STATUSES
from runspan.model.run import Run
from runspan.model.span import Span

DEFAULT_LIMIT = 50
MAX_LIMIT = 200

_AT_REST = tuple(status for status in RUN_STATUSES if status not in LIVE_RUN_STATUSES)


@dataclass(frozen=True, slots=True)
class Cursor:
    """The place after the last item of a page: its sort time in nanoseconds and its run id.

    A page that follows holds only runs that sort after it, so runs that arrive meanwhile neither repeat nor hide one.
    """

    time: int
    run_id: str

    def token(self) -> str:
        """The opaque text that a client sends back."""
        return base64.urlsafe_b64encode(f"{self.time}:{self.run_id}".encode()).decode().rstrip("=")

    @classmethod
    def parse(cls, token: str) -> Cursor:
        """The cursor of a token; QueryError when it is none of ours."""
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
    """A list of runs, newest first. None means: any.

    since: only runs whose sort time is at or after it, nanoseconds since 1970. The sort time is ``startedAt``, or
    ``createdAt`` when there is no start, or 0 without both; ties go by run id, descending by code point.
    stuck_before: only runs that are pending or running, and were last observed before it, nanoseconds since 1970: the
    newest revision of such a run tells when it was seen. A suspended run waits and is never stuck, so QueryError for
    ``status="suspended"``, or the status of a run that has ended, beside it.
    """

    tenant: str = ""
    workflow_id: str | None = None
    status: str | None = None
    since: int | None = None
    limit: int = DEFAULT_LIMIT
    cursor: Cursor | None = None
    stuck_before: int | None = None

    def __post_init__(self) -> None:
        if self.stuck_before is not None and self.status in _AT_REST:
            raise QueryError(
                where="status",
                expected=f"{' or '.join(LIVE_RUN_STATUSES)}, or none, in a list of stuck runs",
                got=repr(self.status),
                hint=f"a run that is {self.status} is not stuck: ask for the status alone",
            )

    @property
    def statuses(self) -> tuple[str, ...]:
        """The statuses that a run of the list has one of; empty for any."""
        if self.status is not None:
            return (self.status,)
        return () if self.stuck_before is None else LIVE_RUN_STATUSES

    def admits(self, workflow_id: str | None, status: str | None, revision: int) -> bool:
        """Whether a run at its newest revision meets the filters that time and tenant are not."""
        if self.workflow_id is not None and workflow_id != self.workflow_id:
            return False
        if self.statuses and status not in self.statuses:
            return False
        return self.stuck_before is None or (
            status in LIVE_RUN_STATUSES and observed_time(revision) < self.stuck_before
        )


@dataclass(frozen=True, slots=True)
class Page:
    """items: summaries, each the JSON text of ``Run.summary``. cursor: where the next page begins, None at the end.

    A page may be shorter than the limit and not be the last: only the cursor tells.

    partial: what the backend could not look at, one line each; empty when the page is complete.
    """

    items: Sequence[bytes]
    cursor: Cursor | None = None
    partial: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Document:
    """A run document as read: its canonical text, proved against its digest.

    incomplete: empty, or what is missing of a newer revision than this one, one line each.
    """

    text: bytes
    incomplete: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a backend can do beyond the contract. The zero value is the least capable."""

    durable_writes: bool = False
    """A write that returned is on disk."""
    deletes: bool = False
    """It can delete runs by age."""
    foreign_spans: bool = False
    """It keeps spans that are not runspan's beside a run's own."""


@dataclass(frozen=True, slots=True)
class Rejection:
    """A run or span that was not taken: which (a run id, or ids in hex) and why."""

    what: str
    reason: str
    spans: int = 1


@dataclass(frozen=True, slots=True)
class WriteResult:
    """The result of a write: how many spans were taken, and which were not."""

    accepted: int = 0
    rejected: tuple[Rejection, ...] = field(default=())


class TraceReader(Protocol):
    """Reads runs of one backend. All methods may be called from several threads.

    Raises BackendUnreachable, BackendRefused or BackendBusy; never answers empty because it could not look.
    """

    @property
    def capabilities(self) -> Capabilities: ...

    def document(self, run_id: str, tenant: str = "") -> Document:
        """The newest proved revision of a run. NotFound when no span of it is known.

        TraceIncomplete when spans are known but no revision can be proved.
        """
        ...

    def spans(self, trace_id: bytes, tenant: str | None = None) -> list[Span]:
        """All spans of a trace as stored, foreign ones included, in any order. NotFound when there are none.

        tenant: only what this tenant sent, where the backend knows who sent a span; None: whoever sent it.
        """
        ...

    def search(self, query: RunQuery) -> Page:
        """The first ``query.limit`` runs after ``query.cursor``; each run once, at its newest revision.

        A run that was running and has ended answers only to its last status. Text is compared exactly, whatever
        quotes, braces or line breaks it has. QueryUnsupported rather than an approximation.
        """
        ...

    def check(self) -> None:
        """Returns when the backend can answer; else raises what the other methods would. Takes at most seconds."""
        ...

    def close(self) -> None:
        """Releases connections and files. Calling it twice is allowed."""
        ...


class TraceWriter(Protocol):
    """Writes runs to one backend."""

    def put(self, run: Run, *, tenant: str = "", observed_at: int) -> WriteResult:
        """Takes a whole document. Idempotent: the same document again changes nothing; only, a run that has not ended
        counts as seen then. A changed one becomes the newest revision. observed_at: when it was seen, nanoseconds since
        1970."""
        ...
