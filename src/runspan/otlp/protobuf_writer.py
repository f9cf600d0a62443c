"""Spans to OTLP protobuf bytes, by hand: the hot path of the exporter; no I/O.

The tags below are those of ``opentelemetry/proto/trace/v1/trace.proto``; ``opentelemetry-proto`` is their oracle in the
tests. Speed comes from not encoding the same thing twice: attributes that spans share are encoded once, and what stands
before a string depends on its key and length only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from struct import Struct
from typing import Final

from msgspec import Raw

from runspan._version import __version__
from runspan.codec.fields import KEYS, MAX_ATTRIBUTE_BYTES, NON_CANONICAL
from runspan.codec.semconv import SEMCONV_NUMBER_KEYS, SEMCONV_STRING_KEYS
from runspan.codec.span_templates import SpanTemplate
from runspan.model.span import Attributes, Event, Link, Span, Value

SCOPE_NAME: Final = "runspan"

times_bytes = Struct("<BQBQ").pack
_DOUBLE = Struct("<d").pack
_TIME = Struct("<BQ").pack
START_TAG, END_TAG, _EVENT_TIME_TAG = 0x39, 0x41, 0x09
TRACE_ID, SPAN_ID, PARENT_ID, SPANS = b"\x0a\x10", b"\x12\x08", b"\x22\x08", b"\x12"
_FLAGS = b"\x85\x01\x00\x01\x00\x00"
"""``flags`` = 0x100: it is known whether the parent is remote, and it is not. The SDK writes the same."""


_BITS: Final = 0xFFFF_FFFF_FFFF_FFFF
"""Negative integers are written as 64 bits, in two's complement."""


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)


VARINTS: Final = [_varint(number) for number in range(16384)]


def varint(number: int) -> bytes:
    """A non-negative integer in protobuf's base-128 form."""
    return VARINTS[number] if number < 16384 else _varint(number)


def _delimited(tag: bytes, content: bytes) -> bytes:
    return b"".join((tag, varint(len(content)), content))


def _text(tag: bytes, text: str) -> bytes:
    return _delimited(tag, text.encode()) if text else b""


# KeyValue and AnyValue (common.proto). ``lead`` is the tag of the repeated field that holds the KeyValue.

IN_SPAN, _IN_EVENT, _IN_LINK, _IN_RESOURCE, _IN_LIST = b"\x4a", b"\x1a", b"\x22", b"\x0a", b"\x0a"


def _string_head(lead: bytes, key: bytes, length: int) -> bytes:
    """All bytes before a string of this length: tag, key, and the string's own tag and length."""
    value = b"\x0a" + varint(length)
    size = len(value) + length
    middle = _delimited(b"\x0a", key) + b"\x12" + varint(size) + value
    return lead + varint(len(middle) + length) + middle


class KeyPrefixes(dict[int, bytes]):
    """The heads of one key's strings by length, for lengths up to a piece's."""

    def __init__(self, key: str) -> None:
        super().__init__()
        self.key = key.encode()

    def __missing__(self, length: int) -> bytes:
        head = _string_head(IN_SPAN, self.key, length)
        if length <= MAX_ATTRIBUTE_BYTES:
            self[length] = head
        return head


KEY_PREFIXES: Final = {
    key: KeyPrefixes(key) for key in KEYS | {key + NON_CANONICAL for key in KEYS} | SEMCONV_STRING_KEYS
}


class _IntegerKeyPrefixes(dict[tuple[bytes, str, bytes, int], bytes]):
    """All bytes before a number: tag, key, and the number's own tag, by the first tag, key, tag and size in bytes.

    Only those of known keys are remembered: the memory needs a bound.
    """

    def __missing__(self, what: tuple[bytes, str, bytes, int]) -> bytes:
        lead, key, tag, size = what
        middle = _delimited(b"\x0a", key.encode()) + b"\x12" + varint(1 + size) + tag
        head = lead + varint(len(middle) + size) + middle
        if key in _NUMBERS:
            self[what] = head
        return head


_NUMBERS: Final = KEYS | SEMCONV_NUMBER_KEYS
_NUMBER_HEADS: Final = _IntegerKeyPrefixes()


def integer_bytes(lead: bytes, key: str, number: int) -> bytes:
    """An attribute with an integer of 64 bits."""
    digits = VARINTS[number] if 0 <= number < 16384 else varint(number & _BITS)
    return _NUMBER_HEADS[lead, key, b"\x18", len(digits)] + digits


def _key_value(lead: bytes, key: bytes, any_value: bytes) -> bytes:
    return _delimited(lead, _delimited(b"\x0a", key) + _delimited(b"\x12", any_value))


def _any(value: Value) -> bytes:
    """An AnyValue's content."""
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
        return _delimited(b"\x32", b"".join([_attribute(_IN_LIST, key, item) for key, item in value.items()]))
    return b""


