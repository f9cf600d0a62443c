"""The two inner loops of the exporter: timestamps to nanoseconds, and columns of members to spans; no I/O.

``_column_loops.c`` does the same three times as fast and is used if the package was built with a C compiler. The loops
of this module run inside ``map``, ``zip`` and ``join``, which takes half the time of a loop in bytecode.
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
"""One part of all spans.

- bytes: the same bytes in every span.
- list: the bytes of each span.
- key and list: a string attribute with these texts, bytes or ``Raw``; omitted where the text is empty or absent.
- list and key: an integer attribute, from the texts of the numbers.
- two lists: start and end times in nanoseconds since 1970.
"""

_INVALID: Final = -(1 << 70)
"""The nanoseconds of a text that is not a canonical timestamp: so low that every sum with it is negative."""
_CACHE_SIZE: Final = 10_000
_MAX_CACHED_LENGTH: Final = 16384
_MAX_DIGITS: Final = 18
_MAX_CACHED_DIGITS: Final = 8
_ZERO: Final = ord("0")
_NOT_A_NUMBER: Final = b"not a number"
_SPARSE: Final = 4
"""A column with values in less than a fourth of its rows is written value by value."""


class _MinutesOrInvalid(dict[str, int]):
    """``timestamps.MINUTES`` with ``_INVALID`` instead of KeyError."""

    def __missing__(self, prefix: str) -> int:
        try:
            ns = MINUTES[prefix]
        except KeyError:
            return _INVALID
        if len(self) >= _CACHE_SIZE:
            self.clear()
        self[prefix] = ns
        return ns


_MINUTES: Final = _MinutesOrInvalid()
_TO_MINUTE, _TO_SECOND, _TO_END = itemgetter(slice(0, 17)), itemgetter(slice(17, 19)), itemgetter(slice(19, None))


def nanoseconds(values: Sequence[object]) -> list[int]:
    """Return canonical timestamps in nanoseconds since 1970, and negative numbers for other values."""
    texts = [value if type(value) is str else "" for value in values]
    minutes = map(_MINUTES.__getitem__, map(_TO_MINUTE, texts))
    seconds = map(SECONDS.get, map(_TO_SECOND, texts), repeat(_INVALID))
    fractions = map(FRACTIONS.get, map(_TO_END, texts), repeat(_INVALID))
    return list(map(add, map(add, minutes, seconds), fractions))


def join_span_columns(
    columns: list[Column], count: int, max_bytes: int, absent: object
) -> tuple[list[bytes], list[int]]:
    """Return ``count`` spans, with tag and length as in ``ScopeSpans.spans``, and the indices of the invalid ones.

    ``absent`` marks an absent value. A span is invalid if it has a text of more than ``max_bytes`` bytes, or a number
    that is not the shortest text of an unsigned integer of at most 18 digits.
    """
    invalid: set[int] = set()
    cells: list[Iterable[bytes | Raw]] = []
    for column in columns:
        if isinstance(column, bytes):
            cells.append(repeat(column))
        elif isinstance(column, list):
            cells.append(column)
        elif isinstance(column[0], bytes):
            cells += _string_attributes(column[0], column[1], max_bytes, absent, invalid)
        elif isinstance(column[1], bytes):
            cells.append(_integer_attributes(column[1], column[0], absent, invalid))
        else:
            cells.append(map(times_bytes, repeat(START_TAG), column[0], repeat(END_TAG), column[1]))
    rows = map(b"".join, zip(*cells, strict=False)) if cells else repeat(b"")
    contents = [content for _, content in zip(range(count), rows, strict=False)]
    return list(map(add, map(_SPAN_PREFIXES.__getitem__, map(len, contents)), contents)), sorted(invalid)


def true_indices(flags: Iterable[object]) -> Iterator[int]:
    """Yield the indices of true values."""
    return compress(range(1 << 62), flags)


def _string_attributes(
    key: bytes, texts: list[Any], max_bytes: int, absent: object, invalid: set[int]
) -> tuple[Iterable[bytes | Raw], ...]:
    """Return a column of prefixes and one of texts. Adds the indices of too long texts to ``invalid``."""
    present = list(true_indices(map(is_not, texts, repeat(absent))))
    if not present:
        return ()
    is_sparse = len(present) < len(texts) // _SPARSE
    values = [texts[index] for index in present] if is_sparse else [b"" if text is absent else text for text in texts]
    lengths = list(map(len, values))
    if max(lengths) > max_bytes:
        too_long = true_indices(map(gt, lengths, repeat(max_bytes)))
        invalid.update([present[index] for index in too_long] if is_sparse else too_long)
    prefixes = map(_KEY_PREFIXES[key].__getitem__, lengths)
    if is_sparse:
        return _expand(present, prefixes, len(texts)), _expand(present, values, len(texts))
    return prefixes, values


def _integer_attributes(key: bytes, texts: list[Any], absent: object, invalid: set[int]) -> list[bytes]:
    """Return a column of integer attributes. Adds the indices of texts that are no such integer to ``invalid``."""
    attributes = _INTEGERS[key]
    cells = [b"" if text is absent else attributes[bytes(text)] for text in texts]
    if _NOT_A_NUMBER in cells:
        invalid.update(true_indices(map(eq, cells, repeat(_NOT_A_NUMBER))))
        cells = [b"" if cell is _NOT_A_NUMBER else cell for cell in cells]
    return cells


def _expand(indices: list[int], cells: Iterable[bytes | Raw], count: int) -> list[bytes | Raw]:
    """Return a column of ``count`` rows with the cells at their indices and empty cells elsewhere."""
    column: list[bytes | Raw] = [b""] * count
    for index, cell in zip(indices, cells, strict=True):
        column[index] = cell
    return column


class _KeyPrefixesByKey(dict[bytes, KeyPrefixes]):
    """The prefixes of string attributes by key. The prefix of an empty string is empty, because it is not written."""

    def __missing__(self, key: bytes) -> KeyPrefixes:
        prefixes = self[key] = KeyPrefixes(key.decode())
        prefixes[0] = b""
        return prefixes


class _IntegerTexts(dict[bytes, bytes]):
    """The integer attributes of one key by the text of the number. Durations and attempts recur, so they are cached."""

    def __init__(self, key: str) -> None:
        super().__init__()
        self._key = key

    def __missing__(self, text: bytes) -> bytes:
        if not text:
            return b""
        if len(text) > _MAX_DIGITS or not text.isdigit() or (text[0] == _ZERO and len(text) > 1):
            return _NOT_A_NUMBER
        attribute = integer_bytes(IN_SPAN, self._key, int(text))
        if len(text) <= _MAX_CACHED_DIGITS:
            if len(self) >= _CACHE_SIZE:
                self.clear()
            self[text] = attribute
        return attribute


class _IntegerTextsByKey(dict[bytes, _IntegerTexts]):
    """``_IntegerTexts`` by key, for the keys of the tables."""

    def __missing__(self, key: bytes) -> _IntegerTexts:
        integers = self[key] = _IntegerTexts(key.decode())
        return integers


class _SpanPrefixes(dict[int, bytes]):
    """The tag and length of a span by its length."""

    def __missing__(self, length: int) -> bytes:
        prefix = SPANS + varint(length)
        if length < _MAX_CACHED_LENGTH:
            self[length] = prefix
        return prefix


_KEY_PREFIXES: Final = _KeyPrefixesByKey()
_INTEGERS: Final = _IntegerTextsByKey()
_SPAN_PREFIXES: Final = _SpanPrefixes()
