"""The two inner loops of the exporter: timestamps to nanoseconds, and columns of members to spans; no I/O.

``_column_loops.c`` does the same three times as fast and is used where the package was built with a C compiler. In this
module the loops run inside ``map``, ``zip`` and ``join``: a bytecode loop over every member of every span would cost
twice as much.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import compress, repeat
from operator import add, eq, gt, is_not, itemgetter
from typing import Any, Final

from msgspec import Raw

from runspan.model.timestamps import FRACTIONS, MINUTES, SECONDS
from runspan.otlp.protobuf_writer import (
    END_TAG,
    IN_SPAN,
    SPANS,
    START_TAG,
    KeyPrefixes,
    integer_bytes,
    times_bytes,
    varint,
)

Column = bytes | list[bytes] | tuple[bytes, list[Any]] | tuple[list[Any], bytes] | tuple[list[int], list[int]]
"""One part of all spans. Bytes: the same on every span. A list: ready bytes, for each span its own. A key and a list:
a string attribute with these texts, bytes or ``Raw``; none where the text is empty or absent. A list and a key: an
integer attribute with the numbers that these texts are. Two lists: starts and ends, nanoseconds since 1970."""

_INVALID: Final = -(1 << 70)
"""Nanoseconds of a text that is no canonical timestamp: so low that every sum with it is negative."""
_MEMO: Final = 10_000
_REMEMBERED_LENGTHS: Final = 16384
_DIGITS: Final = 18
_ZERO: Final = ord("0")
_SHORT_NUMBER: Final = 9
_NO_NUMBER: Final = b"no number"
_FEW: Final = 4
"""A column of which less than this part is there is written cell by cell."""


class _MinutesOrInvalid(dict[str, int]):
    """``times.MINUTES`` for a column: ``_BAD`` instead of an error."""

    def __missing__(self, prefix: str) -> int:
        try:
            ns = MINUTES[prefix]
        except KeyError:
            return _INVALID
        if len(self) >= _MEMO:
            self.clear()
        self[prefix] = ns
        return ns


_MINUTES: Final = _MinutesOrInvalid()
_TO_MINUTE, _TO_SECOND, _TO_END = itemgetter(slice(0, 17)), itemgetter(slice(17, 19)), itemgetter(slice(19, None))


def nanoseconds(values: Sequence[object]) -> list[int]:
    """Canonical timestamps in nanoseconds since 1970; anything negative for other values."""
    texts = [value if type(value) is str else "" for value in values]
    minutes = map(_MINUTES.__getitem__, map(_TO_MINUTE, texts))
    seconds = map(SECONDS.get, map(_TO_SECOND, texts), repeat(_INVALID))
    fractions = map(FRACTIONS.get, map(_TO_END, texts), repeat(_INVALID))
    return list(map(add, map(add, minutes, seconds), fractions))


def joined_spans(columns: list[Column], count: int, bound: int, absent: object) -> tuple[list[bytes], list[int]]:
    """So many spans, each as a member of ``ScopeSpans.spans``: tag, length, and what the columns say, in their order.

    absent: stands for a text that is not there. Returns also the places of spans that are of no use, in their order:
    they have a text of over ``bound`` bytes, or a number that is not the shortest text of an integer of at most 18
    digits without a sign.
    """
    odd: set[int] = set()
    cells: list[Iterable[bytes | Raw]] = []
    for column in columns:
        if isinstance(column, bytes):
            cells.append(repeat(column))
        elif isinstance(column, list):
            cells.append(column)
        elif isinstance(column[0], bytes):
            cells += _attributes(column[0], column[1], bound, absent, odd)
        elif isinstance(column[1], bytes):
            cells.append(_numbers(column[1], column[0], absent, odd))
        else:
            cells.append(map(times_bytes, repeat(START_TAG), column[0], repeat(END_TAG), column[1]))
    rows = map(b"".join, zip(*cells, strict=False)) if cells else repeat(b"")
    contents = [content for _, content in zip(range(count), rows, strict=False)]
    return list(map(add, map(_SPAN_HEADS.__getitem__, map(len, contents)), contents)), sorted(odd)


def true_indices(flags: Iterable[object]) -> Iterator[int]:
    """The places of what is true."""
    return compress(range(1 << 62), flags)


def _attributes(
    key: bytes, texts: list[Any], bound: int, absent: object, odd: set[int]
) -> tuple[Iterable[bytes | Raw], ...]:
    """What stands before the texts, and the texts. odd: the places of texts over the bound are added."""
    places = list(true_indices(map(is_not, texts, repeat(absent))))
    if not places:
        return ()
    heads = _HEADS[key]
    few = len(places) < len(texts) // _FEW
    written = [texts[place] for place in places] if few else [b"" if text is absent else text for text in texts]
    lengths = list(map(len, written))
    if max(lengths) > bound:
        over = true_indices(map(gt, lengths, repeat(bound)))
        odd.update([places[number] for number in over] if few else over)
    before = map(heads.__getitem__, lengths)
    return (_filled(places, before, len(texts)), _filled(places, written, len(texts))) if few else (before, written)


def _numbers(key: bytes, texts: list[Any], absent: object, odd: set[int]) -> list[bytes]:
    """Integer attributes. odd: the places of texts that are no such number are added."""
    attributes = _NUMBERS[key]
    cells = [b"" if text is absent else attributes[bytes(text)] for text in texts]
    if _NO_NUMBER in cells:
        odd.update(true_indices(map(eq, cells, repeat(_NO_NUMBER))))
        cells = [b"" if cell is _NO_NUMBER else cell for cell in cells]
    return cells


def _filled(places: list[int], cells: Iterable[bytes | Raw], count: int) -> list[bytes | Raw]:
    """A whole column: the cells at their places, and nothing elsewhere."""
    filled: list[bytes | Raw] = [b""] * count
    for place, cell in zip(places, cells, strict=True):
        filled[place] = cell
    return filled


class _KeyPrefixesByKey(dict[bytes, KeyPrefixes]):
    """What stands before the strings of a key; nothing before an empty one, which is not written."""

    def __missing__(self, key: bytes) -> KeyPrefixes:
        heads = self[key] = KeyPrefixes(key.decode())
        heads[0] = b""
        return heads


class _IntegerTexts(dict[bytes, bytes]):
    """The integer attributes of one key by the number's text: durations and attempts recur."""

    def __init__(self, key: str) -> None:
        super().__init__()
        self._key = key

    def __missing__(self, text: bytes) -> bytes:
        if not text:
            return b""
        if len(text) > _DIGITS or not text.isdigit() or (text[0] == _ZERO and len(text) > 1):
            return _NO_NUMBER
        attribute = integer_bytes(IN_SPAN, self._key, int(text))
        if len(text) < _SHORT_NUMBER:
            if len(self) >= _MEMO:
                self.clear()
            self[text] = attribute
        return attribute


class _IntegerTextsByKey(dict[bytes, _IntegerTexts]):
    """``_Numbers`` by key: those of the tables."""

    def __missing__(self, key: bytes) -> _IntegerTexts:
        numbers = self[key] = _IntegerTexts(key.decode())
        return numbers


class _SpanPrefixes(dict[int, bytes]):
    """Tag and length of a span by its length."""

    def __missing__(self, length: int) -> bytes:
        head = SPANS + varint(length)
        if length < _REMEMBERED_LENGTHS:
            self[length] = head
        return head


_HEADS: Final = _KeyPrefixesByKey()
_NUMBERS: Final = _IntegerTextsByKey()
_SPAN_HEADS: Final = _SpanPrefixes()
