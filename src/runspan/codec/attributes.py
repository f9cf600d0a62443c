"""How one member becomes attributes and comes back, kind by kind, the two directions side by side; no I/O.

The members of a run or a step from the attributes of its span, by the table in ``fields``; no I/O.

``carry`` has the other direction beside this one, member by member; here is the way for spans on which every member has
its usual form.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
from msgspec import UNSET, Raw

from runspan.codec.fields import (
    ABSENT,
    MAX_ATTRIBUTE_BYTES,
    NON_CANONICAL,
    PARTS,
    RUN_TABLE,
    STEP_EXTRA,
    STEP_TABLE,
    Field,
    FieldKind,
    Table,
)
from runspan.model.document import Step, with_extra_step
from runspan.model.parse import parse_document
from runspan.model.span import Span, Value
from runspan.model.timestamps import canonical_ns, canonical_text, parse_ns

Pairs = list[tuple[str, Value]]
_json = msgspec.json.encode
_INT64 = 1 << 63


class AttributeDecodeError(Exception):
    """An attribute is not there, or is not what encode writes. The text says which."""


# Text, cut at code points into pieces that every backend keeps.


def encode_text(pairs: Pairs, key: str, text: bytes | Raw) -> None:
    """Appends a text, in numbered pieces when it is long. It must not be empty: stores drop empty strings."""
    if type(text) is not Raw:
        text = Raw(text)
    if memoryview(text).nbytes <= MAX_ATTRIBUTE_BYTES:
        pairs.append((key, text))
        return
    pieces = list(_cut(bytes(text)))
    pairs.append((key, pieces[0]))
    pairs.extend((f"{key}.{number}", piece) for number, piece in enumerate(pieces[1:], 1))
    pairs.append((key + PARTS, len(pieces)))


def decode_text(attributes: Mapping[str, Value], key: str) -> bytes | None:
    """The text, its pieces joined; None when there is none."""
    first = attributes.get(key)
    parts = attributes.get(key + PARTS)
    if parts is None:
        if first is None:
            return None
        return _piece(attributes, key)
    if type(parts) is not int or parts < 1:
        raise AttributeDecodeError(f"attribute {key}{PARTS} is no count")
    return b"".join([_piece(attributes, f"{key}.{number}" if number else key) for number in range(parts)])


def _cut(text: bytes) -> Iterator[Raw]:
    start = 0
    while start < len(text):
        end = min(start + MAX_ATTRIBUTE_BYTES, len(text))
        while end < len(text) and text[end] & 0xC0 == 0x80:
            end -= 1
        yield Raw(text[start:end])
        start = end


def _piece(attributes: Mapping[str, Value], key: str) -> bytes:
    value = attributes.get(key)
    if type(value) is Raw:
        return bytes(value)
    if type(value) is not str:
        raise AttributeDecodeError(f"attribute {key} is missing" if value is None else f"attribute {key} is no string")
    return value.encode()


# A member's JSON text, where the usual form cannot carry it.


def _encode_non_canonical(pairs: Pairs, key: str, value: Any) -> None:
    encode_text(pairs, key + NON_CANONICAL, value if type(value) is Raw else _json(value))


def _decode_non_canonical(attributes: Mapping[str, Value], key: str) -> Any:
    """``Raw`` or a plain string or None; UNSET when there is none."""
    text = decode_text(attributes, key + NON_CANONICAL)
    if text is None:
        return UNSET
    return _plain(text)


def _plain(text: bytes) -> Any:
    if text == b"null":
        return None
    if text.startswith(b'"'):
        try:
            return msgspec.json.decode(text, type=str)
        except (msgspec.MsgspecError, ValueError):
            return Raw(text)  # a lone surrogate: JSON has it, UTF-8 does not
    return Raw(text)


# Members that have an attribute of their own.


def encode_value(pairs: Pairs, field: Field, value: Any) -> None:
    """Appends one member of the kinds LABEL, TEXT, INTEGER and PAYLOAD. UNSET appends nothing."""
    if value is UNSET:
        return
    if field.kind is FieldKind.PAYLOAD:
        encode_text(pairs, field.key, value)
    elif field.kind is FieldKind.INTEGER:
        number = _integer(bytes(value))
        if number is None:
            _encode_non_canonical(pairs, field.key, value)
        else:
            pairs.append((field.key, number))
    elif type(value) is str and 0 < len(value) <= MAX_ATTRIBUTE_BYTES // 4:
        pairs.append((field.key, value))
    else:
        _encode_non_canonical(pairs, field.key, value)


def decode_value(attributes: Mapping[str, Value], field: Field) -> Any:
    """The member as the document classes hold it; UNSET when the document has none."""
    if field.kind is FieldKind.PAYLOAD:
        text = decode_text(attributes, field.key)
        return UNSET if text is None else Raw(text)
    value = attributes.get(field.key)
    if field.kind is FieldKind.INTEGER:
        if type(value) is int:
            return Raw(b"%d" % value)
        odd = decode_text(attributes, field.key + NON_CANONICAL)
        return UNSET if odd is None else Raw(odd)
    if type(value) is str:
        return value
    return _decode_non_canonical(attributes, field.key)


def _integer(text: bytes) -> int | None:
    """The integer when it is the shortest text of one that has 64 bits."""
    if text.isdigit() and len(text) < 19 and (text[0] != 0x30 or len(text) == 1):
        return int(text)
    digits = text[1:] if text[:1] == b"-" else text
    if digits.isdigit() and digits[0] != 0x30 and len(digits) <= 19:
        number = int(text)
        return number if -_INT64 <= number < _INT64 else None
    return None


# Times, which are the span's own where they follow from its nanoseconds.


def encode_times(
    pairs: Pairs,
    table: Table,
    started: Any,
    completed: Any,
    fallback: int,
    observed_at: int | None = None,
    *,
    start_at_fallback: bool = False,
) -> tuple[int, int]:
    """The span's start and end in nanoseconds; what they cannot carry is appended.

    fallback: the start of a span whose document has no usable time. observed_at: the end of a snapshot span, whatever
    the document says. early: without a start, begin at the fallback even when there is an end; lists are searched by
    where heads begin. The end is after the start always, because Jaeger moves any other.
    """
    start_ns = canonical_ns(started) if type(started) is str else None
    end_ns = canonical_ns(completed) if type(completed) is str else None
    if start_ns is not None and end_ns is not None and end_ns > start_ns and observed_at is None:
        return start_ns, end_ns
    last = end_ns if end_ns is not None else _near(completed)
    first = start_ns if start_ns is not None else _near(started)
    if first is None:
        first = fallback if last is None or start_at_fallback else last
    if start_ns is None:
        _encode_time(pairs, table.start, started)
    if observed_at is not None:
        last, end_ns = observed_at, None
    if last is None or last <= first:
        last, end_ns = first + 1, None
    if end_ns is None:
        _encode_time(pairs, table.end, completed)
    return first, last


def _encode_time(pairs: Pairs, field: Field, value: Any) -> None:
    if value is UNSET:
        pairs.append((field.key + NON_CANONICAL, ABSENT))
    else:
        _encode_non_canonical(pairs, field.key, value)


def decode_time(attributes: Mapping[str, Value], field: Field, ns: int) -> Any:
    """The time as the document has it: what stands beside the span's own, else the span's own."""
    text = decode_text(attributes, field.key + NON_CANONICAL)
    if text is not None:
        return UNSET if text == ABSENT.encode() else _plain(text)
    canonical = canonical_text(ns)
    if canonical is None:
        raise AttributeDecodeError(f"the span's {field.kind.name.lower()} was changed")
    return canonical


def _near(value: Any) -> int | None:
    return parse_ns(value) if type(value) is str else None


def parse_open_step(text: str) -> Step:
    """A step from its canonical text."""
    envelope, _, _ = parse_document('{"id":"_","steps":[' + text + "]}")
    if type(envelope.steps) is not list or len(envelope.steps) != 1:
        raise ValueError(text)
    return envelope.steps[0]


def decode_step(span: Span, attributes: Mapping[str, Value] | None = None) -> Step:
    """The step that a step span carries; Missing when a piece is not there."""
    attributes = span.attributes() if attributes is None else attributes
    values = decode_members(attributes, STEP_TABLE, span)
    if "id" not in values:
        raise AttributeDecodeError(f"span {span.span_id.hex()}: the step's id is missing")
    return with_extra_step(Step(**values), strip_braces(decode_text(attributes, STEP_EXTRA)))


class _Unusual:
    """The type of no value."""


def _rows(table: Table) -> dict[str, tuple[str, type, FieldKind]]:
    """By attribute name: member, type and kind of the usual form. A name that says that some member is not in its usual
    form has a type that no value has."""
    usual: dict[str, tuple[str, type, FieldKind]] = {
        field.key: (field.member, int if field.kind is FieldKind.INTEGER else str, field.kind)
        for field in (*table.labels, *table.values)
    }
    for field in table.fields:
        for ending in (NON_CANONICAL, PARTS):
            usual[field.key + ending] = "", _Unusual, field.kind
    return usual


_ROWS = {table: _rows(table) for table in (RUN_TABLE, STEP_TABLE)}
_PAYLOAD, _INTEGER = FieldKind.PAYLOAD, FieldKind.INTEGER


def decode_members(attributes: Mapping[str, Value], table: Table, span: Span) -> dict[str, Any]:
    """The members by their names in the document classes."""
    start, end = canonical_text(span.start), canonical_text(span.end)
    if start is None or end is None:
        return _non_canonical_members(attributes, table, span)
    values: dict[str, Any] = {table.start.member: start, table.end.member: end}
    row_of = _ROWS[table].get
    for key, value in attributes.items():
        row = row_of(key)
        if row is None:
            continue
        member, usual, kind = row
        if type(value) is not usual:
            return _non_canonical_members(attributes, table, span)
        if kind is _PAYLOAD:
            values[member] = Raw(value.encode())  # type: ignore[union-attr]
        elif kind is _INTEGER:
            values[member] = Raw(str(value).encode())
        else:
            values[member] = value
    return values


def _non_canonical_members(attributes: Mapping[str, Value], table: Table, span: Span) -> dict[str, Any]:
    """The same for spans on which some member is odd, long or absent."""
    values: dict[str, Any] = {}
    try:
        for field in (*table.labels, *table.values):
            value = decode_value(attributes, field)
            if value is not UNSET:
                values[field.member] = value
        for field, ns in ((table.start, span.start), (table.end, span.end)):
            value = decode_time(attributes, field, ns)
            if value is not UNSET:
                values[field.member] = value
    except AttributeDecodeError as error:
        raise AttributeDecodeError(f"span {span.span_id.hex()}: {error}") from None
    return values


def strip_braces(extra: bytes | None) -> bytes:
    """The members in an object's text; nothing for None."""
    return b"" if extra is None else extra[1:-1]
