"""Receivers that are slow, down, full or wrong: the engine is not affected, and every loss is reported."""

from __future__ import annotations

import itertools
import logging
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import context
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from runspan import Recorder, Run, decode, encode
from runspan.codec.fields import REVISION, ROLE
from runspan.contracts import heartbeat_due
from runspan.errors import ConfigError
from runspan.model.span import run_ids
from runspan.model.timestamps import SECOND
from runspan.otlp.protobuf_reader import read_protobuf
from runspan.recorder import ExportConfig, FlushResult
from runspan.recorder.outbox import Counters, Outbox, RunDelta, RunExportState
from runspan.recorder.state import RunRecord
from runspan.sources import documents
from runspan.telemetry import MetricsRegistry
from runspan.telemetry.registry import EXPORTED, QUEUE, RECORDED, RECORDER_FAILED, REQUESTS, RETRIED
from support.receivers import CLOSE, OK, Answer, Post, grpc_receiver, http_receiver, partial
from support.recorder import QUICK, WAIT, Harness, delivered_document, no_worker_is_left, recording, wait_until


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    no_worker_is_left()


def traces_of(post: Post) -> set[bytes]:
    return {span.trace_id for span in post.spans}


def test_a_receiver_that_recovers_gets_every_step_and_only_the_latest_snapshot() -> None:
    """While it responds with 503 nothing is lost; afterwards it gets every step once, and one snapshot."""
    up = threading.Event()
    with recording(lambda post: OK if up.is_set() else Answer(503)) as harness:
        with harness.recorder.run("wf", run_id="run_1") as run:
            for number in range(20):
                with run.step("work") as step:
                    step.set_output(number)
            wait_until(lambda: len(harness.receiver.posts) >= 3)
            assert harness.recorder.report().last_error == "HTTP 503"
            assert not run.flush(0.01)
            up.set()
            assert run.flush(WAIT)
            assert len(harness.with_role("revision")) == 1
        delivered_document(harness, run)
        assert len(harness.with_role("step")) == 20
        report = harness.recorder.report()
        assert (report.complete, report.last_error) == (True, "")
        assert report.retries >= 3


@pytest.mark.parametrize("answer", [Answer(401), Answer(404), CLOSE])
def test_a_refused_configuration_is_retried(answer: Answer) -> None:
    """A receiver that refuses every request may be corrected while the engine runs, so its runs wait."""
    corrected = threading.Event()
    with recording(lambda post: OK if corrected.is_set() else answer) as harness:
        with harness.recorder.run("wf", run_id="run_1") as run, run.step("a"):
            pass
        wait_until(lambda: len(harness.receiver.posts) >= 2)
        corrected.set()
        assert delivered_document(harness, run)["status"] == "completed"


def test_retry_after_is_honoured() -> None:
    """A receiver that asks to wait for a second gets no request before that."""
    times: list[float] = []

    def answer(post: Post) -> Answer:
        if not times or post.number > len(times):
            times.append(time.monotonic())
        return OK if post.number > 1 else Answer(429, headers={"retry-after": "1"})

    with recording(answer) as harness:
        with harness.recorder.run("wf", run_id="run_1") as run:
            pass
        delivered_document(harness, run)
    assert times[1] - times[0] >= 1.0


def test_a_retry_after_is_reported_as_sent() -> None:
    """With what it means here: a receiver that asks for a day is asked again after minutes."""
    with recording(lambda post: Answer(503, headers={"retry-after": "86400"})) as harness:
        with harness.recorder.run("wf", run_id="run_1"):
            pass
        wait_until(lambda: harness.recorder.report().last_error)
        assert harness.recorder.report().last_error == "HTTP 503, asks to wait 86400 s, is asked again after 300 s"


