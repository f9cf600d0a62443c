"""The writer of OTLP protobuf requests, part of the hot path of the exporter; no I/O.

The tags are those of ``opentelemetry/proto/trace/v1/trace.proto``; the tests compare with ``opentelemetry-proto``. The
writer is fast because it encodes nothing twice: shared attributes are encoded once, and the bytes before a string are
cached by its key and length.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from struct import Struct
from typing import Final

from msgspec import Raw

from runspan._version import __version__
from runspan.codec.attributes import SpanTemplate
from runspan.model.span import Attributes, Event, Link, Span, Value

SCOPE_NAME: Final = "runspan"

times_bytes = Struct("<BQBQ").pack
_DOUBLE = Struct("<d").pack
_TIME = Struct("<BQ").pack
START_TAG, END_TAG, _EVENT_TIME_TAG = 0x39, 0x41, 0x09
TRACE_ID, SPAN_ID, PARENT_ID, SPANS = b"\x0a\x10", b"\x12\x08", b"\x22\x08", b"\x12"
FLAGS = b"\x85\x01\x00\x01\x00\x00"
"""``flags`` = 0x100: the parent is known not to be remote. The SDK writes the same."""

_BITS: Final = 0xFFFF_FFFF_FFFF_FFFF
"""Negative integers are written in 64-bit two's complement."""


@lru_cache(maxsize=1 << 14)
def varint(number: int) -> bytes:
    """Return a non-negative integer as a protobuf varint."""
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)


def _delimited(tag: bytes, content: bytes) -> bytes:
    return b"".join((tag, varint(len(content)), content))


def _text(tag: bytes, text: str) -> bytes:
    return _delimited(tag, text.encode()) if text else b""


# KeyValue and AnyValue (common.proto). ``field_tag`` is the tag of the repeated field that contains the KeyValue.

IN_SPAN, _IN_EVENT, _IN_LINK, _IN_RESOURCE, _IN_LIST = b"\x4a", b"\x1a", b"\x22", b"\x0a", b"\x0a"


@lru_cache(maxsize=1 << 15)
def string_prefix(field_tag: bytes, key: str, length: int) -> bytes:
    """Return all bytes of an attribute before a string value of this length."""
    return _prefix(field_tag, key, b"\x0a" + varint(length), length)


@lru_cache(maxsize=1 << 10)
def _integer_prefix(field_tag: bytes, key: str, length: int) -> bytes:
    """Return all bytes of an attribute before an integer of this length as varint."""
    return _prefix(field_tag, key, b"\x18", length)


@lru_cache(maxsize=1 << 8)
def _double_prefix(field_tag: bytes, key: str) -> bytes:
    """Return all bytes of an attribute before the eight of a double."""
    return _prefix(field_tag, key, b"\x21", 8)


def _prefix(field_tag: bytes, key: str, any_value: bytes, length: int) -> bytes:
    """Return all bytes of an attribute before the last ones of its value, of which ``any_value`` are the first."""
    middle = _delimited(b"\x0a", key.encode()) + b"\x12" + varint(len(any_value) + length) + any_value
    return field_tag + varint(len(middle) + length) + middle


def integer_bytes(field_tag: bytes, key: str, number: int) -> bytes:
    """Return an attribute with a 64-bit integer."""
    digits = varint(number & _BITS)
    return _integer_prefix(field_tag, key, len(digits)) + digits


def _any(value: Value) -> bytes:
    """Return the content of an AnyValue."""
    if isinstance(value, str):
        return _delimited(b"\x0a", value.encode())
    if isinstance(value, Raw):
        return _delimited(b"\x0a", bytes(value))
    if isinstance(value, bool):
        return b"\x10\x01" if value else b"\x10\x00"
    if isinstance(value, int):
        return b"\x18" + varint(value & _BITS)
    if isinstance(value, float):
        return b"\x21" + _DOUBLE(value)
    if isinstance(value, bytes):
        return _delimited(b"\x3a", value)
    if isinstance(value, list):
        return _delimited(b"\x2a", b"".join([_delimited(_IN_LIST, _any(item)) for item in value]))
    if isinstance(value, Mapping):
        return _delimited(b"\x32", b"".join([attribute_bytes(key, item, _IN_LIST) for key, item in value.items()]))
    return b""


def shared_bytes(group: Attributes) -> bytes:
    """Return the bytes of shared attributes, and cache them."""
    wire = group.wire
    if wire is None:
        wire = group.wire = attributes_bytes(group.pairs)
    return wire


def attributes_bytes(pairs: Iterable[tuple[str, Value]]) -> bytes:
    """Return attributes of a span in order."""
    return b"".join([attribute_bytes(key, value) for key, value in pairs])


def attribute_bytes(key: str, value: Value, field_tag: bytes = IN_SPAN) -> bytes:
    """Return an attribute, by default of a span."""
    kind = type(value)
    if kind is str:
        text = value.encode()  # type: ignore[union-attr]
    elif kind is Raw:
        text = bytes(value)  # type: ignore[arg-type]
    elif kind is int:
        return integer_bytes(field_tag, key, value)  # type: ignore[arg-type]
    elif kind is float:
        return _double_prefix(field_tag, key) + _DOUBLE(value)
    else:
        return _delimited(field_tag, _delimited(b"\x0a", key.encode()) + _delimited(b"\x12", _any(value)))
    return string_prefix(field_tag, key, len(text)) + text


