"""What is current where: threads, tasks, generators, other people's spans, and calls between services."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from opentelemetry import baggage, context, propagate, trace

from runspan.codec.fields import ROLE
from runspan.recorder import StepRecording
from support.recorder import WAIT, Taken, proved, recording


@pytest.fixture
def taken() -> Iterator[Taken]:
    before = context.get_current()
    with recording() as found:
        yield found
    assert context.get_current() == before, "something stayed current"


def parent_of(name: str, taken: Taken) -> bytes:
    """The parent of the only foreign span of that name."""
    assert taken.recorder.flush(WAIT)
    (span,) = [span for span in taken.foreign if span.name == name]
    return bytes(span.parent_span_id)


def test_spans_of_other_instrumentation_nest_below_step_attempt_and_run(taken: Taken) -> None:
    """A stock tracer's span inside a step is a child of the step's span, in the run's trace, and so on outwards."""
    tracer = taken.recorder.tracer_provider.get_tracer("http client")
    with taken.recorder.run("wf", run_id="run_1") as run:
        with tracer.start_as_current_span("in the run"):
            pass
        with run.step("call") as step:
            with tracer.start_as_current_span("GET"), tracer.start_as_current_span("below GET"):
                pass
            with step.attempt(), tracer.start_as_current_span("in the attempt"):
                pass
    proved(taken, run)
    spans = {span.name: span for span in taken.foreign}
    assert {bytes(span.trace_id) for span in spans.values()} == {run.trace_id}
    (root,) = taken.role("run")
    (attempt,) = taken.role("attempt")
    assert bytes(spans["in the run"].parent_span_id) == root.span_id
    assert bytes(spans["GET"].parent_span_id) == taken.step("call").span_id
    assert bytes(spans["below GET"].parent_span_id) == bytes(spans["GET"].span_id)
    assert bytes(spans["in the attempt"].parent_span_id) == attempt.span_id
    assert all(span.attributes().get(ROLE) for span in taken.own)
    assert taken.recorder.report().foreign_spans_sent == 4
    assert taken.recorder.report().foreign_spans_pending == 0


def test_steps_in_threads_have_the_run_for_parent(taken: Taken) -> None:
    """Steps begun in a pool's threads are the run's, overlap, and their spans nest each below its own step."""
    tracer = taken.recorder.tracer_provider.get_tracer("t")
    together = threading.Barrier(3)

    def work(number: int) -> None:
        with run.step(f"s{number}"), tracer.start_as_current_span(f"inner {number}"):
            together.wait(WAIT)

    with taken.recorder.run("wf", run_id="run_1") as run, ThreadPoolExecutor(3) as pool:
        list(pool.map(work, range(3)))
    proved(taken, run)
    (root,) = taken.role("run")
    for number in range(3):
        step = taken.step(f"s{number}")
        assert step.parent_id == root.span_id
        assert parent_of(f"inner {number}", taken) == step.span_id


def test_a_bare_thread_knows_no_run_until_it_is_made_current(taken: Taken) -> None:
    """``recorder.step`` in a thread without context records nothing; inside ``run.active()`` or a copied context it is
    the run's."""
    numbers: list[int] = []
    with taken.recorder.run("wf", run_id="run_1") as run:

        def bare(name: str) -> None:
            with taken.recorder.step(name) as step:
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
    assert [step["id"] for step in proved(taken, run)["steps"]] == ["active", "copied"]
    assert numbers == [1, 2, 2]  # in the run, ``retry`` was the first


def test_asyncio_tasks_have_their_own_current_step(taken: Taken) -> None:
    """Steps of tasks that run by turns do not see each other, and spans nest below the right one."""
    tracer = taken.recorder.tracer_provider.get_tracer("t")

    async def work(number: int, turns: asyncio.Barrier) -> None:
        async with taken.recorder.step(f"s{number}") as step:
            await turns.wait()
            assert taken.recorder.current_step is step
            with tracer.start_as_current_span(f"inner {number}"):
                await turns.wait()
            await turns.wait()

    async def main() -> Any:
        turns = asyncio.Barrier(3)
        async with taken.recorder.run("wf", run_id="run_1") as run, asyncio.TaskGroup() as group:
            for number in range(3):
                group.create_task(work(number, turns))
        return run

    run = asyncio.run(main())
    assert [step["status"] for step in proved(taken, run)["steps"]] == ["completed"] * 3
    for number in range(3):
        assert parent_of(f"inner {number}", taken) == taken.step(f"s{number}").span_id


