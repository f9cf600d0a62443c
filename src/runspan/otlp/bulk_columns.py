"""The members of many runs or steps as columns, by the table in ``fields``; no I/O.

A member of all rows is read and written at once, which is what makes the exporter fast. ``rows`` joins the columns to
spans; where the package was built with a C compiler, its twin in C does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from operator import attrgetter
from typing import Any, Final

from msgspec import UNSET

from runspan.codec.fields import MAX_ATTRIBUTE_BYTES, RUN_TABLE, STEP_TABLE, Field, FieldKind
from runspan.otlp.column_loops import Column, true_indices

try:
    from runspan.otlp._column_loops import joined_spans, nanoseconds

    COMPILED = True
except ImportError:
    from runspan.otlp.column_loops import joined_spans, nanoseconds

    COMPILED = False
"""Whether the loops over rows are the ones in C."""

__all__ = ["COMPILED", "RUN_MEMBERS", "STEP_MEMBERS", "Column", "join_columns", "nanoseconds", "true_indices"]

_TOO_LONG: Final = bytes(MAX_ATTRIBUTE_BYTES + 1)

Members = Iterable[Callable[[list[Any]], Column]]
"""For each member, what makes a column of it for a list of runs or steps."""


def join_columns(columns: list[Column], count: int) -> tuple[list[bytes], list[int]]:
    """The columns as so many spans; and the places of those with a text or number that does not fit one attribute."""
    return joined_spans(columns, count, MAX_ATTRIBUTE_BYTES, UNSET)


def _column(field: Field) -> Callable[[list[Any]], Column]:
    get, key = attrgetter(field.member), field.key.encode()
    if field.kind is FieldKind.PAYLOAD:
        # They stay ``Raw``, and are copied once, when the span is joined.
        return lambda rows: (key, list(map(get, rows)))
    if field.kind is FieldKind.TEXT:
        return lambda rows: (key, list(map(_text, map(get, rows))))
    return lambda rows: (list(map(get, rows)), key)


def _text(value: Any) -> Any:
    """The bytes of a member of kind TEXT. What does not fit is made too long, which ``joined`` tells."""
    if value is UNSET:
        return value
    return value.encode() if type(value) is str and 0 < len(value) <= MAX_ATTRIBUTE_BYTES // 4 else _TOO_LONG


STEP_MEMBERS: Final[Members] = [_column(field) for field in STEP_TABLE.values]
RUN_MEMBERS: Final[Members] = [_column(field) for field in RUN_TABLE.values]
