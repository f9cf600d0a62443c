"""How much an OTLP request may hold, counted before anything is built from it; no I/O.

Two bytes are enough for an empty span, attribute or container, and each becomes an object of a hundred: a few kilobytes
of gzip would take gigabytes. So the wire is walked first, over the heads of the spans, as far as the bound; and where a
body may be made of such crumbs, over all that the spans hold. Of JSON, the values are counted before it is parsed.
"""

from __future__ import annotations

from typing import Any, Final, NoReturn

from runspan.errors import PayloadTooLarge

MAX_SPANS: Final = 100_000
"""Spans in one request, the lists that hold them (ResourceSpans and ScopeSpans) included; or one for each
``SPAN_BYTES`` of a larger request, so that a run of hundreds of thousands of steps can come in one."""
SPAN_BYTES: Final = 200
"""Fewer than any span of runspan has."""

MAX_PARTS: Final = 10_000
"""Attributes, events and links of one span, those of events and links included; and one more for each ``PART_BYTES``
that the span has: a long document stands in many attributes, each of them long."""
PART_BYTES: Final = 100
MAX_REQUEST_PARTS: Final = 2_000_000
"""All fields inside the spans of a request, attributes, events and links counted twice; or one for each
``REQUEST_PART_BYTES`` read of a larger request."""
REQUEST_PART_BYTES: Final = 5
"""Fewer than the fields of usual spans have on average: a short attribute has four fields in 25 bytes."""

MAX_JSON_VALUES: Final = 2_000_000
"""Commas and opening brackets in OTLP/JSON, without those inside of text; or one for each ``JSON_VALUE_BYTES`` of a
larger request. Nothing that JSON can hold comes without one of them."""
JSON_VALUE_BYTES: Final = 16

_SMALL_BODY: Final = 2 * MAX_REQUEST_PARTS
"""Bytes of a body that can do no harm, whatever it holds: a field has two bytes at least."""
_FRAGMENT_BYTES: Final = 11
"""Usual spans have a message for so many bytes, or fewer of them."""

_TAGS: Final = b"\x0a\x12\x12"
"""TracesData.resource_spans, ResourceSpans.scope_spans, ScopeSpans.spans: from the top to a span."""
_SPAN_LEVEL: Final = 2
_VARINT, _FIXED64, _BYTES, _GROUP, _GROUP_END, _FIXED32 = range(6)


