"""Writing: what arrives is decoded and compressed in the caller's thread, and decided in the writer's transaction.

The decision reads what is stored inside the transaction that changes it, so no two writers can both decide on the same
state. Almost always a run arrives whole, and then the decision is a comparison; the rest is merged there and then.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import ScopeSpans, TracesData

from runspan.backends.sqlite import tables
from runspan.backends.sqlite.compress import Compression
from runspan.backends.sqlite.merge import (
    HEAD_ROLES,
    OWN_ROLES,
    accounts_for,
    first_revision,
    foreign_step_ids,
    next_revision,
    settle,
)
from runspan.backends.sqlite.retention import Retention
from runspan.backends.sqlite.rows import Row, row_of, spans_of, split_digests, with_digest
from runspan.backends.sqlite.writer import GroupWriter
from runspan.contracts import Rejection, Written
from runspan.decode import Decoded, read_run
from runspan.errors import NotFound, StoreError, TraceIncomplete
from runspan.fields import REVISION, ROLE, ROOT_REVISION, RUN_ID, TENANT
from runspan.ids import run_ids
from runspan.otlp.received import Foreign, Received
from runspan.otlp.wire import span_bytes
from runspan.run import Run
from runspan.span import Span

ReadRun = Callable[[sqlite3.Connection, tables.Stored], Run]


_LAST_REVISION = 2 * ROOT_REVISION - (1 << 32)
"""What still leaves room for revisions after it in 64 bits."""


@dataclass(slots=True)
class _Arrival:
    """The own spans of one trace of a request. row: of the run, when the spans are exactly a whole run's."""

    trace_id: bytes
    spans: list[Span]
    resource: bytes | None
    row: Row | None = None


@dataclass(slots=True)
class _Request:
    """A request on its way to the writer."""

    tenant: str
    now: int
    arrivals: list[_Arrival] = field(default_factory=list)
    foreign: list[tuple[Any, ...]] = field(default_factory=list)
    rejected: list[Rejection] = field(default_factory=list)


