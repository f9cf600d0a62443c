"""What is current in threads, tasks and generators, spans of other instrumentation, and calls between services."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any

import pytest
from opentelemetry import baggage, context, propagate, trace

import runspan
from runspan.codec.fields import ROLE
from runspan.recorder import StepRecording
from runspan.telemetry import MetricsRegistry
from runspan.telemetry.registry import WITHOUT_RUN
from support.recorder import WAIT, Harness, delivered_document, recording


@pytest.fixture
def harness() -> Iterator[Harness]:
    before = context.get_current()
    with recording() as found:
        yield found
    assert context.get_current() == before, "something is still current"


def parent_of(name: str, harness: Harness) -> bytes:
    """Return the parent of the only foreign span of that name."""
    assert harness.recorder.flush(WAIT)
    (span,) = [span for span in harness.foreign_spans if span.name == name]
    return bytes(span.parent_span_id)


def test_spans_of_other_instrumentation_nest_below_step_attempt_and_run(harness: Harness) -> None:
    """A span of another tracer is a child of the step, attempt or run inside which it began."""
    tracer = harness.recorder.tracer_provider.get_tracer("http client")
    with harness.recorder.run("wf", run_id="run_1") as run:
        with tracer.start_as_current_span("in the run"):
            pass
        with run.step("call") as step:
            with tracer.start_as_current_span("GET"), tracer.start_as_current_span("below GET"):
                pass
            with step.attempt(), tracer.start_as_current_span("in the attempt"):
                pass
    delivered_document(harness, run)
    spans = {span.name: span for span in harness.foreign_spans}
    assert {bytes(span.trace_id) for span in spans.values()} == {run.trace_id}
    (root,) = harness.with_role("run")
    (attempt,) = harness.with_role("attempt")
    assert bytes(spans["in the run"].parent_span_id) == root.span_id
    assert bytes(spans["GET"].parent_span_id) == harness.step_span("call").span_id
    assert bytes(spans["below GET"].parent_span_id) == bytes(spans["GET"].span_id)
    assert bytes(spans["in the attempt"].parent_span_id) == attempt.span_id
    assert all(span.attributes().get(ROLE) for span in harness.spans)
    assert harness.recorder.report().foreign_spans_sent == 4
    assert harness.recorder.report().foreign_spans_pending == 0


def test_steps_in_threads_have_the_run_for_parent(harness: Harness) -> None:
    """Steps that begin in the threads of a pool belong to the run, overlap, and have their own nested spans."""
    tracer = harness.recorder.tracer_provider.get_tracer("t")
    together = threading.Barrier(3)

    def work(number: int) -> None:
        with run.step(f"s{number}"), tracer.start_as_current_span(f"inner {number}"):
            together.wait(WAIT)

    with harness.recorder.run("wf", run_id="run_1") as run, ThreadPoolExecutor(3) as pool:
        list(pool.map(work, range(3)))
    delivered_document(harness, run)
    (root,) = harness.with_role("run")
    for number in range(3):
        step = harness.step_span(f"s{number}")
        assert step.parent_id == root.span_id
        assert parent_of(f"inner {number}", harness) == step.span_id


def test_a_new_thread_has_no_current_run(harness: Harness) -> None:
    """``recorder.step`` in a thread without context records nothing; inside ``run.active()`` or a copied context it
    records a step of the run."""
    numbers: list[int] = []
    with harness.recorder.run("wf", run_id="run_1") as run:

        def bare(name: str) -> None:
            with harness.recorder.step(name) as step:
                step.set_output(1).set_usage(prompt_tokens=1).fail("x").retry("y")
                with step.attempt() as number:
                    numbers.append(number)

        def active() -> None:
            with run.active():
                bare("active")

        copied = contextvars.copy_context()
        for target in (lambda: bare("lost"), active, lambda: copied.run(bare, "copied")):
            thread = threading.Thread(target=target)
            thread.start()
            thread.join(WAIT)
    assert [step["id"] for step in delivered_document(harness, run)["steps"]] == ["active", "copied"]
    assert numbers == [1, 2, 2]  # in the run, ``retry`` was the first


def test_a_propagating_executor_keeps_run_and_step(harness: Harness) -> None:
    """Each call has the context of its submitter, whatever thread it runs in and whatever ran there before."""
    tracer = harness.recorder.tracer_provider.get_tracer("t")

    @harness.recorder.step("work")
    def work(number: int) -> int:
        with tracer.start_as_current_span(f"inner {number}"):
            return number

    def outside() -> object:
        return harness.recorder.current_run

    with runspan.propagate(ThreadPoolExecutor(1)) as pool:
        with harness.recorder.run("wf", run_id="run_1") as run, run.step("outer"):
            assert list(pool.map(work, range(2))) == [0, 1]
            assert pool.submit(work, number=2).result(WAIT) == 2

            async def main() -> None:
                assert await asyncio.get_running_loop().run_in_executor(pool, work, 3) == 3

            asyncio.run(main())
        assert pool.submit(outside).result(WAIT) is None
    with pytest.raises(RuntimeError):
        pool.submit(outside)
    steps = delivered_document(harness, run)["steps"]
    assert [step["id"] for step in steps] == ["outer"] + ["work"] * 4
    assert {step["status"] for step in steps} == {"completed"}
    works = [span.span_id for span in harness.with_role("step") if span.attributes()["runspan.step.id"] == "work"]
    assert {parent_of(f"inner {number}", harness) for number in range(4)} == set(works)
    assert harness.recorder.report().steps_without_run == 0


def test_an_executor_of_processes_is_refused() -> None:
    """No context can be sent to another process."""
    with ProcessPoolExecutor(1) as pool, pytest.raises(runspan.ConfigError, match=r"threads .*headers"):
        runspan.propagate(pool)


def test_steps_without_a_run_are_logged_once_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    """A step in a pool of threads, a decorated call and a step outside any run are counted; only the first is logged.

    A step that is made and does not begin is none of them.
    """
    metrics = MetricsRegistry(lambda: 0, ("recorder",))
    with recording(metrics=metrics) as harness:

        @harness.recorder.step("decorated")
        def decorated() -> int:
            return 1

        def pooled() -> None:
            with harness.recorder.step("pooled"):
                pass

        assert metrics.collect()[WITHOUT_RUN] == 0
        with harness.recorder.run("wf") as run, ThreadPoolExecutor(1, "worker") as pool:
            pool.submit(pooled).result(WAIT)
            decorated()
        assert decorated() == 1
        with harness.recorder.step("alone").start() as step:  # begins once
            step.set_output(1)
        harness.recorder.step("never begins")
        assert [step["id"] for step in delivered_document(harness, run)["steps"]] == ["decorated"]
        report = harness.recorder.report()
        assert metrics.collect()[WITHOUT_RUN] == report.steps_without_run == 3
        assert report.complete
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "step 'pooled' in thread 'worker_0' is not recorded" in record.getMessage()


def test_the_current_step_has_the_current_run(harness: Harness) -> None:
    """Also if only the step is active, and if it belongs to another run than the one around it."""
    recorder = harness.recorder
    run = recorder.run("wf", run_id="run_1").start()
    other = recorder.run("wf", run_id="run_2").start()
    step = run.step("a")
    with step:
        assert (recorder.current_run, recorder.current_step) == (run, step)
        with step.attempt():
            assert (recorder.current_run, recorder.current_step) == (run, step)
    begun = run.step("b").start()
    with other.active(), begun.active():
        assert (recorder.current_run, recorder.current_step) == (run, begun)
        with recorder.step("c"):
            assert recorder.current_run is run
    run.end()
    other.end()
    assert [item["id"] for item in delivered_document(harness, run)["steps"]] == ["a", "b", "c"]


def test_the_error_of_a_task_group_names_the_steps_that_failed(harness: Harness) -> None:
    """The group's message lists its exceptions with their steps, and the run's error has the first of these."""

    async def main() -> None:
        async def work(name: str) -> None:
            async with harness.recorder.step(name):
                if name != "good":
                    raise LookupError(f"no {name}")

        recorder = harness.recorder
        async with recorder.run("wf", run_id="run_1"), recorder.step("fan-out"), asyncio.TaskGroup() as group:
            for name in ("good", "bad", "worse"):
                group.create_task(work(name))

    with pytest.raises(ExceptionGroup):
        asyncio.run(main())
    assert harness.recorder.flush(WAIT)
    document = harness.document("run_1").to_dict()
    message = (
        "unhandled errors in a TaskGroup (2 sub-exceptions)"
        "; LookupError: no bad (step bad); LookupError: no worse (step worse)"
    )
    assert document["error"] == {"code": "ExceptionGroup", "message": message, "step": "bad"}
    assert [step["error"]["step"] for step in document["steps"] if "error" in step] == ["fan-out", "bad", "worse"]
    assert document["steps"][0]["error"]["message"] == message


def test_the_error_of_a_run_names_no_step_of_another_run(harness: Harness) -> None:
    """The step of a child run is not one of the run around it."""
    with (
        pytest.raises(ValueError, match="inside"),
        harness.recorder.run("wf", run_id="run_1") as run,
        harness.recorder.run("wf", run_id="run_2") as child,
        child.step("a"),
    ):
        raise ValueError("inside")
    assert delivered_document(harness, child)["error"] == {"code": "ValueError", "message": "inside", "step": "a"}
    assert delivered_document(harness, run)["error"] == {"code": "ValueError", "message": "inside"}


def test_asyncio_tasks_have_their_own_current_step(harness: Harness) -> None:
    """Steps of interleaved tasks do not see each other, and spans nest below the right one."""
    tracer = harness.recorder.tracer_provider.get_tracer("t")

    async def work(number: int, turns: asyncio.Barrier) -> None:
        async with harness.recorder.step(f"s{number}") as step:
            await turns.wait()
            assert harness.recorder.current_step is step
            with tracer.start_as_current_span(f"inner {number}"):
                await turns.wait()
            await turns.wait()

    async def main() -> Any:
        turns = asyncio.Barrier(3)
        async with harness.recorder.run("wf", run_id="run_1") as run, asyncio.TaskGroup() as group:
            for number in range(3):
                group.create_task(work(number, turns))
        return run

    run = asyncio.run(main())
    assert [step["status"] for step in delivered_document(harness, run)["steps"]] == ["completed"] * 3
    for number in range(3):
        assert parent_of(f"inner {number}", harness) == harness.step_span(f"s{number}").span_id


def test_a_cancelled_task_cancels_its_run(harness: Harness) -> None:
    """CancelledError is raised; the step failed with the code CANCELLED, and the run is cancelled."""

    async def main() -> Any:
        begun = asyncio.Event()
        made = []

        async def engine() -> None:
            async with harness.recorder.run("wf", run_id="run_1") as run, run.step("wait"):
                made.append(run)
                begun.set()
                await asyncio.Event().wait()

        task = asyncio.create_task(engine())
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return made[0]

    document = delivered_document(harness, asyncio.run(main()))
    assert document["status"] == "cancelled"
    assert document["steps"][0]["error"]["code"] == "CANCELLED"


# Decorators.


def test_decorated_functions_record_arguments_and_result(harness: Harness) -> None:
    """In plain functions, coroutines and methods; what the function sets itself takes precedence."""
    recorder = harness.recorder

    class Steps:
        @recorder.step("method", type="action")
        def method(self, a: int, *rest: int, b: int = 2) -> int:
            return a + b

    @recorder.step("own")
    def own(secret: str) -> str:
        recorder.current_step.set_input("hidden").set_output("set")
        return secret

    @recorder.step("quiet", capture_input=False, capture_output=False)
    async def quiet(secret: str) -> str:
        return secret

    @recorder.run("wf", trigger="api")
    async def engine(order: dict[str, int]) -> int:
        own("s3cret")
        await quiet("s3cret")
        run = recorder.current_run
        assert run is not None
        runs.append(run)
        return Steps().method(order["a"], 7)

    runs: list[Any] = []
    assert asyncio.run(engine({"a": 1})) == 3
    assert asyncio.run(engine({"a": 2})) == 4
    assert recorder.current_run is None
    first, second = [delivered_document(harness, run) for run in runs]
    assert first["id"] != second["id"]
    assert (first["input"], first["output"]) == ({"order": {"a": 1}}, 3)
    assert [(step["id"], step.get("input"), step.get("output")) for step in first["steps"]] == [
        ("own", "hidden", "set"),
        ("quiet", None, None),
        ("method", {"a": 1, "rest": [7]}, 3),
    ]
    assert b"s3cret" not in runs[0].document().text
    assert engine.__name__ == "engine"


def test_a_wrong_call_fails_as_without_the_decorator(harness: Harness) -> None:
    """A call with wrong arguments raises the function's TypeError, and the step fails with it."""

    @harness.recorder.step("a")
    def function(x: int) -> None:
        raise AssertionError(x)

    with harness.recorder.run("wf", run_id="run_1") as run, pytest.raises(TypeError, match="missing"):
        function()  # type: ignore[call-arg]
    assert delivered_document(harness, run)["steps"][0]["error"]["code"] == "TypeError"


