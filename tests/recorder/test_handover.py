"""Runs that one process releases and another resumes: nothing is lost, and the resuming process takes precedence."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from runspan import Recorder
from runspan.codec.fields import REVISION, ROLE, ROLE_LIVE, ROLE_REVISION
from runspan.recorder import ExportConfig
from support.receivers import OK, Answer, Post
from support.recorder import (
    QUICK,
    START,
    WAIT,
    TickingClock,
    delivered_document,
    no_worker_is_left,
    recording,
    wait_until,
)

SECOND = 1_000_000_000


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    no_worker_is_left()


def statuses(document: Any) -> tuple[str, list[tuple[str, str]]]:
    """Return the status of a run, and of its steps."""
    return document.status, [(step.id, step.status) for step in document.steps]


# A released run is sent.


@pytest.mark.parametrize("status", [200, 503, 500])
def test_a_run_that_is_released_during_a_request_is_sent(status: int) -> None:
    """Whatever the response to the request, which was built before, the state of the checkpoint is sent at once."""
    requested, proceed = threading.Event(), threading.Event()

    def answer(post: Post) -> Answer:
        requested.set()
        assert proceed.wait(WAIT)
        return OK if post.number > 1 else Answer(status)

    config = (
        ExportConfig(snapshot_delay=0.005, retry_initial_delay=0.02, retry_max_delay=0.02)
        if status == 503
        else ExportConfig(0.005, retry_initial_delay=600)
    )
    with recording(answer, export=config) as harness:
        run = harness.recorder.run("wf", run_id="run_1").start()
        with run.step("fetch"):
            pass
        assert requested.wait(WAIT)
        run.step("approve", type="approval").start()
        checkpoint = run.suspend().release()
        proceed.set()
        assert run.flush(WAIT)
        found = harness.document("run_1")
        assert statuses(found) == ("suspended", [("fetch", "completed"), ("approve", "running")])
        assert json.loads(checkpoint)["document"] == found.to_dict()
        assert harness.recorder.report().complete


def test_a_run_is_released_once() -> None:
    """A second release returns the same checkpoint and is counted as late, and so is that of an ended run."""
    with recording() as harness:
        run = harness.recorder.run("wf", run_id="run_1").start()
        first = run.release()
        assert run.release() == first
        run.end()
        assert run.flush(WAIT)
        assert harness.document("run_1").status == "running"
        roles = [span.attributes()[ROLE] for span in harness.spans_of("run_1")]
        assert sorted(roles) == [ROLE_LIVE, ROLE_REVISION]
        with harness.recorder.run("wf", run_id="run_2") as ended:
            pass
        assert json.loads(ended.release())["document"]["status"] == "completed"
        assert harness.recorder.report().late_calls == 3
        assert delivered_document(harness, ended)["status"] == "completed"


# The resuming process takes precedence.


def test_a_released_state_that_arrives_late_overrides_nothing() -> None:
    """The first process cannot send until the second one has continued: the backend keeps the newer state."""
    up = threading.Event()

    def answer(post: Post) -> Answer:
        return OK if up.is_set() or post.headers.get("x-who") == "second" else Answer(503)

    with recording(answer, clock=TickingClock(1000)) as harness:
        run = harness.recorder.run("wf", run_id="run_1").start()
        with run.step("fetch"):
            pass
        checkpoint = run.suspend().release()
        wait_until(lambda: harness.receiver.posts)
        second = Recorder(
            endpoint=harness.receiver.url, headers={"x-who": "second"}, export=QUICK, clock=TickingClock(1000)
        )
        again = second.resume(checkpoint).start().resume()
        again.step("pay").start()
        assert again.flush(WAIT)
        newer = ("running", [("fetch", "completed"), ("pay", "running")])
        assert statuses(harness.document("run_1")) == newer
        wait_until(lambda: harness.recorder.report().retries >= 2)
        up.set()
        assert harness.recorder.flush(WAIT)
        assert statuses(harness.document("run_1")) == newer
        revisions = [span.attributes()[REVISION] for span in harness.with_role("revision")]
        assert revisions[-1] == json.loads(checkpoint)["revision"] < min(revisions[:-1])
        again.end()
        assert second.shutdown(WAIT).complete
        assert harness.document("run_1") == again.document()


@pytest.mark.parametrize("behind", [1, 60 * SECOND])
def test_the_resuming_process_takes_precedence_with_a_clock_that_is_behind(behind: int) -> None:
    """The clock of another machine is a minute behind: its reports are newer all the same, without a span id twice."""
    with recording(clock=lambda: START) as harness:
        run = harness.recorder.run("wf", run_id="run_1").start()
        with run.step("fetch"):
            pass
        run.step("approve").start()
        checkpoint = run.suspend().release()
        assert run.flush(WAIT)
        second = Recorder(endpoint=harness.receiver.url, export=QUICK, clock=lambda: START - behind)
        again = second.resume(checkpoint).start().resume()
        for step_id in ("approve", "fetch"):
            with again.step(step_id):
                pass
        assert again.flush(WAIT)
        assert statuses(harness.document("run_1")) == (
            "running",
            [("fetch", "completed"), ("approve", "completed"), ("fetch", "completed")],
        )
        again.end()
        assert second.shutdown(WAIT).complete
        document = harness.document("run_1")
        assert document == again.document()
        times = [step.started_at for step in document.steps]
        assert min(times) >= document.envelope.created_at  # type: ignore[operator, type-var]
        assert len({span.span_id for span in harness.with_role("step")}) == 3


# Span ids.


def test_a_run_that_is_resumed_at_the_same_moment_uses_no_span_id_twice() -> None:
    """Again and again, while the clock does not advance: each execution of a step is a span of its own."""
    with recording(clock=lambda: START) as harness:
        run = harness.recorder.run("wf", run_id="run_1").start()
        for number in range(4):
            with run.step("poll") as step:
                step.set_output(number)
            run.step("wait").start()
            run = harness.recorder.resume(run.suspend().release()).start().resume()
            with run.step("wait") as step:
                step.set_output(number)
        run.end()
        steps = delivered_document(harness, run)["steps"]
        assert [step["output"] for step in steps] == [0, 0, 1, 1, 2, 2, 3, 3]
        assert len({span.span_id for span in harness.with_role("step")}) == 8


def test_a_checkpoint_that_is_resumed_twice_uses_no_span_id_twice() -> None:
    """The process that resumed it died; the next one executes the steps again, a microsecond later, as other spans."""
    with recording(clock=TickingClock(1000)) as harness:
        checkpoint = harness.recorder.run("wf", run_id="run_1").start().suspend().release()
        for number in (1, 2):
            run = harness.recorder.resume(checkpoint).start().resume()
            with run.step("pay") as step:
                step.set_output(number)
            assert run.flush(WAIT)
        run.end()
        assert [step["output"] for step in delivered_document(harness, run)["steps"]] == [2]
        assert len({span.span_id for span in harness.with_role("step")}) == 2


def test_executing_a_run_id_again_within_a_millisecond() -> None:
    """The times of the document are truncated to milliseconds; the times that distinguish two runs are not."""
    with recording(clock=TickingClock(1000)) as harness:
        for output in (1, 2):
            with harness.recorder.run("wf", run_id="run_1") as run, run.step("a") as step:
                step.set_output(output)
        assert harness.recorder.flush(WAIT)
        assert len({run.record.not_before, START}) == 1
        assert len({span.span_id for span in harness.with_role("step")}) == 2


# The contents of a checkpoint.


def test_any_payload_survives_a_checkpoint() -> None:
    """A lone surrogate, which JSON has as an escape only, and numbers beyond a float's precision, anywhere."""
    value = {"cut": "emoji \ud83d", "many": 2**70}
    with recording() as harness:
        run = harness.recorder.run("wf", run_id="run_1", input=value, extra={"region": value}).start()
        with run.step("done", input=value) as step:
            step.set_output(value)
        step = run.step("on", type="agent", input=value, retry={"hint": "\udfff"}, extra={"a": value, "b\n": 1}).start()
        step.set_output(value).set_usage(prompt_tokens=1, model="m\ud83d").retry({"code": "X", "cut": "\ud83d"})
        run.set_output(value).suspend()
        before = run.document()
        run = harness.recorder.resume(run.release().decode())
        assert run.document().text == before.text
        with run.start().resume(), run.step("on") as step:
            pass
        document = delivered_document(harness, run)
    assert document["input"] == document["region"] == document["output"] == value
    assert document["steps"][0]["output"] == document["steps"][1]["a"] == value
    assert document["steps"][1]["attempts"][0]["error"] == {"code": "X", "cut": "\ud83d"}
    assert document["steps"][1]["output"] == {"result": value, "usage": {"promptTokens": 1, "model": "m\ud83d"}}


