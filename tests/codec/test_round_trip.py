"""``encode`` and ``decode`` are inverses for every case and any order of spans, and ``decode`` verifies the result."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from runspan import Run, decode, encode
from runspan.codec.decode import read_summary, verify_run
from runspan.codec.encode import content_step_ids
from runspan.codec.fields import (
    DIGEST,
    KEYS,
    LABEL_SETS,
    MAX_ATTRIBUTE_BYTES,
    REVISION,
    ROLE,
    ROOT_REVISION,
    RUN_FIELDS,
    RUN_ID,
    SIZE,
    STEP_FIELDS,
    SUMMARY_DIGEST,
    TEXT_KEY,
    WORKFLOW_ID,
)
from runspan.errors import NotFound, TraceIncomplete
from runspan.model.document import Envelope, Step
from runspan.model.span import ERROR, INTERNAL, SERVER, Event, Span, run_ids
from runspan.otlp.protobuf_writer import scoped_bytes
from support.corpus import ENVELOPES, cases, runs

CASES = cases()
NOW = 1_768_467_700_000_000_000


def foreign(trace_id: bytes, number: int = 1) -> Span:
    return Span(
        trace_id=trace_id,
        span_id=number.to_bytes(8, "big"),
        parent_id=b"",
        name="GET /",
        kind=3,
        start=1,
        end=2,
        status=0,
        message="",
        shared=(),
        own=[("http.request.method", "GET"), ("error", True)],
    )


@pytest.mark.parametrize("name", CASES)
def test_every_case_comes_back(name: str) -> None:
    """A document comes back unchanged from its spans, shuffled, duplicated and mixed with foreign spans."""
    run = Run.from_json(CASES[name])
    spans = encode(run, observed_at=NOW)
    assert decode(spans) == run
    mixed = [*spans, *spans, foreign(spans[0].trace_id)]
    random.Random(name).shuffle(mixed)
    assert decode(mixed).text == run.text


@pytest.mark.parametrize("name", CASES)
def test_canonical_text_keeps_the_document(name: str) -> None:
    """The canonical text is the same JSON value as the input, and parsing it again does not change it."""
    run = Run.from_json(CASES[name])
    assert Run.from_json(run.text).text == run.text
    if "depth" in name or "deep" in name or "long integer" in name:
        return  # the standard library cannot parse these
    pairs = {"object_pairs_hook": lambda members: sorted(members, key=lambda member: member[0])}
    assert repr(json.loads(run.text, **pairs)) == repr(json.loads(CASES[name], **pairs))


@given(runs(), st.randoms(use_true_random=False), st.booleans())
def test_any_document_comes_back(run: Run, order: random.Random, events: bool) -> None:
    """Any generated document comes back unchanged, whatever the order of its spans."""
    spans = encode(run, tenant="acme", exception_events=events)
    order.shuffle(spans)
    decoded = verify_run(spans)
    assert decoded.run.text == run.text
    assert decoded.tenant == "acme"
    assert not decoded.incomplete


@given(runs())
def test_spans_use_only_what_every_backend_keeps(run: Run) -> None:
    """No span has long strings, invalid times, arrays, reserved keys or repeated ids, which some backend changes."""
    spans = encode(run, observed_at=NOW)
    assert len({span.span_id for span in spans}) == len(spans)
    for span in spans:
        pairs = list(span.pairs())
        keys = [key for key, _ in pairs]
        assert len(set(keys)) == len(keys)
        assert not {"error", "span.kind", "otel.status_code", "w3c.tracestate"} & set(keys)
        assert span.end > span.start >= 0
        assert span.name
        assert any(span.span_id)
        for event in span.events:
            assert event.name
            assert event.time in (span.start, span.end)
            assert len({key for key, _ in event.attributes}) == len(event.attributes)
        below = [pair for event in span.events for pair in event.attributes]
        for key, value in [*span.attributes().items(), *below]:
            assert type(value) in {str, int, float}, key
            if isinstance(value, str):
                assert 0 < len(value.encode()) <= MAX_ATTRIBUTE_BYTES, key
            if isinstance(value, int):
                assert -(2**63) <= value < 2**63


@given(runs())
def test_encode_is_deterministic(run: Run) -> None:
    """The same document gives the same spans, so that a re-export repeats them."""
    again = Run.from_json(run.text)
    first, second = ([scoped_bytes(span) for span in encode(each, observed_at=5)] for each in (run, again))
    assert first == second


@pytest.mark.parametrize("name", ["sample agent-support-triage", "envelope same step twice", "payload 300 KB string"])
def test_nothing_missing_goes_unnoticed(name: str) -> None:
    """A trace without any one span, exact attribute or piece of a text is incomplete, never a wrong document."""
    text = CASES.get(name) or next(text for case, text in CASES.items() if case.startswith("sample agent"))
    run = Run.from_json(text)
    spans = encode(run)
    for index, span in enumerate(spans):
        with pytest.raises(TraceIncomplete):
            decode(spans[:index] + spans[index + 1 :])
        for key, value in span.attributes().items():
            if key.removesuffix(SIZE).split(".json")[0] not in KEYS:
                continue
            if key in {ROLE, REVISION, "runspan.tenant"}:
                continue
            for changed in ({}, {key: f"{value}x"}):
                attributes = {**span.attributes(), **changed}
                if not changed:
                    del attributes[key]
                other = rebuilt(span, attributes)
                rest = [*spans[:index], other, *spans[index + 1 :]]
                if key in {RUN_ID, WORKFLOW_ID} and index < len(spans) - 1:
                    continue  # on a step span ``decode`` ignores these
                if key in {SUMMARY_DIGEST, *LABEL_SETS}:  # the document has a digest of its own
                    with pytest.raises(TraceIncomplete):
                        read_summary(other)
                elif key.endswith(SIZE) and not changed:
                    assert decode(rest).text == run.text
                else:
                    with pytest.raises(TraceIncomplete):
                        decode(rest)
        for events in damaged_texts(span):
            other = rebuilt(span, span.attributes(), events)
            with pytest.raises(TraceIncomplete):
                decode([*spans[:index], other, *spans[index + 1 :]])


def damaged_texts(span: Span) -> Iterator[tuple[Event, ...]]:
    """Yield the events of a span with one event of a long text absent, or one of its attributes absent or changed."""
    for number, event in enumerate(span.events):
        if TEXT_KEY not in dict(event.attributes):
            continue
        before, after = span.events[:number], span.events[number + 1 :]
        yield (*before, *after)
        for place, (key, value) in enumerate(event.attributes):
            pairs = list(event.attributes)
            others = [pairs[:place] + pairs[place + 1 :], [*pairs]]
            others[1][place] = (key, value + 1 if isinstance(value, int) else f"{value}x")
            for attributes in others:
                yield (*before, Event(event.name, event.time, tuple(attributes)), *after)


def rebuilt(span: Span, attributes: dict[str, Any], events: tuple[Event, ...] | None = None) -> Span:
    values = {name: getattr(span, name) for name in Span.__struct_fields__}
    values["events"] = span.events if events is None else events
    return Span(**{**values, "shared": (), "own": list(attributes.items())})


def test_incomplete_names_what_is_missing() -> None:
    """The error has the number and the ids of the missing step spans."""
    run = Run.from_json(json.dumps(ENVELOPES["same step twice"]))
    spans = encode(run)
    with pytest.raises(TraceIncomplete) as caught:
        decode(spans[1:])
    assert spans[0].span_id.hex() in str(caught.value)
    assert "1 of 4 step spans" in str(caught.value)
    with pytest.raises(TraceIncomplete, match="the trace has 4 step spans"):
        decode(spans[:-1])


def test_a_trace_of_foreign_spans_is_not_found() -> None:
    """Foreign spans alone are not a run."""
    with pytest.raises(NotFound):
        decode([foreign(b"t" * 16)])
    with pytest.raises(NotFound):
        decode([])


def test_the_highest_revision_counts() -> None:
    """Snapshots rank by time below the root, later revisions of a finished run rank above it."""
    early = Run.from_json('{"id":"r","status":"running","steps":[{"id":"a","status":"completed"}]}')
    later = Run.from_json(
        '{"id":"r","status":"running","steps":[{"id":"a","status":"completed"},{"id":"b","status":"running"}]}'
    )
    final = Run.from_json(
        '{"id":"r","status":"completed","steps":[{"id":"a","status":"completed"},{"id":"b","status":"completed"}]}'
    )
    fixed = Run.from_json('{"id":"r","status":"completed","output":1,"steps":[{"id":"a","status":"completed"}]}')
    spans = encode(early, observed_at=10) + encode(later, observed_at=20)
    assert decode(spans) == later
    assert decode(reversed(spans)) == later
    spans += encode(final)
    assert decode(spans) == final
    spans += encode(fixed, observed_at=30, after_root=True)
    assert decode(spans) == fixed
    assert len({span.span_id for span in spans if span.attributes()[ROLE] == "step"}) == 2


def test_an_older_complete_revision_is_the_fallback() -> None:
    """If the newest revision is incomplete, the older one is returned with what is missing."""
    snapshot = encode(Run.from_json('{"id":"r","status":"running","steps":[]}'), observed_at=10)
    root = encode(Run.from_json('{"id":"r","status":"completed","steps":[{"id":"a","status":"completed"}]}'))
    verified = verify_run(snapshot + root[1:])
    assert verified.run.status == "running"
    assert "1 of 1 step spans" in verified.incomplete[0]
    with pytest.raises(TraceIncomplete) as caught:
        decode(snapshot + root[1:])
    assert caught.value.fallback == verified.run


def test_one_id_with_two_contents() -> None:
    """Of two spans with the same id, the one whose content the digest verifies is used."""
    ids = [b"a" * 8]
    first = encode(
        Run.from_json('{"id":"r","status":"running","steps":[{"id":"a","status":"completed"}]}'), step_ids=ids
    )
    second = encode(
        Run.from_json('{"id":"r","status":"completed","steps":[{"id":"a","status":"completed","output":1}]}'),
        step_ids=ids,
    )
    for spans in (first + second, second + first):
        assert b'"output":1' in decode(spans).text
    assert decode([*second, first[0]]).status == "completed"


def test_revision_spans_of_another_trace_are_refused() -> None:
    """A revision span whose trace id is not that of its run id is refused."""
    spans = encode(Run.from_json('{"id":"r","status":"completed"}'))
    moved = [Span(**{**{n: getattr(s, n) for n in Span.__struct_fields__}, "trace_id": b"x" * 16}) for s in spans]
    with pytest.raises(TraceIncomplete, match="does not follow"):
        decode(moved)


def test_the_digest_is_that_of_the_text() -> None:
    """``runspan get ID | sha256sum`` prints the digest attribute of the run span."""
    run = Run.from_json(CASES["payload duplicate keys"])
    assert encode(run)[-1].attributes()[DIGEST] == hashlib.sha256(run.text).hexdigest()


def test_tenants_have_different_ids() -> None:
    """The same run id of two tenants is two traces, and the boundary between tenant and run id is unambiguous."""
    assert run_ids("r", "a") != run_ids("r", "b")
    assert run_ids("b", "a") != run_ids("ab", "")
    assert run_ids("", "ab") != run_ids("ab", "")


def test_semantic_conventions_of_a_run() -> None:
    """Names, kinds, status, tokens and error attributes follow the conventions."""
    document = json.loads(next(text for name, text in CASES.items() if name == "envelope usage"))
    spans = encode(Run.from_dict(document))
    agent, root = spans[0], spans[-1]
    assert (agent.name, agent.kind, root.kind) == ("invoke_agent s", INTERNAL, SERVER)
    attributes = agent.attributes()
    assert attributes["gen_ai.operation.name"] == "invoke_agent"
    assert attributes["gen_ai.provider.name"] == "anthropic"
    assert attributes["gen_ai.request.model"] == "claude-sonnet-4-6"
    assert attributes["gen_ai.usage.input_tokens"] == 1250
    assert attributes["gen_ai.usage.output_tokens"] == 340
    assert attributes["runspan.cost.usd"] == 0.0095
    assert attributes["cicd.pipeline.task.run.result"] == "success"
    assert "gen_ai.usage.input_tokens" not in root.attributes()
    assert root.attributes()["runspan.run.input_tokens"] == 1250
    assert root.name == "run wf"
    assert root.attributes()["cicd.pipeline.result"] == "success"
    assert root.attributes()[REVISION] == ROOT_REVISION
    assert all(span.status == 0 and not span.events for span in spans)


def test_semantic_conventions_of_errors() -> None:
    """A failed step and run have an error type, a status description and an optional exception event."""
    document = {
        "id": "r",
        "status": "failed",
        "error": {"code": "INTEGRATION_ERROR", "message": "not found"},
        "steps": [
            {"id": "a", "status": "failed", "error": {"code": "X", "message": "m"}},
            {"id": "b", "status": "skipped"},
        ],
    }
    failed, skipped, root = encode(Run.from_dict(document))
    assert (failed.status, failed.message, failed.attributes()["error.type"]) == (ERROR, "m", "X")
    assert failed.events[0].name == "exception"
    assert dict(failed.events[0].attributes) == {"exception.type": "X", "exception.message": "m"}
    assert (root.status, root.message) == (ERROR, "not found")
    assert (skipped.status, skipped.attributes()["cicd.pipeline.task.run.result"]) == (0, "skip")
    without_events = encode(Run.from_dict(document), exception_events=False)
    assert not without_events[0].events
    assert without_events[0].span_id != failed.span_id, "spans of different bytes must not share an id"


@pytest.mark.parametrize("status", ["completed", "cancelled", "suspended", "weird", "failed"])
def test_the_code_of_a_run_s_error_is_on_its_span_whatever_its_status(status: str) -> None:
    """Backends find the runs of an error code by it."""
    document = {"id": "r", "status": status, "error": {"code": "E", "message": "m"}}
    assert encode(Run.from_dict(document))[-1].attributes()["error.type"] == "E"
    for error in ("E", None, {"code": 7}, {"code": ""}):
        found = encode(Run.from_dict(document | {"error": error}))[-1].attributes().get("error.type")
        assert found == ("_OTHER" if status == "failed" else None)


@pytest.mark.parametrize(
    ("status", "code", "result"),
    [
        ("completed", 0, "success"),
        ("failed", 2, "failure"),
        ("timed_out", 2, "timeout"),
        ("cancelled", 0, "cancellation"),
        ("running", 0, None),
        ("suspended", 0, None),
        ("pending", 0, None),
    ],
)
def test_run_status_rules(status: str, code: int, result: str | None) -> None:
    """Failure and timeout have the status ERROR, all other runs UNSET."""
    span = encode(Run.from_dict({"id": "r", "status": status}))[-1]
    assert span.status == code
    assert span.attributes().get("cicd.pipeline.result") == result
    assert span.attributes()[ROLE] == ("run" if result else "revision")


def test_links_and_attempts() -> None:
    """A sub-workflow step links to its child's run span, and listed attempts are spans below the step."""
    spans = encode(Run.from_dict(ENVELOPES["sub-workflows"]))
    child = run_ids("run_child")
    assert (spans[0].links[0].trace_id, spans[0].links[0].span_id) == (child.trace_id, child.root_id)
    assert not spans[1].links
    assert not spans[2].links
    assert spans[-1].attributes()["runspan.parent.run.id"] == "run_parent"
    spans = encode(Run.from_dict(ENVELOPES["attempts"]))
    attempts = [span for span in spans if span.attributes()[ROLE] == "attempt"]
    assert [span.attributes()["runspan.attempt.number"] for span in attempts] == [1, 2]
    assert {span.parent_id for span in attempts} == {spans[0].span_id}
    assert attempts[0].attributes()["error.type"] == "TIMEOUT"