def test_a_closed_port_does_not_affect_the_engine_and_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    """No call blocks or raises, flush and shutdown return in time, and the loss is counted and logged."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # nobody else takes the port
        recorder = Recorder(endpoint=f"http://127.0.0.1:{closed.getsockname()[1]}", export=QUICK)
        begun = time.monotonic()
        for _ in range(50):
            with recorder.run("wf") as run, run.step("a") as step:
                step.set_output(1)
        assert time.monotonic() - begun < 5
        assert not recorder.flush(0.05)
        begun = time.monotonic()
        report = recorder.shutdown(0.2)
        assert time.monotonic() - begun < 5
    assert (report.runs_started, report.runs_ended, report.runs_dropped, report.complete) == (50, 50, 50, False)
    assert "accepts no spans" in caplog.text
    assert caplog.text.count("is not delivered") == 50


def test_an_endpoint_that_never_responds_delays_nothing() -> None:
    """The engine continues, and the shutdown waits no longer than its timeout."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        recorder = Recorder(endpoint=f"http://127.0.0.1:{silent.getsockname()[1]}", export=QUICK, timeout=1.5)
        begun = time.monotonic()
        with recorder.run("wf") as run, run.step("a"):
            pass
        assert time.monotonic() - begun < 1
        report = recorder.shutdown(0.1)
        assert time.monotonic() - begun < 5
    assert report.runs_dropped == 1


def test_a_slow_receiver_gets_fewer_snapshots_and_every_step() -> None:
    """Changes during a request are sent together in the next one."""
    requested, proceed = threading.Event(), threading.Event()

    def answer(post: Post) -> Answer:
        requested.set()
        assert proceed.wait(WAIT)
        return OK

    with recording(answer) as harness:
        with harness.recorder.run("wf", run_id="run_1") as run:
            assert requested.wait(WAIT)
            for _ in range(200):
                with run.step("work"):
                    pass
            proceed.set()
        delivered_document(harness, run)
        assert len(harness.with_role("step")) == 200
        assert len(harness.with_role("revision")) <= 2


def test_a_full_outbox_drops_the_oldest_runs_and_keeps_their_documents(tmp_path: Path) -> None:
    """Above the limit the oldest ended runs are dropped: counted, and written to the dead dead_letters unchanged."""
    dead_letters = tmp_path / "left.ndjson"
    up = threading.Event()
    config = ExportConfig(
        snapshot_delay=0.005, retry_initial_delay=0.02, retry_max_delay=0.02, max_pending_bytes=60_000
    )
    with recording(lambda post: OK if up.is_set() else Answer(503), export=config, dead_letter=dead_letters) as harness:
        runs = []
        for number in range(30):
            with harness.recorder.run("wf", run_id=f"run_{number:02}") as run, run.step("a") as step:
                step.set_output("x" * 5000)
            runs.append(run)
        report = harness.recorder.report()
        assert report.bytes_pending <= 2 * 60_000
        assert 0 < report.runs_dropped == report.runs_dead_lettered < 30
        up.set()
        flushed = harness.recorder.flush(WAIT)
        report = harness.recorder.report()
        assert report.runs_delivered == 30 - report.runs_dropped
        assert not flushed
        assert flushed == FlushResult(
            report.runs_delivered, report.runs_dropped, reason="too many ended runs are waiting"
        )
        delivered = {run.id for run in runs if any(span.trace_id == run.trace_id for span in harness.spans)}
        assert len(delivered) == report.runs_delivered
        assert runs[-1].id in delivered
        assert harness.recorder.shutdown(1).bytes_pending == 0
    kept = [run for run in documents(str(dead_letters)) if isinstance(run, Run)]
    assert {run.id for run in kept} == {run.id for run in runs} - delivered
    assert {run.text for run in kept} <= {run.document().text for run in runs}


def test_a_run_that_is_rejected_affects_no_other(caplog: pytest.LogCaptureFixture) -> None:
    """A receiver that rejects a request because of one run in it gets the others all the same."""
    bad = run_ids("run_3").trace_id
    with recording(
        lambda post: Answer(400) if bad in traces_of(post) else OK, export=ExportConfig(snapshot_delay=0.2)
    ) as harness:
        for number in range(6):
            with harness.recorder.run("wf", run_id=f"run_{number}") as run, run.step("a"):
                pass
        flushed = harness.recorder.flush(WAIT)
        assert flushed == FlushResult(5, 1, reason="the receiver rejected it: HTTP 400")
        report = harness.recorder.report()
        assert (report.runs_delivered, report.runs_dropped) == (5, 1)
        assert report.spans_rejected >= 2
        assert "run_3" in caplog.text