def test_the_form_of_a_checkpoint() -> None:
    """The document, the span ids of its steps, the revision, and how often the run was resumed."""
    document = (
        b'{"id":"run_1","workflowId":"wf","status":"suspended","startedAt":"2026-09-21T14:13:19.000Z",'
        b'"createdAt":"2026-09-21T14:13:19.000Z","steps":[{"id":"fetch","status":"completed",'
        b'"startedAt":"2026-09-21T14:13:19.000Z","completedAt":"2026-09-21T14:13:19.000Z","durationMs":0},'
        b'{"id":"approve","status":"running","startedAt":"2026-09-21T14:13:19.000Z"}]}'
    )
    header = (
        b'{"tenant":"","revision":1789999999000000007,"spanIds":["0123456789abcdef","fedcba9876543210"],'
        b'"resumeCount":2,"document":'
    )
    with recording() as harness:
        run = harness.recorder.resume(header + document + b"}")
        assert run.document().text == document
        with run.start().resume(), run.step("approve"):
            pass
        assert [step["status"] for step in delivered_document(harness, run)["steps"]] == ["completed", "completed"]
        assert harness.step_span("fetch").span_id.hex() == "0123456789abcdef"
        assert harness.step_span("approve").span_id.hex() != "fedcba9876543210"
        checkpoint = json.loads(run.checkpoint())
        assert checkpoint["revision"] > 1789999999000000007
        assert checkpoint["resumeCount"] == 3


