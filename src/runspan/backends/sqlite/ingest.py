"""Writing: what arrives is decoded and compressed in the caller's thread, and decided in the writer's transaction.

The decision reads what is stored inside the transaction that changes it, so no two writers can both decide on the same
state. Almost always a run arrives whole, and then the decision is a comparison; the rest is merged there and then. What
a revision brought and the stored one does not tell is kept as fragments: a head that names it may be on the way.

What arrives, before a look at what is stored: which spans a document is read from, what is refused; no I/O.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import ScopeSpans, TracesData

from runspan.backends.sqlite import queries as tables
from runspan.backends.sqlite.compression import Compression
from runspan.backends.sqlite.merge import (
    OWN_ROLES,
    REVISION_ROLES,
    first_revision,
    is_exact_match,
    merge_fragments,
    next_revision,
    revision_seen_again,
    steps_named,
    superseded_span_ids,
    superseded_steps,
)
from runspan.backends.sqlite.retention import Retention
from runspan.backends.sqlite.revision import StoredRevision, from_row, from_run, revision_of
from runspan.backends.sqlite.rows import Row, end_time, row_of, split_digests, with_digest
from runspan.backends.sqlite.writer import GroupWriter
from runspan.codec.decode import VerifiedRun, verify_run
from runspan.codec.fields import ROLE, ROOT_REVISION, RUN_ID, TENANT
from runspan.contracts import Rejection, WriteResult
from runspan.errors import NotFound, StoreError, TraceIncomplete
from runspan.model.ids import run_ids
from runspan.model.run import Run
from runspan.model.span import Span
from runspan.otlp.protobuf_reader import ForeignSpan, ParsedRequest
from runspan.otlp.protobuf_writer import span_bytes

_LAST_REVISION = 2 * ROOT_REVISION - (1 << 32)
"""What still leaves room for revisions after it in 64 bits."""


def role_of(span: Span) -> str:
    """The role, or nothing when it is no text."""
    role = span.attributes().get(ROLE)
    return role if type(role) is str else ""


def revision_spans_of(spans: Sequence[Span]) -> list[Span]:
    return [span for span in spans if role_of(span) in REVISION_ROLES]


def rank_of(span: Span) -> int:
    """The revision of a head; above all of them for any other span, which belongs to no revision alone."""
    return revision_of(span.attributes()) if role_of(span) in REVISION_ROLES else 2 * ROOT_REVISION


def by_role(spans: Sequence[Span]) -> tuple[list[Span], list[Span]]:
    """The spans that the document is read from, and others: attempts, and roles that a newer runspan may write."""
    own: list[Span] = []
    beside: list[Span] = []
    for span in spans:
        (own if role_of(span) in OWN_ROLES else beside).append(span)
    return own, beside


def tenant_refusal(claimed: object, tenant: str) -> str | None:
    return None if claimed == tenant else f"the run is of tenant {claimed!r}, the sender of {tenant!r}"


def revision_refusal(revision: int) -> str | None:
    return f"revision {revision} is none that a time of observation gives" if revision > _LAST_REVISION else None


def revision_span_refusal(spans: Sequence[Span], tenant: str) -> str | None:
    """Why these spans are not taken: a head among them tells another tenant, or a run of another trace id."""
    for head in revision_spans_of(spans):
        attributes = head.attributes()
        reason = tenant_refusal(attributes.get(TENANT, ""), tenant) or revision_refusal(rank_of(head))
        if reason:
            return reason
        run_id = attributes.get(RUN_ID)
        if type(run_id) is not str or run_ids(run_id, tenant).trace_id != head.trace_id:
            return f"its trace id does not follow from run id {run_id!r}"
    return None


def as_foreign(span: Span, resource: bytes | None) -> ForeignSpan:
    data = TracesData()
    outer = data.resource_spans.add()
    if resource:
        outer.resource.CopyFrom(Resource.FromString(resource))
    outer.scope_spans.append(ScopeSpans.FromString(span_bytes(span)))
    return ForeignSpan(span.trace_id, span.span_id, data.SerializeToString(deterministic=True))


ReadRevision = Callable[[sqlite3.Connection, tables.StoredRow], StoredRevision]


@dataclass(slots=True)
class _Arrival:
    """The own spans of one trace of a request. row, known: of the run, when the spans are exactly a whole run's."""

    trace_id: bytes
    spans: list[Span]
    resource: bytes | None
    row: Row | None = None
    known: StoredRevision | None = None


