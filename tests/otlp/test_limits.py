"""Limits on requests and spans: usual ones of any size are read, masses of tiny fields are refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

import pytest
from google.protobuf.json_format import MessageToDict
from opentelemetry.proto.trace.v1.trace_pb2 import Span as WireSpan
from opentelemetry.proto.trace.v1.trace_pb2 import TracesData

from runspan import Run, decode, encode
from runspan.errors import PayloadTooLarge
from runspan.otlp.bulk_writer import write_run
from runspan.otlp.json import read_json, write_json
from runspan.otlp.protobuf_reader import (
    _SMALL_BODY,
    JSON_VALUE_BYTES,
    MAX_JSON_VALUES,
    MAX_PARTS,
    MAX_SPANS,
    ParsedRequest,
    _count_fields,
    _is_fragmented,
    check_protobuf,
    default_max_spans,
    read_protobuf,
)
from runspan.otlp.protobuf_writer import Resource, request_bytes, scoped_bytes
from runspan.testing import generate


def attributes(span: WireSpan, count: int) -> None:
    for number in range(count):
        span.attributes.add(key=f"{number}")


def events(span: WireSpan, count: int) -> None:
    for _ in range(count):
        span.events.add(name="e")


def links(span: WireSpan, count: int) -> None:
    for _ in range(count):
        span.links.add(trace_id=b"0123456789abcdef", span_id=b"01234567")


def attributes_of_an_event(span: WireSpan, count: int) -> None:
    event = span.events.add(name="e")
    for number in range(count - 1):
        event.attributes.add(key=f"{number}")


def attributes_of_a_link(span: WireSpan, count: int) -> None:
    link = span.links.add(trace_id=b"0123456789abcdef", span_id=b"01234567")
    for number in range(count - 1):
        link.attributes.add(key=f"{number}")


def request_with(fill: Callable[[WireSpan, int], None], count: int) -> TracesData:
    """Return a request with two spans: one with ``count`` parts, and a usual one."""
    data = TracesData()
    scope_spans = data.resource_spans.add().scope_spans.add()
    fill(scope_spans.spans.add(trace_id=b"0123456789abcdef", span_id=b"filled00"), count)
    usual = scope_spans.spans.add(trace_id=b"0123456789abcdef", span_id=b"usual000")
    usual.attributes.add(key="k").value.string_value = "v"
    return data


def read(data: TracesData, form: str) -> ParsedRequest:
    if form == "protobuf":
        return read_protobuf(data.SerializeToString())
    request = MessageToDict(data)
    for span in request["resourceSpans"][0]["scopeSpans"][0]["spans"]:
        for message in (span, *span.get("links", ())):
            message |= {"traceId": b"0123456789abcdef".hex(), "spanId": b"filled00".hex()}
    return read_json(json.dumps(request).encode())


@pytest.mark.parametrize("form", ["protobuf", "json"])
@pytest.mark.parametrize("fill", [attributes, events, links, attributes_of_an_event, attributes_of_a_link])
def test_a_span_with_too_many_parts_is_rejected_alone(fill: Callable[[WireSpan, int], None], form: str) -> None:
    """The reason has the expected and the actual number, and the other spans of the request are accepted."""
    allowed = read(request_with(fill, MAX_PARTS), form)
    assert (allowed.total, len(allowed.foreign), allowed.rejected) == (2, 2, [])
    too_many = read(request_with(fill, 2 * MAX_PARTS), form)
    assert (too_many.total, len(too_many.foreign)) == (2, 1)
    (rejection,) = too_many.rejected
    assert b"filled00".hex() in rejection.what
    assert f"got {2 * MAX_PARTS}" in rejection.reason
    assert "expected at most" in rejection.reason


def test_a_long_document_in_many_pieces_is_read() -> None:
    """The pieces of a payload are long, so the size of the span allows their number."""
    run = Run.from_dict({"id": "r", "status": "completed", "output": "é" * 12_000_000})
    spans = encode(run)
    assert len(spans[-1].events) > 100
    assert sum([1 + len(event.attributes) for event in spans[-1].events]) > MAX_PARTS
    received = read_protobuf(request_bytes(Resource(), map(scoped_bytes, spans)))
    assert received.rejected == []
    assert decode(received.spans) == run


def test_a_run_with_very_many_steps_fits_one_request() -> None:
    """The limit of spans grows with the size of the request."""
    step = '{"id":"s","type":"action","status":"completed","output":%d}'
    count = MAX_SPANS + 1000
    steps = ",".join([step % number for number in range(count)])
    run = Run.from_json(f'{{"id":"r","status":"completed","steps":[{steps}]}}')
    body = request_bytes(Resource(), write_run(run))
    check_protobuf(body, default_max_spans(len(body)))
    with pytest.raises(PayloadTooLarge) as caught:
        check_protobuf(body, MAX_SPANS)
    assert "/api/v1/runs" in caught.value.hint


def field(tag: bytes, content: bytes) -> bytes:
    length, size = b"", len(content)
    while size > 127:
        length += bytes([size & 127 | 128])
        size >>= 7
    return tag + length + bytes([size]) + content


def wire(span: bytes, count: int) -> bytes:
    """Return a request with ``count`` equal spans."""
    return field(b"\x0a", field(b"\x12", field(b"\x12", span) * count))


TINY_FIELDS = {
    "attributes": b"\x4a\x00" * 9000,
    "attributes with empty parts": b"\x4a\x04\x0a\x00\x12\x00" * 3000,
    "tags longer than necessary": b"\xca\x00\x00" * 6000,
    "lengths longer than necessary": b"\x4a\x80\x00" * 6000,
    "events": b"\x5a\x00" * 9000,
    "links": b"\x6a\x00" * 9000,
    "attributes of an event": field(b"\x5a", b"\x1a\x00" * 9000),
    "attributes of a link": field(b"\x6a", b"\x22\x00" * 9000),
    "attributes of a link, with keys": field(b"\x6a", b"\x22\x02\x0a\x00" * 4500),
    "an array": field(b"\x4a", field(b"\x12", field(b"\x2a", b"\x0a\x00" * 9000))),
    "a list of pairs": field(b"\x4a", field(b"\x12", field(b"\x32", b"\x0a\x00" * 9000))),
    "unknown fields": b"\x78\x00" * 9000,
    "attributes with an unknown field": b"\x4a\x02\x08\x01" * 4500,
    "events with an unknown field": b"\x5a\x02\x20\x01" * 4500,
    "links with an unknown field": b"\x6a\x02\x28\x01" * 4500,
    "attributes of a link, with an unknown field": field(b"\x6a", b"\x22\x02\x08\x01" * 4500),
    "alternating arrays and lists of pairs": field(b"\x4a", field(b"\x12", b"\x2a\x02\x18\x01\x32\x02\x18\x01" * 2250)),
    "attributes and a long text": b"\x4a\x00" * 6000 + field(b"\x2a", b"text" * 3000),
}


@pytest.mark.parametrize("name", TINY_FIELDS)
def test_a_request_of_tiny_fields_is_refused_before_it_is_parsed(name: str) -> None:
    """Each span is within the limit of a span, but all together would take many times the size of the body."""
    span = TINY_FIELDS[name]
    body = wire(span, 9_000_000 // len(span))
    with pytest.raises(PayloadTooLarge, match="attributes, events and links in one request"):
        check_protobuf(body, default_max_spans(len(body)))


@pytest.mark.parametrize("name", TINY_FIELDS)
def test_a_few_tiny_fields_are_accepted(name: str) -> None:
    """A small request of tiny fields is accepted."""
    check_protobuf(wire(TINY_FIELDS[name], 10), MAX_SPANS)


def test_the_fields_of_usual_requests_are_not_counted() -> None:
    """Counting a few bytes shows that a request of an exporter has no masses of tiny fields."""
    runs = [Run.from_json(text) for text in generate(400, seed=3)]
    body = request_bytes(Resource(), [span for run in runs for span in write_run(run)] * 4)
    assert len(body) > _SMALL_BODY
    assert not _is_fragmented(body)
    _count_fields(body)


def otlp_json(attributes: str) -> bytes:
    """Return a request with one span that has these attributes."""
    ids = f'"traceId":"{"1" * 32}","spanId":"{"1" * 16}"'
    span = f'{{{ids},"name":"s","attributes":[{attributes}]}}'
    return f'{{"resourceSpans":[{{"scopeSpans":[{{"spans":[{span}]}}]}}]}}'.encode()


@pytest.mark.parametrize(
    "body",
    [
        b'{"x":[' + b"{}," * 3_000_000 + b"{}]}",
        b'{"x":[' + b"[]," * 3_000_000 + b"[]]}",
        b'{"x":[' + b'"ab",' * 3_000_000 + b"1]}",
        b'{"x":"' + b"\\\\" * 500_000 + b'","y":[' + b"{}," * 3_000_000 + b"{}]}",
        b'{"x":[' + b"{}," * 3_000_000 + b"and malformed JSON",
        otlp_json("{}," * 3_000_000 + "{}"),
    ],
    ids=["objects", "lists", "texts", "objects after a long text", "objects before malformed JSON", "attributes"],
)
def test_json_of_tiny_values_is_refused_before_it_is_parsed(body: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each pair of brackets would become an object of many times its size."""
    monkeypatch.setattr("json.loads", None)
    with pytest.raises(PayloadTooLarge, match="too many values in one request"):
        read_json(body)


