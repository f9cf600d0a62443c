"""What a recorder tells is what its document says, and what its spans prove, byte for byte."""

from __future__ import annotations

import datetime
import json
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from enum import Enum
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Raw
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from runspan import DocumentError, Recorder, SettingError, decode, encode
from runspan.codec.fields import REVISION, ROLE
from runspan.otlp.protobuf_reader import read_protobuf
from runspan.recorder import ExportConfig, StepRecording
from runspan.recorder.serialize import payload
from support.recorder import QUICK, WAIT, Taken, Ticking, proved, recording


@pytest.fixture
def taken() -> Iterator[Taken]:
    with recording() as found:
        yield found


def test_a_whole_run_is_the_document_that_was_told() -> None:
    """Every member of run and step stands in the document in the platform's form; clock and ids are arguments."""
    with recording(
        export=ExportConfig(snapshot_delay=60), new_id=lambda: "run_1"
    ) as taken:  # nothing is sent, so only the run ticks
        with taken.recorder.run("wf_billing", trigger="webhook", input={"id": 7}) as run:
            with run.step("fetch", name="Fetch", type="action", input={"q": 1}, retry={"maxAttempts": 3}) as step:
                step.set_output({"count": 12})
            run.set_output({"paid": True})
        found = proved(taken, run)
    assert found == {
        "id": "run_1",
        "workflowId": "wf_billing",
        "status": "completed",
        "triggerType": "webhook",
        "startedAt": "2026-09-21T14:13:20.001Z",
        "completedAt": "2026-09-21T14:13:20.004Z",
        "durationMs": 3,
        "input": {"id": 7},
        "output": {"paid": True},
        "createdAt": "2026-09-21T14:13:20.000Z",
        "steps": [
            {
                "id": "fetch",
                "name": "Fetch",
                "type": "action",
                "status": "completed",
                "startedAt": "2026-09-21T14:13:20.002Z",
                "completedAt": "2026-09-21T14:13:20.003Z",
                "durationMs": 1,
                "input": {"q": 1},
                "output": {"count": 12},
                "retryPolicy": {"maxAttempts": 3},
            }
        ],
    }


def test_spans_are_those_of_encode_and_each_is_sent_once(taken: Taken) -> None:
    """Steps and root are what ``encode`` makes of the document with the live ids; no step is sent twice."""
    with taken.recorder.run("wf", run_id="run_1") as run:
        for number in range(5):
            with run.step("work") as step:
                step.set_output(number)
            assert run.flush(WAIT)
    proved(taken, run)
    steps = taken.role("step")
    assert [span.attributes()["runspan.step.output"] for span in steps] == ["0", "1", "2", "3", "4"]
    expected = encode(run.document(), step_ids=[span.span_id for span in steps])
    assert [span.attributes() for span in steps] == [span.attributes() for span in expected[:-1]]
    (root,) = taken.role("run")
    assert root.attributes() == expected[-1].attributes()
    assert len({span.span_id for span in taken.own}) == len(taken.own)


def test_snapshots_tell_the_run_as_it_was_and_rank_by_time(taken: Taken) -> None:
    """Each flush leaves a snapshot that proves the document of that moment, with an increasing revision."""
    seen = []
    with taken.recorder.run("wf", run_id="run_1") as run:
        run.plan("a").plan("b")
        for name in ("a", "b"):
            with run.step(name):
                assert run.flush(WAIT)
                seen.append(run.document())
                assert taken.document("run_1") == seen[-1]
    assert [[step["status"] for step in run.to_dict()["steps"]] for run in seen] == [
        ["running", "pending"],
        ["completed", "running"],
    ]
    proved(taken, run)
    revisions = [span.attributes()[REVISION] for span in taken.own if span.attributes()[ROLE] == "snapshot"]
    assert revisions == sorted(set(revisions))


