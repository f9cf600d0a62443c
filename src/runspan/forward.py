"""The forward use case: pass documents and spans on to a Collector before the backend that runs are read from.

Nothing is kept here, so what is acknowledged is what the Collector has acknowledged. A remote backend does not
check who sends a span, so spans are checked here: no sender can write a run of another tenant.
"""

from __future__ import annotations

import logging
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from threading import BoundedSemaphore, Lock
from typing import Final

from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, TracesData

from runspan.codec.decode import verify_run
from runspan.codec.encode import encode
from runspan.codec.fields import (
    DIGEST,
    REVISION,
    ROLE,
    ROLE_REVISION,
    ROLE_RUN,
    ROOT_REVISION,
    RUN_ID,
    TENANT,
    observed_time,
)
from runspan.codec.revisions import (
    MAX_REVISION,
    WrittenState,
    first_revision,
    is_outdated,
    next_revision,
    repeated_revision,
)
from runspan.contracts import Rejection, TraceReader, WriteResult
from runspan.delivery.config import ExporterConfig
from runspan.delivery.http_transport import HttpTransport
from runspan.delivery.transport import (
    Accepted,
    Batch,
    ExportResult,
    PartialSuccess,
    Rejected,
    RejectionScope,
    Retryable,
    RunSpans,
)
from runspan.errors import (
    BackendBusy,
    BackendError,
    BackendRefused,
    BackendTimeout,
    BackendUnreachable,
    NotFound,
    PayloadError,
    PayloadTooLarge,
    RunspanError,
    TraceIncomplete,
)
from runspan.model.document import Run, latest_time
from runspan.model.span import Span, run_ids
from runspan.otlp.bulk_writer import write_run
from runspan.otlp.env import Headers
from runspan.otlp.protobuf_reader import read_own
from runspan.otlp.protobuf_writer import Resource, scoped_bytes, single_spans

MAX_BYTES: Final = 2_900_000
"""Bytes of the spans in a request. A Collector acknowledges larger ones, and drops them when a backend's gRPC receiver
refuses more than 4 MiB."""
MAX_REQUEST: Final = 4 << 20
"""Bytes of a request that gRPC receivers take by default."""
_MERGED_BYTES: Final = 600_000
"""What a Collector may add to a request from others: ``min_size`` in otel-collector.yaml, and what is around it."""
CONCURRENCY: Final = 8
"""Requests in flight."""
PLACE_SECONDS: Final = 2.0
"""How long a request waits for one of these places, at most."""
_MAX_RECENT: Final = 10_000
"""Runs of which the newest revision that was acknowledged is remembered until it can surely be read back, and as many
of which one may have arrived."""
_LOCKS: Final = 256
_MAX_SHOWN: Final = 200
"""Characters of a value in a message."""
_BUSY: Final = (429, 503)
"""The statuses of a request that was not taken. After any other failure it may have been."""
_FRAME_BYTES: Final = 16
"""At most so many are around each message in a request."""

_log = logging.getLogger("runspan.forward")


@dataclass(frozen=True, slots=True)
class _Newest:
    """The newest revision of a run that is known: sent through here, or read from the backend."""

    revision: int
    digest: str
    """SHA-256 of its document, hex."""
    position: int
    """Where the run lies in time, in nanoseconds since 1970."""
    state: Callable[[], WrittenState]
    """Returns what its document says. Raises TraceIncomplete if that cannot be read."""


