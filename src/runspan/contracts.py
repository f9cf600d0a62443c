"""The interfaces of trace backends, ``TraceReader`` and ``TraceWriter``, and their data types; no I/O.

The embedded store, Tempo and Jaeger implement them. The conformance suite in ``tests/conformance`` tests each of them.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Final, Literal, Protocol, get_args

from msgspec import UNSET, Struct, UnsetType
from msgspec import field as field_of

from runspan.codec.decode import RunSummary
from runspan.codec.facts import duration, summary_members
from runspan.codec.fields import ROOT_REVISION, observed_time
from runspan.codec.full_text import MAX_TEXT, MIN_TEXT, Match, fold
from runspan.codec.semconv import error_code
from runspan.errors import QueryError, QueryUnsupported
from runspan.model.document import LIVE_RUN_STATUSES, MAX_RUN_ID_BYTES, TERMINAL_RUN_STATUSES, Run
from runspan.model.span import Span
from runspan.model.timestamps import SECOND

DEFAULT_LIMIT = 50
MAX_LIMIT = 200
Order = Literal["start", "duration", "cost"]
_ORDER_MARKS: Final[dict[Order, str]] = {"start": "", "duration": "d", "cost": "c"}
"""How the token of a cursor begins, by the order of its list."""
MAX_CURSOR_LENGTH: Final = -(-(1 + 19 + 1 + MAX_RUN_ID_BYTES) * 4 // 3)
"""Characters of a cursor's token: the mark of its order, the digits of its value, a colon and a run id in base64."""
CURSOR_PATTERN: Final = f"^[A-Za-z0-9_-]{{4,{MAX_CURSOR_LENGTH}}}$"
"""What a cursor's token consists of, as a regular expression of JSON Schema."""


@dataclass(frozen=True, slots=True)
class Cursor:
    """The position after the last item of a page.

    The next page has only runs that sort after it, so runs that arrive meanwhile neither repeat nor hide a run.
    """

    time: int
    """The sort time of the last item in nanoseconds since 1970. In a list by duration or cost its duration or cost, -1
    without one."""
    run_id: str
    """The run id of the last item."""
    order: Order = "start"
    """That of the list, see ``RunQuery``."""

    @classmethod
    def behind(cls, time: int) -> Cursor:
        """Return the position behind all runs at a time: no run id sorts before the cursor's."""
        return cls(time, "\0")

    def token(self) -> str:
        """Return the opaque text that a client sends back."""
        text = f"{_ORDER_MARKS[self.order]}{self.time}:{self.run_id}"
        return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")

    @classmethod
    def parse(cls, token: str) -> Cursor:
        """Return the cursor of a token. Raises QueryError."""
        with suppress(ValueError):
            if not re.fullmatch(CURSOR_PATTERN, token):
                raise ValueError
            raw = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
            found = re.fullmatch("([dc]?)([0-9]{1,19}|(?<=[dc])-1):(.+)", raw.decode(), re.DOTALL)
            if found is not None:
                order = next(order for order, mark in _ORDER_MARKS.items() if mark == found[1])
                return cls(int(found[2]), found[3], order)
        raise QueryError(where="cursor", expected="meta.cursor of an earlier page", got=repr(token[:60]))