def _attribute(lead: bytes, key: str, value: Value) -> bytes:
    if type(value) is int:
        return integer_bytes(lead, key, value)
    return _key_value(lead, key.encode(), _any(value))


def shared_bytes(group: Attributes) -> bytes:
    wire = group.wire
    if wire is None:
        wire = group.wire = attributes_bytes(group.pairs)
    return wire


def attributes_bytes(pairs: Iterable[tuple[str, Value]]) -> bytes:
    """Attributes of a span, in their order."""
    return b"".join([attribute_bytes(key, value) for key, value in pairs])


def attribute_bytes(key: str, value: Value) -> bytes:
    """An attribute of a span, with what stands before a known key's string remembered."""
    kind = type(value)
    if kind is str:
        text = value.encode()  # type: ignore[union-attr]
    elif kind is Raw:
        text = bytes(value)  # type: ignore[arg-type]
    elif kind is int:
        return integer_bytes(IN_SPAN, key, value)  # type: ignore[arg-type]
    elif kind is float:
        return _NUMBER_HEADS[IN_SPAN, key, b"\x21", 8] + _DOUBLE(value)
    else:
        return _key_value(IN_SPAN, key.encode(), _any(value))
    heads = KEY_PREFIXES.get(key)
    return (_string_head(IN_SPAN, key.encode(), len(text)) if heads is None else heads[len(text)]) + text


# Events, links, spans (trace.proto).


def _event(event: Event) -> bytes:
    parts = [_TIME(_EVENT_TIME_TAG, event.time), _text(b"\x12", event.name)]
    parts += [_attribute(_IN_EVENT, key, value) for key, value in event.attributes]
    return _delimited(b"\x5a", b"".join(parts))


def _link(link: Link) -> bytes:
    parts = [_delimited(b"\x0a", link.trace_id), _delimited(b"\x12", link.span_id)]
    parts += [_attribute(_IN_LINK, key, value) for key, value in link.attributes]
    return _delimited(b"\x6a", b"".join((*parts, b"\x35\x00\x01\x00\x00")))


def _name_and_kind(name: str, kind: int) -> bytes:
    return _text(b"\x2a", name) + (b"\x30" + varint(kind & _BITS) if kind else b"")


def _status(code: int, message: str) -> bytes:
    return _delimited(b"\x7a", _text(b"\x12", message) + (b"\x18" + varint(code & _BITS) if code else b""))


PLAIN_END: Final = _status(0, "") + _FLAGS


def span_bytes(span: Span) -> bytes:
    """One span as a member of ``ScopeSpans.spans``: tag, length, content."""
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
    """What ``span_bytes`` writes after the attributes."""
    if not (events or links or status or message):
        return PLAIN_END
    parts = [*map(_event, events), *map(_link, links), _status(status, message), _FLAGS]
    return b"".join(parts)


def template_bytes(label: SpanTemplate) -> bytes:
    """Name, kind and shared attributes of a label's spans, in the order of ``span_bytes``."""
    label.wire = wire = _name_and_kind(label.name, label.kind) + shared_bytes(label.shared)
    return wire


# Resource and request (resource.proto, trace_service.proto).


@dataclass(frozen=True, slots=True)
class Resource:
    """Who sends: ``service.name`` and whatever else identifies the service, nothing that changes per process.

    attributes: for example ``service.namespace`` and ``deployment.environment.name``. A re-export must be identical.
    """

    service_name: str = "runspan"
    attributes: Mapping[str, str] = field(default_factory=dict)

    def pairs(self) -> dict[str, str]:
        """All attributes."""
        return {"service.name": self.service_name, **self.attributes}


def resource_bytes(resource: Resource) -> bytes:
    """A serialized ``Resource``."""
    return b"".join([_attribute(_IN_RESOURCE, key, value) for key, value in resource.pairs().items()])


ScopedBytes = tuple[str, bytes]
"""The name of a span's instrumentation scope, and the span as ``span_bytes`` writes it."""


def scoped_bytes(span: Span) -> ScopedBytes:
    """Return a span as ``request_bytes`` takes it."""
    return span.scope, span_bytes(span)


def request_bytes(resource: Resource, spans: Iterable[ScopedBytes]) -> bytes:
    """Return an ``ExportTraceServiceRequest`` of one resource, with the spans of each scope together."""
    scopes: dict[str, list[bytes]] = {}
    for scope, span in spans:
        scopes.setdefault(scope, []).append(span)
    # One join: a body is large enough for each further copy to be felt.
    parts = [_delimited(b"\x0a", resource_bytes(resource))]
    for name, found in scopes.items():
        scope = _delimited(b"\x0a", _text(b"\x0a", name) + _text(b"\x12", __version__))
        parts += (b"\x12", varint(len(scope) + sum(map(len, found))), scope, *found)
    return b"".join((b"\x0a", varint(sum(map(len, parts))), *parts))