class Forwarder:
    """A writer over a remote backend. Thread-safe.

    Each call raises BackendBusy, BackendTimeout or BackendUnreachable if it may be repeated, and BackendRefused,
    PayloadError or PayloadTooLarge if the Collector refuses what was sent.

    reader: The backend that the Collector writes to.
    config: The Collector, over HTTP. Its timeout is that of one request.
    tenant_headers: Returns the headers for the backend's tenant of a tenant of runs.
    resource: The sender of pushed documents.
    max_request: Bytes of a request that the backend takes, at least ``MAX_REQUEST``. Larger spans are refused.
    """

    def __init__(
        self,
        reader: TraceReader,
        config: ExporterConfig,
        *,
        tenant_headers: Callable[[str], Headers] = lambda tenant: (),
        resource: Resource | None = None,
        concurrency: int = CONCURRENCY,
        max_request: int = MAX_REQUEST,
    ) -> None:
        self.name = f"the Collector at {config.display_url}"
        self._reader = reader
        self._config = config
        self._tenant_headers = tenant_headers
        self._resource = resource or Resource()
        self._max_request = max_request
        self._transport = HttpTransport(config, connections=concurrency)
        self._places = BoundedSemaphore(concurrency)
        self._recent: OrderedDict[bytes, _Newest] = OrderedDict()
        self._unanswered: OrderedDict[bytes, _Newest] = OrderedDict()
        """What may have arrived."""
        self._guard = Lock()
        self._locks = [Lock() for _ in range(_LOCKS)]

    def close(self) -> None:
        """Close the connections. Idempotent."""
        self._transport.close()

    # Documents.

    def put(self, run: Run, *, tenant: str = "", observed_at: int) -> WriteResult:
        """See ``contracts.TraceWriter.put``. The backend is read first, since what it has decides the revision.

        What was sent to another server a moment ago may not be readable yet. Of two ends of a run that were sent so,
        readers return one and report a conflict. Raises TraceIncomplete for an unfinished document whose run has an end
        that was forwarded over OTLP and cannot be read yet.
        """
        trace_id = run_ids(run.id, tenant).trace_id
        headers = self._tenant_headers(tenant)
        digest = sha256(run.text).hexdigest()
        with self._turn(trace_id):
            newest = self._newest(trace_id, run, tenant)
            ranked = _rank(run, digest, newest, observed_at)
            if ranked is None:
                return WriteResult(1 + len(run.steps), changed=False)
            encoded = _encode(run, tenant, *ranked)
            if encoded.size > self._max_part:
                for _, data, _ in single_spans(encoded.spans):
                    self._check_size(len(data), f"run {run.id}")
            batch = Batch(self._resource, (encoded,))
            with self._place():
                result = batch.send(lambda part: self._transport.send(part.body(), headers), MAX_BYTES)
            pushed = _pushed(run, digest, *ranked)
            if isinstance(result, Retryable) and result.status not in _BUSY:
                self._remember({trace_id: replace(pushed, state=_unknown_state)}, self._unanswered)
            rejected = self._rejected(result)
            if rejected:
                raise BackendRefused(
                    where=self.name,
                    expected=f"all {batch.spans} spans of run {run.id} accepted",
                    got=f"{rejected[0].spans} rejected: {rejected[0].reason}",
                )
            self._remember({trace_id: pushed}, self._recent)
        return WriteResult(batch.spans)

    @contextmanager
    def _turn(self, trace_id: bytes) -> Iterator[None]:
        """Let one push at a time decide on the revision of a run, and of few others."""
        lock = self._locks[trace_id[0] % _LOCKS]
        if not lock.acquire(timeout=PLACE_SECONDS):
            raise BackendBusy("another revision of the run is being sent", where=self.name, retry_after=1)
        try:
            yield
        finally:
            lock.release()

    def _newest(self, trace_id: bytes, run: Run, tenant: str) -> _Newest | None:
        """Return the newest revision: what was sent through here may not be readable yet.

        An end is ranked above what may have arrived too. An unfinished document need not wait for that.
        """
        with self._guard:
            recent = self._recent.get(trace_id)
            unanswered = self._unanswered.get(trace_id) if run.finished else None
        return max(filter(None, (recent, unanswered, self._read_newest(run.id, tenant))), key=_order, default=None)

    def _read_newest(self, run_id: str, tenant: str) -> _Newest | None:
        try:
            spans = self._reader.run_spans(run_id, tenant)
        except NotFound:
            return None
        state = partial(_stored_state, spans)
        return max(filter(None, (_newest_of(span, state) for span in spans)), key=_order, default=None)

    def _remember(self, sent: Mapping[bytes, _Newest], memory: OrderedDict[bytes, _Newest]) -> None:
        """Remember revisions by trace id, where they are the newest."""
        with self._guard:
            for trace_id, newest in sent.items():
                before = memory.get(trace_id)
                memory[trace_id] = newest if before is None else max(newest, before, key=_order)
                memory.move_to_end(trace_id)
            while len(memory) > _MAX_RECENT:
                memory.popitem(last=False)

    # OTLP.

    def write(
        self,
        request: TracesData,
        tenant: str,
        headers: Headers = (),
        charged: Callable[[Collection[bytes]], AbstractContextManager[object]] = nullcontext,
    ) -> WriteResult:
        """Forward the spans of an OTLP request, each of which is accepted or rejected by itself.

        What the Collector rejects is in the result too; it does not say which spans these are.

        - ``headers``: those of the request that the Collector is to see.
        - ``charged``: returns what to hold while spans of the runs with these trace ids are sent.
        """
        headers = (*self._tenant_headers(tenant), *headers)
        total, rejected, runs = _take_refused(request, tenant)
        parts = list(_parts(request, MAX_BYTES))
        for part in parts:
            self._check_size(len(part))
        if parts:
            refused = len(rejected)
            with charged(runs), self._place():
                for part in parts:
                    rejected += self._rejected(self._transport.send(part, headers))
            if len(rejected) == refused:
                acknowledged = {trace_id: newest for trace_id, newest in runs.items() if newest is not None}
                self._remember(acknowledged, self._recent)
        return WriteResult(total - sum(item.spans for item in rejected), tuple(rejected))

    @property
    def _max_part(self) -> int:
        return self._max_request - _MERGED_BYTES

    def _check_size(self, size: int, where: str = "") -> None:
        """Raise PayloadTooLarge for a span, or for a part of one span, that a backend may refuse."""
        if size > self._max_part:
            raise PayloadTooLarge(
                "a span is too large for the backend, which would refuse it after the Collector has acknowledged it",
                where=where,
                expected=f"at most {self._max_part} bytes in a span, since the backend takes requests of "
                f"{self._max_request} bytes and the Collector may add to them",
                got=f"{size} bytes",
                hint="send shorter payloads; or the operator raises max_recv_msg_size_mib of the backend's OTLP "
                "receiver, and then --max-forwarded of this server",
            )

    @contextmanager
    def _place(self) -> Iterator[None]:
        if not self._places.acquire(timeout=min(PLACE_SECONDS, self._config.timeout)):
            raise BackendBusy("too many requests are being forwarded", where=self.name, retry_after=1)
        try:
            yield
        finally:
            self._places.release()

    def _rejected(self, result: ExportResult) -> list[Rejection]:
        """Return what the Collector rejected of an accepted request. Raise the error of another result."""
        match result:
            case Accepted():
                return []
            case PartialSuccess(spans, message):
                return [Rejection(self.name, message, spans)]
            case Retryable(reason, delay, status, timed_out):
                raise self._retryable(reason, delay, status, timed_out)
            case Rejected(reason, scope):
                raise self._refused(reason, scope)

    def _retryable(self, reason: str, delay: float | None, status: int | None, timed_out: bool) -> BackendError:
        if status in _BUSY:
            return BackendBusy(reason, where=self.name, retry_after=delay, hint="retry later")
        expected = "a response" if status is not None else f"a response within {self._config.timeout:g} seconds"
        if timed_out:
            hint = "it may have accepted the request: to send it again changes nothing"
            return BackendTimeout(where=self.name, expected=expected, got=reason, hint=hint)
        hint = "nothing was acknowledged: retry once it is back"
        return BackendUnreachable(where=self.name, expected=expected, got=reason, hint=hint, retry_after=delay)

    def _refused(self, reason: str, scope: RejectionScope) -> RunspanError:
        if scope is RejectionScope.SIZE:
            return PayloadTooLarge(f"{self.name} refuses so large a request", got=reason, hint="send it in parts")
        if scope is RejectionScope.RUNS:
            return PayloadError(f"{self.name} refuses the request", got=reason)
        error = BackendRefused(where=self.name, expected="the request accepted", got=reason)
        if scope is RejectionScope.REQUEST:
            return error
        # Not the fault of the sender, who is to keep what was not taken until this is set right.
        _log.error("%s", error)
        hint = "the operator of this server has to check --forward-to and the headers of OTEL_EXPORTER_OTLP_HEADERS"
        return BackendUnreachable(where=self.name, expected="an OTLP receiver for this server", got=reason, hint=hint)