def test_a_generator_is_current_only_while_it_runs(harness: Harness) -> None:
    """Between items the caller's step is current; the step lasts to the end; ``send`` and ``throw`` are passed on."""
    tracer = harness.recorder.tracer_provider.get_tracer("t")

    @harness.recorder.step("stream")
    def stream(count: int) -> Iterator[int]:
        for number in range(count):
            with tracer.start_as_current_span(f"inner {number}"):
                pass
            try:
                got = yield number
                assert got == f"sent {number}"
            except LookupError:
                yield -1
        return "done"

    with harness.recorder.run("wf", run_id="run_1") as run:
        items = stream(3)
        assert next(items) == 0  # type: ignore[call-overload]
        with run.step("outer") as outer:
            assert items.send("sent 0") == 1  # type: ignore[attr-defined]
            assert harness.recorder.current_step is outer
            with tracer.start_as_current_span("outside"):
                pass
        assert items.throw(LookupError()) == -1  # type: ignore[attr-defined]
        assert next(items) == 2  # type: ignore[call-overload]
        with pytest.raises(StopIteration):
            items.send("sent 2")  # type: ignore[attr-defined]
    document = delivered_document(harness, run)
    assert [(step["id"], step["status"], step.get("output")) for step in document["steps"]] == [
        ("stream", "completed", "done"),
        ("outer", "completed", None),
    ]
    assert parent_of("inner 1", harness) == harness.step_span("stream").span_id
    assert parent_of("outside", harness) == harness.step_span("outer").span_id


