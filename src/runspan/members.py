"""The members of a run or a step from the attributes of its span, by the table in ``fields``; no I/O.

``carry`` has the other direction beside this one, member by member; here is the way for spans on which every member has
its usual form.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec import UNSET, Raw

from runspan.carry import Missing, take_text, take_time, take_value
from runspan.document import Step, with_extra_step
from runspan.fields import ODD, PARTS, RUN_TABLE, STEP_EXTRA, STEP_TABLE, Kind, Table
from runspan.parse import parse_document
from runspan.span import Span, Value
from runspan.times import canonical_text


def parse_step(text: str) -> Step:
    """A step from its canonical text."""
    envelope, _, _ = parse_document('{"id":"_","steps":[' + text + "]}")
    if type(envelope.steps) is not list or len(envelope.steps) != 1:
        raise ValueError(text)
    return envelope.steps[0]


def read_step(span: Span, attributes: Mapping[str, Value] | None = None) -> Step:
    """The step that a step span carries; Missing when a piece is not there."""
    attributes = span.attributes() if attributes is None else attributes
    values = members_of(attributes, STEP_TABLE, span)
    if "id" not in values:
        raise Missing(f"span {span.span_id.hex()}: the step's id is missing")
    return with_extra_step(Step(**values), without_braces(take_text(attributes, STEP_EXTRA)))


class _Unusual:
    """The type of no value."""


def _rows(table: Table) -> dict[str, tuple[str, type, Kind]]:
    """By attribute name: member, type and kind of the usual form. A name that says that some member is not in its usual
    form has a type that no value has."""
    usual: dict[str, tuple[str, type, Kind]] = {
        field.key: (field.member, int if field.kind is Kind.INTEGER else str, field.kind)
        for field in (*table.labels, *table.values)
    }
    for field in table.fields:
        for ending in (ODD, PARTS):
            usual[field.key + ending] = "", _Unusual, field.kind
    return usual


_ROWS = {table: _rows(table) for table in (RUN_TABLE, STEP_TABLE)}
_PAYLOAD, _INTEGER = Kind.PAYLOAD, Kind.INTEGER


def members_of(attributes: Mapping[str, Value], table: Table, span: Span) -> dict[str, Any]:
    """The members by their names in the document classes."""
    start, end = canonical_text(span.start), canonical_text(span.end)
    if start is None or end is None:
        return _odd_members(attributes, table, span)
    values: dict[str, Any] = {table.start.member: start, table.end.member: end}
    row_of = _ROWS[table].get
    for key, value in attributes.items():
        row = row_of(key)
        if row is None:
            continue
        member, usual, kind = row
        if type(value) is not usual:
            return _odd_members(attributes, table, span)
        if kind is _PAYLOAD:
            values[member] = Raw(value.encode())  # type: ignore[union-attr]
        elif kind is _INTEGER:
            values[member] = Raw(str(value).encode())
        else:
            values[member] = value
    return values


def _odd_members(attributes: Mapping[str, Value], table: Table, span: Span) -> dict[str, Any]:
    """The same for spans on which some member is odd, long or absent."""
    values: dict[str, Any] = {}
    try:
        for field in (*table.labels, *table.values):
            value = take_value(attributes, field)
            if value is not UNSET:
                values[field.member] = value
        for field, ns in ((table.start, span.start), (table.end, span.end)):
            value = take_time(attributes, field, ns)
            if value is not UNSET:
                values[field.member] = value
    except Missing as error:
        raise Missing(f"span {span.span_id.hex()}: {error}") from None
    return values


def without_braces(extra: bytes | None) -> bytes:
    """The members in an object's text; nothing for None."""
    return b"" if extra is None else extra[1:-1]
