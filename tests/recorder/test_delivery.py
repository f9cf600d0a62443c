"""A recorder and receivers that are slow, dead, full or wrong: the engine hears nothing, and no loss is silent."""

from __future__ import annotations

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
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from runspan import Recorder, Run, decode, encode
from runspan.codec.fields import REVISION, ROLE
from runspan.errors import SettingError
from runspan.model.ids import run_ids
from runspan.otlp.protobuf_reader import read_protobuf
from runspan.recorder import ExportConfig
from runspan.recorder.outbox import Counters, Outbox, RunDelta, RunExportState
from runspan.recorder.state import DocumentClock, RunRecord, RunSession
from runspan.sources import documents
from runspan.telemetry import MetricsRegistry
from runspan.telemetry.instruments import EXPORTED, QUEUE, RECORDED, RECORDER_FAILED, REQUESTS, RETRIED
from support.receivers import CLOSE, OK, Answer, Post, grpc_receiver, http_receiver, partial
from support.recorder import QUICK, WAIT, Taken, proved, recording, until


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    until(lambda: not [thread for thread in threading.enumerate() if thread.name == "runspan-recorder"])


def traces_of(post: Post) -> set[bytes]:
    return {span.trace_id for span in post.spans}


def test_a_receiver_that_comes_back_gets_everything_and_only_the_newest_snapshot() -> None:
    """While it answers 503 nothing is lost; afterwards every step is there once, and one snapshot of the last state."""
    up = threading.Event()
    with recording(lambda post: OK if up.is_set() else Answer(503)) as taken:
        with taken.recorder.run("wf", run_id="run_1") as run:
            for number in range(20):
                with run.step("work") as step:
                    step.set_output(number)
            until(lambda: len(taken.receiver.posts) >= 3)
            assert taken.recorder.report().last_error == "HTTP 503"
            assert not run.flush(0.01)
            up.set()
            assert run.flush(WAIT)
            assert len(taken.role("snapshot")) == 1
        proved(taken, run)
        assert len(taken.role("step")) == 20
        report = taken.recorder.report()
        assert (report.complete, report.last_error) == (True, "")
        assert report.retries >= 3


@pytest.mark.parametrize("answer", [Answer(401), Answer(404), CLOSE])
def test_wrong_settings_are_tried_again_too(answer: Answer) -> None:
    """What refuses every request today may be mended while the engine runs, so its runs wait."""
    mended = threading.Event()
    with recording(lambda post: OK if mended.is_set() else answer) as taken:
        with taken.recorder.run("wf", run_id="run_1") as run, run.step("a"):
            pass
        until(lambda: len(taken.receiver.posts) >= 2)
        mended.set()
        assert proved(taken, run)["status"] == "completed"


def test_retry_after_is_honoured() -> None:
    """A receiver that asks for a second is not asked again before."""
    times: list[float] = []

    def answer(post: Post) -> Answer:
        if not times or post.number > len(times):
            times.append(time.monotonic())
        return OK if post.number > 1 else Answer(429, headers={"retry-after": "1"})

    with recording(answer) as taken:
        with taken.recorder.run("wf", run_id="run_1") as run:
            pass
        proved(taken, run)
    assert times[1] - times[0] >= 1.0