class Intake:
    """Takes documents and OTLP requests. read: the document of a stored run."""

    def __init__(
        self,
        writer: GroupWriter,
        compression: Compression,
        retention: Retention,
        clock: Callable[[], int],
        read: ReadRun,
    ) -> None:
        self._writer = writer
        self._compression = compression
        self._retention = retention
        self._clock = clock
        self._read = read

    # Documents.

    def put(self, run: Run, tenant: str, observed_at: int) -> Written:
        """See ``contracts.TraceWriter.put``."""
        now = self._clock()
        revision = first_revision(run, observed_at)
        row = row_of(run, tenant, revision, self._compression.compress(run.text), written_at=now)
        count = 1 + len(run.steps)
        reason = self._retention.refusal(row.ended, now)
        if reason:
            return Written(0, (Rejection(f"run {run.id}", reason, count),))
        self._writer.submit(lambda connection: self._place(connection, run, row, tenant, observed_at))
        return Written(count)

    def _place(self, connection: sqlite3.Connection, run: Run, row: Row, tenant: str, observed_at: int) -> None:
        state = tables.states(connection, [row.trace_id]).get(row.trace_id)
        if state is not None:
            if state.digest == row.digest:
                if not run.finished:
                    tables.seen_again(connection, row.trace_id, observed_at, row.written_at)
                return
            row = row.at(next_revision(state.revision, run, observed_at))
        if tables.with_fragments(connection, [row.trace_id]):
            loose = tables.fragments(connection, row.trace_id, tenant)
            # A head that came before this document and does not rank above it is of no use to anybody.
            useful = [span for span in loose if _rank(span) > row.revision]
            decoded, waiting = settle(spans_of(run, tenant, row.revision, None), useful)
            if decoded is not None:
                row = self._row(decoded, row.written_at, None)
                self._replace_fragments(connection, loose, waiting, tenant)
        tables.upsert(connection, [row])

    # OTLP.

    def write(self, received: Received, tenant: str) -> Written:
        """Takes the spans of a request; each run and foreign span is taken or rejected by itself."""
        request = self._prepare(received, tenant)
        rejected = [*received.rejected, *request.rejected]
        if request.arrivals or request.foreign:
            rejected += self._writer.submit(lambda connection: self._apply(connection, request))
        return Written(received.total - sum(item.spans for item in rejected), tuple(rejected))

    def _prepare(self, received: Received, tenant: str) -> _Request:
        request = _Request(tenant, self._clock())
        traces: dict[bytes, list[Span]] = {}
        for span in received.spans:
            traces.setdefault(span.trace_id, []).append(span)
        for trace_id, spans in traces.items():
            self._arrive(request, _Arrival(trace_id, spans, received.resources.get(trace_id)))
        for item in received.foreign:
            self._keep_beside(request, item)
        return request

    def _keep_beside(self, request: _Request, item: Foreign) -> None:
        compressed = self._compression.compress(item.otlp)
        request.foreign.append(tables.foreign_row(item, request.tenant, request.now, compressed))

    def _arrive(self, request: _Request, arrival: _Arrival) -> None:
        decoded = _read(arrival.spans)
        if decoded is None or not accounts_for(decoded, arrival.spans):
            own, beside = _by_role(arrival.spans)
            if beside:
                for span in beside:
                    self._keep_beside(request, _as_foreign(span, arrival.resource))
                arrival.spans = own
                decoded = _read(own)
        reason = None
        if not arrival.spans:
            return
        if decoded is not None and accounts_for(decoded, arrival.spans):
            arrival.row = self._row(decoded, request.now, None)
            reason = _tenant_refusal(decoded.tenant, request.tenant) or _revision_refusal(decoded.revision)
            reason = reason or self._retention.refusal(arrival.row.ended, request.now)
        else:
            reason = _head_refusal(arrival.spans, request.tenant)
        if reason:
            what = f"trace {arrival.trace_id.hex()}" if decoded is None else f"run {decoded.run.id}"
            request.rejected.append(Rejection(what, reason, len(arrival.spans)))
        else:
            request.arrivals.append(arrival)

    def _row(self, decoded: Decoded, now: int, resource_id: int | None) -> Row:
        return row_of(
            decoded.run,
            decoded.tenant,
            decoded.revision,
            self._compression.compress(decoded.run.text),
            written_at=now,
            step_ids=foreign_step_ids(decoded),
            incomplete=decoded.incomplete,
            resource_id=resource_id,
        )

    def _apply(self, connection: sqlite3.Connection, request: _Request) -> list[Rejection]:
        trace_ids = [arrival.trace_id for arrival in request.arrivals]
        known = tables.states(connection, trace_ids)
        waiting = tables.with_fragments(connection, trace_ids)
        resources: dict[bytes | None, int | None] = {None: None}
        rows: list[Row] = []
        rejected: list[Rejection] = []
        for arrival in request.arrivals:
            row, state = arrival.row, known.get(arrival.trace_id)
            settled = row is not None and arrival.trace_id not in waiting
            if row is not None and settled and state is not None and not _ranks_above(row, state):
                continue
            if arrival.resource not in resources and arrival.resource is not None:
                resources[arrival.resource] = tables.resource_number(connection, arrival.resource)
            resource_id = resources[arrival.resource]
            if row is not None and settled:
                if state is not None:
                    row = _after(connection, row, state)
                rows.append(row._replace(resource_id=resource_id))
            else:
                reason = self._merge(connection, request, arrival, resource_id)
                if reason:
                    rejected.append(Rejection(f"trace {arrival.trace_id.hex()}", reason, len(arrival.spans)))
        tables.upsert(connection, rows)
        tables.keep_foreign(connection, request.foreign)
        return rejected

    def _merge(
        self, connection: sqlite3.Connection, request: _Request, arrival: _Arrival, resource_id: int | None
    ) -> str | None:
        """Settles a trace whose spans arrive apart. The reason, when its run is not taken."""
        trace_id, tenant = arrival.trace_id, request.tenant
        stored = tables.stored_run(connection, trace_id)
        if stored is not None and stored.tenant != tenant:
            # Whoever knows tenant and run id knows the trace id. What such a sender has to say is kept apart.
            tables.hold(connection, arrival.spans, tenant, HEAD_ROLES, request.now)
            return None
        if stored is None and not _heads(arrival.spans) and not tables.has_head(connection, trace_id, tenant):
            tables.hold(connection, arrival.spans, tenant, HEAD_ROLES, request.now)
            return None
        spans: Sequence[Span] = ()
        if stored is not None:
            try:
                spans = spans_of(self._read(connection, stored), stored.tenant, stored.revision, stored.step_ids)
            except StoreError as error:
                return f"what is stored of the run cannot be read: {error}"
        loose = tables.fragments(connection, trace_id, tenant)
        seen = () if stored is None else split_digests(tables.superseded(connection, trace_id))
        decoded, waiting = settle(spans, [*loose, *arrival.spans], seen)
        if decoded is not None:
            row = self._row(decoded, request.now, resource_id)
            reason = self._retention.refusal(row.ended, request.now)
            if reason:
                tables.drop(connection, loose, tenant)
                return reason
            if stored is None or _ranks_above(row, stored) or decoded.incomplete != stored.incomplete:
                tables.upsert(connection, [row if stored is None else _after(connection, row, stored)])
        self._replace_fragments(connection, loose, waiting, tenant, request.now)
        return None

    def _replace_fragments(
        self,
        connection: sqlite3.Connection,
        before: Sequence[Span],
        after: Sequence[Span],
        tenant: str,
        now: int = 0,
    ) -> None:
        """Makes the fragments of a trace those in after; what was there before keeps its place and time."""
        there, staying = {id(span) for span in before}, {id(span) for span in after}
        tables.drop(connection, [span for span in before if id(span) not in staying], tenant)
        tables.hold(connection, [span for span in after if id(span) not in there], tenant, HEAD_ROLES, now)


