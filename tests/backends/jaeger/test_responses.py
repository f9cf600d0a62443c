"""Responses of Jaeger, decoded: its API v3, its legacy API, and its errors."""

from __future__ import annotations

import math

import pytest

from conformance.harness import make_run
from runspan import encode
from runspan.backends.jaeger.responses import (
    MalformedResponse,
    find_legacy_traces,
    find_traces,
    read_error,
    read_services,
)
from runspan.model.span import Event, Link, Span
from runspan.otlp.json import write_json

TRACE = b"""{"resourceSpans":[{"resource":{"attributes":[{"key":"service.name","value":{"stringValue":"runspan"}}]},
"scopeSpans":[{"scope":{"name":"runspan","version":"1"},"spans":[{"traceId":"00b1c2d3e4f5061728394a5b6c7d8e9f",
"spanId":"0102030405060708","traceState":"k=v","flags":257,"name":"run","kind":2,
"startTimeUnixNano":"1795500000123456789","endTimeUnixNano":"1795500005000000000","attributes":[
{"key":"s","value":{"stringValue":"a\\u0000b"}},{"key":"s.empty","value":{"stringValue":""}},
{"key":"i","value":{"intValue":"9223372036854775807"}},{"key":"i.zero","value":{"intValue":"0"}},
{"key":"d","value":{"doubleValue":-0}},{"key":"d.nan","value":{"doubleValue":"NaN"}},
{"key":"d.inf","value":{"doubleValue":"-Infinity"}},{"key":"b","value":{"boolValue":false}},
{"key":"bytes","value":{"bytesValue":"AP8="}},{"key":"arr","value":{"arrayValue":{"values":[{"stringValue":"a"},{}]}}},
{"key":"arr.empty","value":{"arrayValue":{}}},
{"key":"kv","value":{"kvlistValue":{"values":[{"key":"z","value":{"intValue":"1"}}]}}},{"key":"none","value":{}},
{"key":"nothing"}],
"events":[{"timeUnixNano":"1795500004000000000","name":"exception","attributes":[
{"key":"exception.type","value":{"stringValue":"E"}}]}],
"links":[{"traceId":"07070707070707070707070707070707","spanId":"0606060606060606"}],
"status":{"message":"it failed","code":2}},
{"traceId":"b1c2d3e4f5061728394a5b6c7d8e9f","spanId":"102030405060709","parentSpanId":"0102030405060708","status":{}}
]}]}]}"""


def read_traces(content: bytes) -> list[Span]:
    """Return all spans, completely decoded."""
    return [found.span() for found in find_traces(content)]


def test_every_kind_of_value() -> None:
    """Numbers in quotes, numbers that JSON cannot express, and omitted members are decoded as they were sent."""
    first, second = read_traces(b'{"result":' + TRACE + b"}")
    values = first.attributes()
    assert math.isnan(values.pop("d.nan"))  # type: ignore[arg-type]
    assert values == {
        "s": "a\0b",
        "s.empty": "",
        "i": 2**63 - 1,
        "i.zero": 0,
        "d": 0.0,
        "d.inf": -math.inf,
        "b": False,
        "bytes": b"\x00\xff",
        "arr": ["a", None],
        "arr.empty": [],
        "kv": {"z": 1},
        "none": None,
        "nothing": None,
    }
    assert (first.start, first.end) == (1795500000123456789, 1795500005000000000)
    assert (first.name, first.kind, first.status, first.message) == ("run", 2, 2, "it failed")
    assert first.events == (Event("exception", 1795500004000000000, (("exception.type", "E"),)),)
    assert first.links == (Link(bytes([7] * 16), bytes([6] * 8)),)
    assert second.trace_id == first.trace_id == bytes.fromhex("00b1c2d3e4f5061728394a5b6c7d8e9f")
    assert (second.span_id, second.parent_id) == (bytes.fromhex("0102030405060709"), first.span_id)
    assert (second.start, second.name, second.events) == (0, "", ())


def test_several_responses_one_after_another() -> None:
    """A gateway that streams writes an object a line."""
    line = b'{"result":' + TRACE.replace(b"\n", b"") + b"}"
    assert len(read_traces(line + b"\n" + line + b"\n")) == 4


