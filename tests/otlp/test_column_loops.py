"""The two inner loops of the exporter, in Python and in C, have the same results for one case list."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET, Raw
from opentelemetry.proto.trace.v1.trace_pb2 import ScopeSpans

from runspan.model.timestamps import canonical_ns
from runspan.otlp import column_loops
from runspan.otlp.bulk_writer import COMPILED
from support.servers.finding import missing

MAX_BYTES = 2000
KEY = b"runspan.step.input"


def _modules() -> list[ModuleType]:
    if not COMPILED:
        return [column_loops]
    from runspan.otlp import _column_loops

    return [column_loops, _column_loops]


@pytest.fixture(params=["python", "c"])
def loops(request: pytest.FixtureRequest) -> ModuleType:
    """Return the loops in one of the two languages."""
    modules = _modules()
    if request.param == "c" and len(modules) == 1:
        missing("compiled", "the package was built without a C compiler")
    return modules[0] if request.param == "python" else modules[1]


TIMES = [
    "1970-01-01T00:00:00.000Z",
    "1970-01-01T00:00:00.001Z",
    "1972-02-29T23:59:59.999Z",
    "1999-12-31T23:59:59.999Z",
    "2000-02-29T00:00:00.000Z",
    "2000-03-01T00:00:00.000Z",
    "2024-01-15T09:00:01.200Z",
    "2024-12-31T09:00:01.200Z",
    "2100-02-28T12:34:56.789Z",
    "2262-04-09T23:59:59.999Z",
]
INVALID_TIMES = [
    "",
    "1969-12-31T23:59:59.999Z",
    "0000-01-01T00:00:00.000Z",
    "1900-01-01T00:00:00.000Z",
    "2023-02-29T00:00:00.000Z",
    "2100-02-29T00:00:00.000Z",
    "2024-04-31T00:00:00.000Z",
    "2024-00-15T00:00:00.000Z",
    "2024-13-15T00:00:00.000Z",
    "2024-01-00T00:00:00.000Z",
    "2024-01-32T00:00:00.000Z",
    "2024-01-15T24:00:00.000Z",
    "2024-01-15T00:60:00.000Z",
    "2024-01-15T00:00:60.000Z",
    "2024-01-15T00:00:00.000z",
    "2024-01-15t00:00:00.000Z",
    "2024-01-15 00:00:00.000Z",
    "2024-01-15T00:00:00,000Z",
    "2024-01-15T00:00:00.0000Z",
    "2024-01-15T00:00:00.00Z",
    "2024-01-15T00:00:00Z",
    "2024-01-15T00:00:00.000+00:00",
    "2024-01-15T0 :00:00.000Z",
    "2024-01-15T-1:00:00.000Z",
    "2024-01-15T00:00:00.0/0Z",
    "2024-01-15T00:00:00.:00Z",
    "٢٠٢٤-01-15T00:00:00.000Z",
    "2024-01-15T00:00:00.00\u0660Z",
    "2262-04-11T23:47:16.854Z",
    "9999-12-31T23:59:59.999Z",
    " 024-01-15T00:00:00.000Z",
    None,
    UNSET,
    Raw(b'"2024-01-15T09:00:01.200Z"'),
    17,
    b"2024-01-15T09:00:01.200Z",
]


def test_canonical_timestamps_have_their_nanoseconds(loops: ModuleType) -> None:
    """Timestamps, including leap days and ends of years, have the nanoseconds that ``datetime`` computes."""
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    milliseconds = [(datetime.fromisoformat(text) - epoch) // timedelta(milliseconds=1) for text in TIMES]
    assert loops.nanoseconds(TIMES) == [number * 1_000_000 for number in milliseconds]


@pytest.mark.parametrize("value", INVALID_TIMES, ids=range(len(INVALID_TIMES)))
def test_anything_else_is_negative(loops: ModuleType, value: object) -> None:
    """Text that only resembles a canonical timestamp has a negative number, alone and between valid timestamps."""
    assert loops.nanoseconds([value])[0] < 0
    first, second, third = loops.nanoseconds([TIMES[0], value, TIMES[1]])
    assert (first, second < 0, third) == (0, True, 1_000_000)


@given(st.datetimes(datetime(1970, 1, 1), datetime(2262, 4, 9)), st.integers(0, 23), st.sampled_from("0a:/Z- ٣"))
def test_nanoseconds_agree_with_canonical_ns(moment: datetime, index: int, other: str) -> None:
    """Both languages agree with ``model.timestamps.canonical_ns`` for a timestamp with any character changed."""
    valid = moment.isoformat(timespec="milliseconds") + "Z"
    changed = valid[:index] + other + valid[index + 1 :]
    for module in _modules():
        for text, found in zip((valid, changed), module.nanoseconds([valid, changed]), strict=True):
            assert (found if found >= 0 else None) == canonical_ns(text)


def test_columns_become_spans_that_protobuf_reads(loops: ModuleType) -> None:
    """Constant bytes, cells, texts, absent texts and times become span fields in order and with correct lengths."""
    columns: list[column_loops.Column] = [
        b"\x0a\x10" + bytes(range(16)),
        [b"\x12\x08" + b"aaaaaaaa", b"\x12\x08" + b"bbbbbbbb", b""],
        ([1, 2**63 - 1, 0], [2, 2**63, 2**64 - 1]),
        (KEY, [Raw(b'{"a":1}'), UNSET, "ä€😀".encode()]),
        (b"k" * 200, [UNSET, b"", Raw(b"x" * 300)]),
    ]
    spans, invalid = loops.join_span_columns(columns, 3, MAX_BYTES, UNSET)
    assert invalid == []
    scope = ScopeSpans.FromString(b"".join(spans))
    assert [(span.span_id, span.start_time_unix_nano, span.end_time_unix_nano) for span in scope.spans] == [
        (b"aaaaaaaa", 1, 2),
        (b"bbbbbbbb", 2**63 - 1, 2**63),
        (b"", 0, 2**64 - 1),
    ]
    attributes = [[(pair.key, pair.value.string_value) for pair in span.attributes] for span in scope.spans]
    assert attributes == [[(KEY.decode(), '{"a":1}')], [], [(KEY.decode(), "ä€😀"), ("k" * 200, "x" * 300)]]


@pytest.mark.parametrize("length", [1, 113, 114, 127, 128, MAX_BYTES, MAX_BYTES + 1, 16383, 16384, 70_000, 3_000_000])
def test_texts_of_every_length(loops: ModuleType, length: int) -> None:
    """Texts have correct lengths around each further byte of a varint, and too long texts are reported by index."""
    spans, invalid = loops.join_span_columns([(KEY, [b"a", b"x" * length, UNSET])], 3, MAX_BYTES, UNSET)
    values = [
        pair.value.string_value for span in ScopeSpans.FromString(b"".join(spans)).spans for pair in span.attributes
    ]
    assert values == ["a", "x" * length]
    assert invalid == ([1] if length > MAX_BYTES else [])


def test_no_rows_and_no_columns(loops: ModuleType) -> None:
    """No rows give no spans, and no columns give empty spans."""
    assert loops.join_span_columns([], 0, MAX_BYTES, UNSET) == ([], [])
    assert loops.join_span_columns([(KEY, [])], 0, MAX_BYTES, UNSET) == ([], [])
    assert loops.join_span_columns([], 2, MAX_BYTES, UNSET) == ([b"\x12\x00", b"\x12\x00"], [])


NUMBERS = [0, 1, 127, 128, 16_383, 16_384, 10**9, 2**53, 10**17, 10**18 - 1]
INVALID_NUMBERS = [
    "-1",
    "-0",
    "+1",
    "00",
    "01",
    "1.0",
    "1e3",
    "1 ",
    " 1",
    "9" * 19,
    "9" * 30,
    "٣",
    "null",
    '"1"',
    "0x1",
    "1_0",
]


def test_numbers_become_integers(loops: ModuleType) -> None:
    """Numbers around each further byte of a varint become integers, as ``Raw`` and as bytes, some of them absent."""
    texts = [Raw(b"%d" % number) if number % 2 else b"%d" % number for number in NUMBERS]
    column = [cell for text in texts for cell in (text, UNSET)]
    spans, invalid = loops.join_span_columns([(column, KEY), (column, b"k" * 200)], len(column), MAX_BYTES, UNSET)
    read = [
        [(pair.key, pair.value.WhichOneof("value"), pair.value.int_value) for pair in span.attributes]
        for span in ScopeSpans.FromString(b"".join(spans)).spans
    ]
    expected = [[(KEY.decode(), "int_value", number), ("k" * 200, "int_value", number)] for number in NUMBERS]
    assert (read[::2], read[1::2], invalid) == (expected, [[]] * len(NUMBERS), [])


@pytest.mark.parametrize("text", INVALID_NUMBERS)
def test_invalid_numbers_are_reported_by_index(loops: ModuleType, text: str) -> None:
    """A text that would come back changed is reported, and the spans around it are correct."""
    column = [b"7", Raw(text.encode()), Raw(b"8"), text.encode()]
    spans, invalid = loops.join_span_columns([(column, KEY)], 4, MAX_BYTES, UNSET)
    assert invalid == [1, 3]
    read = [[pair.value.int_value for pair in span.attributes] for span in ScopeSpans.FromString(b"".join(spans)).spans]
    assert (read[0], read[2]) == ([7], [8])


texts = st.one_of(st.just(UNSET), st.binary(max_size=300), st.binary(min_size=1, max_size=300).map(Raw))


numbers = st.one_of(
    st.just(UNSET),
    st.integers(-10, 10**20).map(lambda number: b"%d" % number),
    st.text("0123456789-+.e ", max_size=22).map(lambda text: Raw(text.encode())),
)


@given(st.lists(st.tuples(st.binary(max_size=40), texts, texts, numbers, st.integers(0, 2**64 - 1)), max_size=30))
def test_both_languages_write_the_same(table: list[tuple[bytes, object, object, object, int]]) -> None:
    """For any columns both languages report the same invalid spans and write the same bytes for all others."""
    cells, some, others, counts, times = (list(column) for column in zip(*table, strict=True)) if table else ([],) * 5
    columns: list[column_loops.Column] = [b"\x2a\x00", cells, (times, times[::-1]), (KEY, some), (b"k" * 130, others)]
    columns += [(counts, KEY), (counts, b"k" * 130)]
    results = []
    for module in _modules():
        spans, invalid = module.join_span_columns(columns, len(table), 200, UNSET)
        results.append((invalid, [span for index, span in enumerate(spans) if index not in invalid]))
    assert all(result == results[0] for result in results)


@pytest.mark.skipif(not COMPILED, reason="the package was built without a C compiler")
@pytest.mark.parametrize(
    "call",
    [
        lambda c: c.nanoseconds(17),
        lambda c: c.join_span_columns((), 0, 1, UNSET),
        lambda c: c.join_span_columns([[b""]], 2, 1, UNSET),
        lambda c: c.join_span_columns([(KEY, [b"a"])], 2, 1, UNSET),
        lambda c: c.join_span_columns([([1], [2, 3])], 1, 1, UNSET),
        lambda c: c.join_span_columns([(KEY, b"no list")], 1, 1, UNSET),
        lambda c: c.join_span_columns([([b"1"], KEY)], 2, 1, UNSET),
        lambda c: c.join_span_columns([([17], KEY)], 1, 1, UNSET),
        lambda c: c.join_span_columns([17], 1, 1, UNSET),
        lambda c: c.join_span_columns([(KEY, ["text"])], 1, 1, UNSET),
        lambda c: c.join_span_columns([[UNSET]], 1, 1, UNSET),
        lambda c: c.join_span_columns([([-1], [1])], 1, 1, UNSET),
        lambda c: c.join_span_columns([([1], [2**64])], 1, 1, UNSET),
        lambda c: c.join_span_columns([b""] * 65, 1, 1, UNSET),
        lambda c: c.join_span_columns([], -1, 1, UNSET),
    ],
)
def test_the_c_extension_refuses_invalid_arguments(call: Callable[[ModuleType], object]) -> None:
    """A wrong call raises an exception instead of crashing or returning wrong bytes."""
    with pytest.raises((TypeError, ValueError, OverflowError)):
        call(_modules()[1])
