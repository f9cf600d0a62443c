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
from runspan.otlp.bulk_writer import write_runs
from runspan.otlp.protobuf_writer import Resource, request_bytes, scoped_bytes, span_bytes, varint
from runspan.testing import generate
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


# The bulk writer has to write the same bytes as ``encode`` and ``span_bytes``.


def written_one_by_one(runs: list[Run], tenant: str = "", observed_at: int | None = None) -> list[list[bytes]]:
    return [[scoped_bytes(span) for span in encode(run, tenant=tenant, observed_at=observed_at)] for run in runs]


def test_columns_write_every_case() -> None:
    """All cases in one batch, usual and unusual ones mixed, are the same bytes."""
    cases = [Run.from_json(text) for text in CASES.values()]
    assert write_runs(cases, observed_at=7) == written_one_by_one(cases, observed_at=7)
    compact = [Run.from_json(run.text) for run in cases]
    assert write_runs(compact, tenant="acme") == written_one_by_one(compact, "acme")


def test_columns_write_generated_runs() -> None:
    """A realistic batch, most of it on the fast path, is the same bytes."""
    batch = [Run.from_json(text) for text in generate(500, seed=5, unfinished=True)]
    assert sum(run.plain for run in batch) == 500
    assert write_runs(batch, observed_at=7) == written_one_by_one(batch, observed_at=7)
    assert write_runs([]) == []


@given(st.lists(runs().map(lambda run: Run.from_json(run.text)), max_size=8), st.sampled_from(["", "acme"]))
def test_columns_write_any_documents(batch: list[Run], tenant: str) -> None:
    """Any generated documents in batches are the same bytes."""
    assert write_runs(batch, tenant=tenant) == written_one_by_one(batch, tenant)


def finished(times: st.SearchStrategy[Any]) -> st.SearchStrategy[Run]:
    """Return a strategy for finished runs with nearly usual members, most of which take the fast path."""
    text = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
    json = st.one_of(st.integers(), text, st.just("x" * 3000), st.none())
    step = st.fixed_dictionaries(
        {"id": text, "status": st.sampled_from(["completed", "completed", "skipped", "failed", "pending"])},
        optional={
            "name": text,
            "type": st.sampled_from(["action", "agent", "sub-workflow"]),
            "startedAt": times,
            "completedAt": times,
            "durationMs": st.integers(-5, 10**12),
            "attempt": st.integers(0, 3),
            "input": json,
            "output": json | st.just({"usage": {"promptTokens": 5, "completionTokens": 7}, "runId": "child"}),
            "error": json,
            "retryPolicy": json,
        },
    )
    run = st.fixed_dictionaries(
        {
            "id": text.filter(bool),
            "status": st.sampled_from(["completed", "cancelled", "failed"]),
            "startedAt": times,
            "completedAt": times,
            "steps": st.lists(step, min_size=1, max_size=4),
        },
        optional={
            "workflowId": text,
            "durationMs": st.integers(),
            "output": json,
            "createdAt": text | st.just("c" * 600),
        },
    )
    return run.map(Run.from_dict)


_NEAR = st.integers(0, 3000).map(lambda ms: f"2026-01-15T09:00:0{ms // 1000}.{ms % 1000:03}Z")


@given(st.lists(finished(_NEAR), max_size=6))
def test_columns_write_nearly_usual_runs(batch: list[Run]) -> None:
    """Runs that differ from usual ones in one or two members are the same bytes."""
    assert write_runs(batch) == written_one_by_one(batch)


def test_columns_with_many_steps_and_equal_steps() -> None:
    """Runs with equal steps or manifests longer than one attribute are the same bytes."""
    span = '"startedAt":"2026-01-15T09:00:01.200Z","completedAt":"2026-01-15T09:00:02.000Z"'
    step = f'{{"id":"s","status":"completed",{span}%s}}'
    times = '"startedAt":"2026-01-15T09:00:01.000Z","completedAt":"2026-01-15T09:00:04.500Z"'
    batch = [
        Run.from_json(f'{{"id":"r{count}","status":"completed",{times},"steps":[{steps}]}}')
        for count in (1, 2, 124, 125, 126, 300)
        for steps in (
            ",".join(step % f',"attempt":{number}' for number in range(count)),
            ",".join(step % "" for _ in range(count)),
        )
    ]
    assert all(run.plain for run in batch)
    assert write_runs(batch) == written_one_by_one(batch)


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