def test_a_generator_that_fails_or_is_closed_early(harness: Harness) -> None:
    """An exception inside fails the step; a generator that is closed early is completed."""

    @harness.recorder.step("stream")
    def stream(fails: bool) -> Iterator[int]:
        yield 1
        if fails:
            raise ValueError("broken")
        yield 2

    with harness.recorder.run("wf", run_id="run_1") as run:
        with pytest.raises(ValueError, match="broken"):
            list(stream(True))
        left = stream(False)
        next(left)
        left.close()  # type: ignore[attr-defined]
    assert [step["status"] for step in delivered_document(harness, run)["steps"]] == ["failed", "completed"]


def test_asynchronous_generators(harness: Harness) -> None:
    """They are recorded like others, closed early or not, and leave nothing current."""

    @harness.recorder.step("stream")
    async def stream(count: int) -> AsyncIterator[int]:
        for number in range(count):
            await asyncio.sleep(0)
            assert isinstance(harness.recorder.current_step, StepRecording)
            yield number

    async def main() -> Any:
        async with harness.recorder.run("wf", run_id="run_1") as run:
            assert [item async for item in stream(3)] == [0, 1, 2]
            left = stream(3)
            assert await anext(left) == 0
            assert harness.recorder.current_run is run
            await left.aclose()  # type: ignore[attr-defined]
        return run

    assert [step["status"] for step in delivered_document(harness, asyncio.run(main()))["steps"]] == ["completed"] * 2