def test_a_run_that_is_always_retryable_does_not_delay_the_others() -> None:
    """Some stores always answer "retry" to a request with one run that is too large for them."""
    bad = run_ids("run_3").trace_id
    with recording(lambda post: Answer(503) if bad in traces_of(post) else OK) as harness:
        for number in range(6):
            with harness.recorder.run("wf", run_id=f"run_{number}") as run, run.step("a"):
                pass
        wait_until(lambda: harness.recorder.report().runs_delivered == 5)
        assert harness.recorder.shutdown(0.1).runs_dropped == 1


def test_rejected_spans_are_counted_and_the_run_is_not_delivered(tmp_path: Path) -> None:
    """After a partial success the run counts as dropped, and its document is kept."""
    dead_letters = tmp_path / "left.ndjson"
    with recording(lambda post: partial(1, "too large"), dead_letter=dead_letters) as harness:
        with harness.recorder.run("wf", run_id="run_1") as run, run.step("a"):
            pass
        wait_until(lambda: harness.recorder.report().runs_dropped == 1)
        report = harness.recorder.shutdown(1)
        assert (report.runs_dead_lettered, report.runs_delivered) == (1, 0)
        assert report.spans_rejected >= 1
    assert [found.text for found in documents(str(dead_letters)) if isinstance(found, Run)] == [run.document().text]


def test_a_large_run_is_sent_in_several_requests_the_run_span_last() -> None:
    """A run above the limit of a request is divided, and its spans decode to its document."""
    with recording(export=ExportConfig(snapshot_delay=60)) as harness:
        with harness.recorder.run("wf", run_id="run_1") as run:
            for _ in range(8):
                with run.step("big") as step:
                    step.set_output("x" * 900_000)
        delivered_document(harness, run)
        assert len(harness.receiver.posts) > 2
        assert all(post.size < 3_100_000 for post in harness.receiver.posts)
        last = read_protobuf(harness.receiver.posts[-1].message.SerializeToString()).spans[-1]
        assert last.attributes()[ROLE] == "run"


def test_grpc_and_environment_variables() -> None:
    """Protocol, endpoint, headers, API key and resource come from the variables that are passed in."""
    with grpc_receiver() as receiver:
        environ = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{receiver.port}",
            "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
            "OTEL_EXPORTER_OTLP_HEADERS": "x-team=flows",
            "OTEL_SERVICE_NAME": "engine",
            "OTEL_RESOURCE_ATTRIBUTES": "service.namespace=billing%20eu,service.name=other",
            "RUNSPAN_API_KEY": "wfk_secret",
        }
        with Recorder(environ=environ, export=QUICK) as recorder, recorder.run("wf", run_id="run_1") as run:
            pass
    assert decode(read_protobuf(receiver.posts[-1].message.SerializeToString()).spans) == run.document()
    post = receiver.posts[-1]
    assert (post.headers["x-team"], post.headers["x-api-key"]) == ("flows", "wfk_secret")
    attributes = {pair.key: pair.value.string_value for pair in post.message.resource_spans[0].resource.attributes}
    assert attributes == {"service.name": "engine", "service.namespace": "billing eu"}
    with pytest.raises(ConfigError, match="OTEL_RESOURCE_ATTRIBUTES"):
        Recorder(environ={"OTEL_RESOURCE_ATTRIBUTES": "malformed"})


# The schedule, without waiting for it.


class ManualOutbox:
    """An outbox whose clock is moved by the test."""

    def __init__(self, config: ExportConfig) -> None:
        self.now = 1000.0
        self.counters = Counters()
        self.outbox = Outbox(self.counters, config, lambda: self.now, lambda: None, lambda state, reason: None)

    def run(self, run_id: str) -> RunRecord:
        record = RunRecord(
            run_id, "wf", "", clock=lambda: 1, precision=1, count=self.counters.add, on_change=self.outbox.mark_dirty
        )
        record.status = "running"
        self.outbox.register(record)
        return record

    def due(self) -> list[str]:
        """Return the ids of the runs that are due now, and acknowledge them as a worker does."""
        states, _ = self.outbox.poll()
        for state in states:
            self.outbox.ack(state, state.record.has_ended)
        self.outbox.finish_round()
        return [state.record.id for state in states]