def _pushed(run: Run, digest: str, revision: int, position: int) -> _Newest:
    state = WrittenState(revision, latest_time(run.envelope), run.finished)
    return _Newest(revision, digest, position, lambda: state)


def _newest_of(span: Span, state: Callable[[], WrittenState]) -> _Newest | None:
    """Return what a revision span says of its run, None for any other span. state: see ``_Newest``."""
    revision = _revision_of(span)
    return None if revision is None else _Newest(revision, str(span.attributes().get(DIGEST)), span.start, state)


def _order(newest: _Newest) -> tuple[int, bool, str]:
    """Return what is highest for the newest revision, and for the one of two ends that ``verify_run`` returns."""
    return newest.revision, newest.state not in (_unread_state, _unknown_state), newest.digest


def _rank(run: Run, digest: str, newest: _Newest | None, observed_at: int) -> tuple[int, int] | None:
    """Return the revision of a document, and where the run lies if it has no time; None if the document is outdated.

    digest: SHA-256 of its text, hex.
    """
    if newest is None:
        return first_revision(run, observed_at), observed_at
    if newest.digest == digest:
        revision = newest.revision if run.finished else repeated_revision(newest.revision, observed_at)
        return revision, newest.position
    if not run.finished and newest.revision >= ROOT_REVISION and is_outdated(run, newest.state()):
        return None
    return next_revision(newest.revision, run, observed_at), observed_at