def test_an_exception_fails_step_and_run_and_goes_on(taken: Taken) -> None:
    """The error object has the exception's own code, or its class, and the engine still gets the exception."""

    class Refused(Exception):
        code = "INTEGRATION_ERROR"

    with (
        pytest.raises(Refused),
        taken.recorder.run("wf", run_id="run_1") as run,
        run.step("create-invoice"),
    ):
        raise Refused("QuickBooks: Customer not found")
    document = proved(taken, run)
    told = {"code": "INTEGRATION_ERROR", "message": "QuickBooks: Customer not found"}
    assert document["status"] == "failed"
    assert document["error"] == told
    assert document["steps"][0]["error"] == {**told, "step": "create-invoice"}
    assert taken.step("create-invoice").status == 2


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3)])
def test_what_ends_the_process_cancels_the_run(taken: Taken, error: BaseException) -> None:
    """Ctrl-C and SystemExit make the step failed and the run cancelled, and go on."""
    with pytest.raises(type(error)), taken.recorder.run("wf", run_id="run_1") as run, run.step("a"):
        raise error
    document = proved(taken, run)
    assert (document["status"], document["steps"][0]["status"]) == ("cancelled", "failed")


def test_a_step_that_was_retried_lists_its_attempts(taken: Taken) -> None:
    """While it retries it is seen as retrying with the attempt's number; each ended attempt is a span below it, sent
    once, and in the end the step is completed without an error."""
    with taken.recorder.run("wf", run_id="run_1") as run, run.step("charge", type="stripe") as step:
        for number in (1, 2, 3):
            try:
                with step.attempt() as told:
                    assert told == number
                    if number < 3:
                        raise TimeoutError("lock_timeout")
            except TimeoutError:
                assert run.flush(WAIT)
                now = taken.document("run_1").to_dict()["steps"][0]
                assert (now["status"], now["attempt"]) == ("retrying", number)
                assert now["error"] == {"code": "TimeoutError", "message": "lock_timeout", "step": "charge"}
                assert len(taken.role("attempt")) == number
    (told,) = proved(taken, run)["steps"]
    assert (told["status"], told["attempt"], "error" in told) == ("completed", 3, False)
    assert [attempt["status"] for attempt in told["attempts"]] == ["failed", "failed", "completed"]
    attempts = taken.role("attempt")
    assert [span.attributes()["runspan.attempt.number"] for span in attempts] == [1, 2, 3]
    assert {span.parent_id for span in attempts} == {taken.step("charge").span_id}


def test_retries_without_blocks_and_a_last_one_that_fails(taken: Taken) -> None:
    """An engine that only says ``retry`` gets its attempts too, and the exception of the last one is the step's."""
    run = taken.recorder.run("wf", run_id="run_1").start()
    with pytest.raises(ValueError, match="third"), run.step("charge") as step:
        _retry_twice_and_fail(step)
    run.end()
    (told,) = proved(taken, run)["steps"]
    assert told["error"]["message"] == "third"
    assert [attempt["error"]["message"] for attempt in told["attempts"]] == ["first", "second"]


def _retry_twice_and_fail(step: StepRecording) -> None:
    step.retry(ValueError("first")).retry("second")
    raise ValueError("third")


def test_a_failure_that_is_no_exception(taken: Taken) -> None:
    """``fail`` and ``end`` with a message or an error object fail a step, and later calls change nothing."""
    with taken.recorder.run("wf", run_id="run_1") as run:
        with run.step("a") as step:
            step.fail("no such customer")
        step.set_output(1)
        run.step("b").start().end({"code": "LIMIT", "message": "too many", "at": 5})
        run.time_out("30 minutes")
    document = proved(taken, run)
    assert document["status"] == "timed_out"
    assert document["error"] == {"code": "TIMEOUT", "message": "30 minutes"}
    assert [step["error"] for step in document["steps"]] == [
        {"code": "ERROR", "message": "no such customer", "step": "a"},
        {"code": "LIMIT", "message": "too many", "at": 5},
    ]
    assert taken.recorder.report().late_calls == 1


