"""OTLP requests as protobuf, read: runspan's own spans apart from everybody else's; no I/O.

The store's ingest goes through here, so loops bind what they call, and an attribute's type is only asked for when
its value does not already tell it.

What an OTLP request holds, sorted: runspan's own spans, everybody else's, and what is refused; no I/O.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from google.protobuf.message import DecodeError
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, TracesData
from opentelemetry.proto.trace.v1.trace_pb2 import Span as WireSpan

from runspan.codec.fields import ROLE
from runspan.contracts import Rejection
from runspan.errors import PayloadError
from runspan.model.span import Event, Link, Span, Value
from runspan.model.timestamps import MAX_NS
from runspan.otlp.limits import MAX_PARTS, allowed_parts, check_protobuf, default_max_spans


@dataclass(frozen=True, slots=True)
class ForeignSpan:
    """A span that is not runspan's, kept as it came.

    otlp: a serialized ``opentelemetry.proto.trace.v1.TracesData`` of this one span with its resource and scope.
    """

    trace_id: bytes
    span_id: bytes
    otlp: bytes


@dataclass(slots=True)
class ParsedRequest:
    """spans: those with the attribute ``runspan.role``. resources: per trace of theirs, the serialized Resource.

    total: how many spans the request held, rejected ones included.
    """

    spans: list[Span] = field(default_factory=list)
    resources: dict[bytes, bytes] = field(default_factory=dict)
    foreign: list[ForeignSpan] = field(default_factory=list)
    rejected: list[Rejection] = field(default_factory=list)
    total: int = 0


NO_TRACE_ID = bytes(16)
NO_SPAN_ID = bytes(8)
MAX_NAMED = 100
"""So many refused spans of a request get a rejection each; one more counts the rest."""


def read_protobuf(body: bytes, max_spans: int | None = None) -> ParsedRequest:
    """The spans of an ExportTraceServiceRequest, sorted. PayloadError when the body is none, or holds too many.

    A span that cannot be placed (an id of the wrong length or all zero, a time that no store can hold), or that has
    more attributes, events and links than its size explains, is rejected alone; the others of the request are taken.

    max_spans: without it ``limits.default_max_spans``.
    """
    check_protobuf(body, default_max_spans(len(body)) if max_spans is None else max_spans)
    return sort_spans(parse(body))


def read_spans(body: bytes) -> list[Span]:
    """Every span of a TracesData or an ExportTraceServiceRequest, whoever made it. PayloadError when it is none."""
    return all_spans(parse(body))


def parse(body: bytes) -> TracesData:
    """The message. TracesData and ExportTraceServiceRequest have the same fields, and so the same bytes."""
    try:
        return TracesData.FromString(body)
    except DecodeError as error:
        raise PayloadError(
            "not readable",
            where="body",
            expected="a protobuf ExportTraceServiceRequest",
            got=f"{len(body)} bytes: {error}",
            hint="send OTLP, and name its encoding in Content-Type",
        ) from None


def all_spans(data: TracesData) -> list[Span]:
    """Every span of a parsed message, whoever made it."""
    return [
        to_span(span, _pairs(span))
        for resource_spans in data.resource_spans
        for scope_spans in resource_spans.scope_spans
        for span in scope_spans.spans
    ]


def sort_spans(data: TracesData) -> ParsedRequest:
    """What a parsed request holds: runspan's own spans, everybody else's, and what is refused."""
    received, unnamed = ParsedRequest(), 0
    take, resources, keep = received.spans.append, received.resources, received.foreign.append
    for resource_spans in data.resource_spans:
        resource: bytes | None = None
        for scope_spans in resource_spans.scope_spans:
            received.total += len(scope_spans.spans)
            envelope: _Envelope | None = None
            for span in scope_spans.spans:
                trace_id, span_id = span.trace_id, span.span_id
                reason = _parts_refusal(span)
                pairs = [] if reason else _pairs(span)
                own = _is_own(pairs)
                reason = reason or _refusal(span, trace_id, span_id, own)
                if reason and len(received.rejected) == MAX_NAMED:
                    unnamed += 1
                elif reason:
                    received.rejected.append(Rejection(f"trace {trace_id.hex()} span {span_id.hex()}", reason))
                elif own:
                    take(to_span(span, pairs))
                    if trace_id not in resources:
                        if resource is None:
                            resource = resource_spans.resource.SerializeToString(deterministic=True)
                        resources[trace_id] = resource
                else:
                    if envelope is None:
                        envelope = _Envelope(resource_spans, scope_spans)
                    keep(ForeignSpan(trace_id, span_id, envelope.around(span)))
    if unnamed:
        received.rejected.append(Rejection("further spans", "for such reasons too", unnamed))
    return received


def to_span(span: WireSpan, pairs: list[tuple[str, Value]]) -> Span:
    """The neutral record of a protobuf span. pairs: its attributes, read."""
    parent_id, code, message = span.parent_span_id, 0, ""
    if span.HasField("status"):
        status = span.status
        code, message = status.code, status.message
    events, links = span.events, span.links
    return Span(
        span.trace_id,
        span.span_id,
        b"" if parent_id == NO_SPAN_ID else parent_id,
        span.name,
        span.kind,
        span.start_time_unix_nano,
        span.end_time_unix_nano,
        code,
        message,
        (),
        pairs,
        tuple([Event(event.name, event.time_unix_nano, tuple(_pairs(event))) for event in events]) if events else (),
        tuple([Link(link.trace_id, link.span_id, tuple(_pairs(link))) for link in links]) if links else (),
    )


def _is_own(pairs: list[tuple[str, Value]]) -> bool:
    for key, _ in pairs:  # noqa: SIM110  # any() would start a generator, and an own span's role stands near the front
        if key == ROLE:
            return True
    return False


def _pairs(holder: Any) -> list[tuple[str, Value]]:
    """The attributes of a span, event or link. Most values are text or a number that is not zero."""
    return [
        (attribute.key, (value := attribute.value).string_value or value.int_value or _plain(value))
        for attribute in holder.attributes
    ]


def _plain(value: AnyValue) -> Value:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_plain(item) for item in value.array_value.values]
    if kind == "kvlist_value":
        return {item.key: _plain(item.value) for item in value.kvlist_value.values}
    if kind is None or kind == "string_value_strindex":
        return None  # an index into a table that only profiles have
    read: Value = getattr(value, kind)
    return read


def _refusal(span: WireSpan, trace_id: bytes, span_id: bytes, own: bool) -> str:
    """Why this span is not taken; empty when it is."""
    if len(trace_id) != 16 or trace_id == NO_TRACE_ID:
        return f"trace id: expected 16 bytes, not all zero, got {len(trace_id)} bytes {trace_id[:20].hex()!r}"
    if len(span_id) != 8 or span_id == NO_SPAN_ID:
        return f"span id: expected 8 bytes, not all zero, got {len(span_id)} bytes {span_id[:20].hex()!r}"
    if len(span.parent_span_id) not in (0, 8):
        return f"parent span id: expected none or 8 bytes, got {len(span.parent_span_id)} bytes"
    if own and (span.start_time_unix_nano > MAX_NS or span.end_time_unix_nano > MAX_NS):
        return "start and end: expected times before 2262-04-12"
    return ""


def _parts_refusal(span: WireSpan) -> str:
    """Why nothing is made of what the span holds; empty when all of it is read."""
    events, links = span.events, span.links
    count = len(span.attributes)
    if events or links:
        count += len(events) + len(links)
        count += sum([len(event.attributes) for event in events]) + sum([len(link.attributes) for link in links])
    if count <= MAX_PARTS:
        return ""
    allowed = allowed_parts(span.ByteSize())
    return "" if count <= allowed else f"attributes, events and links: expected at most {allowed}, got {count}"


class _Envelope:
    """Puts a span of one scope into a TracesData of its own, with its resource and scope."""

    def __init__(self, resource_spans: ResourceSpans, scope_spans: ScopeSpans) -> None:
        self._data = TracesData()
        outer = self._data.resource_spans.add(schema_url=resource_spans.schema_url)
        if resource_spans.HasField("resource"):
            outer.resource.CopyFrom(resource_spans.resource)
        inner = outer.scope_spans.add(schema_url=scope_spans.schema_url)
        if scope_spans.HasField("scope"):
            inner.scope.CopyFrom(scope_spans.scope)
        self._slot = inner.spans.add()

    def around(self, span: WireSpan) -> bytes:
        self._slot.CopyFrom(span)
        return self._data.SerializeToString(deterministic=True)
