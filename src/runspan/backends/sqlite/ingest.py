"""Ingestion: what a document or an OTLP request changes in each trace is prepared in the caller's thread.

Almost always the request has all spans of a run that is not stored yet; then its row is all that is prepared. Otherwise
the spans are merged with the stored ones. The steps that only the older of two revisions has are kept as fragments: a
revision span that needs them may be on the way.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import chain
from typing import Any, Final

from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import ScopeSpans, TracesData

from runspan.backends.sqlite import queries
from runspan.backends.sqlite.changes import Changer, Changes, in_parts, read_state, state_of
from runspan.backends.sqlite.compression import Compression
from runspan.backends.sqlite.queries import REVISION_ROLES, RunRow, StoredRow, Waiting
from runspan.backends.sqlite.retention import Retention
from runspan.backends.sqlite.revision import (
    RecentRevisions,
    StoredRevision,
    from_growth,
    from_row,
    from_verified,
    is_exact_match,
    merge_fragments,
    revision_of,
    superseded_steps,
)
from runspan.backends.sqlite.waiting import (
    Limits,
    ReadFragment,
    Relevant,
    can_wait,
    is_revision_span,
    relevant,
    surplus,
)
from runspan.backends.sqlite.writer import GroupWriter
from runspan.codec.decode import VerifiedRun, verify_run
from runspan.codec.fields import ROLE, ROLE_STEP, ROOT_REVISION, RUN_ID, STEP_COUNT, TENANT, observed_time
from runspan.codec.growth import verify_growth
from runspan.codec.revisions import (
    MAX_REVISION,
    WrittenState,
    first_revision,
    is_outdated,
    next_revision,
    repeated_revision,
)
from runspan.contracts import Rejection, WriteResult
from runspan.errors import NotFound, StoreError, TraceIncomplete
from runspan.model.document import Run, latest_time, sort_time
from runspan.model.span import Span, run_ids
from runspan.otlp.protobuf_reader import ForeignSpan, ParsedRequest, ReceivedRun
from runspan.otlp.protobuf_writer import span_bytes

_FEW_OPEN: Final = 8
"""How many steps a revision may have beyond twice the spans that arrive together, and still be proved by these."""
_PART_RUNS: Final = 100
_PART_BYTES: Final = 1 << 20
"""Runs and bytes of documents that one transaction writes for one caller."""
_OWN_ROLES: Final = REVISION_ROLES | {ROLE_STEP}
"""The roles of the spans that a document is read from."""


@dataclass
class _TraceSpans:
    """The own spans of one trace of a request."""

    trace_id: bytes
    resource: bytes | None
    count: int
    """The number of spans."""
    load_spans: Callable[[], list[Span]]
    row: RunRow | None = None
    """The row of the run, when the spans are exactly those of a complete run."""
    load_revision: Callable[[], StoredRevision] | None = None
    """Returns the same run as a revision."""
    revisions: Sequence[Span] = ()
    """The revision spans among the spans of a run that was not received as a whole."""

    @cached_property
    def spans(self) -> list[Span]:
        """The spans. Those of a run that was received as a whole are rarely needed."""
        return self.load_spans()


@dataclass(slots=True)
class _Request:
    """A request prepared for the writer."""

    tenant: str
    now: int
    traces: list[_TraceSpans] = field(default_factory=list)
    foreign: list[tuple[Any, ...]] = field(default_factory=list)
    rejected: list[Rejection] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Ingester:
    """Stores documents and OTLP requests."""

    writer: GroupWriter
    readers: Callable[[], AbstractContextManager[sqlite3.Connection]]
    """Returns a connection that only reads."""
    changer: Changer
    compression: Compression
    retention: Retention
    limits: Limits
    clock: Callable[[], int]
    """Nanoseconds since 1970."""
    read: Callable[[sqlite3.Connection, StoredRow], StoredRevision]
    """Return the revision of a stored run. Raise StoreError when it is damaged."""
    read_fragment: ReadFragment
    recent: RecentRevisions

    # Documents.

    def put(self, run: Run, tenant: str, observed_at: int) -> WriteResult:
        """See ``contracts.TraceWriter.put``."""
        now = self.clock()
        count = 1 + len(run.steps)
        reason = _steps_refusal(len(run.steps), self.limits)
        if reason is None:
            revision, time = first_revision(run, observed_at), sort_time(run.envelope) or observed_at
            row = queries.run_row(run, tenant, revision, b"", time=time, written_at=now)
            reason = self.retention.refusal(row.ended)
        if reason is None:
            if _is_likely_new(row):
                row = self._with_document(row, run)
                if self.writer.submit(partial(_store_new, row=row, tenant=tenant), tenant):
                    return WriteResult(count)
            plan = partial(self._plan_document, run=run, row=row, tenant=tenant, observed_at=observed_at)
            (changes,) = self.changer.change(tenant, {row.trace_id: plan})
            reason = changes.reason
        if reason is not None:
            return WriteResult(0, (Rejection(f"run {run.id}", reason, count),))
        return WriteResult(count, changed=changes.is_new)

    def _plan_document(
        self, connection: sqlite3.Connection, *, run: Run, row: RunRow, tenant: str, observed_at: int
    ) -> Changes:
        """Return what a document changes. It is not new if it is stored already, or outdated.

        row: its row, whose column ``document`` may be empty still: one that is stored already is not compressed again.
        """
        trace_id, now = row.trace_id, row.written_at
        stored = queries.stored_run(connection, trace_id)
        waiting = queries.waiting(connection, trace_id, tenant)
        changes = Changes(trace_id, tenant, state_of(stored, waiting))
        if stored is None and waiting is None:
            changes.row, changes.is_new = self._with_document(row, run), True
            return changes
        if stored is not None and stored.digest == row.digest:
            if not run.finished:
                revision = repeated_revision(stored.revision, observed_at)
                changes.observation = (revision, observed_at, now)
                if waiting is not None:
                    superseded = stored.superseded if revision == stored.revision else None
                    stored = stored._replace(revision=revision, superseded=superseded)
                    request = _Request(tenant, now)
                    self._plan_merge(
                        connection, changes, request, _TraceSpans(trace_id, None, 0, list), stored, waiting
                    )
                    changes.reason = None  # the document itself is stored already
            return changes
        before = self._read_undamaged(connection, stored)
        if before is not None and not run.finished and is_outdated(run, _written_state(before)):
            return changes
        if stored is not None:
            revision = next_revision(stored.revision, run, observed_at)
            row = row._replace(
                revision=revision, observed_at=None if row.observed_at is None else observed_time(revision)
            )
        newest = from_row(run, tenant, row.revision, None, row.time)
        if waiting is not None:
            found = relevant(connection, self.read_fragment, trace_id, tenant, waiting, base=newest, base_is_new=True)
            # A revision span that arrived before this document and does not rank above it is never read.
            spans = [span for item in found.fragments for span in item.spans if _rank(span) > row.revision]
            merged = merge_fragments(newest, spans, (), found.needed, found.stand_ins)
            if merged.revision is not None and (merged.revision is not newest or merged.incomplete):
                if merged.revision is not newest:
                    self._keep_superseded(changes, newest, merged.revision, now)
                newest = merged.revision
                row = _with_conflict(self._row(newest, now, merged.incomplete), merged.conflict)
            self._keep_waiting(changes, found, merged.fragments, (), waiting, now)
        if before is not None:
            self._keep_superseded(changes, before, newest, now)
        self._make_room(connection, changes)
        changes.row, changes.is_new = self._with_document(row, run), True
        return changes

    def _with_document(self, row: RunRow, run: Run) -> RunRow:
        """Return the row of a run with its document."""
        return row if row.document else row._replace(document=self.compression.compress(run.text))

    def _read_undamaged(self, connection: sqlite3.Connection, stored: StoredRow | None) -> StoredRevision | None:
        """Return the revision of a stored run; None also when it is damaged, since the next one replaces it."""
        try:
            return None if stored is None else self.read(connection, stored)
        except StoreError:
            return None

    # OTLP.

    def write(self, received: ParsedRequest, tenant: str) -> WriteResult:
        """Store the spans of a request; each run and each foreign span is accepted or rejected by itself."""
        request = self._prepare(received, tenant)
        new: list[_TraceSpans] = []
        others: list[_TraceSpans] = []
        for trace in request.traces:
            (new if trace.row is not None and _is_likely_new(trace.row) else others).append(trace)
        works: list[Callable[[sqlite3.Connection], list[_TraceSpans]]] = [
            partial(_store_complete, traces=part, tenant=tenant) for part in _parts(new)
        ]
        works += [partial(_store_foreign, rows=part) for part in in_parts(request.foreign)]
        others += chain.from_iterable(self.writer.submit_all(works, tenant))
        plans = {trace.trace_id: partial(self._plan_spans, request=request, trace=trace) for trace in others}
        rejected = [*received.rejected, *request.rejected]
        grown = partial(self._plan_recent, request, others)
        for trace, changes in zip(others, self.changer.change(tenant, plans, grown), strict=True):
            if changes.reason:
                rejected.append(Rejection(f"trace {trace.trace_id.hex()}", changes.reason, trace.count))
        return WriteResult(received.total - sum(item.spans for item in rejected), tuple(rejected))

    def _prepare(self, received: ParsedRequest, tenant: str) -> _Request:
        request = _Request(tenant, self.clock())
        traces: dict[bytes, list[Span]] = {}
        for span in received.spans:
            traces.setdefault(span.trace_id, []).append(span)
        for trace_id, spans in traces.items():
            self._prepare_trace(request, trace_id, spans, received.resources.get(trace_id))
        for run in received.runs:
            self._prepare_run(request, run, received)
        for item in received.foreign:
            self._prepare_foreign(request, item)
        if request.foreign:
            self._limit_foreign(request)
        return request

    def _limit_foreign(self, request: _Request) -> None:
        """Reject the foreign spans that one trace has too many of; requests at the same time are not added up."""
        limit = self.limits.max_foreign_spans
        counts: dict[bytes, int] = {}
        taken: list[tuple[Any, ...]] = []
        with self.readers() as connection:
            for row in request.foreign:
                trace_id, owner, span_id = row[:3]
                if trace_id not in counts:
                    counts[trace_id] = queries.foreign_count(connection, trace_id, owner, limit)
                if counts[trace_id] < limit or queries.has_foreign(connection, row):
                    counts[trace_id] += 1
                    taken.append(row)
                    continue
                reason = (
                    f"its trace has {limit} spans of other instrumentation, and this store keeps no more "
                    "(serve twice --max-steps)"
                )
                request.rejected.append(Rejection(f"span {span_id.hex()} of trace {trace_id.hex()}", reason))
        request.foreign = taken

    def _prepare_foreign(self, request: _Request, item: ForeignSpan) -> None:
        compressed = self.compression.compress(item.otlp)
        request.foreign.append(queries.foreign_row(item, request.tenant, request.now, compressed))

    def _prepare_run(self, request: _Request, received: ReceivedRun, whole: ParsedRequest) -> None:
        """Prepare a run that was received as a whole, and verified."""
        trace_id, count = received.trace_id, 1 + received.step_count
        ended = received.ended
        if ended is None:
            ended = queries.retention_start(received.run.envelope, request.now)
        reason = _tenant_refusal(received.tenant, request.tenant) or _steps_refusal(received.step_count, self.limits)
        reason = reason or self.retention.refusal(ended)
        if reason is not None:
            request.rejected.append(Rejection(f"run {received.run_id}", reason, count))
            return
        load = partial(_received_revision, received)
        step_ids = None if received.has_content_ids else load().packed_step_ids()
        document = self.compression.compress(received.text)
        row = queries.received_row(received, document, ended=ended, written_at=request.now, step_ids=step_ids)
        spans = partial(whole.spans_of, trace_id)
        request.traces.append(_TraceSpans(trace_id, received.resource, count, spans, row, load))

    def _prepare_trace(self, request: _Request, trace_id: bytes, spans: list[Span], resource: bytes | None) -> None:
        roles = [_role(span) for span in spans]
        revisions = [span for span, role in zip(spans, roles, strict=True) if role in REVISION_ROLES]
        verified = None if _needs_others(revisions, len(spans)) else _verify(spans)
        is_complete = verified is not None and is_exact_match(verified, spans)
        if not is_complete:
            # Attempts, and roles that a newer version of runspan may write, are stored like foreign spans.
            own: list[Span] = []
            for span, role in zip(spans, roles, strict=True):
                if role in _OWN_ROLES:
                    own.append(span)
                else:
                    self._prepare_foreign(request, _as_foreign(span, resource))
            if len(own) < len(spans):
                spans = own
                is_complete = verified is not None and is_exact_match(verified, spans)
        if not spans:
            return
        trace = _TraceSpans(trace_id, resource, len(spans), lambda: spans, revisions=revisions)
        if verified is not None and is_complete:
            reason = _tenant_refusal(verified.tenant, request.tenant) or _revision_refusal(verified.revision)
            reason = reason or _steps_refusal(len(verified.manifest), self.limits)
            if not reason:
                revision = from_verified(verified)
                trace.load_revision = lambda: revision
                trace.row = self._row(revision, request.now)
                reason = self.retention.refusal(trace.row.ended)
        else:
            reason = self._revisions_refusal(revisions, request.tenant)
        if reason:
            what = f"trace {trace_id.hex()}" if verified is None else f"run {verified.run.id}"
            request.rejected.append(Rejection(what, reason, len(spans)))
        else:
            request.traces.append(trace)

    def _revisions_refusal(self, revisions: Sequence[Span], tenant: str) -> str | None:
        """Return why the spans of a trace are rejected: a revision span among them is of another tenant, of another
        trace id, or of too many steps."""
        for span in revisions:
            attributes = span.attributes()
            reason = _tenant_refusal(attributes.get(TENANT, ""), tenant) or _revision_refusal(revision_of(attributes))
            steps = attributes.get(STEP_COUNT)
            reason = reason or (_steps_refusal(steps, self.limits) if type(steps) is int else None)
            if reason:
                return reason
            run_id = attributes.get(RUN_ID)
            if type(run_id) is not str or run_ids(run_id, tenant).trace_id != span.trace_id:
                return f"its trace id does not follow from run id {run_id!r}"
        return None

    def _row(
        self,
        revision: StoredRevision,
        now: int,
        incomplete: tuple[str, ...] = (),
        *,
        before: tuple[StoredRevision, StoredRow] | None = None,
        digest: bytes | None = None,
    ) -> RunRow:
        """Return the row of a revision.

        before: the stored one, whose document and step ids may be the same. digest: of the document, if it is known.
        """
        document = step_ids = None
        if before is not None and _is_same_content(revision, before[0]):
            document, step_ids = before[1].document, before[1].step_ids
        return queries.run_row(
            revision.run,
            revision.tenant,
            revision.revision,
            document or revision.frames or self.compression.compress(revision.run.text),
            time=revision.time,
            written_at=now,
            step_ids=step_ids if document else revision.packed_step_ids(),
            incomplete=incomplete,
            digest=digest,
        )

    def _plan_spans(self, connection: sqlite3.Connection, *, request: _Request, trace: _TraceSpans) -> Changes:
        """Return what the spans of a trace change."""
        trace_id, tenant = trace.trace_id, request.tenant
        stored = queries.stored_run(connection, trace_id)
        waiting = queries.waiting(connection, trace_id, tenant)
        changes = Changes(trace_id, tenant, state_of(stored, waiting), resource=trace.resource)
        # A sender that knows tenant and run id knows the trace id, so another tenant's spans are kept apart.
        is_other_tenant = stored is not None and stored.tenant != tenant
        if trace.row is not None and waiting is None:
            self._plan_complete(connection, changes, request, trace, stored)
        elif (
            stored is not None
            and waiting is None
            and self._plan_growth(changes, request, trace, stored, partial(self._read_undamaged, connection, stored))
        ):
            pass
        elif is_other_tenant or (stored is None and can_wait(connection, trace_id, tenant, trace.spans, waiting)):
            changes.inserted = [queries.fragment_row(span, tenant, request.now) for span in trace.spans]
        else:
            self._plan_merge(connection, changes, request, trace, stored, waiting)
        self._make_room(connection, changes)
        return changes

    def _plan_complete(
        self,
        connection: sqlite3.Connection,
        changes: Changes,
        request: _Request,
        trace: _TraceSpans,
        stored: StoredRow | None,
    ) -> None:
        """Store a complete run if it ranks above the stored revision.

        Keep the steps that only the older of the two has, unless both are the same revision: then one corrects the
        other and is complete.
        """
        row = trace.row
        if row is None or trace.load_revision is None or stored is None:
            changes.row = row
            return
        revision = trace.load_revision()
        is_newer = _ranks_above(row, stored)
        is_same = row.digest == stored.digest and row.step_ids == stored.step_ids
        before = None if is_same or row.revision == stored.revision else self._read_undamaged(connection, stored)
        if before is not None:
            older, newer = (before, revision) if is_newer else (revision, before)
            self._keep_superseded(changes, older, newer, request.now)
        if is_newer:
            changes.row = _replacement(row, stored)

    def _plan_recent(self, request: _Request, traces: Sequence[_TraceSpans]) -> Iterator[Changes]:
        """Yield what changes in runs that grow and whose rows are known, without reading them.

        If a row has changed since, the transaction finds that, as for any other state.
        """
        for trace in traces:
            recent = self.recent.get(trace.trace_id)
            if trace.row is None and recent is not None:
                stored, base = recent
                changes = Changes(trace.trace_id, request.tenant, state_of(stored, None), resource=trace.resource)
                if self._plan_growth(changes, request, trace, stored, partial(_itself, base)):
                    yield changes

    def _plan_growth(
        self,
        changes: Changes,
        request: _Request,
        trace: _TraceSpans,
        stored: StoredRow,
        read: Callable[[], StoredRevision | None],
    ) -> bool:
        """Store the next revision of a run that has grown. Return False if the spans are not that.

        A run of hundreds of steps is sent with each of them, so most of what is stored already is not looked at again.
        """
        if stored.tenant != changes.tenant or stored.incomplete or len(trace.revisions) != 1:
            return False
        base = read()
        if base is None or not base.run.plain:
            return False
        (revision,) = trace.revisions
        arrived = [span for span in trace.spans if span is not revision]
        found = verify_growth(revision, arrived, base.run, base.step_ids, base.front)
        if found is None or found.verified.revision <= base.revision:
            return False
        run = found.verified.run
        frames = base.frames if run == base.run else b""
        frames = frames or self.compression.compress_growing(run.text, found.front.size, base.frames, found.shared)
        newest = from_growth(found.verified, found.front, frames)
        changes.reason = self.retention.refusal(queries.retention_start(newest.run.envelope, request.now))
        if changes.reason is None:
            row = self._row(newest, request.now, digest=found.digest)
            if row.observed_at is not None and stored.observed_at is not None:
                row = row._replace(observed_at=max(row.observed_at, stored.observed_at))
            changes.row, changes.is_listed = row, _is_listed_as(newest, base)
            stored = stored._replace(
                revision=row.revision,
                digest=row.digest,
                document=row.document,
                step_ids=row.step_ids,
                time=row.time,
                superseded=row.superseded,
                written_at=row.written_at,
                observed_at=row.observed_at,
            )
            self.recent.add(trace.trace_id, stored, newest)
        return True

    def _plan_merge(
        self,
        connection: sqlite3.Connection,
        changes: Changes,
        request: _Request,
        trace: _TraceSpans,
        stored: StoredRow | None,
        waiting: Waiting | None,
    ) -> None:
        """Merge spans into a trace whose spans arrive in parts."""
        trace_id, tenant, now = trace.trace_id, request.tenant, request.now
        base: StoredRevision | None = None
        superseded: Sequence[bytes] = ()
        if stored is not None:
            try:
                base = self.read(connection, stored)
            except StoreError as error:
                changes.reason = f"the stored run cannot be read: {error}"
                return
            superseded = queries.split_digests(stored.superseded)
        found = relevant(connection, self.read_fragment, trace_id, tenant, waiting, base=base, arrived=trace.spans)
        spans = [span for item in found.fragments for span in item.spans]
        merged = merge_fragments(base, [*spans, *trace.spans], superseded, found.needed, found.stand_ins)
        newest = merged.revision
        if newest is not None:
            ended = queries.retention_start(newest.run.envelope, now)
            changes.reason = self.retention.refusal(ended)
            if changes.reason:
                changes.deleted = queries.fragment_ids(connection, trace_id, tenant)
                return
            if newest is not base:
                before = None if base is None or stored is None else (base, stored)
                row = self._row(newest, now, merged.incomplete, before=before)
                row = row if stored is None else _replacement(row, stored)
                changes.row = _with_conflict(row, merged.conflict)
                if base is not None and newest.revision != base.revision:
                    self._keep_superseded(changes, base, newest, now)
            elif stored is not None and merged.incomplete != stored.incomplete:
                changes.incomplete = (merged.incomplete, ended, now)
        self._keep_waiting(changes, found, merged.fragments, trace.spans, waiting, now)

    def _keep_waiting(
        self,
        changes: Changes,
        found: Relevant,
        kept: Sequence[Span],
        arrived: Sequence[Span],
        waiting: Waiting | None,
        now: int,
    ) -> None:
        """Store the spans that wait, and delete those that wait no longer; others keep their order and time."""
        kept_ids = {id(span) for span in kept}
        tried = len(arrived) + (0 if waiting is None else waiting.spans)
        for fragment in found.fragments:
            if not any(id(span) in kept_ids for span in fragment.spans):
                changes.deleted.append(fragment.id)
                changes.freed = changes.freed.plus(len(fragment.spans), fragment.size)
            elif fragment.kind == queries.REVISION:
                missing = found.missing.get(id(fragment.spans[0]))
                changes.hints.append((missing, tried, fragment.id))
        for span in arrived:
            if id(span) in kept_ids:
                missing = found.missing.get(id(span))
                changes.inserted.append(queries.fragment_row(span, changes.tenant, now, missing=missing, tried=tried))

    def _keep_superseded(self, changes: Changes, before: StoredRevision, after: StoredRevision, now: int) -> None:
        """Keep the steps that a later revision does not have: a revision span that needs them may be on the way."""
        kept = superseded_steps(before, after)
        if kept is not None:
            frame = self.compression.compress(kept.run.text)
            row = queries.superseded_row(changes.trace_id, changes.tenant, now, kept.step_ids, kept.time, frame)
            changes.inserted.append(row)

    def _make_room(self, connection: sqlite3.Connection, changes: Changes) -> None:
        """Delete the oldest superseded steps of a run that has changed too often to keep all."""
        if any(row.kind == queries.SUPERSEDED for row in changes.inserted):
            ids, freed = surplus(connection, changes.trace_id, changes.tenant, self.limits)
            changes.deleted += ids
            changes.freed = changes.freed.plus(*freed)


def _is_likely_new(row: RunRow) -> bool:
    """Return whether nothing is stored of a run, as far as it shows: one that has not ended is written many times."""
    return row.revision == ROOT_REVISION


def _received_revision(received: ReceivedRun) -> StoredRevision:
    return StoredRevision(received.run, received.tenant, ROOT_REVISION, received.step_ids, received.position)


def _store_new(connection: sqlite3.Connection, row: RunRow, tenant: str) -> bool:
    """Store a run unless something of it is stored already. Return whether it was stored."""
    if read_state(connection, row.trace_id, tenant) != (None, None):
        return False
    queries.upsert_runs(connection, [row])
    return True


def _is_stored(connection: sqlite3.Connection, row: RunRow, tenant: str) -> bool:
    """Return whether a run is stored as it is, and nothing waits."""
    head, waiting = read_state(connection, row.trace_id, tenant)
    return waiting is None and head is not None and (head.revision, head.digest) == (row.revision, row.digest)


def _store_complete(connection: sqlite3.Connection, traces: Sequence[_TraceSpans], tenant: str) -> list[_TraceSpans]:
    """Store the complete runs of which nothing is stored yet. Return those that change what is stored."""
    resource_ids: dict[bytes | None, int | None] = {None: None}
    rows: list[RunRow] = []
    others = []
    stored = queries.stored_traces(connection, [trace.trace_id for trace in traces], tenant)
    for trace in traces:
        row = trace.row
        if row is None or (trace.trace_id in stored and not _is_stored(connection, row, tenant)):
            others.append(trace)
        elif trace.trace_id not in stored:
            if trace.resource is not None and trace.resource not in resource_ids:
                resource_ids[trace.resource] = queries.insert_resource(connection, trace.resource)
            rows.append(row._replace(resource_id=resource_ids[trace.resource]))
    queries.upsert_runs(connection, rows)
    return others


def _parts(traces: Sequence[_TraceSpans]) -> Iterator[list[_TraceSpans]]:
    """Yield complete runs in parts that one transaction writes in milliseconds."""
    part: list[_TraceSpans] = []
    size = 0
    for trace in traces:
        part.append(trace)
        size += 0 if trace.row is None else len(trace.row.document)
        if len(part) == _PART_RUNS or size > _PART_BYTES:
            yield part
            part, size = [], 0
    if part:
        yield part


def _store_foreign(connection: sqlite3.Connection, rows: Sequence[tuple[Any, ...]]) -> list[_TraceSpans]:
    queries.insert_foreign(connection, rows)
    return []


def _written_state(stored: StoredRevision) -> WrittenState:
    return WrittenState(stored.revision, latest_time(stored.run.envelope), stored.run.finished)


def _needs_others(revisions: Sequence[Span], spans: int) -> bool:
    """Return whether the only revision among so many spans has many more steps, so that they prove none."""
    counts = [span.attributes().get(STEP_COUNT) for span in revisions]
    return len(counts) == 1 and type(counts[0]) is int and counts[0] > 2 * spans + _FEW_OPEN


def _verify(spans: Sequence[Span]) -> VerifiedRun | None:
    try:
        return verify_run(spans)
    except (TraceIncomplete, NotFound):
        return None


def _role(span: Span) -> str:
    """Return the role, "" when it is no text."""
    role = span.attributes().get(ROLE)
    return role if type(role) is str else ""


def _rank(span: Span) -> int:
    """Return the revision of a revision span; above all of them for any other span, which belongs to no revision."""
    return revision_of(span.attributes()) if is_revision_span(span) else 2 * ROOT_REVISION


def _tenant_refusal(tenant: object, sender: str) -> str | None:
    return None if tenant == sender else f"the run is of tenant {tenant!r}, the sender of {sender!r}"


def _steps_refusal(steps: int, limits: Limits) -> str | None:
    if steps <= limits.max_steps:
        return None
    return f"it has {steps} steps, and this store takes {limits.max_steps} (serve --max-steps)"


def _revision_refusal(revision: int) -> str | None:
    return f"revision {revision} follows from no time of observation" if revision > MAX_REVISION else None


def _as_foreign(span: Span, resource: bytes | None) -> ForeignSpan:
    data = TracesData()
    resource_spans = data.resource_spans.add()
    if resource:
        resource_spans.resource.CopyFrom(Resource.FromString(resource))
    scope_spans = ScopeSpans.FromString(span_bytes(span))
    scope_spans.scope.name = span.scope
    resource_spans.scope_spans.append(scope_spans)
    return ForeignSpan(span.trace_id, span.span_id, data.SerializeToString(deterministic=True))


def _is_same_content(one: StoredRevision, other: StoredRevision) -> bool:
    """Return whether two revisions have the same document, and the same span ids of its steps."""
    return (one.run, one.tenant, one.time, one.step_ids) == (other.run, other.tenant, other.time, other.step_ids)


def _itself(revision: StoredRevision) -> StoredRevision:
    return revision


def _is_listed_as(one: StoredRevision, other: StoredRevision) -> bool:
    """Return whether lists have two revisions of a run at the same place, whatever they are filtered by."""
    return (one.time, one.run.status, one.run.workflow_id) == (other.time, other.run.status, other.run.workflow_id)


def _ranks_above(row: RunRow, stored: StoredRow) -> bool:
    """Return whether a row ranks above the stored one. Of two documents at one revision the later to arrive counts."""
    return row.revision > stored.revision or (row.revision == stored.revision and row.digest != stored.digest)


def _replacement(row: RunRow, stored: StoredRow) -> RunRow:
    """Return the row that replaces a stored one. At the same revision it keeps the digest of the stored document."""
    if row.revision != stored.revision:
        return row
    same = row.digest == stored.digest
    return row._replace(superseded=stored.superseded if same else queries.add_digest(stored.superseded, stored.digest))


def _with_conflict(row: RunRow, conflict: Sequence[str]) -> RunRow:
    """Return the row with the digests of other documents that arrived together with its own."""
    superseded = row.superseded
    for digest in conflict:
        superseded = queries.add_digest(superseded, bytes.fromhex(digest)[: len(row.digest)])
    return row._replace(superseded=superseded)