def test_skipped_planned_and_looped_steps(taken: Taken) -> None:
    """A planned step keeps its place, a skipped one has no times, and a repeated id is another execution."""
    with taken.recorder.run("wf", run_id="run_1") as run:
        run.plan("second", name="Second", type="email").plan("never")
        with run.step("first"):
            pass
        with run.step("second") as step:
            step.skip()
        for _ in range(2):
            with run.step("first"):
                pass
    steps = proved(taken, run)["steps"]
    assert [(step["id"], step["status"]) for step in steps] == [
        ("second", "skipped"),
        ("never", "pending"),
        *[("first", "completed")] * 3,
    ]
    assert steps[0] == {"id": "second", "name": "Second", "type": "email", "status": "skipped"}
    assert len({span.span_id for span in taken.role("step")}) == 4


def test_an_agents_usage_stands_in_its_output_and_in_the_projection(taken: Taken) -> None:
    """The output becomes ``result`` beside ``usage``; tokens and model stand on the span under their standard names."""
    with taken.recorder.run("wf", run_id="run_1") as run:
        with run.step("think", type="agent") as step:
            step.set_output("an answer")
            step.set_usage(prompt_tokens=1250, completion_tokens=340, model="claude-sonnet-4-6", cost_usd=0.0095)
        with run.step("ready", type="agent") as step:
            step.set_output({"result": 1, "usage": {"promptTokens": 1}}).set_usage(prompt_tokens=99)
    first, second = proved(taken, run)["steps"]
    assert first["output"] == {
        "result": "an answer",
        "usage": {
            "promptTokens": 1250,
            "completionTokens": 340,
            "totalTokens": 1590,
            "model": "claude-sonnet-4-6",
            "estimatedCostUsd": 0.0095,
        },
    }
    assert second["output"] == {"result": 1, "usage": {"promptTokens": 1}}
    attributes = taken.step("think").attributes()
    assert attributes["gen_ai.usage.input_tokens"] == 1250
    assert attributes["gen_ai.provider.name"] == "anthropic"


def test_suspended_and_pending_runs(taken: Taken) -> None:
    """A queued run is pending, a waiting one suspended, a resumed one running."""
    run = taken.recorder.run("wf", run_id="run_1").queue()
    assert run.flush(WAIT)
    assert taken.document("run_1").status == "pending"
    with run:
        with run.suspended():
            assert run.flush(WAIT)
            assert taken.document("run_1").status == "suspended"
        assert run.flush(WAIT)
        assert taken.document("run_1").status == "running"
    assert proved(taken, run)["status"] == "completed"


def test_a_run_that_is_cancelled_in_the_queue(taken: Taken) -> None:
    """It never started, and says so."""
    run = taken.recorder.run("wf", run_id="run_1")
    run.queue().cancel("not needed any more")
    document = proved(taken, run)
    assert document["status"] == "cancelled"
    assert "startedAt" not in document


def test_a_sub_workflow_is_linked_both_ways(taken: Taken) -> None:
    """The step's output names the child run and its span links to it; the child names its parent and links back."""
    with taken.recorder.run("parent", run_id="run_p") as run, run.step("call", type="sub-workflow") as step:
        with taken.recorder.run("child", run_id="run_c") as child:
            step.set_child(child.id)
        step.set_output({"status": "completed"})
    assert proved(taken, run)["steps"][0]["output"] == {"runId": "run_c", "status": "completed"}
    assert proved(taken, child)["parentRunId"] == "run_p"
    call = taken.step("call")
    (root,) = [span for span in taken.of("run_c") if span.attributes()[ROLE] == "run"]
    assert [link.trace_id for link in call.links] == [root.trace_id]
    assert [(link.trace_id, link.span_id) for link in root.links] == [(call.trace_id, call.span_id)]