def test_a_dead_endpoint_costs_the_engine_nothing_and_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """Nobody listens: no call blocks or raises, flush and shutdown return in time, the loss is counted and logged."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    recorder = Recorder(endpoint=f"http://127.0.0.1:{port}", export=QUICK)
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


def test_an_endpoint_that_never_answers_holds_nobody_up() -> None:
    """A socket that accepts and stays silent: the engine goes on, and the end waits no longer than it is told to."""
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
    """Changes that come while a request is under way go into the next one, together."""
    with recording(lambda post: time.sleep(0.05) or OK) as taken:
        with taken.recorder.run("wf", run_id="run_1") as run:
            for _ in range(200):
                with run.step("work"):
                    pass
                time.sleep(0.001)
        proved(taken, run)
        assert len(taken.role("step")) == 200
        assert len(taken.role("snapshot")) < 30


def test_a_full_outbox_drops_whole_runs_oldest_first_and_keeps_their_documents(tmp_path: Path) -> None:
    """Over the bound the oldest ended runs are given up: counted, kept as dead letters, and exportable as they were."""
    letters = tmp_path / "left.ndjson"
    up = threading.Event()
    config = ExportConfig(
        snapshot_delay=0.005, retry_initial_delay=0.02, retry_max_delay=0.02, max_pending_bytes=60_000
    )
    with recording(lambda post: OK if up.is_set() else Answer(503), export=config, dead_letter=letters) as taken:
        runs = []
        for number in range(30):
            with taken.recorder.run("wf", run_id=f"run_{number:02}") as run, run.step("a") as step:
                step.set_output("x" * 5000)
            runs.append(run)
        report = taken.recorder.report()
        assert report.bytes_pending <= 2 * 60_000
        assert 0 < report.runs_dropped == report.runs_dead_lettered < 30
        up.set()
        assert taken.recorder.flush(WAIT)
        report = taken.recorder.report()
        assert report.runs_delivered == 30 - report.runs_dropped
        there = {run.id for run in runs if any(span.trace_id == run.trace_id for span in taken.own)}
        assert len(there) == report.runs_delivered
        assert runs[-1].id in there
        assert taken.recorder.shutdown(1).bytes_pending == 0
    kept = [run for run in documents(str(letters)) if isinstance(run, Run)]
    assert {run.id for run in kept} == {run.id for run in runs} - there
    assert {run.text for run in kept} <= {run.document().text for run in runs}


def test_a_run_that_is_refused_costs_only_itself(caplog: pytest.LogCaptureFixture) -> None:
    """A receiver that refuses a request for one run in it gets the others all the same."""
    bad = run_ids("run_3").trace_id
    with recording(
        lambda post: Answer(400) if bad in traces_of(post) else OK, export=ExportConfig(snapshot_delay=0.2)
    ) as taken:
        for number in range(6):
            with taken.recorder.run("wf", run_id=f"run_{number}") as run, run.step("a"):
                pass
        assert taken.recorder.flush(WAIT)
        report = taken.recorder.report()
        assert (report.runs_delivered, report.runs_dropped) == (5, 1)
        assert report.spans_rejected >= 2
        assert "run_3" in caplog.text


def test_a_run_that_is_put_off_for_ever_does_not_hold_up_the_others() -> None:
    """Some stores answer "later" to a request with one run that is too large for them."""
    bad = run_ids("run_3").trace_id
    with recording(lambda post: Answer(503) if bad in traces_of(post) else OK) as taken:
        for number in range(6):
            with taken.recorder.run("wf", run_id=f"run_{number}") as run, run.step("a"):
                pass
        until(lambda: taken.recorder.report().runs_delivered == 5)
        assert taken.recorder.shutdown(0.1).runs_dropped == 1


def test_rejected_spans_are_counted_and_the_run_is_not_called_delivered(tmp_path: Path) -> None:
    """A partial success is no success: the run counts as dropped, and its document is kept."""
    letters = tmp_path / "left.ndjson"
    with recording(lambda post: partial(1, "too odd"), dead_letter=letters) as taken:
        with taken.recorder.run("wf", run_id="run_1") as run, run.step("a"):
            pass
        until(lambda: taken.recorder.report().runs_dropped == 1)
        report = taken.recorder.shutdown(1)
        assert (report.runs_dead_lettered, report.runs_delivered) == (1, 0)
        assert report.spans_rejected >= 1
    assert [found.text for found in documents(str(letters)) if isinstance(found, Run)] == [run.document().text]


def test_a_large_run_goes_in_several_requests_the_head_last() -> None:
    """A run over the bound of a request is cut, and its document is proved in the end."""
    with recording(export=ExportConfig(snapshot_delay=60)) as taken:
        with taken.recorder.run("wf", run_id="run_1") as run:
            for _ in range(8):
                with run.step("big") as step:
                    step.set_output("x" * 900_000)
        proved(taken, run)
        assert len(taken.receiver.posts) > 2
        assert all(post.size < 3_100_000 for post in taken.receiver.posts)
        last = read_protobuf(taken.receiver.posts[-1].message.SerializeToString()).spans[-1]
        assert last.attributes()[ROLE] == "run"


def test_grpc_and_the_environments_settings() -> None:
    """Protocol, endpoint, headers, API key and resource come from OpenTelemetry's variables, passed in."""
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
    with pytest.raises(SettingError, match="OTEL_RESOURCE_ATTRIBUTES"):
        Recorder(environ={"OTEL_RESOURCE_ATTRIBUTES": "odd"})


# The schedule, without waiting for it.