def _encode(run: Run, tenant: str, revision: int, position: int) -> RunSpans:
    if revision == ROOT_REVISION:
        return RunSpans.of(run.id, write_run(run, tenant=tenant, observed_at=position))
    spans = encode(run, tenant=tenant, observed_at=observed_time(revision), after_root=revision > ROOT_REVISION)
    return RunSpans.of(run.id, [scoped_bytes(span) for span in spans])


def _unread_state() -> WrittenState:
    raise TraceIncomplete(
        "the end of the run was forwarded and cannot be read yet, so an unfinished document cannot be ranked",
        hint="retry later",
    )


def _unknown_state() -> WrittenState:
    raise AssertionError("only a document with an end is ranked above what may not have arrived")


def _stored_state(spans: list[Span]) -> WrittenState:
    verified = verify_run(spans)
    if verified.incomplete:
        raise TraceIncomplete(
            "the newest revision of the run cannot be read yet, so another one cannot be ranked",
            where=f"run {verified.run.id}",
            missing=verified.incomplete,
            hint="retry later",
        )
    return WrittenState(verified.revision, latest_time(verified.run.envelope), verified.run.finished)


def _revision_of(span: Span) -> int | None:
    """Return the revision of a revision span, None of any other span."""
    attributes = span.attributes()
    role = attributes.get(ROLE)
    if role == ROLE_RUN:
        return ROOT_REVISION
    revision = attributes.get(REVISION)
    return revision if role == ROLE_REVISION and type(revision) is int else None


def _take_refused(request: TracesData, tenant: str) -> tuple[int, list[Rejection], dict[bytes, _Newest | None]]:
    """Remove from a request what must not reach the backend. Return how many spans it had, what was removed, and the
    runs that are left by trace id: the newest revision that is sent of each, None if that is steps alone.

    The last reason that applies to a trace stands for all of its spans: that of the run span says most.
    """
    total = 0
    reasons: dict[bytes, str] = {}
    counts: Counter[bytes] = Counter()
    trace_ids: dict[str, bytes] = {}
    runs: dict[bytes, _Newest | None] = {}
    for resource_spans in request.resource_spans:
        for scope_spans in resource_spans.scope_spans:
            total += len(scope_spans.spans)
            kept = []
            for span in scope_spans.spans:
                try:
                    own = read_own(span, scope_spans.scope.name)
                    reason = "" if own is None else _refusal(own, tenant, trace_ids)
                except ValueError as error:
                    reason = str(error)
                if reason:
                    reasons[span.trace_id] = reason
                    counts[span.trace_id] += 1
                else:
                    kept.append(span)
                    if own is not None:
                        found = [runs.get(own.trace_id), _newest_of(own, _unread_state)]
                        runs[own.trace_id] = max(filter(None, found), key=_order, default=None)
            if len(kept) < len(scope_spans.spans):
                copies = ScopeSpans(spans=kept)
                del scope_spans.spans[:]
                scope_spans.spans.extend(copies.spans)
    rejected = [Rejection(f"trace {key.hex()}", reason, counts[key]) for key, reason in reasons.items()]
    return total, rejected, runs