def test_a_cancelled_task_cancels_its_run(taken: Taken) -> None:
    """CancelledError goes on; the step failed with the code CANCELLED, the run is cancelled."""

    async def main() -> Any:
        begun = asyncio.Event()
        made = []

        async def engine() -> None:
            async with taken.recorder.run("wf", run_id="run_1") as run, run.step("wait"):
                made.append(run)
                begun.set()
                await asyncio.Event().wait()

        task = asyncio.create_task(engine())
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return made[0]

    document = proved(taken, asyncio.run(main()))
    assert document["status"] == "cancelled"
    assert document["steps"][0]["error"]["code"] == "CANCELLED"


# Decorators.


def test_decorated_functions_tell_arguments_and_result(taken: Taken) -> None:
    """Run and steps of plain, coroutine and method functions; what the function tells itself goes first."""
    recorder = taken.recorder

    class Steps:
        @recorder.step("method", type="action")
        def method(self, a: int, *rest: int, b: int = 2) -> int:
            return a + b

    @recorder.step("own")
    def own(secret: str) -> str:
        recorder.current_step.set_input("hidden").set_output("told")
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
    first, second = [proved(taken, run) for run in runs]
    assert first["id"] != second["id"]
    assert (first["input"], first["output"]) == ({"order": {"a": 1}}, 3)
    assert [(step["id"], step.get("input"), step.get("output")) for step in first["steps"]] == [
        ("own", "hidden", "told"),
        ("quiet", None, None),
        ("method", {"a": 1, "rest": [7]}, 3),
    ]
    assert b"s3cret" not in runs[0].document().text
    assert engine.__name__ == "engine"


def test_a_wrong_call_fails_as_without_the_decorator(taken: Taken) -> None:
    """A call that the function does not take raises its own TypeError, and the step says so."""

    @taken.recorder.step("a")
    def function(x: int) -> None:
        raise AssertionError(x)

    with taken.recorder.run("wf", run_id="run_1") as run, pytest.raises(TypeError, match="missing"):
        function()  # type: ignore[call-arg]
    assert proved(taken, run)["steps"][0]["error"]["code"] == "TypeError"


def test_a_generator_is_current_only_while_it_works(taken: Taken) -> None:
    """Between its items the caller's step is current, the step lasts to the end, and ``send`` and ``throw`` go in."""
    tracer = taken.recorder.tracer_provider.get_tracer("t")

    @taken.recorder.step("stream")
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

    with taken.recorder.run("wf", run_id="run_1") as run:
        items = stream(3)
        assert next(items) == 0  # type: ignore[call-overload]
        with run.step("outer") as outer:
            assert items.send("sent 0") == 1  # type: ignore[attr-defined]
            assert taken.recorder.current_step is outer
            with tracer.start_as_current_span("outside"):
                pass
        assert items.throw(LookupError()) == -1  # type: ignore[attr-defined]
        assert next(items) == 2  # type: ignore[call-overload]
        with pytest.raises(StopIteration):
            items.send("sent 2")  # type: ignore[attr-defined]
    document = proved(taken, run)
    assert [(step["id"], step["status"], step.get("output")) for step in document["steps"]] == [
        ("stream", "completed", "done"),
        ("outer", "completed", None),
    ]
    assert parent_of("inner 1", taken) == taken.step("stream").span_id
    assert parent_of("outside", taken) == taken.step("outer").span_id


def test_a_generator_that_fails_or_is_left_early(taken: Taken) -> None:
    """An exception inside fails the step; one that nobody reads to its end is completed."""

    @taken.recorder.step("stream")
    def stream(fails: bool) -> Iterator[int]:
        yield 1
        if fails:
            raise ValueError("broken")
        yield 2

    with taken.recorder.run("wf", run_id="run_1") as run:
        with pytest.raises(ValueError, match="broken"):
            list(stream(True))
        left = stream(False)
        next(left)
        left.close()  # type: ignore[attr-defined]
    assert [step["status"] for step in proved(taken, run)["steps"]] == ["failed", "completed"]


def test_asynchronous_generators(taken: Taken) -> None:
    """They are recorded like the others, ended early or not, and nothing of theirs stays current."""

    @taken.recorder.step("stream")
    async def stream(count: int) -> AsyncIterator[int]:
        for number in range(count):
            await asyncio.sleep(0)
            assert isinstance(taken.recorder.current_step, StepRecording)
            yield number

    async def main() -> Any:
        async with taken.recorder.run("wf", run_id="run_1") as run:
            assert [item async for item in stream(3)] == [0, 1, 2]
            left = stream(3)
            assert await anext(left) == 0
            assert taken.recorder.current_run is run
            await left.aclose()  # type: ignore[attr-defined]
        return run

    assert [step["status"] for step in proved(taken, asyncio.run(main()))["steps"]] == ["completed"] * 2


