"""The reader of OTLP protobuf requests, and the limits on what a request may hold; no I/O.

All ingestion goes through this module. It separates runspan's spans from foreign spans. For speed, loops bind the
methods they call, and the type of an attribute is looked up only if its value does not show it.

An empty span, attribute or container takes two bytes on the wire and a hundred in memory, so a few kilobytes of gzip
could take gigabytes. Therefore the spans are counted on the wire before parsing. If the body may consist of many tiny
fields, everything inside the spans is counted too. In JSON, the values are counted before parsing.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any, Final, NamedTuple

from google.protobuf.message import DecodeError
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, TracesData
from opentelemetry.proto.trace.v1.trace_pb2 import Span as WireSpan

from runspan.codec.fields import ROLE
from runspan.contracts import Rejection
from runspan.errors import PayloadError, PayloadTooLarge
from runspan.model.document import Run, parse_document
from runspan.model.span import Event, Link, Span, Value
from runspan.model.timestamps import LATEST_END_NS, MAX_NS

MAX_SPANS: Final = 100_000
"""Spans, ResourceSpans and ScopeSpans in one request. A larger request may have one for each ``SPAN_BYTES``, so that a
run of hundreds of thousands of steps fits one request."""
SPAN_BYTES: Final = 200
"""Less than the size of any span of runspan."""

MAX_PARTS: Final = 10_000
"""Attributes, events and links of one span, including the attributes of events and links. A larger span may have one
more for each ``PART_BYTES``, because a long document is split into many long attributes."""
PART_BYTES: Final = 100
MAX_REQUEST_PARTS: Final = 2_000_000
"""Fields inside the spans of a request; attributes, events and links count twice. A larger request may have one for
each ``REQUEST_PART_BYTES``."""
REQUEST_PART_BYTES: Final = 5
"""Less than the average size of a field in usual spans: a short attribute has four fields in 25 bytes."""

MAX_JSON_VALUES: Final = 2_000_000
"""Commas and opening brackets in OTLP/JSON outside of strings, since every value needs one of them. A larger request
may have one for each ``JSON_VALUE_BYTES``."""
JSON_VALUE_BYTES: Final = 16

_CHUNK_BYTES: Final = 1 << 20
_SMALL_BODY: Final = 2 * MAX_REQUEST_PARTS
"""Bytes of a body that is within the limits whatever its contents, since a field has at least two bytes."""
_FRAGMENT_BYTES: Final = 11
"""Usual requests have at most one message for so many bytes."""

_VARINT, _FIXED64, _BYTES, _GROUP, _GROUP_END, _FIXED32 = range(6)


def default_max_spans(size: int) -> int:
    """Return how many spans, ResourceSpans and ScopeSpans a request of ``size`` bytes may have."""
    return max(MAX_SPANS, size // SPAN_BYTES)


def check_protobuf(body: bytes, limit: int) -> None:
    """Raise PayloadTooLarge if a TracesData has more than ``limit`` spans, ResourceSpans and ScopeSpans, or too many
    fields for its size.

    Malformed input is not refused here, since the parser stops at the same position. Fields other than spans and their
    containers may be twice as many: a container has at most two, and skipping millions of empty ones takes seconds.
    """
    try:
        _count_spans(body, limit)
        if not is_small(body):
            _count_fields(body)
    except (IndexError, _Malformed):
        return


def is_small(body: bytes) -> bool:
    """Return whether the fields inside the spans of a request are within the limits, as far as it is easily known."""
    return len(body) <= _SMALL_BODY or not _is_fragmented(body)


def check_json_text(body: bytes) -> None:
    """Raise PayloadTooLarge if OTLP/JSON has too many values for its size.

    In malformed JSON the count is exact up to the error, where the parser stops too.
    """
    limit = max(MAX_JSON_VALUES, len(body) // JSON_VALUE_BYTES)
    if len(body) <= limit or _count_values(body) <= limit:
        return
    # Strings may contain JSON, so count again without them.
    unescaped, inside, count = body.replace(b"\\\\", b"").replace(b'\\"', b""), 0, 0
    for start in range(0, len(unescaped), _CHUNK_BYTES):
        parts = unescaped[start : start + _CHUNK_BYTES].split(b'"')
        count += _count_values(b"".join(parts[inside::2]))
        if count > limit:
            raise _too_large("values", f"at most {limit} in {len(body)} bytes of OTLP/JSON")
        inside ^= (len(parts) - 1) & 1


def _count_values(text: bytes) -> int:
    return text.count(b"{") + text.count(b"[") + text.count(b",")


def check_json(data: dict[str, Any], limit: int) -> None:
    """Raise PayloadTooLarge if OTLP/JSON has more than ``limit`` spans, ResourceSpans and ScopeSpans.

    Values of the wrong type are not refused here but by the parser.
    """
    count, level = 0, [data]
    for names in (("resourceSpans", "resource_spans"), ("scopeSpans", "scope_spans"), ("spans",)):
        lists = [items for parent in level for name in names if isinstance(items := parent.get(name), list)]
        count += sum(map(len, lists))
        if count > limit:
            raise _too_many_spans(limit)
        level = [item for items in lists for item in items if isinstance(item, dict)]


_PART_TAGS: Final = b"\x0a\x12\x1a\x4a\x5a\x6a\x00"
"""Every message inside a span has one of these bytes: its tag, or a zero, which is the length of an empty message and
the end of a tag or length that is longer than necessary."""
_RARE_TAGS: Final = b"\x22\x2a\x32"
"""The other tags of messages. These bytes are frequent in text, so they count only before a short length."""
_RARE: Final = bytes(1 if byte in _RARE_TAGS else 2 if byte < 32 else 0 for byte in range(256))


def _is_fragmented(body: bytes) -> bool:
    """Return whether the body may consist of messages of fewer than ``_FRAGMENT_BYTES`` on average."""
    limit = max(_SMALL_BODY // 4, len(body) // _FRAGMENT_BYTES)
    tags = len(body) - len(body.translate(None, _PART_TAGS))
    return tags > limit or tags + body.translate(_RARE).count(b"\x01\x02") > limit


_MESSAGES: Final[dict[str, dict[int, str]]] = {
    "TracesData": {0x0A: "ResourceSpans"},
    "ResourceSpans": {0x0A: "Resource", 0x12: "ScopeSpans"},
    "Resource": {0x0A: "KeyValue"},
    "ScopeSpans": {0x0A: "Scope", 0x12: "Span"},
    "Scope": {0x1A: "KeyValue"},
    "Span": {0x4A: "KeyValue", 0x5A: "Event", 0x6A: "Link"},
    "Event": {0x1A: "KeyValue"},
    "Link": {0x22: "KeyValue"},
    "KeyValue": {0x12: "AnyValue"},
    "AnyValue": {0x2A: "ArrayValue", 0x32: "KeyValueList"},
    "ArrayValue": {0x0A: "AnyValue"},
    "KeyValueList": {0x0A: "KeyValue"},
}
"""The fields of each message that are messages, by tag: https://github.com/open-telemetry/opentelemetry-proto"""
_CONTAINERS: Final[dict[str, dict[int, str]]] = {
    "TracesData": {0x0A: "ResourceSpans"},
    "ResourceSpans": {0x12: "ScopeSpans"},
    "ScopeSpans": {0x12: "Span"},
}
"""Those of the spans and the messages around them."""
_HEAVY: Final = frozenset({"KeyValue", "Event", "Link"})
"""Messages that take a hundred bytes of memory, twice as much as other fields."""


