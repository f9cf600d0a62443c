"""Requests that a receiver rejects: a run is lost only when its last one is, and the report never says otherwise."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from runspan import Run
from runspan.codec.fields import ROLE, RUN_ID
from runspan.otlp.protobuf_reader import read_protobuf
from runspan.recorder import ExportConfig, FlushResult
from runspan.sources import documents
from support.receivers import OK, Answer, Post, partial
from support.recorder import QUICK, WAIT, delivered_document, no_worker_is_left, recording, wait_until
from support.sync import run_ids_of

NEVER_AGAIN = ExportConfig(snapshot_delay=0.005, retry_initial_delay=600, retry_max_delay=600)


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    no_worker_is_left()


def has_root(post: Post) -> bool:
    return any(span.attributes()[ROLE] == "run" for span in read_protobuf(post.message.SerializeToString()).spans)


@pytest.mark.parametrize("status", [400, 500])
def test_a_request_that_is_rejected_once_loses_nothing(status: int) -> None:
    """Its spans are sent with the next one: the run is complete, before its end and after it."""
    with recording(lambda post: Answer(status) if post.number == 1 else OK) as harness:
        with harness.recorder.run("wf", run_id="run_1") as run:
            with run.step("a") as step:
                step.set_output(1)
            assert run.flush(WAIT)
            assert harness.document("run_1") == run.document()
            with run.step("b"):
                pass
        assert [step["id"] for step in delivered_document(harness, run)["steps"]] == ["a", "b"]
        report = harness.recorder.report()
        assert (report.complete, report.runs_delivered, report.last_error) == (True, 1, "")
        assert (report.spans_rejected, report.retries) == (0, 1)
        assert run.flush(WAIT)


def test_the_end_of_a_run_delivers_all_that_was_rejected(caplog: pytest.LogCaptureFixture) -> None:
    """Every snapshot is rejected: the run is reported as pending until its end, which delivers everything."""
    with recording(lambda post: OK if has_root(post) else Answer(400), export=NEVER_AGAIN) as harness:
        with harness.recorder.run("wf", run_id="run_1") as run:
            for number in range(3):
                with run.step("work") as step:
                    step.set_output(number)
            wait_until(lambda: harness.recorder.report().retries)
            for flushed in (run.flush(0.05), harness.recorder.flush(0.05)):
                assert (bool(flushed), flushed) == (False, FlushResult(pending=1, reason="HTTP 400"))
            report = harness.recorder.report()
            assert (report.complete, report.runs_pending, report.last_error) == (False, 1, "HTTP 400")
        assert len(delivered_document(harness, run)["steps"]) == 3
        report = harness.recorder.report()
        assert (report.complete, report.runs_delivered, report.runs_dropped) == (True, 1, 0)
    assert caplog.text.count("a snapshot of run run_1 is rejected: HTTP 400") == 1


def test_a_rejection_that_comes_after_the_end_does_not_delay_it() -> None:
    """The run ends while its snapshot is in flight: the rejection of the snapshot does not concern the run span."""
    requested, proceed = threading.Event(), threading.Event()

    def answer(post: Post) -> Answer:
        requested.set()
        assert proceed.wait(WAIT)
        return Answer(500) if post.number == 1 else OK

    with recording(answer, export=NEVER_AGAIN) as harness:
        with harness.recorder.run("wf", run_id="run_1") as run, run.step("a"):
            assert requested.wait(WAIT)
        proceed.set()
        assert delivered_document(harness, run)["status"] == "completed"


def test_a_run_that_does_not_change_is_retried_after_a_rejection() -> None:
    """It is retried until the receiver accepts it, and does not wait for its heartbeat."""
    with recording(lambda post: Answer(500) if post.number <= 3 else OK) as harness:
        run = harness.recorder.run("wf", run_id="run_1").start().suspend()
        wait_until(lambda: harness.receiver.taken)
        assert harness.document("run_1").status == "suspended"
        assert run.flush(WAIT)
        run.end()


@pytest.mark.parametrize("released", [False, True])
def test_a_run_whose_last_request_is_rejected_is_given_up(tmp_path: Path, released: bool) -> None:
    """An ended or released run is counted and kept, and refused as ``flush`` says; there is nothing left to wait
    for."""
    dead_letters = tmp_path / "left.ndjson"
    with recording(lambda post: Answer(400), dead_letter=dead_letters) as harness:
        run = harness.recorder.run("wf", run_id="run_1").start()
        with run.step("a"):
            pass
        if released:
            run.release()
        else:
            run.end()
        for flushed in (harness.recorder.flush(WAIT), run.flush(WAIT)):
            assert flushed == FlushResult(refused=1, reason="the receiver rejected it: HTTP 400")
            assert (bool(flushed), flushed.is_waiting) == (False, False)
        report = harness.recorder.report()
        assert (report.runs_dropped, report.runs_dead_lettered, report.runs_delivered, report.complete) == (
            1,
            1,
            0,
            False,
        )
        assert report.spans_rejected == 2 + released  # step and revision, and the live span of an unfinished run
    assert [found.text for found in documents(str(dead_letters)) if isinstance(found, Run)] == [run.document().text]


def test_a_run_that_was_given_up_fails_one_flush(tmp_path: Path) -> None:
    """Later ones are of later runs; the run itself and the report stay as they are. Others that wait take nothing from
    it: a processor's flush, and that of a run."""
    answers = {1: Answer(400)}
    with recording(lambda post: answers.get(post.number, OK)) as harness:
        recorder = harness.recorder
        with recorder.run("wf", run_id="run_1") as given_up:
            pass
        assert given_up.flush(WAIT).refused == 1
        assert recorder.tracer_provider.force_flush(WAIT * 1000)
        assert recorder.flush(WAIT) == FlushResult(refused=1, reason="the receiver rejected it: HTTP 400")
        assert recorder.flush(WAIT)
        with recorder.run("wf", run_id="run_2"):
            pass
        assert recorder.flush(WAIT) == FlushResult(delivered=1)
        assert given_up.flush(WAIT).refused == 1
        assert (recorder.report().runs_dropped, recorder.report().complete) == (1, False)


