"""The two inner loops of the exporter: timestamps to nanoseconds, and columns of members to spans; no I/O.

``_column_loops.c`` does the same several times as fast and is used if the package was built with a C compiler.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import repeat
from typing import Any, Final

from runspan.model.timestamps import canonical_ns
from runspan.otlp.protobuf_writer import (
    END_TAG,
    IN_SPAN,
    SPANS,
    START_TAG,
    integer_bytes,
    string_prefix,
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

_MAX_DIGITS: Final = 18


def nanoseconds(values: Sequence[object]) -> list[int]:
    """Return canonical timestamps in nanoseconds since 1970, and -1 for other values."""
    found = [canonical_ns(value) if type(value) is str else None for value in values]
    return [-1 if ns is None else ns for ns in found]


def join_span_columns(
    columns: list[Column], count: int, max_bytes: int, absent: object
) -> tuple[list[bytes], list[int]]:
    """Return ``count`` spans, with tag and length as in ``ScopeSpans.spans``, and the indices of the invalid ones.

    ``absent`` marks an absent value. A span is invalid if it has a text of more than ``max_bytes`` bytes, or a number
    that is not the shortest text of an unsigned integer of at most 18 digits.
    """
    invalid: set[int] = set()
    cells: list[Iterable[bytes]] = [repeat(b"", count)]
    for column in columns:
        match column:
            case bytes():
                cells.append(repeat(column, count))
            case list():
                cells.append(column)
            case (bytes() as key, list() as values):
                name = key.decode()
                texts = [b"" if value is absent else value for value in values]
                invalid.update([index for index, text in enumerate(texts) if len(text) > max_bytes])
                cells.append([string_prefix(IN_SPAN, name, len(text)) + text if len(text) else b"" for text in texts])
            case (list() as values, bytes() as key):
                name = key.decode()
                texts = [b"" if value is absent else bytes(value) for value in values]
                wrong = {index for index, text in enumerate(texts) if text and not _is_number(text)}
                invalid |= wrong
                numbers = [b"" if index in wrong else text for index, text in enumerate(texts)] if wrong else texts
                cells.append([integer_bytes(IN_SPAN, name, int(text)) if text else b"" for text in numbers])
            case (list() as starts, list() as ends):
                cells.append(map(times_bytes, repeat(START_TAG), starts, repeat(END_TAG), ends))
    contents = map(b"".join, zip(*cells, strict=True))
    return [SPANS + varint(len(content)) + content for content in contents], sorted(invalid)


def _is_number(text: bytes) -> bool:
    return text.isdigit() and len(text) <= _MAX_DIGITS and (text == b"0" or not text.startswith(b"0"))