RUN = '{"id":"run_1","status":"running","createdAt":"2026-09-21T14:13:19.000Z","steps":[]}'
GOOD = f'{{"tenant":"","revision":1,"spanIds":[],"resumeCount":0,"document":{RUN}}}'


@pytest.mark.parametrize(
    "text",
    [
        b"\xff",
        "[]",
        '"{}"',
        '{"tenant":"","revision":1,"spanIds":[]}',
        '{"tenant":"","revision":1,"spanIds":[],"document":{}}',
        GOOD.replace("[]", '["00"]', 1),
        GOOD.replace("[]", '["not hexadecimal"]', 1),
        GOOD.replace('"resumeCount":0,', ""),
        GOOD.replace('"resumeCount":0', '"resumeCount":-1'),
        GOOD.replace('"resumeCount":0', '"resumeCount":4294967296'),
        GOOD.replace("1", '"x"', 1),
        GOOD + "}",
        GOOD[:-1],
    ],
)
def test_an_invalid_checkpoint_is_a_value_error(text: bytes | str) -> None:
    """Whatever is wrong with it; without the fault it is accepted."""
    with recording() as harness:
        with pytest.raises(ValueError, match="not a checkpoint"):
            harness.recorder.resume(text)
        assert harness.recorder.resume(GOOD).document().text.decode() == RUN


# Threads.


def test_threads_that_begin_the_first_steps_make_one_run() -> None:
    """The run is made once, however long making its id takes."""
    numbers = itertools.count(1)
    together = threading.Barrier(4)
    slow = threading.Event()

    def new_id() -> str:
        slow.wait(0.05)
        return f"run_{next(numbers)}"

    with recording(new_id=new_id) as harness:
        run = harness.recorder.run("wf", input={"a": 1})

        def work(number: int) -> None:
            together.wait(WAIT)
            with run.step(f"s{number}"):
                pass

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAIT)
        run.end()
        document = delivered_document(harness, run)
        assert {step["id"] for step in document["steps"]} == {"s0", "s1", "s2", "s3"}
        assert (document["id"], document["input"]) == ("run_1", {"a": 1})
        assert harness.recorder.report().runs_started == 1


def test_a_signals_handler_may_make_the_run_while_it_is_made() -> None:
    """The handler runs in the same thread, while the run is being made: there is one run all the same."""
    numbers = itertools.count(1)

    def new_id() -> str:
        number = next(numbers)
        if number == 1:
            run.step("of the handler").start()
        return f"run_{number}"

    with recording(new_id=new_id) as harness:
        run = harness.recorder.run("wf")
        with run.step("of the engine"):
            pass
        run.end()
        document = delivered_document(harness, run)
        assert [step["id"] for step in document["steps"]] == ["of the handler", "of the engine"]
        assert harness.recorder.report().runs_started == 1


@pytest.mark.parametrize("work", ["step", "end", "start"])
def test_a_resumed_run_is_exported_whatever_is_called_first(work: str) -> None:
    """Without a block as well: its steps and its end arrive, and before that ``flush`` does not say that they have."""
    with recording() as harness:
        run = harness.recorder.run("wf", run_id="run_1").start()
        with run.step("a"):
            pass
        checkpoint = run.release()
        assert run.flush(WAIT)
        resumed = harness.recorder.resume(checkpoint)
        assert not resumed.flush(0)
        if work == "step":
            with resumed.step("b"):
                pass
        elif work == "start":
            resumed.start()
        if work != "end":
            assert resumed.flush(WAIT)
            assert harness.document("run_1") == resumed.document()
        resumed.end()
        assert delivered_document(harness, resumed)["status"] == "completed"
