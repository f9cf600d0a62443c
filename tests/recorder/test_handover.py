"""Runs that one process lets go and another takes up: nothing told before is lost, and the later of the two counts."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from runspan import Recorder
from runspan.codec.fields import REVISION
from runspan.recorder import ExportConfig
from support.receivers import OK, Answer, Post
from support.recorder import BEGIN, QUICK, WAIT, Ticking, proved, recording, until

SECOND = 1_000_000_000


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    until(lambda: not [thread for thread in threading.enumerate() if thread.name == "runspan-recorder"])


def told(document: Any) -> tuple[str, list[tuple[str, str]]]:
    """Status of a run, and of its steps."""
    return document.status, [(step.id, step.status) for step in document.steps]


# What is let go is sent.


@pytest.mark.parametrize("status", [200, 503, 500])
def test_a_run_that_is_let_go_while_a_request_is_under_way_is_sent(status: int) -> None:
    """The answer is for what was read before: what the checkpoint says follows at once, whatever it was."""
    asked, go = threading.Event(), threading.Event()

    def answer(post: Post) -> Answer:
        asked.set()
        assert go.wait(WAIT)
        return OK if post.number > 1 else Answer(status)

    config = (
        ExportConfig(snapshot_delay=0.005, retry_initial_delay=0.02, retry_max_delay=0.02)
        if status == 503
        else ExportConfig(0.005, retry_initial_delay=600)
    )
    with recording(answer, export=config) as taken:
        run = taken.recorder.run("wf", run_id="run_1").start()
        with run.step("fetch"):
            pass
        assert asked.wait(WAIT)
        run.step("approve", type="approval").start()
        checkpoint = run.suspend().release()
        go.set()
        assert run.flush(WAIT)
        found = taken.document("run_1")
        assert told(found) == ("suspended", [("fetch", "completed"), ("approve", "running")])
        assert json.loads(checkpoint)["document"] == found.to_dict()
        assert taken.recorder.report().complete


def test_a_run_is_let_go_once() -> None:
    """Again it gives the same checkpoint, and counts as told too late; so it does for a run that has ended."""
    with recording() as taken:
        run = taken.recorder.run("wf", run_id="run_1").start()
        first = run.release()
        assert run.release() == first
        run.end()
        assert run.flush(WAIT)
        assert taken.document("run_1").status == "running"
        assert len(taken.of("run_1")) == 1
        with taken.recorder.run("wf", run_id="run_2") as ended:
            pass
        assert json.loads(ended.release())["document"]["status"] == "completed"
        assert taken.recorder.report().late_calls == 3
        assert proved(taken, ended)["status"] == "completed"


# The later one counts.


def test_what_is_let_go_and_sent_late_does_not_override_who_took_it_up() -> None:
    """The first process is kept from sending until the second one has gone on: the backend keeps what is newer."""
    up = threading.Event()

    def answer(post: Post) -> Answer:
        return OK if up.is_set() or post.headers.get("x-who") == "second" else Answer(503)

    with recording(answer, clock=Ticking(1000)) as taken:
        run = taken.recorder.run("wf", run_id="run_1").start()
        with run.step("fetch"):
            pass
        checkpoint = run.suspend().release()
        until(lambda: taken.receiver.posts)
        second = Recorder(endpoint=taken.receiver.url, headers={"x-who": "second"}, export=QUICK, clock=Ticking(1000))
        again = second.resume(checkpoint).start().resume()
        again.step("pay").start()
        assert again.flush(WAIT)
        newer = ("running", [("fetch", "completed"), ("pay", "running")])
        assert told(taken.document("run_1")) == newer
        until(lambda: taken.recorder.report().retries >= 2)
        up.set()
        assert taken.recorder.flush(WAIT)
        assert told(taken.document("run_1")) == newer
        revisions = [span.attributes()[REVISION] for span in taken.role("snapshot")]
        assert revisions[-1] == json.loads(checkpoint)["revision"] < min(revisions[:-1])
        again.end()
        assert second.shutdown(WAIT).complete
        assert taken.document("run_1") == again.document()


@pytest.mark.parametrize("behind", [1, 60 * SECOND])
def test_whoever_takes_a_run_up_counts_with_a_clock_that_is_behind(behind: int) -> None:
    """Another machine's clock is a minute behind: what is told there is newer all the same, with no span id twice."""
    with recording(clock=lambda: BEGIN) as taken:
        run = taken.recorder.run("wf", run_id="run_1").start()
        with run.step("fetch"):
            pass
        run.step("approve").start()
        checkpoint = run.suspend().release()
        assert run.flush(WAIT)
        second = Recorder(endpoint=taken.receiver.url, export=QUICK, clock=lambda: BEGIN - behind)
        again = second.resume(checkpoint).start().resume()
        for step_id in ("approve", "fetch"):
            with again.step(step_id):
                pass
        assert again.flush(WAIT)
        assert told(taken.document("run_1")) == (
            "running",
            [("fetch", "completed"), ("approve", "completed"), ("fetch", "completed")],
        )
        again.end()
        assert second.shutdown(WAIT).complete
        document = taken.document("run_1")
        assert document == again.document()
        times = [step.started_at for step in document.steps]
        assert min(times) >= document.envelope.created_at  # type: ignore[operator, type-var]
        assert len({span.span_id for span in taken.role("step")}) == 3


# Span ids.


