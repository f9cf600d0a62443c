"""The OTLP readers lose nothing that ``opentelemetry-proto`` can represent, and refuse everything else."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue, KeyValueList
from opentelemetry.proto.trace.v1.trace_pb2 import TracesData

from runspan import Run, encode
from runspan.codec.fields import ROLE
from runspan.errors import PayloadError, PayloadTooLarge
from runspan.model.span import Event, Link, Span, to_plain
from runspan.model.timestamps import MAX_NS
from runspan.otlp import protobuf_reader
from runspan.otlp.json import read_json, write_json
from runspan.otlp.json import read_spans as read_json_spans
from runspan.otlp.protobuf_reader import MAX_REJECTIONS, read_protobuf, read_spans
from runspan.otlp.protobuf_writer import Resource, request_bytes, scoped_bytes

TRACE = bytes(range(1, 17))
SPAN = bytes(range(1, 9))
DOCUMENT = {
    "id": "run_1",
    "workflowId": "wf_1",
    "status": "failed",
    "startedAt": "2024-01-15T09:00:01.000Z",
    "completedAt": "2024-01-15T09:00:04.500Z",
    "steps": [
        {"id": "a", "status": "completed", "startedAt": "2024-01-15T09:00:01.200Z", "output": {"ü": [1, 2.5, None]}},
        {"id": "b", "status": "failed", "error": {"code": "X", "message": "no"}},
    ],
}


def own(**changes: Any) -> Span:
    """Return a span with the attribute ``runspan.role``."""
    fields: dict[str, Any] = {
        "trace_id": TRACE,
        "span_id": SPAN,
        "parent_id": b"",
        "name": "step",
        "kind": 1,
        "start": 10,
        "end": 20,
        "status": 0,
        "message": "",
        "shared": (),
        "own": [(ROLE, "step")],
    }
    return Span(**(fields | changes))


def body(*spans: Span) -> bytes:
    return request_bytes(Resource(), [scoped_bytes(span) for span in spans])


def same(span: Span) -> tuple[object, ...]:
    """Return everything in a span in a comparable form."""

    def pairs(items: Any) -> list[tuple[str, object]]:
        return [(key, to_plain(value)) for key, value in items]

    return (
        *(span.trace_id, span.span_id, span.parent_id, span.name, span.kind, span.start, span.end),
        *(span.status, span.message, pairs(span.pairs())),
        [(event.name, event.time, pairs(event.attributes)) for event in span.events],
        [(link.trace_id, link.span_id, pairs(link.attributes)) for link in span.links],
        span.scope,
    )


def by_scope(spans: list[Span]) -> list[tuple[object, ...]]:
    """Return ``same`` of the spans in the order of a request, which has those of each scope together."""
    scopes = list(dict.fromkeys(span.scope for span in spans))
    return [same(span) for span in sorted(spans, key=lambda span: scopes.index(span.scope))]


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
PLAIN = st.one_of(
    TEXT,
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False),
    st.binary(max_size=20),
    st.none(),
)
VALUES = st.recursive(
    PLAIN, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3), max_leaves=6
)
PAIRS = st.dictionaries(TEXT.filter(lambda key: key != ROLE), VALUES, max_size=5).map(lambda found: list(found.items()))
TRACE_IDS = st.binary(min_size=16, max_size=16).filter(any)
SPAN_IDS = st.binary(min_size=8, max_size=8).filter(any)
TIMES = st.integers(0, MAX_NS)
SPANS = st.builds(
    Span,
    trace_id=TRACE_IDS,
    span_id=SPAN_IDS,
    parent_id=st.just(b"") | SPAN_IDS,
    name=TEXT,
    kind=st.integers(0, 5),
    start=TIMES,
    end=TIMES,
    status=st.integers(0, 2),
    message=TEXT,
    shared=st.just(()),
    own=PAIRS.map(lambda pairs: [(ROLE, "step"), *pairs]),
    events=st.lists(st.builds(Event, TEXT, TIMES, PAIRS.map(tuple)), max_size=2).map(tuple),
    links=st.lists(st.builds(Link, TRACE_IDS, SPAN_IDS, PAIRS.map(tuple)), max_size=2).map(tuple),
    scope=st.sampled_from(["", "runspan.run", "runspan.step"]),
)


@given(st.lists(SPANS, max_size=4))
def test_protobuf_round_trip(spans: list[Span]) -> None:
    """The protobuf reader returns every field and type of value that the protobuf writer wrote."""
    received = read_protobuf(body(*spans))
    assert [same(span) for span in received.spans] == by_scope(spans)
    assert (received.total, received.foreign, received.rejected) == (len(spans), [], [])


@given(st.lists(SPANS, max_size=4))
def test_json_round_trip(spans: list[Span]) -> None:
    """The JSON reader returns every field and type of value that the JSON writer wrote."""
    received = read_json(write_json(spans, Resource("svc", {"deployment.environment.name": "test"})))
    assert [same(span) for span in received.spans] == by_scope(spans)


@given(st.lists(SPANS, max_size=3))
def test_both_encodings_of_a_request_are_read_alike(spans: list[Span]) -> None:
    """JSON and protobuf requests with the same spans give equal spans and resources."""
    resource = Resource("svc", {"service.namespace": "a"})
    from_wire = read_protobuf(request_bytes(resource, [scoped_bytes(span) for span in spans]))
    from_json = read_json(write_json(spans, resource))
    assert [same(span) for span in from_wire.spans] == [same(span) for span in from_json.spans]
    assert from_wire.resources == from_json.resources


@given(st.lists(SPANS, min_size=1, max_size=3))
def test_the_written_json_is_protobufs_json_with_hex_ids(spans: list[Span]) -> None:
    """The JSON is that of ``opentelemetry-proto`` for the same spans, except that ids are hex."""
    expected = MessageToDict(ExportTraceServiceRequest.FromString(body(*spans)), use_integers_for_enums=True)
    for scope in expected["resourceSpans"][0]["scopeSpans"]:
        for span in scope["spans"]:
            for holder in (span, *span.get("links", ())):
                for name in {"traceId", "spanId", "parentSpanId"} & holder.keys():
                    holder[name] = base64.b64decode(holder[name]).hex()
    assert json.loads(write_json(spans, Resource())) == expected


def test_a_raw_payload_is_a_string_attribute() -> None:
    """A payload as ``Raw`` is written as a string attribute in both encodings."""
    span = own(own=[(ROLE, "step"), ("runspan.step.output", Raw(b'{"a": 1e400}'))])
    for received in (read_protobuf(body(span)), read_json(write_json([span]))):
        assert received.spans[0].attributes()["runspan.step.output"] == '{"a": 1e400}'


def test_a_run_is_the_same_in_both_encodings() -> None:
    """The spans of a run come back from both encodings."""
    spans = encode(Run.from_dict(DOCUMENT))
    for received in (read_protobuf(body(*spans)), read_json(write_json(spans, Resource()))):
        assert [same(span) for span in received.spans] == [same(span) for span in spans]
        assert set(received.resources) == {spans[0].trace_id}


def foreign_request() -> ExportTraceServiceRequest:
    """Return a request with two resources of two scopes of two spans each; one span is not foreign."""
    request = ExportTraceServiceRequest()
    for resource in range(2):
        outer = request.resource_spans.add(schema_url=f"https://example.org/resource/{resource}")
        outer.resource.attributes.add(key="service.name").value.string_value = f"service-{resource}"
        outer.resource.dropped_attributes_count = 3
        for scope in range(2):
            inner = outer.scope_spans.add(schema_url=f"https://example.org/scope/{scope}")
            inner.scope.name, inner.scope.version = f"scope-{scope}", "1"
            for number in range(2):
                span = inner.spans.add(
                    trace_id=bytes([resource + 1]) * 16,
                    span_id=bytes([1 + number + 2 * scope + 4 * resource]) * 8,
                    trace_state="a=b",
                    flags=257,
                    name=f"{resource}{scope}{number}",
                    dropped_attributes_count=7,
                )
                key = ROLE if (resource, scope, number) == (1, 1, 1) else "http.method"
                span.attributes.add(key=key).value.string_value = "step"
    return request


@pytest.mark.parametrize("form", ["protobuf", "json"])
def test_foreign_spans_are_kept_with_their_resource_and_scope(form: str) -> None:
    """Each foreign span is a TracesData with everything that was sent in it and around it."""
    request = foreign_request()
    if form == "protobuf":
        received = read_protobuf(request.SerializeToString())
    else:
        document = MessageToDict(request)
        for outer in document["resourceSpans"]:
            for inner in outer["scopeSpans"]:
                for span in inner["spans"]:
                    for name in ("traceId", "spanId"):
                        span[name] = base64.b64decode(span[name]).hex().upper()
        received = read_json(json.dumps(document).encode())
    assert (received.total, len(received.spans), len(received.foreign)) == (8, 1, 7)
    assert received.resources == {bytes([2]) * 16: request.resource_spans[1].resource.SerializeToString()}
    expected = []
    for outer in request.resource_spans:
        for inner in outer.scope_spans:
            for span in inner.spans:
                single = TracesData()
                copy = single.resource_spans.add(schema_url=outer.schema_url)
                copy.resource.CopyFrom(outer.resource)
                scope = copy.scope_spans.add(schema_url=inner.schema_url)
                scope.scope.CopyFrom(inner.scope)
                scope.spans.add().CopyFrom(span)
                expected.append((span.trace_id, span.span_id, single))
    found = [(item.trace_id, item.span_id, TracesData.FromString(item.otlp)) for item in received.foreign]
    assert found == expected[:-1]
    assert [span.name for span in read_spans(received.foreign[3].otlp)] == ["011"]


def test_all_spans_of_a_trace_are_read() -> None:
    """``read_spans`` returns foreign spans too, from JSON and protobuf."""
    spans = read_spans(foreign_request().SerializeToString())
    assert [span.name for span in spans] == [f"{number:03b}" for number in range(8)]
    assert [same(span) for span in read_json_spans(write_json(spans))] == by_scope(spans)


def test_absent_resource_and_scope_of_a_foreign_span_stay_absent() -> None:
    """A foreign span without resource and scope is kept without them."""
    request = ExportTraceServiceRequest()
    request.resource_spans.add().scope_spans.add().spans.add(trace_id=TRACE, span_id=SPAN, name="x")
    (kept,) = read_protobuf(request.SerializeToString()).foreign
    assert kept.otlp == request.SerializeToString()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"trace_id": b""}, "trace id"),
        ({"trace_id": bytes(16)}, "trace id"),
        ({"trace_id": bytes([1]) * 15}, "trace id"),
        ({"trace_id": bytes([1]) * 17}, "trace id"),
        ({"span_id": b""}, "span id"),
        ({"span_id": bytes(8)}, "span id"),
        ({"span_id": bytes([1]) * 16}, "span id"),
        ({"parent_span_id": b"abc"}, "parent span id"),
        ({"start_time_unix_nano": MAX_NS + 1}, "2262"),
        ({"end_time_unix_nano": MAX_NS + 2}, "2262"),
        ({"end_time_unix_nano": 2**64 - 1}, "2262"),
    ],
)
def test_an_invalid_span_is_rejected_alone(changes: dict[str, Any], reason: str) -> None:
    """The rejection names the span and the reason, and the other spans are accepted."""
    request = ExportTraceServiceRequest.FromString(body(own(), own(span_id=b"87654321")))
    span = request.resource_spans[0].scope_spans[0].spans[0]
    for name, value in changes.items():
        setattr(span, name, value)
    received = read_protobuf(request.SerializeToString())
    assert [kept.span_id for kept in received.spans] == [b"87654321"]
    (rejection,) = received.rejected
    assert reason in rejection.reason
    assert span.trace_id.hex() in rejection.what
    assert span.span_id.hex() in rejection.what
    assert (received.total, rejection.spans) == (2, 1)


def test_a_parent_of_zeros_is_no_parent() -> None:
    """A parent id of eight zero bytes, which some senders write for a root, is no parent."""
    request = ExportTraceServiceRequest.FromString(body(own()))
    request.resource_spans[0].scope_spans[0].spans[0].parent_span_id = bytes(8)
    assert read_protobuf(request.SerializeToString()).spans[0].parent_id == b""


def test_zero_values_and_absent_values_differ() -> None:
    """Empty strings, zeros, false and absent values come back unchanged."""
    request = ExportTraceServiceRequest.FromString(body(own()))
    span = request.resource_spans[0].scope_spans[0].spans[0]
    span.attributes.extend(
        [
            KeyValue(key="text", value=AnyValue(string_value="")),
            KeyValue(key="int", value=AnyValue(int_value=0)),
            KeyValue(key="bool", value=AnyValue(bool_value=False)),
            KeyValue(key="double", value=AnyValue(double_value=0.0)),
            KeyValue(key="bytes", value=AnyValue(bytes_value=b"")),
            KeyValue(key="list", value=AnyValue(array_value=ArrayValue())),
            KeyValue(key="map", value=AnyValue(kvlist_value=KeyValueList())),
            KeyValue(key="empty", value=AnyValue()),
            KeyValue(key="absent"),
        ]
    )
    found = read_protobuf(request.SerializeToString()).spans[0].attributes()
    del found[ROLE]
    expected = {
        "text": "",
        "int": 0,
        "bool": False,
        "double": 0.0,
        "bytes": b"",
        "list": [],
        "map": {},
        "empty": None,
        "absent": None,
    }
    assert found == expected
    assert {key: type(value) for key, value in found.items()} == {key: type(value) for key, value in expected.items()}


LENIENT = {
    "resource_spans": [
        {
            "unknownField": {"deep": [1]},
            "scope_spans": [
                {
                    "spans": [
                        {
                            "trace_id": TRACE.hex().upper(),
                            "span_id": SPAN.hex(),
                            "parentSpanId": "",
                            "start_time_unix_nano": 10,
                            "endTimeUnixNano": "20",
                            "kind": 2,
                            "status": {"code": 2, "message": "m", "future": 1},
                            "attributes": [
                                {"key": ROLE, "value": {"stringValue": "step"}},
                                {"key": "int", "value": {"intValue": "-9223372036854775808"}},
                                {"key": "int2", "value": {"int_value": 5}},
                                {"key": "double", "value": {"doubleValue": "NaN"}},
                            ],
                            "links": [{"traceId": TRACE.hex(), "span_id": SPAN.hex().upper()}],
                        }
                    ]
                }
            ],
        }
    ]
}


def test_json_is_read_as_leniently_as_otlp_requires() -> None:
    """Hex in any case, both spellings of names and of 64-bit integers, and unknown fields are accepted."""
    received = read_json(json.dumps(LENIENT).encode())
    (span,) = received.spans
    assert (span.trace_id, span.span_id, span.parent_id) == (TRACE, SPAN, b"")
    assert (span.start, span.end, span.kind, span.status, span.message) == (10, 20, 2, 2, "m")
    assert (span.links[0].trace_id, span.links[0].span_id) == (TRACE, SPAN)
    attributes = span.attributes()
    assert (attributes["int"], attributes["int2"]) == (-(2**63), 5)
    assert attributes["double"] != attributes["double"]


@pytest.mark.parametrize(
    "garbage",
    [
        b"\xff\xff\xff",
        b'{"resourceSpans":[]}',
        b"\x0a\x05abc",
        body(own())[:-3],
        b"\x0a" * 1000,
    ],
)
def test_malformed_protobuf_is_refused(garbage: bytes) -> None:
    """The error says what was expected and what was found."""
    with pytest.raises(PayloadError, match="protobuf ExportTraceServiceRequest"):
        read_protobuf(garbage)


@pytest.mark.parametrize(
    "garbage",
    [
        b"",
        b"[]",
        b"null",
        b"\xff",
        b"{",
        b'{"resourceSpans":1}',
        b'{"resourceSpans":[1]}',
        b'{"resourceSpans":[{"scopeSpans":[{"spans":[5]}]}]}',
        b'{"resourceSpans":[{"scopeSpans":[{"spans":[{"name":1}]}]}]}',
        b'{"resourceSpans":[{"scopeSpans":[{"spans":[{"name":"\\ud800"}]}]}]}',
        b'{"resourceSpans":[{"\\ud800":[]}]}',
        b'{"resourceSpans":[{"scopeSpans":[{"spans":[{"traceId":"xyz"}]}]}]}',
        b'{"resourceSpans":[{"scopeSpans":[{"spans":[{"traceId":5}]}]}]}',
        b'{"resourceSpans":[{"scopeSpans":[{"spans":[{"traceId":"01 02"}]}]}]}',
        b'{"resourceSpans":[{"scopeSpans":[{"spans":[{"startTimeUnixNano":"1e400"}]}]}]}',
        b'{"resourceSpans":[{"scopeSpans":[{"spans":[{"startTimeUnixNano":NaN}]}]}]}',
        b'{"resourceSpans":[{"scopeSpans":[{"spans":[{"attributes":[{"key":"a","value":{"intValue":"x"}}]}]}]}]}',
        b'{"a":' * 100_000,
        b'{"resourceSpans":' + b"[" * 5000 + b"]" * 5000 + b"}",
        b'{"resourceSpans":[{"scopeSpans":[{"spans":[{"startTimeUnixNano":' + b"9" * 5000 + b"}]}]}]}",
    ],
)
def test_malformed_otlp_json_is_refused(garbage: bytes) -> None:
    """Any error in the text is a PayloadError."""
    with pytest.raises(PayloadError):
        read_json(garbage)


def test_the_path_of_an_invalid_id_in_json() -> None:
    """The error has the path of the span and the link."""
    span = {"traceId": TRACE.hex(), "spanId": SPAN.hex(), "links": [{}, {"spanId": "no"}]}
    text = json.dumps({"resourceSpans": [{}, {"scopeSpans": [{"spans": [span]}]}]}).encode()
    with pytest.raises(PayloadError) as caught:
        read_json(text)
    assert caught.value.where == "resourceSpans[1].scopeSpans[0].spans[0].links[1].spanId"


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just(TRACE.hex()),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "resourceSpans",
                    "scopeSpans",
                    "spans",
                    "traceId",
                    "span_id",
                    "links",
                    "attributes",
                    "key",
                    "value",
                    "intValue",
                    "arrayValue",
                    "values",
                    "status",
                    "code",
                    "kind",
                    "events",
                    "timeUnixNano",
                    "resource",
                ]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=20,
)


@given(st.dictionaries(st.sampled_from(["resourceSpans", "resource_spans"]), st.lists(JSON_VALUES, max_size=3)))
def test_json_is_read_or_refused(document: Any) -> None:
    """Any JSON is read or refused with a PayloadError."""
    try:
        received = read_json(json.dumps(document).encode("utf-8", "surrogatepass"))
    except PayloadError:
        return
    assert received.total == len(received.spans) + len(received.foreign) + len(received.rejected)


@given(st.binary(max_size=200), st.integers(0, 400))
def test_bytes_are_read_or_refused(noise: bytes, length: int) -> None:
    """Any bytes, including those that begin as a request, are read or refused with a PayloadError."""
    beginning = body(own(), own(span_id=b"87654321"))[:length]
    try:
        received = read_protobuf(beginning + noise)
    except PayloadError:
        return
    assert received.total == len(received.spans) + len(received.foreign) + len(received.rejected)


@pytest.fixture
def limit_spans(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """A function that sets how many spans, ResourceSpans and ScopeSpans a request may have."""

    def limit(count: int) -> None:
        monkeypatch.setattr(protobuf_reader, "default_max_spans", lambda size: count)

    return limit


@pytest.mark.parametrize("form", ["protobuf", "json"])
@pytest.mark.parametrize("shape", [[[3, 0], [], [2]], [[]] * 5, [[0] * 9], [[200]]])
def test_spans_and_their_containers_are_limited(
    shape: list[list[int]], form: str, limit_spans: Callable[[int], None]
) -> None:
    """A request at the limit is read and one above it is refused; other fields do not count."""
    request = ExportTraceServiceRequest()
    for scopes in shape:
        resource_spans = request.resource_spans.add(schema_url="u" * 200)
        resource_spans.resource.attributes.add(key="k" * 20_000)
        for count in scopes:
            scope_spans = resource_spans.scope_spans.add(schema_url="u")
            scope_spans.scope.name = "scope"
            for number in range(count):
                scope_spans.spans.add(name="n" * number * 100)
    count = sum(1 + len(scopes) + sum(scopes) for scopes in shape)
    read = read_protobuf if form == "protobuf" else read_json
    sent = request.SerializeToString() if form == "protobuf" else json.dumps(MessageToDict(request)).encode()
    limit_spans(count)
    assert read(sent).total == sum(map(sum, shape))
    limit_spans(count - 1)
    with pytest.raises(PayloadTooLarge, match=f"at most {count - 1} spans.*smaller requests"):
        read(sent)


@pytest.mark.parametrize(
    "before",
    [
        b"\x1b\x23\x08\x01\x24\x1c",  # nested groups
        b"\x18\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",  # a varint of ten bytes
        b"\x19" + bytes(8) + b"\x1d" + bytes(4),  # fixed numbers
        b"\xfa\x7f\x02\x0a\x00",  # a field of a high number
        b"\x8a\x00\x80\x00",  # a container whose tag and length have more bytes than necessary
    ],
)
def test_no_encoding_hides_spans_from_the_limit(before: bytes, limit_spans: Callable[[int], None]) -> None:
    """Fields that protobuf skips are skipped when spans are counted, so the spans after them count."""
    wire = before + body(*[own()] * 20)
    limit_spans(23)
    assert read_protobuf(wire).total == 20
    limit_spans(20)
    with pytest.raises(PayloadTooLarge):
        read_protobuf(wire)


@pytest.mark.parametrize("field", [b"\x1a\x00", b"\x1b\x1c", b"\x18\x00", b"\x1b"])
def test_unknown_fields_are_limited(field: bytes, limit_spans: Callable[[int], None]) -> None:
    """A body of unknown fields only is refused."""
    limit_spans(10)
    with pytest.raises(PayloadTooLarge):
        read_protobuf(field * 100)


def test_a_truncated_request_is_malformed_and_not_too_large() -> None:
    """A request that is truncated anywhere is refused by the protobuf parser."""
    complete = body(own(), own(span_id=b"87654321"))
    for end in range(1, len(complete)):
        with pytest.raises(PayloadError) as caught:
            read_protobuf(complete[:end])
        assert not isinstance(caught.value, PayloadTooLarge)


def test_further_rejected_spans_are_counted_in_one_rejection() -> None:
    """Many invalid spans give a bounded number of rejections, whose counts add up."""
    received = read_protobuf(body(*[own(trace_id=bytes(16))] * (MAX_REJECTIONS + 50), own()))
    assert (len(received.spans), received.total) == (1, MAX_REJECTIONS + 51)
    assert [rejection.spans for rejection in received.rejected] == [1] * MAX_REJECTIONS + [50]