class ManualOutbox:
    """An outbox whose clock is moved by the test."""

    def __init__(self, config: ExportConfig) -> None:
        self.now = 1000.0
        self.counters = Counters()
        self.outbox = Outbox(self.counters, config, lambda: self.now, lambda: None, lambda state, reason: None)

    def run(self, run_id: str) -> RunSession:
        record = RunRecord(run_id, "wf", "", 1)
        record.status, record.started = "running", 1
        session = RunSession(record, DocumentClock(lambda: 1, "ms"), self.counters.add, self.outbox.mark_dirty)
        self.outbox.register(session)
        return session

    def due(self) -> list[str]:
        """Return the ids of the runs that are due now, and acknowledge them as a worker does."""
        states, _ = self.outbox.poll()
        for state in states:
            self.outbox.ack(state, state.session.record.has_ended)
        self.outbox.finish_round(states)
        return [state.session.record.id for state in states]


def test_a_run_that_does_not_change_beats() -> None:
    """Unchanged runs are due after a heartbeat each, from when each was last sent; suspended ones rest."""
    outbox = ManualOutbox(ExportConfig(snapshot_delay=1, heartbeat_interval=30))
    first, second = outbox.run("first"), outbox.run("second")
    outbox.now += 1
    assert outbox.due() == ["first", "second"]
    outbox.now += 20
    first.change(lambda record: setattr(record, "input", b"1"))
    outbox.now += 1
    assert outbox.due() == ["first"]
    outbox.now += 9
    assert outbox.due() == ["second"]
    outbox.now += 21
    assert outbox.due() == ["first"]
    second.change(lambda record: setattr(record, "status", "suspended"), status=True)
    outbox.now += 1
    assert outbox.due() == ["second"]
    outbox.now += 29
    assert outbox.due() == ["first"]
    outbox.now += 1000
    assert outbox.due() == ["first"]
    second.change(lambda record: setattr(record, "status", "running"), status=True)
    outbox.now += 1
    assert outbox.due() == ["second"]
    outbox.now += 30
    assert set(outbox.due()) == {"first", "second"}


def test_an_old_run_pauses_longer_between_snapshots_but_not_for_its_status() -> None:
    """A fiftieth of its age, never more than a heartbeat; a change of status and the end come through at once."""
    outbox = ManualOutbox(ExportConfig(snapshot_delay=0.1, heartbeat_interval=30))
    session = outbox.run("run")
    for age, pause in ((100, 2), (1000, 20), (1_000_000, 30)):
        outbox.now = 1000.0 + age
        outbox.due()
        session.change(lambda record: setattr(record, "input", b"1"))
        outbox.now += pause - 0.2
        assert outbox.due() == []
        outbox.now += 0.3
        assert outbox.due() == ["run"]
    session.change(lambda record: setattr(record, "status", "suspended"), status=True)
    outbox.now += 0.2
    assert outbox.due() == ["run"]
    session.change(lambda record: setattr(record, "status", "completed"), status=True)
    assert outbox.due() == ["run"]
    outbox.now += 1000
    assert outbox.due() == []


def test_heartbeats_really_come() -> None:
    """A run that waits is sent again and again with a rising revision and the same document."""
    with recording(export=ExportConfig(snapshot_delay=0.005, heartbeat_interval=0.03)) as taken:
        with taken.recorder.run("wf", run_id="run_1") as run:
            until(lambda: len(taken.role("snapshot")) >= 4)
            assert len({span.attributes()[REVISION] for span in taken.role("snapshot")}) >= 4
            assert taken.document("run_1") == run.document()
        proved(taken, run)


# Through a TracerProvider.


