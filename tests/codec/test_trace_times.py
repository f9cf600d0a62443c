"""Times and parents of spans: within what backends hold, and each child inside its parent where the document allows."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings

from runspan import Run, decode, encode
from runspan.codec.fields import ROLE, ROLE_ATTEMPT, ROLE_STEP, SCOPE_LIVE, SCOPE_RUN, SCOPE_STEP
from runspan.model.document import TERMINAL_STEP_STATUSES
from runspan.model.span import Span
from runspan.model.timestamps import SECOND, parse_ns
from runspan.otlp.bulk_writer import write_run
from runspan.otlp.json import read_json, write_json
from runspan.otlp.protobuf_reader import read_protobuf
from runspan.otlp.protobuf_writer import Resource, request_bytes, scoped_bytes, single_spans
from support.corpus import cases
from support.timed_runs import MINUTE, at, inside_runs, timed_runs

LATEST = (1 << 63) - 2
NOW = 1_800_000_000 * SECOND
LARGE = 1000
"""Spans of a run. The times of a larger one are checked without writing and reading them."""
CASES = cases()
thorough = settings(suppress_health_check=list(HealthCheck))


def check_bounds(run: Run, spans: list[Span]) -> None:
    """Hold the spans to what no document may exceed, in attributes, events and times."""
    assert decode(spans).text == run.text
    assert len({span.span_id for span in spans}) == len(spans)
    for span in spans:
        assert len(list(span.pairs())) <= 100
        assert all(len(event.attributes) <= 100 for event in span.events)
        assert 0 <= span.start < span.end < LATEST
        assert all(0 <= event.time < LATEST for event in span.events)


def check_received(spans: list[Span]) -> None:
    """The readers of both encodings accept what is written."""
    for received in (
        read_protobuf(request_bytes(Resource(), map(scoped_bytes, spans))),
        read_json(write_json(spans, Resource())),
    ):
        assert received.rejected == []
        assert len(received.spans) == len(spans)


def check_parents(spans: list[Span]) -> None:
    """Each span has its parent in the trace or below the root to come, and parents form no circle."""
    by_id = {span.span_id: span for span in spans}
    for span in spans:
        seen = set()
        while span.parent_id in by_id:
            assert span.span_id not in seen
            seen.add(span.span_id)
            span = by_id[span.parent_id]  # noqa: PLW2901


def is_point(span: Span) -> bool:
    """Return whether a span has no length. It ends a nanosecond after its start, which may be the end of its parent."""
    return span.end == span.start + 1


@pytest.mark.parametrize("text", CASES.values(), ids=CASES)
def test_no_case_exceeds_the_bounds(text: str) -> None:
    """Whenever it was observed, and also as a correction."""
    run = Run.from_json(text)
    for observed_at in (0, NOW, LATEST):
        for after_root in (False, True):
            spans = encode(run, observed_at=observed_at, after_root=after_root)
            check_bounds(run, spans)
            check_parents(spans)
    if len(spans) < LARGE:
        check_received(spans)


@given(timed_runs)
@thorough
def test_no_times_exceed_the_bounds(run: Run) -> None:
    """Whatever the times of run, steps and attempts are, in both writers."""
    spans = encode(run, observed_at=NOW)
    check_bounds(run, spans)
    check_received(spans)
    check_parents(spans)
    assert single_spans(write_run(run, observed_at=NOW)) == [scoped_bytes(span) for span in spans]


@pytest.mark.parametrize("status", ["running", "completed"])
@pytest.mark.parametrize("number", range(3, 8))
def test_the_last_moments_that_a_span_can_hold(number: int, status: str) -> None:
    """A document at any of them gives spans that are received, in both writers: later times are carried as text."""
    moment = f"2262-04-11T23:47:16.85477580{number}Z"
    step = {"id": "a", "status": "completed", "attempts": [{"startedAt": moment, "completedAt": moment}]}
    timed = {**step, "id": "b", "startedAt": moment, "completedAt": moment}
    for members in ({"startedAt": moment}, {"createdAt": moment}, {"completedAt": moment}, {"steps": [step, timed]}):
        run = Run.from_dict({"id": "r", "status": status, **members})
        for observed_at in (None, NOW, LATEST):
            spans = encode(run, observed_at=observed_at)
            check_bounds(run, spans)
            check_received(spans)
            assert single_spans(write_run(run, observed_at=observed_at)) == [scoped_bytes(span) for span in spans]


@given(inside_runs)
@thorough
def test_a_trace_is_as_long_as_its_run(run: Run) -> None:
    """If all steps lie inside the run, so do their spans, and each child lies inside its parent."""
    spans = encode(run)
    check_bounds(run, spans)
    by_id = {span.span_id: span for span in spans}
    root = spans[-1]
    assert (root.start, root.end) == (parse_ns(at(0)), parse_ns(at(MINUTE)))
    assert {span.scope for span in spans} <= {SCOPE_RUN, SCOPE_STEP}
    assert min(span.start for span in spans) == root.start
    assert max(span.end - is_point(span) for span in spans) == root.end
    assert all(span.end <= root.end for span in spans if span.name.endswith("(skipped)"))
    for span in spans[:-1]:
        parent = by_id.get(span.parent_id)
        if parent is None:
            assert span.attributes()[ROLE] == ROLE_ATTEMPT  # of a step that has no span
            continue
        if span.attributes()[ROLE] == ROLE_STEP:
            assert parent.start <= span.start
            assert span.end - is_point(span) <= parent.end
            assert parent is root or parent.attributes()["runspan.step.type"] == "loop"


@given(inside_runs)
@thorough
def test_unfinished_runs_keep_the_rules_too(run: Run) -> None:
    """Finished steps are bars; everything else that is written while the run goes on has no length."""
    document = run.to_dict() | {"status": "running"}
    del document["completedAt"]
    running = Run.from_dict(document)
    spans = encode(running, observed_at=parse_ns(at(MINUTE)))
    check_bounds(running, spans)
    check_parents(spans)
    bars = [span for span in spans if not is_point(span)]
    assert {span.scope for span in bars} <= {SCOPE_STEP}
    steps = [span for span in spans if span.attributes()[ROLE] == ROLE_STEP]
    assert len(steps) == sum([step.status in TERMINAL_STEP_STATUSES for step in running.steps])
    assert all(span.start >= (parse_ns(at(0)) or 0) for span in spans)
    assert len([span for span in spans if span.scope == SCOPE_LIVE and span.name.endswith("(live)")]) == 1