def default_max_spans(size: int) -> int:
    """How many spans, and lists that hold them, a request of so many bytes may have."""
    return max(MAX_SPANS, size // SPAN_BYTES)


def check_protobuf(body: bytes, bound: int) -> None:
    """PayloadTooLarge when a TracesData holds more. What is no protobuf passes: its reader stops at the same place.

    Fields that are neither spans nor their containers count by themselves, to twice the bound: an honest container
    has two at most, and walking over millions of empty ones takes seconds.
    """
    try:
        _walk(body, bound)
        if len(body) > _SMALL_BODY and _is_fragmented(body):
            _walk_parts(body)
    except (IndexError, _Malformed):
        return


def allowed_parts(size: int) -> int:
    """How many attributes, events and links a span of so many bytes may have."""
    return MAX_PARTS + size // PART_BYTES


def check_json_text(body: bytes) -> None:
    """PayloadTooLarge when OTLP/JSON holds too many values for its size. Before a place where it is no JSON, the count
    is right, and no parser comes further."""
    bound = max(MAX_JSON_VALUES, len(body) // JSON_VALUE_BYTES)
    if len(body) <= bound or _values(body) <= bound:
        return  # a text may itself be JSON, so only where all brackets and commas are many, the texts are left out
    bare, inside, counted = body.replace(b"\\\\", b"").replace(b'\\"', b""), 0, 0
    for start in range(0, len(bare), _CHUNK):
        parts = bare[start : start + _CHUNK].split(b'"')
        counted += _values(b"".join(parts[inside::2]))
        if counted > bound:
            raise PayloadTooLarge(
                "too many values in one request",
                where="body",
                expected=f"at most {bound} in {len(body)} bytes of OTLP/JSON",
                got="more",
                hint="send smaller requests",
            )
        inside ^= (len(parts) - 1) & 1


_CHUNK: Final = 1 << 20


def _values(text: bytes) -> int:
    return text.count(b"{") + text.count(b"[") + text.count(b",")


def check_json(data: dict[str, Any], bound: int) -> None:
    """PayloadTooLarge when an OTLP/JSON request holds more. What has another form passes: its reader refuses it."""
    counted, level = 0, [data]
    for names in (("resourceSpans", "resource_spans"), ("scopeSpans", "scope_spans"), ("spans",)):
        lists = [found for holder in level for name in names if isinstance(found := holder.get(name), list)]
        counted += sum(map(len, lists))
        if counted > bound:
            _refuse(bound)
        level = [item for items in lists for item in items if isinstance(item, dict)]


_PART_TAGS: Final = b"\x0a\x12\x1a\x4a\x5a\x6a\x00"
"""For a message inside a span, one of these bytes stands: its tag; or a zero, which is the length of an empty one, and
the end of a tag or a length that is longer than it need be."""
_RARE_TAGS: Final = b"\x22\x2a\x32"
"""Or one of these. As characters they are frequent, so they count only before a short length."""
_RARE: Final = bytes(1 if byte in _RARE_TAGS else 2 if byte < 32 else 0 for byte in range(256))


def _is_fragmented(body: bytes) -> bool:
    """Whether so many of the bytes may be tags that messages can have fewer than ``_CRUMB_BYTES`` on average."""
    bound = max(_SMALL_BODY // 4, len(body) // _FRAGMENT_BYTES)
    tags = len(body) - len(body.translate(None, _PART_TAGS))
    return tags > bound or tags + body.translate(_RARE).count(b"\x01\x02") > bound


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
"""Of each message, the fields that hold messages, by tag: https://github.com/open-telemetry/opentelemetry-proto"""
_HEAVY: Final = frozenset({"KeyValue", "Event", "Link"})
"""Each takes a hundred bytes of memory, twice what another field takes."""


def _walk_parts(body: bytes) -> None:
    """PayloadTooLarge when the body, or what it begins with, holds more fields than ``MAX_REQUEST_PARTS`` says."""
    bound = MAX_REQUEST_PARTS
    outer: list[tuple[int, dict[int, str]]] = []
    end, fields, position, counted = len(body), _MESSAGES["TracesData"], 0, 0
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
            position, skipped = _skip(body, position, tag, bound - counted)
            counted += skipped
        else:
            size, position = _varint(body, position)
            if position + size > end:
                raise _Malformed
            counted += 2 if child in _HEAVY else 1
            outer.append((end, fields))
            end, fields = position + size, _MESSAGES[child]
        if counted > bound:
            bound = max(MAX_REQUEST_PARTS, position // REQUEST_PART_BYTES)
            if counted > bound:
                _refuse_parts(bound)


class _Malformed(Exception):
    """The bytes are no protobuf."""


def _walk(body: bytes, bound: int) -> None:
    ends: list[int] = []
    end, position, tag = len(body), 0, _TAGS[0]
    counted = others = 0
    while True:
        while position >= end:
            if position > end:
                raise _Malformed
            if not ends:
                return
            end = ends.pop()
            tag = _TAGS[len(ends)]
        found = body[position]
        position += 1
        if found > 127:
            found, position = _varint(body, position - 1)
        if found != tag:
            position, skipped = _skip(body, position, found, 2 * bound - others)
            others += skipped
            if others > 2 * bound:
                _refuse(bound)
            continue
        counted += 1
        if counted > bound:
            _refuse(bound)
        size = body[position]
        position += 1
        if size > 127:
            if (byte := body[position]) < 128:
                size = size & 127 | byte << 7
                position += 1
            else:
                size, position = _varint(body, position - 1)
        if len(ends) == _SPAN_LEVEL:
            position += size
        else:
            if position + size > end:
                raise _Malformed
            ends.append(end)
            end = position + size
            tag = _TAGS[len(ends)]


def _skip(body: bytes, position: int, tag: int, allowed: int) -> tuple[int, int]:
    """Where the field ends whose tag was just read, and how many fields that was: a group has fields of its own.

    Stops in the midst of a group when that is more than allowed.
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
    value = body[position]
    if value < 128:
        return value, position + 1
    byte = body[position + 1]
    value = value & 127 | (byte & 127) << 7
    position += 2
    shift = 14
    while byte > 127:
        if shift > 63:
            raise _Malformed
        byte = body[position]
        value |= (byte & 127) << shift
        position += 1
        shift += 7
    return value, position


def _refuse(bound: int) -> NoReturn:
    raise PayloadTooLarge(
        "too many spans in one request",
        where="body",
        expected=f"at most {bound} spans, with the resources and scopes that hold them",
        got="more",
        hint="send smaller requests; a run that is larger than one can be pushed to /api/v1/runs as a document",
    )


def _refuse_parts(bound: int) -> NoReturn:
    raise PayloadTooLarge(
        "too many attributes, events and links in one request",
        where="body",
        expected=f"at most {bound} fields, where most of them are empty or nearly so",
        got="more",
        hint="send smaller requests",
    )