@dataclass(frozen=True, slots=True)
class RunQuery:
    """The filters of a list of runs. Filters that are None are not applied.

    Lists are sorted by descending sort time, which is ``startedAt``, else ``createdAt``, else the time when the run
    first arrived. Runs with the same sort time are sorted by descending run id, by code point.
    """

    tenant: str = ""
    workflow_id: str | None = None
    status: str | tuple[str, ...] | None = None
    """Only runs in this status, or in one of several."""
    since: int | None = None
    """Only runs whose sort time is at or after it, in nanoseconds since 1970."""
    limit: int = DEFAULT_LIMIT
    cursor: Cursor | None = None
    stuck_before: int | None = None
    """Only pending and running runs whose next heartbeat was due before it, in nanoseconds since 1970.

    See ``heartbeat_due``. A suspended run is never stuck. Raises QueryError together with another ``status``.
    """
    ended_since: int | None = None
    """Only runs that have ended at or after it, in nanoseconds since 1970; see ``model.document.end_time``.

    The list is sorted by the start of the runs nevertheless. Raises QueryError together with ``stuck_before``, or with
    the status of a run that has not ended.
    """
    until: int | None = None
    """Only runs whose sort time is before it, in nanoseconds since 1970."""
    ended_until: int | None = None
    """Only runs that have ended before it, in nanoseconds since 1970; see ``ended_since``."""
    trigger: str | None = None
    """Only runs with this ``triggerType``."""
    error_code: str | None = None
    """Only runs whose error has this ``code``."""
    min_duration: int | None = None
    """Only runs that took this long or longer, in nanoseconds; see ``codec.facts.duration``."""
    model: str | None = None
    """Only runs with a step that used this model."""
    step_type: str | None = None
    """Only runs with a step of this type."""
    text: str | None = None
    """Only runs that contain this text, without regard to case: in an id, a name, an error or a payload; see
    ``codec.full_text``. Raises QueryError for a text of fewer than ``MIN_TEXT`` characters, which nearly every run
    contains, or of more than ``MAX_TEXT``."""
    order: Order = "start"
    """Sorted by it, the highest first; runs without a duration or cost are last, and those of the same value are sorted
    by descending run id. Only stores that have an index of it sort by another than the start."""

    def __post_init__(self) -> None:
        chosen = self._chosen
        if self.is_by_end and (self.stuck_before is not None or not set(chosen) <= set(TERMINAL_RUN_STATUSES)):
            raise QueryError(
                where="status" if self.stuck_before is None else "stuckAfter",
                expected=f"{', '.join(TERMINAL_RUN_STATUSES)}, or none, in a list of runs that have ended",
                got=repr(", ".join(chosen)) if self.stuck_before is None else "a list of stuck runs",
                hint="such a run has not ended: leave out the time of the end",
            )
        if self.stuck_before is not None and not set(chosen) <= set(LIVE_RUN_STATUSES):
            raise QueryError(
                where="status",
                expected=f"{' or '.join(LIVE_RUN_STATUSES)}, or none, in a list of stuck runs",
                got=repr(", ".join(chosen)),
                hint=f"a run that is {chosen[0]} is not stuck: filter by the status alone",
            )
        if self.cursor is not None and self.cursor.order != self.order:
            raise QueryError(
                where="cursor",
                expected=f"that of a list sorted by {self.order}",
                got=f"one of a list sorted by {self.cursor.order}",
                hint="send the same sort with every page",
            )
        if self.text is not None and not (len(fold(self.text)) >= MIN_TEXT and len(self.text) <= MAX_TEXT):
            raise QueryError(
                where="q",
                expected=f"a text of {MIN_TEXT} to {MAX_TEXT} characters",
                got=f"one of {len(self.text)}",
                hint="nearly every run contains any one or two characters; a long text is found by a part of it",
            )
        for where, start, end in (("to", self.since, self.until), ("endedTo", self.ended_since, self.ended_until)):
            if start is not None and end is not None and end <= start:
                raise QueryError(
                    where=where, expected="a time after the beginning of the range", got="one that is not after it"
                )

    @property
    def _chosen(self) -> tuple[str, ...]:
        if self.status is None:
            return ()
        return (self.status,) if isinstance(self.status, str) else self.status

    @property
    def statuses(self) -> tuple[str, ...]:
        """The statuses of the runs in the list; empty for all statuses."""
        return self._chosen or (() if self.stuck_before is None else LIVE_RUN_STATUSES)

    @property
    def is_by_end(self) -> bool:
        """Whether the list has only runs that ended in a range of time."""
        return self.ended_since is not None or self.ended_until is not None

    @property
    def before(self) -> tuple[int, str] | None:
        """Sort time and run id; all runs of the list sort after this position. None for a list from the newest run on.

        It is the position of the cursor, or that before the first run which is older than ``until``. The cursor of a
        list by duration or cost has no such position.
        """
        edges = [] if self.until is None else [(self.until, "")]
        if self.cursor is not None and self.order == "start":
            edges.append((self.cursor.time, self.cursor.run_id))
        return min(edges, default=None)

    @property
    def needs_index(self) -> bool:
        """Whether it has a filter or an order for which the embedded store needs its index."""
        return self.order != "start" or any(
            value is not None
            for value in (self.trigger, self.error_code, self.min_duration, self.model, self.step_type, self.text)
        )

    def matches(self, run: RunSummary) -> bool:
        """Return whether a run's newest revision matches the filters that its list item decides.

        These are all but the tenant, the position (``since`` and ``before``) and the text. A model or step type matches
        a run with so many of them that it does not say.
        """
        if self.workflow_id is not None and run.workflow_id != self.workflow_id:
            return False
        if self.statuses and run.status not in self.statuses:
            return False
        if self.is_by_end and (
            run.ended is None
            or run.ended < (self.ended_since or 0)
            or (self.ended_until is not None and run.ended >= self.ended_until)
        ):
            return False
        if self._reads_summary and not self._matches_summary(run.summary):
            return False
        if not self.matches_labels(run.models, run.step_types):
            return False
        return self.stuck_before is None or (
            run.status in LIVE_RUN_STATUSES and heartbeat_due(observed_time(run.revision), run.time) < self.stuck_before
        )

    def matches_labels(self, models: Set[str] | None, step_types: Set[str] | None) -> bool:
        """Return whether a run with these models and step types matches the filters by them; None matches any."""
        filters = ((self.model, models), (self.step_type, step_types))
        return all(wanted is None or labels is None or wanted in labels for wanted, labels in filters)

    @property
    def _reads_summary(self) -> bool:
        return self.trigger is not None or self.error_code is not None or self.min_duration is not None

    def _matches_summary(self, summary: bytes) -> bool:
        run = summary_members(summary)
        if self.trigger is not None and run.trigger_type != self.trigger:
            return False
        if self.error_code is not None and error_code(run.error) != self.error_code:
            return False
        taken = duration(run)
        return self.min_duration is None or (taken is not None and taken >= self.min_duration)


