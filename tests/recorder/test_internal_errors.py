"""Errors of the recorder itself: none reaches the engine, and none ends the delivery for the rest of the process."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider

from runspan import Recorder
from runspan.recorder import ExportConfig, FlushResult, worker
from runspan.recorder.outbox import Outbox
from runspan.recorder.worker import ExportWorker, OtlpSink
from runspan.sources import documents
from support.receivers import Answer
from support.recorder import QUICK, WAIT, delivered_document, no_worker_is_left, recording, wait_until


@pytest.fixture(autouse=True)
def _no_thread_is_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(worker, "_ERROR_PAUSE", 0.01)
    yield
    no_worker_is_left()


def failing_thrice(real: Callable[..., Any], error: type[BaseException], *, after: bool = False) -> Callable[..., Any]:
    left = [3]

    def call(*args: Any, **named: Any) -> Any:
        result = real(*args, **named) if after else None
        left[0] -= 1
        if left[0] >= 0:
            raise error
        return result if after else real(*args, **named)

    return call


@pytest.mark.parametrize("error", [MemoryError, SystemExit])
@pytest.mark.parametrize(
    ("owner", "name", "after"),
    [
        (Outbox, "get_due", False),
        (Outbox, "poll", False),
        *[
            (owner, name, after)
            for owner, name in (
                (Outbox, "ack"),
                (Outbox, "finish_round"),
                (OtlpSink, "send"),
                (ExportWorker, "_send"),
                (ExportWorker, "_handle_result"),
                (ExportWorker, "_pause_after"),
            )
            for after in (False, True)
        ],
    ],
)
def test_the_thread_survives_every_error(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    owner: type,
    name: str,
    after: bool,
    error: type[BaseException],
) -> None:
    """Wherever it occurs: it is counted and logged, and the runs arrive."""
    monkeypatch.setattr(owner, name, failing_thrice(getattr(owner, name), error, after=after))
    with recording() as harness:
        for number in range(5):
            with harness.recorder.run("wf", run_id=f"run_{number}") as run, run.step("a"):
                pass
            delivered_document(harness, run)
        assert harness.recorder.flush(WAIT) == FlushResult(5)
        assert harness.recorder.report().internal_errors == 3
    assert caplog.text.count("internal error") >= 3


@pytest.mark.parametrize("error", [ZeroDivisionError, SystemExit])
def test_a_thread_that_ended_is_started_again(monkeypatch: pytest.MonkeyPatch, error: type[BaseException]) -> None:
    """Whatever ended it, with the next run."""
    with recording() as harness:
        with monkeypatch.context() as patch:
            patch.setattr(threading, "excepthook", lambda args: None)
            patch.setattr(ExportWorker, "count_internal_error", failing_thrice(lambda *args: None, error))
            patch.setattr(Outbox, "get_due", failing_thrice(Outbox.get_due, error))
            with harness.recorder.run("wf", run_id="run_1"):
                pass
            thread = wait_until(lambda: harness.recorder._worker._thread)
            thread.join(WAIT)
        with harness.recorder.run("wf", run_id="run_2"):
            pass
        assert harness.recorder.flush(WAIT) == FlushResult(2)


@pytest.mark.parametrize("name", ["mark_dirty", "_register", "_add_ended"])
def test_no_error_reaches_the_engine(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    """Of what an engine's thread does for the export. Its work goes on, and the document is right."""

    def failing(*args: Any) -> None:
        raise ZeroDivisionError

    with recording() as harness:
        with monkeypatch.context() as patch:
            patch.setattr(Outbox, name, failing)
            with harness.recorder.run("wf", run_id="run_1") as run, run.step("a") as step:
                step.set_output(1)
        assert run.document().to_dict()["steps"][0]["output"] == 1
        assert harness.recorder.report().internal_errors > 0
        assert not harness.recorder.report().complete
        with harness.recorder.run("wf", run_id="run_2") as other:
            pass
        assert other.flush(WAIT) == FlushResult(1)
    assert "internal error; " in caplog.text


def test_a_clock_that_fails_costs_a_change_and_nothing_else() -> None:
    """The step of that moment is not in the document; the work and the later steps go on."""
    broken = threading.Event()
    real = iter(range(10**18, 2 * 10**18, 10**6))

    def clock() -> int:
        if broken.is_set():
            raise OSError("no clock")
        return next(real)

    with recording(clock=clock) as harness:
        done = []
        with harness.recorder.run("wf", run_id="run_1") as run:
            for name in "abc":
                if name == "b":
                    broken.set()
                with run.step(name) as step:
                    done.append(step.set_output(1))
                broken.clear()
        assert len(done) == 3
        assert {step["id"] for step in delivered_document(harness, run)["steps"]} >= {"a", "c"}
        assert harness.recorder.report().internal_errors > 0