def test_a_run_that_does_not_change_has_heartbeats() -> None:
    """An unchanged run is due a heartbeat interval after it was last sent, an old one later, also while suspended."""
    outbox = ManualOutbox(ExportConfig(snapshot_delay=1, heartbeat_interval=30))
    first, second = outbox.run("first"), outbox.run("second")
    outbox.now += 1
    assert outbox.due() == ["first", "second"]
    outbox.now += 20
    first.change(lambda: setattr(first, "input", b"1"))
    outbox.now += 1
    assert outbox.due() == ["first"]
    outbox.now += 9
    assert outbox.due() == ["second"]
    outbox.now += 21
    assert outbox.due() == ["first"]
    second.change(lambda: setattr(second, "status", "suspended"), status=True)
    outbox.now += 1
    assert outbox.due() == ["second"]
    outbox.now += 29
    assert outbox.due() == ["first"]
    outbox.now += 1
    assert outbox.due() == ["second"]
    outbox.now += 1000
    assert set(outbox.due()) == {"first", "second"}
    second.change(lambda: setattr(second, "status", "running"), status=True)
    outbox.now += 1
    assert outbox.due() == ["second"]
    outbox.now += 66
    assert outbox.due() == []
    outbox.now += 2
    assert set(outbox.due()) == {"first", "second"}


def test_heartbeats_back_off() -> None:
    """The next one is due after a sixteenth of the run's age: a quiet day has about a hundred, not thousands."""
    outbox = ManualOutbox(ExportConfig(snapshot_delay=1, heartbeat_interval=30))
    outbox.run("run")
    sent = []
    for second in range(86_400):
        outbox.now = 1000.0 + second
        if outbox.due():
            sent.append(second)
    assert len(sent) < 120
    for before, after in itertools.pairwise(sent):
        assert heartbeat_due(before * SECOND, sent[0] * SECOND) <= (after + 2) * SECOND
        assert after - before <= max(30, before / 16) + 2


def test_an_old_run_has_fewer_snapshots_but_its_status_is_sent_at_once() -> None:
    """The interval is a fiftieth of its age, up to the heartbeat interval; a change of status does not wait for it."""
    outbox = ManualOutbox(ExportConfig(snapshot_delay=0.1, heartbeat_interval=30))
    record = outbox.run("run")
    for age, pause in ((100, 2), (1000, 20), (1_000_000, 30)):
        outbox.now = 1000.0 + age
        outbox.due()
        record.change(lambda: setattr(record, "input", b"1"))
        outbox.now += pause - 0.2
        assert outbox.due() == []
        outbox.now += 0.3
        assert outbox.due() == ["run"]
    record.change(lambda: setattr(record, "status", "suspended"), status=True)
    outbox.now += 0.2
    assert outbox.due() == ["run"]
    record.change(lambda: setattr(record, "status", "completed"), status=True)
    assert outbox.due() == ["run"]
    outbox.now += 1000
    assert outbox.due() == []


@pytest.mark.parametrize("suspended", [False, True])
def test_heartbeats_are_sent(suspended: bool) -> None:
    """A run that waits is sent again and again, with an increasing revision and the same document."""
    with recording(export=ExportConfig(snapshot_delay=0.005, heartbeat_interval=0.03)) as harness:
        with harness.recorder.run("wf", run_id="run_1") as run, run.suspended() if suspended else nullcontext():
            wait_until(lambda: len(harness.with_role("revision")) >= 4)
            assert len({span.attributes()[REVISION] for span in harness.with_role("revision")}) >= 4
            assert harness.document("run_1") == run.document()
        delivered_document(harness, run)


# Through a TracerProvider.