def test_a_given_provider_takes_everything_past_its_queue() -> None:
    """Runs of more spans than the batch processor holds go through it whole, with its other spans beside them."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(exporter, max_queue_size=512, max_export_batch_size=512))
    recorder = Recorder(provider=provider, export=QUICK)
    assert recorder.tracer_provider is provider
    with recorder.run("wf", run_id="run_1") as run:
        for _ in range(1500):
            with run.step("work"):
                pass
        with provider.get_tracer("t").start_as_current_span("beside"):
            pass
    assert recorder.shutdown(WAIT).complete
    received = read_protobuf(encode_spans(exporter.get_finished_spans()).SerializeToString())
    assert decode(received.spans) == run.document()
    (beside,) = [span for span in exporter.get_finished_spans() if span.name == "beside"]
    assert beside.parent is not None
    assert beside.parent.span_id == int.from_bytes(run.session.record.root_id, "big")
    provider.shutdown()


class Failing(SpanExporter):
    def export(self, spans: Any) -> SpanExportResult:
        raise RuntimeError("broken exporter")


def test_a_provider_that_is_shut_down_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """Its processors take nothing any more: that is counted, not silent, and raises nothing."""
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(Failing()))
    provider.shutdown()
    recorder = Recorder(provider=provider, export=QUICK)
    with recorder.run("wf"):
        pass
    report = recorder.shutdown(0.2)
    assert report.runs_dropped == 1
    assert "did not flush" in report.last_error
    with pytest.raises(SettingError, match="both"):
        Recorder(provider=provider, endpoint="http://127.0.0.1:1")


def test_spans_of_other_instrumentation_are_sent_together() -> None:
    """A thousand spans make a few requests, not a thousand."""
    with recording(export=ExportConfig(snapshot_delay=0.2)) as taken:
        tracer = taken.recorder.tracer_provider.get_tracer("t")
        for _ in range(1000):
            tracer.start_span("GET").end()
        assert taken.recorder.tracer_provider.force_flush(20_000)
        assert taken.recorder.report().foreign_spans_sent == 1000
        assert len(taken.receiver.posts) < 20


def test_too_many_spans_of_other_instrumentation_are_counted() -> None:
    """Beyond its bound the queue of foreign spans drops, counts, and the runs are not touched."""
    up = threading.Event()
    config = ExportConfig(snapshot_delay=0.005, retry_initial_delay=0.02, retry_max_delay=0.02, max_foreign_spans=50)
    with recording(lambda post: OK if up.is_set() else Answer(503), export=config) as taken:
        tracer = taken.recorder.tracer_provider.get_tracer("t")
        with taken.recorder.run("wf", run_id="run_1") as run, run.step("a"):
            for _ in range(200):
                with tracer.start_as_current_span("GET"):
                    pass
        up.set()
        proved(taken, run)
        report = taken.recorder.report()
        assert report.foreign_spans_dropped > 0
        assert report.foreign_spans_dropped + report.foreign_spans_sent == 200
        assert report.runs_delivered == 1


# The process.


def script(body: str, *args: str, **env: str) -> subprocess.Popen[str]:
    """A Python process that runs this text."""
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(body), *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **env},
    )


def test_the_end_of_the_process_delivers() -> None:
    """A program that just ends, by an exception even, has delivered what it recorded."""
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


def test_the_end_of_the_process_waits_no_longer_than_told() -> None:
    """With nobody listening, the process ends in time and says on standard error what it did not deliver."""
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
    """The child has no thread, connection or lock of the parent's; what it tells of the parent's run is ignored."""
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
    """SIGINT in the middle of a step: KeyboardInterrupt goes its way, and the run is there, cancelled."""
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


def test_an_error_inside_is_counted_and_the_thread_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A defect of the recorder's own in one run neither reaches the engine nor stops the others."""
    build_delta = RunExportState.build_delta

    def broken(self: RunExportState, *args: Any) -> RunDelta:
        if self.session.record.id == "run_bad":
            raise RuntimeError("a defect")
        return build_delta(self, *args)

    monkeypatch.setattr(RunExportState, "build_delta", broken)
    with recording() as taken:
        for name in ("run_bad", "run_good"):
            with taken.recorder.run("wf", run_id=name) as run:
                pass
        proved(taken, run)
        until(lambda: taken.recorder.report().runs_dropped == 1)
        report = taken.recorder.report()
        assert (report.internal_errors, report.runs_delivered) == (1, 1)
    assert any(record.levelno == logging.ERROR and "run_bad" in record.getMessage() for record in caplog.records)


def test_without_a_thread_to_be_had_the_engine_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
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
    """SIGTERM's handler cancels the run while the main thread is anywhere inside the recorder, and nothing locks up."""
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
        until(lambda: len(receiver.posts) > 2)
        process.terminate()
        _, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        spans = [span for post in receiver.posts for span in read_protobuf(post.message.SerializeToString()).spans]
    assert decode(spans).status == "cancelled"


def test_tls_files_that_cannot_be_read_are_told_at_once(tmp_path: Path) -> None:
    """A SettingError when the recorder is made, not a log line while runs pile up."""
    environ = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "https://127.0.0.1:1",
        "OTEL_EXPORTER_OTLP_CERTIFICATE": str(tmp_path / "none.pem"),
    }
    for protocol in ("http/protobuf", "grpc"):
        with pytest.raises(SettingError, match=r"none\.pem|TLS"):
            Recorder(environ=environ, protocol=protocol)


def test_nothing_is_taken_after_the_shutdown() -> None:
    """Runs that begin afterwards are handed out as documents all the same, and send nothing."""
    with recording() as taken:
        taken.recorder.shutdown()
        with taken.recorder.run("wf", run_id="run_1") as run, run.step("a"):
            pass
        assert run.status == "completed"
        assert not run.flush(0.1)
        assert taken.receiver.posts == []