@pytest.mark.parametrize("output", [None, 5, {}, {"a": 1}, Raw(b" {  } "), Raw(b'{"runId":"x"}')])
def test_the_childs_id_joins_any_output(taken: Taken, output: object) -> None:
    """Whatever a sub-workflow's step has for output, the result is JSON with one ``runId``."""
    with taken.recorder.run("wf", run_id="run_1") as run, run.step("call", type="sub-workflow") as step:
        if output is not None:
            step.set_output(output)
        step.set_child("run_c")
    found = proved(taken, run)["steps"][0]["output"]
    assert found["runId"] == ("x" if output == Raw(b'{"runId":"x"}') else "run_c")


def test_a_run_goes_on_in_another_recorder_from_its_checkpoint(taken: Taken) -> None:
    """What had ended stays the same span; a step under way keeps its place, start and attempts; ids never meet."""
    run = taken.recorder.run("wf", run_id="run_1", trigger="api", input={"a": 1}, extra={"region": "eu"})
    run.start().plan("approve").plan("pay")
    with run.step("fetch") as step:
        step.set_output([1])
    waiting = run.step("approve", type="approval").start().set_input({"by": "cfo"})
    waiting.retry("no answer")
    run.suspend()
    assert run.flush(WAIT)
    before = run.document()
    assert taken.document("run_1") == before
    again = taken.recorder.resume(run.release())
    assert again.document() == before
    run.step("late").start()
    assert run.document() == before
    with again:
        assert again.flush(WAIT)
        assert taken.document("run_1").status == "suspended"
        again.resume()
        with again.step("approve") as step:
            step.set_output({"approved": True})
        with again.step("pay"):
            pass
        with again.step("fetch"):
            pass
    document = proved(taken, again)
    assert document["region"] == "eu"
    assert [step["id"] for step in document["steps"]] == ["approve", "pay", "fetch", "fetch"]
    assert document["steps"][0]["startedAt"] == before.to_dict()["steps"][0]["startedAt"]
    assert [attempt["status"] for attempt in document["steps"][0]["attempts"]] == ["failed"]
    fetched = [span for span in taken.role("step") if span.attributes()["runspan.step.id"] == "fetch"]
    assert len({span.span_id for span in fetched}) == 2


@pytest.mark.parametrize("text", [b"{}", b"nonsense", "ended"])
def test_what_is_no_checkpoint_is_refused(taken: Taken, text: bytes | str) -> None:
    """A ValueError says so; so it does for the checkpoint of a run that has ended."""
    if text == "ended":
        with taken.recorder.run("wf") as run:
            pass
        text = run.checkpoint()
    with pytest.raises(ValueError, match=r"not a checkpoint|has ended"):
        taken.recorder.resume(text)


def test_a_run_again_under_its_id_gives_no_span_id_out_twice(taken: Taken) -> None:
    """An engine that starts over under the same run id writes other step spans, so none changes its content."""
    for output in (1, 2):
        with taken.recorder.run("wf", run_id="run_1") as run, run.step("a") as step:
            step.set_output(output)
    proved(taken, run)
    assert len({span.span_id for span in taken.role("step")}) == 2


def test_a_run_that_was_not_started_begins_with_its_first_step(taken: Taken) -> None:
    """Nobody has to call ``start``, and one recording of a step may be used again, as in a loop."""
    run = taken.recorder.run("wf", run_id="run_1")
    step = run.step("a")
    for number in range(3):
        with step:
            step.set_output(number)
    run.end()
    assert [step["output"] for step in proved(taken, run)["steps"]] == [0, 1, 2]


# Values.


class Colour(Enum):
    RED = "red"


@dataclass
class Point:
    x: int
    when: datetime.date


class Odd:
    def __repr__(self) -> str:
        raise RuntimeError("no words")


CIRCLE: list[Any] = []
CIRCLE.append(CIRCLE)


