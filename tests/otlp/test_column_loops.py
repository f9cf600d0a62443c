"""The two loops of the exporter's hot path, in Python and in C: one case list through both, against plain oracles."""

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
from runspan.otlp import column_loops as rows
from runspan.otlp.bulk_columns import COMPILED
from support.servers.finding import missing

BOUND = 2000
KEY = b"runspan.step.input"


def _modules() -> list[ModuleType]:
    if not COMPILED:
        return [rows]
    from runspan.otlp import _column_loops as _rows

    return [rows, _rows]


@pytest.fixture(params=["python", "c"])
def loops(request: pytest.FixtureRequest) -> ModuleType:
    """The loops in one of the two languages."""
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
NO_TIMES = [
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
    """Every day that a span can hold, leap days and ends of years among them, as ``datetime`` counts them."""
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    milliseconds = [(datetime.fromisoformat(text) - epoch) // timedelta(milliseconds=1) for text in TIMES]
    assert loops.nanoseconds(TIMES) == [number * 1_000_000 for number in milliseconds]


@pytest.mark.parametrize("value", NO_TIMES, ids=range(len(NO_TIMES)))
def test_anything_else_is_negative(loops: ModuleType, value: object) -> None:
    """What only looks like a canonical timestamp is told apart, among good ones and alone."""
    assert loops.nanoseconds([value])[0] < 0
    first, second, third = loops.nanoseconds([TIMES[0], value, TIMES[1]])
    assert (first, second < 0, third) == (0, True, 1_000_000)


@given(st.datetimes(datetime(1970, 1, 1), datetime(2262, 4, 9)), st.integers(0, 23), st.sampled_from("0a:/Z- ٣"))
def test_every_text_is_judged_as_canonical_ns_judges_it(moment: datetime, place: int, other: str) -> None:
    """A timestamp, and one with any character changed: both languages and ``model.timestamps.canonical_ns`` agree."""
    good = moment.isoformat(timespec="milliseconds") + "Z"
    changed = good[:place] + other + good[place + 1 :]
    for module in _modules():
        for text, found in zip((good, changed), module.nanoseconds([good, changed]), strict=True):
            assert (found if found >= 0 else None) == canonical_ns(text)


def spans_of(loops: ModuleType, columns: list[rows.Column], count: int) -> list[tuple[bytes, list[int]]]:
    spans, long = loops.joined_spans(columns, count, BOUND, UNSET)
    return [(span, long) for span in spans]


def test_columns_become_spans_that_protobuf_reads(loops: ModuleType) -> None:
    """Constant bytes, ready cells, texts, absent ones and times stand in the span, in their order and with lengths."""
    columns: list[rows.Column] = [
        b"\x0a\x10" + bytes(range(16)),
        [b"\x12\x08" + b"aaaaaaaa", b"\x12\x08" + b"bbbbbbbb", b""],
        ([1, 2**63 - 1, 0], [2, 2**63, 2**64 - 1]),
        (KEY, [Raw(b'{"a":1}'), UNSET, "ä€😀".encode()]),
        (b"k" * 200, [UNSET, b"", Raw(b"x" * 300)]),
    ]
    spans, long = loops.joined_spans(columns, 3, BOUND, UNSET)
    assert long == []
    scope = ScopeSpans.FromString(b"".join(spans))
    assert [(span.span_id, span.start_time_unix_nano, span.end_time_unix_nano) for span in scope.spans] == [
        (b"aaaaaaaa", 1, 2),
        (b"bbbbbbbb", 2**63 - 1, 2**63),
        (b"", 0, 2**64 - 1),
    ]
    told = [[(pair.key, pair.value.string_value) for pair in span.attributes] for span in scope.spans]
    assert told == [[(KEY.decode(), '{"a":1}')], [], [(KEY.decode(), "ä€😀"), ("k" * 200, "x" * 300)]]


@pytest.mark.parametrize("length", [1, 113, 114, 127, 128, BOUND, BOUND + 1, 16383, 16384, 70_000, 3_000_000])
def test_texts_of_every_length(loops: ModuleType, length: int) -> None:
    """Lengths around each further byte of a varint; those over the bound are named by place."""
    spans, long = loops.joined_spans([(KEY, [b"a", b"x" * length, UNSET])], 3, BOUND, UNSET)
    values = [
        pair.value.string_value for span in ScopeSpans.FromString(b"".join(spans)).spans for pair in span.attributes
    ]
    assert values == ["a", "x" * length]
    assert long == ([1] if length > BOUND else [])


def test_no_rows_and_no_columns(loops: ModuleType) -> None:
    """Nothing is nothing, and a span of no columns is an empty span."""
    assert loops.joined_spans([], 0, BOUND, UNSET) == ([], [])
    assert loops.joined_spans([(KEY, [])], 0, BOUND, UNSET) == ([], [])
    assert loops.joined_spans([], 2, BOUND, UNSET) == ([b"\x12\x00", b"\x12\x00"], [])


NUMBERS = [0, 1, 127, 128, 16_383, 16_384, 10**9, 2**53, 10**17, 10**18 - 1]
NO_NUMBERS = [
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
    """Numbers around each further byte of a varint, as ``Raw`` and as bytes, with absent ones between them."""
    texts = [Raw(b"%d" % number) if number % 2 else b"%d" % number for number in NUMBERS]
    column = [cell for text in texts for cell in (text, UNSET)]
    spans, odd = loops.joined_spans([(column, KEY), (column, b"k" * 200)], len(column), BOUND, UNSET)
    read = [
        [(pair.key, pair.value.WhichOneof("value"), pair.value.int_value) for pair in span.attributes]
        for span in ScopeSpans.FromString(b"".join(spans)).spans
    ]
    expected = [[(KEY.decode(), "int_value", number), ("k" * 200, "int_value", number)] for number in NUMBERS]
    assert (read[::2], read[1::2], odd) == (expected, [[]] * len(NUMBERS), [])


@pytest.mark.parametrize("text", NO_NUMBERS)
def test_what_is_no_plain_number_is_named_by_place(loops: ModuleType, text: str) -> None:
    """Nothing is written that would come back as another text; the spans around it are as they should be."""
    column = [b"7", Raw(text.encode()), Raw(b"8"), text.encode()]
    spans, odd = loops.joined_spans([(column, KEY)], 4, BOUND, UNSET)
    assert odd == [1, 3]
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
    """Any columns: the places of no use are the same, and the bytes of all other spans."""
    cells, some, others, counts, times = (list(column) for column in zip(*table, strict=True)) if table else ([],) * 5
    columns: list[rows.Column] = [b"\x2a\x00", cells, (times, times[::-1]), (KEY, some), (b"k" * 130, others)]
    columns += [(counts, KEY), (counts, b"k" * 130)]
    told = []
    for module in _modules():
        spans, odd = module.joined_spans(columns, len(table), 200, UNSET)
        told.append((odd, [span for place, span in enumerate(spans) if place not in odd]))
    assert all(each == told[0] for each in told)


@pytest.mark.skipif(not COMPILED, reason="the package was built without a C compiler")
@pytest.mark.parametrize(
    "call",
    [
        lambda c: c.nanoseconds(17),
        lambda c: c.joined_spans((), 0, 1, UNSET),
        lambda c: c.joined_spans([[b""]], 2, 1, UNSET),
        lambda c: c.joined_spans([(KEY, [b"a"])], 2, 1, UNSET),
        lambda c: c.joined_spans([([1], [2, 3])], 1, 1, UNSET),
        lambda c: c.joined_spans([(KEY, b"no list")], 1, 1, UNSET),
        lambda c: c.joined_spans([([b"1"], KEY)], 2, 1, UNSET),
        lambda c: c.joined_spans([([17], KEY)], 1, 1, UNSET),
        lambda c: c.joined_spans([17], 1, 1, UNSET),
        lambda c: c.joined_spans([(KEY, ["text"])], 1, 1, UNSET),
        lambda c: c.joined_spans([[UNSET]], 1, 1, UNSET),
        lambda c: c.joined_spans([([-1], [1])], 1, 1, UNSET),
        lambda c: c.joined_spans([([1], [2**64])], 1, 1, UNSET),
        lambda c: c.joined_spans([b""] * 65, 1, 1, UNSET),
        lambda c: c.joined_spans([], -1, 1, UNSET),
    ],
)
def test_the_loops_in_c_refuse_what_they_cannot_read(call: Callable[[ModuleType], object]) -> None:
    """A wrong call is an exception, never a crash and never wrong bytes."""
    with pytest.raises((TypeError, ValueError, OverflowError)):
        call(_modules()[1])