@pytest.mark.parametrize(
    "text",
    ["[{}]," * 700_000, '{"a":[1,2,{"b":"c"}]}' * 450_000, '\\"{,\\\\",[' * 500_000, "{" * 2_500_000 + "\\"],
    ids=["lists", "objects", "escapes", "ends with an escape"],
)
def test_brackets_and_commas_in_strings_are_not_counted(text: str) -> None:
    """A payload is JSON in a string, of any length."""
    value = json.dumps(text)
    body = otlp_json(f'{{"key":"k","value":{{"stringValue":{value}}}}},{{"key":"n","value":{{"intValue":"1"}}}}')
    assert sum(body.count(mark) for mark in (b"{", b"[", b",")) > MAX_JSON_VALUES
    (kept,) = read_json(body).foreign
    assert text.encode() in kept.otlp


def test_usual_json_requests_are_within_the_limit() -> None:
    """Usual requests have few values for their size, so only masses of tiny values exceed the limit."""
    spans = [span for text in generate(100, seed=3) for span in encode(Run.from_json(text))]
    body = write_json(spans, Resource())
    outside = re.sub(rb'"(?:[^"\\]|\\.)*"', b"", body)
    assert sum(outside.count(mark) for mark in (b"{", b"[", b",")) < len(body) // JSON_VALUE_BYTES