HEARTBEAT_INTERVAL: Final = 30 * SECOND
"""The shortest time between two observations of an unchanged run, in nanoseconds."""
HEARTBEAT_SHARE: Final = 16
"""The part of its age that a run may be silent: a run of a day leaves about a hundred revisions, not thousands."""


def heartbeat_due(observed_at: int, time: int) -> int:
    """Return when an unfinished run is to be observed again, in nanoseconds since 1970.

    ``observed_at`` is when it was last observed, ``time`` where it lies in time.
    """
    return observed_at + max(HEARTBEAT_INTERVAL, (observed_at - time) // HEARTBEAT_SHARE)


def live_observed_time(revision: int) -> int | None:
    """Return when an unfinished run was last observed, in nanoseconds since 1970; None for a run that has ended."""
    return None if revision >= ROOT_REVISION else revision


@dataclass(frozen=True, slots=True)
class Page:
    """A page of a list. A page with a cursor is not the last one, even if it is shorter than the limit."""

    items: Sequence[bytes]
    """The JSON texts of ``Run.summary``."""
    cursor: Cursor | None = None
    """Where the next page begins; None on the last page."""
    partial: tuple[str, ...] = ()
    """What the backend could not search, and which runs are left out, older than their newest revision or one of two
    documents, one line each; empty if the page is complete. See ``damaged_note`` and the functions after it."""
    matches: Mapping[str, Match] = field(default_factory=dict)
    """Where each run of a list with a ``RunQuery.text`` contains it, by run id."""


StatsDimension = Literal["workflow", "day", "hour", "model", "step", "error"]
STATS_DIMENSIONS: Final[tuple[StatsDimension, ...]] = get_args(StatsDimension)
DEFAULT_STATS_LIMIT: Final = 100
MAX_STATS_LIMIT: Final = 2_000
_TIMES: Final = ("day", "hour")
_PARTS: Final = ("model", "step", "error")


@dataclass(frozen=True, slots=True)
class StatsQuery:
    """The runs of a tenant that statistics are of, and the groups that these are divided into.

    A run counts where its sort time is, see ``RunQuery``, in whole hours of UTC: a range is widened to these.
    """

    tenant: str = ""
    workflow_id: str | None = None
    since: int | None = None
    """Only runs whose sort time is in this hour or later, in nanoseconds since 1970."""
    until: int | None = None
    """Only runs whose sort time is before the end of the hour before it, in nanoseconds since 1970."""
    group_by: tuple[StatsDimension, ...] = ()
    """At most one of day and hour, and one of model, step and error; without these, runs are counted."""
    time_zone: str = "UTC"
    """The zone that days are of, as the IANA database calls it."""
    limit: int = DEFAULT_STATS_LIMIT

    def __post_init__(self) -> None:
        by = self.group_by
        if not set(by) <= set(STATS_DIMENSIONS) or any(len({*by} & {*those}) > 1 for those in (_TIMES, _PARTS)):
            raise QueryError(
                where="groupBy",
                expected="some of workflow, one of day and hour, and one of model, step and error",
                got=repr(", ".join(by)[:60]),
            )
        if self.is_by_time and (self.since is None or self.until is None):
            raise QueryError(where="from", expected="the beginning of the days or hours", got="none")
        if self.since is not None and self.until is not None and self.until <= self.since:
            raise QueryError(
                where="to", expected="a time after the beginning of the range", got="one that is not after"
            )

    @property
    def is_by_workflow(self) -> bool:
        """Whether each workflow has groups of its own."""
        return "workflow" in self.group_by

    @property
    def is_by_time(self) -> bool:
        """Whether each day or hour has groups of its own."""
        return not set(_TIMES).isdisjoint(self.group_by)

    @property
    def part(self) -> str:
        """The part of runs that is counted: ``model``, ``step`` or ``error``; empty for whole runs."""
        return next((part for part in _PARTS if part in self.group_by), "")


class DurationStats(Struct, frozen=True, omit_defaults=True):
    """Durations in milliseconds."""

    count: int
    """How many ended runs, or steps, have a duration."""
    mean: float
    """Exact; 0 without any."""
    p50: float | None = None
    """The least duration that this percentage of the runs does not exceed, within 1 %. None for steps, for the days and
    hours of all workflows, and without any."""
    p95: float | None = None


class UsageStats(Struct, frozen=True, rename="camel"):
    """What agents used of models."""

    steps: int
    input_tokens: int
    output_tokens: int
    cost_usd: float


class FailedRun(Struct, frozen=True, rename="camel"):
    """A run that failed or timed out."""

    id: str
    time: str
    """Its sort time."""
    error_message: str = ""
    """The beginning of its error's message."""


class StatsGroup(Struct, frozen=True, rename="camel", omit_defaults=True):
    """The statistics of a group. Members that the grouping does not have are UNSET."""

    workflow_id: str | UnsetType | None = UNSET
    """None for runs without one."""
    from_: str | UnsetType = field_of(name="from", default=UNSET)
    """The beginning of a day or hour."""
    to: str | UnsetType = UNSET
    """The end of a day or hour, excluded."""
    model: str | UnsetType = UNSET
    """Empty if the steps do not name it."""
    step: str | UnsetType = UNSET
    """Its name, or its id without one."""
    step_type: str | UnsetType = UNSET
    error_code: str | UnsetType = UNSET
    """Empty for errors without a code."""
    failed_step: str | UnsetType = UNSET
    """The name of the first failed step; empty if no step failed."""
    runs: int | UnsetType = UNSET
    statuses: dict[str, int] | UnsetType = UNSET
    """Runs by status; ``other`` for statuses that are not the platform's."""
    executions: int | UnsetType = UNSET
    """Of a step: each round of a loop is one; skipped and pending ones do not count."""
    failed: int | UnsetType = UNSET
    """Executions that failed."""
    duration_ms: DurationStats | UnsetType = UNSET
    usage: UsageStats | UnsetType = UNSET
    newest_failure: FailedRun | UnsetType | None = UNSET
    """Of a workflow or an error."""


@dataclass(frozen=True, slots=True)
class StatsPage:
    """The groups of statistics: days and hours in their order, and each one's largest groups first."""

    groups: Sequence[StatsGroup]
    since: int | None
    """The beginning of the hours that the groups cover, in nanoseconds since 1970; None: from the first run on."""
    until: int | None
    """Their end, excluded; None: up to the last run."""
    has_more: bool = False
    """Whether there are smaller groups than these."""
    partial: tuple[str, ...] = ()
    """What is missing, one line each; see ``Page``."""


def stats_unsupported(backend: str) -> QueryUnsupported:
    """Return the error of a backend that cannot count runs exactly, each once and as of its newest revision."""
    return QueryUnsupported(
        "no statistics",
        where=backend,
        expected="a backend that counts each run once, as of its newest revision",
        got="one that stores spans",
        hint="the embedded store has statistics: runspan serve --data DIR",
    )


@dataclass(frozen=True, slots=True)
class DocumentVersion:
    """What distinguishes the responses to two requests for a run, without its document."""

    digest: str
    """The first 32 hex digits of the document's SHA-256."""
    incomplete: tuple[str, ...] = ()
    """See ``Document``."""
    conflict: tuple[str, ...] = ()
    """See ``Document``."""
    observed_at: int | None = None
    """See ``Document``."""


@dataclass(frozen=True, slots=True)
class Document:
    """The canonical text of a run document, verified by its digest."""

    text: bytes
    incomplete: tuple[str, ...] = ()
    """What is missing of newer revisions, one line each."""
    conflict: tuple[str, ...] = ()
    """The SHA-256 digests, in hex, of other documents that were sent as the same revision of the run.

    The embedded store keeps their first 32 digits.
    """
    digest: str = field(default="", compare=False)
    """The first 32 hex digits of the text's SHA-256 if the backend has it, else empty; see ``version``."""
    observed_at: int | None = field(default=None, compare=False)
    """When the run was last observed if it has not ended, in nanoseconds since 1970; see ``heartbeat_due``."""

    def version(self) -> DocumentVersion:
        """Return the version of the document."""
        digest = self.digest or sha256(self.text).hexdigest()[:32]
        return DocumentVersion(digest, self.incomplete, self.conflict, self.observed_at)


# The lines of ``Page.partial`` about single runs, in the same words for every backend.

_MAX_NOTES: Final = 20


def damaged_note(run_id: str) -> str:
    """Return the line about a run whose list item does not have the recorded digest."""
    return f"run {run_id} is left out: its list item does not have the recorded digest"


def unproved_note(run_id: str, missing: Sequence[str]) -> str:
    """Return the line about a run whose document decides whether it is in the list, and cannot be verified."""
    reason = missing[0] if missing else "its newest revision is not complete"
    return f"run {run_id} is left out, since its document cannot be read: {reason}"


def stopped_note(seconds: float, place: str) -> str:
    """Return the line about a search that has taken this long and come to a place of the list: a time, or a run."""
    return f"the search was stopped after {seconds:g} seconds, at {place}: the next page continues there"


def older_revision_note(run_id: str, incomplete: Sequence[str]) -> str:
    """Return the line about a run that is listed as of an older revision than the newest."""
    return f"run {run_id} is listed as of an older revision: {incomplete[0]}"


def conflict_note(run_id: str, conflict: Sequence[str]) -> str:
    """Return the line about a run of which another document was sent as the same revision."""
    return f"run {run_id} is one of {1 + len(conflict)} different documents that were sent as the same revision"


def limited_notes(notes: Sequence[str]) -> tuple[str, ...]:
    """Return the lines, of which many are replaced by one that counts them."""
    if len(notes) <= _MAX_NOTES:
        return tuple(notes)
    return *notes[:_MAX_NOTES], f"and {len(notes) - _MAX_NOTES} more runs"


@dataclass(frozen=True, slots=True)
class Capabilities:
    """The optional capabilities of a backend. The default is the least capable backend."""

    durable_writes: bool = False
    """A write is on disk when it returns."""
    deletes: bool = False
    """Runs can be deleted by age."""
    foreign_spans: bool = False
    """Foreign spans of a run's trace are kept."""
    searches: str = ""
    """What of a run a ``RunQuery.text`` is searched in, in words; empty if texts are not searched for."""


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
    changed: bool = True
    """False for a document that is stored already, or that is an older, unfinished state of a run that has ended in the
    store."""


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

    def run_spans(self, run_id: str, tenant: str = "") -> list[Span]:
        """Return the spans of a run's trace, as ``spans`` does, also if only a search finds its revisions.

        Raises TraceIncomplete if the backend says that it returns a part of the trace.
        """
        ...

    def search(self, query: RunQuery) -> Page:
        """Return the first ``query.limit`` runs after ``query.cursor``, each once and at its newest revision.

        Filters apply to the newest revision only: a run that has ended does not match an earlier status. Strings are
        compared exactly, including quotes, braces and line breaks. Raises QueryUnsupported instead of approximating.
        """
        ...

    def run_stats(self, query: StatsQuery) -> StatsPage:
        """Return the statistics of runs, each of which counts once, at its newest revision.

        Raises QueryUnsupported if the backend cannot count them exactly.
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