def test_a_run_that_is_taken_up_at_the_same_moment_gives_no_span_id_out_twice() -> None:
    """Over and over, while the clock stands still: each execution of a step is a span of its own."""
    with recording(clock=lambda: BEGIN) as taken:
        run = taken.recorder.run("wf", run_id="run_1").start()
        for number in range(4):
            with run.step("poll") as step:
                step.set_output(number)
            run.step("wait").start()
            run = taken.recorder.resume(run.suspend().release()).start().resume()
            with run.step("wait") as step:
                step.set_output(number)
        run.end()
        steps = proved(taken, run)["steps"]
        assert [step["output"] for step in steps] == [0, 0, 1, 1, 2, 2, 3, 3]
        assert len({span.span_id for span in taken.role("step")}) == 8


def test_a_checkpoint_that_is_taken_up_twice_gives_no_span_id_out_twice() -> None:
    """The process that took it up died; the next one does the same steps again, a microsecond later, as other spans."""
    with recording(clock=Ticking(1000)) as taken:
        checkpoint = taken.recorder.run("wf", run_id="run_1").start().suspend().release()
        for number in (1, 2):
            run = taken.recorder.resume(checkpoint).start().resume()
            with run.step("pay") as step:
                step.set_output(number)
            assert run.flush(WAIT)
        run.end()
        assert [step["output"] for step in proved(taken, run)["steps"]] == [2]
        assert len({span.span_id for span in taken.role("step")}) == 2


def test_a_run_again_under_its_id_within_a_millisecond() -> None:
    """The document's times are cut to milliseconds, the moments that tell two runs from each other are not."""
    with recording(clock=Ticking(1000)) as taken:
        for output in (1, 2):
            with taken.recorder.run("wf", run_id="run_1") as run, run.step("a") as step:
                step.set_output(output)
        assert taken.recorder.flush(WAIT)
        assert len({run.session.record.not_before, BEGIN}) == 1
        assert len({span.span_id for span in taken.role("step")}) == 2


# What a checkpoint carries.


def test_any_payload_comes_through_a_checkpoint() -> None:
    """A lone surrogate, which JSON has as an escape only, and numbers beyond a float's precision, anywhere."""
    odd = {"cut": "emoji \ud83d", "many": 2**70}
    with recording() as taken:
        run = taken.recorder.run("wf", run_id="run_1", input=odd, extra={"region": odd}).start()
        with run.step("done", input=odd) as step:
            step.set_output(odd)
        step = run.step("on", type="agent", input=odd, retry={"hint": "\udfff"}, extra={"a": odd, "b\n": 1}).start()
        step.set_output(odd).set_usage(prompt_tokens=1, model="m\ud83d").retry({"code": "X", "cut": "\ud83d"})
        run.set_output(odd).suspend()
        before = run.document()
        run = taken.recorder.resume(run.release().decode())
        assert run.document().text == before.text
        with run.start().resume(), run.step("on") as step:
            pass
        document = proved(taken, run)
    assert document["input"] == document["region"] == document["output"] == odd
    assert document["steps"][0]["output"] == document["steps"][1]["a"] == odd
    assert document["steps"][1]["attempts"][0]["error"] == {"code": "X", "cut": "\ud83d"}
    assert document["steps"][1]["output"] == {"result": odd, "usage": {"promptTokens": 1, "model": "m\ud83d"}}


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
    with recording() as taken:
        run = taken.recorder.resume(header + document + b"}")
        assert run.document().text == document
        with run.start().resume(), run.step("approve"):
            pass
        assert [step["status"] for step in proved(taken, run)["steps"]] == ["completed", "completed"]
        assert taken.step("fetch").span_id.hex() == "0123456789abcdef"
        assert taken.step("approve").span_id.hex() != "fedcba9876543210"
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
        GOOD.replace("[]", '["odd"]', 1),
        GOOD.replace('"resumeCount":0,', ""),
        GOOD.replace('"resumeCount":0', '"resumeCount":-1'),
        GOOD.replace('"resumeCount":0', '"resumeCount":4294967296'),
        GOOD.replace("1", '"x"', 1),
        GOOD + "}",
        GOOD[:-1],
    ],
)
def test_what_is_no_checkpoint_is_a_value_error(text: bytes | str) -> None:
    """Whatever is wrong with it; one that differs in nothing else is taken."""
    with recording() as taken:
        with pytest.raises(ValueError, match="not a checkpoint"):
            taken.recorder.resume(text)
        assert taken.recorder.resume(GOOD).document().text.decode() == RUN


# Threads.


def test_threads_that_begin_the_first_steps_of_a_run_make_one_run() -> None:
    """The run is made once, however long its id takes."""
    numbers = itertools.count(1)
    together = threading.Barrier(4)
    slow = threading.Event()

    def new_id() -> str:
        slow.wait(0.05)
        return f"run_{next(numbers)}"

    with recording(new_id=new_id) as taken:
        run = taken.recorder.run("wf", input={"a": 1})

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
        document = proved(taken, run)
        assert {step["id"] for step in document["steps"]} == {"s0", "s1", "s2", "s3"}
        assert (document["id"], document["input"]) == ("run_1", {"a": 1})
        assert taken.recorder.report().runs_started == 1


def test_a_signals_handler_may_make_the_run_while_it_is_made() -> None:
    """It runs in the same thread, in the middle of the making: there is one run all the same."""
    numbers = itertools.count(1)

    def new_id() -> str:
        number = next(numbers)
        if number == 1:
            run.step("of the handler").start()
        return f"run_{number}"

    with recording(new_id=new_id) as taken:
        run = taken.recorder.run("wf")
        with run.step("of the engine"):
            pass
        run.end()
        document = proved(taken, run)
        assert [step["id"] for step in document["steps"]] == ["of the handler", "of the engine"]
        assert taken.recorder.report().runs_started == 1
