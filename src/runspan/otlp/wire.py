"""Spans to OTLP protobuf bytes, by hand: the hot path of the exporter; no I/O.

The tags below are those of ``opentelemetry/proto/trace/v1/trace.proto``; ``opentelemetry-proto`` is their oracle in the
tests. Speed comes from not encoding the same thing twice: attributes that spans share are encoded once, and what stands
before a string depends on its key and length only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from struct import Struct
from typing import Final

from msgspec import UNSET, Raw

from runspan._version import __version__
from runspan.carry import Pairs, put_value
from runspan.encode import PLAIN, Draft
from runspan.fields import KEYS, PIECE_BYTES, STEP_TABLE, Field, Kind
from runspan.labels import Label
from runspan.projection import PROJECTED_KEYS
from runspan.span import Attributes, Event, Link, Span, Value

SCOPE_NAME: Final = "runspan"

_TIMES = Struct("<BQBQ").pack
_DOUBLE = Struct("<Bd").pack
_TIME = Struct("<BQ").pack
_START_TAG, _END_TAG, _EVENT_TIME_TAG, _DOUBLE_TAG = 0x39, 0x41, 0x09, 0x21
_FLAGS = b"\x85\x01\x00\x01\x00\x00"
"""``flags`` = 0x100: it is known whether the parent is remote, and it is not. The SDK writes the same."""


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)


_VARINTS: Final = [_varint(number) for number in range(16384)]


def varint(number: int) -> bytes:
    """A non-negative integer in protobuf's base-128 form."""
    return _VARINTS[number] if number < 16384 else _varint(number)


def _delimited(tag: bytes, content: bytes) -> bytes:
    return b"".join((tag, varint(len(content)), content))


def _text(tag: bytes, text: str) -> bytes:
    return _delimited(tag, text.encode()) if text else b""


# KeyValue and AnyValue (common.proto). ``lead`` is the tag of the repeated field that holds the KeyValue.

_IN_SPAN, _IN_EVENT, _IN_LINK, _IN_RESOURCE, _IN_LIST = b"\x4a", b"\x1a", b"\x22", b"\x0a", b"\x0a"


def _string_head(lead: bytes, key: bytes, length: int) -> bytes:
    """All bytes before a string of this length: tag, key, and the string's own tag and length."""
    value = b"\x0a" + varint(length)
    size = len(value) + length
    middle = _delimited(b"\x0a", key) + b"\x12" + varint(size) + value
    return lead + varint(len(middle) + length) + middle


class _Heads(dict[int, bytes]):
    """The heads of one key's strings by length, for lengths up to a piece's."""

    def __init__(self, key: str) -> None:
        super().__init__()
        self.key = key.encode()

    def __missing__(self, length: int) -> bytes:
        head = _string_head(_IN_SPAN, self.key, length)
        if length <= PIECE_BYTES:
            self[length] = head
        return head


_HEADS: Final = {key: _Heads(key) for key in KEYS | PROJECTED_KEYS}


@lru_cache(maxsize=4096)
def _integer(lead: bytes, key: str, number: int) -> bytes:
    value = b"\x18" + varint(number & 0xFFFF_FFFF_FFFF_FFFF)
    return _key_value(lead, key.encode(), value)


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
        return b"\x18" + varint(value & 0xFFFF_FFFF_FFFF_FFFF)
    if isinstance(value, float):
        return _DOUBLE(_DOUBLE_TAG, value)
    if isinstance(value, bytes):
        return _delimited(b"\x3a", value)
    if isinstance(value, list):
        return _delimited(b"\x2a", b"".join([_delimited(_IN_LIST, _any(item)) for item in value]))
    if isinstance(value, Mapping):
        return _delimited(b"\x32", b"".join([_attribute(_IN_LIST, key, item) for key, item in value.items()]))
    return b""


def _attribute(lead: bytes, key: str, value: Value) -> bytes:
    if type(value) is int:
        return _integer(lead, key, value)
    return _key_value(lead, key.encode(), _any(value))


def _shared(group: Attributes) -> bytes:
    wire = group.wire
    if wire is None:
        wire = group.wire = b"".join([_own(key, value) for key, value in group.pairs])
    return wire


def _own(key: str, value: Value) -> bytes:
    """An attribute of a span, with what stands before a known key's string remembered."""
    kind = type(value)
    if kind is str:
        text = value.encode()  # type: ignore[union-attr]
    elif kind is Raw:
        text = bytes(value)  # type: ignore[arg-type]
    elif kind is int:
        return _integer(_IN_SPAN, key, value)  # type: ignore[arg-type]
    else:
        return _key_value(_IN_SPAN, key.encode(), _any(value))
    heads = _HEADS.get(key)
    return (_string_head(_IN_SPAN, key.encode(), len(text)) if heads is None else heads[len(text)]) + text


# Events, links, spans (trace.proto).


def _event(event: Event) -> bytes:
    parts = [_TIME(_EVENT_TIME_TAG, event.time), _text(b"\x12", event.name)]
    parts += [_attribute(_IN_EVENT, key, value) for key, value in event.attributes]
    return _delimited(b"\x5a", b"".join(parts))