def test_the_table_covers_the_document() -> None:
    """Every member of the document classes has a row, so that none can be added in one direction only."""
    assert {field.member for field in STEP_FIELDS} == set(Step.__struct_fields__)
    assert {field.member for field in RUN_FIELDS} | {"id", "steps"} == set(Envelope.__struct_fields__)
    keys = [field.key for field in RUN_FIELDS + STEP_FIELDS]
    assert len(set(keys)) == len(keys)


def test_step_ids_must_match() -> None:
    """A wrong number of step ids is a ValueError."""
    run = Run.from_json('{"id":"r","status":"completed","steps":[{"id":"a","status":"completed"}]}')
    with pytest.raises(ValueError, match="0 step ids for 1 finished steps"):
        encode(run, step_ids=[])
    assert verify_run(encode(run, step_ids=[b"12345678"])).step_ids == [b"12345678"]


@pytest.mark.parametrize("name", CASES)
def test_a_revision_span_carries_the_list_item(name: str) -> None:
    """The list item of a run can be read from its revision span alone."""
    run = Run.from_json(CASES[name])
    summary = read_summary(encode(run, tenant="t", observed_at=NOW)[-1])
    assert summary is not None
    assert summary.summary == run.summary()
    assert (summary.run_id, summary.tenant, summary.status) == (run.id, "t", run.status)


@given(runs())
@example(Run.from_dict({"id": "0", "steps": [{"id": "", "status": "completed"}]}))
def test_content_ids_are_those_of_the_spans(run: Run) -> None:
    """They are the ids of the step spans at every revision; a run without a time lies where it was observed."""
    assert content_step_ids(run, "t") == verify_run(encode(run, tenant="t")).step_ids
    assert content_step_ids(run, "t", 5) == verify_run(encode(run, tenant="t", observed_at=5, after_root=True)).step_ids