def test_spans_that_were_written_as_otlp_json_come_back() -> None:
    """OTLP/JSON of any writer is read with the same attributes, times and ids."""
    sent = encode(make_run("r", error={"code": "X", "message": "m"}, status="failed"))
    read = read_traces(b'{"result":' + write_json(sent) + b"}")
    assert [found.may_be_revision_span for found in find_traces(b'{"result":' + write_json(sent) + b"}")] == [
        False,
        False,
        True,
    ]
    assert [span.attributes() for span in read] == [span.attributes() for span in sent]
    for mine, theirs in zip(read, sent, strict=True):
        assert (mine.trace_id, mine.span_id, mine.parent_id, mine.name) == (
            *(theirs.trace_id, theirs.span_id, theirs.parent_id, theirs.name),
        )
        assert (mine.start, mine.end, mine.status, mine.message) == (
            *(theirs.start, theirs.end, theirs.status, theirs.message),
        )


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"<html>\n<body></body></html>",
        b"[]",
        b"{}",
        b'{"error":{"httpCode":500,"message":"x"}}',
        b'{"result":{"resourceSpans":[{"scopeSpans":[{"spans":[{"traceId":"zz","spanId":"01"}]}]}]}}',
        b'{"result":{"resourceSpans":[{"scopeSpans":[{"spans":[{"traceId":"01","spanId":"0102030405060708ff"}]}]}]}}',
        b'{"result":{"resourceSpans":[]}}\n{"error":{"message":"the stream broke"}}',
    ],
)
def test_malformed_content_is_not_read_as_an_empty_response(content: bytes) -> None:
    """Pages of other servers, and errors that follow a success, are errors."""
    with pytest.raises(MalformedResponse):
        read_traces(content)


def test_the_legacy_api() -> None:
    """Tags keep their types, times are whole microseconds, and the parent is the reference into the same trace."""
    response = b"""{"data":[{"traceID":"b1c2d3e4f5061728394a5b6c7d8e9f","spans":[
    {"traceID":"b1c2d3e4f5061728394a5b6c7d8e9f",
    "spanID":"102030405060709","operationName":"step a","references":[
    {"refType":"CHILD_OF","traceID":"b1c2d3e4f5061728394a5b6c7d8e9f","spanID":"0102030405060708"},
    {"refType":"FOLLOWS_FROM","traceID":"07070707070707070707070707070707","spanID":"0606060606060606"}],
    "startTime":1795500000200000,"duration":1800000,"tags":[{"key":"s","type":"string","value":"x"},
    {"key":"i","type":"int64","value":4611686018427387904},{"key":"d","type":"float64","value":1},
    {"key":"b","type":"bool","value":true},{"key":"y","type":"binary","value":"AP8="}],
    "logs":[{"timestamp":1795500000300000,"fields":[{"key":"event","type":"string","value":"exception"}]}],
    "processID":"p1","warnings":null}],"processes":{"p1":{"serviceName":"runspan","tags":[]}},"warnings":null}],
    "total":0,"limit":0,"offset":0,"errors":null}"""
    (found,) = find_legacy_traces(response)
    span = found.span()
    assert span.attributes() == {"s": "x", "i": 1 << 62, "d": 1.0, "b": True, "y": b"\x00\xff"}
    assert (span.start, span.end) == (1795500000200000000, 1795500002000000000)
    assert span.parent_id == bytes.fromhex("0102030405060708")
    assert span.links == (Link(bytes([7] * 16), bytes([6] * 8)),)
    assert find_legacy_traces(b'{"data":null,"errors":null}') == []


@pytest.mark.parametrize(
    ("content", "names"),
    [
        (b'{"services":["a","b"]}', ["a", "b"]),
        (b'{"services":[]}', []),
        (b"{}", []),
        (b'{"data":["a"],"total":1}', ["a"]),
    ],
)
def test_services_of_either_api(content: bytes, names: list[str]) -> None:
    """Both APIs list the names of services; one that has none may omit the list."""
    assert read_services(content) == names


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"error":{"httpCode":404,"message":"No traces found"}}\n', "No traces found"),
        (b'{"data":null,"errors":[{"code":404,"msg":"trace not found"}]}', "trace not found"),
        (b"404 page not found\n", None),
        (b"<html></html>", None),
    ],
)
def test_errors_differ_from_pages_of_other_servers(content: bytes, message: str | None) -> None:
    """An unknown trace is a 404 of Jaeger itself; a wrong path is not."""
    assert read_error(content) == message