def test_blocks_that_end_in_another_order_leave_nothing_current(harness: Harness) -> None:
    """Steps held open by the engine's own generators, and steps that overlap, restore the context."""
    with harness.recorder.run("wf", run_id="run_1") as run:

        def held(name: str) -> Iterator[None]:
            with run.step(name):
                yield

        first, second = held("first"), held("second")
        next(first)
        next(second)
        first.close()  # type: ignore[attr-defined]
        assert harness.recorder.current_step.status == "running"
        second.close()  # type: ignore[attr-defined]
        assert harness.recorder.current_run is run
        one, two = run.step("one"), run.step("two")
        one.__enter__()
        two.__enter__()
        one.__exit__(None, None, None)
        two.__exit__(None, None, None)
        assert trace.get_current_span().get_span_context().span_id == int.from_bytes(run.record.root_id, "big")
    assert [step["status"] for step in delivered_document(harness, run)["steps"]] == ["completed"] * 4


# Between services.


def test_headers_carry_step_and_run_to_the_service_that_is_called(harness: Harness) -> None:
    """The called run has the caller as its parent and links to the step that called."""
    with harness.recorder.run("caller", run_id="run ü") as run, run.step("call") as step:
        headers = harness.recorder.headers({"accept": "application/json"})
        step_id = step.span_id
        assert baggage.get_baggage("runspan.run.id") == "run ü"
        stock: dict[str, str] = {}
        propagate.inject(stock)
        assert stock.items() <= headers.items()
    assert headers["accept"] == "application/json"
    assert headers["traceparent"] == f"00-{run.trace_id.hex()}-{step_id.hex()}-01"
    called = harness.recorder.run(
        "callee", run_id="run_2", headers={key.title(): text for key, text in headers.items()}
    )
    with called:
        pass
    document = delivered_document(harness, called)
    assert document["parentRunId"] == "run ü"
    assert document["traceparent"] == headers["traceparent"]
    (root,) = [span for span in harness.spans_of("run_2") if span.attributes()[ROLE] == "run"]
    assert [(link.trace_id, link.span_id) for link in root.links] == [(run.trace_id, step_id)]
    assert root.attributes()["runspan.parent.run.id"] == "run ü"


