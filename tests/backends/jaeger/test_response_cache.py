"""Answers of Jaeger read in pieces: always what the whole answer says, however often and in whatever company."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runspan.backends.jaeger import response_cache as pieces
from runspan.backends.jaeger.response_cache import ResourceSpanCache
from runspan.backends.jaeger.responses import FoundSpan, MalformedResponse, find_traces

HOSTILE = ('{"resource":', ',{"resource":{', "]}}", '\\"},{"resource":', "ÿ", "\x00", "")
"""Texts that would mislead who cuts without looking at quotes."""


def resource(number: int, text: str = "x", spans: int = 2) -> dict[str, object]:
    """One object of ``resourceSpans``: the first span is a head."""
    attributes = [
        {"key": "runspan.revision", "value": {"intValue": "1"}},
        {"key": text, "value": {"stringValue": text}},
    ]
    return {
        "resource": {"attributes": [{"key": "service.name", "value": {"stringValue": text}}]},
        "scopeSpans": [
            {
                "scope": {"name": text},
                "spans": [
                    {
                        "traceId": f"{number + 1:032x}",
                        "spanId": f"{span + 1:016x}",
                        "name": text,
                        "startTimeUnixNano": "1795500000123456789",
                        "attributes": attributes if span == 0 else attributes[1:],
                    }
                    for span in range(spans)
                ],
            }
        ],
    }


def answer(resources: Sequence[object]) -> bytes:
    """As Jaeger's gateway writes it."""
    text = json.dumps({"result": {"resourceSpans": resources}}, separators=(",", ":"), ensure_ascii=False)
    return text.encode()


def told(found: Sequence[FoundSpan]) -> list[object]:
    """All that an answer tells."""
    return [(each.trace_id, each.span_id, each.start, each.is_head, each.text, each.span()) for each in found]


@given(
    st.lists(
        st.lists(
            st.builds(resource, st.integers(0, 5), st.sampled_from(HOSTILE) | st.text(max_size=5), st.integers(0, 3)),
            max_size=5,
        ).map(answer),
        max_size=4,
    ),
    st.booleans(),
)
def test_pieces_tell_what_the_whole_tells(answers: list[bytes], colliding: bool) -> None:
    """The same answers again and again, with pieces in common, and with digests that are all the same."""
    reader = ResourceSpanCache()
    with pytest.MonkeyPatch.context() as patch:
        if colliding:
            patch.setattr(pieces, "xxh3_64_intdigest", lambda content: 7)
        for content in answers * 3:
            assert told(reader.find(content)) == told(find_traces(content))


def test_what_is_familiar_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the second time on an answer is cut, from the third on nothing of it is read; a new piece is read alone."""
    read: list[bytes] = []

    def counted(content: bytes) -> list[FoundSpan]:
        read.append(content)
        return real(content)

    real = pieces.read_resource
    monkeypatch.setattr(pieces, "read_resource", counted)
    reader = ResourceSpanCache()
    first = answer([resource(number) for number in range(5)])
    counts = []
    for _ in range(4):
        reader.find(first)
        counts.append(len(read))
    assert counts == [0, 5, 5, 5]
    reader.find(answer([resource(number) for number in (7, *range(5))]))
    assert len(read) == 6
    reader.clear()
    reader.find(first)
    reader.find(first)
    assert len(read) == 11


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda content: content[:-1], id="cut at the end"),
        pytest.param(lambda content: content.replace(b"]}]}]},", b"]}]}],", 1), id="a piece that is not whole"),
        pytest.param(lambda content: content.replace(b'"spans":[', b'"spans":[7,', 1), id="a number for a span"),
        pytest.param(lambda content: content + b"x", id="more behind it"),
    ],
)
def test_what_cannot_be_read_is_refused_each_time(spoil: object) -> None:
    """An answer that is like one before, but damaged, is not helped out by what is remembered."""
    reader = ResourceSpanCache()
    content = answer([resource(number) for number in range(4)])
    for _ in range(3):
        reader.find(content)
    damaged = spoil(content)  # type: ignore[operator]
    assert damaged != content
    for _ in range(3):
        with pytest.raises(MalformedResponse):
            reader.find(damaged)
    assert told(reader.find(content)) == told(find_traces(content))


def test_another_way_of_writing_is_read_whole() -> None:
    """Spaces, members in another order, a resource left out, an object a line: right, if without the shortcut."""
    reader = ResourceSpanCache()
    bare = [{"scopeSpans": resource(number)["scopeSpans"]} for number in range(3)]
    spaced = json.dumps({"result": {"resourceSpans": [resource(1), resource(2)]}}).encode()
    mixed = answer([resource(0), *bare, resource(1)])
    lines = answer([resource(0), resource(1)]) + b"\n" + answer([resource(2)])
    for content in (answer(bare), spaced, mixed, lines, answer([]), answer([resource(1), resource(2)]) + b"\n") * 3:
        assert told(reader.find(content)) == told(find_traces(content))


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is remembered stays near its bound, and a piece that is too long is not remembered at all."""
    monkeypatch.setattr(pieces, "_BOUND", 20_000)
    monkeypatch.setattr(pieces, "_LONG", 5_000)
    monkeypatch.setattr(pieces, "_SEEN", 8)
    reader = ResourceSpanCache()
    for number in range(0, 400, 4):
        content = answer([resource(0), *(resource(number + each) for each in range(4)), resource(9, "y" * 6_000)])
        assert told(reader.find(content)) == told(find_traces(content))
        assert sum(len(piece) for piece, _ in reader._known.values()) == reader._bytes <= 25_000
        assert len(reader._seen) <= 9
    assert 0 < len(reader._known) < 60