@pytest.mark.parametrize(
    ("value", "text", "exact"),
    [
        ({"a": [1, 2.5, None, True, "é"]}, '{"a":[1,2.5,null,true,"é"]}', True),
        (2**70, str(2**70), True),
        (Raw(b'{"a": 12.10, "a": 1e400}'), '{"a": 12.10, "a": 1e400}', True),
        (Point(1, datetime.date(2026, 1, 2)), '{"x":1,"when":"2026-01-02"}', True),
        (Decimal("12.10"), '"12.10"', True),
        (Colour.RED, '"red"', True),
        (uuid.UUID(int=5), f'"{uuid.UUID(int=5)}"', True),
        ((1, 2), "[1,2]", True),
        ("\ud800", '"\\ud800"', True),
        ({1: "a"}, '{"1":"a"}', True),
        (float("nan"), '"nan"', False),
        ({"a": [float("-inf")]}, '{"a":["-inf"]}', False),
        ({(1, 2): 3}, '{"(1, 2)":3}', False),
        (CIRCLE, '["…"]', False),
        (Odd(), '"<Odd>"', False),
        (threading.current_thread, None, False),
        (Raw(b"{broken"), '"{broken"', False),
        (Raw(b"NaN"), '"NaN"', False),
    ],
)
def test_any_value_becomes_json(value: object, text: str | None, exact: bool) -> None:
    """What JSON can say stays exact; what it cannot is readable text, and the payload says that it is not exact."""
    made = payload(value)
    json.loads(made.text)
    assert made.exact is exact
    if text is not None:
        assert made.text.decode() == text


def test_odd_values_never_reach_the_engine_and_are_counted(taken: Taken) -> None:
    """The run is recorded whatever it is given, and the report counts what was not exact."""
    with taken.recorder.run("w\ud800", run_id="run_1", input=Odd()) as run, run.step("\udfff", name="n\ud800") as step:
        step.set_output({"value": float("nan"), "of": Odd()})
    document = proved(taken, run)
    assert document["steps"][0]["output"] == {"value": "nan", "of": "<Odd>"}
    assert taken.recorder.report().inexact_payloads == 2


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.text(min_size=1, max_size=5), values, st.sampled_from(["end", "fail", "skip", "retry", "leave"])),
        max_size=6,
    ),
    st.sampled_from(["ms", "us", "ns"]),
)
def test_whatever_is_told_is_proved_by_the_spans(steps: list[tuple[str, Any, str]], precision: str) -> None:
    """For any steps, values and precision, the document of the spans is the one that the recorder hands out."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    recorder = Recorder(provider=provider, clock=Ticking(123_457), export=QUICK, precision=precision)
    with recorder.run("wf", run_id="run_1") as run:
        for step_id, value, what in steps:
            step = run.step(step_id, type="agent").start().set_output(value).set_input(value)
            if what == "retry":
                step.retry("again")
            if what == "skip":
                step.skip()
            if what != "leave":
                step.end("no" if what == "fail" else None)
    assert recorder.shutdown(WAIT).runs_delivered == 1
    spans = read_protobuf(encode_spans(exporter.get_finished_spans()).SerializeToString()).spans
    assert decode(spans).text == run.document().text


# Settings.


def test_wrong_settings_are_told_at_once() -> None:
    """Nothing to send to, both kinds of it, an unknown precision, an unusable run id: each is an error that helps."""
    with pytest.raises(SettingError, match=r"environ=os\.environ"):
        Recorder()
    with pytest.raises(SettingError, match="precision"):
        Recorder(endpoint="http://127.0.0.1:1", precision="s")
    recorder = Recorder(endpoint="http://127.0.0.1:1")
    for run_id in ("", "x" * 513, "\ud800"):
        with pytest.raises(DocumentError, match="run_id"):
            recorder.run("wf", run_id=run_id)
    with pytest.raises(ValueError, match="status"):
        recorder.run("wf", extra={"status": "odd"})
    recorder.shutdown(0)
