"""The document of a recorded run is what was recorded, and what its spans decode to, byte for byte."""

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
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from runspan import ConfigError, DocumentError, Recorder, decode, encode
from runspan.codec.fields import REVISION, ROLE
from runspan.otlp.protobuf_reader import read_protobuf
from runspan.recorder import ExportConfig, StepRecording
from runspan.recorder.serialize import payload
from support.recorder import QUICK, WAIT, Harness, TickingClock, delivered_document, recording


@pytest.fixture
def harness() -> Iterator[Harness]:
    with recording() as found:
        yield found


def test_a_complete_run_is_the_document_that_was_recorded() -> None:
    """Every member of run and step is in the document in the platform's form; clock and ids are arguments."""
    with recording(
        export=ExportConfig(snapshot_delay=60), new_id=lambda: "run_1"
    ) as harness:  # nothing is sent, so only the run reads the clock
        with harness.recorder.run("wf_billing", trigger="webhook", input={"id": 7}) as run:
            with run.step("fetch", name="Fetch", type="action", input={"q": 1}, retry={"maxAttempts": 3}) as step:
                step.set_output({"count": 12})
            run.set_output({"paid": True})
        found = delivered_document(harness, run)
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


def test_spans_are_those_of_encode_and_each_is_sent_once(harness: Harness) -> None:
    """Step spans and run span are those of ``encode`` with the recorder's step ids; no step is sent twice."""
    with harness.recorder.run("wf", run_id="run_1") as run:
        for number in range(5):
            with run.step("work") as step:
                step.set_output(number)
            assert run.flush(WAIT)
    delivered_document(harness, run)
    steps = harness.with_role("step")
    assert [span.attributes()["runspan.step.output"] for span in steps] == ["0", "1", "2", "3", "4"]
    expected = encode(run.document(), step_ids=[span.span_id for span in steps])
    assert [span.attributes() for span in steps] == [span.attributes() for span in expected[:-1]]
    (root,) = harness.with_role("run")
    assert root.attributes() == expected[-1].attributes()
    assert len({span.span_id for span in harness.spans}) == len(harness.spans)


def test_snapshots_decode_to_the_run_at_that_moment_and_rank_by_time(harness: Harness) -> None:
    """Each flush writes a snapshot of the document at that moment, with an increasing revision."""
    seen = []
    with harness.recorder.run("wf", run_id="run_1") as run:
        run.plan("a").plan("b")
        for name in ("a", "b"):
            with run.step(name):
                assert run.flush(WAIT)
                seen.append(run.document())
                assert harness.document("run_1") == seen[-1]
    assert [[step["status"] for step in run.to_dict()["steps"]] for run in seen] == [
        ["running", "pending"],
        ["completed", "running"],
    ]
    delivered_document(harness, run)
    revisions = [span.attributes()[REVISION] for span in harness.spans if span.attributes()[ROLE] == "revision"]
    assert revisions == sorted(set(revisions))


def test_an_exception_fails_step_and_run_and_is_raised(harness: Harness) -> None:
    """The error object has the exception's code or class, and the engine gets the exception."""

    class Refused(Exception):
        code = "INTEGRATION_ERROR"

    with (
        pytest.raises(Refused),
        harness.recorder.run("wf", run_id="run_1") as run,
        run.step("create-invoice"),
    ):
        raise Refused("QuickBooks: Customer not found")
    document = delivered_document(harness, run)
    error = {"code": "INTEGRATION_ERROR", "message": "QuickBooks: Customer not found", "step": "create-invoice"}
    assert document["status"] == "failed"
    assert document["error"] == error
    assert document["steps"][0]["error"] == error
    assert harness.step_span("create-invoice").status == 2


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3)])
def test_what_ends_the_process_cancels_the_run(harness: Harness, error: BaseException) -> None:
    """Ctrl-C and SystemExit make the step failed and the run cancelled, and are raised."""
    with pytest.raises(type(error)), harness.recorder.run("wf", run_id="run_1") as run, run.step("a"):
        raise error
    document = delivered_document(harness, run)
    assert (document["status"], document["steps"][0]["status"]) == ("cancelled", "failed")