@dataclass(slots=True)
class _Request:
    """A request on its way to the writer."""

    tenant: str
    now: int
    arrivals: list[_Arrival] = field(default_factory=list)
    foreign: list[tuple[Any, ...]] = field(default_factory=list)
    rejected: list[Rejection] = field(default_factory=list)


class Ingester:
    """Takes documents and OTLP requests. read: the revision of a stored run; StoreError when it cannot be read."""

    def __init__(
        self,
        writer: GroupWriter,
        compression: Compression,
        retention: Retention,
        clock: Callable[[], int],
        read: ReadRevision,
    ) -> None:
        self._writer = writer
        self._compression = compression
        self._retention = retention
        self._clock = clock
        self._read = read

    # Documents.

    def put(self, run: Run, tenant: str, observed_at: int) -> WriteResult:
        """See ``contracts.TraceWriter.put``."""
        now = self._clock()
        revision = first_revision(run, observed_at)
        row = row_of(run, tenant, revision, self._compression.compress(run.text), written_at=now)
        count = 1 + len(run.steps)
        reason = self._retention.refusal(row.ended, now)
        if reason:
            return WriteResult(0, (Rejection(f"run {run.id}", reason, count),))
        self._writer.submit(lambda connection: self._store_document(connection, run, row, tenant, observed_at))
        return WriteResult(count)

    def _store_document(
        self, connection: sqlite3.Connection, run: Run, row: Row, tenant: str, observed_at: int
    ) -> None:
        trace_id, now = row.trace_id, row.written_at
        state = tables.states(connection, [trace_id]).get(trace_id)
        waiting = bool(tables.with_fragments(connection, [trace_id], tenant))
        if state is not None and state.digest == row.digest:
            if not run.finished:
                revision = revision_seen_again(state.revision, observed_at)
                tables.seen_again(connection, trace_id, revision, observed_at, now)
                if waiting:
                    self._merge(connection, tenant, now, _Arrival(trace_id, [], None), None)
            return
        if state is not None:
            row = row.at(next_revision(state.revision, run, observed_at))
        known = from_run(run, tenant, row.revision) if state is not None or waiting else None
        behind: list[Span] = []
        if known is not None and waiting:
            loose = tables.fragments(connection, trace_id, tenant)
            # A head that came before this document and does not rank above it is of no use to anybody.
            useful = [span for span in loose if rank_of(span) > row.revision]
            settled = merge_fragments(known, useful)
            if settled.known is not None and (settled.known is not known or settled.incomplete):
                known = settled.known
                row = self._row(known, now, None, settled.incomplete)
            self._replace_fragments(connection, loose, settled.loose, tenant, now)
        if known is not None and state is not None:
            before = self._stored(connection, trace_id)
            behind = [] if before is None else superseded_steps(before, known)
        tables.insert_fragments(connection, behind, tenant, REVISION_ROLES, now)
        tables.upsert(connection, [row])

    def _stored(self, connection: sqlite3.Connection, trace_id: bytes) -> StoredRevision | None:
        """The stored revision; None when it is damaged, for what takes its place heals it."""
        stored = tables.stored_run(connection, trace_id)
        try:
            return None if stored is None else self._read(connection, stored)
        except StoreError:
            return None

    # OTLP.

    def write(self, received: ParsedRequest, tenant: str) -> WriteResult:
        """Takes the spans of a request; each run and foreign span is taken or rejected by itself."""
        request = self._prepare(received, tenant)
        rejected = [*received.rejected, *request.rejected]
        if request.arrivals or request.foreign:
            rejected += self._writer.submit(lambda connection: self._apply(connection, request))
        return WriteResult(received.total - sum(item.spans for item in rejected), tuple(rejected))

    def _prepare(self, received: ParsedRequest, tenant: str) -> _Request:
        request = _Request(tenant, self._clock())
        traces: dict[bytes, list[Span]] = {}
        for span in received.spans:
            traces.setdefault(span.trace_id, []).append(span)
        for trace_id, spans in traces.items():
            self._prepare_trace(request, _Arrival(trace_id, spans, received.resources.get(trace_id)))
        for item in received.foreign:
            self._store_foreign(request, item)
        return request

    def _store_foreign(self, request: _Request, item: ForeignSpan) -> None:
        compressed = self._compression.compress(item.otlp)
        request.foreign.append(tables.foreign_row(item, request.tenant, request.now, compressed))

    def _prepare_trace(self, request: _Request, arrival: _Arrival) -> None:
        decoded = _read(arrival.spans)
        if decoded is None or not is_exact_match(decoded, arrival.spans):
            own, beside = by_role(arrival.spans)
            if beside:
                for span in beside:
                    self._store_foreign(request, as_foreign(span, arrival.resource))
                arrival.spans = own
                decoded = _read(own)
        reason = None
        if not arrival.spans:
            return
        if decoded is not None and is_exact_match(decoded, arrival.spans):
            arrival.known = from_row(decoded, arrival.spans)
            arrival.row = self._row(arrival.known, request.now, None)
            reason = tenant_refusal(decoded.tenant, request.tenant) or revision_refusal(decoded.revision)
            reason = reason or self._retention.refusal(arrival.row.ended, request.now)
        else:
            reason = revision_span_refusal(arrival.spans, request.tenant)
        if reason:
            what = f"trace {arrival.trace_id.hex()}" if decoded is None else f"run {decoded.run.id}"
            request.rejected.append(Rejection(what, reason, len(arrival.spans)))
        else:
            request.arrivals.append(arrival)

    def _row(self, known: StoredRevision, now: int, resource_id: int | None, incomplete: tuple[str, ...] = ()) -> Row:
        return row_of(
            known.run,
            known.tenant,
            known.revision,
            self._compression.compress(known.run.text),
            written_at=now,
            step_ids=known.packed_span_ids(),
            incomplete=incomplete,
            resource_id=resource_id,
        )

    def _apply(self, connection: sqlite3.Connection, request: _Request) -> list[Rejection]:
        trace_ids = [arrival.trace_id for arrival in request.arrivals]
        known = tables.states(connection, trace_ids)
        waiting = tables.with_fragments(connection, trace_ids, request.tenant)
        resources: dict[bytes | None, int | None] = {None: None}
        rows: list[Row] = []
        rejected: list[Rejection] = []
        for arrival in request.arrivals:
            row, state = arrival.row, known.get(arrival.trace_id)
            whole = row is not None and arrival.trace_id not in waiting
            if (
                row is not None
                and whole
                and state is not None
                and not self._supersedes(connection, request, arrival, row, state)
            ):
                continue
            if arrival.resource not in resources and arrival.resource is not None:
                resources[arrival.resource] = tables.resource_number(connection, arrival.resource)
            resource_id = resources[arrival.resource]
            if row is not None and whole:
                if state is not None:
                    row = _after(connection, row, state)
                rows.append(row._replace(resource_id=resource_id))
            else:
                reason = self._merge(connection, request.tenant, request.now, arrival, resource_id)
                if reason:
                    rejected.append(Rejection(f"trace {arrival.trace_id.hex()}", reason, len(arrival.spans)))
        tables.upsert(connection, rows)
        tables.insert_foreign(connection, request.foreign)
        return rejected

    def _supersedes(
        self,
        connection: sqlite3.Connection,
        request: _Request,
        arrival: _Arrival,
        row: Row,
        state: tables.RevisionState,
    ) -> bool:
        """Whether a run that came whole takes the place of the stored revision; keeps the steps that only the other
        of the two tells, unless both are the same revision: then one corrects the other and comes whole."""
        above = _ranks_above(row, state)
        same = row.digest == state.digest and row.step_ids == state.step_ids
        if same or row.revision == state.revision or arrival.known is None:
            return above
        stored = self._stored(connection, arrival.trace_id)
        if stored is None:
            return above
        if above:
            behind = superseded_steps(stored, arrival.known)
        else:
            names = superseded_span_ids(arrival.known, stored)
            behind = [span for span in arrival.spans if span.span_id in names and role_of(span) not in REVISION_ROLES]
        tables.insert_fragments(connection, behind, request.tenant, REVISION_ROLES, request.now)
        return above

    def _merge(
        self, connection: sqlite3.Connection, tenant: str, now: int, arrival: _Arrival, resource_id: int | None
    ) -> str | None:
        """Settles a trace whose spans arrive apart. The reason, when its run is not taken."""
        trace_id = arrival.trace_id
        stored = tables.stored_run(connection, trace_id)
        if stored is not None and stored.tenant != tenant:
            # Whoever knows tenant and run id knows the trace id. What such a sender has to say is kept apart.
            tables.insert_fragments(connection, arrival.spans, tenant, REVISION_ROLES, now)
            return None
        if (
            stored is None
            and not revision_spans_of(arrival.spans)
            and _too_few(connection, trace_id, tenant, len(arrival.spans))
        ):
            tables.insert_fragments(connection, arrival.spans, tenant, REVISION_ROLES, now)
            return None
        base: StoredRevision | None = None
        if stored is not None:
            try:
                base = self._read(connection, stored)
            except StoreError as error:
                return f"what is stored of the run cannot be read: {error}"
        loose = tables.fragments(connection, trace_id, tenant)
        seen = () if stored is None else split_digests(tables.superseded(connection, trace_id))
        known, incomplete, waiting = merge_fragments(base, [*loose, *arrival.spans], seen)
        if known is not None:
            ended = end_time(known.run.envelope, now)
            reason = self._retention.refusal(ended, now)
            if reason:
                tables.delete_fragments(connection, loose, tenant)
                return reason
            if known is not base:
                row = self._row(known, now, resource_id, incomplete)
                tables.upsert(connection, [row if stored is None else _after(connection, row, stored)])
            elif stored is not None and incomplete != stored.incomplete:
                tables.mark_incomplete(connection, trace_id, incomplete, ended, now)
        self._replace_fragments(connection, loose, waiting, tenant, now)
        return None

    def _replace_fragments(
        self,
        connection: sqlite3.Connection,
        before: Sequence[Span],
        after: Sequence[Span],
        tenant: str,
        now: int,
    ) -> None:
        """Makes the fragments of a trace those in after; what was there before keeps its place and time."""
        there, staying = {id(span) for span in before}, {id(span) for span in after}
        tables.delete_fragments(connection, [span for span in before if id(span) not in staying], tenant)
        tables.insert_fragments(
            connection, [span for span in after if id(span) not in there], tenant, REVISION_ROLES, now
        )


def _read(spans: Sequence[Span]) -> VerifiedRun | None:
    try:
        return verify_run(spans)
    except (TraceIncomplete, NotFound):
        return None


def _too_few(connection: sqlite3.Connection, trace_id: bytes, tenant: str, coming: int) -> bool:
    """Whether every head that waits for its steps needs more of them than wait beside it and are coming."""
    there = tables.count_steps(connection, trace_id, tenant) + coming
    return all(steps_named(head) > there for head in tables.revision_spans(connection, trace_id, tenant))


def _ranks_above(row: Row, stored: tables.RevisionState | tables.StoredRow) -> bool:
    """Of one revision with two contents, the later to arrive counts."""
    return row.revision > stored.revision or (row.revision == stored.revision and row.digest != stored.digest)


def _after(connection: sqlite3.Connection, row: Row, stored: tables.RevisionState | tables.StoredRow) -> Row:
    """The row that takes the place of a stored one; of its own revision it remembers what was there."""
    if row.revision != stored.revision:
        return row
    before = tables.superseded(connection, row.trace_id)
    if row.digest != stored.digest:
        before = with_digest(before, stored.digest)
    return row._replace(superseded=before)