@pytest.mark.parametrize("way", ["environ", "provider"])
def test_a_disabled_sdk_sends_nothing(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """``OTEL_SDK_DISABLED`` turns the sending off, here as in the SDK; the engine and its documents do not mind."""
    if way == "environ":
        recorder = Recorder(environ={"OTEL_SDK_DISABLED": "true"})
    else:
        monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
        recorder = Recorder(provider=TracerProvider(shutdown_on_exit=False))
    with recorder.run("wf") as run, run.step("a"):
        pass
    assert run.document().status == "completed"
    assert recorder.shutdown(WAIT).requests == 0


def test_a_forked_child_keeps_dead_letters_of_its_own(tmp_path: Path) -> None:
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
    """Steps, attempts, heartbeats and documents from eight threads, a third of the requests failing: in the end the
    spans prove the document, and no step was written with two contents."""

    def answer(post: Post) -> Answer:
        return Answer(503) if post.number % 3 == 0 else CLOSE if post.number % 5 == 0 else OK

    config = ExportConfig(
        snapshot_delay=0.001, heartbeat_interval=0.01, retry_initial_delay=0.002, retry_max_delay=0.005
    )
    with recording(answer, export=config, clock=time.time_ns) as taken:

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

        with taken.recorder.run("wf", run_id="run_1") as run:
            threads = [threading.Thread(target=engine, args=(worker,)) for worker in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(WAIT)
        assert len(proved(taken, run)["steps"]) == 320
        contents: dict[bytes, set[str]] = {}
        for span in taken.own:
            contents.setdefault(span.span_id, set()).add(repr((span.start, span.end, span.attributes())))
        assert all(len(found) == 1 for found in contents.values())
        assert len(taken.role("attempt")) == sum(number % 3 + 1 for number in range(40)) * 8
        expected = encode(run.document(), step_ids=[s.span_id for s in _in_order(taken, run)])[-1]
        assert taken.role("run")[0].attributes() == expected.attributes()


def _in_order(taken: Taken, run: Any) -> list[Any]:
    """The step spans as the root's manifest names them."""
    by_id = {span.span_id: span for span in taken.role("step")}
    return [by_id[record.span_id] for record in run.session.record.steps]


def test_a_burst_of_short_runs_is_delivered_whole(caplog: pytest.LogCaptureFixture) -> None:
    """A thousand runs from four threads, all of them there, none twice, few requests."""
    with recording(clock=time.time_ns) as taken:

        def engine(worker: int) -> None:
            for number in range(250):
                with taken.recorder.run("wf", run_id=f"run_{worker}_{number}") as run, run.step("a") as step:
                    step.set_output(number)

        threads = [threading.Thread(target=engine, args=(worker,)) for worker in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAIT)
        assert taken.recorder.flush(WAIT)
        report = taken.recorder.report()
        assert (report.runs_delivered, report.complete) == (1000, True)
        roots = taken.role("run")
        assert len(roots) == len({span.span_id for span in roots}) == 1000
        assert len(taken.receiver.posts) < 300
    assert not caplog.records


def test_health_tells_what_the_recorder_does() -> None:
    """What waits is in the queue while the receiver is away, and is counted as delivered once it is there."""
    up = threading.Event()
    metrics = MetricsRegistry(lambda: 0, parts=("recorder", "export"))
    with recording(lambda post: OK if up.is_set() else Answer(503), metrics=metrics) as taken:
        with taken.recorder.run("wf"):
            pass
        until(lambda: metrics.collect()[RETRIED] > 0)
        before = metrics.collect()
        assert (before[RECORDED], before[EXPORTED], before[QUEUE], before[RECORDER_FAILED]) == (1, 0, 1, 0)
        up.set()
        assert taken.recorder.flush(WAIT)
        after = metrics.collect()
        assert (after[EXPORTED], after[QUEUE], after[RECORDER_FAILED]) == (1, 0, 0)
        assert after[REQUESTS] == taken.recorder.report().requests


def test_health_counts_what_is_given_up() -> None:
    """A run that is dropped because the time to shut down is over is a failure that an alert can see."""
    metrics = MetricsRegistry(lambda: 0, parts=("recorder",))
    with recording(lambda post: Answer(503), metrics=metrics) as taken:
        with taken.recorder.run("wf"):
            pass
        taken.recorder.shutdown(0.05)
        assert metrics.collect()[RECORDER_FAILED] == taken.recorder.report().runs_dropped == 1