def test_dead_letters_that_cannot_be_written_are_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The engine's thread that drops a run goes on, and the log says why the document is not kept."""
    folder = tmp_path / "letters"
    folder.mkdir()
    export = ExportConfig(snapshot_delay=0.005, retry_initial_delay=0.02, max_pending_bytes=2000)
    with recording(lambda post: Answer(503), export=export, dead_letter=folder / "left.ndjson") as harness:
        shutil.rmtree(folder)
        for _ in range(5):
            with harness.recorder.run("wf") as run, run.step("a") as step:
                step.set_output("x" * 3000)
        report = harness.recorder.shutdown(0)
        assert (report.runs_dropped, report.runs_dead_lettered) == (5, 0)
    assert caplog.text.count(f"not kept in {folder / 'left.ndjson'}: No such file or directory") == 5


def test_a_shutdown_counts_and_keeps_what_another_thread_gives_up(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The run is in no list any more, and its document is not written yet: also without time the report is right."""
    is_keeping = threading.Event()
    keep = ExportWorker._keep

    def slow(self: ExportWorker, text: bytes) -> tuple[str, str]:
        is_keeping.set()
        time.sleep(0.1)
        return keep(self, text)

    monkeypatch.setattr(ExportWorker, "_keep", slow)
    left = tmp_path / "left.ndjson"
    with recording(lambda post: Answer(400), export=QUICK, dead_letter=left) as harness:
        with harness.recorder.run("wf"):
            pass
        assert is_keeping.wait(WAIT)
        report = harness.recorder.shutdown(0)
        assert (report.runs_dropped, report.runs_dead_lettered) == (1, 1)
        assert len(list(documents(str(left)))) == 1


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_dead_letters_on_a_full_disk_are_reported(caplog: pytest.LogCaptureFixture) -> None:
    with recording(lambda post: Answer(400), dead_letter="/dev/full") as harness:
        with harness.recorder.run("wf"):
            pass
        assert harness.recorder.flush(WAIT).refused == 1
    assert "not kept in /dev/full: No space left on device" in caplog.text


def test_an_error_in_keeping_a_document_drops_the_run_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    left = tmp_path / "left.ndjson"
    with recording(lambda post: Answer(400), dead_letter=left) as harness:
        with monkeypatch.context() as patch:
            patch.setattr(ExportWorker, "_keep", failing_thrice(ExportWorker._keep, ZeroDivisionError))
            for number in range(5):
                with harness.recorder.run("wf", run_id=f"run_{number}"):
                    pass
                harness.recorder.flush(WAIT)
        report = harness.recorder.report()
        assert (report.runs_dropped, report.runs_dead_lettered, report.internal_errors) == (5, 2, 3)
    assert len(list(documents(str(left)))) == 2


def test_a_span_that_cannot_be_encoded_costs_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of other instrumentation: it is counted as dropped, the other spans and the runs arrive."""
    real = worker.encode_spans

    def encode(spans: list[ReadableSpan]) -> Any:
        if any(span.name == "bad" for span in spans):
            raise ZeroDivisionError
        return real(spans)

    monkeypatch.setattr(worker, "encode_spans", encode)
    with recording(export=QUICK) as harness:
        tracer = harness.recorder.tracer_provider.get_tracer("t")
        with harness.recorder.run("wf", run_id="run_1") as run:
            for name in ("good", "bad", "good"):
                with tracer.start_as_current_span(name):
                    pass
        flushed = harness.recorder.flush(WAIT)
        delivered_document(harness, run)
        assert (flushed.delivered, flushed.foreign_spans_dropped, flushed.is_waiting) == (1, 1, False)
        assert [span.name for span in harness.foreign_spans] == ["good", "good"]


def test_a_queue_that_fails_does_not_reach_instrumented_code(monkeypatch: pytest.MonkeyPatch) -> None:
    with recording() as harness:
        tracer = harness.recorder.tracer_provider.get_tracer("t")
        monkeypatch.setattr(Outbox, "add_foreign_span", failing_thrice(Outbox.add_foreign_span, ZeroDivisionError))
        for _ in range(4):
            with tracer.start_as_current_span("GET"):
                pass
        harness.recorder.flush(WAIT)
        assert (len(harness.foreign_spans), harness.recorder.report().internal_errors) == (1, 3)


def test_a_span_processor_that_exits_ends_no_delivery() -> None:
    """A processor of the given provider may raise anything, also in the recorder's thread."""
    seen: list[str] = []

    class Exiting(SpanProcessor):
        def on_end(self, span: ReadableSpan) -> None:
            seen.append(span.name)
            if len(seen) <= 3:
                raise SystemExit

    provider = TracerProvider()
    provider.add_span_processor(Exiting())
    recorder = Recorder(provider=provider, export=QUICK)
    with recorder.run("wf", run_id="run_1") as run, run.step("a"):
        pass
    assert recorder.flush(WAIT) == FlushResult(1)
    recorder.shutdown(WAIT)
    assert len(seen) > 3
