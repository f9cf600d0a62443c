"""The members of many runs or steps as columns, by the tables in ``codec.fields``; no I/O.

Reading and writing one member of all rows at once is what makes the exporter fast. The columns are joined to spans by
the C extension ``_column_loops`` if it was built, else by ``column_loops``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from operator import attrgetter
from typing import Any, Final

from msgspec import UNSET

from runspan.codec.fields import MAX_ATTRIBUTE_BYTES, RUN_TABLE, STEP_TABLE, Field, FieldKind
from runspan.otlp.column_loops import Column, true_indices

try:
    from runspan.otlp._column_loops import join_span_columns, nanoseconds

    COMPILED = True
except ImportError:
    from runspan.otlp.column_loops import join_span_columns, nanoseconds

    COMPILED = False
"""Whether the C extension is used."""

__all__ = ["COMPILED", "RUN_MEMBERS", "STEP_MEMBERS", "Column", "join_columns", "nanoseconds", "true_indices"]

_TOO_LONG: Final = bytes(MAX_ATTRIBUTE_BYTES + 1)

Members = Iterable[Callable[[list[Any]], Column]]
"""For each member a function that returns its column for a list of runs or steps."""


def join_columns(columns: list[Column], count: int) -> tuple[list[bytes], list[int]]:
    """Return ``count`` spans, and the indices of the invalid ones, with a value that does not fit one attribute."""
    return join_span_columns(columns, count, MAX_ATTRIBUTE_BYTES, UNSET)


def _column(field: Field) -> Callable[[list[Any]], Column]:
    get, key = attrgetter(field.member), field.key.encode()
    if field.kind is FieldKind.PAYLOAD:
        # The payloads stay ``Raw`` and are copied once, when the span is joined.
        return lambda rows: (key, list(map(get, rows)))
    if field.kind is FieldKind.TEXT:
        return lambda rows: (key, list(map(_text, map(get, rows))))
    return lambda rows: (list(map(get, rows)), key)


def _text(value: Any) -> Any:
    """Return the bytes of a member of kind TEXT, or ``_TOO_LONG`` for a value that is not canonical."""
    if value is UNSET:
        return value
    return value.encode() if type(value) is str and 0 < len(value) <= MAX_ATTRIBUTE_BYTES // 4 else _TOO_LONG


STEP_MEMBERS: Final[Members] = [_column(field) for field in STEP_TABLE.values]
RUN_MEMBERS: Final[Members] = [_column(field) for field in RUN_TABLE.values]
