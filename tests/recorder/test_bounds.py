"""Memory is bounded whatever is recorded; ends after the shutdown are reported; forks at any moment are safe."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from runspan import Run
from runspan.recorder import ExportConfig, RunRecording
from runspan.recorder.outbox import Counters, Outbox
from runspan.recorder.state import RunRecord
from runspan.sources import documents
from support.receivers import Answer, http_receiver
from support.recorder import WAIT, no_worker_is_left, recording

BIG = "x" * 100_000


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    no_worker_is_left()


def script(body: str, *args: str) -> str:
    """Run a script in a Python process that must succeed, and return its output."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(body), *args], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# The bound on memory.

RECORDED: dict[str, Callable[[RunRecording], Any]] = {
    "run input": lambda run: run.set_input(BIG),
    "run output": lambda run: run.set_output(BIG),
    "run error": lambda run: run.end(BIG),
    "step id": lambda run: run.step(BIG).start(),
    "step name": lambda run: run.step("a", name=BIG).start(),
    "step type": lambda run: run.step("a", type=BIG).start(),
    "step input": lambda run: run.step("a", input=BIG).start(),
    "step output": lambda run: run.step("a").start().set_output(BIG),
    "step error": lambda run: run.step("a").start().end(BIG),
    "usage": lambda run: run.step("a").start().set_usage(model=BIG),
    "child": lambda run: run.step("a").start().set_child(BIG),
    "retry policy": lambda run: run.step("a", retry={"why": BIG}).start(),
    "extra of a step": lambda run: run.step("a", extra={"more": BIG}).start(),
    "attempt": lambda run: run.step("a").start().retry(BIG).end(),
    "planned": lambda run: run.plan("a", name=BIG),
}


@pytest.mark.parametrize("what", RECORDED)
def test_everything_recorded_counts_as_pending_bytes(what: str) -> None:
    """Each member by itself, before and after a snapshot, and from a checkpoint."""
    with recording(export=ExportConfig(snapshot_delay=60)) as harness:
        run = harness.recorder.run("wf").start()
        RECORDED[what](run)
        assert run.record.estimated_size() > len(BIG)
        run.document()
        assert run.record.estimated_size() > len(BIG)
        if what != "run error":
            again = harness.recorder.resume(run.checkpoint())
            assert again.record.estimated_size() > len(BIG)


def test_arguments_of_a_run_count_as_pending_bytes() -> None:
    """Extra members, workflow id and trigger."""
    with recording(export=ExportConfig(snapshot_delay=60)) as harness:
        assert harness.recorder.run("wf", extra={"more": BIG}).start().record.estimated_size() > len(BIG)
        assert harness.recorder.run(BIG).start().record.estimated_size() > len(BIG)
        assert harness.recorder.run("wf", trigger=BIG).start().record.estimated_size() > len(BIG)


def test_errors_do_not_fill_the_memory() -> None:
    """While the receiver is down and steps fail with large errors, the oldest runs are dropped and counted."""
    config = ExportConfig(
        snapshot_delay=0.005, retry_initial_delay=0.02, retry_max_delay=0.02, max_pending_bytes=5 * len(BIG)
    )
    with recording(lambda post: Answer(503), export=config) as harness:
        for _ in range(40):
            with harness.recorder.run("wf") as run:
                run.step("http").start().end({"code": "HTTP", "message": BIG})
        report = harness.recorder.report()
        # As much again may be in flight, and the run that ended last.
        assert report.bytes_pending <= 11 * (len(BIG) + 5000)
        assert report.runs_dropped >= 40 - 11


def test_runs_that_return_from_a_failed_try_are_bounded_too() -> None:
    """Runs in flight are not included in the bound; when they fail, the oldest of all runs are dropped, and no more."""
    dropped: list[str] = []
    counters = Counters()
    outbox = Outbox(
        counters,
        ExportConfig(max_pending_bytes=3 * len(BIG) + 10_000),
        lambda: 1000.0,
        lambda: None,
        lambda state, reason: dropped.append(state.record.id),
    )

    def end(run_id: str) -> None:
        record = RunRecord(
            run_id, "wf", "", clock=lambda: 1, precision=1, count=counters.add, on_change=outbox.mark_dirty
        )
        outbox.register(record)
        record.output = BIG.encode()
        record.change(lambda: setattr(record, "status", "completed"), status=True)

    for number in range(3):
        end(f"sent_{number}")
    due = outbox.get_due()
    assert due is not None
    states, _ = due
    assert len(states) == 3
    for number in range(3):
        end(f"new_{number}")
    assert dropped == []
    for state in states:
        outbox.retry_later(state, 1.0)
    outbox.finish_round()
    assert dropped == ["sent_0", "sent_1", "sent_2"]
    assert outbox.backlog()["bytes_pending"] <= outbox.config.max_pending_bytes


# After the end.