def _refusal(span: Span, tenant: str, trace_ids: dict[str, bytes]) -> str:
    """Return why a span of runspan is not of the sender's tenant, or leaves no room for a correction; else "".

    ``trace_ids``: those of the runs that were seen before, by run id.
    """
    attributes = span.attributes()
    owner, run_id = attributes.get(TENANT, ""), attributes.get(RUN_ID)
    revision = _revision_of(span)
    if revision is not None and owner != tenant:
        return f"the run is of tenant {_shown(owner)}, the sender of {tenant!r}"
    if revision is not None and revision > MAX_REVISION:
        return f"revision {revision} follows from no time of observation"
    if isinstance(run_id, str):
        if run_id not in trace_ids:
            trace_ids[run_id] = run_ids(run_id, tenant).trace_id
        if trace_ids[run_id] == span.trace_id:
            return ""
    return f"its trace id does not follow from run id {_shown(run_id)}"


def _shown(value: object) -> str:
    """Return the start of what a sender has chosen, for a message."""
    return repr(value[:_MAX_SHOWN] if isinstance(value, str) else value)[:_MAX_SHOWN]


def _parts(request: TracesData, max_bytes: int) -> Iterator[bytes]:
    """Yield a request that is not empty in parts of about so many bytes, with the spans in their order.

    A part is larger if a single span is. Raises PayloadTooLarge if resources or scopes leave little room for spans.
    """
    if request.ByteSize() <= max_bytes:
        if any(scope.spans for resource in request.resource_spans for scope in resource.scope_spans):
            yield request.SerializeToString()
        return
    part = TracesData()
    size = 0
    for resource_spans in request.resource_spans:
        outer: ResourceSpans | None = None
        of_resource = _size_without(resource_spans, "scope_spans")
        for scope_spans in resource_spans.scope_spans:
            inner: ScopeSpans | None = None
            of_scope = _size_without(scope_spans, "spans")
            if scope_spans.spans and of_resource + of_scope > max_bytes // 2:  # each part has them
                raise PayloadTooLarge(
                    "a large request is forwarded in parts, each with the resource and the scope of its spans",
                    expected=f"at most {max_bytes // 2} bytes of resource and scope",
                    got=f"{of_resource + of_scope} bytes",
                    hint="send fewer spans at once, or shorter attributes of the resource",
                )
            for span in scope_spans.spans:
                added = span.ByteSize() + _FRAME_BYTES
                around = (of_scope if inner is None else 0) + (of_resource if outer is None else 0)
                if size and size + around + added > max_bytes:
                    yield part.SerializeToString()
                    part, size, outer, inner = TracesData(), 0, None, None
                    around = of_scope + of_resource
                if outer is None:
                    outer = part.resource_spans.add(schema_url=resource_spans.schema_url)
                    outer.resource.CopyFrom(resource_spans.resource)
                if inner is None:
                    inner = outer.scope_spans.add(schema_url=scope_spans.schema_url)
                    inner.scope.CopyFrom(scope_spans.scope)
                inner.spans.append(span)
                size += around + added
    if size:
        yield part.SerializeToString()


def _size_without(message: ResourceSpans | ScopeSpans, field: str) -> int:
    """Return about how many bytes a message has besides those of a field."""
    inside: int = sum(item.ByteSize() for item in getattr(message, field))
    return _FRAME_BYTES + message.ByteSize() - inside
