"""The reader of OTLP protobuf requests, which separates runspan's spans from foreign spans; no I/O.

All ingestion goes through this module. For speed, loops bind the methods they call, and the type of an attribute is
looked up only if its value does not show it.
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
    """A span made by other instrumentation, kept unchanged."""

    trace_id: bytes
    span_id: bytes
    otlp: bytes
    """A serialized ``opentelemetry.proto.trace.v1.TracesData`` of this span with its resource and scope."""


@dataclass(slots=True)
class ParsedRequest:
    """The contents of a request."""

    spans: list[Span] = field(default_factory=list)
    """The spans with the attribute ``runspan.role``."""
    resources: dict[bytes, bytes] = field(default_factory=dict)
    """The serialized Resource of the first such span of each trace, by trace id."""
    foreign: list[ForeignSpan] = field(default_factory=list)
    rejected: list[Rejection] = field(default_factory=list)
    total: int = 0
    """The number of spans in the request, including rejected ones."""


NO_TRACE_ID = bytes(16)
NO_SPAN_ID = bytes(8)
MAX_REJECTIONS = 100
"""The number of spans of a request that are rejected one by one; one more rejection counts the others."""


def read_protobuf(body: bytes, max_spans: int | None = None) -> ParsedRequest:
    """Return the contents of an ExportTraceServiceRequest.

    Raises PayloadError if the body is not such a request and PayloadTooLarge if it exceeds a limit. A span with an
    invalid id, a time out of range, or too many attributes, events and links for its size is rejected alone.
    ``max_spans`` defaults to ``limits.default_max_spans``.
    """
    check_protobuf(body, default_max_spans(len(body)) if max_spans is None else max_spans)
    return to_parsed_request(parse_traces_data(body))


def read_spans(body: bytes) -> list[Span]:
    """Return all spans of a TracesData or ExportTraceServiceRequest, including foreign spans. Raises PayloadError."""
    return all_spans(parse_traces_data(body))


def parse_traces_data(body: bytes) -> TracesData:
    """Return the message. TracesData and ExportTraceServiceRequest have the same fields and so the same bytes."""
    try:
        return TracesData.FromString(body)
    except DecodeError as error:
        raise PayloadError(
            "not readable",
            where="body",
            expected="a protobuf ExportTraceServiceRequest",
            got=f"{len(body)} bytes: {error}",
            hint="send OTLP with the Content-Type of its encoding",
        ) from None


def all_spans(data: TracesData) -> list[Span]:
    """Return all spans of a message, including foreign spans."""
    return [
        to_span(span, _pairs(span), scope_spans.scope.name)
        for resource_spans in data.resource_spans
        for scope_spans in resource_spans.scope_spans
        for span in scope_spans.spans
    ]


def to_parsed_request(data: TracesData) -> ParsedRequest:
    """Return the contents of a message: runspan's spans, foreign spans and rejected spans."""
    request, unlisted = ParsedRequest(), 0
    add_own, resources, add_foreign = request.spans.append, request.resources, request.foreign.append
    for resource_spans in data.resource_spans:
        resource: bytes | None = None
        for scope_spans in resource_spans.scope_spans:
            request.total += len(scope_spans.spans)
            scope = scope_spans.scope.name
            wrapper: _SpanWrapper | None = None
            for span in scope_spans.spans:
                trace_id, span_id = span.trace_id, span.span_id
                reason = _too_many_parts(span)
                pairs = [] if reason else _pairs(span)
                own = _is_own(pairs)
                reason = reason or _invalid(span, trace_id, span_id, own)
                if reason and len(request.rejected) == MAX_REJECTIONS:
                    unlisted += 1
                elif reason:
                    request.rejected.append(Rejection(f"trace {trace_id.hex()} span {span_id.hex()}", reason))
                elif own:
                    add_own(to_span(span, pairs, scope))
                    if trace_id not in resources:
                        if resource is None:
                            resource = resource_spans.resource.SerializeToString(deterministic=True)
                        resources[trace_id] = resource
                else:
                    if wrapper is None:
                        wrapper = _SpanWrapper(resource_spans, scope_spans)
                    add_foreign(ForeignSpan(trace_id, span_id, wrapper.wrap(span)))
    if unlisted:
        request.rejected.append(Rejection("further spans", "for similar reasons", unlisted))
    return request


def to_span(span: WireSpan, pairs: list[tuple[str, Value]], scope: str) -> Span:
    """Return the span of a protobuf span whose attributes are ``pairs``."""
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
        scope,
    )


def _is_own(pairs: list[tuple[str, Value]]) -> bool:
    for key, _ in pairs:  # noqa: SIM110  # any() would start a generator, and the role is among the first attributes
        if key == ROLE:
            return True
    return False


def _pairs(holder: Any) -> list[tuple[str, Value]]:
    """Return the attributes of a span, event or link. Most values are strings or integers other than zero."""
    return [
        (attribute.key, (value := attribute.value).string_value or value.int_value or _decode_value(value))
        for attribute in holder.attributes
    ]


def _decode_value(value: AnyValue) -> Value:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_decode_value(item) for item in value.array_value.values]
    if kind == "kvlist_value":
        return {item.key: _decode_value(item.value) for item in value.kvlist_value.values}
    if kind is None or kind == "string_value_strindex":
        return None  # string_value_strindex is an index into a table of profiles only
    decoded: Value = getattr(value, kind)
    return decoded


def _invalid(span: WireSpan, trace_id: bytes, span_id: bytes, own: bool) -> str:
    """Return why ids or times of a span are invalid, or an empty string."""
    if len(trace_id) != 16 or trace_id == NO_TRACE_ID:
        return f"trace id: expected 16 bytes, not all zero, got {len(trace_id)} bytes {trace_id[:20].hex()!r}"
    if len(span_id) != 8 or span_id == NO_SPAN_ID:
        return f"span id: expected 8 bytes, not all zero, got {len(span_id)} bytes {span_id[:20].hex()!r}"
    if len(span.parent_span_id) not in (0, 8):
        return f"parent span id: expected none or 8 bytes, got {len(span.parent_span_id)} bytes"
    if own and (span.start_time_unix_nano > MAX_NS or span.end_time_unix_nano > MAX_NS):
        return "start and end: expected times before 2262-04-12"
    return ""


def _too_many_parts(span: WireSpan) -> str:
    """Return why a span has too many attributes, events and links, or an empty string."""
    events, links = span.events, span.links
    count = len(span.attributes)
    if events or links:
        count += len(events) + len(links)
        count += sum([len(event.attributes) for event in events]) + sum([len(link.attributes) for link in links])
    if count <= MAX_PARTS:
        return ""
    allowed = allowed_parts(span.ByteSize())
    return "" if count <= allowed else f"attributes, events and links: expected at most {allowed}, got {count}"


class _SpanWrapper:
    """Wraps single spans of a scope in a TracesData with their resource and scope."""

    def __init__(self, resource_spans: ResourceSpans, scope_spans: ScopeSpans) -> None:
        self._data = TracesData()
        outer = self._data.resource_spans.add(schema_url=resource_spans.schema_url)
        if resource_spans.HasField("resource"):
            outer.resource.CopyFrom(resource_spans.resource)
        inner = outer.scope_spans.add(schema_url=scope_spans.schema_url)
        if scope_spans.HasField("scope"):
            inner.scope.CopyFrom(scope_spans.scope)
        self._span = inner.spans.add()

    def wrap(self, span: WireSpan) -> bytes:
        """Return the serialized TracesData of the span."""
        self._span.CopyFrom(span)
        return self._data.SerializeToString(deterministic=True)
