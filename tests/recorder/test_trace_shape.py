"""The recorder writes the shape of ``encode``: a run ends as if it were exported at once, with a subtree of points."""

from __future__ import annotations

import threading
from collections import Counter
from contextlib import suppress
from typing import Any

import pytest

from runspan import Span, encode
from runspan.codec.fields import (
    REVISION,
    ROLE,
    ROLE_ATTEMPT,
    ROLE_LIVE,
    ROLE_OPEN_STEP,
    ROLE_REVISION,
    ROLE_RUN,
    ROLE_STEP,
    SCOPE_LIVE,
    SCOPE_REVISION,
)
from runspan.model.timestamps import SECOND
from runspan.recorder import ExportConfig, RunRecording
from support.receivers import OK, Answer
from support.recorder import START, WAIT, Harness, delivered_document, recording, wait_until

AT_FLUSH = ExportConfig(snapshot_delay=600)
"""Nothing is sent before the test flushes."""
LIVE_ROLES = (ROLE_LIVE, ROLE_REVISION, ROLE_OPEN_STEP)


class StillClock:
    """A clock that advances when the test says so."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> int:
        return self.now


def role(span: Span) -> Any:
    return span.attributes()[ROLE]


def shape(spans: list[Span]) -> Counter[Any]:
    """Return everything that spans carry, with parents by name and start instead of ids."""
    by_id = {span.span_id: span for span in spans}
    ids = {span.span_id.hex() for span in spans}
    found: Counter[Any] = Counter()
    for span in spans:
        parent = by_id.get(span.parent_id)
        pairs = [(key, value) for key, value in span.attributes().items() if value not in ids and not is_manifest(key)]
        found[
            (
                *(span.name, span.kind, span.scope, span.start, span.end, span.status, span.message),
                None if parent is None else (parent.name, parent.start),
                repr(sorted(pairs, key=repr)),
                repr(span.events),
                repr(span.links),
            )
        ] += 1
    return found


def is_manifest(key: str) -> bool:
    return key.startswith("runspan.run.steps")


def record_run(harness: Harness, clock: StillClock, *, flush: bool) -> RunRecording:
    """Record a run with a long output, a retried step, a loop and skipped steps; ``flush`` after each change or not."""

    def pause(seconds: int) -> None:
        assert not flush or run.flush(WAIT)
        clock.now += seconds * SECOND
        run.set_input(clock.now)
        assert not flush or run.flush(WAIT)

    with harness.recorder.run("wf", run_id="run_1") as run:
        with run.step("fetch", name="Fetch", type="action", input={"q": 1}) as fetch:
            pause(7)
            fetch.set_output("x" * 300_000)
        run.skip("check", name="Check")
        with run.step("pay", name="Pay", type="stripe") as pay:
            for number in range(3):
                with suppress(ValueError), pay.attempt():
                    pause(3)
                    if number < 2:
                        raise ValueError("declined")
            pay.set_output({"paid": True})
        with run.step("each", name="Each", type="loop") as each:
            pause(6)
            for number in range(3):
                with run.step("send", name="Send", type="email") as send:
                    pause(2)
                    send.set_output(number)
            each.set_output(3)
        pause(1)
        run.skip("last", name="Last")
    delivered_document(harness, run)
    return run


@pytest.mark.parametrize("flush", [False, True], ids=["at once", "live"])
def test_a_run_ends_as_the_run_exported_at_once(flush: bool) -> None:
    """Apart from ids, its spans are those of ``encode``, however often it was sent before; and the live subtree."""
    clock = StillClock()
    with recording(clock=clock, export=AT_FLUSH) as harness:
        run = record_run(harness, clock, flush=flush)
        spans = harness.spans_of("run_1")
        assert len({span.span_id for span in spans}) == len(spans)
        found = [span for span in spans if role(span) not in LIVE_ROLES]
        expected = encode(run.document())
        assert shape(found) == shape(expected)
        assert {role(span) for span in found} == {ROLE_RUN, ROLE_STEP, ROLE_ATTEMPT}
        live = [span for span in spans if role(span) in LIVE_ROLES]
        assert bool(live) == flush
        assert {span.scope for span in live} <= {SCOPE_LIVE, SCOPE_REVISION}
        assert all(span.end == span.start + 1 for span in live)


def test_the_live_subtree() -> None:
    """One live span, one point of each step that was open for long, and revisions, all below the live span."""
    clock = StillClock()
    with recording(clock=clock, export=AT_FLUSH) as harness:
        run = record_run(harness, clock, flush=True)
        assert run.document().finished
        (live,) = harness.with_role(ROLE_LIVE)
        assert live.name == "run wf (live)"
        points = harness.with_role(ROLE_OPEN_STEP)
        assert sorted(span.name for span in points) == ["Each (started)", "Fetch (started)", "Pay (started)"]
        steps = {span.attributes()["runspan.step.id"]: span for span in harness.with_role(ROLE_STEP)}
        for point in points:
            assert point.start == steps[point.attributes()["runspan.step.id"]].start
        revisions = harness.with_role(ROLE_REVISION)
        assert len({span.attributes()[REVISION] for span in revisions}) == len(revisions) > 10
        assert {span.parent_id for span in (*points, *revisions)} == {live.span_id}
        assert {span.start for span in revisions} == {START}


def test_rounds_are_below_their_loop_from_the_first() -> None:
    """A round is written once, before its loop has ended and before its id occurs again."""
    clock = StillClock()
    with recording(clock=clock, export=AT_FLUSH) as harness:
        with harness.recorder.run("wf", run_id="run_1") as run, run.step("each", type="loop") as each:
            for number in range(2):
                clock.now += SECOND
                with run.step("send"):
                    clock.now += SECOND
                assert run.flush(WAIT)
                rounds = [span for span in harness.with_role(ROLE_STEP) if span.name == "send"]
                assert len(rounds) == number + 1
                assert {span.parent_id for span in rounds} == {each.span_id}
        delivered_document(harness, run)
        (loop,) = [span for span in harness.with_role(ROLE_STEP) if span.name == "each"]
        assert loop.span_id == each.span_id
        assert len(harness.with_role(ROLE_STEP)) == 3


def test_points_are_sent_again_until_they_are_acknowledged() -> None:
    """Live span and points are written once, also if the receiver was down; a short step has no point."""
    up = threading.Event()
    clock = StillClock()
    with recording(lambda post: OK if up.is_set() else Answer(503), clock=clock) as harness:
        run = harness.recorder.run("wf", run_id="run_1").start()
        step = run.step("slow").start()
        with run.step("short"):
            clock.now += SECOND
        clock.now += 10 * SECOND
        wait_until(lambda: harness.recorder.report().retries >= 2)
        assert harness.spans == []
        up.set()
        assert run.flush(WAIT)
        for _ in range(3):
            clock.now += 60 * SECOND
            step.set_input(clock.now)
            assert run.flush(WAIT)
        assert [span.name for span in harness.with_role(ROLE_LIVE)] == ["run wf (live)"]
        assert [span.name for span in harness.with_role(ROLE_OPEN_STEP)] == ["slow (started)"]
        step.end()
        run.end()
        delivered_document(harness, run)
