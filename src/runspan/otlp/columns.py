"""Columns of a batch: one member of all its rows at once, as the bytes that stand on their spans; no I/O.

The loops run inside ``map``, ``zip`` and ``join``: interpreter's steps for every member of every span are what the hot
path of the exporter cannot pay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import compress, repeat
from operator import add, attrgetter, gt, is_not, itemgetter
from typing import Any, Final

from msgspec import UNSET, Raw

from runspan.carry import Pairs, put_value
from runspan.fields import PIECE_BYTES, RUN_TABLE, STEP_TABLE, Field, Kind
from runspan.otlp.wire import IN_SPAN, SPANS, Heads, attribute_bytes, integer_bytes, varint
from runspan.times import FRACTIONS, MINUTES, SECONDS

_BAD: Final = -(1 << 70)
"""Nanoseconds of a text that is no canonical timestamp: so low that every sum with it is negative."""
_MEMO: Final = 10_000


class _MinutesOrBad(dict[str, int]):
    """``times.MINUTES`` for a column: ``_BAD`` instead of an error."""

    def __missing__(self, prefix: str) -> int:
        try:
            ns = MINUTES[prefix]
        except KeyError:
            return _BAD
        if len(self) >= _MEMO:
            self.clear()
        self[prefix] = ns
        return ns


_MINUTES: Final = _MinutesOrBad()
_TO_MINUTE, _TO_SECOND, _TO_END = itemgetter(slice(0, 17)), itemgetter(slice(17, 19)), itemgetter(slice(19, None))


def nanoseconds(values: Iterable[object]) -> list[int]:
    """Canonical timestamps in nanoseconds; anything negative for other values."""
    texts = [value if type(value) is str else "" for value in values]
    minutes = map(_MINUTES.__getitem__, map(_TO_MINUTE, texts))
    seconds = map(SECONDS.get, map(_TO_SECOND, texts), repeat(_BAD))
    fractions = map(FRACTIONS.get, map(_TO_END, texts), repeat(_BAD))
    return list(map(add, map(add, minutes, seconds), fractions))


def where_true(flags: Iterable[object]) -> Iterator[int]:
    """The places of what is true."""
    return compress(range(1 << 62), flags)


class TextColumn:
    """A string attribute: for each text what stands before it, and the text; nothing for an empty one."""

    def __init__(self, key: str) -> None:
        self.heads = Heads(key)
        self.heads[0] = b""

    def write(self, texts: list[bytes]) -> tuple[Iterable[bytes], ...]:
        return map(self.heads.__getitem__, map(len, texts)), texts


class _PayloadColumn(TextColumn):
    """A member of kind PAYLOAD."""

    def read(self, values: list[Any]) -> list[bytes]:
        return list(map(bytes, values))


class _StringColumn(TextColumn):
    """A member of kind TEXT. What does not fit makes the text too long, which the caller looks for."""

    def read(self, values: list[Any]) -> list[bytes]:
        return [
            value.encode() if type(value) is str and 0 < len(value) <= PIECE_BYTES // 4 else _TOO_LONG
            for value in values
        ]


class _IntegerColumn:
    """A member of kind INTEGER."""

    def __init__(self, field: Field) -> None:
        self.field = field

    def read(self, values: list[Any]) -> list[bytes]:
        return list(map(bytes, values))

    def write(self, texts: list[bytes]) -> tuple[Iterable[bytes], ...]:
        return (map(self._bytes, texts),)

    def _bytes(self, text: bytes) -> bytes:
        if len(text) < 9 and text.isdigit() and (text[0] != 0x30 or len(text) == 1):
            return integer_bytes(IN_SPAN, self.field.key, int(text))
        pairs: Pairs = []
        put_value(pairs, self.field, Raw(text))
        return b"".join([attribute_bytes(key, value) for key, value in pairs])


_TOO_LONG: Final = bytes(PIECE_BYTES + 1)
_Column = _PayloadColumn | _StringColumn | _IntegerColumn


def _column(field: Field) -> tuple[Callable[[Any], Any], _Column]:
    kinds: dict[Kind, _Column] = {
        Kind.PAYLOAD: _PayloadColumn(field.key),
        Kind.TEXT: _StringColumn(field.key),
        Kind.INTEGER: _IntegerColumn(field),
    }
    return attrgetter(field.member), kinds[field.kind]


STEP_COLUMNS: Final = [_column(field) for field in STEP_TABLE.values]
RUN_COLUMNS: Final = [_column(field) for field in RUN_TABLE.values]


def member_columns(
    columns: Iterable[tuple[Callable[[Any], Any], _Column]], rows: list[Any]
) -> Iterator[tuple[list[int], tuple[Iterable[bytes], ...]]]:
    """The members of all rows, column by column: the places of those too long for one attribute, and the bytes."""
    for get, column in columns:
        values = list(map(get, rows))
        places = list(where_true(map(is_not, values, repeat(UNSET))))
        if not places:
            continue
        texts = column.read(values if len(places) == len(rows) else [values[place] for place in places])
        long = [places[number] for number in where_true(map(gt, map(len, texts), repeat(PIECE_BYTES)))]
        cells = column.write(texts)
        if len(places) < len(rows):
            filled = [b""] * len(rows)
            for place, cell in zip(places, map(b"".join, zip(*cells, strict=True)), strict=True):
                filled[place] = cell
            cells = (filled,)
        yield long, cells


def joined_spans(columns: list[Iterable[bytes]]) -> list[bytes]:
    """The rows of the columns joined, each with the tag and the length of a span."""
    contents = list(map(b"".join, zip(*columns, strict=False)))
    return list(map(add, map(_SPAN_HEADS.__getitem__, map(len, contents)), contents))


class _SpanHeads(dict[int, bytes]):
    """Tag and length of a span by its length."""

    def __missing__(self, length: int) -> bytes:
        head = SPANS + varint(length)
        if length < _REMEMBERED_LENGTHS:
            self[length] = head
        return head


_REMEMBERED_LENGTHS: Final = 16384
_SPAN_HEADS: Final = _SpanHeads()