def test_a_run_links_to_the_request_that_started_it(harness: Harness) -> None:
    """Without headers the link is to the current span, of a web framework for example. Snapshots have it too."""
    tracer = harness.recorder.tracer_provider.get_tracer("web")
    with tracer.start_as_current_span("POST /orders") as request, harness.recorder.run("wf", run_id="run_1") as run:
        assert run.flush(WAIT)
    delivered_document(harness, run)
    span = request.get_span_context()
    expected = [(span.trace_id.to_bytes(16, "big"), span.span_id.to_bytes(8, "big"))]
    revisions = [span for span in harness.spans if span.attributes()[ROLE] in ("run", "revision")]
    assert len(revisions) > 1
    assert all([(link.trace_id, link.span_id) for link in span.links] == expected for span in revisions)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"traceparent": "00-malformed"},
        {"traceparent": f"00-{'0' * 32}-{'1' * 16}-01"},
        {"baggage": "runspan.run.id=run_1"},
    ],
)
def test_headers_without_a_caller_give_no_link(harness: Harness, headers: dict[str, str]) -> None:
    """Malformed or empty headers have no caller, and no run is its own parent."""
    with harness.recorder.run("wf", run_id="run_1", headers=headers) as run:
        pass
    assert set(delivered_document(harness, run)) == {
        *("id", "workflowId", "status", "startedAt", "completedAt", "durationMs", "createdAt", "steps")
    }
    assert not harness.with_role("run")[0].links


def test_a_run_never_links_into_its_own_trace(harness: Harness) -> None:
    """A request that comes from the run's own trace is no caller."""
    trace_id = harness.recorder.run("wf", run_id="run_1").trace_id.hex()
    with harness.recorder.run("wf", run_id="run_1", headers={"traceparent": f"00-{trace_id}-{'1' * 16}-01"}) as run:
        pass
    assert "traceparent" not in delivered_document(harness, run)
