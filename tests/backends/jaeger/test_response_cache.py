"""Cached responses of Jaeger are the same as responses that are decoded without a cache."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runspan.backends.jaeger import response_cache
from runspan.backends.jaeger.response_cache import ResourceSpanCache
from runspan.backends.jaeger.responses import FoundSpan, MalformedResponse, find_traces

HOSTILE = ('{"resource":', ',{"resource":{', "]}}", '\\"},{"resource":', "ÿ", "\x00", "")
"""Texts that would mislead a split that ignores quotes."""


def resource(number: int, text: str = "x", spans: int = 2) -> dict[str, object]:
    """Return one object of ``resourceSpans``, whose first span is a revision span."""
    attributes = [
        {"key": "runspan.role", "value": {"stringValue": "run"}},
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


def response(resources: Sequence[object]) -> bytes:
    """Return a response as Jaeger's gateway writes it."""
    text = json.dumps({"result": {"resourceSpans": resources}}, separators=(",", ":"), ensure_ascii=False)
    return text.encode()


def content_of(found: Sequence[FoundSpan]) -> list[object]:
    """Return everything that the spans contain."""
    return [(span.trace_id, span.span_id, span.start, span.may_be_revision_span, span.span()) for span in found]


@given(
    st.lists(
        st.lists(
            st.builds(resource, st.integers(0, 5), st.sampled_from(HOSTILE) | st.text(max_size=5), st.integers(0, 3)),
            max_size=5,
        ).map(response),
        max_size=4,
    ),
    st.booleans(),
)
def test_a_cached_response_equals_a_decoded_one(responses: list[bytes], colliding: bool) -> None:
    """Decode the same responses again and again, with objects in common, and with digests that are all the same."""
    cache = ResourceSpanCache()
    with pytest.MonkeyPatch.context() as patch:
        if colliding:
            patch.setattr(response_cache, "xxh3_64_intdigest", lambda content: 7)
        for content in responses * 3:
            assert content_of(cache.find(content)) == content_of(find_traces(content))


def test_what_was_seen_before_is_decoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second time a response is split, the third time nothing is decoded; of another one, only a new object is."""
    decoded: list[bytes] = []

    def counted(content: bytes) -> list[FoundSpan]:
        decoded.append(content)
        return real(content)

    real = response_cache.read_resource
    monkeypatch.setattr(response_cache, "read_resource", counted)
    cache = ResourceSpanCache()
    first = response([resource(number) for number in range(5)])
    counts = []
    for _ in range(4):
        cache.find(first)
        counts.append(len(decoded))
    assert counts == [0, 5, 5, 5]
    cache.find(response([resource(number) for number in (7, *range(5))]))
    assert len(decoded) == 6


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda content: content[:-1], id="cut at the end"),
        pytest.param(lambda content: content.replace(b"]}]}]},", b"]}]}],", 1), id="an object that is incomplete"),
        pytest.param(lambda content: content.replace(b'"spans":[', b'"spans":[7,', 1), id="a number for a span"),
        pytest.param(lambda content: content + b"x", id="more after it"),
    ],
)
def test_a_malformed_response_is_refused_each_time(spoil: object) -> None:
    """A response that is like an earlier one, but damaged, is not completed from the cache."""
    cache = ResourceSpanCache()
    content = response([resource(number) for number in range(4)])
    for _ in range(3):
        cache.find(content)
    damaged = spoil(content)  # type: ignore[operator]
    assert damaged != content
    for _ in range(3):
        with pytest.raises(MalformedResponse):
            cache.find(damaged)
    assert content_of(cache.find(content)) == content_of(find_traces(content))


def test_other_forms_of_a_response_are_decoded_at_once() -> None:
    """Spaces, members in another order, an omitted resource, an object a line: correct, but not cached."""
    cache = ResourceSpanCache()
    bare = [{"scopeSpans": resource(number)["scopeSpans"]} for number in range(3)]
    spaced = json.dumps({"result": {"resourceSpans": [resource(1), resource(2)]}}).encode()
    mixed = response([resource(0), *bare, resource(1)])
    lines = response([resource(0), resource(1)]) + b"\n" + response([resource(2)])
    for content in (
        response(bare),
        spaced,
        mixed,
        lines,
        response([]),
        response([resource(1), resource(2)]) + b"\n",
    ) * 3:
        assert content_of(cache.find(content)) == content_of(find_traces(content))


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache stays near its limit, and an object that is too large is not cached."""
    monkeypatch.setattr(response_cache, "_MAX_BYTES", 20_000)
    monkeypatch.setattr(response_cache, "_MAX_OBJECT_BYTES", 5_000)
    monkeypatch.setattr(response_cache, "_MAX_SEEN", 8)
    cache = ResourceSpanCache()
    for number in range(0, 400, 4):
        content = response([resource(0), *(resource(number + each) for each in range(4)), resource(9, "y" * 6_000)])
        assert content_of(cache.find(content)) == content_of(find_traces(content))
        assert sum(len(part) for part, _ in cache._objects.values()) == cache._bytes <= 25_000
        assert len(cache._seen) <= 9
    assert 0 < len(cache._objects) < 60
