"""Ingestion: received spans are decoded and compressed in the caller's thread, and stored in the writer's transaction.

The transaction that changes the stored state also reads it, so two writers never decide on the same state. Almost
always the request has all spans of a run; then a comparison decides which revision is newer. Otherwise the spans are
merged with the stored ones. The steps that only the older of two revisions has are kept as fragments: a revision span
that needs them may be on the way.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import ScopeSpans, TracesData

from runspan.backends.sqlite import queries
from runspan.backends.sqlite.compression import Compression
from runspan.backends.sqlite.queries import REVISION_ROLES, RunRow, StoredRow
from runspan.backends.sqlite.retention import Retention
from runspan.backends.sqlite.revision import (
    StoredRevision,
    first_revision,
    from_row,
    from_verified,
    is_exact_match,
    manifest_length,
    merge_fragments,
    next_revision,
    repeated_revision,
    revision_of,
    superseded_steps,
)
from runspan.backends.sqlite.writer import GroupWriter
from runspan.codec.decode import VerifiedRun, verify_run
from runspan.codec.fields import ROLE, ROLE_STEP, ROOT_REVISION, RUN_ID, TENANT, observed_time
from runspan.contracts import Rejection, WriteResult
from runspan.errors import NotFound, StoreError, TraceIncomplete
from runspan.model.document import Run, latest_time, sort_time
from runspan.model.span import Span, run_ids
from runspan.otlp.protobuf_reader import ForeignSpan, ParsedRequest
from runspan.otlp.protobuf_writer import span_bytes

_OWN_ROLES: Final = REVISION_ROLES | {ROLE_STEP}
"""The roles of the spans that a document is read from."""
_MAX_REVISION: Final = 2 * ROOT_REVISION - (1 << 32)
"""The highest revision accepted: it leaves room for later revisions in 64 bits."""


@dataclass(slots=True)
class _TraceSpans:
    """The own spans of one trace of a request."""

    trace_id: bytes
    spans: list[Span]
    resource: bytes | None
    row: RunRow | None = None
    """The row of the run, when the spans are exactly those of a complete run."""
    revision: StoredRevision | None = None
    """The same run as a revision."""


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
    compression: Compression
    retention: Retention
    clock: Callable[[], int]
    """Nanoseconds since 1970."""
    read: Callable[[sqlite3.Connection, StoredRow], StoredRevision]
    """Return the revision of a stored run. Raise StoreError when it is damaged."""

    # Documents.

    def put(self, run: Run, tenant: str, observed_at: int) -> WriteResult:
        """See ``contracts.TraceWriter.put``."""
        now = self.clock()
        document = self.compression.compress(run.text)
        revision, time = first_revision(run, observed_at), sort_time(run.envelope) or observed_at
        row = queries.run_row(run, tenant, revision, document, time=time, written_at=now)
        count = 1 + len(run.steps)
        reason = self.retention.refusal(row.ended)
        if reason:
            return WriteResult(0, (Rejection(f"run {run.id}", reason, count),))
        store = partial(self._store_document, run=run, row=row, tenant=tenant, observed_at=observed_at)
        return WriteResult(count, changed=self.writer.submit(store))

    def _store_document(
        self, connection: sqlite3.Connection, *, run: Run, row: RunRow, tenant: str, observed_at: int
    ) -> bool:
        """Return False if the document is stored already, or outdated."""
        trace_id, now = row.trace_id, row.written_at
        stored = queries.stored_run(connection, trace_id)
        has_fragments = queries.has_fragments(connection, trace_id, tenant)
        if stored is not None and stored.digest == row.digest:
            if not run.finished:
                revision = repeated_revision(stored.revision, observed_at)
                queries.update_observation(connection, trace_id, revision, observed_at, now)
                if has_fragments:
                    stored = queries.stored_run(connection, trace_id)
                    self._merge(connection, _Request(tenant, now), _TraceSpans(trace_id, [], None), stored, None)
            return False
        before = self._read_undamaged(connection, stored)
        if before is not None and _is_outdated(run, before):
            return False
        if stored is not None:
            revision = next_revision(stored.revision, run, observed_at)
            row = row._replace(
                revision=revision, observed_at=None if row.observed_at is None else observed_time(revision)
            )
        if stored is not None or has_fragments:
            newest = from_row(run, tenant, row.revision, None, row.time)
            if has_fragments:
                fragments = queries.fragments(connection, trace_id, tenant)
                # A revision span that arrived before this document and does not rank above it is never read.
                merged = merge_fragments(newest, [span for span in fragments if _rank(span) > row.revision])
                if merged.revision is not None and (merged.revision is not newest or merged.incomplete):
                    newest = merged.revision
                    row = _with_conflict(self._row(newest, now, merged.incomplete), merged.conflict)
                _replace_fragments(connection, fragments, merged.fragments, tenant, now)
            if before is not None:
                queries.insert_fragments(connection, superseded_steps(before, newest), tenant, now)
        queries.upsert_runs(connection, [row])
        return True

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
        rejected = [*received.rejected, *request.rejected]
        if request.traces or request.foreign:
            rejected += self.writer.submit(lambda connection: self._store_request(connection, request))
        return WriteResult(received.total - sum(item.spans for item in rejected), tuple(rejected))

    def _prepare(self, received: ParsedRequest, tenant: str) -> _Request:
        request = _Request(tenant, self.clock())
        traces: dict[bytes, list[Span]] = {}
        for span in received.spans:
            traces.setdefault(span.trace_id, []).append(span)
        for trace_id, spans in traces.items():
            self._prepare_trace(request, _TraceSpans(trace_id, spans, received.resources.get(trace_id)))
        for item in received.foreign:
            self._prepare_foreign(request, item)
        return request

    def _prepare_foreign(self, request: _Request, item: ForeignSpan) -> None:
        compressed = self.compression.compress(item.otlp)
        request.foreign.append(queries.foreign_row(item, request.tenant, request.now, compressed))

    def _prepare_trace(self, request: _Request, trace: _TraceSpans) -> None:
        verified = _verify(trace.spans)
        if verified is None or not is_exact_match(verified, trace.spans):
            # Attempts, and roles that a newer version of runspan may write, are stored like foreign spans.
            auxiliary = [span for span in trace.spans if _role(span) not in _OWN_ROLES]
            if auxiliary:
                for span in auxiliary:
                    self._prepare_foreign(request, _as_foreign(span, trace.resource))
                trace.spans = [span for span in trace.spans if _role(span) in _OWN_ROLES]
                verified = _verify(trace.spans)
        if not trace.spans:
            return
        if verified is not None and is_exact_match(verified, trace.spans):
            trace.revision = from_verified(verified)
            trace.row = self._row(trace.revision, request.now)
            reason = _tenant_refusal(verified.tenant, request.tenant) or _revision_refusal(verified.revision)
            reason = reason or self.retention.refusal(trace.row.ended)
        else:
            reason = _spans_refusal(trace.spans, request.tenant)
        if reason:
            what = f"trace {trace.trace_id.hex()}" if verified is None else f"run {verified.run.id}"
            request.rejected.append(Rejection(what, reason, len(trace.spans)))
        else:
            request.traces.append(trace)

    def _row(self, revision: StoredRevision, now: int, incomplete: tuple[str, ...] = ()) -> RunRow:
        return queries.run_row(
            revision.run,
            revision.tenant,
            revision.revision,
            self.compression.compress(revision.run.text),
            time=revision.time,
            written_at=now,
            step_ids=revision.packed_step_ids(),
            incomplete=incomplete,
        )

    def _store_request(self, connection: sqlite3.Connection, request: _Request) -> list[Rejection]:
        resource_ids: dict[bytes | None, int | None] = {None: None}
        rows: list[RunRow] = []
        rejected: list[Rejection] = []
        for trace in request.traces:
            stored = queries.stored_run(connection, trace.trace_id)
            row = None if queries.has_fragments(connection, trace.trace_id, request.tenant) else trace.row
            if row is not None and stored is not None and not self._supersedes(connection, request, trace, row, stored):
                continue
            if trace.resource is not None and trace.resource not in resource_ids:
                resource_ids[trace.resource] = queries.insert_resource(connection, trace.resource)
            resource_id = resource_ids[trace.resource]
            if row is not None:
                if stored is not None:
                    row = _replacement(row, stored)
                rows.append(row._replace(resource_id=resource_id))
            else:
                reason = self._merge(connection, request, trace, stored, resource_id)
                if reason:
                    rejected.append(Rejection(f"trace {trace.trace_id.hex()}", reason, len(trace.spans)))
        queries.upsert_runs(connection, rows)
        queries.insert_foreign(connection, request.foreign)
        return rejected

    def _supersedes(
        self, connection: sqlite3.Connection, request: _Request, trace: _TraceSpans, row: RunRow, stored: StoredRow
    ) -> bool:
        """Return whether a complete run supersedes the stored revision.

        Keep the steps that only the older of the two has, unless both are the same revision: then one corrects the
        other and is complete.
        """
        is_newer = _ranks_above(row, stored)
        is_same = row.digest == stored.digest and row.step_ids == stored.step_ids
        if is_same or row.revision == stored.revision or trace.revision is None:
            return is_newer
        before = self._read_undamaged(connection, stored)
        if before is not None:
            older, newer = (before, trace.revision) if is_newer else (trace.revision, before)
            queries.insert_fragments(connection, superseded_steps(older, newer), request.tenant, request.now)
        return is_newer

    def _merge(
        self,
        connection: sqlite3.Connection,
        request: _Request,
        trace: _TraceSpans,
        stored: StoredRow | None,
        resource_id: int | None,
    ) -> str | None:
        """Merge spans into a trace whose spans arrive in parts. Return the reason when its run is rejected."""
        trace_id, tenant, now = trace.trace_id, request.tenant, request.now
        # A sender that knows tenant and run id knows the trace id, so another tenant's spans are kept apart.
        is_other_tenant = stored is not None and stored.tenant != tenant
        if is_other_tenant or (stored is None and _is_too_short(connection, trace, tenant)):
            queries.insert_fragments(connection, trace.spans, tenant, now)
            return None
        base: StoredRevision | None = None
        superseded: Sequence[bytes] = ()
        if stored is not None:
            try:
                base = self.read(connection, stored)
            except StoreError as error:
                return f"the stored run cannot be read: {error}"
            superseded = queries.split_digests(stored.superseded)
        fragments = queries.fragments(connection, trace_id, tenant)
        newest, incomplete, waiting, conflict = merge_fragments(base, [*fragments, *trace.spans], superseded)
        if newest is not None:
            ended = queries.retention_start(newest.run.envelope, now)
            reason = self.retention.refusal(ended)
            if reason:
                queries.delete_fragments(connection, fragments, tenant)
                return reason
            if newest is not base:
                row = self._row(newest, now, incomplete)._replace(resource_id=resource_id)
                row = row if stored is None else _replacement(row, stored)
                queries.upsert_runs(connection, [_with_conflict(row, conflict)])
            elif stored is not None and incomplete != stored.incomplete:
                queries.update_incomplete(connection, trace_id, incomplete, ended, now)
        _replace_fragments(connection, fragments, waiting, tenant, now)
        return None


def _is_outdated(run: Run, stored: StoredRevision) -> bool:
    """Return whether an unfinished document is older than the stored end of its run, or what followed it.

    Over OTLP a revision of an unfinished run ranks below the end. A run that was reopened has a later time than its end
    had.
    """
    if run.finished or stored.revision < ROOT_REVISION:
        return False
    latest, stored_latest = latest_time(run.envelope), latest_time(stored.run.envelope)
    return latest < stored_latest or (latest == stored_latest and stored.run.finished)


def _verify(spans: Sequence[Span]) -> VerifiedRun | None:
    try:
        return verify_run(spans)
    except (TraceIncomplete, NotFound):
        return None


def _role(span: Span) -> str:
    """Return the role, "" when it is no text."""
    role = span.attributes().get(ROLE)
    return role if type(role) is str else ""


def _is_revision_span(span: Span) -> bool:
    return _role(span) in REVISION_ROLES


def _rank(span: Span) -> int:
    """Return the revision of a revision span; above all of them for any other span, which belongs to no revision."""
    return revision_of(span.attributes()) if _is_revision_span(span) else 2 * ROOT_REVISION


def _tenant_refusal(tenant: object, sender: str) -> str | None:
    return None if tenant == sender else f"the run is of tenant {tenant!r}, the sender of {sender!r}"


def _revision_refusal(revision: int) -> str | None:
    return f"revision {revision} follows from no time of observation" if revision > _MAX_REVISION else None


def _spans_refusal(spans: Sequence[Span], tenant: str) -> str | None:
    """Return why spans are rejected: a revision span among them is of another tenant, or of another trace id."""
    for span in spans:
        if not _is_revision_span(span):
            continue
        attributes = span.attributes()
        reason = _tenant_refusal(attributes.get(TENANT, ""), tenant) or _revision_refusal(revision_of(attributes))
        if reason:
            return reason
        run_id = attributes.get(RUN_ID)
        if type(run_id) is not str or run_ids(run_id, tenant).trace_id != span.trace_id:
            return f"its trace id does not follow from run id {run_id!r}"
    return None


def _as_foreign(span: Span, resource: bytes | None) -> ForeignSpan:
    data = TracesData()
    resource_spans = data.resource_spans.add()
    if resource:
        resource_spans.resource.CopyFrom(Resource.FromString(resource))
    scope_spans = ScopeSpans.FromString(span_bytes(span))
    scope_spans.scope.name = span.scope
    resource_spans.scope_spans.append(scope_spans)
    return ForeignSpan(span.trace_id, span.span_id, data.SerializeToString(deterministic=True))


def _is_too_short(connection: sqlite3.Connection, trace: _TraceSpans, tenant: str) -> bool:
    """Return whether no pending revision span could be completed by the stored fragments and these step spans."""
    if any(map(_is_revision_span, trace.spans)):
        return False
    count = queries.count_step_fragments(connection, trace.trace_id, tenant) + len(trace.spans)
    pending = queries.fragments(connection, trace.trace_id, tenant, only_revision_spans=True)
    return all(manifest_length(span) > count for span in pending)


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


def _replace_fragments(
    connection: sqlite3.Connection, before: Sequence[Span], after: Sequence[Span], tenant: str, now: int
) -> None:
    """Replace the fragments of a trace; those that stay keep their order and time of arrival."""
    before_ids, after_ids = {id(span) for span in before}, {id(span) for span in after}
    queries.delete_fragments(connection, [span for span in before if id(span) not in after_ids], tenant)
    queries.insert_fragments(connection, [span for span in after if id(span) not in before_ids], tenant, now)