def test_a_given_provider_gets_more_than_its_queue_holds() -> None:
    """A run of more spans than the batch processor holds passes through it completely, among other spans."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(exporter, max_queue_size=512, max_export_batch_size=512))
    recorder = Recorder(provider=provider, export=QUICK)
    assert recorder.tracer_provider is provider
    with recorder.run("wf", run_id="run_1") as run:
        for _ in range(1500):
            with run.step("work"):
                pass
        with provider.get_tracer("t").start_as_current_span("other"):
            pass
    assert recorder.shutdown(WAIT).complete
    received = read_protobuf(encode_spans(exporter.get_finished_spans()).SerializeToString())
    assert decode(received.spans) == run.document()
    (other,) = [span for span in exporter.get_finished_spans() if span.name == "other"]
    assert other.parent is not None
    assert other.parent.span_id == int.from_bytes(run.record.root_id, "big")
    provider.shutdown()


class SuppressionReader(SpanProcessor):
    """Reads from the context whether instrumentation is suppressed."""

    def __init__(self) -> None:
        self.values: set[object] = set()

    def on_end(self, span: ReadableSpan) -> None:
        self.values.add(context.get_value("suppress_instrumentation"))

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return True  # the base class of some versions returns None, which the provider takes for a failure


def test_instrumentation_is_suppressed_while_spans_are_sent() -> None:
    """An instrumented HTTP client makes no spans of the requests of the recorder."""
    provider, reader = TracerProvider(shutdown_on_exit=False), SuppressionReader()
    provider.add_span_processor(reader)
    recorder = Recorder(provider=provider, export=QUICK)
    with recorder.run("wf"):
        pass
    assert recorder.shutdown(WAIT).complete
    assert reader.values == {True}


class Failing(SpanExporter):
    def export(self, spans: Any) -> SpanExportResult:
        raise RuntimeError("broken exporter")


def test_a_provider_that_is_shut_down_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    """Its processors accept nothing any more: the loss is counted, and nothing is raised."""
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(Failing()))
    provider.shutdown()
    recorder = Recorder(provider=provider, export=QUICK)
    with recorder.run("wf"):
        pass
    report = recorder.shutdown(0.2)
    assert report.runs_dropped == 1
    assert "did not flush" in report.last_error
    with pytest.raises(ConfigError, match="both"):
        Recorder(provider=provider, endpoint="http://127.0.0.1:1")


def test_spans_of_other_instrumentation_are_sent_together() -> None:
    """A thousand spans make a few requests, not a thousand."""
    with recording(export=ExportConfig(snapshot_delay=0.2)) as harness:
        tracer = harness.recorder.tracer_provider.get_tracer("t")
        for _ in range(1000):
            tracer.start_span("GET").end()
        assert harness.recorder.tracer_provider.force_flush(20_000)
        assert harness.recorder.report().foreign_spans_sent == 1000
        assert len(harness.receiver.posts) < 20


def test_too_many_spans_of_other_instrumentation_are_counted() -> None:
    """Above its limit the queue of foreign spans drops and counts them, and the runs are not affected."""
    up = threading.Event()
    config = ExportConfig(snapshot_delay=0.005, retry_initial_delay=0.02, retry_max_delay=0.02, max_foreign_spans=50)
    with recording(lambda post: OK if up.is_set() else Answer(503), export=config) as harness:
        tracer = harness.recorder.tracer_provider.get_tracer("t")
        with harness.recorder.run("wf", run_id="run_1") as run, run.step("a"):
            for _ in range(200):
                with tracer.start_as_current_span("GET"):
                    pass
        up.set()
        flushed = harness.recorder.flush(WAIT)
        delivered_document(harness, run)
        report = harness.recorder.report()
        assert report.foreign_spans_dropped > 0
        assert report.foreign_spans_dropped + report.foreign_spans_sent == 200
        assert (flushed.delivered, flushed.foreign_spans_dropped) == (1, report.foreign_spans_dropped)
        assert not flushed
        assert report.runs_delivered == 1


# Processes, forks and signals.


def script(body: str, *args: str, **env: str) -> subprocess.Popen[str]:
    """Start a Python process that runs a script."""
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(body), *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **env},
    )


def test_the_end_of_the_process_delivers() -> None:
    """A program that ends, even by an exception, has delivered what it recorded."""
    body = """
        import sys
        from runspan import Recorder
        recorder = Recorder(endpoint=sys.argv[1])
        with recorder.run("wf", run_id="run_1") as run, run.step("a"):
            pass
        recorder.run("wf", run_id="run_2").start()
        raise SystemExit(3)
    """
    with http_receiver() as receiver:
        process = script(body, receiver.url)
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out, err) == (3, "", "")
        spans = [span for post in receiver.posts for span in read_protobuf(post.message.SerializeToString()).spans]
    of = {run_id: [s for s in spans if s.trace_id == run_ids(run_id).trace_id] for run_id in ("run_1", "run_2")}
    assert decode(of["run_1"]).status == "completed"
    assert decode(of["run_2"]).status == "running"


def test_the_end_of_the_process_waits_no_longer_than_exit_timeout() -> None:
    """Without a response the process ends in time, and reports on standard error what it did not deliver."""
    body = """
        import sys, time
        from runspan import Recorder
        recorder = Recorder(endpoint=sys.argv[1], exit_timeout=0.3)
        with recorder.run("wf", run_id="run_1"):
            pass
        print(time.time(), flush=True)
    """
    with socket.create_server(("127.0.0.1", 0)) as silent:
        process = script(body, f"http://127.0.0.1:{silent.getsockname()[1]}")
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0
    assert time.time() - float(out) < 10
    assert "run_1 is not delivered" in err


def test_a_forked_child_sends_its_own_runs_and_none_of_its_parents() -> None:
    """The child uses no thread, connection or lock of the parent's; its calls on the parent's run are ignored."""
    body = """
        import os, sys
        from runspan import Recorder
        recorder = Recorder(endpoint=sys.argv[1])
        with recorder.run("wf", run_id="parent") as run, run.step("a"):
            run.flush(20)
            child = os.fork()
            if not child:
                with run.step("in the child"):
                    pass
                with recorder.run("wf", run_id="child") as own, own.step("b"):
                    pass
                report = recorder.shutdown(20)
                assert report.runs_delivered == 1 == report.runs_started, report
                os._exit(0 if report.late_calls else 5)
            assert os.waitpid(child, 0)[1] == 0
        assert recorder.shutdown(20).runs_delivered == 1
    """
    with http_receiver() as receiver:
        process = script(body, receiver.url)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        spans = [span for post in receiver.posts for span in read_protobuf(post.message.SerializeToString()).spans]
    of = {name: decode([s for s in spans if s.trace_id == run_ids(name).trace_id]) for name in ("parent", "child")}
    assert [step.id for step in of["parent"].steps] == ["a"]
    assert of["parent"].status == of["child"].status == "completed"
    assert of["child"].to_dict()["parentRunId"] == "parent"


def test_ctrl_c_ends_the_run_as_cancelled_and_delivers_it() -> None:
    """SIGINT during a step raises KeyboardInterrupt, and the run is delivered as cancelled."""
    body = """
        import sys, time
        from runspan import Recorder
        recorder = Recorder(endpoint=sys.argv[1])
        with recorder.run("wf", run_id="run_1") as run, run.step("a"):
            print("begun", flush=True)
            time.sleep(60)
    """
    with http_receiver() as receiver:
        process = script(body, receiver.url)
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
        assert "KeyboardInterrupt" in err
        spans = [span for post in receiver.posts for span in read_protobuf(post.message.SerializeToString()).spans]
    assert decode(spans).status == "cancelled"


def test_an_internal_error_is_counted_and_the_thread_continues(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An error of the recorder itself in one run neither reaches the engine nor stops the others."""
    build_delta = RunExportState.build_delta

    def broken(self: RunExportState, *args: Any) -> RunDelta:
        if self.record.id == "run_bad":
            raise RuntimeError("a defect")
        return build_delta(self, *args)

    monkeypatch.setattr(RunExportState, "build_delta", broken)
    with recording() as harness:
        for name in ("run_bad", "run_good"):
            with harness.recorder.run("wf", run_id=name) as run:
                pass
        delivered_document(harness, run)
        wait_until(lambda: harness.recorder.report().runs_dropped == 1)
        report = harness.recorder.report()
        assert (report.internal_errors, report.runs_delivered) == (1, 1)
    assert any(record.levelno == logging.ERROR and "run_bad" in record.getMessage() for record in caplog.records)