# Events, links, spans (trace.proto).


def _event(event: Event) -> bytes:
    parts = [_TIME(_EVENT_TIME_TAG, event.time), _text(b"\x12", event.name)]
    parts += [attribute_bytes(key, value, _IN_EVENT) for key, value in event.attributes]
    return _delimited(b"\x5a", b"".join(parts))


def _link(link: Link) -> bytes:
    parts = [_delimited(b"\x0a", link.trace_id), _delimited(b"\x12", link.span_id)]
    parts += [attribute_bytes(key, value, _IN_LINK) for key, value in link.attributes]
    return _delimited(b"\x6a", b"".join((*parts, b"\x35\x00\x01\x00\x00")))


def _name_and_kind(name: str, kind: int) -> bytes:
    return _text(b"\x2a", name) + (b"\x30" + varint(kind & _BITS) if kind else b"")


def _status(code: int, message: str) -> bytes:
    return _delimited(b"\x7a", _text(b"\x12", message) + (b"\x18" + varint(code & _BITS) if code else b""))


PLAIN_END: Final = _status(0, "") + FLAGS


def span_bytes(span: Span) -> bytes:
    """Return a span with tag and length, as an element of ``ScopeSpans.spans``."""
    parent = span.parent_id
    parts = [
        TRACE_ID,
        span.trace_id,
        SPAN_ID,
        span.span_id,
        PARENT_ID + parent if parent else b"",
        times_bytes(START_TAG, span.start, END_TAG, span.end),
        _name_and_kind(span.name, span.kind),
    ]
    parts += [group.wire or shared_bytes(group) for group in span.shared]
    parts += [attribute_bytes(key, value) for key, value in span.own]
    parts.append(end_bytes(span.events, span.links, span.status, span.message))
    content = b"".join(parts)
    return b"".join((SPANS, varint(len(content)), content))


def end_bytes(events: tuple[Event, ...], links: tuple[Link, ...], status: int, message: str) -> bytes:
    """Return the end of a span, everything after its attributes."""
    if not (events or links or status or message):
        return PLAIN_END
    parts = [*map(_event, events), *map(_link, links), _status(status, message), FLAGS]
    return b"".join(parts)


def template_bytes(template: SpanTemplate) -> bytes:
    """Return name, kind and shared attributes of a template's spans in the order of ``span_bytes``, and cache them."""
    template.wire = wire = _name_and_kind(template.name, template.kind) + shared_bytes(template.shared)
    return wire


# Resource and request (resource.proto, trace_service.proto).


@dataclass(frozen=True, slots=True)
class Resource:
    """The OTLP resource: ``service.name`` and other attributes of the service.

    Re-exports must be identical, so it must not have attributes that differ between processes.
    """

    service_name: str = "runspan"
    attributes: Mapping[str, str] = field(default_factory=dict)
    """For example ``service.namespace`` and ``deployment.environment.name``."""

    def pairs(self) -> dict[str, str]:
        """Return all attributes."""
        return {"service.name": self.service_name, **self.attributes}


ScopedBytes = tuple[str, bytes, int]
"""The name of an instrumentation scope, spans of it one after another as ``span_bytes`` writes them, and how many."""


def scoped_bytes(span: Span) -> ScopedBytes:
    """Return a span as ``request_bytes`` takes it."""
    return span.scope, span_bytes(span), 1


def single_spans(spans: Iterable[ScopedBytes]) -> list[ScopedBytes]:
    """Return the same spans one by one."""
    single: list[ScopedBytes] = []
    for scope, data, count in spans:
        start = 0
        for _ in range(count):
            length = shift = 0
            content = start + len(SPANS)
            while data[content] > 127:
                length |= (data[content] & 127) << shift
                shift += 7
                content += 1
            end = content + 1 + (length | data[content] << shift)
            single.append((scope, data[start:end], 1))
            start = end
    return single


def request_bytes(resource: Resource, spans: Iterable[ScopedBytes]) -> bytes:
    """Return an ``ExportTraceServiceRequest`` of one resource, with the spans of each scope together."""
    scopes: dict[str, list[bytes]] = {}
    for scope, data, _ in spans:
        scopes.setdefault(scope, []).append(data)
    # One join, because a body is large enough for each further copy to be noticeable.
    attributes = [attribute_bytes(key, value, _IN_RESOURCE) for key, value in resource.pairs().items()]
    parts = [_delimited(b"\x0a", b"".join(attributes))]
    for name, found in scopes.items():
        header = _delimited(b"\x0a", _text(b"\x0a", name) + _text(b"\x12", __version__))
        parts += (b"\x12", varint(len(header) + sum(map(len, found))), header, *found)
    return b"".join((b"\x0a", varint(sum(map(len, parts))), *parts))