def test_blocks_that_end_in_another_order_leave_nothing_current(taken: Taken) -> None:
    """Steps held open by generators of the engine's own, and steps that end crosswise, end with a clean context."""
    with taken.recorder.run("wf", run_id="run_1") as run:

        def held(name: str) -> Iterator[None]:
            with run.step(name):
                yield

        first, second = held("first"), held("second")
        next(first)
        next(second)
        first.close()  # type: ignore[attr-defined]
        assert taken.recorder.current_step.status == "running"
        second.close()  # type: ignore[attr-defined]
        assert taken.recorder.current_run is run
        one, two = run.step("one"), run.step("two")
        one.__enter__()
        two.__enter__()
        one.__exit__(None, None, None)
        two.__exit__(None, None, None)
        assert trace.get_current_span().get_span_context().span_id == int.from_bytes(run.session.record.root_id, "big")
    assert [step["status"] for step in proved(taken, run)["steps"]] == ["completed"] * 4


# Between services.


def test_headers_carry_step_and_run_to_the_service_that_is_called(taken: Taken) -> None:
    """The callee's run names the caller for its parent and links to the very step; both documents are proved."""
    with taken.recorder.run("caller", run_id="run ü") as run, run.step("call") as step:
        headers = taken.recorder.headers({"accept": "application/json"})
        step_id = step.span_id
        assert baggage.get_baggage("runspan.run.id") == "run ü"
        stock: dict[str, str] = {}
        propagate.inject(stock)
        assert stock.items() <= headers.items()
    assert headers["accept"] == "application/json"
    assert headers["traceparent"] == f"00-{run.trace_id.hex()}-{step_id.hex()}-01"
    called = taken.recorder.run("callee", run_id="run_2", headers={key.title(): text for key, text in headers.items()})
    with called:
        pass
    document = proved(taken, called)
    assert document["parentRunId"] == "run ü"
    assert document["traceparent"] == headers["traceparent"]
    (root,) = [span for span in taken.of("run_2") if span.attributes()[ROLE] == "run"]
    assert [(link.trace_id, link.span_id) for link in root.links] == [(run.trace_id, step_id)]
    assert root.attributes()["runspan.parent.run.id"] == "run ü"


def test_a_run_links_to_the_request_that_started_it(taken: Taken) -> None:
    """Without headers, the span that is current counts: a web framework's, say. Snapshots have the link too."""
    tracer = taken.recorder.tracer_provider.get_tracer("web")
    with tracer.start_as_current_span("POST /orders") as request, taken.recorder.run("wf", run_id="run_1") as run:
        assert run.flush(WAIT)
    proved(taken, run)
    span = request.get_span_context()
    wanted = [(span.trace_id.to_bytes(16, "big"), span.span_id.to_bytes(8, "big"))]
    heads = [span for span in taken.own if span.attributes()[ROLE] in ("run", "snapshot")]
    assert len(heads) > 1
    assert all([(link.trace_id, link.span_id) for link in head.links] == wanted for head in heads)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"traceparent": "00-odd"},
        {"traceparent": f"00-{'0' * 32}-{'1' * 16}-01"},
        {"baggage": "runspan.run.id=run_1"},
    ],
)
def test_headers_that_say_nothing_give_no_link(taken: Taken, headers: dict[str, str]) -> None:
    """Odd or empty headers are no caller, and no run is its own parent."""
    with taken.recorder.run("wf", run_id="run_1", headers=headers) as run:
        pass
    assert set(proved(taken, run)) == {
        *("id", "workflowId", "status", "startedAt", "completedAt", "durationMs", "createdAt", "steps")
    }
    assert not taken.role("run")[0].links


def test_a_run_never_links_into_its_own_trace(taken: Taken) -> None:
    """A request that comes from the run's own trace is no caller."""
    trace_id = taken.recorder.run("wf", run_id="run_1").trace_id.hex()
    with taken.recorder.run("wf", run_id="run_1", headers={"traceparent": f"00-{trace_id}-{'1' * 16}-01"}) as run:
        pass
    assert "traceparent" not in proved(taken, run)