def test_without_a_thread_the_engine_continues(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the end of the interpreter no thread can be started: nothing is raised, and the loss is counted."""

    def start(self: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    recorder = Recorder(endpoint="http://127.0.0.1:9", export=QUICK)
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", start)
        with recorder.run("wf"):
            pass
        report = recorder.shutdown(0)
    assert (report.runs_dropped, report.complete) == (1, False)
    assert "new thread" in report.last_error


def test_a_signal_handler_may_use_the_recorder() -> None:
    """SIGTERM's handler cancels the run while the main thread is anywhere inside the recorder, without a deadlock."""
    body = """
        import signal, sys, time
        from runspan import Recorder
        recorder = Recorder(endpoint=sys.argv[1])
        run = recorder.run("wf", run_id="run_1").start()
        def stop(*_):
            run.cancel("SIGTERM")
            sys.exit(0)
        signal.signal(signal.SIGTERM, stop)
        print("begun", flush=True)
        while True:
            with run.step("a") as step:
                step.set_output(1).set_input(2)
            time.sleep(0.0005)
    """
    with http_receiver() as receiver:
        process = script(body, receiver.url)
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        wait_until(lambda: len(receiver.posts) > 2)
        process.terminate()
        _, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        spans = [span for post in receiver.posts for span in read_protobuf(post.message.SerializeToString()).spans]
    assert decode(spans).status == "cancelled"


def test_tls_files_that_cannot_be_read_are_an_error_at_once(tmp_path: Path) -> None:
    """They raise ConfigError when the recorder is made, not a log message while runs accumulate."""
    environ = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "https://127.0.0.1:1",
        "OTEL_EXPORTER_OTLP_CERTIFICATE": str(tmp_path / "none.pem"),
    }
    for protocol in ("http/protobuf", "grpc"):
        with pytest.raises(ConfigError, match=r"none\.pem|TLS"):
            Recorder(environ=environ, protocol=protocol)