def dead_lettered(path: Path) -> list[tuple[str, str]]:
    """Return ids and statuses of the documents in a dead letter file."""
    return [(run.id, str(run.status)) for run in documents(str(path)) if isinstance(run, Run)]


def test_runs_that_end_after_the_shutdown_are_reported_and_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Whether they began before or after it: they are counted, logged, and written to the dead dead_letters."""
    dead_letters = tmp_path / "left.ndjson"
    with recording(dead_letter=dead_letters) as harness:
        late = harness.recorder.run("wf", run_id="late").start()
        assert late.flush(WAIT)
        report = harness.recorder.shutdown(WAIT)
        assert (report.runs_dropped, report.complete) == (0, True)
        late.set_output(1).end()
        with harness.recorder.run("wf", run_id="after") as after:
            pass
        report = harness.recorder.report()
        assert (report.runs_started, report.runs_ended, report.runs_dropped, report.runs_dead_lettered) == (2, 2, 2, 2)
        assert (report.runs_pending, report.bytes_pending, report.complete) == (0, 0, False)
        assert not late.flush(0)
        assert not after.flush(0)
        assert dead_lettered(dead_letters) == [("late", "completed"), ("after", "completed")]
    for name in ("late", "after"):
        assert f"run {name} is not delivered: it ended after the shutdown; kept in {dead_letters}" in caplog.text


def test_a_run_that_was_given_up_unfinished_is_kept_again_at_its_end(tmp_path: Path) -> None:
    """Its documents at the shutdown and at its end are kept, and it counts once."""
    dead_letters = tmp_path / "left.ndjson"
    with recording(lambda post: Answer(503), dead_letter=dead_letters) as harness:
        run = harness.recorder.run("wf", run_id="run_1").start()
        assert harness.recorder.shutdown(0.05).runs_dropped == 1
        run.end()
        report = harness.recorder.report()
        assert (report.runs_ended, report.runs_dropped, report.runs_dead_lettered) == (1, 1, 1)
    assert dead_lettered(dead_letters) == [("run_1", "running"), ("run_1", "completed")]


def test_a_disabled_recorder_leaves_no_dead_letters(tmp_path: Path) -> None:
    """With OpenTelemetry disabled there is no file and no count, in a forked child neither."""
    body = """
        import os, sys
        from runspan import Recorder
        environ = {"OTEL_SDK_DISABLED": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": sys.argv[1]}
        recorder = Recorder(environ=environ, dead_letter=sys.argv[2])
        child = os.fork()
        with recorder.run("wf"):
            pass
        report = recorder.shutdown(20)
        assert report.complete and report.runs_started == 0, report
        with recorder.run("wf"):
            pass
        assert recorder.report().complete
        if not child:
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
    """
    with http_receiver() as receiver:
        script(body, receiver.url, str(tmp_path / "left.ndjson"))
        assert receiver.posts == []
    assert list(tmp_path.iterdir()) == []


# A fork at any moment.


def test_the_workers_thread_imports_nothing() -> None:
    """A fork during an import would leave the child with a lock on that module that is never released.

    The receiver accepts the spans, rejects them, or does not exist, with and without TLS. Each case is a process that
    has imported the package and nothing else.
    """
    body = """
        import os, sys
        from runspan import Recorder
        from runspan.recorder import ExportConfig
        config = ExportConfig(snapshot_delay=0.001, retry_initial_delay=0.01, retry_max_delay=0.01)
        for endpoint in sys.argv[1:]:
            child = os.fork()
            if child:
                assert os.waitpid(child, 0)[1] == 0, endpoint
                continue
            recorder = Recorder(endpoint=endpoint, export=config)
            before = set(sys.modules)
            with recorder.run("wf") as run, run.step("a", type="agent") as step:
                step.set_output(1).set_usage(prompt_tokens=1)
            is_delivered = recorder.flush(20 if endpoint == sys.argv[1] else 0.5)
            assert bool(is_delivered) == (endpoint == sys.argv[1])
            assert recorder.shutdown(0).requests
            assert set(sys.modules) == before, set(sys.modules) - before
            os._exit(0)
    """
    with http_receiver() as accepting, http_receiver(lambda post: Answer(503)) as failing:
        script(body, accepting.url, failing.url, "http://localhost:9", "https://localhost:9")


def test_children_of_a_busy_process_deliver() -> None:
    """A web server that loads its application first forks while the first runs are being sent."""
    body = """
        import os, sys, threading
        from runspan import Recorder
        recorder = Recorder(endpoint=sys.argv[1])
        with recorder.run("wf", run_id="parent"):
            pass
        children = []
        for number in range(8):
            child = os.fork()
            if not child:
                with recorder.run("wf", run_id=f"child_{number}") as run, run.step("a"):
                    pass
                os._exit(0 if recorder.shutdown(60).complete else 1)
            children.append(child)
        assert [os.waitpid(child, 0)[1] for child in children] == [0] * 8
        assert recorder.shutdown(60).complete
    """
    with http_receiver() as receiver:
        script(body, receiver.url)
