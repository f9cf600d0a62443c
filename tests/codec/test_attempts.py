"""Attempts of a step are spans below a finished step, and below the live span while the step is open."""

from __future__ import annotations

from typing import Any

import pytest

from conformance.harness import SECOND, T0
from runspan import Run, decode, encode
from runspan.codec.fields import ROLE, ROLE_ATTEMPT, ROLE_LIVE
from runspan.model.span import ERROR, Span
from runspan.otlp.bulk_writer import write_run
from runspan.otlp.protobuf_writer import scoped_bytes, single_spans, span_bytes
from support.run_histories import run_history


def attempts(spans: list[Span]) -> list[Span]:
    return [span for span in spans if span.attributes()[ROLE] == ROLE_ATTEMPT]


def retrying(number: Any = 1, status: str = "running", **members: Any) -> Run:
    """Return a run with a step that has only the number of its attempt, as in the platform's log."""
    step = {"id": "pay", "name": "Pay", "status": "retrying", "attempt": number, **members}
    return Run.from_dict({"id": "r", "status": status, "startedAt": "2026-01-15T09:00:01.000Z", "steps": [step]})


def test_snapshots_that_repeat_an_attempt_repeat_its_span() -> None:
    """Spans with the same id are the same bytes in all snapshots of a run, so a trace shows each attempt once."""
    history = run_history("r", T0)
    seen: dict[bytes, bytes] = {}
    for moment in (*history, *history[3:6]):
        for shift in (0, 1):
            for span in encode(moment.run, observed_at=moment.at + shift):
                assert seen.setdefault(span.span_id, span_bytes(span)) == span_bytes(span)


def test_attempts_of_an_open_step_are_children_of_the_live_span() -> None:
    """An open step has no span. Once it has ended, its attempts are children of its span."""
    history = run_history("r", T0)
    for moment, count in ((history[3], 1), (history[4], 2)):
        spans = encode(moment.run, observed_at=moment.at)
        (live,) = [span for span in spans if span.attributes()[ROLE] == ROLE_LIVE]
        found = attempts(spans)
        assert [span.attributes()["runspan.attempt.number"] for span in found] == list(range(1, count + 1))
        assert {span.parent_id for span in found} == {live.span_id}
    ended = encode(history[5].run, observed_at=history[5].at)
    (charge,) = [span for span in ended if span.name == "Charge Card"]
    assert {span.parent_id for span in attempts(ended)} == {charge.span_id}
    assert len(attempts(ended)) == 3


def test_an_attempt_names_its_run_and_step() -> None:
    """Run, workflow and step are attributes of the span, whether the step has ended or not."""
    for moment in run_history("r", T0)[4:6]:
        for span in attempts(encode(moment.run, observed_at=moment.at)):
            found = span.attributes()
            assert (found["runspan.run.id"], found["runspan.workflow.id"]) == ("r", "wf_live")
            assert found["runspan.step.id"] == "charge"


def test_a_number_alone_makes_an_attempt() -> None:
    """It has the error of the step, is placed at the step's start, and has no measurable duration."""
    started = "2026-01-15T09:00:05.000Z"
    run = retrying(2, startedAt=started, error={"code": "TIMEOUT", "message": "slow"})
    (span,) = attempts(encode(run, observed_at=T0))
    found = span.attributes()
    assert (found["runspan.attempt.number"], found["runspan.attempt.status"]) == (2, "retrying")
    assert (found["error.type"], span.events[0].name) == ("TIMEOUT", "exception")
    assert span.end - span.start == 1
    assert (span.name, span.status, span.message) == ("attempt of Pay", ERROR, "slow")
    (again,) = attempts(encode(run, observed_at=T0 + SECOND))
    assert span_bytes(again) == span_bytes(span)
    assert attempts(encode(run, observed_at=T0, exception_events=False))[0].span_id != span.span_id


@pytest.mark.parametrize("number", [None, "2", 1.5, -1, 10**30, [1], True])
def test_an_invalid_number_makes_no_attempt(number: Any) -> None:
    """The document comes back regardless."""
    run = retrying(number)
    spans = encode(run, observed_at=T0)
    assert attempts(spans) == []
    assert decode(spans) == run


def test_equal_steps_of_a_loop_have_attempts_of_their_own() -> None:
    """Two open steps with the same id and attempt have different attempt spans."""
    step = {"id": "pay", "status": "retrying", "attempt": 1}
    run = Run.from_dict({"id": "r", "status": "running", "steps": [step, step]})
    spans = encode(run, observed_at=T0)
    assert len({span.span_id for span in attempts(spans)}) == 2
    assert decode(spans) == run


@pytest.mark.parametrize("status", ["running", "cancelled"])
def test_documents_with_open_attempts_come_back(status: str) -> None:
    """The decoder ignores attempts, and the exporter writes the same spans as ``encode`` for every run status."""
    tries = [{"startedAt": "2026-01-15T09:00:02.000Z", "completedAt": "2026-01-15T09:00:03.000Z"}]
    for run in (retrying(status=status), retrying(status=status, attempts=tries)):
        spans = encode(run, observed_at=T0)
        assert len(attempts(spans)) == 1
        assert decode(spans) == run
        assert single_spans(write_run(run, observed_at=T0)) == [scoped_bytes(span) for span in spans]