def _read(spans: Sequence[Span]) -> Decoded | None:
    try:
        return read_run(spans)
    except (TraceIncomplete, NotFound):
        return None


def _ranks_above(row: Row, stored: tables.State | tables.Stored) -> bool:
    """Of one revision with two contents, the later to arrive counts."""
    return row.revision > stored.revision or (row.revision == stored.revision and row.digest != stored.digest)


def _after(connection: sqlite3.Connection, row: Row, stored: tables.State | tables.Stored) -> Row:
    """The row that takes the place of a stored one; of its own revision it remembers what was there."""
    if row.revision != stored.revision:
        return row
    before = tables.superseded(connection, row.trace_id)
    if row.digest != stored.digest:
        before = with_digest(before, stored.digest)
    return row._replace(superseded=before)


def _role(span: Span) -> str:
    """The role, or nothing when it is no text."""
    role = span.attributes().get(ROLE)
    return role if type(role) is str else ""


def _heads(spans: Sequence[Span]) -> list[Span]:
    return [span for span in spans if _role(span) in HEAD_ROLES]


def _rank(span: Span) -> int:
    """The revision of a head; above all of them for any other span, which belongs to no revision alone."""
    revision = span.attributes().get(REVISION)
    if _role(span) not in HEAD_ROLES:
        return 2 * ROOT_REVISION
    return revision if type(revision) is int else -1


def _by_role(spans: Sequence[Span]) -> tuple[list[Span], list[Span]]:
    """The spans that the document is read from, and others: attempts, and roles that a newer runspan may write."""
    own: list[Span] = []
    beside: list[Span] = []
    for span in spans:
        (own if _role(span) in OWN_ROLES else beside).append(span)
    return own, beside


def _tenant_refusal(claimed: object, tenant: str) -> str | None:
    return None if claimed == tenant else f"the run is of tenant {claimed!r}, the sender of {tenant!r}"


def _revision_refusal(revision: int) -> str | None:
    return f"revision {revision} is none that a time of observation gives" if revision > _LAST_REVISION else None


def _head_refusal(spans: Sequence[Span], tenant: str) -> str | None:
    """Why these spans are not taken: a head among them tells another tenant, or a run of another trace id."""
    for head in _heads(spans):
        attributes = head.attributes()
        reason = _tenant_refusal(attributes.get(TENANT, ""), tenant) or _revision_refusal(_rank(head))
        if reason:
            return reason
        run_id = attributes.get(RUN_ID)
        if type(run_id) is not str or run_ids(run_id, tenant).trace_id != head.trace_id:
            return f"its trace id does not follow from run id {run_id!r}"
    return None


def _as_foreign(span: Span, resource: bytes | None) -> Foreign:
    data = TracesData()
    outer = data.resource_spans.add()
    if resource:
        outer.resource.CopyFrom(Resource.FromString(resource))
    outer.scope_spans.append(ScopeSpans.FromString(span_bytes(span)))
    return Foreign(span.trace_id, span.span_id, data.SerializeToString(deterministic=True))
