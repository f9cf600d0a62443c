"""The shape of traces, for the people and engines that read them: bounds, times, parents, names and points."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given

from runspan import Run, decode, encode
from runspan.codec.fields import (
    MAX_ATTRIBUTE_BYTES,
    REVISION,
    ROLE,
    SCOPE_LIVE,
    SCOPE_REVISION,
    SCOPE_RUN,
    SCOPE_STEP,
    SUMMARY_DIGEST,
    TEXT_NUMBER,
)
from runspan.model.document import sort_time, time_ns
from runspan.model.span import ERROR, INTERNAL, SERVER, Span, to_plain
from runspan.model.timestamps import SECOND, parse_ns
from support.corpus import cases, runs

LATEST = (1 << 63) - 2
NOW = 1_800_000_000 * SECOND
CASES = cases()


def step(step_id: str, start: int | None = None, end: int | None = None, **members: Any) -> dict[str, Any]:
    """A finished step of these seconds of the run."""
    times = {name: at(second) for name, second in (("startedAt", start), ("completedAt", end)) if second is not None}
    return {"id": step_id, "name": step_id.title(), "type": "action", "status": "completed", **times} | members


def at(second: int) -> str:
    """The time so many seconds after nine o'clock."""
    return f"2024-01-15T09:{second // 60:02}:{second % 60:02}.000Z"


def run_of(*steps: dict[str, Any], **members: Any) -> Run:
    """A completed run of a minute."""
    document = {"id": "run_1", "workflowId": "wf_1", "status": "completed", "startedAt": at(0), "completedAt": at(60)}
    return Run.from_dict({**document, **members, "steps": list(steps)})


def named(spans: list[Span], name: str) -> Span:
    (found,) = [span for span in spans if span.name == name]
    return found


def check_shape(run: Run, spans: list[Span]) -> None:
    """Hold the spans of a run to the rules that apply to every document."""
    assert decode(spans).text == run.text
    by_id = {span.span_id: span for span in spans}
    assert len(by_id) == len(spans)
    for span in spans:
        assert len(list(span.pairs())) <= 100
        assert all(len(event.attributes) <= 100 for event in span.events)
        texts = [value for _, value in span.pairs()] + [value for event in span.events for _, value in event.attributes]
        plain = [to_plain(value) for value in texts]
        assert all(len(value.encode()) <= 2048 for value in plain if type(value) is str)
        assert 0 <= span.start < span.end < LATEST
        assert span.scope in {SCOPE_RUN, SCOPE_REVISION, SCOPE_LIVE, SCOPE_STEP}
        if span.scope in {SCOPE_REVISION, SCOPE_LIVE}:
            assert span.end == span.start + 1
    roots = [span for span in spans if not span.parent_id]
    assert len(roots) == run.finished
    for root in roots:
        assert root.kind == SERVER
        assert root.scope == SCOPE_RUN
        start, end = time_ns(run.envelope.started_at), time_ns(run.envelope.completed_at)
        if start is not None and start > 0 and end is not None and end > start:
            assert (root.start, root.end) == (start, end)
        for span in spans:
            if start is not None and end is not None and start < span.start and span.end < end:
                parent = by_id[span.parent_id]
                assert parent.start <= span.start
                assert span.end <= parent.end or parent.end == parent.start + 1 or span.scope == SCOPE_STEP


@pytest.mark.parametrize("text", CASES.values(), ids=CASES)
def test_every_case_keeps_the_shape(text: str) -> None:
    """No span has more than 100 attributes, no event either, and no time is beyond what backends hold."""
    run = Run.from_json(text)
    check_shape(run, encode(run, tenant="acme", observed_at=NOW))
    check_shape(run, encode(run, observed_at=NOW, exception_events=False))


@given(runs())
def test_every_document_keeps_the_shape(document: dict[str, Any]) -> None:
    """The same for documents that nobody thought of."""
    run = Run.from_dict(document)
    check_shape(run, encode(run, observed_at=NOW))
