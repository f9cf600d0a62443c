"""How many spans an OTLP request may hold, counted before anything is built from it; no I/O.

Two bytes are enough for an empty span or container, and each becomes an object of a hundred: a few kilobytes of gzip
would take gigabytes. So the wire is walked first, over the heads of the spans, as far as the bound.
"""

from __future__ import annotations

from typing import Any, Final, NoReturn

from runspan.errors import PayloadTooLarge

MAX_SPANS: Final = 100_000
"""Spans in one request, the lists that hold them (ResourceSpans and ScopeSpans) included."""

_TAGS: Final = b"\x0a\x12\x12"
"""TracesData.resource_spans, ResourceSpans.scope_spans, ScopeSpans.spans: from the top to a span."""
_SPAN_LEVEL: Final = 2
_VARINT, _FIXED64, _BYTES, _GROUP, _GROUP_END, _FIXED32 = range(6)


def bound_protobuf(body: bytes, bound: int = MAX_SPANS) -> None:
    """PayloadTooLarge when a TracesData holds more. What is no protobuf passes: its reader stops at the same place.

    Fields that are neither spans nor their containers count by themselves, to twice the bound: an honest container
    has two at most, and walking over millions of empty ones takes seconds.
    """
    try:
        _walk(body, bound)
    except (IndexError, _Malformed):
        return


def bound_json(data: dict[str, Any], bound: int = MAX_SPANS) -> None:
    """PayloadTooLarge when an OTLP/JSON request holds more. What has another form passes: its reader refuses it."""
    counted, level = 0, [data]
    for names in (("resourceSpans", "resource_spans"), ("scopeSpans", "scope_spans"), ("spans",)):
        lists = [found for holder in level for name in names if isinstance(found := holder.get(name), list)]
        counted += sum(map(len, lists))
        if counted > bound:
            _refuse(bound)
        level = [item for items in lists for item in items if isinstance(item, dict)]


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
        hint="send smaller requests",
    )