def _link(link: Link) -> bytes:
    parts = [_delimited(b"\x0a", link.trace_id), _delimited(b"\x12", link.span_id)]
    parts += [_attribute(_IN_LINK, key, value) for key, value in link.attributes]
    return _delimited(b"\x6a", b"".join((*parts, b"\x35\x00\x01\x00\x00")))


@lru_cache(maxsize=4096)
def _name_and_kind(name: str, kind: int) -> bytes:
    return _text(b"\x2a", name) + (b"\x30" + varint(kind) if kind else b"")


def _status(code: int, message: str) -> bytes:
    return _delimited(b"\x7a", _text(b"\x12", message) + (b"\x18" + varint(code) if code else b""))


_PLAIN_END: Final = _status(0, "") + _FLAGS


def span_bytes(span: Span) -> bytes:
    """One span as a member of ``ScopeSpans.spans``: tag, length, content."""
    parent = span.parent_id
    parts = [
        b"\x0a\x10",
        span.trace_id,
        b"\x12\x08",
        span.span_id,
        b"\x22\x08" + parent if parent else b"",
        _name_and_kind(span.name, span.kind),
        _TIMES(_START_TAG, span.start, _END_TAG, span.end),
    ]
    parts += [group.wire or _shared(group) for group in span.shared]
    parts += [_own(key, value) for key, value in span.own]
    if span.events:
        parts += [_event(event) for event in span.events]
    if span.links:
        parts += [_link(link) for link in span.links]
    parts.append(_status(span.status, span.message) + _FLAGS if span.status or span.message else _PLAIN_END)
    content = b"".join(parts)
    return b"".join((b"\x12", varint(len(content)), content))


# A whole run, without neutral spans between.


class _Integer:
    """Writes one integer member from its JSON text; what stands before the number depends on its size only."""

    def __init__(self, field: Field) -> None:
        self.field = field
        key = _delimited(b"\x0a", field.key.encode())
        self.heads = [
            _IN_SPAN + varint(len(key) + 3 + size) + key + b"\x12" + varint(1 + size) + b"\x18" for size in range(4)
        ]

    def bytes(self, text: bytes) -> bytes:
        if len(text) < 6 and text.isdigit() and (text[0] != 0x30 or len(text) == 1):
            value = int(text)
            number = _VARINTS[value] if value < 16384 else _varint(value)
            return self.heads[len(number)] + number
        pairs: Pairs = []
        put_value(pairs, self.field, Raw(text))
        return b"".join([_own(key, value) for key, value in pairs])


_DURATION, _ATTEMPT = [_Integer(field).bytes for field in STEP_TABLE.values if field.kind is Kind.INTEGER]
_INPUT, _OUTPUT, _ERROR, _RETRY = [_HEADS[field.key] for field in STEP_TABLE.values if field.kind is Kind.PAYLOAD]


def run_bytes(draft: Draft) -> list[bytes]:
    """The spans of a drafted run, each as ``span_bytes`` would write it."""
    ids = b"\x0a\x10" + draft.trace_id + b"\x12\x08"
    parent = b"\x22\x08" + draft.root_id + _shared(draft.identity)
    times, varints = _TIMES, _VARINTS
    out: list[bytes] = []
    for span_id, label, start, end, values, own, more in draft.steps:
        parts = [ids, span_id, parent, label.wire or _label(label), times(_START_TAG, start, _END_TAG, end)]
        # Unrolled, because a loop over the table takes as long as all the rest; the lines above would fail to unpack
        # another table.
        duration, attempt, given, output, error, retry = values
        if duration is not UNSET:
            parts.append(_DURATION(bytes(duration)))
        if attempt is not UNSET:
            parts.append(_ATTEMPT(bytes(attempt)))
        if given is not UNSET:
            text = bytes(given)
            parts += _INPUT[len(text)], text
        if output is not UNSET:
            text = bytes(output)
            parts += _OUTPUT[len(text)], text
        if error is not UNSET:
            text = bytes(error)
            parts += _ERROR[len(text)], text
        if retry is not UNSET:
            text = bytes(retry)
            parts += _RETRY[len(text)], text
        if own:
            parts += [_own(key, value) for key, value in own]
        if more is PLAIN:
            parts.append(_PLAIN_END)
        else:
            parts += [_event(event) for event in more.events]
            parts += [_link(link) for link in more.links]
            parts.append(_status(more.status, more.message))
            parts.append(_FLAGS)
        content = b"".join(parts)
        size = len(content)
        out.append(b"\x12" + (varints[size] if size < 16384 else varint(size)) + content)
    out += [span_bytes(span) for span in draft.below]
    out.append(span_bytes(draft.head))
    return out


def _label(label: Label) -> bytes:
    label.wire = wire = _name_and_kind(label.name, label.kind) + _shared(label.shared)
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


def request_bytes(resource: Resource, spans: Iterable[bytes]) -> bytes:
    """An ``ExportTraceServiceRequest`` of one resource and one scope, from what ``span_bytes`` made."""
    spans = list(spans)
    scope = _delimited(b"\x0a", _text(b"\x0a", SCOPE_NAME) + _text(b"\x12", __version__))
    size = len(scope) + sum(map(len, spans))
    head = _delimited(b"\x0a", resource_bytes(resource)) + b"\x12" + varint(size)
    # One join: a body is large enough for each further copy to be felt.
    return b"".join((b"\x0a", varint(len(head) + size), head, scope, *spans))