def test_a_step_that_was_retried_lists_its_attempts(harness: Harness) -> None:
    """Between attempts the step is retrying with the attempt's number; each ended attempt is a span below it, sent
    once; in the end the step is completed without an error."""
    with harness.recorder.run("wf", run_id="run_1") as run, run.step("charge", type="stripe") as step:
        for number in (1, 2, 3):
            try:
                with step.attempt() as attempt:
                    assert attempt == number
                    if number < 3:
                        raise TimeoutError("lock_timeout")
            except TimeoutError:
                assert run.flush(WAIT)
                now = harness.document("run_1").to_dict()["steps"][0]
                assert (now["status"], now["attempt"]) == ("retrying", number)
                assert now["error"] == {"code": "TimeoutError", "message": "lock_timeout", "step": "charge"}
                assert len(harness.with_role("attempt")) == number
    (recorded,) = delivered_document(harness, run)["steps"]
    assert (recorded["status"], recorded["attempt"], "error" in recorded) == ("completed", 3, False)
    assert [attempt["status"] for attempt in recorded["attempts"]] == ["failed", "failed", "completed"]
    attempts = harness.with_role("attempt")
    assert [span.attributes()["runspan.attempt.number"] for span in attempts] == [1, 2, 3]
    assert {span.parent_id for span in attempts} == {harness.step_span("charge").span_id}


def test_retries_without_blocks_and_a_last_one_that_fails(harness: Harness) -> None:
    """``retry`` alone lists the attempts too, and the exception of the last one is the step's."""
    run = harness.recorder.run("wf", run_id="run_1").start()
    with pytest.raises(ValueError, match="third"), run.step("charge") as step:
        _retry_twice_and_fail(step)
    run.end()
    (recorded,) = delivered_document(harness, run)["steps"]
    assert recorded["error"]["message"] == "third"
    assert [attempt["error"]["message"] for attempt in recorded["attempts"]] == ["first", "second"]


def _retry_twice_and_fail(step: StepRecording) -> None:
    step.retry(ValueError("first")).retry("second")
    raise ValueError("third")


def test_a_failure_that_is_no_exception(harness: Harness) -> None:
    """``fail`` and ``end`` with a message or an error object fail a step, and later calls change nothing."""
    with harness.recorder.run("wf", run_id="run_1") as run:
        with run.step("a") as step:
            step.fail("no such customer")
        step.set_output(1)
        run.step("b").start().end({"code": "LIMIT", "message": "too many", "at": 5})
        run.time_out("30 minutes")
    document = delivered_document(harness, run)
    assert document["status"] == "timed_out"
    assert document["error"] == {"code": "TIMEOUT", "message": "30 minutes"}
    assert [step["error"] for step in document["steps"]] == [
        {"code": "ERROR", "message": "no such customer", "step": "a"},
        {"code": "LIMIT", "message": "too many", "at": 5},
    ]
    assert harness.recorder.report().late_calls == 1


def test_skipped_planned_and_looped_steps(harness: Harness) -> None:
    """A planned step keeps its place, a skipped one has no times, and a repeated id is another execution."""
    with harness.recorder.run("wf", run_id="run_1") as run:
        run.plan("second", name="Second", type="email").plan("never")
        with run.step("first"):
            pass
        with run.step("second") as step:
            step.skip()
        for _ in range(2):
            with run.step("first"):
                pass
    steps = delivered_document(harness, run)["steps"]
    assert [(step["id"], step["status"]) for step in steps] == [
        ("second", "skipped"),
        ("never", "pending"),
        *[("first", "completed")] * 3,
    ]
    assert steps[0] == {"id": "second", "name": "Second", "type": "email", "status": "skipped"}
    assert len({span.span_id for span in harness.with_role("step")}) == 4


def test_an_agents_usage_is_in_its_output_and_in_span_attributes(harness: Harness) -> None:
    """The output becomes ``result`` next to ``usage``; tokens and model are on the span under their standard names."""
    with harness.recorder.run("wf", run_id="run_1") as run:
        with run.step("think", type="agent") as step:
            step.set_output("an answer")
            step.set_usage(prompt_tokens=1250, completion_tokens=340, model="claude-sonnet-4-6", cost_usd=0.0095)
        with run.step("ready", type="agent") as step:
            step.set_output({"result": 1, "usage": {"promptTokens": 1}}).set_usage(prompt_tokens=99)
    first, second = delivered_document(harness, run)["steps"]
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
    attributes = harness.step_span("think").attributes()
    assert attributes["gen_ai.usage.input_tokens"] == 1250
    assert attributes["gen_ai.provider.name"] == "anthropic"


