"""The protobuf writer: ``opentelemetry-proto`` reads what it writes."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.trace.v1.trace_pb2 import ScopeSpans
from opentelemetry.proto.trace.v1.trace_pb2 import Span as ProtoSpan

from runspan import Run, __version__, encode
from runspan.codec.fields import SCOPE_RUN, SCOPE_STEP
from runspan.model.span import Attributes, Event, Link, Span
from runspan.otlp.protobuf_writer import Resource, request_bytes, scoped_bytes, span_bytes, varint
from support.corpus import cases, runs

CASES = cases()


def value_of(any_value: AnyValue) -> Any:
    kind = any_value.WhichOneof("value")
    if kind is None:
        return None
    if kind == "array_value":
        return [value_of(item) for item in any_value.array_value.values]
    if kind == "kvlist_value":
        return {item.key: value_of(item.value) for item in any_value.kvlist_value.values}
    return getattr(any_value, kind)


def pairs_of(message: Any) -> list[tuple[str, Any]]:
    return [(item.key, value_of(item.value)) for item in message.attributes]


def proto_span(data: bytes) -> ProtoSpan:
    scope_spans = ScopeSpans.FromString(data)
    assert len(scope_spans.spans) == 1
    return scope_spans.spans[0]


def assert_same(span: Span, proto: ProtoSpan) -> None:
    assert proto.trace_id == span.trace_id
    assert proto.span_id == span.span_id
    assert proto.parent_span_id == span.parent_id
    assert proto.name == span.name
    assert proto.kind == span.kind
    assert proto.start_time_unix_nano == span.start
    assert proto.end_time_unix_nano == span.end
    assert proto.status.code == span.status
    assert proto.status.message == span.message
    assert proto.flags == 0x100
    assert repr(pairs_of(proto)) == repr(list(span.attributes().items()))
    assert [(event.name, event.time_unix_nano, pairs_of(event)) for event in proto.events] == [
        (event.name, event.time, list(event.attributes)) for event in span.events
    ]
    assert [(link.trace_id, link.span_id, pairs_of(link)) for link in proto.links] == [
        (link.trace_id, link.span_id, list(link.attributes)) for link in span.links
    ]


def no_unknown_fields(message: Message) -> None:
    """Assert that no field is unknown. Protobuf keeps unknown fields, so a wrong tag would go unnoticed otherwise."""
    copy = type(message)()
    copy.CopyFrom(message)
    copy.DiscardUnknownFields()
    assert copy == message


@pytest.mark.parametrize("name", CASES)
def test_every_case_parses_as_otlp(name: str) -> None:
    """Protobuf reads the spans that ``encode`` returned."""
    for span in encode(Run.from_json(CASES[name]), observed_at=1):
        assert_same(span, proto_span(span_bytes(span)))


@given(runs())
def test_any_document_parses_as_otlp(run: Run) -> None:
    """Protobuf reads the spans of any generated document."""
    for span in encode(run, tenant="t"):
        proto = proto_span(span_bytes(span))
        assert_same(span, proto)
        no_unknown_fields(proto)


_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"]))
    | st.binary(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=10), _VALUES, max_size=5))
def test_every_kind_of_value(attributes: dict[str, Any]) -> None:
    """Attributes of spans, events and links may have values of every type, or no value."""
    pairs = tuple(attributes.items())
    span = Span(
        trace_id=b"t" * 16,
        span_id=b"s" * 8,
        parent_id=b"",
        name="",
        kind=0,
        start=0,
        end=2**64 - 1,
        status=0,
        message="",
        shared=(Attributes(pairs),),
        own=[],
        events=(Event("e", 5, pairs),),
        links=(Link(b"l" * 16, b"m" * 8, pairs),),
    )
    assert_same(span, proto_span(span_bytes(span)))


@given(st.integers(0, 2**64 - 1))
def test_varints(number: int) -> None:
    """A varint decodes to its number."""
    assert sum((byte & 127) << (7 * index) for index, byte in enumerate(varint(number))) == number


def test_request() -> None:
    """A request has one resource, the spans of each scope together, and no unknown fields."""
    spans = encode(Run.from_json(CASES["envelope usage"]))
    resource = Resource("billing", {"service.namespace": "team-a", "deployment.environment.name": "prod"})
    request = ExportTraceServiceRequest.FromString(request_bytes(resource, map(scoped_bytes, spans)))
    no_unknown_fields(request)
    (resource_spans,) = request.resource_spans
    steps, run = resource_spans.scope_spans
    assert dict(pairs_of(resource_spans.resource)) == resource.pairs()
    assert (steps.scope.name, steps.scope.version) == (SCOPE_STEP, __version__)
    assert (run.scope.name, run.scope.version) == (SCOPE_RUN, __version__)
    assert [span.span_id for span in (*steps.spans, *run.spans)] == [span.span_id for span in spans]
    assert len(run.spans) == 1