def test_a_run_without_some_of_its_spans_is_refused() -> None:
    """A partial success must not be retried, so the run cannot become complete: every ``flush`` says so until its end,
    and one after it."""
    reason = "the receiver rejected 1 of its spans: too large"
    with recording(lambda post: partial(1, "too large") if post.number == 1 else OK, export=QUICK) as harness:
        with harness.recorder.run("wf", run_id="run_1") as run:
            wait_until(lambda: harness.recorder.report().spans_rejected)
            for flushed in (run.flush(WAIT), harness.recorder.flush(WAIT)):
                assert flushed == FlushResult(refused=1, reason=reason)
            with harness.recorder.run("wf", run_id="run_2") as other:
                pass
            assert other.flush(WAIT)
        assert harness.recorder.flush(WAIT) == FlushResult(1, 1, reason=reason)
        assert harness.recorder.flush(WAIT)
        assert run.flush(WAIT) == FlushResult(refused=1, reason=reason)
        report = harness.recorder.report()
        assert (report.runs_delivered, report.runs_dropped, report.complete) == (1, 1, False)


def test_a_partial_success_of_several_runs_costs_only_the_one_at_fault() -> None:
    """The receiver does not say which run it rejects spans of, so each is sent alone."""
    ended = threading.Event()

    def answer(post: Post) -> Answer:
        assert ended.wait(WAIT)
        spans = read_protobuf(post.message.SerializeToString()).spans
        return partial(1, "odd") if any(span.attributes()[RUN_ID] == "run_7" for span in spans) else OK

    with recording(answer, export=QUICK) as harness:
        for number in range(20):
            with harness.recorder.run("wf", run_id=f"run_{number}"):
                pass
        ended.set()
        wait_until(lambda: harness.recorder.report().runs_delivered == 19)
        wait_until(lambda: harness.recorder.report().runs_dropped == 1)
        assert max(len(run_ids_of(post)) for post in harness.receiver.posts) > 10


@pytest.mark.parametrize("ended", [False, True])
def test_of_a_divided_run_only_what_was_sent_counts(tmp_path: Path, ended: bool) -> None:
    """After a partial success of its first request the others are not sent, so they do not count as sent: they follow
    later, or the run is given up with its end."""
    dead_letters, export = tmp_path / "left.ndjson", replace(QUICK, snapshot_delay=60)
    answer = partial(1, "too large")
    with recording(lambda post: answer if post.number == 1 else OK, export=export, dead_letter=dead_letters) as harness:
        run = harness.recorder.run("wf", run_id="run_1").start()
        for _ in range(8):
            with run.step("big") as step:
                step.set_output("x" * 900_000)
        if ended:
            run.end()
        assert not run.flush(WAIT)
        taken = [span.span_id for span in harness.receiver.taken]
        report = harness.recorder.report()
        assert (report.spans_rejected, report.spans_sent) == (1, len(taken) - 1)
        assert (len(harness.receiver.posts) == 1, report.runs_dropped) == (ended, ended)
        assert len(set(taken)) == len(taken)  # OTLP forbids sending the first request again
        assert len(harness.with_role("step")) == (2 if ended else 8)
        run.end()
        assert harness.recorder.flush(WAIT).refused == 1
        report = harness.recorder.report()
        assert (report.runs_delivered, report.runs_dropped, report.runs_dead_lettered) == (0, 1, 1)
        assert report.spans_sent == len(harness.receiver.taken) - 1


def test_flush_tells_what_is_there() -> None:
    """Of a run that has not begun nothing is there; a run in progress, an ended and a released one are delivered."""
    with recording() as harness:
        recorder = harness.recorder
        run = recorder.run("wf", run_id="run_1")
        assert run.flush(0) == FlushResult(pending=1, reason="the run has not begun")
        assert not run.flush(0)
        assert recorder.flush(0) == FlushResult()
        run.start()
        assert run.flush(WAIT) == recorder.flush(WAIT) == FlushResult(delivered=1)
        released = recorder.run("wf", run_id="run_2").start()
        released.release()
        run.end()
        assert recorder.flush(WAIT) == FlushResult(delivered=2)
        assert run.flush(WAIT) == released.flush(WAIT) == FlushResult(delivered=1)
        assert recorder.report().runs_released == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_knows_nothing_of_its_parents_runs() -> None:
    """They are pending for it, whatever becomes of them; its own count."""
    with recording() as harness:
        run = harness.recorder.run("wf", run_id="run_1").start()
        child = os.fork()
        if not child:
            own = harness.recorder.run("wf", run_id="run_2").start()
            own.end()
            same = (run.flush(0), bool(run.flush(0)), harness.recorder.flush(WAIT))
            os._exit(same != (FlushResult(pending=1), False, FlushResult(delivered=1)))
        assert os.waitpid(child, 0)[1] == 0
        run.end()
        assert run.flush(WAIT) == FlushResult(delivered=1)