def test_suspended_and_pending_runs(harness: Harness) -> None:
    """A queued run is pending, a waiting one suspended, a resumed one running."""
    run = harness.recorder.run("wf", run_id="run_1").queue()
    assert run.flush(WAIT)
    assert harness.document("run_1").status == "pending"
    with run:
        with run.suspended():
            assert run.flush(WAIT)
            assert harness.document("run_1").status == "suspended"
        assert run.flush(WAIT)
        assert harness.document("run_1").status == "running"
    assert delivered_document(harness, run)["status"] == "completed"


def test_a_run_that_is_cancelled_in_the_queue(harness: Harness) -> None:
    """It has no start time."""
    run = harness.recorder.run("wf", run_id="run_1")
    run.queue().cancel("not needed any more")
    document = delivered_document(harness, run)
    assert document["status"] == "cancelled"
    assert "startedAt" not in document


def test_a_sub_workflow_is_linked_both_ways(harness: Harness) -> None:
    """The step's output names the child run and its span links to it; the child names its parent and links back."""
    with harness.recorder.run("parent", run_id="run_p") as run, run.step("call", type="sub-workflow") as step:
        with harness.recorder.run("child", run_id="run_c") as child:
            step.set_child(child.id)
        step.set_output({"status": "completed"})
    assert delivered_document(harness, run)["steps"][0]["output"] == {"runId": "run_c", "status": "completed"}
    assert delivered_document(harness, child)["parentRunId"] == "run_p"
    call = harness.step_span("call")
    (root,) = [span for span in harness.spans_of("run_c") if span.attributes()[ROLE] == "run"]
    assert [link.trace_id for link in call.links] == [root.trace_id]
    assert [(link.trace_id, link.span_id) for link in root.links] == [(call.trace_id, call.span_id)]


@pytest.mark.parametrize("output", [None, 5, {}, {"a": 1}, Raw(b" {  } "), Raw(b'{"runId":"x"}')])
def test_the_childs_id_is_added_to_any_output(harness: Harness, output: object) -> None:
    """Whatever the output of a sub-workflow's step is, the result is JSON with one ``runId``."""
    with harness.recorder.run("wf", run_id="run_1") as run, run.step("call", type="sub-workflow") as step:
        if output is not None:
            step.set_output(output)
        step.set_child("run_c")
    found = delivered_document(harness, run)["steps"][0]["output"]
    assert found["runId"] == ("x" if output == Raw(b'{"runId":"x"}') else "run_c")


def test_a_run_continues_from_its_checkpoint(harness: Harness) -> None:
    """Ended steps keep their spans; an open step keeps its place, start and attempts; no span id is used twice."""
    run = harness.recorder.run("wf", run_id="run_1", trigger="api", input={"a": 1}, extra={"region": "eu"})
    run.start().plan("approve").plan("pay")
    with run.step("fetch") as step:
        step.set_output([1])
    waiting = run.step("approve", type="approval").start().set_input({"by": "cfo"})
    waiting.retry("no response")
    run.suspend()
    assert run.flush(WAIT)
    before = run.document()
    assert harness.document("run_1") == before
    again = harness.recorder.resume(run.release())
    assert again.document() == before
    run.step("late").start()
    assert run.document() == before
    with again:
        assert again.flush(WAIT)
        assert harness.document("run_1").status == "suspended"
        again.resume()
        with again.step("approve") as step:
            step.set_output({"approved": True})
        with again.step("pay"):
            pass
        with again.step("fetch"):
            pass
    document = delivered_document(harness, again)
    assert document["region"] == "eu"
    assert [step["id"] for step in document["steps"]] == ["approve", "pay", "fetch", "fetch"]
    assert document["steps"][0]["startedAt"] == before.to_dict()["steps"][0]["startedAt"]
    assert [attempt["status"] for attempt in document["steps"][0]["attempts"]] == ["failed"]
    fetched = [span for span in harness.with_role("step") if span.attributes()["runspan.step.id"] == "fetch"]
    assert len({span.span_id for span in fetched}) == 2