def test_nothing_is_sent_after_the_shutdown() -> None:
    """Runs that begin afterwards have documents all the same, and send nothing."""
    with recording() as harness:
        harness.recorder.shutdown()
        with harness.recorder.run("wf", run_id="run_1") as run, run.step("a"):
            pass
        assert run.status == "completed"
        assert not run.flush(0.1)
        assert harness.receiver.posts == []


@pytest.mark.parametrize("way", ["environ", "provider"])
def test_a_disabled_sdk_sends_nothing(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """``OTEL_SDK_DISABLED`` disables the export, as in the SDK; documents are returned all the same."""
    if way == "environ":
        recorder = Recorder(environ={"OTEL_SDK_DISABLED": "true"})
    else:
        monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
        recorder = Recorder(provider=TracerProvider(shutdown_on_exit=False))
    with recorder.run("wf") as run, run.step("a"):
        pass
    assert run.document().status == "completed"
    assert recorder.shutdown(WAIT).requests == 0


def test_a_forked_child_has_its_own_dead_letters(tmp_path: Path) -> None:
    """Its file is named after it, and the parent's is not touched."""
    body = """
        import os, sys
        from runspan import Recorder
        recorder = Recorder(endpoint="http://127.0.0.1:9", dead_letter=sys.argv[1])
        child = os.fork()
        with recorder.run("wf", run_id="parent" if child else "child") as run:
            pass
        if child:
            assert os.waitpid(child, 0)[1] == 0
        assert recorder.shutdown(0).runs_dead_lettered == 1
        if not child:
            os._exit(0)
    """
    process = script(body, str(tmp_path / "left.ndjson"))
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    found = {path.name: [run.id for run in documents(str(path)) if isinstance(run, Run)] for path in tmp_path.iterdir()}
    assert found.pop("left.ndjson") == ["parent"]
    assert list(found.values()) == [["child"]]


def test_many_threads_on_one_run_over_a_flaky_receiver() -> None:
    """Steps, attempts, heartbeats and documents from eight threads, while a third of the requests fail: in the end the
    spans decode to the document, and no step was written with two contents."""

    def answer(post: Post) -> Answer:
        return Answer(503) if post.number % 3 == 0 else CLOSE if post.number % 5 == 0 else OK

    config = ExportConfig(
        snapshot_delay=0.001, heartbeat_interval=0.01, retry_initial_delay=0.002, retry_max_delay=0.005
    )
    with recording(answer, export=config, clock=time.time_ns) as harness:

        def engine(worker: int) -> None:
            for number in range(40):
                with run.step(f"s{number % 3}", type="agent") as step:
                    step.set_usage(prompt_tokens=worker, completion_tokens=number, cost_usd=0.1)
                    for _ in range(number % 3):
                        step.retry("again")
                    with step.attempt():
                        step.set_output(number)
                if number % 10 == 0:
                    run.document()
                    run.flush(0.01)

        with harness.recorder.run("wf", run_id="run_1") as run:
            threads = [threading.Thread(target=engine, args=(worker,)) for worker in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(WAIT)
        assert len(delivered_document(harness, run)["steps"]) == 320
        contents: dict[bytes, set[str]] = {}
        for span in harness.spans:
            contents.setdefault(span.span_id, set()).add(repr((span.start, span.end, span.attributes())))
        assert all(len(found) == 1 for found in contents.values())
        assert len(harness.with_role("attempt")) == sum(number % 3 + 1 for number in range(40)) * 8
        expected = encode(run.document(), step_ids=[s.span_id for s in _in_order(harness, run)])[-1]
        assert harness.with_role("run")[0].attributes() == expected.attributes()


def _in_order(harness: Harness, run: Any) -> list[Any]:
    """Return the step spans in the order of the manifest."""
    by_id = {span.span_id: span for span in harness.with_role("step")}
    return [by_id[record.span_id] for record in run.record.steps]


def test_a_burst_of_short_runs_is_delivered_completely(caplog: pytest.LogCaptureFixture) -> None:
    """A thousand runs from four threads arrive, none twice, in few requests."""
    with recording(clock=time.time_ns) as harness:

        def engine(worker: int) -> None:
            for number in range(250):
                with harness.recorder.run("wf", run_id=f"run_{worker}_{number}") as run, run.step("a") as step:
                    step.set_output(number)

        threads = [threading.Thread(target=engine, args=(worker,)) for worker in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAIT)
        assert harness.recorder.flush(WAIT)
        report = harness.recorder.report()
        assert (report.runs_delivered, report.complete) == (1000, True)
        roots = harness.with_role("run")
        assert len(roots) == len({span.span_id for span in roots}) == 1000
        assert len(harness.receiver.posts) < 300
    assert not caplog.records


def test_metrics_of_a_recorder() -> None:
    """A run is in the queue while the receiver is down, and counts as exported once it is accepted."""
    up = threading.Event()
    metrics = MetricsRegistry(lambda: 0, ("recorder", "export"))
    with recording(lambda post: OK if up.is_set() else Answer(503), metrics=metrics) as harness:
        with harness.recorder.run("wf"):
            pass
        wait_until(lambda: metrics.collect()[RETRIED] > 0)
        before = metrics.collect()
        assert (before[RECORDED], before[EXPORTED], before[QUEUE], before[RECORDER_FAILED]) == (1, 0, 1, 0)
        up.set()
        assert harness.recorder.flush(WAIT)
        after = metrics.collect()
        assert (after[EXPORTED], after[QUEUE], after[RECORDER_FAILED]) == (1, 0, 0)
        assert after[REQUESTS] == harness.recorder.report().requests


def test_metrics_count_dropped_runs() -> None:
    """A run that is dropped at the shutdown is a failure, which an alert can use."""
    metrics = MetricsRegistry(lambda: 0, ("recorder",))
    with recording(lambda post: Answer(503), metrics=metrics) as harness:
        with harness.recorder.run("wf"):
            pass
        harness.recorder.shutdown(0.05)
        assert metrics.collect()[RECORDER_FAILED] == harness.recorder.report().runs_dropped == 1