class _Malformed(Exception):
    """The bytes are not protobuf."""


def _count_fields(body: bytes) -> None:
    """Raise PayloadTooLarge if the body has too many fields for its size, see ``MAX_REQUEST_PARTS``."""
    limit, count = MAX_REQUEST_PARTS, 0
    for child, fields, position in _walk(body, _MESSAGES, limit):
        count += 2 if child in _HEAVY else fields
        if count > limit:
            limit = max(MAX_REQUEST_PARTS, position // REQUEST_PART_BYTES)
            if count > limit:
                expected = f"at most {limit} fields, since most of them are nearly empty"
                raise _too_large("attributes, events and links", expected)


def _count_spans(body: bytes, limit: int) -> None:
    """Raise PayloadTooLarge if the body has too many spans or other fields at their level and above."""
    count = others = 0
    for child, fields, _ in _walk(body, _CONTAINERS, 2 * limit):
        if child is None:
            others += fields
        else:
            count += 1
        if count > limit or others > 2 * limit:
            raise _too_many_spans(limit)


def _walk(
    body: bytes, messages: Mapping[str, Mapping[int, str]], max_skipped: int
) -> Iterator[tuple[str | None, int, int]]:
    """Yield the fields of a TracesData and of the messages in it: name, number of fields, and position behind the tag.

    Only the fields in ``messages`` have a name. A group counts as many fields, up to about ``max_skipped``.
    """
    outer: list[tuple[int, Mapping[int, str]]] = []
    end, fields, position = len(body), messages["TracesData"], 0
    while True:
        while position >= end:
            if position > end:
                raise _Malformed
            if not outer:
                return
            end, fields = outer.pop()
        tag, position = _varint(body, position)
        child = fields.get(tag)
        if child is None:
            position, skipped = _skip(body, position, tag, max_skipped)
            yield None, skipped, position
            continue
        size, position = _varint(body, position)
        if position + size > end:
            raise _Malformed
        yield child, 1, position
        if child in messages:
            outer.append((end, fields))
            end, fields = position + size, messages[child]
        else:
            position += size


def _skip(body: bytes, position: int, tag: int, allowed: int) -> tuple[int, int]:
    """Return the end of the field after ``tag`` and the number of fields, since a group contains fields.

    Stops inside a group after more than ``allowed`` fields.
    """
    depth, fields = 0, 0
    while True:
        fields += 1
        kind = tag & 7
        if kind == _VARINT:
            _, position = _varint(body, position)
        elif kind == _BYTES:
            size, position = _varint(body, position)
            position += size
        elif kind == _FIXED64:
            position += 8
        elif kind == _FIXED32:
            position += 4
        elif kind == _GROUP:
            depth += 1
        elif kind == _GROUP_END and depth:
            depth -= 1
        else:
            raise _Malformed
        if not depth or fields > allowed:
            return position, fields
        tag, position = _varint(body, position)


def _varint(body: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while (byte := body[position]) > 127:
        if shift == 63:
            raise _Malformed
        value |= (byte & 127) << shift
        shift += 7
        position += 1
    return value | byte << shift, position + 1


def _too_many_spans(limit: int) -> PayloadTooLarge:
    hint = "; push a run that is larger than a request to /api/v1/runs"
    return _too_large("spans", f"at most {limit} spans, including their resources and scopes", hint)


def _too_large(what: str, expected: str, hint: str = "") -> PayloadTooLarge:
    message = f"too many {what} in one request"
    return PayloadTooLarge(message, where="body", expected=expected, got="more", hint=f"send smaller requests{hint}")


@dataclass(frozen=True, slots=True)
class ForeignSpan:
    """A span made by other instrumentation, kept unchanged."""

    trace_id: bytes
    span_id: bytes
    otlp: bytes
    """A serialized ``opentelemetry.proto.trace.v1.TracesData`` of this span with its resource and scope."""


class ReceivedRun(NamedTuple):
    """A finished run whose spans were in one request, verified. Its revision span is the run span."""

    text: bytes
    """The document, which is plain."""
    summary: bytes
    """Its list item, see ``model.document.summary_text``."""
    run_id: str
    workflow_id: str | None
    status: str
    tenant: str
    trace_id: bytes
    digest: bytes
    """SHA-256 of the document."""
    packed_step_ids: bytes
    """The span ids of the steps in the order of the document, 8 bytes each."""
    has_content_ids: bool
    """Whether these are known to be the ids that ``encode`` assigns."""
    position: int
    """The start of the run span, in nanoseconds since 1970."""
    ended: int | None
    """The end of the run, in nanoseconds since 1970; None unless the document has it in the canonical form."""
    resource: bytes
    """The serialized Resource of its first span."""

    @property
    def run(self) -> Run:
        """The run, which is parsed each time."""
        return Run(*parse_document(self.text))

    @property
    def step_count(self) -> int:
        return len(self.packed_step_ids) // 8

    @property
    def step_ids(self) -> list[bytes]:
        """The span ids of the steps in the order of the document."""
        packed = self.packed_step_ids
        return [packed[start : start + 8] for start in range(0, len(packed), 8)]


@dataclass(slots=True)
class ParsedRequest:
    """The contents of a request."""

    spans: list[Span] = field(default_factory=list)
    """The spans with the attribute ``runspan.role``, except for those of ``runs``."""
    resources: dict[bytes, bytes] = field(default_factory=dict)
    """The serialized Resource of the first such span of each trace, by trace id."""
    foreign: list[ForeignSpan] = field(default_factory=list)
    rejected: list[Rejection] = field(default_factory=list)
    total: int = 0
    """The number of spans in the request, including rejected ones."""
    runs: list[ReceivedRun] = field(default_factory=list)
    """The runs that ``bulk_reader`` has read."""
    body: bytes = b""
    """The request, if it has such runs."""
    _by_trace: dict[bytes, list[Span]] = field(default_factory=dict)

    def spans_of(self, trace_id: bytes) -> list[Span]:
        """Return the spans of one of the ``runs``."""
        if not self._by_trace:
            for span in to_parsed_request(parse_traces_data(self.body)).spans:
                self._by_trace.setdefault(span.trace_id, []).append(span)
        return self._by_trace[trace_id]


NO_TRACE_ID = bytes(16)
NO_SPAN_ID = bytes(8)
MAX_REJECTIONS = 100
"""The number of spans of a request that are rejected one by one; one more rejection counts the others."""


def read_protobuf(body: bytes, without: Container[bytes] = ()) -> ParsedRequest:
    """Return the contents of an ExportTraceServiceRequest. ``without``: the ids of traces that are left out.

    Raises PayloadError if the body is not such a request and PayloadTooLarge if it exceeds a limit. A span with an
    invalid id, a time out of range, or too many attributes, events and links for its size is rejected alone.
    """
    return to_parsed_request(read_message(body), without)


def read_message(body: bytes) -> TracesData:
    """Return an ExportTraceServiceRequest as it is. Raises the errors of ``read_protobuf`` about the whole body."""
    check_protobuf(body, default_max_spans(len(body)))
    return parse_traces_data(body)


def read_own(span: WireSpan, scope: str) -> Span | None:
    """Return a span that has the attribute ``runspan.role``; None for a foreign span.

    Raises ValueError with the reason if ``read_protobuf`` would reject the span.
    """
    reason = _too_many_parts(span)
    pairs = [] if reason else _pairs(span)
    own = ROLE in map(itemgetter(0), pairs)
    reason = reason or _invalid(span, span.trace_id, span.span_id, own)
    if reason:
        raise ValueError(reason)
    return to_span(span, pairs, scope) if own else None


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


def to_parsed_request(data: TracesData, without: Container[bytes] = ()) -> ParsedRequest:
    """Return the contents of a message: runspan's spans, foreign spans and rejected spans.

    ``without``: the ids of traces that are left out.
    """
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
                if trace_id in without:
                    continue
                reason = _too_many_parts(span)
                pairs = [] if reason else _pairs(span)
                own = ROLE in map(itemgetter(0), pairs)
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
    if own and (span.start_time_unix_nano > MAX_NS or span.end_time_unix_nano > LATEST_END_NS):
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
    allowed = MAX_PARTS + span.ByteSize() // PART_BYTES
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