@pytest.mark.parametrize("text", [b"{}", b"nonsense", "ended"])
def test_an_invalid_checkpoint_is_refused(harness: Harness, text: bytes | str) -> None:
    """It is a ValueError, and so is the checkpoint of a run that has ended."""
    if text == "ended":
        with harness.recorder.run("wf") as run:
            pass
        text = run.checkpoint()
    with pytest.raises(ValueError, match=r"not a checkpoint|has ended"):
        harness.recorder.resume(text)


def test_a_checkpoint_with_a_step_id_that_no_recorder_writes_is_refused(harness: Harness) -> None:
    """A lone surrogate can be no step id of this process."""
    with harness.recorder.run("wf") as run:
        with run.step("pay"):
            pass
        text = run.checkpoint().replace(b'"id":"pay"', b'"id":"\\ud800"')
    assert b"ud800" in text
    with pytest.raises(ValueError, match="not a checkpoint"):
        harness.recorder.resume(text)


def test_executing_a_run_id_again_uses_no_span_id_twice(harness: Harness) -> None:
    """An engine that starts over under the same run id writes new step spans, so no span changes its content."""
    for output in (1, 2):
        with harness.recorder.run("wf", run_id="run_1") as run, run.step("a") as step:
            step.set_output(output)
    delivered_document(harness, run)
    assert len({span.span_id for span in harness.with_role("step")}) == 2


def test_a_run_that_was_not_started_begins_with_its_first_step(harness: Harness) -> None:
    """``start`` is optional, and one recording of a step may be used again, as in a loop."""
    run = harness.recorder.run("wf", run_id="run_1")
    step = run.step("a")
    for number in range(3):
        with step:
            step.set_output(number)
    run.end()
    assert [step["output"] for step in delivered_document(harness, run)["steps"]] == [0, 1, 2]


# Values.


class Colour(Enum):
    RED = "red"


@dataclass
class Point:
    x: int
    when: datetime.date


class Unprintable:
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
        (Unprintable(), '"<Unprintable>"', False),
        (threading.current_thread, None, False),
        (Raw(b"{broken"), '"{broken"', False),
        (Raw(b"NaN"), '"NaN"', False),
    ],
)
def test_any_value_becomes_json(value: object, text: str | None, exact: bool) -> None:
    """What JSON can represent is exact; anything else is readable text, and the payload is not exact."""
    made = payload(value)
    json.loads(made.text)
    assert made.exact is exact
    if text is not None:
        assert made.text.decode() == text


def test_values_that_json_cannot_represent_raise_nothing_and_are_counted(harness: Harness) -> None:
    """The run is recorded whatever its values are, and the report counts the inexact ones."""
    with (
        harness.recorder.run("w\ud800", run_id="run_1", input=Unprintable()) as run,
        run.step("\udfff", name="n\ud800") as step,
    ):
        step.set_output({"value": float("nan"), "of": Unprintable()})
    document = delivered_document(harness, run)
    assert document["steps"][0]["output"] == {"value": "nan", "of": "<Unprintable>"}
    assert harness.recorder.report().inexact_payloads == 2


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.lists(
        st.tuples(st.text(min_size=1, max_size=5), values, st.sampled_from(["end", "fail", "skip", "retry", "leave"])),
        max_size=6,
    ),
    st.sampled_from(["ms", "us", "ns"]),
)
def test_spans_decode_to_any_recorded_document(steps: list[tuple[str, Any, str]], precision: str) -> None:
    """For any steps, values and precision, the spans decode to the document that the recorder returns."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    recorder = Recorder(provider=provider, clock=TickingClock(123_457), export=QUICK, precision=precision)
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


# Configuration.


def test_a_wrong_configuration_is_an_error_at_once() -> None:
    """No destination, two of them, an unknown precision, an invalid run id: each is an error with a hint."""
    with pytest.raises(ConfigError, match=r"environ=os\.environ"):
        Recorder()
    with pytest.raises(ConfigError, match="precision"):
        Recorder(endpoint="http://127.0.0.1:1", precision="s")
    recorder = Recorder(endpoint="http://127.0.0.1:1")
    for run_id in ("", "x" * 513, "\ud800"):
        with pytest.raises(DocumentError, match="run_id"):
            recorder.run("wf", run_id=run_id)
    with pytest.raises(ValueError, match="status"):
        recorder.run("wf", extra={"status": "x"})
    recorder.shutdown(0)
