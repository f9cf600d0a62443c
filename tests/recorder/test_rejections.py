"""Requests that a receiver refuses: a run is lost only when its last one is, and nobody is told otherwise."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from runspan import Run
from runspan.codec.fields import ROLE
from runspan.otlp.protobuf_reader import read_protobuf
from runspan.recorder import ExportConfig
from runspan.sources import documents
from support.receivers import OK, Answer, Post, partial
from support.recorder import QUICK, WAIT, proved, recording, until

NEVER_AGAIN = ExportConfig(snapshot_delay=0.005, retry_initial_delay=600, retry_max_delay=600)


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    until(lambda: not [thread for thread in threading.enumerate() if thread.name == "runspan-recorder"])


def has_root(post: Post) -> bool:
    return any(span.attributes()[ROLE] == "run" for span in read_protobuf(post.message.SerializeToString()).spans)


@pytest.mark.parametrize("status", [400, 500])
def test_a_request_that_is_refused_once_costs_nothing(status: int) -> None:
    """Its spans go with the next one: the run is there whole, before its end and after it."""
    with recording(lambda post: Answer(status) if post.number == 1 else OK) as taken:
        with taken.recorder.run("wf", run_id="run_1") as run:
            with run.step("a") as step:
                step.set_output(1)
            assert run.flush(WAIT)
            assert taken.document("run_1") == run.document()
            with run.step("b"):
                pass
        assert [step["id"] for step in proved(taken, run)["steps"]] == ["a", "b"]
        report = taken.recorder.report()
        assert (report.complete, report.runs_delivered, report.last_error) == (True, 1, "")
        assert (report.spans_rejected, report.retries) == (0, 1)
        assert run.flush(WAIT)


def test_the_end_of_a_run_brings_all_that_was_refused(caplog: pytest.LogCaptureFixture) -> None:
    """Every snapshot is refused: until the end the run is not there, which is told; the root brings all at once."""
    with recording(lambda post: OK if has_root(post) else Answer(400), export=NEVER_AGAIN) as taken:
        with taken.recorder.run("wf", run_id="run_1") as run:
            for number in range(3):
                with run.step("work") as step:
                    step.set_output(number)
            until(lambda: taken.recorder.report().retries)
            assert not run.flush(0.05)
            assert not taken.recorder.flush(0.05)
            report = taken.recorder.report()
            assert (report.complete, report.runs_pending, report.last_error) == (False, 1, "HTTP 400")
        assert len(proved(taken, run)["steps"]) == 3
        report = taken.recorder.report()
        assert (report.complete, report.runs_delivered, report.runs_dropped) == (True, 1, 0)
    assert caplog.text.count("a snapshot of run run_1 is rejected: HTTP 400") == 1


def test_a_refusal_that_comes_after_the_end_does_not_hold_it_up() -> None:
    """The run ended while its snapshot was under way: that this is refused says nothing about the root."""
    asked, go = threading.Event(), threading.Event()

    def answer(post: Post) -> Answer:
        asked.set()
        assert go.wait(WAIT)
        return Answer(500) if post.number == 1 else OK

    with recording(answer, export=NEVER_AGAIN) as taken:
        with taken.recorder.run("wf", run_id="run_1") as run, run.step("a"):
            assert asked.wait(WAIT)
        go.set()
        assert proved(taken, run)["status"] == "completed"


def test_a_run_that_does_not_change_is_tried_again_after_a_refusal() -> None:
    """A suspended run has no heartbeat, and yet the receiver gets it once it takes it."""
    with recording(lambda post: Answer(500) if post.number <= 3 else OK) as taken:
        run = taken.recorder.run("wf", run_id="run_1").start().suspend()
        until(lambda: taken.receiver.taken)
        assert taken.document("run_1").status == "suspended"
        assert run.flush(WAIT)
        run.end()


@pytest.mark.parametrize("released", [False, True])
def test_a_run_whose_last_request_is_refused_is_given_up(tmp_path: Path, released: bool) -> None:
    """Ended or let go, nothing more will come of it: it is counted, kept, and its ``flush`` says that it is not there;
    the recorder itself has nothing left to wait for."""
    letters = tmp_path / "left.ndjson"
    with recording(lambda post: Answer(400), dead_letter=letters) as taken:
        run = taken.recorder.run("wf", run_id="run_1").start()
        with run.step("a"):
            pass
        if released:
            run.release()
        else:
            run.end()
        assert taken.recorder.flush(WAIT)
        assert not run.flush(WAIT)
        report = taken.recorder.report()
        assert (report.runs_dropped, report.runs_dead_lettered, report.runs_delivered, report.complete) == (
            1,
            1,
            0,
            False,
        )
        assert report.spans_rejected == 2
    assert [found.text for found in documents(str(letters)) if isinstance(found, Run)] == [run.document().text]


def test_flush_tells_of_a_run_without_some_of_its_spans() -> None:
    """A partial success must not be sent again, so the run cannot become whole: no ``flush`` says that it is there."""
    with recording(lambda post: partial(1, "too odd") if post.number == 1 else OK, export=QUICK) as taken:
        with taken.recorder.run("wf", run_id="run_1") as run:
            until(lambda: taken.recorder.report().spans_rejected)
            assert not run.flush(WAIT)
            assert not taken.recorder.flush(WAIT)
            with taken.recorder.run("wf", run_id="run_2") as other:
                pass
            assert other.flush(WAIT)
        assert taken.recorder.flush(WAIT)
        assert not run.flush(WAIT)
        report = taken.recorder.report()
        assert (report.runs_delivered, report.runs_dropped, report.complete) == (1, 1, False)
